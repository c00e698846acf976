"""Every metric that is printed, against its definition, written with loops over small cases."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.evaluator.register import metric_types

from recbole_kd.data.dataset import BEFORE
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import FullSortCollector
from recbole_kd.evaluation.metrics import Evaluator

RANKED = ["Recall", "Precision", "Hit", "MRR", "MAP", "NDCG", "GAUC"]
OF_LISTS = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
VALUES = ["AUC", "MAE", "RMSE"]


@pytest.fixture(autouse=True, scope="module")
def names_that_recboles_config_gives_numpy() -> None:
    """RecBole's metrics ask numpy for a name that its Config puts there."""
    Config.compatibility_settings(None)


def test_every_metric_has_its_definition_here() -> None:
    assert {name.lower() for name in [*RANKED, *OF_LISTS, *VALUES, "LogLoss"]} == set(metric_types)


class World(NamedTuple):
    """A small catalogue of items 1 ... I; for each user: scores by item, items had in training, items to find."""

    items: int
    scores: list[dict[int, float]]
    had: list[set[int]]
    wanted: list[set[int]]

    def ranking(self, user: int) -> list[int]:
        """The items that can be recommended, best first."""
        free = [item for item in range(1, self.items + 1) if item not in self.had[user]]
        return sorted(free, key=lambda item: -self.scores[user][item])

    def popularity(self, item: int) -> int:
        return sum(item in had for had in self.had)

    def evaluate(self, metrics: list[str], topk: list[int], **settings: Any) -> dict[str, float]:
        """What the package computes, from scores on."""
        config = configuration(metrics, topk, **settings)
        collector = FullSortCollector(config)
        collector.data_collect(SimpleNamespace(dataset=self._training()))
        scores = torch.full((len(self.scores), self.items + 1), -torch.inf)
        for user, of_items in enumerate(self.scores):
            for item, score in of_items.items():
                scores[user, item] = -torch.inf if item in self.had[user] else score
        positive = [(user, item) for user, wanted in enumerate(self.wanted) for item in wanted]
        rows, items = (torch.tensor(part) for part in zip(*positive))
        users = {"user_id": torch.arange(1, len(self.scores) + 1)}
        collector.eval_batch_collect(scores, users, rows, items)
        return dict(Evaluator(config).evaluate(collector.get_data_struct()))

    def _training(self) -> Any:
        pairs = [(user, item) for user, had in enumerate(self.had, start=1) for item in had]
        users, items = (torch.tensor(part, dtype=torch.long) for part in (zip(*pairs) if pairs else ([], [])))
        return SimpleNamespace(
            inter_feat={"user_id": users, "item_id": items},
            uid_field="user_id",
            iid_field="item_id",
            config={"LIST_SUFFIX": "_list"},
            item_num=self.items + 1,
            num=lambda field: self.items + 1,
            item_counter={},
        )


def configuration(metrics: list[str], topk: list[int], **settings: Any) -> dict[str, Any]:
    return {
        "metrics": metrics,
        "topk": topk,
        "metric_decimal_place": 12,
        "tail_ratio": None,
        "model": "BPR",
        "eval_args": {"mode": {"valid": "full", "test": "full"}},
        "device": torch.device("cpu"),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LABEL_FIELD": "label",
        **settings,
    }


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Users with something to find; distinct scores, but for GAUC's own test of ties."""
    items, users = draw(st.integers(3, 9)), draw(st.integers(1, 5))
    everything = list(range(1, items + 1))
    scores, had, wanted = [], [], []
    for _ in range(users):
        order = draw(st.permutations(everything))
        parts = draw(st.lists(st.sampled_from("htn"), min_size=items, max_size=items))
        parts[draw(st.integers(0, items - 1))] = "t"
        scores.append({item: float(place) for place, item in enumerate(order)})
        had.append({item for item, part in zip(everything, parts) if part == "h"})
        wanted.append({item for item, part in zip(everything, parts) if part == "t"})
    return World(items, scores, had, wanted)


# --- the share of what was to be found, and where it stands ----------------------------------------------------------


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def of_one_user(metric: str, ranking: list[int], wanted: set[int], k: int) -> float:
    """The textbook's value of one user's list."""
    hits = [place for place, item in enumerate(ranking[:k], start=1) if item in wanted]
    if metric == "Recall":
        return len(hits) / len(wanted)
    if metric == "Precision":  # of k places, also where fewer items are left
        return len(hits) / k
    if metric == "Hit":
        return 1.0 if hits else 0.0
    if metric == "MRR":
        return 1 / hits[0] if hits else 0.0
    if metric == "MAP":
        precisions = [len([hit for hit in hits if hit <= place]) / place for place in hits]
        return sum(precisions) / min(k, len(wanted))
    assert metric == "NDCG"
    gain = sum(1 / math.log2(place + 1) for place in hits)
    best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(wanted)) + 1))
    return gain / best


