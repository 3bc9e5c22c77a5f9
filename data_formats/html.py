"""HTML -> plain text in one pass over it, whatever it holds (html.parser takes quadratic time over some input)."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_BLOCKS = frozenset({"p", "div", "br", "li", "ul", "ol", "pre", "blockquote", "tr", "h1", "h2", "h3", "h4", "hr"})
_NAME = re.compile(r"(/?)([A-Za-z][^\s/>]*)")
_END = re.compile(r"=\s*([\"'])|>")  # of a tag, or the beginning of a value in which a > does not end it
_ENDLESS = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9A-Fa-f]{8,});?")  # of no character; int() would refuse the longest


def html_text(fragment: str) -> str:
    """The text of an HTML fragment: a line for a block, a dash before a list item, at most one empty line in a row.

    Tags, comments and declarations go; what looks like the beginning of one but has no end is text.
    """
    lines = [line.rstrip() for line in "".join(_pieces(fragment)).split("\n")]
    kept = [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]
    return "\n".join(kept).strip("\n")


def _pieces(fragment: str) -> Iterator[str]:
    """Texts, and line ends where blocks begin and end."""
    done, last, quotes = 0, fragment.rfind(">"), True
    comments = fragment.rfind("-->")
    at = fragment.find("<")
    while 0 <= at < last:
        named = _NAME.match(fragment, at + 1)
        if named:
            end = _end_of_tag(fragment, named.end()) if quotes else None
            if end is None:  # a quote that nothing closes; from here on none counts, so that it is looked for once
                end, quotes = fragment.index(">", named.end()), False
        elif fragment.startswith("!--", at + 1) and at + 4 <= comments:
            end = fragment.index("-->", at + 4) + 2
        elif fragment[at + 1] in "!?/" and not fragment.startswith("!--", at + 1):
            end = fragment.index(">", at + 1)
        else:
            at = fragment.find("<", at + 1)
            continue
        yield _unescaped(fragment[done:at])
        if named and (tag := named[2].lower()) in _BLOCKS:
            yield "\n- " if tag == "li" and not named[1] else "\n"
            yield "\n" if fragment[end - 1] == "/" else ""  # <br/> begins and ends
        done = end + 1
        at = fragment.find("<", done)
    yield _unescaped(fragment[done:])


def _end_of_tag(fragment: str, at: int) -> int | None:
    while found := _END.search(fragment, at):
        if not found[1]:
            return found.start()
        at = fragment.find(found[1], found.end()) + 1
        if not at:
            return None
    return None


def _unescaped(text: str) -> str:
    return html.unescape(_ENDLESS.sub("\ufffd", text))
