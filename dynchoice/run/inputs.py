"""A checked run file as data: what it says, where it is, and what it describes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dynchoice import checks
from dynchoice.errors import ConfigError, DynChoiceError, SpecificationError
from dynchoice.panel.states import StateSpace
from dynchoice.run.reader import Reader
from dynchoice.run.schema import RunFile
from dynchoice.typing import Level

if TYPE_CHECKING:
    from dynchoice.membership.membership import Membership

MOST_STATES = 50_000_000


class Inputs:
    """What a run rests on.

    Parameters
    ----------
    spec : RunFile
        What the file says.
    folder : Path
        Where its paths start.
    source : Path
        The file as it was named, for messages.

    Raises
    ------
    ConfigError
        Axes that make no states, or too many.
    """

    def __init__(self, spec: RunFile, folder: Path, source: Path) -> None:
        self.spec, self.folder, self.source = spec, folder, source
        self.reader = Reader(self.tables)
        if spec.axes is not None:
            self.states  # noqa: B018  a membership's are made when they are asked for

    def path(self, name: str) -> Path:
        """Return a path of the run file as seen from here."""
        return self.folder / name

    @property
    def out(self) -> Path:
        """Folder of the outputs."""
        return self.path(self.spec.output.folder)

    @property
    def tables(self) -> list[Path]:
        """Files beside the panel that the run file names."""
        spec = self.spec
        names = [a.table for a in (spec.axes or {}).values() if a.table]
        names += [spec.utility.attributes] if spec.utility and spec.utility.attributes else []
        names += [spec.data.offers] if spec.data.offers else []
        file = (spec.membership or {}).get("file")
        names += [file] if isinstance(file, str) else []
        return [self.path(n) for n in dict.fromkeys(names)]

    @cached_property
    def membership(self) -> Membership:
        """The programme that the run file describes or names.

        Raises
        ------
        ConfigError
            Whatever does not fit.
        """
        # a run with nothing to do never asks for it
        from dynchoice.run.programme import build_programme

        return build_programme(self.spec, self.folder, self.source)

    @cached_property
    def states(self) -> StateSpace:
        """The states: of the axes, or of the programme.

        Raises
        ------
        ConfigError
            Whatever does not fit; more states than are supported.
        """
        axes = self.spec.axes
        if axes is None:
            return self.membership.states
        size = math.prod(a.size for a in axes.values())
        if size > MOST_STATES:
            raise ConfigError(
                f"{self.source}: axes: {size:,} states; more than {MOST_STATES:,} are not"
                " supported: leave out axes, or join levels"
            )
        try:
            return StateSpace.from_axes({n: a.all_levels() for n, a in axes.items()})
        except SpecificationError as error:
            raise ConfigError(f"{self.source}: {error}") from error

    @property
    def choices(self) -> tuple[Level, ...]:
        """Labels of the choices."""
        if self.spec.model is not None:
            return tuple(self.spec.model.choices)
        return self.membership.choices


def check_places(run: Inputs, segments: Iterable[str], regions: Iterable[str]) -> None:
    """Raise for scenarios that name segments or regions which the rows do not have.

    Raises
    ------
    ConfigError
        The first name, with the nearest one.
    """
    places = {"ramp": ("region", list(regions)), "mix": ("segment", list(segments))}
    for i, section in enumerate(run.spec.scenario):
        for key, (place, labels) in places.items():
            what = f"{run.source}: scenario[{i}].{key}: {place}"
            checks.known(getattr(section, key), labels, what, error=ConfigError)


def choose_segments(
    labels: Sequence[str], wanted: Iterable[Level] | None, key: str, error: type[DynChoiceError]
) -> list[str]:
    """Return the segments that are wanted, all where none is named, in the order of the rows'.

    Raises
    ------
    DynChoiceError
        Of the class ``error``: the rows have no segment of a name.
    """
    if wanted is None:
        return list(labels)
    names = list(map(str, wanted))
    checks.known(names, labels, f"{key}: segment", error=error)
    return [m for m in labels if m in names]
