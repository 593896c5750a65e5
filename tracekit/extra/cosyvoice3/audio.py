"""WAV files in numbers: how long, how loud, and how far from the first.

Samples are read in blocks as fractions of full scale, so memory does not grow with the file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.extra.cosyvoice3.speech import SPEECH, TOKENS_A_SECOND
from tracekit.generations import generated_count
from tracekit.trace import Json, Trace, TraceError

BLOCK = 1 << 18
"""Frames read at a time."""
INSTALL = "pip install 'tracekit[audio]'"
COARSE = {"PCM_U8": 8, "PCM_S8": 8, "ULAW": 8, "ALAW": 8}
"""Encodings whose steps are large enough to be heard -> bits a sample."""


@dataclass(frozen=True)
class Sound:
    """One file. Amplitudes are fractions of full scale, over all channels."""

    path: str
    sample_rate: int  # Hz
    channels: int
    encoding: str
    frames: int
    rms: float
    max_amplitude: float
    cut_short: bool = False  # its header promises more than the file holds

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


@dataclass(frozen=True)
class Apart:
    """How far a file is from the first, sample by sample over the part that both have; None where rates or channels
    are not the same, so that samples do not stand for the same moment."""

    seconds: float  # longer than the first by
    rms_db: float | None  # louder than the first by
    max_difference: float | None


def measure(path: str) -> Sound:
    """Measure a file. Raises TraceError where soundfile is missing, or the file is no sound, empty or damaged."""
    squares, largest, count = 0.0, 0.0, 0
    with _opened(path) as file:
        rate, channels, encoding = int(file.samplerate), int(file.channels), str(file.subtype)
        cut_short = "(should be" in file.extra_info  # libsndfile's words for a chunk that its file is too short for
        with np.errstate(all="ignore"):
            for block in _blocks(path, file):
                squares += float(np.vdot(block, block))
                largest = max(largest, float(np.abs(block).max()))
                count += len(block)
    if count == 0:
        raise TraceError(f"{path}: holds no samples; give a file with sound in it")
    if not math.isfinite(squares) or not math.isfinite(largest):
        raise TraceError(f"{path}: holds samples that are no numbers; make it again")
    return Sound(path, rate, channels, encoding, count, math.sqrt(squares / (count * channels)), largest, cut_short)


def compare(first: Sound, other: Sound) -> Apart:
    """How far `other` is from `first`; both files are read again."""
    loud = 20 * math.log10(other.rms / first.rms) if first.rms > 0 and other.rms > 0 else None
    alike = (first.sample_rate, first.channels) == (other.sample_rate, other.channels)
    return Apart(other.seconds - first.seconds, loud, _largest_difference(first.path, other.path) if alike else None)


@dataclass(frozen=True)
class Spoken:
    """What a sound was made from."""

    trace: str
    tokens: int
    dropped: int | None
    """Tokens that a filter of silence took out before the sound was made; None where none is known of."""
    against: int
    """Which of the sounds it is compared with: the first, or that of the first trace's sequence of the same index."""

    @property
    def heard(self) -> int:
        """Tokens that the sound was made from."""
        return self.tokens - (self.dropped or 0)


def spoken_tokens(traces: list[Trace], files: int) -> list[Spoken]:
    """What each of `files` sounds was made from: a trace a file, or a sequence a file.

    Raises TraceError where neither fits.
    """
    sequences = [(trace, sequence) for trace in traces for sequence in trace.sequences]
    if files == len(traces):
        return [
            Spoken(
                trace.path,
                sum(generated_count(trace, one) for one in trace.sequences),
                _added(SPEECH.dropped(one) for one in trace.sequences),
                0,
            )
            for trace in traces
        ]
    if files == len(sequences):
        partners = len(traces[0].sequences) if len(traces) > 1 else 1
        return [
            Spoken(
                f"{trace.path}[{one.index}]",
                generated_count(trace, one),
                SPEECH.dropped(one),
                min(one.index, max(0, partners - 1)),
            )
            for trace, one in sequences
        ]
    raise TraceError(
        f"{files} sounds fit neither {len(traces)} traces nor their {len(sequences)} sequences; "
        "give one sound a trace, or one a sequence, in the same order"
    )


def _added(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def sound_row(sound: Sound, first: Sound | None, spoken: Spoken | None) -> Json:
    """A file as a row: its measures, its difference to `first`, and what its tokens would last."""
    apart = None if first is None else compare(first, sound)
    return {
        "file": sound.path,
        "seconds": sound.seconds,
        "sample_rate": sound.sample_rate,
        "channels": sound.channels,
        "encoding": sound.encoding,
        "rms": sound.rms,
        "max_amplitude": sound.max_amplitude,
        "difference": None if apart is None else vars(apart),
        "compared_with": first and first.path,
        "trace": spoken and spoken.trace,
        "tokens": spoken and spoken.tokens,
        "dropped_silent_tokens": spoken and spoken.dropped,
        "token_seconds": spoken and spoken.heard / TOKENS_A_SECOND,
    }


def _largest_difference(one: str, other: str) -> float:
    largest = 0.0
    with _opened(one) as first, _opened(other) as second:
        for a, b in zip(_blocks(one, first), _blocks(other, second), strict=False):
            rows = min(len(a), len(b))
            largest = max(largest, float(np.abs(a[:rows] - b[:rows]).max()))
    return largest


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the wheel of this platform came without libsndfile
        raise TraceError(f"{path}: measuring sound needs a library; {INSTALL}") from None
    if not Path(path).is_file():
        raise TraceError(f"{path}: is no file; give a WAV")
    if Path(path).stat().st_size == 0:
        raise TraceError(f"{path}: is empty; give a WAV")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        raise TraceError(f"{path}: is not a WAV, or damaged at its head; give a WAV") from None
    with file:
        yield file


def _blocks(path: str, file: Any) -> Iterator[NDArray[np.float64]]:
    """[frames, channels] each. Raises TraceError where the library cannot read on."""
    while True:
        try:
            block: NDArray[np.float64] = file.read(BLOCK, dtype="float64", always_2d=True)
        except RuntimeError:  # soundfile's own errors are of this kind
            raise TraceError(f"{path}: cannot be read to its end; make it again") from None
        if not len(block):
            return
        yield block
