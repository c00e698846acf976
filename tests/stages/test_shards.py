"""``--ray_address``: shards of users, on one small cluster for all tests of this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_kd.cluster.ray import ray_session
from recbole_kd.data.ranks import build_rank_bank, rank_blocks
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.stages import shards
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.testing import known_answer_settings, write_known_answer
from recbole_kd.trainer.kd_trainer import KDTrainer
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd

ON_A_CLUSTER = {"ray_address": "local"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_answer(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_session(cpus=2):
        yield


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    small = {"epochs": 1, "embedding_size": 8, "teacher.epochs": 1, "teacher.embedding_size": 8, "rrd.pool": 10}
    # A batch of a few users, so that there is something to share out.
    return known_answer_settings(
        folder,
        **small,
        **{"rrd.interesting": 5, "rrd.uninteresting": 5, "baseline": None, "eval_batch_size": 200},
        **more,
    )


@pytest.mark.slow  # two workers that import everything
@pytest.mark.usefixtures("cluster")
def test_a_run_on_a_cluster_is_the_run_of_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranked lists and metrics come in shards; nothing of the result tells."""
    results = []
    for place, more in (("alone", {}), ("cluster", ON_A_CLUSTER)):
        given = settings(folder, checkpoint_dir=str(folder / place), **more)
        results.append(run_recbole_kd("RRDStudent", "known-answer", config_dict=given))
    alone, shared = results
    for key in ("test_result", "best_valid_result", "loss_history"):
        assert alone[key] == shared[key], key
    assert torch.equal(*(saved_lists(folder / place) for place in ("alone", "cluster")))

    given = {
        key: value
        for key, value in settings(folder).items()
        if key in ("data_path", "checkpoint_dir", "topk", "valid_metric", "eval_batch_size")
    }
    one = evaluate_checkpoint(shared["checkpoint"], given)
    assert one["test_result"] == shared["test_result"]
    monkeypatch.setattr(KDTrainer, "evaluate", not_here)
    assert evaluate_checkpoint(shared["checkpoint"], {**given, **ON_A_CLUSTER}) == one


def not_here(*_: Any, **__: Any) -> None:
    raise AssertionError("this process evaluates, and not the cluster")


def saved_lists(folder: Path) -> torch.Tensor:
    (path,) = (folder / "ranks").iterdir()
    return torch.from_numpy(np.load(path))


@pytest.mark.usefixtures("cluster")
def test_shards_of_several_blocks_make_the_whole_bank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.of("RRDStudent", "known-answer", given=settings(folder, **ON_A_CLUSTER))
    teacher = obtain_teacher(experiment, load_splits(experiment.settings))
    blocks = rank_blocks(teacher.observed, block_users=5)
    assert len(blocks) > 8, "more than there are shards"
    monkeypatch.setattr(shards, "rank_blocks", lambda observed: blocks)
    shards.rank_in_shards(teacher, experiment)
    scored, score_block = [], teacher.score_block
    monkeypatch.setattr(teacher, "score_block", lambda users: scored.append(users) or score_block(users))
    ranked = teacher.ranker(teacher, 10)
    assert not scored, "this process scored nobody"
    assert torch.equal(ranked, build_rank_bank(score_block, teacher.observed, 10, 5))


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_reads_other_files_is_found_out(folder: Path) -> None:
    experiment = Experiment.of("RRDStudent", "known-answer", given=settings(folder, **ON_A_CLUSTER))
    teacher = obtain_teacher(experiment, load_splits(experiment.settings))
    teacher.digest = "another"
    shards.rank_in_shards(teacher, experiment)
    with pytest.raises(UserError, match="reads a different teacher BPR.*--checkpoint_dir"):
        teacher.ranker(teacher, 10)
