"""docs/ says of options what the program says."""

from __future__ import annotations

import pytest

from recbole_kd.options import described
from recbole_kd.verbs.options import VERBS
from tests.docs_tables import pages, renewed


def test_every_verb_has_a_page() -> None:
    assert set(pages()) == set(VERBS) - {"completion"}


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"completion"}))
def test_a_page_has_the_table_of_its_verbs_options(verb: str) -> None:
    text = pages()[verb].read_text(encoding="utf-8")
    assert text.count(f"<!-- options: {verb} -->") == 1
    assert renewed(text) == text, "run: python -m tests.docs_tables --write"
    for one in described(VERBS[verb]):
        assert f"`{one.flag}`" in text


def test_a_table_follows_the_options() -> None:
    text = "before\n<!-- options: report -->\nold\n<!-- end -->\nafter"
    lines = renewed(text).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "| `--results=DIR/results.json` | the results.json that compare wrote | needed |" in lines
