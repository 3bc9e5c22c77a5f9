"""Which stored replies ppo's critic is warmed up on (`ppo.critic_warmup_from`), as tokens that the policy may draw.

The right ones are those that this very policy drew in this very way. As far as the file says from which weights and how
a reply was drawn, others are left out; where none is right, all are taken, with a warning. Ids that a file has are used
where they are this tokenizer's; a text without them is encoded, with the end token that it was read without. Such a
reply may have other tokens than it was sampled as. Scores of the file are not read: the reward is asked again, which
costs little beside sampling.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.encode import encode_prompts, encode_replies
from align.data.stored_replies import END, LENGTH, StoredReply, StoredRow, read_stored
from align.models.identity import weights_version
from align.recipe import Recipe
from align.recipe.epochs import epochs_of, in_epochs
from align.recipe.lineage import stage_dir, warmup_origin
from align.recipe.ppo_section import PPOSection
from align.runs.seeding import derive
from align.runtime.errors import MissingFileError
from align.runtime.paths import typed_path
from align.runtime.ranks import is_main
from align.stages.common import LOG, WARMUP
from align.trainers.ppo.types import Samples
from align.trainers.ppo.warmup import WarmupRollouts
from data_formats.chat_format import chat_format
from data_formats.errors import EmptyDatasetError
from data_formats.records import Prompt

KEY = "ppo.critic_warmup_from"
KEPT = (f"{WARMUP}/*.jsonl", "rounds/*/samples.jsonl", "items.jsonl", "samples.jsonl", "[0-9]*.jsonl")  # first found


@dataclass(frozen=True, slots=True)
class RepliesTaken:
    """As many replies to one prompt as ppo samples; `at` are their numbers in the row."""

    row: StoredRow
    at: tuple[int, ...]


def warmup_rollouts(
    recipe: Recipe, section: PPOSection, tokenizer: Any, prompts: Sequence[Prompt], path: str, out_dir: Path
) -> WarmupRollouts | None:
    """What iterations of the critic alone learn from; None where there is no such iteration.

    Args:
        prompts: of ppo. A stored reply to one of them has its other fields too, for rewards.
        path: of the policy.
        out_dir: of the stage, where replies are kept that are sampled for it.

    Raises:
        MissingFileError: no such file or folder, or one without replies.
        DataError: a row without a prompt or a reply, or with a reply longer than ppo's may be; names file and line.
        EmptyDatasetError: fewer replies than an iteration takes.
    """
    if not section.warmup_iterations:
        return None
    origin, weights = warmup_origin(recipe), weights_version(path)
    if origin is None:
        return WarmupRollouts(folder=out_dir / WARMUP, weights=weights)
    place = stage_dir(recipe, origin.value) if origin.kind == "stage" else typed_path(origin.value)
    rows = [row for file in files_of(place) for row in read_stored(file)]
    dropped: Counter[str] = Counter()
    rows = _fitting(rows, tokenizer, section, dropped)
    groups = _groups(rows, _taken(rows, section, weights, place, dropped), section, dropped)
    if any(row.iteration is None for row in rows):  # ppo's own have an order already
        random.Random(derive(recipe.seed, "ppo", "warmup")).shuffle(groups)
    needed = section.warmup_iterations * section.rollout_batch_size
    _require_enough(len(groups), section, place, dropped)
    _tell(groups, section, place, dropped)
    return WarmupRollouts(_samples(groups[:needed], tokenizer, section, prompts))


def files_of(place: Path) -> list[Path]:
    """The files of replies that a path means: itself, or those in a folder of ppo, of a rejection stage, of one of its
    rounds, or of `align collect`.

    Raises:
        MissingFileError: there are none.
    """
    if place.is_file():
        return [place]
    for pattern in KEPT:
        if found := sorted(place.glob(pattern), key=lambda file: [_number(part) for part in file.parts]):
            return found
    what = "holds no replies (files of JSON lines)" if place.is_dir() else "is not there"
    raise MissingFileError(
        f"{KEY}: {place} {what}; name a file of replies, or the folder of a finished ppo or rejection stage or of "
        "`align collect`"
    )


def _number(part: str) -> tuple[int, str]:
    stem = part.removesuffix(".jsonl")
    return (int(stem), "") if stem.isdecimal() else (0, part)


def _fitting(rows: Sequence[StoredRow], tokenizer: Any, section: PPOSection, dropped: Counter[str]) -> list[StoredRow]:
    """The rows whose prompts are short enough."""
    ids = encode_prompts(tokenizer, [row.prompt.messages for row in rows], [row.prompt.tools for row in rows])
    kept = [row for row, one in zip(rows, ids, strict=True) if len(one) <= section.rollout.max_prompt_length]
    if len(kept) < len(rows):
        dropped["prompts longer than ppo.rollout.max_prompt_length"] += len(rows) - len(kept)
    return kept


def _taken(
    rows: Sequence[StoredRow], section: PPOSection, weights: str, place: Path, dropped: Counter[str]
) -> list[list[int]]:
    """The numbers of each row's replies that this policy would have drawn, where the file says of any that they are;
    else of all."""
    apart = [[_apart(reply, section, weights) for reply in row.replies] for row in rows]
    if any(not told for one in apart for told in one):
        taken = [[at for at, told in enumerate(one) if not told] for one in apart]
        if others := sum(map(len, apart)) - sum(map(len, taken)):
            dropped["replies of other weights, or drawn in another way"] += others
        return taken
    if rows and is_main():
        words = "all replies were drawn otherwise than this policy draws (%s): the critic learns what those are worth"
        LOG.warning(f"%s: %s: {words}", KEY, place, apart[0][0])
    return [list(range(len(row.replies))) for row in rows]


def _groups(
    rows: Sequence[StoredRow], taken: Sequence[Sequence[int]], section: PPOSection, dropped: Counter[str]
) -> list[RepliesTaken]:
    """Those replies by as many to a prompt as ppo samples: first the first of every prompt, then its next ones."""
    each, most = section.rollout.num_generations, section.rollout.max_completion_length
    usable: list[tuple[StoredRow, list[int]]] = []
    for row, mine in zip(rows, taken, strict=True):
        for at in mine:
            if (row.replies[at].tokens or 0) > most:
                raise row.error(_too_long(row.replies[at].tokens or 0, most), at)
        said = [at for at in mine if row.replies[at].text or row.replies[at].stop in ("", END)]
        if len(said) < len(mine):
            dropped["replies without a token"] += len(mine) - len(said)
        if rest := len(said) % each:
            dropped[f"replies beyond a multiple of ppo.rollout.num_generations ({each})"] += rest
        usable.append((row, said))
    return [
        RepliesTaken(row, tuple(said[first : first + each]))
        for first in range(0, max((len(said) for _, said in usable), default=0), each)
        for row, said in usable
        if len(said) >= first + each
    ]


def _apart(reply: StoredReply, section: PPOSection, weights: str) -> str:
    """In what a reply was drawn otherwise than the policy draws, as far as is known; "" where in nothing."""
    rollout = section.rollout
    now: dict[str, Any] = {"temperature": rollout.temperature, "top_p": rollout.top_p, "top_k": rollout.top_k}
    now |= {"min_tokens": rollout.min_completion_length, "max_tokens": rollout.max_completion_length}
    was = {name: reply.sampling.get(name, value) for name, value in now.items()} | {"weights": reply.weights or weights}
    now |= {"weights": weights}
    return ", ".join(f"{name} {was[name]}, here {now[name]}" for name in now if was[name] != now[name])


def _too_long(tokens: int, most: int) -> str:
    return (
        f"a reply of {tokens} tokens is longer than ppo.rollout.max_completion_length ({most}), so it was drawn "
        "otherwise; raise that, or name replies that are short enough"
    )


def _require_enough(found: int, section: PPOSection, place: Path, dropped: Counter[str]) -> None:
    if found >= section.rollout_batch_size:
        return
    reasons = "".join(f"; {count} left out: {reason}" for reason, count in dropped.items())
    each = section.rollout.num_generations
    raise EmptyDatasetError(
        f"{KEY}: {place} has {found} times {each} replies to a prompt (ppo.rollout.num_generations), and an iteration "
        f"takes {section.rollout_batch_size} (ppo.rollout_batch_size){reasons}: name more of them, or remove the key"
    )


def _tell(groups: Sequence[RepliesTaken], section: PPOSection, place: Path, dropped: Counter[str]) -> None:
    if not is_main():
        return
    epochs = epochs_of(section.warmup_iterations, section.rollout_batch_size, len(groups))
    said = in_epochs(section.warmup_iterations, epochs, len(groups), step="iterations", row="prompts")
    LOG.info("ppo: the critic is warmed up on the replies of %s: %s", place, said)
    for reason, count in dropped.items():
        LOG.info("ppo: %d left out: %s", count, reason)


def _samples(groups: Sequence[RepliesTaken], tokenizer: Any, section: PPOSection, prompts: Sequence[Prompt]) -> Samples:
    ours = {(one.messages, one.tools): one for one in prompts}
    asked = [ours.get((group.row.prompt.messages, group.row.prompt.tools), group.row.prompt) for group in groups]
    ids = encode_prompts(tokenizer, [one.messages for one in asked], [one.tools for one in asked])
    each, most = section.rollout.num_generations, section.rollout.max_completion_length
    places = [(group.row, at) for group in groups for at in group.at]
    drawn = _token_ids([row.replies[at] for row, at in places], tokenizer, most)
    for (row, at), one in zip(places, drawn, strict=True):
        known = row.replies[at].tokens or row.replies[at].sampling.get("max_tokens")
        if len(one) > most and (known is None or known > most):
            raise row.error(_too_long(len(one), most), at)
    drawn = [one[:most] for one in drawn]  # encoded anew a reply may have more tokens than it was drawn as
    texts = tokenizer.batch_decode([list(one) for one in drawn], skip_special_tokens=True)
    end = chat_format(tokenizer).end_id
    return Samples(
        prompts=tuple(one for one in asked for _ in range(each)),
        prompt_ids=tuple(tuple(one) for one in ids for _ in range(each)),
        reply_ids=tuple(drawn),
        replies=tuple(texts),
        finished=tuple(one[-1] == end for one in drawn),
    )


def _token_ids(replies: Sequence[StoredReply], tokenizer: Any, most: int) -> list[tuple[int, ...]]:
    """Ids of each reply: those that it was drawn as where they are this tokenizer's, else of its text."""
    own = [one.token_ids if all(0 <= token < len(tokenizer) for token in one.token_ids) else () for one in replies]
    texts = tokenizer.batch_decode([list(ids) for ids in own], skip_special_tokens=True)
    own = [ids if text == one.text else () for ids, text, one in zip(own, texts, replies, strict=True)]
    anew = iter(encode_replies(tokenizer, [one.text for one, ids in zip(replies, own, strict=True) if not ids]))
    stops = chat_format(tokenizer).stop_ids
    return [ids or _ended(next(anew), one, stops, most) for ids, one in zip(own, replies, strict=True)]


def _ended(ids: Sequence[int], reply: StoredReply, stops: Iterable[int], most: int) -> tuple[int, ...]:
    """The ids of a text with the end token that it was drawn with. Where the file does not say how the reply ended, one
    that is as long as it might be was cut, and any other ended."""
    *text, end = ids
    cut = len(text) >= reply.sampling.get("max_tokens", most) if not reply.stop else reply.stop == LENGTH
    if cut:
        return tuple(text)
    return (*text, end if reply.stop in ("", END) else [*stops][-1])
