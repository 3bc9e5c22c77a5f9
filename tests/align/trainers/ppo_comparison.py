"""`PPOTrainer` beside the independent PPO: the real loop runs on given samples and notes what it did, then every
iteration is done again by the reference, from the weights that the trainer had, and the largest differences are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from align.trainers import sharding
from align.trainers.ppo.types import Experience, Samples
from tests.align.trainers import estimator_reference, ppo_case, ppo_reference
from tests.align.trainers import ppo_reference_losses as losses
from tests.align.trainers.estimator_reference import Settings
from tests.align.trainers.ppo_reference import Reply, Sampled, State

LENGTHS = (5, 1, 7, 3, 2, 6, 4, 7)  # the second is empty: its end token alone
FINISHED = (True, True, False, True, True, True, False, True)
BLOCKS = [[3, 8, 200, 17, 4], [9, 256, 11], [40, 41, 42, 43, 44, 45, 46], [5, 6]]
TEMPERATURE = 0.7
Weights = dict[str, list[Tensor]]
Errors = dict[str, float]
EXPERIENCE = {
    "old_ratio": "old_logps_NS",
    "ref": "ref_logps_NS",
    "old_values": "old_values_NS",
    "rewards": "rewards_NS",
    "advantages": "advantages_NS",
    "returns": "returns_NS",
}


@dataclass
class Step:
    """One optimizer step: the weights before it, the gradients before clipping, the ptx blocks."""

    before: Weights
    gradients: Weights
    blocks: list[list[int]]


@dataclass
class Iteration:
    """What the trainer did in one iteration; `rows` has the global rows of every planned minibatch."""

    samples: Samples
    experience: Experience
    start: Weights
    end: Weights = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Witness(ppo_case.PPOTrainer):
    """Learns from given samples (one set an iteration) and notes everything that the reference needs."""

    given: list[Samples]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        ppo_case.before_each_step(self.learner, self._note)

    def collect(self, prompts, params=None):
        self.whole = as_an_engine_tells(self.given[self.state.global_step], self.policy.raw, self.state.global_step)
        return self.whole if self.world_size == 1 else ppo_case.share(self.whole, self.rank, self.world_size)

    def step(self):
        metrics = super().step()
        self.iterations[-1].metrics = metrics
        return metrics

    def update(self, experience):
        self.blocks: list[list[int]] = []
        made = Iteration(self.whole, experience, self._weights())
        self.iterations = [*getattr(self, "iterations", []), made]
        self.updating = True
        figures = super().update(experience)
        self.updating = False
        made.end = self._weights()
        self.averaged = None if self.ema is None else _whole(self.ema.module.parameters())
        return figures

    def minibatches(self, tokens, epoch):
        plan = super().minibatches(tokens, epoch)
        if getattr(self, "updating", False):
            self.iterations[-1].rows += [rows.tolist() for rows, _ in plan]
        return plan

    def _weights(self) -> Weights:
        models = {"policy": self.policy, "value": self.critic}
        return {name: _whole(model.parameters) for name, model in models.items() if model is not None}

    def _note(self, trained):
        gradients = {name: _whole(model.gradients()) for name, model in trained.items()}
        self.iterations[-1].steps.append(Step(self._weights(), gradients, self.blocks))
        self.blocks = []


def _whole(tensors) -> list[Tensor]:
    return [sharding.full(tensor.detach()).clone() for tensor in tensors]


def policy(seed: int):
    """One layer, float64."""
    return ppo_case.exact(ppo_case.policy(seed, num_hidden_layers=1))


def trainer(folder, **options) -> Witness:
    """Float64 throughout, with ragged samples for every iteration."""
    with_ptx = bool(options.get("ptx_coef"))
    made = ppo_case.trainer(
        folder,
        kind=Witness,
        policy_model=policy(0),
        reference=policy(5),
        critic_model=ppo_case.ExactCritic(1, num_hidden_layers=1),
        reward=ppo_case.length_score,
        rollout={"temperature": TEMPERATURE} | options.pop("rollout", {}),
        **({"ptx_ratio": 1, "ptx_micro_batch_size": 2, "ptx_blocks": BLOCKS} if with_ptx else {}),
        **options,
    )
    made.given = [ppo_case.samples(LENGTHS, finished=FINISHED, seed=seed, to_a_prompt=2) for seed in range(3)]
    if with_ptx:
        draw = made.ptx.sampler.next

        def noted():
            chosen = draw()
            made.blocks = [BLOCKS[index] for index in chosen]
            return chosen

        made.ptx.sampler.next = noted
    return made


def as_an_engine_tells(samples: Samples, policy, seed: int) -> Samples:
    """With log-probabilities that differ from the policy's as an engine's do (only more), and supports."""
    generator = torch.Generator().manual_seed(seed)
    logps, supports, kept = [], [], []
    for prompt, reply in zip(samples.prompt_ids, samples.reply_ids, strict=True):
        with torch.no_grad():
            exact = ppo_reference.logps_of(policy, prompt, reply, TEMPERATURE)
        noise = 0.3 * torch.randn(len(reply), generator=generator, dtype=torch.float64)
        logps.append(tuple((exact + noise).float().tolist()))  # engines give float32
        drawn = [torch.rand(259, generator=generator) < 0.4 for _ in reply]
        supports.append(
            tuple(
                tuple(sorted({token, *chosen.nonzero().flatten().tolist()}))
                for token, chosen in zip(reply, drawn, strict=True)
            )
        )
        kept.append((0.9,) * len(reply))
    told = {"engine_logps": tuple(logps), "kept_mass": tuple(kept), "supports": tuple(supports)}
    return replace(samples, **{name: told[name] for name in told if name in {f.name for f in fields(Samples)}})


def settings_of(trainer: Witness) -> Settings:
    """The recipe's keys as the reference takes them."""
    names = {one.name for one in fields(Settings)} - {"temperature", "num_generations"}
    config = trainer.config
    known = {name: getattr(config, name) for name in names if hasattr(config, name)}
    rollout = config.rollout
    return Settings(**known, temperature=rollout.temperature, num_generations=rollout.num_generations)


