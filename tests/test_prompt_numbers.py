"""What an encoder is given as numbers: one rounding is the same input, more is another, and how much more is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tracekit
from tracekit.formats.log import LogWriter
from tracekit.trace import Array

FEATURES = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)


def write(path: Path, features: Array, lost: bool | None = None) -> Path:
    """`lost`: whether it left out another call by chance."""
    log = LogWriter(path)
    log.open("python", dtype="float32", model={})
    if lost is not None:
        log.lost("another call", by_chance=lost)
    log.sites([{"name": "encoder", "class": "Linear", "order": 0}])
    log.sequence(0, {"prompt/token_ids": np.array([1, 2]), "prompt/encoder_input_features": features})
    log.call(0, 0, 2, {"encoder": np.ones((2, 4), np.float32)})
    log.end_sequence(0, 0, "done")
    log.close()
    return path


def off_by(relative: float) -> Array:
    return (FEATURES.astype(np.float64) * (1.0 + relative)).astype(np.float32)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (FEATURES, None),
        (np.nextafter(FEATURES, np.float32(np.inf)), None),
        (off_by(1e-3), "encoder_input_features: 4 entries on both sides, off by 0.001 (relative)"),
        (off_by(3e-6), "encoder_input_features: 4 entries on both sides, off by 3e-06 (relative)"),
        (FEATURES[:3], "encoder_input_features: 4 entries in the reference, 3 in the candidate"),
    ],
    ids=["the same", "one rounding", "another scale", "more than a rounding", "fewer"],
)
def test_numbers_of_a_prompt(tmp_path: Path, features: Array, said: str | None) -> None:
    verdict = tracekit.diff(write(tmp_path / "a.tklog", FEATURES), write(tmp_path / "b.tklog", features))
    assert (verdict.verdict, verdict.cause) == (("parity", None) if said is None else ("divergence", "input"))
    assert said is None or said in verdict.text


def test_samples_of_a_wave_are_no_token_ids(tmp_path: Path) -> None:
    wave = FEATURES[0]
    verdict = tracekit.diff(write(tmp_path / "a.tklog", wave), write(tmp_path / "b.tklog", wave * np.float32(0.5)))
    assert (verdict.cause, verdict.position) == ("input", 0)
    assert "off by 0.5 (relative)" in verdict.text and "entry" not in verdict.text


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("by_chance", "said"), [(False, ("divergence", "input")), (True, ("withheld", "capture"))])
def test_calls_at_once_of_which_chance_records_one_are_no_divergence(
    tmp_path: Path, side: str, by_chance: bool, said: tuple[str, str]
) -> None:
    for name, features in (("a", FEATURES), ("b", off_by(0.5))):
        write(tmp_path / f"{name}.tklog", features, by_chance if name == side else None)
    verdict = tracekit.diff(tmp_path / "a.tklog", tmp_path / "b.tklog")
    assert (verdict.verdict, verdict.cause) == said
    assert "off by 0.5 (relative)" in verdict.text
