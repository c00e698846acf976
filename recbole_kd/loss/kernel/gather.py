"""Dot products of chosen user-item pairs; the backward pass costs about as much as the forward pass.

Indexing two embedding tables would hold every gathered vector, and its backward pass would add them to the tables one
by one. Here the chosen pairs are the pattern of a sparse matrix. The forward pass is a sampled dense-dense product, and
each table's gradient is one sparse-dense product. So nothing of size (n, k, d) is held, unless it is small.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from recbole_kd.loss.kernel.rows import add_to_block, by_rows, gradient_of_rows, remembers_rows, rows_at

#: A dot product over 20 dimensions takes 1.5 times as long as over 24, so a table that is read often is padded.
LANES = 8
#: Up to this many pairs, gathering their vectors is faster than building the pattern.
GATHERED = 1 << 15
#: Rows of a large table whose gradients are held at a time; larger temporary tensors cost more than their sums.
ROWS = 1 << 15


def gathered_dot(user_embeddings: Tensor, item_embeddings: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """Dot products of the vectors of `users` with those of their `items`, differentiable once.

    A table that is marked (`rows.py`) gets its gradients by rows.

    Args:
        user_embeddings: (U, d).
        item_embeddings: (I, d).
        users: (n,) ids, duplicates allowed.
        items: (n,) or (n, k) ids, duplicates allowed. Two patterns are recognised and cost less. One row `expand`ed
            over all users becomes a matrix product; use it to score a whole catalogue. (n,) items that each occur k
            times in a row are computed as (n / k, k) users of items.

    Returns:
        A tensor shaped like `items`.

    Raises:
        IndexError: on a CPU, an id without a row in its table. On a GPU the kernels check ids, without synchronising.
    """
    if items.dim() == 2 and items.stride(0) == 0 and len(items) > 1:
        return rows_at(user_embeddings, users) @ rows_at(item_embeddings, items[0]).t()
    if items.dim() == 1:
        distinct, runs = items.unique_consecutive(return_counts=True)
        if 0 < len(distinct) < len(items) and bool((runs == runs[0]).all()):
            grouped = users.reshape(len(distinct), -1)
            return gathered_dot(item_embeddings, user_embeddings, distinct, grouped).view(-1)
    for ids, table, name in ((users, user_embeddings, "user"), (items, item_embeddings, "item")):
        # Sparse products do not check indices.
        if ids.numel() == 0 or ids.device.type != "cpu":
            continue
        lowest, highest = (int(end) for end in ids.aminmax())
        if lowest < 0 or highest >= len(table):
            raise IndexError(f"{name} ids from {lowest} to {highest} index a table of {len(table)} rows")
    many = items.dim() == 2 and items.numel() > GATHERED and items.shape[1] <= len(item_embeddings)
    large = remembers_rows(item_embeddings) and _sparse_products(item_embeddings)
    kind = _DotByItem if many and large else _GatheredDot
    scores: Tensor = kind.apply(user_embeddings, item_embeddings, users, items)
    return scores


class _GatheredDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user_embeddings: Tensor, item_embeddings: Tensor, users: Tensor, items: Tensor) -> Tensor:
        ctx.tables = user_embeddings, item_embeddings
        ctx.save_for_backward(users, items)
        vectors = user_embeddings.index_select(0, users)
        if items.dim() == 2 and items.shape[1] > len(item_embeddings):
            # torch's sampled product allows at most one entry for each cell; here computing all cells costs less.
            return (vectors @ item_embeddings.t()).gather(1, items.long())
        if items.numel() <= GATHERED or not _sparse_products(vectors):
            gathered = item_embeddings.index_select(0, items.reshape(-1)).view(len(items), -1, vectors.shape[1])
            return (gathered @ vectors.unsqueeze(2)).view(items.shape)
        pattern = _rows_of(items, torch.zeros(items.numel(), dtype=vectors.dtype), len(item_embeddings))
        table, width = item_embeddings, -vectors.shape[1] % LANES
        if width and items.numel() > 2 * len(table):
            vectors, table = (functional.pad(each, (0, width)) for each in (vectors, table))
        return _sampled(pattern, vectors, table.t()).view(items.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        users, items = ctx.saved_tensors
        user_embeddings, item_embeddings = ctx.tables
        of_users = of_items = None
        gradient = gradient.contiguous()
        if ctx.needs_input_grad[0]:
            if items.dim() == 1:
                of_users = _scatter(gradient, users, item_embeddings, items, user_embeddings)
            else:
                table = item_embeddings.detach()
                if _sparse_products(gradient) and items.numel():
                    ids = items.contiguous()
                    summed = functional.embedding_bag(ids, table, mode="sum", per_sample_weights=gradient)
                else:
                    summed = (gradient.unsqueeze(1) @ table[items]).squeeze(1)
                of_users = gradient_of_rows(user_embeddings, users, summed)
        if ctx.needs_input_grad[1]:
            of_items = _scatter(gradient, items, user_embeddings, users, item_embeddings)
        return of_users, of_items, None, None


class _DotByItem(torch.autograd.Function):
    """The same for (n, k) items of a marked table, larger than the processor's cache: pairs in the order of its rows.

    So each pass reads the table once, from its first row to its last, and the users' vectors stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, user_embeddings: Tensor, item_embeddings: Tensor, users: Tensor, items: Tensor) -> Tensor:
        from scipy.sparse import csr_matrix  # late: `list` reads this module, and does without SciPy

        count, size = items.numel(), (len(items), len(item_embeddings))
        places = torch.arange(count, dtype=torch.int32)
        parts = places.numpy(), items.reshape(-1).int().numpy(), _offsets(*items.shape).numpy()
        ordered = csr_matrix(parts, shape=size).tocsc()
        # Of each item: where its pairs begin, and of each pair: its list, and its place in `items`.
        offsets, lists, places = map(torch.from_numpy, (ordered.indptr, ordered.indices, ordered.data))
        places = places.long()
        vectors = user_embeddings.index_select(0, users)
        pattern = torch.sparse_csr_tensor(offsets, lists, vectors.new_zeros(count), size[::-1], check_invariants=False)
        scores = _sampled(pattern, item_embeddings, vectors.t())
        ctx.tables = user_embeddings, item_embeddings
        ctx.save_for_backward(users, vectors, offsets, lists, places)
        return torch.empty_like(scores).index_copy_(0, places, scores).view(items.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        from scipy.sparse import csr_matrix

        users, vectors, offsets, lists, places = ctx.saved_tensors
        user_embeddings, item_embeddings = ctx.tables
        of_users = None
        weights = gradient.reshape(-1).index_select(0, places)
        if ctx.needs_input_grad[0]:
            parts, size = (weights.numpy(), lists.numpy(), offsets.numpy()), (len(item_embeddings), len(users))
            summed = csr_matrix(parts, shape=size).T @ item_embeddings.detach().numpy()
            of_users = gradient_of_rows(user_embeddings, users, torch.from_numpy(summed))
        if ctx.needs_input_grad[1]:
            for start in range(0, len(item_embeddings), ROWS):
                block = offsets[start : start + ROWS + 1]
                pairs = slice(int(block[0]), int(block[-1]))
                sums = functional.embedding_bag(
                    lists[pairs],
                    vectors,
                    block - pairs.start,
                    mode="sum",
                    per_sample_weights=weights[pairs],
                    include_last_offset=True,
                )
                add_to_block(item_embeddings, start, sums, start + block.diff().nonzero().squeeze(1))
        return of_users, None, None, None


def _sparse_products(values: Tensor) -> bool:
    """Whether sparse products exist for this device and type; elsewhere plain indexing is fast."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def _rows_of(items: Tensor, values: Tensor, columns: int) -> Tensor:
    """Sparse (n, columns) matrix whose row r holds the values of `items[r]`."""
    offsets = _offsets(len(items), 1 if items.dim() == 1 else items.shape[1])
    return torch.sparse_csr_tensor(
        offsets, items.reshape(-1).int(), values, (len(items), columns), check_invariants=False
    )


def _sampled(pattern: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The entries of `left @ right` at those of `pattern`, whose own are 0 and are overwritten."""
    torch.sparse.sampled_addmm(pattern, left, right, beta=0.0, out=pattern)  # without `out` the pattern is copied
    return pattern.values()


def _offsets(rows: int, each: int) -> Tensor:
    """(rows + 1,) offsets of rows with `each` entries."""
    return torch.arange(rows + 1, dtype=torch.int32) * each


def _scatter(weights: Tensor, targets: Tensor, source: Tensor, rows: Tensor, table: Tensor) -> Optional[Tensor]:
    """The gradient of `table`; None where it is added to the table's own.

    It sums over entries (n,) or (n, k): `weights[r, e] * source[rows[r]]` at row `targets[r, e]`.
    """
    vectors, ids = source.detach().index_select(0, rows), targets.reshape(-1)
    each = 1 if targets.dim() == 1 else targets.shape[1]
    if (by_rows(table) and (each == 1 or remembers_rows(table))) or not _sparse_products(weights):
        spread = (weights.view(len(rows), each, 1) * vectors.unsqueeze(1)).flatten(0, 1)
        return gradient_of_rows(table, ids, spread)
    from scipy.sparse import csr_matrix  # late: `list` reads this module, and does without SciPy

    # SciPy adds up the product of a transposed matrix entry by entry, in their order. torch would have them sorted,
    # which takes three times as long as the product.
    parts = weights.reshape(-1).numpy(), ids.int().numpy(), _offsets(len(rows), each).numpy()
    return torch.from_numpy(csr_matrix(parts, shape=(len(rows), len(table))).T @ vectors.numpy())
