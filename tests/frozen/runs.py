"""Short runs whose numbers are kept: the program behaves today as it did when ``expected/`` was written.

A run is a list of commands, given as a user types them, in one process and one folder. Of each command what matters is
kept to the last digit: losses, metrics, chosen epochs, tables, keys of caches and hashes of weights. Seconds, paths,
versions and memory are left out. All runs together take three minutes of one core.

``test_frozen.py`` compares. ``expected/`` changes only on purpose, and a commit that changes it says why::

    python -m tests.frozen.runs --write                      # every run; or name some: --write resume simrec
    python -m tests.frozen.runs --write --code=FOLDER --expected=FOLDER2

The second form runs the program of another checkout. Sums round differently on another processor or with another torch,
and the test then allows for it (:func:`difference`). For a comparison to the digit there, let the program of an older
checkout write FOLDER2 on that machine, and give the test FOLDER2 as the environment variable FROZEN_EXPECTED.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXPECTED = Path(os.environ.get("FROZEN_EXPECTED") or HERE / "expected")
#: Files that the program wrote before it was rebuilt; its README.md says how.
OLD = HERE / "old"
#: What depends on the last bit of every sum: equal on one machine alone.
BITS = "bits"


class Step(NamedTuple):
    """One command of a run.

    Attributes:
        name: what later steps call its files: ``$name`` is what it wrote, or a student's checkpoint; ``$name_last``,
            ``$name_teacher`` and ``$name_baseline`` are the other checkpoints that ``train`` leaves.
        verb: the command line's.
        settings: what is set, beside what the run says of all its steps.
    """

    name: str
    verb: str
    settings: dict[str, Any]


def train(name: str, **settings: Any) -> Step:
    """A step that trains; ``__`` stands for the dot of a section, so that ``teacher__epochs`` is ``teacher.epochs``."""
    return step(name, "train", **settings)


def step(name: str, verb: str, **settings: Any) -> Step:
    """A step with any verb; names of settings as in :func:`train`."""
    return Step(name, verb, {key.replace("__", "."): value for key, value in settings.items()})


@dataclass(frozen=True)
class Run:
    """Commands that follow one another in one folder, and what all that train, tune or compare are given."""

    settings: dict[str, Any]
    steps: tuple[Step, ...]


#: Metrics with all their digits, RecBole's loader, no GPU.
ALWAYS = {
    "use_gpu": False,
    "fast_sampling": False,
    "show_progress": False,
    "metric_decimal_place": 12,
    "topk": [10, 20],
    "valid_metric": "NDCG@10",
}
MOVIES = {**ALWAYS, "dataset": "ml-100k", "train_batch_size": 4096, "learning_rate": 0.01, "epochs": 2}
MOVIES |= {"teacher.epochs": 2, "teacher.embedding_size": 32, "embedding_size": 16}
#: 48 users and 40 items in four tastes.
TASTES = {**ALWAYS, "config_files": "tastes.yaml", "train_batch_size": 128, "learning_rate": 0.01, "epochs": 3}
#: 48 users who each go through 24 items in the same order.
SEQUENCES = {**ALWAYS, "config_files": "sequences.yaml", "train_batch_size": 64, "learning_rate": 0.01, "epochs": 3}
BY_SASREC = {
    "teacher": "SASRec",
    "teacher.epochs": 3,
    "teacher.hidden_size": 16,
    "teacher.inner_size": 32,
    "teacher.n_layers": 1,
}
SMALL = {"hidden_size": 8, "inner_size": 16, "n_heads": 2, "n_layers": 1}
#: Lists that fit 40 items.
LISTS = {
    **{f"{name}.{side}": 4 for name in ("rrd", "ir_rrd", "dcd") for side in ("interesting", "uninteresting")},
    **{f"{name}.pool": 8 for name in ("rrd", "ir_rrd", "dcd", "cd", "unkd")},
    **dict.fromkeys(("de.experts", "htd.experts", "cd.samples"), 3),
    **dict.fromkeys(("kd.items", "unkd.pairs"), 6),
    "unkd.groups": 2,
    "rd.start_epoch": 1,
    "rd.dynamic_samples": 9,
    "rd.interesting": 4,
}


def lists(*distillers: str) -> dict[str, Any]:
    """The options of these distillers that fit few items, and the distillers themselves."""
    options = {key: value for key, value in LISTS.items() if key.partition(".")[0] in distillers}
    return {"distill": ",".join(distillers), **options}


#: The student that is stopped and goes on: annealing ends after four epochs, however many a command asks for.
STUDENT = {
    **lists("de", "rrd"),
    "model": "DERRDStudent",
    "embedding_size": 8,
    "de__anneal_epochs": 4,
    "rrd__weight": 0.5,
    "teacher__embedding_size": 16,
    "teacher__epochs": 3,
    "baseline": "none",
}
#: The same with three epochs, written by the program before it was rebuilt.
OLD_STUDENT = "old/DERRDStudent-known-answer-2020-20261129-014028-496257-12705"

RUNS: dict[str, Run] = {
    # Response: scores and ranks of a teacher, on real data; what is done with the student afterwards.
    "response": Run(
        MOVIES,
        (
            train(
                "student",
                model="BPR",
                teacher="BPR",
                distill="rd,cd,kd,rrd,ir_rrd,unkd,dcd",
                baseline="student",
                rd__start_epoch=1,
            ),
            step(
                "metrics",
                "evaluate",
                checkpoint="$student",
                topk=[5],
                metrics=["Recall", "Precision", "ItemCoverage"],
                metric_decimal_place=12,
            ),
            step("listed", "recommend", checkpoint="$student", users="196,186,22", k=5, seen="train+valid"),
            step("later", "recommend", checkpoint="$student_teacher", users="all", k=3, seen="all", format="jsonl"),
            step("served", "export", checkpoint="$student", seen="all"),
        ),
    ),
    # Feature and relation: vectors of a graph teacher; what the student took over from it.
    "vectors": Run(
        {**TASTES, **lists("fitnet", "de", "freqd", "phr", "ftd", "htd", "rkd"), "baseline": "BPR"},
        (
            train("student", model="LightGCN", teacher="LightGCN", teacher__embedding_size=16, embedding_size=8),
            step(
                "analysis",
                "analyse",
                student="$student",
                teacher="$student_teacher",
                baseline="$student_baseline",
                groups=4,
                bands=5,
                data_path="data",
            ),
        ),
    ),
    "simrec": Run(
        {**MOVIES, "teacher.embedding_size": 16},
        (train("student", model="SimRecStudent", simrec__triplets=20000, simrec__catalogue=800, epochs=2),),
    ),
    # The next item of a sequence.
    "sequential": Run(
        {**SEQUENCES, **BY_SASREC, "repeatable": True},
        (
            train("scores", model="SASRec", **lists("kd", "dkd", "rrd"), **SMALL, kd__guide="student"),
            train(
                "vectors",
                model="SASRec",
                **lists("rkd", "ftd", "htd", "fitnet", "de", "phr"),
                **SMALL,
                trim_padding=True,
            ),
            train("recurrent", model="DKDStudent", student="GRU4Rec", epochs=2),
            step("listed", "recommend", checkpoint="$scores", users="u1,u2", k=4, exclude_seen=True, data_path="data"),
        ),
    ),
    # The same ranked without what a user has seen, which is the default for these data.
    "unseen": Run(
        {**SEQUENCES, **BY_SASREC},
        (
            train("scores", model="SASRec", **lists("kd", "dkd", "rrd"), **SMALL, kd__guide="student"),
            step("listed", "recommend", checkpoint="$scores", users="u1,u2", k=4, data_path="data"),
            step(
                "metrics",
                "evaluate",
                checkpoint="$scores",
                repeatable=True,
                topk=[10, 20],
                metric_decimal_place=12,
                data_path="data",
            ),
        ),
    ),
    # Two teachers as one, by ranks and by scores; the second command finds both in the cache.
    "teachers": Run(
        {**MOVIES, "model": "BPR", "teacher": "BPR,EASE", "teacher.1.share": 0.5},
        (
            train("by_ranks", distill="rrd,fitnet"),
            train("by_scores", distill="kd,unkd,ir_rrd", teacher__fusion="scores"),
        ),
    ),
    # Teachers that are files: a checkpoint, and another system's ranked lists.
    "files": Run(
        {**TASTES, "embedding_size": 8},
        (
            train("plain", model="LightGCN", learning_rate_schedule="cosine", split_seed=7),
            step("lists", "recommend", checkpoint="$plain", users="all", k=12, data_path="data"),
            train("by_lists", model="BPR", teacher__ranks="$lists", **lists("rrd", "cd", "kd", "unkd"), split_seed=7),
            train("by_file", model="BPR", teacher__checkpoint="$plain", **lists("ir_rrd", "dcd"), split_seed=7),
        ),
    ),
    # A run of four epochs, and one that is stopped after two and goes on.
    "resume": Run(
        TASTES,
        (
            train("whole", **STUDENT, epochs=4),
            train("stopped", **STUDENT, epochs=3),
            train("resumed", **STUDENT, epochs=4, resume="$stopped_last"),
        ),
    ),
    # Two processes: gradients and metrics are put together, and the numbers are those of one but for rounding.
    "processes": Run(
        {**TASTES, "model": "BPR", "teacher": "LightGCN", "teacher.epochs": 2, "embedding_size": 8, "epochs": 2},
        (train("two", **lists("rrd", "de", "htd"), nproc=2), train("one", **lists("rrd", "de", "htd"))),
    ),
    # A dataset prepared from a raw file, and SEvo on three of its graphs.
    "sevo": Run(
        {**ALWAYS, "epochs": 2, "train_batch_size": 64},
        (
            step("prepared", "prepare", dataset="gowalla", source="checkins.txt", minimum=3, data_path="data"),
            train(
                "bipartite",
                model="BPR",
                dataset="gowalla",
                data_path="data",
                learner="sevo_adam",
                sevo__graph="bipartite",
                sevo__beta=0.9,
                embedding_size=8,
            ),
            train(
                "consecutive",
                model="SASRec",
                config_files="sequences.yaml",
                repeatable=True,
                learner="sevo_adamw",
                weight_decay=0.01,
                **SMALL,
            ),
            train(
                "by_teacher",
                model="STOSA",
                config_files="sequences.yaml",
                repeatable=True,
                learner="sevo_sgd",
                sevo__graph="teacher",
                sevo__neighbours=3,
                sevo__iterative=True,
                teacher__checkpoint="$consecutive",
                **SMALL,
            ),
        ),
    ),
    # Students of other kinds: pairs encoded together, all of a user's items at once, cosines.
    "students": Run(
        {**TASTES, "teacher.epochs": 3},
        (
            train(
                "pairs",
                model="NeuMF",
                teacher="NeuMF",
                **lists("de", "fitnet", "cd"),
                mf_embedding_size=4,
                mlp_embedding_size=4,
                mlp_hidden_size=[8, 4],
                teacher__mf_embedding_size=8,
                teacher__mlp_hidden_size=[16, 8],
            ),
            train(
                "autoencoder",
                model="MultiVAE",
                teacher="BPR",
                **lists("kd", "rrd", "rd"),
                latent_dimension=8,
                mlp_hidden_size=[16],
            ),
            train("cosines", model="RRDStudent", student="SimpleX", **lists("rrd"), embedding_size=8),
        ),
    ),
    "tune": Run(
        {**TASTES, "model": "RRDStudent", **lists("rrd"), "embedding_size": 8, "teacher.epochs": 2, "baseline": "none"},
        (step("search", "tune", trials=4, cpus=1, epochs=3, grace_epochs=1, params_file="space.hyper"),),
    ),
    "compare": Run(
        {**TASTES, "embedding_size": 8, "teacher.epochs": 2, "teacher.embedding_size": 16, "epochs": 2},
        (
            step(
                "comparison",
                "compare",
                models="BPR,RRDStudent",
                seeds=2,
                rrd__weight=0.5,
                **{key: value for key, value in lists("rrd").items() if key != "distill"},
            ),
        ),
    ),
    # What the program wrote before it was rebuilt is still read.
    "old": Run(
        {**TASTES, "checkpoint_dir": "old"},
        (
            step("metrics", "evaluate", checkpoint=f"{OLD_STUDENT}.pth", data_path="data", metric_decimal_place=12),
            step("listed", "recommend", checkpoint=f"{OLD_STUDENT}.pth", users="u0,u47", k=5, data_path="data"),
            train("resumed", **STUDENT, epochs=4, resume=f"{OLD_STUDENT}-last.pth"),
            train("from_cache", **STUDENT, epochs=1),
            train("by_recbole", model="BPR", epochs=1, teacher__checkpoint="old/recbole.pth", **lists("rrd")),
            step(
                "experts",
                "analyse",
                student=f"{OLD_STUDENT}.pth",
                teacher="old/teachers/BPR-known-answer-615671d1ae25d416.pth",
                parts="experts,compression",
                data_path="data",
            ),
            step("page", "report", results="old/results.json"),
            step("names", "list"),
        ),
    ),
}

#: Verbs that take what a run says of all its steps.
TRAINING = ("train", "tune", "compare")


# Making a run


def make(name: str, code: Path = ROOT) -> dict[str, Any]:
    """Makes the run `name` with the program in the checkout `code`, and returns what is kept of it.

    The run is a process of its own with one thread, so that sums have one order.

    Raises:
        RuntimeError: a command failed; the end of what the process said.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **threads, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(HERE / "runs.py"), "--inside", name]
        ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"Run {name} failed.\n{(ended.stdout + ended.stderr)[-4000:]}")
        record: dict[str, Any] = json.loads(Path(folder, "record.json").read_text())
    return record


