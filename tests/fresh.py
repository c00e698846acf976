"""Programs in a process that has imported nothing yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import recbole_kd


def last_line(program: str, folder: Path) -> str:
    """What a program that runs in a folder prints last; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(Path(recbole_kd.__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
