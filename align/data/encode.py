"""Records -> token ids and labels.

Rows are plain dicts of integer lists. `labels` are aligned with `input_ids` (the model shifts, as Hugging Face models
do), -100 where there is no loss. Over-long rows follow `on_overlong`: "drop" (counted), "error", or "truncate": the
oldest turns are left out on the left, exchange by exchange, where a system turn and the last exchange stay whole, of
demonstrations and of the prompts of comparisons alike; turns after a demonstration's last reply with loss go first of
all. What does not fit even so is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from align.data.collector import collector_paused
from data_formats import chatml
from data_formats.chat_format import ChatFormat, chat_format
from data_formats.errors import DataError
from data_formats.react import without_observations
from data_formats.records import Comparison, Demonstration, Document, Message

OnOverlong = Literal["drop", "truncate", "error"]
NO_LOSS = -100
SHORTEST_BLOCK = 8


class Row(TypedDict):
    """A training sequence: three lists of the same length, and the part of a mixture it belongs to, where it does.

    `labels` are -100 where there is no loss; `turns` number the exchange (a user turn and what answers it, from 1) that
    the loss of each token belongs to, 0 where there is none.
    """

    input_ids: list[int]
    labels: list[int]
    turns: list[int]
    part: NotRequired[str]


class PairRow(TypedDict):
    """Two sequences, prompt plus reply, each ending with the id of its end token; and its part, as of `Row`."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    part: NotRequired[str]


def part_of(record: Any) -> dict[str, str]:
    """What a row knows of the record's part of a mixture; nothing where it has none."""
    return {"part": record.part} if record.part else {}


def _rendered(
    speaker: ChatFormat, messages: Iterable[Message], tools: Sequence[str], source: str = "", **options: Any
) -> list[chatml.Piece]:
    """The pieces of a conversation; what the model's chat template refuses is a fault of the row."""
    try:
        return speaker.render(messages, tools=tools, **options)
    except (chatml.TemplateError, DataError) as error:
        raise DataError(str(error), path=source or None) from error


def overlong_error(kind: str, index: int, length: int, max_length: int) -> DataError:
    """What `on_overlong: error` says."""
    return DataError(
        f"{kind} {index} has {length} tokens but max_length is {max_length}; "
        "raise max_length, or set on_overlong to drop or truncate"
    )


@dataclass(frozen=True, slots=True)
class _Conversations:
    """How demonstrations are rendered."""

    speaker: ChatFormat
    mask: str
    thinking: str
    system: Message | None
    mask_observations: bool

    def turns(self, demo: Demonstration) -> tuple[Message, ...]:
        return chatml.with_system(chatml.with_reasoning(demo.messages), self.system)

    def encoded(
        self, turns: Sequence[tuple[Message, ...]], demos: Sequence[Demonstration]
    ) -> Iterator[chatml.EncodedRow]:
        rendered = (
            _rendered(self.speaker, one, demo.tools, demo.source, mask=self.mask, thinking=self.thinking)
            for one, demo in zip(turns, demos, strict=True)
        )
        if self.mask_observations:
            rendered = (list(without_observations(pieces)) for pieces in rendered)
        return self.speaker.encode_rows(rendered, NO_LOSS)

    def shortened(self, demo: Demonstration, max_length: int) -> chatml.EncodedRow | None:
        """Without as many of the oldest turns as it takes; None when it never fits."""
        turns: tuple[Message, ...] | None = _answered(self.turns(demo))
        while turns is not None:
            (row,) = self.encoded([turns], [demo])
            if len(row.ids) <= max_length:
                return row
            turns = _shortened(turns)
        return None


