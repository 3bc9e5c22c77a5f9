"""Every model that a stage, a merge or an export leaves is loaded by the program on its own card (stock transformers,
PEFT, and, slowly, vLLM) and made to generate or to score."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from align import cli
from align.runtime.card import CARD
from align.stages.chain import run_chain
from tests.align.artefacts import generates, scores, used
from tests.align.stages.small_chain import small_recipe, write_data

pytestmark = pytest.mark.slow  # what base, sft, pmp and rm leave is tried in stages/test_chain.py
ROLLOUT = {"max_prompt_length": 50, "max_completion_length": 6}
REJECTION = {
    "data": ["prompts.jsonl"],
    "max_length": 96,
    "batch_size": 2,
    "micro_batch_size": 2,
    "learning_rate": 0.01,
    "max_steps": 1,
    "rollout": {"max_prompt_length": 50, "max_completion_length": 40, "num_generations": 16, "batch_size": 64},
}
PPO = {
    "data": ["prompts.jsonl"],
    "num_iterations": 1,
    "rollout_batch_size": 4,
    "num_mini_batches": 2,
    "micro_batch_size": 4,
    "critic_warmup_steps": 1,
    "ema_decay": 0.9,
    "rollout": ROLLOUT,
    "policy": {"learning_rate": 0.001},
    "critic": {"learning_rate": 0.001},
}


def chain(folder, **changes):
    """Every stage once, on tiny models."""
    write_data(folder)
    rows = [{"prompt": f"say {word}"} for word in "abcd"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = {f"{stage}__max_steps": 1 for stage in ("base", "sft", "pmp", "rm")}
    told = small_recipe(folder, **lengths | {"rejection": REJECTION, "ppo": PPO} | changes)
    run_chain(told)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a width that vLLM has kernels for."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
    wide = {f"model__architecture__{name}": size for name, size in sizes.items()}
    return chain(tmp_path_factory.mktemp("whole"), **wide)


@pytest.mark.parametrize("name", ["base", "sft", "rejection", "rejection/rounds/1", "ppo"])
def test_language_models_generate(run, name):
    generates(run / name / "model")


def test_the_average_of_a_policy_generates(run):
    generates(run / "ppo" / "ema")


@pytest.mark.parametrize("name", ["pmp", "rm"])
def test_reward_models_score(run, name):
    scores(run / name / "model")


def test_a_critic_gives_values(run):
    model = used(run / "ppo" / "critic")["model"]
    ids = torch.tensor([[5, 6, 7]])
    assert model(ids, torch.ones_like(ids)).shape == (1, 3)


def test_an_export_scores_and_keeps_what_its_model_was_trained_on(run, tmp_path):
    assert cli.main(["export-reward", str(run / "rm/model"), str(tmp_path / "out")]) == 0
    scores_of_both = [used(folder)["score"] for folder in (run / "rm/model", tmp_path / "out")]
    assert scores_of_both[0] == pytest.approx(scores_of_both[1], abs=1e-6)
    ours, theirs = (ModelCard((folder / CARD).read_text()) for folder in (run / "rm/model", tmp_path / "out"))
    assert "## Recipe" in theirs.text and "comparisons.jsonl" in theirs.text
    assert [one.metric_value for one in theirs.data.eval_results] == [
        one.metric_value for one in ours.data.eval_results
    ]


@pytest.mark.since("5.19")
def test_adapters_merges_and_other_poolings(tmp_path):
    lora = {"model__adapter": "lora", "model__lora": {"rank": 2, "alpha": 4}}
    run = chain(tmp_path, **lora)
    for name in ("base", "sft", "rejection", "ppo"):
        generates(run / name / "model")
    for name in ("pmp", "rm"):
        scores(run / name / "model")
    assert used(run / "ppo" / "critic")["model"] is not None
    assert cli.main(["merge", str(run / "sft/model"), str(tmp_path / "merged")]) == 0
    generates(tmp_path / "merged")
    assert cli.main(["merge", str(run / "rm/model"), str(tmp_path / "whole")]) == 0
    scores(tmp_path / "whole")
    assert "## Recipe" in (tmp_path / "whole" / CARD).read_text()
    assert cli.main(["export-reward", str(run / "rm/model"), str(tmp_path / "out")]) == 0
    assert used(tmp_path / "out")["score"] == pytest.approx(used(run / "rm/model")["score"], abs=1e-5)
    (tmp_path / "mean").mkdir()
    pooled = {"pmp__pooling": "mean", "rm__pooling": "mean", "sft": None, "rejection": None, "ppo": None}
    run = chain(tmp_path / "mean", **pooled | {"rm__center_scores": False})
    assert used(run / "rm/model")["model"].pooling == "mean"


@pytest.mark.needs("vllm")
def test_vllm_generates_and_scores(run, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, PoolingParams, SamplingParams

    threads = torch.get_num_threads()
    options = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True}
    llm = LLM(str(run / "ppo/model"), **options)
    (out,) = llm.chat(
        [{"role": "user", "content": "How?"}], SamplingParams(max_tokens=4, temperature=0.0), use_tqdm=False
    )
    assert out.outputs[0].token_ids
    del llm
    llm = LLM(str(run / "rm/model"), runner="pooling", convert="classify", **options)
    found = used(run / "rm/model")
    (out,) = llm.classify([found["text"]], pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    assert out.outputs.probs[0] == pytest.approx(found["raw"], abs=1e-4)
    torch.set_num_threads(threads)
