"""The part ``compression``: a teacher in fewer dimensions, a student's prefixes, and plain students."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from recbole_kd.evaluation.compression import principal_scores, principal_vectors
from recbole_kd.report.looks import PALETTE, REFERENCE_COLOR, TEACHER_COLOR, metric_label
from recbole_kd.report.static import log_axis, panels
from recbole_kd.student.matryoshka import prefix
from recbole_kd.verbs.analyse.parts import Impossible, Part, Subject, cell, color_of, evaluated, per_user, vectors_of

__all__ = ["compression"]


class _VectorModel(nn.Module):
    """A model whose scores are dot products of vectors (U, d) and (I, d), for RecBole's evaluation."""

    def __init__(self, config: Any, users: Tensor, items: Tensor) -> None:
        super().__init__()
        self._names = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.users, self.items = (nn.Parameter(table, requires_grad=False) for table in (users, items))

    def predict(self, interaction: Any) -> Tensor:
        """Scores of single pairs."""
        users, items = (interaction[name] for name in self._names)
        return (self.users[users] * self.items[items]).sum(1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items."""
        return self.users[interaction[self._names[0]]] @ self.items.t()


def compression(subject: Subject) -> Part:
    """The metric of the teacher in fewer dimensions, of the student's prefixes, and of students trained alone."""
    subject.require_teacher()
    vectors = vectors_of(subject)
    dimension, whole = (vectors[role][0].shape[1] for role in ("student", "teacher"))
    prefixes = sorted({*(subject.trained.state["config"].get("matryoshka") or ()), dimension})
    if prefixes[0] >= whole:
        raise Impossible(f"the student's {dimension} dimensions are no fewer than the teacher's {whole}.")
    doubled = (dimension << power for power in itertools.count())
    alone = _alone(subject)
    fewer = [*itertools.takewhile(lambda size: size < whole, doubled), *prefixes, *alone]
    sizes = sorted({*(size for size in fewer if size < whole), whole})
    config, tables = subject.trained.config, vectors["teacher"]
    curves: dict[str, list[float]] = {"vectors": [], "scores": []}
    for what, compress in (("vectors", principal_vectors), ("scores", principal_scores)):
        # Row 0 is padding and is not used to fit directions.
        rotated = [table.to(tables[0]) for table in compress(*(table[1:] for table in tables))]
        users, items = (nn.functional.pad(table, (0, 0, 1, 0)) for table in rotated)
        for size in sizes:
            model = _VectorModel(config, users[:, :size].contiguous(), items[:, :size].contiguous())
            curves[what].append(float(evaluated(subject, config, model.to(config["device"]))[1].mean()))
    levels = {
        role: float(per_user(subject, role, model)[1].mean())
        for role, model in subject.models().items()
        if role != "teacher"
    }
    nested = _nested(subject, prefixes) if len(prefixes) > 1 else {}
    label = metric_label(subject.metric)
    figure, (axes,) = panels(1, 1, 6.4, 4.0)
    for (what, curve), color in zip(curves.items(), (PALETTE[1], TEACHER_COLOR)):
        axes.plot(sizes, curve, color=color, marker="o", ms=4, lw=1.8, label=f"the teacher's {what}")
    if nested:
        axes.plot(
            *zip(*nested.items()), color=color_of("student"), marker="o", ms=5, lw=1.8, label="the student's prefixes"
        )
    if alone:
        style = {"color": REFERENCE_COLOR, "marker": "D", "ms": 6, "ls": ""}
        axes.plot(*zip(*alone.items()), **style, label="students, each trained alone")
    for role, level in levels.items():
        axes.axhline(level, color=color_of(role), lw=1.4, ls="--", label=f"{role}, {subject.name(role)}, as trained")
    shown = sorted({*sizes, *nested, *alone})
    log_axis(axes, shown[0], shown[-1], shown)
    axes.set_title(f"{subject.name('teacher')} in fewer dimensions")
    axes.set_xlabel("dimensions that are kept")
    axes.set_ylabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    finding = (
        f"{label}: of the teacher's {curves['vectors'][-1]:.4f}, {sizes[0]} dimensions keep "
        f"{curves['vectors'][0]:.4f} by its vectors and {curves['scores'][0]:.4f} by its scores; "
        + ", ".join(f"the {role} has {level:.4f}" for role, level in levels.items())
    )
    for what, found in (("its prefixes have", nested), ("students trained alone have", alone)):
        if found:
            finding += f"; {what} " + ", ".join(f"{value:.4f} ({size})" for size, value in found.items())
    further = {name: found for name, found in (("prefixes", nested), ("alone", alone)) if found}
    of_teacher = dict(zip(sizes, zip(*curves.values())))
    nothing = (float("nan"),) * len(curves)
    rows = [
        [size, *map(cell, of_teacher.get(size, nothing))]
        + [cell(found.get(size, float("nan"))) for found in further.values()]
        for size in shown
    ]
    heading = ["dimensions", "by the teacher's vectors", "by the teacher's scores", *further, *levels]
    return Part("compression", finding, [heading, *([*row, *map(cell, levels.values())] for row in rows)], figure)


def _nested(subject: Subject, sizes: Sequence[int]) -> dict[int, float]:
    """The metric of each of the student's prefixes."""
    found = {}
    for size in sizes:
        with prefix(subject.student.model, size):
            found[size] = float(per_user(subject, "student", subject.student)[1].mean())
    return found


def _alone(subject: Subject) -> dict[int, float]:
    """The metric of the students that were trained alone, by their size."""
    found = {}
    for model in sorted(subject.alone, key=lambda model: model.dimension or 0):
        if model.dimension is None:
            raise Impossible(f"{model.name}, of --alone, has no vector for each user and each item.")
        found[model.dimension] = float(per_user(subject, "student that was trained alone", model)[1].mean())
    return found
