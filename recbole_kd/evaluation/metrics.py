"""RecBole's metrics; metrics that differ from their definition are replaced here.

====================  ===========================================================================================
metric                what RecBole 1.2.1 computes; what is correct
====================  ===========================================================================================
ItemCoverage,         the padding counts as an item of the catalogue, so full coverage is below 1; correct: the
GiniIndex             catalogue without it
ShannonEntropy        the entropy divided by the number of distinct items; correct: the entropy, in nats
TailPercentage        items without a training interaction are not in the tail; correct: they are first in it
AveragePopularity     sequential models: the first item of each user's training sequence is not counted; correct: all
LogLoss               scores outside [0, 1] are silently clamped; here they are refused, being no probabilities
GAUC                  divides in float32, so 0.5043 is written as 0.50429999828; correct: float64
all of lists          if a user has fewer than k items left, excluded items fill the list; correct: a shorter list
====================  ===========================================================================================

The other metrics are RecBole's own. ``tests/evaluation/test_metrics.py`` tests each against its definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from recbole.evaluator import Evaluator as RecBoleEvaluator
from recbole.evaluator import metrics as recbole_metrics
from recbole.evaluator.register import metrics_dict

from recbole_kd.errors import UserError

__all__ = ["Evaluator", "metric_class"]


class ItemCoverage(recbole_metrics.ItemCoverage):
    """|items in any list| / |catalogue|."""

    def get_coverage(self, item_matrix: NDArray[Any], num_items: int) -> float:
        """Coverage of lists (n, k), 0 where there is no item; `num_items` counts the padding."""
        return len(np.unique(item_matrix[item_matrix > 0])) / (num_items - 1)


class GiniIndex(recbole_metrics.GiniIndex):
    """sum_i (2 i - I - 1) c_(i) / (I sum_i c_(i)): c_(i) are the items' numbers of lists, ascending, i = 1 ... I."""

    def get_gini(self, item_matrix: NDArray[Any], num_items: int) -> float:
        """Gini index of lists (n, k), 0 where there is no item; `num_items` counts the padding."""
        counts = np.sort(np.bincount(item_matrix.ravel(), minlength=num_items)[1:])
        places = 2 * np.arange(1, num_items) - num_items
        return float((places * counts).sum() / ((num_items - 1) * max(1, counts.sum())))


class ShannonEntropy(recbole_metrics.ShannonEntropy):
    """- sum_i p(i) ln p(i), p(i) the share of item i among all places of the lists."""

    def get_entropy(self, item_matrix: NDArray[Any]) -> float:
        """Entropy of lists (n, k), 0 where there is no item."""
        counts = np.unique(item_matrix[item_matrix > 0], return_counts=True)[1]
        shares = counts / max(1, counts.sum())
        return float(-(shares * np.log(shares)).sum())


class AveragePopularity(recbole_metrics.AveragePopularity):
    """The mean over users of the mean training interactions of the items in the list."""

    def calculate_metric(self, dataobject: Any) -> Any:
        items = dataobject.get("rec.items").numpy()
        return self.topk_result("averagepopularity", _mean_of_lists(items, _popularity(dataobject)))


class TailPercentage(recbole_metrics.TailPercentage):
    """The mean over users of the tail's share of the list; the tail is the items with the fewest interactions."""

    def calculate_metric(self, dataobject: Any) -> Any:
        popularity = _popularity(dataobject)
        if self.tail > 1:
            tail = popularity <= self.tail
        else:  # among equally popular items, the first ids
            tail = np.zeros(len(popularity), dtype=bool)
            rarest = 1 + np.argsort(popularity[1:], kind="stable")
            tail[rarest[: max(1, int(len(rarest) * self.tail))]] = True
        items = dataobject.get("rec.items").numpy()
        return self.topk_result("tailpercentage", _mean_of_lists(items, tail.astype(np.int64)))


class GAUC(recbole_metrics.GAUC):
    """The mean of the users' AUC, weighted by each user's number of positives."""

    def metric_info(self, pos_rank_sum: NDArray[Any], user_len_list: NDArray[Any], pos_len_list: NDArray[Any]) -> float:
        sums = (column.astype(np.float64) for column in (pos_rank_sum, user_len_list, pos_len_list))
        return float(super().metric_info(*sums))


class LogLoss(recbole_metrics.LogLoss):
    """- mean of r ln p + (1 - r) ln (1 - p)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = config["model"]

    def metric_info(self, preds: NDArray[Any], trues: NDArray[Any]) -> Any:
        low, high = preds.min(), preds.max()
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"--metrics has LogLoss, which needs probabilities, but the scores of {self.model} are "
                f"between {low:.3g} and {high:.3g}; leave LogLoss out, or use AUC, which needs only their order."
            )
        return super().metric_info(preds, trues)


def _popularity(dataobject: Any) -> NDArray[np.int64]:
    """(I,) training interactions of each item; 0 for the padding."""
    found = np.zeros(dataobject.get("data.num_items"), dtype=np.int64)
    counts = dict(dataobject.get("data.count_items"))
    found[list(counts)] = list(counts.values())
    return found


def _mean_of_lists(items: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, k) the mean value of the first 1 ... k items of each list; 0 for an empty list."""
    there = items > 0
    return np.cumsum(values[items] * there, axis=1) / np.maximum(1, np.cumsum(there, axis=1))


_OURS = {
    one.__name__.lower(): one
    for one in (ItemCoverage, GiniIndex, ShannonEntropy, AveragePopularity, TailPercentage, GAUC, LogLoss)
}


def metric_class(name: str) -> type[Any]:
    """The class that computes a metric, ours or RecBole's."""
    found: type[Any] = _OURS.get(name.lower()) or metrics_dict[name.lower()]
    return found


class Evaluator(RecBoleEvaluator):
    """RecBole's Evaluator with the metrics of this module."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.metric_class = {name: metric_class(name)(config) for name in self.metrics}


def smaller_is_better(metric: str) -> bool:
    """Whether RecBole calls a smaller value of the metric better (GiniIndex, AveragePopularity)."""
    return bool(getattr(metrics_dict.get(metric.partition("@")[0].lower()), "smaller", False))
