"""Recordings of speech-token language models, written by hand: two segments a run, no layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from tracekit_cli.main import group

from tracekit.formats.log import LogWriter
from tracekit.trace import TraceError

EOS = 6562
STOPS = list(range(6561, 6761))
RAS = {"sampler": "ras", "top_p": 0.8, "top_k": 25, "win_size": 10, "tau_r": 0.1, "stop_token_ids": STOPS}
PROMPT_TEXT, TEXTS, SPEECH = 3, (4, 2), 5
"""Lengths in tokens of the prompt's text, the two texts, and the prompt's speech."""

GOLDEN = Path(__file__).parent / "golden"


@dataclass
class Run:
    """What one side did; the defaults are the reference's."""

    implementation: str = "python"
    tokens: tuple[list[int], ...] = ([10, 11, 11, 12, EOS], [20, 21, EOS])
    sampling: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    ratio_words: int = 0  # tokens added to the text's when the limits are counted
    ends: bool = True
    offset: int = 0  # random words drawn before the first step

    def write(self, path: Path, **info: Any) -> Path:
        log = LogWriter(path)
        model = {"model_type": "cosyvoice3", "hidden_size": 64, "speech_token_size": 6561} | self.model
        log.open(self.implementation, dtype="float32", seed=7, model=model)
        offset = self.offset
        for index, tokens in enumerate(self.tokens):
            self._begin(log, index, info)
            for step, token in enumerate(tokens):
                offset = _step(log, index, step, token, offset)
            if self.ends:
                log.end_sequence(index, len(tokens), "stop" if tokens[-1] in STOPS else "length")
        log.close()
        return path

    def _begin(self, log: LogWriter, index: int, info: dict[str, Any]) -> None:
        words = TEXTS[index]
        parts = {"prompt_text_token_ids": PROMPT_TEXT, "tts_text_token_ids": words, "speech_token_ids": SPEECH}
        tensors = {f"prompt/{name}": np.arange(count) for name, count in parts.items()}
        tensors["prompt/token_ids"] = np.arange(2 + PROMPT_TEXT + words + SPEECH)
        limits = {"min_len": 2 * (words + self.ratio_words), "max_len": 20 * (words + self.ratio_words)}
        log.sequence(index, tensors, sampling=RAS | limits | self.sampling, seed=7, **info)


def _step(log: LogWriter, index: int, step: int, token: int, offset: int) -> int:
    """One step; the third one of a segment falls back to a draw from all. Returns the next offset in words."""
    draws = [{"op": "multinomial", "generator": "mt19937", "seed": 7, "offset": offset, "words": 4, "result": token}]
    events = []
    if step == 2 and index == 0:
        events = [{"kind": "repetition_fallback", "detail": {"token": 10, "count": 1}}]
        draws.append({**draws[0], "offset": offset + 4, "words": 13522})
    text = "<eos>" if token == EOS else f"<speech {token}>"
    log.step(index, step, step, token, {}, text=text, draws=draws, events=events)
    return offset + sum(draw["words"] for draw in draws)


def tracekit(*words: object) -> tuple[int, str]:
    """Exit code and output of a command; trouble is 2 and its one line, as `main` has it."""
    done = CliRunner().invoke(group, [str(word) for word in words])
    if isinstance(done.exception, TraceError):
        assert "\n" not in str(done.exception)
        return 2, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def golden(name: str) -> str:
    """What a command is known to print: tests/golden/NAME, read by eye before it was put there."""
    return (GOLDEN / name).read_text()
