"""`align data train-classifier`: a small text classifier from labelled rows, with figures on rows it has not seen.

--label names what is to be told: a field of the rows (a text, a number or true and false), `category` or `source`; or
`tags`, and any other field of lists, which makes a classifier that gives any number of labels: a tagger. --text says
what of a row is read: its `prompt`, its `reply`, `all` of it, or a field of that name. A part of the prompts is held
out; what is saved was trained on the others and is what the figures are of.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.commands.kinds import KINDS, kind_of
from align.commands.options import positive, share, source
from align.runtime.files import require_new
from align.runtime.paths import typed_path
from align.runtime.table import table
from align.runtime.terminal import say, shortened
from data_formats import DataError, stream
from data_formats.cleaning.texts import prompt_text, reply_texts, wanted_texts, whole_text
from data_formats.files import raw_rows
from data_formats.formats import keys_of, shown
from data_formats.hub import as_source
from data_formats.records import Record, tags_in
from data_formats.splitting import heldout_keys, prompt_key, text_key

PARTS = ("prompt", "reply", "all")
SHOWN = 20  # labels in a table
CONFUSED = 12  # labels that a whole table of confusions may have; of more the most frequent ones are told
NAMED = 30  # characters of a label in a table


@dataclass(slots=True)
class Labelled:
    """Texts and what they are labelled with.

    Attributes:
        keys: what is never on both sides of the split: a record's prompt, else the text.
        labels: of each text; one where `several` is false.
        left_out: rows, by reason.
    """

    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    several: bool | None = None
    left_out: Counter[str] = field(default_factory=Counter)


def add_parser(what: Any) -> argparse.ArgumentParser:
    """Add `train-classifier` to the subparsers of `align data`."""
    train = what.add_parser("train-classifier", help="a small text classifier, or a tagger", description=__doc__)
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.add_argument("path", metavar="FILE|hub:ID", type=source)
    train.add_argument("out", metavar="OUT", type=Path, help="a folder that does not exist yet")
    train.add_argument("--label", metavar="KEY", required=True, help="field with what is to be told; tags: a tagger")
    words = "prompt, reply, all, or a field (default: the prompt for tags, else all)"
    train.add_argument("--text", metavar="WHAT", help=words)
    words = "of the prompts, for the figures (default %(default)s)"
    train.add_argument("--heldout", type=share, default=0.2, metavar="SHARE", help=words)
    words = "rows that a label needs to be learnt (default %(default)s); others are left out"
    train.add_argument("--least-rows", type=positive, default=5, metavar="N", help=words)
    return train


def train_classifier(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Train, measure, save and say what the parsed words name.

    Raises:
        ClassifierError: too few rows or labels.
        DataError: a malformed row, or no row has the label or the text.
        StorageError: `out` is there already.
    """
    from align.textmodels.classifier import LEAST_ROWS, ClassifierError, TextClassifier

    out = typed_path(args.out)
    require_new(out, "save the classifier")
    found = _read(args, options)
    held = heldout_keys(found.keys, args.heldout)
    counts, learnt = Counter[str](), Counter[str]()
    for own, key in zip(found.labels, found.keys, strict=True):
        counts.update(own)
        learnt.update(own if key not in held else ())
    known = {label for label, count in counts.items() if count >= args.least_rows and learnt[label] >= LEAST_ROWS}
    if rare := counts.keys() - known:
        found.left_out[f"labels on fewer than {args.least_rows} rows ({shortened(min(rare), NAMED)}, …)"] = len(rare)
    owned = [tuple(label for label in own if label in known) for own in found.labels]
    sides: tuple[list[int], list[int]] = ([], [])
    for at, key in enumerate(found.keys):
        if found.several or owned[at]:
            sides[key in held].append(at)
    train, test = sides
    least = 1 if found.several else 2
    if len(known) < least or not test or not train:
        told = f"{args.path}: {len(found.texts)} rows with {len(counts)} labels, {len(known)} of them on "
        told += f"{args.least_rows} rows or more, {len(test)} rows held out"
        raise ClassifierError(f"{told}: a classifier needs {least} such labels and rows to be measured on")
    model = TextClassifier.fit(
        [found.texts[at] for at in train],
        [owned[at] if found.several else owned[at][0] for at in train],
        multi_label=bool(found.several),
    )
    say(f"{len(train)} rows to learn from, {len(test)} held out, {len(model.labels)} labels")
    for reason, number in found.left_out.items():
        say(f"left out: {number} {reason}")
    _measure(model, [found.texts[at] for at in test], [owned[at] for at in test])
    model.save(out)
    say(f"{out}: " + (f"a tagger; align data tag FILE OUT.jsonl --tagger {out}" if found.several else "a classifier"))


