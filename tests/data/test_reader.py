"""What is read from a file is what stands in it; what cannot be read is refused with its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_kd.data.layout import Layout, fields_of
from recbole_kd.data.reader import read_atomic
from recbole_kd.errors import UserError

IDS = ("user_id", "item_id")
LAYOUT = Layout(ids=IDS, time="timestamp")


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "shop.inter"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, layout: Layout = LAYOUT) -> dict[str, list[Any]]:
    table: pa.Table = read_atomic(path, layout, [field.name for field in fields_of(path, layout)])
    return table.to_pydict()


def test_columns_have_the_kinds_that_the_first_line_names(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\trating:float\ttags:token_seq\ttimestamp:float\nann\t4.5\ta b\t7\n")
    kinds = [field.kind for field in fields_of(path, LAYOUT)]
    assert kinds == ["token", "float", "token_seq", "time"]
    assert read(path) == {"user_id": ["ann"], "rating": [4.5], "tags": ["a b"], "timestamp": [7]}


def test_only_the_columns_asked_for_are_read_in_the_files_order(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\titem_id:token\trating:float\nann\tx\t1\n")
    assert read_atomic(path, LAYOUT, ["rating", "user_id"]).column_names == ["user_id", "rating"]


@pytest.mark.parametrize(
    "text", ["NA", "null", "nan", "None", "007", "1.0", " x", "x ", '"Alien', "a'b", "#1", "José", "日本"]
)
def test_an_id_is_the_text_as_it_is_written(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"user_id:token\titem_id:token\n{text}\ti1\nann\t{text}\n")
    assert read(path) == {"user_id": [text, "ann"], "item_id": ["i1", text]}


def test_hexadecimal_ids_are_no_numbers(tmp_path: Path) -> None:
    """0xABCDEF0 is as long as 180150000, the number that it stands for."""
    ids = ["0x8000000", "134217728", "0xABCDEF0", "0X9000000", "007", "7"]
    path = write(tmp_path, "\n".join(["user_id:token\titem_id:token", *(f"ann\t{one}" for one in ids)]))
    assert read(path)["item_id"] == ids


def test_tokens_are_numbered_by_first_appearance(tmp_path: Path) -> None:
    rows = [f"u{(7 * row) % 900}\ti{(11 * row) % 1300}" for row in range(20_000)]
    path = write(tmp_path, "\n".join(["user_id:token\titem_id:token", *rows]))
    users = read_atomic(path, LAYOUT, IDS)["user_id"].chunk(0)
    assert users.dictionary.to_pylist() == list(dict.fromkeys(row.split("\t")[0] for row in rows))


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_line_ends_and_a_byte_order_mark_are_no_part_of_a_value(tmp_path: Path, start: str, end: str) -> None:
    path = write(tmp_path, start + end.join(["user_id:token\titem_id:token", "ann\tx", "", "bob\ty", ""]))
    assert read(path) == {"user_id": ["ann", "bob"], "item_id": ["x", "y"]}


def test_quotes_are_data_in_a_tab_separated_file_and_enclose_fields_in_csv(tmp_path: Path) -> None:
    text = 'user_id:token,item_id:token\nann,"Alien, ""the"" film"\n'
    assert read(write(tmp_path, text), Layout(separator=",", ids=IDS))["item_id"] == ['Alien, "the" film']
    path = write(tmp_path, text.replace(",", "\t").replace("Alien\t", "Alien"))
    assert read(path)["item_id"] == ['"Alien ""the"" film"']


@pytest.mark.parametrize("separator", [";", "|", " ", "::", "¦"])
def test_the_separator_is_any_text(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path, separator.join(["user_id:token", "item_id:token"]) + f"\nann{separator}x\n")
    if separator == "::":
        path = write(tmp_path, "user_id:token::item_id:token\nann::x\n")
    assert read(path, Layout(separator=separator, ids=IDS)) == {"user_id": ["ann"], "item_id": ["x"]}


def test_other_encodings_are_read_where_they_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\titem_id:token\nJosé\tx\n".encode("latin-1"))
    assert read(path, Layout(encoding="latin-1", ids=IDS))["user_id"] == ["José"]


@pytest.mark.parametrize(
    ("written", "times", "kind"),
    [
        (["1700000000123", "9007199254740993"], [1700000000123, 9007199254740993], pa.int64()),
        (["1700000000.5", "3"], [1700000000.5, 3.0], pa.float64()),
        (["2023-11-14T22:13:20", "2023-11-14 22:13:21"], [1700000000, 1700000001], pa.int64()),
        (["2023-11-15", "2023-11-14"], [1700006400, 1699920000], pa.int64()),
        (["2023-11-14T22:13:20Z", "2023-11-15T00:13:21+02:00"], [1700000000, 1700000001], pa.int64()),
        (["2023-11-14T22:13:20.25", "2023-11-14T22:13:20"], [1700000000.25, 1700000000.0], pa.float64()),
        (["2023-11-14T22:13:20.250000999", "2023-11-14T22:13:20"], [1700000000.25, 1700000000.0], pa.float64()),
    ],
    ids=["whole", "fractions", "dates and times", "dates", "zones", "parts of seconds", "nanoseconds"],
)
def test_times_are_exact(tmp_path: Path, written: list[str], times: list[float], kind: pa.DataType) -> None:
    rows = [f"ann\tx\t{time}" for time in written]
    path = write(tmp_path, "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]))
    column = read_atomic(path, LAYOUT, ["timestamp"])["timestamp"]
    assert (column.to_pylist(), column.type) == (times, kind)


def test_a_missing_token_or_number_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\tcity:token\trating:float\nann\t\t\nbob\tBonn\tNA\n")
    assert read(path) == {"user_id": ["ann", "bob"], "city": [None, "Bonn"], "rating": [None, None]}


HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\ttags:float_seq\n"
GOOD = "ann\tx\t1\t5\t1 2\n"

WRONG: dict[str, tuple[str | bytes, str]] = {
    "no number": (GOOD + "\nbob\ty\tfour\t5\t\n", "line 4, column 'rating': 'four' is not a number"),
    "digits of another script": (GOOD + "bob\ty\t٤\t5\t\n", "line 3, column 'rating': '٤' is not a number"),
    "no time": (GOOD + "bob\ty\t1\tsoon\t\n", "line 3, column 'timestamp': 'soon' is not a time"),
    "no finite time": (GOOD + "bob\ty\t1\tinf\t\n", "line 3, column 'timestamp': 'inf' is not a time"),
    "no list of numbers": (GOOD + "bob\ty\t1\t5\t1 b\n", "line 3, column 'tags': '1 b' is not a list of numbers"),
    "a field too many": (GOOD + "bob\ty\t1\t5\t\t\n", "line 3: it has 6 fields, but the first line names 5 columns"),
    "a field too few": (GOOD * 2 + "bob\ty\n", "line 4: it has 2 fields, but the first line names 5 columns"),
    "an empty id": (GOOD + "bob\t\t1\t5\t\n", "line 3, column 'item_id': '' is empty; write an id, or remove the line"),
    "the id of padding": (GOOD + "[PAD]\ty\t1\t5\t\n", "line 3, column 'user_id': '[PAD]' is not an id"),
    "a long id": (GOOD + "u" * 5000 + "\ty\t1\t5\t\n", "uuu...' is longer than 4,096 bytes"),
    "NUL": (GOOD + "b\0b\ty\t1\t5\t\n", "line 3, column 'user_id': 'b\\x00b' holds a NUL byte"),
    "latin-1": (GOOD.encode() + b"Jos\xe9\ty\t1\t5\t\n", "line 3, column 'user_id': 'Jos\\udce9' is not UTF-8"),
    "no rows": ("", "has a header but no interactions; expected one per line"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_refused_with_its_line_and_value(tmp_path: Path, case: str) -> None:
    rows, message = WRONG[case]
    path = write(tmp_path, HEADER.encode() + (rows if isinstance(rows, bytes) else rows.encode()))
    with pytest.raises(UserError) as refused:
        read(path)
    assert str(refused.value).startswith(f"'{path}'")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_row_needs_a_time_only_where_rows_are_ordered_by_it(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\titem_id:token\ttimestamp:float\nann\tx\t5\nann\ty\t\n")
    assert read(path)["timestamp"] == [5, None]
    with pytest.raises(UserError, match="line 3, column 'timestamp': '' is not a time"):
        read(path, Layout(ids=IDS, time="timestamp", ordered=True))


def test_dates_that_are_called_tokens_are_times_where_rows_are_ordered_by_them(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\titem_id:token\ttimestamp:token\nann\tx\t2023-11-14\n")
    assert read(path)["timestamp"] == ["2023-11-14"]
    assert read(path, Layout(ids=IDS, time="timestamp", ordered=True))["timestamp"] == [1699920000]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("user_id\titem_id\trating", r"Write 'user_id:token\\titem_id:token\\trating:float'.*prepare --source=FILE"),
        ("user_id:token\titem_id", "expected columns as name:type"),
        (
            "user_id:token\titem_id:string",
            "line 1, column 'item_id': the type 'string' is unknown; expected one of token",
        ),
        ("user_id:token\tuser_id:token", "line 1: two columns are called 'user_id'"),
        ("user_id:float\titem_id:token", "'user_id:float' is a column of ids; expected user_id:token"),
        ("", "expected columns as name:type"),
        ("\0\1\2", "Cannot read"),
    ],
)
def test_the_first_line_names_the_columns_and_their_types(tmp_path: Path, first: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fields_of(write(tmp_path, f"{first}\nann\tx\n"), LAYOUT)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        fields_of(tmp_path / "none.inter", LAYOUT)


# Whatever is written is read back.

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\x1f"), min_size=1, max_size=8)


@given(
    data=st.data(),
    separator=st.sampled_from(["\t", ",", ";", "|", "::", "→"]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_numbers_and_times_come_back_as_they_were_written(
    tmp_path: Path, data: st.DataObject, separator: str, end: str, mark: bool
) -> None:
    quoted = separator in (",", ";")
    ids = _TEXT.filter(lambda text: text != "[PAD]" and (quoted or (separator not in text and text != "\ufeff")))
    if separator == "::":  # else a field that ends in a colon moves the separator
        ids = ids.filter(lambda text: ":" not in text)
    rows = data.draw(
        st.lists(st.tuples(ids, ids, st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)), min_size=1)
    )
    file = io.StringIO()
    if quoted:
        csv.writer(file, delimiter=separator, lineterminator=end).writerows(rows)
    else:
        file.write("".join(separator.join(map(str, row)) + end for row in rows))
    header = separator.join(["user_id:token", "item_id:token", "rating:float", "timestamp:float"]) + end
    path = write(tmp_path, "\ufeff" * mark + header + file.getvalue())

    columns = [list(column) for column in zip(*rows)]
    assert list(read(path, Layout(separator=separator, ids=IDS, time="timestamp")).values()) == columns
