"""Difficulty of prompts: tags that rows carry or a tagger expects, what an endpoint says, what a classifier learnt."""

import json

import pytest

from align.curation.difficulty import TagCount, difficulty_scorer
from align.curation.scorer import ScorerError
from align.recipe.scorer_sections import ClassifierSection, LLMDifficultySection, TagsDifficultySection
from align.textmodels.classifier import TextClassifier
from data_formats.records import Comparison, Demonstration, Document, Message, Prompt, Reply, Scored
from tests.align.curation.endpoint import chat_server

USER = (Message("user", "Prove it."),)
REPLY = Message("assistant", "It is so.")
ROWS = [
    Demonstration((*USER, REPLY), tags=("maths", "proof", "maths")),
    Comparison(USER, "a", "b", tags=("maths",)),
    Scored(USER, (Reply("a", 1.0),)),
    Prompt(USER, columns={"tags": ["a", "b", "c"]}),
]


def test_tags_that_rows_carry_are_counted_once_each():
    scorer = difficulty_scorer(TagsDifficultySection(kind="tags"), str)
    assert scorer.score(ROWS) == [2.0, 1.0, None, 3.0]
    with pytest.raises(ScorerError, match=r"no row carries tags: tag them first .align data tag., or name a tagger"):
        scorer.score(ROWS[2:3])
    with pytest.raises(ScorerError, match="record 0 is a Document, which the scorer 'tags' cannot rate"):
        scorer.score([Document("text")])


@pytest.mark.needs("sklearn")
def test_of_a_tagger_the_number_of_tags_to_be_expected_counts(tmp_path):
    texts = ["prove the sum and plot it", "plot it", "say hello"] * 4
    TextClassifier.fit(texts, [["maths", "plot"], ["plot"], []] * 4, multi_label=True).save(tmp_path)
    scorer = difficulty_scorer(TagsDifficultySection(kind="tags", tagger=str(tmp_path)), str)
    rows = [Prompt((Message("user", text),)) for text in (*texts[:3], " ")]
    found = scorer.score(rows)
    assert found[:3] == pytest.approx(TextClassifier.load(tmp_path).probabilities(texts[:3]).sum(axis=1))
    assert found[0] > found[1] > found[2] and found[3] is None
    with pytest.raises(ScorerError, match="the tagger gives every text one label"):
        TagCount(TextClassifier.fit(texts, ["a", "b", "a"] * 4))
    TextClassifier.fit(texts, ["3", "2", "1"] * 4).save(tmp_path / "numbers")
    numbers = difficulty_scorer(ClassifierSection(kind="classifier", path=str(tmp_path / "numbers")), str)
    hard, middle, easy, nothing = numbers.score(rows)
    assert 3 > hard > middle > easy > 1 and nothing is None
    assert numbers.score([Document(texts[0])]) == [pytest.approx(hard)]


def test_an_endpoint_is_shown_the_prompt_alone_and_says_how_hard_it_is(tmp_path):
    def said(text):
        return json.dumps({"reason": "…", "points": 0 if "Prove" not in text else 3 if "Be exact" in text else 2})

    system = Message("system", "Be exact.")
    rows = [
        Demonstration((system, *USER, REPLY)),
        Comparison(USER, "yes", "no"),
        Prompt(USER),
        Prompt((Message("user", "Hi."),)),
        Demonstration((REPLY, *USER)),
    ]
    with chat_server(said) as server:
        section = LLMDifficultySection(kind="llm", url=server.url, model="m", backoff=0.01)
        assert difficulty_scorer(section, str, tmp_path).score(rows) == [1.0, 0.5, 0.5, None, None]
        assert len(server.bodies) == 3 and (tmp_path / "answers-difficulty.jsonl").is_file()
        contents = [body["messages"][0]["content"] for body in server.bodies]
        assert not any("It is so" in text for text in contents)
        assert any("begin\n[system]\nBe exact.\n[user]\nProve it.\n#####" in text for text in contents)
        with pytest.raises(ScorerError, match="record 5 is a Document"):
            difficulty_scorer(section, str).score([*rows, Document("text")])
