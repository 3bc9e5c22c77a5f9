import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from align.models.critic import Critic
from align.recipe import Recipe
from align.runs.acceptance import accepting
from align.runs.errors import CheckpointError, TrainingError
from align.runs.interrupt import StopFlag
from align.stages import run_ppo
from align.stages.chain import run_stage
from align.stages.common import StageStopped
from align.trainers.ppo import PPOTrainer
from data_formats.errors import EmptyDatasetError, MissingFileError
from reward.model import RewardModel
from reward.protocol import RewardError
from rollouts.hf import HFEngine
from tests.align.stages.small_chain import write_data
from tests.tiny_models import bert_tokenizer, byte_tokenizer, qwen2_config, save_causal_lm


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder: Path, **changes) -> Recipe:
    """A ppo stage whose policy and reward model are plain folders; a key whose value is ... is left out."""
    write_data(folder)
    save_causal_lm(folder / "policy", seed=1)
    save_causal_lm(folder / "body", seed=2)
    torch.manual_seed(3)
    RewardModel.from_backbone(folder / "body").save_pretrained(folder / "rm")
    byte_tokenizer().save_pretrained(folder / "rm")
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {word}", "category": "say"} for word in "abcdefgh"])
    write_rows(folder / "held.jsonl", [{"prompt": f"tell {word}", "category": "tell"} for word in "xyz"])
    section = {
        "data": ["prompts.jsonl"],
        "eval_data": ["held.jsonl"],
        "ptx_data": ["documents.jsonl"],
        "init_from": str(folder / "policy"),
        "reward_from": str(folder / "rm"),
        "num_iterations": 3,
        "rollout_batch_size": 4,
        "num_mini_batches": 2,
        "micro_batch_size": 2,
        "critic_warmup_steps": 1,
        "rollout": {"max_prompt_length": 50, "max_completion_length": 6},
        "ptx_coef": 0.1,
        "ptx_ratio": 1,
        "ptx_max_length": 32,
        "policy": {"learning_rate": 0.01},
        "critic": {"learning_rate": 0.01},
    }
    data = {
        "name": "small",
        "output_dir": str(folder / "run"),
        "data_root": str(folder),
        "seed": 4,
        "model": {"path": str(folder / "policy")},
        "ppo": {key: value for key, value in (section | changes).items() if value is not ...},
    }
    return Recipe.model_validate_json(json.dumps(data))


@pytest.fixture
def closed(monkeypatch):
    """Of every engine that was closed, whether it was for the first time."""
    found, close = [], HFEngine.close
    monkeypatch.setattr(HFEngine, "close", lambda self: (found.append(self.model is not None), close(self))[1])
    return found


def test_the_stage_leaves_its_folder_behind(tmp_path, closed):
    summary = run_ppo.run_ppo(recipe(tmp_path))
    assert closed == [True] and not [name for name in summary if "best" in name or "gold" in name]
    out = tmp_path / "run" / "ppo"
    wanted = {"model", "critic", "metrics.jsonl", "samples.jsonl", "recipe.yaml", "summary.json"}
    assert {path.name for path in out.iterdir()} == wanted
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["steps"] == 3 and summary["optimizer_steps"] == 6 and summary["prompts"] == 8
    for name in ("score_before", "score", "score_greedy", "kl", "entropy", "end_rate", "distinct", "seconds"):
        assert isinstance(summary[name], float), name
    trained, start = (AutoModelForCausalLM.from_pretrained(path) for path in (out / "model", tmp_path / "policy"))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True))
    critic, body = Critic.from_pretrained(out / "critic"), RewardModel.from_pretrained(tmp_path / "rm")
    assert float(critic.head.weight.detach().abs().sum()) > 0
    assert critic.config.hidden_size == body.config.hidden_size
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 3]  # held-out prompts before and after


def test_without_a_critic_none_is_loaded_saved_or_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(run_ppo, "load_critic", None)
    made = recipe(tmp_path, advantage="rloo", critic=..., critic_warmup_steps=...)
    summary = run_ppo.run_ppo(made)
    out = tmp_path / "run" / "ppo"
    wanted = {"model", "metrics.jsonl", "samples.jsonl", "recipe.yaml", "summary.json"}
    assert {path.name for path in out.iterdir()} == wanted
    assert summary["optimizer_steps"] == 6 and "explained_variance" not in summary
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not any("critic" in key or key.startswith("value") for line in lines for key in line)
    assert all(line["warming_up"] == 0.0 for line in lines if "warming_up" in line)
    text = (out / "recipe.yaml").read_text()
    assert "advantage: rloo" in text and "critic_warmup_steps: 0" in text and "whiten_advantages: false" in text


