"""Qwen-1 checkpoints against the architecture as its report and its published code describe it, written here anew, and
its vocabulary against a plain byte-pair encoder."""

import base64
import json
import math
import unicodedata
from itertools import pairwise

import pytest
import regex
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import cli
from align.models.qwen1 import CONTROL_TOKENS, ConversionError, convert_qwen, load_vocabulary
from align.models.tokenizer import load_tokenizer, train_tokenizer
from align.runtime.errors import AlignError, MissingFileError, StorageError
from reward.errors import ModelFileError

SEQ_LENGTH, HEADS, HIDDEN, UNITS, LAYERS = 24, 3, 24, 20, 2
CONFIG = {
    "model_type": "qwen",
    "architectures": ["QWenLMHeadModel"],
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * UNITS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 500,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "no_bias": True,
    "tie_word_embeddings": False,
    "seq_length": SEQ_LENGTH,
    "max_position_embeddings": 4 * SEQ_LENGTH,
    "use_logn_attn": True,
    "use_dynamic_ntk": True,
}
TEXTS = (
    "The cat's tail, they'll see: 1234 apples!  \n\n  x = f(y)\t",
    "我们在北京学习语言模型。他说：“你好吗？”",
    "Привет, мир! Как дела?",
    "cafe\u0301 \u1e9b\u0323 naïve Straße ﬁn",
    "こんにちは世界 안녕하세요 नमस्ते مرحبا",
    "🙂👩\u200d👩\u200d👧 \r\n\r\n   end",
)
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
PATTERN += r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def ranks_of(texts, size):
    """Tokens as bytes, in the order of their ranks; those of a byte-level BPE trained on the texts."""
    tokenizer = train_tokenizer(texts * 3, size)
    byte_of = {char: bytes([byte]) for byte, char in enumerate(_alphabet())}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])
    return [b"".join(byte_of[char] for char in token) for token, id_ in vocabulary if id_ > 2]


def _alphabet():
    """How byte-level BPEs write the 256 bytes (GPT-2): printable Latin-1 as it is, the others from U+0100 on."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def encoded(text, ranks):
    """tiktoken's rule: of all neighbours whose join is a token, those of the lowest rank are joined first."""
    ids = []
    for piece in regex.findall(PATTERN, unicodedata.normalize("NFC", text)):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            joins = [(ranks.get(a + b, math.inf), at) for at, (a, b) in enumerate(pairwise(parts))]
            rank, at = min(joins, default=(math.inf, 0))
            if rank == math.inf:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def tokens():
    return ranks_of(TEXTS, 420)


