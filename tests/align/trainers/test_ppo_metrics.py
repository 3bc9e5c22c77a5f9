import math
import re
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from align.functional import policy_loss
from align.runs.seeding import derive
from align.trainers.ppo import metrics as ppo_metrics
from align.trainers.ppo.losses import Largest, loss_figures
from align.trainers.ppo.metrics import (
    Stopwatch,
    UpdateMetrics,
    distinct_share,
    kept_mass_metrics,
    part_metrics,
    peak_memory,
    policy_metrics,
    reply_kl,
    rollout_metrics,
    sample_rows,
    token_texts,
)
from align.trainers.ppo.minibatches import shuffled
from align.trainers.ppo.types import Experience, TokenBatch
from reward.sources import FunctionReward
from tests.align.trainers import ppo_case

NAN = math.nan


def case():
    """Two replies of 2 and 1 tokens after a prompt of 1; what stands at masked positions is NaN."""
    samples = ppo_case.samples((2, 1), (1, 1), finished=(True, False))
    tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids)
    made = Experience(
        tokens=tokens,
        mask_NS=tokens.mask_NS,
        scores_N=torch.tensor([1.0, 5.0]),
        normalized_N=torch.tensor([-2.0, 2.0]),
        old_logps_NS=torch.tensor([[-1.0, -2.0], [-3.0, NAN]]),
        ref_logps_NS=torch.tensor([[-1.5, -1.0], [-3.5, NAN]]),
        old_values_NS=torch.tensor([[0.0, 1.0], [2.0, NAN]]),
        rewards_NS=torch.tensor([[0.0, 0.0], [0.0, NAN]]),
        advantages_NS=torch.tensor([[0.0, 0.0], [0.0, NAN]]),
        returns_NS=torch.tensor([[0.0, 3.0], [3.0, NAN]]),
    )
    return samples, made


