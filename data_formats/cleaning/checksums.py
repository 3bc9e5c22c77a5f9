"""Whether a number can be what it looks like: check digits and the ranges that are never given out."""

from __future__ import annotations

import re
from datetime import date

# Numbers that were printed in public and stand in examples everywhere.
_PUBLIC_SSN = frozenset({"078051120", "219099999", "123456789", "987654321"})
_PROVINCES = frozenset(
    [
        "11",
        "12",
        "13",
        "14",
        "15",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
        "34",
        "35",
        "36",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "50",
        "51",
        "52",
        "53",
        "54",
        "61",
        "62",
        "63",
        "64",
        "65",
        "71",
        "81",
        "82",
        "83",
    ]
)
# Length of an IBAN by country (ISO 13616 registry).
IBAN_LENGTHS = {
    code: int(length)
    for length, codes in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL SD FK",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ TL OM SO",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for code in codes.split()
}
_CARD_PREFIX = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|64[4-9]|65|62|35(?:2[89]|[3-8])|30[0-5]|3[689]"
)
_CARD_LENGTHS = {"3": (14, 15, 16), "4": (16, 19), "5": (16,), "2": (16,), "6": (16, 17, 18, 19)}


def luhn(digits: str) -> bool:
    """Whether the digits obey Luhn's formula (ISO/IEC 7812-1, annex B)."""
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(value - 9 if value > 9 else value for value in doubled)) % 10 == 0


def is_card(digits: str) -> bool:
    """A payment card's number: the issuer's prefix and length, and Luhn's check digit; more than one digit."""
    if len(digits) not in _CARD_LENGTHS.get(digits[:1], ()) or not _CARD_PREFIX.match(digits):
        return False
    return len(set(digits)) > 1 and luhn(digits)


def is_iban(text: str) -> bool:
    """An account number of ISO 13616: a country that has them, its length, and 1 modulo 97; blanks left out before."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def is_resident_id(text: str) -> bool:
    """A Chinese resident's number (GB 11643-1999): province, date of birth, check digit (ISO 7064, MOD 11-2)."""
    if text[:2] not in _PROVINCES:
        return False
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    if not 1900 <= born.year <= 2099:
        return False
    total = sum(int(digit) * pow(2, 17 - at, 11) for at, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def is_ssn(digits: str) -> bool:
    """A US social security number that was, or may be, given out (SSA: no 000, 666 or 9xx, no group 00, no 0000)."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    never = area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000"
    return not never and digits not in _PUBLIC_SSN


def is_nino(text: str) -> bool:
    """A UK national insurance number by HMRC's rules of prefix and suffix (NIM39110); it has no check digit."""
    first, second, prefix = text[0], text[1], text[:2]
    if first in "DFIQUV" or second in "DFIOQUV" or prefix in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ"):
        return False
    return text[-1] in "ABCD"
