"""Rules about the record of the run: its file, its numbers, its length and its speed."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import pairwise

from align.doctor.history import LARGEST, History
from align.doctor.rule import Evidence, rule, seen
from align.runs.run_files import number

SLOWER = 0.6  # times the speed at the start
NAMED = 4  # keys or steps in a sentence


@rule(
    "not-finite",
    "problem",
    "Figures that are not finite were logged",
    causes=("a loss, a reward or a log-probability overflowed",),
    changes=("ppo.policy.learning_rate lower", "look at samples.jsonl of the steps before", "precision bf16 or fp32"),
)
def not_finite(history: History) -> Evidence | None:
    """They stand as null in metrics.jsonl; what is too large for float32 is as good as that."""
    bad = [
        (line["step"], key)
        for line in history.iterations
        for key, value in line.items()
        if value is None or abs(number(value) or 0.0) > LARGEST
    ]
    if not bad:
        return None
    keys = [key for key, _ in Counter(key for _, key in bad).most_common()]
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    steps = [step for step, _ in bad]
    words = f"{', '.join(keys[:NAMED])}{more}, in {len(set(steps))} iterations, the first at step {min(steps)}"
    return Evidence(words, (min(steps), max(steps)), {"iterations": float(len(set(steps)))})


@rule(
    "never-trained",
    "problem",
    "The policy was never trained",
    needs=("optimizer_steps",),
    least=1,
    causes=("the run is not longer than the critic's warm-up, or was stopped within it",),
    changes=("ppo.critic_warmup_steps fewer (it counts optimizer steps), or ppo.num_iterations more",),
)
def never_trained(history: History) -> Evidence | None:
    """Every iteration that was logged belongs to the critic's warm-up."""
    if history.trained().iterations:
        return None
    done, warm_up = history.series("optimizer_steps"), history.amount("critic_warmup_steps")
    of = f" (critic_warmup_steps is {warm_up:g})" if warm_up is not None else ""
    words = f"the critic alone was trained in all {len(done)} iterations logged, {{span}}, "
    return seen(f"{words}by {done.values[-1]:g} optimizer steps{of}", done, optimizer_steps=done.values[-1])


@rule(
    "steps-doubled",
    "problem",
    "Steps stand twice in metrics.jsonl, or out of order",
    causes=("two runs wrote into one folder", "the file was put together by hand"),
    changes=("an output_dir of its own for each run",),
)
def steps_doubled(history: History) -> Evidence | None:
    """Each iteration is logged once; a run that resumes removes what it will write again."""
    steps = [line["step"] for line in history.iterations]
    wrong = sorted({new for old, new in pairwise(steps) if new <= old})
    if not wrong:
        return None
    named = ", ".join(map(str, wrong[:NAMED])) + (" …" if len(wrong) > NAMED else "")
    doubled = len(steps) - len(set(steps))
    words = f"{doubled} lines of a step that was there before; the order goes back at step {named}"
    return Evidence(words, (wrong[0], wrong[-1]), {"lines": float(doubled)})


@rule(
    "steps-missing",
    "problem",
    "Steps are missing in metrics.jsonl",
    causes=("lines were lost: a full disk, a file put together by hand, or a line that a killed process left torn",),
    changes=("enough room on the disk; the figures between are gone",),
)
def steps_missing(history: History) -> Evidence | None:
    """Steps stand `logging_steps` apart, the first alone stands as it likes."""
    steps = sorted({line["step"] for line in history.iterations})
    gaps = list(pairwise(steps))
    apart = int(history.amount("logging_steps") or statistics.mode(new - old for old, new in gaps)) if gaps else 1
    lost = [(old, new) for old, new in gaps if new - old > apart]
    if steps[0] != 1:
        lost.insert(0, (0, steps[0]))
    if not lost:
        return None
    named = ", ".join(f"{old} and {new}" for old, new in lost[:NAMED])
    return Evidence(f"nothing between {named}", (lost[0][0], lost[-1][1]), {"gaps": float(len(lost))})


@rule(
    "file-not-whole",
    "note",
    "A file of the stage is not whole",
    causes=("a process was killed while it wrote; the next run removes half a line at the end",),
    changes=("nothing, if it is the last line",),
)
def file_not_whole(history: History) -> Evidence | None:
    """What could be read was."""
    if not history.problems:
        return None
    last = history.stage.last_step
    return Evidence("; ".join(history.problems), (last, last), {"files": float(len(history.problems))})


@rule(
    "slowing",
    "note",
    "The run becomes slower",
    needs=("tokens_per_second",),
    least=9,
    trained=True,
    causes=("another process on the machine", "replies that become longer or more uneven", "memory that runs out"),
    changes=("look at seconds/… in metrics.jsonl and at memory/peak_gib",),
)
def slowing(history: History) -> Evidence | None:
    """Tokens a second, critic's warm-up apart."""
    speed = history.series("tokens_per_second")
    growth = speed.growth()
    if not growth.down or growth.after >= SLOWER * growth.before:
        return None
    words = f"tokens_per_second {growth.before:.3g} -> {growth.after:.3g} (first and last third of {{span}})"
    return seen(words + _phase(history), speed, tokens_per_second=growth.after)


def _phase(history: History) -> str:
    """Which phase grew most."""
    names = {key for line in history.iterations for key in line if key.startswith("seconds/")} - {"seconds/total"}
    grown = {key: history.series(key).growth() for key in names if len(history.series(key)) >= 9}
    if not grown:
        return ""
    most = max(grown, key=lambda key: grown[key].after - grown[key].before)
    return f"; most of it in {most}: {grown[most].before:.3g} -> {grown[most].after:.3g} s"
