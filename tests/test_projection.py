"""The simplex projections, sampling and the other shared pieces of the agents."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import routing_marl.agents.policies as policies
from routing_marl.agents.policies import (
    clip_projection,
    epsilon_greedy,
    euclidean_projection,
    greedy_action,
    masked_softmax,
    restrict,
    sample,
)

PROJECTIONS = [clip_projection, euclidean_projection]
numbers = st.floats(-3.0, 3.0, width=32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """A vector, at least one legal action, and a floor that fits (possibly the largest that does)."""
    length = draw(st.integers(1, 6))
    values = draw(st.lists(numbers, min_size=length, max_size=length))
    legal = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    legal[draw(st.integers(0, length - 1))] = True
    floor = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])) / sum(legal)
    return torch.tensor(values), torch.tensor(legal), floor


def bisected(values: Tensor, legal: Tensor, floor: float) -> Tensor:
    """The Euclidean projection by its optimality condition: one threshold for all, found by bisection."""
    values = values.double()
    low, high = values.min() - 2.0, values.max() + 2.0
    for _ in range(100):
        middle = (low + high) / 2
        total = torch.where(legal, (values - middle).clamp(min=floor), 0.0).sum()
        low, high = (middle, high) if total > 1.0 else (low, middle)
    return torch.where(legal, (values - high).clamp(min=floor), 0.0)


def test_the_worked_examples_in_the_docstrings() -> None:
    assert doctest.testmod(policies).failed == 0


@pytest.mark.parametrize("project", PROJECTIONS)
@settings(deadline=None)
@given(problems())
def test_result_is_a_policy_with_the_floor_and_projecting_again_changes_nothing(project, problem) -> None:
    values, legal, floor = problem
    policy = project(values, legal, floor)
    torch.testing.assert_close(policy.sum(), torch.tensor(1.0))
    assert (policy[legal] >= floor - 1e-6).all()
    assert (policy[~legal] == 0).all()
    torch.testing.assert_close(project(policy, legal, floor), policy, atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(problems())
def test_euclidean_projection_is_the_bisected_one(problem) -> None:
    values, legal, floor = problem
    expected = bisected(values, legal, floor).float()
    torch.testing.assert_close(euclidean_projection(values, legal, floor), expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(problems(), st.integers(0, 2**32))
def test_no_other_policy_is_nearer_than_the_euclidean_projection(problem, seed) -> None:
    values, legal, floor = problem
    nearest = (euclidean_projection(values, legal, floor) - values)[legal].norm()
    gammas = torch.empty(200, len(values)).exponential_(generator=torch.Generator().manual_seed(seed))
    mass = torch.where(legal, gammas, 0.0)
    others = floor * legal + (1 - floor * legal.sum()) * mass / mass.sum(-1, keepdim=True)
    assert ((others - values)[:, legal].norm(dim=-1) >= nearest - 1e-4).all()


@settings(deadline=None)
@given(problems())
def test_clip_projection_is_the_papers_formula(problem) -> None:
    values, legal, _ = problem
    clipped = [max(0.0, min(1.0, x)) if ok else 0.0 for x, ok in zip(values.tolist(), legal.tolist(), strict=True)]
    total = sum(clipped)
    expected = [x / total for x in clipped] if total > 0 else (legal / legal.sum()).tolist()
    torch.testing.assert_close(clip_projection(values, legal), torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("project", PROJECTIONS)
def test_batched_rows_are_projected_as_if_alone(project) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 6, generator=generator)
    legal = torch.rand(4, 6, generator=generator) < 0.6
    legal[:, 2] = True
    batched = project(values, legal, 0.05)
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(batched[i, j], project(values[i, j], legal[j], 0.05))


def test_clip_with_a_floor_by_hand() -> None:
    # above the floor of 0.2 stand 0.3, 0.1 and 0 of the clipped values: scaled from 0.4 to the spare 0.4
    legal = torch.ones(3, dtype=torch.bool)
    projected = clip_projection(torch.tensor([0.525, 0.3, -1.0]), legal, 0.2)
    torch.testing.assert_close(projected, torch.tensor([0.2 + 0.13 / 0.425, 0.2 + 0.04 / 0.425, 0.2]))


def test_restrict_falls_back_to_uniform_without_mass() -> None:
    policy, mask = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([True, False, True])
    assert restrict(policy, mask).tolist() == [0.5, 0.0, 0.5]


def test_sample_draws_with_the_given_probabilities_and_never_a_zero() -> None:
    policy = torch.tensor([0.0, 0.05, 0.25, 0.0, 0.7])
    drawn = sample(policy.expand(100_000, 5), torch.Generator().manual_seed(3))
    share = drawn.bincount(minlength=5) / 100_000
    assert share[0] == share[3] == 0
    assert (share - policy).abs().max() < 0.01  # six standard deviations


def test_epsilon_greedy_shares_the_greedy_part_among_equals() -> None:
    values, mask = torch.tensor([2.0, 2.0, 1.0, 5.0]), torch.tensor([True, True, True, False])
    policy = epsilon_greedy(values, mask, torch.tensor(0.3))
    torch.testing.assert_close(policy, torch.tensor([0.45, 0.45, 0.1, 0.0]))


def test_greedy_action_takes_the_lowest_of_equal_legal_actions() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert greedy_action(torch.zeros(2, 3), mask).tolist() == [1, 0]


def test_masked_softmax_is_exactly_zero_on_illegal_actions() -> None:
    probabilities = masked_softmax(torch.tensor([50.0, 0.0, 0.0]), torch.tensor([False, True, True]))
    assert probabilities.tolist() == [0.0, 0.5, 0.5]
