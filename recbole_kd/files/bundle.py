"""A bundle: the folder that ``recbole-kd export`` writes, read again and checked.

Every row of a bundle is a user's or an item's place in ``users.jsonl`` or ``items.jsonl``, from 0. There is no padding.

============  ==========================================================  =======================================
kind          what is beside ids and seen items                           score of a user and an item
============  ==========================================================  =======================================
``vectors``   ``vectors.safetensors``: users (U, d), items (I, d)         the product of their vectors
``sequence``  ``model.onnx``: history (n, L), and of most models the      the product of the history's vector and
              vectors of its items (n, L, d) -> vectors (n, d);           the item's, plus the item's bias; of a
              ``vectors.safetensors``: items (I, d), perhaps bias (I,);   distance also -||vector||^2 / 4
              ``histories.safetensors``: what each user had
``pairs``     ``model.onnx``: users (n,), items (n,) -> scores (n,)       the graph's
============  ==========================================================  =======================================

Vectors are float32 or float16, or int8 with a scale a row (``users_scale`` (U,), ``items_scale`` (I,)). Format
``recbole-kd-export/1`` is of kind ``vectors`` in float32.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from recbole_kd.errors import UserError
from recbole_kd.files.reading import file_digest, open_regular, read_json
from recbole_kd.text import one_line

__all__ = ["DISTANCE", "FORMAT", "FORMATS", "Bundle", "is_bundle", "read_bundle"]

#: Values of a manifest's ``format``; the number grows when older readers would misread a new bundle.
FORMATS = ("recbole-kd-export/1", "recbole-kd-export/2")
FORMAT = FORMATS[-1]
#: The file for people; it may be edited, for example to fill in the licence.
CARD = "README.md"
#: Beginning of a manifest's ``score`` if scores are distances.
DISTANCE = "negative squared distance"

#: The tensors that a bundle may hold, by safetensors' names of their types.
_KINDS = {"F32": "<f4", "F16": "<f2", "I8": "|i1", "I64": "<i8"}
#: Rows of float16 or int8 vectors that are converted to float32 at once.
_BLOCK = 4096
_LONGEST_HEADER = 1 << 20
_ADVICE = "give a folder that recbole-kd export wrote"
#: Kind -> the files that are read.
_FILES = {
    "vectors": ("users.jsonl", "items.jsonl", "seen.safetensors", "vectors.safetensors"),
    "sequence": ("users.jsonl", "items.jsonl", "seen.safetensors", "vectors.safetensors", "histories.safetensors"),
    "pairs": ("users.jsonl", "items.jsonl", "seen.safetensors"),
}

Tensors = dict[str, NDArray[Any]]


class _Facts(TypedDict):
    bytes: int
    sha256: str


class _Added(TypedDict, total=False):
    """Fields that the first format or older bundles lack."""

    kind: str
    history_length: int
    history_vectors: bool
    repeatable: bool


class _Manifest(_Added):
    format: str
    model: str
    dataset: str
    score: str
    users: int
    items: int
    files: dict[str, _Facts]


class _Format(TypedDict):
    format: str


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match its manifest. Its tensors are memory-mapped, so processes share memory.

    Attributes:
        folder: its folder. The tensors stay valid if another bundle replaces it.
        manifest: the content of ``manifest.json``.
        kind: ``vectors``, ``sequence`` or ``pairs``.
        users, items: original ids by row.
        vectors: the content of ``vectors.safetensors``; empty for ``pairs``.
        seen_offsets, seen_items: user row r has seen the item rows ``seen_items[seen_offsets[r]:seen_offsets[r + 1]]``.
        histories: ``offsets`` and ``items`` of each user's history, oldest first, for ``sequence``; else empty.
        graph: the bytes of ``model.onnx``; None for ``vectors``.
    """

    folder: Path
    manifest: Mapping[str, Any]
    kind: str
    users: list[str]
    items: list[str]
    vectors: Tensors
    seen_offsets: NDArray[np.int64]
    seen_items: NDArray[np.int64]
    histories: Tensors
    graph: bytes | None = field(default=None, repr=False)

    @cached_property
    def user_rows(self) -> dict[str, int]:
        """Original id -> row of the users."""
        return {token: row for row, token in enumerate(self.users)}

    @cached_property
    def item_rows(self) -> dict[str, int]:
        """Original id -> row of the items."""
        return {token: row for row, token in enumerate(self.items)}

    def seen(self, user: int) -> NDArray[np.int64]:
        """The item rows that a user has seen."""
        return self.seen_items[self.seen_offsets[user] : self.seen_offsets[user + 1]]

    @property
    def repeatable(self) -> bool:
        """Whether seen items can be recommended again; the lists of seen items are then empty."""
        return bool(self.manifest.get("repeatable", False))

    def history(self, user: int) -> NDArray[np.int64]:
        """The item rows of a user's history, oldest first, as input of the encoder."""
        offsets, items = self.histories["offsets"], self.histories["items"]
        rows: NDArray[np.int64] = items[offsets[user] : offsets[user + 1]]
        return rows

    @cached_property
    def _session(self) -> Any:
        """The onnxruntime session of the graph."""
        try:
            onnxruntime = importlib.import_module("onnxruntime")
        except ImportError:
            raise UserError(
                f"'{self.folder}' holds an ONNX graph, but onnxruntime is not installed; run: pip install onnxruntime."
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    def _run(self, given: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The graph's output for these inputs."""
        answer: NDArray[np.float32] = self._session.run(None, given)[0]
        return answer

    def vector(self, user: int) -> NDArray[np.float32]:
        """The vector (d,) of a user, in float32.

        Raises:
            UserError: a graph is needed, but onnxruntime is not installed.
        """
        if self.kind == "sequence":
            return self.vector_after(self.history(user).tolist())
        return self._rows("users", slice(user, user + 1))[0]

    def vector_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        """The vector (d,) of a history of item rows, oldest first, at least one; only for ``sequence``."""
        length = self.manifest["history_length"]
        latest = list(history)[-length:]
        row = np.full((1, length), -1, dtype=np.int64)
        row[0, : len(latest)] = latest
        given: dict[str, NDArray[Any]] = {"history": row}
        if self.manifest.get("history_vectors"):
            given["items"] = self._rows("items", row)
        return self._run(given)[0]

    def scores(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores (I,) of all items for a vector (d,) of :meth:`vector`."""
        table = self.vectors["items"]
        # Conversion to float32 is done in blocks that stay in the processor's cache.
        parts = [table] if table.dtype == np.float32 else np.split(table, range(_BLOCK, len(table), _BLOCK))
        scores: NDArray[np.float32] = np.concatenate([part.astype(np.float32, copy=False) @ vector for part in parts])
        if "items_scale" in self.vectors:
            scores *= self.vectors["items_scale"]
        if "bias" in self.vectors:
            scores += self.vectors["bias"]
        if str(self.manifest["score"]).startswith(DISTANCE):
            scores -= vector @ vector / 4
        return scores

    def user_scores(self, user: int) -> NDArray[np.float32]:
        """The scores (I,) of all items for a user; -inf for a user without a history (``sequence``)."""
        if self.kind == "pairs":
            items = np.arange(len(self.items))
            return self._run({"users": np.full_like(items, user), "items": items}).copy()
        if self.kind == "sequence" and not len(self.history(user)):
            return np.full(len(self.items), -np.inf, dtype=np.float32)
        return self.scores(self.vector(user))

    def recommend(self, user: int, k: int = 20) -> list[tuple[int, float]]:
        """The k best item rows that a user has not seen, best first, with scores; fewer if fewer are left.

        For ``sequence`` and ``pairs`` it needs onnxruntime.
        """
        return best(self.user_scores(user), self.seen(user), k)

    def _rows(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self.vectors[name][rows].astype(np.float32)
        scale = self.vectors.get(f"{name}_scale")
        return values if scale is None else values * scale[rows, None]


def best(scores: NDArray[np.float32], left_out: NDArray[np.int64], k: int) -> list[tuple[int, float]]:
    """The k best item rows by their scores (I,), without `left_out`; overwrites the scores."""
    scores[left_out] = -np.inf
    top = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
    top = top[np.argsort(-scores[top], kind="stable")]
    return [(int(item), float(scores[item])) for item in top if scores[item] > -np.inf]


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds an export of any format; only the beginning of its manifest is read."""
    try:
        found = read_json(folder / "manifest.json", _Format)["format"]
    except (OSError, UserError):
        return False
    return str(found).startswith(FORMAT.partition("/")[0])


def read_bundle(folder: str | Path) -> Bundle:
    """Reads a bundle and checks its files against its manifest, by size and sha256; its README may be edited.

    A bundle that is replaced while it is read is refused as changed; read it again then.

    Args:
        folder: the folder made by ``export --output``.

    Raises:
        UserError: there is no bundle, it has another format, or a file is missing, changed or has the wrong content.
            The message names the file.
    """
    folder = Path(folder)
    try:
        manifest = read_json(folder / "manifest.json", _Manifest, _ADVICE)
    except OSError as error:
        raise UserError(f"'{folder}' holds no bundle ({error.strerror or error}: manifest.json); {_ADVICE}.") from None
    if manifest["format"] not in FORMATS:
        raise UserError(
            f"'{folder}' is of the format {manifest['format'][:50]!a}; expected {' or '.join(FORMATS)}; "
            "export it again with this version."
        )
    kind = manifest.get("kind", "vectors")
    if kind not in _FILES:
        raise UserError(f"'{folder}' is of the kind {kind[:50]!a}; expected one of {', '.join(_FILES)}; {_ADVICE}.")
    _check_files(folder, manifest["files"], kind)
    try:
        return _read(folder, manifest, kind)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = one_line(error, 200)
        raise UserError(f"'{folder}' is not a bundle of recbole-kd ({reason}); export it again.") from None


def _check_files(folder: Path, files: Mapping[str, _Facts], kind: str) -> None:
    needed = (*_FILES[kind], *(() if kind == "vectors" else ("model.onnx",)))
    for name in (*needed, *files):
        if name not in files or Path(name).name != name:
            raise UserError(f"'{folder}': its manifest lacks {name[:50]!a} or names it wrongly; export it again.")
    for name, facts in files.items():
        if name == CARD:
            continue
        try:
            found, size = file_digest(folder / name)
        except OSError as error:
            raise UserError(f"'{folder}': cannot read {name} ({error.strerror or error}); export it again.") from None
        if (found, size) != (facts["sha256"], facts["bytes"]):
            raise UserError(
                f"'{folder}': {name} was changed after the export: its sha256 is {found[:12]}..., but manifest.json "
                f"has {facts['sha256'][:12]!a}...; export it again."
            )


def _read(folder: Path, manifest: Mapping[str, Any], kind: str) -> Bundle:
    """The bundle, after its files have been checked against its manifest."""
    users, items = (_ids(folder / f"{name}.jsonl", manifest[name]) for name in ("users", "items"))
    counts = {"users": len(users), "items": len(items)}
    seen = _lists(read_tensors(folder / "seen.safetensors"), counts, "seen")
    vectors = {} if kind == "pairs" else read_tensors(folder / "vectors.safetensors")
    if kind != "pairs":
        _check_vectors(vectors, counts if kind == "vectors" else {"items": counts["items"]})
    histories: Tensors = {}
    if kind == "sequence":
        histories = _lists(read_tensors(folder / "histories.safetensors"), counts, "histories")
        if not 1 <= manifest["history_length"] <= 1 << 16:
            raise ValueError("history_length is out of range")
    graph = None
    if kind != "vectors":
        with open_regular(folder / "model.onnx") as file:
            graph = file.read()
        if hashlib.sha256(graph).hexdigest() != manifest["files"]["model.onnx"]["sha256"]:
            raise ValueError("model.onnx was changed while it was read")
    return Bundle(folder, manifest, kind, users, items, vectors, seen["offsets"], seen["items"], histories, graph)


def _ids(path: Path, count: int) -> list[str]:
    with open_regular(path) as file:
        ids = [json.loads(line) for line in file]
    if len(ids) != count or not all(isinstance(one, str) for one in ids) or len(set(ids)) != count:
        raise ValueError(f"{path.name} does not hold {count:,} different ids")
    return ids


def _lists(tensors: Tensors, counts: Mapping[str, int], name: str) -> Tensors:
    """``offsets`` (U + 1) and ``items``, after a check that they are lists of item rows."""
    offsets, items = tensors["offsets"], tensors["items"]
    good = (
        offsets.dtype == items.dtype == np.dtype("<i8")
        and offsets.shape == (counts["users"] + 1,)
        and items.ndim == 1
        and offsets[0] == 0
        and offsets[-1] == len(items)
        and bool((np.diff(offsets) >= 0).all())
        and (not len(items) or (items.min() >= 0 and items.max() < counts["items"]))
    )
    if not good:
        raise ValueError(f"{name}.safetensors holds no lists of item rows")
    return tensors


def _check_vectors(vectors: Tensors, counts: Mapping[str, int]) -> None:
    dimensions = set()
    for name, count in counts.items():
        table = vectors[name]
        scale = vectors.get(f"{name}_scale")
        scaled = scale is not None and scale.dtype == np.dtype("<f4") and scale.shape == (count,)
        if table.ndim != 2 or len(table) != count or scaled != (table.dtype == np.int8) or table.dtype.kind == "u":
            raise ValueError(f"vectors.safetensors: {name} are {table.dtype} of shape {table.shape}, of {count:,} rows")
        dimensions.add(table.shape[1])
    bias = vectors.get("bias")
    if bias is not None and (bias.dtype != np.dtype("<f4") or bias.shape != (counts["items"],)):
        raise ValueError(f"vectors.safetensors: bias is {bias.dtype} of shape {bias.shape}")
    if len(dimensions) != 1:
        raise ValueError("vectors.safetensors: vectors of users and items have different dimensions")


def read_tensors(path: Path) -> Tensors:
    """The arrays of a safetensors file, memory-mapped and read-only.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError, KeyError, TypeError: it is not a safetensors file of float32, float16, int8 or int64.
    """
    with open_regular(path) as file:
        data: NDArray[np.uint8] = np.memmap(file, np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    if not 2 <= size <= min(_LONGEST_HEADER, len(data) - 8):
        raise ValueError(f"{path.name} has no header of a safetensors file")
    tensors: Tensors = {}
    body = data[8 + size :]
    for name, entry in json.loads(bytes(data[8 : 8 + size])).items():
        if name == "__metadata__":
            continue
        (start, end), kind = entry["data_offsets"], np.dtype(_KINDS[entry["dtype"]])
        shape = tuple(entry["shape"])
        if not 0 <= start <= end <= len(body) or end - start != kind.itemsize * math.prod(shape):
            raise ValueError(f"{path.name}: {name[:50]!a} is not where its header says")
        tensors[name] = body[start:end].view(kind).reshape(shape)
    return tensors
