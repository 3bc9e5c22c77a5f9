"""The filters on the rows that were labelled by hand: no worse than they were measured."""

import pytest

from examples.experiments import filters

# Filter -> rows found rightly at least and wrongly at most: in the first draw, the second, and the planted rows.
MEASURED = {
    "pii, any kind, by patterns": ((10, 0), (4, 0), (22, 0)),
    "pii: email, by patterns": ((7, 0), (4, 0), (2, 0)),
    "pii: phone, by patterns": ((4, 0), (0, 0), (8, 0)),
    "pii: iban, by patterns": ((0, 0), (0, 0), (2, 0)),
    "pii: card, by patterns": ((0, 0), (0, 0), (3, 0)),
    "pii: resident_id, by patterns": ((0, 0), (0, 0), (2, 0)),
    "pii: ssn, by patterns": ((0, 0), (0, 0), (2, 0)),
    "pii: nino, by patterns": ((0, 0), (0, 0), (1, 0)),
    "pii: ip, by patterns": ((0, 0), (0, 0), (2, 0)),
    "pii: key, by patterns": ((0, 0), (0, 0), (2, 0)),
    "languages, keep en, zh": ((1, 0), (0, 0), (10, 1)),
    "toxicity, word list": ((1, 0), (0, 0), (7, 1)),
    "machine_made: template": ((8, 0), (6, 0), (4, 0)),
    "machine_made: blank": ((5, 0), (2, 0), (2, 0)),
    "machine_made: assistant": ((26, 0), (8, 0), (3, 0)),
    "machine_made: ocr": ((2, 0), (0, 0), (5, 0)),
    "gopher": ((8, 4), (3, 5), (8, 0)),
    "gopher, min_words 20": ((4, 0), (2, 4), (6, 0)),
    "c4": ((3, 3), (3, 5), (8, 0)),
}


@pytest.mark.needs("py3langid")
def test_no_filter_is_worse_than_it_was_measured():
    rows, worse = filters.read_rows(), []
    asked = list(filters.questions())
    assert {one.name for one in asked} == MEASURED.keys()
    for one in asked:
        for draw, (right, wrong) in zip(filters.DRAWS, MEASURED[one.name], strict=True):
            counts = filters.measured([row for row in rows if row["draw"] == draw], one)
            if counts.right < right or len(counts.wrong) > wrong:
                worse.append(f"{one.name}, draw {draw}: missed {counts.missed}, wrong {counts.wrong}")
    assert worse == []


def test_every_row_has_its_labels():
    rows = filters.read_rows()
    assert [row["id"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert set(row["pii"]) <= set(filters.KINDS) and isinstance(row["toxic"], bool)
        assert set(row["machine_made"]) <= {*filters.MACHINE_KINDS, "generated"}
        assert (row["bad"] is None) == (row["kind"] == "reply")
