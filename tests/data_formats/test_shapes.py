"""Rows in the shapes of public data sets, made up after their cards: each is read by what it means."""

import json

import pytest

from data_formats import Comparison, DataError, Demonstration, Message, Prompt, Reply, Scored, ToolCall, read
from data_formats.detection import detect


def S(text):
    return Message("system", text)


def U(text):
    return Message("user", text)


def A(text, **rest):
    return Message("assistant", text, **rest)


@pytest.fixture
def result_of(tmp_path):
    """What is read from a file of these rows."""

    def read_rows(rows, kind, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])))
        return read(path, kind, **options)

    return read_rows


@pytest.fixture
def pairs_of(result_of):
    """(prompt's last text, chosen, rejected, grade) of each comparison, and the format."""

    def made(rows, **options):
        result = result_of(rows, Comparison, **options)
        found = [(one.prompt[-1].content, one.chosen, one.rejected, one.grade) for one in result.records]
        return found, result.report.format

    return made


PAIR = {"prompt": "q", "response_1": "a", "response_2": "b"}
LETTERS = {"question": "q", "response_A": "a", "response_B": "b"}


@pytest.mark.parametrize(
    ("row", "chosen", "grade"),
    [
        (LETTERS | {"pair_id": 1, "response_model": "m", "label": "A>B"}, "a", None),  # JudgeBench
        (LETTERS | {"label": "B>A"}, "b", None),
        (LETTERS | {"label": "A<B"}, "b", None),
        (LETTERS | {"verdict": "[[A>>B]]"}, "a", None),  # Arena-Hard
        (PAIR | {"winner": "model_a", "language": "English"}, "a", None),  # PPE, human preference
        (PAIR | {"winner": "model_b"}, "b", None),
        (PAIR | {"preference": 1}, "a", None),
        (PAIR | {"preference": "2"}, "b", None),
        (PAIR | {"label": 2.0}, "b", None),
        (PAIR | {"preferred": "Response 2"}, "b", None),
        (PAIR | {"choice": "first"}, "a", None),
        (PAIR | {"preference_strength": -3, "preference_statement": "…"}, "a", 3.0),  # HelpSteer 2
        (PAIR | {"preference_strength": "2"}, "b", 2.0),  # from CSV
        (
            {
                "context": [{"role": "user", "content": "q"}],
                "response1": "a",
                "response2": "b",
                "overall_preference": 1,
            },
            "b",
            1,
        ),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "label": 1}, "a", None),
        ({"query": "q", "answer_a": "a", "answer_b": "b", "winner": "answer_b"}, "b", None),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "label": 0}, "a", None),
        ({"instruction": "q", "response_a": "a", "response_b": "b", "chosen": "B"}, "b", None),
        ({"context": [{"role": "user", "content": "q"}], "original_response": "a", "edited_response": "b"}, "b", None),
        (
            {"context": [{"role": "user", "content": "q"}], "original_response": "x"}
            | {"good_edited_response": "a", "bad_edited_response": "b", "feedback": ["f"]},
            "a",
            None,
        ),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "safer_response_id": 1}, "b", None),
        (
            {"messages": [{"role": "user", "content": "q"}], "completion_a": "a", "completion_b": "b", "better": "A"},
            "a",
            None,
        ),
    ],
)
def test_two_replies_and_a_verdict(pairs_of, row, chosen, grade):
    other = {"a": "b", "b": "a"}[chosen]
    assert pairs_of(row)[0] == [("q", chosen, other, grade)]


