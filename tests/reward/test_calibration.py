import pytest
import torch

from data_formats.errors import EmptyDatasetError
from reward.calibration import center, mean_score, score_moments
from reward.errors import FlatScoresError
from reward.model import RewardModel
from tests.tiny_models import save_causal_lm


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    return RewardModel.from_backbone(save_causal_lm(tmp_path))


def batches():
    generator = torch.Generator().manual_seed(0)
    for rows in (3, 1):
        ids = torch.randint(0, 256, (rows, 5), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_the_mean_is_over_rows_not_batches(model):
    scores = [score for batch in batches() for score in model(**batch).tolist()]
    assert len(scores) == 4
    assert mean_score(model, batches()) == pytest.approx(sum(scores) / 4, abs=1e-6)


def test_centred_scores_average_zero_again_and_again(model):
    before = mean_score(model, batches())
    assert abs(before) > 1e-3
    assert center(model, batches()) == before
    assert mean_score(model, batches()) == pytest.approx(0, abs=1e-6)
    center(model, batches())
    assert model.shift.item() == pytest.approx(before, abs=1e-6)


def test_the_mode_is_put_back_and_nothing_is_an_error(model):
    model.train()
    mean_score(model, batches())
    assert model.training
    with pytest.raises(EmptyDatasetError, match="reference"):
        mean_score(model, [])
    assert model.training


def test_unit_variance_and_again_on_top_of_it(model):
    raw = [score for batch in batches() for score in model(**batch).double().tolist()]
    mean = sum(raw) / 4
    deviation = (sum((score - mean) ** 2 for score in raw) / 4) ** 0.5
    for _ in range(2):
        center(model, batches(), unit_variance=True)
        assert score_moments(model, batches()) == pytest.approx((0, 1), abs=1e-5)
        assert (model.shift.item(), model.scale.item()) == pytest.approx((mean, deviation), abs=1e-5)


def test_scores_that_do_not_vary_have_no_unit(model):
    one = {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(FlatScoresError, match="all reference replies have the same score"):
        center(model, [one], unit_variance=True)
    assert (model.shift.item(), model.scale.item()) == (0, 1)
