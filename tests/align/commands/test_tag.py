"""`align data tag` as a user types it: by an endpoint, by an earlier vocabulary, by a tagger; what uses the tags."""

from __future__ import annotations

import json

import pytest

from align import cli
from align.data.balance import tag_balanced
from align.runtime.lock import locked
from data_formats import Comparison, Demonstration, Prompt, read
from tests.align.chat.run_folder import write_run
from tests.align.curation.endpoint import chat_server

pytestmark = pytest.mark.needs("sklearn")

ASKED = ["sort a list", "sort and explain", "boil an egg", "egg recipe as a poem", "写一首诗", "sort a list"]
SAID = {
    "sort a list": ["Sorting Algorithm", "code generation"],
    "sort and explain": ["sorting algorithms", "code-generation", "explanation"],
    "boil an egg": ["cooking", "x" * 10_000],
    "egg recipe as a poem": ["Cooking", "poetry"],
    "写一首诗": ["poetry", "诗歌", "poésie"],
}


def answer(text: str) -> str:
    if text not in SAID:
        return "I would call this a fine question."
    return "```json\n" + json.dumps({"tags": [{"tag": tag, "explanation": "so"} for tag in SAID[text]]}) + "\n```"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talks(path, asked=ASKED):
    turns = [[{"role": "user", "content": one}, {"role": "assistant", "content": "yes"}] for one in asked]
    return write(path, *({"messages": own, "source": "s"} for own in turns))


def tag(path, out, server, *more):
    return cli.main(["data", "tag", str(path), str(out), "--url", server.url, "--model", "m", *more])


def test_a_file_is_tagged_counted_and_sampled_by_its_tags(tmp_path, capsys):
    out = tmp_path / "tagged.jsonl"
    with chat_server(answer) as server:
        assert tag(talks(tmp_path / "talk.jsonl", [*ASKED, "what?"]), out, server, "--least-rows", "2") == 0
        said = capsys.readouterr().out
        assert len(server.bodies) == 6, "the same prompt is asked about once"
        assert "asked: 6 requests, 600 prompt tokens, 42 completion tokens, 1 answers that could not be read" in said
        assert "1 rows without an answer" in said and "1 tags of more than 100 characters" in said
        assert "vocabulary: 9 different tags, 7 by rule" in said and "4 that are frequent" in said
        assert "4 different tags" in said and "100.0 % of a vocabulary of 4; 1.43 a row" in said
        tagged = read(out, Demonstration).records
        assert [one.tags for one in tagged] == [
            ("sorting algorithm", "code generation"),
            ("sorting algorithm", "code generation"),
            ("cooking",),
            ("cooking", "poetry"),
            ("poetry",),
            ("sorting algorithm", "code generation"),
            (),
        ]
        assert tagged[0].source == "s", "nothing else of a row is lost"
        before = out.read_bytes()
        assert tag(tmp_path / "talk.jsonl", out, server, "--least-rows", "2") == 0 and out.read_bytes() == before
        assert len(server.bodies) == 6 and "6 answers from before" in capsys.readouterr().out
        assert cli.main(["data", "stats", str(out)]) == 0
        assert "tags: 4 different tags" in capsys.readouterr().out
        assert cli.main(["data", "inspect", str(out)]) == 0
        said = capsys.readouterr().out
        assert "tags sorting algorithm, code generation" in said and "most often: code generation 3" in said
        # a second file gets the names of the first; what the first has not is no tag
        more = write(tmp_path / "more.jsonl", {"prompt": "sort and explain", "tags": ["mine"]}, {"prompt": "写一首诗"})
        words = ("--vocabulary", str(tmp_path / "tagged.vocabulary.json"))
        assert tag(more, tmp_path / "second.jsonl", server, *words) == 0
    said = capsys.readouterr().out
    assert "3 tags that are not in the vocabulary" in said and "1 rows had tags before, which stand in front" in said
    prompts = read(tmp_path / "second.jsonl", Prompt).records
    assert [one.tags for one in prompts] == [("mine", "sorting algorithm", "code generation"), ("poetry",)]
    # one of each tag before any tag comes twice: the most complex first
    taken = tag_balanced([one.tags for one in tagged], 3, seed=0)
    assert {tag for at in taken for tag in tagged[at].tags} == {
        "sorting algorithm",
        "code generation",
        "cooking",
        "poetry",
    }


def test_pairs_keep_their_facts_and_get_tags(tmp_path):
    pairs = [{"prompt": one, "chosen": "good", "rejected": "bad", "tags": ["correctness"]} for one in ASKED]
    out = tmp_path / "out.jsonl"
    with chat_server(answer) as server:
        assert tag(write(tmp_path / "pairs.jsonl", *pairs), out, server, "--least-rows", "3", "--no-schema") == 0
        assert "response_format" not in server.bodies[0]
    assert read(out, Comparison).records[0].tags == ("correctness", "sorting algorithm", "code generation")


