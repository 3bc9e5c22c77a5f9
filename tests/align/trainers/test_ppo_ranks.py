import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.models.critic import Critic
from tests.align.trainers import ppo_ranks
from tests.align.trainers.own_engines import Greedy, policy_of
from tests.ranks import FSDP2, on_ranks

pytestmark = pytest.mark.slow
ALONE = ("given", "composed", "roles", "moved")
BOTH = ("given", "composed", "reference", "estimators", "late", "exact", "resume", "engine", "fail", "push_fails")
ENGINES = {"ddp": ({}, (*BOTH, "roles", "overlap")), "fsdp2": (FSDP2, (*BOTH, "sharded", "refused", "moved"))}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one process left, a folder a mode."""
    out = tmp_path_factory.mktemp("one")
    on_ranks(1, ppo_ranks.main, out, ALONE)
    return out


def started(engine: str, out: Path, start: Path | None = None) -> Path:
    environment, modes = ENGINES[engine]
    on_ranks(2, ppo_ranks.main, out, modes, start, environment=environment)
    return out


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> Path:
    """What two ranks left."""
    return started("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory, one) -> Path:
    """What two ranks left that share every model."""
    return started("fsdp2", tmp_path_factory.mktemp("fsdp2"), one / "moved/checkpoints/step-1")


@pytest.fixture(params=ENGINES)
def engine(request) -> str:
    return request.param


@pytest.fixture
def two(engine, request) -> Path:
    """What two ranks left under this engine."""
    return request.getfixturevalue(engine)


@pytest.mark.parametrize("mode", ["given", "composed"])
def test_two_ranks_learn_what_one_learns(one, two, mode):
    learnt = {at: torch.load(run / mode / "learnt.pt", weights_only=True) for at, run in ((1, one), (2, two))}
    for weight, other in zip(learnt[1]["weights"], learnt[2]["weights"], strict=True):
        assert torch.allclose(weight, other, rtol=1e-8, atol=1e-10)
    for line, other in zip(learnt[1]["history"], learnt[2]["history"], strict=True):
        assert line.keys() == other.keys()
        assert {name: other[name] for name in line} == pytest.approx(line, rel=1e-6, abs=1e-9)
        assert ("score/length_score/mean" in line) == (mode == "composed")
        assert line.get("reward/failed") == (1.0 if mode == "composed" else None)


def test_roles_of_one_backbone_learn_on_two_ranks_what_they_learn_on_one(one, ddp):
    """Two DDP wrappers over one base, each around one role's adapter; layers are checkpointed."""
    learnt = [torch.load(run / "roles/learnt.pt", weights_only=True) for run in (one, ddp)]
    found = [torch.load(run / "roles/gradients.pt", weights_only=True)["gradients"] for run in (one, ddp)]
    assert len(found[0]) == len(found[1]) == 12
    for step, others in zip(*found, strict=True):
        for gradient, other in zip(chain(*step), chain(*others), strict=True):
            assert torch.allclose(gradient, other, rtol=1e-10, atol=1e-12)
    assert all(
        torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*(w["weights"] for w in learnt), strict=True)
    )
    for line, other in zip(*(run["history"] for run in learnt), strict=True):
        assert other == pytest.approx(line, rel=1e-6, abs=1e-9)
    ranks = [torch.load(ddp / f"roles/rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*ranks)  # replicas stay equal, all roles and the base


def test_fsdp2_is_refused_for_roles_of_one_backbone(fsdp2):
    for rank in (0, 1):
        said = (fsdp2 / f"refused/rank{rank}.txt").read_text()
        assert said.startswith("roles on one backbone cannot be sharded by FSDP2") and "shared_backbone" in said


def test_two_ranks_agree_with_the_independent_ppo(two, engine):
    """Under a covering set of all options, of which FSDP2 has a third and DDP the others: gradients, experience and
    the log."""
    found = json.loads((two / "reference/found.json").read_text())
    assert len(found) > {"ddp": 14, "fsdp2": 8}[engine]
    assert {name: one["wrong"] for name, one in found.items() if one["wrong"]} == {}
    assert all({"policy gradient", "value gradient", "advantages"} <= one["errors"].keys() for one in found.values())


def test_two_ranks_agree_with_the_independent_ppo_without_a_critic(two):
    found = json.loads((two / "estimators/found.json").read_text())
    assert len(found) == 4 and {name: one["wrong"] for name, one in found.items() if one["wrong"]} == {}
    assert all({"policy gradient", "advantages"} <= one["errors"].keys() for one in found.values())


def test_two_ranks_learn_and_log_the_same_without_a_pass_of_the_policy_before_the_update(two):
    late, asks = (torch.load(two / "late" / f"{name}.pt", weights_only=True) for name in ("late", "asks"))
    assert all(torch.equal(a, b) for a, b in zip(late["weights"], asks["weights"], strict=True))
    assert late["history"] == asks["history"] and late["history"][-1]["kl/reply"] != 0
    files = [(two / "late" / name / "samples.jsonl").open() for name in ("late", "asks")]
    for row, other in zip(*files, strict=True):
        assert json.loads(row) | {"time": 0} == json.loads(other) | {"time": 0}


def test_two_ranks_sample_what_they_train_to_the_bit(two):
    history = torch.load(two / "exact/learnt.pt", weights_only=True)["history"]
    assert [line["engine/logp_diff_max"] for line in history if "score/mean" in line] == [0.0, 0.0]


def test_two_ranks_resume_bit_for_bit(two):
    whole, again = (torch.load(two / "resume" / name, weights_only=True) for name in ("whole.pt", "again.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole["weights"], again["weights"], strict=True))
    assert whole["history"] == again["history"]
    wins = [line["eval/win_rate_greedy"] for line in whole["history"] if "eval/win_rate_greedy" in line]
    assert len(wins) == 3 and all(2 * 3 * rate == pytest.approx(round(6 * rate)) for rate in wins)  # of three prompts


def test_two_ranks_sample_ahead_and_resume_bit_for_bit(ddp):
    """And when the engine of one rank gives up meanwhile, both stop before the next iteration."""
    out = ddp / "overlap"
    whole, again = (torch.load(out / name, weights_only=True) for name in ("whole.pt", "again.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole["weights"], again["weights"], strict=True))
    assert whole["history"] == again["history"]
    steps = [line["engine/staleness"] for line in whole["history"] if "score/mean" in line]
    assert steps == [0.0, 2.0, 2.0, 2.0]
    first, second = (torch.load(out / f"replies{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys() == {2, 3}  # iterations of the continued run
    assert all(len(first[at]) == len(second[at]) == 4 and first[at] != second[at] for at in first)
    said = [(out / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("no answer (iteration 3); the state before it is saved in ")
    assert said[0].endswith("step-2")


def test_an_engine_that_fails_on_one_rank_stops_all(two):
    said = [(two / f"fail/rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("no answer (iteration 1); the state before it is saved in ")


def test_models_are_spread_by_fsdp2_and_saved_whole(fsdp2):
    for precision in ("no", "bf16"):
        folder = fsdp2 / "sharded" / precision
        facts = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name, whole in facts[0]["whole"].items():
            assert sum(rank["held"][name] for rank in facts) == whole
            assert max(rank["held"][name] for rank in facts) < 0.55 * whole
        for rank in facts:
            assert rank["moments"] == rank["held"]["policy"]
            assert rank["sampling"] == rank["whole"]["policy"]
            assert set(rank["dtypes"]) == {"torch.float32"}  # the trained weights, whatever is computed in
            assert [look["eval/kl"] for look in rank["looks"]] == [0.0, 0.0]  # policy and reference compute alike
            assert rank["looks"] == facts[0]["looks"] and rank["history"][-1]["kl/reply"] == 0.0
        saved = {
            "policy": AutoModelForCausalLM.from_pretrained(folder / "model"),
            "critic": Critic.from_pretrained(folder / "critic"),
            "ema": AutoModelForCausalLM.from_pretrained(folder / "ema"),
        }
        assert type(saved["policy"]).__name__ == "Qwen2ForCausalLM" and saved["policy"].config.tie_word_embeddings
        for name, model in saved.items():
            own = dict(model.named_parameters())
            assert own.keys() == facts[0]["weights"][name].keys()
            assert all(torch.equal(own[key], value) for key, value in facts[0]["weights"][name].items())


def test_engines_with_weights_of_their_own_get_the_policys_on_every_rank(two, engine):
    for kind in ("full", "lora", "dora"):
        facts = [torch.load(two / f"engine/{kind}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        one, other = facts
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        assert all(torch.equal(one["engine"][name], other["engine"][name]) for name in one["engine"])
        whole = own_policy(kind, one["weights"])
        for rank in facts:
            assert rank["reply"] == Greedy.ids(whole, [5, 9, 100, 7, 30], 12)
            assert rank["looks"] == one["looks"] and rank["looks"][0]["eval/kl"] == pytest.approx(0, abs=1e-4)
            for line in rank["history"]:
                assert line.get("engine/probe_max", 0.0) < 1e-4
            assert rank["sampling"] < 0.6 * rank["whole"] if engine == "fsdp2" else rank["sampling"] == rank["whole"]
        assert any("engine/probe_max" in line for line in one["history"])
        if kind == "full":
            assert all(torch.equal(one["engine"][name], one["weights"][name]) for name in one["engine"])


def own_policy(kind: str, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    policy = policy_of(kind, tie_word_embeddings=True)
    left = policy.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and all("lm_head" in name for name in left.missing_keys)
    return policy


def test_a_push_that_fails_on_one_rank_stops_all(two):
    """The other rank is gathering with it."""
    said = [(two / f"push_fails/rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("the engine died (iteration 1); the models after its update")


def test_another_number_of_ranks_goes_on_from_a_checkpoint(one, fsdp2, tmp_path):
    """One process whole; its first checkpoint under FSDP2 on two ranks, whose next one on one process again. Replies
    are the same for any number, the batch that was sampled ahead is in the checkpoint."""
    on_ranks(1, ppo_ranks.main, tmp_path, ["moved"], fsdp2 / "moved/checkpoints/step-2")
    whole, *others = (torch.load(run / "moved/learnt.pt", weights_only=True) for run in (one, fsdp2, tmp_path))
    for other in others:
        for weight, expected in zip(other["weights"], whole["weights"], strict=True):
            assert torch.allclose(weight, expected, rtol=1e-10, atol=1e-12)
        for line, expected in zip(other["history"], whole["history"], strict=True):
            same = {name for name in expected if not name.startswith("eval/") or name.endswith("_greedy")}
            assert {name: line[name] for name in same} == pytest.approx({name: expected[name] for name in same}, 1e-6)
