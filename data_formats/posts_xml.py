"""StackExchange dumps (Posts.xml) -> one raw row a question with its answers.

The dump is one flat list of `<row .../>` elements, an answer naming its question. Elements are parsed as they come;
what stays in memory is the text of the questions and answers, since an answer may stand anywhere after (or before) its
question. Entities are never expanded: a document type declaration is refused, so no entity can be declared. Bodies are
HTML and become plain text, see `html_text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from align.runtime.terminal import shortened
from data_formats.errors import MOST, DataError, TooLargeError
from data_formats.html import html_text

_CHUNK = 1 << 16
_ANSWER, _QUESTION = "2", "1"


def _elements(file: IO[bytes], path: Path, most: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The attributes of every `row`, with the line it starts on."""
    parser, found, given = expat.ParserCreate(), [], 0

    def refuse(*_: Any) -> None:
        raise DataError("document type declarations are refused", path=path, line=parser.CurrentLineNumber)

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            found.append((parser.CurrentLineNumber, attributes))

    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, start
    while True:
        chunk = file.read(_CHUNK)
        try:
            parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            raise DataError(f"not XML ({expat.ErrorString(error.code)})", path=path, line=error.lineno) from None
        except (LookupError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"not XML that can be read ({error})", path=path, line=parser.CurrentLineNumber) from None
        yield from found
        found.clear()
        given += len(chunk)
        if given - parser.CurrentByteIndex > most:  # expat keeps an element until it has the whole of it
            raise TooLargeError(most, path=path, line=parser.CurrentLineNumber)
        if not chunk:
            return


def _votes(row: dict[str, str], path: Path, line: int) -> int:
    try:
        return int(row["Score"])
    except (KeyError, ValueError):
        found = shortened(row.get("Score", "nothing"))
        raise DataError(f"expected a whole number, found {found!r}", path=path, line=line, field="Score") from None


def post_rows(file: IO[bytes], path: Path, most: int = MOST) -> Iterator[tuple[int, Any]]:
    """Raw rows {question, answers: [{text, score, accepted}], posts}, in the order of the questions.

    `posts` is the number of posts that a row stands for. Posts that are neither a question nor an answer to one in the
    file are rows `{left_out: reason}`.

    Raises:
        DataError: not XML, a document type declaration, or a score that is no number; names the line.
        TooLargeError: an element has more than `most` bytes.
    """
    questions: dict[str, tuple[int, dict[str, str]]] = {}
    answers: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in _elements(file, path, most):
        kind, name = row.get("PostTypeId"), row.get("Id", "")
        if kind == _QUESTION and name not in questions:
            kept = {field: row.get(field, "") for field in ("Title", "Body", "AcceptedAnswerId")}
            questions[name] = (line, kept)
        elif kind == _ANSWER:
            _votes(row, path, line)
            kept = {field: row.get(field, "") for field in ("Id", "Body", "Score")}
            answers.setdefault(row.get("ParentId", ""), []).append((line, kept))
        else:
            yield line, {"left_out": "question given twice" if kind == _QUESTION else "neither question nor answer"}
    for name, (line, question) in questions.items():
        given = answers.pop(name, [])
        text = "\n\n".join(part for part in (question["Title"], html_text(question["Body"])) if part)
        replies = [
            {
                "text": html_text(row["Body"]),
                "score": int(row["Score"]),
                "accepted": bool(row["Id"]) and row["Id"] == question["AcceptedAnswerId"],
            }
            for _, row in given
        ]
        yield line, {"question": text, "answers": replies, "posts": 1 + len(given)}
    for orphans in answers.values():
        for line, _ in orphans:
            yield line, {"left_out": "answer without its question"}
