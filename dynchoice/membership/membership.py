"""Membership: a subscription programme described in plans, benefits and costs, and its DDC.

The model of SOURCES.md 7.3. In month t a customer stands at a contract level ``c`` and engagement
``e`` (use of each benefit), looks with probability ``attention(c)``, and chooses none or a plan:

    u(c, e, a) = 1{a != none} [ member + sum_k share_ak value_k e_k + tenure * years ]
                 - price (payment - refund) - costs of joining, cancelling, switching,
                   paying upfront

Outside, utility is zero: that is the normalisation. Contract levels and moves are in
:mod:`dynchoice.membership.contracts`; engagement moves by one Markov chain a benefit. Prices and
bundles in force are two Fixed axes, so that regions and months with different offers are one
model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dynchoice.errors import SpecificationError
from dynchoice.membership.changes import of_type, segment, state_map
from dynchoice.membership.engagement import engagement_laws
from dynchoice.membership.file import as_plain, from_plain, read_toml, write_toml
from dynchoice.membership.grandfathering import vintage_laws
from dynchoice.membership.names import BUNDLE, CANCEL, CONTRACT, MENU, VINTAGE
from dynchoice.membership.programme import Programme
from dynchoice.membership.read_panel import read_panel
from dynchoice.membership.utility import feature_table
from dynchoice.model.ddc import DDC
from dynchoice.model.factored import Factored
from dynchoice.model.laws import Fixed, Law, Markov
from dynchoice.model.transitions import Transitions
from dynchoice.model.utility import Utility
from dynchoice.panel.panel import Panel
from dynchoice.typing import FloatArray, IntArray


@dataclass(frozen=True)
class Membership(Programme):
    """A membership programme, from which models, panels and scenarios are built.

    Parameters
    ----------
    plans : sequence of Plan
    benefits : sequence of Benefit
    beta : float
        Discount factor per period.
    params : mapping, optional
        Known or assumed parameters by name, for simulation and calibration:
        ``member``, each benefit's name, ``tenure``, ``price`` (utils per unit of money),
        ``joining cost``, ``cancelling cost``, ``switching cost``, ``paying upfront``, features.
    fixed : mapping, optional
        Parameters held at a value and not estimated.
    costs : sequence of str, optional
        Which costs the model has. Default: joining and switching; cancelling where a plan has a
        trial; paying upfront where a contract is longer than a period. See Notes.
    tenure : int
        Classes of tenure, in years: 3 means under one, one to two, over two. 1: not tracked.
    per_year : float
        Periods a year.
    trial_again : float or None
        Mean periods until a former member may have a trial again (None: never): in the model it
        happens at random, in a plan history it is read as a rule, after so many periods outside.
    attention_outside, attention_trial : float
        Probability of an active choice outside, and when a trial ends.
    naive : float
        0: members foresee their inattention within the membership; 1: they expect to be fully
        attentive; between: partly.
    trial_cancel : float
        Share of the cancelling cost that quitting a trial takes.
    menus : mapping, optional
        Label -> ``{plan: price}``: price lists seen or planned, levels of the axis ``prices``.
    bundles : mapping, optional
        Label -> ``{benefit: share}`` or ``{benefit: {plan: share}}``: benefits on offer, levels of
        the axis ``bundle``; what is not named is there in full.
    kept : mapping, optional
        Grandfathered members pay these prices (``{menu or "": {plan: price}}``) until they leave;
        adds the axis ``vintage``.
    kept_until : {"leaving", "renewal"}
        With ``"renewal"``, kept prices hold for contracts that run, refunds included, and end with
        them: the next contract costs what the list says.
    types : mapping, optional
        Label -> MemberType: unobserved types, for calibrated models.
    segments : mapping, optional
        Label -> ``{"params": ..., "prices": ...}``: what is different in a segment.

    Raises
    ------
    SpecificationError
        Whatever does not fit; the message names it.

    Notes
    -----
    A constant cost of cancelling is not separately identified from the cost of joining
    (Aguirregabiria and Suzuki 2014; SOURCES.md 7.3): moving value from leaving to joining, with
    ``member`` adjusted by ``1 - beta``, changes no choice. A trial breaks that tie, because
    quitting a trial takes ``trial_cancel`` of the cost: an assumption, so what is learnt of the
    cost rests on it. Without a trial the cancelling cost is normalised to zero. :attr:`notes`
    says which holds.

    Examples
    --------
    >>> import dynchoice as dc
    >>> club = dc.Membership([dc.Plan("monthly", 15), dc.Plan("annual", 139, periods=12)],
    ...                      [dc.Benefit("video", gain=0.1, stay=0.9)], beta=0.99)
    >>> club.model().shape
    (28, 3, 6)
    >>> club.model().names
    ('member', 'video', 'price', 'joining cost', 'switching cost', 'paying upfront')
    """

    @property
    def notes(self) -> tuple[str, ...]:
        """What is normalised or assumed, in words."""
        notes = ["Utility outside the membership is zero: values are relative to it."]
        if CANCEL not in self.used_costs or CANCEL in self.fixed:
            value = self.fixed.get(CANCEL, 0.0)
            notes.append(
                f"The cancelling cost is normalised to {value:g}: with constant costs only about"
                " the sum of joining and cancelling costs is identified: 'joining cost' holds both."
            )
        elif self.contracts.trials:
            notes.append(
                f"Quitting a trial is assumed to take {self.trial_cancel:g} of the cancelling cost;"
                " what is learnt of joining and cancelling costs apart rests on that."
            )
        if self.naive:
            notes.append(f"Members overrate their attention (naive share {self.naive:g}).")
        return tuple(notes)

    @cached_property
    def features(self) -> FloatArray:
        """Features of all parameters (S, J, all names), in the order of :attr:`all_names`."""
        return feature_table(self)

    # the model --------------------------------------------------------------------------------

    def laws(
        self, estimated: tuple[Programme, Factored] | None = None
    ) -> dict[str | tuple[str, ...], Law]:
        """Return the laws of motion by axis.

        Parameters
        ----------
        estimated : (Membership, Factored), optional
            A fitted model's programme and transitions: chains without probabilities are taken
            from there, plan by plan.
        """
        laws: dict[str | tuple[str, ...], Law] = {}
        if self.menus:
            laws[MENU] = Fixed()
        if self.bundles:
            laws[BUNDLE] = Fixed()
        laws.update(engagement_laws(self, estimated))
        if self.kept is not None:
            return laws | vintage_laws(self.contracts, self.kept_until)
        laws[CONTRACT] = Markov(("choice",), self.contracts.table)
        return laws

    def model(
        self, segment: str | None = None, *, estimated: tuple[Programme, Factored] | None = None
    ) -> DDC:
        """Return the DDC; chains without probabilities are left for the first stage.

        Parameters
        ----------
        segment : str, optional
            A segment of the programme.
        estimated : (Membership, Factored), optional
            See :meth:`laws`.
        """
        if segment is not None:
            return self.segment(segment).model(estimated=estimated)
        free = [self.all_names.index(n) for n in self.names]
        x = self.features
        offset = np.zeros(x.shape[:2])
        for name, value in self.fixed.items():
            offset += value * x[:, :, self.all_names.index(name)]
        attentive = bool((self.attention == 1).all())
        return DDC(
            states=self.states,
            choices=self.choices,
            utility=Utility.from_array(x[:, :, free], self.names, offset),
            transitions=Transitions.factored(self.states, self.choices, self.laws(estimated)),
            beta=self.beta,
            available=self.by_contract(self.contracts.offered),
            attention=None if attentive else self.attention,
            default=None if attentive else self.by_contract(self.contracts.default),
            perceived=self.perceived if self.naive and not attentive else None,
            membership=self,
        )

    def panel(self, data: Any, *, member: str, time: str, plan: str, **options: Any) -> Panel:
        """Return the Panel of a plan history; contract clock and tenure are derived.

        Parameters
        ----------
        data : pandas.DataFrame, pyarrow.Table, path(s) of Parquet or CSV, or ibis table
            One row per member and period. Of more than ``member_limit`` rows, unless they are a
            frame, some members are read at a time; what is derived stands in a temporary folder
            (``TMPDIR``) as long as the panel lives.
        member, time, plan : str
            Columns; ``plan`` holds the plan held during the period, or ``none``.
        engagement : mapping, optional
            Benefit -> column of its level of use. Default: the benefit's name.
        lag : bool
            Whether these columns say what was used during the period (so that the state is the
            period's before), instead of at its start.
        offers : pandas.DataFrame, optional
            Schedule of offers: columns ``from``, ``prices`` and/or ``bundle``, and the region's
            where they differ by region. Default: columns of ``data``.
        entry : {"new", "outside", "unknown"}
            Where members stand in their first row (and after a gap). ``"unknown"`` leaves rows
            out until a period outside has been seen: that selects against long contracts, so
            prefer ``contract`` where anything is known.
        contract : str, optional
            Column of contract levels (``contracts.labels``), where they are known: ``annual_11``
            is an annual contract with eleven periods to go, at ``annual_0`` it is renewed or not.
        none : label
            What ``plan`` says of a period outside. Default ``"none"``.
        broken : {"raise", "drop"}
            What to do with choices that the contract does not allow.
        columns : mapping, optional
            ``prices``, ``bundle`` or ``vintage`` -> column, where they differ.
        region, segment, weights, decision, freq, invalid, buckets, member_limit, memory, progress
            As for :class:`dynchoice.Panel`.

        Raises
        ------
        ColumnError, DataError
            Columns that are missing; plans, levels or choices that do not fit the programme.
        """
        return read_panel(self, data, member=member, time=time, plan=plan, **options)

    def segment(self, label: str) -> Membership:
        """Return one segment's programme: see :func:`dynchoice.membership.changes.segment`."""
        return segment(self, label)

    def theta(self, kind: str | None = None) -> FloatArray:
        """Return the known parameters as a vector in the model's order, of one type if named.

        Raises
        ------
        SpecificationError
            A parameter without a value; no such type.
        """
        if kind is not None:
            return self.of_type(kind).theta()
        missing = [n for n in self.names if not np.isfinite(self.params.get(n, np.nan))]
        if missing:
            raise SpecificationError(
                f"params: {missing[0]!r} has no value (needed: {', '.join(self.names)})"
            )
        return np.array([self.params[n] for n in self.names])

    def of_type(self, kind: str) -> Membership:
        """Return it as one type values it: see :func:`dynchoice.membership.changes.of_type`."""
        return of_type(self, kind)

    def newcomers(self) -> FloatArray:
        """Return a start (S,): everyone outside (eligible for a trial), engagement uniform."""
        mu = (self.states.axis_codes(CONTRACT) == 0).astype(np.float64)
        for axis in (MENU, BUNDLE, VINTAGE):
            if axis in self.states.axes:
                mu *= self.states.axis_codes(axis) == 0
        return mu / mu.sum()

    def state_map(self, new: Membership) -> IntArray:
        """Return where each state (S,) stands in a changed programme: see :func:`state_map`."""
        return state_map(self, new)

    # files ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the programme as plain nested values; :meth:`from_dict` reads it back."""
        return as_plain(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Membership:
        """Build from :meth:`to_dict` or a TOML file's content.

        Raises
        ------
        SpecificationError
            Unknown or missing keys, by name.
        """
        return from_plain(cls, tree)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Membership:
        """Read a programme from a TOML file."""
        return read_toml(cls, Path(path))

    def to_toml(self, path: str | os.PathLike[str]) -> Path:
        """Write the programme to a TOML file."""
        return write_toml(self, Path(path))

    def __repr__(self) -> str:
        return (
            f"Membership(plans {', '.join(p.name for p in self.plans)}; benefits"
            f" {', '.join(b.name for b in self.benefits) or 'none'};"
            f" {len(self.contracts.levels)} contract levels, {self.states.size:,} states)"
        )
