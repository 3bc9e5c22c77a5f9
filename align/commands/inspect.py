"""`align data inspect`: one file as training sees it: roles, lengths, what gets loss, what is dropped and why.

Without a tokenizer lengths are characters and colours follow the roles; with one they are tokens, and the colours are
the labels of the very rows that training is given. Where there is no colour (a file, a pipe), what gets loss stands
between ⟦ and ⟧. Long texts are cut. Comparisons that were merged of judgments say who judged, and how far they agree.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.text import Text

from align.commands.kinds import KINDS, kind_of
from align.data.cleaning import cleaning_table
from align.data.variety import Variety
from align.feedback.provenance import Provenance, Written, provenance_of
from align.runtime.console import Console
from align.runtime.terminal import excerpt, shortened
from data_formats import stream
from data_formats.chatml import reply_text
from data_formats.cleaning import Cleaner
from data_formats.cleaning.texts import prompt_text, reply_texts, turns, wanted_texts
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record, Scored

LOSS, NO_LOSS, BETTER, WORSE, LABEL = "green", "dim", "green", "red", "bold cyan"
BINS, BAR, LONGEST, MOST_NAMES = 12, 40, 4000, 20
NO_LABEL = -100


@dataclass(frozen=True, slots=True)
class View:
    """How a file is looked at.

    Attributes:
        tokenizer: None: by characters.
        mask: which tokens of a conversation get loss; read with a tokenizer only.
        mask_observations: whether what tools answered inside a reply gets none.
        max_length: longer rows are counted and marked, in the unit of the lengths.
        rows: how many are shown; `skip`: how many are passed over before.
        coloured: whether loss is told by colour, else by brackets.
    """

    tokenizer: Any = None
    mask: str = "assistant_only"
    mask_observations: bool = False
    max_length: int | None = None
    rows: int = 5
    skip: int = 0
    coloured: bool = True

    @property
    def unit(self) -> str:
        return "characters" if self.tokenizer is None else "tokens"


@dataclass(slots=True)
class Seen:
    """What is counted over the whole file."""

    lengths: list[int] = field(default_factory=list)
    with_loss: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    rounds: Counter[int] = field(default_factory=Counter)
    judged: list[Provenance] = field(default_factory=list)
    tags: Variety = field(default_factory=Variety)


def inspect(path: Path | str, kind: str | None, options: dict[str, Any], cleaner: Cleaner | None, view: View) -> None:
    """Print a few records, then what the whole file comes to."""
    console = Console(soft_wrap=True)
    rows = stream(path, KINDS[kind] if kind else kind_of(path, options), **options)
    records: Iterable[Record] = cleaner.clean(rows) if cleaner is not None else rows
    seen = Seen()
    view = replace(view, coloured=console.is_terminal)
    for number, record in enumerate(records):
        length, with_loss = _measure(record, view)
        seen.lengths.append(length)
        seen.with_loss += with_loss
        seen.roles.update(turn.role for turn in turns(record))
        seen.tags.add(getattr(record, "tags", ()))
        if isinstance(record, Comparison) and record.round is not None:
            seen.rounds[record.round] += 1
        if (judged := _provenance(record)) is not None:
            seen.judged.append(judged)
        if view.skip <= number < view.skip + view.rows:
            too_long = view.max_length is not None and length > view.max_length
            console.print(_title(number, record, length, view, too_long))
            console.print(_body(record, view))
            console.print()
    console.print(rows.report.describe())
    if cleaner is not None:
        console.print(cleaning_table(cleaner.report))
    for line in _summary(seen, view):
        console.print(line)


def _title(number: int, record: Record, length: int, view: View, too_long: bool) -> Text:
    words = [f"record {number + 1}: {type(record).__name__.lower()}, {length} {view.unit}"]
    category = getattr(record, "category", "")
    words += [f"category {category}"] if category else []
    words += [f"tags {', '.join(map(shortened, tags))}"] if (tags := getattr(record, "tags", ())) else []
    words += [f"round {record.round}"] if isinstance(record, Comparison) and record.round is not None else []
    words += [f"longer than {view.max_length}"] if too_long else []
    return Text(", ".join(words), style=LABEL)


def _body(record: Record, view: View) -> Text:
    """The record's text in colours."""
    if isinstance(record, Demonstration) and view.tokenizer is not None:
        return _by_labels(record, view)
    text = Text()
    if tools := getattr(record, "tools", ()):
        text.append(f"tools on offer: {len(tools)}\n", NO_LOSS)
    for turn in turns(record):
        learnt = isinstance(record, Demonstration) and turn.role == "assistant" and turn.loss
        text.append(f"{turn.role}: ", LABEL)
        parts = [f"({turn.reasoning})"] if turn.reasoning else []
        parts += [turn.content] if turn.content else []
        parts += [f"{call.name} {call.arguments}" for call in turn.tool_calls]
        _append(text, "\n".join(parts), learnt, view)
        text.append("\n")
    for label, said, style in _replies(record):
        text.append(f"{label}: ", LABEL)
        text.append(f"{excerpt(said, LONGEST)}\n", style)
    if (judged := _provenance(record)) is not None:
        text.append("judged: ", LABEL)
        text.append(f"{_judged(judged)}\n", NO_LOSS)
    return text


