"""`align data` as a user types it."""

import json
from pathlib import Path

import pytest

from align import cli
from align.commands.inspect import View, _body, histogram
from data_formats import read
from data_formats.records import Comparison, Demonstration, Message, Prompt, Scored, ToolCall
from data_formats.splitting import prompt_key
from tests.tiny_models import byte_tokenizer

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "real"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk(asked, said):
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "talk.jsonl", talk("one", "yes"), talk("two", "no, never"), talk("three", " "))
    write(tmp_path / "pairs.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad", "category": "maths"})
    write(tmp_path / "votes.jsonl", {"prompt": "q", "replies": [{"content": "a", "score": 2.0}, {"content": "b"}]})
    write(tmp_path / "asked.jsonl", {"messages": [{"role": "user", "content": "q"}]})
    (tmp_path / "text.txt").write_text("words")
    return tmp_path


def test_stats_in_json_count_rows_records_and_drops_by_reason(files, capsys):
    assert cli.main(["data", "stats", str(files), "--json"]) == 0
    found = {Path(one["path"]).name: one for one in json.loads(capsys.readouterr().out)}
    kinds = {name: (one["kind"], one["format"], one["rows"], one["records"]) for name, one in found.items()}
    assert kinds == {
        "asked.jsonl": ("prompt", "messages", 1, 1),
        "pairs.jsonl": ("comparison", "preference", 1, 1),
        "talk.jsonl": ("demonstration", "messages", 3, 2),
        "text.txt": ("document", "text", 1, 1),
        "votes.jsonl": ("scored", "replies", 1, 1),
    }
    assert found["talk.jsonl"]["dropped"] == {"no reply": 1}
    assert found["talk.jsonl"]["prompt_characters"]["1"] == 3 and found["talk.jsonl"]["reply_characters"]["1"] == 9
    assert found["pairs.jsonl"]["categories"] == {"maths": 1}


