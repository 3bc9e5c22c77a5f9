import json
import sys
from types import SimpleNamespace

import pytest

from align import cli
from tests.commands import INSTALLED, run


@pytest.fixture
def asked(capsys):
    def ask(*words, code=0):
        capsys.readouterr()
        assert cli.main(["plan", *words]) == code
        return capsys.readouterr()

    return ask


def test_a_table_of_stages_and_one_of_roles(asked):
    lines = asked("qwen2.5_7b_qlora_24gb", "--gpu", "24GB").out.splitlines()
    assert lines[0] == "memory of each stage's highest moment, GiB"
    assert lines[2].split()[:3] == ["stage", "weights", "adapters"] and lines[2].split()[-2:] == ["peak", "when"]
    assert [line.split()[0] for line in lines[4:8]] == ["sft", "pmp", "rm", "ppo"]
    assert [line.split()[0] for line in lines[13:17]] == ["policy", "critic", "reference", "reward"]
    assert lines[-1] == "fits on a card of 24GB, of which 22.05 GiB can be used"


def test_a_card_too_small_is_refused_with_what_would_fit(asked):
    shown = asked("qwen_rlhf", "--gpu", "24GB", code=3).out
    assert "ppo needs " in shown and "does not fit on a card of 24GB" in shown
    changes = shown.splitlines()[-1].partition(" by: ")[2].split()
    assert shown.splitlines()[-1].startswith("fits, with ") and "model.adapter=qlora" in changes
    assert "fits on a card of 24GB" in asked("qwen_rlhf", *changes, "--gpu", "24GB").out
    small = asked("qwen_rlhf", "--gpu", "2GB", code=3).out.splitlines()[-1]
    assert small == "no change that this command knows makes the recipe fit on that card"


def test_one_backbone_is_assumed_aloud_where_only_the_models_can_tell(asked):
    recipe = "qwen2.5_7b_qlora_24gb"
    assert "assumed" not in asked(recipe).out
    assert "assumed" not in asked(recipe, "model.adapter=none", "ppo.reward_from=Qwen/Qwen2.5-7B").out
    plans = {}
    for shared in ("auto", "false"):
        shown = asked(recipe, "ppo.reward_from=Qwen/Qwen2.5-7B", f"ppo.shared_backbone={shared}", "--json").out
        plans[shared] = json.loads(shown)["stages"][-1]
    assert plans["false"]["assumption"] is None
    apart = f"{plans['false']['peak'] / 2**30:.2f} GiB at most"
    assert plans["auto"]["assumption"].endswith(apart) and plans["auto"]["peak"] < plans["false"]["peak"]
    assert "\nassumed: policy, reward" in asked(recipe, "ppo.reward_from=Qwen/Qwen2.5-7B").out


def test_what_a_run_writes_and_where_there_is_no_room(asked, tmp_path, monkeypatch):
    """Weights of a float32 model and two moments, as the quickstart's folders have them (base: 26.7 MiB on a disk)."""
    keys = ("quickstart", f"output_dir={tmp_path}/run")
    stages = {one["stage"]: one["disk"] for one in json.loads(asked(*keys, "--json").out)["stages"]}
    base, ppo = stages["base"], stages["ppo"]
    assert (base["number"], base["kept"], ppo["number"]) == (3, 2, 3)
    assert base["checkpoint"] == 3 * base["models"] and base["left"] == 7 * base["models"] < base["most"]
    assert base["left"] / 2**20 == pytest.approx(26.7, abs=0.2) and ppo["left"] / 2**20 == pytest.approx(50.0, abs=0.3)
    none = json.loads(asked(*keys, "keep_checkpoints=none", "--json").out)["stages"]
    assert all(one["disk"]["left"] == one["disk"]["models"] for one in none)
    shown = asked(*keys).out
    assert "at most 0.16 GiB at the same time" in shown and "warning" not in shown
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    told = asked(*keys).out.splitlines()[-1]
    assert told.startswith(f"warning: output_dir: {tmp_path}/run has 0.00 GiB free, and the run will write 0.16 GiB")
    assert cli.main(["check", *keys]) == 0


def test_json_adds_up(asked):
    found = json.loads(asked("qwen_rlhf", "--gpu", "80GB", "--json", code=3).out)
    assert (found["gpu"], found["fits"]) == (80 * 2**30, False)
    for stage in found["stages"]:
        assert stage["peak"] == max(moment["bytes"] for moment in stage["moments"])
        for moment in stage["moments"]:
            assert moment["bytes"] == sum(part["bytes"] for part in moment["parts"])
    assert found["proposal"]["peak"] <= found["usable"]


def test_errors_are_sentences(asked):
    shown = asked("qwen_rlhf", "--gpu", "huge", code=1).err
    assert shown == "error: --gpu huge: write a card's memory as 24GB\n"
    shown = asked("qwen_rlhf", "model.path=me/model", code=1).err
    assert shown.startswith(
        "error: model.path: the shape of 'me/model' is not known; name a folder with its config.json"
    )
    assert "did you mean" in asked("qwen_rlfh", code=1).err
    assert asked("quickstart", "--gpu", "", code=1).err.startswith("error: --gpu ")
    shown = asked("quickstart", "model.adapter=lora", "model.lora.targets=[q_proj, wq]", code=1).err
    assert shown.startswith("error: model.lora.targets: the model has no 'wq'; it has q_proj, k_proj,")


def test_more_ranks_need_buckets_and_a_batch_that_fits(asked):
    one, two = (json.loads(asked("qwen_rlhf", "--json", *more).out) for more in ([], ["--num-processes", "2"]))
    assert two["stages"][0]["peak"] > one["stages"][0]["peak"]
    assert "ranks" in asked("qwen_rlhf", "--num-processes", "7", code=1).err


def test_it_takes_less_than_a_second_and_no_torch(tmp_path):
    code = (
        "import sys, time; began = time.process_time(); from align import cli; "
        "code = cli.main(['plan', 'qwen_rlhf', '--gpu', '24GB']); took = time.process_time() - began; "
        "print(code, took < 5, sorted({'torch', 'transformers', 'rich'} & set(sys.modules)))"  # 0.4 s, if nobody works
    )
    shown = run(sys.executable, "-c", code, cwd=tmp_path, env=INSTALLED)
    assert shown.stdout.splitlines()[-1] == "3 True []"
