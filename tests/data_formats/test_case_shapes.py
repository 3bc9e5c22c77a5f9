"""The small files of shapes that people have, beside this checkout: each read by meaning."""

import os
from pathlib import Path

import pytest

from data_formats import Comparison, Demonstration, Message, Prompt, Scored, ToolCall, read

SHARED = Path(os.environ.get("ALIGN_SHARED", Path(__file__).parents[3] / "shared"))
CASES = SHARED / "cases" / "data"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the small cases are not beside this checkout")


def U(text):
    return Message("user", text)


def A(text, **rest):
    return Message("assistant", text, **rest)


def records(name, kind, **options):
    result = read(CASES / name, kind, **options)
    assert not result.report.dropped
    return result.records


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("wildchat.jsonl", (U("Hi"), A("Yo"))),
        ("capybara.jsonl", (U("Hi"), A("Yo"), U("More"), A("No"))),
        ("developer_role.jsonl", (Message("system", "Be brief."), U("Hi"), A("Yo"))),
        (
            "args_null.jsonl",
            (U("time?"), A("", tool_calls=(ToolCall("now", "{}"),)), Message("tool", "12:00"), A("Noon.")),
        ),
        ("csvfile.csv", (U("a"), A("b"))),
    ],
)
def test_demonstrations(name, messages):
    (found,) = records(name, Demonstration)
    assert found.messages == messages


def test_arena_votes_are_on_both_turns_of_the_conversation():
    (pair,) = records("arena55k.jsonl", Comparison)
    assert ((*pair.prompt, *pair.chosen_turns), pair.chosen) == ((U("Hi"), A("Hello"), U("More?")), "Yes")
    assert ((*pair.prompt, *pair.rejected_turns), pair.rejected) == ((U("Hi"), A("Yo"), U("More?")), "No")
    assert records("arena55k.jsonl", Prompt)[0].messages == (U("Hi"),)


def test_best_of_four():
    (scored,) = records("rewardbench2.jsonl", Scored)
    assert [(reply.content, reply.score) for reply in scored.replies] == [("Yo", 1), ("x", 0), ("y", 0), ("z", 0)]
    assert scored.category == "Ties"
    pairs = records("rewardbench2.jsonl", Comparison)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("Yo", "x"), ("Yo", "y"), ("Yo", "z")]


def test_two_labels_better_and_safer():
    (better,) = records("pku.jsonl", Comparison)
    assert (better.chosen, better.rejected, better.tags) == ("Like this", "No.", ("chosen_unsafe", "rejected_safe"))
    (safer,) = records("pku.jsonl", Comparison, format="pku_safer")
    assert (safer.chosen, safer.rejected, safer.tags) == ("No.", "Like this", ("chosen_safe", "rejected_unsafe"))


def test_ratings_and_ranks():
    (rated,) = records("helpsteer2.jsonl", Scored)
    given = {"helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 0, "verbosity": 1}
    assert (rated.replies[0].score, dict(rated.replies[0].attributes)) == (4, given)
    (ranked,) = records("nectar.jsonl", Scored)
    assert ranked.prompt == (U("Hi"),)
    assert [(reply.content, reply.score) for reply in ranked.replies] == [("Hello", -1), ("Go away", -7)]
    (pair,) = records("webgpt.jsonl", Comparison)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.grade) == ((U("Why?"),), "Because", "No", 1.0)
    (scored,) = records("scores_strings.jsonl", Scored)
    assert [reply.score for reply in scored.replies] == [9.0, 3.0]


def test_prompts_and_their_columns():
    assert [prompt.reference for prompt in records("int_answer.jsonl", Prompt)] == ["4", "3"]
    found = records("columns_lists.json", Prompt)  # a table by columns
    assert [(prompt.messages, prompt.columns) for prompt in found] == [
        ((U("a"),), {"output": "x"}),
        ((U("b"),), {"output": "y"}),
    ]
