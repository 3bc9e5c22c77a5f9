"""What people hand to the trainers: taken, or one TypeError that names the argument and what to do."""

import datasets
import pytest
from transformers import AutoModelForSequenceClassification, Qwen2ForCausalLM, TrainingArguments

from align import Critic, FunctionReward, PPOConfig, Prompt, RewardTrainer, SFTTrainer
from align.data.encode import encode_comparisons, encode_demonstrations
from align.trainers.accepted import as_prompts
from align.trainers.ppo import PPOTrainer
from data_formats.errors import DataError
from data_formats.records import Comparison, Demonstration, Message
from reward.combined import CombinedReward, Part
from reward.errors import VocabularyError
from reward.gate import SafetyGate
from reward.judges.functions import FunctionJudge
from reward.judges.rewards import RewardJudge
from reward.model import RewardModel
from tests.align.trainers import ppo_case
from tests.tiny_models import qwen2_config

CONFIG = {"num_iterations": 1, "rollout_batch_size": 2, "num_mini_batches": 1, "critic_warmup_steps": 0}
CONFIG |= {"rollout": {"max_completion_length": 4}}
TURN = {"role": "user", "content": "hi"}


class Scorer:
    name = "mine"

    def score(self, samples):
        return [0.0] * len(samples)


class Nameless:
    def score(self, samples):
        return [0.0] * len(samples)


def ppo(folder, **changes):
    given = {
        "policy": ppo_case.policy(),
        "critic": ppo_case.critic(),
        "reward": Scorer(),
        "tokenizer": ppo_case.TOKENIZER,
        "config": PPOConfig(**CONFIG),
        "prompts": ["hi", "ho"],
    }
    return PPOTrainer(**given | changes, output_dir=folder)


@pytest.mark.parametrize(
    "prompts",
    [
        ["hi", {"prompt": "hi"}, {"messages": [TURN]}, {"prompt": [TURN]}, [TURN], Prompt((Message("user", "hi"),))],
        ("hi",),
        datasets.Dataset.from_list([{"prompt": "hi"}]),
        (row for row in [{"question": "hi"}]),
    ],
)
def test_prompts_are_taken_as_people_have_them(prompts):
    found = as_prompts(prompts, "prompts")
    assert {prompt.messages for prompt in found} == {(Message("user", "hi"),)}


def test_further_columns_of_a_row_reach_the_reward():
    row = {"messages": [TURN], "category": "c", "reference": "4", "unit_tests": ["a", "b"], "level": 3}
    (prompt,) = as_prompts([row], "prompts")
    assert (prompt.category, prompt.reference) == ("c", "4")
    assert prompt.columns["unit_tests"] == ["a", "b"] and prompt.columns["level"] == 3


@pytest.mark.parametrize(
    ("prompts", "kind", "words"),
    [
        ("hi", TypeError, "prompts: must be a list, each a Prompt, a text .*, not the text 'hi'"),
        ({"prompt": "hi"}, TypeError, "prompts: must be a list, each .*, not a row with 'prompt'"),
        (3, TypeError, "prompts: must be a list, each .*, not a int"),
        (["hi", 3], TypeError, r"prompts\[1\]: must be a Prompt, .*, not a int"),
        ([[1, 2]], TypeError, r"prompts\[0\]: must be a Prompt, .*, not a list"),
        ([{"text": "hi"}], DataError, r"prompts\[0\]: no prompt format has this shape; keys seen: text"),
        ([{"messages": []}], DataError, r"prompts\[0\]: "),
    ],
)
def test_what_is_no_prompt_is_named(prompts, kind, words):
    with pytest.raises(kind, match=words):
        as_prompts(prompts, "prompts")


def test_a_function_is_a_reward_and_so_is_a_gold_one(tmp_path):
    trainer = ppo(tmp_path, reward=ppo_case.vowels, gold=lambda prompts, completions: [1.0] * len(completions))
    assert isinstance(trainer.reward, FunctionReward) and trainer.reward.name == "vowels"
    assert trainer.evaluate(["hi"])["eval/gold"] == 1.0
    assert len(trainer.collect([{"prompt": "hi"}])) == 2


