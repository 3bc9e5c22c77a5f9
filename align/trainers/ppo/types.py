"""What the parts of PPO hand to one another: sampled replies, scores, token tensors, and the experience made of them.

Layout. A row is prompt + reply, padded on the right. State t is the position after reading tokens 0..t, its action is
token t + 1; so a row of T tokens has S = T - 1 states, and every per-action tensor has shape (N, S) with its mask 1
where the action is a token of the reply (the drawn end token included). Masks come from lengths, never from ids, and
whatever stands at padded positions is read by nobody.

Supports. What truncated sampling could draw at each reply token differs in size by orders of magnitude (one id where
the policy is sure, thousands where it is not), so supports are stored end to end, and padded for a micro-batch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from align.runtime.devices import index_on
from align.runtime.padding import padded
from align.trainers.ppo.kept import KeptPass, LatePass
from align.trainers.ppo.rows import ModelRows, RowSize, flat_rows, padded_rows
from data_formats.records import Prompt
from reward.failures import MAX_FAILED_SHARE, OnRewardError, judge_all
from reward.protocol import Reward, Sample, prompt_columns
from rollouts.protocol import Completion


@dataclass(frozen=True, slots=True)
class Samples:
    """N sampled replies, prompt-major: the replies to one prompt are neighbours.

    Attributes:
        prompts: (N) the record each reply answers.
        prompt_ids: (N) token ids of the rendered prompt, generation prompt included.
        reply_ids: (N) token ids of the reply, with its end token when one was drawn; never empty.
        replies: (N) the reply as text without control tokens.
        finished: (N) whether the policy ended the reply itself.
        engine_logps: (N) what the engine gave as log-probability of each reply token under the full
            temperature-divided distribution, in nats; None for a reply of which it gave none.
        kept_mass: (N) share of that distribution's mass which truncation left at each reply token; or None.
        supports: (N) the ids that could be drawn at each reply token; or None.
        weight_versions: (N) version of the weights that made each reply; or None. The last four may be left out.
    """

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    reply_ids: tuple[tuple[int, ...], ...]
    replies: tuple[str, ...]
    finished: tuple[bool, ...]
    engine_logps: tuple[tuple[float, ...] | None, ...] = ()
    kept_mass: tuple[tuple[float, ...] | None, ...] = ()
    supports: tuple[tuple[tuple[int, ...], ...] | None, ...] = ()
    weight_versions: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("engine_logps", "kept_mass", "supports", "weight_versions"):
            object.__setattr__(self, name, getattr(self, name) or (None,) * len(self.prompts))

    def __len__(self) -> int:
        return len(self.prompts)

    def for_reward(self, with_ids: bool = True) -> list[Sample]:
        """The same replies as a `reward.Reward` takes them; with the policy's token ids, or as text alone."""
        return [
            Sample(
                prompt=tuple(prompt.messages),
                completion=text,
                prompt_ids=prompt_ids if with_ids else None,
                completion_ids=reply_ids if with_ids else None,
                finished=finished,
                columns=prompt_columns(prompt),
            )
            for prompt, prompt_ids, reply_ids, text, finished in zip(
                self.prompts, self.prompt_ids, self.reply_ids, self.replies, self.finished, strict=True
            )
        ]

    @classmethod
    def concatenate(cls, parts: Sequence[Samples]) -> Samples:
        """One after the other (ranks in order)."""
        return cls(*(sum((getattr(part, field.name) for part in parts), ()) for field in fields(cls)))


