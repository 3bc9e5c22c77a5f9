"""The study of a real model on a tiny one: every arm, every table, and a second call that finds all of it done."""

import json

import pytest

from examples.experiments import real_model
from tests.recipes.miniature import ANIMALS, SOUNDS, write_model

SIZES = {
    "sft": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 0, "eval_num_replies": 2}
    | {"max_completion_length": 8, "holdout": 0.3},
    "pmp": {"max_steps": 2, "batch_size": 4, "holdout": 0.3},
    "rm": {"max_steps": 2, "batch_size": 4, "warmup_steps": 0},  # of a stage that PPO's runs have not
    "ppo": {"num_iterations": 2, "rollout_batch_size": 4, "num_mini_batches": 1, "critic_warmup_steps": 0}
    | {"rollout.max_completion_length": 8, "evaluation.limit": 3, "ptx_max_length": 16},
}


def write_data(root):
    def write(name, rows):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    facts = [(animal, sound) for animal in ANIMALS for sound in SOUNDS]
    asked = [(f"The {animal} near {sound}?", f"It {sound}.") for animal, sound in facts]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]
    write("sft", [{"messages": both} for both in turns])
    pairs = [{"prompt": question, "chosen": answer, "rejected": "No."} for question, answer in asked]
    write("some", pairs[:30])
    write("others", pairs[30:])
    write("text", [{"text": f"The {animal} {sound} all day. " * 4} for animal, sound in facts])
    names = {"sft": "sft", "pmp": "some", "rm": "some, others"}
    data = [f"{stage}.data=[{', '.join(f'{one}.jsonl' for one in own.split(', '))}]" for stage, own in names.items()]
    return [*data, "ppo.ptx_data=[text.jsonl]"]


@pytest.mark.slow
def test_the_study_of_a_real_model_on_a_tiny_one(tmp_path, capsys):
    words = write_data(tmp_path)
    words += [f"{stage}.{key}={value}" for stage, sizes in SIZES.items() for key, value in sizes.items()]
    model, out = write_model(tmp_path / "tiny"), tmp_path / "out"
    ask = [str(model), str(tmp_path), *words, "--out", str(out), "--seeds", "0", "1"]
    assert real_model.main(ask) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "figures.json").read_text())
    rewards, sources, policies = said[said.index("| reward model |") :].strip().split("\n\n| ")
    arms = ["ours", "ours after pmp", "trl", real_model.GOLD]
    assert [line.split(" | ")[0].strip("| ") for line in rewards.splitlines()[2:6]] == arms
    assert [line.split(" | ")[0].strip("| ") for line in sources.splitlines()[2:]] == arms
    assert sources.startswith("reward model, all seeds | others.jsonl | some.jsonl |")
    assert [line.split(" | ")[0].strip("| ") for line in policies.splitlines()[2:]] == [
        arm for arm in real_model.ARMS for _ in (0, 1)
    ]
    for arm in found["by_source"].values():
        assert sum(part["pairs"] for part in arm.values()) == 2 * found["gold"][0]["pairs"] > 0
    for name, runs in found["ppo"].items():
        assert all((run["ptx_blocks"] > 0) == (name == "with ptx") for run in runs)
        assert all(before > 0 and after > 0 for run in runs for before, after in [run["web_loss"]])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert real_model.main(ask) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert capsys.readouterr().out.strip().endswith(said.strip()[-len(policies) :])
