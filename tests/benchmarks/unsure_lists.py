"""What weights do to a student whose teacher is sure of some lists only, with a stand-in for an LLM on ml-100k.

    python tests/benchmarks/unsure_lists.py --epochs=30 --seeds=2

The stand-in lists items for 30 % of the users: EASE's best ones, and for a third of these users items drawn at random.
Its confidence is noisy: uniform in [0.4, 1] for a right list and in [0, 0.6] for a wrong one. As a control, the same
weights are given to other users' lists. The student is BPR with 16 dimensions, and RRD reads the lists.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_kd.data.splits import Splits
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.verbs.train import run_recbole_kd

POOL = 100
RRD = {"distill": "rrd", "rrd.weight": 0.05, "rrd.sampling": "top", "rrd.interesting": 40, "rrd.pool": POOL}
METRIC = "ndcg@10"


def stand_in(common: dict[str, Any]) -> tuple[Splits, Tensor, dict[str, Tensor]]:
    """The split, lists (U, POOL) with 0 for users without one, and each list's weight by name of the file."""
    experiment = Experiment.of("BPR", "ml-100k", given={**common, **RRD, "teacher": "EASE"})
    splits = load_splits(experiment.settings)
    ranked = obtain_teacher(experiment, splits).ranked_items(POOL)
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(len(ranked) - 1, generator=generator) + 1
    listed = order[: round(0.3 * len(order))]
    wrong = listed[: len(listed) // 3]
    for user in wrong.tolist():
        others = torch.randperm(splits.observed.items - 1, generator=generator) + 1
        others = others[~splits.observed.contains(torch.tensor(user), others)]
        ranked[user] = others[:POOL].int()
    lists = torch.zeros_like(ranked)
    lists[listed] = ranked[listed]
    sure = torch.zeros(len(ranked))
    sure[listed] = 0.4 + 0.6 * torch.rand(len(listed), generator=generator)
    sure[wrong] = 0.6 * torch.rand(len(wrong), generator=generator)
    misplaced = torch.zeros_like(sure)
    misplaced[listed] = sure[listed[torch.randperm(len(listed), generator=generator)]]
    print(f"{len(listed)} of {len(order)} users have a list, {len(wrong)} of them a wrong one")
    return splits, lists, {"unweighted": sure.gt(0).float(), "weighted": sure, "misplaced": misplaced}


def write(path: Path, splits: Splits, lists: Tensor, weights: Tensor) -> str:
    """A file of ranks with a weight for each row."""
    lines = ["user_id,item_id,weight"]
    for user in lists[:, 0].nonzero().squeeze(1).tolist():
        sure = float(weights[user])
        lines += [f"{splits.user_tokens[user]},{splits.item_tokens[item]},{sure:.4f}" for item in lists[user].tolist()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    common = {
        "checkpoint_dir": str(folder),
        "baseline": "none",
        "use_gpu": False,
        "split_seed": 1,
        "quiet": True,
        "embedding_size": 16,
        "epochs": asked.epochs,
        "eval_step": 10,
        "learning_rate": 0.003,
    }
    splits, lists, weights = stand_in({**common, "seed": 1})
    files = {name: write(folder / f"{name}.csv", splits, lists, sure) for name, sure in weights.items()}
    rows: dict[str, dict[str, Any]] = {
        "no teacher": {},
        "lists, no weights": {**RRD, "teacher.ranks": files["unweighted"]},
        "lists, weights of others": {**RRD, "teacher.ranks": files["misplaced"]},
        "lists, weights": {**RRD, "teacher.ranks": files["weighted"]},
        "lists, weights, decay 20": {**RRD, "teacher.ranks": files["weighted"], "rrd.decay": 20},
        "lists, weights, consistency 3": {**RRD, "teacher.ranks": files["weighted"], "rrd.consistency": 3},
    }
    found: dict[str, list[float]] = {name: [] for name in rows}
    for seed in range(1, asked.seeds + 1):
        for name, settings in rows.items():
            result = run_recbole_kd("BPR", "ml-100k", config_dict={**common, **settings, "seed": seed})
            found[name].append(float(result["test_result"][METRIC]))
            print(f"seed {seed}, {name}: {found[name][-1]:.4f}", flush=True)
    print(f"\n| student | {METRIC} of each seed | mean |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {', '.join(f'{one:.4f}' for one in values)} | {sum(values) / len(values):.4f} |")


if __name__ == "__main__":
    main()
