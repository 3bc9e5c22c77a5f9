"""The `collect` section: which models reply to which prompts, for people and judges to compare (`align collect`).

It is no stage: nothing is trained, and a chain without `rounds` does not run it. Llama 2 and 3 take the replies to a
prompt from different models and temperatures, Qwen (3.2.1) from models of several sizes and several ways of sampling,
since diverse replies are easier to tell apart.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.recipe.fields import Source
from align.recipe.section import LocalPath, Positive, Section

NEWEST, BEFORE = "newest", "before"  # of rounds: the policy that a round starts from, and that of the round before


class ReplySourceSection(Section):
    """One of those who reply: a model and how it is sampled."""

    model: LocalPath = Field(min_length=1)
    """A stage of this recipe, a run (its newest policy), a folder with a model, an adapter or a checkpoint, or a hub
    id. With `rounds` also `newest`, the policy that a round starts from, and `before`, that of the round before."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that is drawn from."""

    @property
    def described(self) -> str:
        """The source in a sentence."""
        nucleus = "" if self.top_p == 1 else f", top-p {self.top_p:g}"
        return f"{self.model} (temperature {self.temperature:g}{nucleus})"


class CollectSection(Section):
    """Replies to be compared by people or judges: `align collect` writes them, a row a prompt, the sources hidden in a
    shuffled order."""

    data: tuple[Source, ...] = Field(min_length=1)
    """Prompts. `tags` of a row (a list of texts, as InsTag gives them), else its category, say what they are about."""
    sources: tuple[ReplySourceSection, ...] = Field(min_length=1)
    """Who replies. A prompt gets its replies from as many of them as it can, drawn anew for each prompt."""
    num_prompts: Positive | None = None
    """Prompts that are drawn of `data`, complex ones first and every tag often; without it all."""
    num_replies: int = Field(4, ge=2)
    """Replies a prompt; of near-identical ones one is kept, so there may be fewer."""
    max_prompt_length: Positive = 1024
    """Tokens of the longest prompt, by the tokenizer of each source; longer ones are left out."""
    max_completion_length: Positive = 1024
    """Tokens of the longest reply."""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """What samples; `auto` takes vLLM on a GPU where it is installed, else transformers."""

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        twice = [at for at, one in enumerate(self.sources) if one in self.sources[:at]]
        broken += [(f"sources.{at}", "is there twice; remove it, or sample it in another way") for at in twice]
        if all(one.temperature == 0 for one in self.sources) and len({one.model for one in self.sources}) == 1:
            sentence = "a single model at temperature 0 says the same again; raise the temperature, or name another one"
            broken.append(("sources", sentence))
        return broken

    def described(self) -> str:
        """What it comes to, in words."""
        prompts = "every prompt" if self.num_prompts is None else f"each of {self.num_prompts} prompts"
        sources = ", ".join(one.described for one in self.sources)
        return f"{self.num_replies} replies to {prompts}, by {sources}"
