"""Preference rows with a history: all of it is the prompt, and rows whose sides differ in it are no pairs; labels that
hang on a last reply; and what compared replies thought."""

import json
from collections import Counter

import pytest

from data_formats import Comparison, DataError, Demonstration, Message, Prompt, Scored, read, write_jsonl
from data_formats.comparisons import parse_conversation_pair, parse_preference
from data_formats.formats import Dropped
from data_formats.records import Reply
from data_formats.scored import parse_kto, parse_unpaired

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))
ANN = (U("I am Ann."), A("Hi Ann."), U("Who am I?"))
PLACES = {"user": "human", "assistant": "gpt", "system": "system"}


def raw(*turns, sharegpt=False):
    if sharegpt:
        return [{"from": PLACES[turn.role], "value": turn.content} for turn in turns]
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def read_row(tmp_path, row, kind):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return read(tmp_path / "x.jsonl", kind)


GOOD, BAD = raw(*ANN, A("Ann.")), raw(*ANN, A("No idea."))


@pytest.mark.parametrize(
    "prompt",
    [
        "Who am I?",
        "I am Ann.",
        " Who am I?\n",
        raw(*ANN),
        raw(ANN[-1]),
        raw(ANN[0]),
        json.dumps(raw(*ANN)),
        str(raw(*ANN)),
        json.dumps(raw(ANN[-1])[0]),
        "\n\nHuman: I am Ann.\n\nAssistant: Hi Ann.\n\nHuman: Who am I?\n\nAssistant:",
    ],
)
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (GOOD, BAD),
        (raw(*ANN, A("Ann."), sharegpt=True), BAD),
        (json.dumps(GOOD), json.dumps(BAD)),
        (str(GOOD), BAD),
        (json.dumps(GOOD[-1]), BAD),
    ],
)
def test_the_whole_history_is_the_prompt(prompt, chosen, rejected):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert parse_preference(row, Counter()) == Comparison(ANN, "Ann.", "No idea.")


@pytest.mark.parametrize("written", [json.dumps, str, lambda value: value])
def test_the_prompt_of_a_pair_is_the_same_without_its_replies(tmp_path, written):
    for prompt in ("Who am I?", "I am Ann.", raw(*ANN)):
        row = {"prompt": prompt, "chosen": written(GOOD), "rejected": written(BAD)}
        assert read_row(tmp_path, row, Prompt).records == [Prompt(ANN)]
    apart = {"prompt": "Hi", "chosen": raw(A("a"), U("b"), A("c")), "rejected": raw(A("x"), U("b"), A("d"))}
    assert read_row(tmp_path, apart, Prompt).records == [Prompt((U("Hi"),))]
    other = {"prompt": "Who am I?", "chosen": GOOD, "rejected": raw(U("I am Bob."), *ANN[1:], A("Bob."))}
    assert read_row(tmp_path, other, Prompt).report.dropped == {"prompts differ": 1}
    broken = {"prompt": "Hi", "chosen": None, "rejected": [{"role": "alien"}]}  # no prompt hangs on these
    assert read_row(tmp_path, broken, Prompt).records == [Prompt((U("Hi"),))]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        # one side alone has the history; the prompt may hold more than the sides, or the system turn
        ({"prompt": "Who am I?", "chosen": GOOD, "rejected": "No idea."}, ANN),
        ({"prompt": raw(*ANN), "chosen": raw(ANN[-1], A("Ann.")), "rejected": raw(A("No idea."))}, ANN),
        ({"prompt": raw(S("s"), *ANN), "chosen": GOOD, "rejected": BAD}, (S("s"), *ANN)),
        ({"prompt": raw(S("s"), ANN[0]), "chosen": GOOD, "rejected": BAD}, (S("s"), *ANN)),
        ({"prompt": "I am Ann.", "chosen": raw(S("s"), *ANN, A("Ann.")), "rejected": BAD}, None),
        (
            {
                "prompt": "I am Ann.",
                "chosen": raw(S("s"), *ANN, A("Ann.")),
                "rejected": raw(S("s"), *ANN, A("No idea.")),
            },
            (S("s"), *ANN),
        ),
        ({"prompt": "Who am I?", "system": "s", "chosen": GOOD, "rejected": BAD}, (S("s"), *ANN)),
        # the sides go on from the prompt
        ({"prompt": "I am Ann.", "chosen": raw(*ANN[1:], A("Ann.")), "rejected": raw(*ANN[1:], A("No idea."))}, ANN),
        ({"prompt": "I am Ann.", "chosen": raw(*ANN[1:], A("Ann.")), "rejected": "No idea."}, None),
        ({"prompt": "I am Ann.", "chosen": raw(A("a"), U("b"), A("Ann.")), "rejected": raw(*ANN[1:], A("c"))}, None),
        # another conversation, or another history
        ({"prompt": "Who are you?", "chosen": GOOD, "rejected": BAD}, None),
        ({"prompt": "Hi Ann.", "chosen": GOOD, "rejected": BAD}, None),
        ({"prompt": "Who am I?", "chosen": GOOD, "rejected": raw(U("I am Bob."), *ANN[1:], A("Bob."))}, None),
        ({"prompt": "Who am I?", "chosen": GOOD, "rejected": raw(ANN[-1], A("Bob."))}, None),
        ({"prompt": raw(S("s"), *ANN), "chosen": raw(S("t"), *ANN, A("Ann.")), "rejected": BAD}, None),
    ],
)
def test_histories_are_reconciled_or_the_row_dropped(row, prompt):
    if prompt is None:
        with pytest.raises(Dropped, match=r"^prompts differ$"):
            parse_preference(row, Counter())
    else:
        assert parse_preference(row, Counter()) == Comparison(prompt, "Ann.", "No idea.")


