"""Layouts that are chosen, those that are refused, what a probe tells, and the files to launch."""

import json
import os
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import ClusterConfig

from align import cli
from align.plan import card
from align.recipe import dump_recipe, load_recipe
from align.scale import (
    Efficiency,
    Layout,
    Scaled,
    ScaleError,
    Unfit,
    efficiency_of,
    model_of_size,
    read_cluster,
    read_probe,
    scale,
)
from align.scale.choose import stage_scale
from align.scale.efficiency import PEAK
from align.scale.layout import refusal

EIGHT = read_cluster("8xH200")
SMALLER_REWARD = "pmp.init_from=Qwen/Qwen2.5-7B"


def scaled(size, on, *told):
    path = f"model.path={model_of_size(load_recipe('qwen_rlhf'), size)}"
    return scale(load_recipe("qwen_rlhf", [path, *told]), read_cluster(on), Efficiency())


def test_seven_billions_on_eight_cards_are_sharded_and_fit():
    found = scaled("7B", "8xH200")
    assert isinstance(found, Scaled) and found.layout == Layout(EIGHT, 8, "fsdp2") and found.changes == ()
    limit = card.usable(EIGHT.card.memory)
    assert all(stage.plan.peak.bytes <= limit for stage in found.stages)
    assert found.keys["ppo.rollout.engine"] == "vllm" and found.recipe.ppo.rollout.vllm.dtype == "bfloat16"
    # the same rows in optimizer steps: only micro-batches differ
    assert [getattr(found.recipe, s).batch_size for s in ("sft", "pmp", "rm")] == [128, 64, 64]
    by_name = {phase.name: phase for phase in found.stages[-1].phases}
    assert by_name["ptx"].bound == "compute" and by_name["decode"].bound == "memory"
    assert found.stages[-1].hours == 400 * found.stages[-1].seconds / 3600 and found.stages[1].hours is None


def test_what_does_not_fit_changes_what_is_trained_or_is_refused():
    one = scaled("7B", "H200")
    assert one.changes == ("model.adapter=lora",) and one.layout.ranks == 1
    big = scaled("72B", "8xH200,4")  # its reward model is whole on every card
    assert isinstance(big, Unfit) and big.closest[1].stage == "ppo"
    assert max(big.closest[1].peak.parts, key=lambda part: part.bytes).role == "reward"
    fits = scaled("72B", "8xH200,4", SMALLER_REWARD)
    assert fits.layout.ranks == 32 and fits.layout.sharded and fits.layout.servers and fits.layout.shared
    # whole models for evaluations, and gradients of several micro-batches, have no room
    assert fits.recipe.ppo.eval_data == () and fits.recipe.sft.eval_num_replies == 0
    assert fits.recipe.sft.micro_batch_size == 128 // 32
    with pytest.raises(ScaleError, match="no number of ranks"):
        scale(load_recipe("qwen_rlhf", ["sft.batch_size=127", "sft.micro_batch_size=1"]), EIGHT, Efficiency())


def test_layouts_that_the_trainers_refuse():
    sharded = Layout(EIGHT, 8, "fsdp2")
    for told, said in (
        (["model.adapter=lora"], "one backbone"),
        (["model.adapter=qlora"], "4-bit"),
        (["ppo.offload=[reference]"], "ppo.offload"),
        (["ppo.critic.optimizer=adamw_8bit"], "adamw_8bit"),
        (["ppo.rollout.exact=true", "ppo.micro_batch_size=1", "ppo.rollout.engine=vllm"], "exact"),
    ):
        recipe = load_recipe("qwen_rlhf", told)
        assert said in refusal(recipe, sharded)
        assert refusal(recipe, Layout(EIGHT, 8, "ddp")) is None
    assert refusal(load_recipe("qwen_rlhf"), sharded) is None
    assert refusal(load_recipe("qwen_rlhf", ["model.adapter=lora", "ppo.shared_backbone=false"]), sharded) is None


def test_sizes():
    recipe = load_recipe("qwen_rlhf")
    assert model_of_size(recipe, "72b") == "Qwen/Qwen2.5-72B" and model_of_size(recipe, "Qwen3-8B") == "Qwen3-8B"
    llama = load_recipe("qwen_rlhf", ["model.path=meta-llama/Llama-3.1-8B-Instruct"])
    assert model_of_size(llama, "70B") == "meta-llama/Llama-3.1-70B" and model_of_size(llama, "7B") == "Qwen/Qwen2.5-7B"
    for wrong in ("9B", "Qwen9-8B"):
        with pytest.raises(ScaleError):
            model_of_size(recipe, wrong)


MEANT = Efficiency(training=0.2, passes=0.4, scoring=0.3, prefill=0.1, decode=0.1, bandwidth=0.1, step=0.0, hop=0.0)


