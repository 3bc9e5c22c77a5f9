import json

import pytest
import torch

from align.models.critic import Critic
from align.models.role_adapters import Adapter
from align.models.roles import SharedBackbone
from align.runs.errors import TrainingError
from align.trainers.ppo import make_accelerator
from tests.align.models import roles_case
from tests.align.trainers import ppo_case, roles_run

BF16 = {"mixed_precision": "bf16", "gradient_checkpointing": True}
FOUR_BIT = [pytest.mark.needs("bitsandbytes"), pytest.mark.slow]
TIMES = ("time", "seconds/", "tokens_per_second", "memory/")


def figures(trainer):
    lines = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]


def largest(found, expected):
    """Largest difference relative to the largest entry of the expected tensors."""
    whole = max(float(tensor.abs().max()) for tensor in expected)
    pairs = zip(found, expected, strict=True)
    assert whole > 0
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs) / whole


@pytest.mark.parametrize(
    ("dtype", "limit", "options"),
    [
        pytest.param(torch.float32, 1e-6, {}, id="float32", marks=pytest.mark.slow),
        pytest.param(torch.float64, 1e-12, {}, id="float64"),
        pytest.param(torch.float64, 1e-12, {"gradient_checkpointing": True}, id="checkpointed", marks=pytest.mark.slow),
        pytest.param(torch.float32, 1e-6, {"critic_warmup_steps": 5, "ema_decay": 0.9}, id="warmup-ema"),
        pytest.param(torch.float32, 1e-6, {"four_bit": True}, id="4bit", marks=FOUR_BIT),
        pytest.param(torch.float32, 1e-6, BF16, id="bf16", marks=pytest.mark.slow),
    ],
)
def test_two_iterations_equal_those_of_four_models(tmp_path, dtype, limit, options):
    options = dict(options)
    runs, checkpointed, changes = {}, options.pop("gradient_checkpointing", False), {}
    precision = options.pop("mixed_precision", "no")
    if options.pop("four_bit", False):
        roles_case.base().save_pretrained(tmp_path / "base")
        changes = {"four_bit": tmp_path / "base"}
    for shared in (False, True):
        parts = roles_run.models(shared, dtype, **changes)
        if checkpointed:
            for name in ("policy", "critic"):
                parts[name].gradient_checkpointing_enable({"use_reentrant": False})
        options["accelerator"] = make_accelerator(precision)
        trainer = roles_run.trainer(tmp_path / str(shared), parts, **options)
        start = roles_run.weights(parts)
        trainer.train()
        runs[shared] = trainer, start, roles_run.weights(parts)
        linear = parts["policy"].get_base_model().model.layers[0].self_attn.q_proj
        assert (type(linear).__name__ == "Linear4bit") == bool(changes)
        assert not getattr(linear, "support_avx512bf16_for_cpu", False)
    (alone, begun, expected), (together, same, found) = runs[False], runs[True]
    assert len(alone.steps) == len(together.steps) == 8
    for (_, wanted), (_, had) in zip(alone.steps, together.steps, strict=True):
        assert wanted.keys() == had.keys()
        assert all(largest(had[name], wanted[name]) <= limit for name in wanted)
        assert all(float(gradient.norm()) > 0 for name in had for gradient in had[name])
    for name in expected:
        assert all(torch.equal(a, b) for a, b in zip(begun[name], same[name], strict=True))
        assert largest(found[name], expected[name]) <= limit
        moved = any(not torch.equal(a, b) for a, b in zip(found[name], same[name], strict=True))
        assert moved == (name in ("policy", "critic"))
    for wanted, had in zip(figures(alone), figures(together), strict=True):
        assert had == pytest.approx(wanted, rel=100 * limit, abs=100 * limit)
        assert abs(had.get("kl/reply", 1.0)) > 0.01
    if "ema_decay" in options:
        pairs = zip(together.ema.module.parameters(), trained(alone.ema.module, alone.policy.raw), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in pairs)


def trained(average, raw):
    return [p for (name, p), q in zip(average.named_parameters(), raw.parameters(), strict=True) if q.requires_grad]


