"""A selection of rows in a folder: what is kept, what is written, what is not made twice."""

import json
import shutil

import numpy as np
import pytest

from align.curation import outcome, selection
from align.curation.outcome import choose_records
from align.curation.selection import select, text_of
from align.recipe.selection_section import SelectionSection
from data_formats.records import Comparison, Demonstration, Document, Message, Prompt, Reply, Scored

pytestmark = pytest.mark.needs("sklearn")
ANIMALS = ("cat", "dog", "hen", "cow", "fox", "owl", "ant", "bee")
ASKED = ("What does the {} eat in winter?", "Write a poem about a {}.", "Translate '{}' into French, please.")


def pair(asked, said, tags=(), category=""):
    return Comparison((Message("user", asked),), said, "no idea", tags=tags, category=category)


def pairs(copies=1):
    """24 different prompts of three kinds; the tags of a pair are as many as its animal's letters, less 2; every pair
    `copies` times, each time with a word more."""
    rows = []
    for kind, asked in enumerate(ASKED):
        for animal in ANIMALS:
            for copy in range(copies):
                said = f"An answer of some length about the {animal}" + ", indeed" * copy
                rows.append(pair(asked.format(animal), said, ("t",) * (len(animal) - 2), f"kind {kind}"))
    return rows


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_embedded_of_a_record():
    turns = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))
    assert text_of(Demonstration(turns), "record") == "s\nu\na" and text_of(Demonstration(turns), "prompt") == "s\nu"
    assert text_of(pair("u", "good"), "record") == "u\ngood"
    assert text_of(Prompt(turns[1:2]), "record") == "u" and text_of(Document("d"), "prompt") == "d"
    unwanted = Scored((Message("user", "u"),), (Reply("bad", -1.0),))
    assert text_of(unwanted, "record") == "u\nbad", "what is learnt to be bad is embedded, and rated, too"


def test_rows_counts_and_the_folder(tmp_path):
    records = pairs(copies=2)
    section = SelectionSection(keep=0.4, clusters=3, max_cosine=0.9)
    kept, figures = choose_records(records, section, tmp_path)
    rows = lines(tmp_path / "rows.jsonl")
    assert [row["row"] for row in rows] == list(range(1, 49)) and [at for at in range(48) if rows[at]["kept"]] == kept
    assert figures["rows"] == 48 and figures["kept"] == len(kept) == 19
    reasons = [row["reason"] for row in rows if not row["kept"]]
    assert figures["dropped"] == {reason: reasons.count(reason) for reason in figures["dropped"]}
    assert sum(figures["dropped"].values()) == 29 and figures["dropped"]["semantic duplicate"] >= 12
    for row in rows:
        near = rows[row["nearest"] - 1] if row["nearest"] else None
        assert near is None or near["cluster"] == row["cluster"]
        if row["reason"] == "semantic duplicate":
            assert row["cosine"] > 0.9 and near["reason"] != "semantic duplicate"
        elif near is not None:
            assert row["cosine"] <= 0.9
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["groups"]["category"] == {
        f"kind {kind}": [16, sum(records[at].category == f"kind {kind}" for at in kept)] for kind in range(3)
    }
    assert sum(told["distributions"]["clusters"]["rows"]) == 48
    examples = lines(tmp_path / "examples.jsonl")
    assert [row["list"] for row in examples] == ["kept"] * 10 + ["dropped"] * 10 + ["duplicates"] * 10
    first = next(row for row in examples if row["list"] == "duplicates")
    assert first["cosine"] == min(row["cosine"] for row in rows if row["reason"] == "semantic duplicate")
    assert first["beside_row"] == first["nearest"] and first["prompt"] == records[first["row"] - 1].prompt[0].content


def test_difficulty_orders_the_rows_and_random_draws_as_many(tmp_path):
    records = pairs()
    records[5] = pair("Who?", "An owl.", ())  # no tag: its difficulty is not known
    hard = {"kind": "tags"}
    told = {"keep": 9, "clusters": 1, "spread": "best", "max_cosine": 1.0}
    chosen = select(records, SelectionSection.model_validate(told | {"difficulty": hard}), tmp_path)
    tags = [len(record.tags) or None for record in records]
    assert chosen.difficulty == tags and tags.count(None) == 1 and chosen.quality is None
    hardest = sorted(range(24), key=lambda at: (-(tags[at] or 0), at))
    assert np.flatnonzero(chosen.kept_N).tolist() == sorted(hardest[:9])
    drawn, again, other = (
        select(records, SelectionSection.model_validate(told | {"random": True, "seed": seed}), tmp_path)
        for seed in (1, 1, 2)
    )
    assert drawn.kept_N.sum() == 9 and np.array_equal(drawn.kept_N, again.kept_N)
    assert not np.array_equal(drawn.kept_N, other.kept_N) and drawn.figures()["dropped"] == {"not drawn": 15}


