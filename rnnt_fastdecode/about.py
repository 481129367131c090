"""What `rnnt-fastdecode info` shows: what was built, what is there, and which paths are used."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import soundfile
import torch

from . import __version__
from .errors import ArgumentError


def describe() -> Iterator[tuple[str, str]]:
    """Names and values, one line each."""
    yield "rnnt_fastdecode", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield (
        "torch",
        f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU build'})",
    )
    yield "built", _built()
    try:
        from . import ops
    except (ImportError, OSError) as error:
        yield "ops", f"cannot be loaded: {error}"
        return
    yield "CPU ops", _cpu_ops(ops.cpu_kernels)
    yield "CUDA ops", _cuda_ops(ops.cuda_ops_loaded)
    yield "cuda-python", _version_of("cuda-bindings")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"compute capability {properties.major}.{properties.minor}"
            yield (
                f"GPU {index}",
                f"{properties.name}, {capability}, {properties.total_memory / 2**30:.1f} GiB",
            )
    else:
        yield "GPU", "none that torch can use"
    yield "decoding on CPU", _decoding_path("cpu")
    if torch.cuda.is_available():
        yield "decoding on GPU", _decoding_path("cuda") if ops.cuda_ops_loaded else "not possible"
    yield "audio files", f"{soundfile.__libsndfile_version__}, soxr {_version_of('soxr')}"
    yield "bundled model", _bundled_model()


def _built() -> str:
    try:
        from . import _build_info as build
    except ImportError:
        return "not yet: this is a source tree"
    if not build.CUDA_ARCHITECTURES:
        return f"CPU ops, with torch {build.TORCH_VERSION}; no nvcc was found, or none was wanted"
    targets = ", ".join(build.CUDA_ARCHITECTURES)
    return f"CPU and CUDA ops for {targets}, with torch {build.TORCH_VERSION} and nvcc {build.NVCC_VERSION}"


def _cpu_ops(kernels: Callable[[], list[str]]) -> str:
    try:
        used, *others = kernels()
    except ArgumentError as error:
        return f"cannot be used: {error}"
    besides = f" (also possible: {', '.join(others)})" if others else ""
    return f"loaded, {torch.get_num_threads()} threads, {used} kernels{besides}"


def _cuda_ops(loaded: bool) -> str:
    if loaded:
        return "loaded"
    if not list((Path(__file__).parent / "_lib").glob("*_cuda.so")):
        return "not built"
    return "built, and not loaded: this torch is a CPU build"


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _decoding_path(device: str) -> str:
    """Decode two frames with a small random model: what works here, not what should."""
    from .transducer import GreedyDecoder, Joint, LstmPredictor

    try:
        predictor, joint = LstmPredictor(8, 16, 1, 16).to(device), Joint(16, 16, 8).to(device)
        decoder = GreedyDecoder(predictor, joint, blank_id=7)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            decoder(torch.zeros(1, 2, 16, device=device), torch.tensor([2]))
        reason = f": {caught[-1].message}" if caught else ""
        return {
            "cpu": "C++ loop over rows, threaded",
            "cuda resident": "one kernel with the weights in shared memory (larger networks: graph)",
            "cuda graph": "conditional-node graph, no host in the loop",
            "cuda host loop": f"kernels in a loop on the host{reason}",
        }.get(decoder.path, decoder.path)
    except Exception as error:
        return f"fails: {' '.join(str(error).split())}"


def _bundled_model() -> str:
    config = Path(__file__).parent / "models" / "bundled" / "config.json"
    if not config.is_file():
        return "not part of this build"
    content = json.loads(config.read_text(encoding="utf-8"))
    lookaheads = ", ".join(str(right) for _, right in content["encoder"]["contexts"])
    return f"{content['name']}: heads {', '.join(content['heads'])}; look-ahead {lookaheads} frames"
