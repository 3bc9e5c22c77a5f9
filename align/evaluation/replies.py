"""Sample replies to prompts and let rewards judge them.

A *decoding* is a name and how to sample; `DECODINGS` are the two that every comparison here uses: greedy, and the
model's own distribution (temperature 1, top-p 1), whatever training sampled with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.data.encode import encode_prompts
from data_formats.chat_format import chat_format
from data_formats.records import Prompt
from reward.failures import MAX_FAILED_SHARE, OnRewardError, judge_all
from reward.protocol import Reward, Sample, prompt_columns, same_tokens, text_alone
from rollouts.protocol import Engine, SamplingParams


@dataclass(frozen=True, slots=True)
class JudgedReply:
    """One reply and what each reward, by name, said of it (NaN: it failed on it); the parts of a composed reward are
    `REWARD/PART`. `ids`: its tokens, the end token included."""

    text: str
    finished: bool
    tokens: int
    scores: dict[str, float]
    ids: tuple[int, ...] = ()

    def row(self) -> dict[str, Any]:
        """As a JSON object: the scores beside the reply, null for none."""
        scores = {name: None if math.isnan(score) else score for name, score in self.scores.items()}
        return {"reply": self.text, "finished": self.finished, "tokens": self.tokens, **scores}

    def sample(self, prompt: Prompt) -> Sample:
        """As the text that a judge compares, with the columns of its prompt."""
        return Sample(prompt.messages, self.text, finished=self.finished, columns=prompt_columns(prompt))


def decodings(tokenizer: Any, *, num_samples: int, max_new_tokens: int, seed: int) -> dict[str, SamplingParams]:
    """`greedy` (one reply a prompt) and, unless `num_samples` is 0, `sampled` (temperature 1, top-p 1)."""
    stops = chat_format(tokenizer).stop_ids
    found = {"greedy": SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens, stop_token_ids=stops)}
    if num_samples:
        found["sampled"] = SamplingParams(n=num_samples, max_new_tokens=max_new_tokens, stop_token_ids=stops, seed=seed)
    return found


def judged_replies(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    rewards: Sequence[Reward],
    on_error: OnRewardError = "stop",
    most: int | None = None,
) -> list[list[JudgedReply]]:
    """`params.n` replies to each prompt, judged by every reward; one inner list a prompt, in order.

    Args:
        on_error: what becomes of a reward that fails on some (`reward.failures`).
        most: how many it may fail on; default the share of these replies that `mask` allows.
    """
    ids = encode_prompts(tokenizer, [prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts])
    replies = [completion.token_ids for completion in engine.generate(ids, params)]
    return judged(tokenizer, prompts, ids, replies, rewards, on_error, most)


def judged(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    rewards: Sequence[Reward],
    on_error: OnRewardError = "stop",
    most: int | None = None,
) -> list[list[JudgedReply]]:
    """Ids of replies, as many to each prompt and prompt-major, judged by every reward; else as `judged_replies`."""
    each, end_id = max(len(replies) // max(len(prompts), 1), 1), chat_format(tokenizer).end_id
    texts = tokenizer.batch_decode([list(reply) for reply in replies], skip_special_tokens=True)
    columns = [prompt_columns(prompt) for prompt in prompts]
    samples = [
        Sample(
            prompt=prompts[index // each].messages,
            completion=text,
            prompt_ids=tuple(prompt_ids[index // each]),
            completion_ids=tuple(reply),
            finished=tuple(reply[-1:]) == (end_id,),
            columns=columns[index // each],
        )
        for index, (reply, text) in enumerate(zip(replies, texts, strict=True))
    ]
    scores: dict[str, list[float]] = {}
    for reward in rewards:
        told = samples if same_tokens(reward, tokenizer) else text_alone(samples)
        verdict, _ = judge_all(reward, told, on_error, int(MAX_FAILED_SHARE * len(samples)) if most is None else most)
        scores[reward.name] = verdict.scores
        scores |= {f"{reward.name}/{part}": row for part, row in verdict.parts.items()}
    found = [
        JudgedReply(
            one.completion,
            one.finished,
            len(one.completion_ids),
            {name: row[at] for name, row in scores.items()},
            one.completion_ids,
        )
        for at, one in enumerate(samples)
    ]
    return [found[start : start + each] for start in range(0, len(found), each)]
