"""recbole-kd: knowledge distillation for recommender systems, as a plugin for RecBole."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_kd.quick_start import run_recbole_kd

# RecBole 1.2.1 and ray 2.6.3 use interfaces that newer torch, pandas and setuptools mark as old; nothing to act on.
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"(recbole|ray|pkg_resources|torch)(\..*)?$")
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
warnings.filterwarnings("ignore", message=r"torch\.sparse\.SparseTensor\(.*is deprecated")
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

__all__ = ["run_recbole_kd"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the losses and optimisers are importable without RecBole's long imports.
    if name == "run_recbole_kd":
        from recbole_kd.quick_start import run_recbole_kd

        return run_recbole_kd
    raise AttributeError(f"module 'recbole_kd' has no attribute '{name}'")
