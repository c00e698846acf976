"""Options are checked when a section is read: an error names section, field, and what would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import pytest

from recbole_kd.errors import UserError
from recbole_kd.options import Options, option


@dataclass(frozen=True)
class Example(Options):
    weight: float = option(1.0, "the weight", minimum=0)
    items: int = option(10, "how many", minimum=1, maximum=100)
    sampling: str = option("top", "how", choices=("top", "exponential"))
    filter: Optional[tuple[float, ...]] = option(None, "coefficients", above=-1)
    better: bool = option(False, "whether")


def test_a_section_gives_its_options() -> None:
    options = Example.parse("rrd", {"weight": 2, "filter": [1, 0.5]})
    assert options == Example(weight=2.0, filter=(1.0, 0.5))
    assert isinstance(options.weight, float)
    assert Example.parse("rrd", None) == Example()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wieght": 1}, "Unknown option 'rrd.wieght'. Did you mean 'weight'?"),
        ({"weight": -1}, "rrd.weight=-1 is out of range; expected at least 0."),
        ({"weight": "high"}, "rrd.weight='high' is not a number"),
        ({"weight": float("nan")}, "rrd.weight=nan is out of range"),
        ({"weight": True}, "rrd.weight=True is not a number"),
        ({"items": 2.5}, "rrd.items=2.5 is not a whole number; expected at least 1 and at most 100."),
        ({"items": 101}, "rrd.items=101 is out of range"),
        ({"sampling": "tpo"}, "rrd.sampling='tpo' is not one of top, exponential. Did you mean 'top'?"),
        ({"filter": 3}, "rrd.filter=3 is not a list"),
        ({"filter": [1, -2]}, "rrd.filter=-2 is out of range"),
        ({"better": "yes"}, "rrd.better='yes' is not true or false"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        Example.parse("rrd", values)
    assert message in str(raised.value)


def test_a_section_is_a_mapping() -> None:
    with pytest.raises(UserError, match="Section 'rrd' is 3; expected options by name"):
        Example.parse("rrd", 3)  # type: ignore[arg-type]
