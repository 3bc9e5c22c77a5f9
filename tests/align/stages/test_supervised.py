"""Evaluation never stands between training and saving, and a failed one is repeated alone."""

import json

import pytest
import torch
from safetensors.torch import load_file

from align.recipe.check import missing_inputs
from align.runs.acceptance import accepting
from align.runs.errors import CheckpointError
from align.runtime.errors import OutOfMemoryError
from align.stages import run_base, run_reward, run_sft, supervised
from align.stages.evaluations import Evaluations
from align.stages.supervised import Record
from align.trainers.reward import RewardTrainer
from align.trainers.sft import SFTTrainer
from tests.align.stages.sft_case import conversations, lines, recipe, write_lines
from tests.align.stages.small_chain import small_recipe, write_data


def timeless(summary):
    kept = ("seconds", "train_seconds", "peak_memory_gib", "made_with", "resumed_from")
    return {name: value for name, value in summary.items() if name not in kept}


def tensors(folder):
    return {file.name: load_file(file) for file in sorted((folder / "model").glob("*.safetensors"))}


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[file][name]) for file, part in one.items() for name, value in part.items()
    )


def fails(monkeypatch, kind, method, *, when):
    """`method` raises once, when `when(self)`."""
    whole, left = getattr(kind, method), [1]

    def broken(self, *args, **kwargs):
        if left and when(self):
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(kind, method, broken)


def never(*args, **kwargs):
    raise AssertionError("trained again")


