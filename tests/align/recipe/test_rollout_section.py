"""The keys of the rollout sections, their defaults, what is refused, and what is said of them."""

import dataclasses
import json

import pytest

from align.recipe import dump_recipe
from align.recipe.check import describe_plan, run_problems
from align.recipe.load import load_recipe
from align.recipe.rollout_section import PPORolloutSection, RolloutSection, VLLMSection
from rollouts.settings import VLLMSettings

SERVER = {"engine": "vllm_server"}
CORRECTED = {"importance_sampling_correction": "token"}


def written(tmp_path, rollout=None, stage="ppo", **changes):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    section = {"data": ["prompts.jsonl"], "reward_from": "some/reward", "rollout": rollout or {}}
    if stage == "ppo":
        section["num_iterations"] = 99
    else:
        section |= {"max_length": 4096, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-5}
    head = {"name": "r", "output_dir": str(tmp_path / "run"), "data_root": str(tmp_path), "model": {"path": "org/m"}}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(head | {stage: section | changes}))
    return file


def refused(*args, **changes):
    with pytest.raises(Exception) as error:
        load_recipe(written(*args, **changes))
    return str(error.value)


def test_the_settings_have_one_set_of_names_and_defaults():
    """The recipe's and the engine's; the seed is the recipe's own, the length follows from the rollout's."""
    settings = {
        field.name: getattr(VLLMSettings(max_model_len=1), field.name) for field in dataclasses.fields(VLLMSettings)
    }
    assert settings.pop("max_model_len") == 1 and settings.pop("seed") == 0
    section = VLLMSection().model_dump()
    assert section.pop("max_model_len") is None
    assert section == settings
    assert not PPORolloutSection().overlap and RolloutSection().engine == "auto"
    assert "overlap" not in RolloutSection.model_fields  # nothing trains while rejection samples


