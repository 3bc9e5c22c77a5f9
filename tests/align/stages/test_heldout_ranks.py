"""Looks at held-out prompts that two ranks share are those of one process."""

import json

import pytest

from align.recipe import dump_recipe
from tests.align.stages import heldout_ranks
from tests.align.stages.test_ppo import recipe
from tests.ranks import on_ranks
from tests.tiny_models import save_causal_lm


@pytest.mark.slow
def test_two_ranks_look_at_held_out_prompts_as_one_process_does(tmp_path):
    given = recipe(tmp_path, evaluation={"num_samples": 3})
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2)}
    for ranks, folder in folders.items():
        folder.mkdir()
        (folder / "recipe.yaml").write_text(dump_recipe(given.model_copy(update={"output_dir": str(folder)})))
        save_causal_lm(folder / "ppo/model", seed=9)
        if ranks == 1:
            heldout_ranks.main(folder, folder / "recipe.yaml")
        else:
            on_ranks(2, heldout_ranks.main, folder, folder / "recipe.yaml")
    one = json.loads((folders[1] / "one.json").read_text())
    both = [json.loads((folders[2] / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    failed = [found.pop("failed") for found in both]
    assert both[0] == both[1]  # every rank knows all figures
    assert both[0]["looks"].pop("eval/kl") == pytest.approx(one["looks"].pop("eval/kl"), rel=1e-12)
    assert both[0]["kl"] == pytest.approx(one.pop("kl"), abs=1e-6) and both[0].pop("kl")
    for name, value in one["looks"].items():
        assert both[0]["looks"][name] == pytest.approx(value, rel=1e-12), name
    assert {key: both[0][key] for key in ("places", "few")} == {key: one[key] for key in ("places", "few")}
    assert one["places"] == [[at, at] for at in range(5)] and one["few"] == ["a"]
    rows = [[json.loads(line) for line in (folder / "ppo/eval.jsonl").open()] for folder in folders.values()]
    _alike(rows[0], rows[1])  # every reply and score, in the order of the prompts
    _alike(one["end"], both[0]["end"])
    assert len({str(row["sampled"]) for row in rows[1]}) == 3  # no two ranks drew by the same numbers
    for said in failed:
        assert said[0].endswith("no score") and "cannot be judged" in said[1] and said[2] == "no room"


def _alike(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            _alike(mine, theirs)
    elif isinstance(one, float):
        assert other == pytest.approx(one, abs=1e-5)
    else:
        assert one == other
