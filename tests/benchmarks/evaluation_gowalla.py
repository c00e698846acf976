"""Full-ranking evaluation: RecBole as it comes, RecBole with other batches, this package, and the arithmetic's floor.

A BPR of 20 dimensions (the truncated SVD of the training split, so that the metrics mean something without training) is
evaluated on the test users of a random 8:1:1 split, by default of Gowalla, 29,858 users x 40,981 items:

    python tests/benchmarks/evaluation_gowalla.py --data_path=PATH_TO_DATASETS

Every contestant runs RecBole's `Trainer.evaluate` and RecBole's Evaluator. The floor is the product of the user and
item vectors in blocks of the same size as this package's, and nothing else. Seconds are the least wall time of
`--repeats` runs; processor seconds, all threads together, stand beside them for machines that are shared.

Asserted: the metrics as RecBole prints them are equal among all. With blocks of the same size the scores are equal to
the bit (the product of one user rounds otherwise than that of many): there the metrics are equal to twelve decimals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.evaluator import Collector, Evaluator
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import init_seed
from scipy.sparse.linalg import svds

from recbole_kd.data.loaders import FastFullSortEvalDataLoader, sized_eval_batch
from recbole_kd.evaluation.collector import FullSortCollector


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Least wall time, least processor time, and what the last run returned."""
    wall, processor = [], []
    for _ in range(repeats):
        before, before_processor = time.perf_counter(), time.process_time()
        result = run()
        wall.append(time.perf_counter() - before)
        processor.append(time.process_time() - before_processor)
    return min(wall), min(processor), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/", help="folder that holds the dataset's folder")
    parser.add_argument("--dataset", default="gowalla")
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--large_batch_users", type=int, default=512, help="users in a batch of 'RecBole, large batch'")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each but RecBole's default, which runs once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    # RecBole's Config reads the command line as well.
    sys.argv = sys.argv[:1]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, folder)


def compare(arguments: argparse.Namespace, folder: str) -> None:
    settings = {
        "data_path": arguments.data_path,
        "embedding_size": arguments.dimension,
        "checkpoint_dir": folder,
        "use_gpu": False,
        "state": "ERROR",
        "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision"],
        "topk": [10, 20],
        "valid_metric": "NDCG@20",
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"},
    }
    config = Config(model="BPR", dataset=arguments.dataset, config_dict=settings)
    init_seed(config["seed"], True)
    train, _, test = data_preparation(config, create_dataset(config))
    model = BPR(config, train.dataset)
    factorise(model, train.dataset)
    items = train.dataset.item_num
    users = len(test.uid_list)
    sized = sized_eval_batch(items)
    print(f"{users} users x {items - 1} items, {arguments.dimension} dimensions, {arguments.threads} threads")

    def contestant(loader_class: Any, collector_class: Any, batch: int, repeats: int) -> tuple[float, float, Any, Any]:
        config["eval_batch_size"] = batch
        loader = loader_class(config, test._dataset, test._sampler)
        trainer = Trainer(config, model)
        trainer.eval_collector = collector_class(config)
        structs = []
        collected = trainer.eval_collector.get_data_struct
        trainer.eval_collector.get_data_struct = lambda: structs.append(collected()) or structs[-1]
        seconds = timed(lambda: trainer.evaluate(loader, load_best_model=False), repeats)
        return (*seconds, structs[-1])

    floor = timed(lambda: products(model, test.uid_list, sized // items), arguments.repeats)
    rows = {
        "this package": contestant(FastFullSortEvalDataLoader, FullSortCollector, sized, arguments.repeats),
        "RecBole, this package's batch": contestant(FullSortEvalDataLoader, Collector, sized, arguments.repeats),
        "RecBole, large batch": contestant(
            FullSortEvalDataLoader, Collector, items * arguments.large_batch_users, arguments.repeats
        ),
        "RecBole, default batch": contestant(FullSortEvalDataLoader, Collector, 4096, 1),
    }
    ours = rows["this package"]
    print(f"{'':32}{'seconds':>9}{'x ours':>8}{'processor s':>13}{'x ours':>8}")
    for name, (wall, processor, *_) in {"floor: products alone": floor, **rows}.items():
        print(f"{name:32}{wall:9.2f}{wall / ours[0]:8.2f}{processor:13.2f}{processor / ours[1]:8.2f}")

    for kind in (FullSortEvalDataLoader, FastFullSortEvalDataLoader):
        wall, processor, _ = timed(lambda kind=kind: kind(config, test._dataset, test._sampler), 1)
        print(f"{kind.__name__ + ' built':32}{wall:9.2f}{'':8}{processor:13.2f}")

    assert all(result == ours[2] for _, _, result, _ in rows.values()), [row[2] for row in rows.values()]
    config["metric_decimal_place"] = 12
    exact = Evaluator(config)
    assert exact.evaluate(rows["RecBole, this package's batch"][3]) == exact.evaluate(ours[3])
    print("equal metrics:", ", ".join(f"{name} {value}" for name, value in ours[2].items()))


def factorise(model: Any, dataset: Any) -> None:
    """Sets the model's tables to the truncated SVD of the training split."""
    left, values, right = svds(dataset.inter_matrix(form="csr").astype(np.float32), k=model.embedding_size)
    model.user_embedding.weight.data = torch.from_numpy(left * values).contiguous()
    model.item_embedding.weight.data = torch.from_numpy(right.T.copy())


@torch.no_grad()
def products(model: Any, users: torch.Tensor, batch: int) -> None:
    """The scores of all users with all items, block by block, each thrown away."""
    for block in users.split(batch):
        torch.matmul(model.user_embedding.weight[block], model.item_embedding.weight.T)


if __name__ == "__main__":
    main()
