"""The whole stage on a small model: what is measured while it trains, and which model it leaves."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from align.data.load import load_records
from align.runs import checkpoint
from align.runs.errors import CheckpointError
from align.stages import evaluations, ghost, run_sft
from align.stages.best_checkpoint import BestCheckpoint
from data_formats.errors import EmptyDatasetError
from data_formats.records import Demonstration
from data_formats.splitting import split_heldout
from rollouts.errors import RolloutError
from rollouts.scripted import ScriptedEngine
from tests.align.stages.sft_case import conversations, lines, recipe, write_lines
from tests.tiny_models import byte_tokenizer

KEEPING = {"eval_steps": 1, "keep_best": True}


def weights(folder):
    return load_file(folder / "model.safetensors")


def untimed(line):
    return {key: value for key, value in line.items() if key != "time" and not key.endswith(("time", "per_second"))}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def measured(run, rows):
    """Mean loss in nats a token of the model in `run`, by transformers' own loss, one conversation at a time."""
    model = AutoModelForCausalLM.from_pretrained(run / "sft" / "model", dtype=torch.float64)
    tokenizer, total, count = byte_tokenizer(), 0.0, 0
    for row in rows:
        ids, labels = [], []
        for turn in row["messages"]:
            head = tokenizer(f"<|im_start|>{turn['role']}\n")["input_ids"]
            body = tokenizer(f"{turn['content']}<|im_end|>")["input_ids"]
            tail = tokenizer("\n")["input_ids"]
            own = body if turn["role"] == "assistant" else [-100] * len(body)
            ids += head + body + tail
            labels += [-100] * len(head) + own + [-100] * len(tail)
        tokens = sum(label != -100 for label in labels)
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, count = total + loss.item() * tokens, count + tokens
    return total / count, count


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looked")
    return folder, run_sft.run_sft(recipe(folder, eval_steps=2, max_steps=5))


def test_held_out_loss_by_category_is_the_mean_over_tokens(looked):
    folder, summary = looked
    rows = conversations(9, start=100)
    assert summary["heldout_loss"] == pytest.approx(measured(folder / "run", rows)[0], rel=1e-5)
    assert set(summary["by_category"]) == {"pets", "farm"}
    for name, figures in summary["by_category"].items():
        loss, tokens = measured(folder / "run", [row for row in rows if row.get("category") == name])
        assert (figures["heldout_loss"], figures["heldout_tokens"]) == (pytest.approx(loss, rel=1e-5), tokens)
        assert figures["heldout_loss_before"] != figures["heldout_loss"]


def test_every_look_is_logged_with_its_replies(looked):
    folder, summary = looked
    logged, samples = lines(folder / "run/sft/metrics.jsonl"), lines(folder / "run/sft/samples.jsonl")
    losses = {line["step"]: line for line in logged if "eval_loss" in line}
    said = {line["step"]: line for line in logged if "eval_end_rate" in line}
    assert list(losses) == list(said) == [2, 4, 5]
    assert losses[5]["eval_loss"] == summary["heldout_loss"]
    assert losses[5]["eval_loss/farm"] == summary["by_category"]["farm"]["heldout_loss"]
    for step in (2, 4, 5):
        rows = [row for row in samples if row["step"] == step]
        assert len(rows) == 4
        assert said[step]["eval_end_rate"] == sum(row["finished"] for row in rows) / 4
        assert said[step]["eval_distinct"] == len({row["reply"] for row in rows}) / 4
        assert said[step]["eval_reply_tokens"] == sum(row["tokens"] for row in rows) / 4
    assert len(samples) == 12
    assert summary["end_rate"] == said[5]["eval_end_rate"] and summary["replies"] == 4
    last = [row for row in samples if row["step"] == 5]
    assert {row["category"] for row in last} == {"farm", "pets", ""}
    farm = [row for row in last if row["category"] == "farm"]
    assert summary["by_category"]["farm"]["replies"] == len(farm)
    assert "eval_loss" not in {key for row in samples for key in row}


