"""The world: same seed, same world; every reply style means what it says; parts do not overlap."""

import random
from collections import Counter

import pytest

from align.tinyworld import phrasing
from align.tinyworld.gold import judge
from align.tinyworld.world import CATEGORIES, World

MANNERS = {"polite": 0.5, "plain": 0.25, "curt": 0.0, "rude": -0.25, "rambling": -0.25}


def test_the_seed_decides():
    assert World(1).items == World(1).items
    assert World(1).items != World(2).items


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_every_style_of_every_item_scores_as_meant(seed):
    rng = random.Random(seed)
    for item in World(seed).items:
        for style, manners in MANNERS.items():
            right = judge(item, phrasing.reply(item, item.answer, style, rng))
            assert (right.correct, right.manners) == (True, manners), (item, style)
            if item.mistake:
                wrong = judge(item, phrasing.reply(item, item.mistake, style, rng))
                assert (wrong.correct, wrong.manners) == (False, manners), (item, style)


def test_every_category_has_questions_in_every_part_and_a_question_one_part():
    world = World(0)
    counts = Counter((question.part, question.item.category) for question in world.questions)
    for part, enough in (("train", 400), ("heldout", 70), ("eval", 60)):
        assert all(counts[part, category] >= enough for category in CATEGORIES), counts
    assert len(world.by_text) == len(world.questions)  # no two questions read alike


def test_no_evaluation_prompt_stands_inside_another_question():
    for seed in (0, 1):
        world = World(seed)
        others = "\n".join(question.text for question in world.questions if question.part != "eval")
        assert not [question.text for question in world.part("eval") if question.text in others]


def test_popular_mistakes_are_a_share_of_the_items_and_never_the_truth():
    items = World(0).items
    mistaken = [item for item in items if item.mistake]
    assert 0.4 < len(mistaken) / len(items) < 0.6
    assert all(item.mistake != item.answer for item in mistaken)


def test_the_same_thing_has_one_colour_in_both_languages():
    from align.tinyworld import lexicon as lex

    answers = {item.key[0]: item.answer for item in World(4).items if item.kind == "colour"}
    for thing, name in zip(lex.THINGS, lex.THINGS_ZH, strict=False):
        assert lex.COLOURS.index(answers[thing]) == lex.COLOURS_ZH.index(answers[name])
