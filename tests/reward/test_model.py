import json
import math

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from reward.errors import ModelFileError
from reward.losses import pairwise_logistic
from reward.model import RewardModel
from reward.pooling import last_counted
from tests.ranks import on_ranks
from tests.tiny_models import ragged_ids, save_causal_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base):
    torch.manual_seed(1)
    return RewardModel.from_backbone(base)


def padded(rows, side, filler):
    """Rows padded with random ids, so that a score that looked at them would differ."""
    width = max(map(len, rows)) + 2
    generator = torch.Generator().manual_seed(filler)
    ids, mask = [], []
    for row in rows:
        pad = torch.randint(0, 259, (width - len(row),), generator=generator).tolist()
        ids.append(pad + row if side == "left" else row + pad)
        ones, zeros = [1] * len(row), [0] * len(pad)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(ids), torch.tensor(mask)


def alone(model, rows):
    return torch.cat([model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in rows])


def test_last_counted_reads_the_mask_on_either_side():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert last_counted(mask).tolist() == [1, 3, 3, 2]
    assert last_counted(mask.bool()).tolist() == [1, 3, 3, 2]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sequence_scores_the_same_alone_and_padded(base, side, attention):
    torch.manual_seed(1)
    model = RewardModel.from_backbone(base, attn_implementation=attention)
    rows = ragged_ids()
    expected = alone(model, rows)
    assert expected.std() > 0.05  # the comparison below means something
    for filler in (0, 1):
        torch.testing.assert_close(model(*padded(rows, side, filler)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_learned_positions_count_from_the_mask_too(tmp_path, side):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = RewardModel.from_backbone(tmp_path)
    assert model.config.resid_pdrop == model.config.embd_pdrop == model.config.attn_pdrop == 0.0
    rows = ragged_ids()
    torch.testing.assert_close(model(*padded(rows, side, 0)), alone(model, rows), rtol=1e-5, atol=1e-5)


def test_score_is_head_on_the_end_state_minus_shift(base, model):
    row = ragged_ids((7,))[0]
    model.shift.fill_(0.75)
    state = AutoModel.from_pretrained(base)(torch.tensor([row])).last_hidden_state[0, -1]
    expected = sum(w * s for w, s in zip(model.head.weight[0].tolist(), state.tolist(), strict=True)) - 0.75
    assert alone(model, [row]).item() == pytest.approx(expected, abs=1e-5)


def test_head_is_drawn_from_the_global_generator(base):
    def head(seed):
        torch.manual_seed(seed)
        return RewardModel.from_backbone(base).head.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_scores_are_bit_equal(base, tmp_path, dtype):
    torch.manual_seed(1)
    model = RewardModel.from_backbone(base, dtype=dtype)
    model.shift.fill_(-0.1234567)
    batch = padded(ragged_ids(), "right", 0)
    model.save_pretrained(tmp_path / "rm")
    again = RewardModel.from_pretrained(tmp_path / "rm")
    assert again.backbone.dtype == dtype
    assert torch.equal(again(*batch), model(*batch))
    assert again(*batch).dtype == torch.float32
    assert not again.training


def test_a_model_cast_to_bfloat16_keeps_head_shift_and_frequencies_and_reloads_bit_equal(model, tmp_path):
    model.shift.fill_(0.1234567)
    head, frequencies = model.head.weight.clone(), model.backbone.rotary_emb.inv_freq.clone()
    model.to(torch.bfloat16)
    assert model.backbone.dtype == torch.bfloat16
    assert torch.equal(model.head.weight, head)
    assert model.shift.item() == pytest.approx(0.1234567, abs=1e-8)
    assert torch.equal(model.backbone.rotary_emb.inv_freq, frequencies)
    batch = padded(ragged_ids(), "left", 0)
    model.save_pretrained(tmp_path)
    assert torch.equal(RewardModel.from_pretrained(tmp_path)(*batch), model(*batch))


def test_head_computes_in_float32_under_autocast(model):
    states = torch.randn(4, 16)
    outside = model.head(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.backbone.layers[0].mlp.gate_proj(states).dtype == torch.bfloat16
        assert torch.equal(model.head(states), outside)
        scores = model(*padded(ragged_ids(), "right", 0))
    assert scores.dtype == torch.float32


def test_state_dict_names_and_config(model):
    names = set(model.state_dict())
    assert {"head.weight", "shift", "backbone.embed_tokens.weight"} <= names
    assert model.config.model_type == "qwen2"
    assert model.get_input_embeddings() is model.backbone.embed_tokens


def test_gradient_checkpointing_passes_through_and_changes_no_gradient(model):
    batch = padded(ragged_ids(), "right", 0)
    model.train()
    model(*batch).sum().backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    model(*batch).sum().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name])
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def learn_under_ddp(base, store):
    model = RewardModel.from_backbone(base)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    ids_BT, mask_BT = torch.tensor([[5, 6, 7, 8], [9, 6, 7, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    scores_B = DistributedDataParallel(model)(ids_BT, mask_BT)
    pairwise_logistic(scores_B[:1], scores_B[1:]).mean().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.slow
def test_every_parameter_learns_under_ddp(base, tmp_path):
    on_ranks(1, learn_under_ddp, base, tmp_path / "store")


def test_accelerate_prepares_it_with_bfloat16_autocast(model, tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    batch = padded(ragged_ids(), "right", 0)
    plain = model(*batch)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        scores = prepared(*batch)
        assert scores.dtype == torch.float32
        assert not torch.equal(scores, plain)  # autocast was on
        torch.testing.assert_close(scores, plain, rtol=0.05, atol=0.05)
        accelerator.backward(scores.sum())
        optimizer.step()
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False).save_pretrained(tmp_path)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(RewardModel.from_pretrained(tmp_path)(*batch), model(*batch))


def test_a_transformers_trainer_trains_it(model, tmp_path):
    class Pairs(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            scores = model(inputs["input_ids"], inputs["attention_mask"])
            return pairwise_logistic(*scores.chunk(2)).mean()

    def collate(rows):
        ids, mask = padded([row["chosen"] for row in rows] + [row["rejected"] for row in rows], "right", 0)
        return {"input_ids": ids, "attention_mask": mask}

    pairs = [{"chosen": [good, 5, 258], "rejected": [good + 100, 5, 9, 258]} for good in range(32)]
    arguments = TrainingArguments(
        tmp_path, use_cpu=True, per_device_train_batch_size=8, num_train_epochs=4, learning_rate=1e-2, report_to=[],
        remove_unused_columns=False, gradient_checkpointing=True, disable_tqdm=True, save_strategy="epoch",
        save_total_limit=1, seed=0,
    )  # fmt: skip
    Pairs(model, arguments, train_dataset=pairs, data_collator=collate).train()
    model.eval()
    batch = collate(pairs)
    chosen, rejected = model(**batch).chunk(2)
    assert (chosen > rejected).float().mean() > 0.9
    other = RewardModel(AutoModel.from_config(model.config))
    from safetensors.torch import load_file

    other.load_state_dict(load_file(next(tmp_path.glob("checkpoint-*")) / "model.safetensors"))
    assert torch.equal(other.eval()(**batch), model(**batch))


def test_saving_a_gathered_state_dict_writes_that_state(model, tmp_path):
    state = {name: value + 0.5 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.head.weight, state["head.weight"])
    assert torch.equal(loaded.backbone.norm.weight, state["backbone.norm.weight"])


def test_continuing_from_an_own_folder_keeps_the_head_and_a_backbone_load_does_not(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert RewardModel.is_saved_at(tmp_path)
    assert torch.equal(RewardModel.from_pretrained(tmp_path).head.weight, model.head.weight)
    assert not torch.equal(RewardModel.from_backbone(tmp_path).head.weight, model.head.weight)


def test_the_pad_embedding_learns(tmp_path):
    save_causal_lm(tmp_path, pad_token_id=256)
    model = RewardModel.from_backbone(tmp_path)
    ids, mask = padded(ragged_ids(), "right", 0)
    model(ids, mask).sum().backward()
    assert model.get_input_embeddings().weight.grad[256].abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": "median"}, "pooling"),
        ({"shift": None}, "shift"),
        ({"shift": math.nan}, "shift"),
        ({"format": 2}, "format"),
        ({"hidden_size": 8}, "head.safetensors"),
    ],
)
def test_settings_that_are_not_understood_are_named(model, tmp_path, change, words):
    model.save_pretrained(tmp_path)
    file = tmp_path / "reward_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelFileError, match=words):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "head.safetensors", "reward_config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_torn_folder_is_one_error_naming_the_file(model, tmp_path, name, damage):
    model.save_pretrained(tmp_path)
    file = tmp_path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -9])
    with pytest.raises(ModelFileError) as caught:
        RewardModel.from_pretrained(tmp_path)
    assert name in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
