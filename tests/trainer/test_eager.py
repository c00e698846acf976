"""A run does without torch's compiler, whose import takes a second, and whoever asks for it inside of one gets it."""

from __future__ import annotations

from pathlib import Path

from recbole_kd.testing import write_known_answer
from tests.fresh import last_line


def test_a_run_imports_neither_torchs_compiler_nor_scikit_learn(tmp_path: Path) -> None:
    data = [
        "--dataset=known-answer",
        "--benchmark_filename=[train,valid,test]",
        "--topk=[10]",
        "--valid_metric=NDCG@10",
    ]
    words = ["--model=BPR", "--teacher=LightGCN", "--distill=rkd", "--epochs=1", "--teacher.epochs=1", *data]
    words.append(f"--data_path={write_known_answer(tmp_path / 'data')}")
    program = f"import sys; from recbole_kd.cli import main; assert main({words!r}) == 0"
    assert last_line(f"{program}; print({{'torch._dynamo', 'sklearn'}} & set(sys.modules))", tmp_path) == "set()"


STEP = """
import sys, torch
from recbole_kd.trainer.eager import without_compiler
weight = torch.nn.Parameter(torch.ones(2))
def step(optimizer):
    optimizer.zero_grad(); weight.square().sum().backward(); optimizer.step(); optimizer.state_dict()
"""


def test_optimisers_step_alike(tmp_path: Path) -> None:
    """Adam with and without the stand-in, which is gone after the block."""
    program = f"""{STEP}
with without_compiler():
    step(torch.optim.Adam([weight]))
    first = weight.detach().clone()
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
weight = torch.nn.Parameter(torch.ones(2))
import torch._dynamo
step(torch.optim.Adam([weight]))
print(bool((weight == first).all()))
"""
    assert last_line(program, tmp_path) == "True"


def test_a_compiled_model_is_compiled(tmp_path: Path) -> None:
    program = f"""{STEP}
with without_compiler():
    step(torch.optim.Adam([weight]))
    doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2))
    step(torch.optim.Adam([weight]))
print(doubled.tolist(), hasattr(sys.modules["torch._dynamo"], "eval_frame"))
"""
    assert last_line(program, tmp_path) == "[2.0, 2.0] True"
