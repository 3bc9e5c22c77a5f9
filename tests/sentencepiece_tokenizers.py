"""Small tokenizers after Llama's: "▁" for a space, bytes for what the vocabulary lacks, `<s>` before every text."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import CONTROLS

WORDS = "system user assistant Say 12 things in lines One, two. three And? Be brief: line. what it is " * 3
SPACES = ("first", "always", "never", "legacy", "byte_level")  # how one comes before a text


def spaced_tokenizer(spaces: str, *, bos: bool = False, template: str | None = None, **marks: Any) -> Any:
    """`<s>` has id 0, the three ChatML tokens 1, 2, 3; `marks` are options of the control tokens (`rstrip=True`)."""
    backend = Tokenizer(models.BPE())
    if spaces == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")  # to train on words alone
    elif spaces == "byte_level":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if spaces == "byte_level" else []
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS], trainer)
    state = json.loads(backend.to_str())
    vocabulary: dict[str, int] = {}
    names = ["<s>", *CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256)), *state["model"]["vocab"]]
    for name in names:
        vocabulary.setdefault(name, len(vocabulary))
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    backend.model = models.BPE(vocabulary, merges, byte_fallback=spaces != "byte_level")
    if spaces == "legacy":
        backend.pre_tokenizer = None
    backend.decoder = decoders.ByteLevel() if spaces == "byte_level" else decoders.Metaspace()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False, **marks) for name in CONTROLS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = template
    return made
