"""`align data train-classifier` as a user types it: figures on held-out rows, and what is too little to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from align import cli
from align.textmodels.classifier import TextClassifier

pytestmark = pytest.mark.needs("sklearn")

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "real" / "4_prompts"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def train(path, out, *words):
    return cli.main(["data", "train-classifier", str(path), str(out), *words])


def test_labels_of_raw_fields_and_of_records(tmp_path, capsys):
    good, bad = "thank you kindly, friend", "you stupid rotten fool"
    rows = [{"comment": f"{bad if at % 2 else good} {at}", "toxic": bool(at % 2)} for at in range(40)]
    rows += [{"comment": "", "toxic": True}, {"comment": "no label", "toxic": None}]
    assert train(write(tmp_path / "raw.jsonl", rows), tmp_path / "raw", "--text", "comment", "--label", "toxic") == 0
    said = capsys.readouterr().out
    assert "accuracy: 1.000" in said and "is / was given" in said and "left out: 1 rows without a text" in said
    model = TextClassifier.load(tmp_path / "raw")
    assert model.labels == ("false", "true") and not model.multi_label
    assert np.argmax(model.probabilities(["a stupid fool", "thank you"]), axis=1).tolist() == [1, 0]
    turns = [
        [{"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": bad if at % 2 else good}]
        for at in range(40)
    ]
    rows = [{"messages": own, "category": "rude" if at % 2 else "kind"} for at, own in enumerate(turns)]
    path = write(tmp_path / "talk.jsonl", rows)
    assert train(path, tmp_path / "talk", "--text", "reply", "--label", "category", "--heldout", "0.5") == 0
    assert "accuracy: 1.000" in capsys.readouterr().out
    assert train(path, tmp_path / "talk", "--label", "category") == 1
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words", "told"),
    [
        ([{"prompt": f"q{at}", "kind": "a"} for at in range(20)], ["--label", "kind"], "20 rows with 1 labels"),
        (
            [{"prompt": f"q{at}", "kind": f"{at}"} for at in range(20)],
            ["--label", "kind"],
            "0 of them on 5 rows or more",
        ),
        ([{"prompt": "q", "kind": "ab"[at % 2]} for at in range(20)], ["--label", "kind"], "0 rows held out"),
        (
            [{"prompt": "q", "kind": "a"}],
            ["--label", "kind", "--text", "reply"],
            "1 rows without a text; name another --text",
        ),
        ([{"prompt": "q"}], ["--label", "kind"], "1 rows without 'kind'"),
        ([{"prompt": "q", "kind": {"a": 1}}], ["--label", "kind"], "expected a text, a number"),
        ([{"prompt": "q", "kind": "a"}, {"prompt": "q", "kind": ["a"]}], ["--label", "kind"], "a list here"),
        ([{"prompt": ["q"], "kind": "a"}], ["--label", "kind", "--text", "body"], "0 rows"),
        ([{"body": 3, "kind": "a"}], ["--label", "kind", "--text", "body"], "there is no text under it"),
    ],
)
def test_what_is_too_little_or_malformed(tmp_path, capsys, rows, words, told):
    told = "1 rows without a text" if told == "0 rows" else told
    assert train(write(tmp_path / "rows.jsonl", rows), tmp_path / "out", *words) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and not (tmp_path / "out").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files beside the checkout")
def test_real_instructions_are_told_apart(tmp_path, capsys):
    """IFEval's conditions on the answer as tags: F1 of all on 48 held-out prompts is 0.84."""
    assert train(REAL / "ifeval.jsonl", tmp_path / "out", "--label", "instruction_id_list", "--text", "prompt") == 0
    said = capsys.readouterr().out
    f1 = float(said.partition("f1 of all tags of all rows: ")[2].split()[0])
    assert f1 > 0.7 and "24 labels" in said