def test_rollout_metrics_by_hand():
    samples, made = case()
    found = rollout_metrics(samples, made, 0.25) | policy_metrics(samples, made, torch.tensor([[0.3, 0.6], [0.9, NAN]]))
    expected = {
        "score/mean": 3.0,
        "score/std": 2.0,
        "reward/mean": 0.0,
        "reward/std": 2.0,
        "kl/reply": 0.0,  # (0.5 - 1) and 0.5
        "kl/token": 0.0,
        "kl/k3_token": (2 * (math.exp(-0.5) - 1 + 0.5) + math.exp(1) - 1 - 1) / 3,
        "entropy": 0.6,
        "value/mean": 1.0,
        "value/explained_variance": 1 - (0 + 4 + 1) / 6,  # returns 0, 3, 3 vary by 6 in all
        "returns/std": math.sqrt(2),
        "advantages/std": 0.25,
        "length/mean": 1.5,
        "length/max": 2.0,
        "end_rate": 0.5,
        "distinct": 1.0,
        "distinct_1": 1.0,
        "distinct_2": 1.0,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert reply_kl(made).tolist() == pytest.approx([-0.5, 0.5])


def test_distinct_n_grams_by_hand():
    replies = ((1, 2, 1, 2), (2, 1, 3), (3,))
    assert distinct_share(replies, 1) == 3 / 8
    assert distinct_share(replies, 2) == 3 / 5  # 12, 21, 12, 21, 13; none reaches from one reply into the next
    assert distinct_share(((7,), (7,)), 2) == 0.0


def test_kept_mass_is_a_mean_over_tokens():
    samples = replace(case()[0], kept_mass=((1.0, 0.7), (0.4,)))
    assert kept_mass_metrics(samples) == {"kept_mass/mean": pytest.approx(0.7)}
    assert kept_mass_metrics(replace(samples, kept_mass=((1.0, 0.7), None))) == {}


EVERYTHING = {
    "ptx_coef": "auto",
    "ptx_ratio": 1,
    "ptx_blocks": [[1, 2, 3, 4]] * 5,
    "kl_in": "loss",
    "kl_estimator": "k3",
    "entropy_coef": 0.1,
    "dual_clip": 2.0,
    "importance_sampling_correction": "token",
    "policy_support": "nucleus",
    "eval_prompts": ppo_case.prompts(2),
    "gold": FunctionReward(ppo_case.vowels),
}


@pytest.mark.parametrize("options", [EVERYTHING, {"critic_warmup_steps": 1}])
def test_every_figure_stands_in_the_table(tmp_path, options):
    told = set(re.findall(r"[a-z0-9_]+(?:/[a-z0-9_]+)?", ppo_metrics.__doc__))
    told |= {f"{name}_greedy" for name in told if name.startswith("eval/")}
    phases = ("rollout", "score", "experience", "update")
    told |= {f"{name}/{phase}" for name in ("seconds", "tokens_per_second") for phase in phases}
    trainer = ppo_case.trainer(tmp_path, **options)
    trainer.train()
    logged = set().union(*trainer.state.log_history) - {"step"}
    assert len(logged) > 40 and logged - told == set()
    assert "kept_mass/mean" in logged


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_full_kl_is_the_mean_over_the_tokens_of_four_replies(tmp_path, temperature):
    policy, reference = (ppo_case.exact(ppo_case.policy(seed)) for seed in (0, 5))
    options = {"policy_model": policy, "reference": reference, "critic_model": ppo_case.ExactCritic()}
    trainer = ppo_case.trainer(tmp_path, rollout={"temperature": temperature}, **options)
    samples = ppo_case.samples((5, 1, 7, 3, 2, 6, 4, 7))
    _, metrics = trainer.make_experience(samples, torch.zeros(8, dtype=torch.float64))
    tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids)
    chosen = shuffled(8, derive(0, "full_kl", 0))[:4].tolist()
    found = []
    for row in chosen:
        ids = torch.tensor([[*samples.prompt_ids[row], *samples.reply_ids[row]]])
        start = len(samples.prompt_ids[row]) - 1
        with torch.no_grad():
            both = [model(input_ids=ids).logits[0, start:-1] / temperature for model in (policy, reference)]
        made = [torch.distributions.Categorical(logits=logits) for logits in both]
        found += torch.distributions.kl_divergence(*made).tolist()
    assert len(found) == sum(len(samples.reply_ids[row]) for row in chosen)
    assert metrics["kl/full_token"] == pytest.approx(sum(found) / len(found), rel=1e-9)
    assert metrics["kl/full_token"] > 0.01
    assert trainer.model_passes.full_kl(tokens, derive(0, "full_kl", 0)) == metrics["kl/full_token"]


def test_full_kl_is_left_out_where_nothing_is_logged(tmp_path):
    trainer = ppo_case.trainer(tmp_path, num_iterations=3, logging_steps=3)
    measured = []
    for step in range(3):
        trainer.state.global_step = step
        measured.append(trainer.step().get("kl/full_token"))
    assert measured[0] == pytest.approx(0, abs=1e-6) and measured[1] is None and measured[2] > 1e-3


def test_peak_memory_is_that_of_the_process():
    assert 0.05 < peak_memory(torch.device("cpu"))["memory/peak_gib"] < 100


def test_sample_rows_are_the_first_replies():
    rows = sample_rows(*case(), ppo_case.TOKENIZER, 1)
    assert [(row["reply"], row["score"], row["reward"], row["reply_tokens"], row["finished"]) for row in rows] == [
        ("0", 1.0, -2.0, 2, True)
    ]
    assert rows[0]["kl"] == pytest.approx(-0.5)
    assert [kl for _, kl in rows[0]["tokens"]] == [0.5, -1.0] and rows[0]["tokens"][1][0] == "<|im_end|>"
    assert len(sample_rows(*case(), ppo_case.TOKENIZER, 9)) == 2


@pytest.mark.parametrize("text", ["one two", "é", "a 问 b", "🙂🙂", "", "<|im_end|>"])
def test_the_texts_of_tokens_add_up_to_the_whole(text):
    ids = ppo_case.TOKENIZER(text)["input_ids"]
    texts = token_texts(ppo_case.TOKENIZER, ids)
    assert len(texts) == len(ids) and "".join(texts) == text
    if text == "a 问 b":
        assert texts == ["a", " ", "", "", "问", " ", "b"]


