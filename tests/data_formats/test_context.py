"""What a row says around its turns: the same system turn, history and context in every format that has a prompt."""

import json
from collections import Counter

import pytest

from data_formats import Comparison, DataError, Demonstration, Message, Prompt, Scored, read
from data_formats.formats import Dropped
from data_formats.turns import as_prompt, read_turns, without_flags

U, A, S, T = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system", "tool"))
RAW_U, RAW_A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
RAW_B = RAW_A | {"content": "bad"}
ASKED, ANSWERED = {"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}
SIDES = {"chosen": "good", "rejected": "bad"}
# Every shape that asks "q", with the kinds it is read as.
SHAPES = [
    ({"messages": [RAW_U, RAW_A]}, (Demonstration, Prompt)),
    ({"conversations": [ASKED, ANSWERED]}, (Demonstration, Prompt)),
    ({"instruction": "q", "output": "good"}, (Demonstration, Prompt)),
    ({"instruction": "q", "instances": [{"output": "good"}]}, (Demonstration, Prompt)),
    ({"question": "q", "answer": "good"}, (Demonstration, Prompt)),
    ({"question": "q", "response": "good"}, (Demonstration, Prompt)),
    ({"prompt": "q", "completion": "good"}, (Demonstration, Prompt)),
    ({"prompt": [RAW_U], "completion": "good"}, (Demonstration, Prompt)),
    ({"messages": [RAW_U, RAW_A], "label": True}, (Demonstration, Scored, Prompt)),
    ({"prompt": "q", "completion": "good", "label": True}, (Scored, Prompt)),
    ({"prompt": "q"} | SIDES, (Comparison, Prompt)),
    ({"prompt": [RAW_U], "chosen": [RAW_A], "rejected": [RAW_B]}, (Comparison, Prompt)),
    ({"prompt": "q", "chosen": [RAW_U, RAW_A], "rejected": [RAW_U, RAW_B]}, (Comparison, Prompt)),
    ({"conversations": [ASKED]} | SIDES, (Comparison, Prompt)),
    ({"chosen": [RAW_U, RAW_A], "rejected": [RAW_U, RAW_B]}, (Comparison,)),
    ({"chosen_messages": [RAW_U, RAW_A], "rejected_messages": [RAW_U, RAW_B]}, (Comparison,)),
    ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}, (Comparison,)),
    ({"question": "q", "response_j": "good", "response_k": "bad"}, (Comparison, Prompt)),
    ({"conversation_a": [RAW_U, RAW_A], "conversation_b": [RAW_U, RAW_B], "winner": "model_a"}, (Comparison,)),
    ({"instruction": "q", "output_1": "good", "output_2": "bad", "preference": 1}, (Comparison, Prompt)),
    (
        {
            "instruction": "q",
            "completions": [{"response": "good", "overall_score": 2}, {"response": "bad", "overall_score": 1}],
        },
        (Comparison, Scored, Prompt),
    ),
    (
        {"prompt": "q", "replies": [{"content": "good", "score": 2}, {"content": "bad", "score": 1}]},
        (Comparison, Scored, Prompt),
    ),
    (
        {"question": "q", "answers": [{"text": "good", "pm_score": 2}, {"text": "bad", "pm_score": 1}]},
        (Comparison, Scored, Prompt),
    ),
    (
        {
            "question": "q",
            "ground_truth": "1",
            "a": {"is_correct": True, "solution": "good"},
            "b": {"is_correct": False, "solution": "bad"},
        },
        (Comparison, Scored, Prompt),
    ),
    ({"prompt": "q", "edited": "best"} | SIDES, (Comparison, Scored, Prompt)),
    (
        {"question": "q", "preference": [1, 1, 1, 1, 1, 1]} | {f"prediction {n}": str(n) for n in range(1, 5)},
        (Comparison, Prompt),
    ),
    ({"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "score_A": 2, "score_B": 1}, (Comparison, Scored)),
    ({"question": {"problem": "q"}, "label": {"steps": [{"completions": [{"text": "good"}]}]}}, (Scored,)),
    ({"prompt": "q"}, (Prompt,)),
    ({"question": "q"}, (Prompt,)),
    ({"turns": ["q"]}, (Prompt,)),
]
EACH = [pytest.param(row, kind, id=f"{'-'.join(row)}-{kind.__name__}") for row, kinds in SHAPES for kind in kinds]


def read_row(tmp_path, row, kind):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return read(tmp_path / "x.jsonl", kind)


def context(record):
    """What comes before the (last) reply."""
    if isinstance(record, Demonstration):
        return without_flags(record.messages[:-1])
    return record.messages if isinstance(record, Prompt) else record.prompt


@pytest.mark.parametrize("field", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(("row", "kind"), EACH)
def test_a_system_prompt_of_the_row_stands_first_in_every_shape(tmp_path, row, kind, field):
    result = read_row(tmp_path, row | {field: "Be brief."}, kind)
    assert result.records and {context(record) for record in result.records} == {(S("Be brief."), U("q"))}
    assert read_row(tmp_path, row | {field: ""}, kind).records == read_row(tmp_path, row, kind).records


ASKING = ("prompt", "question", "instruction")
WITH_STRING = [case for case in EACH if any(case.values[0].get(name) == "q" for name in ASKING)]


@pytest.mark.parametrize(("row", "kind"), WITH_STRING)
def test_history_and_context_stand_in_the_prompt_of_every_shape_that_asks(tmp_path, row, kind):
    before = (U("hello"), A("hi"))
    for history in ([["hello", "hi"]], [RAW_U | {"content": "hello"}, RAW_A | {"content": "hi"}]):
        for record in read_row(tmp_path, row | {"history": history}, kind).records:
            assert context(record) == (*before, U("q"))
    for record in read_row(tmp_path, row | {"context": ["one", "two"], "system": "s"}, kind).records:
        assert context(record) == (S("s"), U("q\n\none\n\ntwo"))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("It began in 2000.", "q\n\nIt began in 2000."),
        (["a", "b"], "q\n\na\n\nb"),
        ([{"title": "T", "text": "body"}, {"content": "c", "id": 3}], "q\n\nT\nbody\n\nc"),
        ([["T", "one.", "two."]], "q\n\nT\none. two."),
        ("", "q"),
        (None, "q"),
        ([], "q"),
    ],
)
def test_context_is_a_text_or_documents(tmp_path, given, text):
    record = read_row(tmp_path, {"question": "q", "context": given, "answer": "good"}, Demonstration).records[0]
    assert record.messages == (U(text), A("good"))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"context": 5}, "context"),
        ({"context": {"title": ["T"], "sentences": [["a"]]}}, "context"),
        ({"history": 5}, "history"),
        ({"history": "hello"}, "history"),
        ({"history": [["a", "b", "c"]]}, "history[0]"),
        ({"system": 5}, "system"),
        ({"system_prompt": ["a"]}, "system_prompt"),
    ],
)
def test_what_is_none_of_these_is_refused_by_name(tmp_path, more, field):
    for kind in (Demonstration, Prompt):
        with pytest.raises(DataError) as caught:
            read_row(tmp_path, {"question": "q", "answer": "good"} | more, kind)
        assert caught.value.field == field


