"""A function in a process of its own: what it holds in memory is its own, and nothing of it stays.

What any process of ours does with interrupts and with the end of the one that started it is here too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Optional

from recbole_kd.errors import TrainingError, UserError


def in_own_process(
    function: Callable[..., Any], *arguments: Any, on_message: Optional[Callable[[Any], None]] = None
) -> Any:
    """``function(*arguments, tell)`` in a fresh process, waited for; `tell` sends what `on_message` gets here.

    An interrupt (Ctrl-C) is this process's to handle: the other is ended when this function is left, and ends by itself
    when this process is killed.

    Args:
        function: importable by its name, like its arguments and what it returns.

    Raises:
        UserError, TrainingError: what the function raised.
        TrainingError: the process was ended from outside, as the system does when memory is short.
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
            f"Its process was ended from outside (exit code {process.exitcode}); if memory was short, lower "
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
    """Processes that are started inside never get an interrupt: it is this process's to handle."""
    # What is blocked here is blocked there, from its first instruction on: Ctrl-C reaches a whole process group.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def end_with_parent() -> None:
    """Lets this process end when the one that started it does: a killed parent can end nobody."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
