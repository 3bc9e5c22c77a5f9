"""What the trainers of SFT, rewards and DPO share: exact loss scaling, our batches, atomic checkpoints.

Loss scale. One optimizer step minimises (sum of the items' losses over all ranks and micro-batches) / (their global
count): items are tokens with loss for SFT (or turns, or conversations: its `loss_reduction`), pairs for the reward
model and DPO. `transformers.Trainer` counts items before the step (`_get_num_items_in_batch`), and DDP averages
gradients over ranks; so a micro-batch of one of W ranks contributes `W * local_sum / global_count`, and
`model_accepts_loss_kwargs` keeps the trainer from dividing again.

Departures from `transformers.Trainer`: batches come from `StepSampler`; checkpoints are written under a temporary name
and renamed (`checkpoints/step-N` with a manifest); `training_args.bin` (a pickle) is not written; floating point
operations are not counted, which costs more than a small model's step.

FSDP2. A checkpoint holds what one process would have written, whole weights and whole optimizer state, and any number
of ranks goes on from it, sharded or not (`Trainer` keeps shards, or files that FSDP alone reads). The model is sharded
before the first evaluation, with its optimizer, since accelerate shards no model without one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, align_special_tokens
from transformers.training_args import OptimizerNames

from align.data.mixture import MixedOrder
from align.models.save import save_model
from align.recipe.mixture_section import MixtureSection
from align.runs import checkpoint
from align.runs.callbacks import ProofCallback
from align.runs.errors import CheckpointError
from align.runs.launcher import asked
from align.runs.proof import reset_process_state
from align.runs.seeding import derive, seed_everything
from align.runtime.files import write_json
from align.runtime.peft_model import is_peft
from align.runtime.ranks import any_rank
from align.trainers import accepted, sharding
from align.trainers.optimization import check_precision, require_whole, take_rates, with_own_exceptions
from align.trainers.sampling import EpochOrder, MixedSampler, StepSampler
from align.trainers.supervised_state import FIGURES_FILE, LastStep, Sums
from align.trainers.trained_data import DATA_FILE, Data
from reward.adapter import load_weights


class SupervisedTrainer(Trainer):
    """Base of `SFTTrainer`, `RewardTrainer` and `DPOTrainer`; a subclass says how long a row is, what an item is
    and its loss.

    Args:
        model, args and further keywords: as for `transformers.Trainer`.
        processing_class: the tokenizer; its pad id pads batches unless a `data_collator` is given.
        mixture: what every step takes of each part of the rows, which then know theirs (`part`).
    """

    group_by_length = False  # steps of rows of like length, see StepSampler
    encoded: ClassVar[tuple[tuple[str, ...], str]]  # keys of a row, and the function that makes such rows
    default_collator: ClassVar[Callable[[int], Callable[[list], dict[str, Tensor]]]]
    default_metrics: ClassVar[Callable[[EvalPrediction], dict[str, float]]]

    def __init__(self, model: nn.Module, args: Any, *, mixture: MixtureSection | None = None, **kwargs: Any):
        accepted.require_arguments(args, "args")
        own = type(self).default_collator
        if kwargs.get("data_collator") is None:
            accepted.require_tokenizer(kwargs.get("processing_class"), "processing_class")
            kwargs["data_collator"] = own(kwargs["processing_class"].pad_token_id)
        if isinstance(own, type) and isinstance(kwargs["data_collator"], own):
            for argument in ("train_dataset", "eval_dataset"):
                accepted.require_encoded(kwargs.get(argument), *self.encoded, argument)
        if kwargs.get("processing_class") is not None:
            accepted.require_vocabulary(kwargs["processing_class"], model=model)
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = type(self).default_metrics
        args.remove_unused_columns = False  # rows carry what our collators need, not what `forward` is called with
        super().__init__(model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = True  # read by Trainer.training_step
        self._tr_loss, self._total_loss_scalar, self._globalstep_last_logged = torch.zeros(()), 0.0, 0
        self.mixture, self._order = mixture, None
        self.data, self._sums = Data(self), Sums(self)
        self.add_callback(self._sums)
        self.add_callback(EpochOrder())
        self._proof = ProofCallback()
        self.add_callback(self._proof)
        self._last_step = LastStep(self, self._proof)

    def row_length(self, row: dict) -> int:
        """Tokens of a row of the training set."""
        raise NotImplementedError

    def count_items(self, inputs: dict[str, Tensor]) -> int | Tensor:
        """Items with loss in a collated batch (tokens or pairs; where a loss has terms of both kinds, a vector)."""
        raise NotImplementedError

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, which keeps what it has trained when it fails (`align.trainers.supervised_state`), proves
        that it trains, and is mended in three places.

        An evaluation before training marks the model as prepared, and accelerate 1.15 then leaves DDP out: every rank
        would train by itself. And the pad id that `Trainer` copies from the tokenizer into the model's config (with a
        warning) is taken out again: it would freeze that token's embedding in later training. A resumed run logs what
        a whole one would (`align.trainers.supervised_state`).

        Raises:
            CheckpointError: the checkpoint to resume from was trained on other rows.
        """
        if self.model_wrapped is self.model and getattr(self.model, "_is_accelerate_prepared", False):
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model._is_accelerate_prepared = False
        reset_process_state()
        self.remove_callback(LastStep)
        self.add_callback(self._last_step)  # after those that read the log as it was saved
        check_precision(self.model, self.args.learning_rate, type(self).__name__)
        with self._last_step.kept():
            return self._train(*args, **kwargs)

    def _train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        config = getattr(self.model, "config", None)
        if config is None or self.processing_class is None:
            return super().train(*args, **kwargs)
        config, logger = config.get_text_config(), logging.getLogger(align_special_tokens.__module__)
        pad, level = getattr(config, "pad_token_id", None), logger.level
        logger.setLevel(logging.ERROR)
        align_special_tokens(self.model, self.processing_class)
        logger.setLevel(level)
        try:
            return super().train(*args, **kwargs)
        finally:
            config.pad_token_id = pad

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.control.should_training_stop = any_rank(self.control.should_training_stop)  # clocks differ

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._last_step.evaluation():
            return super()._evaluate(*args, **kwargs)

    # -- FSDP2

    def create_accelerator_and_postprocess(self) -> None:
        """As of `Trainer`; CPU ranks shard too.

        Raises:
            LaunchError: FSDP1.
        """
        sharding.require_fsdp2()
        super().create_accelerator_and_postprocess()
        if asked("ACCELERATE_USE_FSDP") and not self.is_fsdp_enabled:
            sharding.also_on_cpu(self.accelerator, sharding.fsdp_plugin(self.accelerator.mixed_precision))
            self.is_fsdp_enabled = self.accelerator.is_fsdp2

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As of `Trainer`, which shards no model before it is trained."""
        with self.sharded():
            return super().evaluation_loop(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        with self.sharded():
            return super()._prepare_for_training(*args, **kwargs)

    @contextmanager
    def sharded(self) -> Iterator[None]:
        """Under FSDP2 model and optimizer are sharded from here on, and inside nobody does it again, which accelerate
        cannot."""
        if not self.is_fsdp_enabled:
            yield
            return
        if not sharding.is_sharded(self.model):
            self.create_optimizer()
            self.model, self.optimizer = sharding.prepare(self.accelerator, self.model, self.optimizer)
            self.model_wrapped = self.model
        self.accelerator.prepare = lambda *parts: parts if len(parts) > 1 else parts[0]
        try:
            yield
        finally:
            del self.accelerator.prepare

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """The whole weights, on the first rank, where they are sharded; None where the model has them. Collective."""
        return sharding.gathered_state_dict(self.model) if sharding.is_sharded(self.model) else None

    # -- batches and scale

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank, see `StepSampler`."""
        args, rows = self.args, self.train_dataset
        if rows is None or not hasattr(rows, "__len__"):
            raise ValueError("training needs a train_dataset with a length (a list of encoded rows)")
        lengths = [self.row_length(row) for row in rows]
        dealt = {"micro_batch_size": args.per_device_train_batch_size}
        dealt |= {"world_size": args.world_size, "rank": args.process_index}
        if self.mixture is not None:
            sampler: StepSampler = MixedSampler(lengths, self.mixed_order, **dealt)
        else:
            seed, grouped = self._order_seed, self.group_by_length
            sampler = StepSampler(
                lengths, rows_per_step=self._rows_per_step, seed=seed, group_by_length=grouped, **dealt
            )
        generator = torch.Generator()  # the loader would otherwise draw from, and so disturb, the global generator
        workers = {"num_workers": args.dataloader_num_workers, "pin_memory": args.dataloader_pin_memory}
        return DataLoader(rows, batch_sampler=sampler, collate_fn=self.data_collator, generator=generator, **workers)

    @property
    def _rows_per_step(self) -> int:
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    @property
    def _order_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    @property
    def mixed_order(self) -> MixedOrder:
        """Which rows every step takes, of a trainer with a `mixture`; it goes over all steps of the training."""
        if self._order is None:
            rows, per_step = self.train_dataset, self._rows_per_step
            steps = math.ceil(self.args.num_train_epochs * math.ceil(len(rows) / per_step))
            steps = self.args.max_steps if self.args.max_steps > 0 else steps
            parts = [row.get("part", "") for row in rows]
            self._order = MixedOrder(self.mixture, parts, rows_per_step=per_step, steps=steps, seed=self._order_seed)
        return self._order

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Items of the whole optimizer step, over all its micro-batches and all ranks; int64 on `device`."""
        items = torch.as_tensor(
            sum(self.count_items(batch) for batch in batch_samples), dtype=torch.int64, device=device
        )
        if self.args.world_size > 1:
            items = self.accelerator.gather(items[None]).sum(0)
        return items

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As of `Trainer`; one of bitsandbytes keeps its exceptions to itself (`with_own_exceptions`)."""
        named = OptimizerNames(self.args.optim).value
        ours = self.optimizer is None and named.endswith(("8bit", "paged_adamw_32bit"))
        require_whole(named if ours else "adamw", self.is_fsdp_enabled)
        optimizer = super().create_optimizer(model)
        return with_own_exceptions(optimizer, model or self.model) if ours else optimizer

    def mean_over_step(
        self, loss_sum: Tensor, local_items: int | Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """What this micro-batch adds to the mean over the global items of the step (see the module's head).

        Without `num_items_in_batch` (a caller outside the training loop) it is the micro-batch's own mean.
        """
        if num_items_in_batch is None:
            return loss_sum / max(int(local_items), 1)
        items = torch.as_tensor(num_items_in_batch, device=loss_sum.device).clamp(min=1)
        return loss_sum * self.accelerator.num_processes / items

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: not counted."""
        return 0

    # -- checkpoints

    @property
    def checkpoint_dir(self) -> Path:
        """`<output_dir>/checkpoints`."""
        return Path(self.args.output_dir) / "checkpoints"

    def planned_steps(self) -> int:
        """Optimizer steps of a whole run."""
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def load_finished(self, folder: Path) -> None:
        """Take weights and state from the checkpoint of the last step, without training; the last line is logged."""
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self._tr_loss, self._total_loss_scalar = torch.zeros((), device=self.args.device), 0.0
        self._initial_global_step = self._globalstep_last_logged = self.state.global_step
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self._finalize_training(None, 0, time.time())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if (Path(resume_from_checkpoint) / TRAINER_STATE_NAME).is_file():  # to go on from, not the best model's weights
            self.data.require_same(Path(resume_from_checkpoint))
            self._sums.resumed_from = Path(resume_from_checkpoint)
        self._take_weights(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not sharding.is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
        elif (file := Path(checkpoint, OPTIMIZER_NAME)).is_file():
            sharding.load_optimizer(self.optimizer, torch.load(file, map_location="cpu", weights_only=True))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        else:
            raise CheckpointError(f"{checkpoint} has no {OPTIMIZER_NAME}: start anew (--fresh)")
        if checkpoint is not None and isinstance(self.lr_scheduler, LambdaLR):
            take_rates(self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self._sums.other_ranks:
            super()._load_rng_state(checkpoint)
        else:
            seed_everything(derive(self.args.seed, "resumed", self.state.global_step, self.args.process_index))

    def _sums_so_far(self) -> dict[str, Any]:
        """What the figures that are not logged yet are made of, on this rank; a subclass adds its own."""
        return {
            "loss": self._tr_loss.detach().clone(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }

    def _take_sums(self, sums: dict[str, float]) -> None:
        """Go on from `_sums_so_far()`."""
        self._tr_loss.fill_(sums["loss"])
        self._total_loss_scalar, self._globalstep_last_logged = sums["total_loss"], int(sums["last_logged"])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoints/step-N` atomically; every rank takes part, the first one names it."""
        sums = self._sums.gathered()

        def write(folder: Path) -> None:
            self._write_checkpoint(folder)
            if self.args.should_save:
                (folder / FIGURES_FILE).write_text(
                    json.dumps({"ranks": sums}), encoding="utf-8"
                )  # NaN may be among them
                write_json(folder / DATA_FILE, self.data.found())

        checkpoint.save(self.checkpoint_dir, self.state.global_step, write, keep=self.args.save_total_limit or 2)

    def _write_checkpoint(self, folder: Path) -> None:
        """Everything that resuming needs, by the parts that `Trainer._save_checkpoint` is made of."""
        if not sharding.is_sharded(self.model):
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
        else:
            weights, moments = self.gathered_weights(), sharding.gathered_optimizer(self.optimizer)
            if self.args.should_save:
                self._save(str(folder), weights)
                torch.save(moments, folder / OPTIMIZER_NAME)
                torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_model(self.accelerator.unwrap_model(self.model), self.processing_class, folder, state_dict)

    def _take_weights(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        if is_peft(target):
            with sharding.takes_whole(target):
                load_weights(target, resume_from_checkpoint)
        elif self.is_fsdp_enabled:
            sharding.load_gathered(target, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in `model` to 0, attention dropout of transformers' modules included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    set_attention_dropout(model, 0.0)


def set_attention_dropout(model: nn.Module, rate: float) -> None:
    """Set the attention dropout of transformers' modules in `model` to `rate`."""
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float | int):
            module.attention_dropout = rate