class Comparison:
    """Does the trainer's iterations again; `errors` has the largest difference of each kind, relative to its size."""

    def __init__(self, trainer: Witness, settings: Settings | None = None):
        self.trainer, self.settings = trainer, settings or settings_of(trainer)
        self.policy, self.critic = policy(9), ppo_case.ExactCritic(9, num_hidden_layers=1)
        self.reference = policy(5)
        self.auto = trainer.config.ptx_coef == "auto"
        self.state = State(self.settings.kl_coef, 0.1 if self.auto else trainer.config.ptx_coef)
        self.optimizer_steps, self.left_out = 0, 0
        self.errors: Errors = {}
        self.average = trainer.iterations[0].start["policy"]
        for iteration in trainer.iterations:
            self._iteration(iteration)
        if trainer.ema is not None:
            self._keep("average", losses.relative_error(trainer.averaged, self.average))

    @property
    def wrong(self) -> Errors:
        """What disagrees by more than float64's rounding can explain."""
        limits = {"ptx/coef": 1e-6}  # logged in float32
        return {name: error for name, error in self.errors.items() if not error < limits.get(name, 1e-9)}

    def note(self, name: str, found, expected, made_of: Sequence[float] = ()) -> None:
        """Keep the larger error of `name`; numbers, or lists of numbers of which the largest sets the size, the terms
        they are a sum of (`made_of`) included."""
        found, expected = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (found, expected))
        sizes = [float(expected.abs().max()), *map(abs, made_of), 1e-12]
        size = 1.0 if name == "policy/loss" else max(sizes)  # whitened, it adds up to 0
        error = float((found - expected).abs().max()) / size
        self._keep(name, error)

    def _keep(self, name: str, error: float) -> None:
        self.errors[name] = max(self.errors.get(name, 0.0), math.inf if math.isnan(error) else error)

    def _load(self, weights: Weights) -> None:
        for name, tensors in weights.items():
            model = {"policy": self.policy, "value": self.critic}[name]
            for parameter, value in zip(model.parameters(), tensors, strict=True):
                parameter.data.copy_(value)

    def _iteration(self, done: Iteration) -> None:
        self._load(done.start)
        given = sampled(done.samples)
        made, spread = self._experience(given)
        self._compare_experience(done, made)
        expected = ppo_reference.figures_of(self.policy, made, self.settings, spread)
        expected["kl_coef"] = self.state.kl_coef
        notes: dict[str, list] = {}
        ptx_ratio = None
        for index, rows in enumerate(done.rows):
            step = done.steps[index] if index < len(done.steps) else None
            self._load(step.before if step else done.end)
            minibatch = [made[row] for row in rows]
            gradients, ratio = self._gradients(minibatch, step.blocks if step else (), notes)
            if self._stops(minibatch):
                self.left_out += len(done.rows) - index
                assert step is None, "the trainer took a step that target_kl forbids"
                break
            assert step is not None, "the trainer left out a step"
            self._compare_step(step, gradients)
            if "policy" in gradients:
                after = done.steps[index + 1].before if index + 1 < len(done.steps) else done.end
                self._follow(after["policy"])
            if ptx_ratio is None and ratio is not None:
                ptx_ratio = ratio
                expected |= {"ptx/coef": self.state.ptx_coef, "ptx/grad_norm_ratio": ratio}
                if self.auto:
                    self.state.ptx_coef = ppo_reference.next_ptx_coef(self.state.ptx_coef, ratio, self.settings)
        expected |= losses.figures_of(notes)
        for name in expected.keys() & done.metrics.keys():
            self.note(name, done.metrics[name], expected[name])
        kl = sum(ppo_reference.reply_kl(reply) for reply in made) / len(made)
        if any("policy" in step.gradients for step in done.steps):
            self.state.kl_coef = ppo_reference.next_kl_coef(self.state.kl_coef, kl, len(made), self.settings)

    def _experience(self, given: list[Sampled]) -> tuple[list[Reply], float]:
        if self.settings.advantage != "gae":
            return estimator_reference.experience(self.policy, self.reference, given, self.state, self.settings)
        return ppo_reference.experience(self.policy, self.critic, self.reference, given, self.state, self.settings)

    @property
    def _warming_up(self) -> bool:
        return self.optimizer_steps < self.trainer.config.critic_warmup_steps

    def _stops(self, minibatch: list[Reply]) -> bool:
        limit = self.settings.target_kl
        return limit is not None and losses.approximate_kl(self.policy, minibatch, self.settings) > limit

    def _gradients(self, minibatch: list[Reply], blocks, notes) -> tuple[Weights, float | None]:
        """Of one optimizer step, and the ratio of the norms of the ptx and the PPO gradient where there are both."""
        found = {}
        if self.settings.advantage == "gae":
            found["value"] = losses.critic_gradient(self.critic, minibatch, self.settings, notes)
        if self._warming_up:
            return found, None
        coefs = {"kl_coef": self.state.kl_coef, "ptx_coef": self.state.ptx_coef}
        ppo, ptx = losses.policy_gradient(self.policy, minibatch, self.settings, blocks, **coefs, notes=notes)
        found["policy"] = [a + b for a, b in zip(ppo, ptx, strict=True)]
        return found, losses.norm(ptx) / losses.norm(ppo) if blocks and losses.norm(ppo) else None

    def _follow(self, policy: list[Tensor]) -> None:
        """The average takes in the weights after a step of the policy."""
        decay = self.trainer.config.ema_decay
        if decay is not None:
            self.average = [decay * a + (1 - decay) * p for a, p in zip(self.average, policy, strict=True)]

    def _compare_step(self, step: Step, expected: Weights) -> None:
        assert step.gradients.keys() == expected.keys(), "another model was trained"
        for name, tensors in expected.items():
            self._keep(f"{name} gradient", losses.relative_error(step.gradients[name], tensors))
        self.optimizer_steps += 1

    def _compare_experience(self, done: Iteration, made: list[Reply]) -> None:
        found = done.experience
        for row, reply in enumerate(made):
            if not reply.counts:
                continue
            first, size = len(reply.prompt) - 1, len(reply.reply)
            assert found.mask_NS[row].nonzero().flatten().tolist() == list(range(first, first + size))
            self.note("normalised score", found.normalized_N[row], reply.normalized)
            for name, field_name in EXPERIENCE.items():
                tensor = getattr(found, field_name)
                if tensor is not None:  # of a critic that is not there
                    # a return is advantage + value: with lambda 1 the values cancel, of a score that is the mean to 0
                    terms = reply.old_values if name == "returns" else ()
                    self.note(name.replace("_", " "), tensor[row, first : first + size], getattr(reply, name), terms)


def sampled(samples: Samples) -> list[Sampled]:
    """The same replies for the reference, scored."""
    scores = ppo_case.length_score(None, samples.replies)
    count = len(samples)
    engine = getattr(samples, "engine_logps", None) or [None] * count
    supports = getattr(samples, "supports", None) or [None] * count
    rows = zip(samples.prompt_ids, samples.reply_ids, samples.finished, scores, engine, supports, strict=True)
    return [Sampled(*row) for row in rows]
