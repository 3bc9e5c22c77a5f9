"""The schedule of ppo's iterations, simulated: ranks that collect, score, ask and update, and wait for one another.

Discrete events over processes that work and meet. Work runs in a pool: a card, a server, or the cores of one machine,
which ranks share (`n` at work on `c` cores each get min(1, c / n) of one). Ranks meet where the trainer does: after
sampling, after scoring, after the experience, and at every optimizer step. Replies are dealt as it deals them: by
prompt while they are sampled and scored, by length (longest first, in turn) while they are learnt from. With overlap
servers sample the next batch while this one is learnt from, and weights are pushed when both are done.

What is not here: the order in which requests reach a server, anything that fails, and noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

PHASES = ("rollout", "score", "experience", "update", "averaging", "push")
WAITING = "waiting"


@dataclass(eq=False, slots=True)
class Pool:
    """Cores (or a card: one) that what works at the same time shares."""

    cores: float = 1.0
    work: dict[int, float] = field(default_factory=dict)  # by process: seconds of a core that are left

    @property
    def rate(self) -> float:
        """Of a core that each gets."""
        return min(1.0, self.cores / len(self.work)) if self.work else 1.0


@dataclass(eq=False, slots=True)
class Meeting:
    """Where so many processes wait for one another."""

    size: int
    here: list[int] = field(default_factory=list)


Process = Generator[tuple[Pool, float] | Meeting, None, None]


def simulate(processes: Sequence[tuple[Process, Callable[[float], None]]]) -> float:
    """Run processes to their ends; returns the seconds until all are through.

    Args:
        processes: each with what is told the time whenever it goes on.

    Raises:
        ValueError: they wait for one another for ever.
    """
    now, ready, running = 0.0, list(range(len(processes))), set(range(len(processes)))
    pools: set[Pool] = set()
    while running:
        while ready:
            which = ready.pop()
            process, told = processes[which]
            told(now)
            asked = next(process, None)
            if asked is None:
                running.discard(which)
            elif isinstance(asked, Meeting):
                asked.here.append(which)
                if len(asked.here) == asked.size:
                    ready += asked.here
                    asked.here = []
            elif asked[1] <= 0:
                ready.append(which)
            else:
                pools.add(asked[0])
                asked[0].work[which] = asked[1]
        pools = {pool for pool in pools if pool.work}
        if not pools:
            if running:
                raise ValueError("the processes wait for one another")
            break
        passed = min(min(pool.work.values()) / pool.rate for pool in pools)
        now += passed
        for pool in pools:
            done = passed * pool.rate
            for which, left in list(pool.work.items()):
                if left - done <= 1e-12 * max(1.0, left):
                    del pool.work[which]
                    ready.append(which)
                else:
                    pool.work[which] = left - done
    return now


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a core, or a card, that the pieces of an iteration take.

    Attributes:
        rollout: of an engine, for replies of these lengths.
        score, experience, update: of a rank, for so many replies with so many tokens (prompts included); `update` of a
            whole iteration.
        averaging: of an optimizer step, in which nothing else is done, on so many ranks.
        push: of the weights to all engines, where they have their own.
        steps: optimizer steps of an iteration.
        prompt: tokens of a prompt. times: replies to one.
    """

    rollout: Callable[[Sequence[int]], float]
    score: Callable[[int, int], float]
    experience: Callable[[int, int], float]
    update: Callable[[int, int], float]
    averaging: Callable[[int], float]
    push: float
    steps: int
    prompt: int
    times: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Seconds of an iteration, a mean: in all, and of a rank by phase, what it waits apart (`waiting`)."""

    seconds: float
    phases: dict[str, float]

    @property
    def longest(self) -> str:
        """The phase, or the waiting, that takes most."""
        return max(self.phases, key=lambda name: self.phases[name])


def run(
    costs: Costs,
    batches: Sequence[Sequence[int]],
    ranks: int,
    *,
    servers: int = 0,
    overlap: bool = False,
    cores: float | None = None,
) -> Timeline:
    """Iterations over batches of replies.

    Args:
        batches: lengths of each iteration's replies, those to a prompt side by side.
        servers: that sample for all ranks; 0: each rank samples its own.
        overlap: servers sample the next batch while one is learnt from.
        cores: that all ranks share, as on one machine; None: each has a card of its own.
    """
    machine = None if cores is None else Pool(cores)
    schedule = _Schedule(costs, batches, ranks, servers, overlap and servers > 0, machine)
    notes = [_Note() for _ in range(ranks)]
    processes = [(schedule.rank(number, note), note.told) for number, note in enumerate(notes)]
    processes += [(schedule.engine(number), lambda now: None) for number in range(servers)]
    seconds = simulate(processes) / len(batches)
    spent = {name: sum(note.seconds[name] for note in notes) / ranks / len(batches) for name in (*PHASES, WAITING)}
    return Timeline(seconds, spent)


class _Schedule:
    """What ranks and servers do, in their order.

    Args:
        machine: that all ranks work on; None: a card each.
    """

    def __init__(
        self,
        costs: Costs,
        batches: Sequence[Sequence[int]],
        ranks: int,
        servers: int,
        overlap: bool,
        machine: Pool | None,
    ):
        self.costs, self.batches, self.ranks, self.servers = costs, batches, ranks, servers
        self.overlap, self.machine = overlap, machine
        self.begun, self.sampled = Meeting(ranks + servers), Meeting(ranks + servers)
        self.together = Meeting(ranks)

    def engine(self, number: int) -> Process:
        """A server."""
        pool = Pool()
        for batch in self.batches:
            if not self.overlap:
                yield self.begun
            yield pool, self.costs.rollout(_dealt(batch, self.costs.times, number, self.servers))
            yield self.sampled
            if self.overlap:
                yield self.begun

    def rank(self, number: int, note: _Note) -> Process:
        """A rank of the trainer."""
        costs, pool, last = self.costs, self.machine or Pool(), len(self.batches) - 1
        for at, batch in enumerate(self.batches):
            own = _dealt(batch, costs.times, number, self.ranks)
            if not self.servers:
                yield from note.on(pool, "rollout", costs.rollout(own))
                yield from note.meet(self.together)
            else:
                if not self.overlap:
                    yield from note.meet(self.begun)
                if not self.overlap or at == 0:
                    yield from note.meet(self.sampled)
                if self.overlap:
                    yield from note.meet(self.begun)
            yield from note.on(pool, "score", costs.score(*_size(own, costs)))
            yield from note.meet(self.together)
            yield from self._learnt(pool, note, sorted(batch, reverse=True)[number :: self.ranks])
            if self.overlap and at < last:
                yield from note.meet(self.sampled)  # nothing samples while weights change
            yield from note.on(Pool(), "push", costs.push)

    def _learnt(self, pool: Pool, note: _Note, replies: list[int]) -> Process:
        costs, size = self.costs, _size(replies, self.costs)
        yield from note.on(pool, "experience", costs.experience(*size))
        yield from note.meet(self.together)
        for _ in range(costs.steps):
            yield from note.on(pool, "update", costs.update(*size) / costs.steps)
            yield from note.meet(self.together)
            yield from note.on(self.machine or Pool(), "averaging", costs.averaging(self.ranks))


class _Note:
    """What a rank's seconds went into."""

    def __init__(self) -> None:
        self.seconds, self.now = dict.fromkeys((*PHASES, WAITING), 0.0), 0.0

    def told(self, now: float) -> None:
        """It goes on at this time."""
        self.now = now

    def on(self, pool: Pool, phase: str, seconds: float) -> Iterator[Any]:
        """Work."""
        began = self.now
        yield pool, seconds
        self.seconds[phase] += self.now - began

    def meet(self, meeting: Meeting) -> Iterator[Any]:
        """Wait."""
        began = self.now
        yield meeting
        self.seconds[WAITING] += self.now - began


def _dealt(batch: Sequence[int], times: int, number: int, parts: int) -> list[int]:
    """A part's replies: of every so many-th prompt."""
    prompts = [batch[at : at + times] for at in range(0, len(batch), times)]
    return [length for group in prompts[number::parts] for length in group]


def _size(replies: Sequence[int], costs: Costs) -> tuple[int, int]:
    """(replies, tokens with their prompts, each once for its replies)."""
    return len(replies), sum(replies) + costs.prompt * -(-len(replies) // costs.times)


def drawn_lengths(count: int, longest: int, mean: float | None, seed: int) -> list[int]:
    """Lengths of replies that end at random (an exponential distribution, cut at the longest); all longest without a
    mean."""
    if mean is None:
        return [longest] * count
    source = random.Random(seed)
    return [min(longest, max(1, round(source.expovariate(1 / mean)))) for _ in range(count)]
