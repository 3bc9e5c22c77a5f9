"""Proposals are plans of the changed recipe; sums of parts checked by hand on one."""

import pytest

from align.plan import card, plan_stages, propose
from align.plan.count import count
from align.plan.parts import GIB
from align.plan.propose import alone, changed
from align.plan.shapes import PlanError, shipped_shapes
from align.recipe import load_recipe

SEVEN = count(shipped_shapes()["Qwen2.5-7B"])


def by_kind(plan, role=None):
    found = {}
    for part in plan.peak.parts:
        if role in (None, part.role):
            found[part.kind] = found.get(part.kind, 0) + part.bytes
    return found


def test_weights_gradients_and_moments_of_a_full_finetune_by_hand():
    sft, pmp, _, ppo = plan_stages(load_recipe("qwen_rlhf"))
    kinds = by_kind(sft)
    assert kinds["weights"] == kinds["gradients"] == 4 * SEVEN.whole  # float32; 64 micro-batches are added up
    assert kinds["optimizer"] == 8 * SEVEN.whole
    assert kinds["weight copies"] == 2 * (SEVEN.linear + SEVEN.head)  # autocast's
    assert by_kind(pmp)["weights"] == 4 * SEVEN.body  # no LM head
    roles = {part.role for part in ppo.peak.parts}
    assert roles == {"policy", "critic", "reference", "reward"}
    assert by_kind(ppo, "critic")["optimizer"] == 8 * SEVEN.body
    assert "optimizer" not in by_kind(ppo, "reference") and by_kind(ppo, "reference")["weights"] == 4 * SEVEN.whole


def test_four_bits_a_weight_and_one_base_for_four_roles():
    plan = plan_stages(load_recipe("qwen2.5_7b_qlora_24gb"))[-1]
    packed = SEVEN.linear * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * (SEVEN.embedding + SEVEN.head + SEVEN.rest)
    assert by_kind(plan, "policy")["weights"] == round(packed)
    assert "weights" not in by_kind(plan, "critic") and "weights" not in by_kind(plan, "reward")
    rank, linears = 16, shipped_shapes()["Qwen2.5-7B"].linears
    adapter = 28 * rank * sum(map(sum, linears.values()))
    assert by_kind(plan, "critic") == {"adapters": 4 * adapter, "optimizer": 8 * adapter}
    apart = plan_stages(load_recipe("qwen2.5_7b_qlora_24gb", ["ppo.shared_backbone=false"]))[-1]
    assert apart.peak.bytes - plan.peak.bytes > 3 * 4 * GIB - GIB


def test_what_stands_on_no_shared_base_is_counted_whole():
    """A gold reward model only looks on; an average has a copy of what is trained, and no base of its own."""
    name, more = "qwen2.5_7b_qlora_24gb", ["ppo.ema_decay=0.99", "ppo.gold_reward=[{kind: model, model_from: rm}]"]
    shared, apart = (
        plan_stages(load_recipe(name, [*more, *words]))[-1] for words in ([], ["ppo.shared_backbone=false"])
    )
    for plan in (shared, apart):
        assert by_kind(plan, "average") == {"adapters": by_kind(plan, "policy")["adapters"]}
    full = plan_stages(load_recipe("qwen_rlhf", ["ppo.ema_decay=0.99"]))[-1]
    assert by_kind(full, "average")["weights"] == by_kind(full, "policy")["weights"]
    gold = next(part.role for part in shared.peak.parts if part.role.startswith("gold"))
    assert by_kind(shared, gold)["weights"] == by_kind(apart, gold)["weights"] > 3 * GIB


def test_a_language_models_term_of_a_reward_model_holds_an_output_layer_that_is_not_trained():
    for name, width in (("qwen2.5_7b_qlora_24gb", 2), ("qwen_rlhf", 4)):
        without, held = (
            plan_stages(load_recipe(name, [f"rm.lm_weight={weight}", "rm.init_from=sft", "rm.max_length=512"]))[-2]
            for weight in (0, 0.1)
        )
        assert "output layer" not in {part.role for part in without.peak.parts}
        for moment in held.moments:
            (layer,) = (part for part in moment.parts if part.role == "output layer")
            assert layer.bytes == width * SEVEN.head and layer.kind == "weights"
        assert by_kind(held, "model")["weights"] == by_kind(without, "model")["weights"]
        ends = [one.moments[-2].bytes for one in (without, held)]
        assert ends[1] - ends[0] == width * SEVEN.head  # no gradient of it


@pytest.mark.parametrize(
    ("change", "kind", "less"),
    [
        ("sft.optimizer=adamw_8bit", "optimizer", 0.35),
        ("sft.micro_batch_size=1", "activations", 0.51),
        ("sft.max_length=1024", "activations", 0.51),
        ("model.adapter=lora", "gradients", 0.01),
    ],
)
def test_each_change_lowers_its_own_part(change, kind, less):
    before, after = (plan_stages(load_recipe("qwen_rlhf", words))[0] for words in ([], [change]))
    moment = before.peak.name

    def size(plan):
        found = next((one for one in plan.moments if one.name == moment), plan.peak)
        return sum(part.bytes for part in found.parts if part.kind == kind)

    assert size(after) <= less * size(before)


def test_checkpointing_keeps_a_layer_not_all():
    with_it, without = (
        plan_stages(load_recipe("qwen_rlhf", words))[0] for words in ([], ["model.gradient_checkpointing=false"])
    )
    assert 28 / 3 < by_kind(without)["activations"] / by_kind(with_it)["activations"] < 28


@pytest.mark.parametrize("size", ["24GB", "48GB", "80GB"])
def test_a_proposal_fits_when_planned_again_and_needs_each_of_its_changes(size):
    limit = card.usable(card.read_size(size))
    recipe = load_recipe("qwen_rlhf")
    found = propose(recipe, limit)
    assert found is not None and found.peak <= limit

    def peak(words):
        return max(plan.peak.bytes for plan in plan_stages(load_recipe("qwen_rlhf", words)))

    linked = ("model.adapter", "model.dtype", "model.mixed_precision")
    assert peak(found.changes) == found.peak
    for word in found.changes:
        if not word.startswith(linked):
            assert peak([other for other in found.changes if other != word]) > limit


def test_a_card_too_small_for_any_change():
    assert propose(load_recipe("qwen_rlhf"), GIB) is None


def test_single_changes_are_sorted_and_smaller():
    recipe = load_recipe("qwen_rlhf")
    plan = plan_stages(recipe)[-1]
    peaks = [one.peak for one in alone(recipe, plan)]
    assert peaks == sorted(peaks) and peaks[-1] < plan.peak.bytes
    assert changed(recipe, {"sft.micro_batch_size": 3}, 1) is None  # 128 rows cannot be cut so


def test_a_micro_batch_bounded_by_tokens_is_lowered_by_them():
    recipe = load_recipe("qwen2.5_0.5b_lora_24gb", ["ppo.micro_batch_size=null"])
    assert any("ppo.micro_batch_tokens=4096" in one.changes for one in alone(recipe, plan_stages(recipe)[-1]))


def test_sizes_of_cards():
    assert card.read_size("24GB") == card.read_size("24") == card.read_size("24 GiB") == 24 * GIB
    assert card.read_size("24564MiB") == 24564 * 2**20
    assert card.usable(24 * GIB) == round(24 * GIB * 0.95 - 0.75 * GIB)
    for wrong in ("big", "0GB", "-1", "24TB"):
        with pytest.raises(PlanError, match="write a card's memory as 24GB"):
            card.read_size(wrong)
