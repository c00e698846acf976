"""The record of experts: what the selection network says at the start of each epoch, of some nodes, kept in checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_kd.distiller.base.experts import HISTORY_NODES, SelectionHistory
from recbole_kd.distiller.base.nodes import linear
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd


def test_it_notes_the_likeliest_expert_of_evenly_spaced_nodes() -> None:
    history = SelectionHistory(10_000)
    assert len(history.nodes) == HISTORY_NODES
    assert history.nodes[0] == 1, "0 is padding"
    assert history.nodes[-1] == 9_999
    assert (history.nodes.diff() > 0).all()
    generator = torch.Generator().manual_seed(0)
    network = linear(6, 4, generator, torch.float32)
    table = torch.randn(10_000, 6, generator=generator)
    history.record(0, network, table)
    expected = [int(network(table[node]).argmax()) for node in history.nodes]
    assert history.choices.tolist() == [expected]


def test_an_epoch_that_is_repeated_replaces_what_came_after() -> None:
    history, generator = SelectionHistory(5), torch.Generator().manual_seed(0)
    network, table = linear(3, 4, generator, torch.float64), torch.randn(5, 3, generator=generator)
    for epoch in (0, 1, 3, 1):
        history.record(epoch, network, table)
    assert history.choices.shape == (2, 4)
    history.record(3, network, table)
    assert history.choices[2].tolist() == [-1] * 4, "an epoch without a record"


@pytest.mark.parametrize(("distiller", "experts"), [("de", 3), ("htd", 2)])
def test_a_resumed_run_keeps_the_whole_record(distiller: str, experts: int, known_answer: Path) -> None:
    settings = {"distill": [distiller], f"{distiller}.experts": experts, "teacher": "LightGCN", "teacher.epochs": 1}
    settings = {**known_answer_settings(known_answer, baseline="none", **settings), "stopping_step": 10}
    first = run_recbole_kd("BPR", "known-answer", config_dict={**settings, "epochs": 4})
    last = Path(first["checkpoint"]).with_suffix("").as_posix() + "-last.pth"
    before = load_checkpoint(last)["distillers"][f"{distiller}.user_history._extra_state"]
    resumed = run_recbole_kd("BPR", "known-answer", config_dict={**settings, "epochs": 6, "resume": last})
    last = Path(resumed["checkpoint"]).with_suffix("").as_posix() + "-last.pth"
    after = load_checkpoint(last)["distillers"][f"{distiller}.user_history._extra_state"]
    assert torch.equal(after[: len(before)], before)
    assert len(after) > len(before)
    assert int(after.max()) < experts
    assert int(after.min()) >= 0
