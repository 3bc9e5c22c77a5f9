"""The simulated schedule against hand-computed ones."""

import pytest

from align.scale.schedule import Costs, Meeting, Pool, drawn_lengths, run, simulate

COSTS = Costs(
    rollout=lambda replies: float(max(replies, default=0)),
    score=lambda replies, tokens: 0.0,
    experience=lambda replies, tokens: 0.0,
    update=lambda replies, tokens: float(replies),
    averaging=lambda ranks: 0.5 if ranks > 1 else 0.0,
    push=0.25,
    steps=2,
    prompt=0,
    times=1,
)


def test_one_rank_does_everything_in_turn():
    found = run(COSTS, [[2, 4]], 1)
    assert found.seconds == 4 + 2 + 0.25 and found.phases["waiting"] == 0 and found.longest == "rollout"


def test_ranks_wait_for_the_longest_reply():
    found = run(COSTS, [[2, 4]] * 3, 2)  # one each: 2 s and 4 s; a reply's update, two averagings
    assert found.seconds == pytest.approx(4 + 1 + 2 * 0.5 + 0.25)
    assert found.phases == pytest.approx(
        {"rollout": 3, "score": 0, "experience": 0, "update": 1, "averaging": 1, "push": 0.25, "waiting": 1}
    )


def test_a_server_samples_for_all_in_turn_or_ahead():
    in_turn = run(COSTS, [[2, 4]] * 10, 2, servers=1)
    assert in_turn.seconds == pytest.approx(4 + 1 + 1 + 0.25) and in_turn.phases["waiting"] == pytest.approx(4)
    ahead = run(COSTS, [[2, 4]] * 10, 2, servers=1, overlap=True)
    # the first batch 4 s, nine iterations as long as sampling, and a push; the last one learns alone
    assert 10 * ahead.seconds == pytest.approx(4 + 9 * (4 + 0.25) + 2 + 0.25)
    two = run(COSTS, [[4, 4, 4, 4]], 1, servers=2)
    assert two.seconds == pytest.approx(4 + 4 + 0.25)


def test_ranks_share_the_cores_of_a_machine():
    found = run(COSTS, [[4, 4]], 2, cores=1)  # every piece takes twice as long, averaging too
    assert found.seconds == pytest.approx(8 + 2 + 2 + 0.25)
    assert run(COSTS, [[4, 4]], 2, cores=2).seconds == run(COSTS, [[4, 4]], 2).seconds


def test_work_of_unlike_length_on_a_shared_core():
    core, told = Pool(1), {0: [], 1: []}

    def work(seconds):
        yield core, seconds

    # both at half speed until the short one ends at 2, the other then alone: 2 + (3 - 1)
    assert simulate([(work(1.0), told[0].append), (work(3.0), told[1].append)]) == pytest.approx(4)
    assert (told[0][-1], told[1][-1]) == pytest.approx((2, 4))


def test_processes_that_would_wait_for_ever_are_found():
    def alone(meeting):
        yield meeting

    with pytest.raises(ValueError, match="wait for one another"):
        simulate([(alone(Meeting(2)), lambda now: None)])


def test_lengths():
    assert drawn_lengths(3, 9, None, 0) == [9, 9, 9]
    drawn = drawn_lengths(4000, 100, 50, 0)
    assert drawn == drawn_lengths(4000, 100, 50, 0) != drawn_lengths(4000, 100, 50, 1)
    # an exponential distribution cut at twice its mean: 1 - exp(-2) of the mean
    assert min(drawn) >= 1 and max(drawn) == 100 and sum(drawn) / 4000 == pytest.approx(50 * 0.8647, rel=0.03)
