"""What keeps secrets out of texts that are written, logged or shown: one function for an address, one for any text.

A url carries secrets in its user and password, in the values of its query and in its fragment; `shown_url` writes `***`
in their place, and what it wrote it writes again as it is. `hide` takes them out of a text that others wrote (a
server's answer, a library's message), with the secrets that are known, in every form in which a server would echo them.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote_plus

HIDDEN, KEY = "***", "(the key)"  # in the place of what a url or a token holds; of a secret that was named
PIECE = 8  # characters of a secret that are hidden where they stand alone: it may be echoed in parts
SHORTEST = 4  # of a query's values, and of what is looked for encoded; a shorter one would be found everywhere

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s\"'<>\\]+")
_PARTS = re.compile(r"^([^:/?#]+://)?([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?$", re.DOTALL)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=\bBearer )[^\s\"',]{16,}", re.IGNORECASE)  # of the hub; of any header
_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}  # str.lower changes the length of some texts


def shown_url(url: str) -> str:
    """The url as it may be written: `https://***@host/path?name=***#***`."""
    scheme, place, path, query, fragment = _PARTS.match(url).groups()
    user, at, host = place.rpartition("@")
    shown = f"{scheme or ''}{HIDDEN if user else ''}{at}{host}{path}"
    if query is not None:
        shown += "?" + "&".join(map(_shown_parameter, query.split("&")))
    return shown + (f"#{HIDDEN}" if fragment else "")


def _shown_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    return f"{name}={HIDDEN if value else ''}" if equals else HIDDEN if name else ""


def hidden_problem(url: str) -> str | None:
    """What keeps a url from being asked that `shown_url` wrote: something of it is hidden; else None."""
    if HIDDEN not in url:
        return None
    return f"{HIDDEN} stands where a secret was left out when the recipe was written; put it in again"


def url_secrets(url: str) -> list[str]:
    """What a server could echo of a url's secrets."""
    _, place, _, query, fragment = _PARTS.match(url).groups()
    values = [value for part in (query or "").split("&") for value in [part.partition("=")[2] or part]]
    found = [*place.rpartition("@")[0].split(":"), *values, fragment or ""]
    return [form for text in found if len(text) >= SHORTEST for form in {text, unquote_plus(text)}]


def hide(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets`, whole or in pieces, plain or encoded, and without what any url or token in it holds."""
    lowered, marked = text.translate(_LOWER), bytearray(len(text))
    for piece in {piece for secret in secrets for form in _forms(secret) for piece in _pieces(form.translate(_LOWER))}:
        at = lowered.find(piece)
        while at >= 0:
            marked[at : at + len(piece)] = b"\1" * len(piece)
            at = lowered.find(piece, at + 1)
    if any(marked):
        pieces = re.split("(\1+)", "".join("\1" if mark else "\0" for mark in marked))
        text = _without(text, pieces)
    return _TOKEN.sub(HIDDEN, _URL.sub(lambda found: shown_url(found.group()), text))


def _without(text: str, runs: list[str]) -> str:
    kept, at = [], 0
    for run in runs:
        kept.append(KEY if run.startswith("\1") else text[at : at + len(run)])
        at += len(run)
    return "".join(kept)


def _pieces(form: str) -> Iterator[str]:
    size = min(len(form), PIECE)
    return (form[start : start + size] for start in range(len(form) - size + 1) if size)


def _forms(secret: str) -> Iterator[str]:
    """As it is, percent-encoded, in JSON, in HTML, as hexadecimal digits, and in base64 wherever it begins."""
    yield secret
    if len(secret) < SHORTEST:
        return
    yield from (
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        html.escape(secret),
        secret.replace("/", "\\/"),
    )
    raw = secret.encode("utf-8", errors="surrogatepass")
    yield raw.hex()
    for before in range(3):  # bytes that stand before it in the encoded text; what they share is left out
        whole = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        form = whole[(0, 2, 3)[before] : len(whole) - ((before + len(raw)) % 3 != 0)]
        yield form
        yield form.translate({ord("+"): "-", ord("/"): "_"})
