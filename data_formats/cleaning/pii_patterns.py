"""Personal data by its shape: mail, phone, national ids, accounts, cards, addresses of machines, keys.

What has a check digit is checked (`data_formats.cleaning.checksums`); what is reserved for examples or for one's own
network (`example.com`, 192.168.0.1) is nobody's. No names and no postal addresses: no pattern tells those. A number
without separators is a phone number only where it can be a Chinese mobile's, or behind a word such as "tel" or "电话".

Every pattern matches at most `LONGEST` characters and starts at the border of a word, so that time grows with the text
and never with its square.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address

from data_formats.cleaning.checksums import IBAN_LENGTHS, is_card, is_iban, is_nino, is_resident_id, is_ssn

LONGEST = 9000  # characters that any pattern may match: a private key in PEM
KINDS = ("key", "email", "iban", "card", "resident_id", "ssn", "nino", "ip", "phone")
PLACEHOLDERS = {kind: f"<{kind.upper()}>" for kind in KINDS}
_OF_DIGITS = {kind for kind in KINDS if kind not in ("key", "email")}
_DIGITS = re.compile(r"(?:\d\D{0,3}){4}")  # without four digits near each other there is none of these
_CONTEXT = 24  # characters before a match in which a word may say what it is

_RESERVED = re.compile(r"(?:^|[.@])(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.IGNORECASE)
_FILE_ENDINGS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "bmp",
        "ico",
        "pdf",
        "css",
        "js",
        "ts",
        "py",
        "json",
        "xml",
        "html",
        "md",
        "txt",
        "zip",
    ]
)
_RESOLVERS = frozenset(
    ["8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "114.114.114.114", "223.5.5.5", "208.67.222.222"]
)
_VERSION = re.compile(
    r"(?:\bv|version|release|build|firmware|driver|update|upgraded? from|section|chapter|clause|§|版本|第|章|节)"
    r"[\s:：=#]{0,3}$",
    re.IGNORECASE,
)
_PHONE_WORD = re.compile(
    r"(?:phone|\btel|\bcall|\bcell|mobile|\bfax|whatsapp|\btext|contact|\b(?:my|his|her|their) number is"
    r"|电话|手机|传真|联系|致电|拨打|热线)"
    r"[^\d\n]{0,16}$",
    re.IGNORECASE,
)
_SSN_WORD = re.compile(r"(?:\bssn\b|social security|社会安全号)[^\d\n]{0,18}$", re.IGNORECASE)
_NOT_PHONE_WORD = re.compile(
    r"(?:isbn|issn|order|invoice|\bid\b|serial|tracking|part no|sku|doi|订单|编号|单号|发票)[^\d\n]{0,16}$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A pattern, and what must hold of a match beside it: called with the match's text and what stands before it."""

    kind: str
    pattern: re.Pattern[str]
    holds: Callable[[str, str], bool] = lambda found, before: True


def _digits(text: str) -> str:
    return "".join(sign for sign in text if sign.isdigit())


def _packed(text: str) -> str:
    return "".join(sign for sign in text if sign.isalnum()).upper()


def _is_email(found: str, before: str) -> bool:
    local, _, domain = found.rpartition("@")
    if _RESERVED.search(domain) or domain.rpartition(".")[2].lower() in _FILE_ENDINGS:
        return False
    return local.lower() not in ("git", "noreply", "no-reply")


def _is_address(found: str, before: str) -> bool:
    try:
        address = ip_address(found)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and found not in _RESOLVERS and not _VERSION.search(before)


def _is_ssn_found(found: str, before: str) -> bool:
    return is_ssn(_digits(found)) and (not found.isdigit() or bool(_SSN_WORD.search(before)))


def _is_spaced_phone(found: str, before: str) -> bool:
    return 7 <= len(_digits(found)) <= 15 and not _NOT_PHONE_WORD.search(before)


def _is_mobile(found: str, before: str) -> bool:
    """A Chinese mobile's number; a round 15000000000 is an amount."""
    return not _digits(found).endswith("00000") and not _NOT_PHONE_WORD.search(before)


def _is_named_phone(found: str, before: str) -> bool:
    return bool(_PHONE_WORD.search(before)) and not _NOT_PHONE_WORD.search(before)


# Behind a letter or digit of ASCII nothing begins; behind a Chinese character it may. A point before or behind digits
# makes them part of a larger number, a hyphen part of a code.
_OPEN, _CLOSE = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_IBANS = "|".join(rf"{country}\d{{2}}(?: ?[A-Z0-9]){{{length - 4}}}" for country, length in IBAN_LENGTHS.items())
_NUMBER, _END = r"(?<![A-Za-z0-9_.,/=#-])", r"(?![A-Za-z0-9_/-]|[.,]\d)"


def _shape(kind: str, pattern: str, holds: Callable[[str, str], bool] = lambda found, before: True) -> _Shape:
    return _Shape(kind, re.compile(pattern, re.ASCII), holds)