def make_inside(name: str) -> None:
    """Makes the run in this process and in the current folder, and writes ``record.json``."""
    from recbole_kd.cli import main as command_line

    write_inputs(Path())
    run = RUNS[name]
    known: dict[str, str] = {}
    record: dict[str, Any] = {}
    for one in run.steps:
        setting, suffix, keep = VERBS[one.verb]
        output = Path(f"{one.name}{suffix}")
        given = {
            **(run.settings if one.verb in TRAINING else {}),
            **one.settings,
            **({setting: output} if setting else {}),
        }
        words = [f"--{key}={Template(_text(value)).safe_substitute(known)}" for key, value in given.items()]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = command_line([one.verb, *words])
        if code:
            sys.exit(f"exit code {code} of {one.verb} {' '.join(words)}")
        if not setting:
            output.write_text(said.getvalue())
        known[one.name] = str(output)
        if one.verb == "train":
            known |= _checkpoints(one.name, json.loads(output.read_text()))
        record[one.name] = keep(output)
    record["cache"] = _cached(Path(run.settings.get("checkpoint_dir", "saved")))
    Path("record.json").write_text(json.dumps(record))


def _text(value: Any) -> str:
    """A setting's value as a user would type it."""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


def write_inputs(folder: Path) -> None:
    """All that a run may read: two datasets with their settings, raw check-ins, a search space, old files."""
    from recbole_kd.testing import write_known_answer, write_known_sequences

    data = folder / "data"
    write_known_answer(data)
    write_known_sequences(data)
    (folder / "tastes.yaml").write_text(
        "dataset: known-answer\ndata_path: data\nbenchmark_filename: [train, valid, test]\n"
        "load_col: {inter: [user_id, item_id]}\n"
    )
    (folder / "sequences.yaml").write_text(
        "dataset: known-sequences\ndata_path: data\nload_col: {inter: [user_id, item_id, timestamp]}\n"
        "MAX_ITEM_LIST_LENGTH: 6\n"
    )
    (folder / "space.hyper").write_text(
        "learning_rate loguniform -7,-3\nrrd.weight uniform 0.0,0.5\nrrd.interesting choice [2,4]\n"
    )
    visits = [(user, day, (7 * user + day * (1 + user % 5)) % 23) for user in range(40) for day in range(9)]
    visits += [(user, day, 100 + user) for user in range(36, 44) for day in (10, 11, 12)]  # too rare, and repeated
    (folder / "checkins.txt").write_text(
        "".join(
            f"{user}\t2010-10-{day + 1:02}T{user % 24:02}:00:00Z\t1.5\t2.5\t{place}\n" for user, day, place in visits
        )
    )
    shutil.copytree(OLD, folder / "old")


