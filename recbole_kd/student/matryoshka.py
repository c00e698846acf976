"""Matryoshka students: the first numbers of a student's vectors are a smaller student (``--matryoshka=[8,16,32]``).

    loss = mean over the prefixes d of [base loss of the scores by the first d numbers + losses of distillers that read
           the first d numbers]

Kusupati et al., Matryoshka Representation Learning (NeurIPS'22); MRL4Rec (2024). All prefixes have the same weight. The
whole vector is always one of them.

A prefix is cut from the vectors whose product is the score: after propagation (LightGCN) or after the layers (SimRec,
SimpleX, SASRec). SimpleX's score is a cosine, so there the first numbers are scaled to length 1 again. Penalties on
tables (LightGCN, SimpleX) are those of the whole tables. If the whole vector is the only prefix, a run equals the plain
one.

Each distiller is built once for each prefix: a projector, an expert or a ranking by the student belongs to one prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import Batch, Distiller, DistillerOptions, Sequences
from recbole_kd.errors import UserError
from recbole_kd.model.kinds import class_names
from recbole_kd.student.readers import ModelStudent, Pair, first_numbers, item_vectors, shared_propagation

__all__ = [
    "OverPrefixes",
    "PrefixStudent",
    "average_over_prefixes",
    "check_prefix_sizes",
    "keep_prefix",
    "prefix",
    "prefix_sizes",
]

#: Architecture -> the setting of its vectors' size.
_SIZES = {
    **dict.fromkeys(("BPR", "LightGCN", "SimpleX", "SimRecStudent"), "embedding_size"),
    "SASRec": "hidden_size",
}

Method = Callable[..., Any]


def prefix_sizes(config: Any) -> tuple[int, ...]:
    """The prefix sizes in a student's settings, ascending, the whole vector last; empty without ``--matryoshka``.

    Raises:
        UserError: sizes that are not ascending or too large, or a student whose vectors are not cut.
    """
    if config["matryoshka"] is None:
        return ()
    sizes, backbone = [int(size) for size in config["matryoshka"]], config.resolved.backbone
    if backbone not in _SIZES:
        raise UserError(
            f"--matryoshka cuts the vectors whose product is a student's score, which it cannot do for {backbone}; "
            f"set --model to one of {', '.join(_SIZES)}, or leave --matryoshka out."
        )
    whole = config[_SIZES[backbone]]
    if sizes != sorted({*sizes}):
        raise UserError(f"--matryoshka={sizes}; expected sizes in ascending order, each once, such as [8,16,32].")
    if sizes[-1] > whole:
        raise UserError(
            f"--matryoshka={sizes} asks for {sizes[-1]} numbers, but --{_SIZES[backbone]}={whole}; lower the first or "
            "raise the second."
        )
    found = (*sizes, *(() if sizes[-1] == whole else (whole,)))
    return found if len(found) > 1 else ()


def check_prefix_sizes(
    name: str, options: DistillerOptions, sizes: Sequence[int], teacher: int | None, whole: int | None
) -> None:
    """Refuses a distiller that needs vectors of the teacher's size, because shorter prefixes cannot have it.

    Args:
        name: the distiller's name.
        options: its options.
        sizes: the sizes of the prefixes.
        teacher, whole: sizes of the teacher's and the student's vectors; None: not known yet.

    Raises:
        UserError: the sizes do not fit, for the whole vectors or for a prefix.
    """
    options.check_sizes(whole, teacher)
    for size in sizes[:-1]:
        try:
            options.check_sizes(size, teacher)
        except UserError:
            raise UserError(
                f"{name} compares vectors of student and teacher number by number, but --matryoshka cuts the student's "
                f"to {size} of {teacher} numbers; leave out --matryoshka or that term (for simrec: "
                f"--{name}.embedding_weight=0)."
            ) from None


# The model


def _zeroed(vectors: Tensor, size: int) -> Tensor:
    """Vectors (n, d) with zeros after the first `size` numbers, so that products use only these."""
    return functional.pad(vectors[:, :size], (0, vectors.shape[1] - size))


def _cut_vectors(own: Method, model: Any, size: int) -> Method:
    return lambda *given: _zeroed(own(*given), size)


def _cut_users(own: Method, model: Any, size: int) -> Method:
    def forward() -> Pair:
        users, items = own()
        return _zeroed(users, size), items

    return forward


def _cut_cosine(own: Method, model: Any, size: int) -> Method:
    return lambda users, items: own(users[..., :size], items[..., :size])


def _cut_simplex(own: Method, model: Any, size: int) -> Method:
    def full_sort_predict(interaction: Any) -> Tensor:
        users = interaction[model.USER_ID]
        history = model.item_emb(model.history_item_id[users])
        vectors = model.get_UI_aggregation(model.user_emb(users), history, model.history_item_len[users])
        first, items = (part[:, :size] for part in (vectors, model.item_emb.weight))
        return functional.normalize(first, dim=1) @ functional.normalize(items, dim=1).t()

    return full_sort_predict


#: Architecture -> name of each method through which vectors reach its scores -> the function that cuts its result.
_METHODS: dict[str, dict[str, Callable[[Method, Any, int], Method]]] = {
    "BPR": {"get_user_embedding": _cut_vectors},
    "LightGCN": {"forward": _cut_users},
    "SimRecStudent": {"forward": _cut_users},
    "SimpleX": {"get_cos": _cut_cosine, "full_sort_predict": _cut_simplex},
    "SASRec": {"forward": _cut_vectors},
}


def keep_prefix(model: nn.Module, size: int) -> None:
    """Makes the model score by the first `size` numbers of its vectors, and its readers return only these."""
    for name, cut in _methods(model).items():
        setattr(model, name, cut(getattr(model, name), model, size))
    vars(model)["prefix_size"] = size
    _forget(model)


def _methods(model: nn.Module) -> dict[str, Callable[[Method, Any, int], Method]]:
    return next(_METHODS[name] for name in class_names(model) if name in _METHODS)


def _forget(model: nn.Module) -> None:
    """Drops what a model has computed from its weights for an evaluation; it is valid for one prefix."""
    for name in [name for name in vars(model) if name.startswith("restore_")]:
        setattr(model, name, None)


@contextmanager
def prefix(model: nn.Module, size: int) -> Iterator[None]:
    """Inside the block the model scores by the first `size` numbers of its vectors."""
    changed = (*_methods(model), "prefix_size")
    before = {name: vars(model)[name] for name in changed if name in vars(model)}  # for example a shared pass
    keep_prefix(model, size)
    try:
        yield
    finally:
        for name in changed:
            delattr(model, name)
        vars(model).update(before)
        _forget(model)


def average_over_prefixes(model: Any, sizes: Sequence[int]) -> None:
    """Makes the model's own loss the mean of its losses over the prefixes. A graph is propagated once for all."""
    own = model.calculate_loss

    def calculate_loss(interaction: Any) -> Tensor:
        losses = []
        with shared_propagation(model):
            for size in sizes:
                with prefix(model, size):
                    losses.append(own(interaction))
        return torch.stack(losses).mean(dim=0)

    model.calculate_loss = calculate_loss


