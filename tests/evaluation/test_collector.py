"""Full-ranking evaluation: the same figures as RecBole's, from exact top-k, sorted pairs and sized batches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator import Collector, DataStruct
from recbole.sampler import RepeatableSampler
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed
from torch import Tensor

from recbole_kd.data import loaders
from recbole_kd.data.loaders import FastFullSortEvalDataLoader, sized_eval_batch
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import FullSortCollector, exact_topk
from recbole_kd.evaluation.metrics import Evaluator

RANKING_METRICS = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP", "GAUC"]
LIST_METRICS = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]


class RecBoleCollector(Collector):
    """RecBole's collector, but for its `.cpu()` on plain numbers, which keeps 1.2.1 from computing LIST_METRICS."""

    def get_data_struct(self) -> DataStruct:
        plain = {k: v for k, v in self.data_struct._data_dict.items() if not isinstance(v, Tensor)}
        for name in plain:
            del self.data_struct[name]
        struct = super().get_data_struct()
        for name, value in plain.items():
            struct.set(name, value)
            self.data_struct.set(name, value)
        return struct


class Bench:
    """RecBole's pieces on its bundled ml-100k."""

    def __init__(self, folder: Path, model: str = "BPR", **settings: Any) -> None:
        settings = {
            "checkpoint_dir": str(folder),
            "use_gpu": False,
            "state": "ERROR",
            "show_progress": False,
            "metrics": RANKING_METRICS + LIST_METRICS,
            "topk": [1, 5, 20],
            "valid_metric": "Recall@5",
            "metric_decimal_place": 12,
            "eval_batch_size": 1683 * 100,
            **settings,
        }
        self.config = Config(model=model, dataset="ml-100k", config_dict=settings)
        init_seed(7, True)
        self.train, self.valid, self.test = data_preparation(self.config, create_dataset(self.config))

    def model(self, name: str) -> Any:
        torch.manual_seed(3)
        model = get_model(name)(self.config, self.train.dataset)
        if name == "Pop":
            model.item_cnt[:, 0] = torch.bincount(self.train.dataset.inter_feat["item_id"], minlength=model.n_items)
            model.max_cnt = model.item_cnt.max(dim=0).values
        return model

    def evaluate(self, model: Any, loader: Any, collector: Any, evaluator: Any = None) -> dict[str, float]:
        trainer = Trainer(self.config, model)
        trainer.evaluator = evaluator or trainer.evaluator
        trainer.eval_collector = collector
        collector.data_collect(self.train)
        return dict(trainer.evaluate(loader, load_best_model=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for what RecBole writes beside the working directory; and no command line for its Config to read."""
    path = tmp_path_factory.mktemp("recbole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv[:1])
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    return Bench(folder)


# --- the top k -------------------------------------------------------------------------------------------------------


@st.composite
def score_matrices(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Scores with ties, -inf and rows of nothing else, in sizes on either side of where block maxima pay."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 1500))
    k = draw(st.integers(1, min(columns, 30)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = draw(st.sampled_from([3, 50, 10_000, 0]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if values:
        scores = torch.randint(values, (rows, columns), generator=generator).to(dtype)
    else:
        scores = torch.randn(rows, columns, generator=generator, dtype=dtype)
    masked = torch.rand(rows, columns, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.98]))
    scores[masked] = -torch.inf
    if draw(st.booleans()):
        scores[0] = -torch.inf
    return scores, k


@settings(max_examples=150, deadline=None)
@given(score_matrices())
def test_the_top_k_is_torchs_own_item_by_item(case: tuple[Tensor, int]) -> None:
    scores, k = case
    values, indices = exact_topk(scores, k)
    expected = torch.topk(scores, k)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


@pytest.mark.parametrize(("columns", "k"), [(40_982, 20), (5_000, 1), (4_099, 50), (100, 100)])
def test_without_ties_blocks_alone_find_what_a_full_sort_finds(columns: int, k: int) -> None:
    torch.manual_seed(columns)
    scores = torch.stack([torch.randperm(columns) for _ in range(3)]).double()
    values, indices = exact_topk(scores, k)
    assert values.tolist() == [list(range(columns - 1, columns - 1 - k, -1))] * 3
    assert torch.equal(scores.gather(1, indices), values)


def test_not_a_number_ranks_first_as_in_torch() -> None:
    scores = torch.randn(2, 3000)
    scores[0, [17, 2999]] = torch.nan
    values, indices = exact_topk(scores, 5)
    assert torch.equal(indices, torch.topk(scores, 5).indices)
    assert values[0, :2].isnan().all()


def test_only_rows_with_ties_are_ranked_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = []
    topk = torch.topk

    def recording(scores: Tensor, k: int) -> Any:
        ranked.append(tuple(scores.shape))
        return topk(scores, k)

    monkeypatch.setattr(torch, "topk", recording)
    scores = torch.arange(3000.0).repeat(4, 1)
    scores[2, 5] = scores[2].max()
    scores[3, 5] = 100.0  # a tie far below the cutoff: decides nothing
    exact_topk(scores, 10)
    assert [shape for shape in ranked if shape[1] == 3000] == [(1, 3000)]


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BPR", "Pop"])
def test_all_ranking_metrics_equal_recboles_in_all_digits(bench: Bench, name: str) -> None:
    """Pop's scores are full of ties: where they meet among the first k + 1, the row is ranked by torch.topk itself, so
    that even then the lists equal RecBole's item by item."""
    model = bench.model(name)
    reference, ours = RecBoleCollector(bench.config), FullSortCollector(bench.config)
    loader = FastFullSortEvalDataLoader(bench.config, bench.test._dataset, bench.test._sampler)
    expected = bench.evaluate(model, bench.test, reference)
    assert {metric.split("@")[0] for metric in expected} == {m.lower() for m in RANKING_METRICS + LIST_METRICS}
    assert bench.evaluate(model, loader, ours) == expected
    # RecBole's own loader does as well, and a second evaluation starts from nothing.
    assert bench.evaluate(model, bench.test, ours) == expected
    assert len(ours.per_user()[0]) == len(loader.uid_list)


def test_what_the_evaluator_gets_is_recboles_tensor_for_tensor(bench: Bench) -> None:
    reference, ours = RecBoleCollector(bench.config), FullSortCollector(bench.config)
    torch.manual_seed(1)
    for rows in (3, 1):
        scores = torch.randn(rows, 2000)
        scores[:, 0] = -torch.inf
        users = torch.arange(rows) + 1
        positives = torch.tensor([0] * 3 + [rows - 1]), torch.tensor([5, 9, 9, 7])  # 9 twice: still one positive
        for collector in (reference, ours):
            collector.eval_batch_collect(scores.clone(), {"user_id": users}, *positives)
    expected, struct = reference.get_data_struct(), ours.get_data_struct()
    for key in ("rec.items", "rec.topk", "rec.meanrank"):
        assert struct[key].dtype == expected[key].dtype
        assert torch.equal(struct[key], expected[key])
    assert struct["rec.topk"][:, -1].tolist() == [2, 0, 1, 3]


def test_sampled_negatives_are_evaluated_too(folder: Path) -> None:
    bench = Bench(
        folder, eval_args={"mode": "uni99"}, eval_batch_size=100_000, metrics=["Recall", "NDCG", "ShannonEntropy"]
    )
    model = bench.model("BPR")
    ours = FullSortCollector(bench.config)
    results = []
    for collector in (RecBoleCollector(bench.config), ours):
        init_seed(11, True)  # the negatives are drawn while evaluating
        results.append(bench.evaluate(model, bench.test, collector))
    assert results[0] == results[1]
    users, values = ours.per_user()
    assert users.tolist() == bench.test.uid_list.tolist()
    assert np.isclose(values["recall@5"].mean(), results[0]["recall@5"])


def test_metrics_of_each_user_average_to_the_result(bench: Bench) -> None:
    collector = FullSortCollector(bench.config)
    result = bench.evaluate(bench.model("BPR"), bench.test, collector, Evaluator(bench.config))
    users, values = collector.per_user()
    assert users.tolist() == bench.test.uid_list.tolist()
    assert {"recall@1", "ndcg@20", "map@5", "averagepopularity@5"} <= set(values)
    for metric, column in values.items():
        assert column.shape == users.shape
        assert np.isclose(column.mean(), result[metric], atol=1e-11)
    # By hand for one user: the share of the test items that are in the user's first 20.
    row = 10
    ranking = collector._collected["rec.items"][row].tolist()
    positives = set(bench.test.uid2positive_item[users[row]].tolist())
    assert values["recall@20"][row] == len(positives.intersection(ranking)) / len(positives)


def test_a_cutoff_beyond_the_catalogue_is_refused(bench: Bench) -> None:
    collector = FullSortCollector(bench.config)
    with pytest.raises(UserError, match="topk=20 exceeds the catalogue of 7 items"):
        collector.eval_batch_collect(
            torch.randn(2, 8), {"user_id": torch.tensor([1, 2])}, torch.tensor([0, 1]), torch.tensor([3, 4])
        )


def test_a_catalogue_that_the_cutoff_exhausts_is_ranked_to_the_end(bench: Bench) -> None:
    collector = FullSortCollector(bench.config)
    scores = torch.randn(1, 20)
    collector.eval_batch_collect(scores, {"user_id": torch.tensor([1])}, torch.tensor([0, 0]), torch.tensor([3, 4]))
    struct = collector.get_data_struct()
    assert sorted(struct["rec.items"][0].tolist()) == list(range(20))
    assert struct["rec.topk"][0].sum() == 2 + 2  # both positives are found, and there are two


def test_an_item_that_must_not_be_recommended_is_in_no_list(bench: Bench) -> None:
    """Otherwise ItemCoverage and its like would count items that no user is shown."""
    collector = FullSortCollector(bench.config)
    scores = torch.full((1, 20), -torch.inf)
    scores[0, [4, 7]] = torch.tensor([1.0, 2.0])
    collector.eval_batch_collect(scores, {"user_id": torch.tensor([1])}, torch.tensor([0]), torch.tensor([4]))
    struct = collector.get_data_struct()
    assert struct["rec.items"][0].tolist() == [7, 4, *[0] * 18]
    assert struct["rec.topk"][0].tolist() == [0, 1, *[0] * 18, 1]


def test_a_user_without_a_positive_has_a_row_too(bench: Bench) -> None:
    collector = FullSortCollector(bench.config)
    users = {"user_id": torch.tensor([1, 2])}
    collector.eval_batch_collect(torch.randn(2, 20), users, torch.tensor([0]), torch.tensor([4]))
    assert collector.get_data_struct()["rec.topk"][:, -1].tolist() == [1, 0]


def test_a_user_of_several_rows_is_named_for_each(bench: Bench) -> None:
    """A sequential model ranks after each of a user's sequences."""
    collector = FullSortCollector(bench.config)
    users = {"user_id": torch.tensor([4, 4, 7])}
    collector.eval_batch_collect(torch.randn(3, 20), users, torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]))
    assert collector.get_data_struct()["rec.users"].tolist() == [4, 4, 7]


