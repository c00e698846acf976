"""Several models and recipes on one or several splits, over several seeds: means, tests, gains and costs in one table.

``plan`` turns settings into rows, ``perform`` makes one run (a row with a seed), ``summary`` joins their records, and
:func:`compare` calls them. A run's folder is named by a digest of everything that affects its result. So the same
command continues after an interruption, and a changed setting repeats only the runs that it affects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import torch

from recbole_kd.cluster.launch import in_own_process
from recbole_kd.data.splits import Splits
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.experiment.values import merge, nest
from recbole_kd.files.atomic import check_place
from recbole_kd.files.digest import digest
from recbole_kd.files.plain import save_json
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.needs import check_data
from recbole_kd.stages.result import Framed
from recbole_kd.trainer.trackers import check_trackers
from recbole_kd.verbs.compare.perform import Job, perform
from recbole_kd.verbs.compare.plan import Plan, Row, plan
from recbole_kd.verbs.compare.progress import Progress
from recbole_kd.verbs.compare.summary import ranked, summarise, table
from recbole_kd.verbs.options import CompareOptions

#: A function that makes a job's files; it reports (epoch, epochs).
Runner = Callable[[Job, Callable[[tuple[int, int]], None]], None]


def compare(settings: Mapping[str, Any], run: Optional[Runner] = None) -> Framed:
    """Makes the missing runs, combines all, and writes ``results.json`` and the report.

    Args:
        settings: as for :func:`~recbole_kd.verbs.compare.plan.plan`.
        run: makes a job; by default in a separate process, to measure its memory.

    Returns:
        results.json. Its ``to_frame()`` has one row for each model, with means over seeds.

    Raises:
        UserError, TrainingError: a run cannot be made; finished runs are kept.
        KeyboardInterrupt: interrupted; its message says how to continue.
    """
    planned = plan(settings)
    check_place(planned.output / "results.json", "output")
    check_trackers(planned.students[0].first_config)
    records: dict[str, list[Any]] = {row.name: [] for row in planned.rows}
    digests, ranking = [], ""
    for number, seed in enumerate(planned.split_seeds, start=1):
        part = planned.on_split(seed)
        loaded = _splits(part)
        progress = Progress(part)
        if len(planned.split_seeds) > 1:
            progress.say(f"split {number} of {len(planned.split_seeds)}: --split_seed={seed}")
        part, found = _made(part, loaded, progress, run, tune=number == 1)
        if number == 1:
            planned = replace(planned, rows=part.rows)  # settings that it chose hold for all splits
            ranking = ranked(list(loaded.values()))
        for name, of_split in found.items():
            records[name] += of_split
        digests.append(next(iter(loaded.values())).training_digest)
    results = summarise(planned, records, digests, ranking)
    save_json(results, planned.output / "results.json", "output")
    from recbole_kd.report import write_report

    write_report(results, planned.output)
    return Framed(results, _means)


def _made(
    part: Plan, loaded: Mapping[str, Splits], progress: Progress, run: Optional[Runner], tune: bool
) -> tuple[Plan, dict[str, list[Any]]]:
    """Makes the missing runs of one split.

    Args:
        part: the plan of this split.
        loaded: its data.
        tune: whether settings are chosen first, if the plan asks for it.

    Returns:
        The plan with the chosen settings, and row name -> its runs' records, one for each seed.
    """
    data = digest(
        *(piece for one in loaded.values() for piece in (one.content() + one.columns(), list(one.pairs(one.test))))
    )
    part.output.mkdir(parents=True, exist_ok=True)
    teachers = [row for row in part.rows if row.role == "teacher"]
    try:
        _make(_jobs(part, teachers, data), part.parallel, progress, run)
        if part.tune_trials and tune:
            part = _tuned(part, progress)
        students = _jobs(part, part.students, data)
        _make(students, part.parallel, progress, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{progress.done} of {progress.total} runs are kept in {part.output}; repeat the command to continue."
        ) from None
    records: dict[str, list[Any]] = {row.name: [] for row in part.rows}
    for job in [*_jobs(part, teachers, data), *students]:
        records[job.row.name].append(job.result())
    return part, records


def _splits(planned: Plan) -> dict[str, Splits]:
    """The data for sequential models, for general models, or for both, by the name of the first such model.

    Raises:
        UserError: no validation or no test split; the data cannot meet the settings; or models of both kinds would have
            different targets.
    """
    first: dict[bool, Row] = {}
    for row in planned.students:
        first.setdefault(not row.first_config.sequential, row)
    loaded = {first[kind].name: load_splits(first[kind].first_config) for kind in sorted(first)}
    for splits in loaded.values():
        splits.require("compare")
    for row in () if planned.tune_trials else planned.students:  # a search may choose other settings than a row's own
        try:
            check_data(row.experiment(row.seeds[0]), loaded[first[not row.first_config.sequential].name], True)
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from None
    if len(loaded) > 1:
        names, (sequences, pairs) = list(loaded), loaded.values()
        if not _same_targets(sequences, pairs):
            counts = torch.bincount(torch.cat([pairs.pairs(part)[0] for part in _parts(pairs)]))
            few = int(((counts > 0) & (counts < _LEAST)).sum())
            raise UserError(
                f"{names[0]} predicts the next item of a sequence, but {names[1]} ranks items for a user. With these "
                "settings they have different training items or targets. One table needs one target for each user "
                f"(leave --eval_args out) and {_LEAST} interactions for each user; {few:,} users have fewer "
                f'(--user_inter_num_interval="[{_LEAST},inf)").'
            )
    return loaded


#: Least interactions of a user: the last is for test, the one before for validation, and a sequence must be left.
_LEAST = 4


def _parts(splits: Splits) -> tuple[Any, Any, Any]:
    return splits.train, splits.valid, splits.test


def _same_targets(sequences: Splits, pairs: Splits) -> bool:
    """Whether both kinds of models have the same training interactions and the same target for each user."""
    same = sequences.user_tokens == pairs.user_tokens and sequences.item_tokens == pairs.item_tokens
    for ours, theirs in zip(_parts(sequences), _parts(pairs)):
        found = sequences.pairs(ours), pairs.pairs(theirs)
        same = same and all(torch.equal(one, other) for one, other in zip(*found))
        if ours is not sequences.train:
            same = same and len(found[0][0].unique()) == len(found[0][0])
    return same


def _means(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each model: name, role, and means of its test metrics over seeds."""
    for row in results["rows"]:
        yield {"name": row["name"], "role": row["role"], "seeds": len(row["runs"]), **row["mean"]}


