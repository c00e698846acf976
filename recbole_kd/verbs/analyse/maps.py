"""The part ``map``: a map of a model's users or items, coloured by category, and the distances within categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from recbole_kd.data.dataset import layout_of
from recbole_kd.data.layout import fields_of
from recbole_kd.data.reader import read_atomic
from recbole_kd.errors import UserError, closest
from recbole_kd.evaluation.maps import angle_density, class_distances, plane
from recbole_kd.report.looks import PALETTE
from recbole_kd.report.static import panels
from recbole_kd.verbs.analyse.parts import MAP_NODES, Part, Subject, cell, color_of, side_vectors_of

__all__ = ["draw_map"]

#: Categories that have a colour; the others are grey.
SHOWN = len(PALETTE)
GREY = "#B9C0CB"


def draw_map(subject: Subject) -> Part:
    """A map of each model, the density of its directions, and the distances inside and among categories."""
    vectors = side_vectors_of(subject, subject.map_side)
    place = 0 if subject.map_side == "users" else 1
    tokens = subject.splits.user_tokens if place == 0 else subject.splits.item_tokens
    popularity = (subject.splits.observed.counts, subject.splits.observed.popularity)[place].numpy()
    trained = np.flatnonzero(popularity > 0)
    of_trained = _categories(subject, [tokens[node] for node in trained]) if subject.category else None
    members = _members(of_trained) if of_trained else {}
    # The map has the most popular nodes, because their vectors are trained best.
    chosen = np.sort(np.argsort(-popularity[trained], kind="stable")[:MAP_NODES])
    nodes = trained[chosen]
    categories = [of_trained[place] for place in chosen] if of_trained else None
    counts = {name: len(rows) for name, rows in _members(categories or []).items()}
    shown = [name for name, _ in Counter(counts).most_common(SHOWN)]

    figure, grid = panels(2 * len(vectors), len(vectors), 4.0, 3.4)
    angles = np.linspace(-np.pi, np.pi, 181)
    rows: list[list[Any]] = [["role", "model", "id", "x", "y", "category"]]
    findings = []
    for column, (role, whole) in enumerate(vectors.items()):
        table = whole[nodes].numpy()
        places = plane(table, subject.map_method)
        _draw_points(grid[column], places, categories, shown, popularity[nodes])
        grid[column].set_title(f"{role}, {subject.name(role)}", fontsize=10)
        below = grid[len(vectors) + column]
        density = angle_density(places, angles)
        below.fill_between(angles, density, color=color_of(role), alpha=0.35, lw=0)
        below.plot(angles, density, color=color_of(role), lw=1.6)
        below.axhline(1 / (2 * np.pi), color="#98A2B3", lw=1, ls=":")
        below.set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
        below.set_xlabel("angle seen from the middle; dotted: even", fontsize=9)
        below.set_ylim(bottom=0)
        for node, xy, own in zip(nodes, places, categories or [()] * len(nodes)):
            rows.append([role, subject.name(role), tokens[node], *map(cell, xy), " ".join(own)])
        everything = whole[trained].numpy()
        everyone = class_distances(everything, {"": range(len(everything))}).get("", float("nan"))
        found = f"{role} {everyone:.3f}"
        if members:
            inside = class_distances(everything, members)
            if inside:
                mean = sum(inside.values()) / len(inside)
                found += f" ({mean:.3f} within a category, {mean / everyone:.2f} of it)"
                text = f"within a category {mean / everyone:.2f} of the distance among all"
                grid[column].set_xlabel(text, fontsize=9)
        findings.append(found)
    if shown:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    what = f"{len(nodes):,} of {len(trained):,} {subject.map_side}, mean distance 1 - cos among all"
    return Part("map", f"{what}: {', '.join(findings)}", rows, figure)


def _draw_points(
    axes: Any,
    places: NDArray[Any],
    categories: Optional[Sequence[Sequence[str]]],
    shown: Sequence[str],
    popularity: NDArray[Any],
) -> None:
    if categories is None:
        order = np.argsort(popularity, kind="stable")
        axes.scatter(*places[order].T, s=9, c=np.log(popularity[order]), cmap="viridis", lw=0)
    else:
        first = [next((name for name in own if name in shown), "") for own in categories]
        for name, color in (("", GREY), *zip(shown, PALETTE)):
            chosen = places[[index for index, own in enumerate(first) if own == name]]
            if len(chosen):
                axes.scatter(*chosen.T, s=9, color=color, lw=0, label=name or "others", zorder=1 if not name else 2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def _members(categories: Sequence[Sequence[str]]) -> Mapping[str, Sequence[int]]:
    """Category -> rows that have it."""
    members: dict[str, list[int]] = {}
    for row, own in enumerate(categories):
        for name in own:
            members.setdefault(name, []).append(row)
    return members


def _categories(subject: Subject, tokens: Sequence[str]) -> list[tuple[str, ...]]:
    """The categories of some users or items, from the dataset's file of users or items.

    Raises:
        UserError: there is no such file, or no such column of words.
    """
    config, dataset = subject.trained.config, str(subject.trained.config["dataset"])
    ending, field = (("user", "USER_ID_FIELD"), ("item", "ITEM_ID_FIELD"))[subject.map_side == "items"]
    path, ids = Path(config["data_path"]) / f"{dataset}.{ending}", str(config[field])
    if not path.is_file():
        raise UserError(f"--category={subject.category} needs a column of '{path}', but there is no such file.")
    layout = layout_of(config)
    kinds = {one.name: one.kind for one in fields_of(path, layout)}
    words = [name for name, kind in kinds.items() if kind in ("token", "token_seq") and name != ids]
    if subject.category not in words or ids not in kinds:
        raise UserError(
            f"--category={subject.category} is not a column of words in '{path}'."
            f"{closest(str(subject.category), words)} Expected one of: {', '.join(words) or 'there is none'}."
        )
    table = read_atomic(path, layout, [ids, str(subject.category)])
    values = dict(zip(table[ids].to_pylist(), table[str(subject.category)].to_pylist()))
    several = layout.sequence_separator if kinds[str(subject.category)] == "token_seq" else None
    texts = [values.get(token) or "" for token in tokens]
    return [tuple(filter(None, text.split(several) if several else [text])) for text in texts]
