import math

import torch

from reward.head import ScalarHead


def test_initial_weights_have_the_stated_deviation():
    torch.manual_seed(0)
    d = 40_000
    weight = ScalarHead(d).weight.double()
    expected = 1 / math.sqrt(d + 1)
    assert abs(weight.std().item() / expected - 1) < 0.02  # standard error 1 / sqrt(2 d) = 0.0035
    assert abs(weight.mean().item()) < 4 * expected / math.sqrt(d)


def test_zero_head_gives_zero():
    assert ScalarHead(3, zero=True)(torch.randn(2, 5, 3)).tolist() == [[0.0] * 5] * 2


def test_dot_product_by_hand_for_any_leading_shape():
    head = ScalarHead(2, zero=True)
    head.weight.data = torch.tensor([[2.0, -1.0]])
    assert head(torch.tensor([[[1.0, 1.0], [0.5, 3.0]]])).tolist() == [[1.0, -2.0]]


def test_casts_leave_the_weight_alone_and_devices_move_it():
    head = ScalarHead(5)
    before = head.weight.clone()
    for cast in (head.half, head.bfloat16, lambda: head.to(dtype=torch.bfloat16)):
        cast()
        assert head.weight.dtype == torch.float32
        assert torch.equal(head.weight, before)
    assert head(torch.ones(1, 5, dtype=torch.bfloat16)).dtype == torch.float32
    assert head.to("meta").weight.device.type == "meta"
