"""Damaged files against every reading command: a one-line refusal or an answer, never a traceback, a hang, a crash.

    python -m tests.attacks.fuzz --format archive --seeds 0:20000 --jobs 2

A case is a seed: `--seeds 17:18` repeats one. Commands run in process; the processes they run in are watched from
outside, so that a crash or a hang of HDF5 is seen, and the seed is named.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from tracekit_cli.main import group

from tests.attacks.damage import damaged
from tests.attacks.small_dumps import damaged_dump, write_dumps
from tests.small_run import write_run
from tests.speech_traces import Run
from tracekit.formats.archive import write_archive
from tracekit.formats.log_trace import LogTrace
from tracekit.formats.opening import open_trace
from tracekit.programs.native import write_tokens
from tracekit.trace import TraceError

ROOT = Path(__file__).parent.parent.parent
FORMATS = ("archive", "log", "checkpoint", "dump", "exported")
MEMORY = 1 << 30
"""Bytes of address space that a worker may take beyond what it has when it begins."""
CONFIG = '{"hidden_size": 32, "rope_theta": 10000.0, "num_attention_heads": 4, "eos_token_id": 2}'


@dataclass
class Bases:
    """Sound files to damage, by format; `reference` is a sound log to compare with, `model` a checkpoint."""

    folder: Path
    files: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def reference(self) -> Path:
        return self.folder / "small.tklog"

    @property
    def model(self) -> Path:
        return ROOT / "traces/model"


def make_bases(folder: Path) -> Bases:
    """Small runs with every kind of content, and two of the checked-in samples, as logs and as archives."""
    write_run(folder / "small.tklog")
    write_run(folder / "greedy.tklog", stated={"do_sample": False}, tell=False, steps=3)
    Run().write(folder / "speech.tklog")
    for name in ("small", "greedy", "speech"):
        with LogTrace(folder / f"{name}.tklog") as trace:
            write_archive(trace, folder / f"{name}.h5")
    bases = Bases(folder)
    bases.files["log"] = sorted(folder.glob("*.tklog"))
    bases.files["archive"] = [*sorted(folder.glob("*.h5")), ROOT / "traces/rng.h5", ROOT / "traces/native.h5"]
    bases.files["checkpoint"] = [ROOT / "traces/model/model.safetensors", write_gguf(folder / "small.gguf")]
    bases.files["dump"] = write_dumps(folder / "dumps")
    bases.files["exported"] = write_exported(folder)
    (folder / "config.json").write_text(CONFIG)
    return bases


def write_gguf(path: Path) -> Path:
    """Two tensors and the settings that a reader asks for."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(4), writer.add_head_count_kv(2)
    writer.add_tensor("token_embd.weight", np.ones((64, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((32, 32), np.float16))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return path


def write_exported(folder: Path) -> list[Path]:
    """What PyTorch saves, in its zip format and before it, TorchScript, ONNX."""
    import onnx
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), folder / "zip.pt")
    torch.save(module.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(folder / "script.jit")
    held = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in module.state_dict().items()]
    held.append(onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT16, [4], np.arange(4.0)))
    constant = onnx.helper.make_node("Constant", [], ["eps"], value_float=1e-5)
    graph = onnx.helper.make_graph([constant], "g", [], [], held)
    onnx.save_model(onnx.helper.make_model(graph), folder / "small.onnx")
    return [folder / name for name in ("zip.pt", "old.pt", "script.jit", "small.onnx")]


def checkpoint_commands(rng: random.Random, bases: Bases, bad: Path) -> list[str]:
    """One command that reads a checkpoint, with the damaged one."""
    words: list[Any] = rng.choice(
        [
            ["weights", bases.model, bad],
            ["weights", bad, bases.model, "--json"],
            ["audit", ROOT / "traces/layer.h5", "--weights", bad],
            ["diff", ROOT / "traces/python.h5", ROOT / "traces/layer.h5", "--weights", bad],
        ]
    )
    return [str(word) for word in words]


