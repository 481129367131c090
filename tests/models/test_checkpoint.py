"""What `load` makes of checkpoints: types, devices, formats."""

import io
import json
import shutil
import subprocess
import sys

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
from safetensors.torch import load_file, save_file

from rnnt_fastdecode import ArgumentError, GruPredictor, load, ops


def in_bfloat16(state):
    return {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}


@pytest.mark.parametrize("name", ["nemo_tdt", "nemo_hybrid_streaming", "nemo_ctc"])
def test_a_bfloat16_nemo_file_stays_bfloat16(tmp_path, name):
    model = load(edited_nemo(tmp_path / "half.nemo", name, weights=in_bfloat16), device="cpu")
    floating = [value for value in model.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert model.features.filterbank.dtype == torch.float32
    assert_works(model)


@pytest.mark.parametrize("name", ["parakeet_ctc", "parakeet_rnnt", "nemotron_streaming"])
def test_a_bfloat16_transformers_folder_stays_bfloat16(tmp_path, name):
    model = load(edited_folder(tmp_path / "half", name, weights=in_bfloat16), device="cpu")
    assert model.dtype == torch.bfloat16
    assert_works(model)


@pytest.mark.parametrize("dtype", [torch.float16, "bfloat16", "float32"])
def test_dtype_overrides_the_checkpoint(dtype):
    model = load(FIXTURES / "parakeet_tdt", dtype=dtype, device="cpu")
    assert model.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    assert_works(model)


def with_gru_predictors(source, folder):
    """Copies a native checkpoint, with GRU predictors of two layers instead: returns their weights."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    new = {}
    for name in ("rnnt", "tdt"):
        head = config["heads"][name]
        head["predictor"].update(type="gru", num_layers=2)
        prefix = f"heads.{name}.predictor."
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
        predictor = GruPredictor(head["vocab_size"], head["predictor"]["hidden"], 2, head["joint_width"])
        new |= {prefix + key: value.contiguous() for key, value in predictor.state_dict().items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({**state, **new}, folder / "model.safetensors")
    return new


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_native_checkpoints_may_have_gru_predictors(tmp_path, tiny_model_folder, dtype):
    weights = with_gru_predictors(tiny_model_folder, tmp_path / "gru")
    model = load(tmp_path / "gru", dtype=dtype, device="cpu")
    state = model.state_dict()
    assert all(torch.equal(state[key], value.to(model.dtype)) for key, value in weights.items())
    assert_works(model)


def test_a_loaded_model_is_for_inference():
    model = load(FIXTURES / "parakeet_tdt", device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.device == torch.device("cpu")
    assert model.frame_seconds == pytest.approx(0.08)
    assert model.name == "parakeet_tdt"


def test_decoders_follow_the_model_to_another_dtype():
    model = load(FIXTURES / "nemo_tdt" / "model.nemo", device="cpu")
    assert_works(model)
    assert_works(model.bfloat16())
    assert model.dtype == torch.bfloat16


def test_batches_without_rows_and_rows_without_audio():
    model = load(FIXTURES / "nemo_hybrid_streaming" / "model.nemo", device="cpu")
    encoded, lengths = model.encode(torch.zeros(0, 16000), torch.zeros(0, dtype=torch.int64))
    for head in model.heads:
        assert model.decode(encoded, lengths, head) == []
    encoded, lengths = model.encode(torch.zeros(2, 16000), torch.tensor([0, 16000]))
    assert lengths.tolist()[0] == 0
    for head in model.heads:
        assert model.decode(encoded, lengths, head)[0].tokens == []


@pytest.mark.parametrize("length", [-1, 16001])
def test_lengths_beyond_the_audio_are_named(length):
    model = load(FIXTURES / "nemo_hybrid_streaming" / "model.nemo", device="cpu")
    with pytest.raises(ArgumentError, match=f"lengths must lie between 0 and 16000 samples, got {length}"):
        model.encode(torch.zeros(1, 16000), torch.tensor([length]))
    for head in model.heads:
        with pytest.raises(ArgumentError, match="lengths must lie between 0 and 9 frames"):
            model.decode(torch.zeros(1, 9, 24), torch.tensor([min(length, 10)]), head)


def test_loading_needs_neither_nemo_nor_transformers(apart):
    program = (
        "import sys, rnnt_fastdecode; [rnnt_fastdecode.load(path, device='cpu') for path in sys.argv[1:]]; "
        "sys.exit(bool({'nemo', 'transformers', 'tokenizers', 'librosa'} & set(sys.modules)))"
    )
    paths = (FIXTURES / "nemo_tdt" / "model.nemo", FIXTURES / "parakeet_tdt")
    assert subprocess.run([sys.executable, "-c", program, *paths], check=False, **apart).returncode == 0


def test_unknown_heads_are_named():
    model = load(FIXTURES / "nemo_hybrid_streaming" / "model.nemo", device="cpu")
    with pytest.raises(ArgumentError, match=r"head must be one of \['ctc', 'rnnt'\], got 'tdt'"):
        model.decode(torch.zeros(1, 1, 24), torch.tensor([1]), "tdt")


def test_gzipped_nemo_files_are_read(tmp_path):
    path = pack(tmp_path / "old.nemo", unpack("nemo_ctc"), "w:gz")
    assert load(path, device="cpu").name == "old"


def test_interpolations_in_the_configuration_are_resolved(tmp_path):
    def refer(config):
        config["joint"]["jointnet"]["joint_hidden"] = "${model_defaults.joint_hidden}"
        config["decoder"]["prednet"]["pred_hidden"] = "${model_defaults.pred_hidden}"

    assert_works(load(edited_nemo(tmp_path / "model.nemo", config=refer), device="cpu"))


def test_tables_that_no_weights_need_may_be_there(tmp_path):
    def add(state):
        return {**state, "encoder.pos_enc.pe": torch.zeros(1, 9, 24), "loss.weight": torch.zeros(3)}

    assert_works(load(edited_nemo(tmp_path / "model.nemo", weights=add), device="cpu"))


def test_features_computed_where_the_checkpoint_has_no_filterbank(tmp_path):
    def strip(state):
        return {key: value for key, value in state.items() if not key.startswith("preprocessor.")}

    with_own = load(FIXTURES / "nemo_tdt" / "model.nemo", device="cpu").features
    computed = load(edited_nemo(tmp_path / "model.nemo", weights=strip), device="cpu").features
    torch.testing.assert_close(computed.filterbank, with_own.filterbank, rtol=0.0, atol=1e-7)
    torch.testing.assert_close(computed.window, with_own.window, rtol=0.0, atol=1e-7)


def with_tokenizer(members, section):
    config = yaml.safe_load(members["model_config.yaml"])
    config["tokenizer"] = section
    return {**members, "model_config.yaml": yaml.safe_dump(config).encode()}


def test_word_piece_vocabularies(tmp_path):
    members = unpack("nemo_ctc")
    words = ["[UNK]", *(f"word{i}" for i in range(20)), *(f"##s{i}" for i in range(27))]
    members["abc_vocab.txt"] = "\n".join(words).encode()
    members = with_tokenizer(members, {"type": "wpe", "vocab_path": "nemo:abc_vocab.txt"})
    tokenizer = load(pack(tmp_path / "model.nemo", members), device="cpu").tokenizer
    assert tokenizer.vocab_size == 48
    assert tokenizer.decode([1, 21, 0, 2]) == "word0s0 word1"
    assert tokenizer.words([1, 21, 0, 2]) == [("word0s0", 0, 2), ("word1", 3, 4)]


def test_aggregate_vocabularies(tmp_path):
    members = unpack("nemo_ctc")
    own = yaml.safe_load(members["model_config.yaml"])["tokenizer"]
    state = torch.load(io.BytesIO(members["model_weights.ckpt"]), weights_only=True)
    for name in ("weight", "bias"):
        key = f"decoder.decoder_layers.0.{name}"
        state[key] = torch.cat((state[key][:-1], state[key]))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    members["model_weights.ckpt"] = buffer.getvalue()
    members = with_tokenizer(members, {"type": "agg", "langs": {"en": own, "de": own}})
    model = load(pack(tmp_path / "model.nemo", members), device="cpu")
    assert model.tokenizer.vocab_size == 96
    assert model.tokenizer.pieces([5]) == model.tokenizer.pieces([53])
    assert_works(model)


def test_weights_of_a_type_we_do_not_run(tmp_path):
    def widen(state):
        return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}

    path = edited_nemo(tmp_path / "a.nemo", weights=widen)
    assert_refused(path, "torch.float64")
    assert load(path, dtype="float32", device="cpu").dtype == torch.float32


def test_a_gpu_without_cuda_ops_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops, "cuda_ops_loaded", False)
    assert load(FIXTURES / "parakeet_tdt").device == torch.device("cpu")


def test_dtypes_and_devices_that_are_none():
    with pytest.raises(ArgumentError, match="dtype must be 'auto' or one of float32, float16, bfloat16"):
        load(FIXTURES / "parakeet_ctc", dtype="int8")
    with pytest.raises(ArgumentError, match="dtype must be"):
        load(FIXTURES / "parakeet_ctc", dtype=torch.float64)
    with pytest.raises(ArgumentError, match="device must be a torch device"):
        load(FIXTURES / "parakeet_ctc", device="gpu please")