@pytest.fixture
def checkpoint(tmp_path, tokens):
    """Writes a Qwen-1 folder; returns its weights by their own names."""

    def write(shards=1, **more):
        folder, generator = tmp_path / "qwen", torch.Generator().manual_seed(0)
        folder.mkdir(exist_ok=True)
        vocabulary = len(tokens) + len(CONTROL_TOKENS) + 5

        def drawn(*shape, scale=0.3):
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        weights = {"transformer.wte.weight": drawn(vocabulary, HIDDEN), "lm_head.weight": drawn(vocabulary, HIDDEN)}
        weights["transformer.ln_f.weight"] = 1 + drawn(HIDDEN)
        for layer in range(LAYERS):
            at = f"transformer.h.{layer}"
            weights |= {f"{at}.{name}.weight": 1 + drawn(HIDDEN) for name in ("ln_1", "ln_2")}
            weights[f"{at}.attn.c_attn.weight"] = drawn(3 * HIDDEN, HIDDEN)
            weights[f"{at}.attn.c_attn.bias"] = drawn(3 * HIDDEN)
            weights[f"{at}.attn.c_proj.weight"] = drawn(HIDDEN, HIDDEN)
            weights[f"{at}.mlp.c_proj.weight"] = drawn(HIDDEN, UNITS)
            weights |= {f"{at}.mlp.{name}.weight": drawn(UNITS, HIDDEN) for name in ("w1", "w2")}
        extra = {f"transformer.h.{layer}.attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(LAYERS)}
        saved = weights | extra
        if shards == 1:
            save_file(saved, folder / "model.safetensors")
        else:
            files = {name: f"model-0000{1 + at % shards}-of-0000{shards}.safetensors" for at, name in enumerate(saved)}
            for file in set(files.values()):
                save_file({name: saved[name] for name in files if files[name] == file}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": vocabulary} | more))
        lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
        (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
        return folder, weights

    return write


def qwen1_logits(weights, ids_T):
    """Logits of one row, as modeling_qwen.py computes them in evaluation: norms and rotations in float32, the rest in
    the weights' float64."""
    size, positions = HIDDEN // HEADS, torch.arange(len(ids_T))
    frequencies = 1.0 / (CONFIG["rotary_emb_base"] ** (torch.arange(0, size, 2).float() / size))
    row, alpha = len(ids_T), 1.0
    if CONFIG["use_dynamic_ntk"]:
        alpha = max(2 ** math.ceil(math.log(row / SEQ_LENGTH, 2) + 1) - 1, 1)
    assert alpha == 1.0
    logn_T = [math.log(i, SEQ_LENGTH) if i > SEQ_LENGTH else 1.0 for i in range(1, row + 1)]
    angles_TD = torch.cat([positions[:, None].float() * frequencies] * 2, dim=-1)

    def norm(x, name):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + CONFIG["layer_norm_epsilon"])
        return wide.to(x.dtype) * weights[f"transformer.{name}.weight"]

    def turned(x_THD):
        first, second = x_THD.chunk(2, dim=-1)
        other = torch.cat([-second, first], dim=-1)
        return x_THD * angles_TD.cos()[:, None].double() + other * angles_TD.sin()[:, None].double()

    x_Td = weights["transformer.wte.weight"][ids_T]
    future_TT = torch.ones(row, row, dtype=torch.bool).triu(1)
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        mixed = norm(x_Td, f"h.{layer}.ln_1") @ weights[f"{at}.attn.c_attn.weight"].T
        mixed = mixed + weights[f"{at}.attn.c_attn.bias"]
        query, key, value = (part.view(row, HEADS, size) for part in mixed.split(HIDDEN, dim=-1))
        query, key = turned(query) * torch.tensor(logn_T).double()[:, None, None], turned(key)
        scores_HTT = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(size)
        shares_HTT = scores_HTT.masked_fill(future_TT, -math.inf).softmax(-1)
        given = torch.einsum("hqk,khd->qhd", shares_HTT, value).reshape(row, HIDDEN)
        x_Td = x_Td + given @ weights[f"{at}.attn.c_proj.weight"].T
        inner = norm(x_Td, f"h.{layer}.ln_2")
        w1, w2 = (inner @ weights[f"{at}.mlp.{name}.weight"].T for name in ("w1", "w2"))
        x_Td = x_Td + (w1 * F.silu(w2)) @ weights[f"{at}.mlp.c_proj.weight"].T
    return norm(x_Td, "ln_f") @ weights["lm_head.weight"].T


@pytest.mark.parametrize("shards", [1, 3])
def test_the_logits_are_equal_up_to_the_trained_length(checkpoint, tmp_path, shards):
    folder, weights = checkpoint(shards)
    done = convert_qwen(folder, tmp_path / "out")
    assert done.extrapolates and done.max_length == SEQ_LENGTH
    assert done.parameters == sum(weight.numel() for weight in weights.values())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="sdpa")
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.dtype == torch.float64
    assert model.config.max_position_embeddings == SEQ_LENGTH
    for length in (1, 7, SEQ_LENGTH):
        ids_T = torch.randint(0, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            found = model(input_ids=ids_T[None]).logits[0]
        torch.testing.assert_close(found, qwen1_logits(weights, ids_T), rtol=0, atol=1e-10)


def test_the_vocabulary_gives_the_same_ids(checkpoint, tmp_path, tokens):
    folder, _ = checkpoint()
    convert_qwen(folder, tmp_path / "out")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for tokenizer in (load_vocabulary(folder / "qwen.tiktoken"), AutoTokenizer.from_pretrained(tmp_path / "out")):
        for text in (*TEXTS, " ".join(TEXTS), "unseen Wörter 漢字 ✓"):
            expected = encoded(text, ranks)
            assert tokenizer(text)["input_ids"] == expected
            assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)
        for at, token in enumerate(CONTROL_TOKENS):
            assert tokenizer.convert_tokens_to_ids(token) == len(tokens) + at
            assert tokenizer(f"a{token}b")["input_ids"] == [ranks[b"a"], len(tokens) + at, ranks[b"b"]]
    assert CONTROL_TOKENS[:4] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>")
    assert CONTROL_TOKENS[-1] == "<|extra_204|>"
    assert load_tokenizer(tmp_path / "out").eos_token == "<|im_end|>"


def test_the_command_says_what_is_left_out(checkpoint, tmp_path, capsys):
    folder, _ = checkpoint()
    assert cli.main(["convert-qwen", str(folder), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert "LogN scaling and dynamic NTK are left out: up to the 24 tokens" in said.out + said.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    folder, _ = checkpoint(use_logn_attn=False, use_dynamic_ntk=False)
    assert convert_qwen(folder, tmp_path / "plain").max_length == 4 * SEQ_LENGTH
    with pytest.raises(StorageError, match="holds something already"):
        convert_qwen(folder, tmp_path / "plain")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"no_bias": False}, "config.json says no_bias False, and Qwen2 can only be as with no_bias True"),
        ({"rotary_pct": 0.25}, "config.json says rotary_pct 0.25"),
        ({"kv_channels": 16}, "config.json says kv_channels 16"),
        ({"model_type": "qwen2"}, "no Qwen-1 checkpoint: its config.json says model_type 'qwen2'"),
        ({"quantization_config": {"bits": 4}}, "holds quantised weights"),
        ({"hidden_size": None}, "config.json is not that of a Qwen-1 model"),
        ({"hidden_size": 48, "kv_channels": 16}, "holds other weights than its config.json says"),
    ],
)
def test_what_qwen2_cannot_be_is_refused(checkpoint, tmp_path, more, sentence):
    folder, _ = checkpoint(**more)
    with pytest.raises(AlignError, match=sentence):
        convert_qwen(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoint(checkpoint, tmp_path):
    folder, weights = checkpoint()
    save_file({"transformer.visual.proj": torch.ones(2), **weights}, folder / "model.safetensors")
    with pytest.raises(ConversionError, match=r"no place for: transformer\.visual\.proj"):
        convert_qwen(folder, tmp_path / "out")
    for text in ("YQ== 0\n\n", "YQ== one", "%% 0", "YQ== 5", "YQ== 0"):
        (folder / "qwen.tiktoken").write_text(text)
        with pytest.raises(ModelFileError, match=r"qwen\.tiktoken.* copy"):
            convert_qwen(folder, tmp_path / "out")
    (folder / "qwen.tiktoken").unlink()
    with pytest.raises(MissingFileError, match=r"holds no qwen\.tiktoken"):
        convert_qwen(folder, tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin, a pickle, which is not loaded"):
        convert_qwen(folder, tmp_path / "out")
