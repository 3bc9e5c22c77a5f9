"""The agent and code recipes in miniature: each runs whole, with every value but its sizes as shipped."""

import json
import logging

import pytest

from align.plan import plan_stages
from align.recipe import load_recipe
from align.report import build_report
from align.stages.chain import run_chain
from tests.recipes.miniature import SFT_SIZES, sft_arguments

REACT = (
    "Thought: I ask the {0}.\nAction: listen\nAction Input: {0}\nObservation: noise of {0}\nThought: Heard.\n"
    "Final Answer: It {1}."
)
CALL = {"name": "listen", "description": "hears", "parameters": {"type": "object", "properties": {}}}
SIZES = ["base.max_steps=4", "base.warmup_steps=1", "base.batch_size=4", "base.max_length=64", "base.eval_steps=2"]
SIZES += ["base.save_steps=2", "base.logging_steps=1", "sft.max_length=256"]


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def arguments(folder):
    """Model and files under the names of the recipes, and the words that put them in."""
    words, root = sft_arguments(folder), folder / "data"
    facts = [("cat", "meows"), ("dog", "barks"), ("hen", "clucks"), ("cow", "moos")] * 3
    asked = [{"from": "human", "value": "What does it say?"}]
    said = [[*asked, {"from": "gpt", "value": REACT.format(*fact)}] for fact in facts]
    write(root / "sft/react.jsonl", [{"conversations": talk} for talk in said])
    call = {"from": "function_call", "value": '{"name": "listen", "arguments": {}}'}
    called = [*asked, call, {"from": "observation", "value": "moo"}, {"from": "gpt", "value": "It moos."}]
    write(root / "sft/tools.jsonl", [{"conversations": called, "tools": json.dumps([CALL])}] * 6)
    write(root / "sft/code.jsonl", [{"conversations": [*asked, {"from": "gpt", "value": "print('moo')"}]}] * 12)
    write(root / "text/code.jsonl", [{"text": f"def f{at}(x):\n    return x + {at}\n" * 4} for at in range(20)])
    write(root / "text/documents.jsonl", [{"text": f"It was the {at}th day of rain. " * 4} for at in range(20)])
    write(root / "text/heldout.jsonl", [{"text": "def g(x):\n    return x\n" * 8}])
    return words


def test_agents_are_mixed_in_and_observations_have_no_loss(tmp_path, caplog):
    words = arguments(tmp_path)
    recipe, shipped = load_recipe("qwen_agent_sft", words), load_recipe("qwen_agent_sft")
    changed = {key for key, value in recipe.sft.model_dump().items() if value != shipped.sft.model_dump()[key]}
    assert changed <= {size.partition("=")[0] for size in SFT_SIZES}
    with caplog.at_level(logging.INFO, "align"):
        summary = run_chain(recipe)["sft"]
    # 4 steps of 4 rows: 15.68 general, 0.16 and 0.16 of the others
    drawn = {name: part["drawn"] for name, part in summary["mixture"]["parts"].items()}
    assert drawn == {"sft/train.jsonl": 16, "sft/react.jsonl": 0, "sft/tools.jsonl": 0}
    assert summary["rows"] == 36 + 12 + 6 and summary["steps"] == 4
    assert "12 conversations have observations inside replies, which get no loss" in caplog.text
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "sft/react.jsonl" in page and "What was drawn" in page
    assert "sft/react.jsonl: 0 of 12" in (tmp_path / "run/sft/model/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_code_is_pretrained_on_and_then_finetuned_in_two_stages(tmp_path):
    recipe = load_recipe("qwen_code", arguments(tmp_path) + SIZES)
    assert recipe.stages == ("base", "sft")
    summary = run_chain(recipe)
    # 4 steps of 4 blocks: 12.8 to 3.2
    assert [part["drawn"] for part in summary["base"]["mixture"]["parts"].values()] == [13, 3]
    assert summary["sft"]["packing"]["max_length"] == 256
    # 2 steps of 4 packed rows at 1:1, then 2 at 1:4, of which 1.6 rows are general
    phases = summary["sft"]["mixture"]["phases"]
    assert [list(phase["drawn"].values()) for phase in phases] == [[4, 4], [2, 6]]
    assert [phase["name"] for phase in phases] == ["start", "code"]


@pytest.mark.parametrize(("name", "stages"), [("qwen_agent_sft", ["sft"]), ("qwen_code", ["base", "sft"])])
def test_memory_is_planned(name, stages):
    plans = plan_stages(load_recipe(name))
    assert [plan.stage for plan in plans] == stages and all(plan.peak.bytes > 7e9 * 16 for plan in plans)


def test_the_values_of_the_report():
    agent, general = load_recipe("qwen_agent_sft").sft, load_recipe("qwen_sft").sft
    own = {"data", "mixture", "mask_observations"}
    assert agent.model_dump(exclude=own) == general.model_dump(exclude=own)
    code = load_recipe("qwen_code")
    assert (code.base.max_length, code.base.learning_rate, code.base.lr_scheduler_type) == (
        8192,
        3e-5,
        "constant_with_warmup",
    )
    assert code.base.warmup_steps / code.base.max_steps == pytest.approx(0.03, rel=1e-2)
    assert code.base.max_steps * code.base.batch_size * code.base.max_length == pytest.approx(90e9, rel=1e-3)
    assert (code.sft.learning_rate, code.sft.warmup_steps / code.sft.max_steps) == (1e-5, 0.03)
    assert code.sft.packing and code.sft.max_length == 8192
