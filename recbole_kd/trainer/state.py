"""What a model keeps beside its weights as tensors and plain values, and weights put back into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch

from recbole_kd.errors import UserError

__all__ = ["load_weights", "restored", "storable"]


def storable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a model keeps beside its weights (numpy arrays, sparse matrices) as tensors and plain values."""
    stored: dict[str, Any] = {}
    for key, value in parameters.items():
        if key.startswith("restore_"):  # only a cache of the weights, which evaluation fills again
            stored[key] = None
        elif scipy.sparse.issparse(value):
            matrix = value.tocsr()
            parts = {part: torch.from_numpy(getattr(matrix, part)) for part in ("data", "indices", "indptr")}
            stored[key] = {"kind": "sparse", "shape": list(matrix.shape), **parts}
        elif isinstance(value, np.ndarray):
            stored[key] = {"kind": "array", "value": torch.from_numpy(np.ascontiguousarray(value))}
        else:
            stored[key] = value
    return stored


def restored(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`storable`."""
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) and value.get("kind") == "sparse":
            parts = tuple(value[part].cpu().numpy() for part in ("data", "indices", "indptr"))
            values[key] = scipy.sparse.csr_matrix(parts, shape=tuple(value["shape"]))
        elif isinstance(value, Mapping) and value.get("kind") == "array":
            values[key] = value["value"].cpu().numpy()
        else:
            values[key] = value
    return values


def load_weights(model: Any, state: dict[str, Any], path: str) -> None:
    """Puts what a checkpoint holds, `state`, into a model that was built on its dataset.

    Raises:
        UserError: the weights do not fit.
    """
    try:
        model.load_state_dict(state["state_dict"])
        model.load_other_parameter(restored(state.get("other_parameter") or {}))
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The weights in '{path}' do not fit {type(model).__name__} on this dataset: "
            f"{' '.join(str(error).split())[:200]}; give a checkpoint of the same architecture, size and dataset."
        ) from None
