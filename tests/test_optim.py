import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routing_marl.blocks import StackedBlocks
from routing_marl.optim import RowAdam, sum_rows
from routing_marl.synchronisation import as_on_gpu

N = 5


class Shifts(nn.Module):
    """Two parameters whose gradients are one and the same tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return (x + self.one + self.two).tanh()


MAKERS = {
    "chain": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)),
    "shifts": Shifts,
}


def make(kind="chain", lr=0.01, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    modules = [MAKERS[kind]().to(dtype) for _ in range(N)]
    layer = StackedBlocks(modules, idle=True)
    return modules, layer, RowAdam(layer.parameters(), lr=lr, **settings)


def draw(generator, kind="chain", dtype=torch.float64, decisions=None):
    """Inputs, blocks of a random subset (N: idle), targets."""
    if decisions is None:
        decisions = int(torch.randint(1, 20, (), generator=generator))
    shape = (decisions, 3, 4) if kind == "shifts" else (decisions, 2, 4)
    allowed = torch.randperm(N + 1, generator=generator)[: int(torch.randint(1, 4, (), generator=generator))]
    block = allowed[torch.randint(len(allowed), (decisions,), generator=generator)]
    x, target = torch.randn(2, *shape, generator=generator, dtype=dtype)
    if kind == "shifts":
        x, target = x[:, None], target[:, None]  # one instance of shape [3, 4]
    return x, block, target


def update(layer, optimizer, x, block, target, depths=1):
    optimizer.zero_grad()
    for _ in range(depths):
        x = layer(x, block)
    (x - target).square().sum().backward()
    optimizer.step()


def slow_update(modules, optimizers, x, block, target, depths=1):
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = torch.zeros((), dtype=x.dtype)
    for row, b, goal in zip(x, block.tolist(), target, strict=True):
        for _ in range(depths):
            row = modules[b](row) if b < N else row
        loss = loss + (row - goal).square().sum()
    if loss.requires_grad:
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def snapshot(layer, optimizer):
    state = [optimizer.state.get(p, {}) for p in layer.parameters()]
    rows = [p.detach().clone() for p in layer.parameters()]
    return rows + [s[key].clone() for s in state for key in ("step", "exp_avg", "exp_avg_sq") if s]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("depths", [1, 3])
def test_row_adam_equals_an_adam_per_block(path, kind, depths):
    modules, layer, optimizer = make(kind, lr=0.01, betas=(0.8, 0.95), eps=1e-7)
    slow = [torch.optim.Adam(m.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-7) for m in modules]
    generator = torch.Generator().manual_seed(1)
    # The gathered path takes powers of the betas in float32, as torch's own capturable Adam does.
    tolerance = 1e-12 if path == "views" else 1e-5
    for _ in range(30):
        batch = draw(generator, kind)
        update(layer, optimizer, *batch, depths=depths)
        slow_update(modules, slow, *batch, depths=depths)
        for index, module in enumerate(modules):
            for name, view in layer.block_parameters(index).items():
                torch.testing.assert_close(view, module.get_parameter(name), atol=tolerance, rtol=0)
    for index, (module, reference) in enumerate(zip(modules, slow, strict=True)):
        for stacked, own in zip(layer.parameters(), module.parameters(), strict=True):
            ours, theirs = optimizer.state[stacked], reference.state[own]
            assert ours["step"][index] == theirs["step"]
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(ours[moment][index], theirs[moment], atol=100 * tolerance, rtol=0)


def test_the_first_step_by_hand(path):
    # g = 2, so m / (1 - b1) = 2, v / (1 - b2) = 4, and the step is lr * 2 / (2 + eps).
    _, layer, optimizer = make("shifts", lr=0.5, eps=1.0)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer.zero_grad()
    for parameter in layer.parameters():
        values = torch.ones(2, 3, 4, dtype=torch.float64)
        parameter.grad = torch.sparse_coo_tensor(torch.tensor([[3, 3]]), values, parameter.shape, check_invariants=True)
    optimizer.step()
    for parameter, old in zip(layer.parameters(), before, strict=True):
        torch.testing.assert_close(parameter[3], old[3] - 0.5 * 2 / 3, atol=1e-4, rtol=0)
        assert torch.equal(parameter[[0, 1, 2, 4, 5]], old[[0, 1, 2, 4, 5]])


def test_a_step_leaves_the_gradients_as_they_are(path):
    _, layer, optimizer = make()
    x, block, target = draw(torch.Generator().manual_seed(2), decisions=19)
    (layer(x, block) - target).square().sum().backward()
    before = [p.grad.to_dense().clone() for p in layer.parameters()]
    optimizer.step()
    for parameter, gradient in zip(layer.parameters(), before, strict=True):
        assert torch.equal(parameter.grad.to_dense(), gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_not_taken_stay_to_the_bit_with_their_state(path, dtype):
    _, layer, optimizer = make(dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        update(layer, optimizer, *draw(generator, dtype=dtype))
    for _ in range(10):
        x, block, target = draw(generator, dtype=dtype)
        before = snapshot(layer, optimizer)
        update(layer, optimizer, x, block, target)
        for old, new in zip(before, snapshot(layer, optimizer), strict=True):
            for row in range(N):
                taken = row in block.tolist()
                assert torch.equal(old[row], new[row]) != taken, (row, block)


def test_a_step_of_idle_decisions_changes_no_block(path):
    _, layer, optimizer = make()
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        update(layer, optimizer, *draw(generator))
    before = snapshot(layer, optimizer)
    x, block, target = draw(generator)
    x.requires_grad_()
    update(layer, optimizer, x, torch.full_like(block, N), target)
    for old, new in zip(before, snapshot(layer, optimizer), strict=True):
        assert torch.equal(old[:N], new[:N])


def test_a_step_without_gradients_does_nothing(path):
    _, layer, optimizer = make()
    before = snapshot(layer, optimizer)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(layer, optimizer), strict=True))


def test_the_scratch_row_never_changes(path):
    _, layer, optimizer = make()
    before = [p[N].clone() for p in layer.parameters()]
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        update(layer, optimizer, *draw(generator, decisions=19))
    assert all(torch.equal(p[N], row) for p, row in zip(layer.parameters(), before, strict=True))


def continued(layer, optimizer, seed=6, steps=4):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        update(layer, optimizer, *draw(generator))
    return snapshot(layer, optimizer)


@pytest.mark.parametrize("steps", [0, 4])
def test_a_state_dict_goes_on_to_the_bit(path, steps):
    _, layer, optimizer = make()
    continued(layer, optimizer, seed=7, steps=steps)
    file = io.BytesIO()
    torch.save((layer.state_dict(), optimizer.state_dict()), file)
    wanted = continued(layer, optimizer)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    _, twin, twin_optimizer = make(lr=0.5)
    continued(twin, twin_optimizer, seed=8)  # has state, and views of it, that must go
    twin.load_state_dict(weights)
    twin_optimizer.load_state_dict(state)
    assert twin_optimizer.param_groups[0]["lr"] == 0.01
    assert all(torch.equal(a, b) for a, b in zip(wanted, continued(twin, twin_optimizer), strict=True))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_module_and_optimizer_goes_on_to_the_bit(path, clone):
    _, layer, optimizer = make()
    continued(layer, optimizer, seed=7)
    twin, twin_optimizer = clone((layer, optimizer))
    before = snapshot(layer, optimizer)
    ours = continued(twin, twin_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(layer, optimizer), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, continued(layer, optimizer), strict=True))


def test_the_two_paths_agree():
    _, layer, optimizer = make()
    twin, twin_optimizer = copy.deepcopy((layer, optimizer))
    ours = continued(layer, optimizer, steps=20)
    with as_on_gpu():
        theirs = continued(twin, twin_optimizer, steps=20)
    rows = slice(0, N)  # the count of steps of the scratch row means nothing
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[rows], b[rows], atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=25))
    ),
    st.sampled_from([(), (3,), (2, 2)]),
)
def test_sum_rows_equals_brute_force(case, shape):
    n, indices = case
    index = torch.tensor(indices)
    values = torch.randint(-9, 9, (len(index), *shape)).double()
    rows, sums = sum_rows(index, values, n)
    assert len(rows) == len(sums) == min(len(index), n)
    distinct = sorted(set(indices))
    assert rows.tolist() == distinct + [n - 1] * (len(rows) - len(distinct))
    for position, row in enumerate(distinct):
        assert torch.equal(sums[position], values[index == row].sum(0))
    assert not sums[len(distinct) :].count_nonzero()