def test_two_system_texts_become_one_and_are_counted(tmp_path):
    turns = [{"role": "system", "content": "Be kind."}, RAW_U, RAW_A]
    result = read_row(tmp_path, {"messages": turns, "system": "Be brief."}, Demonstration)
    assert result.records[0].messages[0] == S("Be brief.\n\nBe kind.")
    assert result.report.repaired == {"consecutive turns of one speaker merged": 1}
    same = read_row(tmp_path, {"messages": turns, "system": "Be kind.", "system_prompt": " Be kind. "}, Demonstration)
    assert (same.records[0].messages[0], same.report.repaired) == (S("Be kind."), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\nHuman: Hi\n\nAssistant:", [U("Hi")]),
        ("\n\nHuman: Hi", [U("Hi")]),
        ("Human: Hi\n\nAssistant: Hello\n\nHuman: More?\n\nAssistant: ", [U("Hi"), A("Hello"), U("More?")]),
        ("Human: a\nAssistant: b\nHuman: c\nAssistant:", [U("a"), A("b"), U("c")]),
        ("USER: a\n\nASSISTANT: b\n\nUSER: c", [U("a"), A("b"), U("c")]),
        ("### Human: a\n### Assistant:", [U("a")]),
        ('[{"role": "user", "content": "Hi"}]', [U("Hi")]),
        (' [{"from": "system", "value": "s"}, {"from": "human", "value": "Hi"}]', [S("s"), U("Hi")]),
        # what may be anything else stays the text it is
        ("Human: who are you?", None),
        ("Human: a\nAssistant: b", None),
        ("Human: a\n\nAssistant: b", None),
        ("Summarise this.\n\nHuman: a\n\nAssistant: b\n\nHuman: c", None),
        ("User: name\nPassword: x", None),
        ("I said Human: no", None),
        ("[1, 2, 3]", None),
        ('["a", "b"]', None),
        ("[]", None),
        ('[{"name": "x"}]', None),
        ('[{"role": "user", "content": "Hi"}', None),
    ],
)
def test_transcripts_and_lists_in_a_string(text, said):
    assert as_prompt(text, "prompt", Counter()) == (tuple(said) if said else (U(text),))


