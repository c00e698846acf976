"""SEvo: the smoother against dense algebra in float64, the optimisers against loops over rows and torch's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_kd.sevo.optimizer import (
    OPTIMIZERS,
    NeumannSmoother,
    SEvoAdam,
    SEvoAdamW,
    SEvoSGD,
    sevo_optimizer,
    smoothed_groups,
)

PLAIN = {"sevo_sgd": torch.optim.SGD, "sevo_adam": torch.optim.Adam, "sevo_adamw": torch.optim.AdamW}


def dense_adjacency(nodes: int, seed: int = 0) -> Tensor:
    """D^(-1/2) W D^(-1/2) in float64 of a random weighted graph whose node 0, the padding, has no neighbour."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    weights = (weights * (weights < 0.4)).triu(1)
    weights[0] = 0
    weights = weights + weights.T
    scale = weights.sum(1).clamp(min=1e-12).rsqrt() * (weights.sum(1) > 0)
    return scale[:, None] * weights * scale[None, :]


def make_smoother(nodes: int, beta: float = 0.9, layers: int = 3, seed: int = 0, iterative: bool = False):
    return NeumannSmoother(dense_adjacency(nodes, seed).to_sparse_csr(), beta, layers, iterative)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The smoother


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.floats(0, 0.995), st.integers(0, 6), st.integers(0, 99))
def test_smoother_is_the_rescaled_neumann_series(nodes: int, beta: float, layers: int, seed: int) -> None:
    adjacency, updates = dense_adjacency(nodes, seed), normal(nodes, 3, seed=seed)
    total = torch.zeros_like(updates)
    for power in range(layers + 1):
        total += beta**power * torch.linalg.matrix_power(adjacency, power) @ updates
    expected = (1 - beta) / (1 - beta ** (layers + 1)) * total
    torch.testing.assert_close(make_smoother(nodes, beta, layers, seed)(updates), expected, rtol=1e-12, atol=1e-13)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.floats(0, 0.995), st.integers(0, 6), st.integers(0, 99))
def test_iterative_smoother_repeats_one_averaging_step(nodes: int, beta: float, layers: int, seed: int) -> None:
    adjacency, updates = dense_adjacency(nodes, seed), normal(nodes, 3, seed=seed)
    expected = updates
    for _ in range(layers):
        expected = beta * adjacency @ expected + (1 - beta) * updates
    actual = make_smoother(nodes, beta, layers, seed, iterative=True)(updates)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("iterative", [False, True])
