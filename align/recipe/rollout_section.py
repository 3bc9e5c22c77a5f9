"""The `rollout` and `evaluation` sections: how replies are sampled, and by which engine."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from align.recipe.section import Count, Listed, Positive, Rate, Section, Url
from align.runtime.address import server_problem
from align.runtime.packages import is_installed, missing_package
from align.runtime.secrets import shown_url


def _variable_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    raise ValueError("must be the name of an environment variable (letters, digits, _) that holds the key")


VariableName = Annotated[str, PlainValidator(_variable_name)]  # what was typed, maybe the key itself, is not shown


Batches = Annotated[Count, BeforeValidator(lambda value: int(value) if isinstance(value, bool) else value)]


class VLLMSection(Section):
    """vLLM, in this process or as a server."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What vLLM computes in; `auto` takes the policy's."""
    memory_share: float = Field(0.3, gt=0, lt=1)
    """Share of the GPU's memory for weights and cache; not read on a CPU."""
    kv_cache_gib: Rate | None = None
    """GiB of the key-value cache; by default what `memory_share` leaves, on a CPU 1."""
    max_model_len: Positive | None = None
    """Tokens of the longest prompt with its longest reply; by default what the lengths of the section come to."""
    prefix_caching: bool = True
    """Prompts with the same beginning share its keys and values."""
    tensor_parallel: Positive = 1
    """GPUs that one engine is spread over."""
    eager: bool = False
    """No CUDA graphs and no compilation; the only way on a CPU."""
    max_num_seqs: Positive = 256
    """Replies generated at once."""
    sleep: bool = True
    """Free the cache while the trainer updates, where the platform can."""
    adapters: Literal["auto", "merge", "adapter"] = "auto"
    """How a LoRA policy is pushed: whole weights with the adapter's change added, the adapter alone (a server adds it
    to the weights it has), or the faster one of the platform."""
    probe_tolerance: Rate | None = None
    """Nats a token that engine and trainer may differ by after a push; by default by precision."""
    urls: Annotated[tuple[Url, ...], Listed] = Field((), repr=False)
    """Servers to use in place of an own one; the work is spread over them. Weights go to each through a folder where it
    sees the trainer's, else over HTTP; `align engine` lets servers join and leave."""
    api_key_env: VariableName = "ALIGN_VLLM_API_KEY"
    """Name of the environment variable that holds the key of those servers, never the key itself."""
    start_timeout: Rate = 600.0
    """Seconds to wait for a server to come up."""
    request_timeout: Rate = 1800.0
    """Seconds to wait for one call to be answered."""
    max_restarts: Count = 3
    """How often an own server that died or hangs is started again in one run."""

    def rules(self) -> list[tuple[str, str]]:
        found = ((at, server_problem(url)) for at, url in enumerate(self.urls))
        broken = [(f"urls.{at}", problem) for at, problem in found if problem]
        twice = [url for url in dict.fromkeys(self.urls) if self.urls.count(url) > 1]
        return broken + [("urls", f"names {shown_url(url)} twice; name each server once") for url in twice]


