"""The head answers in blocks: the same answers and gradients as from all logits, which are never held."""

from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from peft import get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from align.functional import token_entropy, token_logprobs
from align.models.role_adapters import Adapter
from align.models.roles import SharedBackbone
from align.trainers import head
from align.trainers.causal_forward import ask_at
from align.trainers.ppo.forward import reply_distribution, reply_full_kl, reply_logprobs, shares_prompts
from align.trainers.ppo.types import TokenBatch
from rollouts.weights import checkpoint_tensors
from tests.align.models import roles_case
from tests.align.trainers import ppo_case
from tests.align.trainers.test_causal_forward import MODELS, make
from tests.ranks import on_ranks

IDS = torch.arange(1, 31).reshape(2, 15)
BATCH = TokenBatch.from_ids([(1, 2, 3), (4, 5, 6, 7, 8), (9,)], [(10, 11, 258), (12,), (13, 14, 15, 16)], pad_id=77)


def ask(logits, at):
    ids = IDS.flatten()[at] % logits.shape[-1]
    return torch.stack([token_logprobs(logits, ids, 0.7), token_entropy(logits, 0.7)], dim=-1)


def answers_and_gradients(model, flat=None):
    model.zero_grad()
    if flat is None:
        _, found = head.ask_head(model, model, {"input_ids": IDS}, IDS.numel(), ask)
    else:
        _, found = ask_at(model, model, {"input_ids": IDS}, flat, ask)
    (found * torch.arange(1.0, found.numel() + 1).reshape(found.shape)).sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("flat", [None, torch.tensor([0, 3, 4, 9, 20, 28, 29])])
def test_blocks_give_the_answers_and_gradients_of_all_logits(name, flat, monkeypatch):
    model = make(name)
    whole = answers_and_gradients(model, flat)
    monkeypatch.setattr(head, "BLOCK_LOGITS", 64 * 4)  # four rows
    torch.testing.assert_close(answers_and_gradients(model, flat), whole, rtol=1e-12, atol=1e-12)
    assert model(input_ids=IDS).logits.shape == (2, 15, 64)  # the head is itself again


def test_a_model_that_changes_its_logits_unannounced_is_found_out(monkeypatch):
    model = make("qwen3")
    plain = model.forward

    def scaled(**kwargs):
        output = plain(**kwargs)
        output.logits = output.logits * 2.0
        return output

    model.forward = scaled
    whole = answers_and_gradients(model)
    monkeypatch.setattr(head, "BLOCK_LOGITS", 64 * 4)
    for _ in range(2):  # found out, then known
        torch.testing.assert_close(answers_and_gradients(model), whole, rtol=1e-12, atol=1e-12)


class Widest(TorchDispatchMode):
    """The most rows that any tensor as wide as the vocabulary had."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point() and made.shape[-1:] == (259,):
            rows = made.shape[:-1].numel()
            self.rows = max(self.rows, rows if rows != 16 else 0)  # 16 x 259 is the head's own gradient
        return made


def test_no_more_logits_than_a_block_are_ever_made(monkeypatch):
    model = ppo_case.exact(ppo_case.policy())
    assert shares_prompts(model)  # tried before
    for limit, expected in ((1 << 26, 3 + 1 + 4), (259 * 5, 5)):
        monkeypatch.setattr(head, "BLOCK_LOGITS", limit)
        with Widest() as seen:
            reply_distribution(model, BATCH, 0.5, entropy=True).full.sum().backward()
        assert seen.rows == expected


def test_replies_in_blocks_are_judged_as_at_once(monkeypatch):
    model = ppo_case.exact(ppo_case.policy())
    found = reply_distribution(model, BATCH, 0.5, entropy=True)
    monkeypatch.setattr(head, "BLOCK_LOGITS", 259 * 2)
    blocks = reply_distribution(model, BATCH, 0.5, entropy=True)
    torch.testing.assert_close(blocks.full, found.full, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(blocks.entropy, found.entropy, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(reply_logprobs(model, BATCH, 0.5), found.full.detach(), rtol=1e-13, atol=1e-13)


def test_the_exact_kl_of_a_block_of_replies_is_that_of_each(monkeypatch):
    policy, reference = (ppo_case.exact(ppo_case.policy(seed)) for seed in (0, 1))
    assert shares_prompts(policy)
    passes = []
    policy.register_forward_pre_hook(lambda *_, **__: passes.append(1))
    found = []
    for block in (1 << 26, 259 * 4, 1):
        monkeypatch.setattr(head, "BLOCK_LOGITS", block)
        passes.clear()
        found.append(reply_full_kl(policy, reference, BATCH, 0.7))
        assert len(passes) == {1 << 26: 1, 1: 3}.get(block, 2)
    for kl_BS in found[1:]:
        torch.testing.assert_close(kl_BS * BATCH.mask_NS, found[0] * BATCH.mask_NS, rtol=1e-11, atol=1e-12)
    assert float((found[0] * BATCH.mask_NS).sum()) > 0


def learn_in_blocks(out):
    """The gradients of a loss over log-probabilities and entropies of a rank's own rows, checkpointed or not."""
    distributed.init_process_group("gloo")
    model = ppo_case.exact(ppo_case.policy())
    wrapped = DistributedDataParallel(model)
    rows = torch.tensor([[0, 1], [2]][distributed.get_rank()])
    with mock.patch.object(head, "BLOCK_LOGITS", 259 * 2):
        found = reply_distribution(wrapped, BATCH.rows(rows), 0.5, entropy=True)
        (found.full.sum() + 0.1 * found.entropy.sum()).backward()
    if distributed.get_rank() == 0:
        torch.save({name: part.grad.clone() for name, part in model.named_parameters()}, out)


