"""The data sets: reproducible, of the promised quality, and no evaluation prompt in any of them."""

from collections import Counter

from align.tinyworld import sets
from align.tinyworld.gold import judge
from align.tinyworld.labels import ASTRAY, CORRECTNESS, clean_comparisons
from align.tinyworld.world import World
from data_formats.records import Message

WORLD = World(7)


def question_of(record):
    return WORLD.by_text[record.prompt[-1].content]


def sampled_replies(part: str, size: int) -> dict[str, list[str]]:
    """Replies as a model might give them: those of demonstrations, and some nonsense."""
    replies: dict[str, list[str]] = {}
    for demo in sets.demonstrations(WORLD, size, part=part):
        for asked, told in zip(demo.messages, demo.messages[1:], strict=False):
            if asked.role == "user":
                replies.setdefault(asked.content, []).extend([told.content, "the the", ""])
    return replies


def test_sets_are_functions_of_the_seed_and_grow_at_the_end():
    assert sets.documents(WORLD, 50) == sets.documents(World(7), 80)[:50]
    assert sets.demonstrations(WORLD, 50) == sets.demonstrations(World(7), 80)[:50]
    assert sets.documents(WORLD, 50) != sets.documents(World(8), 50)


def test_no_evaluation_prompt_in_any_training_set():
    """Nor inside a longer text."""
    evaluated = {prompt.messages[0].content for prompt in sets.prompts(WORLD, 300, part="eval")}
    assert len(evaluated) == 300
    demos = sets.demonstrations(WORLD, 2000) + sets.demonstrations(WORLD, 500, part="heldout")
    seen = [document.text for document in sets.documents(WORLD, 2000)]
    seen += [message.content for demo in demos for message in demo.messages]
    seen += [pair.prompt[0].content for pair in sets.coarse_comparisons(WORLD, 2000)]
    seen += [prompt.messages[0].content for prompt in sets.prompts(WORLD, 2000, part="train")]
    seen += [prompt.messages[0].content for prompt in sets.prompts(WORLD, 500, part="heldout")]
    everything = "\n".join(seen)
    assert not [text for text in evaluated if text in everything]
    assert sum(question.text in everything for question in WORLD.part("train")[:200]) > 100  # the search finds things


def test_evaluation_prompts_are_spread_over_the_categories():
    counts = Counter(prompt.category for prompt in sets.prompts(WORLD, 300, part="eval"))
    assert set(counts.values()) == {60}


def test_demonstrations_are_of_mixed_quality_and_good_ones_are_not():
    def share(demos):
        verdicts = [
            judge(WORLD.by_text[asked.content].item, told.content)
            for demo in demos
            for asked, told in zip(demo.messages, demo.messages[1:], strict=False)
            if asked.role == "user"
        ]
        return sum(one.correct for one in verdicts) / len(verdicts), {one.manners for one in verdicts}

    mixed, manners = share(sets.demonstrations(WORLD, 2000))
    assert 0.5 < mixed < 0.7
    assert manners == {0.5, 0.25, 0.0, -0.25}
    assert share(sets.demonstrations(WORLD, 500, good=True)) == (1.0, {0.5})


def test_the_crowd_is_right_more_often_than_not_and_noisy():
    pairs = sets.coarse_comparisons(WORLD, 2000)
    gaps = [
        judge(question_of(pair).item, pair.chosen).score - judge(question_of(pair).item, pair.rejected).score
        for pair in pairs
    ]
    assert 0.75 < sum(gap > 0 for gap in gaps) / len(gaps) < 0.9
    assert all(pair.grade >= 1 for pair in pairs)  # ties are dropped


def test_clean_comparisons_are_right_half_sampled_and_tagged():
    sampled = sampled_replies("train", 600)
    pairs = clean_comparisons(WORLD, sampled, 800, name="test")
    assert len(pairs) == 800
    from_model, said = 0, {reply for replies in sampled.values() for reply in replies}
    for pair in pairs:
        item = question_of(pair).item
        better, worse = judge(item, pair.chosen), judge(item, pair.rejected)
        assert better.score > worse.score
        assert pair.grade == better.score - worse.score
        alone = better.manners == worse.manners and better.correct
        assert (CORRECTNESS in pair.tags) <= alone
        assert not {CORRECTNESS, ASTRAY} <= set(pair.tags)
        from_model += sum(reply in said for reply in (pair.chosen, pair.rejected))
        assert pair.chosen.strip() and pair.rejected.strip()
    assert from_model / 1600 >= 0.5
    assert sum(CORRECTNESS in pair.tags for pair in pairs) / 800 >= 0.4


def test_prompts_of_one_user_turn():
    for prompt in sets.prompts(WORLD, 40, part="train"):
        assert prompt.messages == (Message("user", prompt.messages[0].content),)
