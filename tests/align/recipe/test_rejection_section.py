"""The keys of the rejection section, its place in the chain, and what is refused."""

import json

import pytest

from align.recipe import Recipe, batch_plan
from align.recipe.check import describe_plan, run_problems
from align.recipe.lineage import Origin, init_origin, inputs, reward_origins
from align.recipe.load import load_recipe

SECTION = {
    "data": ["prompts.jsonl"],
    "reward_from": "some/reward",
    "max_length": 4096,
    "batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 1e-5,
}


def written(tmp_path, *, ppo=False, **changes):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    stages = {"rejection": SECTION | changes}
    if ppo:
        stages["ppo"] = {"data": ["prompts.jsonl"], "num_iterations": 99, "reward_from": "some/reward"}
    file = tmp_path / "r.yaml"
    head = {"name": "r", "output_dir": str(tmp_path / "run"), "data_root": str(tmp_path), "model": {"path": "org/m"}}
    file.write_text(json.dumps(head | stages))
    return file


def refused(tmp_path, **changes):
    with pytest.raises(Exception) as error:
        load_recipe(written(tmp_path, **changes))
    return str(error.value)


def test_the_defaults_are_those_of_the_paper_or_marked(tmp_path):
    section = load_recipe(written(tmp_path)).rejection
    assert (section.rollout.num_generations, section.num_rounds, section.keep_earlier) == (10, 1, True)
    assert section.threshold is None and section.holdout == 0 and section.rollout.top_p == 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rollout": {"num_generations": 1}}, "rejection.rollout.num_generations: must be at least 2, not 1"),
        ({"num_rounds": 0}, "rejection.num_rounds"),
        ({"max_length": 100}, "rejection.max_length: 100 is less than rollout.max_prompt_length + rollout.max_com"),
        ({"holdout": 0.1}, "rejection.holdout: prompts are not held out by a share here; name them in eval_data"),
        ({"eval_steps": 5}, "rejection.eval_steps: held-out prompts have no reply"),
        ({"packing": True, "group_by_length": True}, "rejection.group_by_length"),
        ({"reward": {"kind": "format"}}, "rejection.reward_from: names the reward a second time"),
        ({"reward_from": None, "reward": [{"kind": "format"}] * 2}, "rejection.reward.0.weight: is required"),
        ({"treshold": 1.0}, "rejection.treshold: unknown key; did you mean 'threshold'"),
        ({"batch_size": 6}, "rejection.batch_size: 6 rows cannot be cut"),
    ],
)
def test_what_is_refused(tmp_path, changes, sentence):
    assert sentence in refused(tmp_path, **changes)


def test_the_stage_stands_between_reward_model_and_ppo(tmp_path):
    alone = load_recipe(written(tmp_path))
    assert init_origin(alone, "rejection") == Origin("path", "org/m")
    assert inputs(alone, "rejection") == {"policy": Origin("path", "org/m"), "reward": Origin("path", "some/reward")}
    both = load_recipe(written(tmp_path, ppo=True))
    assert both.stages == ("rejection", "ppo")
    assert init_origin(both, "ppo") == Origin("stage", "rejection")
    whole = load_recipe("llama2_rejection_sampling")
    assert whole.stages == ("sft", "rm", "rejection", "ppo")
    assert inputs(whole, "rejection") == {"policy": Origin("stage", "sft"), "reward": Origin("stage", "rm")}
    assert init_origin(whole, "ppo") == Origin("stage", "rejection")


