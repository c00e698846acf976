"""The diagnostics of ``recbole-kd analyse``, each a function that computes a picture and a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import nn

from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError, closest
from recbole_kd.evaluation.groups import GroupMeans, activity_groups, group_means, taste_groups
from recbole_kd.evaluation.maps import plane
from recbole_kd.evaluation.smoothing import popular_distances, second_order_smoothness
from recbole_kd.files.checkpoint import ResumableState, load_checkpoint
from recbole_kd.report.looks import PALETTE, REFERENCE_COLOR, TEACHER_COLOR, metric_label
from recbole_kd.report.static import log_axis, new_figure, panels
from recbole_kd.teacher.cache import Trained
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.trainer.kd_trainer import make_evaluator

__all__ = [
    "COLORS",
    "MAP_NODES",
    "Impossible",
    "Part",
    "Subject",
    "cell",
    "color_of",
    "evaluated",
    "experts",
    "gain",
    "per_user",
    "side_vectors_of",
    "smoothing",
    "state_of_distillers",
    "vectors_of",
]

#: Number of users or items on a map.
MAP_NODES = 1500

COLORS = {"student": PALETTE[0], "teacher": TEACHER_COLOR, "baseline": REFERENCE_COLOR}


def color_of(role: str) -> str:
    """The colour of a role in every picture; "student 2" and so on have their own."""
    return COLORS.get(role) or PALETTE[(int(role.rpartition(" ")[2]) - 1) % len(PALETTE)]


class Impossible(Exception):
    """The reason why a part cannot be computed for these checkpoints, as a sentence."""


@dataclass(frozen=True)
class Part:
    """One diagnostic.

    Attributes:
        name: one of :data:`recbole_kd.verbs.options.PARTS`.
        finding: one sentence on the result.
        table: heading and rows of the CSV.
        picture: the figure.
    """

    name: str
    finding: str
    table: list[list[Any]]
    picture: Figure


@dataclass(frozen=True)
class Subject:
    """The input of the parts: the models in the student's ids, and the data."""

    student: FrozenTeacher
    teacher: Optional[FrozenTeacher]
    baseline: Optional[FrozenTeacher]
    trained: Trained
    splits: Splits
    bands: int
    groups: int
    metric: str
    #: Plain students of other sizes.
    alone: tuple[FrozenTeacher, ...] = ()
    #: Other students, with the roles "student 2" and so on.
    others: tuple[FrozenTeacher, ...] = ()
    equal_bands: Optional[int] = None
    projector: str = "fitted"
    map_side: str = "items"
    map_method: str = "tsne"
    category: Optional[str] = None

    def require_teacher(self) -> None:
        """
        Raises:
            Impossible: no teacher is given.
        """
        if self.teacher is None:
            raise Impossible("it compares with a teacher; give --teacher=FILE.")

    def models(self) -> dict[str, FrozenTeacher]:
        """Role -> model, for the given models."""
        found = {"student": self.student, "teacher": self.teacher, "baseline": self.baseline}
        found.update({f"student {number}": model for number, model in enumerate(self.others, 2)})
        return {role: model for role, model in found.items() if model is not None}

    def name(self, role: str) -> str:
        """The model's name in the checkpoint: a recipe's or an architecture's."""
        model = self.models()[role]
        return str(model.trained.state.get("model") or model.name)


