"""The command line: ``recbole-kd [VERB] --key=value ...``. The only place that reads sys.argv.

It turns words into a verb and settings, and errors into one line and an exit code. A verb's options are in
``verbs/options.py``, its code in ``verbs/VERB.py``.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any

from recbole_kd.compat import check
from recbole_kd.errors import Interrupted, TrainingError, UnknownSetting, UserError, closest
from recbole_kd.experiment.known_keys import hint_of
from recbole_kd.options import is_text
from recbole_kd.verbs.help import overview, usage, versions
from recbole_kd.verbs.options import VERBS

#: Largest number of characters of an error's own text in the last line.
_SHOWN = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: the words after the program's name; None: from sys.argv.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.raiseExceptions = False  # no traceback on the terminal if a log cannot be written
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    for stream in (sys.stdout, sys.stderr):  # an id that the terminal cannot show is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if words[:1] == ["--version"]:
            print(versions())
            return 0
        if any("\0" in word for word in words):
            raise UserError("A word contains a NUL character, which is not allowed in names and values; leave it out.")
        verb, given, help_wanted = parse(words)
        if help_wanted:
            print(usage(verb) if words[0] == verb else overview())
            return 0
        if not VERBS[verb].torchless:
            check()
        options, settings = VERBS[verb].split(given)
        try:
            importlib.import_module(f"recbole_kd.verbs.{verb}").run(options, settings)
        except UnknownSetting as error:
            error.known += vars(options)  # elsewhere only settings of a run are known
            raise
    except (UserError, TrainingError) as error:
        return _told(_one_line(str(error)))
    except KeyboardInterrupt as stop:
        # Ends the line with a progress bar or the terminal's ^C.
        print(file=sys.stderr)
        return _told(_how_to_go_on(words, stop), 130)
    except BrokenPipeError:
        # The reader of our output (head, less) has ended, which is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        return _told(_one_line(f"{error.strerror or error}{where}; see --checkpoint_dir and --data_path."))
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error)):
            detail = re.search(r"\d+ bytes|[\d.]+ [GMT]iB", str(error))
            return _told(
                f"not enough memory{f' for {detail[0]}' if detail else ''}; lower a setting that needs memory, "
                "such as --train_batch_size, --embedding_size, or a distiller's experts, pool or nodes."
            )
        text = f"{type(error).__name__}: {_one_line(str(error))[:_SHOWN]}"
        return _told(f"internal error ({text}); details in {_written_down(words)}", 1)
    return 0


def _told(message: str, code: int = 2) -> int:
    print(f"recbole-kd: {message}", file=sys.stderr)
    return code


def _written_down(words: Sequence[str]) -> str:
    """Writes the command and the traceback of the present error to a file; returns its name."""
    import tempfile  # imported late, so that help is fast
    import time
    import traceback

    text = f"recbole-kd {shlex.join(words)}\n{versions()}\n\n{traceback.format_exc()}"
    name = f"internal-error-{time.strftime('%Y-%m-%d-%H%M%S')}-"
    for folder in ("log", None):
        try:
            if folder is not None:
                os.makedirs(folder, exist_ok=True)
            handle, path = tempfile.mkstemp(".txt", name, folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path if folder is None else os.path.relpath(path)
        except OSError:
            continue
    return f"no file, because none can be written: {text}"


def _how_to_go_on(words: Sequence[str], stop: KeyboardInterrupt) -> str:
    """The message after an interrupt: the command that continues. It reuses kept results, such as a teacher."""
    words = list(words)
    if isinstance(stop, Interrupted):
        while (old := _place_of(words, "resume")) is not None:
            del words[old]
        words.append(f"--resume={stop.resume}")
    elif stop.args:
        return str(stop)
    return f"interrupted. To continue: recbole-kd {shlex.join(words)}"


def _place_of(words: Sequence[str], key: str) -> slice | None:
    """The place of a setting in `words`, as one word or as two; None if it is not there."""
    for place, word in enumerate(words):
        if word == f"--{key}":
            return slice(place, place + 2)
        if word.startswith(f"--{key}="):
            return slice(place, place + 1)
    return None


def _one_line(text: str) -> str:
    """A message as one safe line for a terminal: quoted parts of files may contain anything, of any length."""
    line = re.sub(r"(\S{200})\S{100,}(\S{50})", r"\1...\2", " ".join(text.split()))
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any], bool]:
    """(verb, settings by dotted name, whether help is requested) from the words on the command line.

    Raises:
        UserError: an unknown verb, a word that is not a setting, or one setting with two values.
    """
    words = list(words)
    verb = "train"
    if words and not words[0].startswith("-"):
        verb = words.pop(0)
        if verb not in VERBS:
            raise UserError(f"Unknown verb '{verb}'.{closest(verb, VERBS)} Verbs: {', '.join(VERBS)}.")
    settings: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            return verb, {}, True
        if not word.startswith("--") or word == "--":
            raise UserError(f"'{word}' is not a setting; expected --key=value, such as --dataset=ml-100k.")
        key, equals, text = word[2:].partition("=")
        if not equals and words and not words[0].startswith("--"):
            text = words.pop(0)
        elif not equals and key and _hint(verb, key) is bool:
            text = "true"
        elif not equals:
            raise UserError(f"--{key} has no value; expected --{key}=VALUE.")
        if not key:
            raise UserError(f"'{word}' has no name before the '='; expected --key=value.")
        value = _value(verb, key, text)
        if key in settings and settings[key] != value:
            raise UserError(f"--{key} is given twice, as {settings[key]!r} and {value!r}; keep one.")
        settings[key] = value
    return verb, settings, False


def _value(verb: str, key: str, text: str) -> Any:
    """A value by its option's type: text (a dataset may be called 2020), or a literal."""
    hint = _hint(verb, key)
    if text.startswith("~/"):  # which a shell leaves as it is after an equals sign
        text = os.path.expanduser(text)
    if is_text(hint):
        return None if hint is not str and text in ("None", "null", "~") else text
    from recbole_kd.files.properties import parse_value  # imported late, so that help is fast

    return parse_value(text)


def _hint(verb: str, key: str) -> Any:
    return typing.get_type_hints(VERBS[verb]).get(key) or hint_of(key)


if __name__ == "__main__":
    sys.exit(main())
