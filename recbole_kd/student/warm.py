"""A student that starts from another student's weights, on data with other users and items (``--warm_start=FILE``).

A known user or item keeps its row of every table, even if its id has changed. A new one starts at the mean of the known
rows, or at the mean row of its nearest known neighbours by the teacher's vectors. Other weights are copied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import ModelState, load_any, load_checkpoint
from recbole_kd.student.readers import item_tables

__all__ = ["NEIGHBOURS", "Side", "begin_from", "check_backbone", "teacher_vectors", "warn_of_other_splits"]

#: Number of known neighbours whose rows are averaged for a new user or item.
NEIGHBOURS = 10
_ROWS_AT_ONCE = 1024


class Side(NamedTuple):
    """Users or items: their rows in the file, and the starting points of new ones.

    Attributes:
        there: (n,) the row in the file by internal id, -1 for a new one; padding is row 0 in both.
        gone: number of the file's ids that are not in the data.
        neighbours: (new, k) known internal ids for each new one, or None for the mean of all.
    """

    there: Tensor
    gone: int
    neighbours: Tensor | None = None

    @classmethod
    def of(cls, tokens: Sequence[str], stored: Sequence[str], vectors: Tensor | None = None) -> Side:
        """
        Args:
            tokens: original ids by internal id, the padding first.
            stored: original ids in the file, in its order.
            vectors: (n, d) the teacher's vectors by internal id; None if new ones start at the mean.
        """
        row = {token: place for place, token in enumerate(stored)}
        there = torch.tensor([0, *(row.get(token, -1) for token in tokens[1:])])
        side = cls(there, len(stored) - 1 - _known_in(there))
        if vectors is None or not side.new.any() or not _known_in(there):
            return side
        known = (there[1:] >= 0).nonzero().squeeze(1) + 1
        units = nn.functional.normalize(vectors.detach().cpu().float(), dim=1)
        new = side.new.nonzero().squeeze(1)
        best = [
            (units[block] @ units[known].t()).topk(min(NEIGHBOURS, len(known)), dim=1).indices
            for block in new.split(_ROWS_AT_ONCE)
        ]
        return side._replace(neighbours=known[torch.cat(best)])

    @property
    def new(self) -> Tensor:
        """(n,) bool: the ids that are not in the file."""
        return self.there < 0

    def rows(self, stored: Tensor) -> Tensor:
        """(n + further rows, ...) a table in the ids of the data; further rows (a mask) are copied."""
        count = len(self.there) - int(self.new.sum()) + self.gone
        found = stored[:count][self.there.clamp(min=0)].clone()
        if self.neighbours is not None:
            found[self.new] = found[self.neighbours].mean(dim=1)
        elif self.new.any():
            found[self.new] = stored[1:count].mean(dim=0)
        return torch.cat([found, stored[count:]])

    def told(self, name: str) -> str:
        """The counts in words."""
        return f"{_known_in(self.there):,} {name} known, {int(self.new.sum()):,} new, {self.gone:,} gone"


def _known_in(there: Tensor) -> int:
    """The number of ids that are in the file."""
    return int((there[1:] >= 0).sum())


def warn_of_other_splits(config: Any, training_digest: str) -> None:
    """Warns of weights to start from that were trained on another split: they may know what this run tests.

    Args:
        config: a model's settings.
        training_digest: the digest of this run's training split.
    """
    keys = ["warm_start"] if config["warm_start"] else []
    keys += [key for key in ("mf_pretrain_path", "mlp_pretrain_path") if config["use_pretrain"] and config[key]]
    for key in keys:
        kind, state = load_any(str(config[key]))
        if kind == "recbole-kd" and state["split"] == training_digest:
            continue
        found = "was trained on another split or on other data" if kind == "recbole-kd" else "does not say its split"
        logging.getLogger().warning(
            f"--{config.prefix}{key}: '{config[key]}' {found}, so it may know this run's test interactions, and its "
            "figures can be too high. They are right if all that it was trained on is older."
        )


def begin_from(
    path: str, model: nn.Module, backbone: str, tokens: dict[str, Sequence[str]], vectors: dict[str, Tensor]
) -> dict[str, Side]:
    """Gives a new model the weights of a trained one.

    Args:
        path: a checkpoint of recbole-kd.
        model: the student.
        backbone: its architecture's name.
        tokens: ``users`` and ``items``: original ids by internal id.
        vectors: the teacher's vectors of users and items, if new ones start at their neighbours.

    Returns:
        Each side's counts.

    Raises:
        UserError: another architecture or other sizes, or no item is known.
    """
    state = load_checkpoint(path, schema=ModelState)
    check_backbone(path, state, backbone)
    sides = {name: Side.of(tokens[name], state[f"{name[:-1]}_tokens"], vectors.get(name)) for name in tokens}
    if not _known_in(sides["items"].there):
        raise UserError(
            f"--warm_start='{path}' knows none of the {len(tokens['items']) - 1:,} items of this data; give a file "
            "that was trained on data of the same ids."
        )
    tables = [table.data_ptr() for table in item_tables(model) or []]
    same = all(list(tokens[name]) == state[f"{name[:-1]}_tokens"] for name in tokens)
    counts = [] if same else [len(state[f"{name[:-1]}_tokens"]) for name in tokens]
    sizes = {*counts, sum(counts)} if counts else set()
    begun = {}
    for name, own in model.state_dict().items():
        stored = state["state_dict"].get(name)
        side = _side_of(name, own.data_ptr() in tables)
        unknown = () if stored is None else stored.shape
        if stored is not None and side is not None and stored.dim():
            count = len(state[f"{side[:-1]}_tokens"])
            if len(stored) >= count and len(own) >= len(tokens[side]):
                stored, unknown = sides[side].rows(stored), stored.shape[1:]
        if sizes.intersection(unknown):
            raise UserError(
                f"--warm_start: it is unknown whether '{name}' of {backbone} is ordered by users, items or neither; "
                "leave it out, or set --model to another student, such as BPR or SASRec."
            )
        if stored is None or stored.shape != own.shape:
            found = "nothing" if stored is None else f"{tuple(stored.shape)}"
            raise UserError(
                f"--warm_start='{path}' has {found} for '{name}', but the student {tuple(own.shape)}; set the sizes "
                "that the file was trained with, such as --embedding_size."
            )
        begun[name] = stored
    model.load_state_dict(begun)
    return sides


def check_backbone(path: str, state: Mapping[str, Any], backbone: str) -> None:
    """
    Raises:
        UserError: the checkpoint in `path` is of another architecture.
    """
    if state["backbone"] != backbone:
        raise UserError(
            f"--warm_start='{path}' holds a {state['backbone']}, but the student is a {backbone}; set --model to "
            f"{state['backbone']}, or give another file."
        )


def _side_of(name: str, is_item_table: bool) -> str | None:
    """Whether a weight's rows are users or items, by its name; None if neither."""
    if is_item_table or "item" in name or name == "output_bias":
        return "items"
    return "users" if "user" in name else None


def teacher_vectors(teacher: Any) -> dict[str, Tensor]:
    """The teacher's vectors of users and items.

    Raises:
        UserError: it has none.
    """
    offered = frozenset() if teacher is None else teacher.capabilities
    if offered and (teacher.known_users is not None or teacher.known_items is not None):
        raise UserError(
            f"--warm_start_new=teacher needs vectors of all users and items, but {teacher.name} lacks some; "
            "set --warm_start_new=mean, or give a file with all."
        )
    if "representations" in offered:
        return {"users": teacher.user_embeddings(), "items": teacher.item_embeddings()}
    if not offered.isdisjoint({"sequence_vectors", "item_representations"}):
        return {"items": teacher.item_embeddings()}
    raise UserError(
        "--warm_start_new=teacher needs a teacher's vectors of users and items, but "
        f"{'there is no teacher' if teacher is None else f'{teacher.name} has none'}; set --warm_start_new=mean."
    )
