"""recbole-kd: knowledge distillation for recommender systems, as a plugin for RecBole."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from recbole_kd import compat

if TYPE_CHECKING:
    from recbole_kd.verbs.train import run_recbole_kd

# RecBole uses interfaces that newer torch and pandas mark as old; nothing to act on.
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"(recbole|ray|torch)(\..*)?$")
warnings.filterwarnings("ignore", message=r"torch\.sparse\.SparseTensor\(.*is deprecated")
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", module=r"recbole\..*")
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

compat.install()

__all__ = ["run_recbole_kd"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the losses and optimisers are importable without RecBole's long imports.
    if name == "run_recbole_kd":
        compat.check()
        from recbole_kd.verbs.train import run_recbole_kd

        return run_recbole_kd
    raise AttributeError(f"module 'recbole_kd' has no attribute '{name}'")
