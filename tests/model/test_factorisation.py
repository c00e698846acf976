"""WMF and BiasMF, against the sums of their papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd
from tests.student.test_readers import build


def test_wmf_sums_over_every_item_of_a_user(known_answer: Path) -> None:
    """All users at once: the paper's whole objective, divided by their number."""
    model = build("WMF", known_answer, embedding_size=4, negative_weight=0.2, reg_weight=0.03).double()
    users, items = model.user_embedding.weight.tolist(), model.item_embedding.weight.tolist()
    total = 0.0
    for u in range(1, model.n_users):
        observed = set(model.history[u].tolist()) - {0}
        assert observed
        for i in range(1, model.n_items):
            score = sum(a * b for a, b in zip(users[u], items[i]))
            total += (1 - score) ** 2 if i in observed else 0.2 * score**2
        total += 0.03 * sum(a * a for a in users[u])
    total += 0.03 * sum(a * a for row in items[1:] for a in row)
    batch = Interaction({model.USER_ID: torch.arange(1, model.n_users)})
    assert model.calculate_loss(batch).item() == pytest.approx(total / (model.n_users - 1), rel=1e-10)


def test_wmf_counts_a_repeated_interaction_once(known_answer: Path) -> None:
    model = build("WMF", known_answer, embedding_size=4).double()
    batch = Interaction({model.USER_ID: torch.tensor([5])})
    once = model.calculate_loss(batch).item()
    model.history = torch.cat([model.history, model.history[:, -1:]], dim=1).sort(dim=1).values
    assert model.calculate_loss(batch).item() == once


def test_biasmf_by_its_formula(known_answer: Path) -> None:
    model = build("BiasMF", known_answer, embedding_size=4, reg_weight=0.1).double()
    users, items, labels = torch.tensor([1, 2, 9]), torch.tensor([4, 4, 6]), torch.tensor([1.0, 0.0, 1.0]).double()
    losses, scores = [], []
    for u, i, label in zip(users.tolist(), items.tolist(), labels.tolist()):
        p, q = model.user_embedding.weight[u], model.item_embedding.weight[i]
        b_u, b_i = model.user_bias[u], model.item_bias[i]
        scores.append((model.mean + b_u + b_i + (p * q).sum()).item())
        penalty = 0.1 * (p.square().sum() + q.square().sum() + b_u**2 + b_i**2).item()
        losses.append((label - scores[-1]) ** 2 + penalty)
    batch = Interaction({model.USER_ID: users, model.ITEM_ID: items, model.LABEL: labels})
    assert model.calculate_loss(batch).item() == pytest.approx(sum(losses) / 3, rel=1e-10)
    assert model.predict(batch).tolist() == pytest.approx(scores, rel=1e-10)


@pytest.mark.parametrize(("name", "settings"), [("WMF", {"train_batch_size": 512}), ("BiasMF", {})])
def test_it_learns_and_is_taught(name: str, settings: dict[str, Any], known_answer: Path) -> None:
    given = {"epochs": 40, "learning_rate": 0.03, "embedding_size": 8, "eval_step": 40, **settings}
    plain = known_answer_settings(known_answer, distill=[], **given)
    assert run_recbole_kd(name, "known-answer", config_dict=plain)["test_result"]["recall@10"] > 0.7
    taught = known_answer_settings(known_answer, distill=["rrd"], teacher="LightGCN", **{**given, "epochs": 1})
    lists = {f"rrd.{key}": value for key, value in {"pool": 8, "interesting": 4, "uninteresting": 4}.items()}
    assert run_recbole_kd(name, "known-answer", config_dict={**taught, **lists})["distillers"] == ["rrd"]
