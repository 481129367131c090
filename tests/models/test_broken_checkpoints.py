"""Checkpoints that are broken or not supported: one line that names the file and what was expected."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from models.checkpoint_tools import (
    FIXTURES,
    assert_refused,
    assert_works,
    edited_folder,
    edited_nemo,
    pack,
    unpack,
)

from rnnt_fastdecode import CheckpointError, load


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def test_missing_and_surplus_weights_of_a_nemo_file(tmp_path):
    key = "encoder.layers.1.self_attn.linear_q.weight"
    assert_refused(edited_nemo(tmp_path / "a.nemo", weights=without(key)), "missing", key)
    path = edited_nemo(tmp_path / "b.nemo", weights=lambda state: {**state, "adapter.weight": torch.zeros(2)})
    assert_refused(path, "unexpected adapter.weight")
    for key in ("joint.joint_net.2.weight", "decoder.prediction.embed.weight"):
        assert_refused(edited_nemo(tmp_path / "c.nemo", weights=without(key)), "missing", key)
    key = "decoder.prediction.embeds.1.weight"
    path = edited_nemo(tmp_path / "d.nemo", "nemo_stateless_characters", weights=without(key))
    assert_refused(path, "missing", key)
    key = "decoder.decoder_layers.0.weight"
    assert_refused(edited_nemo(tmp_path / "e.nemo", "nemo_ctc", weights=without(key)), "missing", key)


def test_a_predictor_that_nemo_does_not_have(tmp_path):
    """NeMo's RNNTDecoder is an LSTM whatever its configuration says."""

    def rename(state):
        return {name.replace("dec_rnn.lstm", "dec_rnn.gru"): value for name, value in state.items()}

    path = edited_nemo(tmp_path / "a.nemo", weights=rename)
    assert_refused(
        path, "missing decoder.prediction.dec_rnn.lstm.", "unexpected decoder.prediction.dec_rnn.gru."
    )


def test_missing_and_surplus_weights_of_a_transformers_folder(tmp_path):
    key = "encoder_projector.weight"
    assert_refused(edited_folder(tmp_path / "a", "parakeet_rnnt", weights=without(key)), "missing", key)
    path = edited_folder(tmp_path / "b", "parakeet_ctc", weights=lambda s: {**s, "more": torch.zeros(2)})
    assert_refused(path, "unexpected more")
    path = edited_folder(tmp_path / "c", "parakeet_ctc", weights=without("ctc_head.weight"))
    assert_refused(path, "missing ctc_head.weight")


def test_weights_of_the_wrong_shape(tmp_path):
    def cut(state):
        return {**state, "joint.enc.weight": state["joint.enc.weight"][:-1]}

    assert_refused(
        edited_nemo(tmp_path / "a.nemo", weights=cut), "joint.enc.weight must be [40, 24], got [39, 24]"
    )


# Section, changed fields, what the error says.
NEMO_EDITS = [
    ("", {"target": "nemo.EncDecMultiTaskModel"}, "EncDecMultiTaskModel is not supported"),
    ("", {"target": None}, "target must be a string"),
    ("", {"encoder": None}, "encoder must be a mapping"),
    ("encoder", {"subsampling": "striding"}, "encoder.subsampling must be dw_striding"),
    ("encoder", {"subsampling_factor": 4}, "encoder.subsampling_factor must be 8, got 4"),
    ("encoder", {"self_attention_model": "abs_pos"}, "self_attention_model"),
    ("encoder", {"att_context_style": "chunked_limited_with_rc"}, "context_style"),
    ("encoder", {"att_context_size": [1, 2, 3]}, "encoder"),
    ("encoder", {"conv_norm_type": "group_norm4"}, "conv_norm"),
    ("encoder", {"conv_context_size": [6, 2]}, "conv_context_size must be causal"),
    ("encoder", {"n_heads": 5}, "num_heads"),
    ("encoder", {"d_model": "wide"}, "encoder.d_model must be an integer, got 'wide'"),
    ("preprocessor", {"normalize": "all_features"}, "preprocessor.normalize"),
    ("preprocessor", {"mag_power": 1.0}, "preprocessor.mag_power must be 2.0, got 1.0"),
    ("preprocessor", {"features": 40}, "preprocessor: filterbank must be [40, 257]"),
    ("decoder", {"blank_as_pad": False}, "decoder.blank_as_pad must be true"),
    ("decoder", {"_target_": "x.TransformerDecoder"}, "RNNTDecoder"),
    ("decoder", {"normalization_mode": "layer"}, "normalization_mode must be null"),
    ("joint", {"_target_": "x.HATJoint"}, "joint._target_ must be RNNTJoint"),
    ("joint.jointnet", {"activation": "gelu"}, "relu, tanh or sigmoid"),
    ("decoding", {"durations": [0, 1]}, "durations [0, 1]"),
    ("decoding", {"big_blank_durations": [2, 4]}, "multi-blank"),
    ("tokenizer", {"model_path": "nemo:other.model"}, "other.model is missing"),
    ("tokenizer", {"type": "canary"}, "tokenizer.type must be bpe, wpe or agg"),
]


