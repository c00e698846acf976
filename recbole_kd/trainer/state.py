"""What a run's state is beside weights: random generators, and what a model keeps outside its parameters."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch

from recbole_kd.errors import UserError

__all__ = ["load_optimizer", "load_weights", "random_state", "restore_random_state", "restored", "storable"]


def random_state() -> dict[str, Any]:
    """The states of the global random generators (python, numpy, torch, CUDA where there is one), as tensors and
    plain values for a checkpoint."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the global random generators to what :func:`random_state` gave; CUDA's as far as devices are there.

    Raises:
        UserError: `state` is not of that form.
    """
    try:
        python, numpy = state["python"], state["numpy"]
        keys = numpy["keys"].cpu().numpy().astype(np.uint32)
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
        np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        torch.set_rng_state(state["torch"].cpu())
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator.cpu(), index)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"The checkpoint's random states cannot be restored ({error}); resume from another checkpoint."
        ) from None


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
    """The inverse of :func:`storable`.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: they are not what it gives.
    """
    values: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) and value.get("kind") == "sparse":
            parts = tuple(value[part].cpu().numpy() for part in ("data", "indices", "indptr"))
            matrix = scipy.sparse.csr_matrix(parts, shape=tuple(value["shape"]))
            matrix.check_format(full_check=True)  # sparse products read what the columns say unchecked
            values[key] = matrix
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
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"The weights in '{path}' do not fit {type(model).__name__} on this dataset: "
            f"{' '.join(str(error).split())[:200]}; give a checkpoint of the same architecture, size and dataset."
        ) from None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts the state of an optimiser of the same parameters and settings into one; torch looks at its sizes alone.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: it is not of such an optimiser.
    """
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, expected in zip(optimizer.param_groups, own):
        for name, value in expected.items():
            other_kind = isinstance(value, bool) and name not in ("fused", "foreach") and group[name] is not value
            if name != "params" and (other_kind or not _alike(group[name], value)):
                raise ValueError(f"the optimiser's {name} is {group[name]!r:.50}")
    slots = {
        tuple(sorted((name, type(value).__name__) for name, value in kept.items())) for kept in optimizer.state.values()
    }
    if len(slots) > 1:
        raise ValueError("parts of the optimiser's state are missing")
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if value is not None and not (value.numel() == 1 or value.shape == parameter.shape):
                raise ValueError(f"the optimiser's {name} has another shape than its parameter")


def _alike(value: Any, other: Any) -> bool:
    """Whether two settings of an optimiser are of one kind."""
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)) and len(value) == len(other):
        return all(map(_alike, value, other))
    numbers = all(type(one) in (int, float) for one in (value, other))
    return numbers or type(value) is type(other)