def test_a_part_that_names_a_model_is_an_input(tmp_path):
    parts = [
        {
            "kind": "gate",
            "weight": 1.0,
            "helpfulness": {"kind": "model"},
            "safety": {"kind": "model", "model_from": "rm"},
        },
        {"kind": "length", "maximum": 9, "weight": 0.5},
    ]
    found = reward_origins(load_recipe(written(tmp_path, reward=parts, reward_from=None)), "rejection")
    assert found["reward.0.safety"] == Origin("stage", "rm") and set(found) == {
        "reward.0.helpfulness",
        "reward.0.safety",
    }
    judge = {"kind": "model", "model_from": "other/judge"}
    judged = load_recipe(written(tmp_path, judge=judge, eval_data=[{"path": "prompts.jsonl"}]))
    assert inputs(judged, "rejection")["judge"] == Origin("path", "other/judge")
    recipe = load_recipe(written(tmp_path, reward=parts, reward_from=None))
    assert any("rejection.reward.0.safety" in problem for problem in run_problems(recipe, recipe.stages))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"reward": {"kind": "function", "function": "no.py:f"}, "reward_from": None},
            "rejection.reward.0.function: no",
        ),
        ({"reward_from": "sft"}, "rejection.reward_from: 'sft' is no reward model"),
        ({"init_from": "ppo"}, "rejection.init_from: 'ppo' does not run before 'rejection'"),
        ({"init_from": "rm"}, "rejection.init_from: 'rm' is a reward model and cannot write"),
        ({"data": [{"path": "prompts.jsonl", "format": "hh"}]}, "rejection.data.0.format: there is no format 'hh'"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_loaded(tmp_path, changes, problem):
    recipe = load_recipe(written(tmp_path, **changes))
    assert any(one.startswith(problem) for one in run_problems(recipe, recipe.stages))


def test_lengths_beyond_a_new_models_room_are_refused():
    architecture = {"max_position_embeddings": 64}
    section = SECTION | {"max_length": 64, "rollout": {"max_prompt_length": 40, "max_completion_length": 24}}
    head = {"name": "r", "output_dir": "o", "model": {"architecture": architecture}}
    base = {key: SECTION[key] for key in ("data", "batch_size", "micro_batch_size", "learning_rate")} | {
        "max_length": 64
    }
    Recipe.model_validate_json(json.dumps(head | {"base": base, "rejection": section}))
    with pytest.raises(ValueError, match=r"rejection\.max_length: 65 is more than max_position_embeddings"):
        Recipe.model_validate_json(json.dumps(head | {"base": base, "rejection": section | {"max_length": 65}}))


def test_a_round_is_an_sft_stage_on_the_kept_replies(tmp_path):
    section = load_recipe(written(tmp_path, max_steps=7, packing=True, loss_reduction="turn_mean")).rejection
    told = section.finetuning("kept.jsonl")
    assert (told.data[0].path, told.data[0].format) == ("kept.jsonl", "messages")
    assert (told.mask, told.holdout, told.eval_data) == ("last_turn_only", 0.0, ())
    assert (told.max_steps, told.packing, told.loss_reduction) == (7, True, "turn_mean")
    assert told.learning_rate == section.learning_rate and told.max_length == section.max_length


def test_the_plan_says_what_will_be_sampled(tmp_path):
    recipe = load_recipe(written(tmp_path, num_rounds=3, threshold=0.5, max_steps=9, ppo=True))
    assert batch_plan(recipe, "rejection").accumulation == 2
    plan = describe_plan(recipe)
    assert (
        "rejection: 3 rounds; each samples 10 replies a prompt from the newest model and finetunes it for 9 steps on "
        in plan
    )
    assert "the best of them (or of an earlier round) of a score of at least 0.5" in plan


def test_the_papers_values_of_llama2_rejection_sampling():
    recipe = load_recipe("llama2_rejection_sampling")
    sft, rm, rejection, ppo = recipe.sft, recipe.rm, recipe.rejection, recipe.ppo
    assert (sft.learning_rate, sft.weight_decay, sft.batch_size, sft.num_train_epochs) == (2e-5, 0.1, 64, 2)
    assert (sft.lr_scheduler_type, sft.max_length, sft.packing) == ("cosine", 4096, True)
    assert (rm.margin, rm.learning_rate, rm.batch_size, rm.num_train_epochs) == ("small", 1e-5, 512, 1)
    assert (rejection.num_rounds, rejection.keep_earlier, rejection.rollout.temperature) == (4, True, 1.2)
    assert (ppo.policy.learning_rate, ppo.policy.adam_epsilon, ppo.policy.weight_decay) == (1e-6, 1e-5, 0.1)
    assert (ppo.rollout_batch_size, ppo.num_mini_batches, ppo.kl_coef, ppo.cliprange) == (512, 8, 0.01, 0.2)
