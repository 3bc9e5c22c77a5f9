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

ENGINES = [pytest.param({}, id="ddp"), pytest.param(FSDP2, id="fsdp2")]
pytestmark = pytest.mark.slow


def run(out: Path, ranks: int, mode: str, engine: dict[str, str] | None = None, start: Path | None = None) -> None:
    out.mkdir()
    on_ranks(ranks, ppo_ranks.main, out, mode, start, environment=engine)


@pytest.mark.parametrize(
    ("mode", "engine"),
    [
        pytest.param("given", {}, id="ddp"),
        pytest.param("composed", {}, id="ddp-composed"),
        pytest.param("given", FSDP2, id="fsdp2"),
        pytest.param("composed", FSDP2, id="fsdp2-composed"),
    ],
)
def test_two_ranks_learn_what_one_learns(tmp_path, mode, engine):
    learnt = {}
    for ranks in (1, 2):
        run(tmp_path / str(ranks), ranks, mode, engine if ranks > 1 else None)
        learnt[ranks] = torch.load(tmp_path / str(ranks) / "learnt.pt", weights_only=True)
    for one, two in zip(learnt[1]["weights"], learnt[2]["weights"], strict=True):
        assert torch.allclose(one, two, rtol=1e-8, atol=1e-10)
    for one, two in zip(learnt[1]["history"], learnt[2]["history"], strict=True):
        assert one.keys() == two.keys()
        assert {name: two[name] for name in one} == pytest.approx(one, rel=1e-6, abs=1e-9)
        assert ("score/length_score/mean" in one) == (mode == "composed")
        assert one.get("reward/failed") == (1.0 if mode == "composed" else None)


