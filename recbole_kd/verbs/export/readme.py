"""A bundle's README.md: code that recommends from it, its measured figures and its model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

from recbole_kd.files.bundle import DISTANCE
from recbole_kd.text import columns
from recbole_kd.verbs.export.explore import Choice, choices_table

__all__ = ["card", "figures", "readme"]

_README = Template("""\
# $model, trained on $dataset

Recommendations for $users users over $items items, exported by recbole-kd. $score $needs In this folder:

```python
import json
import numpy as np
$imports
def tensors(file):  # safetensors: length of the header, the header in JSON, the numbers
    data, kinds = np.memmap(file, np.uint8, "r"), {$kinds}
    start = 8 + int(data[:8].view("<u8")[0])
    return {name: data[start:][slice(*entry["data_offsets"])].view(kinds[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in json.loads(bytes(data[8:start])).items()}

$lines
print(recommend($example))
```

| file | content |
|---|---|
$files
$seen Ids are strings.

## Recall, size and latency

Measured on $measured users, one at a time on one thread, without seen items. Recall@$k is the share found of the items
that exact search over the model's own vectors finds. MB is the size of vectors, graph and index.

```
$figures
```
$explored$index
## Model card

$card
""")

_RANKED = "return [(items[item], float(scores[item])) for item in np.argsort(-scores)[:k] if scores[item] > -np.inf]"
_OWN = '{0}["items"][slice(*{0}["offsets"][rows[user]:][:2])]'

_IDS = """\
items = [json.loads(line) for line in open("items.jsonl")]
rows = {json.loads(line): row for row, line in enumerate(open("users.jsonl"))}
"""
#: Conversion to float32, in blocks that stay in the processor's cache.
_WIDENED = (
    "np.concatenate([part.astype(np.float32) @ own\n"
    '                             for part in np.split(vectors["items"], range(4096, len(items), 4096))])'
)
#: dtype -> (the products of all items with `own`, a user's vector).
_PRODUCTS = {
    "float32": ('vectors["items"] @ own', 'vectors["users"][rows[user]]'),
    "float16": (_WIDENED, 'vectors["users"][rows[user]].astype(np.float32)'),
    "int8": (
        f'{_WIDENED} * vectors["items_scale"]',
        'vectors["users"][rows[user]].astype(np.float32) * vectors["users_scale"][rows[user]]',
    ),
}

#: dtype -> the vectors of the items in a history, for a graph that holds none.
_LOOKED_UP = {
    "float32": 'vectors["items"][row]',
    "float16": 'vectors["items"][row].astype(np.float32)',
    "int8": 'vectors["items"][row] * vectors["items_scale"][row][..., None]',
}

_VECTORS = Template(f"""\
vectors, seen = tensors("vectors.safetensors"), tensors("seen.safetensors")
{_IDS}
def recommend(user, k=20):
    own = $user
    scores = $product
    scores[{_OWN.format("seen")}] = -np.inf
    {_RANKED}
""")

_SEQUENCE = Template(f"""\
vectors, seen, histories = (tensors(f"{{name}}.safetensors") for name in ("vectors", "seen", "histories"))
{_IDS}
encoder = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

def vector(history):  # rows of items, oldest first
    row = np.full((1, $length), -1, np.int64)
    row[0, : len(history[-$length:])] = history[-$length:]
    return encoder.run(None, {{"history": row$given}})[0][0]

def recommend_after(history, left_out, k=20):  # item rows; also for a user who is not in the data
    own = vector(history)
    scores = $product$rest
    scores[left_out] = -np.inf
    {_RANKED}

def recommend(user, k=20):
    history, left_out = {_OWN.format("histories")}, {_OWN.format("seen")}
    return recommend_after(history, left_out, k) if len(history) else []
""")

_PAIRS = f"""\
seen = tensors("seen.safetensors")
{_IDS}
model = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

def recommend(user, k=20):
    item = np.arange(len(items))
    scores = model.run(None, {{"users": np.full_like(item, rows[user]), "items": item}})[0]
    scores[{_OWN.format("seen")}] = -np.inf
    {_RANKED}
