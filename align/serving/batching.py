"""One thread that scores: what arrives while it is at work is scored together, like lengths with like."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from align.runtime.errors import AlignError
from align.serving.shapes import Asked, RequestError
from reward.failures import judge_whole
from reward.protocol import Reward, RewardError, RewardUnavailableError, Sample, Verdict

logger = logging.getLogger(__name__)

Judged = tuple[Verdict, list[Sample]]


@dataclass(slots=True, eq=False)
class _Job:
    asked: Asked
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Judged]
    samples: list[Sample] = field(default_factory=list)

    def settle(self, judged: Judged | None, error: Exception | None = None) -> None:
        """Hand over to the loop, which may be closed by now, or have lost interest."""

        def told() -> None:
            if self.done.cancelled():
                return
            if error is not None:
                self.done.set_exception(error)
            else:
                self.done.set_result(judged)

        try:
            self.loop.call_soon_threadsafe(told)
        except RuntimeError:
            logger.debug("an answer came after the server's end")


class Scorer:
    """Scores requests in a thread of its own.

    A call of the reward takes the request that waits longest and those that are most like it in length. One that fails
    is made again in halves, so that a request fails for its own replies alone.

    Args:
        reward: what judges; no other thread calls it.
        at_once: replies of one call at least, where so many wait; a single request may have more.
        most_waiting: replies that may wait; a request beyond is refused (503).

    Attributes:
        replies, calls, failed: replies that were scored, calls of the reward that succeeded, requests that failed.
    """

    def __init__(self, reward: Reward, *, at_once: int = 64, most_waiting: int = 8192):
        self.reward, self.at_once, self.most_waiting = reward, at_once, most_waiting
        self.replies = self.calls = self.failed = 0
        self._waiting = 0  # read and written in the loop's thread alone
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    async def judge(self, asked: Asked) -> Judged:
        """The verdict on what is asked, and the samples that were judged.

        Raises:
            RequestError: too many replies wait already, or these cannot be made samples of.
            RewardError, MemoryError and others: the reward failed on these replies.
        """
        if self._waiting + asked.replies > self.most_waiting:
            raise RequestError(f"{self._waiting} replies wait already: ask again in a moment", 503)
        loop = asyncio.get_running_loop()
        job = _Job(asked, loop, loop.create_future())
        self._waiting += asked.replies
        self._queue.put(job)
        try:
            return await job.done
        finally:
            self._waiting -= asked.replies

    def close(self) -> None:
        """Score what waits, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: list[_Job] = []
        going = True
        while going or waiting:
            going = self._take(waiting) and going
            if not waiting:
                continue
            oldest = waiting[0].asked.length
            together, replies = [], 0
            for job in sorted(waiting, key=lambda job: abs(job.asked.length - oldest)):
                if replies >= self.at_once:
                    break
                together.append(job)
                replies += job.asked.replies
            chosen = set(map(id, together))
            waiting = [job for job in waiting if id(job) not in chosen]
            self._judge([job for job in together if not job.done.cancelled() and self._made(job)])

    def _take(self, waiting: list[_Job]) -> bool:
        """Add what has arrived, waiting for it where there is nothing to do; False where no more will come."""
        try:
            while (job := self._queue.get(block=not waiting)) is not None:
                waiting.append(job)
        except Empty:
            return True
        return False

    def _made(self, job: _Job) -> bool:
        try:
            job.samples = job.asked.samples()
        except Exception as error:
            self._fail(job, error)
            return False
        return True

    def _judge(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        samples = [sample for job in jobs for sample in job.samples]
        try:
            verdict = judge_whole(self.reward, samples) if samples else Verdict([])
        except RewardUnavailableError as error:
            for job in jobs:
                self._fail(job, error)
        except Exception as error:  # whatever it is, the thread goes on
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            half = len(jobs) // 2
            self._judge(jobs[:half])
            self._judge(jobs[half:])
        else:
            self.calls, self.replies = self.calls + 1, self.replies + len(samples)
            start = 0
            for job in jobs:
                own = slice(start, start + len(job.samples))
                parts = {name: scores[own] for name, scores in verdict.parts.items()}
                job.settle((Verdict(verdict.scores[own], parts), job.samples))
                start = own.stop

    def _fail(self, job: _Job, error: Exception) -> None:
        self.failed += 1
        if not isinstance(error, AlignError):
            logger.error("a request failed: %s: %s", type(error).__name__, error)
        job.settle(None, error)


def status_of(error: Exception) -> int:
    """HTTP's word for what a request failed of: its own replies (422), memory (503), a reward that is not to be had
    (502), or something nobody foresaw (500)."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, RewardUnavailableError):
        return 502
    if isinstance(error, RewardError | AlignError):
        return 422
    return 503 if isinstance(error, MemoryError) or "out of memory" in str(error).lower() else 500