def test_looking_changes_nothing_in_what_is_trained(looked):
    folder, summary = looked
    alone = run_sft.run_sft(recipe(folder, run="alone", max_steps=5))
    assert same(weights(folder / "run/sft/model"), weights(folder / "alone/sft/model"))
    for key in ("heldout_loss", "heldout_loss_before", "train_loss", "end_rate", "distinct", "by_category"):
        assert alone[key] == summary[key], key
    assert [line["step"] for line in lines(folder / "alone/sft/metrics.jsonl") if "eval_loss" in line] == [5]


def test_rows_that_are_dropped_do_not_shift_the_categories(tmp_path):
    plain = recipe(tmp_path)
    rows = conversations(3, start=100)
    rows[0]["messages"][0]["content"] = "x" * 300
    write_lines(tmp_path / "heldout.jsonl", rows)
    summary = run_sft.run_sft(plain)
    assert summary["heldout_dropped_rows"] == {"longer than max_length": 1}
    (kept,) = [row["category"] for row in rows[1:] if "category" in row]
    assert set(summary["by_category"]) - {kept} <= {rows[0].get("category")}
    loss, _ = measured(tmp_path / "run", [row for row in rows[1:] if row.get("category") == kept])
    assert summary["by_category"][kept]["heldout_loss"] == pytest.approx(loss, rel=1e-5)


def test_without_held_out_conversations_it_trains_and_says_so(tmp_path):
    summary = run_sft.run_sft(recipe(tmp_path, eval_data=[], holdout=0.0, eval_steps=2))
    assert (summary["heldout_loss"], summary["heldout_rows"], summary["steps"]) == (None, 0, 6)
    assert "end_rate" not in summary


