"""Weights & Biases and MLflow (``--log_wandb``, ``--log_mlflow``): each model is one run, and all are in one group.

The installed package is imported only if the user asks for it. Names are those that RecBole uses for Weights & Biases:
``train/train_loss``, ``valid/recall@10``, ``eval/recall@10``. Each named loss is added, such as ``train/rec``.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from torch import nn

from recbole_kd.compat import require
from recbole_kd.errors import UserError
from recbole_kd.evaluation.costs import stored_numbers
from recbole_kd.text import one_line

__all__ = ["GROUP", "KINDS", "Tracker", "Trackers", "check_trackers"]

#: Environment variable of wandb that names the group; it is used for MLflow too.
GROUP = "WANDB_RUN_GROUP"
#: The first wandb that checks a key's form at once; earlier versions wait minutes for the server.
_OLDEST_WANDB = "0.30"
_OFFLINE = "or set the environment variable WANDB_MODE=offline to keep the runs in the folder wandb"


class Tracker(Protocol):
    """A run of a model in another program."""

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Figures of an epoch."""

    def finish(self, summary: Mapping[str, float], failed: bool = False) -> None:
        """Figures of the whole training, and the end of the run."""


def check_trackers(config: Any) -> None:
    """Checks the requested trackers before training, as far as possible.

    Raises:
        UserError: one is not installed or too old, or the user is not logged in.
    """
    if config["log_mlflow"] and find_spec("mlflow") is None:
        raise UserError(
            "--log_mlflow=true: mlflow is not installed; run: pip install mlflow, or leave --log_mlflow out."
        )
    if not config["log_wandb"]:
        return
    try:
        require("wandb", _OLDEST_WANDB)
    except UserError as error:
        raise UserError(f"--log_wandb=true: {error}, or leave --log_wandb out.") from None
    import wandb

    try:
        if wandb.setup().settings.mode not in ("online", "shared", None):
            return  # offline or disabled
        known = wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:  # a ValueError is about one of wandb's environment variables
        raise UserError(f"--log_wandb=true: {one_line(error, 200)}; run: wandb login, {_OFFLINE}.") from None
    if not known:
        raise UserError(f"--log_wandb=true needs a key, but there is none; run: wandb login, {_OFFLINE}.")


class Trackers:
    """The trackers' runs of a model's training; empty if none are requested."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    @classmethod
    def begin(cls, config: Any, group: str, role: str) -> Trackers:
        """Starts the runs that a model's settings request.

        Args:
            config: the model's settings.
            group: the name that teacher, student and baseline of a run share.
            role: such as "student".

        Raises:
            UserError: a server does not answer.
        """
        group = os.environ.get(GROUP) or group
        return cls(*(kind(config, group, role) for setting, kind in KINDS.items() if config[setting]))

    def log(self, head: str, values: Mapping[str, float], epoch: int) -> None:
        """Figures of an epoch, named ``head/name``."""
        for tracker in self._trackers:
            tracker.log({f"{head}/{name}": float(value) for name, value in values.items()}, epoch)

    def finish(
        self,
        model: nn.Module,
        state: Mapping[str, Any],
        test_result: Mapping[str, float],
        failed: bool = False,
        **costs: float,
    ) -> None:
        """Ends the runs with the training's results and costs; a second call does nothing.

        Args:
            model: the trained model.
            state: its history, in the form of a checkpoint.
            test_result: metrics on the test split.
            failed: whether the training ended with an error.
            **costs: other figures by name.
        """
        for tracker in self._trackers:
            score = {"best_valid_score": float(state["best_valid_score"])} if state["valid_history"] else {}
            told = {f"eval/{name}": float(value) for name, value in test_result.items()}
            told.update(score, best_epoch=state["best_epoch"], parameters=stored_numbers(model))
            told.update(train_seconds=float(sum(state["epoch_seconds"])), **costs)
            tracker.finish(told, failed)
        self._trackers = ()


class _Wandb:
    """A run of Weights & Biases, separate from any run that the user has started."""

    def __init__(self, config: Any, group: str, role: str) -> None:
        import wandb

        try:
            self._run: Any = wandb.init(
                project=config["wandb_project"],
                group=group,
                job_type=role,
                name=f"{config['model']} {role}",
                config=config.plain_values(),
                reinit="create_new",
                settings={"silent": True} if config["quiet"] else None,
            )
        except wandb.Error as error:
            raise UserError(
                f"--log_wandb=true: wandb cannot start a run ({one_line(error, 120)}); solve this, {_OFFLINE}."
            ) from None

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(values), step=epoch)

    def finish(self, summary: Mapping[str, float], failed: bool = False) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    """A run of MLflow, made through a client, so the user's active run does not change.

    The client waits for its server. If the server fails during training, this is logged once and training goes on.
    """

    def __init__(self, config: Any, group: str, role: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        name = config["mlflow_experiment"]
        tags = {"group": group, "role": role}
        try:
            self._client: Any = MlflowClient()
            place = self._experiment(name)
            self._run = self._client.create_run(place, run_name=f"{config['model']} {role}", tags=tags).info.run_id
        except MlflowException as error:
            raise UserError(
                f"--log_mlflow=true: MLflow cannot start a run ({one_line(_without_password(error), 120)}); set the "
                "environment variable MLFLOW_TRACKING_URI to a server or to sqlite:///FILE."
            ) from None
        settings = list(_flat(config.plain_values()))
        for first in range(0, len(settings), 100):  # MLflow accepts at most 100 at once
            self._write(params=settings[first : first + 100])

    def _experiment(self, name: str) -> Any:
        """The experiment of that name, made if there is none; another run may make it at the same time."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._write(metrics=values, epoch=epoch)

    def finish(self, summary: Mapping[str, float], failed: bool = False) -> None:
        self._write(metrics=summary)
        self._call("set_terminated", "FAILED" if failed else "FINISHED")

    def _write(self, metrics: Mapping[str, float] | None = None, params: Any = (), epoch: int = 0) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self._call(
            "log_batch",
            metrics=[Metric(_name(key), float(value), now, epoch) for key, value in (metrics or {}).items()],
            params=[Param(_name(key), str(value)[:500]) for key, value in params],
        )

    def _call(self, method: str, *arguments: Any, **named: Any) -> None:
        """A call of the client for this run; after a failure nothing is called any more."""
        if self._client is None:
            return
        try:
            getattr(self._client, method)(self._run, *arguments, **named)
        except Exception as error:
            text = _without_password(error)
            logging.getLogger().warning(f"MLflow failed; the rest of this training is not logged there: {text}")
            self._client = None


def _without_password(message: object) -> str:
    """A message without the names and passwords in its addresses.

    >>> _without_password("http://bob:s3cret@host/api failed")
    'http://host/api failed'
    """
    return re.sub(r"//[^/@\s]*@", "//", str(message))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(key: str) -> str:
    """A name that MLflow accepts.

    >>> _name("valid/recall@10")
    'valid/recall_at_10'
    """
    return re.sub(r"[^\w\-. /]", "_", key.replace("@", "_at_"))


#: Setting -> the tracker that it requests.
KINDS: dict[str, Callable[[Any, str, str], Tracker]] = {"log_wandb": _Wandb, "log_mlflow": _Mlflow}
