"""Comparisons -> rows of direct preference optimization: a prompt, two replies, and which tokens of them count.

What the model wrote counts, its end tokens included: of replies of several turns (`chosen_turns`) not what the user
said between them, nor what opens a turn. Masks are made from where turns lie, never from token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from align.data.encode import NO_LOSS, OnOverlong, encode_between, encode_prompt, part_of
from align.data.pairs import encode_groups, plain_groups
from data_formats.chat_format import chat_format
from data_formats.errors import DataError
from data_formats.records import Comparison, Message


class PreferenceRow(TypedDict):
    """Ids of a prompt and of the two replies to it, each closed by its end token; masks (1 = counts) as long as the
    replies."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_mask: list[int]
    rejected_mask: list[int]
    part: NotRequired[str]


def newest_round(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], dict[str, int]]:
    """Those of the newest round that any of them is of, and how many others there were.

    Raises:
        DataError: none says its round.
    """
    rounds = [pair.round for pair in comparisons if pair.round is not None]
    if not rounds:
        raise DataError("no comparison says its 'round'; write it into the rows, or use those of all rounds")
    newest = max(rounds)
    kept = [pair for pair in comparisons if pair.round == newest]
    dropped = len(comparisons) - len(kept)
    return kept, {f"not of round {newest}, the newest": dropped} if dropped else {}


def encode_preferences(
    tokenizer: Any,
    comparisons: Sequence[Comparison],
    max_length: int,
    on_overlong: OnOverlong,
    *,
    mask_formatting: bool = False,
) -> tuple[list[PreferenceRow], list[int], dict[str, int]]:
    """Rows in order, the index in `comparisons` of each, and how many were dropped or truncated, by reason.

    A pair is too long when its prompt and its longer reply are, see `align.data.encode`.

    Args:
        mask_formatting: the end tokens do not count either; a pair of which a side has nothing else is dropped.

    Raises:
        DataError: `on_overlong` is "error" and a pair is too long; or the model's chat template rewrites a prompt or
            earlier turns once a reply follows.
    """
    groups, of_groups, found = encode_groups(tokenizer, plain_groups(comparisons), max_length, on_overlong)
    counts: Counter[str] = Counter(found)
    rows: list[PreferenceRow] = []
    kept: list[int] = []
    for group, index in zip(groups, of_groups, strict=True):
        one = comparisons[index]
        sides = ((one.chosen_turns, one.chosen_reply), (one.rejected_turns, one.rejected_reply))
        masks = []
        for (turns, reply), ids in zip(sides, group["reply_ids"], strict=True):
            between = _between_mask(tokenizer, one, turns, reply) if turns else []
            mask = between + [1 for _ in ids[len(between) :]]
            masks.append(_without_ends(mask) if mask_formatting else mask)
        if not all(map(any, masks)):
            counts["reply without a token that counts"] += 1
            continue
        chosen, rejected = group["reply_ids"]
        kept.append(index)
        rows.append(
            PreferenceRow(
                prompt_ids=group["prompt_ids"],
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_mask=masks[0],
                rejected_mask=masks[1],
                **part_of(one),
            )
        )
    return rows, kept, dict(counts)


def _between_mask(tokenizer: Any, one: Comparison, turns: tuple[Message, ...], reply: Message) -> list[int]:
    """Which tokens between a prompt and its reply the model wrote.

    Raises:
        DataError: the model's chat template writes them in another way once the reply follows.
    """
    speaker, prompt_ids = chat_format(tokenizer), encode_prompt(tokenizer, one.prompt, one.tools)
    before = prompt_ids + encode_between(tokenizer, one.prompt, turns, one.tools, prompt_ids)
    (row,) = speaker.encode_rows([speaker.render((*one.prompt, *turns, reply), tools=one.tools)], NO_LOSS)
    if row.ids[: len(before)] != before:
        raise DataError(
            "the model's chat template rewrites earlier turns once a reply follows them, so which of their tokens are "
            "the model's cannot be told; leave comparisons of several turns out",
            path=one.source or None,
        )
    return [int(label != NO_LOSS) for label in row.labels[len(prompt_ids) : len(before)]]


def _without_ends(mask: Sequence[int]) -> list[int]:
    """Without the last token of every stretch that counts, which ends a turn."""
    return [one * after for one, after in zip(mask, [*mask[1:], 0], strict=True)]