@pytest.mark.parametrize("value", ["tie", "A=B", "Tie (bothbad)", "both_bad", "neither", None, ""])
def test_no_winner_is_dropped_and_counted(result_of, value):
    rows = [PAIR | {"winner": value}, PAIR | {"winner": "1"}]
    report = result_of(rows, Comparison).report
    assert report.dropped == {"no verdict" if not value else "tie": 1}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (PAIR | {"label": 0}, "label"),  # of 0 and 1, or of 1 and 2?
        (PAIR | {"winner": True}, "winner"),
        (PAIR | {"preference": 1.4}, "preference"),
        (PAIR | {"label": -1}, "label"),  # the sign of a comparison: 1 and -1 are no two names of one reply
        (PAIR | {"label": "-2"}, "label"),
        (LETTERS | {"label": 1}, "label"),  # the second, or "the first is better"?
        (PAIR | {"winner": "gpt-4"}, "winner"),
    ],
)
def test_a_verdict_that_names_no_reply_is_refused(result_of, row, field):
    with pytest.raises(DataError, match=rf"line 1, field '{field}': .* names neither .* nor .*; write one of"):
        result_of(row, Comparison)


def test_two_verdicts_are_told_apart_by_name(pairs_of):
    row = PAIR | {"label": 1, "winner": "2"}
    with pytest.raises(DataError, match="could be by_winner or by_label; say which with 'format'"):
        pairs_of(row)
    assert pairs_of(row, format="by_winner") == ([("q", "b", "a", None)], "by_winner")


def test_helpsteer_prompts_are_parted_into_turns(result_of):
    text = "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree"
    row = {"prompt": text, "response_1": "a", "response_2": "b", "preference_strength": 1}
    for kind in (Comparison, Prompt):
        (record,) = result_of(row, kind).records
        assert (record.messages if kind is Prompt else record.prompt) == (U("one"), A("two"), U("three"))


def test_pku_by_better_and_by_safer(pairs_of):
    row = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    assert pairs_of(row) == ([("q", "a", "b", None)], "pku")
    assert pairs_of(row, format="pku_safer") == ([("q", "b", "a", None)], "pku_safer")


def test_arena_votes(result_of):
    row = {"prompt": '["q", "p"]', "response_a": '["a", "same"]', "response_b": '["b", "same"]', "winner_tie": 0}
    rows = [
        row | {"winner_model_a": 0, "winner_model_b": 1},
        row | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
        row
        | {"prompt": '["q"]', "response_a": "[null]", "response_b": '["b"]', "winner_model_a": 1, "winner_model_b": 0},
        {**row, "response_a": '["a"]', "winner_model_a": 1, "winner_model_b": 0},
        row | {"response_b": '["a", "same"]', "winner_model_a": 1, "winner_model_b": 0},
        row | {"response_b": '["a", "b"]', "winner_model_a": 1, "winner_model_b": 0},
    ]
    result = result_of(rows, Comparison)
    (first, last) = result.records
    assert (first.prompt, first.chosen_turns, first.chosen) == ((U("q"),), (A("b"), U("p")), "same")
    assert (first.rejected_turns, first.rejected) == ((A("a"), U("p")), "same")
    assert (last.prompt, last.chosen_turns, last.chosen, last.rejected) == ((U("q"), A("a"), U("p")), (), "same", "b")
    dropped = {"tie": 1, "empty reply": 1, "not a reply to every turn": 1, "identical replies": 1}
    assert result.report.dropped == dropped


