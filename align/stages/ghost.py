"""Ghost Attention (Llama 2, appendix A.3.5): conversations that go on obeying an instruction of their first turn.

For a seeded share of the conversations of two or more user turns, an instruction is put on every user turn and the
stage's starting model samples the last reply under it. Trained is the conversation with the instruction on the first
user turn alone, that reply as the last turn, and loss on the last turn only, so that earlier replies, which were
written without the instruction, teach nothing.

Departures from the paper, which samples every assistant turn of synthetic dialogues with the latest RLHF model: one
reply a conversation is sampled, by the model that this stage finetunes. As there, an instruction may have a short form
that half of the conversations are trained with. Conversations with tools are left alone.

What was sampled is in `ghost.jsonl`, from which a resumed run trains; its rows read as OpenAI messages.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.data.encode import encode_prompts
from align.evaluation.replies import JudgedReply, judged_replies
from align.recipe.supervised_sections import GhostSection, SFTSection
from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.runtime.ranks import agree, spread
from align.stages import common
from data_formats.chat_format import chat_format
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.ghost import instruct_every_turn, instruct_first_turn
from data_formats.records import Demonstration, Message, Prompt
from rollouts.protocol import SamplingParams
from rollouts.select import make_engine

FILE = "ghost.jsonl"


@dataclass(frozen=True, slots=True)
class Ghost:
    """A conversation that was chosen: its number among the training ones, the instruction it is sampled under and the
    form of it that is trained."""

    index: int
    sampled: str
    trained: str


def multi_turn(demo: Demonstration) -> bool:
    """Whether the last reply answers a second or later user turn, and no tool takes part."""
    exchange = demo.last_exchange()
    if exchange is None or demo.tools:
        return False
    turns = exchange[0]
    plain = all(turn.role != "tool" and not turn.tool_calls for turn in demo.messages)
    return plain and turns[-1].role == "user" and sum(turn.role == "user" for turn in turns) > 1


def choose(demos: Sequence[Demonstration], section: GhostSection, seed: int) -> list[Ghost]:
    """The share of the multi-turn conversations that takes part, in order; the same on every rank.

    Raises:
        EmptyDatasetError: there is no multi-turn conversation.
    """
    able = [index for index, demo in enumerate(demos) if multi_turn(demo)]
    if not able:
        raise EmptyDatasetError(
            "ghost_attention: none of the training conversations has two user turns; "
            "add such conversations to sft.data or remove sft.ghost_attention"
        )
    rng = random.Random(seed)
    chosen = sorted(rng.sample(able, max(1, round(section.share * len(able)))))
    ghosts = []
    for index in chosen:
        drawn, shortened = rng.choice(section.instructions), rng.random() < 0.5
        ghosts.append(Ghost(index, drawn.text, drawn.short if drawn.short and shortened else drawn.text))
    return ghosts


def ghost_demonstrations(
    demos: Sequence[Demonstration],
    section: SFTSection,
    out_dir: Path,
    *,
    model: Any,
    tokenizer: Any,
    device: Any,
    seed: int,
) -> tuple[list[Demonstration], list[Demonstration], dict[str, int]]:
    """Sample, or take from `ghost.jsonl`; every rank samples a share, the first writes, all read.

    Args:
        demos: the training conversations.
        model: the stage's starting model; it is moved to `device`.
        seed: of the choice and of the sampling.

    Returns:
        The conversations that stay as they are, those with an instruction, and counts: `chosen`, `trained`, and how
        many stay as they are although they were chosen, by reason.

    Raises:
        EmptyDatasetError: there is no multi-turn conversation.
        DataError: `ghost.jsonl` is damaged or of other conversations.
    """
    ghosts, file = choose(demos, section.ghost_attention, derive(seed, "choice")), out_dir / FILE

    if not file.is_file():
        model.to(device)
        rows = _sampled(demos, ghosts, section, model, tokenizer, derive(seed, "replies"))
        agree(lambda: common.write_lines(file, rows), TrainingError)
    return _taken(demos, ghosts, file)


def _sampled(
    demos: Sequence[Demonstration], ghosts: Sequence[Ghost], section: SFTSection, model: Any, tokenizer: Any, seed: int
) -> list[dict[str, Any]]:
    """The rows of `ghost.jsonl`, one a chosen conversation; `reply` is null where the prompt was too long."""
    options = section.ghost_attention
    params = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=section.max_completion_length,
        stop_token_ids=chat_format(tokenizer).stop_ids,
        seed=seed,
    )
    prompts = [Prompt(instruct_every_turn(demos[one.index].last_exchange()[0], one.sampled)) for one in ghosts]
    lengths = [len(ids) for ids in encode_prompts(tokenizer, [prompt.messages for prompt in prompts])]
    fitting = [at for at, length in enumerate(lengths) if length <= section.max_length]
    engine = make_engine("hf", model, pad_token_id=tokenizer.pad_token_id, batch_size=section.eval_batch_size)

    def sample(part: Sequence[Prompt], first: int) -> list[list[JudgedReply]]:
        return judged_replies(engine, tokenizer, part, replace(params, first=first), ())

    judged = spread([prompts[at] for at in fitting], sample, TrainingError)
    replies = {at: reply for at, (reply,) in zip(fitting, judged, strict=True)}
    return [_row(demos[one.index], one, replies.get(at)) for at, one in enumerate(ghosts)]


def _row(demo: Demonstration, ghost: Ghost, reply: JudgedReply | None) -> dict[str, Any]:
    row: dict[str, Any] = {"index": ghost.index, "instruction": ghost.sampled, "trained_instruction": ghost.trained}
    if reply is None:
        return row | {"reply": None}
    messages = _with_reply(demo, ghost, reply.text).messages
    shown = [{"role": message.role, "content": message.content} for message in messages]
    return row | reply.row() | {"messages": shown, "category": demo.category}


def _with_reply(demo: Demonstration, ghost: Ghost, reply: str) -> Demonstration:
    turns = instruct_first_turn(demo.last_exchange()[0], ghost.trained)
    return replace(demo, messages=(*turns, Message("assistant", reply)))


def _taken(
    demos: Sequence[Demonstration], ghosts: Sequence[Ghost], file: Path
) -> tuple[list[Demonstration], list[Demonstration], dict[str, int]]:
    rows = _read(file, ghosts)
    counts: Counter[str] = Counter(chosen=len(ghosts), trained=0)
    instructed: dict[int, Demonstration] = {}
    for ghost, row in zip(ghosts, rows, strict=True):
        if reason := _unfit(row):
            counts[reason] += 1
        else:
            counts["trained"] += 1
            instructed[ghost.index] = _with_reply(demos[ghost.index], ghost, row["reply"])
    plain = [demo for index, demo in enumerate(demos) if index not in instructed]
    return plain, list(instructed.values()), dict(counts)


def _read(file: Path, ghosts: Sequence[Ghost]) -> list[dict[str, Any]]:
    rows = common.read_rows(file, "remove it to sample again")
    try:
        found = [Ghost(row["index"], row["instruction"], row["trained_instruction"]) for row in rows]
        whole = all(row["reply"] is None or isinstance(row["reply"] + "", str) for row in rows)
        whole = whole and all(row["reply"] is None or isinstance(row["finished"], bool) for row in rows)
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}): remove it to sample again") from None
    if not whole or found != list(ghosts):
        raise DataError(f"{file} was sampled for other conversations or instructions: remove it to sample again")
    return rows


def _unfit(row: dict[str, Any]) -> str | None:
    if row["reply"] is None:
        return "prompt longer than max_length"
    if not row["finished"]:
        return "reply cut at max_completion_length"
    return None if row["reply"].strip() else "empty reply"
