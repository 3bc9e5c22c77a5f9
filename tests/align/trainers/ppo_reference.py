"""An independent PPO iteration: float64, one unpadded sample at a time, loops over tokens. Imports nothing of ours.

It computes what the recipe's keys promise, as plainly as possible and from the papers: definitions instead of
recursions (advantages are double sums, running statistics are those of the list of everything seen). This file makes
the experience; `ppo_reference_losses.py` the gradients of an optimizer step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Settings:
    """Named as the recipe's keys."""

    temperature: float = 1.0
    kl_coef: float = 0.04
    kl_estimator: str = "k1"
    kl_in: str = "reward"
    kl_target: float | None = None
    kl_horizon: float = 10000
    missing_eos_penalty: float = 1.0
    mask_truncated_completions: bool = False
    length_penalty: float = 0.0
    length_penalty_free: int = 0
    normalize_reward: str = "running_mean"
    reward_clip_range: float | None = 10.0
    gamma: float = 1.0
    lam: float = 0.95
    critic_lam: float | None = None
    whiten_advantages: bool = True
    loss_aggregation: str = "token"
    policy_support: str = "full"
    importance_sampling_correction: str = "none"
    importance_sampling_cap: float = 2.0
    cliprange: float = 0.2
    dual_clip: float | None = None
    entropy_coef: float = 0.0
    target_kl: float | None = None
    cliprange_value: float | None = 0.15
    vf_coef: float = 1.0
    ptx_grad_norm_ratio: float = 0.5
    ptx_max_z_coef: float = 0.0


@dataclass
class State:
    """What outlives an iteration: every score ever counted in, and the coefficients that are controlled."""

    kl_coef: float
    ptx_coef: float = 0.0
    seen: list[float] = field(default_factory=list)


@dataclass
class Sampled:
    """One given reply; `engine` (log-probabilities) and `supports` (ids that could be drawn) have one entry a token."""

    prompt: list[int]
    reply: list[int]
    finished: bool
    score: float
    engine: list[float] | None = None
    supports: list[list[int]] | None = None


@dataclass
class Reply:
    """One reply of the experience; lists have one float a token. `old` is under the full vocabulary, `old_ratio` under
    the support of the ratio. A reply that does not count is read by nobody."""

    prompt: list[int]
    reply: list[int]
    counts: bool
    supports: list[list[int]] | None
    old: list[float]
    old_ratio: list[float]
    ref: list[float]
    old_values: list[float]
    weights: list[float]
    normalized: float
    rewards: list[float]
    advantages: list[float]
    returns: list[float]


def logps_of(model, prompt, reply, temperature, supports=None):
    """A tensor with the log-probability of each reply token, within its support where there is one."""
    ids = torch.tensor([list(prompt) + list(reply)])
    logits = model(input_ids=ids).logits[0] / temperature
    out = []
    for t, token in enumerate(reply):
        row = logits[len(prompt) + t - 1]
        whole = row if supports is None else row[torch.tensor(list(supports[t]))]
        out.append(row[token] - torch.logsumexp(whole, dim=0))
    return torch.stack(out)


def entropies_of(model, prompt, reply, temperature):
    """A tensor with the entropy of the distribution of each reply token."""
    ids = torch.tensor([list(prompt) + list(reply)])
    logits = model(input_ids=ids).logits[0] / temperature
    out = []
    for t in range(len(reply)):
        probabilities = torch.softmax(logits[len(prompt) + t - 1], dim=0)
        out.append(-(probabilities * torch.log(probabilities)).sum())
    return torch.stack(out)


def values_of(critic, prompt, reply):
    """The value of the state before each reply token."""
    ids = torch.tensor([list(prompt) + list(reply)])
    values = critic(ids, torch.ones_like(ids))[0]
    return torch.stack([values[len(prompt) + t - 1] for t in range(len(reply))])


def kl_estimate(difference, kind):
    """Schulman 2020, of d = log policy - log reference; floats or tensors."""
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference**2 / 2
    return (torch.exp(-difference) if isinstance(difference, torch.Tensor) else math.exp(-difference)) - 1 + difference


def penalised_score(score, tokens, finished, settings):
    """The reward's score with the penalties for a missing end and for length."""
    if not finished:
        score = score - settings.missing_eos_penalty
    return score - settings.length_penalty * max(0, tokens - settings.length_penalty_free)


def normalized_scores(scores, counts, seen, settings):
    """The scores that count are seen first; then all are put on the scale of everything seen, and clipped."""
    seen += [score for score, counted in zip(scores, counts, strict=True) if counted]
    mean = sum(seen) / len(seen) if seen else 0.0
    std = math.sqrt(sum((score - mean) ** 2 for score in seen) / len(seen)) if seen else 0.0
    kind, limit = settings.normalize_reward, settings.reward_clip_range
    out = []
    for score in scores:
        if kind in ("running_mean", "running_mean_std"):
            score = score - mean
        if kind in ("running_std", "running_mean_std"):
            score = score / (std + 1e-8)
        out.append(score if limit is None else max(-limit, min(limit, score)))
    return out