def test_many_layers_reach_the_minimiser_of_the_objective(iterative: bool) -> None:
    """argmin over X of ||X - Delta||^2 + beta/(1 - beta) tr(X^T (I - Ã) X): its gradient is zero there."""
    beta, adjacency, updates = 0.8, dense_adjacency(9), normal(9, 4)
    identity = torch.eye(9, dtype=torch.float64)
    closed_form = (1 - beta) * torch.linalg.solve(identity - beta * adjacency, updates)

    variable = closed_form.clone().requires_grad_()
    smoothness = torch.trace(variable.T @ (identity - adjacency) @ variable)
    objective = (variable - updates).square().sum() + beta / (1 - beta) * smoothness
    (gradient,) = torch.autograd.grad(objective, variable)
    assert gradient.abs().max() < 1e-12

    errors = [
        (make_smoother(9, beta, layers, iterative=iterative)(updates) - closed_form).abs().max()
        for layers in (1, 4, 16, 64, 150)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


def test_rescaling_keeps_an_update_that_is_already_smooth() -> None:
    """Ã x = x has the solution sqrt(degree); psi leaves it as it is, the series without rescaling shrinks it."""
    ring = torch.roll(torch.eye(6, dtype=torch.float64), 1, 0)
    smoother = NeumannSmoother(((ring + ring.T) / 2).to_sparse_csr(), 0.99, 2)
    updates = torch.ones(6, 2, dtype=torch.float64)
    torch.testing.assert_close(smoother(updates), updates)


def test_smoother_follows_the_dtype_of_its_updates() -> None:
    smoother = make_smoother(7)
    single = smoother(normal(7, 2).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), make_smoother(7)(normal(7, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("beta", "layers", "words"),
    [(1.0, 3, "beta"), (-0.1, 3, "beta"), (math.nan, 3, "beta"), (0.9, -1, "layers"), (0.9, 1.5, "layers")],
)
def test_values_out_of_range_are_refused(beta: float, layers: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_smoother(4, beta, layers)


@pytest.mark.parametrize("adjacency", [torch.eye(3), torch.ones(2, 3).to_sparse_csr(), torch.eye(3).to_sparse()])
def test_adjacency_must_be_square_and_csr(adjacency: Tensor) -> None:
    with pytest.raises(ValueError, match="square sparse CSR"):
        NeumannSmoother(adjacency, 0.9, 3)


# The optimisers


class TwoTables(nn.Module):
    """Users and items that share one graph, and a layer that is on none."""

    def __init__(self, users: int = 5, items: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.users = nn.Parameter(normal(users, 3, seed=seed, dtype=dtype))
        self.items = nn.Parameter(normal(items, 3, seed=seed + 1, dtype=dtype))
        self.layer = nn.Parameter(normal(3, 3, seed=seed + 2, dtype=dtype))

    @property
    def tables(self) -> list[Tensor]:
        return [self.users, self.items]

    def take_gradients(self, step: int) -> None:
        """Gradients of a batch: a few rows of each table, another set in each step; nothing for row 0."""
        self.users.grad, self.items.grad = torch.zeros_like(self.users), torch.zeros_like(self.items)
        for table in self.tables:
            rows = 1 + torch.randperm(len(table) - 1, generator=torch.Generator().manual_seed(step))[:2]
            table.grad[rows] = normal(2, 3, seed=100 + step, dtype=table.dtype)
        self.layer.grad = normal(3, 3, seed=200 + step, dtype=table.dtype)


def build(name: str, model: TwoTables, smoother: NeumannSmoother | None, weight_decay: float = 0.0, lr: float = 0.05):
    groups = smoothed_groups(model.parameters(), model.tables, smoother)
    return sevo_optimizer(name, groups, lr=lr, weight_decay=weight_decay)


def trained(name: str, smoother: NeumannSmoother | None, steps: int = 6, weight_decay: float = 0.0, **model: object):
    module = TwoTables(**model)
    optimizer = build(name, module, smoother, weight_decay)
    for step in range(steps):
        module.take_gradients(step)
        optimizer.step()
    return module, optimizer


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("beta", "layers"), [(0.0, 3), (0.9, 0), (None, None)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_smoothing_it_is_torchs_optimizer_bit_for_bit(name, beta, layers, weight_decay, dtype) -> None:
    smoother = None if beta is None else make_smoother(12, beta, layers)
    ours, _ = trained(name, smoother, weight_decay=weight_decay, dtype=dtype)
    plain = TwoTables(dtype=dtype)
    optimizer = PLAIN[name](plain.parameters(), lr=0.05, weight_decay=weight_decay)
    for step in range(6):
        plain.take_gradients(step)
        optimizer.step()
    assert same_bits(ours, plain)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_without_smoothing_is_torchs_bit_for_bit(momentum: float) -> None:
    ours, plain = TwoTables(), TwoTables()
    optimizers = SEvoSGD(ours.parameters(), 0.1, momentum), torch.optim.SGD(plain.parameters(), 0.1, momentum)
    for step in range(4):
        for module, optimizer in zip((ours, plain), optimizers):
            module.take_gradients(step)
            optimizer.step()
    assert same_bits(ours, plain)


def reference_directions(name: str, tables: Tensor, gradients: Tensor, state: dict, step: int, decay: float) -> Tensor:
    """Delta of one step, row by row and number by number; `state` holds m and v of each row."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    directions = torch.zeros_like(tables)
    for row in range(len(tables)):
        idle = bool((gradients[row] == 0).all())
        for column in range(tables.shape[1]):
            g = float(gradients[row, column])
            if name != "sevo_adamw":
                g += decay * float(tables[row, column])
            if name == "sevo_sgd":
                directions[row, column] = g
                continue
            m, v = state.get((row, column), (0.0, 0.0))
            g1, g2 = g, g * g
            if name == "sevo_adamw" and idle and step > 1:
                g1, g2 = m / (1 - beta1 ** (step - 1)), v / (1 - beta2 ** (step - 1))
            m, v = beta1 * m + (1 - beta1) * g1, beta2 * v + (1 - beta2) * g2
            state[row, column] = m, v
            directions[row, column] = m / (1 - beta1**step) / (math.sqrt(v / (1 - beta2**step)) + eps)
    return directions


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_smooths_the_direction_of_both_tables_jointly(name: str, weight_decay: float) -> None:
    """Held against a loop: L2 is in the gradient (SGD, Adam), decoupled decay is not smoothed (AdamW)."""
    lr, model, adjacency, state = 0.05, TwoTables(), dense_adjacency(12), {}
    psi = sum(0.9**power * torch.linalg.matrix_power(adjacency, power) for power in range(4)) * 0.1 / (1 - 0.9**4)
    expected = torch.cat([table.detach().clone() for table in model.tables])
    optimizer = build(name, model, make_smoother(12), weight_decay, lr)
    for step in range(1, 7):
        model.take_gradients(step)
        gradients = torch.cat([table.grad for table in model.tables])
        delta = reference_directions(name, expected, gradients, state, step, weight_decay)
        shrink = 1 - lr * weight_decay if name == "sevo_adamw" else 1.0
        expected = shrink * expected - lr * psi @ delta
        optimizer.step()
    torch.testing.assert_close(torch.cat(model.tables), expected, rtol=1e-10, atol=1e-10)


def test_momentum_is_taken_before_smoothing() -> None:
    model, smoother = TwoTables(), make_smoother(12)
    expected, buffer = torch.cat([table.detach().clone() for table in model.tables]), 0.0
    optimizer = SEvoSGD(smoothed_groups(model.parameters(), model.tables, smoother), lr=0.1, momentum=0.7)
    for step in range(4):
        model.take_gradients(step)
        buffer = 0.7 * buffer + torch.cat([table.grad for table in model.tables])
        expected = expected - 0.1 * smoother(buffer)
        optimizer.step()
    torch.testing.assert_close(torch.cat(model.tables), expected)


def test_a_row_without_gradient_keeps_its_corrected_moments() -> None:
    """AdamW: after its one gradient g the row's m/(1 - beta1^t) stays g and v/(1 - beta2^t) stays g^2. Adam's fade."""
    for cls, keeps in ((SEvoAdamW, True), (SEvoAdam, False)):
        table = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
        optimizer = cls([{"params": [table], "smoother": make_smoother(3, 0.5, 1)}])
        gradient = torch.tensor([[0.0, 0.0], [0.3, -2.0], [0.0, 0.0]], dtype=torch.float64)
        for step in range(1, 21):
            table.grad = gradient if step == 1 else torch.zeros_like(gradient)
            optimizer.step()
        first, second = (optimizer.state[table][key] for key in ("exp_avg", "exp_avg_sq"))
        assert torch.allclose(first / (1 - 0.9**20), gradient, rtol=1e-12) == keeps
        assert torch.allclose(second / (1 - 0.999**20), gradient.square(), rtol=1e-12) == keeps


def test_a_gradient_too_small_to_square_still_counts() -> None:
    table = nn.Parameter(torch.zeros(2, 1))
    optimizer = SEvoAdamW([{"params": [table], "smoother": NeumannSmoother(torch.eye(2).to_sparse_csr(), 0.5, 1)}])
    for gradient in ([[0.0], [1.0]], [[0.0], [1e-30]]):
        table.grad = torch.tensor(gradient)
        optimizer.step()
    assert optimizer.state[table]["exp_avg"][1].item() == pytest.approx(0.9 * 0.1)


def test_the_padding_row_never_moves() -> None:
    for name in OPTIMIZERS:
        model, _ = trained(name, make_smoother(12))
        before = TwoTables()
        assert torch.equal(model.users[0], before.users[0]), name
        assert not torch.equal(model.users[1:], before.users[1:]), name


def test_a_table_without_gradient_is_moved_by_its_neighbours() -> None:
    """Its own gradient counts as 0; an ordinary parameter without gradient stays."""
    model, before, smoother = TwoTables(), TwoTables(), make_smoother(12)
    model.take_gradients(0)
    model.items.grad = model.layer.grad = None
    moved = smoother(torch.cat([model.users.grad, torch.zeros_like(model.items)]))
    SEvoSGD(smoothed_groups(model.parameters(), model.tables, smoother), lr=0.1).step()
    torch.testing.assert_close(torch.cat(model.tables), torch.cat(before.tables) - 0.1 * moved)
    assert moved[len(model.users) :].any()
    assert torch.equal(model.layer, before.layer)


def test_without_any_gradient_nothing_moves() -> None:
    model = TwoTables()
    build("sevo_adamw", model, make_smoother(12), weight_decay=0.1).step()
    assert same_bits(model, TwoTables())


def test_step_returns_the_loss_of_its_closure() -> None:
    table = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = SEvoSGD([{"params": [table], "smoother": make_smoother(3)}], lr=0.1)

    def closure() -> Tensor:
        loss = table.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6
    assert (table < 1).all()


# Saving and refusing


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_from_a_state_dict_is_exact(name: str, tmp_path) -> None:
    smoother = make_smoother(12)
    through, _ = trained(name, smoother, steps=8, weight_decay=0.01)
    model, optimizer = trained(name, smoother, steps=3, weight_decay=0.01)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pth")

    # weights_only: the graph and the smoother are in no checkpoint, their settings are plain values.
    saved = torch.load(tmp_path / "state.pth", weights_only=True)
    resumed = TwoTables(seed=50)
    again = build(name, resumed, make_smoother(12), weight_decay=0.01)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for step in range(3, 8):
        resumed.take_gradients(step)
        again.step()
    assert same_bits(resumed, through)


@pytest.mark.parametrize(
    "other",
    [
        make_smoother(12, beta=0.8),
        make_smoother(12, layers=2),
        make_smoother(12, iterative=True),
        make_smoother(12, seed=9),
        None,
    ],
    ids=["beta", "layers", "iterative", "edges", "none"],
)
def test_a_state_dict_of_another_smoother_is_refused(other: NeumannSmoother | None) -> None:
    _, optimizer = trained("sevo_adam", make_smoother(12))
    saved = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="parameter group 0 was saved with smoother"):
        build("sevo_adam", TwoTables(), other).load_state_dict(saved)


def test_a_graph_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"12 rows; the graph has 13 nodes"):
        build("sevo_adamw", TwoTables(), make_smoother(13))


def test_smoothed_parameters_must_be_tables_of_one_width() -> None:
    for shapes in ([(4, 2), (4, 3)], [(8,)]):
        tables = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        with pytest.raises(ValueError, match="tables of one width"):
            SEvoSGD([{"params": tables, "smoother": make_smoother(8)}], lr=0.1)


def test_an_untrained_table_is_refused() -> None:
    with pytest.raises(ValueError, match="not among the parameters"):
        smoothed_groups([nn.Parameter(torch.zeros(3, 2))], [nn.Parameter(torch.zeros(3, 2))], make_smoother(3))


def test_groups_hold_every_parameter_once() -> None:
    model = TwoTables()
    first, second = smoothed_groups(model.parameters(), model.tables, make_smoother(12))
    assert [id(p) for p in first["params"]] == [id(model.users), id(model.items)]
    assert [id(p) for p in second["params"]] == [id(model.layer)]
    assert len(smoothed_groups(model.tables, model.tables, make_smoother(12))) == 1


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="sevo_sgd, sevo_adam, sevo_adamw"):
        sevo_optimizer("sevo_adagrad", [nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -1.0}, {"lr": math.nan}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_negative_rates_are_refused(name: str, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected at least 0"):
        sevo_optimizer(name, [nn.Parameter(torch.zeros(1))], **{"lr": 0.1, **bad})


def test_decay_of_moments_is_checked() -> None:
    with pytest.raises(ValueError, match="betas"):
        SEvoAdam([nn.Parameter(torch.zeros(1))], betas=(0.9, 1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gpu_makes_the_same_steps(name: str) -> None:
    here, _ = trained(name, make_smoother(12), weight_decay=0.01)
    there = TwoTables().cuda()
    optimizer = build(name, there, make_smoother(12), weight_decay=0.01)
    for step in range(6):
        gradients = TwoTables()
        gradients.take_gradients(step)
        for parameter, source in zip(there.parameters(), gradients.parameters()):
            parameter.grad = source.grad.cuda()
        optimizer.step()
    for a, b in zip(here.parameters(), there.parameters()):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-10, atol=1e-10)
