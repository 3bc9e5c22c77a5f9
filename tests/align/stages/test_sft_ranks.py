"""Several ranks look at the model as one does, and none waits for ever."""

import json

import pytest
import torch
from safetensors.torch import load_file

from align.recipe import dump_recipe
from tests.align.stages import sft_ranks
from tests.align.stages.sft_case import lines, recipe
from tests.ranks import FSDP2, on_ranks

KEYS = {"turns": 2, "eval_steps": 2, "max_steps": 3, "keep_best": True}
GHOST = {"instructions": ["Shout."], "share": 0.5}


def written(tmp_path, name, adapter="none", **more):
    made = recipe(tmp_path, run=name, ghost_attention=GHOST, **KEYS, **more)
    made = made.model_copy(update={"model": made.model.model_copy(update={"adapter": adapter})})
    file = tmp_path / f"{name}.yaml"
    file.write_text(dump_recipe(made), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "engine"), [("none", FSDP2), ("lora", {})], ids=["fsdp2", "lora-ddp"])
def test_two_ranks_measure_and_keep_what_one_does(tmp_path, adapter, engine):
    on_ranks(1, sft_ranks.main, written(tmp_path, "one", adapter))
    on_ranks(2, sft_ranks.main, written(tmp_path, "two", adapter), environment=engine)
    alone = json.loads((tmp_path / "one/rank-0.json").read_text())
    for rank in (0, 1):
        found = json.loads((tmp_path / f"two/rank-{rank}.json").read_text())
        assert found["ghost"] == alone["ghost"]
        assert found["best"] == [alone["best"][0], *(pytest.approx(loss, rel=1e-5) for loss in alone["best"][1:])]
    metrics = [
        [line for line in lines(tmp_path / name / "sft/metrics.jsonl") if "eval_loss" in line]
        for name in ("one", "two")
    ]
    assert [line["step"] for line in metrics[1]] == [2, 3]
    for mine, other in zip(*metrics, strict=True):
        for key in ("eval_loss", "eval_tokens", "eval_loss/farm", "eval_tokens/farm", "eval_loss/pets"):
            assert other[key] == pytest.approx(mine[key], rel=1e-5), key
    samples = lines(tmp_path / "two/sft/samples.jsonl")
    assert [row["step"] for row in samples] == [2] * 4 + [3] * 4
    assert samples[:4] == lines(tmp_path / "one/sft/samples.jsonl")[:4]  # drawn by one process's numbers
    summary = json.loads((tmp_path / "two/sft/summary.json").read_text())
    assert summary["by_category"].keys() == {"farm", "pets"} and summary["replies"] == 4


@pytest.mark.slow
@pytest.mark.needs("sklearn")
def test_two_ranks_learn_from_the_rows_that_the_first_one_chose(tmp_path):
    selection = {"keep": 0.5, "max_cosine": 1.0, "clusters": 2}
    for ranks, name in ((1, "one"), (2, "two")):
        on_ranks(ranks, sft_ranks.main, written(tmp_path, name, selection=selection))
    places = [row["row"] for row in lines(tmp_path / "one/sft/selection/rows.jsonl") if row["kept"]]
    assert places == [row["row"] for row in lines(tmp_path / "two/sft/selection/rows.jsonl") if row["kept"]]
    rows = [
        json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        for name in ("one/rank-0", "two/rank-0", "two/rank-1")
    ]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == len(places) > 3
    alone, both = (load_file(tmp_path / name / "sft/model/model.safetensors") for name in ("one", "two"))
    assert alone.keys() == both.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(both[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_engine_that_fails_on_the_first_rank_stops_both(tmp_path):
    on_ranks(2, sft_ranks.main, written(tmp_path, "two"), True)
    errors = [json.loads((tmp_path / f"two/rank-{rank}.json").read_text())["error"] for rank in (0, 1)]
    assert errors == ["no room", "no room"]
