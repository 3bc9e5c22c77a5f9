import math

import pytest
import torch

from align.data.collate import CausalCollator
from align.data.packing import PackingError
from align.functional.reductions import REDUCTIONS
from align.trainers import causal_forward, sft
from align.trainers.sft import SFTTrainer
from data_formats.errors import DataError
from tests.align.trainers.supervised_case import (
    BATCH,
    PAD,
    Gradients,
    causal_lm,
    chat_rows,
    make_trainer,
    sft_rows,
    step_gradients,
)
from tests.tiny_models import byte_tokenizer

ROWS = sft_rows(BATCH)
CHATS = chat_rows(BATCH, seed=1)


def nll_by_hand(model, rows):
    """Sum of -log p(token) over labelled tokens, row by row without padding, and their number."""
    total, count = 0.0, 0
    for row in rows:
        logps_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for at, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - logps_TV[at - 1, label], count + 1
    return total, count


@pytest.fixture(scope="module")
def expected():
    model = causal_lm()
    total, count = nll_by_hand(model, ROWS)
    (total / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_gradients_are_those_of_the_mean_over_all_tokens_of_the_step(tmp_path, expected, micro):
    found = step_gradients("sft", tmp_path, ROWS, micro=micro)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("micro", [1, 8])
def test_the_max_z_loss_is_that_of_plain_autograd_and_is_logged(tmp_path, micro):
    model, nll, squares, count = causal_lm(), 0.0, 0.0, 0
    for row in ROWS:
        logits_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        for at, label in enumerate(row["labels"]):
            if label != -100:
                nll, count = nll - logits_TV[at - 1].log_softmax(-1)[label], count + 1
                squares += logits_TV[at - 1].max() ** 2
    loss = (nll + 0.3 * squares) / count
    loss.backward()
    trainer, gradients = make_trainer("sft", tmp_path, ROWS, micro=micro, trainer={"max_z_coef": 0.3}), Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    assert_same_gradients(gradients.steps[0], {name: p.grad for name, p in model.named_parameters()})
    (line,) = (line for line in trainer.state.log_history if "max_z" in line)
    assert line["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert line["max_z"] == pytest.approx(float(squares) / count, rel=1e-9)


# -- loss reductions and packing


def turn_means(model, row):
    """Mean -log p of the tokens of each turn with loss, in order."""
    logps_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
    means = []
    for turn in sorted(set(row["turns"]) - {0}):
        at = [t for t in range(1, len(row["labels"])) if row["turns"][t] == turn]
        means.append(-sum(logps_TV[t - 1, row["labels"][t]] for t in at) / len(at))
    return means


def reduced_by_hand(model, rows, reduction):
    """The loss of one optimizer step by the words of each definition; prefixes are really made and run."""
    if reduction == "token_mean":
        total, count = nll_by_hand(model, rows)
        return total / count
    if reduction == "turn_mean":
        losses = [loss for row in rows for loss in turn_means(model, row)]
    elif reduction == "session_mean":
        losses = [sum(means) / len(means) for means in (turn_means(model, row) for row in rows)]
    else:
        losses = []
        for row in rows:
            for turn in sorted(set(row["turns"]) - {0}):
                end = max(t for t in range(len(row["turns"])) if row["turns"][t] == turn) + 1
                means = turn_means(model, {name: values[:end] for name, values in row.items()})
                losses.append(sum(means) / len(means))
    return sum(losses) / len(losses)


@pytest.fixture(scope="module", params=REDUCTIONS)
def reduced(request):
    """(reduction, loss, gradients) of one step over all chats, by hand."""
    model = causal_lm()
    loss = reduced_by_hand(model, CHATS, request.param)
    loss.backward()
    return request.param, float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(found, expected, rounded=False):
    """To 1e-9 in float64; to 1e-6 where something is `rounded`, by eager attention (its softmax is in float32) or by
    the norms (theirs too) of prefixes run one by one. Attention across samples is off in the first digit."""
    assert found.keys() == expected.keys()
    rtol, atol = (1e-5, 1e-6) if rounded else (1e-9, 1e-12)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("micro", [1, 8])
def test_gradients_of_every_reduction_do_not_depend_on_the_micro_batch(tmp_path, reduced, micro):
    reduction, _, expected = reduced
    found = step_gradients("sft", tmp_path, CHATS, micro=micro, trainer={"loss_reduction": reduction})
    assert_same_gradients(found, expected, rounded=reduction == "prefix_mean")


@pytest.mark.parametrize(
    ("attention", "flat", "micro"), [("sdpa", True, 1), ("sdpa", True, 4), ("sdpa", False, 4), ("eager", False, 1)]
)
def test_packed_loss_and_gradients_are_the_unpacked_ones(tmp_path, reduced, attention, flat, micro, monkeypatch):
    reduction, loss, expected = reduced
    if not flat:
        monkeypatch.setattr(sft, "takes_flat", lambda *_: False)
    packing = {"loss_reduction": reduction, "packing": True, "max_length": 48}
    model = causal_lm(attn_implementation=attention)
    trainer = make_trainer("sft", tmp_path, CHATS, micro=micro, model=model, trainer=packing)
    assert len(trainer.train_dataset) in (4, 5) and trainer.packing_report["rows"] == BATCH
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    assert len(gradients.steps) == 1  # all packs fit into one step
    assert trainer._is_flat is flat
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(gradients.steps[0], expected, rounded=attention == "eager" or reduction == "prefix_mean")


def test_flat_rows_have_the_gradients_of_padded_ones_and_no_padding(tmp_path, monkeypatch):
    found, tokens = [], []
    for flat in (True, False):
        if not flat:
            monkeypatch.setattr(sft, "takes_flat", lambda *_: False)
        model = causal_lm()
        found.append(step_gradients("sft", tmp_path, CHATS, micro=8, model=model))
        counted = []
        model.model.embed_tokens.register_forward_hook(lambda _, args, out, to=counted: to.append(args[0].numel()))
        trainer = make_trainer("sft", tmp_path, CHATS, micro=8, model=model)
        trainer.compute_loss(model, trainer.data_collator(CHATS))
        tokens.append(counted[-1])
    assert_same_gradients(*found)
    lengths = [len(row["input_ids"]) for row in CHATS]
    assert tokens == [sum(lengths), len(lengths) * max(lengths)]


def test_gradients_of_attention_across_samples_would_be_seen(tmp_path, monkeypatch):
    one_sample = causal_forward.block_mask  # a row as a single sample: causal, without blocks
    monkeypatch.setattr(causal_forward, "block_mask", lambda segments_BT: one_sample(segments_BT.clamp(max=1)))
    monkeypatch.setattr(sft, "prove_packing", lambda model, max_length: None)
    monkeypatch.setattr(sft, "takes_flat", lambda *_: False)
    crossed = step_gradients("sft", tmp_path, CHATS, micro=8, trainer={"packing": True, "max_length": 48})
    apart = step_gradients("sft", tmp_path, CHATS, micro=8)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_gradients(crossed, apart, rounded=True)


def test_packed_float32_gradients_on_the_default_attention(tmp_path, reduced):
    reduction, _, expected = reduced
    packing = {"loss_reduction": reduction, "packing": True}
    found = step_gradients("sft", tmp_path, CHATS, micro=8, model=causal_lm(torch.float32), trainer=packing)
    for name in expected:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-3, atol=1e-5)


def test_every_row_is_seen_once_an_epoch_and_packs_are_shuffled(tmp_path):
    rows = chat_rows(40, seed=3)
    trainer = make_trainer("sft", tmp_path, rows, micro=2, trainer={"packing": True, "max_length": 60})
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        seen = []
        for batch in loader:
            for ids, segments in zip(batch["input_ids"], batch["segments"], strict=True):
                seen += [tuple(ids[segments == n].tolist()) for n in range(1, int(segments.max()) + 1)]
        epochs.append(seen)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tuple(row["input_ids"]) for row in rows)


