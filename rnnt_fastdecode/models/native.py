"""This package's own checkpoints: config.json, model.safetensors and a tokenizer in one folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..audio.mel import LogMel, MelConfig
from ..encoder import FastConformerConfig
from ..errors import ArgumentError, CheckpointError
from .blueprint import Blueprint, CtcSpec, GruSpec, HeadSpec, LstmSpec, StatelessSpec, TransducerSpec
from .config_reader import Config, is_frame_counts
from .tensors import read_safetensors
from .tokenizer import CharacterTokenizer, SentencePieceTokenizer, Tokenizer

FORMAT = "rnnt_fastdecode-1"


def read_native(path: Path, values: dict[str, Any]) -> Blueprint:
    """Read a folder whose config.json holds `values`; CheckpointError for anything broken."""
    config = Config(values, str(path / "config.json"))
    heads = config.section("heads")
    default = config.text("default_head")
    if default not in heads:
        raise config.error("default_head", f"one of {', '.join(heads)}", default)
    return Blueprint(
        source=str(path),
        name=config.text("name"),
        features=LogMel(_dataclass(MelConfig, config.section("features"))),
        encoder=_dataclass(FastConformerConfig, config.section("encoder")),
        heads={name: _head(heads.section(name)) for name in heads},
        default_head=default,
        tokenizer=_tokenizer(path, config.section("tokenizer")),
        weights=read_safetensors(path),
        rename=lambda key: key,
    )


def _dataclass(kind: type, config: Config) -> Any:
    known = {item.name for item in fields(kind)}
    surplus = [key for key in config if key not in known]
    if surplus:
        raise CheckpointError(
            f"{config.source}: {config.where}{surplus[0]} is not a setting of {kind.__name__}"
        )
    try:
        return kind(**config.values)
    except (ArgumentError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config.source}: {config.where[:-1]}: {error}") from error


def _head(config: Config) -> HeadSpec:
    kind = config.text("type")
    if kind == "ctc":
        return CtcSpec(config.integer("vocab_size"), config.integer("blank_id"))
    if kind != "transducer":
        raise config.error("type", "transducer or ctc", kind)
    durations = config.get("durations", ())
    if not is_frame_counts(durations):
        raise config.error("durations", "a list of frame counts", durations)
    return TransducerSpec(
        vocab_size=config.integer("vocab_size"),
        blank_id=config.integer("blank_id"),
        joint_width=config.integer("joint_width"),
        predictor=_predictor(config.section("predictor")),
        activation=config.text("activation"),
        durations=tuple(durations),
        max_symbols=config.integer("max_symbols", 10),
    )


def _predictor(config: Config) -> LstmSpec | GruSpec | StatelessSpec:
    kind = config.text("type")
    if kind in ("lstm", "gru"):
        spec = LstmSpec if kind == "lstm" else GruSpec
        return spec(config.integer("hidden"), config.integer("num_layers"))
    if kind == "stateless":
        return StatelessSpec(config.integer("hidden"), config.integer("context"), config.get("activation"))
    raise config.error("type", "lstm, gru or stateless", kind)


def _tokenizer(path: Path, config: Config) -> Tokenizer:
    kind = config.text("type")
    if kind == "characters":
        return CharacterTokenizer(config.get("labels", []))
    if kind != "sentencepiece":
        raise config.error("type", "sentencepiece or characters", kind)
    where = path / config.text("file")
    try:
        return SentencePieceTokenizer(where.read_bytes(), str(where))
    except OSError as error:
        raise CheckpointError(f"{where}: missing or not readable") from error
