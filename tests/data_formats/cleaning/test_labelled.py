"""The filters on the rows that were labelled by hand: no worse than they were measured."""

import pytest

from examples.experiments import filters

# Filter -> least precision and recall, on real and on planted rows; "None": too few real ones to say.
FLOORS = {}


@pytest.fixture(scope="module")
def rows():
    return filters.read_rows()


def test_wilsons_interval():
    assert filters.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927 by hand
    assert filters.wilson(0, 5)[0] == 0.0 and filters.wilson(5, 5)[1] == 1.0