def probed(folder, hardware="2 × NVIDIA H200", **changed):
    """A run whose phases took what these efficiencies make of them, at prompts of 200 and replies of 100 tokens."""
    recipe = load_recipe("qwen_rlhf", ["ppo.rollout.engine=vllm", "ppo.critic_warmup_steps=8"])
    short = load_recipe(
        "qwen_rlhf",
        ["ppo.rollout.engine=vllm", "ppo.rollout.max_prompt_length=200", "ppo.rollout.max_completion_length=100"],
    )
    layout = Layout(read_cluster("2xH200"), 2, "ddp")
    taken = stage_scale(short, "ppo", layout, MEANT).by_part(without="push")
    row = {f"seconds/{part}": taken[part] for part in ("rollout", "score", "experience")}
    row |= {"seconds/update": taken["update"] + 3.0, "seconds/sync": 3.0, "length/mean": 100.0, "score/mean": 0.0}
    row["seconds/total"] = sum(row[f"seconds/{part}"] for part in ("rollout", "score", "experience", "update"))
    row["tokens_per_second"] = 512 * 300 / row["seconds/total"]
    slow = row | {f"seconds/{part}": 1000.0 for part in ("rollout", "update")}
    rows = [slow, slow, row | changed, row | changed, slow | {"warming_up": 1.0}]
    (folder / "ppo").mkdir(parents=True)
    (folder / "ppo" / "recipe.yaml").write_text(dump_recipe(recipe))
    (folder / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "ppo" / "summary.json").write_text(json.dumps({"made_with": {"hardware": hardware, "processes": 2}}))
    return folder


def test_a_probe_finds_the_efficiencies_that_made_it(tmp_path):
    probe = read_probe(probed(tmp_path / "run"))
    assert probe.iterations == 2 and probe.layout.cluster == read_cluster("2xH200")
    rollout = probe.recipe.ppo.rollout
    assert (rollout.max_prompt_length, rollout.max_completion_length) == (200, 100)
    found = efficiency_of([probe])
    assert (found.passes, found.scoring, found.decode) == pytest.approx((0.4, 0.3, 0.1), rel=1e-6)
    # the optimizer's part of the update reached 0.1 of the bandwidth, and is in one figure with the rest
    ideal = probe.parts(PEAK)["update"]
    assert found.training == pytest.approx(ideal / probe.seconds["update"]) and 0.1 < found.training <= 0.2
    assert found.link == Efficiency().link and "2 iterations on 2 × H200" in found.source
    again = probe.parts(found)
    assert again["rollout"] == pytest.approx(probe.seconds["rollout"], rel=1e-6)


def test_probes_that_say_too_little(tmp_path):
    with pytest.raises(ScaleError, match="name the output_dir"):
        read_probe(tmp_path)
    with pytest.raises(ScaleError, match="after the first 2"):
        read_probe(probed(tmp_path / "warming", warming_up=1.0))
    with pytest.raises(ScaleError, match="no length/mean"):
        read_probe(probed(tmp_path / "torn", **{"length/mean": None}))
    with pytest.raises(ScaleError, match="names 'NVIDIA T4'"):
        read_probe(probed(tmp_path / "card", hardware="NVIDIA T4"))


def test_the_command_prints_and_writes_what_launches(tmp_path, capsys):
    out = tmp_path / "launch"
    assert cli.main(["scale", "qwen_rlhf", "--to", "7B", "--on", "8xH200", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for words in ("8 × H200: 8 ranks, FSDP2; an engine in each", "stated, not measured", "bound by", "ppo.micro_batch"):
        assert words in shown
    recipe = load_recipe(out / "recipe.yaml", world_size=8)
    assert recipe.ppo.rollout.engine == "vllm" and recipe.model.path == "Qwen/Qwen2.5-7B"
    config = ClusterConfig.from_yaml_file(str(out / "accelerate.yaml"))
    assert config.num_processes == 8 and config.fsdp_config["fsdp_version"] == 2
    subprocess.run(["sh", "-n", str(out / "launch.sh")], check=True)
    assert cli.main(["scale", "qwen_rlhf", "--on", "8xH200", "--out", str(out)]) == 1  # it is there
    capsys.readouterr()
    nodes = ["scale", "qwen_rlhf", "--to", "72B", "--on", "8xH200,4"]
    assert cli.main([*nodes, SMALLER_REWARD, "--json", "--out", str(tmp_path / "nodes")]) == 0
    assert json.loads(capsys.readouterr().out)["layout"]["same_cards"]
    script = (tmp_path / "nodes" / "launch.sh").read_text()
    assert '--machine_rank "$NODE"' in script and "--tensor-parallel 8" in script
    assert cli.main(nodes) == 3
    assert "rewards are whole on every card" in capsys.readouterr().out
    assert cli.main(["scale", "qwen_rlhf", "--on", "8xH300"]) == 1
    assert capsys.readouterr().err.startswith("error: --on 8xH300: the card 'H300' is not known")


def test_no_torch_is_imported():
    code = "import sys; from align import cli; cli.main(['scale', 'qwen_rlhf', '--on', '8xH200', '--json']); "
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    *data, imported = done.stdout.splitlines()
    assert imported == "[]"
    found = json.loads("\n".join(data))
    assert found["layout"]["ranks"] == 8 and found["stages"][-1]["simulated"]["seconds"] > 0
