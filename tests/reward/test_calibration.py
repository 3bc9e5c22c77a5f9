import pytest
import torch

from data_formats.errors import EmptyDatasetError
from reward.calibration import center, mean_score
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
