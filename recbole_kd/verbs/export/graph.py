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
    """Refuses to go on without the packages that write and run graphs.

    Raises:
        UserError: it says what to install.
    """
    require("torch", "2.5")
    for name in ("onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"This model is exported as an ONNX graph, and {name} is not installed: "
                "pip install onnxscript onnxruntime (the extra 'onnx')."
            ) from None


class _Encoder(nn.Module):
    """History (n, L), item rows, oldest first, -1 where there is none -> vectors (n, d)."""

    def __init__(self, model: Any, size: int, factor: float) -> None:
        super().__init__()
        self.model, self.size, self.factor = model, size, factor

    def forward(self, history: Tensor) -> Tensor:
        lengths = (history >= 0).sum(dim=1)
        return sequence_vectors(self.model, Sequences(history + 1, lengths))[:, : self.size] * self.factor


class _Pairs(nn.Module):
    """User rows (n,), item rows (n,) -> scores (n,)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return pair_scores(self.model, users + 1, items + 1)


def encoder_graph(model: Any, length: int, size: int, factor: float, device: Any) -> bytes:
    """The graph `history` (n, `length`) -> `vectors` (n, `size`), the model's first numbers times a factor.

    Raises:
        Unexportable: torch cannot trace the model.
    """
    history = torch.full((2, length), -1, device=device)
    history[:, 0] = 0
    return _graph(_Encoder(model, size, factor), {"history": history}, "vectors")


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
        # What the tracer raises is of as many types as there are operations.
        reason = next((line for line in reversed(str(error).splitlines()) if "Error'>: " in line), str(error))
        raise Unexportable(" ".join(reason.split())[:200]) from None
    finally:
        logging.disable(disabled)
    return content
