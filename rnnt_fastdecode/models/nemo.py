"""NeMo's ASR models: their configuration and weights in our terms."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..audio.mel import LogMel, MelConfig
from ..encoder import FastConformerConfig
from ..errors import ArgumentError, CheckpointError
from .blueprint import Blueprint, CtcSpec, HeadSpec, LstmSpec, StatelessSpec, TransducerSpec
from .config_reader import Config, is_frame_counts
from .nemo_archive import CONFIG, read_archive
from .tokenizer import (
    AggregateTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    TightPunctuation,
    Tokenizer,
    WordPieceTokenizer,
)

# Model classes by what hangs on their encoder.
TRANSDUCER_CLASSES = ("EncDecRNNTModel", "EncDecRNNTBPEModel", "EncDecRNNTBPEEOUModel")
HYBRID_CLASSES = ("EncDecHybridRNNTCTCModel", "EncDecHybridRNNTCTCBPEModel", "EncDecHybridRNNTCTCBPEEOUModel")
CTC_CLASSES = ("EncDecCTCModel", "EncDecCTCModelBPE")
CLASSES = (*TRANSDUCER_CLASSES, *HYBRID_CLASSES, *CTC_CLASSES)

# NeMo's label-looping decoder falls back to this cap when the configuration names none.
DEFAULT_MAX_SYMBOLS = 10

FEATURE_BUFFERS = "preprocessor."
# Buffers and training state that some versions save beside the weights.
IGNORED = (
    FEATURE_BUFFERS,
    "encoder.pos_enc.pe",
    "loss.",
    "ctc_loss.",
    "spec_augmentation.",
    "wer.",
    "ctc_wer.",
)

# Our names -> NeMo's, applied in this order.
RENAMES = (
    ("encoder.subsampling.conv_in.", "encoder.pre_encode.conv.0."),
    ("encoder.subsampling.stages.0.depthwise.", "encoder.pre_encode.conv.2."),
    ("encoder.subsampling.stages.0.pointwise.", "encoder.pre_encode.conv.3."),
    ("encoder.subsampling.stages.1.depthwise.", "encoder.pre_encode.conv.5."),
    ("encoder.subsampling.stages.1.pointwise.", "encoder.pre_encode.conv.6."),
    ("encoder.subsampling.out.", "encoder.pre_encode.out."),
    (".norm_attention.", ".norm_self_att."),
    (".attention.query.", ".self_attn.linear_q."),
    (".attention.key.", ".self_attn.linear_k."),
    (".attention.value.", ".self_attn.linear_v."),
    (".attention.out.", ".self_attn.linear_out."),
    (".attention.position.", ".self_attn.linear_pos."),
    (".attention.bias_u", ".self_attn.pos_bias_u"),
    (".attention.bias_v", ".self_attn.pos_bias_v"),
    (".conv.pointwise1.", ".conv.pointwise_conv1."),
    (".conv.depthwise.", ".conv.depthwise_conv."),
    (".conv.norm.", ".conv.batch_norm."),
    (".conv.pointwise2.", ".conv.pointwise_conv2."),
)
TRANSDUCER_RENAMES = (
    (".predictor.embedding.", "decoder.prediction.embed."),
    (".predictor.lstm.", "decoder.prediction.dec_rnn.lstm."),
    (".predictor.tables", "decoder.prediction.tables"),
    (".predictor.projection.", "joint.pred."),
    (".joint.encoder_projection.", "joint.enc."),
)


def read_nemo(path: Path) -> Blueprint:
    """Read a .nemo file; CheckpointError for anything that is not one or is not supported."""
    source = str(path)
    archive = read_archive(path)
    config = Config(archive.config, source)
    kind = config.text("target").rsplit(".", 1)[-1]
    if kind not in CLASSES:
        raise CheckpointError(
            f"{source}: model class {kind} is not supported, expected one of {', '.join(CLASSES)}"
        )
    files, weights = archive.files, archive.weights
    tokenizer = TightPunctuation(_tokenizer(config, files))
    encoder = _encoder(config.section("encoder"))
    heads: dict[str, HeadSpec] = {}
    renames = list(RENAMES)
    if kind in CTC_CLASSES:
        heads["ctc"] = _ctc(weights, "decoder", tokenizer, source)
        renames.append(("heads.ctc.output.", "decoder.decoder_layers.0."))
    else:
        name, heads_spec, output = _transducer(config, weights, tokenizer)
        heads[name] = heads_spec
        renames += [(f"heads.{name}{ours}", theirs) for ours, theirs in TRANSDUCER_RENAMES]
        renames.append((f"heads.{name}.joint.output.", output))
    if kind in HYBRID_CLASSES:
        heads["ctc"] = _ctc(weights, "ctc_decoder", tokenizer, source)
        renames.append(("heads.ctc.output.", "ctc_decoder.decoder_layers.0."))

    def rename(key: str) -> str:
        for ours, theirs in renames:
            key = key.replace(ours, theirs)
        return key

    return Blueprint(
        source=source,
        name=path.stem,
        features=_features(config.section("preprocessor"), config, weights),
        encoder=encoder,
        heads=heads,
        default_head=next(iter(heads)),
        tokenizer=tokenizer,
        weights=weights,
        rename=rename,
        ignored=IGNORED,
    )


def _features(config: Config, model: Config, weights: dict[str, Tensor]) -> LogMel:
    config.expect(
        "_target_",
        lambda value: str(value).endswith("AudioToMelSpectrogramPreprocessor"),
        "AudioToMelSpectrogramPreprocessor",
    )
    config.expect("log", lambda value: value is True, "true", default=True)
    config.expect("mag_power", lambda value: value == 2, "2.0", default=2.0)
    config.expect("frame_splicing", lambda value: value == 1, "1", default=1)
    config.expect("exact_pad", lambda value: not value, "false", default=False)
    config.expect("log_zero_guard_type", lambda value: value == "add", "add", default="add")
    config.expect("mel_norm", lambda value: value == "slaney", "slaney", default="slaney")
    normalize = config.get("normalize", "per_feature")
    if isinstance(normalize, dict) or normalize == "all_features":
        raise config.error("normalize", "per_feature or none", normalize)
    rate = config.integer("sample_rate", model.get("sample_rate", 16000))
    guard = config.get("log_zero_guard_value", 2.0**-24)
    limits = torch.finfo(torch.float32)
    guard = {"tiny": limits.tiny, "eps": limits.eps}.get(guard, guard) if isinstance(guard, str) else guard
    window = config.get("n_window_size") or int(config.number("window_size", 0.02) * rate)
    hop = config.get("n_window_stride") or int(config.number("window_stride", 0.01) * rate)
    filterbank = weights.get(FEATURE_BUFFERS + "featurizer.fb")
    own_window = weights.get(FEATURE_BUFFERS + "featurizer.window")
    if own_window is None:
        config.expect("window", lambda value: value == "hann", "hann", default="hann")
    try:
        mel = MelConfig(
            sample_rate=rate,
            n_fft=config.get("n_fft") or 1 << (int(window) - 1).bit_length(),
            window=int(window),
            hop=int(hop),
            num_mels=config.integer("features", 64),
            preemphasis=float(config.get("preemph", 0.97) or 0.0),
            log_guard=float(guard),
            normalize="per_feature" if normalize == "per_feature" else None,
            low_hz=float(config.get("lowfreq", 0) or 0),
            high_hz=config.get("highfreq"),
        )
        return LogMel(mel, filterbank[0] if filterbank is not None else None, own_window)
    except (ArgumentError, ValueError, TypeError) as error:
        raise CheckpointError(f"{config.source}: preprocessor: {error}") from error


def _encoder(config: Config) -> FastConformerConfig:
    config.expect("_target_", lambda value: str(value).endswith(".ConformerEncoder"), "ConformerEncoder")
    config.expect("subsampling", lambda value: value == "dw_striding", "dw_striding")
    config.expect("subsampling_factor", lambda value: value == 8, "8")
    config.expect("self_attention_model", lambda value: value == "rel_pos", "rel_pos", default="rel_pos")
    config.expect("reduction", lambda value: not value, "null", default=None)
    config.expect("conv_context_style", lambda value: value == "regular", "regular", default="regular")
    config.expect("att_chunk_context_size", lambda value: value is None, "null", default=None)
    config.expect("global_tokens", lambda value: value == 0, "0", default=0)
    width = config.integer("d_model")
    config.expect("feat_out", lambda value: value in (-1, width), f"-1 or {width}", default=-1)
    kernel = config.integer("conv_kernel_size", 31)
    contexts = config.get("att_context_size") or [-1, -1]
    channels = config.integer("subsampling_conv_channels", -1)
    try:
        return FastConformerConfig(
            feat_in=config.integer("feat_in"),
            d_model=width,
            num_layers=config.integer("n_layers"),
            num_heads=config.integer("n_heads", 4),
            d_ff=width * config.integer("ff_expansion_factor", 4),
            conv_kernel=kernel,
            subsampling_channels=width if channels == -1 else channels,
            causal_subsampling=config.flag("causal_downsampling", False),
            conv_norm=config.get("conv_norm_type", "batch_norm"),
            causal_conv=_is_causal(config, kernel),
            use_bias=config.flag("use_bias", True),
            xscaling=config.flag("xscaling", True),
            context_style=config.get("att_context_style", "regular"),
            contexts=tuple(contexts) if isinstance(contexts[0], list) else (tuple(contexts),),
        )
    except (ArgumentError, ValueError, TypeError) as error:
        raise CheckpointError(f"{config.source}: encoder: {error}") from error


def _is_causal(config: Config, kernel: int) -> bool:
    value = config.get("conv_context_size")
    if value in ("causal", [kernel - 1, 0]):
        return True
    if value in (None, [(kernel - 1) // 2, (kernel - 1) // 2]):
        return False
    raise config.error("conv_context_size", "causal or symmetric", value)


def _transducer(
    config: Config, weights: dict[str, Tensor], tokenizer: Tokenizer
) -> tuple[str, TransducerSpec, str]:
    """The name of the head, its shape, and the prefix of the joint's output layer."""
    decoder, joint = config.section("decoder"), config.section("joint")
    joint.expect("_target_", lambda value: str(value).endswith(".RNNTJoint"), "RNNTJoint")
    prednet, jointnet = decoder.section("prednet"), joint.section("jointnet")
    vocab_size = tokenizer.vocab_size + 1
    hidden = prednet.integer("pred_hidden")
    predictor: LstmSpec | StatelessSpec
    if decoder.text("_target_").endswith(".StatelessTransducerDecoder"):
        decoder.expect("normalization_mode", lambda value: value is None, "null", default=None)
        context = decoder.integer("context_size", 1)
        decoder.expect("context_size", lambda value: value >= 1, "at least 1", default=1)
        _join_tables(weights, vocab_size, hidden, context, config.source)
        predictor = StatelessSpec(hidden, context)
    else:
        decoder.expect(
            "_target_",
            lambda value: str(value).endswith(".RNNTDecoder"),
            "RNNTDecoder or StatelessTransducerDecoder",
        )
        decoder.expect("normalization_mode", lambda value: value is None, "null", default=None)
        decoder.expect("blank_as_pad", lambda value: value is True, "true", default=True)
        prednet.expect("rnn_hidden_size", lambda value: value in (-1, hidden), f"-1 or {hidden}", default=-1)
        predictor = LstmSpec(hidden, prednet.integer("pred_rnn_layers"))

    # Dropout before the output layer shifts its index.
    output = next((f"joint.joint_net.{i}." for i in (1, 2) if f"joint.joint_net.{i}.weight" in weights), None)
    if output is None:
        raise CheckpointError(
            f"{config.source}: weights do not fit the configuration: missing joint.joint_net.2.weight"
        )
    extra = weights[output + "weight"].shape[0] - vocab_size
    durations = _durations(config, extra)
    greedy = config.section("decoding", {}).section("greedy", {})
    cap_key = "max_symbols" if greedy.get("max_symbols") else "max_symbols_per_step"
    cap = greedy.integer(cap_key) if greedy.get(cap_key) else DEFAULT_MAX_SYMBOLS
    spec = TransducerSpec(
        vocab_size=vocab_size,
        blank_id=vocab_size - 1,
        joint_width=jointnet.integer("joint_hidden"),
        predictor=predictor,
        activation=str(jointnet.get("activation", "relu")).lower(),
        durations=durations,
        max_symbols=cap,
    )
    if spec.activation not in ("relu", "tanh", "sigmoid"):
        raise jointnet.error("activation", "relu, tanh or sigmoid", spec.activation)
    return "tdt" if durations else "rnnt", spec, output