@pytest.mark.parametrize(
    ("rollout", "changes", "sentence"),
    [
        ({"engine": "sglang"}, {}, "ppo.rollout.engine: must be 'auto', 'hf', 'vllm' or 'vllm_server', not 'sglang'"),
        ({"vllm": {"max_model_len": 2047}}, {}, "ppo.rollout.vllm.max_model_len: 2047 is less than max_prompt_length"),
        ({"vllm": {"memory_share": 1.0}}, {}, "ppo.rollout.vllm.memory_share: must be below 1.0"),
        ({"vllm": {"memory_share": 0}}, {}, "ppo.rollout.vllm.memory_share: must be above 0"),
        ({"vllm": {"memory": 0.5}}, {}, "ppo.rollout.vllm.memory: unknown key; did you mean 'memory_share'"),
        (
            {"vllm": {"urls": ["http://localhost:8000"]}},
            {},
            "ppo.rollout.vllm.urls: names servers, which engine 'auto' does not ask; use engine=vllm_server",
        ),
        (
            SERVER | {"vllm": {"urls": ["https://a", "http://far.example"]}},
            {},
            "ppo.rollout.vllm.urls.1: plain http to far.example would show prompts, replies and key to the network; "
            "use https://, or a tunnel to this machine",
        ),
        (SERVER | {"vllm": {"urls": ["unix://me/socket"]}}, {}, "ppo.rollout.vllm.urls.0: the address must begin with"),
        (SERVER | {"vllm": {"urls": ["https://me:word@a"]}}, {}, "ppo.rollout.vllm.urls.0: the address holds a user"),
        (
            SERVER | {"vllm": {"api_key_env": "sk-12345"}},
            {},
            "ppo.rollout.vllm.api_key_env: must be the name of",
        ),
        (SERVER | {"vllm": {"urls": ["https://a"] * 2}}, {}, "ppo.rollout.vllm.urls: names https://a twice"),
        (
            {"engine": "vllm", "vllm": {"tensor_parallel": 2}},
            {},
            "ppo.rollout.vllm.tensor_parallel: 2 needs a server, since vLLM in this process runs on one device; use",
        ),
        ({"overlap": True}, CORRECTED, "which 'auto' may not; use engine=vllm_server, or overlap=0"),
        ({"overlap": True, "engine": "vllm"}, CORRECTED, "which 'vllm' does not; use engine=vllm_server"),
        (SERVER | {"overlap": True}, {}, "ppo.rollout.overlap: trains on replies of older weights, which must be corr"),
        (SERVER, {"policy_support": "nucleus"}, "ppo.policy_support: a vLLM server does not say"),
        (
            {"engine": "vllm", "temperature": 0.7, "top_p": 0.9},
            CORRECTED,
            "ppo.importance_sampling_correction: vLLM does not tell the probability before truncation at temperature "
            "0.7 with rollout.top_p set; use rollout.temperature=1, or top_p=1, top_k=0 and min_completion_length=0, "
            "or rollout.engine=hf",
        ),
        (
            SERVER | {"temperature": 0.7, "top_p": 1.0, "top_k": 40, "min_completion_length": 2},
            CORRECTED,
            "with rollout.top_k and min_completion_length set",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, rollout, changes, sentence):
    told = refused(tmp_path, rollout, **changes)
    assert sentence in told and "sk-12345" not in told


@pytest.mark.parametrize(
    ("rollout", "changes"),
    [
        (SERVER | {"overlap": True}, CORRECTED),  # top_p 0.9 at temperature 1: known before truncation
        ({"engine": "vllm", "temperature": 0.7, "top_p": 1.0}, CORRECTED),
        ({"engine": "vllm", "temperature": 0.7, "top_p": 0.9}, {}),  # nothing asks for it
        ({"engine": "hf", "temperature": 0.7, "top_p": 0.9}, CORRECTED),
        ({"engine": "vllm"}, {"policy_support": "nucleus"}),  # some engines can; refused when this one cannot
        (SERVER | {"vllm": {"urls": ["https://a:8000", "http://127.0.0.1:8001"], "max_model_len": 2048}}, {}),
        (SERVER | {"vllm": {"urls": ["unix:///run/me/socket"]}}, {}),  # `python -m rollouts.vllm.serve --uds`
    ],
)
def test_what_can_be(tmp_path, rollout, changes):
    recipe = load_recipe(written(tmp_path, rollout, **changes))
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("installed", [True, False])
def test_an_engine_that_cannot_be_had_is_said_before_anything_runs(tmp_path, monkeypatch, installed):
    monkeypatch.setattr("align.runtime.packages.find_spec", lambda name: installed or None)
    monkeypatch.delenv("SOME_KEY", raising=False)
    named = SERVER | {"vllm": {"urls": ["https://a"], "api_key_env": "SOME_KEY"}}
    for rollout, keyless in (({"engine": "auto"}, False), ({"engine": "vllm"}, False), (SERVER, False), (named, True)):
        problems = run_problems(load_recipe(written(tmp_path, rollout)), ["ppo"])
        missing = [problem for problem in problems if "needs vLLM, which is not installed: pip install" in problem]
        assert len(missing) == (not installed and rollout["engine"] != "auto" and not keyless)
        unset = "ppo.rollout.vllm.api_key_env: the environment variable SOME_KEY is not set; set it to the servers' key"
        assert (unset in problems) == keyless
    monkeypatch.setenv("SOME_KEY", "k" * 16)
    assert not any("rollout" in problem for problem in run_problems(load_recipe(written(tmp_path, named)), ["ppo"]))


def test_rejection_samples_with_nothing_beside_it(tmp_path):
    sentence = (
        "rejection.rollout.engine: 'vllm_server' samples beside a training, and here none runs meanwhile; use vllm"
    )
    assert sentence in refused(tmp_path, SERVER, "rejection")
    assert "rejection.rollout.overlap: unknown key" in refused(tmp_path, {"overlap": True}, "rejection")
    assert load_recipe(written(tmp_path, {"engine": "vllm"}, "rejection")).rejection.rollout.engine == "vllm"


@pytest.mark.parametrize(
    ("rollout", "changes", "words"),
    [
        ({}, {}, "; vLLM samples where it is usable, else HF generate"),
        ({"engine": "hf"}, {}, "; HF generate samples"),
        ({"engine": "vllm"}, {}, "; vLLM samples in this process"),
        (
            SERVER | {"overlap": True},
            CORRECTED,
            "; a vLLM server samples, the next batch while one is trained on",
        ),
        (
            SERVER | {"overlap": 3},
            CORRECTED,
            "; a vLLM server samples, the next 3 batches while one is trained on",
        ),
        (SERVER | {"vllm": {"urls": ["https://a", "https://b"]}}, {}, "; 2 named vLLM servers sample"),
        (SERVER | {"vllm": {"urls": "https://a"}}, {}, "; 1 named vLLM server samples"),
    ],
)
def test_the_plan_names_the_engine(tmp_path, rollout, changes, words):
    assert describe_plan(load_recipe(written(tmp_path, rollout, **changes))).endswith(words)


def test_the_key_of_the_servers_is_never_in_the_saved_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    rollout = SERVER | {"vllm": {"urls": ["https://a"], "api_key_env": "MY_KEY"}}
    text = dump_recipe(load_recipe(written(tmp_path, rollout)))
    assert "MY_KEY" in text and "s3cret" not in text
