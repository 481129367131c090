"""The errors this package raises: each names the file or argument at fault and what was expected."""


class RnntFastdecodeError(Exception):
    """Base of every error raised on purpose by this package."""


class ArgumentError(RnntFastdecodeError, ValueError):
    """An argument has a wrong type, shape, dtype, device or value."""


class CaptureError(RnntFastdecodeError):
    """A call was made while its CUDA stream is being recorded into a graph, which it cannot be."""


class AudioError(RnntFastdecodeError):
    """An audio file is missing, broken, empty or not audio."""


class CheckpointError(RnntFastdecodeError):
    """A checkpoint cannot be read, or describes an architecture that is not supported."""