def encode_kept_demonstrations(
    tokenizer: Any,
    demos: Sequence[Demonstration],
    max_length: int,
    on_overlong: OnOverlong,
    *,
    mask: str = "assistant_only",
    default_system: str = "none",
    thinking: str = "keep",
    mask_observations: bool = False,
) -> tuple[list[Row], list[int], dict[str, int]]:
    """Rows of conversations.

    Args:
        mask: which tokens have loss (`data_formats.chatml.rendering`).
        default_system: "template" gives a conversation without a system turn the one that the tokenizer's chat template
            would; "none" adds none.
        thinking: "keep", "drop" or "template" (`data_formats.chatml.render`); a `<think>` block at the beginning of a
            reply counts as thinking.
        mask_observations: no loss on what tools answered inside a reply (`data_formats.react`); with a mask under which
            replies alone have loss.

    Returns:
        The rows in order, the index in `demos` of each, and how many were dropped or truncated, by reason; a row is
        dropped too where the turns that the mask would train are those marked as without loss.

    Raises:
        DataError: `on_overlong` is "error" and a row is too long; or no token of a demonstration has loss, and none of
            its turns is marked; or the model's chat template cannot write its turns, or rewrites some of them.
    """
    speaker = chat_format(tokenizer)
    system = speaker.default_system_turn() if default_system == "template" else None
    talks = _Conversations(speaker, mask, thinking, system, mask_observations)
    rows: list[Row] = []
    kept: list[int] = []
    counts: Counter[str] = Counter()
    with collector_paused():
        for index, row in enumerate(talks.encoded([talks.turns(demo) for demo in demos], demos)):
            truncated = False
            if len(row.ids) > max_length:
                if on_overlong == "error":
                    raise overlong_error("demonstration", index, len(row.ids), max_length)
                fitting = talks.shortened(demos[index], max_length) if on_overlong == "truncate" else None
                if fitting is None:
                    counts["longer than max_length"] += 1
                    continue
                row, truncated = fitting, True
            if not any(row.turns) and not all(turn.loss for turn in demos[index].messages):
                counts["no turn with loss"] += 1
                continue
            if not any(row.turns):
                raise DataError(
                    f"demonstration {index} has no token with loss (mask {mask}): it has no reply; leave it out",
                    path=demos[index].source or None,
                )
            counts["truncated"] += truncated
            kept.append(index)
            rows.append(Row(input_ids=row.ids, labels=row.labels, turns=row.turns, **part_of(demos[index])))
    return rows, kept, dict(+counts)


def encode_demonstrations(
    tokenizer: Any, demos: Sequence[Demonstration], max_length: int, on_overlong: OnOverlong, **options: Any
) -> tuple[list[Row], dict[str, int]]:
    """`encode_kept_demonstrations` without the numbers of those kept."""
    rows, _, counts = encode_kept_demonstrations(tokenizer, demos, max_length, on_overlong, **options)
    return rows, counts


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Iterable[Message]], tools: Sequence[Sequence[str]] | None = None
) -> list[list[int]]:
    """Ids of prompts with the opening of the assistant's turn, ready to be continued; `tools` are those on offer."""
    offers, speaker = tools if tools is not None else [()] * len(prompts), chat_format(tokenizer)
    rendered = (
        _rendered(speaker, messages, offer, add_generation_prompt=True)
        for messages, offer in zip(prompts, offers, strict=True)
    )
    with collector_paused():
        return speaker.encode(rendered)


def encode_prompt(tokenizer: Any, messages: Iterable[Message], tools: Sequence[str] = ()) -> list[int]:
    """Ids of one prompt with the opening of the assistant's turn."""
    return encode_prompts(tokenizer, [messages], [tools])[0]


