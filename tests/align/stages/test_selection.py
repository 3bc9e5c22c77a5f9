"""`selection` of a stage: of the training rows alone, once, counted."""

import pytest

from align.stages import run_sft
from align.stages.selection import chosen
from tests.align.stages.sft_case import lines, recipe

pytestmark = pytest.mark.needs("sklearn")


def test_a_stage_learns_from_the_rows_that_are_chosen_and_holds_out_what_it_did(tmp_path, capsys):
    options = {"eval_data": [], "holdout": 0.25, "max_steps": 2, "eval_num_replies": 0}
    plain = run_sft.run_sft(recipe(tmp_path, run="plain", **options))
    made = recipe(tmp_path, selection={"keep": 0.5, "max_cosine": 1.0}, **options)
    summary = run_sft.run_sft(made)
    assert summary["selection"]["rows"] == plain["rows"] and summary["heldout_rows"] == plain["heldout_rows"] > 0
    assert summary["selection"]["kept"] == summary["rows"] == round(plain["rows"] / 2)
    assert summary["heldout_loss_before"] == plain["heldout_loss_before"]
    folder = tmp_path / "run/sft/selection"
    rows = lines(folder / "rows.jsonl")
    assert sum(row["kept"] for row in rows) == summary["rows"] and len(rows) == plain["rows"]
    assert f"{summary['rows']} of {plain['rows']} rows kept" in (folder / "index.html").read_text()
    written = (folder / "rows.jsonl").stat().st_mtime_ns
    (tmp_path / "run/sft/summary.json").unlink()
    assert run_sft.run_sft(made)["selection"] == summary["selection"]
    assert (folder / "rows.jsonl").stat().st_mtime_ns == written and "made anew" not in capsys.readouterr().err


def test_other_rows_are_chosen_among_anew(tmp_path, capsys):
    made = recipe(tmp_path, selection={"keep": 4, "max_cosine": 1.0, "clusters": 2})
    from align.data.load import load_records
    from data_formats.records import Demonstration

    records, _ = load_records(made.sft.data, Demonstration, made)
    out = tmp_path / "out"
    kept, told = chosen(made, "sft", made.sft, records, out)
    places = [row["row"] - 1 for row in lines(out / "selection/rows.jsonl") if row["kept"]]
    assert told["selection"]["rows"] == 24 and len(kept) == 4 and kept == [records[at] for at in places]
    again, _ = chosen(made, "sft", made.sft, records[1:], out)
    assert len(again) == 4 and f"{out / 'selection'} is made anew: other records" in capsys.readouterr().err
    everything, told = chosen(made, "sft", made.sft.model_copy(update={"selection": None}), records, out)
    assert everything == records and told == {}


def test_a_damaged_choice_is_named(tmp_path):
    from align.runtime.json_files import RunFileError

    made = recipe(tmp_path, selection={"keep": 4})
    folder = tmp_path / "out/selection"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{")
    with pytest.raises(RunFileError, match=r"selection/summary\.json is not a whole JSON object: remove the folder"):
        chosen(made, "sft", made.sft, [1, 2, 3], tmp_path / "out")
