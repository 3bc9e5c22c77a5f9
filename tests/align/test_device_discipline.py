"""Every stage's iteration on a card that is not there (`tests.pretended_card`): what trainers, engines, rewards and
losses make themselves, they make where their inputs are. Figures are those of the CPU."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from align.functional import whiten
from align.trainers.ppo import PPOTrainer
from reward import flat
from reward.model import RewardModel
from reward.sources import ModelReward
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from tests.align.models import roles_case
from tests.align.trainers import ppo_case, supervised_case
from tests.align.trainers.ppo_options import everything
from tests.pretended_card import CARD, ForeignTensorError, OnCard, pretended_card

PTX = {"ptx_blocks": [[3, 8, 200, 17, 4], [9, 256, 11], [40, 41, 42, 43], [5, 6]], "ptx_ratio": 1}
TWO = {"rollout_batch_size": 2}  # prompts
FEW = {"ptx_micro_batch_size": 4, "micro_batch_size": 4}
SMALL = {"num_ppo_epochs": 1, "critic_warmup_steps": 1} | FEW


def judge(seed, dtype=torch.float32, pooling="end_token"):
    torch.manual_seed(seed)
    model = RewardModel(ppo_case.policy(seed, dtype).model, pooling=pooling)
    torch.nn.init.normal_(model.head.weight)
    return ModelReward(model, ppo_case.TOKENIZER, batch_size=3)


def models(dtype=torch.float32, **changes):
    made = ppo_case.policy(dtype=dtype, **changes), ppo_case.critic(dtype=dtype, **changes)
    return dict(zip(("policy_model", "critic_model"), made, strict=True))


def roles():
    parts = roles_case.shared(roles_case.separate())
    for name in ("policy", "critic"):
        parts[name].gradient_checkpointing_enable({"use_reentrant": False})
    given = {"policy_model": parts["policy"], "critic_model": parts["critic"], "reference": parts["reference"]}
    return given | {"reward": ModelReward(parts["reward"], ppo_case.TOKENIZER)}


PPO = {
    "everything": lambda: everything("reward") | SMALL | PTX | {"ema_decay": 0.9, "reward": judge(3)},
    "padded rows, generate": lambda: everything("loss") | SMALL | PTX | models(**ppo_case.WINDOW),
    "no critic, asked late": lambda: {"advantage": "grpo", "kl_in": "loss", "num_mini_batches": 1} | TWO,
    "one backbone, checkpointed": lambda: roles() | {"ptx_coef": 0.3, "num_mini_batches": 1} | TWO | FEW | PTX,
}
VOLATILE = ("seconds", "tokens_per_second", "memory")


def iteration(folder, options, kind=PPOTrainer):
    """The trainer, and the figures of an iteration and of an evaluation."""
    made = ppo_case.trainer(folder, eval_prompts=ppo_case.prompts(1), gold=judge(4), kind=kind, **options)
    for reward in (made.reward, made.gold):
        if isinstance(reward, ModelReward):
            reward.model.to(made.accelerator.device)
    figures = made.step() | made.evaluate()
    return made, {key: value for key, value in figures.items() if not key.startswith(VOLATILE)}


@pytest.mark.parametrize("name", PPO)
def test_ppo(name, tmp_path):
    started, wanted = iteration(tmp_path / "host", PPO[name]())
    with pretended_card():
        made, found = iteration(tmp_path / "card", PPO[name]())
        pairs = zip(made.policy.parameters, started.policy.parameters, strict=True)
        for ours, theirs in pairs:
            assert isinstance(ours, OnCard)
            torch.testing.assert_close(ours.held, theirs.detach(), rtol=1e-3, atol=1e-4)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_ppo_in_bfloat16_takes_the_cards_own_attention(tmp_path, monkeypatch):
    """Its indices are of the kind, and where, the kernel wants them; what it computes is what padded calls do."""
    found = []
    for way in (lambda value, dropout: value.dtype == torch.bfloat16, lambda value, dropout: False):
        monkeypatch.setattr(flat, "takes_varlen", way)
        with pretended_card():
            options = models(torch.bfloat16) | {"reward": judge(3, torch.bfloat16), "num_mini_batches": 1} | TWO | FEW
            made = ppo_case.trainer(tmp_path / str(len(found)), **options)
            made.reward.model.to(CARD)
            assert made._share_prompts
            found.append(made.step())
    for figures in found:
        assert figures["policy/ratio_min"] == figures["policy/ratio_max"] == 1
    assert found[0]["policy/grad_norm"] == pytest.approx(found[1]["policy/grad_norm"], rel=0.1)


class Careless(PPOTrainer):
    """Makes a tensor without saying where."""

    def shape_rewards(self, normalized_N, kl_NS, mask_NS):
        return super().shape_rewards(normalized_N, kl_NS, mask_NS) + torch.zeros(mask_NS.shape)


def test_what_is_made_on_the_host_is_found(tmp_path):
    with pretended_card(), pytest.raises(ForeignTensorError, match=r"aten\.add.*host \(8, \d+\) beside the card's"):
        iteration(tmp_path, {}, Careless)


def test_what_a_card_would_not_take_is_found_and_what_it_waits_for_is_noted():
    with pretended_card() as card:
        x = torch.arange(6.0, device="card").view(2, 3)
        assert (x.device, x.sum().item(), (x + torch.tensor(1.0))[1].tolist()) == (CARD, 15.0, [4.0, 5.0, 6.0])
        assert {why for _, why in card.waits} == {"a value is read", "values come to the host"}
        for wrong in (
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([1])],
            lambda: whiten(x, torch.ones(2, 3), 0.0, 1.0),
            lambda: torch.rand(2, device="card", generator=torch.Generator()),
        ):
            with pytest.raises(ForeignTensorError):
                wrong()
        card.waits.clear()
        torch.tensor([1, 2]).to("card", non_blocking=True)
        assert not card.waits
        assert x[x > 2].numel() == 3 and torch.tensor([1, 2], device="card").numel() == 2
        assert sorted(why for _, why in card.waits) == ["a shape is read", "values are carried to the card"]


def test_an_update_hardly_waits_for_the_card(tmp_path):
    """Of each micro-batch once: for what of the last layer is read."""
    waits = []
    for rows in (4, 1):
        with pretended_card() as card:
            options = {"micro_batch_size": rows, "num_mini_batches": 1, "rollout_batch_size": 2}
            made = ppo_case.trainer(tmp_path / str(rows), **options)
            samples = made.collect(made.prompts[:2])
            experience, _ = made.make_experience(samples, made.score(samples).total_N)
            card.waits.clear()
            made.update(experience)
            waits.append(card.waits)
    often = waits[1] - waits[0]
    assert often.total() <= 3, often


SUPERVISED = {
    "sft": lambda: ("sft", supervised_case.sft_rows(8), {"model": supervised_case.causal_lm(torch.float32)}),
    "sft, packed and by turns": lambda: (
        "sft",
        supervised_case.chat_rows(8),
        {"trainer": {"loss_reduction": "turn_mean"}, "model": supervised_case.causal_lm(torch.float32)},
    ),
    "pairs": lambda: ("reward", supervised_case.pair_rows(8), {}),
    "groups": lambda: (
        "groups",
        supervised_case.group_rows(8),
        {"trainer": {"options": supervised_case.group_options(True)}},
    ),
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised(name, tmp_path, monkeypatch):
    make = supervised_case.training_arguments
    found = {}
    for place in ("host", "card"):
        with pretended_card() if place == "card" else nullcontext():
            kind, rows, options = SUPERVISED[name]()

            def arguments(*args, there=place == "card", **kwargs):
                made = make(*args, **kwargs)
                if there:
                    made.use_cpu = False
                    made.__dict__.pop("_setup_devices", None)
                    assert made.device.type == CARD.type
                return made

            monkeypatch.setattr(supervised_case, "training_arguments", arguments)
            trainer = supervised_case.make_trainer(
                kind, tmp_path / place, rows, micro=4, heldout=rows[:3], save_steps=1000, **options
            )
            monkeypatch.setattr(trainer, "_save_checkpoint", lambda *args, **kwargs: None)
            trainer.train()
            figures = trainer.evaluate() | {"loss": trainer.state.log_history[0]["loss"]}
            assert all(isinstance(p, OnCard) for p in trainer.model.parameters()) == (place == "card")
            found[place] = {
                key: value for key, value in figures.items() if "per_second" not in key and "runtime" not in key
            }
    assert found["card"] == pytest.approx(found["host"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("way", ["decode", "generate"])
def test_the_engine_samples_the_same_and_scores(way):
    params = SamplingParams(
        n=3, top_p=0.9, top_k=20, max_new_tokens=9, min_new_tokens=2, stop_token_ids=(7, 258), seed=5
    )
    prompts, found = [[5, 6, 7], [9] * 5, [3]], []
    for place in (nullcontext, pretended_card):
        with place() as card:
            model = ppo_case.policy().to("cpu" if card is None else "card")
            engine = HFEngine(model, 0, batch_size=4)
            engine._decodable = None if way == "decode" else False
            replies = engine.generate(prompts, replace(params, return_support=True))
            found.append(([r.token_ids for r in replies], [r.support for r in replies], engine.token_logprobs(prompts)))
            assert engine._decodable == (way == "decode")
    (tokens, supports, scores), (theirs, others, again) = found
    assert tokens == theirs and supports == others
    for ours, other in zip(scores, again, strict=True):
        assert ours == pytest.approx(other, abs=1e-5)
