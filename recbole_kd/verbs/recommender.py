"""Ranks the items of a dataset with a saved model, in original ids: for its users, or for a new user's history."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from recbole_kd.data.loaders import sized_eval_batch
from recbole_kd.data.observed import Observed
from recbole_kd.data.splits import interactions_of
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import exact_topk
from recbole_kd.model.held_out import having_had, ranks_held_out
from recbole_kd.stages.saved import load_trained
from recbole_kd.student.folding import Folding
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.verbs.options import SEEN, RecommendOptions

__all__ = ["Recommendation", "Recommender", "rank_items"]

#: Name of the user in a list for a history.
NEW_USER = "new"


class Recommendation(NamedTuple):
    """A user's best items, best first, in original ids, with scores; fewer than k if fewer are left."""

    user: str
    items: list[str]
    scores: list[float]


def _ids(given: Iterable[Any], name: str) -> list[str]:
    """Original ids as text: those of a table may be numbers.

    Raises:
        UserError: a text in place of a list, whose letters would be taken for ids.
    """
    if isinstance(given, str):
        raise UserError(f"{name} is the text {given!r}; expected a list of ids, such as [{given!r}].")
    return [str(one) for one in given]


class Recommender:
    """A saved model that ranks the items of its dataset::

        for user, items, scores in Recommender("saved/FILE.pth").recommend(["196", "186"], k=10): ...

    Attributes:
        users: original id -> internal id, padding left out, in internal order.
        items: (I,) original ids by internal id; index 0 is padding.
        item_ids: original id -> internal id of the items, like `users`.
        seen: the pairs of the splits that count as seen.
        exclude_seen: whether seen items are left out by default: as in the model's evaluation.
        sequences: for a sequential model, each user's items (U, L) and their number (U,).
        score_block: users (n,) -> their scores of every item (n, I), as ranked by the evaluator.
    """

    def __init__(
        self,
        checkpoint: str,
        seen: str = "train",
        config_dict: Optional[Mapping[str, Any]] = None,
        dimensions: Optional[int] = None,
    ) -> None:
        """
        Args:
            checkpoint: a student, teacher or baseline that recbole-kd saved.
            seen: a key of :data:`recbole_kd.verbs.options.SEEN`. The items of these splits count as seen; a sequential
                model continues their sequence.
            config_dict: settings that override the stored ones (``data_path``, ``use_gpu``, ...).
            dimensions: for a student of ``--matryoshka``, the number of first numbers of its vectors to use.

        Raises:
            UserError: no such choice; or as in :func:`recbole_kd.stages.saved.load_trained`.
        """
        RecommendOptions.checked("--", "seen", seen)
        self.trained, self.splits = load_trained(checkpoint, config_dict, dimensions)
        self.model = FrozenTeacher(
            self.trained, self.splits, os.path.join(self.trained.config["checkpoint_dir"], "ranks")
        )
        self.users = {token: user for user, token in enumerate(self.splits.user_tokens) if user}
        self.items = self.splits.item_tokens
        self.item_ids = {token: item for item, token in enumerate(self.items) if item}
        parts = [getattr(self.splits, "history" if split == "train" else split) for split in SEEN[seen]]
        users, items = (torch.cat(part) for part in zip(*map(interactions_of, parts)))
        self.seen = Observed(users, items, len(self.splits.user_tokens), len(self.items))
        # In older versions sequential models ranked seen items but did not recommend them; this has not changed.
        decided = {*(self.trained.state.get("data_settings") or ()), *(config_dict or {})}
        self.exclude_seen = not (self.splits.repeatable and "repeatable" in decided)
        self.score_block: Callable[[Tensor], Tensor] = self.model.score_block
        if self.splits.sequential:
            self.sequences = self.splits.sequences_after(parts)
            self.score_block = self._score_next

    def recommend_after(
        self, history: Sequence[str], k: int = 20, exclude_seen: Optional[bool] = None
    ) -> Recommendation:
        """The k best items for a user who is not in the data, from a history.

        A sequential model's encoder reads the items, an autoencoder or a linear item model the row of them. If a score
        is a product of two vectors, the user's vector is computed from the items' vectors: see
        :class:`recbole_kd.student.folding.Folding`.

        Args:
            history: original ids of items, oldest first.
            k: 1 to the number of items.
            exclude_seen: whether the history's items are left out; None: :attr:`exclude_seen`.

        Raises:
            UserError: as in :meth:`recommend`; an unknown item; or a model that can do neither.
        """
        self._check_k(k)
        history = _ids(history, "history")
        unknown = [item for item in history if item not in self.item_ids]
        if unknown or not history:
            raise UserError(
                f"Item '{unknown[0]}' is not in {self.trained.config['dataset']}; leave it out."
                if unknown
                else "The history is empty; give at least one item."
            )
        had = torch.tensor([self.item_ids[item] for item in history])
        excluded = self.exclude_seen if exclude_seen is None else exclude_seen
        rows = torch.zeros(len(had) if excluded else 0, dtype=torch.long)
        left_out = Observed(rows, had[: len(rows)], 1, len(self.items))
        return next(self._ranked([NEW_USER], torch.tensor([0]), self._scores_after(had), left_out, k))

    def _scores_after(self, had: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that scores every item for a user with these items (n,), oldest first."""
        if self.splits.sequential:
            longest = self.sequences[0].shape[1]
            items = torch.zeros(1, longest, dtype=torch.long)
            latest = had[-longest:]
            items[0, : len(latest)] = latest
            return lambda _: self._score_sequences(items, torch.tensor([len(latest)]))
        if ranks_held_out(type(self.model.model)):
            other = copy.copy(self.model)
            other.model = having_had(self.model.model, had)
            return other.score_block
        if "representations" not in self.model.capabilities:
            raise UserError(
                f"{self.model.name} cannot recommend for a user who is not in the data, because its scores need more "
                "than the items' vectors; leave --history out, or train a student that can (--model=BPR "
                f"--teacher={self.model.name} --distill=rrd)."
            )
        vectors = self.model.item_embeddings()
        user = Folding(vectors[1:].float().cpu().numpy()).vector((had - 1).tolist())
        scores = vectors @ torch.from_numpy(user).to(vectors)
        return lambda _: scores.unsqueeze(0).clone()

    def _check_k(self, k: int) -> None:
        catalogue = len(self.items) - 1
        if k < 1:
            raise UserError(f"--k={k}; expected a whole number of at least 1.")
        if k > catalogue:
            raise UserError(
                f"--k={k} exceeds the catalogue of {catalogue:,} items of {self.trained.config['dataset']}; "
                "set --k to at most that."
            )

    def recommend(
        self, users: Optional[Iterable[str]] = None, k: int = 20, exclude_seen: Optional[bool] = None
    ) -> Iterator[Recommendation]:
        """The k best items of each user, computed in blocks of users during iteration.

        Args:
            users: original ids; None: every user of the dataset.
            k: 1 to the number of items.
            exclude_seen: whether :attr:`seen` is left out; None: :attr:`exclude_seen`.

        Raises:
            UserError: a k that is out of range, an unknown user, scores that are not finite.
        """
        self._check_k(k)
        wanted = list(self.users) if users is None else _ids(users, "users")
        unknown = [user for user in wanted if user not in self.users]
        if unknown:
            raise UserError(f"User '{unknown[0]}' is not in {self.trained.config['dataset']}; leave it out.")
        if not wanted:
            return iter(())
        ids = torch.tensor([self.users[user] for user in wanted], dtype=torch.long)
        return self._ranked(wanted, ids, self.score_block, self.left_out(exclude_seen), k)

    def left_out(self, exclude_seen: Optional[bool] = None) -> Observed:
        """The pairs that are not recommended: :attr:`seen` or none. None: as in :attr:`exclude_seen`."""
        if self.exclude_seen if exclude_seen is None else exclude_seen:
            return self.seen
        none = torch.empty(0, dtype=torch.long)
        return Observed(none, none, self.seen.users, self.seen.items)

    def _ranked(
        self, users: Sequence[str], ids: Tensor, score_block: Callable[[Tensor], Tensor], left_out: Observed, k: int
    ) -> Iterator[Recommendation]:
        tokens = np.array(self.items, dtype=object)
        names = iter(users)
        blocks = rank_items(score_block, left_out, ids, k, bool(self.trained.config["show_progress"]))
        for items, scores in blocks:
            if torch.isnan(scores).any() or torch.isposinf(scores).any():
                raise UserError(
                    f"'{self.trained.checkpoint}' has scores that are not finite; train it again, with a lower "
                    "--learning_rate."
                )
            lengths = (scores > -torch.inf).sum(dim=1).tolist()
            rows = tokens[items.numpy()].tolist()
            # Through the shortest text with the same float32: 0.1, not 0.10000000149.
            values = scores.numpy().astype(str).astype(np.float64).tolist()
            for length, row, value in zip(lengths, rows, values):
                yield Recommendation(next(names), row[:length], value[:length])

    def vectors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The vectors of all users (U, d) and items (I, d), by internal id; row 0 is padding.

        Row ``student.users[token]`` is a user's, and item i of :attr:`items` has row i.

        Raises:
            UserError: a model without a vector for each user and item.
        """
        if "representations" not in self.model.capabilities:
            raise UserError(f"{self.trained.state['model']} has no vector for each user and item; ask for its scores.")
        users, items = (
            part.detach().cpu().float().numpy() for part in (self.model.user_embeddings(), self.model.item_embeddings())
        )
        return users, items

    def score(self, pairs: pd.DataFrame) -> NDArray[np.float32]:
        """The model's score of each row (n,) of a table of pairs, which has the dataset's columns of users and items.

        Args:
            pairs: original ids in columns such as ``user_id`` and ``item_id``; other columns do not matter.

        Raises:
            UserError: a missing column, or a user or an item that is not in the dataset.
        """
        fields = [self.trained.config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD")]
        missing = [field for field in fields if field not in pairs]
        if missing:
            raise UserError(f"The table has no column '{missing[0]}'; expected {fields[0]} and {fields[1]}.")
        if pairs.empty:
            return np.empty(0, dtype=np.float32)
        numbered = []
        for field, known in zip(fields, (self.users, self.item_ids)):
            ids = pairs[field].astype(str).map(known)
            if ids.isna().any():
                row = int(np.flatnonzero(ids.isna())[0])
                raise UserError(
                    f"Row {row} has {field} '{pairs[field].iloc[row]}', which is not in "
                    f"{self.trained.config['dataset']}; leave it out."
                )
            numbered.append(torch.tensor(ids.to_numpy(np.int64)))
        users, items = numbered
        scores = np.empty(len(pairs), dtype=np.float32)
        distinct, place = users.unique(return_inverse=True)
        order = place.argsort()
        ends = place[order]
        first = 0
        for block in distinct.split(sized_eval_batch(len(self.items)) // len(self.items)):
            rows = order[torch.searchsorted(ends, first) : torch.searchsorted(ends, first + len(block))]
            found = self.score_block(block).cpu()[place[rows] - first, items[rows]]
            scores[rows.numpy()] = found.float().numpy()
            first += len(block)
        return scores

    @torch.no_grad()
    def _score_next(self, users: Tensor) -> Tensor:
        """The model's scores (n, I) of the next item for users (n,); -inf for a user without a sequence."""
        return self._score_sequences(*(part[users] for part in self.sequences))

    @torch.no_grad()
    def _score_sequences(self, items: Tensor, lengths: Tensor) -> Tensor:
        model: Any = self.model.model
        items, lengths = (part.to(self.trained.config["device"]) for part in (items, lengths))
        given = Interaction({model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: lengths.clamp(min=1)})
        scores: Tensor = model.full_sort_predict(given).view(len(items), -1)
        return scores.masked_fill_((lengths == 0).unsqueeze(1), -torch.inf)


@torch.no_grad()
def rank_items(
    score_block: Callable[[Tensor], Tensor], seen: Observed, users: Tensor, k: int, show_progress: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k best unseen items of users, one block of users at a time; only one block of scores is held.

    Args:
        score_block: users (n,) -> their scores of every item (n, I), padding included. The block is overwritten.
        seen: the pairs that are left out.
        users: (n,) internal ids, in the order of the results.
        k: at most I.
        show_progress: whether to show a progress bar with the time left.

    Yields:
        items (n, k) and their scores (n, k) on the CPU, best first; a score of -inf marks an empty place.
    """
    rows = sized_eval_batch(seen.items) // seen.items
    with tqdm(total=len(users), desc="Recommending", unit="user", disable=not show_progress) as bar:
        for block in users.split(rows):
            scores = score_block(block)
            row, item = (part.to(scores.device) for part in seen.rows_and_items(block))
            scores[row, item] = -torch.inf
            scores[:, 0] = -torch.inf
            best, items = exact_topk(scores, k)
            bar.update(len(block))
            yield items.cpu(), best.cpu()
