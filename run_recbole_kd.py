"""Knowledge distillation for RecBole: ``python run_recbole_kd.py --help``."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - before the imports, which an older Python cannot read
    found = sys.version.split()[0]
    sys.stderr.write(
        "recbole-kd: This is Python " + found + "; expected 3.10 or later: install it, and start with it.\n"
    )
    sys.exit(2)


def main():  # type: () -> int - older Python reads it too
    """The command line, also for ``recbole-kd``. Imports are inside, so that Ctrl-C during them ends quietly."""
    try:
        from recbole_kd.cli import main as command_line

        return command_line()
    except KeyboardInterrupt:  # during imports; in a run, `cli.main` handles it
        return 130


if __name__ == "__main__":
    sys.exit(main())