def advantages_of(rewards, values, gamma, lam):
    """Schulman et al. 2016, equation 16: sum over l of (gamma lam)^l delta_{t+l}. Nothing follows the last token."""
    out = []
    for t in range(len(rewards)):
        total = 0.0
        for later in range(t, len(rewards)):
            after = values[later + 1] if later + 1 < len(rewards) else 0.0
            delta = rewards[later] + gamma * after - values[later]
            total += (gamma * lam) ** (later - t) * delta
        out.append(total)
    return out


def whiten(rows):
    """All numbers of all rows by their own mean and population variance, in place; returns the deviation before."""
    everything = [number for row in rows for number in row]
    centre = sum(everything) / len(everything)
    variance = sum((number - centre) ** 2 for number in everything) / len(everything)
    for row in rows:
        row[:] = [(number - centre) / math.sqrt(variance + 1e-8) for number in row]
    return math.sqrt(variance)


def importance_weights(old, engine, settings):
    """Truncated importance weights of the trainer's policy over the engine's, one a token."""
    cap, kind = settings.importance_sampling_cap, settings.importance_sampling_correction
    if kind == "none" or engine is None:
        return [1.0] * len(old)
    if kind == "token":
        return [min(math.exp(a - b), cap) for a, b in zip(old, engine, strict=True)]
    return [min(math.exp(sum(a - b for a, b in zip(old, engine, strict=True))), cap)] * len(old)


def next_kl_coef(coef, kl, replies, settings):
    """Ziegler et al. 2019, section 2.2: a proportional controller of log(coef), error clipped to 0.2."""
    if settings.kl_target is None:
        return coef
    error = max(-0.2, min(0.2, kl / settings.kl_target - 1))
    return coef * (1 + error * replies / settings.kl_horizon)


def next_ptx_coef(coef, ratio, settings):
    """Towards the wanted ratio of gradient norms, by a factor of 2 at most."""
    return coef * max(0.5, min(2.0, settings.ptx_grad_norm_ratio / ratio))


def reply_kl(reply):
    """Nats a reply, k1."""
    return sum(a - b for a, b in zip(reply.old, reply.ref, strict=True))


@torch.no_grad()
def figures_of(policy, made, settings, spread):
    """What the log says of the rollout: distances, entropy and length of all replies; of learning, those that count.
    `spread` is the deviation of the advantages before whitening."""
    everything = [(a, b) for reply in made for a, b in zip(reply.old, reply.ref, strict=True)]
    entropies = [entropies_of(policy, r.prompt, r.reply, settings.temperature).tolist() for r in made]
    counted = [reply for reply in made if reply.counts]
    returns = [number for reply in counted for number in reply.returns]
    values = [number for reply in counted for number in reply.old_values]
    centre = sum(returns) / len(returns)
    variance = sum((number - centre) ** 2 for number in returns) / len(returns)
    error = sum((a - b) ** 2 for a, b in zip(values, returns, strict=True)) / len(returns)
    tokens = len(everything)
    return {
        "kl/reply": sum(reply_kl(reply) for reply in made) / len(made),
        "kl/token": sum(a - b for a, b in everything) / tokens,
        "kl/k3_token": sum(kl_estimate(a - b, "k3") for a, b in everything) / tokens,
        "entropy": sum(sum(row) for row in entropies) / tokens,
        "returns/std": math.sqrt(variance),
        "value/explained_variance": 1 - error / variance,
        "advantages/std": spread,
        "length/mean": tokens / len(made),
        "length/max": max(len(reply.reply) for reply in made),
    }


@torch.no_grad()
def experience(policy, critic, reference, sampled, state, settings):
    """The replies with what is learnt from them, and the advantages' deviation before whitening; `state` counts the
    scores in and is otherwise left alone."""
    counts = [one.finished or not settings.mask_truncated_completions for one in sampled]
    scores = [penalised_score(one.score, len(one.reply), one.finished, settings) for one in sampled]
    normalized = normalized_scores(scores, counts, state.seen, settings)
    made = []
    for one, counted, score in zip(sampled, counts, normalized, strict=True):
        supports = one.supports if settings.policy_support == "nucleus" else None
        old = logps_of(policy, one.prompt, one.reply, settings.temperature).tolist()
        old_ratio = logps_of(policy, one.prompt, one.reply, settings.temperature, supports).tolist()
        ref = logps_of(reference, one.prompt, one.reply, settings.temperature).tolist()
        values = values_of(critic, one.prompt, one.reply).tolist()
        rewards = [0.0] * len(old)
        if settings.kl_in == "reward":
            for t in range(len(old)):
                rewards[t] = -state.kl_coef * kl_estimate(old[t] - ref[t], settings.kl_estimator)
        rewards[-1] += score
        advantages = advantages_of(rewards, values, settings.gamma, settings.lam)
        critic_lam = settings.lam if settings.critic_lam is None else settings.critic_lam
        targets = advantages_of(rewards, values, settings.gamma, critic_lam)
        returns = [a + v for a, v in zip(targets, values, strict=True)]
        weights = importance_weights(old, one.engine, settings)
        parts = (supports, old, old_ratio, ref, values, weights, score, rewards, advantages, returns)
        made.append(Reply(list(one.prompt), list(one.reply), counted, *parts))
    counted = [reply for reply in made if reply.counts]
    spread = whiten([list(reply.advantages) for reply in counted])
    if settings.whiten_advantages:
        whiten([reply.advantages for reply in counted])
    return made, spread
