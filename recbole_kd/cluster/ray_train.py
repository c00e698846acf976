"""The processes of one run on a Ray cluster (``--ray_address=HOST:PORT --nproc=8``), which Ray Train starts.

They work like processes of ``torchrun`` (:mod:`recbole_kd.cluster.group`): Ray Train sets the same variables and joins
the same group of torch.distributed. If one ends, it restarts all of them.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from recbole_kd.cluster.group import PATIENCE, joined
from recbole_kd.cluster.launch import RESTARTS, attempted, raise_told
from recbole_kd.cluster.ray import ray_session
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.text import one_line

__all__ = ["together_on_cluster"]


class _Board:
    """An actor on the cluster that stores messages of a run's processes: errors, and the first one's result."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}
        self.told: list[tuple[str, Any]] = []

    def begin(self, rank: int) -> int | None:
        """Number of earlier starts of this process; None if there was an error, so that it should not run again."""
        self.begun[rank] = self.begun.get(rank, -1) + 1
        return None if self.told else self.begun[rank]

    def tell(self, kind: str, value: Any) -> None:
        """Stores an error's kind and text, or a result."""
        self.told.append((kind, value))

    def read(self) -> list[tuple[str, Any]]:
        """All stored messages."""
        return self.told


def together_on_cluster(
    address: str, processes: int, folder: str, stamp: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Runs ``function(*arguments, group)`` in several processes of a Ray cluster; the first one's result.

    It is :func:`recbole_kd.cluster.launch.together` for a cluster. A process computes on one core.

    Args:
        address: the cluster's address.
        processes: number of processes.
        folder: a folder that all machines share; Ray Train keeps a file there during the run.
        stamp: name for the run's files.
        function: can be imported by its name on every machine; its arguments can be pickled.

    Raises:
        UserError, TrainingError: raised by the function; fewer cores than processes; a process kept ending.
        RuntimeError: any other error, with its traceback.
    """
    os.makedirs(folder, exist_ok=True)
    with ray_session(address, shown=True), tempfile.TemporaryDirectory(prefix="ray-train-", dir=folder) as place:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < processes:
            raise UserError(f"--nproc={processes}: the cluster at --ray_address={address} has {cores} cores; lower it.")
        if ray.cluster_resources().get("GPU"):
            logging.getLogger().warning("--nproc on a Ray cluster computes on CPUs; torchrun starts a run on GPUs.")
        board = ray.remote(num_cpus=0)(_Board).remote()
        try:
            ray.get(board.read.remote())
        except ray.exceptions.RayActorError:
            raise UserError(
                f"The workers of the cluster at --ray_address={address} cannot import recbole_kd; install it on all "
                "machines, as on this one."
            ) from None
        trainer = TorchTrainer(
            _member,
            train_loop_config={"board": board, "stamp": stamp, "function": function, "arguments": arguments},
            torch_config=TorchConfig(backend="gloo", timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=ScalingConfig(num_workers=processes, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=stamp, storage_path=os.path.abspath(place), failure_config=FailureConfig(max_failures=RESTARTS)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise_told(ray.get(board.read.remote()))
            raise TrainingError(
                f"A process on the cluster was killed from outside, {RESTARTS + 1} times in all "
                f"({one_line(error, 200)}). To continue a student's training, add "
                "--resume=FILE-last.pth; a teacher's training continues if the command is repeated."
            ) from None
        told = ray.get(board.read.remote())
        raise_told(told)
        return dict(told)["result"]


def _member(config: dict[str, Any]) -> None:
    """The main function of each process."""
    board = config["board"]
    restarts = ray.get(board.begin.remote(int(os.environ["RANK"])))
    if restarts is None:
        return
    os.environ.update({"RECBOLE_KD_STAMP": config["stamp"], "TORCHELASTIC_RESTART_COUNT": str(restarts)})
    with joined() as group:
        kind, value = attempted(config["function"], config["arguments"], group)
        if kind != "result" or group.is_first:
            ray.get(board.tell.remote(kind, value))
    if kind != "result":
        raise RuntimeError(value)  # the others wait for this process: Ray Train ends them