def test_held_out_loss_is_the_token_mean_of_unpacked_rows_whatever_is_trained(tmp_path):
    heldout = chat_rows(7, seed=9)
    options = {"loss_reduction": "session_mean", "packing": True}
    trainer = make_trainer("sft", tmp_path, CHATS, micro=4, heldout=heldout, trainer=options)
    with torch.no_grad():
        total, count = nll_by_hand(causal_lm(), heldout)
    metrics = trainer.evaluate()
    assert metrics["eval_tokens"] == count
    assert metrics["eval_loss"] == pytest.approx(float(total / count), rel=1e-9)


def test_what_cannot_be_had_together_is_refused(tmp_path):
    def refused(match, error=PackingError, rows=CHATS, **options):
        with pytest.raises(error, match=match):
            make_trainer("sft", tmp_path, rows, micro=8, trainer=options)

    refused("choose packing or group_by_length", packing=True, group_by_length=True)
    refused("found 'mean'", error=ValueError, loss_reduction="mean")
    refused("no rows to pack", rows=[], packing=True)
    refused("raise max_length", packing=True, max_length=5)
    args = make_trainer("sft", tmp_path, CHATS, micro=8).args
    with pytest.raises(PackingError, match="data_collator gives no 'segments'"):
        SFTTrainer(
            causal_lm(),
            args,
            train_dataset=CHATS,
            packing=True,
            data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
        )


