"""The gradients of one optimizer step of the independent PPO of `ppo_reference.py`; imports that file alone.

One unpadded sample at a time; every token's loss is written out and weighed by what its aggregation says.
"""

from __future__ import annotations

import math

import torch

from tests.align.trainers.ppo_reference import entropies_of, kl_estimate, logps_of, values_of


def counted(minibatch, aggregation):
    """How many tokens, or replies, the minibatch's losses are averaged over."""
    lengths = [len(reply.reply) for reply in minibatch if reply.counts]
    return len(lengths) if aggregation == "sequence" else sum(lengths)


def token_weights(minibatch, aggregation):
    """What each token's loss weighs, a list for each reply; the weights of the minibatch add up to 1."""
    share, out = 1 / max(1, counted(minibatch, aggregation)), []
    for reply in minibatch:
        weight = share / len(reply.reply) if aggregation == "sequence" else share
        out.append([weight if reply.counts else 0.0] * len(reply.reply))
    return out


def surrogate(ratio, advantage, settings):
    """The objective of one token: Schulman et al. 2017, equation 7; Ye et al. 2020, equation 5 for the dual clip."""
    bounded = torch.clamp(ratio, 1 - settings.cliprange, 1 + settings.cliprange)
    objective = torch.minimum(ratio * advantage, bounded * advantage)
    if settings.dual_clip is not None and advantage < 0:
        objective = torch.maximum(objective, torch.full_like(objective, settings.dual_clip * advantage))
    return objective


def kl_losses(new, ref, settings):
    """One term a token with the right gradient. Straight-through: that of the reply's KL, E[(sum_{s>=t} d_s) grad
    log p_t], because the expected gradient of log p is 0 and earlier differences do not depend on token t."""
    differences = [new[t] - ref[t] for t in range(len(ref))]
    out = []
    for t in range(len(ref)):
        from_here_on = sum(float(differences[s].detach()) for s in range(t, len(ref)))
        out.append(from_here_on * new[t])
    return out


def policy_gradient(policy, minibatch, settings, ptx_blocks=(), *, kl_coef=0.0, ptx_coef=0.0, notes=None):
    """Gradients of the policy's parameters for one minibatch, before clipping, of PPO and of ptx apart.

    `notes` collects, under the names of the log, one number a token; of the surrogate's loss one a minibatch.
    """
    notes = {} if notes is None else notes
    policy.zero_grad(set_to_none=True)
    surrogates = 0.0
    for reply, weights in zip(minibatch, token_weights(minibatch, settings.loss_aggregation), strict=True):
        if not reply.counts:
            continue
        loss = torch.zeros((), dtype=torch.float64)
        ratio_logps = logps_of(policy, reply.prompt, reply.reply, settings.temperature, reply.supports)
        for t in range(len(reply.reply)):
            ratio = torch.exp(ratio_logps[t] - reply.old_ratio[t])
            loss = loss - weights[t] * reply.weights[t] * surrogate(ratio, reply.advantages[t], settings)
            _note_ratio(notes, ratio.item(), reply.advantages[t], settings)
            notes.setdefault("importance/mean", []).append(reply.weights[t])
            notes.setdefault("importance/truncated", []).append(reply.weights[t] == settings.importance_sampling_cap)
        surrogates += loss.item()
        if settings.kl_in == "loss":
            new = logps_of(policy, reply.prompt, reply.reply, settings.temperature)
            for t, term in enumerate(kl_losses(new, reply.ref, settings)):
                loss = loss + weights[t] * kl_coef * term
                estimate = kl_estimate(new[t].item() - reply.ref[t], settings.kl_estimator)
                notes.setdefault("kl_loss/estimate", []).append(estimate)
        if settings.entropy_coef:
            for t, entropy in enumerate(entropies_of(policy, reply.prompt, reply.reply, settings.temperature)):
                loss = loss - weights[t] * settings.entropy_coef * entropy
        loss.backward()
    notes.setdefault("policy/loss", []).append((surrogates, counted(minibatch, settings.loss_aggregation)))
    ppo = taken(policy)
    return ppo, ptx_gradient(policy, ptx_blocks, ptx_coef, settings.ptx_max_z_coef, notes)


