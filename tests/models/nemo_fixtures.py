"""The fixtures that NeMo 3.0.0 makes; see make_fixtures.py."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from fixture_tools import FIXTURES, MELS, TEXT, first_lively, randomise, spread, tune_blank, write_expected
from torch import Tensor
from waveform import synthetic_utterances


def train_sentencepiece(folder: Path, size: int) -> None:
    import sentencepiece

    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        model_type="bpe",
        normalization_rule_name="identity",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    pieces = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join(line.split("\t")[0] for line in pieces), encoding="utf-8")


def nemo_config(tokenizer_dir: str | None, labels: list[str] | None, **parts: dict) -> dict:
    featurizer = {"window": "hann", "normalize": "per_feature", "features": MELS, "dither": 1e-5, "pad_to": 0}
    encoder = {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": MELS,
        "feat_out": -1,
        "n_layers": 2,
        "d_model": 24,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": 16,
        "causal_downsampling": False,
        "ff_expansion_factor": 2,
        "self_attention_model": "rel_pos",
        "n_heads": 4,
        "att_context_size": [-1, -1],
        "att_context_style": "regular",
        "xscaling": False,
        "untie_biases": True,
        "conv_kernel_size": 9,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "use_bias": False,
    }
    config = dict(
        sample_rate=16000,
        preprocessor=dict(
            _target_="nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            sample_rate=16000,
            window_size=0.025,
            window_stride=0.01,
            n_fft=512,
            **{**featurizer, **parts.pop("featurizer", {})},
        ),
        encoder={**encoder, **parts.pop("encoder", {})},
        model_defaults={"enc_hidden": 24, "pred_hidden": 24, "joint_hidden": 40},
        **parts,
    )
    if tokenizer_dir is not None:
        config["tokenizer"] = {"dir": tokenizer_dir, "type": "bpe"}
    if labels is not None:
        config["labels"] = labels
    return config


def nemo_transducer(
    durations: list[int], layers: int = 2, activation: str = "relu", dropout: float = 0.2
) -> dict:
    tdt = (
        {"model_type": "tdt", "durations": durations, "tdt_include_token_duration": True} if durations else {}
    )
    loss = (
        {"loss_name": "tdt", "tdt_kwargs": {"durations": durations}}
        if durations
        else {"loss_name": "default"}
    )
    return {
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "vocab_size": -1,
            "prednet": {"pred_hidden": 24, "pred_rnn_layers": layers, "dropout": 0.2},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "num_classes": -1,
            "num_extra_outputs": len(durations),
            "jointnet": {"joint_hidden": 40, "activation": activation, "dropout": dropout},
        },
        "decoding": dict(strategy="greedy_batch", greedy={"max_symbols": 4}, **tdt),
        "loss": loss,
    }


def nemo_ctc_head() -> dict:
    return {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": 24,
        "num_classes": -1,
        "vocabulary": [],
    }


def nemo_streaming_encoder() -> dict:
    return {
        "causal_downsampling": True,
        "att_context_size": [[8, 3], [8, 1], [8, 0]],
        "att_context_style": "chunked_limited",
        "conv_norm_type": "layer_norm",
        "conv_context_size": "causal",
        "xscaling": True,
        "use_bias": True,
    }


def make_nemo() -> None:
    from nemo.collections.asr.models import EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
    from nemo.collections.asr.models.rnnt_bpe_models import EncDecRNNTBPEModel
    from nemo.collections.asr.models.rnnt_models import EncDecRNNTModel

    stateless = nemo_transducer([], activation="tanh", dropout=0.0)
    stateless["decoder"] = {
        "_target_": "nemo.collections.asr.modules.StatelessTransducerDecoder",
        "context_size": 2,
        "vocab_size": -1,
        "normalization_mode": None,
        "prednet": {"pred_hidden": 24},
    }
    characters = [" ", *"abcdefghijklmnopqrstuvwxyz'"]
    # The folder's name ends up in the checkpoints: a relative one says nothing about this machine.
    with tempfile.TemporaryDirectory() as workspace, contextlib.chdir(workspace):
        folder = "tokenizer"
        Path(folder).mkdir()
        train_sentencepiece(Path(folder), 48)
        models = {
            "nemo_tdt": (EncDecRNNTBPEModel, nemo_config(folder, None, **nemo_transducer([0, 1, 2, 4]))),
            "nemo_hybrid_streaming": (
                EncDecHybridRNNTCTCBPEModel,
                nemo_config(
                    folder,
                    None,
                    featurizer={"normalize": "NA"},
                    encoder=nemo_streaming_encoder(),
                    aux_ctc={"ctc_loss_weight": 0.3, "decoder": nemo_ctc_head()},
                    **nemo_transducer([], layers=1),
                ),
            ),
            "nemo_stateless_characters": (
                EncDecRNNTModel,
                nemo_config(
                    None,
                    characters,
                    encoder={"att_context_size": [10, 2], "use_bias": True, "conv_context_size": "causal"},
                    **stateless,
                ),
            ),
            "nemo_ctc": (
                EncDecCTCModelBPE,
                nemo_config(folder, None, encoder={"xscaling": True}, decoder=nemo_ctc_head()),
            ),
        }
        for seed, (name, (kind, config)) in enumerate(models.items()):
            first_lively(partial(save_nemo, name, kind, config), seed)


@torch.no_grad()
def save_nemo(name: str, kind: type, config: dict, seed: int) -> None:
    from omegaconf import OmegaConf

    model = kind(cfg=OmegaConf.create(config)).eval()
    randomise(model, seed)
    transducer = hasattr(model, "joint")
    if transducer:
        # The rows of the padding label, which training never touches.
        for module in model.decoder.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[module.padding_idx] = 0.0
    heads = ["tdt" if model.joint.num_extra_outputs else "rnnt"] if transducer else []
    heads += ["ctc"] if not transducer or hasattr(model, "ctc_decoder") else []
    audio = [torch.from_numpy(samples) for samples in synthetic_utterances()]
    contexts = getattr(model.encoder, "att_context_size_all", [[-1, -1]])

    def encode(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = torch.tensor([len(samples)])
        features, frames = model.preprocessor(input_signal=samples.unsqueeze(0), length=length)
        encoded, encoded_len = model.encoder(audio_signal=features, length=frames)
        return features[0, :, : frames[0]].T, encoded, encoded_len

    def decode(encoded: Tensor, lengths: Tensor, ctc: bool) -> tuple[list[int], object]:
        if not ctc:
            hypothesis = model.decoding.rnnt_decoder_predictions_tensor(
                encoded, lengths, return_hypotheses=True
            )[0]
            return hypothesis.y_sequence.tolist(), hypothesis
        head, decoding = (
            (model.ctc_decoder, model.ctc_decoding) if transducer else (model.decoder, model.decoding)
        )
        scores = head(encoder_output=encoded)
        hypothesis = decoding.ctc_decoder_predictions_tensor(scores, lengths, return_hypotheses=True)[0]
        # The hypothesis keeps one label for each frame; its text is of the merged ones.
        merged = torch.unique_consecutive(scores[0, : lengths[0]].argmax(dim=-1))
        tokens = merged[merged != scores.shape[-1] - 1].tolist()
        assert hypothesis.text == decoding.decode_tokens_to_str(decoding.decode_ids_to_tokens(tokens))
        return tokens, hypothesis

    encoded = [encode(samples)[1:] for samples in audio]
    total = sum(int(length) for _, length in encoded)
    frames = torch.cat([output[0, :, : length[0]].T for output, length in encoded])

    def tune(bias: Tensor, blank: int, ctc: bool) -> None:
        tune_blank(bias, blank, lambda: sum(len(decode(*pair, ctc)[0]) for pair in encoded), total // 2)

    if transducer:
        blank = model.decoder.blank_idx
        output = model.joint.joint_net[-1]
        model.joint.pred.weight *= 2.0
        projected = spread(model.joint.enc.weight, model.joint.enc.bias, frames, 1.0)
        spread(output.weight, output.bias, model.joint.joint_net[0](projected), 2.0)
        tune(output.bias, blank, False)
    if "ctc" in heads:
        layer = (model.ctc_decoder if transducer else model.decoder).decoder_layers[0]
        spread(layer.weight, layer.bias, frames, 2.0)
        tune(layer.bias, -1, True)

    tensors: dict[str, Tensor] = {}
    texts: list[str] = []
    for context in contexts:
        model.encoder.set_default_att_context_size(list(context))
        for row, samples in enumerate(audio):
            key = f"{context[0]},{context[1]}.{row}"
            features, output, length = encode(samples)
            tensors[f"features.{row}"] = features
            tensors[f"encoded.{key}"] = output[0, :, : length[0]].T
            for head in heads:
                ctc = head == "ctc"
                tokens, hypothesis = decode(output, length, ctc)
                tensors[f"tokens.{head}.{key}"] = torch.tensor(tokens, dtype=torch.int64)
                if not ctc:
                    tensors[f"frames.{head}.{key}"] = torch.as_tensor(hypothesis.timestamp).long()
                    if hypothesis.token_duration is not None and len(hypothesis.token_duration):
                        tensors[f"durations.{head}.{key}"] = torch.as_tensor(hypothesis.token_duration).long()
                if context == contexts[0] and head == heads[0]:
                    texts.append(hypothesis.text)
    model.encoder.set_default_att_context_size(list(contexts[0]))
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_to(str(folder / "model.nemo"))
    write_expected(folder, tensors, texts)