def test_reductions_over_turns_need_turns(tmp_path):
    with pytest.raises(DataError, match="field 'turns'"):
        make_trainer("sft", tmp_path, ROWS, micro=8, trainer={"loss_reduction": "turn_mean"}).train()
    blocks = [{"input_ids": row["input_ids"]} for row in ROWS]  # each one turn: all three agree
    found = [
        step_gradients("sft", tmp_path, blocks, micro=4, trainer={"loss_reduction": reduction})
        for reduction in ("turn_mean", "session_mean", "prefix_mean")
    ]
    assert_same_gradients(found[1], found[0])
    assert_same_gradients(found[2], found[0])


def test_the_head_works_only_where_there_is_loss(tmp_path):
    trainer = make_trainer("sft", tmp_path, CHATS, micro=8)
    widths, batch = [], trainer.data_collator(CHATS)
    trainer.compute_loss(trainer.model, batch)  # tries flat rows first
    trainer.model.lm_head.register_forward_hook(lambda head, args, output: widths.append(tuple(output.shape)))
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    labelled = sum(label != -100 for row in CHATS for label in row["labels"])
    assert widths == [(labelled, 259)] == [tuple(outputs.logits.shape)]


def test_default_collator_gives_turns_where_they_are_read(tmp_path):
    args = make_trainer("sft", tmp_path, CHATS, micro=8).args
    trainer = SFTTrainer(
        causal_lm(), args, train_dataset=CHATS, processing_class=byte_tokenizer(), loss_reduction="turn_mean"
    )
    assert isinstance(trainer.data_collator, CausalCollator) and trainer.data_collator.pad_id == PAD
    expected = reduced_by_hand(causal_lm(), CHATS, "turn_mean")
    found = trainer.compute_loss(trainer.model, trainer.data_collator(CHATS))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


# -- the trainer around it


def test_short_last_step_is_a_mean_too(tmp_path):
    rows = sft_rows(BATCH + 3, seed=2)
    trainer = make_trainer("sft", tmp_path, rows, micro=2, max_steps=2, learning_rate=1e-12)
    trainer.train()
    sampler = trainer.get_train_dataloader().batch_sampler
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    model = causal_lm()
    with torch.no_grad():
        for loss, step in zip(losses, sampler.steps(), strict=True):
            total, count = nll_by_hand(model, [rows[row] for row in step])
            assert loss == pytest.approx(float(total / count), rel=1e-6)


def test_evaluation_counts_tokens_exactly_over_uneven_batches(tmp_path):
    heldout = sft_rows(7, seed=5)  # batches of 4 and 3
    trainer = make_trainer("sft", tmp_path, ROWS, micro=4, heldout=heldout)
    with torch.no_grad():
        total, count = nll_by_hand(causal_lm(), heldout)
    metrics = trainer.evaluate()
    assert metrics["eval_tokens"] == count
    assert metrics["eval_loss"] == pytest.approx(float(total / count), rel=1e-9)


def test_rows_without_labels_have_loss_on_all_but_the_first_token(tmp_path):
    blocks = [{"input_ids": row["input_ids"]} for row in ROWS]
    trainer = make_trainer("sft", tmp_path, blocks, micro=8, heldout=blocks)
    labelled = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in blocks]
    with torch.no_grad():
        total, count = nll_by_hand(causal_lm(), labelled)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(total / count), rel=1e-9)


def test_loss_outside_the_loop_is_the_batch_mean(tmp_path):
    trainer = make_trainer("sft", tmp_path, ROWS, micro=8)
    batch = trainer.data_collator(ROWS[:3])
    total, count = nll_by_hand(trainer.model, ROWS[:3])
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == pytest.approx(
        float(total.detach() / count), rel=1e-9
    )


def test_weight_decay_spares_norms_and_biases(tmp_path):
    trainer = make_trainer("sft", tmp_path, ROWS, micro=8, weight_decay=0.1, adam_beta2=0.9, adam_epsilon=1e-6)
    decayed, spared = trainer.create_optimizer().param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.9) and decayed["eps"] == 1e-6
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in spared["params"])
    assert not any("norm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_cosine_with_min_lr_ends_at_a_tenth(tmp_path):
    keys = {"lr_scheduler_type": "cosine_with_min_lr", "warmup_steps": 2, "learning_rate": 1e-3, "max_steps": 6}
    trainer = make_trainer("sft", tmp_path, ROWS, micro=8, **keys)
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    by_hand = [0.0, 5e-4, *(1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * at / 4)) / 2) for at in range(4))]
    assert rates == pytest.approx(by_hand)
