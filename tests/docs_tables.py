"""The tables of options in docs/, made of the verbs' options. ``python -m tests.docs_tables --write`` renews them.

A page has its table between ``<!-- options: VERB -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from recbole_kd.verbs.help import markdown
from recbole_kd.verbs.options import VERBS

DOCS = Path(__file__).parents[1] / "docs"
_MARKED = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """A page's text with its tables as the options say."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{markdown(found[2])}\n\n{found[3]}", text)


def pages() -> dict[str, Path]:
    """Verb -> its page."""
    return {verb: DOCS / f"{verb}.md" for verb in VERBS if (DOCS / f"{verb}.md").is_file()}


if __name__ == "__main__":
    for page in pages().values():
        text = page.read_text(encoding="utf-8")
        if text != renewed(text):
            print(page)
            if "--write" in sys.argv:
                page.write_text(renewed(text), encoding="utf-8")
