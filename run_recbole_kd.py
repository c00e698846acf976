"""Knowledge distillation for RecBole: ``python run_recbole_kd.py --help``."""

import sys


def main() -> int:
    """The command line; ``recbole-kd`` is this function too. Imports are in it, so that Ctrl-C ends them quietly."""
    try:
        from recbole_kd.cli import main as command_line

        return command_line()
    except KeyboardInterrupt:  # of a run, the command line tells it
        return 130


if __name__ == "__main__":
    sys.exit(main())
