"""What programs outside this repository build on: the names, parameters and return types of the public methods.

The lists are written by hand and are promises. A change of one says so in CHANGELOG.md, with what to write instead.
`test_seams_replaced.py` proves that what a subclass replaces is what `train()` runs.
"""

import dataclasses

import pytest

import align
from align import PPOConfig, PPOTrainer, RewardTrainer, SFTTrainer
from align.trainers.ppo.types import Experience, Samples, Scores, TokenBatch
from reward.protocol import Reward, Sample
from rollouts.protocol import Completion, Engine, SamplingParams
from tests.align.trainers.seams import changes, public_methods, signature

ALIGN = {"PPOConfig", "PPOTrainer", "RewardTrainer", "SFTTrainer", "load_recipe"}
ALIGN |= {"Critic", "FunctionReward", "Prompt", "load_tokenizer"}  # what the trainers are given

PPO = {
    "__init__": "(self, policy: nn.Module, critic: nn.Module | None, reward: Reward, tokenizer: Any, "
    "config: PPOConfig, prompts: Sequence[Prompt], *, output_dir: str | Path, reference: nn.Module | None = None, "
    "engine: Engine | None = None, ptx_blocks: Sequence[Sequence[int]] = (), "
    "warmup: WarmupRollouts | None = None, eval_prompts: Sequence[Prompt] = (), "
    "gold: Reward | None = None, judge: Judge | None = None, callbacks: Sequence[TrainerCallback] = (), "
    "accelerator: Accelerator | None = None, seed: int = 0)",
    "train": "(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainerState",
    "step": "(self) -> dict[str, float]",
    "sampling_params": "(self) -> SamplingParams",
    "collect": "(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> Samples",
    "score": "(self, samples: Samples) -> Scores",
    "make_experience": "(self, samples: Samples, scores_N: Tensor) -> tuple[Experience, dict[str, float]]",
    "penalize_scores": "(self, scores_N: Tensor, finished_N: Tensor, lengths_N: Tensor) -> Tensor",
    "normalize_scores": "(self, scores_N: Tensor, counts_N: Tensor | None = None) -> Tensor",
    "shape_rewards": "(self, normalized_N: Tensor, kl_NS: Tensor, mask_NS: Tensor) -> Tensor",
    "compute_advantages": "(self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor) "
    "-> tuple[Tensor, Tensor | None, float]",
    "update": "(self, experience: Experience) -> dict[str, float]",
    "minibatches": "(self, tokens: TokenBatch, epoch: int) -> list[tuple[Tensor, list[Tensor]]]",
    "warming_up": "property -> bool",
    "policy_loss": "(self, logps_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]",
    "value_loss": "(self, values_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]",
    "ptx_loss": "(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor",
    "evaluate": "(self, prompts: Sequence[Prompt] | None = None, num_samples: int = 1) -> dict[str, float]",
    "look": "(self) -> None",
    "log": "(self, metrics: dict[str, float]) -> None",
    "add_callback": "(self, callback: TrainerCallback | type[TrainerCallback]) -> None",
    "save_model": "(self, folder: str | Path) -> None",
    "save_critic": "(self, folder: str | Path) -> None",
    "save_ema": "(self, folder: str | Path) -> None",
    "save_checkpoint": "(self) -> Path",
    "load_checkpoint": "(self, folder: Path) -> None",
    "checkpoint_dir": "property -> Path",
    "optimizer_steps": "property -> int",
    "policy_version": "property -> int",
    "together": "(self, work: Callable[[], Result]) -> Result",
}

SUPERVISED = {  # of both trainers, beside what `transformers.Trainer` promises
    "mixed_order": "property -> MixedOrder",
    "create_accelerator_and_postprocess": "(self) -> None",
    "evaluation_loop": "(self, *args: Any, **kwargs: Any) -> EvalLoopOutput",
    "sharded": "(self) -> Iterator[None]",
    "gathered_weights": "(self) -> dict[str, Tensor] | None",
    "train": "(self, *args: Any, **kwargs: Any) -> TrainOutput",
    "row_length": "(self, row: dict) -> int",
    "get_train_dataloader": "(self) -> DataLoader",
    "create_optimizer": "(self, model: nn.Module | None = None) -> torch.optim.Optimizer",
    "mean_over_step": "(self, loss_sum: Tensor, local_items: int | Tensor, num_items_in_batch: Tensor | int | None) "
    "-> Tensor",
    "compute_loss": "(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, "
    "num_items_in_batch: Tensor | int | None = None) -> Tensor | tuple[Tensor, Any]",
    "prediction_step": "(self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, "
    "ignore_keys: Any = None) -> tuple[None, Tensor, Tensor]",
    "default_metrics": "(prediction: EvalPrediction) -> dict[str, float]",
    "floating_point_ops": "(self, inputs: dict[str, Any]) -> int",
    "checkpoint_dir": "property -> Path",
    "planned_steps": "(self) -> int",
    "load_finished": "(self, folder: Path) -> None",
}

