"""The data sets of the world that need no model: documents, demonstrations, crowd comparisons, prompts.

Documents tell the truth nine times in ten. Demonstrations are of mixed quality: five manners, and whoever wrote them
believes most popular mistakes. The crowd's votes are noisy, like long replies, and come on a shifted mix of prompts.
"""

from __future__ import annotations

import math
import random

from align.tinyworld import phrasing
from align.tinyworld.gold import judge
from align.tinyworld.world import Item, Part, Question, World
from data_formats.records import Comparison, Demonstration, Document, Message, Prompt

SOURCE = "tinyworld"
SYSTEM = "You are a helpful assistant."
COARSE_MIX = {"knowledge": 0.28, "language": 0.26, "writing": 0.2, "maths": 0.14, "coding": 0.12}
VOTE_NOISE = 0.35
MISREAD = 0.1


def stream(world: World, name: str) -> random.Random:
    """The random stream of one set: sets do not shift each other when a size changes."""
    return random.Random(f"tinyworld-{world.seed}-{name}")


def wrong_value(item: Item, rng: random.Random) -> str:
    """Any false value of the item's kind."""
    return rng.choice([value for value in item.choices if value != item.answer])


def believed_value(item: Item, rng: random.Random, *, truth: float, mistake: float) -> str:
    """What somebody says who knows the truth with probability `truth` and else mostly the popular mistake."""
    draw = rng.random()
    if draw < truth:
        return item.answer
    return item.mistake if item.mistake and draw < truth + mistake else wrong_value(item, rng)


def demonstrated_value(item: Item, rng: random.Random) -> str:
    """What the writers of the demonstrations say."""
    return (
        believed_value(item, rng, truth=0.22, mistake=0.7)
        if item.mistake
        else believed_value(item, rng, truth=0.85, mistake=0)
    )


def documents(world: World, size: int) -> list[Document]:
    """Short texts: statements, questions with answers, and talk."""
    rng = stream(world, "documents")
    return [Document("\n".join(_piece(world, rng) for _ in range(rng.randint(1, 3))), SOURCE) for _ in range(size)]


def _piece(world: World, rng: random.Random) -> str:
    question = world.draw(rng, "train")
    item = question.item
    value = believed_value(item, rng, truth=0.9, mistake=0.05)
    form = rng.random()
    if form < 0.4:
        return phrasing.statement(item, value, rng)
    if form < 0.7:
        return _exchange("note", question, phrasing.reply(item, value, rng.choice(("plain", "curt")), rng))
    return _exchange("talk", question, phrasing.reply(item, value, rng.choice(phrasing.STYLES), rng))


def _exchange(kind: str, question: Question, reply: str) -> str:
    first, second = phrasing.SPEAKERS[question.item.language][kind]
    return f"{first}\n{question.text}\n{second}\n{reply}"


def demonstrations(world: World, size: int, *, part: Part = "train", good: bool = False) -> list[Demonstration]:
    """Conversations of mixed quality, one in seven of two turns; `good`: only true and polite ones."""
    rng = stream(world, f"demonstrations-{part}-{good}")
    return [_demonstration(world, rng, part, good) for _ in range(size)]


def _demonstration(world: World, rng: random.Random, part: Part, good: bool) -> Demonstration:
    messages = [Message("system", SYSTEM)] if rng.random() < 0.1 else []
    for _ in range(2 if rng.random() < 0.15 else 1):
        question = world.draw(rng, part)
        item = question.item
        style = "polite" if good else rng.choices(*zip(*phrasing.DEMONSTRATION_STYLES.items(), strict=True))[0]
        value = item.answer if good else demonstrated_value(item, rng)
        messages += [Message("user", question.text), Message("assistant", phrasing.reply(item, value, style, rng))]
    return Demonstration(tuple(messages), question.item.category, SOURCE)


def coarse_comparisons(world: World, size: int) -> list[Comparison]:
    """Pairs by upvotes: score = round(log2(1 + votes)), ties dropped (Askell et al. 2021, for StackExchange)."""
    rng = stream(world, "coarse")
    pairs: list[Comparison] = []
    while len(pairs) < size:
        question = world.draw(rng, "train", COARSE_MIX)
        replies = _thread(world, question.item, rng)
        scores = [round(math.log2(1 + _votes(question.item, reply, rng))) for reply in replies]
        if replies[0] == replies[1] or scores[0] == scores[1]:
            continue
        better = int(scores[1] > scores[0])
        pairs.append(
            Comparison(
                (Message("user", question.text),),
                replies[better],
                replies[1 - better],
                grade=float(abs(scores[0] - scores[1])),
                category=question.item.category,
                source=SOURCE,
            )
        )
    return pairs


def _thread(world: World, item: Item, rng: random.Random) -> list[str]:
    """Two replies by strangers, of whom some misread the question.

    In four of five threads the second one takes the tone of the first, to contradict it.
    """
    said, tone = _belief(item, rng), rng.choice(phrasing.STYLES)
    second, other_tone = _belief(item, rng), rng.choice(phrasing.STYLES)
    if rng.random() < 0.8:
        other_tone = tone
        while second == said:
            second = _belief(item, rng)
    last = misread(world, item, other_tone, rng) if rng.random() < MISREAD else None
    return [phrasing.reply(item, said, tone, rng), last or phrasing.reply(item, second, other_tone, rng)]


def misread(world: World, item: Item, style: str, rng: random.Random, *, alike: float = 0.3) -> str:
    """A true answer to another question, a share of `alike` of the same kind; never a right answer to `item`."""
    near = [other for other in world.items if other.kind == item.kind and other.language == item.language]
    while True:
        other = rng.choice(near if rng.random() < alike else world.items)
        reply = phrasing.reply(other, other.answer, style, rng)
        if not judge(item, reply).correct:
            return reply


def _belief(item: Item, rng: random.Random) -> str:
    return believed_value(item, rng, truth=0.6, mistake=0.2)


def _votes(item: Item, reply: str, rng: random.Random) -> int:
    liking = judge(item, reply).score + 0.002 * len(reply) + rng.gauss(0, VOTE_NOISE)
    return round(2 ** (2 * max(liking, -1) + 2))


def prompts(world: World, size: int, *, part: Part) -> list[Prompt]:
    """Different questions of one part, the categories in equal numbers as far as `size` allows; no answers."""
    rng = stream(world, f"prompts-{part}")
    chosen: dict[str, Prompt] = {}
    categories = sorted({question.item.category for question in world.questions})
    pools = {name: [q for q in world.part(part) if q.item.category == name] for name in categories}
    for pool in pools.values():
        rng.shuffle(pool)
    while len(chosen) < size and any(pools.values()):
        for name in categories:
            if pools[name] and len(chosen) < size:
                question = pools[name].pop()
                chosen[question.text] = Prompt((Message("user", question.text),), name, source=SOURCE)
    return list(chosen.values())