@pytest.mark.slow
def test_the_best_policy_is_kept_and_named(tmp_path):
    made = recipe(tmp_path, evaluation={"every_steps": 2, "save_best": True})
    summary = run_ppo.run_ppo(made)
    out = tmp_path / "run" / "ppo"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["eval/score"] for line in lines if "eval/score" in line}
    assert list(looks) == [0, 2, 3]  # the last look comes after training, and counts
    assert summary["best_score"] == max(looks.values()) == looks[summary["best_step"]]
    assert summary["best_model"] == "best/model"
    best, last = (AutoModelForCausalLM.from_pretrained(out / name) for name in (summary["best_model"], "model"))
    same = all(torch.equal(a, b) for a, b in zip(best.parameters(), last.parameters(), strict=True))
    assert same == (summary["best_step"] == 3)


@pytest.mark.slow
def test_the_last_look_can_be_the_best(tmp_path, monkeypatch):
    evaluate = PPOTrainer.evaluate

    def rising(self, *args, **kwargs):
        return evaluate(self, *args, **kwargs) | {"eval/score": float(self.state.global_step)}

    monkeypatch.setattr(PPOTrainer, "evaluate", rising)
    summary = run_ppo.run_ppo(recipe(tmp_path, evaluation={"every_steps": 2, "save_best": True}))
    assert (summary["best_step"], summary["best_score"]) == (3, 3.0)
    out = tmp_path / "run" / "ppo"
    best, last = (AutoModelForCausalLM.from_pretrained(out / name) for name in ("best/model", "model"))
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), last.parameters(), strict=True))


def test_the_critic_starts_as_the_reward_model_with_a_zero_head(tmp_path):
    made, _ = run_ppo.build(chosen := recipe(tmp_path), chosen.ppo, tmp_path / "out")
    reward = RewardModel.from_pretrained(tmp_path / "rm")
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.critic.raw.backbone.parameters(), reward.backbone.parameters(), strict=True)
    )
    assert float(made.critic.raw.head.weight.detach().abs().sum()) == 0.0
    assert not any(parameter.requires_grad for parameter in made.reference.parameters())
    assert not any(parameter.requires_grad for parameter in made.reward.model.parameters())


def test_ctrl_c_saves_and_the_same_call_continues(tmp_path, monkeypatch):
    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                flags[-1].set()

    flags, pressed = [], {"callbacks": [Press()]}
    make_flag, make_trainer = StopFlag.__init__, PPOTrainer.__init__
    monkeypatch.setattr(StopFlag, "__init__", lambda self: (make_flag(self), flags.append(self))[0])
    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "__init__", lambda self, *a, **k: make_trainer(self, *a, **k | pressed))
        with pytest.raises(StageStopped, match="iteration 2 of 3"):
            run_ppo.run_ppo(recipe(tmp_path))
    out = tmp_path / "run" / "ppo"
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-2"]
    assert not (out / "summary.json").exists()
    summary = run_ppo.run_ppo(recipe(tmp_path))
    assert summary["resumed_from"] == 2 and summary["steps"] == 3


@pytest.mark.parametrize(
    "problem", [pytest.param(RewardError("no verdict"), marks=pytest.mark.slow), KeyboardInterrupt()]
)
def test_the_engine_is_closed_however_the_stage_ends(tmp_path, closed, monkeypatch, problem):
    def fail(*_):
        raise problem

    monkeypatch.setattr(PPOTrainer, "score", fail)
    with pytest.raises(TrainingError if isinstance(problem, RewardError) else KeyboardInterrupt):
        run_ppo.run_ppo(recipe(tmp_path))
    assert closed == [True]


def test_a_foreign_classifier_judges_text_and_the_critic_starts_from_the_policy(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=1, **shape)).save_pretrained(tmp_path / "bert")
    bert_tokenizer("say a b c").save_pretrained(tmp_path / "bert")
    made = recipe(tmp_path, reward_from=str(tmp_path / "bert"))
    trainer, _ = run_ppo.build(made, made.ppo, tmp_path / "out")
    assert not trainer.reward_takes_ids
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert all(
        torch.equal(a, b)
        for a, b in zip(trainer.critic.raw.backbone.parameters(), policy.model.parameters(), strict=True)
    )
    assert trainer.step()["score/std"] >= 0


