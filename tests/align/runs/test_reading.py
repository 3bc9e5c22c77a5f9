"""Whatever lies in a run folder, reading it ends in what is whole or in one sentence, never in a traceback."""

import json
import logging

import pytest

from align import cli
from align.doctor import examine, read_history
from align.recipe.lineage import stage_dir
from align.runs import checkpoint
from align.runs.acceptance import FILE as ACCEPTED
from align.runs.metrics import MetricsLog
from align.runs.reading import read_recipe
from align.runs.run_files import read_run
from align.runtime.errors import AlignError
from align.runtime.json_files import RunFileError, read_object, read_objects
from align.stages import common
from align.stages.evaluations import SampleFile
from align.stages.overview import stage_summary
from align.stages.recipe_guard import changes, require_same_world
from align.stages.redo import plan
from data_formats.errors import DataError
from examples.experiments import seeds
from tests.align.stages.small_chain import small_recipe

SIZES = ("documents", "demonstrations", "coarse_comparisons", "comparisons", "heldout_comparisons", "prompts")
WORLD = dict.fromkeys((*SIZES, "eval_prompts"), 3)
TORN = {
    "cut": b'{"a": {"b": [1, 2',
    "text": b"words",
    "list": b"[1, 2]",
    "null": b"null",
    "bytes": b"\xff\xfe\x00a: 1\n",
    "deep": b"[" * 20_000,
    "empty": b"",
}


@pytest.mark.parametrize("kind", TORN)
def test_objects_and_recipes_are_whole_or_one_sentence(tmp_path, kind):
    file = tmp_path / "a file"
    file.write_bytes(TORN[kind])
    with pytest.raises(RunFileError, match="a file is not "):
        read_object(file, "do this")
    if kind not in ("empty", "null"):
        with pytest.raises(RunFileError, match="a file"):
            read_recipe(file)
    if kind != "empty":
        with pytest.raises(RunFileError, match="a file"):
            read_objects(file, "do this")
    assert read_object(tmp_path / "none", "") is None and read_recipe(tmp_path / "none") == {}


def test_lines_of_no_step_are_left_out_with_a_warning_and_the_others_go_on(tmp_path, caplog):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    odd = ['{"step": "two", "loss": 1}', '{"step": null}', "[1]", "null", "7", '{"step": true}', '{"step": 1e999}']
    log.path.write_text("\n".join(['{"step": 1, "loss": 3}', *odd, '{"step": 2}', '{"step": 3, "lo']))
    with caplog.at_level(logging.WARNING):
        assert log.read() == [{"step": 1, "loss": 3}, {"step": 2}]
    assert "metrics.jsonl: 7 lines are no records of a step" in caplog.text
    log.keep_until(1)
    assert log.path.read_text() == '{"step": 1, "loss": 3}\n'
    log.path.write_text("\n".join([*odd, '{"step": 1}']) + "\n")
    SampleFile(log.path).replace(2, [{"reply": "x"}])
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [{"step": 1}, {"step": 2, "reply": "x"}]


def test_a_file_that_is_called_like_a_checkpoint_is_none(tmp_path):
    checkpoint.save(tmp_path, 5, lambda folder: (folder / "state").write_text("5"))
    (tmp_path / "step-99").write_text("mine")
    for name in ("step-٣", "step-007", "step-"):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [5] and checkpoint.latest(tmp_path) == tmp_path / "step-5"
    checkpoint.save(tmp_path, 6, lambda folder: (folder / "state").write_text("6"), keep=1)
    assert checkpoint.steps(tmp_path) == [6] and (tmp_path / "step-99").read_text() == "mine"
    checkpoint.save(tmp_path, 99, lambda folder: (folder / "state").write_text("99"))
    assert checkpoint.latest(tmp_path) == tmp_path / "step-99"
    for name in TORN:
        (tmp_path / "step-99/manifest.json").write_bytes(TORN[name])
        assert checkpoint.latest(tmp_path) == tmp_path / "step-6"


def torn_run(folder, kind):
    """A run whose every file is `kind`; the recipe that is to run there."""
    recipe = small_recipe(folder, tinyworld=WORLD)
    for stage in recipe.stages:
        for name in ("summary.json", "metrics.jsonl", "samples.jsonl", "eval.jsonl", "recipe.yaml", ACCEPTED):
            stage_dir(recipe, stage).mkdir(parents=True, exist_ok=True)
            (stage_dir(recipe, stage) / name).write_bytes(TORN[kind])
    for name in ("summary.json", "controls/summary.json", "world/world.json"):
        (folder / "run" / name).parent.mkdir(exist_ok=True)
        (folder / "run" / name).write_bytes(TORN[kind])
    return recipe


@pytest.mark.parametrize("kind", [one for one in TORN if one != "deep"])  # a second each time that YAML is read
def test_everything_that_reads_a_run_bears_what_it_finds(tmp_path, kind):
    recipe = torn_run(tmp_path, kind)
    run = tmp_path / "run"
    readers = {
        "plan": lambda: plan(recipe, recipe.stages),
        "changes": lambda: changes(recipe, "sft", run / "sft"),
        "summary": lambda: stage_summary(recipe, "sft"),
        "world": lambda: require_same_world(recipe),
        "rows": lambda: common.read_rows(run / "rm/eval.jsonl"),
        "seeds": lambda: seeds.show([run]),
        "another seed": lambda: cli._keep_other_seed(run, 7),
        "doctor": lambda: examine(read_history(run / "sft")),
        "finish": lambda: common.finish(run / "sft", {}, 0.0),
    }
    told = {}
    for name, read in readers.items():
        try:
            read()
        except AlignError as error:
            told[name] = str(error)
    assert {"summary", "world", "seeds", "another seed"} <= told.keys() or kind == "empty"
    assert all(len(words.splitlines()) == 1 and str(tmp_path) in words for words in told.values()), told
    found = read_run(run)
    assert found.problems or kind in ("empty", "null")


def test_the_seeds_of_another_run_are_one_sentence(tmp_path, capsys):
    for content in ({"seed": 1}, {"seed": 1, "base": None}, {"base": {"heldout_loss": "x", "unigram_entropy": 1}}):
        (tmp_path / "summary.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"summary\.json: is not the summary of a finished quickstart"):
            seeds.show([tmp_path])
    assert seeds.main([str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err