def test_a_function_of_both_replies_and_a_reward_are_judges(tmp_path):
    first = ppo(tmp_path, judge=lambda prompts, first, second: ["first"] * len(first)).judge
    assert isinstance(first, FunctionJudge) and ppo(tmp_path, judge=first).judge is first
    by_score = ppo(tmp_path, judge=FunctionReward(ppo_case.vowels)).judge
    assert isinstance(by_score, RewardJudge) and by_score.described == "the reward vowels"


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("reward", Scorer, "reward: must be a reward, not the class Scorer; give an instance of it"),
        ("reward", "org/judge", "reward: .*not the text 'org/judge'; load it: reward.sources.load_reward"),
        ("reward", 3, "reward: must be a reward, not a int; give an object with `name` and `score"),
        ("reward", [Scorer()], "reward: must be a reward, not a list"),
        ("reward", Nameless(), "reward: .* this Nameless has no name; give it one"),
        ("reward", ppo_case.policy(), "reward: .*not the module Qwen2ForCausalLM; wrap it: reward.sources.ModelReward"),
        ("gold", "org/judge", "gold: must be a reward, not the text"),
        ("judge", "org/judge", "judge: must be a judge, not the text 'org/judge'; give an object with"),
        ("judge", FunctionJudge, "judge: must be a judge, not the class FunctionJudge; give an object with"),
        ("policy", "org/model", "policy: must be a torch module, not the text 'org/model'; load it: transformers"),
        ("policy", None, "policy: must be a torch module, not None"),
        ("reference", "org/model", "reference: must be a torch module, not the text"),
        ("critic", "org/model", r"critic: must be a torch module, .*; load or make it: align.Critic"),
        ("critic", Critic, "critic: must be a torch module, not the class Critic"),
        ("critic", ppo_case.policy(), "critic: a Qwen2ForCausalLM gives logits, no values or scores; load or make it"),
        ("tokenizer", "org/model", r"tokenizer: must be a tokenizer, .*; load it: align.load_tokenizer\(path\)"),
        ("engine", "vllm", "engine: must be a rollouts.protocol.Engine, not the text 'vllm'; the engine is named in"),
        ("tokenizer", 5, r"tokenizer: must be a tokenizer, not a int; load it"),
        ("config", CONFIG, r"config: must be a PPOConfig, .*; write PPOConfig\(\*\*config\)"),
        ("prompts", "hi", "prompts: must be a list"),
        ("eval_prompts", {"prompt": "hi"}, "eval_prompts: must be a list"),
    ],
)
def test_ppo_names_the_argument(argument, value, words, tmp_path):
    with pytest.raises(TypeError, match=words):
        ppo(tmp_path, **{argument: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda: CombinedReward([ppo_case.vowels]),
        lambda: Part(ppo_case.vowels),
        lambda: SafetyGate(ppo_case.vowels, Scorer()),
        lambda: FunctionReward("vowels"),
    ],
)
def test_rewards_of_rewards_name_what_they_want(make):
    with pytest.raises(TypeError, match=r"must be a (Part|reward|function)"):
        make()


def training(folder):
    return TrainingArguments(str(folder), report_to="none", use_cpu=True)


DEMONSTRATION = Demonstration((Message("user", "hi"), Message("assistant", "ho")))
RAW = {"messages": [TURN, {"role": "assistant", "content": "ho"}]}
PAIR = {"prompt": "hi", "chosen": "ho", "rejected": "hu"}


@pytest.mark.parametrize("rows", [[RAW], [DEMONSTRATION], ["hi"], datasets.Dataset.from_list([RAW])])
@pytest.mark.parametrize("argument", ["train_dataset", "eval_dataset"])
def test_rows_that_are_not_encoded_name_what_encodes_them(argument, rows, tmp_path):
    words = (
        rf"{argument}\[0\]: must be an encoded row with 'input_ids', not .*align\.data\.encode\.encode_demonstrations"
    )
    with pytest.raises(TypeError, match=words):
        SFTTrainer(ppo_case.policy(), training(tmp_path), processing_class=ppo_case.TOKENIZER, **{argument: rows})


def test_held_out_sets_by_name_and_packing_too(tmp_path):
    options = {"processing_class": ppo_case.TOKENIZER}
    with pytest.raises(TypeError, match=r"eval_dataset\['b'\]\[0\]: must be an encoded row"):
        SFTTrainer(ppo_case.policy(), training(tmp_path), eval_dataset={"b": [RAW]}, **options)
    with pytest.raises(TypeError, match=r"train_dataset\[0\]: must be an encoded row"):
        SFTTrainer(ppo_case.policy(), training(tmp_path), train_dataset=[RAW], packing=True, **options)