def test_a_critic_with_too_few_tokens_is_refused(tmp_path):
    from transformers import Qwen2ForCausalLM

    Qwen2ForCausalLM(qwen2_config(vocab_size=100, eos_token_id=1)).save_pretrained(tmp_path / "small")
    made = recipe(tmp_path, critic_from=str(tmp_path / "small"))
    with pytest.raises(run_ppo.CriticError, match=r"ppo\.critic_from.*100 token embeddings.*259"):
        run_ppo.build(made, made.ppo, tmp_path / "out")


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        run_ppo.run_ppo(recipe(tmp_path, reward_from=str(tmp_path / "nowhere")))
    with pytest.raises(EmptyDatasetError, match="longer than max_prompt_length"):
        run_ppo.run_ppo(recipe(tmp_path, rollout={"max_prompt_length": 3, "max_completion_length": 4}))


@pytest.mark.slow
def test_a_longer_stage_is_what_it_would_have_been_from_the_start(tmp_path, capsys):
    told = recipe(tmp_path, num_iterations=2, save_steps=1, eval_data=[])
    longer = told.model_copy(update={"ppo": told.ppo.model_copy(update={"num_iterations": 3})})
    run_stage(told, "ppo")
    grown = run_stage(longer, "ppo")
    said = (
        "ppo: goes on from iteration 2 to 3 iterations (ppo.num_iterations was 2, is 3), as a run of that length from"
    )
    assert said in capsys.readouterr().out
    assert (grown["resumed_from"], grown["steps"]) == (2, 3)
    whole = longer.model_copy(update={"output_dir": str(tmp_path / "whole")})
    run_stage(whole, "ppo")
    for name in ("model", "critic"):
        one, other = ((tmp_path / run / "ppo" / name / "model.safetensors").read_bytes() for run in ("run", "whole"))
        assert one == other, name


@pytest.mark.slow
def test_prompts_that_changed_under_an_unfinished_stage_are_refused_unless_accepted(tmp_path, monkeypatch):
    told = recipe(tmp_path, save_steps=1, eval_data=[])
    real = PPOTrainer.step

    def killed(self):
        if self.state.global_step == 2:
            raise SystemExit("killed")
        return real(self)

    monkeypatch.setattr(PPOTrainer, "step", killed)
    with pytest.raises(SystemExit):
        run_ppo.run_ppo(told)
    monkeypatch.undo()
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"say {word}"} for word in "abcdefghijkl"])
    with pytest.raises(
        CheckpointError, match=r"ppo\.data: .*step-2 was trained with 8 rows, now there are 12; .*--accept"
    ):
        run_ppo.run_ppo(told)
    with accepting(["ppo.data"]):
        done = run_ppo.run_ppo(told)
    assert (done["resumed_from"], done["steps"], done["prompts"]) == (2, 3, 12)
    (noted,) = done["accepted"]
    assert (noted["key"], noted["was"]["rows"], noted["is"]["rows"], noted["step"]) == ("ppo.data", 8, 12, 2)


@pytest.mark.slow
def test_a_best_model_that_was_removed_is_made_again_or_told(tmp_path, caplog, monkeypatch):
    keys = {"save_steps": 1, "evaluation": {"every_steps": 1, "save_best": True, "num_samples": 1}}
    told = recipe(tmp_path, **keys)
    run_ppo.run_ppo(told)
    out = tmp_path / "run" / "ppo"
    before = json.loads((out / "checkpoints/step-3/trainer_state.json").read_text())["best_global_step"]
    shutil.rmtree(out / "best")
    monkeypatch.setattr(logging.getLogger("align"), "propagate", True)
    done = run_ppo.run_ppo(told)
    if before == 3:
        assert done["best_step"] == 3 and (out / "best/model").is_dir()
    else:
        assert "best/model is gone" in caplog.text and "best_step" not in done


def test_it_ends_early_where_evaluations_become_no_better(tmp_path):
    keys = {"early_stopping": {"patience": 1, "min_delta": 100.0}, "save_steps": 1, "ptx_coef": 0.0, "ptx_data": ...}
    small = recipe(tmp_path, evaluation={"every_steps": 1, "num_samples": 1}, **keys)
    summary = run_ppo.run_ppo(small)
    assert summary["steps"] == 1 and summary["epochs"] == 0.5
    assert summary["stopped_early"].startswith("eval/score has not become better than ")
    assert summary["stopped_early"].endswith(" (step 0) in 1 evaluation; step 1 of 3")
    (tmp_path / "run/ppo/summary.json").unlink()
    again = run_ppo.run_ppo(small)  # from the checkpoint it ended with: no iteration more
    assert again["stopped_early"] == summary["stopped_early"] and again["score"] == summary["score"]
