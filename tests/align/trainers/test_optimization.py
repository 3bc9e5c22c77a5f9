import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainingArguments

from align.recipe.fields import OptimSection
from align.runs.errors import LaunchError
from align.trainers.arguments import optimizer_options
from align.trainers.optimization import TrainedModel, make_optimizer, mark_last, require_whole, total_norm
from align.trainers.sft import SFTTrainer
from tests.align.trainers.supervised_case import causal_lm, sft_rows
from tests.tiny_models import byte_tokenizer


def section(**changes) -> OptimSection:
    return OptimSection(**{"learning_rate": 0.1, "weight_decay": 0.3, "max_grad_norm": 0.5} | changes)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_decay_spares_biases_and_norms_and_nothing_frozen_is_optimised():
    optimizer = make_optimizer(Net(), section(adam_beta2=0.9, adam_epsilon=1e-3))
    groups = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [(1, 0.3), (3, 0.0)]
    assert optimizer.defaults["betas"] == (0.9, 0.9) and optimizer.defaults["eps"] == 1e-3


def test_one_adamw_step_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    model = TrainedModel(net, section(weight_decay=0.0, max_grad_norm=1e9), Accelerator(), total_steps=4)
    net.weight.grad = torch.tensor([[3.0]])
    model.step()
    assert float(net.weight) == pytest.approx(2.0 - 0.1)  # the first step of Adam has the size of the learning rate
    assert net.weight.grad is None


def test_clip_gives_the_norm_before():
    net = nn.Linear(2, 1, bias=False)
    model = TrainedModel(net, section(), Accelerator(), total_steps=4)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(model.clip()) == pytest.approx(5.0)
    assert torch.allclose(net.weight.grad, torch.tensor([[0.3, 0.4]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, [0.1, 0.1, 0.1]),
        ("constant_with_warmup", 2, [0.0, 0.05, 0.1]),
        ("linear", 0, [0.1, 0.075, 0.05]),
        ("cosine_with_min_lr", 0, [0.1, 0.1 * (0.9 * (2 + 2**0.5) / 4 + 0.1), 0.1 * 0.55]),
    ],
)
def test_schedules_advance_once_an_optimizer_step(kind, warmup, expected):
    net = nn.Linear(1, 1)
    model = TrainedModel(net, section(lr_scheduler_type=kind, warmup_steps=warmup), Accelerator(), total_steps=4)
    rates = []
    for _ in range(3):
        rates.append(model.learning_rate)
        net.weight.grad, net.bias.grad = torch.ones(1, 1), torch.ones(1)
        model.step()
    assert rates == pytest.approx(expected)


def test_small_helpers():
    assert list(mark_last([7, 8])) == [(False, 7), (True, 8)]
    assert float(total_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])) == 5.0


BITSANDBYTES = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion_8bit")


class Wide(nn.Module):
    """Wide enough for moments in 8 bits, which begin at 4096 elements."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed_tokens = nn.Embedding(128, 64)
        self.norm = nn.LayerNorm(64)
        self.inner = nn.Linear(64, 64)

    def forward(self, ids_BT):
        return self.inner(self.norm(self.embed_tokens(ids_BT))).square().mean()


def steps(model, net, count, first=0):
    for step in range(first, first + count):
        net(torch.arange(20) + step).backward()
        model.step()


@pytest.fixture
def wide():
    def make(name):
        net = Wide()
        return net, TrainedModel(net, section(optimizer=name), Accelerator(), total_steps=9)

    return make


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_optimizers_of_bitsandbytes(wide, name):
    net, model = wide(name)
    optimizer = model.optimizer.optimizer
    assert optimizer.is_paged == name.startswith("paged")
    groups = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [(2, 0.3), (3, 0.0)]  # the weights; both biases and the norm
    steps(model, net, 1)
    eight = torch.uint8 if name.endswith("8bit") else torch.float32
    kept = {name: optimizer.state[parameter]["state1"].dtype for name, parameter in net.named_parameters()}
    assert kept == dict.fromkeys(kept, torch.float32) | {"inner.weight": eight}  # embeddings stay in 32 bits


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_optimizers_of_bitsandbytes_resume_bit_for_bit(wide, name, tmp_path):
    net, model = wide(name)
    steps(model, net, 3)
    torch.save({"net": net.state_dict(), "model": model.state_dict()}, tmp_path / "state.pt")
    steps(model, net, 3, first=3)
    again, resumed = wide(name)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["model"])
    steps(resumed, again, 3, first=3)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), again.parameters(), strict=True))
    assert resumed.learning_rate == model.learning_rate


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.needs("bitsandbytes")
def test_adamw_in_32_bits_is_torchs(wide):
    nets = []
    for name in ("adamw", "paged_adamw"):
        net, model = wide(name)
        steps(model, net, 4)
        nets.append(net)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.needs("bitsandbytes")
def test_one_optimizers_exceptions_are_not_anothers(wide):
    """bitsandbytes would keep the second one's first parameter in 32 bits, as the first one's embedding."""
    net, model = wide("adamw_8bit")
    steps(model, net, 1)
    lone = nn.Linear(64, 64)
    other = TrainedModel(lone, section(optimizer="adamw_8bit"), Accelerator(), total_steps=9)
    lone(torch.ones(1, 64)).sum().backward()
    other.step()
    assert other.optimizer.optimizer.state[lone.weight]["state1"].dtype == torch.uint8


def test_sharded_parameters_are_torchs_alone():
    require_whole("adamw", True)
    with pytest.raises(LaunchError, match="optimizer=lion_8bit does not know parameters that FSDP shards"):
        require_whole("lion_8bit", True)


NAMES = {"adamw_8bit": ("AdamW", 8, False), "paged_adamw": ("AdamW", 32, True), "lion_8bit": ("Lion", 8, False)}
NAMES |= {"paged_adamw_8bit": ("AdamW", 8, True)}


@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("name", NAMES)
def test_the_supervised_stages_take_the_same_optimizers(tmp_path, name):
    """The class, its options and its groups are those of transformers' own names, and of PPO's optimizers."""
    told = section(optimizer=name, adam_beta1=0.8)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **optimizer_options(told))
    model = causal_lm(torch.float32)
    trainer = SFTTrainer(model, args, train_dataset=sft_rows(4), processing_class=byte_tokenizer())
    theirs, ours = trainer.create_optimizer(), make_optimizer(model, told)
    kind, bits, paged = NAMES[name]
    for optimizer in (theirs, ours):
        assert type(optimizer).__name__ == kind and type(optimizer).__module__.startswith("bitsandbytes")
        assert (optimizer.args.optim_bits, optimizer.is_paged) == (bits, paged)
        assert [part for part, *_ in optimizer.mng.module_weight_config_triple] == [model.model.embed_tokens]
    for one, other in zip(theirs.param_groups, ours.param_groups, strict=True):
        assert len(one["params"]) == len(other["params"]) and one["weight_decay"] == other["weight_decay"]
        assert all(a is b for a, b in zip(one["params"], other["params"], strict=True))
        keys = ("lr", "betas", *(("eps",) if kind == "AdamW" else ()))
        assert all(one[key] == other[key] for key in keys)
    assert theirs.param_groups[0]["betas"] == (0.8, 0.95)
