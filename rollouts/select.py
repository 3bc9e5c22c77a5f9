"""From the recipe's `rollout.engine` to an engine. vLLM is imported by its own engine files, once it is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from align.runtime.packages import is_installed, require_package
from rollouts.errors import RolloutError
from rollouts.exact import TrainerPass
from rollouts.hf import HFEngine
from rollouts.protocol import Engine
from rollouts.settings import VLLMSettings
from rollouts.weights import checkpoint_tensors, pushes_adapter

logger = logging.getLogger(__name__)

KINDS = ("auto", "hf", "vllm", "vllm_server")


def filled(engine: Engine, model: nn.Module) -> Engine:
    """The engine with the weights that `model` has now, for one that is not trained meanwhile; closed where it does not
    take them. Raises RolloutError then."""
    if not engine.shares_module:
        try:
            engine.update_weights(checkpoint_tensors(model), 0)
        except BaseException:
            engine.close()
            raise
    return engine


def make_engine(
    kind: str,
    model: nn.Module,
    *,
    pad_token_id: int,
    batch_size: int = 64,
    vllm: VLLMSettings | None = None,
    temperature: float = 1.0,
    return_support: bool = False,
    is_owner: bool = True,
    share: Callable[[Any], Any] | None = None,
    trainer_pass: TrainerPass | None = None,
    listed: Callable[[], Sequence[str]] | None = None,
    **hf_options: Any,
) -> Engine:
    """The engine that `kind` names, for the trainer's own module. vLLM's have no weights before `update_weights`.

    Args:
        kind: one of `KINDS`. "auto" takes vLLM in this process where it is installed, the model is on a GPU and
            settings are given, else HF; it logs which and why.
        batch_size: of HF; vLLM is told `max_num_seqs`.
        vllm: settings of vLLM; required for "vllm" and "vllm_server".
        temperature: replies will be sampled at; vLLM's log-probabilities are of one kind for all of them.
        return_support: what could be drawn will be asked for; vLLM has to be prepared for that.
        is_owner: whether this rank starts the server, and shuts it down.
        share: gives every rank the owner's object; all ranks call it together. Default: there is one rank.
        trainer_pass: draws every token (`rollouts.exact`); without one the engine does.
        listed: of vLLM servers given by URL, those that are to be used now; default those of the settings for ever.
        hf_options: further arguments of `HFEngine`.

    Raises:
        MissingPackageError: vLLM is asked for and is not installed.
        RolloutError: an unknown kind, or vLLM has no settings or does not start.
    """
    if kind not in KINDS:
        raise RolloutError(f"unknown rollout engine '{kind}': choose one of {', '.join(KINDS)}")
    if kind == "auto":
        reason = why_not_vllm(model, vllm)
        kind = "hf" if reason else "vllm"
        taken = f"HF generate, because {reason}" if reason else "vLLM, in this process"
        logger.info("rollout engine: auto takes %s", taken)
    if kind == "hf":
        return HFEngine(model, pad_token_id, batch_size, trainer_pass=trainer_pass, **hf_options)
    if vllm is None:
        raise RolloutError(f"rollout engine '{kind}' needs settings: give make_engine a VLLMSettings")
    if kind == "vllm" or not vllm.urls:
        require_package(f"rollout engine '{kind}'", "vllm", "use engine: hf")
    if kind == "vllm":
        from rollouts.vllm.engine import VLLMEngine

        adapters = pushes_adapter(model, vllm.adapters, _device(model))
        asked = {"temperature": temperature, "return_support": return_support, "trainer_pass": trainer_pass}
        return VLLMEngine(model, vllm, takes_adapters=adapters, **asked)
    if trainer_pass is not None:
        raise RolloutError(f"rollout engine '{kind}' draws its tokens by itself: for exact use engine: vllm or hf")
    from rollouts.vllm.server_engine import VLLMServerEngine

    given = {name: value for name, value in (("share", share), ("listed", listed)) if value is not None}
    given["takes_adapters"] = pushes_adapter(model, vllm.adapters, "server")
    return VLLMServerEngine(model, vllm, is_owner=is_owner, temperature=temperature, **given)


def why_not_vllm(model: nn.Module, settings: VLLMSettings | None) -> str | None:
    """Why "auto" leaves vLLM alone, or None."""
    if settings is None:
        return "no settings of vLLM are given"
    if _device(model) != "cuda":
        return "the policy is not on a GPU"
    if not is_installed("vllm"):
        return "vLLM is not installed"
    from rollouts.vllm.local import why_not_beside

    return why_not_beside(model)


def _device(model: nn.Module) -> str:
    return next(model.parameters()).device.type