def test_sides_as_transcripts_beside_a_prompt():
    text = "\n\nHuman: I am Ann.\n\nAssistant: Hi Ann.\n\nHuman: Who am I?\n\nAssistant:"
    row = {"prompt": text, "chosen": f"{text} Ann.", "rejected": f"{text} No idea."}
    assert parse_preference(row, Counter()) == Comparison(ANN, "Ann.", "No idea.")
    script = "Human: hi\n\nAssistant: hello"  # a reply that is a dialogue
    row = {"prompt": "Write a dialogue.", "chosen": script, "rejected": "no"}
    assert parse_preference(row, Counter()) == Comparison((U("Write a dialogue."),), script, "no")


def test_without_a_prompt_the_common_history_is_it():
    for nothing in (None, "", []):
        row = {"prompt": nothing, "chosen": GOOD, "rejected": BAD}
        assert parse_preference(row, Counter()) == Comparison(ANN, "Ann.", "No idea.")
    assert parse_conversation_pair({"chosen": GOOD, "rejected": BAD}, Counter()) == Comparison(ANN, "Ann.", "No idea.")
    other = raw(U("I am Bob."), *ANN[1:], A("Bob."))
    with pytest.raises(Dropped, match=r"^prompts differ$"):
        parse_conversation_pair({"chosen": GOOD, "rejected": other}, Counter())


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([U("a"), A("b"), U("c"), A(" ")], "empty reply"),
        ([U("a"), A("b"), U("c"), A("")], "empty reply"),
        ([U("a"), A("b"), U("c")], "ends without reply"),
        ([U("a"), A("b"), U(""), A("d")], "empty turn in the prompt"),
        ([U("a"), A(""), U("c"), A("d")], "empty turn in the prompt"),
        ([U("a"), A("b"), A("c")], "prompt does not end with a user turn"),
        ([], "ends without reply"),
    ],
)
def test_where_a_label_hangs_on_the_last_reply_nothing_is_cut(tmp_path, turns, reason):
    row = {"messages": raw(*turns), "label": True}
    with pytest.raises(Dropped, match=f"^{reason}$"):
        parse_kto(row, Counter())
    for kind in (Scored, Demonstration):
        result = read_row(tmp_path, row, kind)
        assert (result.records, result.report.dropped) == ([], {reason: 1})


def test_where_an_answer_hangs_on_the_last_question_nothing_is_cut(tmp_path):
    row = {"messages": raw(U("1+1?"), A("2"), U(""), A("x")), "ground_truth": "7"}
    assert read_row(tmp_path, row, Prompt).report.dropped == {"empty turn in the prompt": 1}
    whole = read_row(tmp_path, {"messages": raw(U("1+1?"), A("2"), U("3+4?")), "ground_truth": "7"}, Prompt)
    assert [(prompt.messages[-1], prompt.reference) for prompt in whole.records] == [(U("3+4?"), "7")]


