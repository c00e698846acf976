"""A model's own computation as an ONNX graph, in rows of a bundle: ids from 0, without padding."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from recbole_kd.compat import require
from recbole_kd.contracts import Sequences
from recbole_kd.errors import UserError
from recbole_kd.student.readers import pair_scores, sequence_vectors

__all__ = ["Unexportable", "encoder_graph", "pair_graph", "require_onnx"]


class Unexportable(Exception):
    """Why torch cannot make a graph of a model, in a line."""


def require_onnx() -> None:
    """Checks for the packages that write and run graphs.

    Raises:
        UserError: one is missing; the message says what to install.
    """
    require("torch", "2.5")
    for name in ("onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"This model is exported as an ONNX graph, but {name} is not installed; run: "
                "pip install onnxscript onnxruntime (the extra 'onnx')."
            ) from None


class _Given(nn.Module):
    """Replaces a model's item table by the rows of a history, which are an input.

    Ids are positions in the history, from 1. Padding and rows that a model adds after the items (BERT4Rec's mask) stay.
    """

    padding: Tensor
    added: Tensor
    rows: Tensor | None = None

    def __init__(self, table: nn.Embedding, ids: int) -> None:
        super().__init__()
        self.ids = ids
        self.register_buffer("padding", table.weight[:1].detach().clone())
        self.register_buffer("added", table.weight[ids:].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        assert self.rows is not None
        count, length, size = self.rows.shape
        first, last = (part.unsqueeze(0).expand(count, -1, -1) for part in (self.padding, self.added))
        known = torch.cat([first, self.rows, last], dim=1)
        places = torch.where(ids < self.ids, ids, ids - self.ids + length + 1)
        return known.gather(1, places.unsqueeze(2).expand(-1, -1, size))


class _Encoder(nn.Module):
    """History (n, L), item rows, oldest first, -1 where there is none, and perhaps their vectors -> vectors (n, d)."""

    def __init__(self, model: Any, size: int, factor: float) -> None:
        super().__init__()
        self.model, self.size, self.factor = model, size, factor

    def forward(self, history: Tensor, items: Tensor | None = None) -> Tensor:
        there = history >= 0
        ids = history + 1
        if items is not None:
            ids = (1 + torch.arange(history.shape[1], device=history.device)) * there
            self.model.item_embedding.rows = items
        outputs = sequence_vectors(self.model, Sequences(ids, there.sum(dim=1)))
        if items is not None:
            self.model.item_embedding.rows = None
        return outputs[:, : self.size] * self.factor


class _Pairs(nn.Module):
    """User rows (n,), item rows (n,) -> scores (n,)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return pair_scores(self.model, users + 1, items + 1)


def encoder_graph(model: Any, length: int, size: int, factor: float, device: Any, given: bool = False) -> bytes:
    """The graph `history` (n, `length`) -> `vectors` (n, `size`), the model's first numbers times a factor.

    Args:
        given: whether the vectors of the history are an input too, `items` (n, `length`, d): the graph then holds no
            table of items.

    Raises:
        Unexportable: torch cannot trace the model.
    """
    history = torch.full((2, length), -1, device=device)
    history[:, 0] = 0
    encoder = _Encoder(model, size, factor)
    if not given:
        return _graph(encoder, {"history": history}, "vectors")
    table = model.item_embedding
    model.item_embedding = _Given(table, model.n_items)
    try:
        vectors = torch.zeros(2, length, table.embedding_dim, device=device)
        return _graph(encoder, {"history": history, "items": vectors}, "vectors")
    finally:
        model.item_embedding = table


def pair_graph(model: Any, device: Any) -> bytes:
    """The graph `users` (n,), `items` (n,) -> `scores` (n,).

    Raises:
        Unexportable: torch cannot trace the model.
    """
    rows = torch.zeros(2, dtype=torch.long, device=device)
    return _graph(_Pairs(model), {"users": rows, "items": rows.clone()}, "scores")


def _graph(module: nn.Module, given: dict[str, Tensor], output: str) -> bytes:
    rows = torch.export.Dim("n")
    talk = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(given.values()),
                input_names=list(given),
                output_names=[output],
                dynamic_shapes={name: {0: rows} for name in given},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            content: bytes = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    except Exception as error:
        # The tracer can raise many types of errors.
        reason = next((line for line in reversed(str(error).splitlines()) if "Error'>: " in line), str(error))
        raise Unexportable(" ".join(reason.split())[:200]) from None
    finally:
        logging.disable(disabled)
    return content