def test_an_engine_that_fails_ends_the_stage(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RolloutError("no room")

    monkeypatch.setattr(evaluations, "make_engine", broken)
    with pytest.raises(RolloutError, match="no room"):
        run_sft.run_sft(recipe(tmp_path, eval_steps=2))


# -- what gets loss


class Batches(TrainerCallback):
    """Keeps the training rows."""

    def __init__(self):
        self.rows = []

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.rows = list(train_dataloader.dataset)


@pytest.fixture
def trained_on(monkeypatch):
    """A function that runs the stage and gives its summary and its training rows as (text, text with loss)."""

    def run(recipe_):
        batches, real = Batches(), run_sft.supervised.train

        def train(trainer, *told):
            trainer.add_callback(batches)
            return real(trainer, *told)

        with monkeypatch.context() as patch:
            patch.setattr(run_sft.supervised, "train", train)
            summary = run_sft.run_sft(recipe_)
        tokenizer, shown = byte_tokenizer(), []
        for row in batches.rows:
            kept = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            shown.append((tokenizer.decode(row["input_ids"]), tokenizer.decode(kept)))
        return summary, shown

    return run


FREE = {"learning_rate": 1e-9, "max_steps": 1, "turns": 2}


def scripted(tokenizer, text):
    """An engine, in the place of the model's, that answers `text` and ends the turn."""
    ids = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return lambda kind, model, **options: ScriptedEngine(lambda prompt, number: ids)


def test_ghosts_have_loss_on_the_last_turn_and_the_others_as_the_section_says(tmp_path, trained_on, monkeypatch):
    made = recipe(tmp_path, ghost_attention={"instructions": ["Shout."], "share": 0.5}, **FREE)
    monkeypatch.setattr(ghost, "make_engine", scripted(byte_tokenizer(), "A"))
    summary, shown = trained_on(made)
    assert summary["ghost"] == {"chosen": 12, "trained": 12, "rows": 12}
    assert summary["rows"] == len(shown) == 24
    for text, loss in shown[12:]:
        assert text.startswith("<|im_start|>user\nShout.\n\n") and text.count("Shout.") == 1
        assert text.endswith("<|im_start|>assistant\nA<|im_end|>\n") and loss == "A<|im_end|>"
    for text, loss in shown[:12]:
        replies = [part.partition("<|im_end|>")[0] for part in text.split("assistant\n")[1:]]
        assert len(replies) == 2 and loss == "".join(f"{reply}<|im_end|>" for reply in replies)
        assert "Shout." not in text
    monkeypatch.setattr(ghost, "make_engine", None)  # a resumed run asks nobody
    again, taken = trained_on(made)
    assert (again["ghost"], taken) == (summary["ghost"], shown)


def test_a_ghost_that_is_too_long_is_dropped_and_not_cut(tmp_path, trained_on, monkeypatch):
    keys = {"max_length": 130, "on_overlong": "truncate", "max_completion_length": 80}
    made = recipe(tmp_path, ghost_attention={"instructions": ["Hi"], "share": 0.25}, **keys, **FREE)
    monkeypatch.setattr(ghost, "make_engine", scripted(byte_tokenizer(), "A" * 70))
    summary, shown = trained_on(made)
    assert summary["ghost"] == {"chosen": 6, "trained": 6, "rows": 0}
    assert summary["dropped_rows"] == {"ghost attention: longer than max_length": 6}
    assert len(shown) == 18 and not any("Hi" in text for text, _ in shown)


def test_mask_reduction_and_packing_reach_the_trainer(tmp_path, trained_on, monkeypatch):
    for mask, turns in (("assistant_only", 2), ("last_turn_only", 1)):
        _, shown = trained_on(recipe(tmp_path, run=mask, mask=mask, **FREE))
        assert {loss.count("<|im_end|>") for _, loss in shown} == {turns}
    summary, shown = trained_on(recipe(tmp_path, run="packed", packing=True, **FREE))
    assert summary["packing"]["rows"] == 24 > summary["packing"]["packs"] == len(shown)
    reached = []

    def train(trainer, *told):
        reached.append(trainer.loss_reduction)
        raise SystemExit

    monkeypatch.setattr(run_sft.supervised, "train", train)
    names = ["token_mean", "session_mean", "turn_mean", "prefix_mean"]
    for name in names:
        with pytest.raises(SystemExit):
            run_sft.run_sft(recipe(tmp_path, run=name, loss_reduction=name, eval_data=[], holdout=0.0, **FREE))
    assert reached == names  # what each comes to: tests/align/trainers/test_sft.py


# -- the best model


class Ruined(TrainerCallback):
    """Two steps learn; every later one ruins the model. Keeps the weights at every evaluation, and stops the program
    after step `die`."""

    def __init__(self, die=None):
        self.weights, self.die = {}, die

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step >= 2:
            generator = torch.Generator().manual_seed(state.global_step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 3 * torch.randn(parameter.shape, generator=generator)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.die:
            raise SystemExit("killed")


def watched(recipe_, die=None):
    """Runs the stage with `Ruined`, and gives both."""
    seen, real = Ruined(die), run_sft.supervised.train

    def train(trainer, *told):
        trainer.add_callback(seen)
        return real(trainer, *told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_sft.supervised, "train", train)
        return run_sft.run_sft(recipe_), seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never stopped: its folder, its summary, and what was seen of it."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *watched(recipe(folder, save_steps=3, **KEEPING))


def test_the_best_model_is_the_one_of_the_lowest_held_out_loss(whole):
    folder, summary, seen = whole
    out = folder / "run/sft"
    logged = {line["step"]: line["eval_loss"] for line in lines(out / "metrics.jsonl") if "eval_loss" in line}
    best = min(logged, key=logged.get)
    assert best == 2 and list(logged) == [1, 2, 3, 4, 5, 6]
    assert logged[2] + 0.1 < logged[1] < min(logged[at] for at in (3, 4, 5, 6)) - 1
    assert (summary["best_step"], summary["best_heldout_loss"]) == (best, logged[best])
    assert summary["heldout_loss"] == logged[best] < summary["last_heldout_loss"] == logged[6]
    assert all(torch.equal(tensor, seen.weights[best][name]) for name, tensor in weights(out / "model").items())
    assert measured(folder / "run", conversations(9, start=100))[0] == pytest.approx(logged[best], rel=1e-4)
    assert summary["replies"] == 4
    rows = [row for row in lines(out / "samples.jsonl") if row["step"] == best]
    assert summary["reply_tokens"] == sum(row["tokens"] for row in rows) / 4
    assert not (out / "best").exists()


def test_a_model_that_goes_on_learning_is_kept_as_it_is(looked):
    folder, plain = looked
    best = run_sft.run_sft(recipe(folder, run="best", keep_best=True, eval_steps=2, max_steps=5))
    assert best["best_step"] == 5 and best["heldout_loss"] == plain["heldout_loss"]
    assert same(weights(folder / "best/sft/model"), weights(folder / "run/sft/model"))


AFTER = pytest.param(4, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("die", [2, AFTER])  # the best is of step 2: before and after the checkpoint of step 3
def test_a_killed_run_still_knows_the_best(tmp_path, whole, die):
    folder, expected, _ = whole
    killed = recipe(tmp_path, run="killed", save_steps=3, **KEEPING)
    with pytest.raises(SystemExit):
        watched(killed, die=die)
    assert (tmp_path / "killed/sft/best/best.json").is_file()
    again, _ = watched(killed)
    assert again["best_step"] == 2 and again["resumed_from"] == (3 if die > 3 else 0)
    keys = ("best_step", "best_heldout_loss", "last_heldout_loss", "by_category", "end_rate", "distinct")
    assert {key: again[key] for key in keys} == {key: expected[key] for key in keys}
    assert same(weights(folder / "run/sft/model"), weights(tmp_path / "killed/sft/model"))
    said = [lines(run / "sft/samples.jsonl") for run in (folder / "run", tmp_path / "killed")]
    assert said[0] == said[1]


def test_a_run_killed_after_its_last_step_leaves_what_a_whole_one_does(tmp_path, whole, monkeypatch):
    folder, expected, _ = whole
    killed, real = recipe(tmp_path, run="killed", save_steps=3, **KEEPING), run_sft.supervised.save_model

    def kill(*args):
        raise SystemExit("killed")

    monkeypatch.setattr(run_sft.supervised, "save_model", kill)
    with pytest.raises(SystemExit):
        watched(killed)
    monkeypatch.setattr(run_sft.supervised, "save_model", real)
    again, _ = watched(killed)
    assert again["resumed_from"] == 6 and again["best_step"] == expected["best_step"] == 2
    assert same(weights(folder / "run/sft/model"), weights(tmp_path / "killed/sft/model"))
    for name in ("samples.jsonl", "metrics.jsonl"):
        one, other = (lines(run / "sft" / name) for run in (folder / "run", tmp_path / "killed"))
        timeless = [[untimed(line) for line in rows if "train_runtime" not in line] for rows in (one, other)]
        assert timeless[0] == timeless[1], name


def test_an_interrupted_write_of_the_best_leaves_the_one_before(tmp_path, monkeypatch):
    recipe(tmp_path)

    class Trainer:  # all that BestCheckpoint asks of one
        def __init__(self):
            self.model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
            self.accelerator, self.processing_class = self, None

        def unwrap_model(self, model):
            return model

        def gathered_weights(self):
            return None  # it is not sharded

    trainer, out = Trainer(), tmp_path / "out"
    best = BestCheckpoint(trainer, out)
    best.offer({"step": 1, "heldout_loss": 2.0})
    kept = weights(out / "best")
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    monkeypatch.setattr(
        "align.stages.best_checkpoint.files.write_json", lambda *a: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        best.offer({"step": 2, "heldout_loss": 1.0})
    monkeypatch.undo()
    assert same(weights(out / "best"), kept) and [path.name for path in out.iterdir()] == ["best"]
    again = BestCheckpoint(trainer, out)
    assert again.best == {"step": 1, "heldout_loss": 2.0}
    for worse in (2.0, 3.0, math.nan):
        again.offer({"step": 3, "heldout_loss": worse})
    assert json.loads((out / "best/best.json").read_text())["step"] == 1
    (out / "best/best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json cannot be read.*--fresh"):
        BestCheckpoint(trainer, out)


def test_keep_best_without_a_held_out_row_is_an_error(tmp_path):
    plain = recipe(tmp_path, eval_data=[], holdout=0.1, **KEEPING)
    read = load_records(plain.sft.data, Demonstration, plain)[0]
    held = {demo.messages[0].content for demo in split_heldout(read, 0.1)[1]}
    rows = conversations(24)
    for row in rows:
        row["messages"][1]["content"] *= 100 if row["messages"][0]["content"] in held else 1
    write_lines(tmp_path / "train.jsonl", rows)
    with pytest.raises(EmptyDatasetError, match=r"sft\.keep_best needs held-out rows"):
        run_sft.run_sft(plain)
    assert checkpoint.latest(tmp_path / "run/sft/checkpoints") is None
