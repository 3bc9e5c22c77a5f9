"""What an engine is: token ids in, token ids out. It knows no tokenizer and no reward.

Which rank calls what: every rank owns an engine and calls `generate` with its own shard of the prompts;
`update_weights` is called by all ranks together, because gathering sharded weights is a collective operation. An
engine that reads the trainer's own module (`shares_module`, HF) has nothing to copy and only takes the new version
number; the module must be whole while it generates. One with weights of its own is `Scoring` too, so that the trainer
can ask whether both compute the same. That one may be asked to generate in a thread of its own while the trainer
trains: one call at a time, and nothing else of it is used meanwhile but `close`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from rollouts.errors import RolloutError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Attributes:
        n: independent completions per prompt.
        temperature: softmax temperature; 0 means greedy.
        top_p: nucleus mass kept, 1.0 = off.
        top_k: candidates kept, 0 = off.
        stop_token_ids: a completion ends with (and contains) the first of these.
        seed: makes a call reproducible: the same engine, weights, prompts and seed give the same completions.
        return_support: completions carry the ids that could be drawn at each token (see `Completion.support`); they
            are many when little is truncated, the whole vocabulary with top_p 1 and top_k 0.
        first: the place of the call's first prompt in the whole list, of which other ranks ask for other parts: with a
            seed, what is drawn depends on a prompt's place there and not on how the list was cut.

    Raises:
        RolloutError: a value out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    return_support: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        bounds = (
            ("n", self.n >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)"),
            ("top_k", self.top_k >= 0, "at least 0 (0 is off)"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("first", self.first >= 0, "at least 0"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
        )
        for name, sound, wanted in bounds:
            if not sound:
                raise RolloutError(f"sampling parameter {name} must be {wanted}, got {getattr(self, name)!r}")

    def noted(self) -> dict[str, float]:
        """How each reply is drawn, as a file of them notes it."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_tokens": self.min_new_tokens,
            "max_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply.

    Attributes:
        token_ids: generated ids, the stop token included when one was drawn.
        logprobs: log-probability in nats of each id under the distribution it was drawn from (after temperature and
            truncation; 0 for greedy ones), None when the engine has none.
        finish_reason: "stop" when a stop token was drawn, "length" when `max_new_tokens` cut it.
        weight_version: the version of the weights that made it.
        kept_mass: for each id, the share (above 0, at most 1) of the full distribution's mass that top-k, top-p and
            held-back stop tokens (`min_new_tokens`) left to be drawn from. The full distribution is the softmax of the
            temperature-divided logits over the whole vocabulary; `logprobs + log(kept_mass)` is the log-probability
            under it. 1 where nothing was left out. None for greedy ones (temperature 0 has no such distribution) and
            when the engine has none.
        support: for each id, the distinct ids that could be drawn in its place, itself among them, in any order. None
            unless `return_support` asked for it, and for greedy ones.
        full_logprobs: log-probability in nats of each id under the full distribution; for engines that know it without
            knowing `kept_mass`. None where `logprobs + log(kept_mass)` says it, or nothing does.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: Literal["stop", "length"]
    weight_version: int
    kept_mass: tuple[float, ...] | None = None
    support: tuple[tuple[int, ...], ...] | None = None
    full_logprobs: tuple[float, ...] | None = None


@runtime_checkable
class Engine(Protocol):
    """The small protocol behind which rollouts happen.

    Attributes:
        shares_module: it samples with the trainer's own module, and `update_weights` reads no tensors.
    """

    shares_module: bool

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major: those of prompt i are at `[i * n, (i + 1) * n)`."""
        ...

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new policy weights; completions from now on carry `version`."""
        ...

    def sleep(self) -> None:
        """Free what can be freed while the trainer updates."""
        ...

    def wake(self) -> None:
        """Be ready to generate again."""
        ...

    def close(self) -> None:
        """Release everything; the engine is not used again."""
        ...


@runtime_checkable
class Scoring(Protocol):
    """What engines with weights of their own can do besides."""

    def token_logprobs(self, sequences: list[list[int]]) -> list[tuple[float, ...]]:
        """Log-probability in nats of every id but the first of each sequence, given those before it; temperature 1,
        nothing truncated.
        """
        ...


@runtime_checkable
class Streaming(Protocol):
    """What engines in this process can do besides."""

    def stream(self, prompt: list[int], params: SamplingParams, heard: Callable[[int], None]) -> Completion:
        """The one completion that `generate([prompt], params)` gives; `heard` is told each of its ids when it is drawn.

        What `heard` raises, and an interrupt, ends the reply; the engine can be used again.
        """
        ...