def test_a_tagger_learns_the_tags_and_gives_them(tmp_path, capsys):
    words = {"cooking": "boil the egg and the flour in a pan", "code": "sort a list by a function in python"}
    rows = [
        {"prompt": f"{words[name]} {'as a poem' * (at % 2)} number {at}", "tags": [name, *["poetry"] * (at % 2)]}
        for name in words
        for at in range(20)
    ]
    path, folder = write(tmp_path / "tagged.jsonl", *rows, {"prompt": "no tags here"}), tmp_path / "tagger"
    assert cli.main(["data", "train-classifier", str(path), str(folder), "--label", "tags"]) == 0
    said = capsys.readouterr().out
    assert "1 rows without 'tags'" in said
    assert float(said.partition("f1 of all tags of all rows: ")[2].split()[0]) > 0.9
    asked = write(tmp_path / "new.jsonl", {"prompt": words["cooking"]}, {"prompt": words["code"] + " as a poem"})
    out = tmp_path / "out.jsonl"
    assert cli.main(["data", "tag", str(asked), str(out), "--tagger", str(folder)]) == 0
    assert [set(one.tags) for one in read(out, Prompt).records] == [{"cooking"}, {"code", "poetry"}]
    assert "3 different tags (1 to 5), 100.0 % of a vocabulary of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--url", "http://127.0.0.1:9"], "--url goes with --model"),
        (["--tagger", "none"], "none holds no text classifier"),
        (["--tagger", "none", "--vocabulary", "v"], "--vocabulary is for a model behind --url"),
        (["--url", "http://127.0.0.1:9", "--model", "m", "--vocabulary", "none"], "none: no such vocabulary"),
        (["--url", "http://a.example", "--model", "m"], "plain http to a.example"),
        (["--url", "http://127.0.0.1:9", "--model", "m", "--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (
            ["--url", "http://127.0.0.1:9", "--model", "m", "--vocabulary", "v", "--least-rows", "2"],
            "--least-rows is for",
        ),
    ],
)
def test_words_that_do_not_go_together(tmp_path, capsys, words, told):
    path = talks(tmp_path / "talk.jsonl")
    assert cli.main(["data", "tag", str(path), str(tmp_path / "out.jsonl"), *words]) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and not (tmp_path / "out.jsonl").exists()


def test_files_and_answers_that_give_no_tags(tmp_path, capsys):
    path, out = talks(tmp_path / "talk.jsonl"), tmp_path / "out.jsonl"
    (tmp_path / "text.txt").write_text("a document")
    with chat_server(lambda text: "I like it.") as server:
        assert tag(path, out, server) == 1
        assert "gives no JSON of tags: the first of 5 answers is none: 'I like it.'" in capsys.readouterr().err
        assert tag(tmp_path / "text.txt", out, server) == 1
        assert "holds documents" in capsys.readouterr().err
        assert tag(path, path, server) == 1 and "the output is the input" in capsys.readouterr().err
        server.say = lambda text: '{"tags": []}'
        assert tag(talks(tmp_path / "other.jsonl", ["a", "b"]), out, server) == 1
        assert "no row has a tag" in capsys.readouterr().err
        server.say = answer
        assert tag(talks(tmp_path / "more.jsonl", [*SAID]), tmp_path / "new.jsonl", server) == 1
        assert "stands on 5 rows, the most frequent on 2" in capsys.readouterr().err
        with locked(tmp_path, ["tag-new.jsonl"]):
            assert tag(tmp_path / "more.jsonl", tmp_path / "new.jsonl", server) == 1
        assert "another process is running 'tag-new.jsonl'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_collect_draws_by_the_tags_of_a_tagged_file(tmp_path, capsys):
    run, out = write_run(tmp_path / "tiny"), tmp_path / "tagged.jsonl"
    with chat_server(answer) as server:
        assert tag(talks(tmp_path / "talk.jsonl"), out, server, "--least-rows", "2") == 0
    recipe = tmp_path / "recipe.yaml"
    collect = f"collect: {{data: [{out}], sources: [{{model: sft}}], num_prompts: 3, max_completion_length: 8}}\n"
    recipe.write_text(f"name: c\noutput_dir: {run}\nmodel: {{path: {run}/sft/model}}\n{collect}")
    assert (
        cli.main(
            ["collect", str(recipe), "--out", str(tmp_path / "items"), "collect.num_replies=2", "collect.engine=hf"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "3 of 5 prompts drawn: 4 of their 4 tags occur, 2.00 a prompt (1.60 among all)" in said