def commands(rng: random.Random, bases: Bases, base: Path, bad: Path, out: Path) -> list[str]:
    """One reading command with the damaged file."""
    if bad.suffix not in (".h5", ".tklog"):
        return checkpoint_commands(rng, bases, bad)
    sound = base if base.parent != bases.folder else bases.folder / f"{base.stem}.tklog"
    many: list[list[Any]] = [
        ["show", bad],
        ["show", bad, "--json", "--step", "1", "--site", "up"],
        ["diff", sound, bad],
        ["diff", bad, sound, "--json", "--tokens", "9"],
        ["diff", sound, sound, "--oracle", bad],
        ["diff", sound, bad, "--noise", bad, "--no-audit"],
        ["audit", bad, "--weights", bases.model],
        ["summary", bad, "--json"],
        ["summary", sound, bad],
        ["tokens", bad],
        ["tokens", bad, "--prompt-speech", "-o", out / "ids.safetensors"],
        ["names", sound, bad],
        ["names", bad, sound, "--json"],
        ["config", bases.folder / "config.json", bad],
        ["import", bad, "-o", out / "imported.h5", "--keep-log"],
        ["follow", bad],
        ["postmortem", bad],
        ["weights", bases.model, bad],
    ]
    if rng.random() < 0.05:  # a page takes a second
        return ["report", str(sound), str(bad), "-o", str(out / "report.html")]
    if bad.suffix == ".h5":
        many = [words for words in many if words[0] != "import"]
    return [str(word) for word in rng.choice(many)]


@dataclass(frozen=True)
class Outcome:
    """What became of a case. `fault` is None where it is as it should be."""

    seed: int
    words: list[str]
    fault: str | None
    detail: str = ""
    peak: int = 0  # bytes that the process has ever held


def case(seed: int, form: str, bases: Bases, scratch: Path) -> Outcome:
    """Damage a file as the seed says and run one command on it."""
    rng = random.Random(f"{form} {seed}")
    known = bases.files[form]
    if form == "dump":
        return dump_case(seed, rng, rng.choice(known), scratch)
    base = rng.choices(known, weights=[1 if one.parent != bases.folder else 4 for one in known])[0]
    bad = scratch / f"damaged{base.suffix}"
    bad.write_bytes(damaged(rng, base.read_bytes(), base.suffix, scratch / "edited.h5"))
    if seed % 2:  # as damage in storage leaves it: what an archive notes of its values is then taken
        shutil.copystat(base, bad)
    words = commands(rng, bases, base, bad, scratch)
    fault, detail = run(words, bad)
    return Outcome(seed, words, fault, detail, peak_memory())


def dump_case(seed: int, rng: random.Random, base: Path, scratch: Path) -> Outcome:
    """Import a damaged dump; what is imported is then read."""
    bad, made = scratch / f"damaged{base.suffix}", scratch / "imported.h5"
    made.unlink(missing_ok=True)
    damaged_dump(rng, base, bad)
    words = ["import", str(bad), "-o", str(made)]
    fault, detail = run(words, bad)
    if fault is None and made.exists():
        words = rng.choice([["diff", str(made), str(made)], ["show", str(made), "--site", "a"], ["summary", str(made)]])
        fault, detail = run(words, made)
    return Outcome(seed, words, fault, detail, peak_memory())


def peak_memory() -> int:
    """Bytes that this process had in memory at most; `ru_maxrss` would count those of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run(words: list[str], bad: Path) -> tuple[str | None, str]:
    """(fault, detail) of a command."""
    try:
        if words[0] == "follow":
            with open_trace(words[1]) as trace:
                write_tokens(trace, bad.with_name("follow.tklog"))
            return None, ""
        if words[0] == "postmortem":
            return _postmortem(Path(words[1]))
    except TraceError as error:
        return _judged(2, str(error), "", bad)
    except Exception as error:
        return _fault(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(group, words, prog_name="tracekit")
    if isinstance(done.exception, TraceError):
        return _judged(2, str(done.exception), done.stdout, bad)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return _fault(done.exception)
    return (None, "") if done.exit_code in (0, 1) else _judged(done.exit_code, done.stderr, done.stdout, bad)


def _postmortem(bad: Path) -> tuple[str | None, str]:
    """What a postmortem reads of a run's trace."""
    from tracekit.postmortem.program import counted

    with open_trace(bad) as trace:
        counted(trace, 0, None)
    return None, ""


