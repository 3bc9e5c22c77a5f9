"""ChatML's tokens given to a model that lacks them: its rows, an adapter that trains them, and who loads it then."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import cli
from align.models import save
from align.models.embeddings import with_chatml
from align.models.load import load_causal_lm, load_reward_model
from align.models.tokenizer import TokenizerError, load_tokenizer
from align.recipe.model_section import ModelSection
from data_formats.chat_format import chat_format, remembered
from reward.model import RewardModel
from rollouts.weights import checkpoint_tensors
from tests.families import FAMILIES
from tests.families import save as save_family

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module", params=["Llama 3", "Llama 3.2"])  # the ends apart, and tied
def base(request, tmp_path_factory):
    return save_family(FAMILIES[request.param], tmp_path_factory.mktemp("base"))


def section(base, **changes):
    return ModelSection(path=str(base), **({"tokenizer": {"add_chatml": True}} | changes))


def test_without_leave_the_model_is_refused_with_two_cures(base):
    with pytest.raises(
        TokenizerError, match=r"lacks <\|endoftext\|>.*tokenizer\.template=own.*tokenizer\.add_chatml=true"
    ):
        load_tokenizer(base)


def test_the_model_grows_and_old_words_keep_their_logits(base, tmp_path):
    folder = with_chatml(section(base), tmp_path / "grown")
    assert with_chatml(section(base), tmp_path / "grown") == folder  # once
    old, new = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, folder))
    rows, known = new.get_input_embeddings().weight, len(AutoTokenizer.from_pretrained(base))
    assert len(rows) % 64 == 0 and len(rows) >= known + 3
    with torch.no_grad():
        torch.testing.assert_close(new(IDS).logits[..., :known], old(IDS).logits)
    assert torch.allclose(rows[known], old.get_input_embeddings().weight.mean(0), atol=1e-6)
    tokenizer = load_tokenizer(folder, section=section(base).tokenizer)
    added = remembered(tokenizer)["added"]
    assert added == [known, known + 1, known + 2]
    assert list(chat_format(tokenizer).stop_ids) == new.generation_config.eos_token_id
    assert with_chatml(section(folder), tmp_path / "again") == folder  # has them


def test_an_adapter_trains_the_new_rows_and_everybody_loads_it(base, tmp_path):
    told = section(with_chatml(section(base), tmp_path / "grown"), adapter="lora", lora={"rank": 2})
    tokenizer = load_tokenizer(told.path, section=told.tokenizer)
    added = remembered(tokenizer)["added"]
    model = load_causal_lm(told.path, told, tokenizer=tokenizer).train()
    ids = torch.tensor([[5, *added, 6]])
    optimizer = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=0.5)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval()
    tied = model.config.tie_word_embeddings
    trained = {name for name, part in model.named_parameters() if part.requires_grad and "lora_" not in name}
    assert len(trained) == (1 if tied else 2)
    with torch.no_grad():
        expected = model(ids).logits
        base_rows = model.get_base_model().get_input_embeddings().original_module.weight
        moved = (model.get_base_model().get_input_embeddings().weight - base_rows).abs().amax(1)
    assert set(moved.nonzero().flatten().tolist()) == set(added)
    save.save_model(model, tokenizer, tmp_path / "adapter")
    assert remembered(AutoTokenizer.from_pretrained(tmp_path / "adapter"))["added"] == added
    pushed = AutoModelForCausalLM.from_pretrained(told.path)
    missing = pushed.load_state_dict(dict(checkpoint_tensors(model)), strict=False).missing_keys
    assert missing == (["lm_head.weight"] if tied else [])
    pushed.tie_weights()
    assert cli.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    with torch.no_grad():
        for loaded in (
            load_causal_lm(tmp_path / "adapter", told, tokenizer=tokenizer),
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(),
            AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(),
            pushed.eval(),
        ):
            found = loaded(ids).logits
            torch.testing.assert_close(found, expected[..., : found.shape[-1]], rtol=0, atol=1e-4)
    assert "added" not in remembered(AutoTokenizer.from_pretrained(tmp_path / "merged"))
    scorer = load_reward_model(tmp_path / "adapter", told, tokenizer=tokenizer)
    save.save_model(scorer, tokenizer, tmp_path / "rm")
    again = RewardModel.from_pretrained(tmp_path / "rm")
    mask = torch.ones_like(ids)
    with torch.no_grad():
        torch.testing.assert_close(again(ids, mask), scorer(ids, mask))
    assert json.loads((tmp_path / "rm/adapter_config.json").read_text())["trainable_token_indices"] is not None
