"""Seconds of passes, collectives and optimizer steps, by hand; memory of a card under FSDP2."""

import pytest

from align.plan.models import trained_model
from align.plan.parts import GIB, Moment
from align.plan.predict import ppo_models, supervised_model
from align.recipe import load_recipe
from align.recipe.model_section import ModelSection
from align.recipe.ppo_section import CriticOptim, PolicyOptim
from align.scale.cards import CARDS, Card, Cluster, ScaleError, read_cluster
from align.scale.choose import stage_scale
from align.scale.efficiency import PEAK, Efficiency
from align.scale.layout import Layout
from align.scale.memory import ends, layer, whole
from align.scale.phases import Machine
from align.scale.probe import _fitted
from tests.align.scale.test_decoding import SHAPE

CARD = Card("one", 1000.0, 100.0, 10**9, 10.0, 1.0, 5.0)
HALF = Efficiency(training=0.5, passes=0.25, bandwidth=0.5, link=0.5)
MODEL = ModelSection(path="unused", dtype="float32", mixed_precision="bf16")
LAYER = 2 * 64 + 2 * 32 + 3 * 96 + 8 + 4 + 4 + 2 * 8  # linear layers, biases of q, k, v, two norms
SIZE = 2 * LAYER + 2 * 80 + 8  # two layers, embedding, head, last norm


def machine(ranks, sharding, cards=4, nodes=1):
    return Machine(Layout(Cluster(CARD, cards, nodes), ranks, sharding), HALF)


def policy(head=True):
    return trained_model("policy", SHAPE, MODEL, PolicyOptim(), head=head)


def test_parts_of_a_model():
    assert whole(policy()) == SIZE and ends(policy()) == 160 and layer(policy()) == (SIZE - 160) // 2
    assert whole(policy(head=False)) == SIZE - 80 and ends(policy(head=False)) == 80


def test_passes_of_two_micro_batches():
    model, four = policy(), machine(4, "fsdp2")
    gathered = 2 * SIZE * 3 / 4 / 5  # bfloat16, three quarters come from elsewhere, 10 a second at half
    asked = four.asked("reference", "experience", 8000.0, model, 2)
    assert asked.needs == pytest.approx({"compute": 8000 / (4 * 250), "link": 2 * gathered})
    trained = four.trained("update", "update", 8000.0, model, 2, 1)
    reduced = 4 * SIZE * 3 / 4 / 5  # float32, every micro-batch
    assert trained.needs == pytest.approx({"compute": 4.0, "link": 2 * (2 * gathered + reduced)})
    assert trained.bound == "link" and trained.seconds == trained.needs["link"]
    # DDP: nothing gathered, twice around, once an optimizer step
    plain = machine(4, "ddp").trained("update", "update", 8000.0, model, 2, 1)
    assert plain.needs == pytest.approx({"compute": 4.0, "link": 2 * reduced})
    alone = machine(1, "one").trained("update", "update", 8000.0, model, 2, 1)
    assert alone.needs == pytest.approx({"compute": 16.0}) and alone.bound == "compute"


def test_across_machines_all_adapters_of_one_carry_the_rings():
    assert machine(4, "ddp").layout.cluster.collective(4) == 10
    assert Cluster(CARD, 4, 2).collective(8) == 4 and Cluster(CARD, 16, 2).collective(32) == 10


def test_an_optimizer_step_reads_and_writes():
    # float32 weights twice, gradients four times, two float32 moments twice: 40 bytes; 50 a second
    step = machine(4, "ddp").stepped((policy(),), 3, "update")
    assert step.needs == pytest.approx({"memory": 3 * 40 * SIZE / 50})
    assert machine(4, "fsdp2").stepped((policy(),), 3, "update").seconds == pytest.approx(step.seconds / 4)
    away = machine(1, "one").stepped((policy(),), 1, "update", offloaded=True)
    assert away.needs["host"] == pytest.approx(2 * 8 * SIZE / 2.5)
    eight = trained_model("critic", SHAPE, MODEL, CriticOptim(optimizer="lion_8bit"))
    assert machine(1, "one").stepped((eight,), 1, "update").seconds == pytest.approx(
        (24 + 2 * (1 + 4 / 256)) * SIZE / 50
    )


