"""``recbole-kd export``: writes a student as a bundle that serves without torch, RecBole or this package.

A bundle is a folder of safetensors, JSON, perhaps an ONNX graph, and a README.md with a few lines of code that
recommend; it has no pickles. :mod:`recbole_kd.files.bundle` describes and reads it.

- :mod:`.student`: makes a bundle from a model; reduces its vectors' size and type.
- :mod:`.graph`: a model's computation as an ONNX graph, for sequential models and for pairs.
- :mod:`.measure`: recall, size and latency of exact search and of indexes.
- :mod:`.explore`: compares all combinations of these and chooses one.
- :mod:`.readme`: the README with code, figures and model card.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any, Optional

import safetensors.numpy

from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.atomic import check_place, whole_folder, write_content
from recbole_kd.files.bundle import FORMAT, Bundle, Tensors, is_bundle
from recbole_kd.files.checkpoint import ModelState, load_checkpoint
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import file_digest
from recbole_kd.stages.result import versions
from recbole_kd.stages.testing import evaluated
from recbole_kd.trainer.kd_trainer import make_evaluator
from recbole_kd.verbs.export.explore import Choice, choices_table, explore, take
from recbole_kd.verbs.export.measure import (
    MEASURED_K,
    build_index,
    exact_lists,
    index_module,
    measure_exact,
    measure_index,
    sampled_users,
)
from recbole_kd.verbs.export.readme import figures, readme
from recbole_kd.verbs.export.student import kind_of, student_bundle, with_vectors
from recbole_kd.verbs.options import SEEN, ExportOptions
from recbole_kd.verbs.recommender import Recommender

__all__ = ["FORMAT", "run_export", "summary"]


def run_export(
    checkpoint: str,
    output: str,
    index: Optional[str] = None,
    seen: str = "train",
    overwrite: bool = False,
    config_dict: Optional[Mapping[str, Any]] = None,
    index_type: Optional[str] = None,
    dtype: str = "float32",
    dimensions: Optional[int] = None,
    explore: bool = False,
    loss: Optional[float] = None,
) -> dict[str, Any]:
    """Writes the bundle of a saved model, completely or not at all.

    Args:
        checkpoint, seen, config_dict: as in :class:`recbole_kd.verbs.recommender.Recommender`.
        output: the bundle's folder; its parent is created if missing.
        index: a key of :data:`recbole_kd.verbs.options.INDEXES`, or None for exact search only.
        index_type: flat, hnsw or ivfpq; None: hnsw.
        overwrite: whether an existing bundle is replaced.
        dtype: type of the vectors: float32, float16 or int8.
        dimensions: how many numbers of each vector to keep; None: all.
        explore: whether all combinations of index, index_type, dtype and dimensions are compared; the smallest
            one within `loss` is written.
        loss: the share of NDCG@20 on validation that `explore` may lose; None: 0.01.

    Returns:
        The content of ``manifest.json``.

    Raises:
        UserError: a bad value of an argument, a model without an exporter, or a folder that cannot be written.
    """
    given = {name: value for name, value in locals().items() if name != "config_dict"}
    return _export(ExportOptions.parse("--", given), config_dict)


def run(options: ExportOptions, settings: dict[str, Any]) -> None:
    """The verb: writes the bundle and prints a summary."""
    print(summary(_export(options, settings), options.output))


def _export(options: ExportOptions, config_dict: Optional[Mapping[str, Any]]) -> dict[str, Any]:
    target = Path(options.output).absolute()
    _check_target(target, options.overwrite)
    faiss = None if options.index is None else index_module(options.index)
    stored = load_checkpoint(options.checkpoint, schema=ModelState)["config"]
    # The first numbers of a Matryoshka student are themselves a student, so they are cut in the model, not rotated
    # here.
    cut = options.dimensions if stored.get("matryoshka") else None
    recommender = Recommender(options.checkpoint, options.seen, _settings(options, stored, config_dict), cut)
    options = options if cut is None else replace(options, dimensions=None)
    _check_fits(options, kind_of(recommender), recommender)
    whole = student_bundle(recommender)
    explored = None
    if options.explore:
        options, explored = _explored(options, whole, recommender)
        faiss = None if options.index is None else index_module(options.index)
    bundle = with_vectors(whole, options.dimensions, options.dtype)
    # A network over pairs takes a hundred times as long as a product to score the catalogue.
    rows = sampled_users(len(whole.users), 100 if whole.kind == "pairs" else 1000)
    k = min(MEASURED_K, len(whole.items))
    wanted = exact_lists(whole, rows, k)
    exact = measure_exact(bundle, rows, wanted if bundle is whole else exact_lists(bundle, rows, k), wanted, k)
    manifest = {
        **_facts(recommender, options, bundle),
        "measured": {"k": k, "users": len(rows), "exact": exact},
        "index": None,
        "explored": explored,
    }
    with whole_folder(target) as folder:
        _write(folder, bundle)
        if faiss is not None:
            kind = options.index_type or "hnsw"
            built, told = build_index(faiss, bundle, kind, options.dtype)
            found, _ = measure_index(faiss, built, kind, bundle, rows, wanted, exact["recall"], k)
            content = faiss.serialize_index(built).tobytes()
            write_content(folder / "index.faiss", content)
            named = {"file": "index.faiss", "type": kind, "kind": told, "bytes": len(content)}
            manifest["index"] = {**named, "version": faiss.__version__, **found}
        write_content(folder / "README.md", readme(manifest, bundle.users[0]))
        manifest["files"] = {path.name: _file_facts(path) for path in sorted(folder.iterdir())}
        save_json(manifest, folder / "manifest.json", "output")
    return manifest


def _settings(
    options: ExportOptions, stored: Mapping[str, Any], config_dict: Optional[Mapping[str, Any]]
) -> dict[str, Any]:
    """The settings that override the stored ones. The card has the metrics of the run."""
    if options.config_files:
        return {**(config_dict or {}), "config_files": options.config_files}
    return {**{name: stored[name] for name in ("metrics", "topk") if name in stored}, **(config_dict or {})}


def _explored(options: ExportOptions, whole: Bundle, recommender: Recommender) -> tuple[ExportOptions, dict[str, Any]]:
    """The options of the smallest combination within the loss, and the manifest's entry on all combinations."""
    splits, loss = recommender.splits, 0.01 if options.loss is None else options.loss
    training, valid = (
        Observed(*splits.pairs(part), len(splits.user_tokens), len(splits.item_tokens))
        for part in (splits.train, splits.valid)
    )
    left_out = training if recommender.exclude_seen else recommender.left_out()
    choices = explore(whole, left_out, valid, _faiss_or_none())
    chosen, _ = take(choices, loss)
    index = None if chosen.index is None else "faiss"
    kept: dict[str, Any] = {
        "dimensions": chosen.dimensions,
        "dtype": chosen.dtype,
        "index": index,
        "index_type": chosen.index,
    }
    return replace(options, **kept), {"loss": loss, "choices": [asdict(choice) for choice in choices]}


