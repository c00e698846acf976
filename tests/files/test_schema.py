"""A schema says what a file must hold; what does not fit is named in a line, whatever it is."""

from __future__ import annotations

import time
from typing import Any, Optional, TypedDict, Union

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.files.schema import DEEPEST, Unbounded, check, require_bounded
from tests.files.samples import plain_values


class Run(TypedDict, total=False):
    epoch: int
    losses: dict[int, dict[str, float]]


class Row(TypedDict):
    name: str
    value: Optional[float]
    runs: list[Run]
    interval: tuple[float, float]
    weights: Union[Tensor, None]
    metrics: Optional[dict[str, float]]


ROW: dict[str, Any] = {
    "name": "BPR",
    "value": 1,
    "runs": [{"epoch": 0, "losses": {"0": {"rec": 0.5}}}, {}],
    "interval": [0, 1.5],
    "weights": torch.zeros(2),
    "metrics": {"ndcg@10": 0.5},
}


def test_what_fits_is_accepted() -> None:
    check(ROW, Row, "x.json")
    check({**ROW, "value": None, "weights": None, "more": object()}, Row, "x.json")
    check({"anything": object()}, dict[str, Any], "x.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", 7, "field name is 7; expected text"),
        ("name", "\ud800", r"field name is the text '\ud800'; expected text"),
        ("value", True, "field value is True; expected a number or nothing"),
        ("value", 10**400, "field value is 1000"),
        ("value", "1", "field value is the text '1'; expected a number or nothing"),
        ("runs", {}, "field runs is values by name; expected a list"),
        ("runs", [{"epoch": 0.5}], "field runs[0].epoch is 0.5; expected a whole number"),
        ("runs", [{"epoch": True}], "field runs[0].epoch is True; expected a whole number"),
        ("runs", [{"epoch": 10**30}], "field runs[0].epoch is 1000"),
        ("runs", [{"losses": {"x": {}}}], "field runs[0].losses is the text 'x'; expected a whole number"),
        ("runs", [{"losses": {"1": {"rec": []}}}], "field runs[0].losses.1.rec is a list; expected a number"),
        ("interval", [0], "field interval is a list; expected a list of that length"),
        ("weights", 0, "field weights is 0; expected a tensor or nothing"),
        ("metrics", 0, "field metrics is 0; expected values by name or nothing"),
        ("metrics", {"ndcg@10": "x"}, "field metrics.ndcg@10 is the text 'x'; expected a number"),
    ],
)
def test_what_does_not_fit_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        check({**ROW, field: value}, Row, "x.json")
    assert str(raised.value).startswith(f"x.json: {message}")
    assert str(raised.value).endswith("; give a file that recbole-kd wrote.")


def test_a_field_that_is_missing_is_named() -> None:
    for field in ROW:
        left = {name: value for name, value in ROW.items() if name != field}
        with pytest.raises(UserError, match=f"x.json: field {field} is missing; expected "):
            check(left, Row, "x.json")
    with pytest.raises(UserError, match=r"x.json: it is a list; expected values by name"):
        check([], Row, "x.json")


@given(value=plain_values, field=st.sampled_from(sorted(ROW)))
def test_whatever_stands_in_a_field_is_accepted_or_refused_in_a_line(value: Any, field: str) -> None:
    try:
        check({**ROW, field: value}, Row, "x.json")
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 300


def doubled(times: int) -> list[Any]:
    """A value of 2^times parts in as many lists."""
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


def test_a_value_is_as_large_as_it_is_written_out() -> None:
    require_bounded(doubled(9), 1 << 10)
    start = time.perf_counter()
    for times in (10, 60, DEEPEST - 1):
        with pytest.raises(Unbounded, match="unfold to more than 1,024 values"):
            require_bounded(doubled(times), 1 << 10)
    assert time.perf_counter() - start < 1
    require_bounded([{"a": (1, "x", None)}, 0.5], 8)
    with pytest.raises(Unbounded):
        require_bounded([{"a": (1, "x", None)}, 0.5], 7)


def test_a_value_is_as_deep_as_its_deepest_part_wherever_that_is_shared() -> None:
    def nested(levels: int, core: Any) -> Any:
        for _ in range(levels):
            core = [core]
        return core

    half = nested(DEEPEST // 2, 0)
    require_bounded([half, nested(DEEPEST // 2 - 1, half)], 1000)
    for deep in (nested(DEEPEST + 1, 0), nested(100_000, 0), [half, nested(DEEPEST // 2 + 1, half)]):
        with pytest.raises(Unbounded, match="nested more than"):
            require_bounded(deep, 1 << 20)
    itself: list[Any] = []
    itself.append({"x": itself})
    with pytest.raises(Unbounded, match="refers to itself"):
        require_bounded(itself, 1000)
