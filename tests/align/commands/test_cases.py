"""The small failing inputs kept beside the repository, through `align data`."""

from pathlib import Path

import pytest

from align import cli

DATA = Path(__file__).parents[3].parent / "shared" / "cases" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the cases are not beside the repository (../shared/cases)")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken_first_pref.jsonl", ("line 1, field 'chosen'", "kind 'comparison'", "--kind prompt")),
        ("grade_string.jsonl", ("line 1, field 'grade'", "kind 'comparison'", "--kind prompt")),
        ("trailing_comma_list.json", ("line 3", "comma")),
        ("pretty_objects_json.json", ("line 5", "two JSON objects stand in a row")),
        ("jsonl_is_list.jsonl", ("line 1", "this is a JSON list")),
    ],
)
@pytest.mark.parametrize("command", ["stats", "inspect", "convert", "split"])
def test_refused_in_one_sentence_with_the_place(tmp_path, capsys, monkeypatch, name, words, command):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    out = {"convert": [str(tmp_path / "out.jsonl")], "split": [str(tmp_path / "out")]}.get(command, [])
    assert cli.main(["data", command, str(DATA / name), *out]) == 1
    shown = "".join(capsys.readouterr())
    told = [line for line in shown.splitlines() if line.startswith(("error: ", "refused: "))]
    assert len(told) == 1 and all(word in told[0] for word in words) and list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path, capsys):
    for words in (["stats"], ["inspect"]):
        assert cli.main(["data", *words, str(DATA / "surrogate_source.jsonl")]) == 0
        assert "unpaired surrogate replaced" in capsys.readouterr().out
    assert cli.main(["data", "convert", str(DATA / "surrogate_source.jsonl"), str(tmp_path / "out.jsonl")]) == 0
    assert '"source": "x\ufffd"' in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["stats", "inspect", "convert"])
def test_no_case_ends_in_a_traceback(tmp_path, capsys, monkeypatch, command):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    for file in sorted(DATA.iterdir()):
        out = [str(tmp_path / f"{file.name}.out")] if command == "convert" else []
        assert cli.main(["data", command, str(file), *out]) in (0, 1)
    assert "Traceback" not in "".join(capsys.readouterr())
