"""Check digits and ranges, on published examples and on what differs from them by one digit."""

import pytest

from data_formats.cleaning.checksums import is_card, is_iban, is_nino, is_resident_id, is_ssn, luhn


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        # ISO/IEC 7812-1: 7992739871 has the check digit 3.
        (luhn, ["79927398713", "0"], ["79927398710", "79927398714"]),
        # Test numbers of Visa, Mastercard (old and new range), American Express, Diners, Discover, JCB, UnionPay.
        (
            is_card,
            [
                *("4111111111111111", "5500000000000004", "2223000048400011", "340000000000009"),
                *("30000000000004", "6011000000000004", "3530111333300000", "6200000000000005"),
            ],
            ["4111111111111112", "5600000000000003", "0000000000000000", "9780306406157", "1234567890123452", ""],
        ),
        # The registry's examples of Germany, the United Kingdom, Norway and Malta.
        (
            is_iban,
            ["DE89370400440532013000", "GB29NWBK60161331926819", "NO9386011117947", "MT84MALT011000012345MTLCAST001S"],
            ["DE89370400440532013001", "DE8937040044053201300", "US89370400440532013000", "XX00"],
        ),
        # GB 11643-1999, annex A: 11010519491231002X and 440524188001010014, of 1880: nobody is that old.
        (
            is_resident_id,
            ["11010519491231002X", "11010519491231002x", "31011019850312752X"],
            ["110105194912310021", "440524188001010014", "99010519491231002X", "11010519491331002X"],
        ),
        (is_ssn, ["536228726", "001010001"], ["000228726", "666228726", "900228726", "536008726", "536220000"]),
        (is_ssn, ["123456788"], ["123456789", "078051120"]),
        (is_nino, ["AB123456C", "JG103759A"], ["QQ123456C", "AO123456C", "BG123456A", "AB123456E", "DA123456A"]),
    ],
)
def test_what_is_given_out_and_what_is_not(check, right, wrong):
    assert [text for text in right if not check(text)] == []
    assert [text for text in wrong if check(text)] == []
