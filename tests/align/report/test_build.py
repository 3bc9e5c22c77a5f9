"""Whole reports: of a finished run, of other chains, of folders in which everything is missing or wrong."""

import json
import os
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from align.report import build_report
from align.report.page import render
from align.runs.run_files import read_run
from align.runtime.errors import MissingFileError, StorageError
from tests.align.report.synthetic_run import make_run, write

VOID = ("meta", "link", "br", "input")


class Page(HTMLParser):
    """Tags, addresses and visible text of a page; fails on tags that are not closed in order."""

    def __init__(self, page: Path | str):
        super().__init__()
        self.tags, self.links, self.pieces, self.open = [], [], [], []
        self.feed(page if isinstance(page, str) else page.read_text(encoding="utf-8"))
        self.close()
        self.text = re.sub(r" ([,.;])", r"\1", " ".join(" ".join(self.pieces).split()))  # a term is a piece by itself
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.pieces += [data] if self.open[-1:] not in (["style"], ["script"]) else []


def plots(index: Path) -> list[str]:
    """The captions of the plots."""
    found = re.findall(r"<figcaption>(.*?)(?: <small>|</figcaption>)", index.read_text(encoding="utf-8"))
    return [unescape(re.sub(r"</?abbr[^>]*>", "", title)) for title in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = make_run(tmp_path_factory.mktemp("runs") / "quickstart", prompts=20, iterations=12, pairs=60)
    return build_report(root)


def test_the_page_is_one_file_with_a_plot_a_panel(finished):
    assert finished.parts[-3:] == ("quickstart", "report", "index.html")
    assert [path.name for path in finished.parent.iterdir()] == ["index.html"]
    found = plots(finished)
    assert found[:6] == ["base: loss", "sft: loss", "pmp: loss", "pmp: accuracy", "rm: loss", "rm: accuracy"]
    assert [name for name in found if name.startswith("rm: ")][2:] == [
        "rm: accuracy on held-out pairs",
        "rm: scores of held-out replies",
        "rm: calibration on held-out pairs",
    ]
    assert len(found) == len(set(found)) == Page(finished).tags.count("svg") == 24


def test_page_needs_nothing_else(finished):
    page = Page(finished)
    assert [link for link in page.links if not re.fullmatch(r"#[\w-]+|data:,", link)] == []
    assert page.tags.count("script") == 1 and not {"iframe", "object", "form", "img"} & set(page.tags)
    text = finished.read_text()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r"url\(#(\w+)\)", text)) <= set(ids)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_page_tells_the_figures(finished):
    text = Page(finished).text
    for piece in ("4.52 (unigram entropy)", "50.0 % (chance)", "gold, greedy", "140", "critic_warmup_steps: 20"):
        assert piece in text
    assert "judged by the gold score of the embedded world" in text and "between -1 and 1.5" in text


def test_building_again_gives_the_same_bytes_and_leaves_other_files_alone(tmp_path):
    write(tmp_path / "sft/metrics.jsonl", [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)])
    index = build_report(tmp_path)
    (index.parent / "mine.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    build_report(tmp_path)
    assert len(before) == 2 and {path.name: path.read_bytes() for path in index.parent.iterdir()} == before


def test_a_folder_without_any_file_says_so(tmp_path):
    index = build_report(tmp_path)
    text = Page(index).text
    assert "No stage has left anything in this folder yet." in text
    assert re.findall(r"<section id=.([a-z-]+)", index.read_text()) == ["glossary"]  # no section without content
    assert plots(index) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MissingFileError, match="no such run folder"):
        build_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_chain_without_world_and_gold_is_judged_by_what_it_was_trained_on(tmp_path):
    write(tmp_path / "ppo/recipe.yaml", "name: mine\nmodel: {path: some/model}\nppo: {data: [prompts.jsonl]}\n")
    line = {"prompt": "Hi", "category": "", "sft_reply": "a", "ppo_reply": "b", "sft_reward": 0.5, "ppo_reward": 1.0}
    write(tmp_path / "ppo/summary.json", {"steps": 3})
    write(tmp_path / "ppo/eval.jsonl", [line, {**line, "ppo_reward": 0.0}])
    index = build_report(tmp_path)
    text = Page(index).text
    assert "PPO won 1 of 2 against SFT, lost 1; judged by the reward model that PPO was trained on." in text
    assert "The judge is what PPO was trained on, for want of another" in text and "the gold score" not in text
    assert "all 1 0 1 50.0 % [" in text and "(no category)" not in text
    assert "ppo/metrics.jsonl is missing or empty." in text
    assert "has not run yet" not in text  # the chain has no other stage
    assert plots(index) == []


