"""Checkpoint folders of transformers, read without it: Parakeet (CTC, RNN-T, TDT) and Nemotron streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..audio.mel import LogMel, MelConfig
from ..encoder import FastConformerConfig
from ..errors import ArgumentError, CheckpointError
from .blueprint import Blueprint, CtcSpec, HeadSpec, LstmSpec, TransducerSpec
from .config_reader import Config, is_frame_counts, read_json
from .tensors import read_safetensors
from .tokenizer import JsonTokenizer

CTC, STREAMING = "ParakeetForCTC", "NemotronAsrStreamingForRNNT"
ARCHITECTURES = {
    CTC: "ctc",
    "ParakeetForRNNT": "rnnt",
    "ParakeetForTDT": "tdt",
    STREAMING: "rnnt",
}

# What the processor of transformers offers where processor_config.json does not say.
DEFAULT_LOOKAHEADS = (13, 6, 1, 0)

# Our names -> those of transformers, applied in this order.
RENAMES = (
    (".norm_attention.", ".norm_self_att."),
    (".attention.query.", ".self_attn.q_proj."),
    (".attention.key.", ".self_attn.k_proj."),
    (".attention.value.", ".self_attn.v_proj."),
    (".attention.out.", ".self_attn.o_proj."),
    (".attention.position.", ".self_attn.relative_k_proj."),
    (".attention.bias_", ".self_attn.bias_"),
    (".conv.pointwise1.", ".conv.pointwise_conv1."),
    (".conv.depthwise.", ".conv.depthwise_conv."),
    (".conv.pointwise2.", ".conv.pointwise_conv2."),
    ("encoder.subsampling.out.", "encoder.subsampling.linear."),
    ("heads.ctc.output.", "ctc_head."),
)
OFFLINE_RENAMES = (
    ("encoder.subsampling.conv_in.", "encoder.subsampling.layers.0."),
    ("encoder.subsampling.stages.0.depthwise.", "encoder.subsampling.layers.2."),
    ("encoder.subsampling.stages.0.pointwise.", "encoder.subsampling.layers.3."),
    ("encoder.subsampling.stages.1.depthwise.", "encoder.subsampling.layers.5."),
    ("encoder.subsampling.stages.1.pointwise.", "encoder.subsampling.layers.6."),
)
STREAMING_RENAMES = (
    ("encoder.subsampling.stages.", "encoder.subsampling.layers."),
    (".depthwise.", ".depthwise_conv."),
    (".pointwise.", ".pointwise_conv."),
)
TRANSDUCER_RENAMES = (
    (".predictor.embedding.", "decoder.embedding."),
    (".predictor.lstm.", "decoder.lstm."),
    (".predictor.projection.", "decoder.decoder_projector."),
    (".joint.encoder_projection.", "encoder_projector."),
    (".joint.output.", "joint.head."),
)


def read_transformers(path: Path, values: dict[str, Any]) -> Blueprint:
    """Read a `save_pretrained` folder whose config.json holds `values`; CheckpointError if it is broken."""
    config = Config(values, str(path / "config.json"))
    architecture = _architecture(config)
    name = ARCHITECTURES[architecture]
    streaming = architecture == STREAMING
    weights = read_safetensors(path)
    encoder = config.section("encoder_config")
    extras = _processor_config(path)
    head = _ctc(config, weights) if name == "ctc" else _transducer(config, name)

    renames = [*RENAMES, *(STREAMING_RENAMES if streaming else OFFLINE_RENAMES)]
    renames += [(f"heads.{name}{ours}", theirs) for ours, theirs in TRANSDUCER_RENAMES]

    def rename(key: str) -> str:
        for ours, theirs in renames:
            key = key.replace(ours, theirs)
        return key

    linear_bias = encoder.flag("attention_bias", True)
    conv_bias = encoder.flag("convolution_bias", True)

    def zeros(key: str) -> bool:
        """One of the two kinds of bias is absent: our layers have both or neither."""
        if not (key.startswith("encoder.layers.") and key.endswith(".bias")) or ".norm" in key:
            return False
        return not (conv_bias if ".conv." in key else linear_bias)

    return Blueprint(
        source=str(path),
        name=path.resolve().name,
        features=_features(extras, encoder.integer("num_mel_bins", 80), streaming),
        encoder=_encoder(encoder, extras, streaming, linear_bias or conv_bias),
        heads={name: head},
        default_head=name,
        tokenizer=_tokenizer(path, head.blank_id),
        weights=weights,
        rename=rename,
        zeros=zeros,
    )


def _architecture(config: Config) -> str:
    found = config.get("architectures") or []
    name = found[0] if isinstance(found, list) and len(found) == 1 else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise config.error("architectures", f"one of {', '.join(ARCHITECTURES)}", found)
    return name


def _processor_config(path: Path) -> Config:
    """The processor's settings, the feature extractor's under "feature_extractor"; empty if not saved."""
    merged: dict[str, Any] = {}
    where = path / "processor_config.json"
    if where.exists():
        merged = read_json(where)
    older = path / "preprocessor_config.json"
    if older.exists():
        merged.setdefault("feature_extractor", read_json(older))
    return Config(merged, str(where if where.exists() else older))


def _features(extras: Config, num_mels: int, streaming: bool) -> LogMel:
    """Parakeet's extractor normalises each bin, Nemotron's does not; both leave the rest to these numbers."""
    config = extras.section("feature_extractor", {})
    config.expect(
        "feature_size", lambda value: value == num_mels, f"{num_mels} (num_mel_bins)", default=num_mels
    )
    try:
        return LogMel(
            MelConfig(
                sample_rate=config.integer("sampling_rate", 16000),
                n_fft=config.integer("n_fft", 512),
                window=config.integer("win_length", 400),
                hop=config.integer("hop_length", 160),
                num_mels=num_mels,
                preemphasis=float(config.get("preemphasis", 0.97) or 0.0),
                normalize=None if streaming else "per_feature",
            )
        )
    except ArgumentError as error:
        raise CheckpointError(f"{config.source}: {error}") from error


def _encoder(config: Config, extras: Config, streaming: bool, use_bias: bool) -> FastConformerConfig:
    config.expect("hidden_act", lambda value: value == "silu", "'silu'", default="silu")
    config.expect("subsampling_factor", lambda value: value == 8, "8", default=8)
    config.expect("subsampling_conv_kernel_size", lambda value: value == 3, "3", default=3)
    config.expect("subsampling_conv_stride", lambda value: value == 2, "2", default=2)
    try:
        return FastConformerConfig(
            feat_in=config.integer("num_mel_bins", 80),
            d_model=config.integer("hidden_size", 1024),
            num_layers=config.integer("num_hidden_layers", 24),
            num_heads=config.integer("num_attention_heads", 8),
            d_ff=config.integer("intermediate_size", 4096),
            conv_kernel=config.integer("conv_kernel_size", 9),
            subsampling_channels=config.integer("subsampling_conv_channels", 256),
            causal_subsampling=streaming,
            conv_norm="layer_norm" if streaming else "batch_norm",
            causal_conv=streaming,
            use_bias=use_bias,
            xscaling=config.flag("scale_input", True),
            context_style="chunked_limited" if streaming else "regular",
            contexts=_contexts(config, extras) if streaming else ((-1, -1),),
        )
    except ArgumentError as error:
        raise CheckpointError(f"{config.source}: encoder_config: {error}") from error


def _contexts(config: Config, extras: Config) -> tuple[tuple[int, int], ...]:
    """(left, right) of every look-ahead, the default first.

    The mask of transformers sees left // (right + 1) whole chunks behind the current one, so that a left
    context which the chunk does not divide counts as the multiple below it.
    """
    left = config.integer("sliding_window", 71) - 1
    supported = extras.get("supported_num_lookahead_tokens") or list(DEFAULT_LOOKAHEADS)
    default = extras.get("default_num_lookahead_tokens")
    if default is None:
        default = config.integer("default_num_lookahead_tokens", 13)
    lookaheads = [default, *(value for value in supported if value != default)]
    if not is_frame_counts(lookaheads):
        raise extras.error("supported_num_lookahead_tokens", "frame counts", lookaheads)
    return tuple((left - left % (right + 1), right) for right in lookaheads)


def _ctc(config: Config, weights: dict[str, Tensor]) -> HeadSpec:
    """The head is a convolution over one frame; the blank is the padding token."""
    weight = weights.get("ctc_head.weight")
    if weight is not None and weight.ndim == 3 and weight.shape[2] == 1:
        weights["ctc_head.weight"] = weight[:, :, 0]
    return CtcSpec(config.integer("vocab_size", 1025), config.integer("pad_token_id", 1024))


def _transducer(config: Config, name: str) -> HeadSpec:
    hidden = config.integer("decoder_hidden_size", 640)
    durations = config.get("durations", [0, 1, 2, 3, 4]) if name == "tdt" else []
    if not is_frame_counts(durations):
        raise config.error("durations", "a list of frame counts", durations)
    config.expect(
        "hidden_act",
        lambda value: value in ("relu", "tanh", "sigmoid"),
        "relu, tanh or sigmoid",
        default="relu",
    )
    return TransducerSpec(
        vocab_size=config.integer("vocab_size"),
        blank_id=config.integer("blank_token_id"),
        joint_width=hidden,
        predictor=LstmSpec(hidden, config.integer("num_decoder_layers", 2)),
        activation=config.get("hidden_act", "relu"),
        durations=tuple(durations),
        max_symbols=config.integer("max_symbols_per_step", 10),
    )


def _tokenizer(path: Path, blank_id: int) -> JsonTokenizer:
    where = path / "tokenizer.json"
    try:
        text = where.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: missing or not UTF-8 text") from error
    return JsonTokenizer(text, str(where), blank_id)
