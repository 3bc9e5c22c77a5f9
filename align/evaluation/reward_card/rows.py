"""Rows as the benchmarks publish them -> cases. Field names are those of their files on the hub and in repositories.

Nothing is repaired and next to nothing left out: a figure is comparable where it is over the same rows. A reader raises
`DataError` with the field for a row that is not what it should be, and `Dropped` for one that the benchmark leaves out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.data.replies import PromptedReply
from align.evaluation.reward_card.cases import Case
from align.evaluation.reward_card.formulas import CORRECTNESS, DOMAINS, PRIOR_SETS, SECTIONS, STYLES, SUBSETS_2, TIES
from data_formats.errors import DataError
from data_formats.formats import Dropped, Notes, as_text, optional_number, shown
from data_formats.records import Message
from data_formats.transcripts import hh as hh_turns
from data_formats.turns import as_prompt

Row = dict[str, Any]
Turns = tuple[Message, ...]

OTHER_PRIOR_SETS = ("anthropic_harmless", "mtbench_gpt4", "mtbench_human")  # told, not in the mean
SUBSETS = tuple(name for weights in SECTIONS.values() for name in weights)
SECTION_OF = {name: section for section, weights in SECTIONS.items() for name in weights}
REJECTED = 3  # of a row of RewardBench 2 that is none of Ties
MIN_RATIO = 2.0  # SHP
SOURCES = {  # of JudgeBench, by how the name of a source begins
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
_CONFLICTS = "sampled_conflict_pairs"
_TIES_ID = re.compile(r"(ref|tied):\d+")
_SPLIT = re.compile(r"_(train|validation|test)$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands; `file` as it is named in the folder, in which words may tell a part."""

    file: str
    row: int

    def says(self, word: str) -> bool:
        """Whether the file's name, or that of a folder that it lies in, has this word, however it is parted."""
        return re.sub(r"[^a-z0-9]", "", word.lower()) in re.sub(r"[^a-z0-9/]", "", self.file.lower())

    def case(
        self, labels: dict[str, str], prompt: Turns, right: Sequence[str], wrong: Sequence[str], **more: Any
    ) -> Case:
        """A case of texts that answer one prompt."""
        columns = {"category": next(iter(labels.values()), ""), "source": self.file, "reference": None}
        replies = tuple(PromptedReply(prompt, text, columns=columns) for text in (*right, *wrong))
        return Case(replies, len(right), labels, self.file, self.row, **more)


def text(row: Row, field: str) -> str:
    """Raises DataError: there is none."""
    if field not in row:
        raise DataError("expected a text, and the row has no such field", field=field)
    return as_text(row[field], field, Notes())


def texts(row: Row, field: str) -> list[str]:
    """Raises DataError: no list of texts."""
    value = row.get(field)
    if not isinstance(value, list):
        raise DataError(f"expected a list of texts, found {shown(value)}", field=field)
    return [as_text(one, f"{field}[{at}]", Notes()) for at, one in enumerate(value)]


def one_of(row: Row, field: str, known: Sequence[str]) -> str:
    """The one of the known names that stands under `field`, whatever its case. Raises DataError: another."""
    found = text(row, field)
    name = next((name for name in known if name.casefold() == found.casefold()), None)
    if name is None:
        raise DataError(f"unknown {field} {shown(found)}; the benchmark has {', '.join(known)}", field=field)
    return name


def turns(row: Row, field: str) -> Turns:
    """A question, or the turns up to it. Raises DataError: neither."""
    value = row.get(field)
    if isinstance(value, str):
        return (Message("user", text(row, field)),)
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise DataError(f"expected a text or a list of turns, found {shown(value)}", field=field)
    return tuple(Message(text(turn, "role"), text(turn, "content")) for turn in value)


def number(row: Row, field: str) -> float:
    """Raises DataError: no finite number."""
    value = optional_number(row, field)
    if value is None or not math.isfinite(value):
        raise DataError(f"expected a number, found {shown(row.get(field))}", field=field)
    return value


def rewardbench(row: Row, at: Place) -> Case:
    """`prompt`, `chosen`, `rejected`, `subset` (allenai/reward-bench)."""
    subset = one_of(row, "subset", SUBSETS)
    labels = {"subset": subset, "section": SECTION_OF[subset]}
    return at.case(labels, turns(row, "prompt"), [text(row, "chosen")], [text(row, "rejected")])