def changing(section, fields):
    """A function that changes these fields of a configuration."""

    def change(config):
        for name in filter(None, section.split(".")):
            config = config[name]
        config.update(fields)

    return change


@pytest.mark.parametrize(("section", "fields", "message"), NEMO_EDITS)
def test_unsupported_nemo_configurations(tmp_path, section, fields, message):
    assert_refused(edited_nemo(tmp_path / "model.nemo", config=changing(section, fields)), message)


FOLDER_EDITS = [
    ("", {"architectures": ["WhisperModel"]}, "architectures must be one of"),
    ("", {"architectures": ["Nemotron3_5AsrForRNNT"]}, "Nemotron3_5AsrForRNNT"),
    ("", {"architectures": None}, "architectures"),
    ("", {"encoder_config": None}, "encoder_config must be a mapping"),
    ("encoder_config", {"hidden_act": "gelu"}, "encoder_config.hidden_act"),
    ("encoder_config", {"subsampling_factor": 4}, "subsampling_factor must be 8"),
    ("", {"hidden_act": "gelu"}, "hidden_act must be relu, tanh or sigmoid"),
    ("", {"blank_token_id": 999}, "blank of the rnnt head"),
    ("encoder_config", {"num_mel_bins": 80}, "feature_size must be 80"),
    ("encoder_config", {"num_attention_heads": 5}, "num_heads"),
    ("", {"format": "other-3"}, "format must be 'rnnt_fastdecode-1'"),
]


@pytest.mark.parametrize(("section", "fields", "message"), FOLDER_EDITS)
def test_unsupported_transformers_configurations(tmp_path, section, fields, message):
    path = edited_folder(tmp_path / "model", "parakeet_rnnt", config=changing(section, fields))
    assert_refused(path, message)


def leaves(config, path=()):
    for key, value in config.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("name", ["nemo_tdt", "nemo_stateless_characters", "nemotron_streaming"])
def test_no_value_in_a_configuration_ends_in_a_traceback(tmp_path, name):
    is_nemo = name.startswith("nemo_")
    if is_nemo:
        values = yaml.safe_load(unpack(name)["model_config.yaml"])
    else:
        values = json.loads((FIXTURES / name / "config.json").read_text())
    junk = [None, "junk", -3, 0.5, [], {}, [None]]
    refused = 0
    for index, path in enumerate(leaves(values)):
        change = changing(".".join(path[:-1]), {path[-1]: junk[index % len(junk)]})
        where = tmp_path / f"{index}.nemo"
        broken = edited_nemo(where, name, change) if is_nemo else edited_folder(where, name, change)
        try:
            load(broken, device="cpu")
        except CheckpointError:
            refused += 1
    assert refused > 8


def test_durations_that_are_no_frame_counts(tmp_path):
    path = edited_folder(tmp_path / "a", "parakeet_tdt", config=lambda c: c.update(durations=[0, 1.5]))
    assert_refused(path, "durations must be a list of frame counts")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_truncated_nemo_files(tmp_path, share):
    data = (FIXTURES / "nemo_tdt" / "model.nemo").read_bytes()
    path = tmp_path / "cut.nemo"
    path.write_bytes(data[: int(len(data) * share)])
    assert_refused(path)


