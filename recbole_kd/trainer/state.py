"""A run's state apart from weights: random generators, and values that a model keeps outside its parameters."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from recbole.utils import training_arguments
from torch import Tensor, nn

from recbole_kd.errors import UserError
from recbole_kd.experiment.checks import WEIGHT_FILES
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.experiment.values import at, leaves
from recbole_kd.files.digest import digest
from recbole_kd.files.plain import plain
from recbole_kd.text import one_line

__all__ = [
    "Attributes",
    "check_run",
    "load_optimizer",
    "load_weights",
    "random_state",
    "restore_random_state",
    "restored",
    "storable",
]


def random_state() -> dict[str, Any]:
    """The states of the global random generators (python, numpy, torch, CUDA if there is one), for a checkpoint.

    They are tensors and plain values.
    """
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


def restore_random_state(
    state: Mapping[str, Any], loader: torch.Generator | None = None, of_loader: Tensor | None = None
) -> None:
    """Sets the global random generators to the result of :func:`random_state`; CUDA's only for existing devices.

    Args:
        state: that result.
        loader, of_loader: a loader's own generator, and its state if it has one.

    Raises:
        UserError: a state does not have that form.
    """
    try:
        python, numpy = state["python"], state["numpy"]
        keys = numpy["keys"].cpu().numpy().astype(np.uint32)
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
        np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        torch.set_rng_state(state["torch"].cpu())
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator.cpu(), index)
        if loader is not None and of_loader is not None:
            loader.set_state(of_loader.cpu())
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"The checkpoint's random states cannot be restored ({error}); resume from another checkpoint."
        ) from None


class Unstorable(Exception):
    """A value that our checkpoints cannot hold."""


def storable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A model's values apart from its weights (numpy arrays, sparse matrices), as tensors and plain values."""
    # A name that begins with "restore_" is a cache computed from the weights; evaluation computes it again.
    return {key: None if key.startswith("restore_") else _stored(value) for key, value in parameters.items()}


def _stored(value: Any) -> Any:
    if scipy.sparse.issparse(value):
        matrix = value.tocsr()
        parts = {part: torch.from_numpy(getattr(matrix, part)) for part in ("data", "indices", "indptr")}
        return {"kind": "sparse", "shape": list(matrix.shape), "layout": value.format, **parts}
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return {"kind": "array", "value": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Tensor) and value.layout == torch.sparse_coo:
        joined = value.coalesce()
        parts = {"indices": joined.indices(), "values": joined.values()}
        return {"kind": "sparse_tensor", "shape": list(value.shape), **parts}
    return value