def _durations(config: Config, extra: int) -> tuple[int, ...]:
    """The durations behind the `extra` outputs of the joint."""
    decoding = config.section("decoding", {})
    loss = config.section("loss", {})
    if decoding.get("big_blank_durations") or loss.get("loss_name") == "multiblank_rnnt":
        raise CheckpointError(f"{config.source}: multi-blank transducers are not supported")
    if extra == 0:
        return ()
    found = (
        decoding.get("durations")
        or loss.section("tdt_kwargs", {}).get("durations")
        or config.section("model_defaults", {}).get("tdt_durations")
        or ()
    )
    if not is_frame_counts(found) or len(found) != extra:
        raise CheckpointError(
            f"{config.source}: the joint has {extra} more outputs than tokens, but durations {found!r}"
        )
    return tuple(found)


def _join_tables(weights: dict[str, Tensor], vocab_size: int, hidden: int, context: int, source: str) -> None:
    """NeMo concatenates the context's embeddings; as a sum each table is zero outside its own columns."""
    names = [f"decoder.prediction.embeds.{k}.weight" for k in range(context)]
    missing = [name for name in names if name not in weights]
    if missing:
        raise CheckpointError(f"{source}: weights do not fit the configuration: missing {', '.join(missing)}")
    parts = [weights.pop(name) for name in names]
    widths = [part.shape[-1] for part in parts]
    if sum(widths) != hidden or any(part.shape[0] != vocab_size for part in parts):
        raise CheckpointError(
            f"{source}: {names[0]} and its siblings must be {vocab_size} rows and {hidden} columns in all"
        )
    tables = parts[0].new_zeros(context, vocab_size, hidden)
    for k, part in enumerate(parts):
        start = sum(widths[:k])
        tables[k, :, start : start + widths[k]] = part
    weights["decoder.prediction.tables"] = tables


