"""`align data` never takes a file for less than it holds, and says what it passed over."""

import json
import math

import pytest

from align import cli


@pytest.fixture
def said(tmp_path, capsys, monkeypatch):
    """Runs `align data …` in an empty folder; gives the exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def say(*words):
        code = cli.main(["data", *words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return code, shown.out + shown.err

    return say


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
REPLIES = [{"content": "a", "score": 1.0}, {"content": "b", "score": 2.0}]
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("rows", "place", "richer"),
    [
        ([PAIR | {"chosen": None}, PAIR], "line 1, field 'chosen'", "comparison"),
        ([PAIR | {"grade": "A"}], "line 1, field 'grade'", "comparison"),
        ([PAIR | {"grade": math.nan}], "line 1, field 'grade'", "comparison"),
        ([PAIR | {"tags": "math"}], "line 1, field 'tags'", "comparison"),
        ([PAIR | {"rejected": 5}], "line 1, field 'rejected'", "comparison"),
        ([PAIR | {"rejected": "a"}, PAIR | {"chosen": None}], "line 2, field 'chosen'", "comparison"),  # first is a tie
        ([PAIR | {"rejected": "a"}], "", "comparison"),  # every row is dropped
        ([{"prompt": "q"}, PAIR], "line 1", "comparison"),  # the first row lacks what the second has
        ([{"prompt": "q", "replies": [{"content": "a", "score": math.nan}]}], "line 1, field", "scored"),
        ([{"prompt": "q", "replies": "none"}], "line 1", "scored"),
        ([{"prompt": "q", "completion": "a", "label": [1]}], "line 1, field 'label'", "scored"),
        ([{"prompt": "q", "completion": {"a": 1}}], "line 1, field 'completion", "demonstration"),
        ([{"instruction": "q", "output": None}], "line 1, field 'output'", "demonstration"),
        ([{"text": "t", "question": {"odd": 1}}], "line 1, field 'question", "prompt"),
    ],
)
def test_a_broken_richer_kind_is_named_and_only_kind_reads_the_rest(said, tmp_path, rows, place, richer):
    write(tmp_path / "x.jsonl", *rows)
    poorer = "document" if richer == "prompt" else "prompt"
    for words in (["stats"], ["inspect"], ["convert"], ["split"]):
        out = {"convert": ["out.jsonl"], "split": ["out"]}.get(words[0], [])
        code, text = said(*words, "x.jsonl", *out)
        assert code == 1 and f"x.jsonl, {place}" in text.replace("x.jsonl: ", "x.jsonl, ")
        assert f"the rows have the fields of kind '{richer}'" in text and f"--kind {poorer}" in text
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    code, text = said("convert", "x.jsonl", "out.jsonl", "--kind", poorer)
    assert code == 0 and f"out.jsonl: {len(rows)} records" in text


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "comparison"),
        ({"prompt": "q", "replies": REPLIES}, "scored"),
        ({"messages": TALK}, "demonstration"),
        ({"messages": TALK[:1]}, "prompt"),
        ({"prompt": "q", "reference": "4", "level": 3}, "prompt"),
        ({"question": "q", "label": "42"}, "prompt"),  # a column for a reward function, not a judgement
        ({"text": "t", "title": "u"}, "document"),
    ],
)
def test_a_whole_file_is_taken_for_what_it_is(said, tmp_path, row, kind):
    write(tmp_path / "x.jsonl", row, row)
    code, text = said("stats", "x.jsonl", "--json")
    assert code == 0 and json.loads(text)[0]["kind"] == kind


def test_a_row_that_breaks_later_is_named_too(said, tmp_path):
    write(tmp_path / "x.jsonl", *[PAIR] * 300, PAIR | {"grade": "A"})
    code, text = said("convert", "x.jsonl", "out.jsonl")
    assert code == 1 and "x.jsonl, line 301, field 'grade'" in text and not (tmp_path / "out.jsonl").exists()


def test_at_most_twenty_keys_are_named_each_cut_short(said, tmp_path):
    write(tmp_path / "x.jsonl", {"k" * 5000: 1} | {f"key{at}": at for at in range(1000)})
    code, text = said("stats", "x.jsonl")
    assert code == 1 and "key18" in text and "key19" not in text and "and 981 more" in text and len(text) < 3000
    write(tmp_path / "x.jsonl", {"messages": [{f"key{at}": at for at in range(1000)}]})
    code, text = said("stats", "x.jsonl", "--kind", "demonstration")
    assert code == 1 and "and 980 more" in text and len(text) < 1000


@pytest.mark.parametrize("kind", ["demonstration", "prompt", "comparison", "document"])
def test_half_a_surrogate_pair_anywhere_is_replaced_and_counted(said, tmp_path, kind):
    half = "x\ud83d"
    common = {"source": half, "category": half, "tags": [half], half: {half: [half]}, "level": half}
    row = {
        "demonstration": {"instruction": half, "output": "b", "system": half},
        "prompt": {"prompt": "q", "reference": half},
        "comparison": PAIR,
        "document": {"text": half},
    }[kind]
    write(tmp_path / "x.jsonl", row | common)
    for words in (["stats"], ["stats", "--json"], ["inspect"]):
        code, text = said(*words, "x.jsonl", "--kind", kind)
        assert code == 0 and "unpaired surrogate replaced" in text
        text.encode()
    code, text = said("convert", "x.jsonl", "out.jsonl", "--kind", kind)
    made = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert code == 0 and made["source"] == "x\ufffd"


def test_a_folder_says_what_it_passed_over(said, tmp_path):
    (tmp_path / "d" / "deep").mkdir(parents=True)
    write(tmp_path / "d" / "x.jsonl", PAIR)
    for name in ("a.bin", "deep/b.tar.gz", "noending", ".hidden", *(f"{at}.log" for at in range(20))):
        (tmp_path / "d" / name).write_text("?")
    code, text = said("stats", "d")
    assert code == 0 and "d: 23 files without a known ending passed over: 0.log, " in text and "and 13 more" in text
    assert ".hidden" not in text and "comparison" in text
    (tmp_path / "d" / "x.jsonl").unlink()
    code, text = said("stats", "d")
    assert code == 1 and "d: no file in this folder has a known ending (.jsonl, " in text and "0.log" in text
    (tmp_path / "empty").mkdir()
    code, text = said("stats", "empty")
    assert code == 1 and text.startswith("error: empty: no file in this folder has a known ending")


def test_the_limit_of_a_row_is_an_option(said, tmp_path):
    write(tmp_path / "x.jsonl", {"text": "x" * (1 << 20)})
    code, text = said("stats", "x.jsonl", "--max-row-mb", "1")
    assert code == 1 and "x.jsonl, line 1: larger than 1 MiB; if it is meant to be, raise max_row_mb" in text
    assert said("stats", "x.jsonl", "--max-row-mb", "2")[0] == said("stats", "x.jsonl")[0] == 0


def test_names_with_markup_are_texts(said, tmp_path):
    write(tmp_path / "[red].jsonl", PAIR | {"category": "[/bold]", "prompt": "[/x]"})
    code, text = said("inspect", "[red].jsonl")
    assert code == 0 and "[red].jsonl (preference)" in text and "category [/bold]" in text and "user: [/x]" in text
