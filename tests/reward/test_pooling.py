import pytest
import torch

from reward.errors import ModelFileError
from reward.model import RewardModel
from reward.pooling import POOLINGS, Pooler
from tests.tiny_models import save_causal_lm

STATES = torch.tensor([[[9.0, 9.0], [1.0, 4.0], [3.0, 2.0], [8.0, 0.0], [7.0, 7.0]]])
MEMBERS = torch.tensor([[0, 1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("end_token", [8.0, 0.0]),
        ("last_token", [3.0, 2.0]),
        ("mean", [4.0, 2.0]),
        ("max", [8.0, 4.0]),
        ("weighted_mean", [(1 + 6 + 24) / 6, (4 + 4 + 0) / 6]),
        ("attention", [4.0, 2.0]),  # a query of 0 is the mean
    ],
)
def test_each_kind_by_hand(kind, expected):
    pooled = Pooler(kind, 2)(STATES, MEMBERS, torch.tensor([0]))
    torch.testing.assert_close(pooled, torch.tensor([expected]))


def test_attention_weighs_by_the_query():
    pooler = Pooler("attention", 2)
    pooler.query.data = torch.tensor([2.0**0.5, 0.0])
    weights = torch.tensor([1.0, 3.0, 8.0]).softmax(0)
    expected = (weights[:, None] * STATES[0, 1:4]).sum(0)
    torch.testing.assert_close(pooler(STATES, MEMBERS, torch.tensor([0]))[0], expected)


def test_one_token_is_its_own_last_token_and_unknown_kinds_are_named():
    members = torch.tensor([[0, 0, 1, 0, 0]])
    assert Pooler("last_token", 2)(STATES, members, torch.tensor([0])).tolist() == [[3.0, 2.0]]
    with pytest.raises(ValueError, match="'median'; known are end_token"):
        Pooler("median", 2)


def reward_model(tmp_path, kind):
    torch.manual_seed(0)
    model = RewardModel.from_backbone(save_causal_lm(tmp_path))
    model.set_pooling(kind)
    if kind == "attention":
        torch.nn.init.normal_(model.pooler.query)
    return model


@pytest.mark.parametrize("kind", POOLINGS)
@torch.no_grad()
def test_the_same_score_alone_padded_left_or_right_and_packed(tmp_path, kind):
    model = reward_model(tmp_path, kind)
    ids = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(1))
    first, second = ids[0, :4], ids[1]
    ones = torch.ones(1, 6, dtype=torch.long)
    alone = torch.cat([model(first[None], ones[:, :4]), model(second[None], ones)])
    assert abs(float(alone[0] - alone[1])) > 1e-4
    fill = torch.tensor([first[-1], 0])  # an id of the sequence itself as padding: only the mask may tell
    right = model(torch.cat([first, fill])[None], torch.tensor([[1, 1, 1, 1, 0, 0]]))
    left = model(torch.cat([fill, first])[None], torch.tensor([[0, 0, 1, 1, 1, 1]]))
    torch.testing.assert_close(torch.cat([right, left]), alone[[0, 0]], rtol=1e-4, atol=1e-5)
    members = torch.zeros(2, 10, dtype=torch.bool)
    members[0, :4] = members[1, 4:] = True
    sees = (members[:, :, None] & members[:, None, :]).any(0).tril()[None, None]
    positions = torch.tensor([[*range(4), *range(6)]])
    packed = model(torch.cat([first, second])[None], sees, positions, members=members, rows=torch.tensor([0, 0]))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", POOLINGS)
@torch.no_grad()
def test_saved_and_loaded_scores_are_equal(tmp_path, kind):
    model = reward_model(tmp_path / "lm", kind)
    model.shift.fill_(0.5)
    model.scale.fill_(2.0)
    model.save_pretrained(tmp_path / "rm")
    loaded = RewardModel.from_pretrained(tmp_path / "rm")
    ids = torch.arange(5)[None]
    assert loaded.pooling == kind
    assert torch.equal(loaded(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))
    if kind == "attention":
        (tmp_path / "rm" / "reward_config.json").write_text(
            (tmp_path / "rm" / "reward_config.json").read_text().replace('"scale": 2.0', '"scale": 0')
        )
        with pytest.raises(ModelFileError, match="'scale' must be a finite number above 0, found 0"):
            RewardModel.from_pretrained(tmp_path / "rm")


def test_a_shift_is_a_number_that_float32_holds(tmp_path):
    model = reward_model(tmp_path / "lm", "end_token")
    model.save_pretrained(tmp_path / "rm")
    settings = tmp_path / "rm" / "reward_config.json"
    written = settings.read_text()
    settings.write_text(written.replace('"shift": 0.0', f'"shift": {10**30}'))
    assert RewardModel.from_pretrained(tmp_path / "rm").shift == torch.tensor(1e30)
    settings.write_text(written.replace('"shift": 0.0', f'"shift": {10**400}'))
    with pytest.raises(ModelFileError, match="'shift' must be a finite number, found 1000"):
        RewardModel.from_pretrained(tmp_path / "rm")