def _judged(code: int, said: str, printed: str, bad: Path) -> tuple[str | None, str]:
    """Trouble, exit code 2, is one line with the file's name; or a verdict that is withheld."""
    if code == 2 and printed.strip() and not said.strip():
        return None, ""
    if code != 2 or len(said.strip().splitlines()) != 1:
        return "not one line", f"{code}: {said!r}"
    if any(word in said for word in ("allocate", "MemoryError")):
        return "memory", said
    return (None, "") if bad.name in said or "damaged" in said or printed else ("file not named", said)


def _fault(error: BaseException) -> tuple[str, str]:
    where = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in where if "/tracekit" in frame.filename] or list(where)
    last = ours[-1]
    told = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    return told, "".join(traceback.format_exception(error))[-3000:]


# The processes


def _work(pipe: Connection, form: str, seeds: list[int], bases: Bases) -> None:
    """Say each seed before it is tried, and its outcome after it."""
    with tempfile.TemporaryDirectory(prefix="tracekit-fuzz-") as name:
        case(seeds[0], form, bases, Path(name))  # what commands import is there before memory is limited
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        for seed in seeds:
            pipe.send(seed)
            pipe.send(case(seed, form, bases, Path(name)))
    pipe.close()


def outcomes(form: str, seeds: list[int], bases: Bases, limit: float, jobs: int) -> Iterator[Outcome]:
    """The outcome of each seed, in any order, tried in processes of which each case may take `limit` seconds of CPU."""
    shares = [seeds[start::jobs] for start in range(jobs) if seeds[start::jobs]]
    context = multiprocessing.get_context("spawn")
    watched: dict[Connection, tuple[Any, list[int]]] = {}
    state: dict[Connection, tuple[int | None, float]] = {}

    def begin(share: list[int]) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, form, share, bases), daemon=True)
        process.start()
        theirs.close()
        watched[ours], state[ours] = (process, share), (None, 0.0)

    for share in shares:
        begin(share)
    while watched:
        for pipe in wait(list(watched), timeout=1.0):
            assert isinstance(pipe, Connection)
            process, share = watched[pipe]
            try:
                told = pipe.recv()
            except EOFError:
                process.join()
                del watched[pipe]
                seed = state[pipe][0]
                if process.exitcode:
                    at = share[0] if seed is None else seed
                    yield Outcome(at, [], f"crash, exit code {process.exitcode}")
                    rest = share[share.index(at) + 1 :]
                    if rest:
                        begin(rest)
                continue
            if isinstance(told, Outcome):
                state[pipe] = (None, 0.0)
                yield told
            else:
                state[pipe] = (told, _cpu(process.pid))
        for pipe, (process, share) in list(watched.items()):
            seed, began = state[pipe]
            if seed is not None and _cpu(process.pid) - began > limit:
                process.kill()
                process.join()
                del watched[pipe]
                yield Outcome(seed, [], f"hang, more than {limit:g} s")
                rest = share[share.index(seed) + 1 :]
                if rest:
                    begin(rest)


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken: a busy machine makes no hang."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100
    return 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--seeds", default="0:1000", help="FIRST:STOP")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of CPU that a case may take")
    arguments = parser.parse_args()
    first, stop = (int(number) for number in arguments.seeds.split(":"))
    began, faults, peak, tried = time.monotonic(), Counter[str](), 0, 0
    folder = Path(tempfile.mkdtemp(prefix="tracekit-fuzz-bases-"))
    try:
        bases = make_bases(folder)
        found = outcomes(arguments.format, list(range(first, stop)), bases, arguments.limit, arguments.jobs)
        for outcome in found:
            tried, peak = tried + 1, max(peak, outcome.peak)
            if outcome.fault is not None:
                if outcome.fault not in faults:
                    print(
                        f"seed {outcome.seed}: {outcome.fault}: {' '.join(outcome.words)}\n{outcome.detail}", flush=True
                    )
                faults[outcome.fault] += 1
            if tried % 1000 == 0:
                print(f"{tried} tried, {sum(faults.values())} faults, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(folder)
    named = ", ".join(f"{count} x {fault}" for fault, count in faults.most_common()) or "no faults"
    print(f"{tried} damaged {arguments.format}s, seeds {arguments.seeds}: {named}; peak memory {peak / 1e6:.0f} MB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
