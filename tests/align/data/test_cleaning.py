"""A cleaning section becomes its steps, in order and with its thresholds."""

import pytest
from torch import distributed

from align.data import cleaning
from align.data.cleaning import STEPS, build_cleaner, clean_records, cleaning_table, evaluation_prompts
from align.recipe.cleaning_section import CleaningSection
from data_formats import Demonstration, Document, Message, Prompt
from data_formats.cleaning import Finding
from tests.ranks import on_ranks

EVERYTHING = {
    "nul_bytes": "drop",
    "lone_surrogates": "drop",
    "replacement_characters": "drop",
    "invisible_characters": "drop",
    "mismatched_roles": True,
    "control_tokens": "drop",
    "length": {"max_reply_chars": 400},
    **{key: {} for key in ("repetition", "apologies", "emoji", "exclamations")},
    **{"gopher": {}, "c4": {}, "machine_made": {"kinds": ["template"]}, "pii": {"action": "drop", "by": "patterns"}},
    "decontamination": {"against": ["eval.jsonl"], "n": 4},
    "near_duplicates": {"threshold": 0.6},
}


PROSE = (
    "In the spring of that year we moved to a small house by the river. It had two rooms and a garden with trees. "
    "My grandmother planted beans, and the children had to carry the water from a well. We were poor, but I do not "
    "think that we knew it, for nobody near us had more than bread and soup."
)


def demo(question, answer):
    return Demonstration((Message("user", question), Message("assistant", answer)))


def test_every_key_of_the_section_has_its_step_of_that_name():
    assert list(STEPS) == list(CleaningSection.model_fields)
    assert {key: step.name for key, step in STEPS.items()} == {key: key for key in STEPS}


@pytest.mark.needs("py3langid")
def test_what_is_asked_for_runs_with_its_thresholds(tmp_path):
    (tmp_path / "words.txt").write_text("darn\n")
    added = {"languages": {"keep": ["en"]}, "toxicity": {"words": str(tmp_path / "words.txt")}}
    section = CleaningSection.model_validate(EVERYTHING | added)
    cleaner = build_cleaner(section, [Prompt((Message("user", "one two three four"),))])
    assert [step.name for step in cleaner.report.steps] == [name for name in STEPS if name != "perplexity"]
    good = demo("How are you?", "I am well, thank you for asking about me today.")
    records = [
        *(demo("a\x00", "b"), demo("a\ud800", "b"), demo("a\ufffd", "b"), demo("a\u200b", "b")),
        *(Demonstration((Message("assistant", "b"),)), demo("a", " "), demo("a", "<|im_end|>"), demo("a", "b" * 401)),
        *(demo("a", "x\nx\nx"), demo("a", "Sorry."), demo("a", "😀😀😀😀"), demo("a", "No!!!!")),
        demo("a", "Hier, il a fait un temps magnifique dans toute la ville."),
        *(Document("Short."), Document(f"{PROSE} Here {{ it ends."), demo("a", "I am {{name}}."), demo("a", "darn")),
        *(demo("Zero one two three four five", "b"), demo("a", "Ask ann@corp.com."), good, good),
        demo("How are you?", "I am well, thank you for asking about me today!"),
    ]
    assert list(cleaner.clean(records)) == [good]
    assert [step.dropped.total() for step in cleaner.report.steps] == [1] * (len(STEPS) - 1)


def test_defaults_run_four_steps_and_the_table_counts():
    cleaner = build_cleaner(CleaningSection())
    assert list(cleaner.clean([demo("a\x00", "b"), demo("a", "b"), demo("a", "")])) == [demo("a", "b")]
    lines = cleaning_table(cleaner.report).splitlines()
    assert lines[0].split()[:3] == ["step", "looks", "for"]
    assert [line.split()[0] for line in lines[2:] if not line.startswith(" ")] == [
        *("nul_bytes", "lone_surrogates", "empty_replies", "exact_duplicates"),
    ]
    assert "- NUL removed" in lines[3] and lines[3].endswith("a\\u0000")


def test_evaluation_prompts_are_read_where_they_are_asked_for():
    read = []

    def evaluation(sources):
        read.extend(source.path for source in sources)
        return [Prompt((Message("user", "one two three four"),))]

    records = [demo("one two three four", "b"), demo("other", "b")]
    assert clean_records(records, CleaningSection(), evaluation)[0] == records and read == []
    section = CleaningSection.model_validate({"decontamination": EVERYTHING["decontamination"]})
    kept, report = clean_records(records, section, evaluation)
    assert kept == records[1:] and read == ["eval.jsonl"]
    assert report.describe() == "cleaning: 2 rows, 1 kept; dropped: decontamination: input only 1"


def test_evaluation_prompts_of_a_dataset(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "one two"}\n{"prompt": "three"}\n')
    for source in (f"hub:{tmp_path}", {"path": f"{tmp_path}/train.jsonl", "limit": 2}):
        section = CleaningSection.model_validate({"decontamination": {"against": [source]}})
        assert [one.messages[0].content for one in evaluation_prompts(section)] == ["one two", "three"]


class DropsByRank:
    """A model that says something else on every rank: what `toxicity` is built as in `two_ranks`."""

    name, looks_for = "toxicity", "what is this rank's"

    def __init__(self, folder):
        self.rank = distributed.get_rank()
        (folder / f"asked-{self.rank}").touch()

    def check(self, record):
        return Finding("drop", "this rank's") if record.messages[0].content == str(self.rank) else None


def two_ranks(folder):
    distributed.init_process_group("gloo")
    cleaning.WITH_HELPERS["toxicity"] = lambda section: DropsByRank(folder)
    section = CleaningSection.model_validate({"toxicity": {"model": str(folder)}})
    kept, report = clean_records([demo("0", "a"), demo("1", "b")], section, list)
    told = ([one.messages[0].content for one in kept], report.dropped)
    (folder / f"told-{distributed.get_rank()}").write_text(repr(told))


@pytest.mark.slow
def test_where_a_model_is_asked_all_ranks_go_on_with_what_the_first_one_left(tmp_path):
    on_ranks(2, two_ranks, tmp_path)
    assert {(tmp_path / f"told-{rank}").read_text() for rank in "01"} == {"(['1'], 1)"}
    assert [file.name for file in tmp_path.glob("asked-*")] == ["asked-0"]
