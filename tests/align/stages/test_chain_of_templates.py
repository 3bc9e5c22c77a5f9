"""sft, rm and ppo of models that do not speak ChatML, whole chains: what comes out is merged and exported, and says in
stock transformers what was trained."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align import cli
from align.data.encode import encode_prompts
from align.models.tokenizer import load_tokenizer
from align.recipe import Recipe
from align.stages.chain import run_chain
from data_formats.chat_format import chat_format
from data_formats.records import Message
from reward.protocol import Sample
from reward.sources import load_reward
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from tests.align.stages.small_chain import write_data
from tests.families import FAMILIES, save, served

pytestmark = pytest.mark.slow
CASES = {
    "own": ("Llama 3", {"template": "own"}, "none"),
    "own-lora": ("Phi 3", {"template": "own"}, "lora"),
    "none-lora": ("GPT-NeoX", {"template": "none"}, "lora"),
    "add-chatml": ("Llama 3.2", {"add_chatml": True}, "none"),
    "add-chatml-lora": ("Gemma 2", {"add_chatml": True}, "lora"),
}
COMMON = {"max_length": 128, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.01, "max_steps": 2}
COMMON |= {"holdout": 0.3}
PPO = {
    "data": ["prompts.jsonl"],
    "eval_data": ["prompts.jsonl"],
    "ptx_data": ["documents.jsonl"],
    "ptx_coef": 0.1,
    "ptx_ratio": 1,
    "ptx_max_length": 32,
    "num_iterations": 2,
    "rollout_batch_size": 4,
    "num_mini_batches": 1,
    "micro_batch_size": 2,
    "critic_warmup_steps": 0,
    "rollout": {"engine": "hf", "max_prompt_length": 100, "max_completion_length": 8},
    "policy": {"learning_rate": 0.01},
    "critic": {"learning_rate": 0.01},
}
TALK = (Message("user", "Which colour has the hat?"), Message("assistant", "It is red."))


@pytest.fixture(scope="module", params=CASES)
def chain(request, tmp_path_factory):
    """(the run's folder, whether there are adapters)"""
    name, tokenizer, adapter = CASES[request.param]
    folder = tmp_path_factory.mktemp("chain")
    write_data(folder)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in "abcdef"))
    model = {"path": str(save(FAMILIES[name], folder / "model")), "tokenizer": tokenizer, "adapter": adapter}
    lora = {"lora": {"rank": 2}} if adapter == "lora" else {}
    told = {
        "name": request.param,
        "output_dir": str(folder / "run"),
        "data_root": str(folder),
        "seed": 1,
        "model": model | lora,
        "sft": COMMON | {"data": ["demonstrations.jsonl"], "eval_num_replies": 2, "max_completion_length": 8},
        "rm": COMMON | {"data": ["comparisons.jsonl"], "center_scores": True},
        "ppo": PPO,
    }
    run_chain(Recipe.model_validate_json(json.dumps(told)))
    return folder / "run", adapter == "lora"


def test_every_stage_speaks_alike_and_the_first_ratio_is_one(chain):
    run, _ = chain
    tokenizers = [load_tokenizer(run / stage / "model") for stage in ("sft", "rm", "ppo")]
    assert len({chat_format(tokenizer).stop_ids for tokenizer in tokenizers}) == 1
    lines = [json.loads(line) for line in (run / "ppo/metrics.jsonl").read_text().splitlines()]
    ratios = [line[f"policy/ratio_{side}"] for line in lines if "score/mean" in line for side in ("min", "max")]
    assert ratios == pytest.approx([1.0] * 4, abs=1e-5)
    assert all(line["policy/grad_norm"] > 0 for line in lines if "score/mean" in line)


def test_the_policy_is_that_of_stock_transformers(chain, tmp_path):
    run, adapted = chain
    folder = run / "ppo/model"
    if adapted:
        assert cli.main(["merge", str(folder), str(tmp_path / "merged")]) == 0
        folder = tmp_path / "merged"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    trained = load_tokenizer(run / "ppo/model")
    prompt = encode_prompts(trained, [TALK[:1]])[0]
    assert served(tokenizer, TALK[:1], add_generation_prompt=True) == prompt
    stops = chat_format(trained).stop_ids
    assert model.generation_config.eos_token_id == list(stops)
    if adapted:
        peft = AutoPeftModelForCausalLM.from_pretrained(run / "ppo/model").eval()
        with torch.no_grad():
            ours, theirs = (one(torch.tensor([prompt])).logits for one in (model, peft))
        torch.testing.assert_close(ours, theirs[..., : ours.shape[-1]], rtol=1e-3, atol=2e-3)
    greedy = SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=stops)
    (reply,) = HFEngine(model, trained.pad_token_id).generate([prompt], greedy)
    asked = torch.tensor([prompt])
    found = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=12, do_sample=False)
    assert found[0, len(prompt) :].tolist() == list(reply.token_ids)


def test_the_reward_model_is_that_of_stock_transformers(chain, tmp_path):
    run, _ = chain
    judge = load_reward(run / "rm/model")
    row = json.loads((run / "rm/eval.jsonl").read_text().splitlines()[0])
    prompt = tuple(Message(**turn) for turn in row["prompt"])
    assert judge.score([Sample(prompt, row["chosen"])])[0] == pytest.approx(row["chosen_score"], abs=1e-3)
    assert cli.main(["export-reward", str(run / "rm/model"), str(tmp_path / "out")]) == 0
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = served(exported, TALK)
    assert ids == judge.token_rows([Sample(TALK[:1], TALK[1].content)])[0]
    with torch.no_grad():
        raw = classifier(torch.tensor([ids])).logits[0, 0]
    wanted = (raw - judge.model.shift) / judge.model.scale
    assert judge.score([Sample(TALK[:1], TALK[1].content)])[0] == pytest.approx(float(wanted), abs=1e-3)