def _jobs(planned: Plan, rows: Sequence[Row], data: str) -> list[Job]:
    """The runs of these rows, seed by seed, so that every row has its first before any has its second."""
    jobs = []
    for turn in range(max((len(row.seeds) for row in rows), default=0)):
        for row in rows:
            if turn < len(row.seeds):
                seed = row.seeds[turn]
                key = row.key(seed, data)
                if planned.candidates:
                    key = digest(key, planned.candidates)
                label = re.sub(r"[^\w.-]+", "-", row.name).strip("-")
                folder = (planned.output / "runs" / f"{label}-{seed}-{key[:12]}").absolute()
                # A fresh copy, so that a row's cached values are not sent to other processes.
                jobs.append(Job(replace(row), seed, key, str(folder), planned.candidates))
    return jobs


def _make(jobs: Sequence[Job], parallel: int, progress: Progress, run: Optional[Runner]) -> None:
    """Makes the jobs without a result."""
    pending = []
    for job in jobs:
        record = job.result()
        if record is None:
            pending.append(job)
        else:
            progress.kept(job, record)
    if parallel > 1 and len(pending) > 1 and run is None:
        from recbole_kd.cluster.ray import parallel_map

        progress.begin(pending)
        for index, error in parallel_map(_attempt, pending, parallel):
            if error is not None:
                raise error
            progress.finished(pending[index])
        return
    for job in pending:
        progress.begin([job])
        (run or isolated)(job, progress.told)
        progress.finished(job)


def isolated(job: Job, told: Optional[Callable[[tuple[int, int]], None]] = None) -> None:
    """:func:`perform` in a separate process; its errors name the run."""
    try:
        in_own_process(perform, job, on_message=told)
    except (UserError, TrainingError) as error:
        raise type(error)(f"{job.name}: {error}") from None


def _attempt(job: Job) -> Optional[Exception]:
    """:func:`isolated` for a worker of Ray; the error is returned, because Ray would wrap a raised one."""
    try:
        isolated(job)
    except (UserError, TrainingError) as error:
        return error
    return None


def _tuned(planned: Plan, progress: Progress) -> Plan:
    """The plan with each student's settings chosen on validation, with the same number of trials for each."""
    from recbole_kd.verbs.tune import search

    rows = []
    for row in planned.rows:
        if row.role != "teacher" and row.space != "none":
            progress.say(f"{row.name}: {planned.tune_trials} trials on validation")
            try:
                found = search(
                    row.model,
                    row.dataset,
                    config_dict={**row.settings, "seed": row.seeds[0]},
                    space=row.space,
                    trials=planned.tune_trials,
                    cpus=planned.parallel if planned.parallel > 1 else None,
                )
            except UserError as error:
                raise UserError(f"{row.name}: {error}") from None
            row = replace(row, settings=merge(row.settings, nest(found["best"]["settings"])))
        rows.append(row)
    return replace(planned, rows=tuple(rows))


def run(options: CompareOptions, settings: dict[str, Any]) -> None:
    """The verb: compares, prints the table and where the report is. `settings` hold the options too."""
    results = compare(settings)
    print(f"\n{results['dataset']}, test split\n{table(results)}")
    print(f"report: {os.path.join(options.output, 'report.html')}")


__all__ = ["Job", "Plan", "Row", "compare", "perform", "plan", "run", "summarise", "table"]
