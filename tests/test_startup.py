"""What a verb imports before it answers: Ray only where it is used, RecBole's long imports only where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_kd.registry import MODELS, load_class
from recbole_kd.student.readers import capabilities, capabilities_of
from recbole_kd.testing import write_known_answer
from tests.fresh import last_line

GIVEN = ["--dataset=known-answer", "--benchmark_filename=[train,valid,test]", "--topk=[10]", "--valid_metric=NDCG@10"]


def imported(program: str, folder: Path) -> set[str]:
    """Names of the modules that a program in a fresh process has imported at its end."""
    return set(last_line(f"{program}\nimport sys; print('\\n', *sys.modules)", folder).split())


def test_the_package_itself_imports_no_other(tmp_path: Path) -> None:
    modules = imported("import recbole_kd", tmp_path)
    assert not modules & {"torch", "numpy", "pandas", "recbole", "ray"}


def test_list_waits_for_torch_and_for_nothing_else_that_is_long(tmp_path: Path) -> None:
    modules = imported("from recbole_kd.cli import main; assert main(['list']) == 0", tmp_path)
    assert "torch" in modules
    assert not modules & {"ray", "pandas", "pyarrow", "scipy", "sklearn", "tensorboard", "matplotlib", "recbole.utils"}


def test_verbs_of_one_process_do_without_ray(tmp_path: Path) -> None:
    """train, evaluate, recommend and export, one after the other."""
    data = [*GIVEN, f"--data_path={write_known_answer(tmp_path / 'data')}"]
    program = f"""
from glob import glob
from recbole_kd.cli import main
from recbole_kd import run_recbole_kd
data = {data!r}
assert main(["train", "--model=BPR", "--teacher=LightGCN", "--distill=rkd", "--epochs=1", "--teacher.epochs=1", *data]) == 0
(checkpoint,) = (path for path in glob("saved/*.pth") if not path.endswith("-last.pth"))
for verb, more in (("evaluate", []), ("recommend", ["--users=all", "--output=lists.csv"]), ("export", ["--output=bundle"])):
    assert main([verb, f"--checkpoint={{checkpoint}}", *more, data[-1]]) == 0, verb
"""
    assert not {name for name in imported(program, tmp_path) if name.partition(".")[0] == "ray"}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_offers_is_known_without_importing_it(name: str) -> None:
    entry = MODELS[name]
    kind = load_class(entry.path)
    assert capabilities_of(kind.__name__, entry.sequential) == capabilities(kind)
    assert entry.path.endswith(f":{kind.__name__}")
