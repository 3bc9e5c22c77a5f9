"""Parameter counts against the published ones and against transformers and peft models on the meta device."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from align.models.adapters import add
from align.plan import shapes
from align.plan.count import count, count_adapter
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
}
ROW = json.loads((Path(shapes.__file__).parent / "shapes.json").read_text())


def on_meta(name, layers=None):
    row = dict(ROW[name])
    if layers is not None:
        row["num_hidden_layers"] = layers
    config = AutoConfig.for_model(row.pop("model_type"), **row)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name):
    assert count(find_shape(f"Qwen/{name}")).whole == PUBLISHED[name]


@pytest.mark.parametrize("name", ROW)
def test_parts_are_those_of_the_real_model(name):
    model, found = on_meta(name), count(shipped_shapes()[name])
    sizes = {part: weight.numel() for part, weight in model.named_parameters()}
    assert found.whole == sum(sizes.values())
    assert found.embedding == sizes["model.embed_tokens.weight"]
    assert found.head == sizes.get("lm_head.weight", 0)
    assert found.linear == sum(size for part, size in sizes.items() if part.endswith("_proj.weight"))
    assert found.body == sum(weight.numel() for weight in model.model.parameters())


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


def test_families_with_other_biases():
    for family in ("llama", "mistral"):
        row = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        row |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        row |= {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **row))
        assert count(Shape.of_config({**row, "model_type": family}, "x")).whole == sum(
            p.numel() for p in model.parameters()
        )


def test_names_folders_and_what_is_not_known(tmp_path):
    assert find_shape("Qwen/Qwen2.5-7B-Instruct") == find_shape("Qwen2.5-7B") == shipped_shapes()["Qwen2.5-7B"]
    (tmp_path / "config.json").write_text(json.dumps(ROW["Qwen3-0.6B"]))
    assert find_shape(str(tmp_path)) == shipped_shapes()["Qwen3-0.6B"]
    with pytest.raises(PlanError, match=r"'Qwen/Qwen2.5-8B' is not known; did you mean 'Qwen2.5-"):
        find_shape("Qwen/Qwen2.5-8B")
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