def _provenance(record: Record) -> Provenance | None:
    return provenance_of(record.provenance) if isinstance(record, Comparison) else None


def _judged(judged: Provenance) -> str:
    """Who said so and whose replies they are, on one line."""
    others = {"preferred the other": judged.against, "tied": judged.tied, "all bad": judged.neither}
    said = [f"by {', '.join(judged.annotators)}", *(f"{what} {', '.join(who)}" for what, who in others.items() if who)]
    said += [f"chosen of {_written(judged.chosen)}", f"rejected of {_written(judged.rejected)}", f"item {judged.item}"]
    return excerpt("; ".join(said), LONGEST)


def _written(reply: Written) -> str:
    sampled = [f"{name} {value}" for name, value in reply.sampling.items() if value is not None]
    edited = [f"edited by {', '.join(reply.edited_by)}"] * bool(reply.edited_by)
    return ", ".join([reply.source or "an unknown source", *sampled, *edited])


def _append(text: Text, said: str, learnt: bool, view: View) -> None:
    marked = excerpt(said, LONGEST) if view.coloured or not learnt else f"⟦{excerpt(said, LONGEST)}⟧"
    text.append(marked, LOSS if learnt else NO_LOSS)


def _replies(record: Record) -> Iterator[tuple[str, str, str]]:
    if isinstance(record, Comparison):
        grade = "" if record.grade is None else f" (grade {record.grade:g})"
        for side, turns, reply, colour in (
            (f"chosen{grade}", record.chosen_turns, record.chosen_reply, BETTER),
            ("rejected", record.rejected_turns, record.rejected_reply, WORSE),
        ):
            yield side, "\n\n".join((*(f"[{turn.role}] {turn.content}" for turn in turns), reply_text(reply))), colour
    elif isinstance(record, Scored):
        for reply in record.replies:
            yield "no score" if reply.score is None else f"score {reply.score:g}", reply_text(reply.turn), LOSS
    elif isinstance(record, Prompt) and record.reference is not None:
        yield "reference", record.reference, NO_LOSS
    elif isinstance(record, Document):
        yield "text", record.text, LOSS


def _by_labels(record: Demonstration, view: View) -> Text:
    """The tokens of the very row that training is given, those with loss in the colour of loss."""
    row = _row(record, view)
    if row is None:
        return Text("no token of it gets loss", style=WORSE)
    text = Text()
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    for learnt, group in groupby(pairs, key=lambda pair: pair[1] != NO_LABEL):
        _append(text, view.tokenizer.decode([token for token, _ in group]), learnt, view)
    return text