# In this order: what an earlier one has masked, a later one does not see.
_SHAPES = (
    _shape(
        "key", r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!-)){0,8000}+-----END [A-Z ]{0,30}PRIVATE KEY-----"
    ),
    _shape("key", rf"{_OPEN}(?:AKIA|ASIA)[A-Z0-9]{{16}}{_CLOSE}"),
    _shape("key", rf"{_OPEN}(?:gh[pousr]_[A-Za-z0-9]{{36}}|github_pat_\w{{50,100}}|glpat-[\w-]{{20}}){_CLOSE}"),
    _shape(
        "key",  # with a digit, or it is a class of a style sheet
        rf"{_OPEN}(?:sk-(?=[A-Za-z_-]{{0,60}}\d)[A-Za-z0-9_-]{{20,200}}|[sr]k_(?:live|test)_[A-Za-z0-9]{{16,100}})",
    ),
    _shape("key", rf"{_OPEN}(?:hf_[A-Za-z0-9]{{30,40}}|AIza[\w-]{{35}}|xox[abprs]-[A-Za-z0-9-]{{10,100}}){_CLOSE}"),
    _shape("key", rf"{_OPEN}eyJ[\w-]{{10,2000}}+\.eyJ[\w-]{{10,4000}}+\.[\w-]{{10,1000}}"),
    _shape("key", r"(?<=://)[\w.~-]{1,64}+:[^\s:/@]{1,64}+(?=@)"),
    _shape(
        "email",
        r"(?<![\w.%+/-])[A-Za-z0-9_][\w.%+'-]{0,63}+@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}+\.){1,6}[A-Za-z]{2,24}+(?![\w@-])",
        _is_email,
    ),
    _shape(
        "iban",
        rf"{_OPEN}(?=[A-Z]{{2}}\d{{2}})(?:{_IBANS}){_CLOSE}",
        lambda f, b: is_iban(_packed(f)),
    ),
    _shape(
        "resident_id",
        rf"{_NUMBER}[1-8]\d{{5}}[12]\d{{3}}[01]\d[0-3]\d{{4}}[\dXx]{_END}",
        lambda found, before: is_resident_id(found),
    ),
    _shape(
        "card",
        rf"{_NUMBER}(?:\d{{14,19}}|\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{1,3}})?"
        rf"|\d{{4}}([ -])\d{{6}}\2\d{{4,5}}){_END}",
        lambda found, before: is_card(_digits(found)),
    ),
    _shape("ssn", rf"{_NUMBER}(?:\d{{3}}([ -])\d{{2}}\1\d{{4}}|\d{{9}}){_END}", _is_ssn_found),
    _shape(
        "nino",
        rf"{_OPEN}[A-Z]{{2}} ?\d{{2}} ?\d{{2}} ?\d{{2}} ?[A-D]{_CLOSE}",
        lambda found, before: is_nino(_packed(found)),
    ),
    _shape("ip", r"(?<![\w.:-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", _is_address),
    _shape("ip", r"(?<![\w.:])[23][0-9A-Fa-f]{3}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?![\w:])", _is_address),
    # A Chinese mobile's; a landline's behind its area code; those for customers.
    _shape("phone", rf"{_NUMBER}(?:\+?86[ -]?)?1[3-9]\d(?:([ -]?)\d{{4}}\1\d{{4}}){_END}", _is_mobile),
    _shape(
        "phone",
        rf"{_NUMBER}(?:\(0\d{{2,3}}\) ?|（0\d{{2,3}}） ?|0\d{{2,3}}-)\d{{7,8}}(?:-\d{{1,5}})?{_END}",
        _is_spaced_phone,
    ),
    _shape("phone", rf"{_NUMBER}[48]00-(?:\d{{3}}-\d{{4}}|\d{{4}}-\d{{3}}){_END}", _is_spaced_phone),
    # With a country's code; North American; British.
    _shape("phone", rf"{_NUMBER}\+[1-9]\d{{0,2}}(?:[ .-]?\(?\d{{1,4}}\)?){{2,6}}{_END}", _is_spaced_phone),
    _shape(
        "phone",
        rf"{_NUMBER}(?:1[ .-])?(?:\([2-9]\d{{2}}\) ?|[2-9]\d{{2}}[ .-])[2-9]\d{{2}}[ .-]\d{{4}}"
        rf"(?: ?(?:x|ext\.?) ?\d{{1,5}})?{_END}",
        _is_spaced_phone,
    ),
    _shape(
        "phone",
        rf"{_NUMBER}0(?:7\d{{3}} ?\d{{3}} ?\d{{3}}|20 \d{{4}} \d{{4}}|1\d{{2,3}} \d{{3}} ?\d{{3,4}}){_END}",
        _is_spaced_phone,
    ),
    _shape(
        "phone", rf"{_NUMBER}(?:\d{{7,15}}|\d{{3}}[ -]\d{{4}}|\d{{2,4}}(?:[ -]\d{{2,4}}){{2,4}}){_END}", _is_named_phone
    ),
)


def patterns() -> tuple[re.Pattern[str], ...]:
    """Every pattern, for whoever looks after their bounds."""
    return tuple(shape.pattern for shape in _SHAPES)


def mask_by_pattern(text: str, kinds: Collection[str] = KINDS) -> tuple[str, Counter[str]]:
    """The text with a placeholder (`<EMAIL>`) for each find, and how many there are of each kind."""
    counts: Counter[str] = Counter()
    possible = {"key"} | ({"email"} if "@" in text else set()) | (_OF_DIGITS if _DIGITS.search(text) else set())
    for shape in _SHAPES:
        if shape.kind not in kinds or shape.kind not in possible:
            continue

        def replaced(found: re.Match[str], shape: _Shape = shape) -> str:
            before = found.string[max(0, found.start() - _CONTEXT) : found.start()]
            if not shape.holds(found[0], before):
                return found[0]
            counts[shape.kind] += 1
            return PLACEHOLDERS[shape.kind]

        text = shape.pattern.sub(replaced, text)
    return text, counts