def test_bytes_that_are_no_text_are_marked_and_hold_up_nothing():
    lone = ppo_case.TOKENIZER("é")["input_ids"][:1]  # the first of its two bytes
    letter = ppo_case.TOKENIZER("x")["input_ids"]
    assert token_texts(ppo_case.TOKENIZER, [*letter, *lone]) == ["x", "\ufffd"]
    assert token_texts(ppo_case.TOKENIZER, [*lone, *letter]) == ["", "\ufffdx"]
    assert token_texts(ppo_case.TOKENIZER, lone * 5) == ["", "", "", "\ufffd" * 4, "\ufffd"]


def test_the_parts_of_a_reward_are_logged_apart():
    parts = {"rules": torch.tensor([1.0, 3.0]), "gate/safety": torch.tensor([0.0, 0.0])}
    assert part_metrics(parts) == {
        "score/rules/mean": 2.0,
        "score/rules/std": 1.0,
        "score/gate/safety/mean": 0.0,
        "score/gate/safety/std": 0.0,
    }
    rows = sample_rows(*case(), ppo_case.TOKENIZER, 2, parts)
    assert [(row["score/rules"], row["score/gate/safety"]) for row in rows] == [(1.0, 0.0), (3.0, 0.0)]


def test_figures_of_an_update_are_joined_as_their_types_say():
    metrics, batch = UpdateMetrics(), case()[1]
    for loss, tokens, high, low in ((6.0, 2.0, 1.5, 0.9), (3.0, 4.0, 1.2, 0.8)):
        sums = {"tokens": tokens, "clipped": tokens / 2, "ratio_max": high, "ratio_min": low}
        sums = {key: torch.tensor(value) for key, value in sums.items()} | {"mine_max": torch.tensor(1.0)}
        sums |= {"most": Largest(torch.tensor(high), torch.tensor(1))}  # of a subclass, which says how
        metrics.add(loss_figures("policy", (torch.tensor(loss), sums), batch))
    metrics.note("policy/grad_norm", torch.tensor(1.0))
    metrics.note("policy/grad_norm", torch.tensor(3.0))
    metrics.count("steps_left_out", 2)
    assert metrics.over_ranks(Accelerator()) == pytest.approx(
        {
            "policy/loss": 9 / (3 + 3),  # by the tokens of the batch, twice
            "policy/clipped": 0.5,
            "policy/ratio_max": 1.5,
            "policy/ratio_min": 0.8,
            "policy/mine_max": 1 / 3,  # a plain tensor is a sum, whatever its name
            "policy/most": 1.5,
            "steps_left_out": 2.0,
            "policy/grad_norm": 2.0,
        }
    )


def test_where_nothing_counts_there_are_no_extremes():
    metrics, batch, nothing = UpdateMetrics(), case()[1], torch.zeros(2, 3)
    metrics.add(loss_figures("policy", policy_loss(nothing, nothing, nothing, nothing, 0.2), batch))
    figures = metrics.over_ranks(Accelerator())
    assert figures["policy/clipped"] == 0.0 and all(math.isfinite(figure) for figure in figures.values())
    assert not figures.keys() & {"policy/ratio_max", "policy/ratio_min"}


def test_stopwatch_names_its_phases():
    watch = Stopwatch()
    for _ in range(2):
        with watch("update"):
            pass
    figures = watch.metrics(tokens=100)
    assert figures["seconds/total"] == figures["seconds/update"] > 0
    assert figures["tokens_per_second"] == pytest.approx(100 / figures["seconds/total"])
    watch.seconds = {"rollout": 0.25, "update": 1.0}
    assert watch.metrics(tokens=100) == {
        "seconds/rollout": 0.25,
        "seconds/update": 1.0,
        "seconds/total": 1.25,
        "tokens_per_second/rollout": 400.0,
        "tokens_per_second/update": 100.0,
        "tokens_per_second": 80.0,
    }
