"""Records -> token ids and labels.

Rows are plain dicts of integer lists. `labels` are aligned with `input_ids` (the model shifts, as Hugging Face models
do), -100 where there is no loss. Over-long rows follow `on_overlong`: "drop" (counted), "error", or "truncate", i.e.
 - demonstrations: cut on the right, back to the last token with loss;
 - comparisons: the oldest turns of the prompt are left out, exchange by exchange (a system turn and the last user turn
   stay), replies stay whole.
What does not fit even so is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

from data_formats import chatml
from data_formats.errors import DataError
from data_formats.records import Comparison, Demonstration, Document, Message

OnOverlong = Literal["drop", "truncate", "error"]
NO_LOSS = -100
SHORTEST_BLOCK = 8


class Row(TypedDict):
    """A training sequence: ids, and labels of the same length with -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


class PairRow(TypedDict):
    """Two sequences, prompt plus reply, each ending with the id of `<|im_end|>`."""

    chosen_ids: list[int]
    rejected_ids: list[int]


def overlong_error(kind: str, index: int, length: int, max_length: int) -> DataError:
    """What `on_overlong: error` says."""
    return DataError(
        f"{kind} {index} has {length} tokens but max_length is {max_length}; "
        "raise max_length, or set on_overlong to drop or truncate"
    )


def encode_demonstrations(
    tokenizer: Any, demos: Sequence[Demonstration], max_length: int, on_overlong: OnOverlong
) -> tuple[list[Row], dict[str, int]]:
    """Rows of conversations, loss on assistant content and its `<|im_end|>`.

    Returns:
        The rows in order, and how many demonstrations were dropped or truncated, by reason.

    Raises:
        DataError: `on_overlong` is "error" and a row is too long.
    """
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    encoded = chatml.encode_many(tokenizer, [chatml.render(demo.messages) for demo in demos])
    for index, (ids, flags) in enumerate(encoded):
        labels = [token if flag else NO_LOSS for token, flag in zip(ids, flags, strict=True)]
        if len(ids) > max_length:
            if on_overlong == "error":
                raise overlong_error("demonstration", index, len(ids), max_length)
            if on_overlong == "drop":
                counts["longer than max_length"] += 1
                continue
            with_loss = [at for at in range(min(max_length, len(labels))) if labels[at] != NO_LOSS]
            if not with_loss:
                counts["no reply within max_length"] += 1
                continue
            ids, labels = ids[: with_loss[-1] + 1], labels[: with_loss[-1] + 1]
            counts["truncated"] += 1
        elif not any(flags):
            counts["no reply"] += 1
            continue
        rows.append(Row(input_ids=ids, labels=labels))
    return rows, dict(counts)


def encode_demonstration(tokenizer: Any, demo: Demonstration, max_length: int, on_overlong: OnOverlong) -> Row | None:
    """The row of one conversation, None when it is dropped. For many, `encode_demonstrations` is far faster."""
    rows, _ = encode_demonstrations(tokenizer, [demo], max_length, on_overlong)
    return rows[0] if rows else None


def encode_prompts(tokenizer: Any, prompts: Sequence[Iterable[Message]]) -> list[list[int]]:
    """Ids of prompts with the opening of the assistant's turn, ready to be continued."""
    rendered = [chatml.render(messages, add_generation_prompt=True) for messages in prompts]
    return [ids for ids, _ in chatml.encode_many(tokenizer, rendered)]


def encode_prompt(tokenizer: Any, messages: Iterable[Message]) -> list[int]:
    """Ids of one prompt with the opening of the assistant's turn."""
    return encode_prompts(tokenizer, [messages])[0]


def encode_replies(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of replies, each closed by `<|im_end|>`: what follows the ids of `encode_prompt`."""
    end = chatml.control_id(tokenizer, chatml.IM_END)
    return [[*ids, end] for ids in chatml.encode_texts(tokenizer, texts)]


def encode_reply(tokenizer: Any, text: str) -> list[int]:
    """Ids of one reply, closed by `<|im_end|>`."""
    return encode_replies(tokenizer, [text])[0]


def _shortened(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The prompt without its oldest turns up to the next user turn; None when nothing more may go."""
    system = messages[:1] if messages[0].role == "system" else ()
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
    """Pairs of sequences, each prompt plus reply and ending exactly with `<|im_end|>`; one prompt for both sides.

    Returns:
        The rows in order, the index in `comparisons` of each, and how many were dropped or truncated, by reason.

    Raises:
        DataError: `on_overlong` is "error" and a side is too long.
    """
    rows: list[PairRow] = []
    kept: list[int] = []
    counts: Counter[str] = Counter()
    prompts = encode_prompts(tokenizer, [comparison.prompt for comparison in comparisons])
    chosen = encode_replies(tokenizer, [comparison.chosen for comparison in comparisons])
    rejected = encode_replies(tokenizer, [comparison.rejected for comparison in comparisons])
    for index, comparison in enumerate(comparisons):
        prompt_ids, longest = prompts[index], max(len(chosen[index]), len(rejected[index]))
        if len(prompt_ids) + longest > max_length:
            if on_overlong == "error":
                raise overlong_error("comparison", index, len(prompt_ids) + longest, max_length)
            room = max_length - longest
            fitting = fit_prompt(tokenizer, comparison.prompt, room) if on_overlong == "truncate" else None
            if fitting is None:
                counts["longer than max_length"] += 1
                continue
            counts["truncated"] += 1
            prompt_ids = fitting
        kept.append(index)
        rows.append(PairRow(chosen_ids=prompt_ids + chosen[index], rejected_ids=prompt_ids + rejected[index]))
    return rows, kept, dict(counts)


def fit_prompt(tokenizer: Any, messages: tuple[Message, ...], room: int) -> list[int] | None:
    """Ids of the prompt without as many of its oldest turns as `room` tokens demand; None when it never fits."""
    shorter: tuple[Message, ...] | None = messages
    while (shorter := _shortened(shorter)) is not None:
        ids = encode_prompt(tokenizer, shorter)
        if len(ids) <= room:
            return ids
    return None


def encode_documents(tokenizer: Any, documents: Sequence[Document], block_length: int) -> list[list[int]]:
    """Documents joined by `<|endoftext|>` (one after each) and cut into blocks of `block_length` tokens.

    The last block may be shorter; it is kept when it has at least 8 tokens. A document may continue in the next block.
    """
    end = chatml.control_id(tokenizer, chatml.END_OF_TEXT)
    stream: list[int] = []
    for ids in chatml.encode_texts(tokenizer, [document.text for document in documents]):
        stream += ids
        stream.append(end)
    blocks = [stream[at : at + block_length] for at in range(0, len(stream), block_length)]
    if blocks and len(blocks[-1]) < min(SHORTEST_BLOCK, block_length):
        blocks.pop()
    return blocks