# What distillers see


class PrefixStudent(ModelStudent):
    """A student whose vectors are the first numbers of another student's; that one is read once a step for all."""

    def __init__(self, whole: ModelStudent, size: int) -> None:
        self._whole = whole
        self.model, self.name, self.capabilities = whole.model, whole.name, whole.capabilities
        self.dimension = size

    def _representations(self) -> Pair:
        assert self.dimension is not None
        return first_numbers(self.model, self._whole._representations(), self.dimension)

    def item_embeddings(self) -> Tensor:
        """e_s of every item, (I, size)."""
        if "sequence_vectors" in self.capabilities:
            return item_vectors(self.model)[:, : self.dimension]
        return self._representations()[1]

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_s of n sequences, (n, size)."""
        return self._whole.sequence_embeddings(sequences)[:, : self.dimension]


class OverPrefixes(nn.Module):
    """Distillers for all prefixes of a student; each loss is the mean over the prefixes."""

    def __init__(self, distillers: Mapping[int, Distiller[Any]]) -> None:
        super().__init__()
        self.prefixes = nn.ModuleDict({str(size): distiller for size, distiller in distillers.items()})
        #: See :attr:`Distiller.shares`.
        self.shares = all(distiller.shares for distiller in distillers.values())

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch."""
        for distiller in self.prefixes.values():
            distiller.begin_epoch(epoch)  # type: ignore[operator]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch by name, each multiplied by its weight."""
        found = [distiller(batch) for distiller in self.prefixes.values()]
        names = dict.fromkeys(name for losses in found for name in losses)
        return {
            name: torch.stack([losses[name] for losses in found if name in losses]).sum() / len(found) for name in names
        }
