"""The verdicts of both reward models, from `eval.jsonl` written by hand."""

import json

import pytest

from align.evaluation.compare import mean, paired_difference
from align.stages.reward_controls import right


def write(folder, scores):
    folder.mkdir()
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "chosen_score": chosen, "rejected_score": rejected}
        for prompt, chosen, rejected in scores
    ]
    (folder / "eval.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return right(folder)


def test_pairs_of_one_prompt_stand_together(tmp_path):
    with_pmp = write(tmp_path / "a", [("p", 1.0, 0.0), ("q", 2.0, 1.0), ("p", 0.5, 0.5), ("q", 3.0, -1.0)])
    without = write(tmp_path / "b", [("p", 0.0, 1.0), ("q", 2.0, 1.0), ("p", 0.0, 0.5), ("q", 0.0, 1.0)])
    assert with_pmp == [[1.0, 0.0], [1.0, 1.0]]  # equal scores are no hit
    assert without == [[0.0, 0.0], [1.0, 0.0]]
    assert mean(with_pmp) == 0.75
    assert paired_difference(without, with_pmp)["difference"] == pytest.approx(0.5)
