"""The `rollout` and `evaluation` sections: how replies are sampled, and by which engine."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from align.recipe.section import Count, Listed, Positive, Rate, Section, Url
from align.runtime.address import url_problem
from align.runtime.secrets import shown_url


def _variable_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    raise ValueError("must be the name of an environment variable (letters, digits, _) that holds the key")


VariableName = Annotated[str, PlainValidator(_variable_name)]  # what was typed, maybe the key itself, is not shown


class VLLMSection(Section):
    """vLLM, in this process or as a server; `rollouts.settings.VLLMSettings` says what each key does.

    `max_model_len` is by default what the longest prompt with its longest reply needs. The key of the servers at `urls`
    stands in the environment variable that `api_key_env` names, never in the recipe.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    memory_share: float = Field(0.3, gt=0, lt=1)
    kv_cache_gib: Rate | None = None
    max_model_len: Positive | None = None
    prefix_caching: bool = True
    tensor_parallel: Positive = 1
    eager: bool = False
    max_num_seqs: Positive = 256
    sleep: bool = True
    adapters: Literal["auto", "merge", "adapter"] = "auto"
    probe_tolerance: Rate | None = None
    urls: Annotated[tuple[Url, ...], Listed] = Field((), repr=False)
    api_key_env: VariableName = "ALIGN_VLLM_API_KEY"
    start_timeout: Rate = 600.0
    request_timeout: Rate = 1800.0
    max_restarts: Count = 3

    def rules(self) -> list[tuple[str, str]]:
        found = ((at, None if url.startswith("unix:///") else url_problem(url)) for at, url in enumerate(self.urls))
        tunnel = "use https://, or a tunnel to this machine"
        broken = [(f"urls.{at}", text.replace("use https://, or insecure", tunnel)) for at, text in found if text]
        twice = [url for url in dict.fromkeys(self.urls) if self.urls.count(url) > 1]
        return broken + [("urls", f"names {shown_url(url)} twice; name each server once") for url in twice]


class RolloutSection(Section):
    """How the policy is sampled. `engine: auto` takes vLLM where it is usable, else HF, and says which.

    A prompt of more than `max_prompt_length` tokens is dropped, or with `on_overlong_prompt: truncate` loses as many of
    its oldest exchanges as it takes (a system turn and the last exchange stay whole; dropped where these are too long).
    """

    engine: Literal["auto", "hf", "vllm", "vllm_server"] = "auto"
    vllm: VLLMSection = VLLMSection()
    num_generations: Positive = 2
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: Count = 0
    max_prompt_length: Positive = 1024
    on_overlong_prompt: Literal["drop", "truncate"] = "drop"
    max_completion_length: Positive = 1024
    min_completion_length: Count = 0
    batch_size: Positive = 64

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
        if self.vllm.adapters == "adapter" and self.engine == "vllm_server":
            broken.append(("vllm.adapters", "'adapter' is for vLLM in this process; a server takes merged weights"))
        return broken


class PPORolloutSection(RolloutSection):
    """The same while a policy trains: with `overlap` the server samples the next batch meanwhile, one iteration behind.

    The weights that sample are then those before the update, not those after it (one step off policy).
    """

    overlap: bool = False

    @property
    def sampler(self) -> str:
        return super().sampler + (", the next batch while this one is trained on" if self.overlap else "")


class EvaluationSection(Section):
    """Evaluation on held-out prompts: `num_samples` replies a prompt at temperature 1 and top-p 1, and one greedy."""

    num_samples: Count = 8
    limit: Positive | None = None


def engine_problems(key: str, rollout: RolloutSection) -> list[str]:
    """What would keep the engine from being had here and now.

    Args:
        key: of the section (`ppo.rollout`).
    """
    if rollout.engine not in ("vllm", "vllm_server"):
        return []
    if not rollout.vllm.urls:
        if find_spec("vllm") is not None:
            return []
        how = "pip install 'align-rlhf[vllm]' (make install-vllm in a checkout), or use engine=hf"
        return [f"{key}.engine: '{rollout.engine}' needs vLLM, which is not installed: {how}"]
    variable = rollout.vllm.api_key_env
    if os.environ.get(variable, "").strip():
        return []
    return [f"{key}.vllm.api_key_env: the environment variable {variable} is not set; set it to the servers' key"]
