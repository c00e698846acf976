"""``recbole-kd analyse``: pictures and tables of what a student learned from its teacher.

Diagnostics for any two checkpoints on one dataset and split; four of them are those of the papers:

- ``spectrum``: the difference of their vectors by frequency of the user-item graph (FreqD, fig. 1-2);
- ``smoothing``: mean average distance of the vectors of the most popular users and items (SimRec, table 6), and their
  second-order smoothness (LightGCN, table 6);
- ``experts``: the experts that the teacher's vectors select, over the epochs (DE-RRD, fig. 6);
- ``gain``: a metric by groups of users, by taste and by activity (DE-RRD, fig. 5);
- ``compression``: the metric of the teacher in fewer dimensions, down to the student's, and of the prefixes of a
  student of ``--matryoshka``;
- ``map``: a map of users or items, and the distances within categories (SimRec, fig. 1c and 7; SEvo, fig. 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import matplotlib as mpl

from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import TeacherSource
from recbole_kd.files.atomic import PathLike, check_place, write_content
from recbole_kd.files.checkpoint import load_any
from recbole_kd.files.tables import csv_text
from recbole_kd.report import picture_bytes
from recbole_kd.report.static import STYLE
from recbole_kd.stages.saved import load_trained
from recbole_kd.stages.teacher import saved_teacher
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.verbs.analyse import parts
from recbole_kd.verbs.analyse.compression import compression
from recbole_kd.verbs.analyse.maps import draw_map
from recbole_kd.verbs.analyse.parts import Impossible, Part, Subject
from recbole_kd.verbs.analyse.spectrum import spectrum
from recbole_kd.verbs.options import PARTS, AnalyseOptions

__all__ = ["Part", "analyse", "run"]

#: Name of each part -> the function that computes it.
_PARTS: dict[str, Callable[[Subject], Part]] = {
    "spectrum": spectrum,
    "smoothing": parts.smoothing,
    "experts": parts.experts,
    "gain": parts.gain,
    "compression": compression,
    "map": draw_map,
}


def analyse(
    student: str,
    teacher: Optional[str],
    output: PathLike,
    baseline: Optional[str] = None,
    parts: Optional[Sequence[str]] = None,
    bands: int = 11,
    groups: int = 20,
    metric: Optional[str] = None,
    config_dict: Optional[Mapping[str, Any]] = None,
    alone: Optional[Sequence[str]] = None,
    others: Optional[Sequence[str]] = None,
    equal_bands: Optional[int] = None,
    projector: str = "fitted",
    map_side: str = "items",
    map_method: str = "tsne",
    category: Optional[str] = None,
) -> tuple[list[Part], dict[str, str]]:
    """Computes the diagnostics and writes ``NAME.csv`` and ``NAME.png`` for each into a folder.

    Args:
        student: a checkpoint of recbole-kd.
        teacher: a checkpoint of recbole-kd or of RecBole, on the same dataset and split; None: only parts without one.
        output: the folder; nothing is written before everything is computed.
        baseline: a checkpoint of a plain student to compare with.
        alone: checkpoints of plain students of other sizes.
        others: checkpoints of other students, compared with the first in every part except ``experts``.
        equal_bands: number of groups of the spectrum with equally many frequencies, instead of `bands`.
        projector: ``fitted``: the best linear map to the teacher's vectors; ``trained``: the distiller's projector.
        map_side, map_method: ``items`` or ``users``, ``tsne`` or ``umap``.
        category: column of the items' or users' file that colours the map.
        parts: names in :data:`recbole_kd.verbs.options.PARTS`; by default all that these models allow.
        bands: bands of frequency, an odd number of at least 3.
        groups: groups of users by taste, at least 2.
        metric: by RecBole's name, such as ``ndcg@20``; by default the run's ``valid_metric``.
        config_dict: settings that override the stored ones (``data_path``, ``use_gpu``, ...).

    Returns:
        The parts, and the reason for each part that was left out.

    Raises:
        UserError: a checkpoint that is missing or of another dataset or split, an unknown part or metric, a number out
            of range, or a requested part that cannot be computed.
    """
    given = {name: value for name, value in locals().items() if name != "config_dict"}
    return _analyse(AnalyseOptions.parse("--", {**given, "output": str(output)}), config_dict)


def run(options: AnalyseOptions, settings: dict[str, Any]) -> None:
    """The verb: prints the findings and the files."""
    found, left_out = _analyse(options, settings)
    for part in found:
        print(f"{part.name}: {part.finding}\n    {Path(options.output) / part.name}.{{csv,png}}")
    for name, reason in left_out.items():
        print(f"{name}: left out, {reason}")


def _analyse(options: AnalyseOptions, config_dict: Optional[Mapping[str, Any]]) -> tuple[list[Part], dict[str, str]]:
    check_place(Path(options.output) / f"{next(iter(options.parts or PARTS))}.csv", "output")
    subject = _load(options, config_dict)
    found, left_out = [], {}
    with mpl.rc_context(STYLE):
        for name in options.parts or PARTS:
            try:
                found.append(_PARTS[name](subject))
            except Impossible as reason:
                if options.parts is not None:
                    raise UserError(f"--parts={name} is not possible here: {reason}") from None
                left_out[name] = str(reason)
    for part in found:
        write_content(Path(options.output) / f"{part.name}.csv", csv_text(part.table))
        write_content(Path(options.output) / f"{part.name}.png", picture_bytes(part.picture))
    return found, left_out


def _load(options: AnalyseOptions, config_dict: Optional[Mapping[str, Any]]) -> Subject:
    student = options.student
    given = [("alone", path) for path in options.alone or ()] + [("others", path) for path in options.others or ()]
    single = {"teacher": options.teacher, "baseline": options.baseline}
    given += [(setting, path) for setting, path in single.items() if path is not None]
    states = [load_any(path) for _, path in given]  # reports missing files before data are read
    trained, splits = load_trained(student, config_dict)
    splits.require("analyse")
    views: dict[str, list[FrozenTeacher]] = {"baseline": [], "alone": [], "others": [], "teacher": []}
    for (setting, path), (kind, state) in zip(given, states):
        if kind == "recbole-kd" and state["dataset"] != trained.config["dataset"]:
            raise UserError(
                f"'{path}' was trained on {state['dataset']} and '{student}' on {trained.config['dataset']}; "
                f"give --{setting} a checkpoint of the same dataset."
            )
        if kind == "recbole-kd" and state["split"] != splits.training_digest:
            raise UserError(
                f"'{path}' and '{student}' were trained on different splits of {trained.config['dataset']}; "
                f"give --{setting} a checkpoint of the same split."
            )
        role = setting if setting in ("teacher", "baseline") else "student"
        views[setting].append(saved_teacher(trained.config, splits, TeacherSource.of_checkpoint(path, ""), role))
    folder = str(Path(trained.config["checkpoint_dir"]) / "ranks")
    learner = FrozenTeacher(trained, splits, folder)
    name = str(options.metric or trained.config["valid_metric"]).lower()
    teacher, baseline = (next(iter(views[setting]), None) for setting in single)
    return Subject(
        learner,
        teacher,
        baseline,
        trained,
        splits,
        options.bands,
        options.groups,
        name,
        alone=tuple(views["alone"]),
        others=tuple(views["others"]),
        equal_bands=options.equal_bands,
        projector=options.projector,
        map_side=options.map_side,
        map_method=options.map_method,
        category=options.category,
    )
