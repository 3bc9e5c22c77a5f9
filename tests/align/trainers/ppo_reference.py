"""An independent PPO iteration: float64, one unpadded sample at a time, loops over tokens. Imports nothing of ours.

It computes what the documentation of `align.trainers.ppo` says, as plainly as possible, for comparison with gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Settings:
    temperature: float = 1.0
    kl_coef: float = 0.04
    missing_eos_penalty: float = 1.0
    reward_clip: float = 10.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    cliprange: float = 0.2
    cliprange_value: float = 0.15
    vf_coef: float = 1.0
    ptx_coef: float = 0.0


@dataclass
class Reply:
    """One sample of the experience; lists have one float a reply token."""

    prompt: list[int]
    reply: list[int]
    old_logps: list[float]
    old_values: list[float]
    advantages: list[float]
    returns: list[float]


def logps_of(model, prompt, reply, temperature):
    """A tensor with the log-probability of each reply token."""
    ids = torch.tensor([list(prompt) + list(reply)])
    logits = model(input_ids=ids).logits[0] / temperature
    out = []
    for t, token in enumerate(reply):
        row = logits[len(prompt) + t - 1]
        out.append(row[token] - torch.logsumexp(row, dim=0))
    return torch.stack(out)


def values_of(critic, prompt, reply):
    """The value of the state before each reply token."""
    ids = torch.tensor([list(prompt) + list(reply)])
    values = critic(ids, torch.ones_like(ids))[0]
    return torch.stack([values[len(prompt) + t - 1] for t in range(len(reply))])


def experience(policy, critic, reference, prompts, replies, finished, scores, running, settings):
    """Replies with advantages; `running` is [count, total] of the running mean and is updated."""
    rewards = [
        score - (0.0 if done else settings.missing_eos_penalty) for score, done in zip(scores, finished, strict=True)
    ]
    running[0] += len(rewards)
    running[1] += sum(rewards)
    mean = running[1] / running[0]
    rewards = [max(-settings.reward_clip, min(settings.reward_clip, reward - mean)) for reward in rewards]
    made = []
    for prompt, reply, reward in zip(prompts, replies, rewards, strict=True):
        with torch.no_grad():
            old = logps_of(policy, prompt, reply, settings.temperature).tolist()
            ref = logps_of(reference, prompt, reply, settings.temperature).tolist()
            values = values_of(critic, prompt, reply).tolist()
        per_token = [-settings.kl_coef * (a - b) for a, b in zip(old, ref, strict=True)]
        per_token[-1] += reward
        advantages = [0.0] * len(reply)
        for t in range(len(reply)):
            for later in range(t, len(reply)):
                after = values[later + 1] if later + 1 < len(reply) else 0.0
                delta = per_token[later] + settings.gamma * after - values[later]
                advantages[t] += (settings.gamma * settings.lam) ** (later - t) * delta
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        made.append(Reply(list(prompt), list(reply), old, values, advantages, returns))
    if settings.whiten:
        everything = [a for reply in made for a in reply.advantages]
        centre = sum(everything) / len(everything)
        spread = sum((a - centre) ** 2 for a in everything) / len(everything)
        for reply in made:
            reply.advantages = [(a - centre) / math.sqrt(spread + 1e-8) for a in reply.advantages]
    return made


def policy_gradient(policy, minibatch, settings, ptx_blocks=()):
    """Gradients of the policy's parameters for one minibatch, before clipping."""
    policy.zero_grad(set_to_none=True)
    tokens = sum(len(reply.reply) for reply in minibatch)
    for reply in minibatch:
        new = logps_of(policy, reply.prompt, reply.reply, settings.temperature)
        loss = 0.0
        for t in range(len(reply.reply)):
            ratio = torch.exp(new[t] - reply.old_logps[t])
            bounded = torch.clamp(ratio, 1 - settings.cliprange, 1 + settings.cliprange)
            loss = loss - torch.minimum(ratio * reply.advantages[t], bounded * reply.advantages[t])
        (loss / tokens).backward()
    ptx_tokens = sum(len(block) - 1 for block in ptx_blocks)
    for block in ptx_blocks:
        logits = policy(input_ids=torch.tensor([list(block)])).logits[0]
        loss = sum(torch.logsumexp(logits[t], 0) - logits[t][block[t + 1]] for t in range(len(block) - 1))
        (loss * settings.ptx_coef / ptx_tokens).backward()
    return [parameter.grad.clone() for parameter in policy.parameters()]


def critic_gradient(critic, minibatch, settings):
    """Gradients of the critic's parameters for one minibatch, before clipping."""
    critic.zero_grad(set_to_none=True)
    tokens = sum(len(reply.reply) for reply in minibatch)
    for reply in minibatch:
        new = values_of(critic, reply.prompt, reply.reply)
        loss = 0.0
        for t in range(len(reply.reply)):
            low, high = reply.old_values[t] - settings.cliprange_value, reply.old_values[t] + settings.cliprange_value
            bounded = torch.clamp(new[t], low, high)
            loss = loss + 0.5 * torch.maximum((new[t] - reply.returns[t]) ** 2, (bounded - reply.returns[t]) ** 2)
        (settings.vf_coef * loss / tokens).backward()
    return [parameter.grad.clone() for parameter in critic.parameters()]


def largest_relative_error(found, expected):
    """|found - expected| / |expected|, Euclidean norm over all parameters together."""
    whole = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True)))
    size = math.sqrt(sum(float((b**2).sum()) for b in expected))
    return whole / size
