"""LoRA and QLoRA in the supervised stages: what is trained and left behind, and resuming."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from align import cli
from align.models.load import load_causal_lm, load_reward_model
from align.recipe import load_recipe
from align.stages import run_rejection, run_reward, run_sft
from align.stages.chain import run_chain
from reward.model import RewardModel
from tests.align.stages.rejection_case import recipe as rejection_recipe
from tests.align.stages.sft_case import recipe
from tests.align.stages.small_chain import small_recipe, write_data
from tests.align.stages.test_quickstart_small import SIZES

ADAPTERS = ("lora", pytest.param("qlora", marks=pytest.mark.needs("bitsandbytes")))
LORA_FIRST = ("lora", pytest.param("qlora", marks=[pytest.mark.needs("bitsandbytes"), pytest.mark.slow]))


def adapted(folder, adapter, **keys):
    """The sft recipe with an adapter of rank 2."""
    plain = recipe(folder, **keys)
    lora = type(plain.model.lora)(rank=2, alpha=4, dropout=0.1)
    return plain.model_copy(update={"model": plain.model.model_copy(update={"adapter": adapter, "lora": lora})})


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(run, step, recipe)`, which ends as a kill does at the beginning of an optimizer step."""

    def killed(run, step, *args):
        trainer = run_sft.SFTTrainer if run is run_sft.run_sft else run_reward.RewardTrainer
        real, seen = trainer.training_step, []

        def training_step(self, *inputs, **more):
            seen.append(self.state.global_step)
            if self.state.global_step == step:
                raise SystemExit("killed")
            return real(self, *inputs, **more)

        monkeypatch.setattr(trainer, "training_step", training_step)
        with pytest.raises(SystemExit):
            run(*args)
        monkeypatch.setattr(trainer, "training_step", real)

    return killed


@pytest.mark.parametrize(
    ("adapter", "optimizer"),
    [
        ("lora", "adamw"),
        pytest.param("qlora", "adamw_8bit", marks=pytest.mark.needs("bitsandbytes")),
        pytest.param("lora", "adamw_8bit", marks=[pytest.mark.needs("bitsandbytes"), pytest.mark.slow]),
        pytest.param("qlora", "adamw", marks=[pytest.mark.needs("bitsandbytes"), pytest.mark.slow]),
    ],
)
def test_sft_resumed_is_sft_never_stopped(tmp_path, killed_at, adapter, optimizer):
    keys = {"save_steps": 2, "eval_steps": 2, "optimizer": optimizer}
    whole = run_sft.run_sft(adapted(tmp_path, adapter, run="whole", **keys))
    killed = adapted(tmp_path, adapter, run="killed", **keys)
    killed_at(run_sft.run_sft, 3, killed)
    again = run_sft.run_sft(killed)
    assert again["resumed_from"] == 2
    for key in ("heldout_loss", "end_rate", "distinct"):
        assert again[key] == whole[key]
    one, other = (tmp_path / run / "sft" for run in ("whole", "killed"))
    assert same(weights(one / "model"), weights(other / "model"))
    assert same(weights(one / "checkpoints/step-6"), weights(other / "checkpoints/step-6"))
    assert whole["heldout_loss"] < whole["heldout_loss_before"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_sft_leaves_an_adapter_in_pefts_format(tmp_path, adapter):
    told = adapted(tmp_path, adapter, keep_best=True, eval_steps=2)
    summary = run_sft.run_sft(told)
    folder = tmp_path / "run/sft/model"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(tmp_path / "model"), 2)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not {"config.json", "model.safetensors"} & names
    assert ("base_quantization.json" in names) == (adapter == "qlora")
    assert 0 < summary["trained_parameters"] < summary["parameters"]
    model = load_causal_lm(folder, told.model, use="frozen")
    if adapter == "lora":
        peft = AutoPeftModelForCausalLM.from_pretrained(folder)
        ids = torch.arange(10)[None]
        with torch.no_grad():
            assert torch.equal(peft(input_ids=ids).logits, model(input_ids=ids).logits)


def changes(adapter, **more):
    return {"model__adapter": adapter, "model__lora": {"rank": 2, "alpha": 4}} | more


