"""RecBole's sequential models: those that train, evaluate, teach and learn here, and why the others are not offered.

``docs/sequential.md`` has the table; these tests hold it to what happens.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import recbole

from recbole_kd.registry import MODELS, load_class
from recbole_kd.testing import known_sequences_settings, write_known_sequences
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SMALL

FOLDER = Path(recbole.__file__).parent / "model" / "sequential_recommender"
DOCS = Path(__file__).parents[1] / "docs" / "sequential.md"
OFFERED = [name for name, entry in MODELS.items() if entry.sequential and entry.path.startswith("recbole.")]
#: Reason -> the models of RecBole that are not offered for it.
NOT_OFFERED = {
    "scores depend on the user": ["Caser", "FOSSIL", "FPMC", "HGN", "HRM", "NPE", "SHAN", "TransRec"],
    "scores are no product of a sequence's and an item's vector": ["CORE", "RepeatNet"],
    "needs columns of items, pretrained vectors or a knowledge graph": [
        *("FDSA", "GRU4RecF", "GRU4RecKG", "KSR", "S3Rec", "SASRecF"),
    ],
    "reads a sequence of negatives, which the loader does not draw": ["DIEN"],
    "keeps a module where checkpoints hold plain values": ["DIN"],
    "compares with negatives, and its settings draw none": ["SINE"],
    "selects more items than a small catalogue has": ["GRU4RecCPR", "SASRecCPR"],
    "prints lines of its own": ["FEARec"],
}


def test_every_sequential_model_of_recbole_is_offered_or_has_a_reason() -> None:
    classes = set()
    for file in FOLDER.glob("*.py"):
        classes |= set(
            re.findall(r"^class (\w+)\((?:SequentialRecommender|\w*GRU4Rec|SASRec)\)", file.read_text("utf8"), re.M)
        )
    refused = [name for names in NOT_OFFERED.values() for name in names]
    assert {*OFFERED, *refused} >= classes
    assert not {*OFFERED} & {*refused}
    for name in (*OFFERED, *refused):
        assert (FOLDER / f"{name.lower()}.py").is_file(), name


def test_the_page_says_so() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for reason, names in NOT_OFFERED.items():
        assert f"| {', '.join(names)} | {reason} |" in text
    assert all(name in text for name in OFFERED)


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFERED)
def test_an_offered_model_trains_teaches_and_learns(name: str, tmp_path: Path) -> None:
    write_known_sequences(tmp_path)

    def run(model: str, **settings: Any) -> dict[str, Any]:
        given = known_sequences_settings(tmp_path, **{"baseline": "none", "epochs": 1, **settings})
        return run_recbole_kd(model, "known-sequences", config_dict=given)

    small = {**SMALL[name], "learning_rate": 0.02}
    assert run(name, **small, distill=[], epochs=40, eval_step=40)["test_result"]["recall@5"] > 0.5
    kd = {"distill": ["kd"], "kd.items": 8, "teacher.epochs": 1}
    teacher = {f"teacher.{key}": value for key, value in SMALL[name].items()}
    assert run("GRU4Rec", **kd, **teacher, **{"teacher.model": name})["teacher"]["model"] == name
    assert run(name, **SMALL[name], **kd, **{"teacher.model": "GRU4Rec"})["distillers"] == ["kd"]


def test_they_are_loaded_from_recbole() -> None:
    assert all(load_class(MODELS[name].path).__module__.startswith("recbole.") for name in OFFERED)
