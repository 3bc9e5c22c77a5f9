import json
import os
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from align.runtime.errors import MissingPackageError
from data_formats.records import Message
from reward.maths import FinalAnswer, MathEquality, last_number, marked_number, number
from reward.protocol import RewardError, Sample

REAL = Path(os.environ.get("ALIGN_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "real" / "6_checkable"
SOLUTION = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48 + 24 = 72.\n#### 72"


def samples(*completions, reference):
    return [Sample((Message("user", "q"),), text, columns={"reference": reference}) for text in completions]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("72", "72"), (" $1,234.50. ", "1234.5"), ("-3", "-3"), (".5", "0.5"), ("7.0", "7")),
        *((text, None) for text in ("1/2", "", "NaN", "Infinity", "72 clips")),
    ],
)
def test_a_text_that_is_one_number(text, value):
    assert number(text) == (None if value is None else Decimal(value))


def test_numbers_behind_the_mark_and_at_the_end():
    assert marked_number("1\n#### 2\n#### 3 dollars") == 3
    assert marked_number("#### $1,000") == 1000
    assert marked_number("#### none") is None and marked_number("3") is None
    assert last_number("from 3 to 1,200.50 in 2019.") == 2019
    assert last_number("no digits") is None


def test_gsm8k_strict_and_flexible():
    replies = ("So #### 72", "#### 72.00", "#### 24", "The answer is 72.", "72 - 24 = 48", "")
    assert FinalAnswer().score(samples(*replies, reference=SOLUTION)) == [1, 1, 0, 0, 0, 0]
    assert FinalAnswer("flexible").score(samples(*replies, reference=SOLUTION)) == [1, 1, 0, 1, 0, 0]
    assert FinalAnswer("flexible").score(samples("#### many, 72", reference="72")) == [0]  # marked, and no number
    assert FinalAnswer().score(samples("#### 72", reference=72)) == [1]


def test_a_reference_without_number_is_an_error():
    with pytest.raises(RewardError, match="'gsm8k': the reference 'many' is neither a number"):
        FinalAnswer().score(samples("#### 72", reference="many"))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real samples are not there ({REAL})")
def test_real_gsm8k_solutions_reach_their_own_answers_and_the_files_verdicts():
    rows = [json.loads(line) for line in (REAL / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()]
    right = [FinalAnswer().score(samples(row["answer"], reference=row["answer"]))[0] for row in rows]
    assert len(right) > 100 and all(right)
    lines = (REAL / "gsm8k_model_solutions.jsonl").read_text(encoding="utf-8").splitlines()
    agree = []
    for row in map(json.loads, lines):
        truth = row["ground_truth"].rpartition("A:")[2].strip()
        for solved in (value for value in row.values() if isinstance(value, dict) and "solution" in value):
            (found,) = FinalAnswer("flexible").score(samples(solved["solution"], reference=truth))
            agree.append(found == float(solved["is_correct"]))
    assert len(agree) > 100
    assert sum(agree) / len(agree) > 0.97


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(MissingPackageError, match=r"needs math-verify.*align-rlhf\[maths\]"):
        MathEquality()


@pytest.mark.parametrize(
    ("reference", "reply", "right"),
    [
        ("1/2", "so it is $\\frac{1}{2}$", True),
        ("\\frac{3}{4}", "\\boxed{0.75}", True),
        ("x^2+1", "we get $1 + x^2$", True),
        ("$x^2+1$", "we get $x^2 - 1$", False),
        ("1,000", "1000", True),
        (SOLUTION, "The answer is 72.", True),
        (SOLUTION, "The answer is 24.", False),
        ("\\{1,2\\}", "$\\{2,1\\}$", True),
        ("72", "I do not know", False),
        ("72", "", False),
    ],
)
def test_equality_as_mathematics(reference, reply, right):
    assert MathEquality().score(samples(reply, reference=reference)) == [float(right)]


def test_a_reference_that_is_no_mathematics_is_an_error():
    with pytest.raises(RewardError, match=r"'math': the reference .* cannot be read as a number or LaTeX"):
        MathEquality().score(samples("4", reference="__import__('os').getcwd()"))


def test_it_judges_outside_of_the_main_thread_too():
    found = []
    thread = threading.Thread(target=lambda: found.extend(MathEquality().score(samples("0.5", reference="1/2"))))
    thread.start()
    thread.join()
    assert found == [1.0]