def test_a_transcript_is_counted_and_one_that_ends_with_a_reply_is_no_prompt():
    notes = Counter()
    as_prompt("\n\nHuman: Hi\n\nAssistant:", "prompt", notes)
    assert notes == {"transcript read as turns": 1}
    with pytest.raises(Dropped, match="prompt does not end with a user turn"):
        as_prompt("\n\nHuman: Hi\n\nAssistant: Sure, ", "prompt", Counter())


@pytest.mark.parametrize(("row", "kind"), WITH_STRING)
def test_every_shape_with_a_prompt_string_reads_them(tmp_path, row, kind):
    field = next(name for name in ASKING if row.get(name) == "q")
    turns = [U("Hi"), A("Hello"), U("More?")]
    listed = json.dumps([{"role": turn.role, "content": turn.content} for turn in turns])
    for text in ("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More?\n\nAssistant:", listed):
        if isinstance(row.get("chosen"), list):
            continue  # whose turns say what was asked
        records = read_row(tmp_path, row | {field: text}, kind).records
        assert records and {context(record) for record in records} == {tuple(turns)}


def test_a_list_of_turns_may_be_json_text(tmp_path):
    record = read_row(tmp_path, {"messages": json.dumps([RAW_U, RAW_A])}, Demonstration).records[0]
    assert record.messages == (U("q"), A("good"))
    with pytest.raises(DataError, match="field 'messages': expected a list of turns"):
        read_turns("[1]", "messages", Counter())


def test_the_turns_of_a_prompt_are_not_trained_on_with_its_completion(tmp_path):
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More?\n\nAssistant:"
    for prompt in (text, [RAW_U | {"content": "Hi"}, RAW_A | {"content": "Hello"}, RAW_U | {"content": "More?"}]):
        record = read_row(tmp_path, {"prompt": prompt, "completion": "good"}, Demonstration).records[0]
        assert record.messages == (U("Hi"), Message("assistant", "Hello", loss=False), U("More?"), A("good"))


def test_the_blank_behind_a_transcript_s_label_is_no_text_of_the_reply(tmp_path):
    asked = {"prompt": "\n\nHuman: Hi\n\nAssistant:"}
    demo = read_row(tmp_path, asked | {"completion": " good"}, Demonstration).records[0]
    unpaired = read_row(tmp_path, asked | {"completion": " good", "label": True}, Scored).records[0]
    pair = read_row(tmp_path, asked | {"chosen": " good", "rejected": " bad"}, Comparison).records[0]
    assert (demo.messages[-1], unpaired.replies[0].content, pair.chosen, pair.rejected) == (
        A("good"),
        "good",
        "good",
        "bad",
    )
    plain = read_row(tmp_path, {"prompt": "Hi", "completion": " good"}, Demonstration).records[0]
    assert plain.messages[-1] == A(" good")


def test_the_same_context_by_any_name_and_as_json_text(tmp_path):
    for name in ("context", "contexts", "passage", "passages", "document", "documents"):
        for kind in (Demonstration, Prompt):
            record = read_row(tmp_path, {"question": "q", name: "text", "answer": "good"}, kind).records[0]
            assert context(record) == (U("q\n\ntext"),)
    row = {"instruction": "q", "output": "good", "history": json.dumps([["hello", "hi"]])}
    assert context(read_row(tmp_path, row, Demonstration).records[0]) == (U("hello"), A("hi"), U("q"))


def test_a_history_that_cannot_be_a_context_is_dropped_and_counted(tmp_path):
    for history, reason in (
        ([RAW_U, RAW_U, RAW_A, RAW_B], None),
        ([["hello", ""]], "empty turn in the prompt"),
    ):
        result = read_row(tmp_path, {"question": "q", "history": history, "answer": "good"}, Demonstration)
        if reason is None:
            assert result.records[0].messages == (U("q\n\nq"), A("good\n\nbad"), U("q"), A("good"))
            assert result.report.repaired == {"consecutive turns of one speaker merged": 1}
        else:
            assert (result.records, result.report.dropped) == ([], {reason: 1})