def full_logprobs(completion: Completion) -> tuple[float, ...] | None:
    """The engine's log-probability (nats) of each token under the full temperature-divided distribution.

    None when the engine gave neither these nor log-probabilities with their kept mass.
    """
    if completion.full_logprobs is not None:
        return completion.full_logprobs
    if completion.logprobs is None or completion.kept_mass is None:
        return None
    return tuple(
        logprob + math.log(kept) for logprob, kept in zip(completion.logprobs, completion.kept_mass, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """What the reward said of N replies.

    Attributes:
        total_N: (N) float64, the reward in its own unit; NaN for a reply that it failed on (`on_reward_error: mask`).
        parts: by name, (N) float64, what each part of a composed reward said; empty for a plain one.
        failures: why, for each reply without a score.
    """

    total_N: Tensor
    parts: dict[str, Tensor]
    failures: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        reward: Reward,
        samples: Samples,
        with_ids: bool,
        on_error: OnRewardError = "stop",
        world_size: int = 1,
    ) -> Scores:
        """What `reward` says of `samples`.

        Args:
            with_ids: whether it may read the policy's token ids.
            on_error: see `reward.failures`; with `mask`, this rank may have every failure that is allowed to all.

        Raises:
            RewardError: not one finite float a reply.
        """
        most = int(MAX_FAILED_SHARE * len(samples) * world_size)
        verdict, failures = judge_all(reward, samples.for_reward(with_ids), on_error, most)
        parts = {name: torch.tensor(said, dtype=torch.float64) for name, said in verdict.parts.items()}
        return cls(torch.tensor(verdict.scores, dtype=torch.float64), parts, tuple(failures))

    def row(self, at: int) -> tuple[float, dict[str, float]]:
        """What was said of reply `at`: the whole, and each part."""
        return float(self.total_N[at]), {name: float(part_N[at]) for name, part_N in self.parts.items()}

    @classmethod
    def concatenate(cls, all_scores: Sequence[Scores]) -> Scores:
        """One after the other (ranks in order)."""
        names = list(dict.fromkeys(name for scores in all_scores for name in scores.parts))
        return cls(
            torch.cat([scores.total_N for scores in all_scores]),
            {name: torch.cat([scores._part(name) for scores in all_scores]) for name in names},
            sum((scores.failures for scores in all_scores), ()),
        )

    def _part(self, name: str) -> Tensor:
        """NaN where the reward failed on every reply, and so told no parts."""
        return self.parts.get(name, torch.full_like(self.total_N, torch.nan))


def reply_groups(count: int, num_generations: int) -> Tensor:
    """groups_N of so many replies: those to one prompt, which are neighbours, have one number."""
    return torch.arange(count) // num_generations


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of N rows.

    Attributes:
        input_ids_NT: (N, T) int64, prompt + reply, padded on the right.
        prompt_lengths_N: (N) tokens of the prompt, at least 1.
        lengths_N: (N) tokens of prompt + reply.
        groups_N: (N) int64, one number for the replies to one prompt, for a loss that compares them; or None.
        reply_room: tokens that each reply is computed with, padded where it has fewer (`rollout.exact`); None: its own.
    """

    input_ids_NT: Tensor
    prompt_lengths_N: Tensor
    lengths_N: Tensor
    groups_N: Tensor | None = None
    reply_room: int | None = None

    @classmethod
    def from_ids(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        reply_ids: Sequence[Sequence[int]],
        pad_id: int = 0,
        num_generations: int = 1,
        reply_room: int | None = None,
    ) -> TokenBatch:
        """Pad prompt + reply of every row on the right to the longest.

        Args:
            num_generations: so many rows that follow one another answer one prompt.
            reply_room: tokens that each reply is computed with.

        Raises:
            ValueError: a prompt or a reply is empty (there would be no state, or no action, to learn from).
        """
        for row, (prompt, reply) in enumerate(zip(prompt_ids, reply_ids, strict=True)):
            if not prompt or not reply:
                raise ValueError(
                    f"row {row} has an empty {'reply' if prompt else 'prompt'}; a row needs a token of each"
                )
        rows = [[*prompt, *reply] for prompt, reply in zip(prompt_ids, reply_ids, strict=True)]
        ids_NT, width = padded(rows, pad_id), max(map(len, prompt_ids)) + (reply_room or 0)
        return cls(
            F.pad(ids_NT, (0, max(0, width - ids_NT.shape[1])), value=pad_id),
            torch.tensor([len(prompt) for prompt in prompt_ids]),
            torch.tensor([len(row) for row in rows]),
            reply_groups(len(rows), num_generations),
            reply_room,
        )

    @property
    def attention_mask_NT(self) -> Tensor:
        """(N, T) int64, 1 on real tokens."""
        return (self._positions(0) < self.lengths_N[:, None]).long()

    @property
    def mask_NS(self) -> Tensor:
        """(N, S) bool, 1 where the action (the next token) belongs to the reply."""
        next_position = self._positions(1)
        return (next_position >= self.prompt_lengths_N[:, None]) & (next_position < self.lengths_N[:, None])

    def on_actions(self, values: Sequence[Sequence[float]]) -> Tensor:
        """values_NS, float32: one number a reply token, put where the token is the action; 0 elsewhere."""
        states = self.input_ids_NT.shape[1] - 1
        starts = (self.prompt_lengths_N - 1).tolist()
        rows = [[0.0] * start + list(row) for start, row in zip(starts, values, strict=True)]
        return torch.tensor([row + [0.0] * (states - len(row)) for row in rows], device=self.input_ids_NT.device)

    def _positions(self, first: int) -> Tensor:
        return torch.arange(first, self.input_ids_NT.shape[1], device=self.input_ids_NT.device)[None, :]

    @cached_property
    def row_sizes(self) -> list[RowSize]:
        """Of every row as computed, as the host knows them: what is cut from this batch need not ask the device."""
        first: dict[tuple[int, ...], int] = {}
        rows = zip(self.input_ids_NT.tolist(), self.prompt_lengths_N.tolist(), self.lengths_N.tolist(), strict=True)
        return [
            RowSize(first.setdefault(tuple(ids[:prompt]), row), prompt, max(length, prompt + (self.reply_room or 0)))
            for row, (ids, prompt, length) in enumerate(rows)
        ]

    @cached_property
    def flat(self) -> ModelRows:
        """All rows in one, each prompt once; made once, for every model that is asked about them."""
        return flat_rows(self.input_ids_NT, self.row_sizes)

    @cached_property
    def padded(self) -> ModelRows:
        """The rows as they are."""
        return padded_rows(self.input_ids_NT, self.attention_mask_NT, self.row_sizes)

    def rows(self, rows_B: Tensor) -> TokenBatch:
        """These rows, whose numbers lie on the host, cut to their own longest length."""
        sizes = [self.row_sizes[row] for row in rows_B.tolist()]
        width = max(size.length for size in sizes)
        rows_B = index_on(self.input_ids_NT.device, rows_B)
        groups_B = None if self.groups_N is None else self.groups_N[rows_B]
        ids_BT, lengths_B = self.input_ids_NT[rows_B, :width], self.lengths_N[rows_B]
        return TokenBatch(ids_BT, self.prompt_lengths_N[rows_B], lengths_B, groups_B, self.reply_room)._sized(sizes)

    def to(self, device: torch.device) -> TokenBatch:
        """The same on another device."""
        told = (getattr(self, field.name) for field in fields(self))
        return TokenBatch(*(one.to(device) if isinstance(one, Tensor) else one for one in told))._sized(self.row_sizes)

    def _sized(self, sizes: list[RowSize]) -> TokenBatch:
        self.__dict__["row_sizes"] = sizes
        return self


@dataclass(frozen=True, slots=True)
class SupportTensor:
    """The ids that could be drawn at every action of N rows; S states as in `TokenBatch`.

    Attributes:
        ids_F: (F) int32, the supports one after the other.
        starts_NS: (N, S) int64, where the support of an action begins in `ids_F`.
        counts_NS: (N, S) int64, its size; 0 where the action is no token of a reply.
    """

    ids_F: Tensor
    starts_NS: Tensor
    counts_NS: Tensor

    @classmethod
    def from_supports(cls, supports: Sequence[Sequence[Sequence[int]] | None], tokens: TokenBatch) -> SupportTensor:
        """Put `Samples.supports` into the layout of `tokens`, on its device.

        Raises:
            ValueError: a reply without support, or one with another number of them than it has tokens.
        """
        mask_NS = tokens.mask_NS.cpu()
        for row, (support, length) in enumerate(zip(supports, mask_NS.sum(1).tolist(), strict=True)):
            if support is None or len(support) != length:
                found = "none" if support is None else f"{len(support)}"
                raise ValueError(
                    f"reply {row} has {length} tokens and {found} recorded supports: the engine must return one a token"
                )
        counts_NS = torch.zeros(mask_NS.shape, dtype=torch.int64)
        counts_NS[mask_NS] = torch.tensor([len(ids) for support in supports for ids in support])
        starts_NS = (counts_NS.flatten().cumsum(0) - counts_NS.flatten()).view_as(counts_NS)
        ids_F = torch.tensor([token for support in supports for ids in support for token in ids], dtype=torch.int32)
        device = tokens.input_ids_NT.device
        return cls(ids_F.to(device), starts_NS.to(device), counts_NS.to(device))

    def rows(self, rows_B: Tensor, states: int | None = None) -> SupportTensor:
        """These rows, cut to `states` (those of `TokenBatch.rows`; default all). The ids are shared, not copied."""
        rows_B = index_on(self.starts_NS.device, rows_B)
        return SupportTensor(self.ids_F, self.starts_NS[rows_B, :states], self.counts_NS[rows_B, :states])

    def at(self, places_K: Tensor) -> SupportTensor:
        """Those of some actions, by flat indices into (N, S); their starts and counts are (K,)."""
        return SupportTensor(self.ids_F, self.starts_NS.flatten()[places_K], self.counts_NS.flatten()[places_K])

    def padded(self) -> tuple[Tensor, Tensor]:
        """(ids_NSK int64, mask_NSK bool) as `functional.support_logprobs` takes them; K is the largest support's size,
        and there is no S in what `at` gives.

        Padded places hold id 0.
        """
        places_K = torch.arange(max(1, int(self.counts_NS.max())), device=self.ids_F.device)
        mask_NSK = places_K < self.counts_NS[..., None]
        at_NSK = (self.starts_NS[..., None] + places_K).masked_fill(~mask_NSK, 0)
        return self.ids_F[at_NSK].long().masked_fill(~mask_NSK, 0), mask_NSK


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """Everything an update needs; N is the global rollout batch (all ranks hold all of it), or a micro-batch's rows.

    Attributes:
        tokens: the rows' token ids.
        mask_NS: (N, S) bool, 1 on the reply actions that are learnt from (of masked replies none); every (N, S) tensor
            below means nothing outside the reply.
        scores_N: (N) the reward as it was given, in its own unit; NaN for a reply that it failed on.
        normalized_N: (N) after penalties, running statistics and clip; means nothing where the score is NaN.
        old_logps_NS: (N, S) nats, the denominator of the ratio: the sampling policy under the training forward,
            temperature-divided, over the full vocabulary or, with `support`, over what the sampler could draw.
        ref_logps_NS: (N, S) nats, the reference over the full vocabulary.
        old_values_NS: (N, S) the critic before the update, in units of the normalised reward; None without a critic.
        rewards_NS: (N, S) the shaped reward of each action: -kl_coef * KL, plus the score on the last reply token.
        advantages_NS: (N, S) what the estimator says, whitened over the global batch when the recipe says so.
        returns_NS: (N, S) regression targets of the critic; None without one.
        full_logps_NS: (N, S) nats, the sampling policy over the full vocabulary, where `old_logps_NS` is not that.
        sampler_logps_NS: (N, S) nats, the same as the engine computed it, where it is corrected for.
        importance_NS: (N, S) weights of the policy's loss that correct for it; None: 1.
        weights_NS: (N, S) weights of every loss, 0 outside `mask_NS`; None: 1 inside.
        support: the token ids that the sampler could draw, where the ratio is over them.
        kept: the policy's pass over some of the rows, where the update may take it up.
        late: where the policy is not asked before the update: what fills `old_logps_NS` and `full_logps_NS` then, of
            each micro-batch before its loss is asked for.
    """

    tokens: TokenBatch
    mask_NS: Tensor
    scores_N: Tensor
    normalized_N: Tensor
    old_logps_NS: Tensor
    ref_logps_NS: Tensor
    old_values_NS: Tensor | None
    rewards_NS: Tensor
    advantages_NS: Tensor
    returns_NS: Tensor | None
    full_logps_NS: Tensor | None = None
    sampler_logps_NS: Tensor | None = None
    importance_NS: Tensor | None = None
    weights_NS: Tensor | None = None
    support: SupportTensor | None = None
    kept: KeptPass | None = None
    late: LatePass | None = None

    @property
    def policy_logps_NS(self) -> Tensor:
        """(N, S) nats, the sampling policy over the full vocabulary."""
        return self.old_logps_NS if self.full_logps_NS is None else self.full_logps_NS

    def divisor(self, rows_B: Tensor | None = None) -> Tensor:
        """What the summed losses of some rows (default all) are divided by, a scalar: their tokens or, with weights,
        their replies."""
        mask_BS = self.mask_NS if rows_B is None else self.mask_NS[index_on(self.mask_NS.device, rows_B)]
        return (mask_BS if self.weights_NS is None else mask_BS.any(1)).sum()

    def rows(self, rows_B: Tensor) -> Experience:
        """These rows, whose numbers lie on the host, every tensor cut to their own longest length."""
        tokens = self.tokens.rows(rows_B)
        states, here_B = tokens.input_ids_NT.shape[1] - 1, index_on(self.mask_NS.device, rows_B)

        def cut(value: Any) -> Any:
            if isinstance(value, KeptPass):
                return value if value.is_over(self.tokens, rows_B) else None
            if not isinstance(value, Tensor):
                return None if value is None else value.rows(rows_B, states)
            return value[here_B] if value.dim() == 1 else value[here_B, :states]

        return Experience(tokens=tokens, **{field.name: cut(getattr(self, field.name)) for field in fields(self)[1:]})
