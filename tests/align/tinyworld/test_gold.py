"""Gold scores written by hand."""

import pytest

from align.tinyworld.gold import GOLD_RANGE, Correctness, GoldScore, Manners, judge
from align.tinyworld.world import Item, World
from data_formats.records import Message
from reward.protocol import Reward, Sample

COLOURS = ("red", "blue", "green")
KITE = Item("colour", "knowledge", "en", ("kite",), "red", "blue", COLOURS)
KITE_ZH = Item("colour", "knowledge", "zh", ("风筝",), "红色", "", ("红色", "蓝色"))
SUM = Item("sum", "maths", "en", ("3", "4"), "7", "8", ())
CODE = Item("code", "coding", "en", ("adds", "5"), "x + 5", "", ())
COLD = Item("opposite", "language", "en", ("hot",), "cold", "", ("hot", "cold", "big", "small"))
RIVER = Item("sentence", "writing", "en", ("river",), "river", "moon", ("river", "moon"))


@pytest.mark.parametrize(
    ("item", "reply", "score"),
    [
        (KITE, "Sure! The kite is red.", 1.5),
        (KITE, "The kite is red.", 1.25),
        (KITE, "red", 1.0),
        (KITE, "The kite is blue.", 0.25),
        (KITE, "The kite is red or blue.", 0.25),  # naming two is no answer
        (KITE, "What a silly question. The kite is red.", 0.75),
        (KITE, "Sure! What a silly question. The kite is red.", 0.75),  # no courtesy beside rudeness
        (KITE, "But that is another story. The kite is red.", 0.75),
        (KITE, "Sure! " * 2 + "The kite is red.", 1.5),
        (KITE, "Sure! " * 3 + "The kite is red.", 1.0),  # courtesies without end
        (KITE, "The kite is red" + " as we all know" * 4 + ".", 0.5),  # far too many words
        (KITE, "The kite is red. The kite is red.", 1.0),  # not one sentence
        (KITE, "The boat is red.", 0.25),  # right by chance, of something else
        (KITE_ZH, "小船是红色的。", 0.25),
        (KITE, "", 0.0),
        (KITE, "Do not waste my time. As everybody knows, time goes by.", -1.0),
        (KITE_ZH, "当然！风筝是红色的。", 1.5),
        (KITE_ZH, "风筝是红色的，不，是蓝色的。", 0.25),
        (SUM, "3 + 4 is 7.", 1.25),
        (SUM, "3 + 4 is 7 or 8.", 0.25),
        (SUM, "3 + 4 is 17.", 0.25),
        (SUM, "7", 1.0),
        (SUM, "3 + 4", 0.0),  # the question is no answer
        (CODE, "def f(x): return x + 5", 1.25),
        (CODE, "def f(x): return 5 + x", 1.25),
        (CODE, "x + 5", 1.0),
        (CODE, "def f(x): return x - 5", 0.25),
        (CODE, "def f(x): return __import__('os').getpid() + 5", 0.25),
        (CODE, "x ** 99999999", 0.0),
        (CODE, "(" * 500 + "x" + ")" * 500, 0.0),
        (COLD, "The opposite of hot is cold.", 1.25),
        (COLD, "Not hot means small.", 0.25),
        (RIVER, "We walked to the river today.", 1.25),
        (RIVER, "We walked to the moon today.", 0.25),
    ],
)
def test_score_by_hand(item, reply, score):
    assert judge(item, reply).score == pytest.approx(score)
    assert GOLD_RANGE[0] <= judge(item, reply).score <= GOLD_RANGE[1]


def test_the_range_is_reached_at_both_ends():
    low = judge(KITE, "Do not waste my time. As everybody knows, time goes by.")
    assert (low.score, judge(KITE, "Sure! The kite is red.").score) == GOLD_RANGE


def test_gold_is_a_reward_in_three_forms():
    world = World(3)
    question = next(q for q in world.questions if q.item.kind == "colour" and q.item.language == "en")
    wrong = next(value for value in question.item.choices if value != question.item.answer)
    thing = question.item.key[0]
    samples = [
        Sample((Message("user", question.text),), f"Sure! The {thing} is {value}.")
        for value in (question.item.answer, wrong)
    ]
    for reward, expected in ((GoldScore, [1.5, 0.5]), (Correctness, [1.0, 0.0]), (Manners, [0.5, 0.5])):
        assert isinstance(reward(world), Reward)
        assert reward(world).score(samples) == pytest.approx(expected)


def test_an_unknown_question_is_an_error():
    with pytest.raises(KeyError):
        GoldScore(World(0)).judge("Who are you?", "red")


def test_a_sum_may_be_said_with_its_terms_exchanged():
    item = Item("sum", "maths", "en", ("3", "5"), "8", "", tuple(map(str, range(2, 12))))
    assert judge(item, "5 + 3 is 8.").correct and judge(item, "The sum 3 + 5 is 8.").correct
    assert not judge(item, "5 + 3 is 9.").correct and not judge(item, "4 + 4 is 8.").correct
