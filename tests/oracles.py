"""The formulas once more: float64, plain loops over lists, written from the papers, importing nothing of ours.

Slow and stupid on purpose. The tests compare every function of `align.functional` with these, and one test proves
that this file imports the standard library alone. A mask is a list of 0 and 1; entries at 0 are never read.
"""

from __future__ import annotations

import math

Row = list[float]
Rows = list[list[float]]


def log_softmax(logits: Row, temperature: float = 1.0) -> Row:
    scaled = [logit / temperature for logit in logits]
    top = max(scaled)
    normalizer = top + math.log(math.fsum(math.exp(logit - top) for logit in scaled))
    return [logit - normalizer for logit in scaled]


def token_logprobs(logits: list[Rows], ids: list[list[int]], temperature: float = 1.0) -> Rows:
    return [
        [log_softmax(row, temperature)[token] for row, token in zip(rows, tokens, strict=True)]
        for rows, tokens in zip(logits, ids, strict=True)
    ]


def token_entropy(logits: list[Rows], temperature: float = 1.0) -> Rows:
    result = []
    for rows in logits:
        entropies = []
        for row in rows:
            logps = log_softmax(row, temperature)
            entropies.append(-math.fsum(math.exp(logp) * logp for logp in logps if logp > -math.inf))
        result.append(entropies)
    return result


def counted(x: Rows, mask: Rows) -> Row:
    """The entries that count, row after row."""
    return [x[b][t] for b in range(len(x)) for t in range(len(x[b])) if mask[b][t]]


def mean(numbers: Row) -> float:
    return math.fsum(numbers) / len(numbers)


def population_variance(numbers: Row) -> float:
    centre = mean(numbers)
    return math.fsum((number - centre) ** 2 for number in numbers) / len(numbers)


def whiten(x: Rows, mask: Rows, centre: float, variance: float, shift_mean: bool, eps: float) -> Rows:
    result = [[0.0] * len(row) for row in x]
    for b, row in enumerate(x):
        for t in range(len(row)):
            if mask[b][t]:
                result[b][t] = (row[t] - centre) / math.sqrt(variance + eps) + (0.0 if shift_mean else centre)
    return result


def kl(logp: float, ref_logp: float, kind: str) -> float:
    """Schulman 2020, with r = reference / policy."""
    r = math.exp(ref_logp - logp)
    return {"k1": -math.log(r), "k2": math.log(r) ** 2 / 2, "k3": (r - 1) - math.log(r)}[kind]


def gae(rewards: Rows, values: Rows, mask: Rows, gamma: float, lam: float) -> tuple[Rows, Rows]:
    """Schulman et al. 2016, equation 16: the double sum itself, no recursion. Only tokens that count are time steps."""
    advantages = [[0.0] * len(row) for row in rewards]
    returns = [[0.0] * len(row) for row in rewards]
    for b in range(len(rewards)):
        steps = [t for t in range(len(rewards[b])) if mask[b][t]]
        deltas = []
        for k, t in enumerate(steps):
            following = values[b][steps[k + 1]] if k + 1 < len(steps) else 0.0
            deltas.append(rewards[b][t] + gamma * following - values[b][t])
        for k, t in enumerate(steps):
            total = 0.0
            for later in range(k, len(steps)):
                total += (gamma * lam) ** (later - k) * deltas[later]
            advantages[b][t] = total
            returns[b][t] = total + values[b][t]
    return advantages, returns


def returns_to_go(rewards: Rows, mask: Rows, gamma: float) -> Rows:
    """Williams 1992: what follows each token that counts, discounted by how many of them lie between."""
    result = [[0.0] * len(row) for row in rewards]
    for b in range(len(rewards)):
        steps = [t for t in range(len(rewards[b])) if mask[b][t]]
        for k, t in enumerate(steps):
            for later in range(k, len(steps)):
                result[b][t] += gamma ** (later - k) * rewards[b][steps[later]]
    return result


def group_advantages(rewards: Rows, mask: Rows, groups: list[int], kind: str) -> Rows:
    """One number a reply, written at its tokens. `rloo`: Ahmadian et al. 2024, R_i minus the mean of all R_j, j != i;
    `grpo`: Shao et al. 2024, R_i minus the mean of all R_j over their deviation; `dr_grpo`: Liu et al. 2025, without
    that. A reply counts when one of its tokens does; one without another to be compared with teaches nothing."""
    result = [[0.0] * len(row) for row in rewards]
    counted = [b for b in range(len(rewards)) if any(mask[b])]
    total = {b: math.fsum(rewards[b][t] for t in range(len(mask[b])) if mask[b][t]) for b in counted}
    for b in counted:
        group = [total[other] for other in counted if groups[other] == groups[b]]
        others = [total[other] for other in counted if groups[other] == groups[b] and other != b]
        if not others:
            continue
        mean = math.fsum(group) / len(group)
        deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in group) / (len(group) - 1))
        advantage = {
            "rloo": total[b] - math.fsum(others) / len(others),
            "grpo": (total[b] - mean) / (deviation + 1e-4),
            "dr_grpo": total[b] - mean,
        }[kind]
        for t in range(len(mask[b])):
            result[b][t] = advantage if mask[b][t] else 0.0
    return result


def shape_rewards(scores: Row, kls: Rows, mask: Rows, kl_coef: float) -> Rows:
    result = [[0.0] * len(row) for row in kls]
    for b in range(len(kls)):
        steps = [t for t in range(len(kls[b])) if mask[b][t]]
        for t in steps:
            result[b][t] = -kl_coef * kls[b][t]
        if steps:
            result[b][steps[-1]] += scores[b]
    return result


def clamp(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def policy_loss(logps: Rows, old: Rows, advantages: Rows, mask: Rows, cliprange: float) -> tuple[float, dict]:
    """Schulman et al. 2017, equation 7, negated and summed."""
    losses, ratios, clipped, approx_kl = [], [], 0, 0.0
    for logp, old_logp, advantage in zip(*(counted(x, mask) for x in (logps, old, advantages)), strict=True):
        ratio = math.exp(logp - old_logp)
        free = ratio * advantage
        bounded = clamp(ratio, 1 - cliprange, 1 + cliprange) * advantage
        losses.append(-min(free, bounded))
        ratios.append(ratio)
        clipped += bounded < free
        approx_kl += (ratio - 1) - math.log(ratio)
    stats = {
        "clipped": clipped,
        "approx_kl": approx_kl,
        "ratio": math.fsum(ratios),
        "ratio_max": max(ratios, default=-math.inf),
        "ratio_min": min(ratios, default=math.inf),
        "tokens": len(ratios),
    }
    return math.fsum(losses), stats


def value_loss(values: Rows, old: Rows, returns: Rows, mask: Rows, cliprange: float | None) -> tuple[float, dict]:
    losses, clipped, squared_error, value_sum = [], 0, 0.0, 0.0
    for value, old_value, target in zip(*(counted(x, mask) for x in (values, old, returns)), strict=True):
        error = (value - target) ** 2
        bounded = error
        if cliprange is not None:
            bounded = (clamp(value, old_value - cliprange, old_value + cliprange) - target) ** 2
        losses.append(0.5 * max(error, bounded))
        clipped += bounded > error
        squared_error += error
        value_sum += value
    stats = {"clipped": clipped, "squared_error": squared_error, "value": value_sum, "tokens": len(losses)}
    return math.fsum(losses), stats