def prior_set(file: str) -> str | None:
    """The set of allenai/pref-test-sets whose name a file bears."""
    name = file.rpartition("/")[2]
    return next((one for one in (*PRIOR_SETS, *OTHER_PRIOR_SETS) if name.startswith(one)), None)


def prior(row: Row, at: Place) -> Case:
    """`prompt` (turns), `chosen`, `rejected` (allenai/pref-test-sets, a file a set)."""
    labels = {"set": prior_set(at.file) or ""}
    return at.case(labels, turns(row, "prompt"), [text(row, "chosen")], [text(row, "rejected")])


def rewardbench2(row: Row, at: Place) -> Case:
    """`prompt`, `chosen` and `rejected` (lists), `subset`, `id` (allenai/reward-bench-2)."""
    subset, right, wrong = one_of(row, "subset", SUBSETS_2), texts(row, "chosen"), texts(row, "rejected")
    id = str(row.get("id"))
    if subset == TIES:
        if not right or not wrong:
            raise DataError(f"expected right and wrong replies, found {len(right)} and {len(wrong)}", field="chosen")
        if not _TIES_ID.fullmatch(id):
            raise DataError(f"expected ref:NUMBER or tied:NUMBER, found {shown(row.get('id'))}", field="id")
    elif len(right) != 1:
        raise DataError(f"expected 1 chosen reply, found {len(right)}", field="chosen")
    elif len(wrong) != REJECTED:
        raise DataError(f"expected {REJECTED} rejected replies, found {len(wrong)}", field="rejected")
    pairs = () if subset == TIES else None  # up to a thousand a row, which would drown the others
    return at.case({"subset": subset}, turns(row, "prompt"), right, wrong, id=id, chosen_pairs=pairs)


def rm_bench(row: Row, at: Place) -> Case:
    """`prompt`, `chosen` and `rejected` (three styles each), `domain` (THU-KEG/RM-Bench)."""
    domain = text(row, "domain")
    found = next(
        (name for name in DOMAINS if domain.startswith(name)), None
    )  # safety-refuse and safety-response are one
    if found is None:
        raise DataError(f"unknown domain {shown(domain)}; the benchmark has {', '.join(DOMAINS)}", field="domain")
    sides = {field: texts(row, field) for field in ("chosen", "rejected")}
    for field, side in sides.items():
        if len(side) != len(STYLES):
            raise DataError(f"expected {len(STYLES)} replies ({', '.join(STYLES)}), found {len(side)}", field=field)
    return at.case({"domain": found}, turns(row, "prompt"), *sides.values())


def judgebench(row: Row, at: Place) -> Case:
    """`question`, `response_A`, `response_B`, `label` ("A>B" or "B>A"), `source` (ScalerLab/JudgeBench)."""
    label = row.get("label")
    if label not in ("A>B", "B>A"):
        raise DataError(f"expected A>B or B>A, found {shown(label)}", field="label")
    right, wrong = label.split(">")
    source = text(row, "source")
    labels = {"source": next((name for start, name in SOURCES.items() if source.startswith(start)), source)}
    if row.get("response_model"):
        labels["replies by"] = text(row, "response_model")
    return at.case(labels, turns(row, "question"), [text(row, f"response_{right}")], [text(row, f"response_{wrong}")])


def ppe_preference(row: Row, at: Place) -> Case:
    """`prompt`, `response_1`, `response_2`, `winner` (lmarena-ai/PPE-Human-Preference-V1); ties are left out."""
    winner = text(row, "winner")
    if winner.startswith("tie"):
        raise Dropped("tie")
    if winner not in ("model_a", "model_b"):
        raise DataError(f"expected model_a, model_b or tie, found {shown(winner)}", field="winner")
    replies = [text(row, "response_1"), text(row, "response_2")]
    right, wrong = replies if winner == "model_a" else replies[::-1]
    labels = {}
    if row.get("language"):
        labels["language"] = "English" if text(row, "language") == "English" else "other languages"
    return at.case(labels, turns(row, "prompt"), [right], [wrong])


