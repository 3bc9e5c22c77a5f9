from collections import Counter

from align.data.balance import tag_balanced


def test_rounds_by_hand():
    tags = [["a"], ["a", "b"], ["c"], ["b", "a"], [], ["a", "b", "c"]]
    # round 1: 5 covers everything; round 2: 1 or 3, then 2; round 3: the other of these; round 4: 0
    taken = tag_balanced(tags, 10, seed=0)
    assert taken[0] == 5 and set(taken[1:3]) in ({1, 2}, {3, 2}) and set(taken[3:4]) <= {1, 3} and taken[4:] == [0]
    assert tag_balanced(tags, 2, seed=0) == taken[:2]


def test_rare_tags_come_as_often_as_common_ones():
    tags = [["common"]] * 90 + [["rare"]] * 10
    counts = Counter(tags[index][0] for index in tag_balanced(tags, 20, seed=3))
    assert counts == {"common": 10, "rare": 10}


def test_the_seed_decides_among_equals():
    tags = [["x"]] * 50
    assert tag_balanced(tags, 5, seed=1) == tag_balanced(tags, 5, seed=1) != tag_balanced(tags, 5, seed=2)
