"""What a stage will write at the end is tried before its first step."""

import json

import pytest
import torch
from transformers import GenerationConfig, Qwen2ForCausalLM

from align.models.critic import Critic
from align.runs.errors import OutputError
from align.stages import run_sft
from align.stages.chain import run_chain
from align.stages.drafts import prove_outputs
from data_formats.errors import StorageError
from tests.align.stages.sft_case import recipe
from tests.align.stages.small_chain import small_recipe, write_data
from tests.tiny_models import byte_tokenizer, qwen2_config

TOKENIZER = byte_tokenizer()


def model(**changes):
    return Qwen2ForCausalLM(qwen2_config(**changes))


def twisted():
    """Two layers that share a weight of which the configuration knows nothing: transformers does not save that."""
    found = model()
    found.model.layers[1].mlp.up_proj.weight = found.model.layers[0].mlp.up_proj.weight
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_drafts_leave_nothing_behind_and_change_no_weight(tmp_path, tied):
    policy = model(tie_word_embeddings=tied)
    before = [parameter.clone() for parameter in policy.parameters()]
    prove_outputs("ppo", tmp_path / "new" / "ppo", TOKENIZER, {"model": policy, "best/model": policy})
    prove_outputs("ppo", tmp_path / "new" / "ppo", TOKENIZER, {"critic": Critic.from_causal_lm(policy)})
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(*pair) for pair in zip(before, policy.parameters(), strict=True))


def test_what_was_there_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    prove_outputs("sft", tmp_path, TOKENIZER, {"model": model()})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "model"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_tensors_that_cannot_be_saved_are_refused(tmp_path):
    for whole in (twisted(), Critic.from_causal_lm(twisted())):
        with pytest.raises(OutputError, match=r"model could not be written after training \(RuntimeError: .*shared"):
            prove_outputs("sft", tmp_path, TOKENIZER, {"model": whole})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "is_folder"), [("model", False), ("checkpoints", False), ("metrics.jsonl", True)])
def test_a_place_that_is_taken_stops_before_training(tmp_path, name, is_folder):
    place = tmp_path / "run" / "sft" / name
    place.parent.mkdir(parents=True)
    place.mkdir() if is_folder else place.write_text("")
    with pytest.raises(StorageError, match=rf"sft/{name} is a f"):
        run_sft.run_sft(recipe(tmp_path))
    assert sorted(path.name for path in place.parent.iterdir()) == sorted([name, "recipe.yaml"])


def test_a_full_disk_is_met_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("align.runtime.files.fsync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StorageError, match="No space left"):
        prove_outputs("sft", tmp_path, TOKENIZER, {"model": model()})


def test_a_generation_config_that_contradicts_itself_is_mended_at_the_start(tmp_path):
    policy = model()
    policy.generation_config = GenerationConfig(do_sample=False)
    policy.generation_config.temperature, policy.generation_config.top_p = 0.9, 0.6  # as Llama-2-chat
    prove_outputs("ppo", tmp_path, TOKENIZER, {"model": policy})
    policy.save_pretrained(tmp_path / "later")  # a checkpoint, an average: whoever writes it
    assert json.loads((tmp_path / "later" / "generation_config.json").read_text())["eos_token_id"] == [258, 256]


def test_the_chain_tries_its_own_files_before_its_first_stage(tmp_path):
    write_data(tmp_path)
    small = small_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report").write_text("")
    with pytest.raises(StorageError, match="report"):
        run_chain(small)
    assert not (tmp_path / "run" / "base").exists()
