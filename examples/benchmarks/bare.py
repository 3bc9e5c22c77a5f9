"""The floor: what an iteration's passes cost without a trainer around them. Plain torch on transformers' Qwen2.

`decode` is a loop of its own: keys and values lie in one tensor that is allocated once, a prompt is read once for all
its replies. `reply_states` runs a body over prompts and replies, each prompt once: where several replies answer it, a
first pass leaves its keys and values, and the replies' pass reads them (gradients flow back through both). Replies have
all the same length here, so nothing is padded but short prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from rollouts.key_values import cache_keyword


def _rotate(heads_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    first, second = heads_BHTD.chunk(2, -1)
    return heads_BHTD * cos_BTD[:, None] + torch.cat((-second, first), -1) * sin_BTD[:, None]


@torch.no_grad()
def decode(model: nn.Module, prompts: list[list[int]], replies: int, length: int) -> Tensor:
    """Draw `replies` continuations of `length` tokens to each prompt: ids_NR, prompt-major.

    Prompts are padded on the left; a row of keys is a reply, so all replies take their step together.
    """
    config, body, device = model.config, model.model, model.device
    kv_heads, head_dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    ids_PT, mask_PT = left_padded(prompts, device)
    rows, start = len(prompts) * replies, ids_PT.shape[1]
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    cache = torch.zeros(len(body.layers), 2, rows, kv_heads, start + length, head_dim, device=device, dtype=dtype)
    allowed_N11T = F.pad(mask_PT.bool(), (0, length), value=True).repeat_interleave(replies, 0)[:, None, None]
    padded = not bool(mask_PT.all())

    def layers(ids_BT: Tensor, positions_BT: Tensor, at: int, times: int, mask: Tensor | None, causal: bool) -> Tensor:
        states = body.embed_tokens(ids_BT)
        cos, sin = body.rotary_emb(states, positions_BT)
        end = at + ids_BT.shape[1]
        for layer, (keys, values) in zip(body.layers, cache, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(states)
            q, k, v = (
                part(normed).unflatten(-1, (-1, head_dim)).transpose(1, 2)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            keys[:, :, at:end], values[:, :, at:end] = k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)
            if not causal:  # a step: all that was read so far
                k, v = keys[:, :, :end], values[:, :, :end]
            out = F.scaled_dot_product_attention(
                q, k.to(q.dtype), v.to(q.dtype), mask, is_causal=causal and mask is None, enable_gqa=True
            )
            states = states + attention.o_proj(out.transpose(1, 2).flatten(2))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return body.norm(states[:, -1])

    positions_PT = (mask_PT.cumsum(1) - 1).clamp(min=0)
    causal_TT = torch.ones(start, start, device=device, dtype=torch.bool).tril()
    mask = (causal_TT & mask_PT.bool()[:, None, None]) | torch.eye(start, device=device, dtype=torch.bool)
    states_PH = layers(ids_PT, positions_PT, 0, replies, mask if padded else None, causal=True)
    logits_NV = model.lm_head(states_PH).repeat_interleave(replies, 0)
    positions_N1 = mask_PT.sum(1).repeat_interleave(replies)[:, None]
    drawn = []
    for at in range(start, start + length):
        chances_NV = logits_NV.float().softmax(-1)
        drawn.append((chances_NV / torch.empty_like(chances_NV).exponential_()).argmax(-1))  # Gumbel's trick
        if len(drawn) == length:
            break
        mask = allowed_N11T[..., : at + 1] if padded else None
        states_NH = layers(drawn[-1][:, None], positions_N1 + at - start, at, 1, mask, causal=False)
        logits_NV = model.lm_head(states_NH)
    return torch.stack(drawn, 1)


def left_padded(rows: list[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """(ids, mask)."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def reply_states(body: nn.Module, prompts: list[list[int]], replies_NR: Tensor, times: int) -> Tensor:
    """states_NRH from which each of a reply's R tokens is drawn; `times` replies answer each prompt."""
    if times == 1:  # right padding, which causal attention never looks at: no mask
        rows = [torch.tensor(prompt, device=replies_NR.device) for prompt in prompts]
        joined = [torch.cat((prompt, reply[:-1])) for prompt, reply in zip(rows, replies_NR, strict=True)]
        states = body(input_ids=nn.utils.rnn.pad_sequence(joined, batch_first=True), use_cache=False).last_hidden_state
        length = replies_NR.shape[1]
        return torch.stack([row[len(p) - 1 : len(p) - 1 + length] for row, p in zip(states, prompts, strict=True)])
    ids_PT, mask_PT = left_padded(prompts, replies_NR.device)
    padded = not bool(mask_PT.all())
    cache = DynamicCache(config=body.config)
    keep = {cache_keyword(body): cache, "use_cache": True}
    positions_PT = (mask_PT.cumsum(1) - 1).clamp(min=0)
    read = body(
        input_ids=ids_PT,
        attention_mask=mask_PT if padded else None,
        position_ids=positions_PT,
        **keep,
    ).last_hidden_state[:, -1:]
    cache.batch_repeat_interleave(times)
    rest_NR = replies_NR[:, :-1]
    first_N1 = mask_PT.sum(1).repeat_interleave(times)[:, None]
    whole_mask = F.pad(mask_PT, (0, rest_NR.shape[1]), value=1).repeat_interleave(times, 0)
    states = body(
        input_ids=rest_NR,
        attention_mask=whole_mask if padded else None,
        position_ids=first_N1 + torch.arange(rest_NR.shape[1], device=rest_NR.device),
        **keep,
    ).last_hidden_state
    return torch.cat((read.repeat_interleave(times, 0), states), 1)


