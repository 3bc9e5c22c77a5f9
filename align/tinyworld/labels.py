"""Clean graded comparisons: replies sampled from a model beside generated ones, judged by the gold score.

At least one reply of every pair is a sampled one, so at least half of all replies are. The pairs are of four sorts:

- `CORRECTNESS_SHARE`: equal in every part of manners, one right and one with a wrong fact (tag `correctness`);
- `MANNERS_SHARE`: both right or both wrong, in different manners;
- `ASTRAY_SHARE`: a right reply beside one to another question (tag `astray`). Without those a reward model learns what
  good answers look like and never to what question, and PPO finds the one answer that pleases always;
- the rest: any two replies.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from align.tinyworld import phrasing
from align.tinyworld.gold import Gold, judge
from align.tinyworld.sets import SOURCE, demonstrated_value, misread, stream, wrong_value
from align.tinyworld.world import Item, World
from data_formats.records import Comparison, Message

CORRECTNESS, ASTRAY = "correctness", "astray"
CORRECTNESS_SHARE, MANNERS_SHARE, ASTRAY_SHARE = 0.4, 0.22, 0.35
ALIKE = 0.75  # of the stray replies, those to a question of the same kind: another sum, another kite
_STYLE_OF = {
    (True, True, True, False): "polite",
    (True, False, True, False): "plain",
    (False, False, True, False): "curt",
    (True, False, True, True): "rude",
    (True, False, False, False): "rambling",
}


def clean_comparisons(world: World, sampled: Mapping[str, Sequence[str]], size: int, *, name: str) -> list[Comparison]:
    """`size` pairs on the questions of `sampled` (question text -> replies of the model), prompts taken in turn.

    Empty replies make no pair.

    Raises:
        ValueError: when the replies allow no pair at all.
    """
    rng = stream(world, f"clean-{name}")
    pairs: list[Comparison] = []
    sampled = {text: said for text, replies in sampled.items() if (said := [one for one in replies if one.strip()])}
    texts = list(sampled)
    alike: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        item = world.by_text[text].item
        alike.setdefault((item.kind, item.language), []).append(text)
    for turn in range(20 * size):
        if len(pairs) == size:
            return pairs
        text = texts[turn % len(texts)]
        item = world.by_text[text].item
        draw = rng.random()
        astray = draw < ASTRAY_SHARE
        if astray:
            others = alike[item.kind, item.language] if rng.random() < ALIKE else texts
            stray = rng.choice(sampled[rng.choice(others)])
            pair = _astray_pair(world, item, sampled[text], stray, rng)
        elif draw < ASTRAY_SHARE + MANNERS_SHARE:
            pair = _manners_pair(item, sampled[text], rng)
        elif draw < ASTRAY_SHARE + MANNERS_SHARE + CORRECTNESS_SHARE:
            pair = _correctness_pair(item, sampled[text], rng)
        else:
            pair = _any_pair(item, sampled[text], rng)
        if pair is not None and judge(item, pair[0]).score != judge(item, pair[1]).score:
            pairs.append(_comparison(text, item, *pair, astray=astray))
    raise ValueError(f"the sampled replies gave {len(pairs)} of the {size} pairs of '{name}': sample more a prompt")


def _manners(gold: Gold) -> tuple[bool, ...]:
    return gold.form, gold.polite, gold.to_the_point, gold.rude


def _correctness_pair(item: Item, replies: Sequence[str], rng: random.Random) -> tuple[str, str] | None:
    """A sampled reply and one of the same manners and opposite correctness: sampled if there is one, else generated."""
    first = rng.choice(replies)
    gold = judge(item, first)
    style = _STYLE_OF.get(_manners(gold))
    others = [
        other
        for other in replies
        if (g := judge(item, other)).correct != gold.correct and _manners(g) == _manners(gold)
    ]
    if others:
        return first, rng.choice(others)
    if style is None:
        return None
    return first, phrasing.reply(item, _value(item, not gold.correct, rng), style, rng)


def _manners_pair(item: Item, replies: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """A sampled reply and a generated one, both right or both wrong, in different manners."""
    first = rng.choice(replies)
    gold = judge(item, first)
    style = "polite" if rng.random() < 0.5 else rng.choice(phrasing.STYLES)
    second = phrasing.reply(item, _value(item, gold.correct, rng), style, rng)
    return first, second


def _value(item: Item, correct: bool, rng: random.Random) -> str:
    return item.answer if correct else item.mistake or wrong_value(item, rng)


def _any_pair(item: Item, replies: Sequence[str], rng: random.Random) -> tuple[str, str]:
    first = rng.choice(replies)
    if rng.random() < 0.5:
        return first, rng.choice(replies)
    return first, phrasing.reply(item, demonstrated_value(item, rng), rng.choice(phrasing.STYLES), rng)


def _astray_pair(
    world: World, item: Item, replies: Sequence[str], stray: str, rng: random.Random
) -> tuple[str, str] | None:
    """A right reply beside one to another question.

    Half of the time a sampled right reply in any manners beside a generated stray one in the best of manners; else the
    sampled stray reply beside a right one, in the same manners where that is possible.
    """
    right = [reply for reply in replies if judge(item, reply).correct]
    if right and rng.random() < 0.5:
        return rng.choice(right), misread(world, item, rng.choice(("polite", "plain")), rng, alike=ALIKE)
    gold = judge(item, stray)
    if gold.correct:
        return None
    style = _STYLE_OF.get(_manners(gold))
    if style is None:
        return (rng.choice(right), stray) if right else None
    return phrasing.reply(item, item.answer, style, rng), stray


def _comparison(text: str, item: Item, first: str, second: str, *, astray: bool) -> Comparison:
    a, b = judge(item, first), judge(item, second)
    chosen, rejected = (first, second) if a.score > b.score else (second, first)
    alone = a.correct != b.correct and _manners(a) == _manners(b)
    tags = (ASTRAY,) if astray else (CORRECTNESS,) if alone else ()
    return Comparison(
        (Message("user", text),),
        chosen,
        rejected,
        grade=abs(a.score - b.score),
        category=item.category,
        source=SOURCE,
        tags=tags,
    )
