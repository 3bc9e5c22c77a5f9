import pytest
import torch

from align.functional import Moments, explained_variance, merge_stats


def test_sums_add_and_extremes_stay_extremes():
    parts = [
        {"tokens": torch.tensor(2.0), "ratio_max": torch.tensor(1.5), "ratio_min": torch.tensor(0.5)},
        {"tokens": torch.tensor(3.0), "ratio_max": torch.tensor(1.25), "ratio_min": torch.tensor(0.25)},
        {"tokens": torch.tensor(0.0), "ratio_max": torch.tensor(-torch.inf), "ratio_min": torch.tensor(torch.inf)},
        {"clipped": torch.tensor(1.0)},
    ]
    merged = {key: figure.item() for key, figure in merge_stats(parts).items()}
    assert merged == {"tokens": 5.0, "ratio_max": 1.5, "ratio_min": 0.25, "clipped": 1.0}
    assert parts[0]["tokens"].item() == 2.0  # the parts are left alone
    assert merge_stats([]) == {}


def test_explained_variance_by_hand():
    returns = Moments.of(torch.tensor([1.0, 2.0, 3.0, 10.0]))  # variance 12.5, sum of squared deviations 50
    assert explained_variance(torch.tensor(0.0), returns) == 1.0
    assert explained_variance(50.0, returns) == pytest.approx(0.0)
    assert explained_variance(25.0, returns) == pytest.approx(0.5)
    assert explained_variance(100.0, returns) == pytest.approx(-1.0)


def test_explained_variance_of_constant_or_no_returns_is_zero():
    assert explained_variance(3.0, Moments.of(torch.tensor([2.0, 2.0]))) == 0.0
    assert explained_variance(0.0, Moments.of(torch.ones(0))) == 0.0
