"""Makes a bundle in memory from a model, and checks that its scores equal the model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_kd.errors import UserError
from recbole_kd.evaluation.compression import principal_scores
from recbole_kd.files.bundle import DISTANCE, Bundle, Tensors
from recbole_kd.student.readers import item_vectors, names_with_vectors
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.verbs.export.graph import Unexportable, encoder_graph, pair_graph, require_onnx
from recbole_kd.verbs.recommender import Recommender

__all__ = ["DTYPES", "exported", "kind_of", "narrowed", "student_bundle", "with_vectors"]

#: Sequential architectures whose export as a graph is known to work; others are tried.
SEQUENCES = ("GRU4Rec", "SASRec", "BERT4Rec", "STOSA")
#: Those whose encoder reads only the item table that also scores the items.
ONE_TABLE = ("GRU4Rec", "SASRec", "BERT4Rec")
#: Architectures that score a pair by a network over both, and whose graph is exported.
PAIRS = ("NeuMF",)
#: Users whose scores are compared with the model's own before a bundle is written: by vectors, and by a graph.
_CHECKED_USERS = {"vectors": 256, "sequence": 64, "pairs": 16}
#: Largest difference of scores that counts as rounding, relative to the largest score.
_ROUNDING = 1e-4
#: ``--dtype`` -> the largest number that it holds.
DTYPES = {"float32": float(np.finfo(np.float32).max), "float16": 65504.0, "int8": float(np.finfo(np.float32).max)}


def kind_of(recommender: Recommender) -> str:
    """The kind of a model's bundle.

    Raises:
        UserError: the model has no exporter.
    """
    model = recommender.model
    if "representations" in model.capabilities:
        return "vectors"
    if "sequence_vectors" in model.capabilities:
        return "sequence"
    if model.name in PAIRS:
        return "pairs"
    raise _no_exporter(recommender, "")


def student_bundle(recommender: Recommender) -> Bundle:
    """The model of a recommender in rows without padding, its vectors in float32.

    Raises:
        UserError: the model has no exporter, a package is missing, or scores differ from the model's.
    """
    kind = kind_of(recommender)
    try:
        manifest, tensors, graph = _parts(recommender, kind)
    except Unexportable as error:
        raise _no_exporter(recommender, f" ({error})") from None
    seen = recommender.left_out()
    histories = {}
    if recommender.splits.sequential:
        items, lengths = (part[1:] for part in recommender.sequences)
        taken = torch.arange(items.shape[1]) < lengths.unsqueeze(1)
        histories = {"offsets": np.append(0, lengths.cumsum(0).numpy()), "items": items[taken].numpy() - 1}
    # Row 0 is padding in the program but not in a bundle, so all rows and items move up by one.
    bundle = Bundle(
        Path(),
        manifest,
        kind,
        recommender.splits.user_tokens[1:],
        recommender.items[1:],
        tensors,
        seen.offsets[1:].numpy(),
        seen.indices.numpy() - 1,
        histories,
        graph,
    )
    _check_scores(bundle, recommender)
    return bundle


def _parts(recommender: Recommender, kind: str) -> tuple[dict[str, Any], Tensors, bytes | None]:
    """A bundle's manifest entries on scores, its tensors and its graph."""
    model, device = recommender.model.model, recommender.trained.config["device"]
    if kind == "vectors":
        users, items = recommender.vectors()
        tensors = {"users": np.ascontiguousarray(users[1:]), "items": np.ascontiguousarray(items[1:])}
        # The sizes of a Matryoshka student.
        prefixes = recommender.trained.state["config"].get("matryoshka")
        return {"score": "inner product of a user's and an item's vector", "prefixes": prefixes}, tensors, None
    require_onnx()
    if kind == "pairs":
        return {"score": "the graph's, of a user and an item"}, {}, pair_graph(model, device)
    length = recommender.sequences[0].shape[1]
    tensors, score, factor = _item_side(model)
    size = tensors["items"].shape[1]
    given = _reads_the_vectors(recommender.model, size, length)
    graph = encoder_graph(model, length, size, factor, device, given)
    return {"score": score, "history_length": length, "history_vectors": given}, tensors, graph


def _no_exporter(recommender: Recommender, reason: str) -> UserError:
    names = ", ".join(exported())
    return UserError(
        f"{recommender.model.name} has no exporter{reason}. Models with one are {names}. {_advice(recommender)}"
    )


def exported() -> list[str]:
    """Names of the architectures that have an exporter."""
    return [*names_with_vectors(), *SEQUENCES, *PAIRS]


def _advice(recommender: Recommender) -> str:
    student = "SASRec" if recommender.splits.sequential else "BPR"
    return (
        "Write its lists with `recbole-kd recommend --users=all`, or distil it into a student with an exporter "
        f"(--model={student} --teacher={recommender.trained.state['backbone']} --distill=rrd)."
    )


def _reads_the_vectors(model: FrozenTeacher, size: int, length: int) -> bool:
    """Whether a sequential model's encoder reads the items' exported vectors, so that its graph needs no table."""
    if model.name not in ONE_TABLE:
        return False
    encoder: Any = model.model
    table: torch.Tensor = encoder.item_embedding.weight
    # Positions in a history replace ids; they are lower than the ids that the model adds after the items.
    return bool(table.shape[1] == size and table.dtype == torch.float32 and length < encoder.n_items)