def test_text_of_the_run_cannot_become_markup(tmp_path):
    evil = "</div><script>alert(1)</script>'\" <|im_end|> {{ 7 * 7 }} & \ud800 \x00 \u202e"
    root = make_run(tmp_path / "run", prompts=5, iterations=3, pairs=6)
    line = {"sft_gold": 0.0, "ppo_gold": 1.0, "prompt": evil, "category": evil, "sft_reply": evil, "ppo_reply": [evil]}
    (root / "ppo/eval.jsonl").write_text(json.dumps(line) + "\n")
    (root / "sft/samples.jsonl").write_text(
        json.dumps({"prompt": [{"role": evil, "content": evil}] * 2, "reply": evil})
    )
    (root / "rm/eval.jsonl").write_text(json.dumps({"tags": [evil], "chosen": evil, "rejected": "", "chosen_score": 1}))
    (root / "summary.json").write_text(json.dumps({"name": evil, "seed": evil, "gold_range": [evil, evil]}))
    (root / "sft/summary.json").write_text(json.dumps({"headline": [[evil, evil, evil]], "judge": evil}))
    (root / "ppo/recipe.yaml").write_text(f"name: x\n# {evil}".encode("utf-8", "replace").decode())
    source = render(read_run(root), {})
    page = Page(source)
    assert page.tags.count("script") == 1 and "alert(1)" in page.text  # ours
    assert "&lt;|im_end|&gt;" in source and "<|im_end|>" not in source
    assert "{{ 7 * 7 }}" in page.text and "␀" in page.text and "\x00" not in source


NONSENSE = ["", None, True, "x", -1, 1e400, float("nan"), [], [[]], {}, {"a": 1}, "$\\frac{", "知識", 10**400]


@pytest.mark.slow
def test_values_of_wrong_types_are_left_out(tmp_path):
    root = make_run(tmp_path / "run", prompts=len(NONSENSE), iterations=len(NONSENSE), pairs=len(NONSENSE))
    for path in [*root.glob("*/*.json*"), root / "summary.json"]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for at, row in enumerate(rows):
            for offset, key in enumerate(row):
                if (at + offset) % 3:
                    row[key] = NONSENSE[(at + 5 * offset) % len(NONSENSE)]
        path.write_text(
            "\n".join(["", "[1]", "{torn", *map(json.dumps, rows)] if len(rows) > 1 else map(json.dumps, rows))
        )
    text = Page(build_report(root)).text
    assert "ppo/metrics.jsonl: 2 of 18 lines are no JSON objects" in text


@pytest.mark.parametrize("value", NONSENSE)
def test_one_value_everywhere(tmp_path, value):
    """Summaries and evaluations in which every value is the same wrong one."""
    root = make_run(tmp_path / "run", prompts=2, iterations=2, pairs=2)
    for path in [*root.glob("*/summary.json"), root / "summary.json", *root.glob("*/eval.jsonl")]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(dict.fromkeys(row, value)) + "\n" for row in rows))
    for path in root.glob("*/recipe.yaml"):
        path.write_text(json.dumps(value))
    assert "Glossary" in Page(render(read_run(root), {})).text


def test_files_cut_short_are_named(tmp_path):
    root = make_run(tmp_path / "run", prompts=2, iterations=2, pairs=2)
    (root / "ppo/summary.json").write_text('{"score": 1.')
    (root / "rm/metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n{"st\xff\xfe')
    (root / "base/recipe.yaml").write_text("a: [")
    for stage in ("sft", "pmp", "rm", "ppo"):
        (root / stage / "recipe.yaml").write_text("a: [")
    text = Page(render(read_run(root), {})).text
    assert "ppo/summary.json is not a whole JSON object and was left out" in text
    assert "rm/metrics.jsonl: 1 of 2 lines are no JSON objects" in text
    assert "ppo/recipe.yaml cannot be read" in text
    assert "unfinished, at step 2" in text


def test_what_is_gone_goes_from_the_page(tmp_path):
    write(tmp_path / "ppo/metrics.jsonl", [{"step": 1, "entropy": 1.0}])
    write(tmp_path / "ppo/eval.jsonl", [{"sft_gold": 0.0, "ppo_gold": 1.0}])
    index = build_report(tmp_path)
    assert plots(index) == ["entropy"] and "PPO against SFT" in index.read_text()
    (tmp_path / "ppo/metrics.jsonl").unlink()
    (tmp_path / "ppo/eval.jsonl").unlink()
    write(tmp_path / "ppo/recipe.yaml", "name: n\nppo: {eval_data: [held_out.jsonl]}\n")
    build_report(tmp_path)
    assert plots(index) == [] and "PPO against SFT" not in index.read_text()
    assert "it is compared with its start at its end" in index.read_text()


def test_pictures_of_an_older_report_are_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "report"
    for name in ("ppo.png", "ppo-dark.png", "wins.png", "mine.png"):
        write(folder / name, "a picture")
    build_report(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "mine.png"]


def test_a_full_disk_leaves_the_older_report_whole(tmp_path, monkeypatch):
    index = build_report(tmp_path)
    older, real = index.read_bytes(), os.replace
    write(tmp_path / "sft/metrics.jsonl", [{"step": 1, "loss": 2.0}])

    def full(source, target):
        if str(target).endswith("index.html"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"index\.html: cannot be written \(No space left on device\)"):
        build_report(tmp_path)
    assert index.read_bytes() == older
    assert list(index.parent.glob(".*")) == []
    monkeypatch.undo()
    (index.parent / ".index.html.tmp-abc").write_text("left by a killed process")
    build_report(tmp_path)
    assert index.read_bytes() != older and list(index.parent.glob(".*")) == []
