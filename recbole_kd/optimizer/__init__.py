"""Optimisers. They import torch alone."""

from recbole_kd.optimizer.sevo import (
    OPTIMIZERS,
    NeumannSmoother,
    SEvoAdam,
    SEvoAdamW,
    SEvoOptimizer,
    SEvoSGD,
    sevo_optimizer,
    smoothed_groups,
)

__all__ = [
    "OPTIMIZERS",
    "NeumannSmoother",
    "SEvoAdam",
    "SEvoAdamW",
    "SEvoOptimizer",
    "SEvoSGD",
    "sevo_optimizer",
    "smoothed_groups",
]
