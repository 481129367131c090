"""Transcripts as text, JSON and subtitles."""

import itertools
import json

import pytest

from rnnt_fastdecode.formats import CueRules, cues, json_line, record, srt, text, vtt
from rnnt_fastdecode.models.transcription import Transcript, Word


def words(*items: tuple[str, float, float]) -> list[Word]:
    return [Word(word, start, end, 0.9) for word, start, end in items]


def spoken(sentence: str, start: float = 0.0, each: float = 0.3) -> list[Word]:
    return words(
        *((word, start + i * each, start + (i + 1) * each) for i, word in enumerate(sentence.split()))
    )


def test_text_is_one_line():
    assert text(Transcript("a.wav", "hello there")) == "hello there\n"


def test_json_tells_everything():
    transcript = Transcript("a.wav", "héllo", words(("héllo", 0.08, 0.4)), [1, 2], 1.23456, -0.5)
    line = json_line(transcript)
    assert line.endswith("\n") and line.count("\n") == 1 and "héllo" in line
    assert json.loads(line) == {
        "file": "a.wav",
        "text": "héllo",
        "duration": 1.235,
        "score": -0.5,
        "words": [{"text": "héllo", "start": 0.08, "end": 0.4, "confidence": 0.9}],
        "tokens": [1, 2],
        "error": None,
    }


def test_json_of_a_file_name_that_is_no_text_is_valid():
    encoded = json_line(Transcript("caf\udce9.wav")).encode("utf-8", errors="backslashreplace")
    assert json.loads(encoded)["file"] == "caf\udce9.wav"


def test_json_names_the_error():
    assert record(Transcript("a.wav", error="a.wav: broken"))["error"] == "a.wav: broken"


def test_srt_numbers_its_cues_and_writes_hours():
    transcript = Transcript(
        "a.wav", words=words(("one", 0.0, 1.5), ("two", 3661.08, 3662.5)), duration=4000.0
    )
    assert srt(transcript) == (
        "1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n01:01:01,080 --> 01:01:02,500\ntwo\n"
    )


def test_vtt_escapes_markup():
    transcript = Transcript("a.wav", words=words(("a<b>&c", 0.0, 1.5)), duration=2.0)
    assert vtt(transcript) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na&lt;b&gt;&amp;c\n"


def test_silence_gives_empty_subtitles():
    assert srt(Transcript("a.wav")) == ""
    assert vtt(Transcript("a.wav")) == "WEBVTT\n"


def test_a_pause_begins_a_new_cue():
    found = cues(spoken("one two") + spoken("three", start=1.7), 10.0)
    assert [cue.text for cue in found] == ["one two", "three"]


def test_a_sentence_ends_its_cue():
    assert [cue.text for cue in cues(spoken("Yes. No? Go on"), 10.0)] == ["Yes.", "No?", "Go on"]


def test_a_cue_keeps_to_its_lines_and_seconds():
    rules = CueRules()
    spoken_words = spoken(" ".join(f"word{i}" for i in range(200)))
    found = cues(spoken_words, 60.0, rules)
    for cue in found:
        lines = cue.text.split("\n")
        assert len(lines) <= rules.lines and max(map(len, lines)) <= rules.line_characters
        assert cue.end - cue.start <= rules.seconds + 1e-9
    assert " ".join(cue.text.replace("\n", " ") for cue in found) == " ".join(w.text for w in spoken_words)


def test_a_short_cue_stays_but_not_into_the_next_nor_past_the_end():
    found = cues(words(("a", 0.0, 0.08), ("b", 5.0, 5.08), ("c.", 5.6, 5.68), ("d", 5.7, 5.78)), 6.0)
    assert [(cue.start, cue.end) for cue in found] == [(0.0, 1.0), (5.0, 5.7), (5.7, 6.0)]


def test_cues_never_overlap_where_words_do():
    found = cues(words(("one.", 0.0, 0.5), ("two.", 0.4, 0.9), ("three", 0.8, 1.2)), 2.0)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


def test_a_word_longer_than_a_cue_is_broken_over_lines():
    (cue,) = cues(words(("x" * 100, 0.0, 1.0)), 2.0)
    assert max(map(len, cue.text.split("\n"))) == 42


@pytest.mark.parametrize("writer", [srt, vtt])
def test_times_are_rounded_to_whole_milliseconds(writer):
    assert "00:01:00" in writer(Transcript("a.wav", words=words(("a", 59.9996, 61.0)), duration=70.0))
