"""SEvo's graphs: each against a loop over the definition, in dense matrices; and what they must never see."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.config import Config
from torch import Tensor

from recbole_kd.data.dataset import KDDataset, KDSequentialDataset
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.sevo.graphs import (
    SEvoOptions,
    cached_adjacency,
    category_adjacency,
    consecutive_adjacency,
    item_categories,
    sevo_adjacency,
    teacher_adjacency,
    training_sequences,
)
from recbole_kd.sevo.optimizer import NeumannSmoother


def normalized(weights: Tensor) -> Tensor:
    """w_ij / sqrt(degree_i degree_j), entry by entry."""
    result = torch.zeros_like(weights)
    for i in range(len(weights)):
        for j in range(len(weights)):
            if weights[i, j] > 0:
                result[i, j] = weights[i, j] / math.sqrt(weights[i].sum() * weights[j].sum())
    return result


def assert_is(adjacency: Tensor, weights: Tensor) -> None:
    assert adjacency.layout == torch.sparse_csr
    torch.testing.assert_close(adjacency.to_dense().double(), normalized(weights.double()), rtol=1e-5, atol=1e-6)


# Consecutive items

sequences = st.lists(st.lists(st.integers(1, 6), min_size=0, max_size=9), min_size=1, max_size=5).filter(
    lambda users: any(len(items) > 1 for items in users)
)


@settings(deadline=None, max_examples=60)
@given(sequences, st.integers(1, 5), st.integers(2, 7), st.integers(0, 99))
def test_consecutive_items_by_a_loop_over_sequences(users, window, maxlen, seed) -> None:
    weights = torch.zeros(8, 8)
    for items in users:
        items = items[-maxlen:]
        for place, item in enumerate(items):
            for steps, other in enumerate(items[place + 1 : place + 1 + window], start=1):
                weights[item, other] += 1 / steps
                weights[other, item] += 1 / steps
    triples = [(user + 1, item, 10 * place) for user, items in enumerate(users) for place, item in enumerate(items)]
    shuffled = torch.tensor(triples)[torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))]
    user_ids, item_ids, times = shuffled.unbind(1)
    assert_is(consecutive_adjacency(user_ids, item_ids, times, 8, window, maxlen), weights)


def test_items_of_one_time_keep_the_order_they_are_listed_in() -> None:
    adjacency = consecutive_adjacency(torch.ones(3), torch.tensor([3, 1, 2]), torch.zeros(3), 4)
    assert (adjacency.to_dense() > 0).nonzero().tolist() == [[1, 2], [1, 3], [2, 1], [3, 1]]


def test_sequences_of_one_item_have_no_consecutive_items() -> None:
    with pytest.raises(UserError, match="No user has two training interactions"):
        consecutive_adjacency(torch.tensor([1, 2, 3]), torch.tensor([1, 1, 2]), torch.arange(3), 4)


def test_the_padding_and_added_rows_are_isolated() -> None:
    adjacency = consecutive_adjacency(torch.ones(3), torch.tensor([1, 2, 3]), torch.arange(3), 6).to_dense()
    for row in (0, 4, 5):
        assert adjacency[row].abs().sum() == 0
        assert adjacency[:, row].abs().sum() == 0


# Categories


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=0, max_size=25))
def test_items_that_share_a_category(pairs: list[tuple[int, int]]) -> None:
    weights = torch.zeros(8, 8)
    for item, category in pairs:
        for other, another in pairs:
            if item != other and category == another and 0 not in (item, other, category):
                weights[item, other] = 1
    item_ids, category_ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    if weights.any():
        assert_is(category_adjacency(item_ids, category_ids, 8), weights)
    else:
        with pytest.raises(UserError, match="No two items share a category"):
            category_adjacency(item_ids, category_ids, 8)


def test_a_category_of_nearly_all_items_is_refused_before_it_is_built() -> None:
    items = torch.arange(1, 30_001)
    with pytest.raises(UserError, match=r"9e\+08 pairs"):
        category_adjacency(items, torch.ones_like(items), 30_001)


# The teacher's nearest items


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 1.0), (3, 0.2), (7, 5.0)])
def test_nearest_items_of_the_teacher_by_a_loop(neighbours: int, temperature: float, block: int) -> None:
    embeddings = torch.randn(9, 4, generator=torch.Generator().manual_seed(neighbours), dtype=torch.float64)
    weights = torch.zeros(11, 11)
    for i in range(1, 9):
        cosines = {}
        for j in range(1, 9):
            if i != j:
                cosines[j] = float(torch.cosine_similarity(embeddings[i], embeddings[j], dim=0))
        for j in sorted(cosines, key=lambda j: -cosines[j])[:neighbours]:
            weight = math.exp(-(1 - cosines[j]) / temperature)
            weights[i, j] += weight
            weights[j, i] += weight
    assert_is(teacher_adjacency(embeddings, neighbours, temperature, nodes=11, block=block), weights)


def test_items_without_a_vector_are_nobodys_neighbours() -> None:
    """As the graph of the others alone, whatever stands for those that a file of vectors does not know."""
    embeddings = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = torch.tensor([False, True, True, False, True, True, False, True, True])
    embeddings[~known] = torch.nan
    found = teacher_adjacency(embeddings, 2, 0.5, nodes=10, known=known).to_dense()
    alone = teacher_adjacency(torch.cat([embeddings[:1], embeddings[known]]), 2, 0.5).to_dense()
    places = known.nonzero().squeeze(1)
    torch.testing.assert_close(found[places][:, places], alone[1:, 1:])
    assert int((found != 0).sum()) == int((alone != 0).sum())
    with pytest.raises(UserError, match=r"neighbours=6 is more than the 5 other items"):
        teacher_adjacency(embeddings, 6, 0.5, known=known)


def test_the_most_similar_item_is_tied_most_strongly() -> None:
    """d is 1 - cosine; with the cosine itself for d, as the slides print it, the order would be reversed."""
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1], [-1.0, 1.0]])
    weights = teacher_adjacency(embeddings, 2, 0.5).to_dense()
    assert weights[1, 2] > weights[1, 3] > 0


def test_weights_that_underflow_are_no_edges() -> None:
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    adjacency = teacher_adjacency(embeddings, 2, 1e-4).to_dense()
    assert adjacency.isfinite().all()
    assert (adjacency > 0).nonzero().tolist() == [[1, 2], [2, 1]]


def test_more_neighbours_than_items_are_refused() -> None:
    with pytest.raises(UserError, match=r"neighbours=3 is more than the 2 other items"):
        teacher_adjacency(torch.randn(4, 2), 3, 1.0)


# From a RecBole dataset

TRAINING = {"a": "12345678", "b": "3175", "c": "24", "d": "8642"}


def split(folder, held_out: dict[str, str], model: str = "GRU4Rec", one_time: bool = False, **settings: object):
    """The training split of users' sequences, the last two items of each being validation and test."""
    name = "tiny"
    (folder / name).mkdir(exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in TRAINING.items():
        lines += [f"{user}\t{item}\t{0 if one_time else place}" for place, item in enumerate(items + held_out[user])]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n")
    kinds = [f"{item}\t{'odd' if item % 2 else 'even'}{' big' * (item > 5)}\t{item}.5" for item in range(1, 9)]
    (folder / name / f"{name}.item").write_text(
        "item_id:token\tkind:token_seq\tprice:float\n" + "\n".join(kinds) + "\n"
    )
    config = Config(
        model,
        name,
        config_dict={
            "data_path": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "kind", "price"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "train_neg_sample_args": None,
            **settings,
        },
    )
    kind = KDSequentialDataset if model == "GRU4Rec" else KDDataset
    return kind(config).build()[0]


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv[:1])


