"""A sound of 40 ms a speech token, one tone each: stands in for the flow and the vocoder, which a small model lacks.

tracekit tokens py.h5 -o py.safetensors
python hooks/torch/examples/tone_of_tokens.py py.safetensors py.wav
"""

from __future__ import annotations

import sys

import numpy as np
import soundfile
from safetensors.numpy import load_file

RATE = 24000
SAMPLES = RATE // 25
"""A token's."""


def main(tokens: str, sound: str) -> None:
    segments = [ids for _, ids in sorted(load_file(tokens).items())]
    pitches = 120.0 + np.concatenate(segments) % 400
    phases = 2 * np.pi * np.cumsum(np.repeat(pitches, SAMPLES)) / RATE
    soundfile.write(sound, 0.5 * np.sin(phases), RATE)


if __name__ == "__main__":
    main(*sys.argv[1:])
