"""One frozen base for PPO's four models: policy, reference, critic and reward are named LoRA adapters on it.

`SharedBackbone.role(name)` says whose adapter computes; it changes plain attributes of PEFT's layers, never a weight
and never `requires_grad`, which is fixed when the adapters are put on (PEFT's own `set_adapter` toggles it). A
`RoleView` is a module that holds one role's parameters alone and takes that role whenever it computes: optimizers,
checkpoints and DDP see what the role trains and nothing else. `Critic(view)` and `RewardModel(view)` are then what
they are on a backbone of their own.

Gradient checkpointing computes layers again in the backward pass, when the role has long been left, on a thread of
autograd's: torch asks for the context of that second pass during the first one (`context_fn`), and is given one that
takes the same role again.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from align.models.role_adapters import Adapter, RoleError, adapter_parameters, load_tensors, save_adapter
from reward.adapter import keep_unpacked
from reward.checkpointing import disable_checkpointing, enable_checkpointing, is_checkpointing

TRAINED = ("policy", "critic")


class SharedBackbone:
    """A causal language model and the adapters of the roles that compute with it.

    Args:
        base: the model, plain or quantised; frozen here, and wrapped by PEFT in place.
        adapters: by role, what is put on it; `policy` is needed. None for a role: the base alone, without an adapter.
        trained: the roles whose adapters get gradients.

    Raises:
        RoleError: an adapter that does not fit the base.
    """

    def __init__(self, base: nn.Module, adapters: Mapping[str, Adapter | None], trained: tuple[str, ...] = TRAINED):
        keep_unpacked(base)
        self.body_prefix = f"{base.base_model_prefix}."
        self._given = dict(adapters)
        on_it = {role: one.on(self.body_prefix) for role, one in adapters.items() if one is not None}
        first, *others = on_it
        self.model = get_peft_model(base, on_it[first].config, adapter_name=first)
        tied = getattr(on_it[first].config, "modules_to_tie", None)
        for role in others:
            _add_adapter(self.model, role, on_it[role].config, tied)
        for role, one in on_it.items():
            load_tensors(self.model, role, one)
        self._parts = {role: dict(adapter_parameters(self.model, role)) for role in on_it}
        self._rest = "policy" if "policy" in on_it else first  # active between two passes, for tools that merge or save
        self._fix_gradients(trained)
        self._layers = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        self._current: str | None = None
        self._owner: int | None = None
        self._lock = threading.Lock()
        self.model.eval()
        self._switch(self._rest)
        for module in (self.causal_lm, self.body):
            module.register_forward_pre_hook(self._needs_a_role)

    @property
    def causal_lm(self) -> nn.Module:
        """The base with its language modelling head, PEFT's layers inside."""
        return self.model.get_base_model()

    @property
    def body(self) -> nn.Module:
        """The same without the head."""
        return self.causal_lm.base_model

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role there is."""
        return tuple(self._given)

    def adapter(self, role: str) -> Adapter | None:
        """What was put on for a role; None: it is the base alone.

        Raises:
            RoleError: there is no such role.
        """
        if role not in self._given:
            raise RoleError(f"this backbone has no role '{role}'; it has {', '.join(self.roles)}")
        return self._given[role]

    def parameters_of(self, role: str) -> dict[str, nn.Parameter]:
        """By PEFT's names, the tensors of a role's adapter; none of a role that is the base alone."""
        return {} if self.adapter(role) is None else dict(self._parts[role])

    def causal(self, role: str) -> RoleView:
        """The causal language model of a role."""
        return RoleView(self, role, self.causal_lm)

    def headless(self, role: str) -> RoleView:
        """The body of a role, for `Critic` and `RewardModel`."""
        return RoleView(self, role, self.body)

    @contextmanager
    def role(self, name: str, training: bool | None = None) -> Iterator[None]:
        """Compute as `name` for the while; `training` is the mode of the base meanwhile (default: as it is).

        The same role may be taken again inside.

        Raises:
            RoleError: no such role, another role inside a role, or another thread that computes.
        """
        self.adapter(name)
        with self._lock:
            if self._owner not in (None, threading.get_ident()):
                raise RoleError(f"a thread asks for the role '{name}' while another computes as '{self._current}'")
            if self._current not in (None, name):
                raise RoleError(f"the role '{name}' was asked for inside the role '{self._current}': leave that first")
            before = self._take(name, self.model.training if training is None else training)
        try:
            yield
        finally:
            with self._lock:
                self._put_back(before)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """For all roles that are in training mode; the second pass computes as the role of the first one.

        Raises:
            RoleError: reentrant checkpointing was asked for, which keeps no context.
        """
        options = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        if options["use_reentrant"]:
            raise RoleError("roles on one backbone need gradient checkpointing with use_reentrant=False")
        options["context_fn"] = lambda: (nullcontext(), _Again(self, self._current, self.model.training))
        enable_checkpointing(self.causal_lm, options)

    def _fix_gradients(self, trained: tuple[str, ...]) -> None:
        wanted = []
        for role in trained:
            if role in self._parts:
                self.model.set_adapter(role)  # what PEFT would train of this one
                wanted += [parameter for parameter in self._parts[role].values() if parameter.requires_grad]
        self.model.set_adapter(self._rest)
        self.model.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)

    def _needs_a_role(self, *_: Any) -> None:
        if self._current is None:
            raise RoleError(f"this backbone is shared by {', '.join(self.roles)}: compute inside `role(...)`")

    def _take(self, role: str | None, training: bool) -> tuple[str | None, int | None, bool]:
        before = (self._current, self._owner, self.model.training)
        if role != self._current:
            self._switch(self._rest if role is None else role)
        self._current, self._owner = role, None if role is None else threading.get_ident()
        if training != before[2]:
            self.model.train(training)
        return before

    def _put_back(self, before: tuple[str | None, int | None, bool]) -> None:
        self._take(before[0], before[2])
        self._owner = before[1]

    def _switch(self, role: str) -> None:
        alone = self._given[role] is None
        for layer in self._layers:
            layer._disable_adapters = alone
            if not alone:
                layer._active_adapter = [role]


class _Again(AbstractContextManager):
    """The context of a second pass: the role and mode of the first one, whichever thread it runs on."""

    def __init__(self, backbone: SharedBackbone, role: str | None, training: bool):
        self.backbone, self.role, self.training = backbone, role, training

    def __enter__(self) -> None:
        with self.backbone._lock:
            self.before = self.backbone._take(self.role, self.training)

    def __exit__(self, *_: Any) -> None:
        with self.backbone._lock:
            self.backbone._put_back(self.before)


class RoleView(nn.Module):
    """One role of a shared backbone, as a module of its own: its parameters are that role's adapter, under PEFT's
    names, and its forward computes as that role. Its mode (train or eval) is its own too.

    Args:
        module: what computes: the causal language model, or its body.
    """

    def __init__(self, backbone: SharedBackbone, role: str, module: nn.Module):
        super().__init__()
        self.backbone, self.active_adapter = backbone, role
        self._computes = (module,)  # not registered: its parameters are everybody's
        self._hold(backbone.parameters_of(role))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the module that computes."""
        with self.backbone.role(self.active_adapter, self.training):
            return self._computes[0](*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As of the causal language model."""
        with self.backbone.role(self.active_adapter, self.training):
            return self._computes[0].generate(*args, **kwargs)

    def second_pass(self) -> AbstractContextManager:
        """The context in which a part of this role's forward pass is computed again, later and on any thread."""
        return _Again(self.backbone, self.active_adapter, self.training)

    def get_base_model(self) -> nn.Module:
        """What computes, with every role's adapter inside."""
        return self._computes[0]

    @property
    def peft_model(self) -> Any:
        """The base with every role's adapter on it, as PEFT knows it."""
        return self.backbone.model

    @property
    def config(self) -> Any:
        """The base's transformers config."""
        return self._computes[0].config

    @property
    def peft_config(self) -> dict[str, Any]:
        """The adapter's configuration, by the role's name; empty for the base alone."""
        adapter = self.backbone.adapter(self.active_adapter)
        return {} if adapter is None else {self.active_adapter: self.backbone.model.peft_config[self.active_adapter]}

    @property
    def active_peft_config(self) -> Any:
        """The adapter's configuration."""
        return self.peft_config[self.active_adapter]

    @property
    def active_adapters(self) -> list[str]:
        """The role's name."""
        return [self.active_adapter]

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self._computes[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What the base computes in."""
        return self._computes[0].dtype

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the base trades compute for activation memory."""
        return is_checkpointing(self._computes[0])

    is_gradient_checkpointing = is_activation_checkpointing

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether it could."""
        return self._computes[0].supports_gradient_checkpointing

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """For all roles that are in training mode."""
        self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """For all roles."""
        disable_checkpointing(self.backbone.causal_lm)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self._computes[0].get_input_embeddings()

    def save_pretrained(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None, **_: Any) -> None:
        """Write the adapter in PEFT's format, for the causal language model or for the body, as this view is.

        Args:
            state_dict: in place of the view's own.

        Raises:
            RoleError: this role is the base alone.
        """
        adapter = self.backbone.adapter(self.active_adapter)
        if adapter is None:
            raise RoleError(f"the role '{self.active_adapter}' is the base alone: there is no adapter to save")
        state = self.state_dict() if state_dict is None else state_dict
        body_prefix = self.backbone.body_prefix if self._computes[0] is self.backbone.body else None
        save_adapter(self.backbone.model, self.active_adapter, adapter, state, Path(folder), body_prefix)

    def _hold(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            place, (*path, last) = self, name.split(".")
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.register_parameter(last, parameter)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        moved = fn(torch.empty(0, dtype=torch.float32, device=self.device))
        if moved.dtype != torch.float32:
            raise RoleError("a role computes in the dtype of the base it shares: load that in another one")
        if moved.device != self.device:
            self.backbone.model._apply(fn)
        if any(parameter.device != self.device for parameter in self.parameters()):  # a copy's, or not moved in place
            super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RoleView:
        """The role's weights on their own, as an average of them starts; the copy cannot compute."""
        twin = RoleView.__new__(RoleView)
        nn.Module.__init__(twin)
        twin.backbone, twin.active_adapter, twin._computes = self.backbone, self.active_adapter, self._computes
        held = self.named_parameters(remove_duplicate=False)  # tied ones stay tied
        twin._hold({name: copy.deepcopy(parameter, memo) for name, parameter in held})
        twin.register_forward_pre_hook(_no_forward)
        return twin.train(self.training)


def _add_adapter(model: Any, role: str, config: Any, tied: set[str] | None) -> None:
    """As of PEFT, which no longer finds what was tied to the embedding once an adapter before has wrapped that."""
    tie = tied is not None and config.ensure_weight_tying
    if tie:
        config.modules_to_tie, config.ensure_weight_tying = tied, False
    model.add_adapter(role, config)
    config.ensure_weight_tying = tie or config.ensure_weight_tying


def _no_forward(*_: Any) -> None:
    raise RoleError("this is a copy of a role's weights, which computes nothing: ask the backbone for a view")