HELD_OUT = {"a": "12", "b": "24", "c": "13", "d": "13"}


def observed_pairs(train) -> Observed:
    return Observed(train.inter_feat["user_id"], train.inter_feat["item_id"], train.user_num, train.item_num)


def sequences_of(train) -> dict[str, str]:
    """Original items of each original user, as training_sequences orders them."""
    found: dict[str, str] = {}
    users, items, places = training_sequences(train)
    for row in torch.argsort(places):
        user, item = train.id2token("user_id", users[row]), train.id2token("item_id", items[row])
        found[user] = found.get(user, "") + str(item)
    return found


@pytest.mark.parametrize("longest", [50, 3])
@pytest.mark.parametrize("model", ["GRU4Rec", "BPR"])
def test_training_sequences_are_the_users_items_in_time(tmp_path, model: str, longest: int) -> None:
    train = split(tmp_path, HELD_OUT, model, MAX_ITEM_LIST_LENGTH=longest)
    assert sequences_of(train) == TRAINING


def test_items_of_one_time_are_ordered_by_their_histories(tmp_path) -> None:
    """However the rows lie: a loader may have shuffled them."""
    train = split(tmp_path, HELD_OUT, one_time=True)
    train.inter_feat = train.inter_feat[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    assert sequences_of(train) == TRAINING


@pytest.mark.parametrize("model", ["GRU4Rec", "BPR"])
@pytest.mark.parametrize("graph", ["consecutive", "bipartite", "category"])
def test_validation_and_test_items_change_no_graph(tmp_path, graph: str, model: str) -> None:
    options = SEvoOptions(graph=graph, window=3, category="kind")
    other = {"a": "88", "b": "86", "c": "75", "d": "75"}
    graphs = []
    for held_out in (HELD_OUT, other):
        train = split(tmp_path, held_out, model)
        graphs.append(sevo_adjacency(options, train, observed_pairs(train), train.item_num).to_dense())
    assert torch.equal(*graphs)
    assert graphs[0].any()


def test_a_graph_fits_the_smoother_of_its_tables(tmp_path) -> None:
    train = split(tmp_path, HELD_OUT)
    users, items = train.user_num, train.item_num
    teacher = torch.randn(items, 3)
    for graph, nodes in (("consecutive", items + 1), ("category", items + 1), ("teacher", items + 1)):
        options = SEvoOptions(graph=graph, neighbours=2, category="kind")
        adjacency = sevo_adjacency(options, train, observed_pairs(train), items + 1, teacher)
        assert NeumannSmoother(adjacency, 0.9, 2).nodes == nodes
    adjacency = sevo_adjacency(SEvoOptions(graph="bipartite"), train, observed_pairs(train), items)
    assert NeumannSmoother(adjacency, 0.9, 2).nodes == users + items


@pytest.mark.parametrize("feature", ["color", "price", "item_id"])
def test_a_category_that_is_no_token_column_is_refused(tmp_path, feature: str) -> None:
    with pytest.raises(UserError, match=rf"sevo.category={feature} is not a token column.*expected one of: kind"):
        item_categories(split(tmp_path, HELD_OUT), feature)


def test_a_dataset_without_item_features_has_no_categories(tmp_path) -> None:
    train = split(tmp_path, HELD_OUT, load_col={"inter": ["user_id", "item_id", "timestamp"]})
    with pytest.raises(UserError, match="none is loaded"):
        item_categories(train, "kind")


def test_interactions_without_time_have_no_order(tmp_path) -> None:
    columns = {"inter": ["user_id", "item_id"]}
    train = split(tmp_path, HELD_OUT, "BPR", load_col=columns, eval_args={"split": {"RS": [8, 1, 1]}, "order": "RO"})
    with pytest.raises(UserError, match="column 'timestamp' is not loaded"):
        training_sequences(train)


def test_the_teachers_graph_needs_a_teacher(tmp_path) -> None:
    train = split(tmp_path, HELD_OUT)
    with pytest.raises(UserError, match="set --teacher"):
        sevo_adjacency(SEvoOptions(graph="teacher"), train, observed_pairs(train), train.item_num)


# Options


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 1.0),
        ("beta", -0.1),
        ("layers", -1),
        ("graph", "random"),
        ("window", 0),
        ("maxlen", 1),
        ("neighbours", 0),
        ("temperature", 0.0),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"sevo\.{field}"):
        SEvoOptions.parse("sevo", {field: value})


