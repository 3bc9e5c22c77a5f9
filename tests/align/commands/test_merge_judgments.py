"""Collected replies → judges and people → comparisons that are trained on and looked at, by the commands themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import cli
from align.commands.merge_judgments import STRENGTHS
from align.data.pairs import make_groups, strong_enough
from align.data.preferences import newest_round
from align.feedback import judgments
from align.feedback.provenance import provenance_of
from align.runtime.files import write_json_lines
from data_formats import read, write_jsonl
from data_formats.cleaning.texts import map_strings
from data_formats.records import Comparison
from tests.align.feedback.made import item, judgment
from tests.reward.judges.test_llm import endpoint, longer  # noqa: F401 - a fixture

JUDGES = """
def by_length(prompts, completions):
    return [float(len(text)) for text in completions]
"""
ITEMS = [item(f"i{at}", "a" * (at + 1), "b" * 9, "c", category="talk", tags=("greeting",), round=1) for at in range(4)]


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges.py").write_text(JUDGES)
    write_json_lines(tmp_path / "items.jsonl", [one.row() for one in ITEMS])

    def said(*words, code=0):
        capsys.readouterr()
        assert cli.main(list(map(str, words))) == code
        return capsys.readouterr()

    return said


def people(*rows):
    write_json_lines("judgments.jsonl", [one.as_row() for one in rows])


def test_judges_and_people_to_pairs_that_are_trained_on_and_looked_at(said, tmp_path):
    people(
        judgment("i0", "ann", [["r1"], ["r0", "r2"]], "significantly", seconds=7.0),
        judgment("i1", "ann", [["r0"], ["r1"], ["r2"]], "slightly", edited={"of": "r0", "text": "better"}, seconds=9.0),
    )
    shown = said("judge", "items.jsonl", "--judge", "len=judges.py:by_length", "--out", "judgments.jsonl").out
    assert shown.startswith("4 judgments by the function by_length of judges.py on 4 items, ")
    again = said("judge", "items.jsonl", "--judge", "len=judges.py:by_length", "--out", "judgments.jsonl", "--json").out
    told = json.loads(again)["judges"][0]
    assert (told["judged"], told["judged_before"]) == (0, 4)

    shown = said("merge-judgments", "items.jsonl", "judgments.jsonl", "--out", "pairs.jsonl").out
    assert "6 judgments by 2 annotators on 4 of 4 items\n" in shown and "pairs.jsonl: 12 comparisons" in shown
    assert "Krippendorff's alpha" in shown and "best shown first" in shown and "a tie" in shown
    pairs = read("pairs.jsonl", Comparison).records
    assert [(one.chosen, one.rejected, one.grade) for one in pairs[:2]] == [("b" * 9, "a", 4.0), ("b" * 9, "c", 4.0)]
    assert {one.category for one in pairs} == {"talk"} and all(one.tags[0] == "greeting" for one in pairs)
    about = provenance_of(pairs[0].provenance)
    assert (about.annotators, pairs[0].round, about.chosen.source) == (("ann", "len"), 1, "s1")
    assert read("pairs.jsonl", Comparison).report.passed_over == {}
    edited = [one for one in pairs if "edited" in one.tags]
    assert [(one.chosen, one.rejected) for one in edited] == [("better", "aa"), ("better", "c")]
    groups, left_out = make_groups(pairs, margin="small")
    assert not left_out and [group.pairs[0].margin for group in groups[:2]] == [1.0, 1.0]
    assert newest_round(pairs)[0] == pairs and len(strong_enough(pairs, 3)[0]) == sum(
        one.grade is None or one.grade > 2 for one in pairs
    )
    write_jsonl(tmp_path / "copied.jsonl", pairs)
    assert (tmp_path / "copied.jsonl").read_bytes() == (tmp_path / "pairs.jsonl").read_bytes()
    assert [map_strings(one, str.upper).provenance for one in pairs] == [one.provenance for one in pairs]  # cleaning
    said("data", "split", "pairs.jsonl", "parts", "--heldout", "0.5")
    parts = [one for name in ("train", "heldout") for one in read(f"parts/{name}.jsonl", Comparison).records]
    assert sorted(provenance_of(one.provenance).item for one in parts) == sorted(
        provenance_of(one.provenance).item for one in pairs
    )

    shown = said("data", "inspect", "pairs.jsonl", "--rows", 4).out
    assert "judged: by ann, len; chosen of s1, temperature 1; rejected of s0, temperature 0; item i0\n" in shown
    assert "chosen of s0, temperature 0, edited by ann" in shown
    several = [one for one in (provenance_of(pair.provenance) for pair in pairs) if one.asked > 1]
    one_mind = sum(len(one.annotators) == one.asked for one in several)
    assert f"judged pairs: {len(pairs)}, {len(several)} by more than one, of one mind on {one_mind}" in shown
    assert (
        "pairs of round 1: 12\n" in shown
        and ", round 1\n" in shown
        and "by source: s1 7 of 7, s0 3 of 7, s2 0 of 8\n" in shown
    )


def test_a_language_model_is_asked_once(said, endpoint):  # noqa: F811
    endpoint.judge = longer
    words = ("judge", "items.jsonl", "--judge-url", endpoint.url, "--judge-model", "judge-1", "--limit", "2")
    shown = said(*words).out
    assert "2 judgments by the language model judge-1 on 2 items; 12 requests, " in shown
    assert [(one.annotator, one.ranking[0], one.strength) for one in judgments.load_judgments("judgments.jsonl")] == [
        ("llm", ("r1",), None),
        ("llm", ("r1",), None),
    ]
    assert "0 judgments by the language model judge-1 on 2 items, 2 were judged before" in said(*words).out
    assert len(endpoint.seen) == 12
    assert "--rubric is for --judge-url" in said("judge", "items.jsonl", "--rubric", "items.jsonl", code=1).err


def test_options_and_figures(said):
    people(
        judgment("i0", "ann", [["r1"], ["r0"], ["r2"]], "significantly"),
        judgment("i0", "ben", [["r0"], ["r1"], ["r2"]], "negligibly"),
        judgment("other", "ben", [["r0"], ["r1"]], "better"),
    )
    words = ("merge-judgments", "items.jsonl", "judgments.jsonl", "--out", "pairs.jsonl", "--json")
    figures = json.loads(said(*words).out)
    assert (figures["comparisons"], figures["of_other_items"], figures["judged_items"]) == (2, 1, 1)
    assert figures["left_out"] == {"annotators disagree": 1}
    assert figures["by_strength"] == {**dict.fromkeys(STRENGTHS, 0), "significantly": 1, "negligibly": 1, "unsaid": 0}
    assert figures["agreement"]["between"][0] == {"first": "ann", "second": "ben", "equal": 2 / 3, "number": 3}
    figures = json.loads(said(*words, "--votes", "all", "--pairs", "best").out)
    assert (figures["comparisons"], figures["left_out"]) == (4, {"the better reply is not the best": 2})
    figures = json.loads(said(*words, "--votes", "all", "--pairs", "best", "--min-strength", "better").out)
    assert (figures["comparisons"], figures["left_out"]["less than better"]) == (2, 2)
    assert figures["annotators"]["ann"]["first_shown"]["expected"] == pytest.approx(1 / 3)


def test_of_two_files_the_latest_judgment_counts(said):
    for name, time, ranking in (("new", "2026-02-01T00:00:00+00:00", "10"), ("old", "2026-01-01T00:00:00+00:00", "01")):
        ranks = [[f"r{at}"] for at in ranking]
        write_json_lines(f"{name}.jsonl", [judgment("i0", "ann", ranks, "better", time=time).as_row()])
    said("merge-judgments", "items.jsonl", "new.jsonl", "old.jsonl", "--out", "pairs.jsonl")
    assert [one.chosen for one in read("pairs.jsonl", Comparison).records] == ["b" * 9]


def test_in_a_file_the_later_row_counts_whatever_its_clock_said(said):
    first, second = (
        judgment("i0", "ann", [[f"r{at}"] for at in ranking], "better", time=f"2026-02-0{day}T00:00:00+00:00")
        for day, ranking in ((3, "01"), (1, "10"))
    )
    undo = judgments.Undo(id=first.id[:-4] + "0000", undoes=first.id, annotator="ann", time="2026-01-01T00:00:00+00:00")
    people(first, second)
    ben = judgment("i1", "ben", [["r1"], ["r0"]], "better", time="2026-02-02T00:00:00+00:00")
    write_json_lines("ben.jsonl", [ben.as_row()])
    words = ("merge-judgments", "items.jsonl", "judgments.jsonl", "ben.jsonl", "--out", "pairs.jsonl")
    said(*words)
    assert [one.chosen for one in read("pairs.jsonl", Comparison).records] == ["b" * 9] * 2
    people(first, undo)
    said(*words)
    assert [one.rejected for one in read("pairs.jsonl", Comparison).records] == ["aa"]  # of ben alone


def test_people_and_judges_do_not_write_one_file_at_once(said):
    with judgments.adding_to(Path("judgments.jsonl")):
        for words in (
            ("judge", "items.jsonl", "--judge", "judges.py:by_length"),
            ("annotate", "items.jsonl", "--port", "0"),
            ("annotate", "items.jsonl", "--import", "items.jsonl"),
        ):
            assert "another process is running 'adding to judgments.jsonl'" in said(*words, code=1).err
    assert not Path("judgments.jsonl").exists()
    Path("judgments.jsonl").mkdir()
    told = said("annotate", "items.jsonl", "--port", "0", code=1).err
    assert "judgments.jsonl is no file that can be written to: name another one with --out" in told


def test_bad_words_are_one_sentence_and_nothing_is_written(said, tmp_path):
    assert set(STRENGTHS) == set(judgments.STRENGTHS)
    people()
    words = ("merge-judgments", "items.jsonl", "judgments.jsonl", "--out", "pairs.jsonl")
    assert "judgments.jsonl: nobody has judged anything yet" in said(*words, code=1).err
    people(judgment("i0", "ann", [["r0", "r1"]]))
    assert "no comparison is left of 1 judgments (1 a tie)" in said(*words, code=1).err
    assert "no such file" in said("merge-judgments", "items.jsonl", "none.jsonl", "--out", "p.jsonl", code=1).err
    assert "is a file that is read" in said(*words[:4], "items.jsonl", code=1).err
    assert "name a file that ends in .jsonl" in said(*words[:4], "pairs.csv", code=1).err
    people(judgment("i0", "ann", [["r0"], ["r9"]], "better"))
    assert "reply 'r9', which item i0 does not have" in said(*words, code=1).err
    assert "say who judges" in said("judge", "items.jsonl", "--out", "judgments.jsonl", code=1).err
    assert not (tmp_path / "pairs.jsonl").exists()
