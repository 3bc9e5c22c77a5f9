"""`align data tag`: what each row is about, as tags: by a model behind an endpoint, or by a trained tagger.

A model calls tags freely; its answers are kept beside OUT (`.answers.jsonl`), so that a run that was stopped asks only
what is missing. The raw tags become a vocabulary (`.vocabulary.json`), or those of an earlier one with --vocabulary, so
that two files have the same tags. Rows keep the tags they have, in front.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from align.commands.judges import spent
from align.commands.kinds import KINDS, kind_of
from align.commands.options import positive, source
from align.data.variety import Variety
from align.runs.progress import StageProgress
from align.runtime.errors import AlignError
from align.runtime.lock import locked
from align.runtime.paths import typed_path
from align.runtime.terminal import say
from data_formats import DataError, EmptyDatasetError, stream, write_jsonl
from data_formats.records import Document, Record, with_tags

SHOWN, MERGED = 12, 5  # of the most frequent tags; of the tags that have the most names
AT_ONCE = 1024  # records that a tagger is given at the same time


def add_parser(what: Any) -> argparse.ArgumentParser:
    """Add `tag` to the subparsers of `align data`."""
    tag = what.add_parser("tag", help="what each row is about", description=__doc__)
    tag.formatter_class = argparse.RawDescriptionHelpFormatter
    tag.add_argument("path", metavar="FILE|hub:ID", type=source)
    tag.add_argument("out", metavar="OUT.jsonl", type=Path)
    who = tag.add_mutually_exclusive_group(required=True)
    who.add_argument("--url", metavar="URL", help="an OpenAI-compatible endpoint, up to /v1")
    who.add_argument("--tagger", metavar="FOLDER", type=Path, help="what train-classifier --label tags made")
    tag.add_argument("--model", metavar="NAME", help="what the endpoint calls the model")
    tag.add_argument("--key-env", metavar="VAR", help="environment variable with the endpoint's key")
    tag.add_argument("--no-schema", action="store_true", help="for an endpoint that takes no response_format")
    tag.add_argument("--at-once", type=positive, default=8, metavar="N", help="requests (default %(default)s)")
    tag.add_argument("--seed", type=int, default=0, metavar="N", help="sent to the model (default %(default)s)")
    tag.add_argument("--vocabulary", metavar="FILE", type=Path, help="take its tags, in place of making new ones")
    tag.add_argument("--least-rows", type=positive, metavar="N", help="rows that a tag needs (default 5)")
    words = "from which cosine on two tags are one (default 0.8)"
    tag.add_argument("--similarity", type=_similarity, metavar="S", help=words)
    words = "folder or hub id that compares tags (default: n-grams of their characters)"
    tag.add_argument("--embeddings", metavar="MODEL", help=words)
    return tag


def _similarity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, not '{text}'")
    return value


def tag(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Tag what the parsed words name, and say what came of it.

    Raises:
        TaggingError: options that do not go together, or records that have no tags.
        DataError: a malformed row, `out` is the input, or the file changed meanwhile.
        TagVocabularyError, ClassifierError, MissingFileError: no such vocabulary or tagger, or no frequent tag.
        RewardError: the endpoint is not to be had; what was answered is kept.
        FolderInUseError: another process writes `out`.
    """
    from align.curation.tags import TaggingError

    _require_options(args)
    out = typed_path(args.out)
    if isinstance(args.path, Path) and out.exists() and typed_path(args.path).exists() and out.samefile(args.path):
        raise DataError("the output is the input; name another file", path=out)
    kind = KINDS[args.kind] if args.kind else kind_of(args.path, options)
    if kind is Document:
        raise TaggingError(f"{args.path} holds documents, and tags say what a prompt asks for; tag prompts or replies")
    rows = stream(args.path, kind, **options)
    with locked(out.parent, [f"tag-{out.name}"]):  # two at once would ask and pay twice, for one vocabulary
        tagged = _by_tagger(rows, args.tagger) if args.tagger else _by_model(rows, args, out)
        write_jsonl(out, tagged)
    say(rows.report.describe())
    for line in tagged.said:
        say(line)
    say(f"tags: {tagged.variety.describe(tagged.vocabulary, SHOWN)}")
    if tagged.had:
        say(f"{tagged.had} rows had tags before, which stand in front")
    say(f"{out}: {tagged.variety.rows} records")


class _Tagged:
    """Records with their tags, counted as they are written.

    Attributes:
        variety: of the new tags; `vocabulary`: how many there are at all.
        had: rows with tags of their own.
        said: what else there is to tell.
    """

    def __init__(self, pairs: Iterator[tuple[Record, Sequence[str]]], vocabulary: int, said: Sequence[str] = ()):
        self._pairs, self.vocabulary, self.said = pairs, vocabulary, said
        self.variety, self.had = Variety(), 0

    def __iter__(self) -> Iterator[Record]:
        for record, tags in self._pairs:
            self.variety.add(tags)
            self.had += bool(record.tags)
            yield with_tags(record, tuple(dict.fromkeys((*record.tags, *tags))))
        if not self.variety.rows:
            raise EmptyDatasetError("no record is left, so nothing is written")


