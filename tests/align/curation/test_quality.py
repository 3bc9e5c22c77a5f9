"""Quality of every kind of record: by a reward model whose scores are worked out by hand, a reward that fails on some,
an endpoint that gives points, prose or nothing, and a classifier."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from align.curation.kept import Kept
from align.curation.quality import RewardQuality, quality_scorer
from align.curation.scorer import ScorerError
from align.data.encode import encode_comparisons
from align.recipe.scorer_sections import ClassifierSection, LLMQualitySection, RewardQualitySection
from align.runtime.errors import MissingFileError
from align.runtime.json_files import RunFileError
from align.textmodels.classifier import TextClassifier
from data_formats.records import Comparison, Demonstration, Document, Message, Prompt, Reply, Scored, ToolCall
from reward.model import RewardModel
from reward.protocol import RewardError, RewardUnavailableError
from reward.sources import FunctionReward
from tests.align.curation.endpoint import chat_server
from tests.tiny_models import byte_tokenizer, save_causal_lm

KEY = "sk-of-the-rubric-0123456789"
USER = (Message("user", "Name a fruit."),)


def demo(reply, *before):
    return Demonstration((*before, *USER, Message("assistant", reply)))


def length_of(prompts, completions):
    return [float(len(completion)) for completion in completions]


EVERY_REPLY = [
    demo("A pear."),
    demo("A fig.", Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello, my friend")),
    Comparison(USER, "A pear.", "I will not, for I am a machine."),
    Comparison(
        USER,
        "Pear.",
        "Fig.",
        chosen_turns=(Message("assistant", "?"), Message("user", "Go on.")),
        chosen_reasoning="Hm",
    ),
    Scored(USER, (Reply("a", 1.0), Reply("the best", 3.0), Reply("worst", -1.0), Reply("no score at all"))),
    Scored(USER, (Reply("liked", 1.0),)),
    Scored(USER, (Reply("level", 1.0), Reply("with this", 1.0))),
    Demonstration((*USER, Message("assistant", " "))),
    Demonstration((*USER, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)))),
    Demonstration((Message("assistant", "unasked"), *USER)),
]
LENGTHS = [7, 6, 7 - 31, len("<think>\nHm\n</think>\n\nPear.") - 4, 8 - 5, *[None] * 5]


def test_of_every_record_with_a_reply_that_or_its_lead_is_scored():
    assert RewardQuality(FunctionReward(length_of)).score(EVERY_REPLY) == LENGTHS
    assert RewardQuality(FunctionReward(length_of)).score([]) == []


@pytest.mark.parametrize(("record", "kind"), [(Prompt(USER), "Prompt"), (Document("text"), "Document")])
def test_a_kind_without_replies_is_refused_by_name(record, kind):
    told = (
        f"record 1 is a {kind}, which the scorer 'reward' cannot rate .it rates Demonstration, Comparison and Scored."
    )
    with pytest.raises(ScorerError, match=told):
        RewardQuality(FunctionReward(length_of)).score([EVERY_REPLY[0], record])


def test_a_reward_model_in_a_folder_scores_as_its_head_reads_the_end_token(tmp_path):
    torch.manual_seed(1)
    model, tokenizer = RewardModel.from_backbone(save_causal_lm(tmp_path / "base")), byte_tokenizer()
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    section = RewardQualitySection(kind="reward", model_from="the rm", batch_size=2)
    replies = ["A pear.", "Fig", "No.", "Apples are fruits, and so are pears."]
    expected = []
    for reply in replies:
        text = f"<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        states = model.backbone(input_ids=ids).last_hidden_state
        expected.append((states[0, -1] @ model.head.weight[0]).item())
    folders = []
    scorer = quality_scorer(section, lambda word: folders.append(word) or str(tmp_path / "rm"), tmp_path)
    assert folders == ["the rm"]
    scores = scorer.score([demo(reply) for reply in replies])
    assert scores == pytest.approx(expected, abs=1e-5)
    assert [json.loads(line)["numbers"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == [
        [score] for score in scores
    ]
    with pytest.raises(MissingFileError):
        quality_scorer(section, lambda word: str(tmp_path / "gone"))
    tool = json.dumps({"type": "function", "function": {"name": "pick", "parameters": {}}})
    pair = Comparison((Message("system", "Use tools."), *USER), "A pear.", "No.", tools=(tool,))
    (row,), _ = encode_comparisons(tokenizer, [pair], 9999, "error")  # what the stage trains on
    sides = [model.backbone(input_ids=torch.tensor([row[key]])).last_hidden_state for key in row]
    chosen, rejected = (states[0, -1] @ model.head.weight[0] for states in sides)
    told = scorer.score([pair, Comparison(pair.prompt, pair.chosen, pair.rejected)])
    assert told[0] == pytest.approx((chosen - rejected).item(), abs=1e-5) and told[0] != told[1]


def test_a_reply_that_the_reward_fails_on_has_no_score_and_many_stop(tmp_path, caplog):
    calls = []

    def touchy(prompts, completions):
        calls.append(len(completions))
        if any("bad" in completion for completion in completions):
            raise ValueError("too much")
        return length_of(prompts, completions)

    kept = Kept(tmp_path / "scores.jsonl", {"reward": "touchy"})
    rows = [demo(f"fine {n}") for n in range(7)]
    with caplog.at_level(logging.WARNING):
        assert RewardQuality(FunctionReward(touchy), kept).score([*rows, demo("bad")]) == [6.0] * 7 + [None]
    assert "1 of 8 replies have no score: reward 'touchy'" in caplog.text and "too much" in caplog.text
    calls.clear()
    again = Kept(tmp_path / "scores.jsonl", {"reward": "touchy"})
    assert RewardQuality(FunctionReward(touchy), again).score([demo("bad"), *rows]) == [None] + [6.0] * 7 and not calls
    with pytest.raises(RewardError, match="that is reply number 2"):
        RewardQuality(FunctionReward(touchy)).score([demo("bad"), demo("bad, too"), demo("fine")])


def points(text):
    """What a judge would say: of a long reply 3, of a short one 1, of one about prose no JSON."""
    reply = text.rpartition("[the reply]\n")[2]
    if "prose" in reply:
        return "I liked it."
    said = {"reason": "so", "points": 7 if "seven" in reply else 2 if "```" in reply else 3 if len(reply) > 8 else 1}
    return f"Let me see.\n```json\n{json.dumps(said)}\n```"


def section_of(server, **keys):
    return LLMQualitySection(kind="llm", url=server.url, model="m", **({"backoff": 0.01, "at_once": 1} | keys))


def test_points_of_a_rubric_are_shares_and_what_cannot_be_read_is_none(tmp_path, caplog):
    rows = [
        *(
            demo(reply)
            for reply in ("A pear, for one.", "A fig.", "some prose", "seven is off the scale", "```py\n1\n```")
        ),
        Comparison(USER, "A pear, for one.", "A fig."),
        Document("A text about pears."),
        EVERY_REPLY[-1],
    ]
    with chat_server(points) as server, caplog.at_level(logging.INFO):
        found = quality_scorer(section_of(server), str, tmp_path).score(rows)
        assert found == pytest.approx([1, 1 / 3, None, None, 1, 2 / 3, 1, None])
        assert len(server.bodies) == 6  # the comparison's replies were asked about already
        asked = [body["messages"][0]["content"] for body in server.bodies]
        assert sum("free of bugs" in one for one in asked) == 1 and sum("shown a document" in one for one in asked) == 1
        enums = [
            body["response_format"]["json_schema"]["schema"]["properties"]["points"]["enum"] for body in server.bodies
        ]
        assert sorted(enums, key=len) == [[0, 1, 2], *[[0, 1, 2, 3]] * 5]
        assert (
            "quality_of_replies: 4 requests, 0 answers from before, 2 unread, 0 refused; 400 and 28 tokens"
            in caplog.text
        )
        again = quality_scorer(section_of(server), str, tmp_path).score(rows)
        assert again == found and len(server.bodies) == 6  # another process asks nothing
        rubric = tmp_path / "rubric.txt"
        rubric.write_text("A point for every pear.")
        own = quality_scorer(section_of(server, rubric=str(rubric)), str, tmp_path)
        assert own.score([rows[4], rows[6]]) == pytest.approx([2 / 3, 1])  # of three points, code or not
        assert all("every pear" in body["messages"][0]["content"] for body in server.bodies[6:])
        own.score([replace(rows[0], tools=('{"name": "pick"}',))])
        assert '[tools on offer]\n{"name": "pick"}\n[user]\n' in server.bodies[-1]["messages"][0]["content"]


def test_a_busy_endpoint_is_waited_for_and_what_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RUBRIC_KEY", KEY)
    rows = [demo(f"A pear, number {n}.") for n in range(4)]
    with chat_server(points) as server:
        section = section_of(server, api_key_env="RUBRIC_KEY")
        server.statuses, server.retry_after = [429, 200, 503, 200, 401, 401], "0"
        with pytest.raises(RewardUnavailableError, match="status 401") as caught:
            quality_scorer(section, str, tmp_path).score(rows)
        assert "2 answers are kept in" in str(caught.value) and KEY not in str(caught.value)
        server.statuses, before = [], len(server.bodies)
        assert quality_scorer(section, str, tmp_path).score(rows) == [1.0] * 4
        assert len(server.bodies) == before + 2  # those that were not answered
        assert all(KEY not in file.read_text() for file in tmp_path.iterdir())
        assert KEY not in repr(section) and server.url not in repr(section)
        server.say = lambda text: "never any JSON"
        with pytest.raises(RewardError, match="gives no JSON of quality_of_replies"):
            quality_scorer(section, str).score(rows)


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [(None, MissingFileError, "the scorer 'llm': no such rubric"), (" \n", RunFileError, "is empty")],
)
def test_a_rubric_that_is_not_there_or_empty_is_named(tmp_path, content, error, told):
    rubric = tmp_path / "rubric.txt"
    if content is not None:
        rubric.write_text(content)
    section = LLMQualitySection(kind="llm", url="http://127.0.0.1:9", model="m", rubric=str(rubric))
    with pytest.raises(error, match=told):
        quality_scorer(section, str)


@pytest.mark.needs("sklearn")
def test_a_classifier_gives_the_probability_of_a_label_or_the_number_to_be_expected(tmp_path):
    texts = ["Name a fruit.\nA pear, which is a fruit.", "Name a fruit.\nlol no idea dude"] * 4
    TextClassifier.fit(texts, ["good", "bad"] * 4).save(tmp_path / "good")
    TextClassifier.fit(texts, ["4", "1"] * 4).save(tmp_path / "numbers")
    TextClassifier.fit(texts, [["x"], []] * 4, multi_label=True).save(tmp_path / "many")
    rows = [
        demo("A pear, which is a fruit."),
        demo("lol no idea dude"),
        Document("lol dude"),
        Prompt((Message("user", " "),)),
    ]

    def scorer(name, label=None):
        return quality_scorer(ClassifierSection(kind="classifier", path=str(tmp_path / name), label=label), str)

    good = TextClassifier.load(tmp_path / "good").probabilities([*texts[:2], "\nlol dude"])[:, 1]
    assert scorer("good", "good").score(rows) == pytest.approx([*good, None]) and good[0] > 0.6 > 0.4 > good[1]
    likely = TextClassifier.load(tmp_path / "numbers").probabilities(texts[:2])
    assert scorer("numbers").score(rows[:2]) == pytest.approx([1 * one[0] + 4 * one[1] for one in likely])
    assert len(scorer("many", "x").score(rows)) == 4
    for name, label, told in (
        ("good", "god", "has no label 'god'; did you mean 'good'"),
        ("good", "fine", "has no label 'fine'; it has bad, good"),
        ("good", None, "has labels that are no numbers .bad.; name the label"),
        ("many", None, "gives any number of labels; name the label"),
    ):
        with pytest.raises(ScorerError, match=told):
            scorer(name, label)