def vectors_of(subject: Subject) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Role -> (users (U, d), items (I, d)).

    Raises:
        Impossible: a model has no vectors.
    """
    for role, model in subject.models().items():
        if "representations" not in model.capabilities:
            raise Impossible(f"the {role} {model.name} has no vector for each user and each item.")
    return {
        role: (model.user_embeddings().cpu(), model.item_embeddings().cpu()) for role, model in subject.models().items()
    }


def side_vectors_of(subject: Subject, side: str) -> dict[str, torch.Tensor]:
    """Role -> vectors of the ``users`` or ``items``, (N, d); sequential models have those of items.

    Raises:
        Impossible: a model has no such vectors.
    """
    enough = {"representations"} if side == "users" else {"representations", "sequence_vectors"}
    found = {}
    for role, model in subject.models().items():
        if enough.isdisjoint(model.capabilities):
            raise Impossible(f"the {role} {model.name} has no vector for each {side[:-1]}.")
        found[role] = (model.user_embeddings() if side == "users" else model.item_embeddings()).cpu()
    return found


def smoothing(subject: Subject) -> Part:
    """Mean average distance and second-order smoothness of the most popular users and items."""
    sequential = any("sequence_vectors" in model.capabilities for model in subject.models().values())
    sides = {"users": subject.splits.observed} if not sequential else {}
    sides["items"] = subject.splits.observed.transposed()
    vectors = {side: side_vectors_of(subject, side) for side in sides}
    roles = list(subject.models())
    rows, figure_lines, tenth, smoothness = [], {}, {}, {}
    for side, observed in sides.items():
        popularity = observed.counts[1:]
        count = int((popularity > 0).sum())
        size_of = {share: max(2, round(count * share)) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)}
        sizes = sorted({*size_of.values()})
        for role, table in vectors[side].items():
            distances = popular_distances(table[1:], popularity, sizes)
            orders = second_order_smoothness(table, observed, sizes)
            rows += [[role, subject.name(role), side, n, cell(d), cell(s)] for n, d, s in zip(sizes, distances, orders)]
            smoothness[side, role] = orders[-1]
            figure_lines[side, role] = (sizes, distances)
            tenth[side, role] = distances[sizes.index(size_of[0.1])]
    figure, grid = panels(len(sides), 2, 4.4, 3.4)
    for axes, side in zip(grid, sides):
        for role in roles:
            label = f"{role}, {subject.name(role)}"
            axes.plot(*figure_lines[side, role], color=color_of(role), marker="o", ms=4, lw=1.8, label=label)
        sizes = [size for role in roles for size in figure_lines[side, role][0]]
        log_axis(axes, min(sizes), max(sizes))
        axes.set_title(f"The most popular {side}")
        axes.set_xlabel(f"{side}, the most popular first")
        axes.set_ylabel("mean average distance (1 - cos)")
        axes.set_ylim(bottom=0)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    finding = "; ".join(f"{side}: {', '.join(f'{role} {tenth[side, role]:.3f}' for role in roles)}" for side in sides)
    second = "; ".join(
        f"of {side}: {', '.join(f'{role} {smoothness[side, role]:.1f}' for role in roles)}" for side in sides
    )
    heading = ["role", "model", "side", "most popular", "mean average distance", "second-order smoothness"]
    finding = f"among the most popular tenth, {finding}; second-order smoothness {second}"
    return Part("smoothing", finding, [heading, *rows], figure)


def experts(subject: Subject) -> Part:
    """The likeliest expert of some users and items at each epoch."""
    kept = state_of_distillers(_latest_state(subject.trained))
    network = ".users.selection.network.weight"
    names = [key[: -len(network)] for key in kept if key.endswith(network)]
    if not names:
        raise Impossible(
            "the student's checkpoint keeps no record of experts; de and htd write one for students that have "
            "a vector for each user and each item."
        )
    name = names[0]
    places = _places_of_experts(subject, {side: kept[f"{name}.{side}_history.nodes"] for side in ("user", "item")})
    columns = 3 if places else 2
    figure, grid = panels(2 * columns, columns, 4.6, 3.2)
    rows: list[list[Any]] = []
    findings = []
    tokens = {"user": subject.splits.user_tokens, "item": subject.splits.item_tokens}
    for place, side in enumerate(("user", "item")):
        choices = kept[f"{name}.{side}_history._extra_state"].numpy().astype(np.int64)
        nodes = kept[f"{name}.{side}_history.nodes"].tolist()
        experts = len(kept[f"{name}.{side}s.selection.network.weight"])
        noted = (choices >= 0).all(axis=1)
        epochs, choices = np.flatnonzero(noted), choices[noted]
        if place == 0:
            rows.append(["side", "id", *(["x", "y"] if places else []), *(f"epoch {epoch}" for epoch in epochs)])
        of_nodes = [list(map(cell, xy)) for xy in places[side]] if places else [[]] * len(nodes)
        rows += [
            [side, tokens[side][node], *xy, *column] for node, xy, column in zip(nodes, of_nodes, choices.T.tolist())
        ]
        changed = (choices[1:] != choices[:-1]).mean(axis=1)
        used = len(np.unique(choices[-1]))
        history, changes, *over_plane = grid[columns * place : columns * (place + 1)]
        rank = _by_size(choices[-1], experts)
        _draw_experts(history, rank[choices], epochs, experts, f"{side}s")
        history.set_title(f"Expert of {len(nodes):,} {side}s; {used} of {experts} in use at the end", fontsize=10)
        changes.plot(epochs[1:], changed, color=PALETTE[0], lw=1.8, marker="o" if len(epochs) < 15 else None)
        changes.set_ylim(bottom=0)
        changes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        changes.set_title(f"Share of {side}s that changed their expert", fontsize=10)
        changes.set_xlabel("epoch")
        for axes in over_plane:
            axes.scatter(*places[side].T, s=12, c=rank[choices[-1]], cmap=_expert_colors(experts), norm=_whole(experts))
            axes.set_title(f"{side.capitalize()}s (t-SNE of the teacher's vectors), by expert", fontsize=10)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
        findings.append(f"{side}s: {used} of {experts} experts in use")
        if len(changed):
            findings[-1] += f", {changed[-1]:.1%} changed theirs in the last epoch"
    return Part("experts", f"{name}, {len(epochs)} epochs; " + "; ".join(findings), rows, figure)


def state_of_distillers(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The distillers' tensors in a checkpoint; of a Matryoshka student, whose prefixes have one each, the whole's."""
    kept: Mapping[str, Any] = state.get("distillers") or {}
    sizes = {int(size) for size in re.findall(r"\.prefixes\.(\d+)\.", " ".join(kept))}
    if not sizes:
        return kept
    whole = f".prefixes.{max(sizes)}."
    return {key.replace(whole, "."): value for key, value in kept.items() if whole in key or ".prefixes." not in key}


