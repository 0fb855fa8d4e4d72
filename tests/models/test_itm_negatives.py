"""How ITM's negatives are chosen: the schedule, the strengths, and the policy that adapts itself."""

import math

import pytest
import torch

from models import losses
from models.itm_negatives import ItmNegatives


def similarity_matrix(size=6):
    """[B, B] with widely spread values, and the mask of the own pairs."""
    sim = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 3
    return sim, losses.negative_mask(torch.arange(size))


def shares(negatives, sim, excluded, draws=3000):
    """How often each candidate is drawn: [B, C]."""
    torch.manual_seed(0)
    counts = torch.zeros_like(sim)
    for _ in range(draws):
        counts[torch.arange(len(sim)), negatives.pick(sim, excluded)] += 1
    return counts / draws


@pytest.mark.parametrize('policy, strength', [('uniform', 0), ('sampled', 1), ('auto', 2.5)])
def test_negatives_are_drawn_by_their_strength(policy, strength):
    sim, excluded = similarity_matrix()
    negatives = ItmNegatives({0: policy}, 0.85)
    negatives.beta = torch.tensor(2.5)
    weights = torch.exp(strength * sim.double()) * ~excluded
    expected = (weights / weights.sum(dim=1, keepdim=True)).float()
    assert torch.allclose(shares(negatives, sim, excluded), expected, atol=0.04)


def test_the_hardest_negative_is_the_limit_of_a_large_beta():
    sim, excluded = similarity_matrix()
    auto, hard = ItmNegatives({0: 'auto'}, 0.85), ItmNegatives({0: 'hard'}, 0.85)
    auto.beta = torch.tensor(1e4)
    expected = sim.masked_fill(excluded, -torch.inf).argmax(dim=1)
    assert torch.equal(hard.pick(sim, excluded), expected) and torch.equal(auto.pick(sim, excluded), expected)


def test_a_row_with_large_similarities_stays_valid_at_strength_zero():
    """0 x similarity must not meet the infinity of excluded pairs."""
    sim = torch.tensor([[5.0, 1e30, -1e30], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    picked = ItmNegatives({0: 'uniform'}, 0.85).pick(sim, torch.eye(3, dtype=torch.bool))
    assert all(picked != torch.arange(3))


def test_the_schedule_gives_each_epoch_its_policy():
    negatives = ItmNegatives({0: 'uniform', 2: 'sampled', 6: 'hard'}, 0.85)
    policies = []
    for epoch in (0, 1, 2, 5, 6, 60, 1):
        negatives.begin_epoch(epoch)
        policies.append(negatives.policy)
    assert policies == ['uniform', 'uniform', 'sampled', 'sampled', 'hard', 'hard', 'uniform']


def test_beta_follows_the_formula_within_its_range():
    negatives = ItmNegatives({0: 'auto'}, 0.85)
    running, beta = 0.0, 0.02
    for step in range(400):
        accuracy = 1.0 if step < 300 else 0.5
        negatives.adapt(torch.tensor(accuracy), torch.tensor(True))
        running = 0.95 * running + 0.05 * accuracy
        beta = min(max(beta * math.exp(0.2 * (running - 0.85)), 0.02), 50)
        assert negatives.beta.item() == pytest.approx(beta, rel=1e-4)
        if step == 299:
            assert beta > 10
    assert beta < 2


def test_beta_stays_where_no_epoch_is_auto():
    negatives = ItmNegatives({0: 'sampled', 5: 'hard'}, 0.85)
    assert not negatives.adapts
    negatives.adapt(torch.tensor(1.0), torch.tensor(True))
    assert negatives.beta.item() == pytest.approx(0.02)


def test_what_is_saved_continues_exactly():
    first, second = ItmNegatives({0: 'auto'}, 0.85), ItmNegatives({0: 'auto'}, 0.85)
    for _ in range(50):
        first.adapt(torch.tensor(0.9), torch.tensor(True))
    second.load_state_dict(first.state_dict())
    for negatives in (first, second):
        negatives.adapt(torch.tensor(0.95), torch.tensor(True))
    assert torch.equal(first.beta, second.beta) and torch.equal(first.accuracy, second.accuracy)


def test_auto_moves_towards_the_target():
    """A matcher that tells pairs apart the worse, the harder they are, ends near the target accuracy."""
    negatives = ItmNegatives({0: 'auto'}, 0.85)
    for _ in range(3000):
        negatives.adapt(1 - 0.1 * torch.log1p(negatives.beta), torch.tensor(True))  # 0.85 at beta = e^1.5 - 1
    assert negatives.beta.item() == pytest.approx(math.exp(1.5) - 1, rel=0.05)


def test_sampling_draws_what_multinomial_draws():
    sim, excluded = similarity_matrix(40)
    for seed in range(30):
        torch.manual_seed(seed)
        expected = torch.multinomial(sim.masked_fill(excluded, -torch.inf).softmax(dim=1), 1)[:, 0]
        torch.manual_seed(seed)
        assert torch.equal(losses.sampled_negatives(sim, excluded), expected)


def test_similarities_that_are_not_finite_raise_nothing():
    """The loss is then not finite either, and the run ends with the message about that."""
    for policy in ('uniform', 'sampled', 'hard', 'auto'):
        picked = ItmNegatives({0: policy}, 0.85).pick(torch.full((3, 3), torch.nan), torch.eye(3, dtype=torch.bool))
        assert ((picked >= 0) & (picked < 3)).all()
