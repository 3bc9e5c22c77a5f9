"""Several ranks sample what one does, and none waits for ever."""

import json
import sys
from pathlib import Path

import pytest

from align.recipe import dump_recipe
from tests.align.stages.rejection_case import recipe
from tests.commands import INSTALLED, on_two_ranks, run

SCRIPT = Path(__file__).parent / "rejection_ranks.py"


def written(tmp_path, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text(dump_recipe(recipe(tmp_path, run=name, micro_batch_size=1)), encoding="utf-8")
    return file


@pytest.mark.slow
def test_two_ranks_keep_what_one_does(tmp_path):
    one = run(sys.executable, SCRIPT, written(tmp_path, "one"), env=INSTALLED)
    assert one.returncode == 0, one.stderr[-3000:]
    two = on_two_ranks(SCRIPT, written(tmp_path, "two"), env=INSTALLED)
    assert two.returncode == 0, two.stderr[-3000:]
    for name in ("samples", "demonstrations"):  # the first round samples from the same weights
        files = [tmp_path / run / f"rejection/rounds/1/{name}.jsonl" for run in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    alone = json.loads((tmp_path / "one/rank-0.json").read_text())["rounds"]
    both = [json.loads((tmp_path / f"two/rank-{rank}.json").read_text())["rounds"] for rank in (0, 1)]
    assert both[0] == both[1] and both[0][0][:2] == alone[0][:2]
    assert not (tmp_path / "two/rejection/rounds/2/pieces").exists()


@pytest.mark.slow
def test_a_reward_that_fails_on_one_rank_stops_both(tmp_path):
    done = on_two_ranks(SCRIPT, written(tmp_path, "two"), "broken", env=INSTALLED)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = [json.loads((tmp_path / f"two/rank-{rank}.json").read_text())["error"] for rank in (0, 1)]
    assert errors == ["another rank could not sample (see its message)", "no score"]
    assert (tmp_path / "two/rejection/rounds/1/pieces/0.jsonl").is_file()  # the first rank's work is kept