def _ctc(weights: dict[str, Tensor], prefix: str, tokenizer: Tokenizer, source: str) -> CtcSpec:
    """NeMo's CTC head is a convolution over one frame."""
    name = f"{prefix}.decoder_layers.0.weight"
    if name not in weights:
        raise CheckpointError(f"{source}: weights do not fit the configuration: missing {name}")
    if weights[name].ndim == 3 and weights[name].shape[2] == 1:
        weights[name] = weights[name][:, :, 0]
    return CtcSpec(tokenizer.vocab_size + 1, tokenizer.vocab_size)


def _tokenizer(config: Config, files: dict[str, bytes]) -> Tokenizer:
    section = config.section("tokenizer", {})
    if section.get("type") is None:
        labels = config.get("labels") or config.section("decoder", {}).get("vocabulary")
        if not isinstance(labels, list) or not labels:
            raise CheckpointError(f"{config.source}: neither tokenizer nor labels in {CONFIG}")
        return CharacterTokenizer([str(label) for label in labels])
    if str(section.get("type")).lower() == "agg":
        langs = section.section("langs")
        return AggregateTokenizer([_one_tokenizer(langs.section(lang), files) for lang in langs])
    return _one_tokenizer(section, files)


def _one_tokenizer(config: Config, files: dict[str, bytes]) -> Tokenizer:
    kind = config.text("type").lower()
    if kind not in ("bpe", "wpe"):
        raise config.error("type", "bpe, wpe or agg", kind)
    key = "model_path" if kind == "bpe" else "vocab_path"
    name = config.text(key).removeprefix("nemo:")
    if name not in files:
        raise CheckpointError(f"{config.source}: tokenizer file {name} is missing")
    where = f"{config.source}: {name}"
    if kind == "bpe":
        return SentencePieceTokenizer(files[name], where)
    try:
        return WordPieceTokenizer(files[name].decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 text") from error
