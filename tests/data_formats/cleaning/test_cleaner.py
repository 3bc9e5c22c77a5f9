"""Running steps over records: order, counts, the table, laziness, any text at all, and flat memory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import (
    Apologies,
    Cleaner,
    ControlTokens,
    Decontamination,
    Emoji,
    EmptyReplies,
    ExactDuplicates,
    Exclamations,
    Finding,
    InvisibleCharacters,
    Length,
    LoneSurrogates,
    MismatchedRoles,
    NearDuplicates,
    NulBytes,
    Repetition,
    ReplacementCharacters,
)
from data_formats.records import Reply, Scored, ToolCall

ROOT = Path(__file__).parents[3]


def demo(question, answer):
    return Demonstration((Message("user", question), Message("assistant", answer)))


def every_step():
    return [
        NulBytes(),
        LoneSurrogates(),
        ReplacementCharacters("keep"),
        InvisibleCharacters(),
        MismatchedRoles(),
        EmptyReplies(),
        ControlTokens("keep"),
        Length(min_reply_chars=1, max_reply_words=1000),
        Repetition(min_words=0),
        Apologies(keep=0.5),
        Emoji(),
        Exclamations(),
        Decontamination([Prompt((Message("user", "a b c d"),), reference="e")], n=3, chinese_n=3),
        ExactDuplicates(),
        NearDuplicates(threshold=0.5, num_perm=32),
    ]


def test_counts_by_step_and_reason_with_the_first_example():
    records = [demo("q\x00", "fine"), demo("问", " "), demo("q", "<|im_end|>"), demo("q", "fine"), demo("q2", "\x00")]
    cleaner = Cleaner([NulBytes(), EmptyReplies(), ControlTokens("keep"), ExactDuplicates()])
    assert list(cleaner.clean(records)) == [demo("q", "fine"), demo("q", "<|im_end|>")]
    report = cleaner.report
    assert (report.rows, report.records, report.dropped) == (5, 2, 3)
    assert [step.seen for step in report.steps] == [5, 5, 3, 3]
    rows = [row[:1] + row[2:] for row in report.as_rows() if row[0]]
    assert rows == [
        ("nul_bytes", 5, 0, 2, 0, ""),
        ("empty_replies", 5, 2, 0, 0, ""),
        ("control_tokens", 3, 0, 0, 1, ""),
        ("exact_duplicates", 3, 1, 0, 0, ""),
    ]
    reasons = [row[1:] for row in report.as_rows() if not row[0]]
    assert reasons == [
        ("- NUL removed", 5, 0, 2, 0, "q\\u0000"),
        ("- empty reply", 5, 2, 0, 0, "问"),
        ("- ChatML or model token", 3, 0, 0, 1, "<|im_end|>"),
        ("- same text", 3, 1, 0, 0, "1 = 3: q"),
    ]
    assert report.describe() == (
        "cleaning: 5 rows, 2 kept; dropped: empty_replies: empty reply 2, exact_duplicates: same text 1; "
        "repaired: nul_bytes: NUL removed 2; noted: control_tokens: ChatML or model token 1"
    )
    assert json.loads(json.dumps(report.to_dict()))["steps"][0]["repaired"] == {"NUL removed": 2}


def test_examples_are_short_and_printable():
    cleaner = Cleaner([NulBytes("drop"), Length(max_reply_chars=5)])
    assert list(cleaner.clean([demo("a\ud800\x00\n\tb", "c"), demo("q", "长" * 500)])) == []
    examples = [example for step in cleaner.report.steps for example in step.examples.values()]
    assert examples == ["a\\ud800\\u0000 b", "长" * 59 + "…"]


def test_records_are_taken_one_by_one_and_sources_add_up():
    taken = []

    def source():
        for number in range(10):
            taken.append(number)
            yield Document(str(number))

    cleaner = Cleaner([ExactDuplicates()])
    stream = cleaner.clean(source())
    assert taken == [] and next(stream) == Document("0") and taken == [0]
    assert len(list(stream)) == 9
    assert list(cleaner.clean([Document("3"), Document("x")])) == [Document("x")]
    assert (cleaner.report.rows, cleaner.report.records) == (12, 11)


def test_each_step_once():
    with pytest.raises(ValueError, match="two cleaning steps are called 'nul_bytes'"):
        Cleaner([NulBytes(), NulBytes("drop")])


def test_any_step_of_ones_own():
    class NoZebras:
        name = "zebras"
        looks_for = "zebras"

        def check(self, record):
            return Finding("drop", "zebra", record.text) if "zebra" in record.text else None

    cleaner = Cleaner([NoZebras()])
    assert list(cleaner.clean([Document("a zebra"), Document("a horse")])) == [Document("a horse")]


TEXTS = st.text(st.characters(exclude_categories=()), max_size=40) | st.sampled_from(
    ["", "a b c d e", "!!!!", "抱歉", "<|im_start|>", "\x00", "\ud800", "\ud83d\ude00", "😀" * 9, "x\n" * 9, "\ufffd"]
)
CALLS = st.lists(st.builds(ToolCall, TEXTS, TEXTS), max_size=1).map(tuple)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.builds(Message, ROLES, TEXTS, TEXTS, CALLS), max_size=4).map(tuple)
SCORES = st.none() | st.floats(-2, 2)
RECORDS = (
    st.builds(Demonstration, TURNS)
    | st.builds(Comparison, TURNS, TEXTS, TEXTS)
    | st.builds(Scored, TURNS, st.lists(st.builds(Reply, TEXTS, SCORES), max_size=3).map(tuple))
    | st.builds(Prompt, TURNS)
    | st.builds(Document, TEXTS)
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(RECORDS, max_size=8))
def test_no_text_makes_cleaning_fail_and_every_row_is_accounted_for(records):
    cleaner = Cleaner(every_step())
    kept = list(cleaner.clean(records))
    report = cleaner.report
    assert (report.rows, report.records) == (len(records), len(kept))
    assert report.rows == report.records + report.dropped
    for before, after in zip(report.steps, report.steps[1:], strict=False):
        assert after.seen == before.seen - before.dropped.total()
    json.dumps(report.to_dict()).encode()
    repr(report.as_rows()).encode()
    assert all("\x00" not in repr(record) for record in kept)
    again = Cleaner(every_step())
    assert list(again.clean(kept)) == kept and again.report.dropped == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(RECORDS, max_size=6), st.randoms(use_true_random=False))
def test_rules_about_a_single_record_do_not_depend_on_the_order(records, rng):
    shuffled = rng.sample(records, len(records))
    kept = [list(Cleaner(every_step()[:-2]).clean(order)) for order in (records, shuffled)]
    assert sorted(map(repr, kept[0])) == sorted(map(repr, kept[1]))


@pytest.mark.parametrize("part", ["!", "! ", "`", "``` ", "a'", " ", "\n", "。a", "very ", "\U0001f1e8", "<|a", "哦"])
def test_a_runaway_reply_takes_seconds_at_most(part):
    """Each would take minutes with a pattern that looks at every rest of a run."""
    text = part * (100_000 // len(part))
    for step in every_step():
        began = time.process_time()
        step.check(demo("q", f"{text}a"))
        assert time.process_time() - began < 5, step.name


STREAM = """
import json
from data_formats import Document
from data_formats.cleaning import Cleaner, ExactDuplicates, NearDuplicates
class Hoarder:
    name, looks_for, seen = "hoarder", "", []
    def check(self, record):
        self.seen.append(record)
