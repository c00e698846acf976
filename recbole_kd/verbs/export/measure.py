"""Recall, size and latency of exact search over a bundle's vectors, and of an approximate index.

Both answer one user at a time on one thread, without seen items. Recall is relative to exact search over the model's
own vectors in float32.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.evaluation.costs import inference_costs
from recbole_kd.files.bundle import Bundle
from recbole_kd.verbs.options import INDEXES

__all__ = [
    "Query",
    "build_index",
    "exact_lists",
    "index_module",
    "measure_exact",
    "measure_index",
    "query",
    "recall",
    "sampled_users",
    "search_index",
]

#: Type of index -> the search widths that are tried, smallest first. A flat index has none.
WIDTHS: dict[str, tuple[int, ...]] = {"flat": (0,), "hnsw": (64, 128, 256, 512), "ivfpq": (4, 8, 16, 32, 64)}
#: If a search reaches this share of exact search's recall, no wider search is tried.
_ENOUGH = 0.99
#: HNSW's graph: neighbours of a node, and candidates while it is built.
_NEIGHBOURS, _BUILD_WIDTH = 32, 200
#: Items of the lists that are compared.
MEASURED_K = 20

Query = Callable[[int], NDArray[np.float32]]
Lists = list[list[int]]


def index_module(index: str) -> Any:
    """The package that builds an index.

    Raises:
        UserError: it is not installed.
    """
    # Hides faiss's messages about the variants of itself that it tries.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        return importlib.import_module(index)
    except ImportError:
        raise UserError(
            f"--index={index} is not installed; run: pip install {INDEXES[index]}, or leave it out."
        ) from None


@contextmanager
def _one_thread(faiss: Any = None) -> Iterator[None]:
    """Inside the block numpy's products and faiss's searches use one thread, like a request to a server."""
    threads = 1 if faiss is None else faiss.omp_get_max_threads()
    with threadpool_limits(1):
        if faiss is not None:
            faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            if faiss is not None:
                faiss.omp_set_num_threads(threads)


def sampled_users(users: int, most: int = 1000) -> list[int]:
    """Rows of the measured users, spread over the whole table."""
    rows: list[int] = np.linspace(0, users - 1, min(most, users)).astype(int).tolist()
    return rows


def exact_lists(bundle: Bundle, rows: Sequence[int], k: int) -> Lists:
    """The best item rows of users by all scores."""
    return [[item for item, _ in bundle.recommend(row, k)] for row in rows]


def recall(found: Lists, wanted: Lists) -> float:
    """The share of the wanted items that is found, mean over users who have some."""
    shares = [len(set(ours) & set(best)) / len(best) for ours, best in zip(found, wanted) if best]
    return float(np.mean(shares)) if shares else 1.0


def measure_exact(bundle: Bundle, rows: Sequence[int], found: Lists, wanted: Lists, k: int) -> dict[str, Any]:
    """``recall`` of search by all scores, which finds `found`, ``bytes`` of vectors and graph, ``latency_ms``."""
    with _one_thread():
        latency = _latency(lambda row: bundle.recommend(row, k), rows)
    size = sum(table.nbytes for table in bundle.vectors.values()) + len(bundle.graph or b"")
    return {"recall": recall(found, wanted), "bytes": size, "latency_ms": latency}


def query(bundle: Bundle) -> Query:
    """A function from a user to the query for an index: the user's vector, and 1 if items have a bias."""
    if "bias" not in bundle.vectors:
        return bundle.vector
    return lambda user: np.append(bundle.vector(user), np.float32(1))