def test_files_that_are_no_archive(tmp_path):
    path = tmp_path / "song.nemo"
    path.write_bytes(b"RIFF" + bytes(5000))
    assert_refused(path, "not a readable .nemo file")
    assert_refused(pack(tmp_path / "other.nemo", {"readme": b"hello"}), "model_config.yaml is missing")
    assert_refused(tmp_path / "nowhere.nemo", "no such file or directory")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a: [", b"- 1\n- 2", b"", b"!!python/object:os.system x"])
def test_nemo_configurations_that_are_no_mapping(tmp_path, data):
    path = pack(tmp_path / "a.nemo", {**unpack("nemo_ctc"), "model_config.yaml": data})
    assert_refused(path, "model_config.yaml")


def test_weights_are_never_unpickled_into_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    buffer = io.BytesIO()
    torch.save({"trap": Trap()}, buffer)
    path = pack(tmp_path / "a.nemo", {**unpack("nemo_ctc"), "model_weights.ckpt": buffer.getvalue()})
    assert_refused(path, "model_weights.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_broken_transformers_folders(tmp_path):
    assert_refused(tmp_path, "config.json", "missing")
    path = edited_folder(tmp_path / "a", "parakeet_rnnt")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_refused(path, "model.safetensors", "not a safetensors file")
    (path / "model.safetensors").unlink()
    assert_refused(path, "neither model.safetensors nor model.safetensors.index.json")
    path = edited_folder(tmp_path / "b", "parakeet_tdt")
    (path / "model-00002-of-00002.safetensors").unlink()
    assert_refused(path, "model-00002-of-00002.safetensors", "missing")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../up.safetensors"}}')
    assert_refused(path, "must be a file name in the same folder")
    path = edited_folder(tmp_path / "c", "parakeet_ctc")
    (path / "tokenizer.json").unlink()
    assert_refused(path, "tokenizer.json")
    (path / "config.json").write_text("{")
    assert_refused(path, "config.json", "not readable JSON")


def test_native_folders_name_what_is_wrong(tmp_path, tiny_model_folder):
    def edited(edit):
        path = tmp_path / "model"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tiny_model_folder, path)
        values = json.loads((path / "config.json").read_text())
        edit(values)
        (path / "config.json").write_text(json.dumps(values))
        return path

    assert_works(load(tiny_model_folder, device="cpu"))
    for edit, message in (
        (lambda c: c["encoder"].update(layers=3), "encoder.layers is not a setting of FastConformerConfig"),
        (lambda c: c["encoder"].pop("d_model"), "d_model"),
        (lambda c: c["encoder"].update(contexts=[[70]]), "encoder"),
        (lambda c: c["features"].update(hop=0), "features: hop must be at least 1"),
        (lambda c: c.update(default_head="aed"), "default_head must be one of rnnt, tdt, ctc"),
        (lambda c: c["heads"]["tdt"].update(durations=[0, 1]), "joint.output.weight"),
        (lambda c: c["heads"]["ctc"].update(type="aed"), "heads.ctc.type must be transducer or ctc"),
        (
            lambda c: c["heads"]["rnnt"]["predictor"].update(type="rnn"),
            "heads.rnnt.predictor.type must be lstm, gru or stateless, got 'rnn'",
        ),
        (
            lambda c: c["heads"]["rnnt"]["predictor"].update(type="gru"),
            "missing heads.rnnt.predictor.gru.weight_ih_l0",
        ),
        (lambda c: c["heads"]["rnnt"].update(activation="gelu"), "activation"),
        (lambda c: c["tokenizer"].update(labels=["a"]), "the tokenizer has 1 tokens"),
        (lambda c: c["tokenizer"].update(type="sentencepiece", file="x.model"), "x.model"),
        (lambda c: c["tokenizer"].update(type="bytes"), "tokenizer.type"),
    ):
        assert_refused(edited(edit), message)
