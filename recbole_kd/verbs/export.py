"""``recbole-kd export``: a student alone, for serving without torch, RecBole or this package.

A bundle is a folder of safetensors, JSON and a README.md whose few lines of numpy give the recommendations; nothing
in it is a pickle. It holds what a student is when it answers: a vector for each user and each item, whose inner product
is the score, the ids of their rows, and the items that are not recommended again.

A model without such vectors (an autoencoder, a neighbourhood model, an MLP over pairs) is refused: what it needs to
answer is its own code. ``recommend`` writes its lists, and distillation makes a student of it that can be exported.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any, Optional, TypedDict

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import exact_topk
from recbole_kd.evaluation.costs import inference_costs
from recbole_kd.files.atomic import whole_folder, write_content
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import file_digest, read_json
from recbole_kd.stages.result import versions
from recbole_kd.verbs.options import INDEXES, SEEN, ExportOptions
from recbole_kd.verbs.recommender import Recommender

#: What a manifest's ``format`` says; the number grows when readers of older bundles would misread a new one.
FORMAT = "recbole-kd-export/1"
#: Users whose scores by the vectors are compared with the model's own before a bundle is written.
_CHECKED_USERS = 256
#: The largest difference of two scores that counts as rounding, as a part of the largest score.
_ROUNDING = 1e-4

#: The graph of the index: neighbours of a node, candidates while it is built.
_NEIGHBOURS, _BUILD_WIDTH = 32, 200
#: Candidates of a search that are tried, and the recall from which more are not needed.
_SEARCH_WIDTHS, _ENOUGH = (64, 128, 256, 512), 0.99
_MEASURED_USERS, _MEASURED_K = 1000, 20


class _Manifest(TypedDict):
    """What is read of ``manifest.json``."""

    format: str


def run_export(
    checkpoint: str,
    output: str,
    index: Optional[str] = None,
    seen: str = "train",
    overwrite: bool = False,
    config_dict: Optional[Mapping[str, Any]] = None,
) -> dict[str, Any]:
    """Writes the bundle of a saved model whose scores are inner products, whole or not at all.

    Args:
        checkpoint, seen, config_dict: as in :class:`recbole_kd.verbs.recommender.Recommender`.
        output: the bundle's folder; its parent is made where it does not exist.
        index: a key of :data:`recbole_kd.verbs.options.INDEXES`, or None for exact search alone.
        overwrite: whether a bundle that is there is replaced.

    Returns:
        What ``manifest.json`` holds.

    Raises:
        UserError: a bad value of one of these, a model without such vectors, a folder that cannot be written.
    """
    given = {name: value for name, value in locals().items() if name != "config_dict"}
    return _export(ExportOptions.parse("--", given), config_dict)


def run(options: ExportOptions, settings: dict[str, Any]) -> None:
    """The verb: writes the bundle and prints what it is."""
    print(summary(_export(options, settings), options.output))


def _export(options: ExportOptions, config_dict: Optional[Mapping[str, Any]]) -> dict[str, Any]:
    target = Path(options.output).absolute()
    _check_target(target, options.overwrite)
    faiss = None if options.index is None else _index_module(options.index)
    given = {**(config_dict or {}), **({"config_files": options.config_files} if options.config_files else {})}
    recommender = Recommender(options.checkpoint, options.seen, given)
    users, items = _vectors(recommender)
    tokens = {"users": recommender.splits.user_tokens[1:], "items": recommender.items[1:]}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "model": recommender.trained.state["model"],
        "backbone": recommender.trained.state["backbone"],
        "dataset": recommender.trained.state["dataset"],
        "users": len(users),
        "items": len(items),
        "dimension": users.shape[1],
        "score": "inner product of a user's and an item's vector, float32",
        "seen": {"splits": list(SEEN[options.seen]), "pairs": len(recommender.seen)},
        "final": bool(recommender.trained.state.get("final")),
        "valid_result": recommender.trained.state["best_valid_result"],
        "digests": {"model": recommender.model.digest, "training_split": recommender.trained.state["split"]},
        "versions": versions(),
        "index": None,
    }
    with whole_folder(target) as folder:
        write_content(folder / "vectors.safetensors", safetensors.numpy.save({"users": users, "items": items}))
        # Padding has row 0 inside the program and none outside: every row and item moves up by one.
        rows = {"offsets": recommender.seen.offsets[1:].numpy(), "items": recommender.seen.indices.numpy() - 1}
        write_content(folder / "seen.safetensors", safetensors.numpy.save(rows))
        for name, ids in tokens.items():
            write_content(folder / f"{name}.jsonl", "".join(json.dumps(token) + "\n" for token in ids))
        if faiss is not None:
            manifest["index"] = _write_index(faiss, folder, users, items, recommender.seen)
        write_content(folder / "README.md", _readme(manifest, tokens["users"][0]))
        manifest["files"] = {path.name: _file_facts(path) for path in sorted(folder.iterdir())}
        save_json(manifest, folder / "manifest.json", "output")
    return manifest


def _vectors(recommender: Recommender) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(users, d) and (items, d) without padding, once their inner products have been found to be the model's scores."""
    model = recommender.model
    name = recommender.trained.state["model"]
    advice = (
        "write its lists with `recbole-kd recommend --users=all`, or teach a student that has them with it "
        f"(--model=BPR --teacher={recommender.trained.state['backbone']} --distill=rrd)"
    )
    if "representations" not in model.capabilities:
        raise UserError(
            f"{name} has no vector for each user and item whose inner product is its score, so that it cannot answer "
            f"without its own code; {advice}."
        )
    users, items = (part.float().contiguous() for part in (model.user_embeddings(), model.item_embeddings()))
    sample = torch.linspace(1, len(users) - 1, min(_CHECKED_USERS, len(users) - 1)).long()
    own = model.score_block(sample)[:, 1:].cpu()
    ours = (users[sample.to(users.device)] @ items[1:].T).cpu()
    difference = float((own - ours).abs().max())
    if not difference <= _ROUNDING * max(1.0, float(own.abs().max())):
        raise UserError(
            f"The inner products of {name}'s vectors differ from its scores by {difference:.3g}: it is more than they "
            f"say, or not finite; {advice}."
        )
    return users[1:].cpu().numpy(), items[1:].cpu().numpy()