class RolloutSection(Section):
    """How the policy is sampled."""

    engine: Literal["auto", "hf", "vllm", "vllm_server"] = "auto"
    """What samples; `auto` takes vLLM where it is usable, else HF generate, and says which."""
    vllm: VLLMSection = VLLMSection()
    """Settings of vLLM."""
    num_generations: Positive = 2
    """Replies a prompt."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, in training too."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus that is drawn from."""
    top_k: Count = 0
    """Likeliest tokens that are drawn from; 0 is all."""
    max_prompt_length: Positive = 1024
    """Tokens of the longest prompt."""
    on_overlong_prompt: Literal["drop", "truncate"] = "drop"
    """A longer prompt is left out, or loses as many of its oldest exchanges as it takes (a system turn and the last
    exchange stay whole; left out where these are too long); both are counted."""
    max_completion_length: Positive = 1024
    """Tokens of the longest reply."""
    min_completion_length: Count = 0
    """Tokens before which a reply cannot end."""
    batch_size: Positive = 64
    """Replies that the HF engine has at work at once on a process."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its longest reply."""
        return self.max_prompt_length + self.max_completion_length

    @property
    def truncates(self) -> list[str]:
        """The keys that leave tokens out of what is drawn from."""
        off = {"top_p": 1.0, "top_k": 0, "min_completion_length": 0}
        return [key for key, value in off.items() if getattr(self, key) != value]

    @property
    def sampler(self) -> str:
        """What samples, in words."""
        words = {
            "auto": "vLLM samples where it is usable, else HF generate",
            "hf": "HF generate samples",
            "vllm": "vLLM samples in this process",
            "vllm_server": "a vLLM server samples",
        }
        servers = len(self.vllm.urls)
        named = f"{servers} named vLLM server{'s sample' if servers > 1 else ' samples'}"
        return named if servers else words[self.engine]

    def rules(self) -> list[tuple[str, str]]:
        broken = []
        if self.min_completion_length > self.max_completion_length:
            sentence = f"{self.min_completion_length} is more than max_completion_length ({self.max_completion_length})"
            broken.append(("min_completion_length", sentence))
        room = self.vllm.max_model_len
        if room is not None and room < self.max_length:
            sentence = (
                f"{room} is less than max_prompt_length + max_completion_length ({self.max_length}); raise it, lower "
                "those, or leave it out"
            )
            broken.append(("vllm.max_model_len", sentence))
        if self.vllm.urls and self.engine != "vllm_server":
            sentence = f"names servers, which engine '{self.engine}' does not ask; use engine=vllm_server, or remove it"
            broken.append(("vllm.urls", sentence))
        if self.vllm.tensor_parallel > 1 and self.engine == "vllm":
            sentence = f"{self.vllm.tensor_parallel} needs a server, since vLLM in this process runs on one device"
            broken.append(("vllm.tensor_parallel", f"{sentence}; use engine=vllm_server, or 1"))
        return broken


class PPORolloutSection(RolloutSection):
    """The same while a policy trains."""

    overlap: Batches = 0
    """Batches that the server samples ahead while one is trained on, each with the weights that many updates before
    those it is learnt from with; `true` is 1, `false` 0. 1 hides sampling behind one update, more (one process alone)
    hide a batch with long replies behind several."""
    exact: bool = False
    """Every token is drawn from the logits of the trainer's own pass, so that log-probabilities of engine and trainer
    are equal to the bit; [what it costs](rollouts.md#exact)."""

    @property
    def sampler(self) -> str:
        ahead = "the next batch" if self.overlap == 1 else f"the next {self.overlap} batches"
        said = super().sampler + (f", {ahead} while one is trained on" if self.overlap else "")
        return said + (", and the trainer draws" if self.exact else "")

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.exact and self.engine == "vllm_server":
            sentence = "has the trainer draw every token, which a server cannot ask; use engine=vllm or hf"
            broken.append(("exact", f"{sentence}, or exact=false"))
        return broken


class EvaluationSection(Section):
    """Evaluation on held-out prompts: `num_samples` replies a prompt at temperature 1 and top-p 1, and one greedy."""

    num_samples: Count = 8
    """Replies a prompt at temperature 1 and top-p 1, beside a greedy one."""
    limit: Positive | None = None
    """Held-out prompts at most."""


def engine_problems(key: str, rollout: RolloutSection) -> list[str]:
    """What would keep the engine from being had here and now.

    Args:
        key: of the section (`ppo.rollout`).
    """
    if rollout.engine not in ("vllm", "vllm_server"):
        return []
    if not rollout.vllm.urls:
        if is_installed("vllm"):
            return []
        return [missing_package(f"{key}.engine: '{rollout.engine}'", "vllm") + ", or use engine=hf"]
    variable = rollout.vllm.api_key_env
    if os.environ.get(variable, "").strip():
        return []
    return [f"{key}.vllm.api_key_env: the environment variable {variable} is not set; set it to the servers' key"]
