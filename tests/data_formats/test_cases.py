"""Small files that public bug reports and data cards describe, read for what they say. They lie beside the checkout."""

import json
import os
from pathlib import Path

import pytest

from data_formats import Comparison, Demonstration, Message, Prompt, Scored, ToolCall, read
from data_formats.records import Reply

SHARED = Path(os.environ.get("ALIGN_SHARED", Path(__file__).parents[3] / "shared"))
CASES = SHARED / "cases" / "data"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases of bug reports are not beside this checkout")

U, A, S, T = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system", "tool"))
FRENCH = S("Answer in French.")
SUMS = (U("2+2?"), Message("assistant", "5", loss=False), U("Sure?"), A("Sorry, 4."))
WEATHER = (ToolCall("weather", '{"city": "Paris"}'),)
THOUGHT = (U("17*3?"), Message("assistant", "51", "17*3 = 51"))
ANN = (U("My name is Ann."), A("Hi Ann."), U("What is my name?"))


def called(text):
    asked = (U("Weather in Paris?"), Message("assistant", text, "", WEATHER))
    return Demonstration((*asked, T("sunny"), A("It is sunny.")))


def read_all(name, kind):
    return read(CASES / name, kind)


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("weight0.jsonl", [Demonstration(SUMS)]),
        ("loss_false.jsonl", [Demonstration(SUMS)]),
        ("system_top_messages.jsonl", [Demonstration((FRENCH, U("Hello"), A("Bonjour")))]),
        ("system_top_kto.jsonl", [Scored((FRENCH, U("Hello")), (Reply("Bonjour", 1.0),))]),
        ("system_top_preference.jsonl", [Comparison((FRENCH, U("Hello")), "Bonjour", "Hi")]),
        ("system_top_prompt.jsonl", [Prompt((FRENCH, U("Hello")))]),
        ("system_top_sharegpt_prompt.jsonl", [Prompt((FRENCH, U("Hello")))]),
        ("openorca.jsonl", [Demonstration((S("Be brief."), U("Hi?"), A("Yo")))]),
        ("reasoning_key.jsonl", [Demonstration(THOUGHT)] * 3),
        ("function_call_legacy.jsonl", [called(""), called(""), called("Let me look.")]),
        ("qa_with_context.jsonl", [Demonstration((U("When did it start?\n\nIt started in 2000."), A("2000")))]),
        ("pref_history.jsonl", [Comparison(ANN, "Ann.", "No idea.")]),
        ("pref_first_user.jsonl", [Comparison(ANN, "Ann.", "No idea.")]),
        ("rm_static.jsonl", [Comparison((U("Hi"), A("Hello!"), U("Joke?")), "Why did...", "No.")]),
        (
            "reasoning_chosen.jsonl",
            [Comparison((U("17*3?"),), "51", "50", chosen_reasoning="17*3 = 51", rejected_reasoning="guess")],
        ),
        (
            "reasoning_same_answer.jsonl",
            [Comparison((U("17*3?"),), "51", "51", chosen_reasoning="17*3 = 51", rejected_reasoning="I guess")],
        ),
        ("kto_int_label.jsonl", [Scored((U("Hi"),), (Reply("Hello", 1.0),))]),
        ("developer_role.jsonl", [Demonstration((S("Be brief."), U("Hi"), A("Yo")))]),
        (
            "args_null.jsonl",
            [
                Demonstration(
                    (U("time?"), Message("assistant", "", "", (ToolCall("now", "{}"),)), T("12:00"), A("Noon."))
                )
            ],
        ),
    ],
)
def test_what_the_rows_say_is_read(name, records):
    kind = type(records[0])
    result = read_all(name, kind)
    assert result.records == records
    assert (result.report.rows, result.report.dropped) == (len(records), {})


def test_one_file_has_one_context_whatever_it_is_read_as():
    demo = read_all("system_top_messages.jsonl", Demonstration).records[0]
    prompt = read_all("system_top_messages.jsonl", Prompt).records[0]
    assert (prompt.messages, prompt.reference) == (demo.messages[:-1], demo.messages[-1].content)
    asked = read_all("qa_with_context.jsonl", Prompt).records[0]
    assert asked.messages == read_all("qa_with_context.jsonl", Demonstration).records[0].messages[:-1]


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("pref_diff_history.jsonl", Comparison, "prompts differ"),
        ("kto_empty_last.jsonl", Scored, "empty reply"),
    ],
)
def test_what_would_be_another_pair_is_dropped_and_counted(name, kind, reason):
    result = read_all(name, kind)
    assert (result.records, result.report.dropped) == ([], {reason: 1})


def test_parquet_says_what_json_lines_say(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = (CASES / "parquet_none.jsonl").read_text(encoding="utf-8").splitlines()
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), tmp_path / "x.parquet")
    result = read(tmp_path / "x.parquet", Demonstration)
    assert result.records == read_all("parquet_none.jsonl", Demonstration).records
    assert result.records[0].messages[1].tool_calls == WEATHER
    assert "null" not in "".join(result.records[0].tools + result.records[1].tools)
    assert result.report.repaired == {"a column's nulls removed from calls and tools": 2}
