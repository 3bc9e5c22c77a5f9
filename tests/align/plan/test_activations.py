"""What autograd saves of a layer, measured on real models, is what the plan says; widths differ so that none can stand
for another."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from align.plan import activations, families
from align.plan.activations import Body
from align.plan.precision import Precision
from align.plan.shapes import Shape
from align.recipe.model_section import LoraSection

B, T, RANK = 2, 40, 5
NUMBERS = {"vocab_size": 128, "hidden_size": 96, "intermediate_size": 224, "num_attention_heads": 6}
NUMBERS |= {"num_key_value_heads": 2, "head_dim": 32}
FAMILIES = ("qwen2", "qwen3")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 80}
EXPERTS |= {"shared_expert_intermediate_size": 64}
MODES = {
    "float32": (torch.float32, False, None),
    "autocast": (torch.float32, True, None),
    "bfloat16": (torch.bfloat16, False, None),
    "lora float32": (torch.float32, False, LoraSection(rank=RANK)),
    "lora autocast": (torch.float32, True, LoraSection(rank=RANK)),
    "lora bfloat16": (torch.bfloat16, False, LoraSection(rank=RANK)),
    "lora bfloat16 autocast": (torch.bfloat16, True, LoraSection(rank=RANK)),
    "lora of two": (torch.float32, False, LoraSection(rank=RANK, targets=("q_proj", "down_proj"))),
    "lora dropout": (torch.float32, False, LoraSection(rank=RANK, dropout=0.3)),
}


def shape(family, layers):
    return Shape.of_config({**numbers_of(family), "num_hidden_layers": layers, "model_type": family}, family)


def numbers_of(family):
    own = {"num_key_value_heads": 6, "head_dim": 16} if family == "gpt_neox" else {}
    return NUMBERS | (EXPERTS if family.endswith("_moe") else {}) | own


def measured(family, layers, dtype, autocast, lora, attention="sdpa", checkpointing=False):
    """Bytes of everything that a forward pass saves and that is no parameter, each storage once; weight copies (2D, no
    rows) apart."""
    numbers = {**numbers_of(family), "num_hidden_layers": layers, "attn_implementation": attention}
    config = AutoConfig.for_model(family, **numbers, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    if not getattr(kind, f"_supports_{attention}", True):
        pytest.skip(f"this transformers has no {attention} for {family}")
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if lora is not None:
        targets = lora.targets if lora.targets == "all-linear" else list(lora.targets)
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules=targets, lora_dropout=lora.dropout))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    ids, mask = torch.randint(0, 128, (B, T)), torch.ones(B, T, dtype=torch.long)
    mask[0, -3:] = 0
    own = {part.untyped_storage().data_ptr() for part in model.parameters()}
    kept = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    rows = (B, B * T, B * T * EXPERTS["num_experts_per_tok"])
    copies = {at for at, one in kept.items() if one.dim() == 2 and one.shape[0] not in rows}
    size = {at: one.untyped_storage().nbytes() for at, one in kept.items()}
    return sum(size[at] for at in size if at not in copies), sum(size[at] for at in copies)


def body(family, layers, dtype, autocast, lora, **more):
    precision = Precision(4 if dtype == torch.float32 else 2, autocast)
    return Body(shape(family, layers), precision, lora=lora, **more)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_saves_what_the_plan_says(family, mode):
    (more, more_copies), (fewer, fewer_copies) = (measured(family, layers, *MODES[mode]) for layers in (3, 2))
    small = B * T * 4 * 2  # the two inverse deviations of the norms
    if mode == "lora dropout":  # a CPU's masks are floats, not the bytes that a GPU needs
        more -= B * T * 3 * sum(inputs for inputs, _ in shape(family, 1).linears.values())
    expected = activations.saved_by_layer(body(family, 1, *MODES[mode]), T) * B * T
    assert 0 <= (more - fewer) - expected <= small + (B * T * 4 * 8 if family == "qwen3" else 0)
    copies = activations.weight_copies(body(family, 1, *MODES[mode]), head=False, backward=True)
    _, autocast, lora = MODES[mode]
    if autocast and lora is not None:  # copies of A and B, which the plan leaves out
        copies += 2 * RANK * sum(map(sum, shape(family, 1).linears.values()))
    assert more_copies - fewer_copies == copies


OTHERS = [
    pytest.param(family, mode, marks=[pytest.mark.slow] * (mode != "float32" and family not in ("llama", "gemma2")))
    for family, built in families.FAMILIES.items()
    for mode in ("float32", "autocast", "lora bfloat16")
    if family not in FAMILIES and not (built.adapts_experts and "lora" in mode)  # whose changed weights are copies
]


@pytest.mark.parametrize(("family", "mode"), OTHERS)
def test_a_layer_of_another_family_saves_about_what_the_plan_says(family, mode):
    (more, _), (fewer, _) = (measured(family, layers, *MODES[mode]) for layers in (3, 2))
    expected = activations.saved_by_layer(body(family, 1, *MODES[mode]), T) * B * T
    assert more - fewer == pytest.approx(expected, rel=0.15 if family.endswith("_moe") else 0.01)


def test_capped_logits_are_held_whole():
    rows, capped, plain = 4096, body("gemma2", 2, *MODES["float32"]), body("gemma3_text", 2, *MODES["float32"])
    whole = rows * NUMBERS["vocab_size"] * 4
    assert activations.logits(capped, rows, "gpu", backward=False) >= 3 * whole
    assert activations.logits(plain, rows, "gpu", backward=False) <= 2 * whole


def test_eager_attention_saves_the_softmax_of_every_pair():
    for mode in ("float32", "bfloat16"):
        (more, _), (fewer, _) = (measured("qwen2", layers, *MODES[mode], attention="eager") for layers in (3, 2))
        expected = activations.saved_by_layer(body("qwen2", 1, *MODES[mode], attention="eager"), T) - 4 * 6
        assert 0 <= (more - fewer) - expected * B * T <= B * T * 4 * 2


@pytest.mark.parametrize("mode", ["float32", "autocast", "lora bfloat16"])
def test_a_checkpointed_layer_saves_its_input(mode):
    (more, _), (fewer, _) = (measured("qwen2", layers, *MODES[mode], checkpointing=True) for layers in (3, 2))
    assert more - fewer == B * T * 96 * (2 if "bfloat16" in mode else 4)
    one = body("qwen2", 1, *MODES[mode], checkpointing=True)
    two = body("qwen2", 2, *MODES[mode], checkpointing=True)
    assert activations.saved(two, B, T) - activations.saved(one, B, T) == more - fewer