def test_rows_without_a_score_come_last():
    worth = selection._worth([3.0, None, 1.0, 2.0], None)
    assert selection._as_array(worth).argsort().tolist() == [1, 2, 3, 0]
    assert selection._worth([1.0, 2.0, None], [5.0, None, 6.0])[1:] == [None, None]
    assert selection._worth(None, None) is None and selection._as_array(None) is None


def test_the_same_choice_is_made_once_and_another_one_of_the_same_vectors_embeds_nothing(tmp_path, monkeypatch, capsys):
    records, section = pairs(), SelectionSection(keep=0.5)
    first = choose_records(records, section, tmp_path)
    loaded = []
    monkeypatch.setattr(selection, "load_embedder", lambda *_, **__: loaded.append(1))
    monkeypatch.setattr(outcome, "select", None)
    assert choose_records(records, section, tmp_path) == first
    monkeypatch.setattr(outcome, "select", select)
    kept, _ = choose_records(records, SelectionSection(keep=6), tmp_path)
    assert len(kept) == 6 and loaded == []
    assert "is made anew: other selection" in capsys.readouterr().err
    monkeypatch.undo()
    choose_records(records[:-1], section, tmp_path)
    said = capsys.readouterr().err
    assert "is made anew: other selection, records" in said and "texts" in said


def test_embedding_goes_on_after_a_kill_and_ends_with_the_same_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 5)
    texts, section = [text_of(record, "record") for record in pairs()], SelectionSection()
    whole, name = selection.embedded(texts, None, section, tmp_path / "whole")

    class Killed(Exception):
        pass

    def interrupted(model, texts, **options):
        made, calls = load(model, texts, **options), []

        class Embedder:
            name = made.name

            def embed(self, texts):
                calls.append(len(texts))
                if len(calls) == 3:
                    raise Killed
                return made.embed(texts)

        return Embedder()

    load = selection.load_embedder
    monkeypatch.setattr(selection, "load_embedder", interrupted)
    with pytest.raises(Killed):
        selection.embedded(texts, None, section, tmp_path / "killed")
    assert json.loads((tmp_path / "killed/embedded.json").read_text())["rows"] == 10
    monkeypatch.setattr(selection, "load_embedder", load)
    gone_on, by = selection.embedded(texts, None, section, tmp_path / "killed")
    assert (tmp_path / "killed/vectors.npy").read_bytes() == (tmp_path / "whole/vectors.npy").read_bytes()
    assert by == name and np.array_equal(gone_on, whole) and gone_on.dtype == np.float16
    torn = tmp_path / "whole/vectors.npy"
    torn.write_bytes(torn.read_bytes()[:200])
    assert np.array_equal(selection.embedded(texts, None, section, tmp_path / "whole")[0], gone_on)


def test_a_choice_is_made_anew_when_a_file_that_it_was_made_by_is_another(tmp_path, capsys):
    from align.textmodels.classifier import TextClassifier

    records, judge = pairs(), tmp_path / "judge"

    def kept(labels):
        shutil.rmtree(judge, ignore_errors=True)
        TextClassifier.fit(["cat", "cat", "dog", "dog"], labels).save(judge)
        quality = {"kind": "classifier", "path": str(judge), "label": "good"}
        section = SelectionSection.model_validate({"keep": 3, "spread": "best", "quality": quality})
        return set(choose_records(records, section, tmp_path / "out")[0])

    cats = {at for at, one in enumerate(records) if "cat" in one.prompt[0].content}
    assert kept(["good", "good", "bad", "bad"]) == cats
    assert not kept(["bad", "bad", "good", "good"]) & cats
    assert "is made anew: other files" in capsys.readouterr().err


def test_vectors_are_made_anew_when_their_model_is_another(tmp_path, monkeypatch, capsys):
    model, made = tmp_path / "model", []
    model.mkdir()

    class Embedder:
        name = "own"

        def embed(self, texts):
            made.append(len(texts))
            return np.ones((len(texts), 1), np.float32)

    monkeypatch.setattr(selection, "load_embedder", lambda *_, **__: Embedder())
    for weights in ("a", "a", "longer"):
        if not (model / "w").is_file() or (model / "w").read_text() != weights:
            (model / "w").write_text(weights)
        selection.embedded(["x", "y"], str(model), SelectionSection(), tmp_path / "work")
    assert made == [2, 2] and "files" in capsys.readouterr().err


def test_texts_are_made_when_they_are_asked_for():
    records = pairs()
    texts = selection._Texts(records, "prompt")
    assert len(texts) == 24 and texts[1:3] == ["What does the dog eat in winter?", "What does the hen eat in winter?"]
    assert list(texts) == [text_of(record, "prompt") for record in records] and texts[-1] == texts[23]
