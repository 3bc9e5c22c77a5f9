"""Several ranks sample what one does, and none waits for ever."""

import json

import pytest

from align.recipe import dump_recipe
from tests.align.stages import rejection_ranks
from tests.align.stages.rejection_case import recipe
from tests.ranks import on_ranks


def written(tmp_path, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text(dump_recipe(recipe(tmp_path, run=name, micro_batch_size=1)), encoding="utf-8")
    return file


@pytest.mark.slow
def test_two_ranks_keep_what_one_does(tmp_path):
    on_ranks(1, rejection_ranks.main, written(tmp_path, "one"))
    on_ranks(2, rejection_ranks.main, written(tmp_path, "two"))
    for name in ("samples", "demonstrations"):  # the first round samples from the same weights
        files = [tmp_path / run / f"rejection/rounds/1/{name}.jsonl" for run in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    alone = json.loads((tmp_path / "one/rank-0.json").read_text())["rounds"]
    both = [json.loads((tmp_path / f"two/rank-{rank}.json").read_text())["rounds"] for rank in (0, 1)]
    assert both[0] == both[1] and both[0][0][:2] == alone[0][:2]
    assert not (tmp_path / "two/rejection/rounds/2/pieces").exists()


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_stops_both(tmp_path):
    on_ranks(2, rejection_ranks.main, written(tmp_path, "two"), True)
    errors = [json.loads((tmp_path / f"two/rank-{rank}.json").read_text())["error"] for rank in (0, 1)]
    assert errors == ["no score", "no score"]
    assert (tmp_path / "two/rejection/rounds/1/pieces/0.jsonl").is_file()  # the first rank's work is kept