def _read(args: argparse.Namespace, options: dict[str, Any]) -> Labelled:
    part = args.text or ("prompt" if args.label == "tags" else "all")
    found = Labelled()
    rows = _of_records(args, part, options) if part in PARTS else _of_fields(args, part, options)
    for line, key, text, value in rows:
        labels = _labels(value)
        if labels is None:
            told = f"expected a text, a number, true or false, or a list of texts, found {shown(value)}"
            raise DataError(told, path=str(args.path), line=line, field=args.label)
        if not labels or not text.strip():
            found.left_out["rows without " + ("a text" if labels else f"'{args.label}'")] += 1
            continue
        several = isinstance(value, list | tuple)
        if found.several not in (None, several):
            told = f"a list here and none in rows before: {shown(value)}"
            raise DataError(told, path=str(args.path), line=line, field=args.label)
        found.several = several
        found.texts.append(text)
        found.keys.append(key)
        found.labels.append(labels)
    if not found.texts:
        reasons = ", ".join(f"{number} {reason}" for reason, number in found.left_out.items()) or "no rows"
        hint = "; name another --text" if any("text" in reason for reason in found.left_out) else ""
        raise DataError(f"nothing to learn from: {reasons}{hint}", path=str(args.path))
    return found


def _of_records(args: argparse.Namespace, part: str, options: dict[str, Any]) -> Iterator[tuple[int, str, str, Any]]:
    """Of each record its row's number, what is split by, its text, and its label as it stands there."""
    kind = KINDS[args.kind] if args.kind else kind_of(args.path, options)
    own = args.label in ("category", "source", "tags")
    for line, columns, record in stream(args.path, kind, **options).placed():
        value = getattr(record, args.label, None) if own else columns.get(args.label)
        yield line, prompt_key(record), _text(record, part), value


def _text(record: Record, part: str) -> str:
    if part == "reply":
        return "\n".join(wanted_texts(record) or reply_texts(record))
    return whole_text(record) if part == "all" else prompt_text(record)


def _of_fields(args: argparse.Namespace, name: str, options: dict[str, Any]) -> Iterator[tuple[int, str, str, Any]]:
    path = as_source(args.path)
    rows = raw_rows(path, options["max_row_mb"] << 20) if isinstance(path, Path) else path.rows()
    for line, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(name) or "", str):
            told = f"there is no text under it; found {keys_of(row)}"
            raise DataError(told, path=str(args.path), line=line, field=name)
        text = row.get(name) or ""
        yield line, text_key(text), text, row.get(args.label)


def _labels(value: Any) -> tuple[str, ...] | None:
    """The different labels that a value names; none of nothing, None of what is no label."""
    if isinstance(value, list | tuple):
        return tags_in(list(value)) or (None if any(one not in (None, "") for one in value) else ())
    if value is None or value == "":
        return ()
    if isinstance(value, bool):
        return (str(value).lower(),)
    return (f"{value:g}" if isinstance(value, float) else str(value),) if isinstance(value, str | int | float) else None


def _measure(model: Any, texts: Sequence[str], owned: Sequence[tuple[str, ...]]) -> None:
    """Print the figures on held-out texts."""
    from align.curation.tags import chosen
    from align.evaluation import labels as figures

    found = model.probabilities(texts)
    given = [chosen(row, model.labels) if model.multi_label else (model.labels[row.argmax()],) for row in found]
    each = figures.label_figures(model.labels, owned, given)
    if model.multi_label:
        together = figures.pooled(each)
        for name in ("precision", "recall", "f1"):
            say(f"{name} of all tags of all rows: {_figure(getattr(together, name))}")
        say(f"mean F1 of the tags: {figures.macro_f1(each):.3f}")
    else:
        say(f"accuracy: {_figure(figures.accuracy(owned, given))}; mean F1: {figures.macro_f1(each):.3f}")
        most = Counter(own[0] for own in owned).most_common(1)[0]
        say(f"always '{shortened(most[0], NAMED)}' would have {most[1] / len(owned):.3f}")
    shown_ones = sorted(each, key=lambda one: (-one.rows, one.label))
    rows = [
        (shortened(one.label, NAMED), one.rows, *(_figure(value) for value in (one.precision, one.recall, one.f1)))
        for one in shown_ones[:SHOWN]
    ]
    say(table(("label", "rows", "precision", "recall", "F1"), rows))
    if len(each) > SHOWN:
        say(f"and {len(each) - SHOWN} more labels")
    if not model.multi_label:
        _say_confusions(model.labels, figures.confusions([own[0] for own in owned], [one[0] for one in given]))


def _say_confusions(labels: Sequence[str], counts: Counter[tuple[str, str]]) -> None:
    if len(labels) <= CONFUSED:
        rows = [(shortened(own, NAMED), *(counts[own, given] for given in labels)) for own in labels]
        say(table(("is / was given", *(shortened(label, NAMED) for label in labels)), rows))
        return
    wrong = sorted(((number, pair) for pair, number in counts.items() if pair[0] != pair[1]), reverse=True)
    say("confused most often: " + "; ".join(f"{own} given {said} {number}" for number, (own, said) in wrong[:CONFUSED]))


def _figure(figure: tuple[float, float, float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*figure)