def logps(head: nn.Module, states_NRH: Tensor, replies_NR: Tensor) -> Tensor:
    """logps_NR of the replies' tokens."""
    logits_nV = head(states_NRH.flatten(0, 1)).float()
    return -F.cross_entropy(logits_nV, replies_NR.flatten(), reduction="none").view_as(replies_NR)


class Iteration:
    """The passes of a PPO iteration with one epoch and one minibatch, on models of its own.

    Args:
        times: replies to a prompt. length: tokens of a reply.
        micro: replies of a pass.
    """

    def __init__(
        self, policy: nn.Module, body: nn.Module, prompts: list[list[int]], times: int, length: int, micro: int
    ):
        self.policy, self.reference, self.prompts = policy, copy.deepcopy(policy), prompts
        self.critic, self.reward = body, copy.deepcopy(body)
        width = policy.config.hidden_size
        self.value_head, self.reward_head = (nn.Linear(width, 1, bias=False).to(policy.device) for _ in range(2))
        self.times, self.length, self.micro = times, length, micro
        trained = [list(policy.parameters()), [*body.parameters(), *self.value_head.parameters()]]
        self.optimizers = [torch.optim.AdamW(parameters, lr=1e-6) for parameters in trained]

    def _micros(self, replies_NR: Tensor) -> Iterator[tuple[list[list[int]], Tensor]]:
        """Prompts of like length together, each with all its replies."""
        at_once = max(1, self.micro // self.times)
        order = sorted(range(len(self.prompts)), key=lambda at: len(self.prompts[at]))
        groups = replies_NR.unflatten(0, (-1, self.times))
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            yield [self.prompts[at] for at in some], groups[some].flatten(0, 1)

    def decode(self) -> Tensor:
        """Replies."""
        return decode(self.policy.eval(), self.prompts, self.times, self.length)

    @torch.no_grad()
    def score(self, replies_NR: Tensor) -> None:
        """The reward model's pass."""
        for prompts, some in self._micros(replies_NR):
            self.reward_head(reply_states(self.reward, prompts, some, self.times)[:, -1])

    @torch.no_grad()
    def ask(self, model: nn.Module, replies_NR: Tensor) -> None:
        """Log-probabilities: the reference's, or the old ones."""
        for prompts, some in self._micros(replies_NR):
            logps(model.lm_head, reply_states(model.model, prompts, some, self.times), some)

    @torch.no_grad()
    def values(self, replies_NR: Tensor) -> None:
        """The old values."""
        for prompts, some in self._micros(replies_NR):
            self.value_head(reply_states(self.critic, prompts, some, self.times))

    def update_policy(self, replies_NR: Tensor) -> None:
        """Forward, backward, step."""
        for prompts, some in self._micros(replies_NR):
            found = logps(self.policy.lm_head, reply_states(self.policy.model, prompts, some, self.times), some)
            ((found - found.detach()).exp().sum() / replies_NR.numel()).backward()
        self._step(self.optimizers[0])

    def update_critic(self, replies_NR: Tensor) -> None:
        """Forward, backward, step."""
        for prompts, some in self._micros(replies_NR):
            values = self.value_head(reply_states(self.critic, prompts, some, self.times))
            ((values - 1) ** 2).sum().div(replies_NR.numel()).backward()
        self._step(self.optimizers[1])

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
