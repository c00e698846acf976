"""recbole-kd: knowledge distillation for recommender systems, as a plugin for RecBole."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from recbole_kd import compat

if TYPE_CHECKING:
    from recbole_kd.stages.saved import load_data_and_model
    from recbole_kd.verbs.compare import compare
    from recbole_kd.verbs.recommender import Recommender
    from recbole_kd.verbs.train import run_recbole_kd
    from recbole_kd.verbs.tune import search

# RecBole uses interfaces that newer torch and pandas mark as old; nothing to act on.
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"(recbole|ray|torch)(\..*)?$")
warnings.filterwarnings("ignore", message=r"torch\.sparse\.SparseTensor\(.*is deprecated")
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", module=r"recbole\..*")
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def _host() -> Any:
    from recbole_kd import host

    return host


compat.install(_host)

#: Name that can be imported from here -> its module. docs/python.md shows their use.
_OFFERED = {
    "compare": "recbole_kd.verbs.compare",
    "load_data_and_model": "recbole_kd.stages.saved",
    "Recommender": "recbole_kd.verbs.recommender",
    "run_recbole_kd": "recbole_kd.verbs.train",
    "search": "recbole_kd.verbs.tune",
}

__all__ = ["Recommender", "compare", "load_data_and_model", "run_recbole_kd", "search"]


def __getattr__(name: str) -> Any:
    # Loaded at first use, so that losses and optimisers can be imported without RecBole's long imports.
    if name in _OFFERED:
        compat.check()
        return getattr(importlib.import_module(_OFFERED[name]), name)
    raise AttributeError(f"module 'recbole_kd' has no attribute '{name}'")
