"""Memory over time is flat: a run of 200 epochs holds at its end what it held when it had settled."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recbole_kd.experiment.experiment import Experiment
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import obtain_teacher

PAGE = os.sysconf("SC_PAGE_SIZE")
#: Epochs until loaders, caches and the allocator have all that they will need.
SETTLED = 50
#: Bytes an epoch: what is noted of an epoch (losses, metrics) is some hundreds.
ALLOWED = 32 * 1024

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def growth(sizes: list[int]) -> float:
    """Bytes an epoch: the slope of the sizes, by the median over all pairs of epochs, deaf to a single jump."""
    values = np.array(sizes, dtype=np.float64)
    first, second = np.triu_indices(len(values), 1)
    return float(np.median((values[second] - values[first]) / (second - first)))


@needs_proc
def test_a_leak_is_seen() -> None:
    kept, sizes = [], []
    for _ in range(40):
        block = mmap.mmap(-1, 2 * ALLOWED)  # not from the heap, which may have that much to spare
        block.write(b"x" * len(block))
        kept.append(block)
        sizes.append(resident())
    assert growth(sizes) > ALLOWED


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("distill", ["rrd,freqd", "simrec"])
def test_memory_is_flat_over_200_epochs(distill: str, tmp_path: Path) -> None:
    small = {"embedding_size": 8, "train_batch_size": 8192, "epochs": 200, "stopping_step": 1000}
    settings = {
        **small,
        **{f"teacher.{key}": value for key, value in small.items()},
        "teacher.epochs": 1,
        "distill": distill,
        "teacher": "BPR",
        "checkpoint_dir": str(tmp_path / "saved"),
        "show_progress": False,
        "use_gpu": False,
        **({"simrec.triplets": 1000} if distill == "simrec" else {}),
    }
    experiment = Experiment.of("SimRecStudent" if distill == "simrec" else "BPR", "ml-100k", given=settings)
    splits = load_splits(experiment.settings)
    _, trainer, (train, valid, _) = build_student(experiment, splits, obtain_teacher(experiment, splits))
    sizes: list[int] = []
    note: Callable[[int, float], None] = lambda epoch, score: sizes.append(resident())  # noqa: E731
    trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=note)
    assert len(sizes) == 200, "each epoch trains, evaluates and saves"
    settled = sizes[SETTLED:]
    slope = growth(settled)
    print(f"{distill}: {settled[0] / 2**20:.1f} MiB, {settled[-1] / 2**20:.1f} MiB, {slope / 1024:.2f} KiB an epoch")
    assert slope < ALLOWED
    assert settled[-1] < 1.05 * settled[0]