@pytest.mark.parametrize("adapter", LORA_FIRST)
def test_a_chain_of_adapters_on_one_base(tmp_path, adapter, capsys):
    write_data(tmp_path)
    told = small_recipe(tmp_path, **changes(adapter))
    run_chain(told)
    run = tmp_path / "run"
    assert (run / "base/model/model.safetensors").is_file()
    assert not (run / "base/model/adapter_config.json").exists()
    for stage in ("sft", "pmp", "rm"):
        config = json.loads((run / stage / "model/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str((run / "base/model").resolve())
        summary = json.loads((run / stage / "summary.json").read_text())
        assert 0 < summary["trained_parameters"] < summary["parameters"]
    pmp, rm = (weights(run / stage / "model") for stage in ("pmp", "rm"))
    assert pmp.keys() == rm.keys() and not same(pmp, rm)
    model = load_reward_model(run / "rm/model", told.model, use="frozen")
    assert isinstance(model, RewardModel) and float(model.shift) != 0
    assert cli.main(["evaluate-reward", str(run / "rm/model"), str(tmp_path / "comparisons.jsonl")]) == 0
    assert "accuracy" in capsys.readouterr().out
    exported = cli.main(["export-reward", str(run / "rm/model"), str(tmp_path / "out")])
    assert exported == (1 if adapter == "qlora" else 0)
    assert ("align merge" in capsys.readouterr().err) == (adapter == "qlora")


@pytest.mark.parametrize("adapter", LORA_FIRST)
def test_groups_of_replies_and_a_language_term(tmp_path, adapter):
    write_data(tmp_path)
    grouped = {"pmp__share_prompts": True, "pmp__lm_weight": 0.5, "pmp__max_length": 96}
    run_chain(small_recipe(tmp_path, **changes(adapter, **grouped)).model_copy(update={"sft": None, "rm": None}))
    summary = json.loads((tmp_path / "run/pmp/summary.json").read_text())
    assert 0 < summary["trained_parameters"] < summary["parameters"] and summary["rows"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_rejection_sampling_trains_one_adapter_on(tmp_path, adapter):
    plain = rejection_recipe(tmp_path)
    lora = type(plain.model.lora)(rank=2, alpha=4)
    model = plain.model.model_copy(update={"adapter": adapter, "lora": lora})
    run_rejection.run_rejection(plain.model_copy(update={"model": model}))
    folders = [tmp_path / "run/rejection" / name for name in ("rounds/1/model", "rounds/2/model", "model")]
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["r"]) == (str(tmp_path / "policy"), 2)
    first, second, last = map(weights, folders)
    assert same(second, last) and first.keys() == second.keys() and not same(first, second)


@pytest.mark.slow
def test_a_stage_goes_on_with_another_runs_adapter(tmp_path, caplog):
    run_sft.run_sft(adapted(tmp_path, "lora", run="first"))
    start = weights(tmp_path / "first/sft/model")
    told = adapted(tmp_path, "lora", run="second", init_from=str(tmp_path / "first/sft/model"), learning_rate=1e-9)
    told = told.model_copy(update={"model": told.model.model_copy(update={"lora": type(told.model.lora)(rank=8)})})
    run_sft.run_sft(told)
    assert "its adapter of rank 2 is trained on, model.lora.rank=8 is not read" in caplog.text
    end = weights(tmp_path / "second/sft/model")
    assert start.keys() == end.keys()
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-7) for name in start)
    config = json.loads((tmp_path / "second/sft/model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")


@pytest.mark.slow
def test_the_quickstart_in_miniature(tmp_path):
    """With LoRA; chains of QLoRA are in tests/recipes/test_planned_recipes.py."""
    sizes = [f"{section}.{key}={value}" for section, values in SIZES.items() for key, value in values.items()]
    told = [f"output_dir={tmp_path / 'run'}", "seed=5", *sizes, "model.adapter=lora", "model.lora.rank=4"]
    run_chain(load_recipe("quickstart", told))
    run = tmp_path / "run"
    for folder in ("sft/model", "pmp/model", "rm/model", "ppo/model", "ppo/critic"):
        names = {path.name for path in (run / folder).iterdir()}
        assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    before, after = (weights(run / stage / "model") for stage in ("sft", "ppo"))
    assert before.keys() == after.keys() and not same(before, after)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["sft"]["heldout_loss"] < summary["sft"]["heldout_loss_before"] - 0.1


@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("adapter", [pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def test_rm_resumed_is_rm_never_stopped(tmp_path, killed_at, adapter):
    write_data(tmp_path)
    more = {"rm__save_steps": 2, "rm__max_steps": 5, "rm__optimizer": "lion_8bit", "rm__learning_rate": 1e-3}
    recipes = [small_recipe(tmp_path, **changes(adapter, output_dir=str(tmp_path / at), **more)) for at in "ab"]
    run_chain(recipes[0].model_copy(update={"sft": None, "rm": None}))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    whole = run_reward.run_reward(recipes[0])
    killed_at(run_reward.run_reward, 3, recipes[1])
    again = run_reward.run_reward(recipes[1])
    assert again["resumed_from"] == 2 and again["accuracy"] == whole["accuracy"]
    one, other = (tmp_path / at / "rm/model" for at in "ab")
    assert same(weights(one), weights(other))
    assert same(load_file(one / "head.safetensors"), load_file(other / "head.safetensors"))
    first, second = (json.loads((at / "reward_config.json").read_text()) for at in (one, other))
    assert first == second
