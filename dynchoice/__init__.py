"""dynchoice: dynamic discrete choice models of membership.

Public names load on first use (PEP 562), so that ``import dynchoice`` costs milliseconds.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
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
    "Network": "estimate.network",
    "select_types": "estimate.ccpem",
    "MixtureResults": "inference.mixture_results",
    "finite_dependence": "model.dependence",
    "TypeGrid": "estimate.typegrid",
    "TypeGridResults": "estimate.typegrid",
    "score_test": "estimate.specification",
    "vuong_test": "estimate.specification",
    "audit": "estimate.audit",
    "profile_beta": "estimate.audit",
    "Results": "inference.results",
    "load": "inference.results",
    "identification": "inference.identification",
    "compare": "inference.summary",
    "Scenario": "counterfactual.scenario",
    "counterfactual": "counterfactual.point",
    "forecast": "counterfactual.forecast",
    "Forecast": "counterfactual.forecast",
    "causal_check": "counterfactual.causal",
    "welfare": "counterfactual.welfare",
    "shapley": "counterfactual.welfare",
    "bundles": "counterfactual.bundles",
    "elasticities": "counterfactual.bundles",
    "reward_counterfactual": "counterfactual.soft_q",
    "RewardCounterfactual": "counterfactual.soft_q",
    "feature_match": "estimate.mceirl",
    "check_identified": "counterfactual.identified",
    "counterfactual_bounds": "counterfactual.bounds",
    "Restriction": "counterfactual.bounds",
    "RollOut": "counterfactual.experiments",
    "rank_experiments": "counterfactual.experiments",
    "pool": "estimate.pooling",
    "Pooled": "estimate.pooling",
    "calibrate": "counterfactual.calibrate",
    "Calibration": "counterfactual.calibrate",
    "simulate": "counterfactual.simulate",
    "discovery_values": "counterfactual.discovery",
    "callout_lift": "counterfactual.discovery",
    "Probit": "callouts.probit",
    "MetaPrior": "callouts.prior",
    "Callouts": "callouts.bandit",
    "LayoutBandit": "callouts.layout",
    "off_policy": "callouts.evaluation",
    "PolicyValue": "callouts.evaluation",
    "cross_fitted": "callouts.evaluation",
    "replay": "callouts.evaluation",
    "CalloutWorld": "callouts.world",
    "live": "callouts.world",
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
    if name not in _HOME or name in _FOLDERS:
        raise AttributeError(f"module 'dynchoice' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dynchoice.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def _function(folder: str, module: str) -> Any:
    """Return the public function named like its folder, with the folder's modules as attributes."""
    function = getattr(importlib.import_module(f"dynchoice.{folder}.{module}"), folder)
    loaded = vars(sys.modules[f"dynchoice.{folder}"])
    function.__dict__.update({k: v for k, v in loaded.items() if isinstance(v, ModuleType)})
    return function


class _Package(ModuleType):
    """Keeps ``dynchoice.counterfactual`` the public function.

    A folder of the same name exists, and importing a module from it would bind the name to the
    folder; a property on the package's class takes precedence over that binding.
    """

    def __reduce__(self) -> Any:
        """Pickle by name, as plain modules are (joblib's workers receive functions that use it)."""
        return importlib.import_module, (self.__name__,)

    @property
    def counterfactual(self) -> Any:
        """The function :func:`dynchoice.counterfactual.point.counterfactual`."""
        return _function("counterfactual", "point")

    @counterfactual.setter
    def counterfactual(self, folder: ModuleType) -> None:
        """Ignore the import machinery's binding of the folder."""
        del folder


_FOLDERS = ("counterfactual",)
sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
