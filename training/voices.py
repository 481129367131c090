"""Synthetic speech from flite, festival and espeak-ng (Debian packages), spread over all cores.

    python -m training.voices SENTENCES OUT --spelled 45000 --read 12000 --seed 1 [--prefix DIR]

writes the stores OUT/spelled.{pcm,tsv} and OUT/read.{pcm,tsv} (see `corpora.Store`). Packages: flite festival
festvox-kdlpc16k festvox-us-slt-hts espeak-ng. `--prefix` names a folder that holds the packages unpacked with
`dpkg -x` (with the libraries they need) where they are not installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
import wave
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from scipy.signal import resample_poly

from .corpora import SAMPLE_RATE, StoreWriter
from .text import Prompt, prompts, split_words

CHUNK = 24
FLITE_VOICES = {"slt": 170, "rms": 95, "awb": 125, "kal16": 105}
FESTIVAL_VOICES = ("voice_ked_diphone", "voice_cmu_us_slt_arctic_hts")
ESPEAK_ACCENTS = ("en-us", "en-us", "en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029")
ESPEAK_VARIANTS = split_words(
    """
    f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 klatt klatt2 klatt3 klatt4 klatt6 adam anika announcer antonio
    aunty belinda benjamin boris caleb david ed edward edward2 gustave iven iven2 iven3 iven4 john
    kaukovalta linda marcelo max michel miguel pablo paul pedro quincy rob robert sandro shelby steph steph2
    steph3 travis victor zac Alex Alicia Andrea Andy Annie Denis Diogo Gene Hugo Jacky Lee Marco Mario
    Michael Mike Mr Nguyen
    """
)
ENGINES = ("flite", "festival", "espeak")
ENGINE_SHARES = (0.5, 0.15, 0.35)
# How each engine is made to say the name of the letter A, which it would read as the article.
LETTER_A = {"flite": "ay", "festival": "ay", "espeak": "[['eI]]"}


@dataclass(frozen=True)
class Job:
    engine: str
    prompts: tuple[Prompt, ...]
    seed: int
    prefix: str


def environment(prefix: str) -> dict[str, str]:
    """The environment in which the programs find libraries and data, installed or unpacked under `prefix`."""
    found = dict(os.environ)
    if prefix:
        libraries = Path(prefix, "usr/lib/x86_64-linux-gnu")
        found["LD_LIBRARY_PATH"] = f"{libraries}:{libraries}/pulseaudio:{prefix}/lib/x86_64-linux-gnu"
        found["ESPEAK_DATA_PATH"] = str(libraries)
    return found


def program(prefix: str, name: str) -> str:
    return f"{prefix}/usr/bin/{name}" if prefix else name


def spoken(prompt: Prompt, engine: str, rng: Random) -> str:
    """The prompt as the engine must read it: letters by name, now and then a pause between the items."""
    text = prompt.text.replace("rubout", "rub out")
    if not prompt.spelled:
        return text
    words = [LETTER_A[engine] if word == "a" else word for word in text.split()]
    pause = ", " if rng.random() < 0.25 else " "
    return pause.join(words)


def read_wave(path: str) -> np.ndarray:
    """A mono 16-bit wave file as float32 in [-1, 1) at SAMPLE_RATE, silence at both ends cut to 80 ms."""
    with wave.open(path) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    if rate != SAMPLE_RATE:
        divisor = np.gcd(rate, SAMPLE_RATE)
        samples = resample_poly(samples, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * max(np.abs(samples).max(initial=0.0), 1e-3))
    if not loud.size:
        return samples[:0]
    margin = SAMPLE_RATE * 8 // 100
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def flite(job: Job, folder: str, rng: Random) -> list[str]:
    paths = []
    for i, prompt in enumerate(job.prompts):
        voice = rng.choice(list(FLITE_VOICES))
        pitch = FLITE_VOICES[voice] * rng.uniform(0.8, 1.3)
        path = f"{folder}/{i}.wav"
        command = [
            program(job.prefix, "flite"),
            "-voice",
            voice,
            "-t",
            spoken(prompt, "flite", rng),
            "-o",
            path,
        ]
        command += ["--setf", f"duration_stretch={rng.uniform(0.75, 1.35):.3f}"]
        command += ["--setf", f"int_f0_target_mean={pitch:.1f}"]
        command += ["--setf", f"int_f0_target_stddev={rng.uniform(8, 30):.1f}"]
        subprocess.run(command, env=environment(job.prefix), capture_output=True, check=False)
        paths.append(path)
    return paths


def espeak(job: Job, folder: str, rng: Random) -> list[str]:
    paths = []
    for i, prompt in enumerate(job.prompts):
        voice = f"{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(ESPEAK_VARIANTS)}"
        path = f"{folder}/{i}.wav"
        command = [
            program(job.prefix, "espeak-ng"),
            "-v",
            voice,
            "-s",
            str(rng.randint(110, 210)),
            "-w",
            path,
        ]
        command += ["-p", str(rng.randint(15, 85)), "-g", str(rng.choice((0, 0, 0, 2, 5, 10)))]
        command.append(spoken(prompt, "espeak", rng))
        subprocess.run(command, env=environment(job.prefix), capture_output=True, check=False)
        paths.append(path)
    return paths


def festival(job: Job, folder: str, rng: Random) -> list[str]:
    lines, paths = [f"({rng.choice(FESTIVAL_VOICES)})"], []
    for i, prompt in enumerate(job.prompts):
        path = f"{folder}/{i}.wav"
        text = spoken(prompt, "festival", rng)
        lines.append(f"(Parameter.set 'Duration_Stretch {rng.uniform(0.75, 1.35):.3f})")
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{path}" \'riff)')
        paths.append(path)
    script = Path(folder, "speak.scm")
    script.write_text("\n".join(lines) + "\n")
    command = [program(job.prefix, "festival")]
    if job.prefix:
        data = f"{job.prefix}/usr/share/festival"
        command += ["--datadir", data, "--libdir", data]
    subprocess.run(
        [*command, "--batch", str(script)], env=environment(job.prefix), capture_output=True, check=False
    )
    return paths


SPEAKERS = {"flite": flite, "festival": festival, "espeak": espeak}


def speak(job: Job) -> list[tuple[Prompt, np.ndarray]]:
    """Synthesise a job; prompts that an engine could not read are left out. Samples are int16."""
    with tempfile.TemporaryDirectory(
        prefix="voices", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        paths = SPEAKERS[job.engine](job, folder, Random(job.seed))
        result = []
        for prompt, path in zip(job.prompts, paths, strict=True):
            if not Path(path).exists():
                continue
            samples = read_wave(path)
            if samples.size >= SAMPLE_RATE // 5:
                peak = float(np.abs(samples).max())
                result.append((prompt, np.round(samples / peak * 20000).astype(np.int16)))
    return result


def make_jobs(wanted: list[Prompt], seed: int, prefix: str) -> list[Job]:
    rng = Random(seed)
    jobs = []
    for start in range(0, len(wanted), CHUNK):
        engine = rng.choices(ENGINES, ENGINE_SHARES)[0]
        jobs.append(Job(engine, tuple(wanted[start : start + CHUNK]), rng.getrandbits(32), prefix))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spelled", type=int, default=45_000)
    parser.add_argument("--read", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()

    started = time.monotonic()
    sentences = args.sentences.read_text().splitlines()
    jobs = make_jobs(prompts(sentences, args.spelled, args.read, args.seed), args.seed, args.prefix)
    args.out.mkdir(parents=True, exist_ok=True)
    with (
        StoreWriter(args.out / "spelled") as spelled,
        StoreWriter(args.out / "read") as read,
        ProcessPoolExecutor(args.workers) as pool,
    ):
        for job, spoken_prompts in zip(jobs, pool.map(speak, jobs, chunksize=2), strict=True):
            for prompt, samples in spoken_prompts:
                (spelled if prompt.spelled else read).add(job.engine, prompt.text, samples)
    for name, store in (("spelled", spelled), ("read", read)):
        print(f"{name}: {store.clips} clips, {store.samples / SAMPLE_RATE / 3600:.2f} h", flush=True)
    print(f"{time.monotonic() - started:.0f} s on {args.workers} workers", flush=True)


if __name__ == "__main__":
    main()
