"""`from align import …` is lazy and complete."""

import subprocess
import sys
from pathlib import Path

import pytest

import align

ROOT = Path(__file__).parents[2]


def test_importing_align_imports_nothing_heavy():
    code = "import sys, align; print([m for m in ('torch', 'transformers', 'pydantic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_public_names():
    from align import PPOConfig, PPOTrainer, RewardTrainer, SFTTrainer, load_recipe

    assert (PPOConfig(num_iterations=9).kl_coef, PPOConfig(num_iterations=9).rollout.num_generations) == (0.04, 2)
    assert [item.__name__ for item in (SFTTrainer, RewardTrainer, PPOTrainer)] == [
        "SFTTrainer",
        "RewardTrainer",
        "PPOTrainer",
    ]
    assert load_recipe("quickstart").name == "quickstart"
    assert {"SFTTrainer", "load_recipe", "__version__"} <= set(dir(align))


def test_what_the_trainers_are_given_is_there_too():
    from align import Critic, FunctionReward, Prompt, load_tokenizer
    from align.models.tokenizer import load_tokenizer as loads

    assert load_tokenizer is loads and FunctionReward(len).name == "len"
    assert (Critic.__name__, Prompt.__name__) == ("Critic", "Prompt")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="SFTTrainr"):
        _ = align.SFTTrainr