def _note_ratio(notes, ratio, advantage, settings):
    bounded = max(1 - settings.cliprange, min(1 + settings.cliprange, ratio)) * advantage
    objective = min(ratio * advantage, bounded)
    dual = settings.dual_clip is not None and advantage < 0 and objective < settings.dual_clip * advantage
    found = {
        "ratio": ratio,
        "clipped": float(bounded < ratio * advantage),
        "dual_clipped": float(dual),
        "approx_kl": ratio - 1 - math.log(ratio),
    }
    for name, number in found.items():
        notes.setdefault(f"policy/{name}", []).append(number)


def ptx_gradient(policy, blocks, coef, max_z_coef, notes):
    """Gradients of `coef` times the mean, over all predicted tokens of the blocks, of negative log-likelihood and
    max-z loss (Baichuan 2: the square of the largest logit, times `max_z_coef`)."""
    policy.zero_grad(set_to_none=True)
    tokens = sum(len(block) - 1 for block in blocks)
    for block in blocks:
        logits = policy(input_ids=torch.tensor([list(block)])).logits[0]
        loss = sum(torch.logsumexp(logits[t], 0) - logits[t][block[t + 1]] for t in range(len(block) - 1))
        if max_z_coef:
            squares = [torch.max(logits[t]) ** 2 for t in range(len(block) - 1)]
            notes.setdefault("ptx/max_z", []).extend(square.item() for square in squares)
            loss = loss + max_z_coef * sum(squares)
        (loss * coef / tokens).backward()
    return taken(policy)


def critic_gradient(critic, minibatch, settings, notes=None):
    """Gradients of the critic's parameters for one minibatch, before clipping; `notes` as in `policy_gradient`."""
    notes = {} if notes is None else notes
    critic.zero_grad(set_to_none=True)
    limit = settings.cliprange_value
    total = 0.0
    for reply, weights in zip(minibatch, token_weights(minibatch, settings.loss_aggregation), strict=True):
        if not reply.counts:
            continue
        new = values_of(critic, reply.prompt, reply.reply)
        loss = torch.zeros((), dtype=torch.float64)
        for t in range(len(reply.reply)):
            plain = error = (new[t] - reply.returns[t]) ** 2
            if limit is not None:
                bounded = torch.clamp(new[t], reply.old_values[t] - limit, reply.old_values[t] + limit)
                error = torch.maximum(error, (bounded - reply.returns[t]) ** 2)
            loss = loss + weights[t] * 0.5 * error
            found = {"value": new[t].item(), "squared_error": plain.item(), "clipped": float(error > plain)}
            for name, number in found.items():
                notes.setdefault(f"value/{name}", []).append(number)
        total += loss.item()
        (settings.vf_coef * loss).backward()
    notes.setdefault("value/loss", []).append((total, counted(minibatch, settings.loss_aggregation)))
    return taken(critic)


def figures_of(notes):
    """What the log says of an iteration: means over tokens; of losses over what they were divided by."""
    out = {}
    for name, numbers in notes.items():
        if name.endswith("/loss"):
            out[name] = sum(loss * size for loss, size in numbers) / sum(size for _, size in numbers)
        else:
            out[name] = sum(numbers) / len(numbers)
    if "policy/ratio" in notes:
        out |= {"policy/ratio_max": max(notes["policy/ratio"]), "policy/ratio_min": min(notes["policy/ratio"])}
    return out


@torch.no_grad()
def approximate_kl(policy, minibatch, settings):
    """Mean over the minibatch's tokens of (r - 1) - log r."""
    terms = []
    for reply in minibatch:
        if reply.counts:
            new = logps_of(policy, reply.prompt, reply.reply, settings.temperature, reply.supports).tolist()
            for t in range(len(new)):
                log_ratio = new[t] - reply.old_ratio[t]
                terms.append(math.exp(log_ratio) - 1 - log_ratio)
    return sum(terms) / max(1, len(terms))


def taken(model):
    """Copies of the gradients, zeros where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def norm(tensors):
    """Euclidean norm of all of them together."""
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors))


def relative_error(found, expected):
    """|found - expected| over |expected|, Euclidean norms over all tensors; |found| where nothing is expected."""
    return norm([a - b for a, b in zip(found, expected, strict=True)]) / (norm(expected) or 1.0)
