"""Edits of one place of the reference's source run beside each other: each gives what it gives alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

import tracekit
from tracekit.dtypes import UNIT_ROUNDOFF
from tracekit.mistakes.edited_line import EditKind

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tracekit_torch  # noqa: E402
from tracekit_torch.reference_program import explaining  # noqa: E402
from tracekit_torch.reference_program.captured_calls import CapturingCalls  # noqa: E402
from tracekit_torch.reference_program.capturing import Capturing  # noqa: E402
from tracekit_torch.reference_program.conditions import Conditions  # noqa: E402
from tracekit_torch.reference_program.decoding import Decoding  # noqa: E402
from tracekit_torch.reference_program.explaining import Start, Trial  # noqa: E402
from tracekit_torch.reference_program.loading import forward_of, load_reference  # noqa: E402

from tests import tiny_families  # noqa: E402

UNITS = UNIT_ROUNDOFF["float32"], UNIT_ROUNDOFF["float32"]


def _suspect(checkpoints: Any, out: Any, family: str, name: str, called: bool = False) -> Any:
    folder = checkpoints(family)
    with tiny_families.run(tiny_families.load(folder), out) as trace:
        model, sequence = load_reference(str(folder), "float32"), trace.sequences[0]
        made = (
            CapturingCalls(model, trace, sequence, {})
            if called
            else Capturing(model, sequence, forward_of(model, trace, sequence))
        )
        site, segment = made.sites_with_segments([name])[name]
    kind = explaining.CalledSuspect if called else explaining.Suspect
    return kind(site, cast(Any, None), site.rows, segment, UNITS, 10)


def _groups(suspect: Any) -> Mapping[frozenset[int], list[Trial]]:
    found: dict[frozenset[int], list[Trial]] = {}
    for trial in suspect._trials():
        found.setdefault(frozenset(suspect._changed(trial, 0.0)), []).append(trial)
    return found


@pytest.mark.parametrize(
    ("family", "name", "called"),
    [
        ("gemma2", "model.layers.1.self_attn.o_proj:in", False),
        ("mixtral", "model.layers.1.mlp.experts", False),
        ("gptoss", "model.layers.1.self_attn.o_proj:in", False),
        ("granite", "model.layers.1.self_attn.o_proj:in", True),
    ],
)
def test_each_gives_what_it_gives_alone(checkpoints: Any, tmp_path: Any, family: str, name: str, called: bool) -> None:
    """What cannot be run beside others is not told of, and no value that is not a number is told as one."""
    suspect = _suspect(checkpoints, tmp_path / "run.h5", family, name, called)
    counts: Counter[bool] = Counter()
    for trials in list(_groups(suspect).values())[::4]:
        numbers = [0.0 if trial.change.neutral is None else 1.25 for trial in trials]
        changed = [suspect._changed(*each) for each in zip(trials, numbers, strict=True)]
        together = suspect.segment.run_beside(changed)
        for at, change in enumerate(changed):
            counts[at in together] += 1
            alone = suspect.segment.run(change)
            if at in together:
                told = together[at]
                assert (told is None) == (alone is None)
                if told is not None:
                    scale = float(np.nanmax(np.abs(alone), initial=0.0, where=np.isfinite(alone)))
                    assert np.allclose(told, alone, rtol=1e-9, atol=1e-11 * scale, equal_nan=True), trials[at].change
    assert counts[True] > counts[False], counts


@pytest.mark.parametrize("kind", [EditKind.OPERATOR, EditKind.SCALED, EditKind.MOVED])
def test_few_edits_are_run_alone_and_the_one_that_was_made_is_among_them(
    checkpoints: Any, tmp_path: Any, kind: EditKind
) -> None:
    clean = _suspect(checkpoints, tmp_path / "run.h5", "gemma2", "model.layers.1.self_attn.o_proj:in")
    made = ((trial, clean._values(trial, 1.25)) for trial in clean._trials() if trial.edit.kind is kind)
    wanted, values = next(each for each in made if each[1] is not None and np.isfinite(each[1]).all())
    wrong = replace(clean._site, recorded=values)
    suspect: Any = explaining.Suspect(wrong, cast(Any, None), wrong.rows, clean.segment, UNITS, 10)
    trials = list(suspect._trials())
    budget = explaining.Budget(explaining.WORK, (suspect.segment,))
    worth = list(suspect._worth(((trial, Start()) for trial in trials), budget))
    assert any(trial.edit is wanted.edit and trial.place == wanted.place for trial, _ in worth)
    assert len(worth) < len(trials) / 4
    # Where there is no budget for all of them, none is left out: they are tried in their order while there is some.
    poor = explaining.Budget(clean.segment.work + 1e6, (suspect.segment,))
    assert len(list(suspect._worth(((trial, Start()) for trial in trials), poor))) == len(trials)


def test_a_condition_is_decoded_no_further_than_to_where_it_is_refuted_and_drawn_once(
    checkpoints: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its twin: the condition that was taken otherwise is decoded to the end, and named at every culprit."""
    folder = checkpoints("cohere")
    model = tiny_families.load(folder)
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, forward=forward, **kwargs: forward(*args, **(kwargs | {"cache": None}))
    drawn: Counter[Any] = Counter()
    refuted, whole = 0, 0
    decode, decoded = Decoding.decode, Conditions._decoded

    def counted(self: Any, only: Any, change: Any, stop: int, lockstep: Any = None, met: Any = None) -> Any:
        nonlocal refuted, whole
        try:
            found = decode(self, only, change, stop, lockstep, met)
        except Exception:
            refuted += 1
            raise
        whole += 1
        return found

    def once(self: Any, condition: Any, stop: int, lockstep: Any = None, met: Any = None) -> Any:
        drawn[condition] += lockstep is not None
        return decoded(self, condition, stop, lockstep, met)

    monkeypatch.setattr(Decoding, "decode", counted)
    monkeypatch.setattr(Conditions, "_decoded", once)
    with tiny_families.run(model, tmp_path / "run.h5") as trace:
        found = tracekit.audit(trace, folder, by=tracekit_torch.by_reference(folder))
    assert len(found.culprits) > 1
    for culprit in found.culprits:
        explanation = culprit.explanation
        assert explanation is not None, found.text
        assert any(line.kind is EditKind.BRANCH for line in explanation.lines)
    assert max(drawn.values()) == 1
    assert refuted > whole
