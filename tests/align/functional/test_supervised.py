import torch

from align.functional.supervised import predicting_positions


def test_predicting_positions_stand_before_the_labels_that_weigh_something():
    weights = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    assert predicting_positions(weights).tolist() == [0, 4]
    assert predicting_positions(torch.zeros(2, 3)).tolist() == []
