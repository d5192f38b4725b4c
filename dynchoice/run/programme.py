"""The membership programme of a run file."""

from __future__ import annotations

from pathlib import Path

from dynchoice import checks
from dynchoice.errors import ConfigError, SpecificationError
from dynchoice.membership.membership import Membership
from dynchoice.membership.names import BUNDLE, MENU, VINTAGE
from dynchoice.run.schema import Data, RunFile


def build_programme(spec: RunFile, folder: Path, source: Path) -> Membership:
    """Return the programme of a run file: its own tables, or the file that it names.

    Parameters
    ----------
    spec : RunFile
    folder : Path
        Where paths of the run file start.
    source : Path
        The run file, for messages.

    Raises
    ------
    ConfigError
        Whatever does not fit.
    """
    tree = dict(spec.membership or {})
    try:
        if "file" in tree:
            if len(tree) > 1 or not isinstance(tree["file"], str):
                raise SpecificationError("give either file, a path, or the programme itself")
            club = Membership.from_toml(folder / tree["file"])
        else:
            club = Membership.from_dict(tree)
        check_programme(spec.data, club)
        return club
    except RecursionError:
        where = tree.get("file", "membership")
        raise ConfigError(f"{source}: {where}: nested too deeply") from None
    except (SpecificationError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{source}: membership: {error}") from error


def check_programme(data: Data, club: Membership) -> None:
    """Raise for a programme that a run cannot be made of."""
    if club.types:
        raise SpecificationError(
            "types: unobserved types are for calibrated programmes, not for estimates of a run"
        )
    if not club.names:
        raise SpecificationError(
            "fixed: every parameter is held fixed: nothing is left to estimate"
        )
    if data.none in [p.name for p in club.plans]:
        raise SpecificationError(
            f"data.none: {data.none!r} is a plan; it is what stands for no plan"
        )
    movable = [x for x in (MENU, BUNDLE, VINTAGE) if x in club.states.axes]
    checks.known(data.columns, movable, "data.columns: the programme's axis")
    checks.known(data.engagement, [b.name for b in club.benefits], "data.engagement: benefit")