def build_index(faiss: Any, bundle: Bundle, kind: str, dtype: str) -> tuple[Any, str]:
    """An index of a bundle's items for search by inner product, and its description.

    - ``flat``: all of them are compared.
    - ``hnsw``: a navigable graph (Malkov and Yashunin, TPAMI 2020). HNSW was made for metrics, and the inner product is
      not one, but a graph by inner product works too (Morozov and Babenko, NeurIPS 2018); its recall is measured. The
      alternative, Euclidean distance with one more coordinate sqrt(max |i|^2 - |i|^2) (Bachrach et al., RecSys 2014),
      had lower recall for BPR on Gowalla at every search width.
    - ``ivfpq``: cells of items, and product codes (Jegou et al., TPAMI 2011) of a byte for two numbers.

    float16 and int8 are faiss's scalar quantisers; int8 has a scale for each dimension.
    """
    items = bundle.vectors["items"].astype(np.float32)
    if "items_scale" in bundle.vectors:
        items *= bundle.vectors["items_scale"][:, None]
    if "bias" in bundle.vectors:
        items = np.column_stack([items, bundle.vectors["bias"]])
    count, size = items.shape
    product = faiss.METRIC_INNER_PRODUCT
    if kind == "ivfpq":
        cells = max(1, min(int(4 * count**0.5), count // 39))
        codes = max(part for part in range(1, size // 2 + 1) if size % part == 0) if size > 1 else 1
        bits = min(8, int(np.log2(count))) if count > 1 else 1
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(size), size, cells, codes, bits, product)
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        told = f"IndexIVFPQ, METRIC_INNER_PRODUCT, {cells} cells, {codes} codes of {bits} bits"
    elif kind == "hnsw":
        name, index = _hnsw(faiss, size, dtype)
        index.hnsw.efConstruction = _BUILD_WIDTH
        told = f"{name}, METRIC_INNER_PRODUCT, M={_NEIGHBOURS}, efConstruction={_BUILD_WIDTH}"
    elif dtype == "float32":
        index, told = faiss.IndexFlatIP(size), "IndexFlatIP"
    else:
        index = faiss.IndexScalarQuantizer(size, _quantizer(faiss, dtype), product)
        told = f"IndexScalarQuantizer, {dtype}, METRIC_INNER_PRODUCT"
    with _one_thread(faiss):
        index.train(items)
        index.add(items)
    return index, told


def _hnsw(faiss: Any, size: int, dtype: str) -> tuple[str, Any]:
    product = faiss.METRIC_INNER_PRODUCT
    if dtype == "float32":
        return "IndexHNSWFlat", faiss.IndexHNSWFlat(size, _NEIGHBOURS, product)
    return f"IndexHNSWSQ, {dtype}", faiss.IndexHNSWSQ(size, _quantizer(faiss, dtype), _NEIGHBOURS, product)


def _quantizer(faiss: Any, dtype: str) -> Any:
    quantizers = faiss.ScalarQuantizer
    return quantizers.QT_fp16 if dtype == "float16" else quantizers.QT_8bit


def search_index(index: Any, vector: NDArray[np.float32], seen: NDArray[np.int64], k: int) -> list[int]:
    """The k best item rows for a query's vector (d,) without `seen`; k + len(seen) rows are searched."""
    found = index.search(vector[None], k + len(seen))[1][0].tolist()
    left_out = {-1, *seen.tolist()}
    return [item for item in found if item not in left_out][:k]


def measure_index(
    faiss: Any, index: Any, kind: str, bundle: Bundle, rows: Sequence[int], wanted: Lists, enough: float, k: int
) -> tuple[dict[str, Any], Lists]:
    """Recall and latency of an index; it is set to the smallest search width with enough recall, or to the widest.

    Args:
        rows, wanted: users, and the items that exact search finds for them.
        enough: exact search's recall over the same vectors.

    Returns:
        ``search`` -> ``search_width``, ``recall`` and ``latency_ms`` (p50, p95) for each width that was tried, and the
        chosen ``search_width``; and the lists found with the chosen width.
    """
    ask = query(bundle)

    def answer(row: int) -> list[int]:
        return search_index(index, ask(row), bundle.seen(row), k)

    search: list[Mapping[str, Any]] = []
    with _one_thread(faiss):
        for width in WIDTHS[kind]:
            if kind == "hnsw":
                index.hnsw.efSearch = width
            elif kind == "ivfpq":
                index.nprobe = width
            found = [answer(row) for row in rows]
            search.append(
                {"search_width": width, "recall": recall(found, wanted), "latency_ms": _latency(answer, rows)}
            )
            if search[-1]["recall"] >= _ENOUGH * enough:
                break
    return {"search": search, "search_width": width}, found


def _latency(answer: Callable[[int], Any], rows: Sequence[int]) -> dict[str, float]:
    def of(position: Tensor) -> Any:
        return answer(rows[int(position[0])])

    latency: dict[str, float] = inference_costs(of, len(rows), batch_sizes=(1,))["latency_ms"]["batch_1"]
    return latency
