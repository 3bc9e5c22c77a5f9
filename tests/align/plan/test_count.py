"""Parameter counts against the published ones and against transformers and peft models on the meta device."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from align.models.adapters import add
from align.plan import shapes
from align.plan.count import count, count_adapter
from align.plan.families import FAMILIES
from align.plan.shapes import PlanError, Shape, find_shape, shipped_shapes
from align.recipe.model_section import LoraSection

PUBLISHED = {  # what the models' pages on the hub say
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Llama-2-7b-chat-hf": 6_738_415_616,
    "Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "gemma-2-2b-it": 2_614_341_888,
    "gemma-3-1b-it": 999_885_952,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "OLMo-2-1124-7B-SFT": 7_298_617_344,
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM3-3B": 3_075_098_624,
    "pythia-160m-deduped": 162_322_944,
    "gpt-neox-20b": 20_554_567_680,
}
ACTIVE = {"Qwen1.5-MoE-A2.7B": 2.7, "Qwen2-57B-A14B": 14.2, "Qwen3-30B-A3B": 3.3, "Qwen3-235B-A22B": 22}  # billions
ROW = json.loads((Path(shapes.__file__).parent / "shapes.json").read_text())


def build_of(name):
    """What a row switches on and off: rows that differ by numbers alone are built alike."""
    row = ROW[name]
    switches = {key: value for key, value in row.items() if isinstance(value, bool | str | None)}
    return json.dumps([switches, sorted(row)], sort_keys=True)


FIRST = {build_of(name): name for name in reversed(ROW)}.values()
ROWS = [pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name in ROW]


def on_meta(name, layers=None):
    row = {"pad_token_id": None} | ROW[name]
    if layers is not None:
        row["num_hidden_layers"] = layers
    config = AutoConfig.for_model(row.pop("model_type"), **row)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name):
    assert count(find_shape(f"someone/{name}")).whole == PUBLISHED[name]


@pytest.mark.parametrize("name", ACTIVE)
def test_published_numbers_of_what_computes_a_token(name):
    found = count(shipped_shapes()[name])
    assert found.embedding + found.active + found.head == pytest.approx(1e9 * ACTIVE[name], rel=0.02)


@pytest.mark.parametrize("name", ROWS)
def test_parts_are_those_of_the_real_model(name):
    model, found = on_meta(name, layers=2), count(replace(shipped_shapes()[name], num_hidden_layers=2))
    body, embedding, head = model.base_model, model.get_input_embeddings().weight, model.get_output_embeddings().weight
    linear = sum(one.weight.numel() for one in body.modules() if isinstance(one, torch.nn.Linear))
    assert found.whole == sum(weight.numel() for weight in model.parameters())
    assert found.body == sum(weight.numel() for weight in body.parameters())
    assert found.embedding == embedding.numel() and found.linear == linear
    assert found.head == (0 if head is embedding else head.numel())
    assert found.rest == sum(weight.numel() for weight in body.parameters() if weight.dim() == 1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_adapters_of_every_family_are_those_of_the_trainers(kind):
    name = next(name for name, row in ROW.items() if row["model_type"] == kind)
    shape = replace(shipped_shapes()[name], num_hidden_layers=2)
    whole = (shape.family.norms[0], shape.family.ends[0])
    for told in (LoraSection(rank=4), LoraSection(rank=2, modules_to_save=whole)):
        with torch.device("meta"):
            model = add(on_meta(name, layers=2), told, base="nowhere")
        trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
        assert count_adapter(shape, told) == trained


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 16},
        {"rank": 4, "targets": ("q_proj", "v_proj")},
        {"rank": 4, "targets": ("q_proj", "lm_head")},
        {"rank": 8, "dora": True},
        {"rank": 8, "targets": ("gate_proj",), "modules_to_save": ("lm_head",)},
        {"rank": 4, "targets": ("q_proj",), "modules_to_save": ("embed_tokens", "post_attention_layernorm", "v_proj")},
        {"rank": 4, "targets": ("q_proj",), "modules_to_save": ("norm",)},
    ],
)
def test_adapters_are_those_of_peft(options):
    lora = LoraSection(**options)
    row = Shape.of_config({**ROW["Qwen3-8B"], "num_hidden_layers": 3}, "three layers")
    config = LoraConfig(
        r=lora.rank,
        target_modules="all-linear" if lora.targets == "all-linear" else list(lora.targets),
        use_dora=lora.dora,
        modules_to_save=list(lora.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )
    with torch.device("meta"):
        model = get_peft_model(on_meta("Qwen3-8B", 3), config)
    assert count_adapter(row, lora) == sum(part.numel() for part in model.parameters() if part.requires_grad)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("targets", "saved"),
    [
        (("q_proj",), ("embed_tokens", "lm_head")),
        (("q_proj",), ("lm_head",)),
        (("q_proj",), ("embed_tokens",)),
        (("q_proj", "lm_head"), ()),
        (("q_proj", "embed_tokens"), ()),
    ],
)
def test_adapters_at_the_ends_are_those_of_the_trainers(head, tied, targets, saved):
    row = {**ROW["Qwen3-8B"], "num_hidden_layers": 2, "tie_word_embeddings": tied}
    lora = LoraSection(rank=4, targets=targets, modules_to_save=saved)
    with torch.device("meta"):
        kind = AutoModelForCausalLM if head else AutoModel
        model = add(kind.from_config(AutoConfig.for_model(**row)), lora, base="nowhere")
    trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
    assert count_adapter(Shape.of_config(row, "x"), lora, head=head) == trained


OF_NEOX = {"attention_bias": False, "num_key_value_heads": 4, "head_dim": 4}


def test_families_with_other_biases():
    for family in ("llama", "mistral", "gpt_neox"):
        row = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        row |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        row |= {"llama": {"attention_bias": True, "mlp_bias": True}, "gpt_neox": OF_NEOX}.get(family, {})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **row))
        assert count(Shape.of_config({**row, "model_type": family}, "x")).whole == sum(
            p.numel() for p in model.parameters()
        )


def test_names_folders_and_what_is_not_known(tmp_path):
    assert find_shape("Qwen/Qwen2.5-7B-Instruct") == find_shape("Qwen2.5-7B") == shipped_shapes()["Qwen2.5-7B"]
    (tmp_path / "config.json").write_text(json.dumps(ROW["Qwen3-0.6B"]))
    assert find_shape(str(tmp_path)) == shipped_shapes()["Qwen3-0.6B"]
    with pytest.raises(PlanError, match=r"'Qwen/Qwen2.5-8B' is not known; did you mean 'Qwen2.5-.*: Qwen1.5, .*pythia"):
        find_shape("Qwen/Qwen2.5-8B")
    mixed = {**ROW["Qwen3-30B-A3B"], "mlp_only_layers": [0]}
    (tmp_path / "config.json").write_text(json.dumps(mixed))
    with pytest.raises(PlanError, match="only some of its layers have experts"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(PlanError, match="'mamba' models is not known"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "num_attention_heads": 2, "hidden_size": 4}')
    with pytest.raises(PlanError, match="lacks 'vocab_size'"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PlanError, match="cannot be read"):
        find_shape(str(tmp_path))


def test_an_adapter_has_the_shape_of_its_base(tmp_path):
    config = tmp_path / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    assert find_shape(str(tmp_path)) == shipped_shapes()["Qwen3-8B"]
    for text, sentence in (
        ('{"base_model_name_or_path": "Qwen/Qwen3-9B"}', r"ppo.reward: .*base_model_name_or_path: .*'Qwen/Qwen3-9B'"),
        (json.dumps({"base_model_name_or_path": str(tmp_path)}), "which is an adapter itself"),
        ("{}", "does not name its base model"),
        ("[]", "holds no JSON object"),
    ):
        config.write_text(text)
        with pytest.raises(PlanError, match=sentence):
            find_shape(str(tmp_path), "ppo.reward")
