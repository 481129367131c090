"""Compiles csrc/ into two op libraries: librnnt_fastdecode_cpu.so and, with nvcc, librnnt_fastdecode_cuda.so.

They are plain shared objects on LibTorch's stable ABI, so one build serves every Python and every torch from
2.11 on. Only torch's headers and libraries are needed: torch is found as files and never imported.

Environment: CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST (such as "9.0;12.0+PTX"), MAX_JOBS, and
RNNT_FASTDECODE_CUDA=0 to leave the CUDA ops out although nvcc is there.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

TORCH_MINIMUM = (2, 11)
TORCH_REQUIREMENT = "torch>=2.11"
TORCH_TARGET_VERSION = "0x020b000000000000"
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"

ROOT = Path(__file__).resolve().parent.parent


class BuildError(RuntimeError):
    """The libraries cannot be built; the message says what is missing."""


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str


@dataclass(frozen=True)
class Nvcc:
    path: Path
    version: str


def _site_directories() -> list[Path]:
    directories = [Path(p) for p in sys.path if p]
    directories += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    settings = Path(sys.prefix, "pyvenv.cfg")
    sees_base = not settings.exists() or re.search(
        r"include-system-site-packages\s*=\s*true", settings.read_text(), re.IGNORECASE
    )
    if sees_base:
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        directories += [Path(sysconfig.get_path(name, vars=base)) for name in ("purelib", "platlib")]
        directories += [Path(p) for p in site.getsitepackages([sys.base_prefix])]
        if site.ENABLE_USER_SITE:
            directories.append(Path(site.getusersitepackages()))
    return directories


def find_torch() -> Torch | None:
    """The first torch >= 2.11 that this Python can import, or could outside of pip's isolation."""
    for directory in _site_directories():
        version_file = directory / "torch" / "version.py"
        if not version_file.is_file():
            continue
        found = re.search(r"__version__\s*=\s*['\"](\d+)\.(\d+)([^'\"]*)", version_file.read_text())
        if found and (int(found[1]), int(found[2])) >= TORCH_MINIMUM:
            return Torch(directory / "torch", f"{found[1]}.{found[2]}{found[3]}")
    return None


def find_nvcc() -> Nvcc | None:
    if os.environ.get("RNNT_FASTDECODE_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home, "bin", "nvcc")] if home else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for path in candidates:
        if path.is_file():
            text = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"release (\d+\.\d+)", text)
            return Nvcc(path, version[1] if version else "unknown")
    return None


def cuda_architectures(nvcc: Nvcc) -> list[str]:
    """Target names such as ["80", "90a", "120+PTX"]: those wished for, limited to those that nvcc knows."""
    wished = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";") or DEFAULT_ARCHITECTURES
    listed = subprocess.run(
        [str(nvcc.path), "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"sm_(\d+)", listed))
    targets = []
    for item in filter(None, wished.split(";")):
        name = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
        if not name:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST must list targets such as 9.0 or 12.0+PTX, got {item!r}.")
        if name[1] + name[2] in known:
            # Hopper's own instructions; its code runs on no other kind of device, with or without them.
            letter = "a" if name[1] + name[2] == "90" and not name[4] else name[3]
            targets.append(f"{name[1]}{name[2]}{letter}{name[4] or ''}")
    if not targets:
        raise BuildError(f"None of the targets {wished!r} is known to nvcc {nvcc.version}.")
    return targets


def _gencode(targets: list[str]) -> str:
    flags = []
    for target in targets:
        name = target.removesuffix("+PTX")
        flags.append(f"-gencode arch=compute_{name},code=sm_{name}")
        if target.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{name},code=compute_{name}")
    return " ".join(flags)


def _ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise BuildError("ninja is needed to build the ops: pip install ninja") from None
        return found


def _quote(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _build_file(torch: Torch, nvcc: Nvcc | None, targets: list[str], output: Path) -> str:
    compiler = os.environ.get("CXX", "c++")
    includes = f"-I{ROOT / 'csrc'} -isystem {torch.root / 'include'}"
    # torch is already in the process when the libraries are loaded: its sonames are all they need to carry.
    libraries = f"-L{torch.root / 'lib'} -ltorch -ltorch_cpu -lc10"
    common = f"-O3 -std=c++20 -DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION} {includes}"
    lines = [
        f"cflags = {common} -fPIC -fvisibility=hidden -Wall -Wextra",
        "rule cxx",
        f"  command = {compiler} -MMD -MF $out.d $cflags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link_cpu",
        f"  command = {compiler} -shared $in -o $out -Wl,--no-as-needed {libraries}",
    ]
    if nvcc:
        lines += [
            f"nvccflags = {common} -Xcompiler -fPIC,-fvisibility=hidden,-Wall -DUSE_CUDA --threads 4"
            f" --expt-relaxed-constexpr {_gencode(targets)}",
            "rule nvcc",
            f"  command = {nvcc.path} -ccbin {compiler} -MMD -MF $out.d $nvccflags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link_cuda",
            f"  command = {nvcc.path} -ccbin {compiler} -shared -cudart static $in -o $out"
            f" -Xlinker --no-as-needed {libraries}",
        ]

    def library(kind: str, rule: str, sources: list[Path]) -> None:
        objects = []
        for source in sources:
            objects.append(f"{kind}/{source.stem}.o")
            lines.append(f"build {objects[-1]}: {rule} {_quote(source)}")
        target = _quote(output / f"librnnt_fastdecode_{kind}.so")
        lines.append(f"build {target}: link_{kind} {' '.join(objects)}")

    sources = ROOT / "csrc"
    library("cpu", "cxx", [*sorted(sources.glob("*.cpp")), *sorted((sources / "cpu").glob("*.cpp"))])
    if nvcc:
        library("cuda", "nvcc", sorted((sources / "cuda").rglob("*.cu")))
    return "\n".join(lines) + "\n"


def build(package: Path, version: str) -> None:
    """Compiles the libraries into package/_lib and writes package/_build_info.py."""
    torch = find_torch()
    if torch is None:
        raise BuildError(f"{TORCH_REQUIREMENT} is needed to build the ops: pip install torch")
    nvcc = find_nvcc() if any((ROOT / "csrc" / "cuda").rglob("*.cu")) else None
    targets = cuda_architectures(nvcc) if nvcc else []
    output = (package / "_lib").resolve()
    output.mkdir(parents=True, exist_ok=True)
    scratch = ROOT / "build" / ("native_cuda" if nvcc else "native_cpu")
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "build.ninja").write_text(_build_file(torch, nvcc, targets, output))
    if nvcc:
        print(f"rnnt_fastdecode: CPU and CUDA ops (nvcc {nvcc.version}, {', '.join(targets)})", flush=True)
    else:
        (output / "librnnt_fastdecode_cuda.so").unlink(missing_ok=True)
        print("rnnt_fastdecode: CPU ops only, nvcc was not found or not wanted", flush=True)
    jobs = os.environ.get("MAX_JOBS")
    command = [_ninja(), "-C", str(scratch), *(["-j", jobs] if jobs else [])]
    if subprocess.run(command).returncode != 0:
        raise BuildError("compiling the ops failed; the compiler's messages are above")
    (package / "_build_info.py").write_text(
        '"""What was built: written by the build."""\n\n'
        f"VERSION = {version!r}\n"
        f"TORCH_VERSION = {torch.version!r}\n"
        f"NVCC_VERSION: str | None = {nvcc.version if nvcc else None!r}\n"
        f"CUDA_ARCHITECTURES: tuple[str, ...] = {tuple(targets)!r}\n"
    )
