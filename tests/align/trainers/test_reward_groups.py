import pytest
import torch

from align.trainers.reward_groups import GroupCollator, GroupOptions, GroupRewardTrainer
from reward.errors import ModelFileError
from tests.align.trainers.supervised_case import (
    BATCH,
    LM,
    PAD,
    Gradients,
    group_options,
    group_rows,
    make_trainer,
    output_layer,
    pair_rows,
    reward_model,
)
from tests.tiny_models import byte_tokenizer

ROWS = group_rows(BATCH)


@pytest.fixture(scope="module")
def expected():
    """Every reply alone, in float64, every term written out."""
    model = reward_model().double()
    layer, losses = output_layer().double(), []
    for row in ROWS:
        scores, nll = [], []
        for reply in row["reply_ids"]:
            ids = torch.tensor([[*row["prompt_ids"], *reply]])
            states = model.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
            scores.append(states[-1] @ model.head.weight[0].double())
            logps = (states[-len(reply) - 1 : -1] @ layer.T).log_softmax(-1)
            nll.append(-logps[range(len(reply)), reply].mean())
        total = 0
        for better, worse, margin, target in row["pairs"]:
            x, right = scores[better] - scores[worse] - margin, 0.9 * target + 0.1 * (1 - target)
            pair = right * torch.log1p(torch.exp(-x)) + (1 - right) * torch.log1p(torch.exp(x))
            total = total + pair + 0.02 * (scores[better] + scores[worse]) ** 2
        best = len(row["reply_ids"]) - 1
        losses.append(total / len(row["pairs"]) + LM * nll[best])
    (sum(losses) / BATCH).backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def group_trainer(tmp_path, micro, chosen, rows=ROWS, **keys):
    plain = make_trainer("reward", tmp_path, pair_rows(BATCH), micro=micro)
    keys = {"data_collator": GroupCollator(PAD, chosen), "output_layer": output_layer()} | keys
    return GroupRewardTrainer(plain.model, plain.args, options=chosen, train_dataset=rows, **keys)


def gradients(trainer):
    found = Gradients()
    trainer.add_callback(found)
    trainer.train()
    return found.steps[0]


@pytest.mark.parametrize(("share", "flat"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("micro", [1, 4, 8])
def test_gradients_are_those_of_every_reply_alone(tmp_path, expected, micro, share, flat):
    collator = GroupCollator(PAD, group_options(share), flat=flat)
    found = gradients(group_trainer(tmp_path, micro, group_options(share), data_collator=collator))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=2e-3, atol=2e-5)


def test_pairs_as_groups_are_the_plain_trainers_gradients(tmp_path):
    pairs = pair_rows(BATCH)
    rows = [
        {
            "prompt_ids": row["chosen_ids"][:1],
            "reply_ids": [row["chosen_ids"][1:], row["rejected_ids"][1:]],
            "pairs": [(0, 1, 0.0, 1.0)],
        }
        for row in pairs
    ]
    plain = gradients(make_trainer("reward", tmp_path, pairs, micro=4))
    found = gradients(group_trainer(tmp_path, 4, GroupOptions(share_prompts=True), rows))
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("pooling", ["end_token", "last_token", "mean", "max", "attention", "weighted_mean"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_shared_scores_are_those_apart(pooling, attention):
    model = reward_model().eval()
    model.set_pooling(pooling)
    model.config._attn_implementation = attention
    batches = [GroupCollator(PAD, GroupOptions(share_prompts=s, row_length=50))(ROWS) for s in (True, False)]
    assert batches[0]["input_ids"].shape[0] < batches[1]["input_ids"].shape[0]
    names = ("input_ids", "attention_mask", "position_ids", "members", "rows")
    shared, apart = (model(**{name: batch[name] for name in names if name in batch}) for batch in batches)
    torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-5)


def test_held_out_figures_count_pairs(tmp_path):
    trainer = group_trainer(tmp_path, 8, GroupOptions(share_prompts=True))
    metrics = trainer.evaluate(ROWS)
    assert metrics["eval_pairs"] == sum(len(row["pairs"]) for row in ROWS)


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lm_weight needs the language model's output layer"):
        group_trainer(tmp_path, 8, GroupOptions(lm_weight=0.1), output_layer=None)
    plain = make_trainer("reward", tmp_path, pair_rows(BATCH), micro=8)
    plain.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelFileError, match="share_prompts: attn_implementation 'flash_attention_2' takes no tree"):
        GroupRewardTrainer(plain.model, plain.args, options=GroupOptions(share_prompts=True), train_dataset=ROWS)


def test_held_out_prompts_are_shared_by_the_collator_that_the_trainer_makes(tmp_path):
    chosen = GroupOptions(share_prompts=True)
    plain = make_trainer("reward", tmp_path, pair_rows(BATCH), micro=8)
    keys = {"options": chosen, "train_dataset": ROWS, "processing_class": byte_tokenizer()}
    trainer, rows = GroupRewardTrainer(plain.model, plain.args, **keys), []
    hook = lambda module, args, given, result: rows.append((len(given["input_ids"]), len(given["rows"])))  # noqa: E731
    trainer.model.register_forward_hook(hook, with_kwargs=True)
    trainer.predict(ROWS)
    assert {count for count, _ in rows} == {1}  # flat
    assert sum(replies for _, replies in rows) == sum(len(row["reply_ids"]) for row in ROWS)
    eager = make_trainer("reward", tmp_path, pair_rows(BATCH), micro=8).model
    eager.config._attn_implementation = "eager"
    assert not GroupRewardTrainer(eager, plain.args, **keys).data_collator.flat
