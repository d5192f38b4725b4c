"""Words that several folders share: what stands in tables and files."""

from __future__ import annotations

ALL = "all"
"""The group of all customers together; no segment, type or region may be named so."""
BASELINE = "baseline"
"""The forecast in which nothing changes; no scenario may be named so."""
RESULTS = "dynchoice results"
"""The kind of file that ``save`` of a fit writes and ``dynchoice.load`` reads."""
