"""The build: which torch it compiles against, for which GPUs, and what it says when it cannot."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "build_backend"


@pytest.fixture
def native(monkeypatch):
    """A fresh copy of the module, as the build imports it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("native", FOLDER / "native.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "native", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(native, tmp_path):
    """An nvcc that knows four GPUs."""
    script = tmp_path / "nvcc"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo release 12.4, V || printf "sm_%s\\n" 75 80 89 90\n'
    )
    script.chmod(0o755)
    return native.Nvcc(script, "12.4")


def pretend_torch(folder, version):
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
    return folder


def test_default_targets_are_limited_to_what_nvcc_knows(native, nvcc, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert native.cuda_architectures(nvcc) == ["80", "89", "90a"]


@pytest.mark.parametrize(
    ("wish", "targets"),
    [
        ("9.0", ["90a"]),
        ("9.0+PTX", ["90+PTX"]),
        ("8.0;9.0a+PTX", ["80", "90a+PTX"]),
        ("8.0 8.9", ["80", "89"]),
    ],
)
def test_targets_can_be_chosen(native, nvcc, monkeypatch, wish, targets):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    assert native.cuda_architectures(nvcc) == targets


@pytest.mark.parametrize(
    ("wish", "message"),
    [("hopper", "TORCH_CUDA_ARCH_LIST must list targets"), ("12.0", "None of the targets")],
)
def test_targets_that_cannot_be_built_are_refused(native, nvcc, monkeypatch, wish, message):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    with pytest.raises(native.BuildError, match=message):
        native.cuda_architectures(nvcc)


def test_the_installed_torch_is_found_without_importing_it(native, monkeypatch, tmp_path):
    old = pretend_torch(tmp_path / "old", "2.10.1")
    new = pretend_torch(tmp_path / "new", "2.11.0+cu130")
    monkeypatch.setattr(native, "_site_directories", lambda: [tmp_path, old, new])
    assert native.find_torch() == native.Torch(new / "torch", "2.11.0+cu130")


def test_torch_is_a_build_requirement_only_where_none_fits(native, monkeypatch, tmp_path):
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("backend", FOLDER / "backend.py")
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    monkeypatch.setattr(native, "_site_directories", lambda: [tmp_path])
    assert backend._torch_requirement() == ["torch>=2.11"]
    pretend_torch(tmp_path, "2.13.0")
    assert backend._torch_requirement() == []


def test_without_torch_the_message_says_what_to_install(native, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "find_torch", lambda: None)
    with pytest.raises(native.BuildError, match="pip install torch"):
        native.build(tmp_path, "0")


def test_cuda_can_be_left_out(native, monkeypatch):
    monkeypatch.setenv("RNNT_FASTDECODE_CUDA", "0")
    assert native.find_nvcc() is None