RUNS = [
    (run_base.run_base, "base", SFTTrainer),
    (run_sft.run_sft, "sft", SFTTrainer),
    (run_reward.run_reward, "rm", RewardTrainer),
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A base model, an sft and a reward model, unbroken."""
    folder = tmp_path_factory.mktemp("chain")
    write_data(folder)
    small = small_recipe(folder)
    for run, stage, _ in RUNS:
        run(small_recipe(folder, rm__init_from="base"), stage)
    return folder, small


@pytest.mark.parametrize(("run", "stage", "kind"), RUNS)
def test_a_failed_last_evaluation_leaves_the_model_and_is_repeated_alone(chain, monkeypatch, run, stage, kind):
    folder, _ = chain
    small = small_recipe(folder, rm__init_from="base")
    out = folder / f"again_{stage}"
    trained = lambda self: self.state.global_step == getattr(small, stage).max_steps  # noqa: E731
    fails(monkeypatch, kind, "prediction_step", when=trained)
    with pytest.raises(OutOfMemoryError, match=r"evaluation ran out of memory .*: lower eval_batch_size \(16\)"):
        run(small, stage, out_dir=out)
    assert (out / "trained.json").is_file() and not (out / "summary.json").exists()
    first = tensors(out)
    monkeypatch.setattr(supervised, "train", never)
    summary = run(small, stage, out_dir=out)
    whole = folder / "run" / stage
    assert timeless(summary) == timeless(json.loads((whole / "summary.json").read_text()))
    assert equal(tensors(out), first) and equal(first, tensors(whole))
    assert not (out / "trained.json").exists()
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [_untimed(line) for line in lines(out / name)] == [_untimed(line) for line in lines(whole / name)]


def _untimed(line):
    return {key: value for key, value in line.items() if key != "time" and not key.endswith(("time", "per_second"))}


def test_a_model_that_is_not_measured_is_no_start_for_others(chain):
    folder, _ = chain
    small = small_recipe(folder, rm__init_from="base")
    assert missing_inputs(small, "rm") == []
    mark = folder / "run" / "base" / "trained.json"
    mark.write_text("{}")
    try:
        assert missing_inputs(small, "rm") == ["base"]
        with pytest.raises(FileNotFoundError, match="has not been measured yet"):
            run_sft.run_sft(small, "sft", out_dir=folder / "never")
    finally:
        mark.unlink()


@pytest.mark.slow
def test_the_best_model_is_put_back_after_a_failed_last_look(tmp_path, monkeypatch):
    keys = {"learning_rate": 0.3, "eval_steps": 2, "keep_best": True, "max_steps": 5}
    whole = run_sft.run_sft(recipe(tmp_path, **keys))
    again = recipe(tmp_path, run="again", **keys)
    fails(monkeypatch, Evaluations, "final", when=lambda self: True)
    with pytest.raises(torch.OutOfMemoryError):
        run_sft.run_sft(again)
    monkeypatch.setattr(supervised, "train", never)
    assert timeless(run_sft.run_sft(again)) == timeless(whole)
    assert equal(tensors(tmp_path / "run" / "sft"), tensors(tmp_path / "again" / "sft"))


def test_an_evaluation_that_fails_while_training_is_made_up_for(tmp_path, monkeypatch):
    keys = {"eval_steps": 2, "max_steps": 5}
    whole = run_sft.run_sft(recipe(tmp_path, **keys))
    again = recipe(tmp_path, run="again", **keys)
    fails(monkeypatch, Evaluations, "_ask", when=lambda self: self.trainer.state.global_step == 4)
    with pytest.raises(OutOfMemoryError) as caught:
        run_sft.run_sft(again)
    assert "the state of step 4 is saved in" in caught.value.__notes__[0]
    summary = run_sft.run_sft(again)
    assert summary["resumed_from"] == 4 and timeless(summary) == timeless(whole)
    for name in ("metrics.jsonl", "samples.jsonl"):
        first, second = (lines(tmp_path / run / "sft" / name) for run in ("run", "again"))
        steps = [[_untimed(line) for line in found if "train_loss" not in line] for found in (first, second)]
        assert steps[0] == steps[1]


def test_a_step_that_fails_leaves_the_state_before_it(tmp_path, monkeypatch):
    whole = run_sft.run_sft(recipe(tmp_path, max_steps=4))
    again = recipe(tmp_path, run="again", max_steps=4)
    fails(monkeypatch, SFTTrainer, "compute_loss", when=lambda self: self.state.global_step == 2)
    with pytest.raises(OutOfMemoryError, match=r"training ran out of memory .*lower micro_batch_size \(4\)"):
        run_sft.run_sft(again)
    summary = run_sft.run_sft(again)
    assert summary["resumed_from"] == 2 and timeless(summary) == timeless(whole)


def test_what_a_reward_model_evaluates_first_at_the_end_is_tried_at_the_start(chain, monkeypatch):
    folder, _ = chain
    small = small_recipe(folder, rm__init_from="base")
    fails(monkeypatch, RewardTrainer, "prediction_step", when=lambda self: True)
    with pytest.raises(OutOfMemoryError, match="eval_batch_size"):
        run_reward.run_reward(small, "rm", out_dir=folder / "tried")
    assert sorted(path.name for path in (folder / "tried").iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize("name", ["train.jsonl", pytest.param("heldout.jsonl", marks=pytest.mark.slow)])
def test_a_model_that_is_not_measured_yet_keeps_to_the_rows_that_it_was_trained_on(tmp_path, monkeypatch, name):
    small, key = recipe(tmp_path), {"train.jsonl": "sft.data", "heldout.jsonl": "sft.eval_data"}[name]
    fails(monkeypatch, SFTTrainer, "prediction_step", when=lambda self: self.state.global_step == 6)
    with pytest.raises(OutOfMemoryError):
        run_sft.run_sft(small)
    first = tensors(tmp_path / "run" / "sft")
    write_lines(tmp_path / name, lines(tmp_path / name) + conversations(8, start=200))
    told = rf"{key}: .*model was trained with \d+ rows, now there are \d+; put the old rows back, or go on with .*{key}"
    with pytest.raises(CheckpointError, match=told):
        run_sft.run_sft(small)
    monkeypatch.setattr(supervised, "train", never)
    with accepting([key]):
        summary = run_sft.run_sft(small)
    assert equal(tensors(tmp_path / "run" / "sft"), first) and [one["key"] for one in summary["accepted"]] == [key]
    before = loss_of(small, tmp_path)
    assert summary["heldout_loss_before"] == pytest.approx(before, rel=1e-5)  # of the held-out rows of now


def loss_of(small, folder):
    """The held-out loss of the model that training starts from, with the rows that lie there now."""
    again = small.model_copy(update={"output_dir": str(folder / "other")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "train", lambda self, *shown: {})
        patch.setattr(Evaluations, "final", lambda self: {"heldout_loss": 0.0, "by_category": {}, "step": 0})
        return run_sft.run_sft(again)["heldout_loss_before"]


def test_a_torn_record_is_told(tmp_path):
    small = recipe(tmp_path)
    (tmp_path / "run" / "sft" / "model").mkdir(parents=True)
    (tmp_path / "run" / "sft" / "trained.json").write_text('{"state"')
    with pytest.raises(CheckpointError, match=r"trained\.json cannot be read: remove it"):
        run_sft.run_sft(small)