def test_roles_of_one_backbone_learn_on_two_ranks_what_they_learn_on_one(tmp_path):
    """Two DDP wrappers over one base, each around one role's adapter; layers are checkpointed."""
    for ranks in (1, 2):
        run(tmp_path / str(ranks), ranks, "roles")
    learnt = [torch.load(tmp_path / ranks / "learnt.pt", weights_only=True) for ranks in ("1", "2")]
    found = [torch.load(tmp_path / ranks / "gradients.pt", weights_only=True)["gradients"] for ranks in ("1", "2")]
    assert len(found[0]) == len(found[1]) == 12
    for one, two in zip(*found, strict=True):
        for gradient, other in zip(chain(*one), chain(*two), strict=True):
            assert torch.allclose(gradient, other, rtol=1e-10, atol=1e-12)
    assert all(
        torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(*(w["weights"] for w in learnt), strict=True)
    )
    for one, two in zip(*(run["history"] for run in learnt), strict=True):
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)
    ranks = [torch.load(tmp_path / "2" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*ranks)  # replicas stay equal, all roles and the base


def test_fsdp2_is_refused_for_roles_of_one_backbone(tmp_path):
    run(tmp_path / "run", 2, "refused", FSDP2)
    for rank in (0, 1):
        said = (tmp_path / "run" / f"rank{rank}.txt").read_text()
        assert said.startswith("roles on one backbone cannot be sharded by FSDP2") and "shared_backbone" in said


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_agree_with_the_independent_ppo(tmp_path, engine):
    """Under a covering set of all options: gradients, experience and the log."""
    run(tmp_path / "run", 2, "reference", engine)
    found = json.loads((tmp_path / "run" / "found.json").read_text())
    assert len(found) > 20
    assert {name: one["wrong"] for name, one in found.items() if one["wrong"]} == {}
    assert all({"policy gradient", "value gradient", "advantages"} <= one["errors"].keys() for one in found.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_agree_with_the_independent_ppo_without_a_critic(tmp_path, engine):
    run(tmp_path / "run", 2, "estimators", engine)
    found = json.loads((tmp_path / "run" / "found.json").read_text())
    assert len(found) == 4 and {name: one["wrong"] for name, one in found.items() if one["wrong"]} == {}
    assert all({"policy gradient", "advantages"} <= one["errors"].keys() for one in found.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_learn_and_log_the_same_without_a_pass_of_the_policy_before_the_update(tmp_path, engine):
    run(tmp_path / "run", 2, "late", engine)
    late, asks = (torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True) for name in ("late", "asks"))
    assert all(torch.equal(a, b) for a, b in zip(late["weights"], asks["weights"], strict=True))
    assert late["history"] == asks["history"] and late["history"][-1]["kl/reply"] != 0
    files = [(tmp_path / "run" / name / "samples.jsonl").open() for name in ("late", "asks")]
    for row, other in zip(*files, strict=True):
        assert json.loads(row) | {"time": 0} == json.loads(other) | {"time": 0}


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_sample_what_they_train_to_the_bit(tmp_path, engine):
    run(tmp_path / "run", 2, "exact", engine)
    history = torch.load(tmp_path / "run" / "learnt.pt", weights_only=True)["history"]
    assert [line["engine/logp_diff_max"] for line in history if "score/mean" in line] == [0.0, 0.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_resume_bit_for_bit(tmp_path, engine):
    run(tmp_path / "run", 2, "resume", engine)
    whole, again = (torch.load(tmp_path / "run" / name, weights_only=True) for name in ("whole.pt", "again.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole["weights"], again["weights"], strict=True))
    assert whole["history"] == again["history"]
    wins = [line["eval/win_rate_greedy"] for line in whole["history"] if "eval/win_rate_greedy" in line]
    assert len(wins) == 3 and all(2 * 3 * rate == pytest.approx(round(6 * rate)) for rate in wins)  # of three prompts


def test_two_ranks_sample_ahead_and_resume_bit_for_bit(tmp_path):
    """And when the engine of one rank gives up meanwhile, both stop before the next iteration."""
    out = tmp_path / "run"
    run(out, 2, "overlap")
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


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_fails_on_one_rank_stops_all(tmp_path, engine):
    run(tmp_path / "run", 2, "fail", engine)
    said = [(tmp_path / "run" / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("no answer (iteration 1); the state before it is saved in ")


def test_models_are_spread_by_fsdp2_and_saved_whole(tmp_path):
    run(tmp_path / "run", 2, "sharded", FSDP2)
    for precision in ("no", "bf16"):
        folder = tmp_path / "run" / precision
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


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_with_weights_of_their_own_get_the_policys_on_every_rank(tmp_path, engine):
    run(tmp_path / "run", 2, "engine", engine)
    for kind in ("full", "lora", "dora"):
        facts = [torch.load(tmp_path / "run" / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        one, other = facts
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        assert all(torch.equal(one["engine"][name], other["engine"][name]) for name in one["engine"])
        whole = own_policy(kind, one["weights"])
        for rank in facts:
            assert rank["reply"] == Greedy.ids(whole, [5, 9, 100, 7, 30], 12)
            assert rank["looks"] == one["looks"] and rank["looks"][0]["eval/kl"] == pytest.approx(0, abs=1e-4)
            for line in rank["history"]:
                assert line.get("engine/probe_max", 0.0) < 1e-4
            assert rank["sampling"] < 0.6 * rank["whole"] if engine else rank["sampling"] == rank["whole"]
        assert any("engine/probe_max" in line for line in one["history"])
        if kind == "full":
            assert all(torch.equal(one["engine"][name], one["weights"][name]) for name in one["engine"])


def own_policy(kind: str, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    policy = policy_of(kind, tie_word_embeddings=True)
    left = policy.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and all("lm_head" in name for name in left.missing_keys)
    return policy


@pytest.mark.parametrize("engine", ENGINES)
def test_a_push_that_fails_on_one_rank_stops_all(tmp_path, engine):
    """The other rank is gathering with it."""
    run(tmp_path / "run", 2, "push_fails", engine)
    said = [(tmp_path / "run" / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("the engine died (iteration 1); the models after its update")


def test_another_number_of_ranks_goes_on_from_a_checkpoint(tmp_path):
    """One process whole; its first checkpoint under FSDP2 on two ranks, whose next one on one process again. Replies
    are the same for any number, the batch that was sampled ahead is in the checkpoint."""
    run(tmp_path / "whole", 1, "moved")
    run(tmp_path / "two", 2, "moved", FSDP2, tmp_path / "whole" / "checkpoints" / "step-1")
    run(tmp_path / "one", 1, "moved", start=tmp_path / "two" / "checkpoints" / "step-2")
    whole, *others = (torch.load(tmp_path / name / "learnt.pt", weights_only=True) for name in ("whole", "two", "one"))
    for other in others:
        for weight, expected in zip(other["weights"], whole["weights"], strict=True):
            assert torch.allclose(weight, expected, rtol=1e-10, atol=1e-12)
        for line, expected in zip(other["history"], whole["history"], strict=True):
            same = {name for name in expected if not name.startswith("eval/") or name.endswith("_greedy")}
            assert {name: line[name] for name in same} == pytest.approx({name: expected[name] for name in same}, 1e-6)
