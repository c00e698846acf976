"""Knowledge distillation for RecBole: ``python run_recbole_kd.py --help``."""

import sys

from recbole_kd.cli import main

if __name__ == "__main__":
    sys.exit(main())
