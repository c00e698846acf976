"""The digest is of content: what differs has another one, what is the same has the same."""

from __future__ import annotations

import copy
import hashlib
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from recbole_kd.files import digest as digests
from recbole_kd.files.digest import digest
from tests.files.samples import (
    plain_values,
)


def test_a_digest_is_of_tagged_and_counted_content() -> None:
    expected = hashlib.sha256(b"list 2:0:int:1:7str:2:ab").hexdigest()
    assert digest(7, "ab") == expected
    assert digest(pa.array(["", "日本", "ab"])[1:]) == digest(["日本", "ab"])
    expected = hashlib.sha256(b"list 1:0:tensor int16 (2, 1):4:" + struct.pack("<2h", 3, 4)).hexdigest()
    assert digest(torch.tensor([[3], [4]], dtype=torch.int16)) == expected


def test_many_texts_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_TEXTS", 2)
    assert digest(pa.array(["a", "b", "c", "d", "e"])) == digest(["a", "b", "c", "d", "e"])


DIFFERENT: list[Any] = [
    *(None, False, True, 0, 1, -1, 0.0, 1.0, "", "1", "None", b"", b"1", 10**30),
    *([], [1], [1, 2], [[1], 2], [1, [2]], [[1, 2]], ["ab", "c"], ["a", "bc"], {}, {"a": 1}, {"a": 2}, {1: "a"}),
    *({"a": None}, [{"a": 1}], [("a", 1)], {"a": {"b": 1}}, float("inf"), float("nan")),
    *(torch.tensor(1), torch.tensor([1]), torch.tensor([[1]]), torch.tensor(1.0), torch.tensor(1, dtype=torch.int32)),
    *(torch.tensor(True), torch.tensor(1, dtype=torch.uint8), torch.empty(0, 3), torch.empty(3, 0), torch.empty(0)),
    *(torch.arange(6).reshape(2, 3), torch.arange(6).reshape(3, 2), torch.arange(6).reshape(3, 2).T),
    *(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16), np.array(["a"]), np.array([["a"]])),
]


def test_what_differs_has_another_digest() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert len({digest(), digest(1), digest(1, 2), digest([1, 2]), digest((1,), 2)}) == 5


def test_what_is_the_same_has_the_same_digest() -> None:
    table = torch.randn(5, 4)
    same = [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ((1, "x"), [1, "x"]),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.str_("x"), "x"),
        (OrderedDict(a=1), {"a": 1}),
        (torch.Size([2, 3]), (2, 3)),
        (table, table.clone()),
        (table.T, table.T.contiguous()),
        (table[1:4, 2], table[1:4, 2].clone()),
        (nn.Parameter(table), table),
        (table, table.numpy()),
        (table.numpy(), table.numpy().astype(">f4")),
        (table.numpy()[:, ::-1], table.numpy()[:, ::-1].copy()),
        (torch.complex(table, table).conj(), torch.complex(table, -table)),
        (np.array(["a", "b"]), np.array(["a", "b"], dtype=object)),
    ]
    for one, other in same:
        assert digest(one) == digest(other), (one, other)
        assert digest([0, {"x": one}]) == digest([0, {"x": other}])


@settings(max_examples=100, deadline=None)
@given(one=plain_values, other=plain_values)
def test_digests_are_equal_where_values_are(one: Any, other: Any) -> None:
    def canonical(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return ("list", tuple(map(canonical, value)))
        if isinstance(value, dict):
            return ("dict", frozenset((canonical(key), canonical(element)) for key, element in value.items()))
        return (type(value), repr(value))

    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))
    assert digest(one) == digest(copy.deepcopy(one))


@pytest.mark.parametrize(
    "value", [{1}, len, object(), 1j, Path("x"), torch.eye(2).to_sparse()], ids=lambda value: type(value).__name__
)
def test_a_digest_of_anything_else_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="digest takes plain values, tensors and arrays"):
        digest([value])


def test_a_large_tensor_is_hashed_in_place() -> None:
    table = np.zeros((1000, 4000), dtype=np.float32)
    tracemalloc.start()
    digest({"array": table, "tensor": torch.from_numpy(table)})
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
