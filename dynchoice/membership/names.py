"""Words of a membership programme: parameter names and axes."""

from __future__ import annotations

MEMBER, TENURE, PRICE = "member", "tenure", "price"
JOIN, CANCEL, SWITCH, UPFRONT = (
    "joining cost",
    "cancelling cost",
    "switching cost",
    "paying upfront",
)
COSTS = (JOIN, CANCEL, SWITCH, UPFRONT)
CONTRACT, MENU, BUNDLE, VINTAGE = "contract", "prices", "bundle", "vintage"
KEPT, CURRENT = "kept", "current"
