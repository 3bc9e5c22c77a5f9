"""Logits at chosen positions, and packed samples that do not see one another, on real architectures."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from align.data.collate import CausalCollator
from align.data.packing import PackedRows, PackingError
from align.trainers.causal_forward import (
    ask_at,
    block_mask,
    flattened,
    packed_inputs,
    positions,
    prove_packing,
)
from tests.align.trainers.supervised_case import PAD, causal_lm, chat_rows

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=2.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=3.0)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, resid_pdrop=0.0)
    ),
}


def make(name):
    torch.manual_seed(0)
    return MODELS[name]().double().eval()


def whole(logits, at):
    return logits


# -- logits where they are needed


@pytest.mark.parametrize("name", MODELS)
def test_chosen_logits_and_their_gradients_are_those_of_all_logits(name):
    model, ids, flat = make(name), torch.randint(1, 64, (2, 6)), torch.tensor([1, 4, 7])
    grads = []
    for sparse in (True, False):
        if sparse:
            output, logits = ask_at(model, model, {"input_ids": ids}, flat, whole)
            assert output.logits.shape == (3, 64)  # the head saw three positions
        else:
            logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[flat]
        model.zero_grad()
        logits.log_softmax(-1)[:, 5].sum().backward()
        grads.append((logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)
    assert model(input_ids=ids).logits.shape == (2, 6, 64)  # the hook is gone


def test_a_model_that_does_not_name_its_head_gives_the_same_rows():
    model, ids, flat = make("qwen3"), torch.randint(1, 64, (2, 6)), torch.tensor([0, 11])
    expected = model(input_ids=ids).logits.flatten(0, 1)[flat]
    model.get_output_embeddings = lambda: None
    output, logits = ask_at(model, model, {"input_ids": ids}, flat, whole)
    assert output.logits.shape == (2, 6, 64) and torch.equal(logits, expected)


def test_logits_of_another_length_than_the_input_are_refused():
    class Prompted(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": torch.zeros(2, 8, 4)})

    with pytest.raises(ValueError, match=r"16 rows of logits for input_ids of shape \(2, 6\)"):
        ask_at(Prompted(), Prompted(), {"input_ids": torch.zeros(2, 6)}, torch.tensor([0]), whole)


# -- packed samples


def test_positions_and_mask_by_hand():
    segments = torch.tensor([[1, 1, 2, 2, 0]])
    assert positions(segments).tolist() == [[0, 1, 0, 1, 0]]
    assert block_mask(segments)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],  # padding is seen by no token, and sees itself so that its softmax is not NaN
    ]


def test_flattening_leaves_the_padding_out_and_numbers_samples_on():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, PAD]]),
        "segments": torch.tensor([[1, 1, 2], [1, 1, 0]]),
    }
    flat, place = flattened(batch)
    assert place[[0, 1, 2, 3, 4]].tolist() == [0, 1, 2, 3, 4]
    assert flat["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert flat["segments"].tolist() == [[1, 1, 2, 3, 3]]
    assert positions(flat["segments"]).tolist() == [[0, 1, 0, 0, 1]]


def packed_logits(model, implementation, inputs=None):
    """The logits of packed rows, sample by sample, and those of the samples alone."""
    rows = chat_rows(9, seed=4)
    packed = PackedRows(rows, 40)
    assert len(packed) < 6 and max(len(pack) for pack in packed.packs) > 2
    batch = CausalCollator(PAD)(list(packed))
    batch = flattened(batch)[0] if implementation == "flash_attention_2" else batch
    with torch.no_grad():
        logits = model(**(inputs or packed_inputs)(batch, implementation, torch.float64), use_cache=False).logits
        together = logits[batch["segments"] != 0]
        order = [index for pack in packed.packs for index in pack]
        alone = torch.cat([model(input_ids=torch.tensor([rows[at]["input_ids"]])).logits[0] for at in order])
    return together, alone


@pytest.mark.parametrize("layout", ["sdpa", "eager", "flash_attention_2"])
def test_packed_logits_are_those_of_each_sample_alone(layout):
    """Flash attention's layout is run on sdpa, which reads the same position ids; its kernel needs CUDA."""
    model = causal_lm(attn_implementation="eager" if layout == "eager" else "sdpa").eval()
    together, alone = packed_logits(model, layout)
    assert bool(together.isfinite().all())
    tolerance = 1e-5 if layout == "eager" else 1e-10  # transformers' eager softmax is in float32 always
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_comparison_sees_attention_that_crosses_samples(implementation):
    def ordinary(batch, implementation, dtype):
        return {name: batch[name] for name in ("input_ids", "attention_mask")} | {
            "position_ids": positions(batch["segments"])
        }

    together, alone = packed_logits(causal_lm(attn_implementation=implementation).eval(), implementation, ordinary)
    assert float((together - alone).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_qwen2_is_proven_and_left_as_it_was(implementation, dtype, spread):
    model = causal_lm(dtype, attn_implementation=implementation, initializer_range=spread).train()
    before = torch.get_rng_state()
    prove_packing(model, 128)
    assert model.training and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["qwen3", "cohere", "granite", "gpt2"])
def test_other_architectures_are_proven(name):
    prove_packing(make(name), 128)


def test_a_model_that_ignores_the_mask_is_refused():
    model = causal_lm()
    plain = model.forward

    def forgetful(attention_mask=None, **inputs):
        return plain(attention_mask=torch.ones_like(inputs["input_ids"]), **inputs)

    model.forward = forgetful
    with pytest.raises(PackingError, match="packed samples change one another's logits"):
        prove_packing(model, 128)


def test_recurrent_models_and_short_windows_and_unknown_attention_are_refused():
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(PackingError, match=r"does not take packed samples .*: switch packing off"):
        prove_packing(mamba, 128)
    with pytest.raises(PackingError, match=r"looks back 16 tokens at most, which packed rows of 128"):
        prove_packing(Gemma2ForCausalLM(Gemma2Config(**SHAPE, sliding_window=16)), 128)
    flexible = causal_lm()
    flexible.config._attn_implementation = "flex_attention"
    with pytest.raises(PackingError, match="attn_implementation 'flex_attention': use sdpa"):
        prove_packing(flexible, 128)
