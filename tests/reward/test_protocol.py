from reward.protocol import same_tokens
from tests.align.trainers import ppo_case


def test_same_tokens_compares_vocabularies():
    class Judge:
        tokenizer = ppo_case.byte_tokenizer()

    assert same_tokens(object(), ppo_case.TOKENIZER)
    assert same_tokens(Judge(), ppo_case.TOKENIZER)
    Judge.tokenizer.add_tokens(["new"])
    assert not same_tokens(Judge(), ppo_case.TOKENIZER)