def ppe_correctness(row: Row, at: Place) -> Case:
    """`prompt`, `response_1` … `response_K`, `scores` (right or wrong), `sampled_conflict_pairs`: pairs of places
    from 0 (lmarena-ai/PPE-*-Best-of-K). Which set it is tells the name of the file or of its folder."""
    scores = row.get("scores")
    if not isinstance(scores, list) or not all(isinstance(one, bool | int | float) and one in (0, 1) for one in scores):
        raise DataError(f"expected a list of true and false, found {shown(scores)}", field="scores")
    order = sorted(range(len(scores)), key=lambda index: not scores[index])  # right ones first
    place = {index: new for new, index in enumerate(order)}
    replies = [text(row, f"response_{index + 1}") for index in order]
    pairs = []
    for pair in row.get(_CONFLICTS) or ():
        if not isinstance(pair, list) or len(pair) != 2 or not all(index in place for index in pair):
            raise DataError(f"expected two places from 0 to {len(order) - 1}, found {shown(pair)}", field=_CONFLICTS)
        right, wrong = pair if scores[pair[0]] else pair[::-1]
        if not scores[right] or scores[wrong]:
            raise DataError(f"expected a right and a wrong reply, found {shown(pair)}", field=_CONFLICTS)
        pairs.append((place[right], place[wrong]))
    count = sum(map(bool, scores))
    labels = {"set": next((name for name in CORRECTNESS if at.says(name)), "unnamed set")}
    return at.case(labels, turns(row, "prompt"), replies[:count], replies[count:], chosen_pairs=tuple(pairs))


def helpsteer2(row: Row, at: Place) -> Case:
    """`prompt`, `response_1`, `response_2`, `preference_strength` from -3 (the first) to 3 (nvidia/HelpSteer2, the file
    `preference`); rows of the training split and those without a preference are left out."""
    if row.get("split") == "train":
        raise Dropped("of the training split")
    labels, right, wrong = _stronger(row, "preference_strength", ("response_1", "response_2"))
    return at.case(labels, as_prompt(text(row, "prompt"), "prompt", Notes()), [right], [wrong])


def helpsteer3(row: Row, at: Place) -> Case:
    """`context` (turns), `response1`, `response2`, `overall_preference` from -3 (the first) to 3, `domain`
    (nvidia/HelpSteer3, the folder `preference`)."""
    labels, right, wrong = _stronger(row, "overall_preference", ("response1", "response2"))
    if row.get("domain"):
        labels["domain"] = text(row, "domain")
    return at.case(labels, turns(row, "context"), [right], [wrong])


def _stronger(row: Row, field: str, replies: tuple[str, str]) -> tuple[dict[str, str], str, str]:
    strength = number(row, field)
    if strength == 0:
        raise Dropped("no preference")
    right, wrong = (text(row, name) for name in (replies if strength < 0 else replies[::-1]))
    return {"strength": f"{abs(strength):g}"}, right, wrong


def shp(row: Row, at: Place) -> Case:
    """`history`, `human_ref_A`, `human_ref_B`, `labels` (1 where A is better), `score_ratio`, `domain`
    (stanfordnlp/SHP)."""
    label = row.get("labels")
    if isinstance(label, bool) or label not in (0, 1):
        raise DataError(f"expected 1 or 0, found {shown(label)}", field="labels")
    right, wrong = (text(row, f"human_ref_{side}") for side in ("AB" if label else "BA"))
    labels = {"domain": _SPLIT.sub("", text(row, "domain"))} if row.get("domain") else {}
    return at.case(labels, turns(row, "history"), [right], [wrong], headline=number(row, "score_ratio") >= MIN_RATIO)


def hh(row: Row, at: Place) -> Case:
    """`chosen` and `rejected`: whole transcripts (Anthropic/hh-rlhf). Which part it is tells the name of the folder."""
    sides = [hh_turns(text(row, field)) for field in ("chosen", "rejected")]
    for field, said in zip(("chosen", "rejected"), sides, strict=True):
        if not said:
            raise DataError("expected a transcript that starts with 'Human:'", field=field)
        if said[-1].role != "assistant":
            raise Dropped("ends without a reply")
    labels = {"part": part} if (part := next((one for one in ("helpful", "harmless") if at.says(one)), None)) else {}
    columns = {"category": part or "", "source": at.file, "reference": None}
    replies = tuple(PromptedReply(said[:-1], said[-1].content, columns=columns) for said in sides)
    return Case(replies, 1, labels, at.file, at.row)
