"""dynchoice: dynamic discrete choice models of membership.

Public names load on first use (PEP 562), so that ``import dynchoice`` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "StateSpace": "panel.states",
    "Panel": "panel.panel",
    "CountStore": "panel.store",
    "Counts": "panel.counts",
    "previous": "panel.history",
    "Utility": "model.utility",
    "Transitions": "model.transitions",
    "Fixed": "model.laws",
    "Deterministic": "model.laws",
    "Markov": "model.laws",
    "Cycle": "model.laws",
    "Increment": "model.laws",
    "DDC": "model.ddc",
    "Membership": "membership.membership",
    "Plan": "membership.plans",
    "Benefit": "membership.plans",
    "MemberType": "membership.plans",
    "solve": "solvers.solve",
    "Solution": "solvers.solve",
    "NFXP": "estimate.nfxp",
    "fit_segments": "estimate.segments",
    "SegmentFits": "estimate.segments",
    "CCP": "estimate.ccp",
    "NPL": "estimate.npl",
    "CCPEM": "estimate.ccpem",
    "ECCP": "estimate.eccp",
    "RewardModel": "model.reward",
    "RewardResults": "inference.reward_results",
    "Trajectories": "panel.trajectories",
    "DeepPQR": "estimate.pqr",
    "GenPQR": "estimate.pqr",
    "TDCCP": "estimate.tdccp",
    "SAmQ": "estimate.samq",
    "GLADIUS": "estimate.gladius",
    "MCEIRL": "estimate.mceirl",
    "Network": "estimate.rewards.network",
    "select_types": "estimate.ccpem",
    "MixtureResults": "inference.mixture_results",
    "finite_dependence": "model.dependence",
    "TypeGrid": "estimate.typegrid",
    "TypeGridResults": "estimate.typegrid",
    "score_test": "estimate.specification",
    "vuong_test": "estimate.specification",
    "audit": "estimate.audit",
    "profile_beta": "estimate.profile_beta",
    "Results": "inference.results",
    "load": "inference.files",
    "identification": "inference.identification",
    "compare": "inference.compare",
    "Scenario": "counterfactuals.scenario",
    "counterfactual": "counterfactuals.counterfactual",
    "forecast": "counterfactuals.forecast",
    "Forecast": "counterfactuals.forecast",
    "causal_check": "counterfactuals.causal_check",
    "welfare": "counterfactuals.welfare",
    "shapley": "counterfactuals.welfare",
    "bundles": "counterfactuals.bundles",
    "elasticities": "counterfactuals.elasticities",
    "reward_counterfactual": "counterfactuals.reward_counterfactual",
    "RewardCounterfactual": "counterfactuals.reward_counterfactual",
    "feature_match": "estimate.mceirl",
    "check_identified": "counterfactuals.identified",
    "counterfactual_bounds": "counterfactuals.bounds",
    "Restriction": "counterfactuals.bounds",
    "RollOut": "counterfactuals.experiments",
    "rank_experiments": "counterfactuals.experiments",
    "pool": "estimate.pooling",
    "Pooled": "estimate.pooling",
    "calibrate": "counterfactuals.calibrate",
    "Calibration": "counterfactuals.calibrate",
    "simulate": "counterfactuals.simulate",
    "discovery_values": "counterfactuals.discovery",
    "callout_lift": "counterfactuals.discovery",
    "Probit": "callouts.probit",
    "MetaPrior": "callouts.prior",
    "Callouts": "callouts.bandit",
    "LayoutBandit": "callouts.layout",
    "off_policy": "callouts.evaluation",
    "PolicyValue": "callouts.evaluation",
    "cross_fitted": "callouts.evaluation",
    "replay": "callouts.evaluation",
    "CalloutWorld": "callouts.simulator",
    "live": "callouts.simulator",
    "DynChoiceError": "errors",
    "SpecificationError": "errors",
    "ConfigError": "errors",
    "ConvergenceError": "errors",
    "IdentificationError": "errors",
    "CheckError": "errors",
    "DataError": "errors",
    "ColumnError": "errors",
    "SourceError": "errors",
    "StorageError": "errors",
    "LockError": "errors",
    "MissingExtraError": "errors",
    "DynChoiceWarning": "errors",
    "ConvergenceWarning": "errors",
    "IdentificationWarning": "errors",
    "DataWarning": "errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dynchoice' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dynchoice.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