"""

_INDEX = Template("""
## With the index

Below the lines above, with faiss ($kind):

```python
import faiss

index = faiss.read_index("index.faiss")

def recommend_fast(user, k=20):
    own = $seen.tolist()$guard
    question = $question
    scores, found = index.search(question[None], k + len(own))
    ranked = zip(found[0].tolist(), scores[0].tolist())
    return [(items[item], score$rest) for item, score in ranked if item >= 0 and item not in own][:k]

print(recommend_fast($example))
```
$width""")


def readme(manifest: Mapping[str, Any], example: str) -> str:
    """The bundle's README.md; `example` is a user."""
    kind, dtype, index = manifest["kind"], manifest["dtype"], manifest["index"]
    product, user = _PRODUCTS[dtype]
    bias = ' + vectors["bias"]' if manifest["bias"] else ""
    distance = " - own @ own / 4" if manifest["score"].startswith(DISTANCE) else ""
    length = manifest.get("history_length")
    given = f', "items": {_LOOKED_UP[dtype]}' if manifest.get("history_vectors") else ""
    lines = {
        "vectors": _VECTORS.substitute(product=product, user=user),
        "sequence": _SEQUENCE.substitute(product=product, rest=bias + distance, length=length, given=given),
        "pairs": _PAIRS,
    }[kind]
    kinds = {"float32": "", "float16": ', "F16": "<f2"', "int8": ', "I8": "|i1"'}[dtype]
    values: dict[str, Any] = {
        **{name: manifest[name] for name in ("model", "dataset", "users", "items")},
        "score": _score(manifest),
        "needs": "Nothing but numpy is needed." if kind == "vectors" else "It needs numpy and onnxruntime.",
        "imports": "" if kind == "vectors" else "import onnxruntime\n",
        "kinds": f'"F32": "<f4", "I64": "<i8"{kinds}',
        "lines": lines,
        "example": ascii(example),
        "files": "\n".join(f"| {name} | {content} |" for name, content in _files(manifest)) + "\n",
        "seen": "Seen items can be recommended again: the lists of seen items are empty."
        if manifest["repeatable"]
        else f"Seen items come from these splits: {', '.join(manifest['seen']['splits'])}.",
        "measured": manifest["measured"]["users"],
        "k": manifest["measured"]["k"],
        "figures": figures(manifest),
        "explored": _explored(manifest["explored"]),
        "index": "",
        "card": card(manifest),
    }
    if index:
        question = f"{user}.copy()" if dtype == "float32" else user
        if kind == "sequence":
            question = f"vector({_OWN.format('histories')})"
            question = f"np.append({question}, np.float32(1))" if bias else question
        width = {"flat": "", "hnsw": "index.hnsw.efSearch", "ivfpq": "index.nprobe"}[index["type"]]
        values["index"] = _INDEX.substitute(
            kind=index["kind"],
            guard=f"\n    if not len({_OWN.format('histories')}):\n        return []" if kind == "sequence" else "",
            seen=_OWN.format("seen"),
            question=question,
            rest=" - float(question[:-1] @ question[:-1]) / 4" if distance else "",
            example=values["example"],
            width=f"\nThe index is set to search width {index['search_width']} (`{width}`).\n" if width else "",
        )
    return _README.substitute(values)


def _explored(explored: Mapping[str, Any] | None) -> str:
    if explored is None:
        return ""
    choices = [Choice(**choice) for choice in explored["choices"]]
    table = choices_table(choices, explored["loss"], everything=False)
    return (
        "\nChosen among these. No other combination has at least their NDCG on validation in at most their bytes and "
        f"time; all are in the manifest:\n\n```\n{table}\n```\n"
    )


