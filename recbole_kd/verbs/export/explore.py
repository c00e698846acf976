"""``export --explore=true``: the effect of fewer dimensions, smaller types and an index on a two-tower student.

Every combination answers the same users on validation. Training items are left out, unless seen items can be
recommended again. A combination is on the front if no other has at least its NDCG with at most its bytes and time.
Times that differ by less than a fifth count as equal, because that is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.files.bundle import Bundle
from recbole_kd.text import columns
from recbole_kd.verbs.export.measure import (
    MEASURED_K,
    WIDTHS,
    Lists,
    build_index,
    exact_lists,
    measure_exact,
    measure_index,
    recall,
    sampled_users,
)
from recbole_kd.verbs.export.student import DTYPES, with_vectors

__all__ = ["Choice", "choices_table", "explore", "fewer_dimensions", "ndcg", "take"]

#: The smallest number of dimensions that is tried.
_FEWEST = 4
#: A search is faster than another if it takes less than this share of its time; the rest is noise.
_FASTER = 0.8


@dataclass(frozen=True)
class Choice:
    """One combination, and its measurements.

    Attributes:
        dimensions, dtype, index: index is None for exact search.
        ndcg: NDCG@20 on validation, mean over the measured users who have validation items.
        loss: the loss relative to the NDCG of all dimensions in float32.
        recall: the share of that configuration's 20 items that is found.
        bytes: size of the vectors and of the index, if any.
        p50, p95: latency in milliseconds of one user on one thread.
        front: whether no other combination is as good in NDCG, bytes and p50, and better in one.
    """

    dimensions: int
    dtype: str
    index: str | None
    ndcg: float
    loss: float
    recall: float
    bytes: int
    p50: float
    p95: float
    front: bool = False

    @property
    def words(self) -> str:
        """The command-line options that export it."""
        given = [f"--dimensions={self.dimensions}", f"--dtype={self.dtype}"]
        return " ".join([*given, *((f"--index=faiss --index_type={self.index}",) if self.index else ())])


def fewer_dimensions(most: int, prefixes: Sequence[int] | None = None) -> list[int]:
    """The numbers of dimensions that are tried: all, and the prefixes of a student, or else a half, a quarter, ..."""
    tried = [most]
    if prefixes:
        return [*tried, *sorted((size for size in prefixes if size < most), reverse=True)]
    while tried[-1] // 2 >= _FEWEST:
        tried.append(tried[-1] // 2)
    return tried


def ndcg(lists: Lists, relevant: Sequence[set[int]], k: int) -> float:
    """NDCG: sum over hits at rank p of 1 / log2(p + 1), divided by the same sum for min(k, relevant) hits at the top.

    Args:
        lists: item rows of each user, best first.
        relevant: relevant item rows of each user; users without any are left out.
        k: the cutoff.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    values = [
        sum(discounts[place] for place, item in enumerate(found[:k]) if item in wanted) / discounts[: len(wanted)].sum()
        for found, wanted in zip(lists, relevant)
        if wanted
    ]
    return float(np.mean(values)) if values else 0.0


def explore(bundle: Bundle, left_out: Observed, valid: Observed, faiss: Any) -> list[Choice]:
    """All combinations of :func:`fewer_dimensions`, types and indexes, in the order of tables.

    Args:
        bundle: two towers in float32; its seen items are not used.
        left_out, valid: pairs by internal ids; those left out of the lists, and the relevant ones.
        faiss: the package, or None without indexes.

    Raises:
        UserError: no user has validation items.
    """
    bundle = replace(bundle, seen_offsets=left_out.offsets[1:].numpy(), seen_items=left_out.indices.numpy() - 1)
    relevant = [
        set((valid.indices[valid.offsets[row + 1] : valid.offsets[row + 2]] - 1).tolist())
        - set(bundle.seen(row).tolist())
        for row in range(len(bundle.users))
    ]
    asked = np.flatnonzero([bool(items) for items in relevant])
    if not len(asked):
        raise UserError(
            "--explore compares NDCG on validation, but no user has validation items; leave it out, or export a model "
            "whose --eval_args has a validation split."
        )
    rows = [int(asked[place]) for place in sampled_users(len(asked))]
    k = min(MEASURED_K, len(bundle.items))
    wanted = exact_lists(bundle, rows, k)
    own = [relevant[row] for row in rows]
    found = [(*named, ndcg(lists, own, k), facts) for *named, lists, facts in _measured(bundle, rows, wanted, k, faiss)]
    best = found[0][3]
    choices = [
        Choice(
            dimensions,
            dtype,
            index,
            value,
            1 - value / best if best else 0.0,
            facts["recall"],
            facts["bytes"],
            facts["latency_ms"]["p50"],
            facts["latency_ms"]["p95"],
        )
        for dimensions, dtype, index, value, facts in found
    ]
    return [replace(one, front=not any(_better(other, one) for other in choices)) for one in choices]


