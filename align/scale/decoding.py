"""Seconds of sampling with an engine: prompts read at once, replies drawn step by step.

A step draws a token of every reply at work. It reads all weights and the keys and values of every reply so far, or
computes as long as its FLOPs take, whichever is longer, and takes some time besides; with tensor parallelism each card
does its share, and two sums a layer go around. Replies that end make room for waiting ones, so replies of unlike length
keep an engine busy with fewer and fewer: `steps` walks through that, and the simulation of growth uses the same walk.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from align.plan.cost import PromptGroup, Work, decode_pass, flops
from align.plan.engine import WIDTHS, token_bytes
from align.plan.models import Model
from align.recipe import Recipe
from align.scale.efficiency import Efficiency
from align.scale.layout import Layout


@dataclass(frozen=True, slots=True)
class Decoding:
    """One engine's work.

    Attributes:
        engines: how many share an iteration's prompts.
        slots: replies at work at once.
        weights: bytes that a step reads.
        token: bytes of a token's keys and values. longest: tokens of the longest prompt with its reply.
        flops_a_token: of drawing one, attention apart. flops_a_pair: of a query and a key, in all layers.
    """

    model: Model
    layout: Layout
    efficiency: Efficiency
    engines: int
    slots: int
    weights: float
    token: float
    longest: int
    flops_a_token: float
    flops_a_pair: float

    @property
    def _cards(self) -> int:
        return self.layout.tensor_parallel

    def prefill(self, prompts: int, length: int) -> float:
        """Seconds of reading so many prompts, each once for all of its replies."""
        work = decode_pass([PromptGroup(length, ())]).times(prompts)
        peak = self._cards * self.layout.cluster.card.flops
        return flops(work, self.model) / (peak * self.efficiency.prefill)

    def needs(self, replies: Sequence[int], prompt: int) -> dict[str, float]:
        """Seconds of drawing replies of these lengths by what they need: memory, compute, latency; the largest of the
        sums is within a step's difference of the sum of the largest."""
        totals = {"memory": 0.0, "compute": 0.0, "latency": 0.0}
        for count, rows, tokens in steps(replies, self.slots, prompt):
            for name, seconds in self._step(rows, tokens).items():
                totals[name] += count * seconds
        return totals

    def seconds(self, replies: Sequence[int], prompt: int) -> float:
        """Of drawing replies of these lengths."""
        return sum(
            count * max(self._step(rows, tokens).values()) for count, rows, tokens in steps(replies, self.slots, prompt)
        )

    def _step(self, rows: float, tokens: float) -> dict[str, float]:
        """Of one step with `rows` replies at work that have `tokens` behind them together."""
        card, share, cards = self.layout.cluster.card, self.efficiency, self._cards
        layers = self.model.body.shape.num_hidden_layers
        besides = share.step + layers * (share.draw_layer + (2 * share.hop if cards > 1 else 0.0))
        read = (self.weights + self.token * tokens) / (cards * card.bandwidth * share.bandwidth)
        made = (self.flops_a_token * rows + self.flops_a_pair * tokens) / (cards * card.flops * share.decode)
        return {"memory": read + besides, "compute": made + besides, "latency": besides}


def steps(replies: Sequence[int], slots: int, prompt: int) -> Iterator[tuple[int, int, float]]:
    """(steps, replies at work, tokens behind them together as a mean over these steps) of an engine that draws replies
    of these lengths, `slots` at once, a waiting one beginning where one ends."""
    waiting = list(reversed(replies))
    ends: list[tuple[int, int]] = []  # (step at which it is through, length)
    now = 0
    while waiting or ends:
        while waiting and len(ends) < slots:
            length = waiting.pop()
            heapq.heappush(ends, (now + length, length))
        until = ends[0][0]
        behind = sum(prompt + length - (end - now) for end, length in ends)
        count = until - now
        if count:
            yield count, len(ends), behind + len(ends) * (count - 1) / 2
        now = until
        while ends and ends[0][0] == now:
            heapq.heappop(ends)


def decoding_of(recipe: Recipe, policy: Model, layout: Layout, efficiency: Efficiency, room: float) -> Decoding:
    """The engine of ppo under a layout.

    Args:
        room: bytes for keys and values on each of its cards.
    """
    rollout, shape = recipe.ppo.rollout, policy.body.shape
    own = rollout.engine == "hf"
    width = policy.body.precision.attention if own else WIDTHS[_dtype(recipe)]
    token = token_bytes(shape, width)
    fits = max(1, int(room * layout.tensor_parallel / (token * rollout.max_length)))
    slots = rollout.batch_size if own else min(rollout.vllm.max_num_seqs, fits)
    return Decoding(
        policy,
        layout,
        efficiency,
        engines=layout.engines,
        slots=slots,
        weights=policy.body.count.whole * (policy.body.precision.weights if own else width),
        token=token,
        longest=rollout.max_length,
        flops_a_token=flops(Work(1, 0, 1), policy),
        flops_a_pair=flops(Work(0, 1, 0), policy),
    )


def _dtype(recipe: Recipe) -> str:
    told = recipe.ppo.rollout.vllm.dtype
    return recipe.model.dtype if told == "auto" else told
