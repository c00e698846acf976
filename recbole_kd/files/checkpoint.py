"""Checkpoint files: tensors and plain values, written completely or not at all.

Our files also load with ``torch.load(weights_only=True)``. Here :mod:`recbole_kd.files.pickles` reads them, and
explains why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, TypedDict

import torch
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import PathLike, write_atomic
from recbole_kd.files.pickles import Archive, Malformed, Refused, shown
from recbole_kd.files.plain import plain
from recbole_kd.files.reading import open_regular
from recbole_kd.files.schema import Unbounded, check

#: `state["format"]` of our checkpoints; the number grows when older readers would misread a file.
FORMAT = "recbole-kd/1"


class _Named(TypedDict):
    model: str
    backbone: str
    dataset: str
    config: dict[str, Any]
    user_tokens: list[str]
    item_tokens: list[str]
    split: str
    state_dict: dict[str, Tensor]


class _Told(TypedDict, total=False):
    other_parameter: Optional[dict[str, Any]]
    data_settings: list[str]
    best_epoch: int
    best_valid_score: float
    best_valid_result: Optional[dict[str, float]]
    epoch_seconds: Optional[list[float]]
    loss_history: dict[int, dict[str, float]]
    valid_history: list[dict[str, float]]
    final: bool
    teacher: str
    teacher_digest: str


class ModelState(_Named, _Told, total=False):
    """A checkpoint of a model, with optional facts about its training."""

    test_result: dict[str, float]
    epoch: int


class KeptState(_Named, _Told):
    """A teacher or baseline in the cache."""

    key: str
    evaluated: str
    test_result: dict[str, float]


class _Resumable(TypedDict, total=False):
    """Fields that a checkpoint of version 0.1 lacks."""

    attributes: dict[str, Any]
    unsaved: list[str]
    optimizers: dict[str, dict[str, Any]]
    current_optimizer: str
    fast_sampling: bool


class ResumableState(_Named, _Resumable):
    """A checkpoint from which training can resume."""

    epoch: int
    cur_step: int
    best_epoch: int
    best_valid_score: float
    best_valid_result: Optional[dict[str, float]]
    other_parameter: dict[str, Any]
    optimizer: dict[str, Any]
    distillers: dict[str, Tensor]
    random: dict[str, Any]
    loader: Optional[Tensor]
    loss_history: dict[int, dict[str, float]]
    valid_history: list[dict[str, float]]
    epoch_seconds: list[float]
    saved_model_file: str


class _RecBoleState(TypedDict):
    config: dict[str, Any]
    state_dict: dict[str, Tensor]


def save_checkpoint(state: Mapping[str, Any], path: PathLike) -> None:
    """Writes `state` and its ``format`` atomically, loadable with ``torch.load(weights_only=True)``.

    Parameters are written as tensors without gradient, numpy's scalars and arrays as plain numbers and tensors,
    subclasses of dict and tuple (OrderedDict, torch.Size) as dict and tuple, a torch.device as its name.

    Args:
        state: tensors and plain values (None, bool, int, float, str; list, tuple, and dict with str or int keys).
        path: the file.

    Raises:
        UserError: a value of another type, named by its path of keys; or as :func:`write_atomic`.
    """
    whole = {**plain(state, "state"), "format": FORMAT}
    write_atomic(path, lambda file: torch.save(whole, file))


def load_checkpoint(path: PathLike, device: torch.device | str = "cpu", schema: Any = dict[str, Any]) -> dict[str, Any]:
    """The state that :func:`save_checkpoint` wrote, its ``format`` included, with tensors on `device`.

    Args:
        path: the file.
        device: where the tensors go.
        schema: the required fields, such as :class:`ModelState`.

    Raises:
        UserError: no such file, not our checkpoint, incomplete, another format version, or it does not fit the schema.
    """
    kind, state = _read(path, device)
    if kind != "recbole-kd":
        raise UserError(f"'{path}' is a checkpoint of RecBole itself; expected one of recbole-kd.")
    check(state, schema, f"'{path}'")
    return state


def load_any(path: PathLike, device: torch.device | str = "cpu") -> tuple[str, dict[str, Any]]:
    """("recbole-kd", a :class:`ModelState`), or ("recbole", the state of a file that RecBole's Trainer wrote).

    Nothing in the file is executed. In RecBole's files ``config`` is the dict of the final settings, with enums as
    names (``MODEL_TYPE`` is "GENERAL") and the device as a string. ``other_parameter`` is the argument of the model's
    ``load_other_parameter``: tensors, numpy arrays and scipy's csr, csc and lil matrices.

    Raises:
        UserError: no such file, not a checkpoint of either, incomplete, a class or function in it that no checkpoint
            needs, or a missing field.
    """
    kind, state = _read(path, device)
    check(state, ModelState if kind == "recbole-kd" else _RecBoleState, f"'{path}'", "give the file of an earlier run")
    return kind, state


def _read(path: PathLike, device: torch.device | str) -> tuple[str, dict[str, Any]]:
    try:
        with open_regular(path) as file:
            archive = Archive(file, torch.device(device))
            tree = archive.tree()
            version = tree.get("format") if isinstance(tree, dict) else None
            if version == FORMAT:
                return "recbole-kd", archive.value(tree)
            if (state := archive.recbole(tree)) is not None:
                return "recbole", state
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint '{path}'; give the file of an earlier run.") from None
    except OSError as error:
        raise UserError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from None
    except Refused as error:
        raise UserError(
            f"'{path}' names {shown(str(error))}, which no checkpoint needs; nothing in it was executed; give a file "
            "that RecBole or recbole-kd wrote."
        ) from None
    except (Malformed, Unbounded) as error:
        raise UserError(f"'{path}' is not a whole checkpoint: {error}; give another file.") from None
    except Exception:  # a manipulated file can make the parsers fail with any error
        raise UserError(f"'{path}' is not a whole checkpoint: it is truncated or damaged; give another file.") from None
    if isinstance(version, str) and version.startswith(FORMAT.split("/")[0]):
        raise UserError(f"'{path}' has the format {shown(version)}; this version of recbole-kd reads '{FORMAT}'.")
    raise UserError(f"'{path}' is a checkpoint of neither recbole-kd nor RecBole; give another file.")