def _row(record: Demonstration, view: View) -> Any:
    from align.data.encode import encode_demonstrations

    masks = {"mask": view.mask, "mask_observations": view.mask_observations}
    rows, _ = encode_demonstrations(view.tokenizer, [record], sys.maxsize, "drop", **masks)
    return rows[0] if rows else None


def _measure(record: Record, view: View) -> tuple[int, int]:
    """Length of the record (of its longest reply with the prompt, where it has several) and how much of it has loss."""
    compared = isinstance(record, Comparison | Scored)
    replies = [text for _, text, _ in _replies(record)] if compared else reply_texts(record)
    if view.tokenizer is None:
        prompt = len(prompt_text(record))
        if isinstance(record, Demonstration):
            return prompt + sum(map(len, replies)), sum(map(len, wanted_texts(record)))
        return prompt + max(map(len, replies), default=0), 0
    if isinstance(record, Demonstration):
        row = _row(record, view)
        return (len(row["input_ids"]), sum(label != NO_LABEL for label in row["labels"])) if row else (0, 0)
    from align.data.encode import encode_prompts, encode_replies

    prompt = len(encode_prompts(view.tokenizer, [turns(record)])[0]) if turns(record) else 0
    return prompt + max(map(len, encode_replies(view.tokenizer, replies)), default=0), 0


def _summary(seen: Seen, view: View) -> Iterator[str]:
    if seen.roles:
        yield "turns: " + ", ".join(f"{role} {count}" for role, count in seen.roles.most_common())
    total = sum(seen.lengths)
    if seen.with_loss:
        yield f"{total} {view.unit}, {seen.with_loss} of them with loss ({100 * seen.with_loss / total:.1f} %)"
    if view.max_length is not None:
        longer = sum(length > view.max_length for length in seen.lengths)
        yield f"longer than {view.max_length} {view.unit}: {longer} of {len(seen.lengths)}"
    if seen.rounds:
        yield "pairs " + ", ".join(f"of round {number}: {count}" for number, count in sorted(seen.rounds.items()))
    if seen.tags.tagged:
        yield f"tags: {seen.tags.describe(most=MOST_NAMES)}"
    if seen.judged:
        yield from _agreement(seen.judged)
    yield from histogram(seen.lengths, view.unit)


def _agreement(judged: list[Provenance]) -> Iterator[str]:
    """Who judged the pairs and how far they agreed, and which sources' replies were chosen."""
    several = [one for one in judged if one.asked > 1]
    of_one_mind = sum(len(one.annotators) == one.asked for one in several)
    told = f", of one mind on {of_one_mind}" if several else ""
    yield f"judged pairs: {len(judged)}, {len(several)} by more than one{told}"
    chosen = Counter(one.chosen.source for one in judged if not one.chosen.edited_by)
    compared = chosen + Counter(one.rejected.source for one in judged)
    preferred = Counter(who for one in judged for who in one.annotators).most_common(MOST_NAMES)
    yield "preferred by: " + ", ".join(f"{name} {count}" for name, count in preferred)
    sources = sorted(compared.most_common(MOST_NAMES), key=lambda one: -chosen[one[0]] / one[1])
    if said := ", ".join(f"{name} {chosen[name]} of {count}" for name, count in sources if name):
        yield f"chosen replies by source: {said}"


def histogram(lengths: list[int], unit: str) -> Iterator[str]:
    """Lines of a bar chart of lengths, in equal steps from 0 to the longest; nothing without lengths."""
    if not lengths:
        return
    step = max(1, math.ceil((max(lengths) + 1) / BINS))
    counts = Counter(length // step for length in lengths)
    most = max(counts.values())
    yield f"{unit} a record:"
    for at in range(max(counts) + 1):
        bar = "█" * round(BAR * counts[at] / most) or ("▏" if counts[at] else "")
        yield f"{at * step:>8} – {(at + 1) * step - 1:<8} {counts[at]:>7}  {bar}"
