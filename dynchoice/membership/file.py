"""Programmes read from plain values and TOML files, by the names that :mod:`dynchoice.run` uses."""

from __future__ import annotations

from dynchoice.membership.membership import Membership
from dynchoice.membership.plain import build

__all__ = ["build", "from_plain", "read_toml"]

from_plain = Membership.from_dict
read_toml = Membership.from_toml
