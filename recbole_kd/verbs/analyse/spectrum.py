"""The part ``spectrum``: the distance of students to their teacher, by frequency of the user-item graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recbole_kd.data.spectra import is_small
from recbole_kd.evaluation.spectrum import (
    band_edges,
    connected_graph,
    equal_band_energies,
    estimated_band_energies,
    estimated_equal_band_energies,
    exact_band_energies,
    projection_difference,
)
from recbole_kd.report.static import panels
from recbole_kd.verbs.analyse.parts import Impossible, Part, Subject, cell, color_of, state_of_distillers, vectors_of

__all__ = ["spectrum"]

Array = NDArray[np.float64]

#: Distiller -> the names of its projectors of users and items in a checkpoint; with a graph of both there is one.
_PROJECTORS = {
    "freqd": (("freqd.projectors.0", "freqd.projectors.1"), ("freqd.projectors.0", "freqd.projectors.0")),
    "fitnet": (("fitnet.user_projector", "fitnet.item_projector"),),
}


def spectrum(subject: Subject) -> Part:
    """The distance to the teacher by frequency: bands of equal width, or groups of equally many frequencies."""
    subject.require_teacher()
    vectors = vectors_of(subject)
    nodes, adjacency = connected_graph(subject.splits.observed)
    pairs = {role: pair for role, pair in vectors.items() if role != "teacher"}
    teacher = torch.cat(vectors["teacher"])[nodes].double().numpy()
    learners = list(pairs)
    trained = {role: _mapped(subject, role, *pair) for role, pair in pairs.items() if subject.projector == "trained"}
    differences = []
    for role, pair in pairs.items():
        mapped = trained.get(role)
        if mapped is None:
            differences.append(projection_difference(torch.cat(pair)[nodes], torch.from_numpy(teacher)))
        elif mapped[0].shape[1] != teacher.shape[1]:
            raise Impossible(
                f"the projector of the {role} has {mapped[0].shape[1]} dimensions and the teacher's vectors "
                f"{teacher.shape[1]}, so it was trained for another teacher. Leave --projector at fitted."
            )
        else:
            differences.append(teacher - torch.cat(mapped)[nodes].double().numpy())
    edges, counts, energies, note = _energies(subject, adjacency, [teacher, *differences])
    fitted = [role for role, mapped in trained.items() if mapped is None]
    note += f", the best linear map for the {', the '.join(fitted)}" if fitted else ""
    energies = energies / len(nodes)
    whole, losses = energies[0], dict(zip(learners, energies[1:]))
    # A band with almost none of the teacher's energy has no meaningful share.
    there = whole > 1e-9 * whole.sum()
    unexplained = {role: np.where(there, loss / np.where(there, whole, 1), np.nan) for role, loss in losses.items()}

    columns = ["low", "high", "frequencies", "teacher energy"]
    for role in learners:
        columns += [f"{role} loss", f"{role} share of loss", f"{role} unexplained"]
    rows = []
    for band in range(len(counts)):
        row = [edges[band], edges[band + 1], counts[band], whole[band]]
        for role in learners:
            row += [losses[role][band], losses[role][band] / losses[role].sum(), unexplained[role][band]]
        rows.append([cell(value) for value in row])

    figure, (left, right) = panels(2, 2, 4.6, 3.6)
    centres = np.arange(1, len(counts) + 1) if subject.equal_bands else np.linspace(0, 2, len(counts))
    width = 0.8 * (centres[1] - centres[0]) / (len(learners) + 1)
    for place, (role, heights) in enumerate([("teacher", whole), *losses.items()]):
        label = "the teacher's own energy" if role == "teacher" else f"loss of the {role}, {subject.name(role)}"
        offset = (place - len(learners) / 2) * width
        left.bar(centres + offset, heights, width, color=color_of(role), label=label)
    left.set_yscale("log")
    left.set_title("Squared distance to the teacher")
    left.set_ylabel("mean over nodes, by band")
    for role in learners:
        right.plot(centres, unexplained[role], color=color_of(role), marker="o", ms=5, lw=1.8, label=role)
    right.set_ylim(0, max(1.0, 1.05 * np.nanmax([np.nanmax(values) for values in unexplained.values()])))
    right.set_title("Share of the teacher not explained")
    right.set_ylabel("loss / energy, by band")
    for axes in (left, right):
        axes.set_xlabel("frequency: 0 smooth over the graph, 2 rough")
        if subject.equal_bands:
            axes.set_xlabel("groups of equally many frequencies, the smoothest first")
            names = [f"{low:.2g}-{high:.2g}" for low, high in itertools.pairwise(edges)]
            axes.set_xticks(centres, names if len(counts) <= 6 else [str(band) for band in centres])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    low = np.arange(len(counts)) < len(counts) // 2 if subject.equal_bands else centres < 1
    lowest = {role: losses[role][low].sum() / losses[role].sum() for role in learners}
    where = "in the lower half of the groups" if subject.equal_bands else "below frequency 1"
    finding = "; ".join(
        f"the {role} leaves {losses[role].sum() / whole.sum():.0%} of the teacher unexplained, "
        f"{lowest[role]:.0%} of that {where}"
        for role in learners
    )
    return Part("spectrum", f"{finding} ({note}, {len(nodes):,} nodes)", [columns, *rows], figure)


def _energies(subject: Subject, adjacency: Any, signals: list[Array]) -> tuple[Array, Array, Array, str]:
    """Edges (B + 1,) and counts (B,) of the bands, the energies (signals, B), and the method."""
    groups, exact = subject.equal_bands, is_small(adjacency)
    method = "exact" if exact else "estimated"
    if groups:
        if groups > adjacency.shape[0]:
            raise Impossible(
                f"--equal_bands={groups} is more than the {adjacency.shape[0]:,} frequencies of the graph."
            )
        divide = equal_band_energies if exact else estimated_equal_band_energies
        edges, energies, repeated = divide(adjacency, signals, groups)
        note = f"{method}, frequency 1 occurs {'' if exact else 'at least '}{repeated:,} times"
        return edges, np.full(groups, adjacency.shape[0] / groups), energies, note
    edges = band_edges(subject.bands)
    compute = exact_band_energies if exact else estimated_band_energies
    counts, energies = compute(adjacency, signals, edges)
    return edges, counts, energies, method


def _mapped(subject: Subject, role: str, users: Tensor, items: Tensor) -> Optional[tuple[Tensor, Tensor]]:
    """The vectors after the projectors that a student's distiller trained; None if another model has none.

    Raises:
        Impossible: the first student's checkpoint has no projectors.
    """
    kept = state_of_distillers(subject.models()[role].trained.state)
    for pairs in _PROJECTORS.values():
        for names in pairs:
            if all(any(key.startswith(f"{name}.") for key in kept) for name in names):
                of_users, of_items = (_projected(kept, name, side) for name, side in zip(names, (users, items)))
                return of_users, of_items
    if role != "student":
        return None
    raise Impossible(
        f"the checkpoint of the {role} has no projector; freqd and fitnet train one. Leave --projector at fitted."
    )


def _projected(kept: Mapping[str, Any], name: str, vectors: Tensor) -> Tensor:
    """Vectors (n, d_s) through a checkpoint's linear projector or mean of perceptrons."""

    def linear(layer: str, given: Tensor) -> Tensor:
        return functional.linear(given, kept[f"{layer}.weight"].to(given), kept[f"{layer}.bias"].to(given))

    if f"{name}.weight" in kept:
        return linear(name, vectors)
    count = sum(key.startswith(f"{name}.first.") and key.endswith(".weight") for key in kept)
    outputs = [linear(f"{name}.last.{m}", linear(f"{name}.first.{m}", vectors).relu()) for m in range(count)]
    return torch.stack(outputs).mean(0)