def test_what_others_collected_is_joined_in_their_order(bench: Bench) -> None:
    collector = FullSortCollector(bench.config)
    parts = [{"rec.users": torch.tensor(users)} for users in ([3, 1], [2])]
    collector.data_struct.join(parts)
    parts[0]["rec.users"].zero_()  # a batch's memory may be used again
    assert collector.get_data_struct()["rec.users"].tolist() == [3, 1, 2]


def test_without_a_metric_of_each_user_there_are_no_users(folder: Path) -> None:
    users, values = FullSortCollector(Bench(folder, metrics=["GAUC"]).config).per_user()
    assert (users.tolist(), values) == ([], {})


# --- batches ---------------------------------------------------------------------------------------------------------


def pairs(rows_and_items: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    rows, items = rows_and_items
    return sorted(zip(rows.tolist(), items.tolist()))


def assert_same_batches(loader: Any, reference: Any) -> None:
    assert isinstance(loader, FullSortEvalDataLoader)
    assert (len(loader), loader.step, loader.sample_size) == (len(reference), reference.step, reference.sample_size)
    for ours, theirs in itertools.zip_longest(loader, reference):
        assert ours[0].columns == theirs[0].columns
        for column in theirs[0].columns:
            assert torch.equal(ours[0][column], theirs[0][column])
        assert pairs(ours[1]) == pairs(theirs[1])
        assert pairs(ours[2:]) == pairs(theirs[2:])
        assert all(tensor.dtype == torch.long for tensor in (*ours[1], *ours[2:]))


@pytest.mark.parametrize("phase", ["valid", "test"])
def test_batches_hold_what_recboles_hold(bench: Bench, phase: str) -> None:
    reference = getattr(bench, phase)
    loader = FastFullSortEvalDataLoader(bench.config, reference._dataset, reference._sampler)
    assert_same_batches(loader, reference)
    assert torch.equal(loader.uid_list, reference.uid_list)
    assert loader.uid2items_num.tolist() == reference.uid2items_num.tolist()
    for name in ("uid2positive_item", "uid2history_item"):
        for ours, theirs in itertools.zip_longest(getattr(loader, name), getattr(reference, name)):
            assert (ours is None and theirs is None) or ours.tolist() == sorted(theirs.tolist())


class _Sampler:
    """Items that each user has used up to a phase, as RecBole's samplers give them."""

    def __init__(self, used: list[set[int]]) -> None:
        self.used_ids = np.array(used)


class _Dataset:
    """The part of RecBole's Dataset that an evaluation loader reads."""

    uid_field, iid_field = "user_id", "item_id"

    def __init__(self, interactions: list[tuple[int, int]], users: int, items: int) -> None:
        self.inter_feat = {
            "user_id": torch.tensor([u for u, _ in interactions]),
            "item_id": torch.tensor([i for _, i in interactions]),
        }
        self.user_num, self.item_num = users, items

    def sort(self, by: str, ascending: bool) -> None:
        order = torch.argsort(self.inter_feat[by], stable=True)
        self.inter_feat = {field: values[order] for field, values in self.inter_feat.items()}

    def join(self, interaction: Any) -> Any:
        return interaction


def test_users_without_history_and_users_who_are_not_evaluated(bench: Bench) -> None:
    # User 1 has used nothing but what is evaluated, user 2 is not evaluated, user 3 has an item twice.
    used = [set(), {4}, {1, 2}, {5, 6, 7}, {1, 2, 3}]
    interactions = [(3, 6), (1, 4), (3, 6), (4, 3), (3, 5)]
    both = [
        kind(bench.config, _Dataset(interactions, users=5, items=8), _Sampler(used))
        for kind in (FastFullSortEvalDataLoader, FullSortEvalDataLoader)
    ]
    assert_same_batches(*both)
    (users, history, rows, items) = next(iter(both[0]))
    assert users["user_id"].tolist() == [1, 3, 4]
    assert pairs(history) == [(1, 7), (2, 1), (2, 2)]
    assert pairs((rows, items)) == [(0, 4), (1, 5), (1, 6), (2, 3)]


def test_with_a_repeatable_sampler_nothing_is_masked(bench: Bench) -> None:
    sampler = RepeatableSampler("test", bench.test._dataset).set_phase("test")
    both = [
        kind(bench.config, bench.test._dataset, sampler)
        for kind in (FastFullSortEvalDataLoader, FullSortEvalDataLoader)
    ]
    assert_same_batches(*both)
    assert all(len(history[0]) == 0 for _, history, _, _ in both[0])


def test_sequential_models_get_recboles_batches(folder: Path) -> None:
    bench = Bench(
        folder,
        model="GRU4Rec",
        train_neg_sample_args=None,
        eval_batch_size=50_000,
        eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        topk=[10],
        metrics=["Recall"],
    )
    loader = FastFullSortEvalDataLoader(bench.config, bench.test._dataset, bench.test._sampler)
    ours, theirs = next(iter(loader)), next(iter(bench.test))
    assert ours[1] is None
    assert torch.equal(ours[3], theirs[3])
    model = bench.model("GRU4Rec")
    expected = bench.evaluate(model, bench.test, RecBoleCollector(bench.config))
    collector = FullSortCollector(bench.config)
    assert bench.evaluate(model, loader, collector) == expected
    assert len(collector.per_user()[0]) == len(bench.test._dataset)


# --- the size of a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "available", "candidates", "rows"),
    [
        (40_982, None, None, 51),
        (40_982, 2**20, None, 6),
        (100_000_000, None, None, 8),
        (100_000_000, 2**20, None, 1),
        (25_182, None, 500, 83),
    ],
)
def test_a_batch_fills_its_block_with_at_least_a_few_users_and_one_where_memory_is_short(
    items: int, available: Optional[int], candidates: Optional[int], rows: int
) -> None:
    cells = sized_eval_batch(items, available, candidates)
    assert cells == rows * (candidates or items)
    bound = min(loaders.SCORE_BLOCK_BYTES, available or loaders.SCORE_BLOCK_BYTES)
    assert rows in (1, loaders.LEAST_ROWS) or rows * items * 4 <= bound