def _checkpoints(name: str, result: Mapping[str, Any]) -> dict[str, str]:
    """The files of a training that later commands can name."""
    found = {name: result["checkpoint"], f"{name}_last": re.sub(r"\.pth$", "-last.pth", result["checkpoint"])}
    for role in ("teacher", "baseline"):
        if result[role] and result[role]["checkpoint"]:
            found[f"{name}_{role}"] = result[role]["checkpoint"]
    return found


# What is kept of a command


def _trained(file: Path) -> dict[str, Any]:
    result = json.loads(file.read_text())
    kept = _only(
        result, "model student dataset seed distillers best_valid_score best_valid_result test_result best_epoch"
    )
    kept |= _only(result, "epochs_trained loss_history valid_history parameters")
    kept["data"] = result["digests"]["data"]
    kept["baseline"] = _other(result["baseline"])
    kept["teacher"] = _other(result["teacher"])
    kept[BITS] = {"weights": _weights(Path(result["checkpoint"])), "teacher": (result["teacher"] or {}).get("digest")}
    return kept


def _other(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a result tells of a teacher or baseline. The name of a file in the cache is its key there."""
    if told is None:
        return None
    kept = _only(told, "model from_cache test_result parameters")
    if told.get("checkpoint") and "teachers" in Path(told["checkpoint"]).parts:
        kept["file"] = Path(told["checkpoint"]).name
    if "members" in told:
        kept["members"] = [_other(member) for member in told["members"]]
    return kept


def _only(values: Mapping[str, Any], names: str) -> dict[str, Any]:
    return {name: values[name] for name in names.split() if name in values}


def _weights(checkpoint: Path) -> str:
    """sha256 of the names and elements of a checkpoint's weights."""
    hasher = hashlib.sha256()
    for name, value in sorted(torch.load(checkpoint, weights_only=True)["state_dict"].items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _cached(folder: Path) -> dict[str, Any]:
    """Names of files in the caches, which are digests of what they hold: a new name is an old file that is not found."""
    names = {kind: sorted(path.name for path in (folder / kind).glob("*")) for kind in ("teachers", "ranks", "graphs")}
    return {"teachers": names.pop("teachers"), BITS: names}


def _evaluated(file: Path) -> dict[str, Any]:
    return _only(json.loads(file.read_text()), "model dataset valid_result test_result")


def _recommended(file: Path) -> dict[str, Any]:
    lines = file.read_text().splitlines()
    return {"lines": len(lines), BITS: {"first": lines[:6], "sha256": _sha256(file)}}


def _exported(bundle: Path) -> dict[str, Any]:
    manifest = json.loads((bundle / "manifest.json").read_text())
    kept = _only(manifest, "format model backbone dataset users items dimension score seen valid_result index")
    kept["files"] = {name: _sha256(bundle / name) for name in ("users.jsonl", "items.jsonl", "seen.safetensors")}
    kept[BITS] = {"vectors": _sha256(bundle / "vectors.safetensors"), "model": manifest["digests"]["model"]}
    return kept


def _analysed(tables: Path) -> dict[str, Any]:
    return {path.stem: _table(path) for path in sorted(tables.glob("*.csv"))}


def _table(file: Path) -> list[list[Any]]:
    """A CSV's rows; cells that are numbers as numbers."""
    with file.open(newline="") as lines:
        return [[_number(cell) for cell in row] for row in csv.reader(lines)]


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def _tuned(search: Path) -> dict[str, Any]:
    result = json.loads((search / "result.json").read_text())
    kept = _only(result, "model dataset seed valid_metric space counts test_result")
    names = "trial settings status score best_epoch epochs valid_result valid_history message"
    kept["trials"] = [_only(trial, names) for trial in result["trials"]]
    kept["best"] = _only(result["best"], "trial settings score best_epoch valid_result")
    kept[BITS] = {"weights": _weights(Path(result["best"]["checkpoint"]))}
    return kept


def _compared(comparison: Path) -> dict[str, Any]:
    results = json.loads((comparison / "results.json").read_text())
    kept = _only(results, "format dataset split metrics valid_metric seeds reference teacher")
    # The last digits of a p-value are those of a version of scipy.
    kept["significance"] = _rounded(results["significance"])
    kept["budget"] = _only(results["budget"], "tune_trials epochs stopping_step")
    names = (
        "name role backbone teacher reference distillers settings mean deviation confidence relative_gain gap_closed"
    )
    of_runs = "seed test_result best_valid_result best_epoch loss_history valid_history"
    kept["rows"] = [
        {
            **_only(row, names),
            "parameters": row["costs"]["parameters"],
            "runs": [_only(run, of_runs) for run in row["runs"]],
        }
        for row in results["rows"]
    ]
    return kept


def _rounded(value: Any) -> Any:
    """Numbers with ten digits, in lists and mappings."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def _reported(page: Path) -> dict[str, Any]:
    return {"results.csv": _table(page / "results.csv"), "files": sorted(path.name for path in page.iterdir())}


def _prepared(output: Path) -> dict[str, Any]:
    made = Path("data", "gowalla")
    record = json.loads((made / "prepare.json").read_text())
    return {**_only(record, "dataset minimum raw result"), "sha256": _sha256(made / "gowalla.inter")}


def _listed(output: Path) -> dict[str, Any]:
    """Under each heading the names that its lines begin with."""
    kinds: dict[str, list[str]] = {}
    for line in output.read_text().splitlines():
        if re.fullmatch(r"[A-Z]\w+", line):
            kinds[line.lower()] = []
        elif name := re.match(r"  (\w[\w-]*)", line):
            kinds[list(kinds)[-1]].append(name[1])
    return {kind: sorted(names) for kind, names in kinds.items() if kind != "datasets"}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


#: Verb -> the setting that says where it writes, what is added to the step's name there, and what is kept of it.
VERBS: dict[str, tuple[str, str, Any]] = {
    "train": ("result_file", ".json", _trained),
    "evaluate": ("result_file", ".json", _evaluated),
    "recommend": ("output", ".csv", _recommended),
    "export": ("output", "", _exported),
    "analyse": ("output", "", _analysed),
    "tune": ("output", "", _tuned),
    "compare": ("output", "", _compared),
    "report": ("output", "", _reported),
    "prepare": ("", "", _prepared),
    "list": ("", "", _listed),
}


# Comparing


def machine() -> dict[str, str]:
    """What the order and rounding of sums depend on."""
    found = {"torch": torch.__version__, "kernels": torch.backends.cpu.get_cpu_capability()}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "cpu family", "model"):
            found.setdefault(name.strip(), value.strip())
    return found


def difference(expected: Any, found: Any, exact: bool = True, path: str = "") -> str | None:
    """The first place where two records differ, with both values; None where they are equal.

    Args:
        exact: to the last digit. Otherwise numbers may differ by 2e-4 of their size, a metric by 0.02 (a user in the
            list or not), and what stands under "bits" is not looked at.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key == BITS and not exact:
                continue
            if key not in expected or key not in found:
                return f"{path}.{key}: {'not expected' if key in found else 'missing'}"
            if told := difference(expected[key], found[key], exact, f"{path}.{key}"):
                return told
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        told = (difference(*pair, exact, f"{path}[{index}]") for index, pair in enumerate(zip(expected, found)))
        return next((one for one in told if one), None)
    if not exact and type(expected) is type(found) is float:
        metric = "@" in path.rpartition(".")[2] or path.endswith("score")
        if math.isclose(expected, found, rel_tol=2e-4, abs_tol=0.02 if metric else 1e-7):
            return None
    same = type(expected) is type(found) and expected == found
    return None if same else f"{path}: expected {expected!r}, found {found!r}"


def main() -> None:
    """``--write``: makes the runs and keeps them as what is expected; without it, says what differs."""
    parser = argparse.ArgumentParser(description="Runs whose numbers are kept.")
    parser.add_argument("names", nargs="*", metavar="RUN", help=f"some of {', '.join(RUNS)}; all by default")
    parser.add_argument("--write", action="store_true", help="replace what is expected: only on purpose")
    parser.add_argument("--inside", action="store_true", help="make one run here, in the current folder")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout whose program is run")
    parser.add_argument("--expected", type=Path, default=EXPECTED, help="the folder of what is expected")
    given = parser.parse_args()
    if given.inside:
        make_inside(given.names[0])
        return
    known = given.expected / "machine.json"
    if given.write and given.names and known.is_file() and json.loads(known.read_text()) != machine():
        parser.error(f"{given.expected} was written on another machine: write every run, or choose another --expected")
    for name in given.names or RUNS:
        began = time.monotonic()
        record = make(name, given.code.resolve())
        seconds, file = time.monotonic() - began, given.expected / f"{name}.json"
        if given.write:
            given.expected.mkdir(parents=True, exist_ok=True)
            known.write_text(json.dumps(machine(), indent=1) + "\n")
            file.write_text(json.dumps(record, indent=1) + "\n")
            told = "written"
        else:
            told = difference(json.loads(file.read_text()), record) or "as expected"
        print(f"{name}: {seconds:.0f} s, {told}", flush=True)


if __name__ == "__main__":
    main()