def _measured(bundle: Bundle, rows: Sequence[int], wanted: Lists, k: int, faiss: Any) -> Iterator[Any]:
    """(dimensions, dtype, index, lists, facts) of each combination."""
    for dimensions in fewer_dimensions(bundle.vectors["items"].shape[1], bundle.manifest.get("prefixes")):
        for dtype in DTYPES:
            kept = with_vectors(bundle, dimensions, dtype)
            lists = exact_lists(kept, rows, k)
            facts = measure_exact(kept, rows, lists, wanted, k)
            yield dimensions, dtype, None, lists, facts
            for kind in WIDTHS if faiss is not None else ():
                if (dtype, kind) == ("int8", "ivfpq"):
                    continue
                index, _ = build_index(faiss, kept, kind, dtype)
                # A wider search approaches exact search over these vectors, not over all dimensions.
                measured, found = measure_index(faiss, index, kind, kept, rows, lists, 1.0, k)
                size = facts["bytes"] + len(faiss.serialize_index(index))
                last = measured["search"][-1]
                told = {"recall": recall(found, wanted), "bytes": size, "latency_ms": last["latency_ms"]}
                yield dimensions, dtype, kind, found, told


def _better(one: Choice, other: Choice) -> bool:
    """Whether `one` is at least as good as `other` in everything: NDCG to four digits, times up to noise."""
    first, second = ((round(choice.ndcg, 4), -choice.bytes) for choice in (one, other))
    slower, faster = one.p50 * _FASTER > other.p50, one.p50 < _FASTER * other.p50
    return all(a >= b for a, b in zip(first, second)) and not slower and (first != second or faster)


def take(choices: Sequence[Choice], loss: float) -> tuple[Choice, Choice]:
    """The smallest combination that loses at most `loss` of NDCG, and the smallest among the fastest.

    Returns:
        Both; they are the same if none is faster than the smallest by more than noise.
    """
    allowed = [choice for choice in choices if choice.loss <= loss]
    smallest = min(allowed, key=lambda choice: (choice.bytes, choice.p50))
    least = min(choice.p50 for choice in allowed)
    quick = [choice for choice in allowed if _FASTER * choice.p50 <= least]
    fastest = min(quick, key=lambda choice: (choice.bytes, choice.p50))
    return smallest, fastest if fastest.p50 < _FASTER * smallest.p50 else smallest


def choices_table(choices: Sequence[Choice], loss: float, everything: bool = True) -> str:
    """The combinations as lines, `*` for the front, and the choices."""
    head = ("", "dimensions", "dtype", "index", "NDCG@20", "loss", "recall@20", "MB", "p50 ms", "p95 ms")
    lines = [head]
    for one in choices:
        if everything or one.front:
            figures = (
                f"{one.ndcg:.4f}",
                f"{round(one.loss, 3) + 0.0:.1%}",
                f"{one.recall:.4f}",
                f"{one.bytes / 1e6:.3f}",
            )
            times = (f"{one.p50:.3f}", f"{one.p95:.3f}")
            lines.append(("*" if one.front else "", str(one.dimensions), one.dtype, one.index or "-", *figures, *times))
    smallest, fastest = take(choices, loss)
    told = [f"For a loss of at most {loss:.1%}, the smallest: {smallest.words}"]
    if fastest is not smallest:
        told.append(f"The fastest: {fastest.words}")
    return "\n".join([*columns(lines), "", *told])