def test_policy_is_the_reference_at_the_start(tmp_path):
    parts = roles_case.shared(roles_case.separate())
    trainer = roles_run.trainer(tmp_path, parts, kl_coef=1.0, reward=ppo_case.length_score, num_iterations=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["kl/reply"] == 0.0 and first["kl/full_token"] == 0.0
    assert trainer.evaluate(ppo_case.prompts(2))["eval/kl"] != 0


@pytest.mark.parametrize("trained_role", ["critic", "policy"])
def test_a_step_of_one_role_leaves_the_others_and_the_base_bit_for_bit(tmp_path, trained_role):
    parts = roles_run.models(shared=True)
    trainer = roles_run.trainer(tmp_path, parts, num_iterations=1, policy={"weight_decay": 0.1})
    whole = parts["policy"].backbone.model
    before = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    model = getattr(trainer, trained_role)
    batch = torch.tensor([[5, 9, 200, 31, 7]])
    if trained_role == "critic":
        model.module(batch, torch.ones_like(batch)).square().sum().backward()
    else:
        model.module(input_ids=batch).logits.square().mean().backward()
    model.step()
    changed = {name for name, parameter in whole.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all(f".{trained_role}." in name for name in changed)
    assert all(parameter.grad is None for parameter in whole.parameters())


@pytest.mark.slow
def test_rollouts_of_the_policys_view_are_those_of_its_own_model(tmp_path):
    texts = {}
    for shared in (False, True):
        trainer = roles_run.trainer(
            tmp_path / str(shared), roles_run.models(shared), kind=ppo_case.PPOTrainer, eval_prompts=ppo_case.prompts(3)
        )
        trainer.train()
        lines = (tmp_path / str(shared) / "samples.jsonl").read_text().splitlines()
        texts[shared] = [json.loads(line)["reply"] for line in lines], figures(trainer)[0]
    assert texts[True][0] == texts[False][0] and len(set(texts[True][0])) > 2
    assert texts[True][1] == pytest.approx(texts[False][1], rel=1e-5, abs=1e-6)


def test_a_copy_of_a_view_computes_nothing(tmp_path):
    parts = roles_case.shared(roles_case.separate())
    trainer = roles_run.trainer(tmp_path, parts | {"reference": None}, num_iterations=1)
    with pytest.raises(TrainingError, match="copy of a role's weights"):
        trainer.train()


@pytest.mark.slow
def test_the_base_alone_as_reference_equals_a_whole_one(tmp_path):
    runs = {}
    for shared in (False, True):
        parts = roles_case.separate() | {"reference": roles_case.base()}
        started = {"policy": Adapter.of(parts["policy"]), "reference": None}
        if shared:
            critic = Adapter.of(parts["critic"].backbone, of_body=True)
            backbone = SharedBackbone(roles_case.base(), started | {"critic": critic})
            views = {name: backbone.causal(name) for name in started}
            parts |= views | {"critic": Critic(backbone.headless("critic"), parts["critic"].head)}
        trainer = roles_run.trainer(tmp_path / str(shared), parts)
        trainer.train()
        runs[shared] = [p.detach() for p in trainer.policy.parameters + trainer.critic.parameters], figures(trainer)
    assert largest(runs[True][0], runs[False][0]) <= 1e-6
    for wanted, had in zip(runs[False][1], runs[True][1], strict=True):
        assert had == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert abs(had["kl/reply"]) > 0.01


def test_dropout_of_every_role_is_silenced(tmp_path):
    started = {"policy": Adapter(roles_case.config(lora_dropout=0.5)), "reference": None}
    critic = Adapter(roles_case.config(lora_dropout=0.3), of_body=True)
    backbone = SharedBackbone(roles_case.base(attention_dropout=0.1), started | {"critic": critic})
    rates = [part.p for part in backbone.model.modules() if isinstance(part, torch.nn.Dropout)]
    assert {0.5, 0.3} <= set(rates)
    parts = roles_case.separate() | {name: backbone.causal(name) for name in started}
    roles_run.trainer(tmp_path, parts | {"critic": Critic(backbone.headless("critic"))})
    assert not any(part.p for part in backbone.model.modules() if isinstance(part, torch.nn.Dropout))
    assert not any(getattr(part, "attention_dropout", 0) for part in backbone.model.modules())