def _faiss_or_none() -> Any:
    try:
        return index_module("faiss")
    except UserError as error:
        logging.getLogger().warning(f"Indexes are not compared. {error}")
        return None


def _check_fits(options: ExportOptions, kind: str, recommender: Recommender) -> None:
    """Refuses options that need vectors which this kind of bundle lacks."""
    name = recommender.trained.state["model"]
    lacking = {"vectors": (), "sequence": ("explore", "dimensions")}
    for option in lacking.get(kind, ("explore", "dimensions", "index", "dtype")):
        value = getattr(options, option)
        if value not in (None, False, "float32"):
            raise UserError(
                f"--{option}={str(value).lower()} is for models with a vector for each user and item, but {name} is "
                f"exported as a graph; leave --{option} out."
            )
    size = recommender.model.dimension or 0
    if options.dimensions is not None and options.dimensions > size:
        raise UserError(f"--dimensions={options.dimensions} exceeds the {size} of {name}'s vectors; set it to fewer.")


def _facts(recommender: Recommender, options: ExportOptions, bundle: Bundle) -> dict[str, Any]:
    """The manifest's entries on the model, its data and its training."""
    state, config = recommender.trained.state, recommender.trained.config
    teacher = state["config"].get("teacher") or {}  # a file of an older version names it only there
    distillers = list(state["config"].get("distill") or [])
    kept = config.plain_values()
    keys = [key for key in sorted(config.model_keys()) if not key.endswith("_path")]
    settings = {key: kept[key] for key in keys if isinstance(kept.get(key), (int, float, str))}
    sections = {name: state["config"].get(name) or {} for name in distillers}
    valid, test = _results(recommender)
    told = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {
        "format": FORMAT,
        "kind": bundle.kind,
        "model": state["model"],
        "backbone": state["backbone"],
        "dataset": state["dataset"],
        "users": len(bundle.users),
        "items": len(bundle.items),
        "dimension": 0 if bundle.kind == "pairs" else bundle.vectors["items"].shape[1],
        "dtype": options.dtype,
        "bias": "bias" in bundle.vectors,
        **bundle.manifest,
        "seen": {"splits": list(SEEN[options.seen]), "pairs": len(recommender.left_out())},
        "repeatable": not recommender.exclude_seen,
        "final": bool(state.get("final")),
        "valid_result": valid,
        "test_result": test,
        "teacher": state.get("teacher") or (teacher.get("model") if isinstance(teacher, Mapping) else str(teacher)),
        "distillers": distillers,
        "settings": {**settings, **told},
        "date": date.today().isoformat(),
        "digests": {"model": recommender.model.digest, "training_split": state["split"]},
        "versions": versions(),
    }


