"""A file of prompts answered: JSON lines out, which `data_formats` reads, written a batch at a time.

A line is a reply to a prompt, with what the reward says of it; each prompt has one of each model, or as many as are
sampled. Made are whole batches (`align.runtime.pieces`), whose seed is made of theirs and the batch's number: a run
that was killed goes on behind the last whole batch, and its file is that of one that never was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from align.chat.conversation import ChatError
from align.chat.speaker import Speaker
from align.evaluation.replies import judged_replies
from align.runs.progress import StageProgress
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.json_files import objects, read_text
from align.runtime.memory import memory_errors
from align.runtime.pieces import pieces_in
from data_formats.records import Message, Prompt
from data_formats.writing import as_row
from reward.protocol import Reward
from rollouts.protocol import SamplingParams

AT_ONCE = 256  # prompts in a batch


def with_system(prompts: Sequence[Prompt], system: str) -> list[Prompt]:
    """The prompts, those without a system turn behind this one."""
    turn = (Message("system", system),) if system else ()
    return [
        prompt if prompt.messages[0].role == "system" else replace(prompt, messages=(*turn, *prompt.messages))
        for prompt in prompts
    ]


def answer_prompts(
    speakers: Sequence[Speaker],
    reward: Reward | None,
    params: SamplingParams,
    prompts: Sequence[Prompt],
    out: Path,
    told: Callable[[int], None] = lambda done: None,
) -> int:
    """Write every model's replies to every prompt, `params.n` of them, to `out`; returns how many prompts had been
    answered before.

    Args:
        told: is called with the number of prompts that are done.

    Raises:
        ChatError: `out` holds something else than this, or a prompt is too long for a model.
        DataError: turns that a model's template has no place for.
        RewardError: the reward failed.
        StorageError: `out` cannot be written, or pieces of another command lie beside it.
        FolderInUseError: another process writes the same file.
    """
    sampled = [_with_room(speaker, params, prompts) for speaker in speakers]
    keys = [_key(one, reward, prompt, params) for prompt in prompts for one in speakers for _ in range(params.n)]
    if _is_done(out, keys):
        told(len(prompts))
        return len(prompts)
    made_with = {
        "models": [speaker.name for speaker in speakers],
        "the models' files": [files.stamp(speaker.path) for speaker in speakers],
        "prompts, sampling or judge": hashlib.sha256(json.dumps(keys).encode()).hexdigest(),
        "prompts at once": AT_ONCE,
    }
    with pieces_in(out.with_name(f"{out.name}.pieces"), made_with, command="chat") as pieces:
        done = min(pieces.there * AT_ONCE, len(prompts))
        told(done)
        for number, start in enumerate(range(0, len(prompts), AT_ONCE)):
            batch = prompts[start : start + AT_ONCE]
            pieces.make(number, partial(_rows, speakers, reward, sampled, batch, start, params))
            told(max(done, start + len(batch)))
        files.write_json_lines(out, pieces.rows(-(-len(prompts) // AT_ONCE)))
    return done


def replies_of_model(
    path: str, name: str, params: SamplingParams, prompts: Sequence[Prompt], out: Path, *, engine: str = "auto"
) -> list[list[str]]:
    """The texts of a model's replies to every prompt, `params.n` each, sampled into `out` where they are not there.

    Raises:
        AlignError: as of `answer_prompts` and `Speaker`.
    """
    rows, _ = objects(read_text(out))
    if len(rows) < len(prompts) * params.n:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            memory_errors(name, f"--max-tokens ({params.max_new_tokens})", f"--num-samples ({params.n})"),
            closing(Speaker(path, name, engine=engine, temperature=params.temperature)) as speaker,
            StageProgress(f"replies of {name}", len(prompts)) as progress,
        ):
            answer_prompts([speaker], None, params, prompts, out, progress.update)
        rows, _ = objects(read_text(out))
    texts = [row["completion"] for row in rows]
    return [texts[at : at + params.n] for at in range(0, len(texts), params.n)]


def _with_room(speaker: Speaker, params: SamplingParams, prompts: Sequence[Prompt]) -> SamplingParams:
    """How this model is sampled.

    Raises:
        ChatError: its context has no room for a prompt with the longest reply.
    """
    encoded = speaker.encode([prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts])
    lengths = list(map(len, encoded))
    longest, most = max(range(len(lengths)), key=lengths.__getitem__), params.max_new_tokens
    if speaker.room is not None and lengths[longest] + most > speaker.room:
        raise ChatError(
            f"prompt {longest + 1} has {lengths[longest]} tokens, and with a reply of {most} (--max-tokens) more than "
            f"the {speaker.room} of {speaker.name}: lower --max-tokens, or leave the prompt out"
        )
    return speaker.params(params, lengths[longest])


def _rows(
    speakers: Sequence[Speaker],
    reward: Reward | None,
    sampled: Sequence[SamplingParams],
    batch: Sequence[Prompt],
    start: int,
    params: SamplingParams,
) -> Iterator[dict[str, Any]]:
    seed = None if params.seed is None else derive(params.seed, "prompts", start)
    rewards = [] if reward is None else [reward]
    replies = [
        judged_replies(speaker.engine, speaker.tokenizer, batch, replace(how, seed=seed), rewards)
        for speaker, how in zip(speakers, sampled, strict=True)
    ]
    for at, prompt in enumerate(batch):
        for speaker, of_speaker in zip(speakers, replies, strict=True):
            key = _key(speaker, reward, prompt, params)
            for reply in of_speaker[at]:
                row = key | {"completion": reply.text, "finished": reply.finished, "tokens": reply.tokens}
                yield row | ({} if reward is None else {"reward": reply.scores[reward.name]})


def _key(speaker: Speaker, reward: Reward | None, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
    """What a line is of: it says whether it is one of this run's."""
    how = {"temperature": params.temperature, "top_p": params.top_p, "max_tokens": params.max_new_tokens}
    key = {"prompt": as_row(prompt)["prompt"], "model": speaker.name, "sampling": how | {"seed": params.seed}}
    return key | {"judge": None if reward is None else reward.name}


def _is_done(out: Path, keys: Sequence[dict[str, Any]]) -> bool:
    """Whether `out` is there, with these lines.

    Raises:
        ChatError: it holds something else.
    """
    text = read_text(out)
    rows, others = objects(text)
    if others or (text and not rows):
        raise ChatError(f"{out} exists and holds no replies; name another file")
    for number, row in enumerate(rows):
        if number >= len(keys) or any(name not in row or row[name] != value for name, value in keys[number].items()):
            raise ChatError(
                f"{out}: line {number + 1} is no reply of this model to this prompt, sampled and judged in this way; "
                "name another file, or remove it"
            )
    if rows and len(rows) < len(keys):
        raise ChatError(f"{out} ends after {len(rows)} of {len(keys)} replies; name another file, or remove it")
    return bool(rows)
