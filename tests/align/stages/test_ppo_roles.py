"""ppo.shared_backbone: a chain of adapters whose PPO runs on one backbone."""

import json
import logging

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from align.models.critic import Critic
from align.models.role_adapters import RoleError
from align.models.roles import RoleView
from align.recipe import Recipe
from align.stages import run_ppo
from align.stages.chain import run_chain
from tests.align.models import role_folders
from tests.align.stages.small_chain import small_recipe, write_data

VOLATILE = ("time", "seconds", "tokens_per_second", "memory")
SECTION = {
    "data": ["prompts.jsonl"],
    "eval_data": ["prompts.jsonl"],
    "num_iterations": 2,
    "rollout_batch_size": 4,
    "num_mini_batches": 2,
    "micro_batch_size": 2,
    "critic_warmup_steps": 1,
    "save_steps": 1,
    "rollout": {"max_prompt_length": 50, "max_completion_length": 6},
    "policy": {"learning_rate": 0.01},
    "critic": {"learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Finished stages base, sft, pmp and rm, all adapters on base."""
    folder = tmp_path_factory.mktemp("chain")
    write_data(folder)
    rows = [json.dumps({"prompt": f"say {word}"}) for word in "abcdefgh"]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    told = small_recipe(folder, **{"model__adapter": "lora", "model__lora": {"rank": 2, "alpha": 4}})
    run_chain(told)
    return told


def told(chain, **changes) -> Recipe:
    data = chain.model_dump(mode="json") | {"ppo": SECTION | changes}
    return Recipe.model_validate_json(json.dumps(data))


def figures(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(VOLATILE)} for line in lines]


def test_one_backbone_learns_what_four_do(chain, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run_ppo.run_ppo(told(chain), out_dir=tmp_path / "shared")
    base = f"{chain.output_dir}/base/model"
    assert f"adapters of one base, {base}; the reference is a copy of the policy's adapter" in caplog.text
    run_ppo.run_ppo(told(chain, shared_backbone=False), out_dir=tmp_path / "alone")
    one, other = figures(tmp_path / "shared"), figures(tmp_path / "alone")
    assert len(one) == len(other) == 4
    for line, expected in zip(one, other, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert one[0]["eval/kl"] == 0.0 and one[-1]["eval/kl"] != 0.0
    for name in ("model", "critic"):
        found, expected = (
            load_file(tmp_path / run / name / "adapter_model.safetensors") for run in ("shared", "alone")
        )
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[key], expected[key], atol=1e-4) for key in found)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "shared/model").peft_config["default"].r == 2
    assert Critic.from_pretrained(tmp_path / "shared/critic").head.weight.abs().max() > 0
    step = tmp_path / "shared/checkpoints/step-2"
    assert not any("base_layer" in key for key in load_file(step / "policy/model.safetensors"))
    assert not (tmp_path / "shared/model/config.json").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(chain, tmp_path, monkeypatch):
    whole = run_ppo.run_ppo(told(chain), out_dir=tmp_path / "whole")
    real = run_ppo.build

    def killed(*args, **more):
        trainer, found = real(*args, **more)
        step = trainer.step

        def stop():
            if trainer.state.global_step == 1:
                raise SystemExit("killed")
            return step()

        trainer.step = stop
        return trainer, found

    monkeypatch.setattr(run_ppo, "build", killed)
    with pytest.raises(SystemExit):
        run_ppo.run_ppo(told(chain), out_dir=tmp_path / "killed")
    monkeypatch.setattr(run_ppo, "build", real)
    again = run_ppo.run_ppo(told(chain), out_dir=tmp_path / "killed")
    assert again["resumed_from"] == 1 and again["score"] == whole["score"]
    for name in ("model/adapter_model", "critic/adapter_model", "critic/head"):
        found, expected = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("killed", "whole"))
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_models_that_do_not_fit_have_backbones_of_their_own_or_are_refused(chain, tmp_path, caplog):
    reward = role_folders.whole_reward(tmp_path, chain.output_dir + "/base/model")
    with caplog.at_level(logging.INFO):
        trainer, _ = run_ppo.build(recipe := told(chain, reward_from=str(reward)), recipe.ppo, tmp_path / "auto")
    assert "ppo: every model has a backbone of its own: the reward model at" in caplog.text
    assert not isinstance(trainer.policy.raw, RoleView)
    strict = told(chain, reward_from=str(reward), shared_backbone=True)
    with pytest.raises(RoleError, match=r"^ppo\.shared_backbone=true: the reward model at .* is a whole model"):
        run_ppo.build(strict, strict.ppo, tmp_path / "strict")


def test_a_rule_as_the_reward_needs_no_reward_role(chain, tmp_path):
    recipe = told(chain, reward=[{"kind": "length", "maximum": 4}])
    trainer, _ = run_ppo.build(recipe, recipe.ppo, tmp_path)
    assert trainer.policy.raw.backbone.roles == ("policy", "reference", "critic")
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.slow
def test_without_a_critic_there_is_no_such_role(chain, tmp_path):
    section = {key: value for key, value in SECTION.items() if not key.startswith("critic")} | {"advantage": "grpo"}
    recipe = Recipe.model_validate_json(json.dumps(chain.model_dump(mode="json") | {"ppo": section}))
    trainer, _ = run_ppo.build(recipe, recipe.ppo, tmp_path / "looked at")
    assert trainer.critic is None and trainer.policy.raw.backbone.roles == ("policy", "reference", "reward")
    summary = run_ppo.run_ppo(recipe, out_dir=tmp_path / "run")
    assert summary["optimizer_steps"] == 4 and not (tmp_path / "run" / "critic").exists()
    assert not (tmp_path / "run" / "checkpoints" / "step-2" / "critic").exists()
    again = run_ppo.build(recipe, recipe.ppo, tmp_path / "run")[0]
    again.load_checkpoint(tmp_path / "run" / "checkpoints" / "step-2")
    assert again.state.global_step == 2 and again.optimizer_steps == 4
