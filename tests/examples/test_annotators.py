"""Annotators who are played: as wrong as they are told to be, the same again, and the same as a recipe's judge."""

import json
import random

import pytest

from align.data.replies import PromptedReply
from align.evaluation.scoring import samples_for
from align.feedback.items import FeedbackReply, new_item
from align.feedback.judgments import load_judgments
from align.serving.named import named_judge
from align.tinyworld import phrasing
from align.tinyworld.gold import GoldScore
from align.tinyworld.sets import wrong_value
from align.tinyworld.world import World
from data_formats.records import Message, Prompt
from examples.experiments import annotators
from examples.experiments.annotators import Annotator
from reward.judges.protocol import ReplyPair


@pytest.fixture(scope="module")
def gold():
    return GoldScore(World(0))


@pytest.fixture(scope="module")
def items(gold):
    """A right and a wrong reply to each of 600 questions, every third time two equally good ones."""
    rng, world, found = random.Random(0), gold._world, []
    questions = [one for one in world.questions if one.item.choices]
    for at, question in enumerate(rng.sample(questions, 600)):
        value = question.item.answer if at % 3 == 0 else wrong_value(question.item, rng)
        texts = phrasing.reply(question.item, question.item.answer, "plain", rng), f"{value}"
        if at % 3 == 0:
            texts = texts[0], texts[0] + " "
        replies = [FeedbackReply("", text) for text in texts]
        found.append(new_item(Prompt((Message("user", question.text),)), replies))
    return found


def test_wrong_as_often_as_told_and_the_same_again(items, gold, tmp_path):
    people = [Annotator("ann", 0.2), Annotator("ben", 0.1, 0.15)]
    assert people[0].wrong == 0.2 and people[1].wrong == pytest.approx(0.22)
    assert annotators.annotate(items, tmp_path / "a", people, gold) == 1200
    assert annotators.annotate(items, tmp_path / "a", people, gold) == 0
    known = {item.id: item for item in items}
    said = load_judgments(tmp_path / "a")
    ties = [one for one in said if len(one.ranking) == 1]
    assert len(ties) == 400 and all(one.strength is None for one in ties)
    for who in people:
        own = [one for one in said if one.annotator == who.name and len(one.ranking) == 2]
        question = {one.item: known[one.item].prompt[-1].content for one in own}
        best = [known[one.item].reply(one.ranking[0][0]).reply for one in own]
        wrong = [not gold.judge(question[one.item], text).correct for one, text in zip(own, best, strict=True)]
        assert sum(wrong) / len(own) == pytest.approx(who.wrong, abs=0.05)
        first = sum(one.ranking[0][0] == one.shown[0] for one in own) / len(own)
        assert first == pytest.approx(0.5 + who.position, abs=0.06)
    torn = (tmp_path / "a").read_text().splitlines()[:700]
    (tmp_path / "b").write_text("\n".join(torn) + '\n{"id')
    assert annotators.annotate(items, tmp_path / "b", people, gold) == 500
    assert load_judgments(tmp_path / "b") == said


def test_some_are_judged_by_all_and_the_others_by_one(items, gold, tmp_path):
    people = [Annotator("ann"), Annotator("ben"), Annotator("cora")]
    assert annotators.annotate(items, tmp_path / "a", people, gold, overlap=0.25) == 150 * 3 + 450
    alone = [sum(one.annotator == who.name for one in load_judgments(tmp_path / "a")) - 150 for who in people]
    assert sum(alone) == 450 and min(alone) > 110


def test_a_judge_of_a_recipe_says_the_same(items, gold, tmp_path):
    who = Annotator("ann", 0.3, 0.1, seed=4)
    judge = named_judge(annotators.write_judge(tmp_path / "people.py", who, 0))
    for item in items[:60]:
        row = annotators.judgment(who, item, gold)
        shown = [item.reply(name).reply for name in row["shown"]]
        sides = samples_for(None, [PromptedReply(item.prompt, text) for text in shown])
        (said,) = judge.compare([ReplyPair(*sides)])[0]
        best = {name: at for at, (name,) in enumerate(row["ranking"])} if len(row["ranking"]) == 2 else None
        assert said.winner == ("tie" if best is None else "first" if best[row["shown"][0]] == 0 else "second")


def test_strength_and_order_of_several_replies(gold, tmp_path):
    question = next(one for one in gold._world.questions if one.item.kind == "colour" and one.item.language == "en")
    rng = random.Random(0)
    right = phrasing.reply(question.item, question.item.answer, "plain", rng)
    texts = right, wrong_value(question.item, rng), ""
    worth = [gold.judge(question.text, text).score for text in texts]
    assert worth[0] - max(worth[1:]) > 0.75
    item = new_item(Prompt((Message("user", question.text),)), [FeedbackReply("", text) for text in texts])
    row = annotators.judgment(Annotator("ann", error=0.0), item, gold)
    ranked = [[gold.judge(question.text, item.reply(name).reply).score for name in rank] for rank in row["ranking"]]
    assert [rank[0] for rank in ranked] == sorted(set(worth), reverse=True) and row["strength"] == "significantly"


def test_the_program(items, tmp_path, capsys):
    (tmp_path / "run/world").mkdir(parents=True)
    (tmp_path / "run/world/world.json").write_text(json.dumps({"seed": 0}))
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item.row()) + "\n" for item in items[:9]))
    words = [str(tmp_path / "run"), str(tmp_path / "items.jsonl"), "--annotator", "ann=20,5", "--annotator", "ben=0"]
    assert annotators.main([*words, "--overlap", "1"]) == 0
    assert "18 judgments more" in capsys.readouterr().out
    assert annotators.annotator_of("ann=20,5") == Annotator("ann", 0.2, 0.05)
    assert annotators.main([str(tmp_path), str(tmp_path / "items.jsonl")]) == 1
