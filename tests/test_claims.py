"""Sentences that would be untrue where a thing was not recorded: they are not printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from tests.small_run import write_run
from tests.spoken import spoken
from tracekit.compare.search import Counts
from tracekit.formats.log import LogWriter
from tracekit.trace import Trace
from tracekit.verdict.evidence import InputAgrees, InputOff, TokensAlone


def only_tokens(path: Path, reason: str | None = "length", **told: Any) -> Trace:
    log = LogWriter(path)
    log.open("native", dtype="float32", seed=3)
    log.sequence(0, {"prompt/token_ids": np.array([5, 6])}, **told)
    for step in range(4):
        log.step(0, step, 1 + step, 20 + step, {})
    if reason is not None:
        log.end_sequence(0, 4, reason)
    log.close()
    return tracekit.open(path)


def test_equal_tokens_are_not_called_equal_values(tmp_path: Path) -> None:
    verdict = tracekit.diff(only_tokens(tmp_path / "one.tklog"), only_tokens(tmp_path / "other.tklog"))
    assert verdict.evidence == (TokensAlone(),)


def test_settings_that_are_not_stated_are_not_said_to_be_off(tmp_path: Path) -> None:
    one, other = (only_tokens(tmp_path / f"{name}.tklog") for name in ("one", "other"))
    said = spoken(tracekit.diff(one, other).unexercised)
    assert "sampling settings (the reference does not declare them)" in said
    assert not any(line.startswith(("temperature", "top-k", "repetition penalty")) for line in said)


def test_what_one_of_several_generations_does_is_exercised(tmp_path: Path) -> None:
    def run(name: str, samples: tuple[bool, bool]) -> Trace:
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("native", dtype="float32", seed=3)
        for index, sampled in enumerate(samples):
            settings = {"do_sample": sampled, "max_new_tokens": 4}
            log.sequence(index, {"prompt/token_ids": np.array([5, 6])}, sampling=settings)
            for step in range(4):
                log.step(index, step, 1 + step, 20 + step, {})
            log.end_sequence(index, 4, "length")
        log.close()
        return tracekit.open(tmp_path / f"{name}.tklog")

    mixed, greedy = run("mixed", (False, True)), run("greedy", (False, False))
    assert not any(line.startswith("sampling (greedy") for line in spoken(tracekit.diff(mixed, mixed).unexercised))
    assert any(line.startswith("sampling (greedy") for line in spoken(tracekit.diff(greedy, greedy).unexercised))


def test_the_end_of_a_run_that_was_cut_off_is_not_known(tmp_path: Path) -> None:
    settings = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": [7, 8]}
    runs = [only_tokens(tmp_path / f"{name}.tklog", reason=None, sampling=settings) for name in ("one", "other")]
    said = spoken(tracekit.diff(*runs).unexercised)
    assert "the end of the generation (sequence 0 is cut off)" in said
    assert not any(line.startswith(("stop tokens", "length limit")) for line in said)


def test_rules_of_a_sampler_that_recorded_nothing_are_not_said_not_to_act(tmp_path: Path) -> None:
    settings = {"sampler": "ras", "do_sample": True, "top_k": 25}
    runs = [only_tokens(tmp_path / f"{name}.tklog", sampling=settings) for name in ("one", "other")]
    said = spoken(tracekit.diff(*runs).unexercised)
    assert any("survivors, draws and events are not recorded" in line for line in said)
    assert not any(line.startswith(("repetition rule", "drawing a stop token")) for line in said)


def test_sites_without_a_common_position_are_not_counted_as_compared(tmp_path: Path) -> None:
    runs = []
    for name, first in (("one", 0), ("other", 1)):
        log = LogWriter(tmp_path / f"{name}.tklog")
        log.open("native", dtype="float32", sites=[{"name": "up", "class": "Linear", "order": 0}])
        log.sequence(0, {"prompt/token_ids": np.array([5, 6])})
        log.call(0, first, 1, {"up": np.ones((1, 4), dtype=np.float32)})
        log.end_sequence(0, 0, "done")
        log.close()
        runs.append(tracekit.open(tmp_path / f"{name}.tklog"))
    assert tracekit.diff(*runs).compared == Counts(sequences=1)


@pytest.mark.parametrize("also", [False, True])
def test_an_input_that_is_off_is_not_said_to_agree(tmp_path: Path, also: bool) -> None:
    """`down` is named, its input `up` is right at its first wrong position and wrong later on."""

    def change(site: str, position: int, row: np.ndarray) -> np.ndarray:
        late = also and site == "up" and position >= 5
        return row * np.float32(1.5) if late or (site == "down" and position == 1) else row

    reference = tracekit.open(write_run(tmp_path / "one.tklog"))
    verdict = tracekit.diff(reference, tracekit.open(write_run(tmp_path / "other.tklog", change=change)))
    said = [each for each in verdict.evidence if isinstance(each, InputAgrees | InputOff)]
    assert verdict.cause == "layer" and said, (verdict.site, verdict.evidence)
    assert all(isinstance(each, InputOff) == also for each in said), verdict.evidence