def area_under_curve(pairs: list[tuple[float, bool]]) -> float:
    """The chance that a positive has a higher score than a negative; equal scores count half."""
    above = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, positive in pairs
        if positive
        for low, other in pairs
        if not other
    ]
    return mean(above)


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_ranking_metrics(world: World) -> None:
    cutoffs = [1, 2, world.items]
    found = world.evaluate(RANKED[:-1], cutoffs)
    for metric in RANKED[:-1]:
        for k in cutoffs:
            users = [of_one_user(metric, world.ranking(u), world.wanted[u], k) for u in range(len(world.scores))]
            assert found[f"{metric.lower()}@{k}"] == pytest.approx(mean(users), abs=1e-9), (metric, k)


@settings(max_examples=60, deadline=None)
@given(worlds(), st.booleans())
def test_gauc_weighs_each_users_auc_by_what_there_was_to_find(world: World, ties: bool) -> None:
    if ties:
        scores = [{item: score // 2 for item, score in of_items.items()} for of_items in world.scores]
        world = world._replace(scores=scores)
    area, weight = 0.0, 0
    for user, wanted in enumerate(world.wanted):
        free = world.ranking(user)
        if set(free) == wanted:  # nothing to compare with
            continue
        area += len(wanted) * area_under_curve([(world.scores[user][item], item in wanted) for item in free])
        weight += len(wanted)
    if weight:
        assert world.evaluate(["GAUC"], [1])["gauc"] == pytest.approx(area / weight, abs=1e-6)


def test_ranking_metrics_by_hand() -> None:
    """Of items 1 ... 5, ranked 2, 4, 1, 3, 5, the user wanted 4, 3 and 5."""
    scores = {2: 5.0, 4: 4.0, 1: 3.0, 3: 2.0, 5: 1.0}
    found = World(5, [scores], [set()], [{4, 3, 5}]).evaluate(RANKED, [2, 4])
    expected = {
        "recall@2": 1 / 3,
        "precision@2": 1 / 2,
        "hit@2": 1,
        "mrr@2": 1 / 2,
        "map@2": (1 / 2) / 2,
        "recall@4": 2 / 3,
        "precision@4": 2 / 4,
        "hit@4": 1,
        "mrr@4": 1 / 2,
        "map@4": (1 / 2 + 2 / 4) / 3,
        "ndcg@2": (1 / math.log2(3)) / (1 + 1 / math.log2(3)),
        "ndcg@4": (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2),
        "gauc": 1 / 6,  # item 4 is above item 1; five other pairs are the wrong way round
    }
    assert found == pytest.approx(expected)


# --- what all lists together are like --------------------------------------------------------------------------------


def lists_of(world: World, k: int) -> list[list[int]]:
    """Each user's list, shorter where fewer than k items are left."""
    return [world.ranking(user)[:k] for user in range(len(world.scores))]


def of_all_lists(metric: str, world: World, k: int, tail: set[int]) -> float:
    lists, catalogue = lists_of(world, k), range(1, world.items + 1)
    counts = [sum(item in one for one in lists) for item in catalogue]
    if metric == "ItemCoverage":
        return sum(count > 0 for count in counts) / world.items
    if metric == "AveragePopularity":
        return mean([mean([float(world.popularity(item)) for item in one]) if one else 0.0 for one in lists])
    if metric == "TailPercentage":
        return mean([mean([float(item in tail) for item in one]) if one else 0.0 for one in lists])
    if metric == "ShannonEntropy":
        shares = [count / sum(counts) for count in counts if count]
        return -sum(share * math.log(share) for share in shares)
    assert metric == "GiniIndex"  # the mean difference of any two items, over twice the mean
    return sum(abs(a - b) for a in counts for b in counts) / (2 * world.items * sum(counts))


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_metrics_of_lists(world: World) -> None:
    rarest = sorted(range(1, world.items + 1), key=lambda item: (world.popularity(item), item))
    cutoffs = [1, 2, world.items]
    for ratio in (None, 0.5, 1, 2):
        tail = set(rarest[: max(1, int(world.items * (ratio or 0.1)))])
        if ratio == 2:  # above 1: the most interactions that an item of the tail has
            tail = {item for item in rarest if world.popularity(item) <= 2}
        found = world.evaluate(OF_LISTS, cutoffs, tail_ratio=ratio)
        for metric in OF_LISTS:
            for k in cutoffs:
                expected = of_all_lists(metric, world, k, tail)
                assert found[f"{metric.lower()}@{k}"] == pytest.approx(expected, abs=1e-9), (metric, k, ratio)


def test_metrics_of_lists_by_hand() -> None:
    """Every item of four is recommended once, which is as even and as covering as lists can be."""
    scores = [{1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}]
    world = World(4, scores, [{3}, {1, 2}], [{1}, {3}])
    assert lists_of(world, 2) == [[1, 2], [4, 3]]
    assert world.evaluate(OF_LISTS, [2], tail_ratio=0.25) == pytest.approx(
        {
            "itemcoverage@2": 1.0,
            "giniindex@2": 0.0,
            "shannonentropy@2": math.log(4),
            "averagepopularity@2": (1 + 1 + 0 + 1) / 4,
            "tailpercentage@2": 1 / 4,  # item 4, which nobody had
        }
    )


def test_a_list_ends_where_no_item_is_left() -> None:
    """RecBole fills it with items that are left out; item 1 is the only one that can be recommended here."""
    world = World(3, [{1: 1.0, 2: 3.0, 3: 2.0}], [{2, 3}], [{1}])
    found = world.evaluate(["ItemCoverage", "ShannonEntropy", "AveragePopularity"], [3])
    assert found == {"itemcoverage@3": pytest.approx(1 / 3), "shannonentropy@3": 0.0, "averagepopularity@3": 0.0}


# --- scores against labels -------------------------------------------------------------------------------------------


def values_of(metrics: list[str], scores: list[float], labels: list[int], **settings: Any) -> dict[str, float]:
    config = configuration(metrics, [1], **settings)
    collector = FullSortCollector(config)
    for part in (slice(0, 2), slice(2, None)):  # two batches
        given = torch.tensor(scores[part], dtype=torch.float64)
        nobody = torch.tensor([])
        collector.eval_batch_collect(given, {"label": torch.tensor(labels[part])}, nobody, nobody)
    return dict(Evaluator(config).evaluate(collector.get_data_struct()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=4, max_size=12))
def test_metrics_of_values(pairs: list[tuple[int, int]]) -> None:
    scores, labels = [score / 6 for score, _ in pairs], [label for _, label in pairs]
    found = values_of(["MAE", "RMSE", "LogLoss"], scores, labels)
    errors = [score - label for score, label in zip(scores, labels)]
    near = [min(max(score, 1e-15), 1 - 1e-15) for score in scores]
    loss = [-math.log(p) if label else -math.log(1 - p) for p, label in zip(near, labels)]
    expected = {
        "mae": mean([abs(error) for error in errors]),
        "rmse": math.sqrt(mean([error**2 for error in errors])),
        "logloss": mean(loss),
    }
    assert found == pytest.approx(expected, abs=1e-9)
    if 0 < sum(labels) < len(labels):
        area = area_under_curve([(score, bool(label)) for score, label in zip(scores, labels)])
        assert values_of(["AUC"], scores, labels)["auc"] == pytest.approx(area, abs=1e-9)


def test_log_loss_refuses_scores_that_are_no_probabilities() -> None:
    """RecBole cuts them to [0, 1], and prints a figure that means nothing."""
    with pytest.raises(UserError, match=r"the scores of BPR are between -0\.5 and 3; leave LogLoss out, or use AUC"):
        values_of(["LogLoss"], [0.2, -0.5, 3.0], [1, 0, 1])


# --- what is counted -------------------------------------------------------------------------------------------------


def test_of_sequences_the_first_item_counts_as_an_interaction() -> None:
    """A row says the items before and the next one: the sequence 5, 6, 5 has the rows [5] -> 6 and [5, 6] -> 5."""
    config = configuration(["AveragePopularity"], [1])
    rows = {
        "user_id": torch.tensor([1, 1]),
        "item_id": torch.tensor([6, 5]),
        "item_id_list": torch.tensor([[5, 0], [5, 6]]),
    }
    training = SimpleNamespace(
        inter_feat=rows,
        timed={**rows, BEFORE: torch.tensor([1, 2])},
        config={"LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "item_length"},
        uid_field="user_id",
        iid_field="item_id",
        item_num=7,
        item_counter={},
    )
    collector = FullSortCollector(config)
    collector.data_collect(SimpleNamespace(dataset=training))
    assert dict(collector.get_data_struct().get("data.count_items")) == {5: 2, 6: 1}


def test_values_are_rounded_as_asked() -> None:
    scores = {1: 3.0, 2: 2.0, 3: 1.0}
    found = World(3, [scores], [set()], [{1, 2, 3}]).evaluate(["Recall"], [1], metric_decimal_place=2)
    assert found == {"recall@1": np.float64(0.33)}