def test_mt_bench_judgments_are_about_their_turn(result_of):
    def said(*replies):
        return [
            turn
            for at, text in enumerate(replies)
            for turn in ({"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": text})
        ]

    row = {"conversation_a": said("a", "c"), "conversation_b": said("b", "d"), "winner": "model_b"}
    first, second = result_of([row | {"turn": 1}, row | {"turn": 2}], Comparison).records
    assert (first.prompt, first.chosen, first.rejected, first.chosen_turns) == ((U("q0"),), "b", "a", ())
    assert (second.prompt, second.chosen, second.rejected) == ((U("q0"),), "d", "c")
    assert (second.chosen_turns, second.rejected_turns) == ((A("b"), U("q1")), (A("a"), U("q1")))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "q", "input": "x"}, (U("q\nx"),)),  # LLaMA-Factory
        ({"system": "s", "question": "q"}, (S("s"), U("q"))),  # Orca's DPO pairs
        ({"query": "q"}, (U("q"),)),
        ({"input": "q"}, (U("q"),)),
        ({"prompt": "q", "question": "other"}, (U("q"),)),
    ],
)
def test_chosen_and_rejected_to_a_question_of_any_name(result_of, row, prompt):
    (pair,) = result_of(row | {"chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}, Comparison).records
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "a", "b")


def test_a_label_beside_a_response(result_of):
    rows = [{"prompt": "q", "response": "a", "label": 1}, {"prompt": "q", "response": "b", "label": False}]
    assert [one.replies[0].score for one in result_of(rows, Scored).records] == [1.0, 0.0]
    with pytest.raises(DataError, match="field 'label': unpaired labelled replies are not supported"):
        result_of(rows, Demonstration)  # which of them are to be imitated?


def test_reward_bench(result_of):
    row = {"prompt": "q", "chosen": "a", "chosen_model": "m", "rejected": "b", "rejected_model": "n", "subset": "hep"}
    result = result_of(row | {"id": 3}, Comparison)
    assert result.records == [Comparison((U("q"),), "a", "b", category="hep")]
    assert not result.report.passed_over


def test_rm_bench_pairs_every_style_and_tags_how_hard_it_is(result_of):
    row = {"id": "1", "prompt": "q", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": "math"}
    found = {(one.chosen, one.rejected): one.tags for one in result_of(row, Comparison).records}
    hard, normal, easy = (
        {pair for pair, tags in found.items() if tags == (tag,)} for tag in ("hard", "normal", "easy")
    )
    assert hard == {("c0", "r1"), ("c0", "r2"), ("c1", "r2")}  # plainer than the wrong one
    assert normal == {("c0", "r0"), ("c1", "r1"), ("c2", "r2")}
    assert easy == {("c1", "r0"), ("c2", "r0"), ("c2", "r1")}
    assert {one.category for one in result_of(row, Comparison).records} == {"math"}
    with pytest.raises(DataError, match="no scored format"):  # its tags would be lost
        result_of(row, Scored)


def test_one_chosen_and_several_rejected(result_of, pairs_of):
    row = {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}
    assert pairs_of(row) == ([("q", "a", "b", 1.0), ("q", "a", "c", 1.0)], "best_of")
    turns = {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}
    assert detect(turns, Comparison).name == "preference"  # a list of turns is one reply


def test_ppe_correctness(result_of):
    row = {
        "question_id": "1",
        "prompt": "q",
        "category": "maths",
        "response_2": "b",
        "response_1": "a",
        "response_10": "j",
    }
    (one,) = result_of(row | {"scores": [True, False, True]}, Scored).records
    assert [(reply.content, reply.score) for reply in one.replies] == [("a", 1), ("b", 0), ("j", 1)]
    (one,) = result_of({"prompt": "q", "responses": ["a", "b"], "scores": ["0.5", 2]}, Scored).records
    assert [(reply.content, reply.score) for reply in one.replies] == [("a", 0.5), ("b", 2)]
    with pytest.raises(DataError, match="field 'scores': expected a score for each response, found 1 scores of 2 resp"):
        result_of({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, Scored)


def rated(prompt, response, helpfulness):
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 3, "verbosity": 1}


def test_helpsteer_rows_of_one_prompt_are_one(result_of, pairs_of):
    rows = [rated("q", "a", 4), rated("q", "b", 2), rated("p", "c", 1), rated("o", "d", 3), rated("o", "e", 3)]
    scored = result_of(rows, Scored)
    assert [[reply.content for reply in one.replies] for one in scored.records] == [["a", "b"], ["c"], ["d", "e"]]
    assert scored.records[0].replies[1] == Reply(
        "b", 2.0, attributes=(("helpfulness", 2.0), ("correctness", 3.0), ("verbosity", 1.0))
    )
    assert (scored.report.rows, scored.report.used, scored.report.records) == (5, 5, 3)
    assert pairs_of(rows) == ([("q", "a", "b", 2.0)], "helpsteer")
    assert result_of(rows, Comparison).report.dropped == {"a single reply": 1, "tie": 2}
    rows[1]["helpfulness"] = "much"
    with pytest.raises(DataError, match="line 2, field 'helpfulness': expected a finite number, found 'much'"):
        result_of(rows, Scored)


def test_beavertails(result_of, pairs_of):
    harms = {"drugs": True, "theft": False, "violence": True}
    row = {"prompt": "q", "response": "a", "category": harms, "is_safe": False}
    rows = [row, row | {"response": "b", "category": dict.fromkeys(harms, False), "is_safe": True}]
    (one,) = result_of(rows, Scored).records
    assert one.category == "drugs, violence"
    assert [(reply.content, reply.score, dict(reply.attributes)) for reply in one.replies] == [
        ("a", 0.0, {"drugs": 1.0, "violence": 1.0}),
        ("b", 1.0, {}),
    ]
    assert pairs_of(rows) == ([("q", "b", "a", 1.0)], "beavertails")
    safe = result_of(rows, Demonstration)
    assert ([one.messages for one in safe.records], safe.report.dropped) == ([(U("q"), A("b"))], {"unsafe reply": 1})


def test_a_score_beside_each_response(result_of):
    rows = [{"question": "q", "response": "a", "score": "4.5"}, {"question": "q", "response": "b", "score": 1}]
    (one,) = result_of(rows, Scored).records
    assert [(reply.content, reply.score) for reply in one.replies] == [("a", 4.5), ("b", 1.0)]


POST = {"id": "t3", "subreddit": "tea", "title": "T", "post": "P"}


def test_summaries_from_feedback(result_of, pairs_of):
    row = {"info": POST, "summaries": [{"text": "a", "policy": "x", "note": None}, {"text": "b", "policy": "y"}]}
    asked = "SUBREDDIT: r/tea\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"
    assert pairs_of(row | {"choice": 1, "worker": "w", "extra": {"confidence": 3}})[0] == [(asked, "b", "a", None)]
    (prompt,) = result_of(row | {"choice": 1}, Prompt).records
    assert prompt.messages == (U(asked),)
    axes = {"overall": 6, "accuracy": 7, "coverage": None}
    rows = [
        {"info": {"article": "P"}, "summary": {"text": text, "axes": axes | {"overall": score}}}
        for text, score in (("a", 6), ("b", 2))
    ]
    (one,) = result_of(rows, Scored).records
    assert one.prompt == (U("Article: P\n\nTL;DR:"),)
    assert [(reply.score, dict(reply.attributes)) for reply in one.replies] == [
        (6, {"overall": 6, "accuracy": 7}),
        (2, {"overall": 2, "accuracy": 7}),
    ]


def message(name, parent, role, text, rank=None, **rest):
    return {
        "message_id": name,
        "parent_id": parent,
        "role": role,
        "text": text,
        "rank": rank,
        "message_tree_id": "t",
    } | rest


FLAT = [
    message("1", None, "prompter", "q"),
    message("2", "1", "assistant", "best", 0, review_result=True, detoxify={"toxicity": 0.1}),
    message("3", "2", "prompter", "p"),
    message("4", "3", "assistant", "last", 0),
    message("5", "1", "assistant", "worse", 1),
    message("6", "1", "assistant", "gone", 2, deleted=True),
    message("7", "1", "assistant", "spam", 3, review_result=False),
]


def nested(rows, parent=None):
    names = ("text", "role", "rank", "review_result", "deleted")
    return [
        {name: row[name] for name in names if name in row} | {"replies": nested(rows, row["message_id"])}
        for row in rows
        if row["parent_id"] == parent
    ]


@pytest.mark.parametrize("rows", [FLAT, {"message_tree_id": "t", "tree_state": "ready", "prompt": nested(FLAT)[0]}])
def test_oasst_trees_whole_and_by_message(result_of, rows):
    (one,) = result_of(rows, Scored).records
    assert one.prompt == (U("q"),)
    assert [(reply.content, reply.score) for reply in one.replies] == [("best", 0.0), ("worse", -1.0)]
    (pair,) = result_of(rows, Comparison).records
    assert (pair.chosen, pair.rejected, pair.grade) == ("best", "worse", 1.0)
    told = result_of(rows, Demonstration)
    assert told.records[0].messages == (U("q"), A("best"), U("p"), A("last"))
    assert told.report.left_out == {"messages off the best path": 1}
    assert not told.report.passed_over
    assert result_of(rows, Prompt).records[0].messages == (U("q"),)


def test_an_oasst_message_without_its_tree(result_of):
    report = result_of([*FLAT, message("9", "8", "assistant", "r", 0) | {"message_tree_id": "u"}], Demonstration).report
    assert (report.used, report.dropped) == (7, {"no tree with one first message": 1})


def turn(human, moss, thoughts="None", commands="None", results="None"):
    parts = {"Human": (human, "eoh"), "Inner Thoughts": (thoughts, "eot"), "Commands": (commands, "eoc")}
    parts |= {"Tool Responses": (results, "eor"), "MOSS": (moss, "eom")}
    return {name: f"<|{name}|>: {text}<{end}>\n" for name, (text, end) in parts.items()}


def test_moss(result_of):
    used = turn("1+1?", "2.", "I compute.", 'Calculate("1+1"), Search("two")', "2")
    row = {
        "conversation_id": "1",
        "meta_instruction": "You are MOSS.",
        "num_turns": 2,
        "chat": {"turn_2": used, "turn_1": turn("Hi", "Yo")},
    }
    calls = (ToolCall("Calculate", '{"input": "1+1"}'), ToolCall("Search", '{"input": "two"}'))
    messages = (
        S("You are MOSS."),
        U("Hi"),
        A("Yo"),
        U("1+1?"),
        A("", reasoning="I compute.", tool_calls=calls),
        Message("tool", "2"),
        A("2."),
    )
    assert result_of(row, Demonstration).records[0].messages == messages
    assert result_of(row, Prompt).records[0].messages == messages[:-1]
    row = {
        "num_turns": 1,
        "prefix": "S",
        "plain_text": "[Human]: Hi<eoh>\n[MOSS]: Yo<eoa>\n[Human]: p<eoh>\n[MOSS]: r<eoa>",
    }
    assert result_of(row, Demonstration).records[0].messages == (S("S"), U("Hi"), A("Yo"), U("p"), A("r"))


def test_bfcl(result_of):
    function = {"name": "area", "parameters": {"type": "dict", "properties": {"b": {"type": "integer"}}}}
    row = {"id": "simple_0", "question": [[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]]}
    (prompt,) = result_of(row | {"function": [function], "ground_truth": [{"area": {"b": [10]}}]}, Prompt).records
    assert (prompt.messages, prompt.tools) == ((S("s"), U("q")), (json.dumps(function),))
    assert prompt.reference == '[{"area": {"b": [10]}}]'
    assert prompt.columns["ground_truth"] == [{"area": {"b": [10]}}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"query": "q", "response": "r"}, (U("q"), A("r"))),
        ({"prompt": "q", "response": "r", "system": "s"}, (S("s"), U("q"), A("r"))),
        ({"problem": "q", "solution": "r", "answer": 4, "level": "5"}, (U("q"), A("r"))),
        ({"problem": "q", "generated_solution": "r"}, (U("q"), A("r"))),
        ({"instruction": "q", "response": "r"}, (U("q"), A("r"))),
        ({"input": "q", "output": "r"}, (U("q"), A("r"))),
        (
            {
                "problem": "x",
                "solution": "y",
                "messages": [{"role": "USER", "content": "q"}, {"role": "Assistant", "content": "r"}],
            },
            (U("q"), A("r")),
        ),
        (
            {"conversation": [{"role": "user", "content": "q", "toxic": False}, {"role": "assistant", "content": "r"}]},
            (U("q"), A("r")),
        ),
        ({"conversation": [{"human": "q", "assistant": "r"}]}, (U("q"), A("r"))),
        ({"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "r"}]}, (U("q"), A("r"))),
        (
            {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "r"}]},
            (U("q"), A("r")),
        ),
        ({"prompt": "q", "completion": [{"role": "assistant", "content": "r"}]}, (U("q"), A("r"))),
    ],
)
def test_what_is_asked_and_answered_under_any_name(result_of, row, messages):
    assert result_of(row, Demonstration).records[0].messages == messages
    question = tuple(turn for turn in messages if turn.role != "assistant")
    assert result_of(row, Prompt).records[0].messages == question


