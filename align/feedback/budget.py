"""A budget of judgments: the pairs of collected replies that are to be judged, and what that is expected to bring.

Written are items of two replies each (`align.feedback.items`), the most wanted first, and beside them a summary of the
same name (`.json`). What is there and was chosen in another way is never overwritten: somebody may have judged it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.feedback.choosing import Choice, ItemPair, choose, expectation, pairs_of
from align.feedback.collect import CollectError
from align.feedback.items import FeedbackItem, new_item
from align.feedback.learning_curve import curve_of
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.json_files import Row
from align.runtime.made import made_before
from align.runtime.pieces import pieces_in
from align.serving.named import reward_stamp


def choose_items(
    items: Sequence[FeedbackItem],
    count: int,
    how: Choice,
    file: Path,
    *,
    rewards: Sequence[str] = (),
    without: Sequence[FeedbackItem] = (),
    seed: int = 0,
) -> Row:
    """Write `count` pairs of the items' replies to `file`, to be judged.

    Args:
        rewards: words that name them; `uncertain` needs them, and with any choice they say what is to be expected.
        without: items whose pairs were chosen before.

    Returns:
        The summary, also in the file beside: `pairs` of `of` there were, `choose`, `expected` (`expectation` of the
        members; none without rewards) and `accuracy` (`Curve.gain`; None where no reward has a curve).

    Raises:
        CollectError: nothing is left to choose from, or the rewards have no spread.
        StorageError: `file` holds another choice, or cannot be written.
    """
    if how == "uncertain" and not rewards:
        raise CollectError("'uncertain' looks at what a reward model makes of the replies: name one with --reward")
    before = pairs_of(without)
    known = {pair.key for pair in before}
    pairs = [pair for pair in pairs_of(items) if pair.key not in known]
    if not pairs:
        raise CollectError("no pair is left to choose from: collect more replies")
    made_with = {
        "items": hashlib.sha256(json.dumps([item.row() for item in items]).encode()).hexdigest()[:16],
        "pairs left out": hashlib.sha256(repr(sorted(map(repr, known))).encode()).hexdigest()[:16],
        "budget": count,
        "choose": how,
        "rewards": [[word, *reward_stamp(word)] for word in rewards],
        "seed": seed,
    }
    told = file.with_suffix(".json")
    if (done := _done(file, told, made_with)) is not None:
        return done
    first_MP = _probabilities(pairs, rewards, file, made_with, seed) if rewards else None
    chosen = choose(pairs, count, how, seed=derive(seed, "choose"), first_MP=first_MP, before=before)
    found: Row = {"pairs": len(chosen), "of": len(pairs), "choose": how, "rewards": list(rewards)}
    found["expected"] = expectation(first_MP, chosen) if first_MP is not None else None
    curve = next(filter(None, map(curve_of, rewards)), None)
    found["accuracy"] = curve.gain(len(chosen)) if curve is not None else None
    files.write_json(told, found | {"made_with": made_with})
    files.write_json_lines(file, (_item(pairs[at], seed).row() for at in chosen))  # last: then the whole is there
    return found


def _done(file: Path, told: Path, made_with: Row) -> Row | None:
    """The summary where this very choice is there. Raises StorageError where another one is."""

    def refusal(other: str) -> str:
        return (
            f"{file} holds another choice (other: {other}), and somebody may have judged it: name another file with "
            "--to, and this one with --except where its pairs are not to be judged again"
        )

    found = made_before(file, told, made_with, damaged=f"remove it and {file}", refusal=refusal)
    return found and {name: value for name, value in found.items() if name != "made_with"}


def _probabilities(
    pairs: Sequence[ItemPair], rewards: Sequence[str], file: Path, made_with: Row, seed: int
) -> np.ndarray:
    """That the first reply is the better one, by each member: (M, P)."""
    from align.feedback.spread import member_logits

    items = list({pair.item.id: pair.item for pair in pairs}.values())
    scored = {name: made_with[name] for name in ("items", "pairs left out", "rewards", "seed")}
    with pieces_in(file.with_name(f"{file.name}.pieces"), scored, command="collect") as pieces:
        logits = member_logits(rewards, items, pieces, seed=derive(seed, "dropout"))
    of_item: dict[str, Any] = {
        item.id: dict(zip((one.id for one in item.replies), own.T, strict=True))
        for item, own in zip(items, logits, strict=True)
    }
    margins = [of_item[pair.item.id][pair.first.id] - of_item[pair.item.id][pair.second.id] for pair in pairs]
    return 1 / (1 + np.exp(-np.clip(np.stack(margins, axis=1), -500, 500)))


def _item(pair: ItemPair, seed: int) -> FeedbackItem:
    item = pair.item
    return new_item(item.asked, (pair.first, pair.second), tags=item.tags, round=item.round, seed=seed)
