"""Answers and gradients by blocks against plain autograd on all logits, and what they cost in products and memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from align.functional import token_logprobs
from align.functional.linear_logprobs import TokenQuestion, linear_logprobs

N, V, D = 30, 64, 16
ASKED = {
    "logps": {},
    "entropy": {"entropy": True},
    "logged entropy": {"entropy": True, "learnt": False},
    "sum": {"weights_N": torch.arange(N) % 4},  # some rows weigh nothing
    "max z": {"weights_N": torch.arange(N) % 4, "max_z_coef": 0.3},
}


def layer(dtype=torch.float64, bias=True, frozen=False):
    torch.manual_seed(0)
    states, weight, shift = (torch.randn(shape, dtype=dtype) for shape in ((N, D), (V, D), (V,)))
    return (
        states.requires_grad_(),
        weight.requires_grad_(not frozen),
        shift.requires_grad_(not frozen) if bias else None,
    )


def ids():
    return torch.arange(N) * 7 % V


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("rows", "bias", "temperature"), [(1, True, 0.7), (7, False, 1.0), (29, True, 1.0), (30, True, 0.7)]
)
def test_blocks_are_plain_autograd_on_all_logits(asked, frozen, rows, bias, temperature):
    question = TokenQuestion(ids(), temperature, **ASKED[asked])
    states, weight, shift = layer(bias=bias, frozen=frozen)
    learnt = [one for one in (states, weight, shift) if one is not None and one.requires_grad]
    found = linear_logprobs(states, weight, shift, question, rows)
    whole = states @ weight.T if shift is None else states @ weight.T + shift
    expected = whole.div(temperature).log_softmax(-1).gather(-1, ids()[:, None])
    if question.weights_N is not None:
        gains, told = expected[:, 0], [expected[:, 0].detach()]
        if asked == "max z":
            largest = whole.amax(-1)
            gains, told = gains - 0.3 * largest**2, [*told, largest.detach()]
        total = torch.nn.functional.pad((gains * question.weights_N).sum()[None], (0, N - 1))
        expected = torch.stack([*told, total], dim=-1)
    elif "entropy" in asked:
        entropy = torch.distributions.Categorical(logits=whole / temperature).entropy()
        expected = torch.cat([expected, (entropy if question.learnt else entropy.detach())[:, None]], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(question(whole, slice(0, N)), expected, rtol=1e-12, atol=1e-12)
    upstream = torch.cos(torch.arange(found.numel(), dtype=found.dtype)).reshape(found.shape)
    upstream[3] = 0
    right = torch.autograd.grad((expected * upstream).sum(), learnt)
    for keeps in (True, False):  # a second backward pass finds what the first one did
        made = torch.autograd.grad((found * upstream).sum(), learnt, retain_graph=keeps)
        torch.testing.assert_close(made, right, rtol=1e-12, atol=1e-12)


def test_what_stands_in_rows_that_count_nothing_changes_nothing():
    states, weight, _ = layer(bias=False)
    clean = states.detach().clone()
    clean[::4] = 0
    poisoned = states.detach().clone()
    poisoned[::4] = torch.nan
    found = []
    for one in (clean.requires_grad_(), poisoned.requires_grad_()):
        for rows in (7, 30):
            question = TokenQuestion(ids(), weights_N=torch.arange(N) % 4, max_z_coef=0.3)
            total = linear_logprobs(one, weight, None, question, rows)[:, -1].sum()
            logps = linear_logprobs(one, weight, None, TokenQuestion(ids()), rows)[:, 0]
            kept = torch.where(question.weights_N > 0, logps, 0.0).sum()
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(total + kept, [one])]))
    assert all(torch.isfinite(one).all() for one in found)
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [7, 30])
def test_under_autocast_it_is_as_exact_as_a_linear_layer(rows):
    states, weight, shift = layer(torch.float32)
    exact = [one.detach().double().requires_grad_() for one in (states, weight, shift)]
    token_logprobs(torch.nn.functional.linear(*exact), ids()).sum().backward()
    errors = []
    for fused in (True, False):
        states.grad = weight.grad = shift.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            if fused:
                logps = linear_logprobs(states, weight, shift, TokenQuestion(ids()), rows)[:, 0]
            else:
                logps = token_logprobs(torch.nn.functional.linear(states, weight, shift), ids())
        assert logps.dtype == torch.float32
        logps.sum().backward()
        assert weight.grad.dtype == states.grad.dtype == torch.float32
        errors.append(
            [
                float((a.grad - b.grad).norm() / b.grad.norm())
                for a, b in zip((states, weight, shift), exact, strict=True)
            ]
        )
    assert all(mine < 2 * plain and mine < 0.01 for mine, plain in zip(*errors, strict=True))


class Products(TorchDispatchMode):
    """Multiplications with the layer, in rows; and the most elements that any tensor as wide as the vocabulary had."""

    def __init__(self):
        super().__init__()
        self.rows = self.widest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.rows += left.shape[0] * left.shape[1] * right.shape[1] // (V * D)
        elif isinstance(made, torch.Tensor) and made.shape[-1:] == (V,) and made.shape != (D, V):
            self.widest = max(self.widest, made.shape[:-1].numel())
        return made


@pytest.mark.parametrize(
    ("asked", "frozen", "rows", "forward", "backward"),
    [
        ("logps", False, 30, 1, 2),  # a block is kept
        ("logps", False, 7, 1, 3),  # more are made again
        ("sum", False, 7, 3, 0),
        ("sum", True, 7, 2, 0),
        ("max z", False, 7, 3, 0),
        ("logps", True, 7, 2, 0),
        ("logged entropy", True, 7, 2, 0),
        ("entropy", True, 7, 1, 2),
    ],
)
def test_the_number_of_products(asked, frozen, rows, forward, backward):
    states, weight, _ = layer(bias=False, frozen=frozen)
    with Products() as first:
        found = linear_logprobs(states, weight, None, TokenQuestion(ids(), **ASKED[asked]), rows)
    with Products() as second:
        found.sum().backward()
    assert (first.rows, second.rows) == (forward * N, backward * N)
    assert max(first.widest, second.widest) <= rows
    with torch.no_grad(), Products() as plain:
        linear_logprobs(states, weight, None, TokenQuestion(ids(), **ASKED[asked]), rows)
    assert plain.rows == N


def test_bad_input_is_refused():
    states, weight, _ = layer()
    with pytest.raises(ValueError, match=r"ids_N \(3,\)"):
        linear_logprobs(states, weight, None, TokenQuestion(torch.zeros(3, dtype=torch.int64)), 4)
    with pytest.raises(ValueError, match="max_z_coef is a part of the weighted sum"):
        linear_logprobs(states, weight, None, TokenQuestion(ids(), max_z_coef=0.1), 4)
    with pytest.raises(ValueError, match=r"weights_N \(3,\)"):
        linear_logprobs(states, weight, None, TokenQuestion(ids(), weights_N=torch.ones(3)), 4)
