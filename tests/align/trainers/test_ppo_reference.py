"""The independent PPO is checked itself: it imports nothing of ours, and numbers worked out by hand come out of it."""

import ast
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.align.trainers import ppo_reference as made
from tests.align.trainers import ppo_reference_losses as losses
from tests.align.trainers.ppo_reference import Reply, Sampled, Settings, State

LOG2 = math.log(2)


class Table(nn.Module):
    """A bigram model: the logits after a token are a row of a table, zeros at first, so every id has 1/3."""

    def __init__(self, rows=((0.0, 0.0, 0.0),) * 3):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.table[input_ids])


class Values(nn.Module):
    """The value of having read a token is an entry of a list."""

    def __init__(self, values):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        return self.table[input_ids]


def reply(ids, **changes):
    """A reply to the prompt (0,), at ratio 1 under `Table()`."""
    size = len(ids)
    values = {
        "counts": True,
        "supports": None,
        "old": [-math.log(3)] * size,
        "old_ratio": [-math.log(3)] * size,
        "ref": [-math.log(3)] * size,
        "old_values": [0.0] * size,
        "weights": [1.0] * size,
        "normalized": 0.0,
        "rewards": [0.0] * size,
        "advantages": [1.0] * size,
        "returns": [0.0] * size,
    }
    return Reply(prompt=[0], reply=list(ids), **(values | changes))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("ppo_reference.py", set()),
        ("ppo_reference_losses.py", {"tests.align.trainers.ppo_reference"}),
    ],
)
def test_it_imports_nothing_of_ours(name, allowed):
    tree = ast.parse((Path(__file__).parent / name).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {"__future__", "dataclasses", "math", "torch"} | allowed


def test_advantages():
    # deltas 0 + 0.5 * 1 - 2 = -1.5; 0 + 0.5 * 0.5 - 1 = -0.75; 1 - 0.5 = 0.5; gamma lam = 0.25
    found = made.advantages_of([0.0, 0.0, 1.0], [2.0, 1.0, 0.5], gamma=0.5, lam=0.5)
    assert found == [-1.5 - 0.25 * 0.75 + 0.0625 * 0.5, -0.75 + 0.125, 0.5]
    assert made.advantages_of([1.0, 2.0, 4.0], [10.0, 20.0, 30.0], gamma=1.0, lam=0.0) == [11.0, 12.0, -26.0]


def test_whitening():
    rows = [[1.0, 2.0], [3.0]]
    assert made.whiten(rows) == pytest.approx(math.sqrt(2 / 3), rel=1e-15)
    assert [*rows[0], *rows[1]] == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)], rel=1e-7)


def test_kl_estimates():
    assert [made.kl_estimate(LOG2, kind) for kind in ("k1", "k2", "k3")] == pytest.approx(
        [LOG2, LOG2**2 / 2, 0.5 - 1 + LOG2], rel=1e-15
    )
    assert float(made.kl_estimate(torch.tensor(LOG2), "k3")) == pytest.approx(LOG2 - 0.5, rel=1e-6)


@pytest.mark.parametrize(("penalty", "expected"), [(0.0, [2.0, 1.0]), (0.5, [1.5, 1.0])])
def test_penalties_of_a_missing_end_and_of_length(penalty, expected):
    settings = Settings(missing_eos_penalty=penalty, length_penalty=0.25, length_penalty_free=4)
    found = [made.penalised_score(2.0, 4, False, settings), made.penalised_score(2.0, 8, True, settings)]
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [1.0, 5.0]),
        ("running_mean", [-1.0, 3.0]),  # seen are 0, 1, 5 with mean 2 and variance (4 + 1 + 9) / 3
        ("running_std", [1 / math.sqrt(14 / 3), 5 / math.sqrt(14 / 3)]),
        ("running_mean_std", [-1 / math.sqrt(14 / 3), 3 / math.sqrt(14 / 3)]),
    ],
)
def test_normalised_scores(kind, expected):
    settings, seen = Settings(normalize_reward=kind, reward_clip_range=None), [0.0]
    found = made.normalized_scores([1.0, 5.0, 100.0], [True, True, False], seen, settings)
    assert found[:2] == pytest.approx(expected, rel=1e-7) and seen == [0.0, 1.0, 5.0]
    settings.reward_clip_range = 0.75
    assert made.normalized_scores([1.0, 5.0], [True, True], [0.0], settings)[1] == 0.75