def _latest_state(trained: Trained) -> Mapping[str, Any]:
    """The later of the run's two states: that of the best epoch, and that for resuming."""
    best = Path(trained.checkpoint)
    last = best.with_name(f"{best.stem}-last.pth")
    if last.is_file():
        state = load_checkpoint(last, schema=ResumableState)
        if state.get("saved_model_file") == best.name and state["epoch"] > trained.state.get("epoch", -1):
            return state
    return trained.state


def _places_of_experts(subject: Subject, nodes: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Side -> places (n, 2) of its nodes by the teacher's vectors, which select the experts; empty without those."""
    teacher = subject.teacher
    if teacher is None or "side_vectors" not in teacher.capabilities:
        return {}
    tables = dict(zip(("user", "item"), teacher.side_vectors()))
    return {side: plane(tables[side].cpu()[rows].numpy()) for side, rows in nodes.items()}


def _by_size(final: NDArray[np.int64], experts: int) -> NDArray[np.int64]:
    """Expert -> its place when experts are ordered by how many nodes they end with, the largest first."""
    rank = np.empty(experts, dtype=np.int64)
    rank[np.argsort(-np.bincount(final, minlength=experts), kind="stable")] = np.arange(experts)
    return rank


def _expert_colors(experts: int) -> Any:
    return mpl.colormaps["viridis"].resampled(experts)


def _whole(experts: int) -> Normalize:
    """Expert number n of `experts` -> the n-th colour."""
    return Normalize(-0.5, experts - 0.5)


def _draw_experts(axes: Any, shown: NDArray[np.int64], epochs: NDArray[Any], experts: int, side: str) -> None:
    """A row for each node and a column for each epoch; experts are coloured by how many nodes they end with."""
    # By the choice at the end, then by the one before, ...: equal histories lie together.
    order = np.lexsort(shown)
    image = axes.imshow(
        shown[:, order].T,
        aspect="auto",
        interpolation="nearest",
        cmap=_expert_colors(experts),
        norm=_whole(experts),
        extent=(epochs[0] - 0.5, epochs[-1] + 0.5, len(order), 0),
    )
    axes.grid(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{side}, by their last expert")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, ticks=MaxNLocator(8, integer=True))
    bar.set_label("experts, the largest first", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def gain(subject: Subject) -> Part:
    """The metric of groups of users."""
    teacher = subject.teacher
    if teacher is None and subject.baseline is None:
        raise Impossible("it compares with a baseline or a teacher; give --baseline=FILE or --teacher=FILE.")
    values: dict[str, NDArray[Any]] = {}
    users: Optional[NDArray[Any]] = None
    for role, model in subject.models().items():
        users, values[role] = per_user(subject, role, model)
    assert users is not None
    against = "baseline" if subject.baseline is not None else "teacher"
    activity = subject.splits.seen.counts.numpy()[users]
    groupings = {"activity": activity_groups(activity, 5)}
    vectors = None
    if teacher is not None and "representations" in teacher.capabilities:
        vectors = teacher.user_embeddings().cpu().numpy()[users]
        groupings = {"taste": taste_groups(vectors, min(subject.groups, len(users))), **groupings}

    others = [role for role in values if role != "student"]
    heading = ["grouping", "group", "users", "least active", "most active", "student"]
    heading += [column for role in others for column in (role, f"student - {role}", f"standard error to {role}")]
    rows, means = [], {}
    for grouping, labels in groupings.items():
        compared = {role: group_means(values["student"], values[role], labels) for role in others}
        means[grouping] = compared[against]
        for group, count in enumerate(compared[against].users):
            mine = activity[labels == group]
            row = [grouping, group, int(count), int(mine.min()), int(mine.max()), cell(compared[against].first[group])]
            for role in others:
                found = compared[role]
                row += [cell(table[group]) for table in (found.second, found.difference, found.standard_error)]
            rows.append(row)
    label = metric_label(subject.metric)
    figure = _gain_picture(means, groupings, activity, vectors, f"{label}, student less {against}")
    gained = means.get("taste", means["activity"])
    total = float((values["student"] - values[against]).mean())
    finding = (
        f"{label}: the student has {total:+.4f} against the {against}; "
        f"better in {int((gained.difference > 0).sum())} of {len(gained.users)} groups by "
        f"{'taste' if 'taste' in means else 'activity'}"
    )
    return Part("gain", finding, [heading, *rows], figure)


def _gain_picture(
    means: Mapping[str, GroupMeans],
    groupings: Mapping[str, NDArray[np.int64]],
    activity: NDArray[Any],
    vectors: Optional[NDArray[Any]],
    label: str,
) -> Figure:
    """A map of tastes, and bars of both groupings."""
    reach = max(float(np.abs(table.difference).max()) for table in means.values()) or 1.0
    scale = TwoSlopeNorm(0.0, -reach, reach)
    colors = mpl.colormaps["PuOr"]
    figure = new_figure(11 if vectors is not None else 5, 4.2)
    grid = list(np.atleast_1d(figure.subplots(1, 1 + 2 * (vectors is not None))))
    if vectors is not None:
        labels = groupings["taste"]
        _draw_map(grid[0], vectors, labels, colors(scale(means["taste"].difference)))
        taste = means["taste"]
        order = np.argsort(taste.difference)
        _draw_groups(grid[1], taste, order, [f"{group} ({taste.users[group]:,})" for group in order], colors, scale)
        grid[1].set_title("By taste (users)", fontsize=10)
        grid[1].set_xlabel(label)
    found, labels = means["activity"], groupings["activity"]
    names = []
    for group, count in enumerate(found.users):
        mine = activity[labels == group]
        span = f"{mine.min()}" if mine.min() == mine.max() else f"{mine.min()}-{mine.max()}"
        names.append(f"{span} ({count:,})")
    _draw_groups(grid[-1], found, np.arange(len(names)), names, colors, scale)
    grid[-1].set_title("By training interactions (users)", fontsize=10)
    grid[-1].set_xlabel(label)
    return figure


def _draw_groups(
    axes: Any, found: GroupMeans, order: NDArray[Any], names: Sequence[str], colors: Any, scale: Any
) -> None:
    places = np.arange(len(order))
    difference, error = found.difference[order], np.nan_to_num(found.standard_error[order])
    axes.barh(places, difference, color=colors(scale(difference)), edgecolor="#98A2B3", linewidth=0.6)
    axes.errorbar(difference, places, xerr=1.96 * error, fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2)
    axes.axvline(0, color="#222222", lw=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(places, names, fontsize=8 if len(order) > 10 else 9)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.grid(False, axis="y")


def _draw_map(axes: Any, vectors: NDArray[Any], labels: NDArray[np.int64], colors: NDArray[Any]) -> None:
    """t-SNE of some users' vectors, coloured by their group's gain; coordinates have no other meaning."""
    chosen = np.linspace(0, len(vectors) - 1, min(MAP_NODES, len(vectors))).round().astype(int)
    groups, places = labels[chosen], plane(vectors[chosen])
    axes.scatter(*places.T, s=14, c=colors[groups], edgecolors="#667085", linewidths=0.25)
    for group in np.unique(groups):
        middle = np.median(places[groups == group], axis=0)
        box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.7}
        axes.text(*middle, str(group), ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.set_title("Users (t-SNE of the teacher's vectors)", fontsize=10)


def per_user(subject: Subject, role: str, model: FrozenTeacher) -> tuple[NDArray[Any], NDArray[Any]]:
    """(user ids (n,), the metric's values (n,)) on the test split, users ascending."""
    if model.reordered:
        raise Impossible(f"the {role} numbers users and items in another order than the student.")
    return evaluated(subject, model.trained.config, model.model)


def evaluated(subject: Subject, config: Any, model: nn.Module) -> tuple[NDArray[Any], NDArray[Any]]:
    """:func:`per_user` for any model that RecBole can evaluate."""
    trainer, (_, _, test) = make_evaluator(config, model, subject.splits)
    trainer.evaluate(test, load_best_model=False, show_progress=config["show_progress"])
    users, values = trainer.eval_collector.per_user()
    if subject.metric not in values:
        expected = f"Expected one of {', '.join(values)}" if values else "None of this run's metrics is"
        raise UserError(
            f"--metric={subject.metric} is not computed for each user.{closest(subject.metric, values)} "
            f"{expected}; --metrics and --topk say which there are."
        )
    order = np.argsort(users, kind="stable")
    return users[order], values[subject.metric][order].astype(np.float64)


def cell(value: float) -> Any:
    """A number for a CSV: six digits, empty if there is none."""
    return "" if not np.isfinite(value) else float(f"{value:.6g}")