def encode_replies(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of replies, each closed by its end token: what follows the ids of `encode_prompt`."""
    with collector_paused():
        return chat_format(tokenizer).encode_replies(texts)


def encode_between(
    tokenizer: Any,
    prompt: tuple[Message, ...],
    turns: tuple[Message, ...],
    tools: Sequence[str],
    prompt_ids: Sequence[int],
) -> list[int]:
    """Ids of the turns between a prompt and a reply: what follows `prompt_ids` up to where the reply begins.

    Raises:
        DataError: the model's chat template writes the prompt in another way once it goes on.
    """
    if not turns:
        return []
    ids = encode_prompts(tokenizer, [(*prompt, *turns)], [tools])[0]
    if ids[: len(prompt_ids)] != list(prompt_ids):
        raise DataError(
            "the model's chat template rewrites a prompt once more turns follow it, so replies of several turns (calls "
            "of tools and their answers) cannot be compared; leave such rows out"
        )
    return ids[len(prompt_ids) :]


def encode_reply(tokenizer: Any, text: str) -> list[int]:
    """Ids of one reply, closed by its end token."""
    return encode_replies(tokenizer, [text])[0]


def _answered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns up to the last reply with loss, so that shortening leaves one; all of them where there is none."""
    replies = (at for at, message in enumerate(messages, 1) if message.role == "assistant" and message.loss)
    return messages[: max(replies, default=len(messages))]


def _shortened(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The turns without the oldest up to the next user turn; None when nothing more may go."""
    system = messages[:1] if messages and messages[0].role == "system" else ()
    turns = messages[len(system) :]
    starts = [at for at, message in enumerate(turns) if at > 0 and message.role == "user"]
    return system + turns[starts[0] :] if starts else None


def encode_comparisons(
    tokenizer: Any, comparisons: Sequence[Comparison], max_length: int, on_overlong: OnOverlong
) -> tuple[list[PairRow], dict[str, int]]:
    """`encode_kept_comparisons` without the numbers of those kept."""
    rows, _, counts = encode_kept_comparisons(tokenizer, comparisons, max_length, on_overlong)
    return rows, counts


def encode_kept_comparisons(
    tokenizer: Any, comparisons: Sequence[Comparison], max_length: int, on_overlong: OnOverlong
) -> tuple[list[PairRow], list[int], dict[str, int]]:
    """Pairs of sequences, each prompt plus reply and ending exactly with its end token; one prompt for both sides.

    Turns between the prompt and a reply (`chosen_turns`) count as its reply.

    Returns:
        The rows in order, the index in `comparisons` of each, and how many were dropped or truncated, by reason.

    Raises:
        DataError: `on_overlong` is "error" and a side is too long.
    """
    rows: list[PairRow] = []
    kept: list[int] = []
    counts: Counter[str] = Counter()
    prompts = encode_prompts(tokenizer, [one.prompt for one in comparisons], [one.tools for one in comparisons])
    chosen = encode_replies(tokenizer, [chatml.reply_text(one.chosen_reply) for one in comparisons])
    rejected = encode_replies(tokenizer, [chatml.reply_text(one.rejected_reply) for one in comparisons])
    for index, one in enumerate(comparisons):
        for side, turns in ((chosen, one.chosen_turns), (rejected, one.rejected_turns)):
            side[index] = encode_between(tokenizer, one.prompt, turns, one.tools, prompts[index]) + side[index]
    for index, comparison in enumerate(comparisons):
        prompt_ids, longest = prompts[index], max(len(chosen[index]), len(rejected[index]))
        if len(prompt_ids) + longest > max_length:
            if on_overlong == "error":
                raise overlong_error("comparison", index, len(prompt_ids) + longest, max_length)
            room = max_length - longest
            fitting = (
                fit_prompt(tokenizer, comparison.prompt, room, comparison.tools) if on_overlong == "truncate" else None
            )
            if fitting is None:
                counts["longer than max_length"] += 1
                continue
            counts["truncated"] += 1
            prompt_ids = fitting
        kept.append(index)
        sides = PairRow(chosen_ids=prompt_ids + chosen[index], rejected_ids=prompt_ids + rejected[index])
        rows.append(sides | part_of(comparison))
    return rows, kept, dict(counts)


def fit_turns(
    tokenizer: Any, messages: tuple[Message, ...], room: int, tools: Sequence[str] = ()
) -> tuple[tuple[Message, ...], list[int]] | None:
    """The turns of the prompt without as many of the oldest as `room` tokens demand, and their ids; None when it never
    fits."""
    shorter: tuple[Message, ...] | None = messages
    while (shorter := _shortened(shorter)) is not None:
        ids = encode_prompt(tokenizer, shorter, tools)
        if len(ids) <= room:
            return shorter, ids
    return None


def fit_prompt(tokenizer: Any, messages: tuple[Message, ...], room: int, tools: Sequence[str] = ()) -> list[int] | None:
    """The ids of `fit_turns`."""
    fitted = fit_turns(tokenizer, messages, room, tools)
    return None if fitted is None else fitted[1]


def encode_documents(tokenizer: Any, documents: Sequence[Document], block_length: int) -> list[list[int]]:
    """Documents joined by their end token (`<|endoftext|>`, one after each) and cut into blocks of `block_length`.

    The last block may be shorter; it is kept when it has at least 8 tokens. A document may continue in the next block.
    """
    end = chat_format(tokenizer).document_end_id
    stream: list[int] = []
    for ids in chatml.encode_texts(tokenizer, [document.text for document in documents]):
        stream += ids
        stream.append(end)
    blocks = [stream[at : at + block_length] for at in range(0, len(stream), block_length)]
    if blocks and len(blocks[-1]) < min(SHORTEST_BLOCK, block_length):
        blocks.pop()
    return blocks
