"""docs/distil.ipynb, run from its first cell to its last as a reader runs it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jupyter_client
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    notebook = nbformat.read(ROOT / "docs" / "distil.ipynb", as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Files instead of ports: nobody else on the machine can reach the kernel.
    sockets = tempfile.TemporaryDirectory()  # its path is short, as a socket's has to be
    manager = jupyter_client.manager.AsyncKernelManager(transport="ipc", ip=f"{sockets.name}/k", kernel_name="python3")
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, km=manager, timeout=300, resources=resources)
    with sockets:
        client.execute(env=environment)
    return list(notebook.cells)


def shown(cell: Any) -> str:
    return "".join(output["data"]["text/plain"] for output in cell.outputs if output.output_type == "execute_result")


def cell_with(cells: list[Any], text: str) -> Any:
    return next(cell for cell in cells if cell.cell_type == "code" and text in cell.source)


def test_a_run_shows_teacher_student_and_baseline(cells: list[Any]) -> None:
    lines = shown(cell_with(cells, "to_frame")).splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["teacher", "student", "baseline"]


def test_the_student_has_vectors_recommendations_and_scores(cells: list[Any]) -> None:
    assert shown(cell_with(cells, "vectors()")).startswith("((944, 20), (1683, 20))")
    assert shown(cell_with(cells, "recommend(")).splitlines()[1].split()[1] == "196"
    assert len(shown(cell_with(cells, "score=")).splitlines()) == 4


def test_an_error_is_a_line(cells: list[Any]) -> None:
    (error,) = cell_with(cells, "RRDStudnt").outputs
    assert error.traceback == [f"recbole-kd: {error.evalue}"]
    assert error.evalue.startswith("Unknown model 'RRDStudnt'. Did you mean 'RRDStudent'?")
