"""What people type who come from transformers, TRL, LLaMA-Factory or OpenRLHF is answered with our key for it."""

import pytest

from align.recipe.errors import foreign_homes, has_key, section_at
from align.recipe.foreign_keys import FOREIGN
from align.recipe.load import inspect
from align.recipe.schema import Recipe

PLACES = ("", "model", "sft", "rm", "ppo", "ppo.rollout")


def told(tmp_path, *overrides):
    file = tmp_path / "r.yaml"
    file.write_text("name: t\noutput_dir: out\nmodel: {path: org/model}\n")
    return list(inspect(file, overrides).problems)


def test_every_place_is_a_key_and_there_are_many():
    assert len(FOREIGN) >= 40
    for name, (patterns, _) in FOREIGN.items():
        for pattern in patterns.split():
            keys = [pattern.replace("*", part, 1) for part in Recipe.model_fields]
            assert any(has_key(Recipe, key) for key in keys), f"{name} -> {pattern}"


def test_at_every_place_the_answer_is_short_and_names_the_key(tmp_path):
    for place in PLACES:
        section = section_at(Recipe, tuple(place.split("."))) if place else Recipe
        keys = [f"{place}.{name}".removeprefix(".") for name in FOREIGN if name not in section.model_fields]
        problems = told(tmp_path, *(f"{key}=1" for key in keys))
        for key in keys:
            (problem,) = [one for one in problems if one.startswith(f"{key}: ")]
            homes = foreign_homes(Recipe, tuple(key.split(".")))
            assert homes and problem.startswith(f"{key}: unknown key; here it is ") and len(problem) < 320
            assert homes[0].rpartition(".")[2] in problem


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.beta=0.1", "here it is ppo.kl_coef"),
        ("init_kl_coef=0.1", "here it is ppo.kl_coef"),
        ("sft.cutoff_len=512", "here it is sft.max_length"),
        ("ppo.max_new_tokens=64", "here it is ppo.rollout.max_completion_length"),
        ("model.lora_r=8", "here it is model.lora.rank"),
        ("sft.load_in_4bit=true", "here it is model.adapter (4 bits are adapter: qlora)"),
        ("stage=sft", "here it is base or sft or pmp or rm or rejection or dpo or ppo (a recipe has a section"),
        ("per_device_train_batch_size=1", "here it is micro_batch_size of base, sft, pmp, rm, rejection, dpo or ppo"),
        ("ppo.num_generations=4", "belongs at ppo.rollout.num_generations"),
        ("gamma=1", "belongs at ppo.gamma"),
        ("num_train_epochs=2", "belongs at num_train_epochs of base, "),
        ("ppo.learning_rate=1e-6", "belongs at ppo.policy.learning_rate or ppo.critic.learning_rate"),
        ("model.response_length=2", "here it is rejection.rollout.max_completion_length or ppo.rollout.max_compl"),
    ],
)
def test_the_words(tmp_path, override, words):
    key = override.partition("=")[0]
    (problem,) = [one for one in told(tmp_path, override) if one.startswith(f"{key}: ")]
    assert words in problem


def test_a_key_that_is_answered_is_not_missing_too(tmp_path):
    given = ["sft.data=[a.jsonl]", "sft.learning_rate=1e-5", "sft.batch_size=8"]
    problems = told(tmp_path, *given, "sft.cutoff_len=8", "sft.per_device_train_batch_size=8")
    assert [one.partition(" (")[0] for one in problems] == [
        "sft.cutoff_len: unknown key; here it is sft.max_length",
        "sft.per_device_train_batch_size: unknown key; here it is sft.micro_batch_size",
    ]


def test_of_a_large_section_only_the_nearest_keys_are_listed(tmp_path):
    (large,) = [one for one in told(tmp_path, "ppo.zzz=1") if one.startswith("ppo.zzz")]
    assert " others, among them " in large and large.endswith("docs/recipe.md has them all") and len(large) < 220
    (small,) = told(tmp_path, "model.lora.zzz=1")
    assert small.endswith("knows rank, alpha, dropout, targets, rslora, dora, modules_to_save")