def kinds(moment: Moment, role: str) -> dict[str, int]:
    return {part.kind: part.bytes for part in moment.parts if part.role == role}


def test_what_eight_cards_hold_of_seven_billions():
    cluster = read_cluster("8xH200")
    recipe = load_recipe("qwen_rlhf", ["ppo.rollout.engine=vllm", "ppo.eval_data=[]"])
    count = ppo_models(recipe).policy.body.count
    found = stage_scale(recipe, "ppo", Layout(cluster, 8, "fsdp2"), PEAK).plan
    peak = next(one for one in found.moments if one.name == "policy, ptx: backward pass begins")
    held = kinds(peak, "policy")
    assert held["weights"] == held["gradients"] == -(-4 * count.whole // 8) and held["optimizer"] == count.whole
    assert kinds(peak, "reward") == {"weights": 4 * count.body}  # whole on every card
    outside = count.embedding + count.head
    one = (count.whole - outside) // 28
    assert held["gathered"] == 2 * (2 * one + outside) + 4 * outside
    assert "buckets" not in held and "weight copies" not in held
    # an evaluation holds policy and reference whole
    looked = stage_scale(
        load_recipe("qwen_rlhf", ["ppo.rollout.engine=vllm"]), "ppo", Layout(cluster, 8, "fsdp2"), PEAK
    )
    (moment,) = (one for one in looked.plan.moments if one.name.endswith("evaluation"))
    assert kinds(moment, "reference")["gathered"] == kinds(moment, "policy")["gathered"] == 2 * count.whole


def test_a_supervised_stage_keeps_gradients_of_several_micro_batches_whole():
    cluster, held = read_cluster("8xH200"), {}
    for rows in (2, 16):
        recipe = load_recipe("qwen_rlhf", [f"sft.micro_batch_size={rows}"])
        plan = stage_scale(recipe, "sft", Layout(cluster, 8, "fsdp2"), PEAK).plan
        (turn,) = (one for one in plan.moments if one.name == "model: backward pass begins")
        held[rows] = kinds(turn, "model").get("gradients", 0)
    assert held == {2: 4 * supervised_model(recipe, "sft").body.count.whole, 16: 0}


def test_cards_that_are_written():
    assert read_cluster("8xH200,4 nodes") == read_cluster("8 x h200, 4") == Cluster(CARDS["H200"], 8, 4)
    assert read_cluster("A100-80").cards == 1 and read_cluster("2*4090").words == "2 × 4090"
    assert CARDS["H200"].memory == 139 * GIB
    for wrong, said in (
        ("8xH300", "known are H200, H100"),
        ("", "write cards as"),
        ("0xH200", "0 cards"),
        ("8", "not known"),
    ):
        with pytest.raises(ScaleError, match=said):
            read_cluster(wrong)


def test_what_two_runs_of_unlike_size_tell():
    # shares of a quarter, and 0.01 s a layer: 8 / 0.25 + 100 layers, 40 / 0.25 + 150 layers
    points = [(8.0, 100.0, 33.0), (40.0, 150.0, 161.5)]
    assert _fitted(points) == pytest.approx((0.25, 0.01))
    assert _fitted(points[:1]) == (8 / 33, 0.0)
    # a third one that does not agree: the largest error is spread; nothing negative comes out
    assert _fitted([*points, (20.0, 100.0, 90.0)])[0] == pytest.approx(0.24, abs=0.02)
    assert _fitted([(8.0, 100.0, 10.0), (40.0, 100.0, 160.0)]) == (0.25, 0.0)
    assert _fitted([(8.0, 100.0, 32.0), (8.0, 100.0, 32.0)]) == (0.25, 0.0)


def test_layers_are_started_besides():
    slow = Efficiency(training=0.5, passes=0.25, bandwidth=0.5, link=0.5, pass_layer=0.5, train_layer=2.0)
    one = Machine(Layout(Cluster(CARD), 1, "one"), slow)
    asked = one.asked("reference", "experience", 250.0, policy(), 3)
    assert asked.seconds == pytest.approx(1 + 3 * 2 * 0.5) and asked.bound == "starts"
    trained = one.trained("update", "update", 5000.0, policy(), 2, 1)
    assert trained.seconds == pytest.approx(10 + 2 * 2 * 2.0) and trained.bound == "compute"
