"""Tiny models of the public families, each with its own architecture, control tokens and chat template.

Templates are the published ones: those that trl ships are read from it, short ones are written here. Tokenizers have a
family's control tokens and its way with spaces, and bytes for a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_formats.chatml.served import TODAY
from tests.qwen_tokenizers import QWEN2_TEMPLATE

SMOLLM2_TEMPLATE = QWEN2_TEMPLATE.replace(
    "You are a helpful assistant.", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI4_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
OLMO2_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def of_trl(name: str) -> str:
    """A chat template that trl ships (Apache-2.0)."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Family:
    """What a family's folder holds.

    Attributes:
        model: its class in transformers, without `ForCausalLM`.
        controls: its control tokens; the first is where ids of control tokens begin.
        template: its chat template, read when asked for; None: it has none.
        bos, eos, pad: those of its tokenizer.
        ends: what its generation_config stops at.
        spaces: "bytes" (GPT-2's), "llama" (a space before every text, `▁`), "gemma" (`▁`, nothing before a text).
        rstrip: control tokens that swallow white space behind them.
        bos_first: whether its tokenizer puts the BOS token before every text.
        shape: of its configuration.
        says: `model.tokenizer.template`.
        system, several: whether its template takes system turns, and several turns.
    """

    model: str
    controls: tuple[str, ...]
    template: Callable[[], str] | None
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    ends: tuple[str, ...] = ()
    spaces: str = "bytes"
    rstrip: tuple[str, ...] = ()
    bos_first: bool = False
    shape: dict[str, Any] = field(default_factory=dict)
    says: str = "own"
    system: bool = True
    several: bool = True


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = {"controls": CHATML, "eos": "<|im_end|>", "pad": "<|endoftext|>", "ends": ("<|im_end|>", "<|endoftext|>")}
LLAMA2 = {"controls": ("<unk>", "<s>", "</s>"), "bos": "<s>", "eos": "</s>", "ends": ("</s>",), "spaces": "llama"}
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA = {"controls": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")}
GEMMA |= {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "ends": ("<eos>", "<end_of_turn>")}
GEMMA |= {"spaces": "gemma", "bos_first": True}
PHI3 = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
QWEN3_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
SERVER_ALONE = ("GPTNeoX", "Olmo2", "SmolLM3")  # vLLM runs transformers' own classes of these
SPOKEN_OLMO = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "Qwen 1.5 and 2": Family("Qwen2", template=lambda: QWEN2_TEMPLATE, **QWEN),
    "Qwen 2.5": Family("Qwen2", template=lambda: of_trl("qwen2_5"), **QWEN),
    "Qwen 3": Family("Qwen3", template=lambda: of_trl("qwen3"), several=False, **QWEN),
    "Qwen 3 MoE": Family("Qwen3Moe", template=lambda: of_trl("qwen3_instruct_2507"), shape=MOE, **QWEN),
    "Llama 2": Family("Llama", template=lambda: LLAMA2_TEMPLATE, bos_first=True, **LLAMA2),
    "Llama 3": Family(
        "Llama",
        LLAMA3,
        lambda: of_trl("llama3"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        ends=("<|end_of_text|>", "<|eot_id|>"),
        bos_first=True,
    ),
    "Llama 3.2": Family(
        "Llama",
        LLAMA3,
        lambda: of_trl("llama3_2"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        ends=("<|end_of_text|>", "<|eot_id|>"),
        bos_first=True,
        shape={"tie_word_embeddings": True},
    ),
    "Mistral": Family(
        "Mistral",
        template=lambda: MISTRAL_TEMPLATE,
        bos_first=True,
        system=False,
        shape={"sliding_window": None},
        **LLAMA2,
    ),
    "Gemma 2": Family("Gemma2", template=lambda: of_trl("gemma"), system=False, **GEMMA),
    "Gemma 3": Family("Gemma3", template=lambda: of_trl("gemma3"), **GEMMA),
    "Phi 3": Family(
        "Phi3",
        PHI3,
        lambda: of_trl("phi3"),
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        ends=("<|endoftext|>", "<|end|>"),
        spaces="llama",
        rstrip=("</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    ),
    "Phi 4": Family(
        "Phi3",
        (*CHATML, "<|im_sep|>", "<|dummy_85|>"),
        lambda: PHI4_TEMPLATE,
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|dummy_85|>",
        ends=("<|im_end|>",),
    ),
    "OLMo 2": Family(
        "Olmo2",
        SPOKEN_OLMO,
        lambda: OLMO2_TEMPLATE,
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|pad|>",
        ends=("<|endoftext|>",),
    ),
    "SmolLM 2": Family(
        "Llama",
        CHATML,
        lambda: SMOLLM2_TEMPLATE,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        ends=("<|im_end|>",),
        shape={"tie_word_embeddings": True},
    ),
    "SmolLM 3": Family("SmolLM3", template=lambda: QWEN2_TEMPLATE, **QWEN),
    "GPT-NeoX": Family(
        "GPTNeoX",
        ("<|endoftext|>", "<|padding|>"),
        None,
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        ends=("<|endoftext|>",),
        says="none",
        system=False,
        several=False,
    ),
}


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Bytes (0-255), then the control tokens."""
    if family.spaces == "bytes":
        vocabulary = {symbol: at for at, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
        for name in (*family.controls, "▁", "H", "i", "▁H", "Hi", "▁Hi", "\n", "\n\n"):
            vocabulary.setdefault(name, len(vocabulary))
        merges = [("▁", "H"), ("H", "i"), ("▁H", "i"), ("\n", "\n")]
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
        replace = normalizers.Replace(" ", "▁")
        llama = family.spaces == "llama"
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if llama else replace
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if llama else [])])
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, rstrip=name in family.rstrip) for name in family.controls]
    )
    if family.spaces == "gemma":
        backend.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    if "Qwen3" in family.model:
        backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in QWEN3_TOKENS])
    if family.bos_first:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A $B",
            special_tokens=[(family.bos, _id(backend, family.bos))],
        )
    special = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in special.items() if token is not None}
    )
    made.chat_template = family.template() if family.template else None
    return made


def served(tokenizer, turns, **options):
    """What a server reads: the template's text, encoded at once."""
    dicts = [{"role": turn.role, "content": turn.content} for turn in turns]
    template = tokenizer.chat_template.replace('strftime_now("%d %b %Y")', f'"{TODAY:%d %b %Y}"')
    text = tokenizer.apply_chat_template(dicts, chat_template=template, tokenize=False, **options)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _id(backend: Tokenizer, token: str) -> int:
    found = backend.token_to_id(token)
    assert found is not None
    return found


def model_of(family: Family, vocabulary: int, end: int | None = None) -> transformers.PreTrainedModel:
    """Of the family's architecture, tiny."""
    name = family.model
    config_class = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    shape = SHAPE | {"vocab_size": vocabulary, "pad_token_id": None, "bos_token_id": None} | family.shape
    if name in ("GPTNeoX", "Phi3", "Olmo2", "Qwen2"):
        shape.pop("head_dim")
    if name == "GPTNeoX":
        shape.pop("num_key_value_heads")
    return getattr(transformers, f"{name}ForCausalLM")(config_class(**shape, eos_token_id=end)).eval()


def save(family: Family, folder: Path, seed: int = 0) -> Path:
    """A random model and its tokenizer, as the hub would give them."""
    speaks = tokenizer(family)
    ends = speaks.convert_tokens_to_ids(list(family.ends))
    torch.manual_seed(seed)
    model = model_of(family, len(speaks), ends[0])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    speaks.save_pretrained(folder)
    return folder