def _score(manifest: Mapping[str, Any]) -> str:
    numbers = f"({manifest['dimension']} numbers each)"
    if manifest["kind"] == "pairs":
        return "A graph (ONNX) computes the score of a user's row and an item's row."
    if manifest["kind"] == "vectors":
        return f"A user's score of an item is the inner product\nof their vectors {numbers}."
    if manifest["score"].startswith(DISTANCE):
        return f"A score is the negative squared distance\nof the history's and the item's vector {numbers}."
    return f"A score is the inner product of the vectors\nof an item and of the user's history {numbers}."


def _files(manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(name, what it holds) of a bundle's files."""
    kind, numbers = manifest["kind"], f"({{}}, {manifest['dimension']})"
    dtype = {"int8": "int8, with a float32 scale for each row"}.get(manifest["dtype"], manifest["dtype"])
    if kind == "vectors":
        both = f"`users` {numbers.format(manifest['users'])} and `items` {numbers.format(manifest['items'])}"
        yield "`vectors.safetensors`", f"{both}, {dtype}"
    if kind == "sequence":
        bias = ", and `bias`, float32" if manifest["bias"] else ""
        yield "`vectors.safetensors`", f"`items` {numbers.format(manifest['items'])}, {dtype}{bias}"
        inputs = f"`history` (n, {manifest['history_length']}), item rows and -1"
        given = ", and `items` (n, L, d), their vectors" if manifest.get("history_vectors") else ""
        yield "`model.onnx`", f"{inputs}{given} -> `vectors` (n, d)"
        yield "`histories.safetensors`", "each user's items, oldest first, in the form of `seen.safetensors`"
    if kind == "pairs":
        yield "`model.onnx`", "`users` (n,), `items` (n,), rows -> `scores` (n,)"
    of_rows = "user row r has the item rows `items[offsets[r]:offsets[r + 1]]`"
    yield "`seen.safetensors`", f"seen items, which are not recommended: {of_rows}"
    yield "`users.jsonl`, `items.jsonl`", "original ids in row order, a JSON string a line"
    yield "`manifest.json`", "model, dataset, metrics, figures, sizes and sha256 of the files, versions"
    if manifest["index"]:
        yield "`index.faiss`", "an index of the items"


def figures(manifest: Mapping[str, Any]) -> str:
    """Recall, size and latency of exact search and of the index, as lines."""
    measured, index = manifest["measured"], manifest["index"]
    exact = "exact" if manifest["dtype"] == "float32" else f"exact, {manifest['dtype']}"
    rows = [(exact, measured["exact"]["bytes"], measured["exact"])]
    for row in index["search"] if index else ():
        name = f"{index['type']}, width {row['search_width']}" if row["search_width"] else index["type"]
        rows.append((name, measured["exact"]["bytes"] + index["bytes"], row))
    lines: list[Sequence[str]] = [("search", f"recall@{measured['k']}", "MB", "p50 ms", "p95 ms")]
    for name, size, row in rows:
        times = (f"{row['latency_ms'][part]:.3f}" for part in ("p50", "p95"))
        lines.append((name, f"{row['recall']:.4f}", f"{size / 1e6:.3f}", *times))
    return "\n".join(columns(lines))


def card(manifest: Mapping[str, Any]) -> str:
    """The model card, as a table in Markdown."""
    rows = [
        ("model", f"{manifest['model']} ({manifest['backbone']}), digest `{manifest['digests']['model'][:16]}`"),
        ("teacher", manifest["teacher"] or "none"),
        ("distillers", ", ".join(manifest["distillers"]) or "none"),
        ("data", f"{manifest['dataset']}, digest of the training split `{manifest['digests']['training_split'][:16]}`"),
        ("metrics on validation", _metrics(manifest["valid_result"])),
        ("metrics on test", _metrics(manifest["test_result"])),
        ("trained on", "all interactions" if manifest["final"] else "the training split"),
        ("settings", ", ".join(f"{name} {value}" for name, value in manifest["settings"].items())),
        (
            "exported",
            f"{manifest['date']}, with {', '.join(f'{name} {one}' for name, one in manifest['versions'].items())}",
        ),
        ("licence of the data", "*to be filled in by the person who exports it*"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _metrics(result: Mapping[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in (result or {}).items()) or "none"


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
