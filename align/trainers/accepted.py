"""What people hand to the trainers, as what these work with; anything else is one TypeError that names the argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from align.recipe.estimators import ESTIMATORS
from align.recipe.ppo_section import PPOConfig
from align.runtime.terminal import shortened
from data_formats.columns import with_all_columns
from data_formats.detection import detect
from data_formats.errors import DataError
from data_formats.fields import Fields
from data_formats.formats import Dropped, Notes, encodable
from data_formats.reading import records_of
from data_formats.records import Message, Prompt
from reward.errors import VocabularyError
from reward.judges.functions import FunctionJudge
from reward.judges.protocol import Judge
from reward.judges.rewards import RewardJudge
from reward.loading import vocabulary_problem
from reward.protocol import Reward, require_reward
from reward.sources import FunctionReward

PROMPTS = "a Prompt, a text (the user's turn), a list of turns, or a row like {'prompt': …} or {'messages': […]}"
LOAD_TOKENIZER = "load it: align.load_tokenizer(path)"
LOAD_MODEL = "load it: transformers.AutoModelForCausalLM.from_pretrained(path)"
LOAD_CRITIC = "load or make it: align.Critic.from_pretrained(path), align.Critic.from_causal_lm(policy)"
LOAD_REWARD_MODEL = "load or make it: reward.model.RewardModel.from_pretrained(path), .from_backbone(path)"


def as_prompts(prompts: Any, argument: str) -> list[Prompt]:
    """Prompts, of records, texts and rows as the files have them.

    Raises:
        TypeError: not a list of these.
        DataError: a row in no known format.
    """
    if isinstance(prompts, str | bytes | Mapping | Prompt) or not isinstance(prompts, Iterable):
        raise TypeError(f"{argument}: must be a list, each {PROMPTS}, not {_shown(prompts)}")
    made = [prompt for at, one in enumerate(prompts) for prompt in _as_prompts(one, f"{argument}[{at}]")]
    return with_all_columns(made)


def _as_prompts(one: Any, argument: str) -> Sequence[Prompt]:
    if isinstance(one, Prompt):
        return (one,)
    if isinstance(one, str):
        if not one.strip():
            raise DataError(f"{argument}: empty prompt")
        return (Prompt((Message("user", one),)),)
    if isinstance(one, list) and one and all(isinstance(turn, Mapping) for turn in one):
        one = {"messages": one}
    if not isinstance(one, Mapping):
        raise TypeError(f"{argument}: must be {PROMPTS}, not {_shown(one)}")
    notes = Notes()
    try:
        row = Fields(encodable(dict(one), notes))
        return records_of(row, detect(row, Prompt), notes)
    except (DataError, Dropped) as problem:
        raise DataError(f"{argument}: {problem}") from problem


def as_reward(reward: Any, argument: str) -> Reward:
    """A reward; a function `(prompts, completions, **columns) -> one float a reply` becomes one.

    Raises:
        TypeError: neither.
    """
    if callable(reward) and not isinstance(reward, nn.Module | type) and not hasattr(reward, "score"):
        return FunctionReward(reward)
    return require_reward(reward, argument)


def as_judge(judge: Any, argument: str) -> Judge:
    """A judge; a function `(prompts, first, second, **columns) -> one verdict a pair` becomes one, and so does a
    reward, whose higher score wins.

    Raises:
        TypeError: none of these.
    """
    if isinstance(judge, Judge) and not isinstance(judge, type):
        return judge
    if callable(getattr(judge, "score", None)):
        return RewardJudge(require_reward(judge, argument))
    if callable(judge) and not isinstance(judge, nn.Module | type):
        return FunctionJudge(judge)
    cure = "give an object with `name`, `described` and `compare(pairs)`, a function of both replies, or a reward"
    raise TypeError(f"{argument}: must be a judge, not {_shown(judge)}; {cure}")


def require_module(module: Any, argument: str, cure: str, *, values: bool = False) -> None:
    """Raises TypeError for what is no module; and, where it is to give `values` of tokens, for a language model."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: must be a torch module, not {_shown(module)}; {cure}")
    if values and isinstance(module, PreTrainedModel) and module.can_generate():
        raise TypeError(f"{argument}: a {type(module).__name__} gives logits, no values or scores; {cure}")


