"""A program that misbehaves computes and ends as it does unrecorded; its trace is right, or a line says why not."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import tracekit
from tests.forked import Done, Forks
from tests.misbehaving import PROGRAMS, Misbehaving
from tracekit.trace import Trace

pytest.importorskip("transformers")


def both(forks: Forks, program: Misbehaving, folder: Path) -> tuple[Done, Done]:
    """The program unrecorded and recorded, each in a folder of its own."""
    for name in ("plain", "recorded"):
        (folder / name).mkdir()
        (folder / name / "program.py").write_text(program.source)
    plain = forks.python("program.py", cwd=folder / "plain", **program.limits)
    words = ("record", "-o", "run.h5", "program.py")
    return plain, forks.tracekit(*words, cwd=folder / "recorded", **program.limits)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_is_what_it_is_unrecorded(program: Misbehaving, forks: Forks, tmp_path: Path) -> None:
    plain, recorded = both(forks, program, tmp_path)
    assert recorded.out == plain.out, recorded.err
    assert recorded.code == (2 if program.unrecorded and plain.code == 0 else plain.code), recorded.err
    said = [line for line in recorded.err.splitlines() if line.startswith("tracekit: ")]
    assert "tracekit" not in recorded.err.replace("tracekit: ", "").replace("run.tklog", "") or said, recorded.err
    assert recorded.err.count("Traceback") <= plain.err.count("Traceback"), recorded.err
    for sentence in program.says:
        assert sum(sentence in line for line in recorded.err.splitlines()) == 1, recorded.err
    expected = (*program.says, *program.may_say)
    extra = [line for line in said if " wrote " not in line and not any(each in line for each in expected)]
    assert not extra, recorded.err
    folder = tmp_path / "recorded"
    left = sorted(path.name for path in folder.rglob("run.*"))
    assert left == ([program.left] if program.left else []), recorded.err
    if program.left and program.sequences != 0:
        with tracekit.open(folder / program.left) as trace:
            check(trace, program, plain)


def check(trace: Trace, program: Misbehaving, plain: Done) -> None:
    """What a trace holds is what the program computed."""
    assert (trace.status == "recovered") == program.recovered, trace.status_detail
    assert trace.sequences
    if program.sequences is not None:
        assert len(trace.sequences) == program.sequences
    printed = [ast.literal_eval(line[7:]) for line in plain.out.splitlines() if line.startswith("tokens ")]
    spoken = [sequence.tokens.tolist() for sequence in trace.sequences if sequence.step_count]
    if program.tokens is not None:
        assert spoken == [printed[index] for index in program.tokens]
    elif printed:
        # Of what was not recorded in whole, a line tells; what is there was computed so.
        assert all(any(tokens == whole[: len(tokens)] for whole in printed) for tokens in spoken), (spoken, printed)
    embedded: dict[int, bytes] = {}
    for sequence in trace.sequences:
        for name, data in sequence.sites.items():
            assert data.rows <= sequence.positions, name
        if sequence.prompt_ids is None or "model.embed_tokens" not in sequence.sites:
            continue
        if sequence.sites["model.embed_tokens"].dtype != "float32":
            continue
        fed = [*sequence.prompt_ids.tolist(), *sequence.tokens.tolist()][: sequence.positions]
        rows = sequence.read("model.embed_tokens", 0, sequence.positions)
        for token, row in zip(fed, rows, strict=True):
            assert embedded.setdefault(int(token), row.tobytes()) == row.tobytes(), (sequence.index, token)
        for step in range(sequence.step_count):
            logits = sequence.step(step).logits
            assert logits is None or "sampled" in program.name or int(np.argmax(logits)) == sequence.tokens[step]
