"""A closed space of replies with known optima: what PPO with a KL penalty must converge to, and what it must not.

Twelve replies of two or three letters, a reference p0 and a reward r(y), all enumerated. Below, p is the policy, s a
state (what was said so far), d = log p - log p0 of a token.

- max E r - beta KL(p || p0) over distributions of whole replies has one solution, p(y) ~ p0(y) exp(r(y) / beta)
  (Ziegler et al. 2019, section 2; Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian inference": it
  is a posterior). Token by token it is p(a|s) ~ p0(a|s) exp(Q(s, a) / beta), where a state is worth
  V = beta log sum p0 exp(Q / beta): E Q *minus beta times the KL of the tokens to come*. `optimum`.
- The gradient of an expected estimate has two terms, E[k grad log p] + E[grad k]; an estimate that is part of the
  reward gives the first alone. For k1 = d that is all: E[grad d] = E[grad log p] = 0. For k3 = exp(-d) - 1 + d, as good
  an estimate of the *value* (Schulman 2020, "Approximating KL Divergence"), E[grad k3] = grad KL(p0 || p) is missing:
  what is left is the gradient of E r - beta KL(p || p0) + beta KL(p0 || p) (the last at each state, visits held
  constant), which *pays* for forgetting what the reference says, and without bound. There is nothing to come to rest
  at: a reply that falls below p0 is pushed on towards 0. k2 = d^2 / 2 in the reward does the same: there a token is
  punished for being rarer than in the reference as it is for being more frequent.
- A loss that is the estimate itself, token by token, has the second term alone, and of the token's own state only: no
  token answers for the KL that it leads to. k2 comes to rest at the formula of the optimum with V = E Q: `myopic`. k3
  comes to rest where KL(p0 || p) of each state balances, p = beta p0 / (beta + V - Q): `myopic_forward`. The
  straight-through gradient, sum over t of (sum over u >= t of d_u) grad log p_t, is that of the whole reply's KL,
  whichever estimator gives the loss its value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# First letter, second letter, and after x a third: a short reply and a long one differ in tokens, so in KL terms.
FIRST = {"a": 0.55, "b": 0.3, "c": 0.15}
SECOND = {
    "a": {"x": 0.7, "y": 0.2, "z": 0.1},
    "b": {"x": 0.25, "y": 0.6, "z": 0.15},
    "c": {"x": 0.3, "y": 0.2, "z": 0.5},
}
THIRD = {"a": {"u": 0.6, "v": 0.4}, "b": {"u": 0.1, "v": 0.9}, "c": {"u": 0.5, "v": 0.5}}
REPLIES = tuple(first + second for first in "abc" for second in ("xu", "xv", "y", "z"))
# The best replies are rare after a and b, and all are the same after c: what a first letter earns and what the rest of
# its reply costs in KL are different things.
REWARDS = dict(zip(REPLIES, (-1, -1, -1, 2, 2.5, -1, -1, 0, 1, 1, 1, 1), strict=True))
BETAS = (0.5, 0.7, 1.0)


def table() -> Tensor:
    """The reference's probability of each of `REPLIES`, as it is meant to be; (R,), float64."""
    return torch.tensor(
        [FIRST[y[0]] * SECOND[y[0]][y[1]] * (THIRD[y[0]][y[2]] if y[1] == "x" else 1.0) for y in REPLIES],
        dtype=torch.float64,
    )


def rewards() -> Tensor:
    """The reward of each of `REPLIES`; (R,), float64."""
    return torch.tensor([REWARDS[reply] for reply in REPLIES], dtype=torch.float64)


def total_variation(p_R: Tensor, q_R: Tensor) -> float:
    """Half the sum of absolute differences."""
    return 0.5 * float((p_R - q_R).abs().sum())


def optimum(reference_R: Tensor, beta: float) -> Tensor:
    """The distribution of replies that maximises E r - beta KL(p || reference)."""
    return torch.softmax(reference_R.log() + rewards() / beta, dim=0)


def myopic(reference_R: Tensor, beta: float) -> Tensor:
    """Where k2's own gradient, token by token, comes to rest."""
    return _by_states(reference_R, lambda p0_A, q_A: torch.softmax(p0_A.log() + q_A / beta, dim=0))


def myopic_forward(reference_R: Tensor, beta: float) -> Tensor:
    """Where k3's own gradient, token by token, comes to rest."""

    def rest(p0_A: Tensor, q_A: Tensor) -> Tensor:
        low, high = float(q_A.max()), float(q_A.max()) + beta  # of beta + V; there the sum is infinite, and at most 1
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if float((beta * p0_A / (middle - q_A)).sum()) > 1 else (low, middle)
        return beta * p0_A / (high - q_A)

    return _by_states(reference_R, rest)


def _by_states(reference_R: Tensor, policy_at: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The distribution of replies whose tokens follow `policy_at(reference, Q)` at each state, with V = E Q."""

    def mass(prefix: str) -> Tensor:
        return sum(p for p, reply in zip(reference_R, REPLIES, strict=True) if reply.startswith(prefix))

    def solve(prefix: str) -> tuple[Tensor, dict[str, Tensor]]:
        if prefix in REPLIES:
            one = torch.ones((), dtype=torch.float64)
            return REWARDS[prefix] * one, {prefix: one}
        letters = sorted({reply[len(prefix)] for reply in REPLIES if reply.startswith(prefix)})
        below = [solve(prefix + letter) for letter in letters]
        q_A = torch.stack([value for value, _ in below])
        p_A = policy_at(torch.stack([mass(prefix + letter) / mass(prefix) for letter in letters]), q_A)
        found = {y: p * share for p, (_, replies) in zip(p_A, below, strict=True) for y, share in replies.items()}
        return (p_A * q_A).sum(), found

    found = solve("")[1]
    return torch.stack([found[reply] for reply in REPLIES])
