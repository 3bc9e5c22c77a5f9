"""LoRA merged by a server: to the bit the weights that the trainer would have merged, and nothing else is taken."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rollouts.errors import RolloutError
from rollouts.vllm.low_rank import changes
from rollouts.vllm.weights import write_push
from rollouts.vllm.worker import tensors, whole_files
from rollouts.weights import adapter_tensors, checkpoint_names, checkpoint_tensors, pushes_adapter
from tests.rollouts.vllm.models import build

CPU = torch.device("cpu")


def adapted(family="qwen2-untied", dtype=torch.float32, **options):
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "up_proj"]} | options
    model = get_peft_model(build(family, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"use_rslora": True, "target_modules": "all-linear"}),
        (torch.bfloat16, {"lora_alpha": 3}),
    ],
)
def test_what_a_server_merges_is_what_the_trainer_would(tmp_path, dtype, options):
    model = adapted(dtype=dtype, **options)
    assert pushes_adapter(model, "auto", "server")
    base = write_push(tmp_path, checkpoint_tensors(model, merge=False), 1)
    config, named = adapter_tensors(model)
    push = base + write_push(tmp_path, changes(config, named, checkpoint_names(model, merge=False)), 2, "adapter")
    assert push.version == 2 and len(push.files) == len(base.files) + 1
    found = dict(tensors(whole_files(tmp_path, push.files, push.digest), CPU))
    wanted = dict(checkpoint_tensors(model))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    plain = dict(tensors(whole_files(tmp_path, base.files, base.digest), CPU))
    moved = [name for name in wanted if not torch.equal(found[name], plain[name])]
    assert len(moved) == 2 * (7 if options.get("use_rslora") else 3)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("qwen2-untied", {"rank_pattern": {"q_proj": 2}}, "adapters of several ranks or scales"),
        ("qwen2-untied", {"use_dora": True}, "DoRA"),
        ("qwen2-untied", {"target_modules": ["embed_tokens", "q_proj"]}, "changes of other than linear layers"),
        ("qwen2-tied", {"target_modules": ["lm_head", "q_proj"]}, "a change of one of two tied layers"),
    ],
)
def test_what_a_server_cannot_merge_is_merged_here(family, options, said):
    model = adapted(family, **options)
    assert not pushes_adapter(model, "auto", "server") and not pushes_adapter(model, "merge", "server")
    with pytest.raises(RolloutError, match=f"cannot take {said} as an adapter; choose merge"):
        pushes_adapter(model, "adapter", "server")


def test_what_is_no_change_of_these_weights_is_refused():
    model = adapted()
    shapes = checkpoint_names(model, merge=False)
    config, named = adapter_tensors(model)
    named = list(named)
    first, tensor = named[0]
    for changed, said in (
        ([(first.replace("q_proj", "x_proj"), tensor)], r"x_proj.* is no change of a weight"),
        ([(first, tensor[:, :3])], r"\(4, 3\) is no change of a weight"),
        ([(first.replace("lora_A", "lora_magnitude_vector"), tensor)], "is no change of a weight"),
        (named[:1], r"of the change of 'model\.layers\.0\..*weight' a half is missing"),
    ):
        with pytest.raises(RolloutError, match=said):
            list(changes(config, changed, shapes))
