"""Builds the op libraries beside the Python modules; everything that is not code stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

import native  # noqa: E402

PACKAGE = "rnnt_fastdecode"


class BuildLibraries(build_ext):
    """Runs the native build in place of one compiler call for each Extension."""

    def run(self) -> None:
        try:
            native.build(self._package(), self.distribution.get_version())
        except native.BuildError as error:
            sys.exit(f"{PACKAGE}: {error}")

    def _package(self) -> Path:
        return ROOT / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE

    def get_outputs(self) -> list[str]:
        package = self._package()
        return [str(p) for p in (*package.glob("_lib/*.so"), package / "_build_info.py")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class AnyPythonWheel(bdist_wheel):
    """The libraries depend on the platform and not on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    # The name only tells setuptools that the wheel holds compiled code.
    ext_modules=[Extension(f"{PACKAGE}._lib", sources=[])],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel},
)