@pytest.mark.slow
def test_two_ranks_add_up_the_gradients_of_their_blocks(tmp_path):
    on_ranks(2, learn_in_blocks, tmp_path / "gradients.pt")
    model = ppo_case.exact(ppo_case.policy())
    for rows in ([0, 1], [2]):
        found = reply_distribution(model, BATCH.rows(torch.tensor(rows)), 0.5, entropy=True)
        ((found.full.sum() + 0.1 * found.entropy.sum()) / 2).backward()  # DDP takes the mean over ranks
    expected = {name: part.grad for name, part in model.named_parameters()}
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_the_second_pass_runs_in_its_context(monkeypatch):
    """A head that computes as another between the two passes (a role of a shared backbone) is what it was at first."""
    model = make("qwen3")
    whole = answers_and_gradients(model)
    monkeypatch.setattr(head, "BLOCK_LOGITS", 64 * 4)
    plain, entered = model.lm_head.forward, []

    @contextmanager
    def second_pass():
        entered.append(model.lm_head.forward)
        model.lm_head.forward = plain
        yield
        model.lm_head.forward = entered[-1]

    model.second_pass = second_pass
    torch.testing.assert_close(answers_and_gradients(model), whole, rtol=1e-12, atol=1e-12)
    assert len(entered) == 8  # 30 rows, four at a time


@pytest.mark.parametrize(
    "changes", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=["adapted", "whole"]
)
def test_a_roles_own_head_answers_again_as_that_role(changes, monkeypatch):
    """The backward pass comes when the role was left, or another computes; what is pushed is the role's head too."""
    config = roles_case.config(task_type="CAUSAL_LM", **changes)
    alone = roles_case.moved(get_peft_model(roles_case.base(torch.float64), config), 1)
    other = roles_case.moved(get_peft_model(roles_case.base(torch.float64), config), 2)
    backbone = SharedBackbone(
        roles_case.base(torch.float64), {"critic": Adapter.of(other), "policy": Adapter.of(alone), "reference": None}
    )
    view = backbone.causal("policy")
    own = [part.grad for part in _judged(alone).parameters() if part.grad is not None]
    for role in (None, "critic", "reference"):
        for limit in (1 << 26, 259 * 2):
            monkeypatch.setattr(head, "BLOCK_LOGITS", limit)
            found = [part.grad for part in _judged(view, backbone, role).parameters() if part.grad is not None]
            torch.testing.assert_close(found, own, rtol=1e-11, atol=1e-13)
    pushed = dict(checkpoint_tensors(view))
    assert pushed.keys() == dict(checkpoint_tensors(alone)).keys() and "lm_head.weight" in pushed
    assert all(torch.equal(pushed[name], tensor) for name, tensor in checkpoint_tensors(alone))


def _judged(model, backbone=None, role=None):
    """With the gradients of a judgement whose backward pass is run inside another `role`."""
    model.zero_grad()
    loss = reply_distribution(model, BATCH, 0.5, entropy=True).full.sum()
    with nullcontext() if role is None else backbone.role(role):
        loss.backward()
    return model