def rows():
    with open({path!r}, encoding="utf-8") as file:
        for line in file:
            yield Document(json.loads(line)["text"])
def used():
    with open("/proc/self/status") as file:  # not ru_maxrss, which begins with the parent's
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))
stream = (cleaner := Cleaner([{step}()])).clean(rows())
for _ in range(300):
    next(stream)
before = used()
for _ in stream:
    pass
print(cleaner.report.rows, cleaner.report.records, used() - before)
"""


def memory_growth(tmp_path, step, records, text):
    """Rows, records, MiB by which the peak of a process grew over a streamed file; the file's own MiB."""
    path = tmp_path / "long.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            file.write(json.dumps({"text": text(number)}) + "\n")
    script = STREAM.format(step=step, path=str(path))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return [*map(int, done.stdout.split()), path.stat().st_size // 2**20]


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
FILLER = "the same words as ever " * 30


@pytest.mark.slow
@LINUX
def test_memory_stays_flat_on_a_file_ten_times_the_limit(tmp_path):
    rows, records, grown, size = memory_growth(tmp_path, "ExactDuplicates", 150_000, lambda n: f"{n} {FILLER}")
    assert rows == records == 150_000
    assert size >= 100 and grown <= 10


@pytest.mark.slow
@LINUX
def test_the_measure_of_memory_sees_what_is_kept(tmp_path):
    *_, grown, size = memory_growth(tmp_path, "Hoarder", 60_000, lambda n: f"{n} {FILLER}")
    assert size >= 40 and grown >= 40


@LINUX
@pytest.mark.slow
def test_memory_of_near_duplicates_stays_flat_too(tmp_path):
    def text(number):
        return " ".join(f"{(number * 7919 + at * at * 104729) % 999983:x}" for at in range(800))

    rows, records, grown, size = memory_growth(tmp_path, "NearDuplicates", 8_000, text)
    assert rows == 8_000 and records > 7_700
    assert size >= 34 and grown <= size / 3
