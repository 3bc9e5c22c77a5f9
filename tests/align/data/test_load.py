"""Sources of a recipe -> records: where paths lead, and what is refused."""

import datasets
import pytest

from align.data.load import load_records, train_and_heldout
from align.recipe.fields import Source
from align.recipe.model_section import Architecture, ModelSection
from align.recipe.schema import Recipe
from align.recipe.sources import source_path
from align.recipe.supervised_sections import BaseSection
from data_formats import DataError, Document, EmptyDatasetError, MissingFileError, Prompt, write_jsonl

OPTIM = {"learning_rate": 1e-3, "max_length": 8, "batch_size": 1, "micro_batch_size": 1}


def recipe(tmp_path, *paths, data_root=True, **base):
    section = BaseSection(data=tuple(Source(path=path) for path in paths), **OPTIM | base)
    return Recipe(
        name="test",
        output_dir=str(tmp_path / "out"),
        data_root=str(tmp_path / "data") if data_root else None,
        model=ModelSection(architecture=Architecture()),
        base=section,
    )


def documents(path, count, word="text"):
    write_jsonl(path, [Document(f"{word} {number}") for number in range(count)])


def test_paths(tmp_path, monkeypatch):
    made = recipe(tmp_path, "a.jsonl")
    assert source_path(made, Source(path="sub/a.jsonl")) == tmp_path / "data" / "sub" / "a.jsonl"
    assert source_path(made, Source(path=str(tmp_path / "b.jsonl"))) == tmp_path / "b.jsonl"
    assert source_path(made, Source(path="tinyworld:sft")) == tmp_path / "out" / "world" / "sft.jsonl"
    monkeypatch.chdir(tmp_path)
    assert source_path(recipe(tmp_path, "a.jsonl", data_root=False), Source(path="a.jsonl")).resolve() == (
        tmp_path / "a.jsonl"
    )


def test_sources_are_read_in_order_and_named_on_their_records(tmp_path):
    documents(tmp_path / "data" / "a.jsonl", 2, "a")
    write_jsonl(tmp_path / "out" / "world" / "docs.jsonl", [Document("b 0", source="world")])
    made = recipe(tmp_path, "a.jsonl")
    records, reports = load_records((Source(path="a.jsonl"), Source(path="tinyworld:docs")), Document, made)
    assert records == [Document("a 0", "a.jsonl"), Document("a 1", "a.jsonl"), Document("b 0", "world")]
    assert [(report.format, report.records) for report in reports] == [("text", 2), ("text", 1)]


def test_source_options_are_passed_on(tmp_path):
    write_jsonl(tmp_path / "data" / "p.jsonl", [Document(f"{number}") for number in range(3)])
    (tmp_path / "data" / "p.jsonl").write_text('{"question": "a", "prompt": "x"}\n{"question": "b", "prompt": "y"}')
    source = Source(path="p.jsonl", format="question", limit=1, category="c")
    (record,), _ = load_records((source,), Prompt, recipe(tmp_path, "a"))
    assert (record.messages[0].content, record.category) == ("a", "c")


def test_prompts_of_all_sources_have_the_same_columns(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"prompt": "x", "tests": ["t"]}\n{"prompt": "y"}\n')
    (tmp_path / "data" / "b.csv").write_text("prompt,level\nz,3\n")
    sources = (Source(path="a.jsonl"), Source(path="b.csv"))
    records, _ = load_records(sources, Prompt, recipe(tmp_path, "a"))
    assert [record.columns for record in records] == [
        {"tests": ["t"], "level": None},
        {"tests": None, "level": None},
        {"tests": None, "level": "3"},
    ]


def test_refusals(tmp_path):
    made = recipe(tmp_path, "a.jsonl")
    with pytest.raises(MissingFileError, match=r"data/a\.jsonl: no such file; check the path and data_root"):
        load_records(made.base.data, Document, made)
    with pytest.raises(MissingFileError, match="the embedded world has not been written"):
        load_records((Source(path="tinyworld:docs"),), Document, made)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": ""}')
    with pytest.raises(
        EmptyDatasetError, match=r"no document is left \(.*a\.jsonl \(text\): 1 rows, 0 kept; .*empty text 1"
    ):
        load_records(made.base.data, Document, made)
    (tmp_path / "data" / "a.jsonl").write_text('{"text": 1}')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1, field 'text': expected a string, found int 1"):
        load_records(made.base.data, Document, made)


def test_heldout_is_a_share_or_the_named_files(tmp_path):
    documents(tmp_path / "data" / "a.jsonl", 100)
    documents(tmp_path / "data" / "b.jsonl", 3, "other")
    made = recipe(tmp_path, "a.jsonl", holdout=0.2)
    train, heldout, reports = train_and_heldout(made.base, Document, made)
    assert len(train) + len(heldout) == 100 and 5 < len(heldout) < 40 and len(reports) == 1
    assert not {record.text for record in train} & {record.text for record in heldout}

    made = recipe(tmp_path, "a.jsonl", eval_data=(Source(path="b.jsonl"),))
    train, heldout, reports = train_and_heldout(made.base, Document, made)
    assert (len(train), len(heldout), len(reports)) == (100, 3, 2)


def test_weights_mix_the_sources_by_the_seed_and_are_counted(tmp_path):
    documents(tmp_path / "data" / "a.jsonl", 40, "a")
    documents(tmp_path / "data" / "b.jsonl", 10, "b")
    made = recipe(tmp_path, "a.jsonl")
    sources = (Source(path="a.jsonl", weight=3.0), Source(path="b.jsonl", weight=1.0))
    records, reports = load_records(sources, Document, made)
    assert [report.drawn for report in reports] == [30, 10]
    assert [sum(record.source == name for record in records) for name in ("a.jsonl", "b.jsonl")] == [30, 10]
    assert load_records(sources, Document, made)[0] == records
    assert load_records(sources, Document, made.model_copy(update={"seed": made.seed + 1}))[0] != records


def test_a_hub_source_is_read_as_a_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    documents(tmp_path / "set" / "test.jsonl", 3)
    name = str(tmp_path / "set")
    for streaming in (True, False):
        source = Source(hub=name, hub_split="test", streaming=streaming)
        records, (report,) = load_records((source,), Document, recipe(tmp_path, "a.jsonl"))
        assert records == [Document(f"text {at}", f"hub:{name}") for at in range(3)]
        assert (report.path, report.rows) == (f"hub:{name}", 3)
