"""Every model that a stage leaves, of every kind, ends at `<|im_end|>` when plain `generate` asks it."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from align import cli
from align.recipe import Recipe
from align.runs import checkpoint
from align.stages.best_checkpoint import BestCheckpoint
from align.stages.run_base import run_base
from align.stages.run_ppo import run_ppo
from align.stages.run_rejection import run_rejection
from align.stages.run_sft import run_sft
from tests.align.stages.sft_case import conversations, write_lines
from tests.align.stages.speaker import END_OF_TEXT, IM_END, save_speaker, says

QLORA = [pytest.mark.needs("bitsandbytes"), pytest.mark.slow]
STAGES = {"base": run_base, "sft": run_sft, "rejection": run_rejection, "ppo": run_ppo}
SUPERVISED = {"max_length": 256, "batch_size": 4, "micro_batch_size": 4, "max_steps": 1, "learning_rate": 1e-6}
REWARD = "def length(prompts, completions):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_speaker(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    write_lines(folder / "demonstrations.jsonl", conversations(8))
    write_lines(folder / "documents.jsonl", [{"text": "the cat and the dog " * 20}] * 4)
    write_lines(folder / "prompts.jsonl", [{"prompt": f"say {word}"} for word in "abcd"])
    write_lines(folder / "held.jsonl", [{"prompt": "say x"}])
    return folder


def told(place: Path, out: Path, stage: str, adapter: str, **keys) -> Recipe:
    reward = {"kind": "function", "function": f"{place}/reward.py:length"}
    rollout = {"max_prompt_length": 60, "max_completion_length": 4}
    sections = {
        "base": SUPERVISED | {"data": ["documents.jsonl"]},
        "sft": SUPERVISED
        | {"data": ["demonstrations.jsonl"], "keep_best": True, "holdout": 0.25, "eval_steps": 1, "save_steps": 1},
        "rejection": SUPERVISED
        | {"data": ["prompts.jsonl"], "reward": reward, "num_rounds": 1, "rollout": rollout | {"num_generations": 2}},
        "ppo": {
            "data": ["prompts.jsonl"],
            "reward": reward,
            "num_iterations": 1,
            "rollout_batch_size": 4,
            "num_mini_batches": 1,
            "micro_batch_size": 4,
            "critic_warmup_steps": 0,
            "rollout": rollout,
            "policy": {"learning_rate": 1e-6},
            "ema_decay": 0.9,
            "eval_data": ["held.jsonl"],
            "evaluation": {"every_steps": 1, "save_best": True},
        },
    }
    data = {
        "name": "ends",
        "output_dir": str(out),
        "data_root": str(place),
        "seed": 1,
        "model": {"path": str(place / "model"), "adapter": adapter},
        stage: sections[stage] | {"init_from": str(place / "model")} | keys,
    }
    return Recipe.model_validate_json(json.dumps(data))


def names_both_ends(folder: Path) -> None:
    """config.json where there is one, generation_config.json and the tokenizer agree."""
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([IM_END, END_OF_TEXT], END_OF_TEXT)
    if (folder / "config.json").exists():
        assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [IM_END, END_OF_TEXT]
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_the_base_model_itself_goes_on(place):
    assert says(place / "model") == "a<|im_end|>" * 4


QUICK = (("base", "none"), ("sft", "none"), ("ppo", "none"), ("ppo", "lora"))
CASES = [(stage, "none") for stage in STAGES]
CASES += [(stage, "lora") for stage in STAGES if stage != "base"]  # which trains all weights
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in CASES]
CASES += [pytest.param(stage, "qlora", marks=QLORA) for stage in STAGES if stage != "base"]


@pytest.mark.parametrize(("stage", "adapter"), CASES)
def test_what_a_stage_leaves_ends(place, tmp_path, stage, adapter, monkeypatch):
    monkeypatch.setattr(BestCheckpoint, "remove", lambda out_dir: None)
    STAGES[stage](told(place, tmp_path, stage, adapter))
    out = tmp_path / stage
    if stage == "sft":
        for folder in (out / "best", checkpoint.latest(out / "checkpoints")):
            names_both_ends(folder)
            assert says(folder, GenerationConfig.from_pretrained(folder)) == "a<|im_end|>"
    for name in ("model", "ema", "best/model") if stage == "ppo" else ("model",):
        folder = out / name
        names_both_ends(folder)
        assert (folder / "config.json").exists() == (adapter == "none")
        if adapter == "none":
            assert says(folder) == "a<|im_end|>"
            continue
        assert says(folder, GenerationConfig.from_pretrained(folder)) == "a<|im_end|>"
        whole = tmp_path / "merged" / name
        assert cli.main(["merge", str(folder), str(whole), *(["--dequantize"] if adapter == "qlora" else [])]) == 0
        names_both_ends(whole)
        assert says(whole) == "a<|im_end|>"


def test_a_stage_that_only_had_to_be_saved_ends(place, tmp_path):
    """Killed after its last step: the model comes from the checkpoint, and no training loop is entered."""
    recipe = told(place, tmp_path, "sft", "none", keep_best=False)
    run_sft(recipe)
    for name in ("model/config.json", "model/generation_config.json", "summary.json"):
        (tmp_path / "sft" / name).unlink()
    assert run_sft(recipe)["resumed_from"] == 1
    names_both_ends(tmp_path / "sft/model")
    assert says(tmp_path / "sft/model") == "a<|im_end|>"
