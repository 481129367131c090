"""The audio that the fixtures were computed from: made of formulas, so that it need not be stored."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 16000
# Three utterances, one too short for more than a few encoder frames.
SECONDS = (3.0, 1.87, 0.5)


def synthetic_utterances() -> list[np.ndarray]:
    """Gliding harmonics with a syllable-like envelope and a little noise, float32 in -1..1."""
    utterances = []
    for index, seconds in enumerate(SECONDS):
        time = np.arange(int(seconds * SAMPLE_RATE), dtype=np.float64) / SAMPLE_RATE
        pitch = 110.0 + 30.0 * index + 40.0 * np.sin(2.0 * np.pi * (0.7 + 0.2 * index) * time)
        phase = 2.0 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
        formant = 3.0 + 2.5 * np.sin(2.0 * np.pi * 1.3 * time + index)
        voice = sum(np.exp(-0.5 * (k - formant) ** 2) * np.sin(k * phase) for k in range(1, 12))
        envelope = 0.5 - 0.5 * np.cos(2.0 * np.pi * 3.1 * time)
        seed = np.arange(len(time), dtype=np.uint64) * np.uint64(1664525) + np.uint64(1013904223 + index)
        noise = ((seed * seed >> np.uint64(16)) % np.uint64(65536)).astype(np.float64) / 32768.0 - 1.0
        utterances.append((0.2 * envelope * voice + 0.002 * noise).astype(np.float32))
    return utterances
