"""The fixtures that transformers 5.17 makes; see make_fixtures.py."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import torch
from fixture_tools import FIXTURES, MELS, TEXT, first_lively, randomise, spread, tune_blank, write_expected
from torch import Tensor
from waveform import synthetic_utterances


def save_processor(folder: Path, kind: str, unigram: bool, **settings: object) -> object:
    """A feature extractor and a tokenizer with the blank as its last token."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    extractor = getattr(transformers, f"{kind}FeatureExtractor")(feature_size=MELS)
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<pad>"]
    if unigram:
        trainer = trainers.UnigramTrainer(vocab_size=48, unk_token="<unk>", special_tokens=special)
        tokenizer.decoder = decoders.Metaspace()
    else:
        trainer = trainers.BpeTrainer(vocab_size=56, special_tokens=special)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    fast = transformers.ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<blank>"]})
    processor = getattr(transformers, f"{kind}Processor")(extractor, fast, **settings)
    processor.save_pretrained(folder)
    return processor


def make_transformers() -> None:
    import transformers

    size = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "subsampling_conv_channels": 16,
        "num_mel_bins": MELS,
    }
    joint = {"decoder_hidden_size": 24, "max_symbols_per_step": 4}
    parakeet = {"attention_bias": False, "convolution_bias": False, "scale_input": False}
    streaming = {"sliding_window": 9, "default_num_lookahead_tokens": 3}
    models = {
        "parakeet_ctc": (transformers.ParakeetForCTC, "ctc", {**parakeet, "convolution_bias": True}, {}),
        "parakeet_rnnt": (transformers.ParakeetForRNNT, "rnnt", {**parakeet, "scale_input": True}, joint),
        "parakeet_tdt": (
            transformers.ParakeetForTDT,
            "tdt",
            parakeet,
            {**joint, "durations": [0, 1, 2, 3], "num_decoder_layers": 1},
        ),
        "nemotron_streaming": (transformers.NemotronAsrStreamingForRNNT, "rnnt", streaming, joint),
    }
    for seed, (name, (model_class, head, encoder, config)) in enumerate(models.items()):
        kind = "NemotronAsrStreaming" if encoder is streaming else "Parakeet"
        save = partial(save_transformers, name, model_class, kind, head, {**size, **encoder}, config)
        first_lively(save, seed)


@torch.no_grad()
def save_transformers(
    name: str, model_class: type, kind: str, head: str, encoder: dict, config: dict, seed: int
) -> None:
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    is_streaming = kind == "NemotronAsrStreaming"
    lookaheads = {"supported_num_lookahead_tokens": [3, 1, 0]} if is_streaming else {}
    processor = save_processor(folder, kind, unigram=seed % 2 == 0, **lookaheads)
    blank = processor.tokenizer.convert_tokens_to_ids("<blank>")
    ids = {"pad_token_id": blank} if head == "ctc" else {"pad_token_id": 1, "blank_token_id": blank}
    model = model_class(
        model_class.config_class(encoder_config=encoder, vocab_size=blank + 1, **ids, **config)
    ).eval()
    randomise(model, 10 + seed)
    audio = synthetic_utterances()

    def encode(samples: object, **context: int) -> tuple[dict, Tensor]:
        inputs = processor.feature_extractor([samples], sampling_rate=16000, return_tensors="pt")
        inputs = dict(input_features=inputs.input_features, attention_mask=inputs.attention_mask, **context)
        output = model.encoder(**inputs)
        return inputs, output.last_hidden_state[0, : output.attention_mask[0].sum()]

    def decode(inputs: dict) -> tuple[list[int], list[int], list[int]]:
        if head == "ctc":
            merged = torch.unique_consecutive(model.generate(**inputs)[0])
            return merged[merged != blank].tolist(), [], []
        # A model that the conversion script wrote has both settings; a fresh one has neither.
        model.generation_config.decoder_start_token_id = blank
        model.generation_config.suppress_tokens = list(
            range(blank + 1, blank + 1 + len(config.get("durations", [])))
        )
        output = model.generate(**inputs)
        tokens, durations = output.sequences[0, 1:], output.durations[0, 1:]
        frames = durations.cumsum(0) - durations
        kept = tokens != blank
        return tokens[kept].tolist(), frames[kept].tolist(), durations[kept].tolist()

    encoded = [encode(samples) for samples in audio]
    frames = torch.cat([output for _, output in encoded])
    if head == "ctc":
        output = model.ctc_head
        spread(output.weight, output.bias, frames, 2.0)
    else:
        output = model.joint.head
        model.decoder.decoder_projector.weight *= 2.0
        projector = model.encoder_projector
        projected = spread(projector.weight, projector.bias, frames, 1.0)
        spread(output.weight, output.bias, model.joint.activation(projected), 2.0)
        # generate() does not end a chain of labels with duration 0.
        output.bias[blank + 1 : blank + 2] -= 12.0
    tune_blank(
        output.bias, blank, lambda: sum(len(decode(inputs)[0]) for inputs, _ in encoded), len(frames) // 2
    )

    tensors: dict[str, Tensor] = {}
    texts: list[str] = []
    left = encoder.get("sliding_window", 0) - 1
    for right in lookaheads.get("supported_num_lookahead_tokens", [-1]):
        for row, samples in enumerate(audio):
            key = f"{left},{right}.{row}"
            inputs, output = encode(samples, **({"num_lookahead_tokens": right} if is_streaming else {}))
            tensors[f"features.{row}"] = inputs["input_features"][0, : inputs["attention_mask"][0].sum()]
            tensors[f"encoded.{key}"] = output
            tokens, starts, durations = decode(inputs)
            tensors[f"tokens.{head}.{key}"] = torch.tensor(tokens, dtype=torch.int64)
            if head != "ctc":
                tensors[f"frames.{head}.{key}"] = torch.tensor(starts, dtype=torch.int64)
            if head == "tdt":
                tensors[f"durations.{head}.{key}"] = torch.tensor(durations, dtype=torch.int64)
            if len(texts) < len(audio):
                texts.append(processor.tokenizer.decode(tokens, skip_special_tokens=True, group_tokens=False))
    model.save_pretrained(folder, max_shard_size="100KB" if head == "tdt" else "5GB")
    write_expected(folder, tensors, texts)
