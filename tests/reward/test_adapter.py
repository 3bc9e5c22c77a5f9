from pathlib import Path

import peft
import pytest
import torch

from align.runtime.errors import MissingFileError
from reward.adapter import quantization_4bit
from reward.model import RewardModel
from tests.tiny_models import save_causal_lm

IDS = torch.arange(12).view(2, 6)


def adapted(base, **load_kwargs):
    torch.manual_seed(0)
    model = RewardModel.from_backbone(base, **load_kwargs)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = RewardModel(peft.get_peft_model(model.backbone, config), model.head, pooling="mean")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("four_bit", [False, pytest.param(True, marks=pytest.mark.needs("bitsandbytes"))])
def test_an_adapter_is_saved_with_its_head_beside_it_and_loaded_again(tmp_path, four_bit):
    options = {}
    if four_bit:
        options = {"quantization_config": quantization_4bit("float32")}
    base = save_causal_lm(tmp_path / "base")
    model = adapted(base, **options)
    model.save_pretrained(tmp_path / "rm")
    files = {path.name for path in (tmp_path / "rm").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reward_config.json"} <= files
    assert "model.safetensors" not in files
    loaded = RewardModel.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        expected = model(IDS, torch.ones_like(IDS))
        torch.testing.assert_close(loaded(IDS, torch.ones_like(IDS)), expected, rtol=0, atol=1e-6)
    loaded(IDS, torch.ones_like(IDS)).sum().backward()  # after a forward without gradients
    grads = [p.grad for name, p in loaded.named_parameters() if "lora_A" in name]
    assert grads and all(float(grad.abs().sum()) > 0 for grad in grads)


def test_a_base_that_is_gone_is_named(tmp_path):
    model = adapted(save_causal_lm(tmp_path / "base"))
    model.save_pretrained(tmp_path / "rm")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(MissingFileError, match="base does not exist"):
        RewardModel.from_pretrained(tmp_path / "rm")


@pytest.mark.needs("bitsandbytes")
def test_weights_that_are_quantised_leave_no_mapped_file(tmp_path):
    """Else every page of the wide weights would stay with the process as long as the embedding does."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not tell what is mapped")
    base = save_causal_lm(tmp_path / "base")
    four_bit = RewardModel.from_backbone(base, quantization_config=quantization_4bit("float32"))
    assert str(base) not in maps.read_text()
    plain = RewardModel.from_backbone(base)
    assert str(base) in maps.read_text()  # so this would be seen
    name = "embed_tokens.weight"
    torch.testing.assert_close(four_bit.backbone.state_dict()[name], plain.backbone.state_dict()[name], rtol=0, atol=0)
