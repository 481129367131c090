"""What every checkpoint format is reduced to, and the model built from it with every weight accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from ..audio.mel import LogMel
from ..encoder import FastConformer, FastConformerConfig
from ..errors import ArgumentError, CheckpointError
from ..transducer.modules import (
    CtcHead,
    GruPredictor,
    Joint,
    LstmPredictor,
    StatelessPredictor,
    TransducerHead,
)
from .model import SpeechModel
from .tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LstmSpec:
    hidden: int
    num_layers: int


@dataclass(frozen=True)
class GruSpec:
    hidden: int
    num_layers: int


@dataclass(frozen=True)
class StatelessSpec:
    hidden: int
    context: int
    activation: str | None = None


@dataclass(frozen=True)
class TransducerSpec:
    """vocab_size counts the blank; durations () is RNN-T, else TDT."""

    vocab_size: int
    blank_id: int
    joint_width: int
    predictor: LstmSpec | GruSpec | StatelessSpec
    activation: str = "relu"
    durations: tuple[int, ...] = ()
    max_symbols: int = 10


@dataclass(frozen=True)
class CtcSpec:
    """vocab_size counts the blank."""

    vocab_size: int
    blank_id: int


HeadSpec = TransducerSpec | CtcSpec


@dataclass
class Blueprint:
    """A checkpoint in our own terms; the weights still carry its names.

    Attributes
    ----------
    source: the path, for error messages.
    weights: the checkpoint's tensors by the checkpoint's names.
    rename: our state_dict key -> the checkpoint's name for it.
    zeros: our keys that this architecture does not have and that are filled with zeros.
    ignored: prefixes of the checkpoint's names that hold no weights of the model (buffers, training state).
    """

    source: str
    name: str
    features: LogMel
    encoder: FastConformerConfig
    heads: dict[str, HeadSpec]
    default_head: str
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    rename: Callable[[str], str]
    zeros: Callable[[str], bool] = field(default=lambda key: False)
    ignored: tuple[str, ...] = ()


def build(
    blueprint: Blueprint, dtype: torch.dtype | str = "auto", device: torch.device | str | None = None
) -> SpeechModel:
    """The model, in eval mode.

    Parameters
    ----------
    dtype: "auto" = the type that most of the checkpoint's weights have; or a torch.dtype or its name.
    device: None = the GPU if there is one and the CUDA ops are built, else the CPU.

    Raises
    ------
    CheckpointError: weights are missing, superfluous, of the wrong shape or of a type that is not supported.
    ArgumentError: `dtype` or `device` is not one.
    """
    wanted = _checked_dtype(dtype)
    target = _checked_device(device)
    for name, head in blueprint.heads.items():
        if not 0 <= head.blank_id < head.vocab_size:
            raise CheckpointError(
                f"{blueprint.source}: blank of the {name} head must be in 0..{head.vocab_size - 1}, "
                f"got {head.blank_id}"
            )
        if isinstance(head, TransducerSpec) and head.max_symbols < 1:
            raise CheckpointError(
                f"{blueprint.source}: max_symbols of {name} must be at least 1, got {head.max_symbols}"
            )
        tokens = head.vocab_size - (head.blank_id == head.vocab_size - 1)
        if blueprint.tokenizer.vocab_size < tokens:
            raise CheckpointError(
                f"{blueprint.source}: the tokenizer has {blueprint.tokenizer.vocab_size} tokens, "
                f"the {name} head needs {tokens}"
            )
    # Nothing is initialised: the checkpoint's tensors become the parameters.
    try:
        with torch.device("meta"):
            encoder = FastConformer(blueprint.encoder)
            heads = {name: _head(head, blueprint.encoder.d_model) for name, head in blueprint.heads.items()}
    except (ArgumentError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{blueprint.source}: {error}") from error
    model = SpeechModel(
        blueprint.features, encoder, heads, blueprint.default_head, blueprint.tokenizer, blueprint.name
    )
    state = _match(model.state_dict(), blueprint)
    kind = _stored_dtype(state.values(), blueprint.source) if wanted is None else wanted
    state = {
        key: value.to(target, kind if value.is_floating_point() else value.dtype)
        for key, value in state.items()
    }
    model.load_state_dict(state, assign=True)
    model.features.to(target)
    return model.requires_grad_(False).eval()


def _head(spec: HeadSpec, encoder_width: int) -> TransducerHead | CtcHead:
    if isinstance(spec, CtcSpec):
        return CtcHead(encoder_width, spec.vocab_size, spec.blank_id)
    predictor: LstmPredictor | GruPredictor | StatelessPredictor
    if isinstance(spec.predictor, (LstmSpec, GruSpec)):
        kind = LstmPredictor if isinstance(spec.predictor, LstmSpec) else GruPredictor
        predictor = kind(spec.vocab_size, spec.predictor.hidden, spec.predictor.num_layers, spec.joint_width)
    else:
        predictor = StatelessPredictor(
            spec.vocab_size,
            spec.predictor.hidden,
            spec.predictor.context,
            spec.joint_width,
            spec.predictor.activation,
        )
    joint = Joint(
        encoder_width, spec.joint_width, spec.vocab_size, len(spec.durations), activation=spec.activation
    )
    return TransducerHead(predictor, joint, spec.blank_id, spec.durations, spec.max_symbols)


def _match(expected: dict[str, Tensor], blueprint: Blueprint) -> dict[str, Tensor]:
    """Our keys with the checkpoint's tensors; CheckpointError for any key too few or too many."""
    left = dict(blueprint.weights)
    state, missing = {}, []
    for key, like in expected.items():
        name = blueprint.rename(key)
        value = left.pop(name, None)
        if value is None and (blueprint.zeros(key) or key.endswith("num_batches_tracked")):
            value = torch.zeros(like.shape, dtype=torch.int64 if like.ndim == 0 else torch.float32)
        if value is None:
            missing.append(name)
        elif value.shape != like.shape:
            raise CheckpointError(
                f"{blueprint.source}: {name} must be {list(like.shape)}, got {list(value.shape)}"
            )
        else:
            state[key] = value
    surplus = [name for name in left if not name.startswith(blueprint.ignored)]
    if missing or surplus:
        parts = [
            f"{word} {_listed(names)}"
            for word, names in (("missing", missing), ("unexpected", surplus))
            if names
        ]
        raise CheckpointError(f"{blueprint.source}: weights do not fit the configuration: {'; '.join(parts)}")
    return state


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _stored_dtype(values: Iterable[Tensor], source: str) -> torch.dtype:
    """The floating type that most elements have."""
    sizes: dict[torch.dtype, int] = {}
    for value in values:
        if value.is_floating_point():
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.numel()
    dtype = max(sizes, key=lambda key: sizes[key])
    if dtype not in DTYPES.values():
        raise CheckpointError(
            f"{source}: weights are stored as {dtype}, expected {', '.join(DTYPES)}; pass dtype= to convert"
        )
    return dtype


def _checked_dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    """None for "auto"."""
    if dtype == "auto":
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ArgumentError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _checked_device(device: torch.device | str | None) -> torch.device:
    if device is None:
        usable = ops.cuda_ops_loaded and torch.cuda.is_available()
        return torch.device("cuda" if usable else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"device must be a torch device such as 'cpu' or 'cuda', got {device!r}"
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"device {device!r} was asked for, but torch sees no CUDA device")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"device {device!r} was asked for, but the last is cuda:{torch.cuda.device_count() - 1}"
        )
    if found.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be a CPU or a CUDA device, got {device!r}")
    return found