def test_pairs_that_are_not_encoded(tmp_path):
    model, options = RewardModel(ppo_case.policy().model), {"processing_class": ppo_case.TOKENIZER}
    for row in (PAIR, Comparison((Message("user", "hi"),), "ho", "hu")):
        with pytest.raises(TypeError, match=r"with 'chosen_ids' and 'rejected_ids', not .*encode_comparisons\("):
            RewardTrainer(model, training(tmp_path), train_dataset=[row], **options)
    rows, _ = encode_comparisons(
        ppo_case.TOKENIZER, [Comparison((Message("user", "hi"),), "ho", "hu")], max_length=64, on_overlong="error"
    )
    RewardTrainer(model, training(tmp_path), train_dataset=rows, **options)


def test_the_supervised_trainers_name_the_argument(tmp_path):
    rows, _ = encode_demonstrations(ppo_case.TOKENIZER, [DEMONSTRATION], max_length=64, on_overlong="error")
    policy, args = ppo_case.policy(), training(tmp_path)
    for kind, model, changes, words in (
        (SFTTrainer, "org/model", {}, "model: must be a torch module, not the text"),
        (RewardTrainer, "org/model", {}, r"model: .*load or make it: reward\.model\.RewardModel"),
        (RewardTrainer, policy, {}, "model: a Qwen2ForCausalLM gives logits, no values or scores"),
        (SFTTrainer, policy, {"processing_class": "org/model"}, "processing_class: must be a tokenizer, not the text"),
        (SFTTrainer, policy, {"processing_class": None}, "processing_class: must be a tokenizer, not None"),
        (SFTTrainer, policy, {"args": {"output_dir": "x"}}, "args: must be transformers.TrainingArguments, not a row"),
    ):
        options = {"args": args, "processing_class": ppo_case.TOKENIZER, "train_dataset": rows} | changes
        with pytest.raises(TypeError, match=words):
            kind(model, options.pop("args"), **options)


def test_a_foreign_classifier_is_no_language_model(tmp_path):
    model = AutoModelForSequenceClassification.from_config(qwen2_config(hidden_size=16, num_labels=1))
    with pytest.raises(TypeError, match="not the module Qwen2ForSequenceClassification; wrap it"):
        ppo(tmp_path, reward=model)


def test_a_tokenizer_larger_than_the_embedding_is_named_before_a_step(tmp_path):
    small = Qwen2ForCausalLM(qwen2_config(vocab_size=200))
    words = r"model has 200 token embeddings, fewer than the 259 tokens of its tokenizer \(.* is token 200\)"
    for argument, model in (("policy", small), ("critic", Critic.from_causal_lm(small)), ("reference", small)):
        with pytest.raises(VocabularyError, match=f"{argument}: the {words}"):
            ppo(tmp_path, **{argument: model})
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(VocabularyError, match=f"model: the {words}"):
        SFTTrainer(small, args, train_dataset=[], processing_class=ppo_case.TOKENIZER)
    with pytest.raises(VocabularyError, match=f"model: the {words}"):
        RewardTrainer(RewardModel(small.model), args, train_dataset=[], processing_class=ppo_case.TOKENIZER)


def test_a_critic_of_a_path_or_a_clear_refusal(tmp_path):
    RewardModel(Qwen2ForCausalLM(qwen2_config()).model).save_pretrained(tmp_path)
    critic = Critic.from_reward_model(str(tmp_path))
    assert not critic.head.weight.any() and all(weight.requires_grad for weight in critic.parameters())
    with pytest.raises(TypeError, match="reward_model: must be a RewardModel or its path, not a NoneType"):
        Critic.from_reward_model(None)
    with pytest.raises(TypeError, match="model: must be a causal language model or its path, not a int"):
        Critic.from_causal_lm(5)


def test_a_blank_text_is_no_prompt():
    for prompts in ([" "], [{"prompt": ""}]):
        with pytest.raises(DataError, match=r"prompts\[0\]: empty prompt"):
            as_prompts(prompts, "prompts")