def test_fields_that_no_reader_understands_are_shown_by_stats_inspect_and_convert(files, capsys):
    row = talk("one", "yes") | {"foo": 1, "id": 7, "\x1b[2J": 1}
    row["messages"][1]["bar"] = "x"
    path = str(write(files / "more.jsonl", row, talk("two", "no")))
    said = r"fields passed over: \u001b[2J 1, foo 1, messages[].bar 1"
    for words in (["stats", path], ["inspect", path], ["convert", path, str(files / "out.jsonl")]):
        assert cli.main(["data", *words]) == 0
        assert said in capsys.readouterr().out.replace("\n", " ")
    assert cli.main(["data", "stats", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["passed_over"] == {"foo": 1, "messages[].bar": 1, "\x1b[2J": 1}


def test_inspect_shows_turns_without_loss_and_what_compared_replies_thought(files, capsys):
    row = talk("one", "yes")
    row["messages"] += [{"role": "user", "content": "two"}, {"role": "assistant", "content": "never", "train": False}]
    assert cli.main(["data", "inspect", str(write(files / "untrained.jsonl", row))]) == 0
    shown = capsys.readouterr().out
    assert "assistant: ⟦yes⟧" in shown and "assistant: never\n" in shown and "3 of them with loss" in shown
    thought = {"role": "assistant", "content": "51", "thinking": "17*3 = 51"}
    pair = {"prompt": "17*3?", "chosen": [thought], "rejected": "51"}
    assert cli.main(["data", "inspect", str(write(files / "thought.jsonl", pair))]) == 0
    shown = capsys.readouterr().out
    assert "chosen: <think>\n17*3 = 51\n</think>\n\n51\nrejected: 51" in shown
    assert f"comparison, {5 + len('<think>_17*3 = 51_</think>__51')} characters" in shown


def test_stats_tell_what_was_refused_and_go_on(files, capsys):
    write(files / "odd.jsonl", {"nothing": 1})
    assert cli.main(["data", "stats", str(files / "odd.jsonl"), str(files / "talk.jsonl")]) == 1
    shown = capsys.readouterr().out
    assert "talk.jsonl: dropped 1: no reply" in shown
    assert f"refused: {files / 'odd.jsonl'}: cannot be read as any kind of record" in shown and "nothing" in shown
    assert cli.main(["data", "stats", str(files / "none.jsonl")]) == 1
    assert "none.jsonl: no such file or folder" in capsys.readouterr().err


def test_convert_writes_rows_that_read_back_equal(files, capsys):
    out = files / "made" / "out.jsonl"
    assert cli.main(["data", "convert", str(files / "talk.jsonl"), str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 rows, 2 kept; dropped: no reply 1" in shown and f"{out}: 2 records" in shown
    was = read(files / "talk.jsonl", Demonstration).records
    assert [(one.messages, one.category) for one in read(out, Demonstration).records] == [
        (one.messages, one.category) for one in was
    ]
    before = out.read_bytes()
    assert cli.main(["data", "convert", str(out), str(out)]) == 1
    assert "the output is the input" in capsys.readouterr().err and out.read_bytes() == before


def test_convert_cleans_when_asked(files, capsys):
    source = write(files / "twice.jsonl", talk("a", "b"), talk("a", "b"), talk("c", "d"))
    rules = files / "rules.yaml"
    rules.write_text("exact_duplicates: {}\n")
    words = ["data", "convert", str(source), str(files / "out.jsonl"), "--cleaning", str(rules)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "exact_duplicates" in shown and "out.jsonl: 2 records" in shown
    rules.write_text("exact_dupes: {}\nemoji: {allowed: -1}\n")
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "exact_dupes" in said and "emoji.allowed" in said


def test_convert_filters_with_every_step_that_needs_a_list_or_a_package(files, capsys):
    source = write(
        files / "mixed.jsonl",
        *(talk("a", "Write to ann@corp.com or call 212-456-7890."), talk("b", "As an AI language model, I cannot.")),
        *(talk("c", "You idiot."), talk("d", "Hello, {{name}}!"), talk("e", "Nothing wrong here.")),
    )
    (files / "words.txt").write_text("idiot\n")
    rules = files / "rules.yaml"
    rules.write_text(f"pii: mask\nmachine_made: {{}}\ntoxicity: {{words: {files / 'words.txt'}}}\n")
    words = ["data", "convert", str(source), str(files / "out.jsonl"), "--cleaning", str(rules)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "- email, phone masked" in shown and "- a model speaks of itself" in shown and "- word list" in shown
    assert "ann@corp.com" not in shown
    left = [one.messages[-1].content for one in read(files / "out.jsonl", Demonstration).records]
    assert left == ["Write to <EMAIL> or call <PHONE>.", "Nothing wrong here."]
    rules.write_text(f"toxicity: {{words: {files / 'none.txt'}}}\nperplexity: {{model: ./none, max_nats: 4}}\n")
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "cleaning.toxicity.words: no such file" in said and "cleaning.perplexity.model: no such folder" in said


def test_split_puts_no_prompt_on_both_sides(files, capsys):
    source = write(files / "many.jsonl", *(talk(f"question {at % 40}", f"reply {at}") for at in range(120)))
    assert cli.main(["data", "split", str(source), str(files / "sides"), "--heldout", "0.3"]) == 0
    sides = [read(files / "sides" / f"{name}.jsonl", Demonstration).records for name in ("train", "heldout")]
    keys = [{prompt_key(one) for one in side} for side in sides]
    assert sum(map(len, sides)) == 120 and keys[0].isdisjoint(keys[1]) and len(keys[0] | keys[1]) == 40
    lone = write(files / "lone.jsonl", talk("a", "b"))
    assert cli.main(["data", "split", str(lone), str(files / "none")]) == 1
    assert "leaves one side empty (1 and 0 records)" in capsys.readouterr().err
    assert list((files / "none").iterdir()) == []


def test_inspect_brackets_what_gets_loss_where_there_is_no_colour(files, capsys):
    assert cli.main(["data", "inspect", str(files / "talk.jsonl"), "--max-length", "8", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "record 1: demonstration, 6 characters" in shown and "assistant: ⟦yes⟧" in shown
    assert "record 2" not in shown and "3 rows, 2 kept; dropped: no reply 1" in shown
    assert "turns: user 2, assistant 2" in shown and "18 characters, 12 of them with loss (66.7 %)" in shown
    assert "longer than 8 characters: 1 of 2" in shown


def test_inspect_shows_the_labels_of_training_under_each_mask():
    demo = Demonstration(
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    )
    shown = {
        mask: _body(demo, View(byte_tokenizer(), mask, coloured=False)).plain.replace("\n", "/")
        for mask in ("assistant_only", "last_turn_only", "qwen_script")
    }
    start, end = "<|im_start|>", "<|im_end|>"
    users = f"{start}user/a{end}/{start}assistant/", f"/{start}user/c{end}/{start}assistant/"
    assert shown["assistant_only"] == f"{users[0]}⟦b{end}⟧{users[1]}⟦d{end}⟧/"
    assert shown["last_turn_only"] == f"{users[0]}b{end}{users[1]}⟦d{end}⟧/"
    assert shown["qwen_script"].startswith(f"⟦{start}⟧user/a⟦{end}/{start}⟧assistant/⟦b{end}/{start}⟧user/c")


def test_every_kind_of_record_has_a_body():
    asked = (Message("user", "q"), Message("assistant", "", "hm", (ToolCall("f", "{}"),)), Message("tool", "4"))
    view = View(coloured=False)
    assert _body(Demonstration((*asked, Message("assistant", "r")), tools=("{}",)), view).plain == (
        "tools on offer: 1\nuser: q\nassistant: ⟦(hm)\nf {}⟧\ntool: 4\nassistant: ⟦r⟧\n"
    )
    pair = Comparison(asked[:1], "good", "x" * 5000, grade=0.5)
    assert "chosen (grade 0.5): good\nrejected: xxx" in _body(pair, view).plain
    assert "… (1000 more characters)" in _body(pair, view).plain
    assert "reference: 4" in _body(Prompt(asked[:1], reference="4"), view).plain
    assert "q" in _body(Scored(asked[:1], ()), view).plain


def test_the_histogram_counts_every_length():
    lines = list(histogram([0, 1, 1, 23], "tokens"))
    assert lines[0] == "tokens a record:" and sum(int(line[21:].split()[0]) for line in lines[1:]) == 4
    assert lines[1].endswith("█" * 40) and list(histogram([], "tokens")) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not beside the repository")
def test_stats_over_everything_real(capsys):
    assert cli.main(["data", "stats", str(REAL), "--json"]) == 1  # two files are refused
    found = json.loads(capsys.readouterr().out)
    refused = {Path(one["path"]).name for one in found if "refused" in one}
    assert refused == {"humaneval_example_samples.jsonl", "messy_rows.jsonl"}
    assert len(found) == sum(path.is_file() for path in REAL.rglob("*"))
    for one in found:
        assert "refused" in one or one["rows"] >= one["used"] > 0


@pytest.mark.needs("sklearn")
def test_select_writes_the_chosen_rows_why_and_a_page(files, capsys):
    rows = [talk(f"What is {number} times {number + 1}?", f"It is {number * (number + 1)}.") for number in range(12)]
    many = write(files / "many.jsonl", *rows, talk("Name a river in Asia.", "The Mekong."), rows[3])
    out = files / "half.jsonl"
    assert cli.main(["data", "select", str(many), str(files / "talk.jsonl"), str(out), "--keep", "5"]) == 0
    said = capsys.readouterr().out
    assert "half.jsonl: 5 of 16 rows kept, in 4 clusters" in " ".join(said.split()) and "semantic duplicate" in said
    why = [json.loads(line) for line in (files / "half.selection/rows.jsonl").read_text().splitlines()]
    kept = list(read(out, Demonstration).records)
    asked = [row["messages"][0]["content"] for row in rows] + [
        "Name a river in Asia.",
        "What is 3 times 4?",
        "one",
        "two",
    ]
    assert [one.messages[0].content for one in kept] == [asked[row["row"] - 1] for row in why if row["kept"]]
    assert "5 of 16 rows kept." in (files / "half.selection/index.html").read_text()
    assert cli.main(["data", "select", str(many), str(files / "pairs.jsonl"), str(files / "x.jsonl")]) != 0
    assert "holds comparisons, " in capsys.readouterr().err
    (files / "one").mkdir()
    (files / "one/notes.pdf").write_text("no rows")
    many = many.rename(files / "one/many.jsonl")
    (files / "rules.yaml").write_text("length: {max_prompt_chars: 20}")
    words = ["data", "select", str(many.parent), str(files / "y.jsonl"), "--cleaning", str(files / "rules.yaml")]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 file without a known ending passed over: notes.pdf" in said and "- same text" in said
    assert "- prompt too long" in said, "what cleaning drops is told"
    assert cli.main(["data", "select", str(many), str(many)]) != 0
    assert "the output is an input" in capsys.readouterr().err
    (files / "selection.yaml").write_text("quality: {kind: reward, model_from: ./gone}")
    words = ["data", "select", str(many), str(files / "x.jsonl"), "--selection", str(files / "selection.yaml")]
    assert cli.main([*words, "--random"]) != 0
    assert "selection.quality.model_from: no such folder ./gone" in capsys.readouterr().err
    for keep, told in {"1.5": "keep: 1.5 is above 1", "inf": "keep: ", "0": "keep: ", "0.001": "is kept, so"}.items():
        assert cli.main([*words[:4], "--keep", keep]) != 0
        error = capsys.readouterr().err
        assert told in error and "Traceback" not in error and "validation error" not in error
    assert not (files / "x.jsonl").exists()
