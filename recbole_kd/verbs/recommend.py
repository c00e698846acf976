"""``recbole-kd recommend``: the best items of users by a saved model, in original ids, as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
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
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import exact_topk
from recbole_kd.files.atomic import write_atomic
from recbole_kd.files.reading import read_text
from recbole_kd.stages.saved import load_trained
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.verbs.options import SEEN, RecommendOptions

#: What a list is called whose user is not in the data.
NEW_USER = "new"
#: Weight of the penalty on a user's vector that is made of items, for each item.
_RIDGE = 3.0


class Recommendation(NamedTuple):
    """A user's best items, best first, in original ids, and their scores; fewer than asked where fewer are left."""

    user: str
    items: list[str]
    scores: list[float]


class Recommender:
    """A saved model that ranks the items of its dataset::

        for user, items, scores in Recommender("saved/FILE.pth").recommend(["196", "186"], k=10): ...

    Attributes:
        users: original id -> internal id, padding left out, in internal order.
        items: (I,) original ids by internal id; index 0 is padding.
        seen: the pairs of the splits that count as seen.
        score_block: users (n,) -> their scores of every item (n, I), as the evaluator ranks them.
    """

    def __init__(self, checkpoint: str, seen: str = "train", config_dict: Optional[Mapping[str, Any]] = None) -> None:
        """
        Args:
            checkpoint: a student, teacher or baseline that recbole-kd saved.
            seen: a key of :data:`recbole_kd.verbs.options.SEEN`. The items of these splits are those that a user has
                seen; a sequential model continues their sequence.
            config_dict: settings over the stored ones (``data_path``, ``use_gpu``, ...).

        Raises:
            UserError: no such choice; or as :func:`recbole_kd.stages.saved.load_trained`.
        """
        RecommendOptions.checked("--", "seen", seen)
        self.trained, self.splits = load_trained(checkpoint, config_dict)
        self.model = FrozenTeacher(
            self.trained, self.splits, os.path.join(self.trained.config["checkpoint_dir"], "ranks")
        )
        self.users = {token: user for user, token in enumerate(self.splits.user_tokens) if user}
        self.items = self.splits.item_tokens
        parts = [getattr(self.splits, split) for split in SEEN[seen]]
        users, items = (torch.cat(part) for part in zip(*map(self.splits.pairs, parts)))
        self.seen = Observed(users, items, len(self.splits.user_tokens), len(self.items))
        self.score_block: Callable[[Tensor], Tensor] = self.model.score_block
        if self.splits.sequential:
            self._sequences = self.splits.sequences_after(parts)
            self.score_block = self._score_next

    def recommend_after(self, history: Sequence[str], k: int = 20, exclude_seen: bool = True) -> Recommendation:
        """The k best items for somebody who is not in the data, by what they had.

        A sequential model's encoder reads the items. Of a model whose score is a product of two vectors, the items'
        vectors give the user's: see :func:`folded_in`.

        Args:
            history: original ids of items, oldest first.
            k: 1 to the number of items.
            exclude_seen: whether the history is left out.

        Raises:
            UserError: as :meth:`recommend`; an unknown item; or a model that can do neither.
        """
        self._check_k(k)
        ids = {token: item for item, token in enumerate(self.items) if item}
        unknown = [item for item in history if item not in ids]
        if unknown or not history:
            raise UserError(
                f"Item '{unknown[0]}' is not in {self.trained.config['dataset']}; leave it out."
                if unknown
                else "The history is empty; give an item at least."
            )
        had = torch.tensor([ids[item] for item in history])
        rows = torch.zeros(len(had) if exclude_seen else 0, dtype=torch.long)
        left_out = Observed(rows, had[: len(rows)], 1, len(self.items))
        return next(self._ranked([NEW_USER], torch.tensor([0]), self._scores_after(had), left_out, k))

    def _scores_after(self, had: Tensor) -> Callable[[Tensor], Tensor]:
        """What scores every item for somebody who had these items (n,), oldest first."""
        if self.splits.sequential:
            longest = self._sequences[0].shape[1]
            items = torch.zeros(1, longest, dtype=torch.long)
            latest = had[-longest:]
            items[0, : len(latest)] = latest
            return lambda _: self._score_sequences(items, torch.tensor([len(latest)]))
        if "representations" not in self.model.capabilities:
            raise UserError(
                f"{self.model.name} knows a user by more than the items' vectors, so that it cannot answer for "
                "somebody outside of the data; leave --history out, or teach a student that can (--model=BPR "
                f"--teacher={self.model.name} --distill=rrd)."
            )
        vectors = self.model.item_embeddings()
        scores = vectors @ folded_in(vectors, had.to(vectors.device))
        return lambda _: scores.unsqueeze(0).clone()

    def _check_k(self, k: int) -> None:
        catalogue = len(self.items) - 1
        if k > catalogue:
            raise UserError(
                f"--k={k} exceeds the catalogue of {catalogue:,} items of {self.trained.config['dataset']}; "
                "set --k to at most that."
            )

    def recommend(
        self, users: Optional[Iterable[str]] = None, k: int = 20, exclude_seen: bool = True
    ) -> Iterator[Recommendation]:
        """The k best items of each user, computed in blocks of users as they are asked for.

        Args:
            users: original ids; None is every user of the dataset.
            k: 1 to the number of items.
            exclude_seen: whether :attr:`seen` is left out.

        Raises:
            UserError: a k that is out of range, an unknown user, scores that are not finite.
        """
        self._check_k(k)
        wanted = list(self.users if users is None else users)
        unknown = [user for user in wanted if user not in self.users]
        if unknown:
            raise UserError(f"User '{unknown[0]}' is not in {self.trained.config['dataset']}; leave it out.")
        none = torch.empty(0, dtype=torch.long)
        nothing = Observed(none, none, self.seen.users, self.seen.items)
        ids = torch.tensor([self.users[user] for user in wanted], dtype=torch.long)
        return self._ranked(wanted, ids, self.score_block, self.seen if exclude_seen else nothing, k)

    def _ranked(
        self, users: Sequence[str], ids: Tensor, score_block: Callable[[Tensor], Tensor], left_out: Observed, k: int
    ) -> Iterator[Recommendation]:
        tokens = np.array(self.items, dtype=object)
        names = iter(users)
        blocks = rank_items(score_block, left_out, ids, k, bool(self.trained.config["show_progress"]))
        for items, scores in blocks:
            if torch.isnan(scores).any() or torch.isposinf(scores).any():
                raise UserError(
                    f"'{self.trained.checkpoint}' gives scores that are not finite; train it again, with a lower "
                    "--learning_rate."
                )
            lengths = (scores > -torch.inf).sum(dim=1).tolist()
            rows = tokens[items.numpy()].tolist()
            # By way of the shortest text that gives the same float32: 0.1, not 0.10000000149.
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
            UserError: a column that is missing, a user or an item that is not in the dataset.
        """
        fields = [self.trained.config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD")]
        missing = [field for field in fields if field not in pairs]
        if missing:
            raise UserError(f"The table has no column '{missing[0]}'; expected {fields[0]} and {fields[1]}.")
        item_ids = {token: item for item, token in enumerate(self.items) if item}
        numbered = []
        for field, known in zip(fields, (self.users, item_ids)):
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
        """Scores (n, I) of what comes next for users (n,), by the model itself; -inf for a user without a sequence."""
        return self._score_sequences(*(part[users] for part in self._sequences))

    @torch.no_grad()
    def _score_sequences(self, items: Tensor, lengths: Tensor) -> Tensor:
        model: Any = self.model.model
        items, lengths = (part.to(self.trained.config["device"]) for part in (items, lengths))
        given = Interaction({model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: lengths.clamp(min=1)})
        scores: Tensor = model.full_sort_predict(given).view(len(items), -1)
        return scores.masked_fill_((lengths == 0).unsqueeze(1), -torch.inf)


def folded_in(items: Tensor, had: Tensor) -> Tensor:
    """The vector of a user by the items that they had, by regularised least squares over the items' vectors.

    It is the u that minimises, with n items had of I, the others counting as much as these together, and s the mean of
    ||v_i||^2 / d,

        sum over the items had of (1 - u . v_i)^2  +  n / I  sum over the others of (u . v_i)^2  +  3 n s ||u||^2.

    Args:
        items: (I + 1, d) vectors, the padding's first.
        had: (n,) the items had; one that was had twice counts twice.

    Returns:
        (d,) the vector.
    """
    every, own, n = items[1:].double(), items[had].double(), len(had)
    # The sum over the others is the one over all, less the items had.
    weight = n / len(every)
    distinct = items[had.unique()].double()
    system = own.t() @ own + weight * (every.t() @ every - distinct.t() @ distinct)
    system += _RIDGE * n * every.square().mean() * torch.eye(every.shape[1], dtype=every.dtype, device=every.device)
    return torch.linalg.solve(system, own.sum(dim=0)).to(items.dtype)


@torch.no_grad()
def rank_items(
    score_block: Callable[[Tensor], Tensor], seen: Observed, users: Tensor, k: int, show_progress: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k best items of users that are not seen, a block of users at a time; at most a block of scores is held.

    Args:
        score_block: users (n,) -> their scores of every item (n, I), padding included. The block is overwritten.
        seen: the pairs that are left out.
        users: (n,) internal ids, in the order of the answer.
        k: at most I.
        show_progress: whether to show a progress bar with the time left.

    Yields:
        items (n, k) and their scores (n, k) on the CPU, best first; a score of -inf marks a place that stays empty.
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


def read_users(text: str) -> Optional[list[str]]:
    """The distinct users that ``--users`` names, in their order; None is all of them.

    Args:
        text: ``all``, ids between commas, or ``@FILE`` (``@-`` is the standard input) with an id a line.

    Raises:
        UserError: no id, or a file that cannot be read.
    """
    return None if text == "all" else list(dict.fromkeys(read_ids("users", text, "user")))


def read_ids(setting: str, text: str, kind: str) -> list[str]:
    """The ids that a setting names, in their order: between commas, or a line each in ``@FILE``.

    Args:
        setting: its name.
        text: its value.
        kind: of what they are ids.

    Raises:
        UserError: no id, or a file that cannot be read.
    """
    if text.startswith("@"):
        try:
            content = sys.stdin.read() if text == "@-" else read_text(text[1:])
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise UserError(
                f"Cannot read '{text[1:]}' ({reason}); set --{setting}=@FILE to a file of an id a line."
            ) from None
        ids = content.splitlines()
    else:
        ids = text.split(",")
    found = [one.strip() for one in ids if one.strip()]
    if not found:
        every = ", or all" if setting == "users" else ""
        raise UserError(f"--{setting}={text} names no {kind}; give ids between commas, @FILE with an id a line{every}.")
    return found


def split_users(text: str, known: Collection[str]) -> list[str]:
    """The distinct ids between commas, in their order. A comma inside an id that is known separates nothing.

    >>> split_users("7, Ann B., no 81,9", {"7", "Ann B., no 81"})
    ['7', 'Ann B., no 81', '9']
    """
    pieces = text.split(",")
    most = max((user.count(",") for user in known), default=0) + 1
    users = []
    place = 0
    while place < len(pieces):
        ends = range(min(len(pieces), place + most), place, -1)
        spans = ((end, part) for end in ends for part in _as_written(",".join(pieces[place:end])) if part in known)
        place, user = next(spans, (place + 1, pieces[place].strip()))
        users.append(user)
    return list(dict.fromkeys(filter(None, users)))


def _as_written(text: str) -> tuple[str, str]:
    """An id as it stands, and without spaces around it."""
    return text, text.strip()


def _csv_lines(recommendations: Iterable[Recommendation]) -> Iterator[str]:
    yield "user_id,rank,item_id,score\n"
    for one in recommendations:
        text = io.StringIO()
        ranked = enumerate(zip(one.items, one.scores), start=1)
        csv.writer(text, lineterminator="\n").writerows((one.user, rank, item, score) for rank, (item, score) in ranked)
        yield text.getvalue()


def _json_lines(recommendations: Iterable[Recommendation]) -> Iterator[str]:
    for one in recommendations:
        content = {"user_id": one.user, "items": one.items, "scores": one.scores}
        yield json.dumps(content, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Iterable[Recommendation]], Iterator[str]]] = {"csv": _csv_lines, "jsonl": _json_lines}


def run_recommend(
    checkpoint: str,
    users: Optional[str] = None,
    k: int = 20,
    format: str = "csv",
    output: Optional[str] = None,
    seen: str = "train",
    exclude_seen: bool = True,
    config_dict: Optional[Mapping[str, Any]] = None,
    history: Optional[str] = None,
) -> None:
    """The verb: recommendations to the standard output, or atomically to a file. Unknown users are named on stderr.

    Args:
        checkpoint, seen, config_dict: as in :class:`Recommender`.
        users: as in :func:`read_users`.
        k: items per user, at least 1.
        format: a key of :data:`FORMATS`.
        output: a file; None is the standard output.
        exclude_seen: whether what a user has seen is left out.
        history: instead of users, items as in :func:`read_ids`.

    Raises:
        UserError: a bad value of one of these, or not one user that the model knows.
    """
    given = {name: value for name, value in locals().items() if name != "config_dict"}
    run(RecommendOptions.parse("--", given), dict(config_dict or {}))


def run(options: RecommendOptions, settings: dict[str, Any]) -> None:
    """The verb, with its options checked; `settings` are over the stored ones."""
    given = {**settings, **({"config_files": options.config_files} if options.config_files else {})}
    if options.history:
        history = read_ids("history", options.history, "item")
        recommender = Recommender(options.checkpoint, options.seen, given)
        catalogue = set(recommender.items[1:])
        known = [item for item in history if item in catalogue]
        _skipped("item", history, catalogue, recommender.trained.config["dataset"])
        if not known:
            raise UserError(
                f"None of the items is in {recommender.trained.config['dataset']}; --history takes its original ids, "
                f"such as {recommender.items[1]}."
            )
        _write(options, [recommender.recommend_after(known, options.k, options.exclude_seen)], 1)
        return
    asked = str(options.users)
    named = read_users(asked)
    recommender = Recommender(options.checkpoint, options.seen, given)
    dataset = recommender.trained.config["dataset"]
    if named is not None and not asked.startswith("@"):
        named = split_users(asked, recommender.users)
    known = list(recommender.users) if named is None else [user for user in named if user in recommender.users]
    _skipped("user", named or (), recommender.users, dataset)
    if not known:
        pasted = (user for user in recommender.users if user != "all" and user[0] != "@")
        example = next((user for user in pasted if split_users(user, recommender.users) == [user]), None)
        offer = "--users=@FILE takes its original ids, one a line"
        if example is not None:
            offer = f"--users takes its original ids, such as {shlex.quote(example)}"
        raise UserError(f"None of the users is in {dataset}; {offer}.")
    _write(options, recommender.recommend(known, options.k, options.exclude_seen), len(known))


def _skipped(kind: str, named: Iterable[str], known: Container[str], dataset: str) -> None:
    for one in named:
        if one not in known:
            print(f"recbole-kd: {kind} '{one}' is not in {dataset}: skipped", file=sys.stderr)


def _write(options: RecommendOptions, found: Iterable[Recommendation], users: int) -> None:
    lines = FORMATS[options.format](found)
    if options.output is None:
        sys.stdout.writelines(lines)
        sys.stdout.flush()
        return
    write_atomic(options.output, lambda file: file.writelines(line.encode() for line in lines), "output")
    logging.getLogger().info(f"Recommendations for {users:,} users: {options.output}")


__all__ = ["Recommendation", "Recommender", "folded_in", "rank_items", "read_ids", "read_users", "run", "run_recommend"]
