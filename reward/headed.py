"""A native transformers backbone with a scalar head: what the reward model and the critic have in common.

A plain `nn.Module`: Trainer, accelerate and DDP treat it like any other, and its switches (`config`, gradient
checkpointing, input embeddings) are those of the backbone. Folder: the backbone as a Hugging Face model (`config.json`,
`model.safetensors`; what transformers' own classifier makes of it: `reward.stock`), the head in `head.safetensors`, the
rest in a small JSON whose name tells the kind.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from align.runtime.errors import StorageError
from align.runtime.peft_model import base_of, is_peft
from reward import adapter, stock
from reward.checkpointing import disable_checkpointing, enable_checkpointing, is_checkpointing
from reward.errors import ModelFileError
from reward.folder import check_safetensors, read_json, staged
from reward.head import ScalarHead
from reward.loading import hub_file, load_pretrained, quiet

if TYPE_CHECKING:
    from reward.flat import Parts

HEAD_FILE = "head.safetensors"
FORMAT = 1


def output_size(backbone: nn.Module) -> int:
    """Width of the states that a backbone gives: its hidden size, but for some whose embeddings are of another width
    (OPT-350M projects back to that), which are asked.
    """
    size = backbone.config.get_text_config().hidden_size
    embedding = backbone.get_input_embeddings()
    if getattr(embedding, "embedding_dim", size) == size:
        return size
    training, device = backbone.training, embedding.weight.device
    ids_11 = torch.zeros((1, 1), dtype=torch.long, device=device)
    with torch.no_grad():
        states = backbone.eval()(input_ids=ids_11, attention_mask=torch.ones_like(ids_11)).last_hidden_state
    backbone.train(training)
    return states.shape[-1]


class HeadedModel(nn.Module):
    """`backbone` and `head`; subclasses say what is read where."""

    settings_file: ClassVar[str]
    zero_head: ClassVar[bool]

    def __init__(self, backbone: nn.Module, head: ScalarHead | None = None):
        super().__init__()
        size = output_size(backbone)
        self.backbone = backbone
        self.head = head if head is not None else ScalarHead(size, zero=self.zero_head)
        self.head.to(next(backbone.parameters()).device)
        plain = base_of(backbone)
        self._accepted = frozenset(inspect.signature(plain.forward).parameters)

    @property
    def config(self) -> Any:
        """The backbone's transformers config."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return next(self.backbone.parameters()).device

    @property
    def _no_split_modules(self) -> Any:
        return self.backbone._no_split_modules

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the backbone can trade compute for activation memory."""
        return self.backbone.supports_gradient_checkpointing

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether it does at present."""
        return is_checkpointing(self.backbone)

    is_gradient_checkpointing = is_activation_checkpointing

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **more: Any
    ) -> None:
        """As of `PreTrainedModel`."""
        enable_checkpointing(self.backbone, gradient_checkpointing_kwargs, **more)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **more: Any
    ) -> None:
        """As of `PreTrainedModel`, from transformers 5.24 on."""
        enable_checkpointing(self.backbone, activation_checkpointing_kwargs, **more)

    def gradient_checkpointing_disable(self) -> None:
        """As of `PreTrainedModel`."""
        disable_checkpointing(self.backbone)

    activation_checkpointing_disable = gradient_checkpointing_disable

    def enable_input_require_grads(self) -> None:
        """As of `PreTrainedModel` (adapters with gradient checkpointing need it)."""
        self.backbone.enable_input_require_grads()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.backbone.get_input_embeddings()

    def states(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        position_ids_BT: Tensor | None = None,
        parts: Parts | Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, d). Positions count the 1s of the mask, so padding may stand on either side.

        Args:
            parts: the prompts and replies of one flat row (`reward.flat`).

        Raises:
            ModelFileError: parts for a backbone that takes none.
        """
        if position_ids_BT is None:
            position_ids_BT = (attention_mask_BT.long().cumsum(-1) - 1).clamp(min=0)
        optional = {"position_ids": position_ids_BT, "use_cache": False}
        optional = {name: value for name, value in optional.items() if name in self._accepted}
        if parts is not None:
            optional["parts"] = self._taken(parts)
        return self.backbone(input_ids=input_ids_BT, attention_mask=attention_mask_BT, **optional).last_hidden_state

    def _taken(self, parts: Parts | Tensor) -> Parts:
        from reward import flat

        if problem := flat.flat_problem(self.backbone, self._accepted):
            raise ModelFileError(f"this model takes no flat row of several sequences: {problem}")
        return flat.Parts.of(parts) if isinstance(parts, Tensor) else parts

    def _apply(self, fn, recurse=True):
        # Buffers outside the state dict (rotary frequencies) are rebuilt in float32 on loading, so a cast to
        # bfloat16 must not touch them, or a saved and loaded model would score differently.
        kept = [(module, name, value) for module, name, value in _constants(self) if value.is_floating_point()]
        super()._apply(fn, recurse)
        for module, name, value in kept:
            moved = module._buffers[name]
            if moved.dtype != value.dtype:
                module._buffers[name] = value.to(moved.device)
        return self

    def settings(self) -> dict[str, Any]:
        """What the settings file holds beside format and head size; subclasses extend it."""
        return {}

    def classifier_settings(self) -> dict[str, Any] | None:
        """What the config of a plain sequence classifier would hold; None: no such class reads this head."""
        return None

    def take_settings(self, settings: dict[str, Any], path: Path) -> None:
        """Take over what a settings file holds; subclasses extend it."""

    def save_pretrained(self, path: str | Path, *, state_dict: dict[str, Tensor] | None = None, **_: Any) -> None:
        """Write the folder; files that were there are replaced only when all new ones are complete.

        Args:
            path: the folder.
            state_dict: this module's gathered state where the parameters are sharded (FSDP, DeepSpeed).

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        state = self.state_dict() if state_dict is None else state_dict
        body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
        read_off = {  # the head, and what a pooling has learnt
            key: value.detach().float().cpu().contiguous()
            for key, value in state.items()
            if key.startswith(("head.", "pooler."))
        }
        settings = {"format": FORMAT, "hidden_size": state["head.weight"].shape[1], **self.settings()}
        try:
            with quiet(), staged(path) as folder:
                self._save_body(folder, body, state["head.weight"])
                save_file(read_off, folder / HEAD_FILE)
                (folder / self.settings_file).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except SafetensorError as error:
            raise StorageError(
                f"cannot write the model to {path}: {error}; nothing that was there is changed"
            ) from error

    def _save_body(self, folder: Path, body: dict[str, Tensor], head_weight_1d: Tensor) -> None:
        config = stock.classifier_config(self.config, self.classifier_settings() or {})
        classifier = stock.empty_classifier(config, self.backbone.dtype)
        is_its = self.classifier_settings() is not None and stock.reads_last_token(classifier, head_weight_1d)
        if is_peft(self.backbone):
            adapter.save_body(self.backbone, folder, body)
            stock.add_to_adapter(folder, classifier, head_weight_1d if is_its else None)
        elif is_its:
            stock.save_as_classifier(classifier, folder, body, head_weight_1d.detach().float())
        else:
            adapter.save_body(self.backbone, folder, body | stock.refusal(classifier))

    @classmethod
    def is_saved_at(cls, path: str | Path, **hub_options: Any) -> bool:
        """Whether a folder or hub id was written by this class's `save_pretrained`."""
        return hub_file(path, cls.settings_file, **hub_options) is not None

    @classmethod
    def from_pretrained(cls, path: str | Path, *, backbone: nn.Module | None = None, **load_kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote; outputs are bit-equal for the same dtype (the default: as saved),
        device and `attn_implementation`.

        Args:
            backbone: what was saved there, where it is loaded already; head and settings alone are read then.

        Raises:
            MissingFileError: no such folder or hub id.
            ModelFileError: torn or incomplete files, or another kind of folder.
        """
        settings_path = hub_file(path, cls.settings_file, **load_kwargs)
        if settings_path is None:
            raise ModelFileError(
                f"{path} has no {cls.settings_file}: it was not saved by {cls.__name__}.save_pretrained"
            )
        settings = read_json(settings_path)
        tensors = _read_head(path, settings, settings_path, load_kwargs)
        body = _body(path, settings=settings, **load_kwargs) if backbone is None else backbone
        size = output_size(body)
        head = ScalarHead(tensors["head.weight"].shape[1], zero=True)
        if size != head.weight.shape[1]:
            raise ModelFileError(f"{path}: head of size {head.weight.shape[1]} on a backbone of size {size}")
        model = cls(body, head)
        model._take_head(settings, settings_path, tensors)
        return model.eval()

    def load_weights(self, folder: str | Path) -> None:
        """Take over what another model like this one saved in `folder`; of an adapter's backbone the adapter alone.

        Raises:
            MissingFileError, ModelFileError: as of `from_pretrained`.
        """
        if not is_peft(self.backbone):
            self.load_state_dict(type(self).from_pretrained(folder).state_dict())
            return
        settings_path = Path(folder) / self.settings_file
        settings = read_json(settings_path)
        tensors = _read_head(folder, settings, settings_path, {})
        adapter.load_weights(self.backbone, folder)
        self._take_head(settings, settings_path, tensors)

    def _take_head(self, settings: dict[str, Any], settings_path: Path, tensors: dict[str, Tensor]) -> None:
        self.take_settings(settings, settings_path)
        own = {key: value for key, value in self.state_dict().items() if key.startswith(("head.", "pooler."))}
        for name, value in own.items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise ModelFileError(
                    f"{settings_path.parent / HEAD_FILE} must hold {name!r} of shape {tuple(value.shape)}"
                )
        self.load_state_dict({name: tensors[name] for name in own}, strict=False)

    @classmethod
    def from_backbone(cls, path: str | Path, **load_kwargs: Any) -> Self:
        """The body of any causal language model (folder or hub id) with a new head, drawn from the global generator.

        Raises:
            MissingFileError, ModelFileError: see `reward.loading.load_pretrained`.
        """
        return cls(_body(path, **load_kwargs)).eval()


def _body(path: str | Path, *, settings: dict[str, Any] | None = None, **load_kwargs: Any) -> nn.Module:
    from transformers import AutoModel

    if adapter.is_saved_at(path, **load_kwargs):
        return adapter.load_body(path, settings, **load_kwargs)
    exact = None if settings is None else stock.HEADS  # an own folder holds nothing else
    body = load_pretrained(AutoModel, path, optional=("pooler",), exact=exact, **load_kwargs)
    adapter.keep_unpacked(body)
    if not hasattr(body.config.get_text_config(), "hidden_size"):
        raise ModelFileError(f"{path}: its config has no hidden_size, so no head can be put on it")
    return body


def _read_head(
    path: str | Path, settings: dict[str, Any], settings_path: Path, options: dict[str, Any]
) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    size = settings.get("hidden_size")
    if settings.get("format") != FORMAT or not isinstance(size, int):
        raise ModelFileError(
            f"{settings_path}: 'format' must be {FORMAT} and 'hidden_size' a number, "
            f"found {settings.get('format')!r} and {size!r}"
        )
    file = hub_file(path, HEAD_FILE, **options)
    if file is None:
        raise ModelFileError(
            f"{Path(path) / HEAD_FILE} is missing: the model folder is incomplete, save or copy it again"
        )
    check_safetensors(file)
    tensors = load_file(file)
    weight = tensors.get("head.weight")
    if weight is None or weight.shape != (1, size) or not all(value.isfinite().all() for value in tensors.values()):
        raise ModelFileError(f"{file} must hold a finite 'head.weight' of shape (1, {size})")
    return tensors


def _constants(model: nn.Module):
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers.get(name) is not None:
                yield module, name, module._buffers[name]