def test_the_properties_file_holds_the_defaults(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "properties" / "optimizer" / "sevo.yaml").read_text()
    assert SEvoOptions.parse("sevo", yaml.safe_load(text)) == SEvoOptions()
    assert set(yaml.safe_load(text)) == {field.name for field in dataclasses.fields(SEvoOptions)}


@pytest.mark.parametrize("damage", ["weights", "columns", "no digest", "a byte", "a field"])
def test_a_kept_graph_that_was_damaged_is_made_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observed = Observed(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 2]), 3, 4)
    options = SEvoOptions(graph="bipartite")
    made = cached_adjacency(str(tmp_path), options, None, observed, 4).to_dense()
    (file,) = tmp_path.iterdir()
    whole, state = file.read_bytes(), load_checkpoint(file)
    if damage == "weights":
        save_checkpoint({**state, "weights": state["weights"] * 2}, file)
    elif damage == "columns":
        save_checkpoint({**state, "columns": state["columns"] + 100}, file)
    elif damage == "no digest":
        save_checkpoint({key: value for key, value in state.items() if key != "content"}, file)
    elif damage == "a field":
        save_checkpoint({**state, "nodes": "7"}, file)
    else:
        at = len(whole) // 2
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert torch.equal(cached_adjacency(str(tmp_path), options, None, observed, 4).to_dense(), made)
    assert "is damaged or of an earlier version; it is made again" in caplog.text
    caplog.clear()
    assert torch.equal(cached_adjacency(str(tmp_path), options, None, observed, 4).to_dense(), made)
    assert not caplog.text


def test_a_kept_graph_is_that_of_its_inputs(tmp_path: Path) -> None:
    """A row more in the table, another item that is known, or another option: each has a file of its own."""
    observed = Observed(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 2]), 3, 5)
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.6]])
    usual = {"options": SEvoOptions(graph="teacher", neighbours=1), "rows": 5, "vectors": vectors, "known": None}
    changes = [
        {},
        {"rows": 6},
        {"known": torch.tensor([False, True, True, True, False])},
        {"vectors": vectors.flip(1)},
        {"options": SEvoOptions(graph="teacher", neighbours=2)},
        {"options": SEvoOptions(graph="teacher", neighbours=1, temperature=0.5)},
    ]
    for count, change in enumerate(changes, 1):
        options, rows, table, known = {**usual, **change}.values()
        for _ in range(2):  # made, then read
            found = cached_adjacency(str(tmp_path), options, None, observed, rows, table, known).to_dense()
            assert torch.equal(
                found, teacher_adjacency(table, options.neighbours, options.temperature, rows, known=known).to_dense()
            )
        assert len(list(tmp_path.iterdir())) == count
