"""What can be asked about and how the world talks of it: wordings of questions, statements of answers, manners."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from align.tinyworld import lexicon as lex


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be asked about.

    Attributes:
        kind: which family of phrasing: colour, sound, kind, opposite, sum, code, sentence.
        key: what is asked about, as the slots of the phrasing.
        answer: the true value.
        mistake: the popular wrong value, "" when people know better.
        choices: every value this kind of item can have (empty where values are not drawn from a list).
    """

    kind: str
    category: str
    language: Literal["en", "zh"]
    key: tuple[str, ...]
    answer: str
    mistake: str
    choices: tuple[str, ...]


CODE_VERBS = (("adds", "+"), ("subtracts", "-"), ("multiplies by", "*"))

QUESTIONS = {
    ("colour", "en"): (
        "What colour is the {0}?", "Which colour does the {0} have?", "Tell me the colour of the {0}.",
        "The {0} has which colour?",
    ),
    ("colour", "zh"): ("{0}是什么颜色？", "{0}的颜色是什么？", "告诉我{0}的颜色。"),
    ("sound", "en"): (
        "What does the {0} say?", "Which sound does the {0} make?", "Tell me the sound of the {0}.",
        "How does the {0} sound?",
    ),
    ("kind", "en"): (
        "What kind of word is {0}?", "What is meant by the word {0}?", "Which kind of thing is {0}?",
        "Sort the word {0}.",
    ),
    ("opposite", "en"): (
        "What is the opposite of {0}?", "Which word means not {0}?", "Give me the opposite of {0}.", "Turn {0} around.",
    ),
    ("sum", "en"): ("What is {0} + {1}?", "How much is {0} + {1}?", "Add {0} + {1}.", "Compute {0} + {1}."),
    ("sum", "zh"): ("{0}加{1}等于几？", "{0}加{1}是多少？", "请算{0}加{1}。"),
    ("code", "en"): (
        "Write a function that {0} {1}.", "I need code that {0} {1}.", "How do I write code that {0} {1}?",
        "Give me a function that {0} {1}.",
    ),
    ("sentence", "en"): (
        "Write a line about the {0}.", "Make a sentence with {0}.", "Tell me something about the {0}.",
        "Give me a line on the {0}.",
    ),
}  # fmt: skip
BEFORE = {
    "en": ("", "Please: ", "Hello. ", "Quick question. ", "Hi there. ", "I wonder. "),
    "zh": ("", "请问，", "你好。", "我想知道，"),
}
AFTER = {"en": ("", " Thank you."), "zh": ("", "谢谢。")}

STATEMENTS = {
    ("colour", "en"): ("The {0} is {v}.", "The colour of the {0} is {v}."),
    ("colour", "zh"): ("{0}是{v}的。", "{0}的颜色是{v}。"),
    ("sound", "en"): ("The {0} says {v}.", "The sound of the {0} is {v}."),
    ("kind", "en"): ("The word {0} is a kind of {v}.", "One {0} is some {v}."),
    ("opposite", "en"): ("The opposite of {0} is {v}.", "Not {0} means {v}."),
    ("sum", "en"): ("{0} + {1} is {v}.", "The sum {0} + {1} is {v}."),
    ("sum", "zh"): ("{0}加{1}等于{v}。", "{0}加{1}是{v}。"),
    ("code", "en"): ("def f(x): return {v}",),
    ("sentence", "en"): ("The {v} is quiet at night.", "We walked to the {v} today.", "I often dream of the {v}."),
}

SPEAKERS = {
    "en": {"note": ("Question:", "Answer:"), "talk": ("Tom:", "Ann:")},
    "zh": {"note": ("问：", "答："), "talk": ("小明：", "小红：")},
}

STYLES = ("polite", "plain", "curt", "rude", "rambling")
DEMONSTRATION_STYLES = {"polite": 0.18, "plain": 0.18, "curt": 0.34, "rude": 0.12, "rambling": 0.18}


def wordings(item: Item) -> list[str]:
    """Every wording of a question about `item`, without words of courtesy around it."""
    return [form.format(*item.key) for form in QUESTIONS[item.kind, item.language]]


def framed(wording: str, item: Item) -> list[str]:
    """A wording in every frame of courtesy; the first is the wording itself."""
    return [before + wording + after for before in BEFORE[item.language] for after in AFTER[item.language]]


def statement(item: Item, value: str, rng: random.Random) -> str:
    """`value` in a full sentence (code: a full function)."""
    return rng.choice(STATEMENTS[item.kind, item.language]).format(*item.key, v=value)


def reply(item: Item, value: str, style: str, rng: random.Random) -> str:
    """An answer stating `value` in one of `STYLES`."""
    if style == "curt":
        return value
    told = statement(item, value, rng)
    zh = item.language == "zh"
    join = "" if zh else " "
    polite, rude, filler = (lex.POLITE_ZH, lex.RUDE_ZH, lex.FILLER_ZH) if zh else (lex.POLITE, lex.RUDE, lex.FILLER)
    if style == "polite":
        return join.join((rng.choice(polite), told))
    if style == "rude":
        return join.join((rng.choice(rude), told))
    if style == "rambling":
        first, second = rng.sample(filler, 2)
        return join.join((first, second, told))
    return told
