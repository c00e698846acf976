"""The page in a real browser: nothing on the console, every chart drawn, whatever the width."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from recbole_kd.report.page import html_page
from recbole_kd.report.view import Comparison
from tests.report.fabricated import METRICS, MODELS, fabricated

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt-get install chromium)"),
]


def dump(page: Path, profile: Path, width: int = 1300) -> tuple[str, list[str]]:
    """(the document after its scripts have run, the lines of its console)."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", f"--window-size={width},3000"),
        *("--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def drawn(document: str) -> dict[str, int]:
    """Id of each chart -> paths and text that plotly drew into it."""
    parts = re.split(r'<div class="chart[^"]*" id="([\w-]+)"', document)
    return {name: len(re.findall(r"<(?:path|text|rect)\b", part)) for name, part in zip(parts[1::2], parts[2::2])}


@pytest.fixture
def page(report: Path) -> Path:
    return report / "report.html"


def test_every_chart_is_drawn_and_the_console_is_silent(page: Path, tmp_path: Path) -> None:
    document, console = dump(page, tmp_path / "profile")
    assert console == []
    charts = drawn(document)
    assert {"bars", "latency", "size", "significance", "validation"} <= set(charts)
    assert len([name for name in charts if name.startswith("loss-")]) == 12
    for name, shapes in charts.items():
        assert shapes > 10, name
    assert document.count('class="main-svg"') >= len(charts)


def test_another_metric_and_a_hidden_model_redraw_every_chart(page: Path, tmp_path: Path) -> None:
    # The same page, used as a reader would: its own controls are operated by a script at its end.
    acted = tmp_path / "acted.html"
    action = """<script>
      const select = document.getElementById("metric");
      select.value = "hit@10";
      select.dispatchEvent(new Event("change"));
      document.querySelector('.chip[data-model="DERRDStudent"]').click();
      const places = [...document.querySelectorAll(".chart")];
      const shown = place => place.data.filter(trace => trace.meta === "DERRDStudent").map(trace => trace.visible);
      document.body.dataset.axis = document.getElementById("bars").layout.xaxis.title.text;
      document.body.dataset.shown = places.flatMap(shown).some(visible => visible !== false);
      document.body.dataset.wide = places.filter(place => place.scrollWidth > place.clientWidth + 1).length;
    </script></body>"""
    acted.write_text(page.read_text().replace("</body>", action))
    document, console = dump(acted, tmp_path / "profile", width=500)
    assert console == []
    assert 'data-axis="Hit@10"' in document
    assert 'data-shown="false"' in document
    assert 'data-wide="0"' in document


def test_one_bare_model_and_a_hostile_name(tmp_path: Path) -> None:
    results = fabricated(seeds=1, models=[("<img src=x onerror=alert(1)>", *MODELS[1][1:])])
    results["significance"] = {metric: {} for metric in METRICS}
    page = tmp_path / "report.html"
    page.write_text(html_page(Comparison(results)))
    document, console = dump(page, tmp_path / "profile")
    assert console == []
    assert "<img" not in document
    assert drawn(document)["bars"] > 5
