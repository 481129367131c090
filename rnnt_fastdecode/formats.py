"""Transcripts as text, JSON, SubRip (SRT) and WebVTT."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.transcription import Transcript, Word


@dataclass(frozen=True)
class CueRules:
    """When a subtitle ends and the next one begins.

    Attributes
    ----------
    line_characters, lines: a cue has at most `lines` lines of `line_characters` (a longer word is broken).
    seconds: longest cue.
    pause: silence in seconds between two words that always begins a new cue.
    shortest: a cue stays on the screen this long where the next one leaves room.
    """

    line_characters: int = 42
    lines: int = 2
    seconds: float = 6.0
    pause: float = 1.0
    shortest: float = 1.0


@dataclass(frozen=True)
class Cue:
    """A subtitle: seconds from the beginning, and one or more lines."""

    start: float
    end: float
    text: str


def cues(words: Iterable[Word], duration: float, rules: CueRules | None = None) -> list[Cue]:
    """Cut a transcript's words into subtitles: none overlaps the next, and none outlasts the recording."""
    rules = rules or CueRules()
    groups: list[list[Word]] = []
    for word in words:
        if groups and _continues(groups[-1], word, rules):
            groups[-1].append(word)
        else:
            groups.append([word])
    found = []
    for index, group in enumerate(groups):
        next_start = groups[index + 1][0].start if index + 1 < len(groups) else max(duration, group[-1].end)
        end = min(max(group[-1].end, group[0].start + rules.shortest), max(next_start, group[0].start))
        found.append(Cue(group[0].start, end, "\n".join(_wrap(group, rules))))
    return found


def _wrap(group: list[Word], rules: CueRules) -> list[str]:
    return textwrap.wrap(" ".join(word.text for word in group), rules.line_characters, break_on_hyphens=False)


def _continues(group: list[Word], word: Word, rules: CueRules) -> bool:
    sentence_over = group[-1].text.endswith((".", "?", "!", "。", "？", "！"))
    return (
        not sentence_over
        and word.start - group[-1].end < rules.pause
        and word.end - group[0].start <= rules.seconds
        and len(_wrap([*group, word], rules)) <= rules.lines
    )


def text(transcript: Transcript) -> str:
    """The text and a line end."""
    return transcript.text + "\n"


def record(transcript: Transcript) -> dict[str, Any]:
    """What goes into JSON: file, text, duration, score, words with times and confidences, tokens, error."""
    return {
        "file": transcript.file,
        "text": transcript.text,
        "duration": round(transcript.duration, 3),
        "score": round(transcript.score, 4),
        "words": [
            {"text": word.text, "start": word.start, "end": word.end, "confidence": word.confidence}
            for word in transcript.words
        ],
        "tokens": transcript.tokens,
        "error": transcript.error,
    }


def json_line(transcript: Transcript) -> str:
    """One line of JSON."""
    return json.dumps(record(transcript), ensure_ascii=False, allow_nan=False) + "\n"


def srt(transcript: Transcript) -> str:
    """SubRip subtitles; "" for a transcript without words."""
    blocks = []
    for number, cue in enumerate(cues(transcript.words, transcript.duration), start=1):
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n")
    return "\n".join(blocks)


def vtt(transcript: Transcript) -> str:
    """WebVTT subtitles."""
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript.words, transcript.duration):
        escaped = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{escaped}\n")
    return "\n".join(blocks)


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{separator}{milliseconds:03}"


#: What `rnnt-fastdecode transcribe --format` offers, and the file name ending of each.
WRITERS: dict[str, Callable[[Transcript], str]] = {"text": text, "json": json_line, "srt": srt, "vtt": vtt}
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