def test_importance_weights():
    old, engine = [0.0, LOG2, -LOG2], [0.0, -LOG2, 0.0]  # differences 0, 2 log 2, -log 2
    weights = [
        made.importance_weights(old, engine, Settings(importance_sampling_correction=kind, importance_sampling_cap=3.0))
        for kind in ("none", "token", "sequence")
    ]
    assert weights == [[1.0] * 3, pytest.approx([1.0, 3.0, 0.5]), pytest.approx([2.0] * 3)]


def test_controllers():
    settings = Settings(kl_target=6.0, kl_horizon=100, ptx_grad_norm_ratio=0.5)
    assert made.next_kl_coef(0.1, 6.6, 10, settings) == pytest.approx(0.1 * 1.01)
    assert made.next_kl_coef(0.1, 60.0, 10, settings) == pytest.approx(0.1 * 1.02)
    assert made.next_kl_coef(0.1, 0.0, 10, settings) == pytest.approx(0.1 * 0.98)
    assert made.next_kl_coef(0.1, 60.0, 10, Settings()) == 0.1
    assert [made.next_ptx_coef(0.1, ratio, settings) for ratio in (0.4, 5.0, 0.01)] == pytest.approx([0.125, 0.05, 0.2])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (2.0, 1.0, 1.2),
        (0.5, 1.0, 0.5),
        (0.5, -1.0, -0.8),
        (2.0, -1.0, -2.0),
        (5.0, -1.0, -3.0),  # the dual clip at 3
        (5.0, 1.0, 1.2),
    ],
)
def test_surrogate(ratio, advantage, expected):
    found = losses.surrogate(torch.tensor(ratio), advantage, Settings(cliprange=0.2, dual_clip=3.0))
    assert float(found) == pytest.approx(expected)


def test_token_weights():
    batch = [reply([1]), reply([1, 2, 2]), reply([1, 1], counts=False)]
    assert losses.token_weights(batch, "token") == [[0.25], [0.25] * 3, [0.0] * 2]
    assert losses.token_weights(batch, "sequence") == [[0.5], [1 / 6] * 3, [0.0] * 2]


def test_policy_gradient():
    # d(-A r)/d logits after token 0 at r = 1 is -A (1[v = 1] - 1/3), divided by the temperature
    found, _ = losses.policy_gradient(Table(), [reply([1], advantages=[6.0])], Settings(temperature=2.0))
    expected = [[1.0, -2.0, 1.0], [0.0] * 3, [0.0] * 3]
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64))
    # within the support {1, 2} it is -A (1[v = 1] - 1/2) there and 0 elsewhere; the weight 1/3 is a constant
    row = reply([1], advantages=[6.0], weights=[1 / 3], supports=[[1, 2]], old_ratio=[-LOG2])
    found, _ = losses.policy_gradient(Table(), [row], Settings())
    torch.testing.assert_close(found[0][0], torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_gradient_of_the_kl_in_the_loss(kind):
    third = -math.log(3)
    row = reply([1, 2], ref=[third - 0.25, third - 0.5], advantages=[0.0, 0.0])
    settings, first, second = Settings(kl_in="loss", kl_estimator=kind), 0.75, 0.5  # d = 0.25, 0.5: what is still to go
    found, _ = losses.policy_gradient(Table(), [row], settings, kl_coef=0.3)
    expected = torch.tensor([[-1, 2, -1], [0, 0, 0], [0, 0, 0]], dtype=torch.float64) / 3 * 0.3 * first / 2
    expected[1] = torch.tensor([-1, -1, 2], dtype=torch.float64) / 3 * 0.3 * second / 2
    torch.testing.assert_close(found[0], expected)


def test_straight_through_is_the_gradient_of_the_kl_of_all_replies():
    """Averaged over every reply of two tokens, weighed by its probability, it is the derivative of the exact KL."""
    table = Table(((0.3, -0.2, 0.1), (0.5, 0.0, -0.4), (-0.1, 0.2, 0.6)))
    other = Table(((0.0, 0.4, -0.3), (-0.2, 0.1, 0.3), (0.2, -0.5, 0.0)))
    settings = Settings(kl_in="loss", kl_estimator="k3")
    mean = torch.zeros(3, 3, dtype=torch.float64)
    exact = torch.zeros((), dtype=torch.float64)
    for ids in ((a, b) for a in range(3) for b in range(3)):
        new, ref = (made.logps_of(model, [0], ids, 1.0) for model in (table, other))
        exact = exact + new.sum().exp() * (new - ref.detach()).sum()
        row = reply(ids, ref=ref.tolist(), old_ratio=new.tolist(), advantages=[0.0, 0.0])
        mean += float(new.detach().sum().exp()) * losses.policy_gradient(table, [row], settings, kl_coef=2.0)[0][0]
    expected = torch.autograd.grad(exact, table.table)[0]
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-14)