def _by_tagger(rows: Any, folder: Path) -> _Tagged:
    from align.curation.tags import Tagger

    tagger = Tagger.load(folder)

    def pairs() -> Iterator[tuple[Record, Sequence[str]]]:
        rest = iter(rows)
        while group := list(islice(rest, AT_ONCE)):
            yield from zip(group, tagger.tags(group), strict=True)

    return _Tagged(pairs(), len(tagger.vocabulary))


def _by_model(rows: Any, args: argparse.Namespace, out: Path) -> _Tagged:
    """Asks about all rows first: which tags there are is known at the end. They are read again to be written."""
    from align.curation.tags import TAGS, TaggingError, ask_tags
    from align.curation.vocabulary import SIMILARITY, Vocabulary, build_vocabulary
    from align.textmodels.asking import Asker

    known = None if args.vocabulary is None else Vocabulary.load(args.vocabulary)
    answers = out.with_suffix(".answers.jsonl")
    parameters = {"response_format": None} if args.no_schema else None
    how = {"api_key_env": args.key_env, "cache": answers, "seed": args.seed, "at_once": args.at_once}
    try:
        asker = Asker(TAGS, args.url, args.model, parameters=parameters, **how)
    except AlignError:
        raise
    except ValueError as error:
        raise TaggingError(str(error).replace(", or insecure", "")) from error
    count = sum(1 for _ in rows)
    with StageProgress("rows", count) as progress:
        raw = ask_tags(rows, asker, progress.update)
    embedder = (known.embedder if known else args.embeddings) or ""
    embed = _embed(embedder)
    if known is None:
        least, similarity = args.least_rows or 5, args.similarity or SIMILARITY
        vocabulary = build_vocabulary(raw.rows, embed, least_rows=least, similarity=similarity, embedder=embedder)
        place = out.with_suffix(".vocabulary.json")
        vocabulary.save(place)
    else:
        vocabulary, place = known, args.vocabulary
    names = vocabulary.names_of(dict.fromkeys(tag for own in raw.rows for tag in own), embed)
    left_out = dict(raw.left_out) | {
        "tags that are not in the vocabulary": sum(name is None for name in names.values())
    }
    said = [f"asked: {spent(asdict(asker.usage))}; the answers are in {answers}"]
    said += [f"{number} {reason}" for reason, number in left_out.items() if number]
    said += _steps(vocabulary, place, known is None)

    def pairs() -> Iterator[tuple[Record, Sequence[str]]]:
        own = iter(raw.rows)
        for record in rows:
            if (tags := next(own, None)) is None:
                raise DataError("the file changed while it was read; tag it again", path=str(args.path))
            yield record, tuple(dict.fromkeys(name for tag in tags if (name := names[tag]) is not None))

    return _Tagged(pairs(), len(vocabulary.tags), said)


def _steps(vocabulary: Any, place: Path, is_new: bool) -> list[str]:
    """How the raw tags became the vocabulary, and which of them have the most names."""
    if not is_new:
        return [f"vocabulary: the {len(vocabulary.tags)} tags of {place}"]
    steps = vocabulary.steps
    words = [f"{steps['by rule']} by rule", f"{steps['by meaning']} by meaning"]
    words += [f"{steps['by association']} by association", f"{steps['frequent']} that are frequent: {place}"]
    said = [f"vocabulary: {steps['different']} different tags, " + ", ".join(words)]
    most = sorted(vocabulary.tags.items(), key=lambda one: (-len(one[1].raw), one[0]))[:MERGED]
    merged = [
        f"{name} ← {', '.join([raw for raw in own.raw if raw != name][:MERGED])}"
        for name, own in most
        if len(own.raw) > 1
    ]
    return said + ([f"merged the most: {'; '.join(merged)}"] if merged else [])


def _embed(embedder: str) -> Any:
    from align.curation.vocabulary import by_characters

    if not embedder:
        return by_characters
    from align.textmodels.embeddings import load_embedder

    model = load_embedder(embedder, [])
    return lambda names, known: model.embed(names)


def _require_options(args: argparse.Namespace) -> None:
    """Raises TaggingError for options that would do nothing, or that are missing."""
    from align.curation.tags import TaggingError

    if args.url and not args.model:
        raise TaggingError("--url goes with --model: what the endpoint calls the model")
    of_model = {"--model": args.model, "--key-env": args.key_env, "--no-schema": args.no_schema}
    of_model |= {"--vocabulary": args.vocabulary, "--least-rows": args.least_rows}
    of_model |= {"--similarity": args.similarity, "--embeddings": args.embeddings}
    given = [name for name, value in of_model.items() if value]
    if args.tagger and given:
        raise TaggingError(f"{given[0]} is for a model behind --url; a tagger has its own tags: leave it out")
    fixed = [name for name in ("--least-rows", "--similarity", "--embeddings") if name in given]
    if args.vocabulary and fixed:
        raise TaggingError(f"{fixed[0]} is for a new vocabulary, and --vocabulary names one: leave one of them out")
    if args.key_env and not os.environ.get(args.key_env, "").strip():
        raise TaggingError(f"--key-env: the environment variable {args.key_env} is not set: set it to the key")
