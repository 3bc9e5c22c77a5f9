"""PPO whose next batch is sampled meanwhile by an engine with weights of its own: HF generate on a copy of the policy.

That engine is a real one, so the whole of overlap runs on a CPU without vLLM; a recipe asks for a server.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from align.data.prompts import PromptSampler
from align.runs.seeding import derive
from align.trainers.ppo import PPOTrainer
from rollouts.hf import HFEngine
from rollouts.probe import drawing_params
from rollouts.protocol import Completion, SamplingParams
from rollouts.settings import VLLMSettings
from tests.align.trainers import ppo_case

BATCH, PROMPTS = 4, 7
ROLLOUT = {"engine": "vllm_server", "overlap": True, "temperature": 0.8, "top_p": 1.0}
VOLATILE = ("time", "seconds/", "tokens_per_second", "memory/", "engine/probe_max")


class OwnWeights(HFEngine):
    """Refuses to be used by two at once, and notes how it was asked, and whether by the main thread."""

    def __init__(self, model: nn.Module):
        super().__init__(copy.deepcopy(model), pad_token_id=0, shares_module=False)
        self._busy, self.threads, self.asked = threading.Lock(), [], []

    @contextmanager
    def alone(self) -> Iterator[None]:
        assert self._busy.acquire(blocking=False), "used while it samples"
        try:
            yield
        finally:
            self._busy.release()

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        with self.alone():
            if params != drawing_params():  # the probe after a push
                self.threads.append(threading.current_thread() is threading.main_thread())
                self.asked.append(params)
            return super().generate(prompts, params)

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        with self.alone():
            super().update_weights(named_tensors, version)


class Behind(HFEngine):
    """Takes every push when the next `steps` have come: what overlap comes to, without any. The probe must bear with
    it."""

    steps = 1

    settings = VLLMSettings(max_model_len=512, probe_tolerance=1e9)

    def __init__(self, model: nn.Module):
        super().__init__(copy.deepcopy(model), pad_token_id=0, shares_module=False)
        self._pushed: list[tuple[list[tuple[str, Tensor]], int]] = []

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._pushed.append(([(name, tensor.clone()) for name, tensor in named_tensors], version))
        super().update_weights(*self._pushed[max(0, len(self._pushed) - 1 - self.steps)])


class TwoBehind(Behind):
    steps = 2


class Watched(PPOTrainer):
    """Notes what every iteration collected, and the policy it began with."""

    def step(self):
        self.__dict__.setdefault("weights", {})[self.state.global_step] = copy.deepcopy(self.policy.raw)
        return super().step()

    def collect(self, prompts, params=None):
        samples = super().collect(prompts, params)
        if params is None:
            self.__dict__.setdefault("collected", {})[self.state.global_step] = samples
        return samples


def noisy(prompts, completions):
    """A reward that draws from the global generator: its state must be right too."""
    noise = torch.rand(len(completions)).tolist()
    return [len(text) + value for text, value in zip(completions, noise, strict=True)]


def make(folder: Path, engine: type[HFEngine] = OwnWeights, **options) -> Watched:
    torch.manual_seed(11)
    policy = options.pop("policy_model", None) or ppo_case.policy()
    rollout = ROLLOUT | options.pop("rollout", {})
    return ppo_case.trainer(
        folder,
        policy_model=policy,
        engine=options.pop("made_engine", None) or engine(policy),
        rollout=rollout,
        **{
            "kind": Watched,
            "importance_sampling_correction": "token",
            "num_iterations": 5,
            "save_steps": 1,
            "save_total_limit": 10,
            "num_prompts": PROMPTS,
            "reward": noisy,
        }
        | options,
    )


def batches(trainer: PPOTrainer, count: int) -> list[list]:
    """The prompts of each iteration, as the seed orders them."""
    sampler = PromptSampler(len(trainer.prompts), BATCH, derive(trainer.seed, "prompts"))
    return [[trainer.prompts[index] for index in sampler.next()] for _ in range(count)]


def metrics(trainer: PPOTrainer) -> list[dict[str, float]]:
    """What was logged, but for times and what was measured of the engine itself."""
    return [{k: v for k, v in line.items() if not k.startswith(VOLATILE)} for line in trainer.state.log_history]


def weights(trainer: PPOTrainer) -> list[Tensor]:
    return [p.detach().clone() for model in (trainer.policy, trainer.critic) for p in model.parameters]


def assert_same(found: PPOTrainer, expected: PPOTrainer) -> None:
    """Equal to the last bit: policy, critic, and every figure but times."""
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))
    assert metrics(found) == metrics(expected)
