"""Learners beyond RecBole's own: SEvo's optimisers, with the graph and the tables that they smooth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Optional

from torch import Tensor, nn
from torch.optim import Optimizer

from recbole_kd.config import KDConfig
from recbole_kd.contracts import TeacherView
from recbole_kd.data.item_graphs import SEvoOptions, sevo_adjacency
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.optimizer.sevo import NeumannSmoother, sevo_optimizer, smoothed_groups
from recbole_kd.representation import embedding_tables

#: parameters, learning rate, weight decay -> optimiser
OptimizerFactory = Callable[[Iterable[Tensor], float, float], Optimizer]


def reads_a_teacher(config: KDConfig) -> bool:
    """Whether the learner needs a teacher's item embeddings."""
    return config["sevo"] is not None and SEvoOptions.parse("sevo", config["sevo"]).graph == "teacher"


def optimizer_factory(
    config: KDConfig, splits: Splits, model: nn.Module, teacher: Optional[TeacherView] = None
) -> Optional[OptimizerFactory]:
    """How to build the optimiser of ``--learner=sevo_...``; None where the learner is one of RecBole's.

    Args:
        config: the run's settings.
        splits: the data; graphs are built from the training split alone.
        model: whose tables are smoothed.
        teacher: gives the item embeddings of graph ``teacher``.

    Raises:
        UserError: no tables to smooth, or a graph that cannot be built.
    """
    if config["sevo"] is None:
        return None
    options = SEvoOptions.parse("sevo", config["sevo"])
    tables = _tables(options, model)
    teacher_items = None
    if options.graph == "teacher":
        if teacher is None or "representations" not in teacher.capabilities:
            raise UserError(
                "--sevo.graph=teacher reads a teacher's item vectors, and there is none; "
                "set --teacher=NAME of a model with vectors, such as BPR, or another --sevo.graph."
            )
        teacher_items = teacher.item_embeddings()
    adjacency = sevo_adjacency(options, splits.train, splits.observed, len(tables[-1]), teacher_items)
    smoother = NeumannSmoother(adjacency.to(config["device"]), options.beta, options.layers, options.iterative)

    def build(parameters: Iterable[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
        groups = smoothed_groups(parameters, tables, smoother)
        return sevo_optimizer(str(config["learner"]).lower(), groups, learning_rate, weight_decay)

    return build


def _tables(options: SEvoOptions, model: nn.Module) -> list[Tensor]:
    """The smoothed parameters in the order of the graph's nodes."""
    named: dict[str, Any] = dict(model.named_parameters())
    if options.tables:
        for name in options.tables:
            if name not in named:
                raise UserError(
                    f"sevo.tables names '{name}', and {type(model).__name__} has no such parameter; it has: "
                    f"{', '.join(list(named)[:12])}."
                )
        return [named[name] for name in options.tables]
    tables = embedding_tables(model)
    if tables is None:
        raise UserError(
            f"SEvo smooths embedding tables, and none are known of {type(model).__name__}; "
            "name them with --sevo.tables, or choose another --learner."
        )
    return list(tables) if options.graph == "bipartite" else [tables[1]]