def require_roles(policy: Any, critic: Any, reference: Any, advantage: str) -> None:
    """Raises TypeError where PPO's models are none; there may be no reference."""
    require_module(policy, "policy", LOAD_MODEL)
    if ESTIMATORS[advantage].critic:
        require_module(critic, "critic", LOAD_CRITIC, values=True)
    elif critic is not None:
        raise TypeError(f"critic: must be None, since advantage={advantage} learns without one, not {_shown(critic)}")
    if reference is not None:
        require_module(reference, "reference", LOAD_MODEL)


def require_vocabulary(tokenizer: Any, **modules: Any) -> None:
    """Raises VocabularyError where one of these models (by argument) cannot read every token of the tokenizer; whoever
    does not say what embeds its tokens, or which tokens it has, is not asked."""
    for argument, module in modules.items() if hasattr(tokenizer, "get_vocab") else ():
        if hasattr(module, "get_input_embeddings") and (problem := vocabulary_problem(module, tokenizer)):
            raise VocabularyError(f"{argument}: the model {problem}")


def require_tokenizer(tokenizer: Any, argument: str) -> None:
    """Raises TypeError for what is no tokenizer, a path for instance."""
    if not hasattr(tokenizer, "pad_token_id"):
        raise TypeError(f"{argument}: must be a tokenizer, not {_shown(tokenizer)}; {LOAD_TOKENIZER}")


def require_config(config: Any, argument: str) -> None:
    """Raises TypeError for what is no PPOConfig."""
    if not isinstance(config, PPOConfig):
        cure = "write PPOConfig(**config)" if isinstance(config, Mapping) else "of a recipe take recipe.ppo"
        raise TypeError(f"{argument}: must be a PPOConfig, not {_shown(config)}; {cure}")


def require_engine(engine: Any, argument: str) -> None:
    """Raises TypeError for what samples nothing, the name of an engine for instance; there may be none."""
    if engine is not None and not (hasattr(engine, "generate") and hasattr(engine, "update_weights")):
        cure = "the engine is named in the config: PPOConfig(rollout={'engine': …})"
        raise TypeError(f"{argument}: must be a rollouts.protocol.Engine, not {_shown(engine)}; {cure}")


def require_arguments(args: Any, argument: str) -> None:
    """Raises TypeError for what is no TrainingArguments."""
    if not isinstance(args, TrainingArguments):
        raise TypeError(f"{argument}: must be transformers.TrainingArguments, not {_shown(args)}")


def require_encoded(rows: Any, keys: Sequence[str], encoder: str, argument: str) -> None:
    """Raises TypeError where the first row is none that `encoder` makes, with `keys`; a dict holds several sets."""
    if isinstance(rows, dict):
        for name, some in rows.items():
            require_encoded(some, keys, encoder, f"{argument}[{name!r}]")
        return
    if rows is None or not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__") or len(rows) == 0:
        return
    try:
        first = rows[0]
    except (KeyError, TypeError):
        first = rows
    if not isinstance(first, Mapping) or any(key not in first for key in keys):
        needs = " and ".join(f"'{key}'" for key in keys)
        raise TypeError(
            f"{argument}[0]: must be an encoded row with {needs}, not {_shown(first)}; encode records first: "
            f"rows, dropped = {encoder}(tokenizer, records, max_length, 'drop')"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        names = ", ".join(map(repr, list(value)[:6]))
        return f"a row with {names or 'no keys'}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | Path):
        return f"the text {shortened(str(value), 40)!r}"
    return "None" if value is None else f"a {type(value).__name__}"