def restored(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`storable`.

    Raises:
        KeyError, TypeError, AttributeError, ValueError, RuntimeError: not a result of that function.
    """
    return {key: _read(value) for key, value in parameters.items()}


def _read(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind == "sparse":
        parts = tuple(value[part].cpu().numpy() for part in ("data", "indices", "indptr"))
        matrix = scipy.sparse.csr_matrix(parts, shape=tuple(value["shape"]))
        matrix.check_format(full_check=True)  # sparse products do not check column indices
        return matrix.asformat(value.get("layout", "csr"))
    if kind == "sparse_tensor":
        parts = value["indices"], value["values"]
        return torch.sparse_coo_tensor(*parts, tuple(value["shape"]), check_invariants=True).coalesce()
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{value!r:.30} is above 64 bits")
    return value["value"].cpu().numpy() if kind == "array" else value


class Attributes:
    """Values in attributes of a model and its parts, apart from weights: counters, histories, lists, matrices.

    It is made from a new model and later says which attributes have changed; a resumed run must restore these.

    Args:
        model: the model, just built.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._fresh = {path: _mark(value) for path, value in _attributes(model)}

    def changed(self) -> tuple[dict[str, Any], list[str]]:
        """Path ("encoder.count") -> value, where it differs from the new model; and paths that cannot be stored."""
        kept: dict[str, Any] = {}
        lost: list[str] = []
        for path, value in _attributes(self._model):
            if path in self._fresh and _same(self._fresh[path], _mark(value)):
                continue
            try:
                stored = _whole(value, _stored)
                digest(stored)
                plain(stored, path)
                kept[path] = stored
            except (Unstorable, TypeError, UserError):
                lost.append(path)
        return kept, lost

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Puts the result of :meth:`changed` into a new model.

        Raises:
            KeyError, TypeError, AttributeError, ValueError, RuntimeError: it does not belong to such a model.
        """
        modules, own = dict(self._model.named_modules()), dict(_attributes(self._model))
        for path, value in kept.items():
            place, _, name = path.rpartition(".")
            found = _whole(value, _read)
            named_well = name.isidentifier() and name not in _OF_MODULES and not hasattr(type(modules[place]), name)
            before = own.get(path)
            # None or a number may have become a tensor (RaCT), but a tensor must stay a tensor.
            if not named_well or not (before is None or type(before) in (int, float) or _kind(before) == _kind(found)):
                raise ValueError(f"{path} is not a {type(found).__name__}")
            setattr(modules[place], name, found)


#: Attributes of every torch module.
_OF_MODULES = frozenset(vars(nn.Module()))


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every attribute that is not in `state_dict` or `other_parameter`, with its path; no cache of the weights."""
    elsewhere = set(getattr(model, "other_parameter_name", ()))
    for place, module in model.named_modules():
        hidden = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        for name, value in {**vars(module), **hidden}.items():
            # A tensor with an autograd history belongs to a step; the next step computes it again.
            of_a_step = isinstance(value, Tensor) and value.grad_fn is not None
            again = of_a_step or name.startswith("restore_")  # as in `storable`
            if not (name in _OF_MODULES or again or (not place and name in elsewhere)):
                yield f"{place}.{name}".lstrip("."), value


def _whole(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """`value` with each part of its lists, tuples and dicts replaced."""
    if type(value) in (list, tuple):
        return type(value)(_whole(part, leaf) for part in value)
    if type(value) is dict and "kind" not in value:
        return {key: _whole(part, leaf) for key, part in value.items()}
    if leaf is _stored and isinstance(value, (dict, nn.Parameter)):
        raise Unstorable
    return leaf(value)


def _mark(value: Any) -> tuple[str, Any]:
    """A mark that distinguishes a value from a later one: its content, or its identity."""
    try:
        return "content", digest(_whole(value, _stored))
    except (TypeError, RuntimeError, Unstorable):
        return "object", value


def _same(mark: tuple[str, Any], other: tuple[str, Any]) -> bool:
    return mark[0] == other[0] and (mark[1] is other[1] or (mark[0] == "content" and mark[1] == other[1]))


def _kind(value: Any) -> tuple[Any, ...]:
    """The properties that an attribute keeps in training: its type, and for an array the element type and shape."""
    return type(value), getattr(value, "dtype", None), tuple(getattr(value, "shape", ()))


def load_weights(model: Any, state: dict[str, Any], path: str) -> None:
    """Puts a checkpoint's content, `state`, into a model that was built on its dataset.

    Raises:
        UserError: the weights do not fit.
    """
    try:
        model.load_state_dict(state["state_dict"])
        model.load_other_parameter(restored(state.get("other_parameter") or {}))
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"The weights in '{path}' do not fit {type(model).__name__} on this dataset: "
            f"{one_line(error, 200)}; give a checkpoint of the same architecture, size and dataset."
        ) from None


def check_model(path: Any, state: Mapping[str, Any], model: str) -> None:
    """
    Raises:
        UserError: the checkpoint in `path` is of another model, so it cannot be resumed.
    """
    if state["model"] != model:
        raise UserError(
            f"'{path}' is a checkpoint of {state['model']}, but --model={model}; resume it with its own model."
        )


def check_run(path: Any, state: Mapping[str, Any], config: KDConfig, facts: Mapping[str, Any]) -> None:
    """Compares the run in a checkpoint with this one, which is to continue it.

    Args:
        path, state: the file and its content.
        config: this run's settings.
        facts: what this run's checkpoints say of it, as far as it is known.

    Raises:
        UserError: another split, teacher or way of learning.
    """
    _check_split(path, state, facts)
    check_teacher(path, state, facts)
    _check_learning(path, state, config, facts.get("config", config.plain_values()))


def _check_split(path: Any, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the checkpoint in `path` was trained on other data, or on another split, than `facts` says.
    """
    for key in ("split", "user_tokens", "item_tokens"):
        if key in state and key in facts and state[key] != facts[key]:
            raise UserError(
                f"'{path}' was trained on another split of the data, so this run's test items may be among its "
                "training items; resume it with the data and the settings that it was written with, such as --seed."
            )


def check_teacher(path: Any, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Warns if the run's teacher has other content than at first, as one that was trained again elsewhere.

    Raises:
        UserError: the checkpoint in `path` is of a run with another teacher than `facts` says.
    """
    same = state.get("teacher_digest") == facts.get("teacher_digest")
    if same or "teacher" not in state or "teacher" not in facts:
        return
    if state["teacher"] != facts["teacher"]:
        raise UserError(
            f"'{path}' is of a run whose teacher is {state['teacher']}, and now it is {facts['teacher']}; resume it "
            "with its own teacher."
        )
    if "teacher_digest" in state:  # a file of an older version has only the name
        logging.getLogger().warning(
            f"The teacher {facts['teacher']} is not the one of '{path}': its weights or its content differ. The run "
            "goes on, but does not end as it would have."
        )


#: Settings that a resumed run may change: how long it goes on, how often it is evaluated, where its teacher comes from
#: (which may be a file now; `check_teacher` compares what it is), what it is compared with.
_FREE = {"epochs", "eval_step", "stopping_step", "loss_decimal_place", "teacher", "baseline"}
#: Our own settings that change what a step learns.
_OF_STEPS = {"learning_rate_schedule", "sevo", "distill", "matryoshka", "precision"}
#: Settings of the score that chooses the epoch; scores of two kinds cannot be compared.
_OF_SCORES = {"valid_metric", "metric_decimal_place", "eval_args", "repeatable"}


def _check_learning(path: Any, state: Mapping[str, Any], config: KDConfig, now: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the run in `path` learned, or chose its epoch, with other settings than `now` says, so it would not
            go on as it began.
    """
    keys = {*training_arguments, *config.model_keys(), *config.distillers, *_OF_STEPS, *_OF_SCORES}
    both = state.get("config", {}), now
    kept, now = ({key: values[key] for key in keys - _FREE - {*WEIGHT_FILES} if key in values} for values in both)
    for name in sorted({*leaves(kept)} & {*leaves(now)}):
        if at(kept, name) != at(now, name):
            raise UserError(
                f"'{path}' was trained with --{name}={at(kept, name)}, and now it is {at(now, name)}; resume it with "
                "the settings that it was written with."
            )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state and checks that parameters and settings fit; torch checks only sizes.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: it does not belong to such an optimiser.
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
    """Whether two settings of an optimiser have the same kind."""
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)) and len(value) == len(other):
        return all(map(_alike, value, other))
    numbers = all(type(one) in (int, float) for one in (value, other))
    return numbers or type(value) is type(other)