# The folder


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"--output={target} is a file; set --output to a folder that does not exist yet.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--output={target} is not empty; choose another folder, or replace it with --overwrite=true.")
    try:
        found = read_json(target / "manifest.json", _Manifest)["format"]
    except (OSError, UserError):
        found = ""
    if not found.startswith(FORMAT.partition("/")[0]):
        raise UserError(f"--output={target} holds something else than an export; choose another folder.")


def _file_facts(path: Path) -> dict[str, Any]:
    sha256, size = file_digest(path)
    return {"bytes": size, "sha256": sha256}


# The index


def _index_module(index: str) -> Any:
    try:
        return importlib.import_module(index)
    except ImportError:
        raise UserError(f"--index={index} is not installed: pip install {INDEXES[index]}, or leave it out.") from None


def build_index(faiss: Any, items: NDArray[np.float32]) -> Any:
    """A navigable graph over items (n, d) that is searched by inner product: faiss's IndexHNSWFlat.

    The inner product is no metric, and HNSW (Malkov and Yashunin, TPAMI 2020) was made for metrics; a graph by the
    inner product itself (Morozov and Babenko, NeurIPS 2018) works all the same, and its recall is measured. The other
    way, Euclidean distance after one more coordinate sqrt(max |i|^2 - |i|^2) (Bachrach et al., RecSys 2014), found
    fewer of BPR's items on Gowalla at every search width, and would ask for that coordinate in every query.
    """
    index = faiss.IndexHNSWFlat(items.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_WIDTH
    index.add(items)
    return index


def search_index(index: Any, user: NDArray[np.float32], seen: NDArray[np.int64], k: int) -> list[int]:
    """The k best rows of items for a user's vector (d,), `seen` left out: as many more are asked for."""
    found = index.search(user[None], k + len(seen))[1][0].tolist()
    left_out = {-1, *seen.tolist()}
    return [item for item in found if item not in left_out][:k]


def _write_index(
    faiss: Any, folder: Path, users: NDArray[np.float32], items: NDArray[np.float32], seen: Observed
) -> dict[str, Any]:
    """Builds, measures and writes the index; what the manifest tells of it."""
    index = build_index(faiss, items)
    facts = measure_index(faiss, index, users, items, seen, _MEASURED_K)
    write_content(folder / "index.faiss", faiss.serialize_index(index).tobytes())
    kind = f"IndexHNSWFlat, METRIC_INNER_PRODUCT, M={_NEIGHBOURS}, efConstruction={_BUILD_WIDTH}"
    return {"file": "index.faiss", "kind": kind, "version": faiss.__version__, **facts}


def measure_index(
    faiss: Any, index: Any, users: NDArray[np.float32], items: NDArray[np.float32], seen: Observed, k: int
) -> dict[str, Any]:
    """Recall and latency of an index beside exact search, both one user at a time on one thread, seen items left out.

    The index is left at the least search width whose recall is :data:`_ENOUGH`, or at the largest.

    Returns:
        ``k``, ``users`` (measured), ``exact`` -> latency_ms (p50, p95), ``search`` -> for each width its ``recall``
        (the share of the exact top k that is found, mean over users) and latency_ms, and the chosen ``search_width``.
    """
    k = min(k, len(items))
    ids = torch.linspace(1, len(users), min(_MEASURED_USERS, len(users))).long()
    item_table, user_table = torch.from_numpy(items), torch.from_numpy(users)
    own = [seen.indices[seen.offsets[user] : seen.offsets[user + 1]] - 1 for user in ids.tolist()]
    own_rows = [rows.numpy() for rows in own]

    def exact(position: Tensor) -> list[int]:
        scores = item_table @ user_table[ids[position[0]] - 1]
        scores[own[int(position[0])]] = -torch.inf
        best, found = exact_topk(scores[None], k)
        kept: list[int] = found[0][best[0] > -torch.inf].tolist()
        return kept

    def approximate(position: Tensor) -> list[int]:
        place = int(position[0])
        return search_index(index, users[int(ids[place]) - 1], own_rows[place], k)

    wanted = [set(exact(torch.tensor([place]))) for place in range(len(ids))]
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        search = []
        for width in _SEARCH_WIDTHS:
            index.hnsw.efSearch = width
            found = [set(approximate(torch.tensor([place]))) for place in range(len(ids))]
            recalls = [len(ours & best) / len(best) for ours, best in zip(found, wanted) if best]
            recall = float(np.mean(recalls)) if recalls else 1.0
            search.append({"search_width": width, "recall": recall, "latency_ms": _latency(approximate, len(ids))})
            if recall >= _ENOUGH:
                break
    finally:
        faiss.omp_set_num_threads(threads)
    exact_facts = {"latency_ms": _latency(exact, len(ids))}
    return {"k": k, "users": len(ids), "exact": exact_facts, "search": search, "search_width": width}


def _latency(answer: Callable[[Tensor], Any], users: int) -> dict[str, float]:
    latency: dict[str, float] = inference_costs(answer, users, batch_sizes=(1,))["latency_ms"]["batch_1"]
    return latency


def summary(manifest: Mapping[str, Any], output: str) -> str:
    """What was exported, as lines."""
    size = sum(file["bytes"] for file in manifest["files"].values()) / 1e6
    lines = [
        f"{output}: {manifest['model']} on {manifest['dataset']}, {manifest['users']:,} users and "
        f"{manifest['items']:,} items of {manifest['dimension']} numbers, {size:.1f} MB"
    ]
    if manifest["index"]:
        lines += ["", index_table(manifest["index"])]
    return "\n".join(lines)


def index_table(index: Mapping[str, Any]) -> str:
    """Recall and latency of an index and of exact search, as lines."""
    lines = [f"{'search':<12}{'recall@' + str(index['k']):>10}{'p50 ms':>9}{'p95 ms':>9}"]
    searches = [(f"width {row['search_width']}", row["recall"], row) for row in index["search"]]
    rows = [("exact", 1.0, index["exact"]), *searches]
    for name, recall, row in rows:
        lines.append(f"{name:<12}{recall:>10.4f}{row['latency_ms']['p50']:>9.3f}{row['latency_ms']['p95']:>9.3f}")
    return "\n".join(lines)


# The README


_README = Template("""\
# $model, trained on $dataset

Recommendations for $users users over $items items, exported by recbole-kd. A user's score of an item is the inner
product of their vectors ($dimension numbers each); nothing but numpy is needed. In this folder:

```python
import json
import numpy as np

def tensors(file):  # safetensors: length of the header, the header in JSON, the numbers
    data, kinds = np.memmap(file, np.uint8, "r"), {"F32": "<f4", "I64": "<i8"}
    start = 8 + int(data[:8].view("<u8")[0])
    return {name: data[start:][slice(*entry["data_offsets"])].view(kinds[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in json.loads(bytes(data[8:start])).items()}

vectors, seen = tensors("vectors.safetensors"), tensors("seen.safetensors")
items = [json.loads(line) for line in open("items.jsonl")]
rows = {json.loads(line): row for row, line in enumerate(open("users.jsonl"))}

def recommend(user, k=20):
    scores = vectors["items"] @ vectors["users"][rows[user]]
    scores[seen["items"][slice(*seen["offsets"][rows[user]:][:2])]] = -np.inf
    return [(items[item], float(scores[item])) for item in np.argsort(-scores)[:k] if scores[item] > -np.inf]

print(recommend($example))
```

| file | content |
|---|---|
| `vectors.safetensors` | `users` ($users, $dimension) and `items` ($items, $dimension), float32 |
| `seen.safetensors` | what is not recommended again: of user row r the item rows `items[offsets[r]:offsets[r + 1]]` |
| `users.jsonl`, `items.jsonl` | original ids in row order, a JSON string a line |
| `manifest.json` | model, dataset, metrics on validation, sizes and sha256 of the files, versions |$index_file

The seen items are those of the splits: $seen. Ids are strings.
$index_text""")

_INDEX_FILE = """
| `index.faiss` | an approximate index of the items |"""

_INDEX_TEXT = Template("""
## With the index

Below the lines above, with faiss ($kind):

```python
import faiss

index = faiss.read_index("index.faiss")

def recommend_fast(user, k=20):
    row = rows[user]
    own = seen["items"][slice(*seen["offsets"][row:][:2])].tolist()
    scores, found = index.search(np.array(vectors["users"][row : row + 1]), k + len(own))
    ranked = zip(found[0].tolist(), scores[0].tolist())
    return [(items[item], score) for item, score in ranked if item >= 0 and item not in own][:k]

print(recommend_fast($example))
```

Measured on $measured users, one at a time on one thread, seen items left out; the index is set to search width $width
(`index.hnsw.efSearch`):

```
$table
```
""")


def _readme(manifest: Mapping[str, Any], example: str) -> str:
    """The bundle's README.md; `example` is a user."""
    values = {**manifest, "seen": ", ".join(manifest["seen"]["splits"]), "example": json.dumps(example)}
    index = manifest["index"]
    values.update(index_file="", index_text="")
    if index:
        values.update(index_file=_INDEX_FILE, kind=index["kind"], measured=index["users"], width=index["search_width"])
        values["index_text"] = _INDEX_TEXT.substitute(values, table=index_table(index))
    return _README.substitute(values)


__all__ = ["build_index", "index_table", "measure_index", "run_export", "search_index", "summary"]