@torch.no_grad()
def _item_side(model: Any) -> tuple[Tensors, str, float]:
    """A sequential model's item tensors, the description of its score, and the factor of its vectors.

    A negative squared distance is -||v - i||^2 = (2 v) . i - ||i||^2 - ||2 v||^2 / 4.
    """
    size = vars(model).get("prefix_size")  # of a Matryoshka student that is cut
    items = item_vectors(model)[1:, :size].float().cpu().contiguous()
    if hasattr(model, "item_vectors"):
        bias = -items.double().square().sum(dim=1).float()
        score = f"{DISTANCE}: item . vector + bias - vector . vector / 4, of the vector of a user's history"
        return {"items": items.numpy(), "bias": bias.numpy()}, score, 2.0
    tensors = {"items": items.numpy()}
    if getattr(model, "output_bias", None) is not None:
        tensors["bias"] = model.output_bias[1:].detach().float().cpu().contiguous().numpy()
    return tensors, "inner product of the vector of a user's history and an item's, plus the item's bias", 1.0


def _check_scores(bundle: Bundle, recommender: Recommender) -> None:
    """Refuses a bundle whose scores differ from the model's by more than rounding."""
    count = len(bundle.users)
    sample = torch.linspace(1, count, min(_CHECKED_USERS[bundle.kind], count)).long()
    own = recommender.score_block(sample)[:, 1:].cpu()
    ours = torch.from_numpy(np.stack([bundle.user_scores(user - 1) for user in sample.tolist()]))
    there = ~(torch.isneginf(own) & torch.isneginf(ours))  # a user without a history
    difference = float((own - ours)[there].abs().max()) if there.any() else 0.0
    if not difference <= _ROUNDING * max(1.0, float(own[there].abs().max()) if there.any() else 0.0):
        name = recommender.trained.state["model"]
        what = f"inner products of {name}'s vectors" if bundle.kind == "vectors" else f"scores of {name}'s graph"
        raise UserError(
            f"The {what} differ from its scores by {difference:.3g}, so they do not describe it or are not finite. "
            f"{_advice(recommender)}"
        )


def narrowed(bundle: Bundle, dimensions: int) -> Tensors:
    """Vectors of users and items with fewer dimensions.

    For a student of ``--matryoshka`` they are the first numbers; unit vectors are normalised again. For another model
    they are the vectors whose products are the best approximation of the scores with that rank
    (:func:`recbole_kd.evaluation.compression.principal_scores`).

    Args:
        bundle: two towers in float32. Its manifest's ``prefixes`` are the sizes for which a student was trained.
        dimensions: at most d.

    Raises:
        UserError: the student was not trained for this prefix.
    """
    names, prefixes = ("users", "items"), bundle.manifest.get("prefixes")
    if dimensions == bundle.vectors["users"].shape[1]:
        return bundle.vectors
    if not prefixes:
        rotated = principal_scores(*(torch.from_numpy(bundle.vectors[name]) for name in names))
        return {name: part[:, :dimensions].float().contiguous().numpy() for name, part in zip(names, rotated)}
    if dimensions not in prefixes:
        raise UserError(
            f"--dimensions={dimensions}: the student was trained for the sizes {', '.join(map(str, prefixes))}; set "
            "--dimensions to one of them, or leave it out for the whole vectors."
        )
    first = {name: np.ascontiguousarray(bundle.vectors[name][:, :dimensions]) for name in names}
    if all(np.allclose(np.linalg.norm(bundle.vectors[name], axis=1), 1, atol=1e-4) for name in names):
        return {
            name: part / np.linalg.norm(part, axis=1, keepdims=True).clip(min=1e-12) for name, part in first.items()
        }
    return first


def with_vectors(bundle: Bundle, dimensions: int | None = None, dtype: str = "float32") -> Bundle:
    """A bundle with its float32 vectors in fewer dimensions and in another type.

    int8 has a scale for each row: its largest magnitude divided by 127.

    Args:
        dimensions: only for two towers; None: all.

    Raises:
        UserError: a number is out of range for the type.
    """
    if dtype == "float32" and dimensions in (None, bundle.vectors.get("items", np.empty((0, 0))).shape[1]):
        return bundle
    tensors = bundle.vectors if dimensions is None else narrowed(bundle, dimensions)
    packed: Tensors = {}
    for name, table in tensors.items():
        if name == "bias" or dtype == "float32":
            packed[name] = table
            continue
        magnitude = np.abs(table).max(axis=1)
        if float(magnitude.max(initial=0)) > DTYPES[dtype]:
            raise UserError(f"--dtype={dtype} cannot hold {magnitude.max():.3g} in a vector; use float32 or int8.")
        if dtype == "float16":
            packed[name] = table.astype(np.float16)
            continue
        scale = np.where(magnitude > 0, magnitude / 127, 1).astype(np.float32)
        packed[name] = np.rint(table / scale[:, None]).astype(np.int8)
        packed[f"{name}_scale"] = scale
    return replace(bundle, vectors=packed)