SFT = SUPERVISED | {
    "__init__": "(self, model: nn.Module, args: Any, *, loss_reduction: Reduction = token_mean, "
    "packing: bool = False, max_length: int | None = None, group_by_length: bool = False, max_z_coef: float = 0.0, "
    "**kwargs: Any)",
    "token_weights": "(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]",
    "count_items": "(self, inputs: dict[str, Tensor]) -> Tensor",
    "log": "(self, logs: dict[str, float], start_time: float | None = None) -> None",
}

REWARD = SUPERVISED | {
    "__init__": "(self, model: nn.Module, args: Any, **kwargs: Any)",
    "pair_scores": "(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]",
    "compute_pair_losses": "(self, chosen_B: Tensor, rejected_B: Tensor, inputs: dict[str, Tensor]) -> Tensor",
    "note_margins": "(self, chosen_B: Tensor, rejected_B: Tensor) -> None",
    "count_items": "(self, inputs: dict[str, Tensor]) -> int",
    "log": "(self, logs: dict[str, float], start_time: float | None = None) -> None",
}

PROTOCOLS = {
    Engine: {
        "shares_module": "bool",
        "generate": "(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]",
        "update_weights": "(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None",
        "sleep": "(self) -> None",
        "wake": "(self) -> None",
        "close": "(self) -> None",
    },
    Reward: {"name": "str", "score": "(self, samples: Sequence[Sample]) -> list[float]"},
}

FIELDS = {  # what seams are given and give; more may come at the end
    Samples: "prompts prompt_ids reply_ids replies finished engine_logps kept_mass supports weight_versions",
    Scores: "total_N parts",
    TokenBatch: "input_ids_NT prompt_lengths_N lengths_N",
    Experience: "tokens mask_NS scores_N normalized_N old_logps_NS ref_logps_NS old_values_NS rewards_NS "
    "advantages_NS returns_NS full_logps_NS sampler_logps_NS importance_NS weights_NS support",
    SamplingParams: "n temperature top_p top_k max_new_tokens min_new_tokens stop_token_ids seed return_support first",
    Completion: "token_ids logprobs finish_reason weight_version kept_mass support full_logprobs",
    Sample: "prompt completion prompt_ids completion_ids finished columns",
}

CONFIG = """rollout policy critic evaluation guards num_iterations rollout_batch_size num_ppo_epochs num_mini_batches
micro_batch_size critic_warmup_steps policy_support importance_sampling_correction importance_sampling_cap
kl_coef kl_estimator kl_in kl_target kl_horizon missing_eos_penalty
mask_truncated_completions length_penalty length_penalty_free normalize_reward reward_clip_range gamma lam critic_lam
whiten_advantages loss_aggregation cliprange dual_clip entropy_coef target_kl cliprange_value
vf_coef ptx_coef ptx_grad_norm_ratio ptx_max_z_coef ptx_ratio ptx_max_length ptx_micro_batch_size ema_decay
logging_steps save_steps save_total_limit log_samples offload"""


def keeps(owner: str, promised: dict[str, str], found: dict[str, str]) -> None:
    problems = changes(owner, promised, found)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(("kind", "promised"), [(PPOTrainer, PPO), (SFTTrainer, SFT), (RewardTrainer, REWARD)])
def test_the_public_methods_of_the_trainers_are_as_promised(kind, promised):
    keeps(kind.__name__, promised, {"__init__": signature(kind.__init__), **public_methods(kind)})


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_the_protocols_are_as_promised(kind):
    keeps(kind.__name__, PROTOCOLS[kind], {**kind.__annotations__, **public_methods(kind)})


@pytest.mark.parametrize("kind", FIELDS)
def test_the_fields_of_what_seams_exchange_are_as_promised(kind):
    promised = FIELDS[kind].split()
    found = [field.name for field in dataclasses.fields(kind)][: len(promised)]
    places = [{name: f"field {place}" for place, name in enumerate(names)} for names in (promised, found)]
    keeps(kind.__name__, *places)


def test_the_package_and_the_configuration_keep_their_names():
    assert set(align.__all__) == ALIGN
    promised, found = dict.fromkeys(CONFIG.split(), "a key"), dict.fromkeys(PPOConfig.model_fields, "a key")
    keeps("PPOConfig", promised, {name: found[name] for name in promised if name in found})  # more may come


def test_a_changed_seam_is_told_in_words():
    class Now:
        def kept(self) -> int: ...
        def moved(self, a: int, b: int = 3) -> int: ...
        def added(self) -> None: ...
        def _private(self) -> None: ...

    Now.__module__ = "align.somewhere"
    was = {"kept": "(self) -> int", "moved": "(self, a: int) -> int", "dropped": "(self) -> int"}
    moved, dropped, added = changes("Now", was, public_methods(Now))
    assert moved.startswith("Now.moved was (self, a: int) -> int and is (self, a: int, b: int = 3) -> int; ")
    assert dropped.startswith("Now.dropped is gone; ") and "CHANGELOG.md" in moved and "CHANGELOG.md" in dropped
    assert added.startswith("Now.added is new and public, (self) -> None; add it to the list")