def test_gradient_of_the_entropy_and_of_ptx():
    # p = 1/2, 1/4, 1/4 and H = 1.5 log 2: d H / d logit_v = -p_v (log p_v + H)
    table = Table(((LOG2, 0.0, 0.0), (0.0,) * 3, (0.0,) * 3))
    row = reply([1], advantages=[0.0], old_ratio=[math.log(0.25)])
    found, _ = losses.policy_gradient(table, [row], Settings(entropy_coef=2.0))
    expected = [2 * 0.5 * 0.5 * LOG2, 2 * 0.25 * -0.5 * LOG2, 2 * 0.25 * -0.5 * LOG2]
    torch.testing.assert_close(found[0][0], torch.tensor(expected, dtype=torch.float64))
    _, found = losses.policy_gradient(Table(), [reply([1])], Settings(), [[0, 1], [1, 1]], ptx_coef=3.0)
    torch.testing.assert_close(found[0][0], torch.tensor([0.5, -1.0, 0.5], dtype=torch.float64))


def test_critic_gradient():
    # values 1, 1, old 0, 0, returns 0, 2: errors 1, 1, of the clipped values 0.5 they are 0.25, 2.25 (no gradient)
    row = reply([1, 2], old_values=[0.0, 0.0], returns=[0.0, 2.0])
    settings = Settings(cliprange_value=0.5, vf_coef=4.0)
    found = losses.critic_gradient(Values([1.0, 1.0, 9.0]), [row], settings)
    assert found[0].tolist() == [2.0, 0.0, 0.0]
    found = losses.critic_gradient(Values([1.0, 1.0, 9.0]), [row], replace(settings, cliprange_value=None))
    assert found[0].tolist() == [2.0, -2.0, 0.0]


def test_approximate_kl():
    row = reply([1, 2], old_ratio=[-math.log(3), -math.log(3) - LOG2])  # ratios 1 and 2
    assert losses.approximate_kl(Table(), [row, reply([1], counts=False)], Settings()) == pytest.approx((1 - LOG2) / 2)


def test_a_whole_experience():
    sampled = [Sampled([0], [1, 2], True, 3.0), Sampled([0], [1], False, 9.0)]
    settings = Settings(
        mask_truncated_completions=True, normalize_reward="none", whiten_advantages=False, lam=0.5, critic_lam=1.0
    )
    other = Table(((0.0, 0.0, 0.0), (0.0, 0.0, LOG2), (0.0,) * 3))  # gives 1/2 to token 2 after token 1
    last = 3.0 - 2.0 * (math.log(1 / 3) - math.log(1 / 2))
    rows, spread = made.experience(Table(), Values([2.0, 4.0, 8.0]), other, sampled, State(kl_coef=2.0), settings)
    assert [row.counts for row in rows] == [True, False]
    assert spread == pytest.approx(abs(2.0 + 0.5 * (last - 4.0) - (last - 4.0)) / 2)
    assert rows[0].rewards == pytest.approx([0.0, last])
    assert rows[0].advantages == pytest.approx([2.0 + 0.5 * (last - 4.0), last - 4.0])
    assert rows[0].returns == pytest.approx([last, last])
    assert made.reply_kl(rows[0]) == pytest.approx(math.log(2 / 3))


def test_relative_error():
    found, expected = [torch.tensor([3.0, 0.0]), torch.tensor([5.0])], [torch.tensor([3.0, 4.0]), torch.tensor([0.0])]
    assert losses.relative_error(found, expected) == pytest.approx(math.sqrt(41) / 5)
