"""Learners beyond RecBole's own: SEvo's optimisers, with the graph and the tables that they smooth."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recbole_kd.contracts import TeacherView
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.loss.kernel.rows import by_rows, mark_by_rows
from recbole_kd.sevo.graphs import SEvoOptions, cached_adjacency
from recbole_kd.sevo.optimizer import NeumannSmoother, sevo_optimizer, smoothed_groups
from recbole_kd.student.readers import embedding_tables, is_sequential, item_tables, tables_read_by_rows
from recbole_kd.trainer.lazy_adam import LazyAdam

#: parameters, learning rate, weight decay -> optimiser
OptimizerFactory = Callable[[Iterable[Tensor], float, float], Optimizer]


def optimizer_factory(
    config: KDConfig, splits: Splits, model: nn.Module, teacher: TeacherView | None = None
) -> OptimizerFactory | None:
    """A function that builds the optimiser of ``--learner=sevo_...``; None if the learner is one of RecBole's.

    Args:
        config: the run's settings.
        splits: the data; graphs are built from the training split only.
        model: the model whose tables are smoothed.
        teacher: its item embeddings make the graph ``teacher``.

    Raises:
        UserError: no tables to smooth, or a graph that cannot be built.
    """
    options = config.sevo
    if options is None:
        return None
    tables = smoothed_tables(options, splits, model)
    teacher_items = known_items = None
    if options.graph == "teacher":
        require_item_vectors(() if teacher is None else teacher.capabilities)
        assert teacher is not None
        teacher_items, known_items = teacher.item_embeddings(), teacher.known_items
    rows = len(tables[-1][-1])
    folder = os.path.join(config["checkpoint_dir"], "graphs")
    adjacency = cached_adjacency(folder, options, splits.train, splits.observed, rows, teacher_items, known_items)
    smoother = NeumannSmoother(adjacency.to(config["device"]), options.beta, options.layers, options.iterative)

    def build(parameters: Iterable[Tensor], learning_rate: float, weight_decay: float) -> Optimizer:
        *others, last = tables
        elsewhere = {id(table) for group in others for table in group}
        groups = [{"params": group, "smoother": smoother} for group in others]
        groups += smoothed_groups([one for one in parameters if id(one) not in elsewhere], last, smoother)
        return sevo_optimizer(config["learner"], groups, learning_rate, weight_decay)

    return build


def require_item_vectors(capabilities: Collection[str]) -> None:
    """
    Raises:
        UserError: a teacher with these capabilities has no item vectors, of which graph ``teacher`` could be made.
    """
    if {"representations", "sequence_vectors", "item_representations"}.isdisjoint(capabilities):
        raise UserError(
            "--sevo.graph=teacher reads a teacher's item vectors, but this teacher has none; "
            "set --teacher=NAME of a model with vectors, such as BPR, or another --sevo.graph."
        )


def smoothed_tables(options: SEvoOptions, splits: Splits, model: nn.Module) -> list[list[Tensor]]:
    """The smoothed parameters: lists of tables whose rows, one table after the other, are the graph's nodes.

    Raises:
        UserError: there are no such parameters, or their sizes differ from the graph's.
    """
    chosen = _named_tables(options, model) if options.tables else _found_tables(options, model)
    joint = options.graph == "bipartite"
    groups = [chosen] if joint else [[table] for table in chosen]
    items = splits.train.item_num
    rows = [len(table) if table.dim() == 2 else 0 for table in chosen]
    # A row beyond the items (BERT4Rec's mask) has no neighbour.
    fits = rows == [splits.train.user_num, items] if joint else {*rows} in ({items}, {items + 1})
    if not fits:
        expected = f"users and items, {splits.train.user_num:,} and {items:,}" if joint else f"the {items:,} items"
        raise UserError(
            f"--sevo.graph={options.graph} has a node for each of {expected} (padding included), and the tables to "
            f"smooth have {' and '.join(f'{count:,}' for count in rows)} rows; "
            "set --sevo.tables or another --sevo.graph."
        )
    return groups


def _named_tables(options: SEvoOptions, model: nn.Module) -> list[Tensor]:
    named: dict[str, Any] = dict(model.named_parameters())
    for name in options.tables:
        if name not in named:
            raise UserError(
                f"sevo.tables names '{name}', but {type(model).__name__} has no such parameter; it has: "
                f"{', '.join(list(named)[:12])}."
            )
    return [named[name] for name in options.tables]


def _found_tables(options: SEvoOptions, model: nn.Module) -> list[Tensor]:
    if options.graph == "bipartite" and is_sequential(model):
        raise UserError(
            f"--sevo.graph=bipartite connects users and items, but {type(model).__name__} has no table of users; "
            "set --sevo.graph to consecutive, category or teacher."
        )
    tables = embedding_tables(model) if options.graph == "bipartite" else item_tables(model)
    if tables is None:
        raise UserError(
            f"SEvo smooths embedding tables, but none of {type(model).__name__} are known; "
            "name them with --sevo.tables, or choose another --learner."
        )
    return list(tables)


def lazy_adam(model: nn.Module, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float) -> LazyAdam:
    """``--learner=lazy_adam`` for a model's parameters; its embedding tables are updated by rows."""
    for table in tables_read_by_rows(model):
        mark_by_rows(table, remembered=True)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return LazyAdam(parameters, tables, learning_rate, weight_decay)


def compute_faster(model: nn.Module) -> None:
    """Kernels that give the same up to rounding, on a CPU: for gradients of tables, and for LightGCN's propagation."""
    for table in tables_read_by_rows(model):
        if table.weight.device.type == "cpu" and not by_rows(table.weight):
            mark_by_rows(table)
    if type(model).__name__ == "LightGCN":
        from recbole_kd.model.graph_variants import propagate_faster  # brings all of RecBole's models

        propagate_faster(model)


def use_fused_adam(optimizer: Optimizer) -> None:
    """Makes Adam or AdamW use fused steps, if this torch has them; other optimisers do not change."""
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and fused_adam_exists():
        for group in optimizer.param_groups:
            group["fused"] = True


@cache
def fused_adam_exists() -> bool:
    """Whether this torch has a fused Adam on a CPU (since 2.4): one pass over weights, gradients and moments."""
    parameter = torch.zeros(1, requires_grad=True)
    try:
        optimizer = torch.optim.Adam([parameter], fused=True)
        parameter.grad = torch.zeros(1)
        optimizer.step()
    except RuntimeError:
        return False
    return True


def schedule_learning_rate(optimizer: Optimizer, config: KDConfig, epoch: int) -> None:
    """Sets an epoch's learning rate as ``--learning_rate_schedule`` says."""
    if config["learning_rate_schedule"] == "cosine":
        # A function of the epoch only, so a resumed run needs no state.
        rate = config["learning_rate"] * 0.5 * (1 + math.cos(math.pi * epoch / max(1, config["epochs"])))
        for group in optimizer.param_groups:
            group["lr"] = rate
