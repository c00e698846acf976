"""Runs functions in separate processes: in one, to measure its memory, or in several that train together."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Optional

from recbole_kd.cluster.group import STORE, Group, joined, lost
from recbole_kd.errors import TrainingError, UserError

__all__ = ["RESTARTS", "attempted", "in_own_process", "raise_told", "together"]

#: Number of restarts of a run's processes after one of them has ended.
RESTARTS = 3


def in_own_process(
    function: Callable[..., Any], *arguments: Any, on_message: Optional[Callable[[Any], None]] = None
) -> Any:
    """Runs ``function(*arguments, tell)`` in a new process and waits for it; `tell` sends messages to `on_message`.

    This process handles an interrupt (Ctrl-C). The new process is ended when this function is left, and ends by itself
    if this process is killed.

    Args:
        function: can be imported by its name, as can the types of its arguments and its result.

    Raises:
        UserError, TrainingError: what the function raised.
        TrainingError: the process was killed from outside, for example because memory was short.
        RuntimeError: any other error, with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, function, arguments))
    with deaf_to_interrupts():
        process.start()
    sender.close()
    try:
        kind, value = "message", None
        while kind == "message":
            try:
                kind, value = receiver.recv()
            except EOFError:
                kind = "died"
            if kind == "message" and on_message is not None:
                on_message(value)
        process.join()
    finally:
        process.kill()
        process.join()
        receiver.close()
    if kind == "result":
        return value
    if kind == "died":
        raise TrainingError(
            f"Its process was killed from outside (exit code {process.exitcode}); if memory was short, lower "
            "--train_batch_size or --eval_batch_size, or run fewer at a time."
        )
    raise {"UserError": UserError, "TrainingError": TrainingError}.get(kind, RuntimeError)(value)


def _serve(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    try:
        outcome = "result", function(*arguments, lambda message: sender.send(("message", message)))
    except (UserError, TrainingError) as error:
        outcome = type(error).__name__, str(error)
    except BaseException:
        outcome = "error", traceback.format_exc()
    sender.send(outcome)
    sender.close()


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside the block never get an interrupt; this process handles it."""
    # Ctrl-C reaches a whole process group. New processes inherit blocked signals, from their first instruction on.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def end_with_parent() -> None:
    """Makes this process end with its parent; a killed parent cannot end it."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def together(
    processes: int, stamp: str, function: Callable[..., Any], *arguments: Any, restarts: int = RESTARTS
) -> Any:
    """Runs ``function(*arguments, group)`` in several processes of this machine; the first one's result.

    torch's launcher, that of ``torchrun``, starts and watches them. If one ends, all are restarted; the function then
    sees ``group.restarted`` and resumes from its files. An interrupt ends all of them.

    Args:
        processes: number of processes.
        stamp: name for the run's files (:attr:`Group.stamp`).
        function: can be imported by its name; its arguments can be pickled.
        restarts: number of restarts.

    Raises:
        UserError, TrainingError: raised by the function (then there is no restart), or a process kept ending.
        RuntimeError: any other error, with its traceback.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="recbole-kd-") as folder, _undone():
        os.environ.update({STORE: str(Path(folder, "store")), "RECBOLE_KD_STAMP": stamp})
        _meet_in_a_file()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=stamp,
            rdzv_backend=_BACKEND,
            rdzv_configs={"file": str(Path(folder, "launcher"))},
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            results = elastic_launch(config, _member)(folder, function, arguments)
            raise_told([json.loads(path.read_text()) for path in _told(folder)])
            return results[0]
        except SignalException as stop:
            raise KeyboardInterrupt from stop
        except ChildFailedError as error:
            raise_told([json.loads(path.read_text()) for path in _told(folder)])
            rank, failure = error.get_first_failure()
            how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
            raise TrainingError(
                f"Process {rank} of {processes} was killed from outside ({how}), {restarts + 1} times; if memory "
                "was short, lower --train_batch_size or --nproc. To continue a student's training, add "
                "--resume=FILE-last.pth; a teacher's training continues if the command is repeated."
            ) from None


def _member(folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The main function of each process. An error of the function is stored in a file; a restart would not help."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _told(folder):
        return None  # restarted after an error that is told: all of them end
    with joined() as group:
        kind, value = attempted(function, arguments, group)
        if kind == "result":
            return value
        # Before this process leaves the group, because that ends the others.
        file = Path(folder, f"error-{group.rank}")
        file.with_suffix(".tmp").write_text(json.dumps([kind, value]))
        file.with_suffix(".tmp").replace(file)
        sys.exit(1)


def attempted(function: Callable[..., Any], arguments: tuple[Any, ...], group: Group) -> tuple[str, Any]:
    """``("result", value)`` of one process (only the first has a value), or its error as (kind, text).

    Raises:
        RuntimeError: the connection broke because another process has ended; the launcher knows which.
    """
    try:
        value = function(*arguments, group)
        return "result", value if group.is_first else None
    except (UserError, TrainingError) as error:
        return type(error).__name__, str(error)
    except Exception as error:
        if lost(error):
            raise
        return "RuntimeError", f"process {group.rank}:\n{traceback.format_exc()}"


def _told(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).glob("error-*") if not path.suffix)


def raise_told(told: Sequence[tuple[str, Any]]) -> None:
    """Raises the most useful error among (kind, text), if any; a UserError comes first."""
    for kind, error in (("UserError", UserError), ("TrainingError", TrainingError), ("RuntimeError", RuntimeError)):
        for name, text in told:
            if name == kind:
                raise error(text)


_BACKEND = "recbole-kd"


def _meet_in_a_file() -> None:
    """Registers a rendezvous for torch's launcher that opens no port; the launcher's own listen on all interfaces.

    A single machine needs no port: the launcher's data are in a private file.
    """
    from torch.distributed import FileStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.rendezvous import (
        RendezvousHandler,
        RendezvousInfo,
        RendezvousParameters,
        RendezvousStoreInfo,
        rendezvous_handler_registry,
    )

    class OneMachine(RendezvousHandler):
        def __init__(self, parameters: RendezvousParameters) -> None:
            self.parameters = parameters

        def get_backend(self) -> str:
            return _BACKEND

        def next_rendezvous(self) -> RendezvousInfo:
            store = FileStore(self.parameters.config["file"], 1)
            return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("localhost", 1))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            pass

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return self.parameters.run_id

        def shutdown(self) -> bool:
            return True

    if _BACKEND not in rendezvous_handler_registry._registry:
        rendezvous_handler_registry.register(_BACKEND, OneMachine)


@contextmanager
def _undone() -> Iterator[None]:
    """Restores the environment, signal handlers and loggers' levels that the launcher changes."""
    environment = dict(os.environ)
    mine = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    loggers = [logging.getLogger(f"torch.{name}") for name in ("distributed.elastic", "multiprocessing.spawn")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
        if mine:
            for number, handler in handlers.items():
                signal.signal(number, handler)
