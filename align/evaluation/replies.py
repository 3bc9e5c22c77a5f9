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
    `REWARD/PART`."""

    text: str
    finished: bool
    tokens: int
    scores: dict[str, float]

    def row(self) -> dict[str, Any]:
        """As a JSON object: the scores beside the reply, null for none."""
        scores = {name: None if math.isnan(score) else score for name, score in self.scores.items()}
        return {"reply": self.text, "finished": self.finished, "tokens": self.tokens, **scores}


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
) -> list[list[JudgedReply]]:
    """`params.n` replies to each prompt, judged by every reward; one inner list a prompt, in order. `on_error`: what
    becomes of a reward that fails on some (`reward.failures`)."""
    ids = encode_prompts(tokenizer, [prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts])
    completions, end_id = engine.generate(ids, params), chat_format(tokenizer).end_id
    texts = tokenizer.batch_decode([list(one.token_ids) for one in completions], skip_special_tokens=True)
    columns = [prompt_columns(prompt) for prompt in prompts]
    samples = [
        Sample(
            prompt=prompts[index // params.n].messages,
            completion=text,
            prompt_ids=tuple(ids[index // params.n]),
            completion_ids=one.token_ids,
            finished=one.token_ids[-1:] == (end_id,),
            columns=columns[index // params.n],
        )
        for index, (one, text) in enumerate(zip(completions, texts, strict=True))
    ]
    scores: dict[str, list[float]] = {}
    for reward in rewards:
        told = samples if same_tokens(reward, tokenizer) else text_alone(samples)
        verdict, _ = judge_all(reward, told, on_error, int(MAX_FAILED_SHARE * len(samples)))
        scores[reward.name] = verdict.scores
        scores |= {f"{reward.name}/{part}": row for part, row in verdict.parts.items()}
    judged = [
        JudgedReply(
            one.completion, one.finished, len(one.completion_ids), {name: row[at] for name, row in scores.items()}
        )
        for at, one in enumerate(samples)
    ]
    return [judged[start : start + params.n] for start in range(0, len(judged), params.n)]