def _results(recommender: Recommender) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the exported model (its prefix, its ranked items) on validation and on test.

    Without a split they are the validation metrics that chose the epoch, and no test metrics.
    """
    trained = recommender.trained
    kept = trained.state["best_valid_result"]
    if "test_result" in trained.state:
        return kept, trained.test_result
    config: KDConfig = trained.config
    trainer, (_, *loaders) = make_evaluator(config, trained.model, recommender.splits)
    found = {
        split: evaluated(trainer, data, split, trained.checkpoint, {})
        for split, data in zip(("valid", "test"), loaders)
        if data is not None
    }
    return found.get("valid", kept), found.get("test", {})


def _write(folder: Path, bundle: Bundle) -> None:
    """Writes a bundle except its README, index and manifest."""

    def tensors(name: str, values: Tensors) -> None:
        write_content(folder / f"{name}.safetensors", safetensors.numpy.save(values))

    tensors("seen", {"offsets": bundle.seen_offsets, "items": bundle.seen_items})
    for name, values in (("vectors", bundle.vectors), ("histories", bundle.histories)):
        if values:
            tensors(name, values)
    if bundle.graph is not None:
        write_content(folder / "model.onnx", bundle.graph)
    for name, ids in (("users", bundle.users), ("items", bundle.items)):
        write_content(folder / f"{name}.jsonl", "".join(json.dumps(token) + "\n" for token in ids))


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"--output={target} is a file; set --output to a folder that does not exist yet.")
    check_place(target / "manifest.json", "output")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--output={target} is not empty; choose another folder, or replace it with --overwrite=true.")
    if not is_bundle(target):
        raise UserError(f"--output={target} has files that are not an export; choose another folder.")


def _file_facts(path: Path) -> dict[str, Any]:
    sha256, size = file_digest(path)
    return {"bytes": size, "sha256": sha256}


def summary(manifest: Mapping[str, Any], output: str) -> str:
    """A summary of the export, as lines."""
    size = sum(file["bytes"] for file in manifest["files"].values()) / 1e6
    what = {
        "vectors": f"of {manifest['dimension']} numbers ({manifest['dtype']})",
        "sequence": f"of {manifest['dimension']} numbers ({manifest['dtype']}), and a graph of histories",
        "pairs": "and a graph of pairs",
    }[manifest["kind"]]
    head = (
        f"{output}: {manifest['model']} on {manifest['dataset']}, {manifest['users']:,} users and "
        f"{manifest['items']:,} items {what}, {size:.1f} MB"
    )
    explored = manifest["explored"]
    compared = [choices_table([Choice(**one) for one in explored["choices"]], explored["loss"]), ""] if explored else []
    return "\n".join([*compared, head, "", figures(manifest)])
