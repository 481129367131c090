"""The op libraries of this process: loaded here, and called with errors that a user can work from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import fakes
from .errors import ArgumentError, RnntFastdecodeError

_LIBRARIES = Path(__file__).resolve().parent / "_lib"


def _load() -> bool:
    """Loads the op libraries; true if the CUDA ops are among them."""
    cpu, cuda = (_LIBRARIES / f"librnnt_fastdecode_{kind}.so" for kind in ("cpu", "cuda"))
    if not cpu.is_file():
        raise ImportError(
            f"{cpu} is missing: install the package with `pip install .`, or build the ops of a source tree "
            "with `python setup.py build_ext --inplace`"
        )
    torch.ops.load_library(str(cpu))
    if torch.version.cuda is None or not cuda.is_file():
        return False
    torch.ops.load_library(str(cuda))
    return True


#: True if this process has the CUDA kernels: they were built, and torch is a CUDA build.
cuda_ops_loaded: bool = _load()
fakes.register()


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """What the op returns; ArgumentError where it does not like an argument."""
    try:
        return op(*arguments)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    except NotImplementedError as error:
        if "CUDA" not in str(error) or cuda_ops_loaded:
            raise
        raise RnntFastdecodeError(
            "The CUDA ops are not loaded: they are built where nvcc is found, and need a torch with CUDA."
        ) from None
