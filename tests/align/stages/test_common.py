import logging
import time

import pytest
from torch import distributed

from align.recipe.lineage import TRAINED
from align.stages import common, supervised
from data_formats.errors import EmptyDatasetError
from data_formats.reading import ReadReport
from tests.align.stages.small_chain import small_recipe
from tests.ranks import on_ranks


def test_everything_left_out_is_counted_and_named(tmp_path, caplog):
    section = small_recipe(tmp_path).rm
    reports = [
        ReadReport("a.json", "hh", 9, 7, {"empty reply": 2}),
        ReadReport("b.json", "hh", 3, 2, {"empty reply": 1}),
    ]
    with caplog.at_level(logging.INFO, "align"):
        logger = logging.getLogger("align")
        logger.addHandler(caplog.handler)
        found = supervised.account(
            "rm", section, reports, ([1], {"longer than max_length": 4}), ([1], {"truncated": 5})
        )
        logger.removeHandler(caplog.handler)
    assert found == {
        "unread_rows": {"empty reply": 3},
        "dropped_rows": {"longer than max_length": 4},
        "heldout_dropped_rows": {"truncated": 5},
    }
    for line in (
        "rm: a.json (hh): 9 rows, 7 kept; dropped: empty reply 2",
        "rm: 4 rows: longer than max_length",
        "rm: 5 held-out rows: truncated",
    ):
        assert line in caplog.messages


def test_nothing_left_is_an_error_with_the_keys(tmp_path):
    section = small_recipe(tmp_path, rm__eval_data=[{"path": "x.jsonl"}]).rm
    with pytest.raises(
        EmptyDatasetError, match=r"'rm' has no training rows \(4 too long\): check rm\.data and rm\.max_"
    ):
        supervised.account("rm", section, [], ([], {"too long": 4}), ([1], {}))
    with pytest.raises(EmptyDatasetError, match=r"'rm' has no held-out rows \(no row was read\): check rm\.eval_data"):
        supervised.account("rm", section, [], ([1], {}), ([], {}))


def test_a_share_that_holds_out_nothing_is_a_warning(tmp_path, caplog):
    logging.getLogger("align").addHandler(caplog.handler)
    supervised.account("rm", small_recipe(tmp_path).rm, [], ([1], {}), ([], {}))
    supervised.account("rm", small_recipe(tmp_path, rm__holdout=0.0).rm, [], ([1], {}), ([], {}))
    logging.getLogger("align").removeHandler(caplog.handler)
    (warning,) = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert warning == "rm: no held-out rows are left, so nothing is measured: raise rm.holdout"


def slow_lines():
    for number in range(3):
        time.sleep(0.2)
        yield {"line": number}


def leave_and_read(folder):
    distributed.init_process_group("gloo")
    (folder / TRAINED).touch()
    distributed.barrier()
    common.write_lines(folder / "eval.jsonl", slow_lines())
    common.finish(folder, {"accuracy": 1.0}, time.perf_counter())
    found = [len(common.read_rows(folder / "eval.jsonl")), common.read_summary(folder)["accuracy"]]
    (folder / f"rank-{distributed.get_rank()}").write_text(repr([*found, (folder / TRAINED).exists()]))


@pytest.mark.slow
def test_every_rank_finds_what_a_stage_leaves(tmp_path):
    on_ranks(2, leave_and_read, tmp_path)
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["[3, 1.0, False]"] * 2
