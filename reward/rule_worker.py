"""The program that judges replies for rules whose time nobody knows beforehand (`reward.workers` starts it).

    python -P rule_worker.py math|regex

A request is a line of JSON on standard input, its answer one on standard output: `{"said": …, "cpu": seconds}`, or
`{"said": "late"}` where the request used up its seconds of *CPU*: what a reply gets does not depend on how busy the
machine is. No Python is needed to end a reply that takes too long: the judging is done by a fork of this process, which
the kernel ends (SIGPROF) whatever it is busy with, and this process, whose libraries are loaded and warm, forks the
next one. A fork that breaks (its stack, its memory) ends the same way. Prints and warnings of the libraries go nowhere.

It imports nothing of this project and no torch, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from typing import Any

MEMORY = 4 * 2**30  # bytes of address space
BROKEN = (signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


def judge_regex(request: dict[str, Any]) -> bool:
    """Whether the pattern matches."""
    import regex

    pattern = regex.compile(request["pattern"], regex.IGNORECASE if request["ignore_case"] else 0)
    matches = pattern.fullmatch if request["match"] == "full" else pattern.search
    return matches(request["text"]) is not None


def judge_math(request: dict[str, Any]) -> bool | str:
    """Whether reply and reference are equal as mathematics; `unreadable` where the reference is no mathematics."""
    from math_verify import parse, verify

    gold = _reference(request["reference"])
    if gold is None:
        return "unreadable"
    try:
        return bool(verify(gold, parse(request["text"], parsing_timeout=None), timeout_seconds=None))
    except Exception:  # an answer that the library cannot read is wrong
        return False


def _reference(text: str) -> list[Any] | None:
    from math_verify import parse

    marked = any(sign in text for sign in ("$", "\\boxed", "\\(", "\\["))
    for candidate in (text,) if marked else (f"${text}$", text):
        with contextlib.suppress(Exception):
            found = parse(candidate, parsing_timeout=None)
            if any(not isinstance(value, str) for value in found):
                return found
    return None


KINDS = {"regex": judge_regex, "math": judge_math}
FIRST = {
    "regex": {"pattern": "a", "ignore_case": False, "match": "full", "text": "a"},
    "math": {"reference": "\\frac{1}{2}", "text": "so it is $0.5$"},
}


def main(kind: str) -> None:
    """Load what `kind` needs, say that it is there, and judge until nobody asks any more."""
    answers = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard < 0 else min(MEMORY, hard), hard))
    try:
        works = KINDS[kind](FIRST[kind]) is True
    except Exception as error:
        _tell(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _tell(answers, {"ready": works})
    while True:
        child = os.fork()
        if child == 0:
            _serve(kind, answers)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) not in BROKEN:
            return  # nobody asks any more, or somebody ended it: that is no verdict
        _tell(answers, {"said": "late" if os.WTERMSIG(status) == signal.SIGPROF else "broken"})


def _serve(kind: str, answers: int) -> None:
    """Judge request after request. Each is sent when the one before is answered, so none is lost with this process."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while (line := _line()) is not None:
        request = json.loads(line)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            said = KINDS[kind](request)
        except (MemoryError, RecursionError):
            said = "broken"
        signal.setitimer(signal.ITIMER_PROF, 0)
        _tell(answers, {"said": said, "cpu": time.process_time() - began})


def _line() -> bytes | None:
    parts = []
    while not parts or not parts[-1].endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            return None
        parts.append(part)
    return b"".join(parts)


def _tell(answers: int, answer: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