@pytest.mark.parametrize(
    ("label", "score"),
    [(True, 1.0), (1, 1.0), (1.0, 1.0), ("true", 1.0), ("1", 1.0), (False, 0.0), (0, 0.0), ("False", 0.0)],
)
def test_labels_are_flags_in_any_spelling(label, score):
    unpaired = parse_unpaired({"prompt": "q", "completion": "r", "label": label}, Counter())
    kto = parse_kto({"messages": raw(U("q"), A("r")), "label": label}, Counter())
    assert unpaired == kto == Scored((U("q"),), (Reply("r", score),))


@pytest.mark.parametrize("label", [2, -1, 0.5, "good", "", None, [], {}])
def test_other_labels_are_refused_by_name(tmp_path, label):
    for row in ({"prompt": "q", "completion": "r", "label": label}, {"messages": raw(U("q"), A("r")), "label": label}):
        with pytest.raises(DataError, match="line 1, field 'label': expected true or false, 1 or 0, found"):
            read_row(tmp_path, row, Scored)


def thinking(content, thought, key="reasoning_content"):
    return {"role": "assistant", "content": content, key: thought}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_compared_replies_keep_what_they_thought(tmp_path, key):
    good, bad = thinking("51", "17*3 = 51", key), thinking("51", "a guess", key)
    asked = raw(U("17*3?"))
    about = {"chosen_reasoning": "17*3 = 51", "rejected_reasoning": "a guess"}
    expected = Comparison((U("17*3?"),), "51", "51", **about)
    parts = good | {"content": [{"type": "thinking", "thinking": "17*3 = 51"}, {"type": "text", "text": "51"}]}
    for row in (
        {"prompt": "17*3?", "chosen": [good], "rejected": [bad]},
        {"prompt": "17*3?", "chosen": good, "rejected": bad},
        {"prompt": "17*3?", "chosen": parts, "rejected": bad},
        {"chosen": [*asked, good], "rejected": [*asked, bad]},
        {"conversations": asked, "chosen": good, "rejected": bad},
        {"conversation_a": [*asked, bad], "conversation_b": [*asked, good], "winner": "model_b"},
    ):
        result = read_row(tmp_path, row, Comparison)
        assert result.records == [expected], row
        write_jsonl(tmp_path / "y.jsonl", result.records)
        assert read(tmp_path / "y.jsonl", Comparison).records == [expected]
    assert expected.swapped() == Comparison((U("17*3?"),), "51", "51", None, "", "", (), (), "a guess", "17*3 = 51")
    same = {"prompt": "17*3?", "chosen": [good], "rejected": [good]}
    assert read_row(tmp_path, same, Comparison).report.dropped == {"identical replies": 1}


def test_scored_replies_keep_what_they_thought(tmp_path):
    kto = {"messages": [*raw(U("q")), thinking("r", "t")], "label": 1}
    unpaired = {"prompt": "q", "completion": [thinking("r", "t")], "label": 1}
    column = {"prompt": "q", "completion": "r", "reasoning": "t", "label": 1}
    expected = Scored((U("q"),), (Reply("r", 1.0, (), "t"),))
    for row in (kto, unpaired, column):
        assert read_row(tmp_path, row, Scored).records == [expected]
    replies = (Reply("r", 2.0, (), "t"), Reply("r", 1.0, (), "u"), Reply("r", 0.0, (), "u"))
    write_jsonl(tmp_path / "y.jsonl", [Scored((U("q"),), replies)])
    assert read(tmp_path / "y.jsonl", Scored).records == [Scored((U("q"),), replies)]
    pairs = read(tmp_path / "y.jsonl", Comparison)
    assert [(one.chosen_reasoning, one.rejected_reasoning, one.grade) for one in pairs.records] == [
        ("t", "u", 1.0),
        ("t", "u", 2.0),
    ]
    assert pairs.report.left_out == {"pairs of equal score": 1}  # the same thought and the same reply
