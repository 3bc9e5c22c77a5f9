"""A constructed model that says "a" and then `<|im_end|>`, whatever it is asked; its folder says that it ends at
`<|endoftext|>` alone, as the folders of base models do."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2ForCausalLM

from tests.tiny_models import byte_tokenizer, qwen2_config

END_OF_TEXT, IM_END = 256, 258
WIDTH = 64  # what bitsandbytes stores in 4 bits
GENERATION = {"eos_token_id": END_OF_TEXT, "do_sample": False, "temperature": 0.7, "top_p": 0.9}  # as Vicuna's


def save_speaker(folder: Path) -> Path:
    """Layers of zeros; after "a" the head wants `<|im_end|>`, after anything else "a", by 40 nats."""
    tokenizer = byte_tokenizer()
    (letter,) = tokenizer("a")["input_ids"]
    shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "max_position_embeddings": 600}
    model = Qwen2ForCausalLM(qwen2_config(**shape, eos_token_id=END_OF_TEXT, tie_word_embeddings=False))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.embed_tokens.weight[letter] = -1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[letter], model.lm_head.weight[IM_END] = 40 / WIDTH, -40 / WIDTH
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def says(folder: Path, told: GenerationConfig | None = None) -> str:
    """What plain `generate` gives of the folder, with its control tokens; at most 8 tokens."""
    tokenizer = byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer("say it")["input_ids"]])
    told = {} if told is None else {"generation_config": told}
    return tokenizer.decode(model.generate(ids, max_new_tokens=8, **told)[0, ids.shape[1] :])
