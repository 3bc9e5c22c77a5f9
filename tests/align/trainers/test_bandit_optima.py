"""The fixed points of `bandit_optima` against exact expected gradients of a tabular policy."""

import pytest
import torch

from align.functional import kl_estimate, kl_loss
from tests.align.trainers import bandit_optima as optima
from tests.align.trainers.bandit_optima import BETAS, REPLIES, REWARDS

STATES = tuple(sorted({reply[:at] for reply in REPLIES for at in range(len(reply))}))


class Tabular:
    """A policy with a logit for every letter at every state, in float64, and the exact expected gradients of PPO."""

    def __init__(self, distribution_R: torch.Tensor, beta: float):
        self.beta, self.reference = beta, self._logits(optima.table())
        self.logits = {state: row.requires_grad_() for state, row in self._logits(distribution_R).items()}

    def _logits(self, distribution_R):
        mass = dict.fromkeys((*STATES, *REPLIES), 0.0)
        for reply, share in zip(REPLIES, distribution_R.tolist(), strict=True):
            for at in range(len(reply) + 1):
                mass[reply[:at]] += share
        return {
            state: torch.tensor([mass[state + letter] for letter in self._letters(state)], dtype=torch.float64).log()
            for state in STATES
        }

    def _letters(self, state):
        return sorted({reply[len(state)] for reply in REPLIES if reply.startswith(state) and reply != state})

    def tokens(self, reply, logits):
        """Log-probability of each letter."""
        at = [(reply[:i], self._letters(reply[:i]).index(reply[i])) for i in range(len(reply))]
        return torch.stack([logits[state].log_softmax(0)[index] for state, index in at])

    def gradient(self, surrogate):
        """Of the sum over replies of p(y) surrogate(r, logps, reference logps), p held constant."""
        total = 0.0
        for reply in REPLIES:
            logps = self.tokens(reply, self.logits)
            value = surrogate(REWARDS[reply], logps, self.tokens(reply, self.reference).detach())
            total = total + logps.detach().sum().exp() * value
        return torch.cat(torch.autograd.grad(total, list(self.logits.values())))

    def in_reward(self, kind):
        return lambda r, logps, ref: (r - self.beta * kl_estimate(logps, ref, kind).sum()).detach() * logps.sum()

    def in_loss(self, kind, straight_through):
        def surrogate(r, logps, ref):
            rows = (logps[None], ref[None], torch.ones(1, len(logps)))
            kl = kl_loss(*rows, kind)[0] if straight_through else kl_estimate(logps, ref, kind).sum()
            return r * logps.sum() - self.beta * kl

        return surrogate


@pytest.mark.parametrize("beta", BETAS)
def test_the_fixed_points_are_those_of_the_expected_gradients(beta):
    table_R = optima.table()
    points = [rest(table_R, beta) for rest in (optima.optimum, optima.myopic, optima.myopic_forward)]
    at_optimum, at_myopic, at_forward = (Tabular(point_R, beta) for point_R in points)
    for policy, still in ((at_optimum, True), (at_myopic, False), (at_forward, False)):
        for surrogate in (policy.in_reward("k1"), *(policy.in_loss(kind, True) for kind in ("k1", "k2", "k3"))):
            assert (float(policy.gradient(surrogate).norm()) < 1e-12) == still
    for kind, here in (("k2", at_myopic), ("k3", at_forward)):
        assert float(here.gradient(here.in_loss(kind, False)).norm()) < 1e-12
        for policy in (at_optimum, at_myopic, at_forward):
            if policy is not here:
                assert float(policy.gradient(policy.in_loss(kind, False)).norm()) > 1e-2
            assert float(policy.gradient(policy.in_reward(kind)).norm()) > 1e-2


def test_k3_in_the_reward_pays_for_the_kl_the_other_way_round():
    policy = Tabular(optima.optimum(optima.table(), 2.0), beta=0.7)
    found = policy.gradient(policy.in_reward("k3"))
    wrong_way = 0.0
    for state in STATES:
        below = [reply for reply in REPLIES if reply.startswith(state)]
        visits = sum(float(policy.tokens(reply, policy.logits).detach().sum().exp()) for reply in below)
        p0, logps = policy.reference[state].softmax(0), policy.logits[state].log_softmax(0)
        wrong_way = wrong_way + visits * (p0 * (p0.log() - logps)).sum()
    paid = torch.cat(torch.autograd.grad(0.7 * wrong_way, list(policy.logits.values())))
    expected = policy.gradient(policy.in_reward("k1")) + paid
    assert torch.allclose(found, expected, atol=1e-12) and float(paid.norm()) > 1e-2
