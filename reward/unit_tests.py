"""Execution feedback (Llama 3, 4.3.1): a reply's code is run against the unit tests of its prompt's row, in a sandbox.

The score is 1 where every test passes, else 0; with `partial` it is the share of tests that do. Why a reply has less is
told beside it, as parts of the verdict: 1 for the reason, which is that of its first failed test. What the sandbox is
and what it does not cover: `reward.sandbox`; which tests and which code are meant: `reward.code_tests`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.runtime.terminal import shortened
from reward.code_tests import TEST_FIELDS, CodeTests, TestsError, read_tests
from reward.protocol import RewardError, Sample, Verdict
from reward.rules import Rule, shown
from reward.sandbox.start import Budget, Job, run_all

REASONS = ("no_code", "syntax_error", "exception", "wrong", "timeout", "memory", "crash")
BROKEN = "broken_test"  # tests that cannot be run at all, whatever the reply


@dataclass(frozen=True, slots=True)
class TestsResult:
    """What came of a reply's tests.

    Attributes:
        passed, total: tests; those after one that ended everything count as failed.
        reason: one of `REASONS`, "" where all passed, or `BROKEN`.
        why: the exception, or what else is known; the reply's own words may be in it.
    """

    passed: int
    total: int
    reason: str = ""
    why: str = ""
    __test__ = False  # no test of pytest's

    def score(self, partial: bool) -> float:
        """Share of tests passed, or 1 for all of them."""
        return self.passed / self.total if partial and self.total else float(not self.reason)


class UnitTests(Rule):
    """1 where the reply's code passes all tests of its row, or the share that it passes.

    Args:
        partial: the share, where every test is made; else a reply's first failed test is its last.
        missing: what a reply gets whose prompt has no tests; None: that is an error.
        budget: what a reply and a call may use.
        name: for logs and errors.
    """

    def __init__(
        self, *, partial: bool = False, missing: float | None = None, budget: Budget | None = None, name: str = "tests"
    ):
        super().__init__(name)
        self.partial, self.missing, self.budget = partial, missing, budget or Budget()

    def results(self, samples: Sequence[Sample]) -> list[TestsResult | None]:
        """What came of each reply; None where its prompt has no tests.

        Raises:
            RewardError: a prompt without tests and without `missing`; tests that cannot be read.
            RewardUnavailableError: there is no sandbox, or no time left.
        """
        tests = [self._tests(sample) for sample in samples]
        jobs = [one and one.job(sample, not self.partial) for one, sample in zip(tests, samples, strict=True)]
        asked = [job for job in jobs if isinstance(job, Job)]
        said = iter(run_all(asked, self.budget, self.name))
        return [
            None if one is None else TestsResult(0, 1, "no_code") if job is None else result_of(*next(said))
            for one, job in zip(tests, jobs, strict=True)
        ]

    def verdict(self, samples: Sequence[Sample]) -> Verdict:
        """One score a reply, and for each reason 1 where it is the reply's.

        Raises:
            RewardError: as of `results`; tests that cannot be run.
        """
        found = self.results(samples)
        for sample, result in zip(samples, found, strict=True):
            if result is not None and result.reason == BROKEN:
                problem = f"the tests of the prompt {shown(sample)} cannot be run ({shortened(result.why)})"
                raise RewardError(f"reward {self.name!r}: {problem}; leave such prompts out of the data")
        scores = [self.missing if one is None else one.score(self.partial) for one in found]
        parts = {reason: [float(one is not None and one.reason == reason) for one in found] for reason in REASONS}
        return Verdict(scores, parts)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a reply; see `verdict`."""
        return self.verdict(samples).scores

    def of(self, sample: Sample) -> float:
        """The score of one reply."""
        return self.score([sample])[0]

    def _tests(self, sample: Sample) -> CodeTests | None:
        try:
            tests = read_tests(sample.columns or {})
        except TestsError as error:
            raise RewardError(f"reward {self.name!r}: the prompt {shown(sample)}: {error}") from error
        if tests is None and self.missing is None:
            raise RewardError(
                f"reward {self.name!r}: the prompt {shown(sample)} has no tests ({', '.join(TEST_FIELDS)}); leave such "
                "prompts out of the data, or set 'missing' to the score their replies get"
            )
        return tests


def parsed(samples: Sequence[Sample], budget: Budget, name: str) -> list[TestsResult]:
    """Whether the code of each reply is Python that can be read; none of it is run.

    Raises:
        RewardUnavailableError: there is no sandbox, or no time left.
    """
    jobs = [CodeTests(pairs=[]).job(sample, stop=True) for sample in samples]
    said = iter(run_all([job for job in jobs if job is not None], budget, name))
    return [TestsResult(0, 0, "no_code") if job is None else result_of(*next(said)) for job in jobs]


def result_of(outcomes: Sequence[tuple[str, str]], total: int) -> TestsResult:
    """Of what came of the tests that were made, and how many there are."""
    passed = sum(outcome == "passed" for outcome, _ in outcomes)
    failed = next(((outcome, why) for outcome, why in outcomes if outcome != "passed"), None)
    if failed is None:
        return (
            TestsResult(passed, total) if passed == total else TestsResult(passed, total, "crash", "tests are missing")
        )
    reason = failed[0] if failed[0] in (*REASONS, BROKEN) else "crash"
    return TestsResult(passed, total, reason, failed[1])
