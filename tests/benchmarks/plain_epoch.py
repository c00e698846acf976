"""A plain student's epoch: RecBole's own Trainer against this package's, without distillers.

    python tests/benchmarks/plain_epoch.py --data_path=PATH_TO_DATASETS [--dataset=gowalla] [--model=BPR]

Both train the same model from the same weights over the same loader, epoch by epoch in turn, so that a change of the machine's speed
hits both. Printed: the median seconds of each, and the ratio, which is to be at most 1 within what the runs scatter. The floor is
RecBole's own epoch: this package adds hooks around it, and nothing to its steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.trainer.kd_trainer import make_trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--dataset", default="gowalla")
    parser.add_argument("--model", default="BPR")
    parser.add_argument("--embedding_size", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of each")
    arguments = parser.parse_args()
    data_path = os.path.abspath(arguments.data_path)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        settings = {
            "data_path": data_path,
            "embedding_size": arguments.embedding_size,
            "distill": [],
            "show_progress": False,
            "use_gpu": False,
        }
        config = KDConfig(arguments.model, arguments.dataset, config_dict=settings)
        init_seed(config["seed"], True)
        splits = Splits(config)
        loader = make_loaders(config, splits)[0]

        def fresh(make: Any) -> Any:
            init_seed(config["seed"], True)
            return make(config, build_model(config, splits.train))

        trainers = {"RecBole": fresh(Trainer), "recbole-kd": fresh(make_trainer)}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for epoch in range(arguments.epochs + 1):
            for name, trainer in trainers.items():
                start = time.perf_counter()
                trainer._train_epoch(loader, epoch)
                if epoch:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
        for name, spent in seconds.items():
            print(f"{name:<10} {statistics.median(spent):6.2f} s an epoch  ({', '.join(f'{s:.2f}' for s in spent)})")
        ratios = [ours / theirs for theirs, ours in zip(*seconds.values())]
        print(f"ratio of recbole-kd to RecBole: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