def test_only_the_completion_is_trained_on(result_of):
    prompt = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "p"}]
    completion = [
        {"role": "assistant", "content": "r"},
        {"role": "user", "content": "o"},
        {"role": "assistant", "content": "t"},
    ]
    (one,) = result_of({"prompt": prompt, "completion": completion}, Demonstration).records
    assert [(turn.content, turn.loss) for turn in one.messages if turn.role == "assistant"] == [
        ("a", False),
        ("r", True),
        ("t", True),
    ]


@pytest.mark.parametrize("role", ["tool_response", "environment", "Tool", "ipython", "FUNCTION"])
def test_what_answers_a_call_has_many_names(result_of, role):
    call = {"role": "Assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}
    turns = [
        {"role": "Developer", "content": "s"},
        {"role": "USER", "content": "q"},
        call,
        {"role": role, "content": "4"},
        {"role": "MODEL", "content": "r"},
    ]
    (one,) = result_of({"messages": turns}, Demonstration).records
    assert one.messages == (S("s"), U("q"), A("", tool_calls=(ToolCall("f", "{}"),)), Message("tool", "4"), A("r"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(4, "4"), (4.0, "4"), (0.5, "0.5"), (True, "true"), (["7", "8"], "7"), ([7], "7"), ({"a": 1}, '{"a": 1}')],
)
def test_references_of_any_kind(result_of, value, text):
    (prompt,) = result_of({"prompt": "q", "answer": value}, Prompt).records
    assert (prompt.reference, prompt.columns["answer"]) == (text, value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.0, "4"), (["a", "b"], "a, b"), ({"a": True, "b": False}, "a"), (["x", 3], "x, 3"), (None, "")],
)
def test_categories_of_any_kind(result_of, value, text):
    (prompt,) = result_of({"prompt": "q", "category": value}, Prompt).records
    assert prompt.category == text
    (one,) = result_of({"prompt": "q", "completion": "r", "category": value}, Demonstration).records
    assert one.category == text


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "q", "info": {"answer": 4}}, "prompt"),
        ({"question": "q", "function": "f"}, "question"),
        ({"prompt": "q", "winner_tie": 0}, "prompt"),
        ({"prompt": "q", "problem": "p", "query": "r"}, "prompt"),
        ({"query": "q", "input": "x"}, "query"),
        ({"messages": [{"role": "user", "content": "q"}], "conversation": "c", "plain_text": "t"}, "messages"),
        ({"prompt": "q", "turns": 2}, "prompt"),
    ],
)
def test_a_column_does_not_make_another_format(result_of, row, name):
    assert result_of(row, Prompt).report.format == name


def test_an_instruction_has_its_input_in_every_format(result_of):
    row = {"instruction": "q", "input": "x"}
    asked = (U("q\nx"),)
    (pair,) = result_of(row | {"response_1": "a", "response_2": "b", "winner": 1}, Comparison).records
    (rated_,) = result_of(row | {"response": "a", "score": 1}, Scored).records
    (told,) = result_of(row | {"response": "a"}, Demonstration).records
    assert pair.prompt == rated_.prompt == told.messages[:1] == asked


def test_replies_below_each_other_have_one_category_and_the_same_tools(result_of):
    rows = [
        {"prompt": "q", "response": text, "score": at, "category": "c", "tags": ["t"]} for at, text in enumerate("ab")
    ]
    result = result_of(rows, Scored)
    assert ([one.category for one in result.records], result.report.passed_over) == (["c"], {})
    rows[1]["tools"] = [{"name": "f"}]
    assert result_of(rows, Scored).report.dropped == {"prompts differ": 2}
    rows[1] = {"prompt": "q", "response": "b", "score": 0, "weight": 0}
    assert result_of(rows, Scored).report.dropped == {"nothing to train on (weight 0)": 2}
