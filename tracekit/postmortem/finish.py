"""What a postmortem leaves: a repro for each group, and the report. The recordings that nobody wants to keep go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tracekit.align.pair import Pair, Side
from tracekit.formats.opening import open_trace
from tracekit.postmortem.conduct import remove_traces
from tracekit.postmortem.examine import trace_name
from tracekit.postmortem.plan import Plan
from tracekit.postmortem.program import scratch_folder
from tracekit.postmortem.store import Store, read_json, write_json
from tracekit.programs.python import interpreter_and_program, is_python
from tracekit.report.page import Compared, write_page
from tracekit.repro import Case, Command, write_repro
from tracekit.trace import Trace, TraceError
from tracekit.verdict.causes import is_fault
from tracekit.verdict.outcome import Postmortem, Run, Seed
from tracekit.verdict.record import VerdictRecord

REPORT = "report.html"
REPROS = "repro"
FINISHED = "finished.json"
LIBRARIES = ("jinja2", "plotly")


def check_libraries(extra: str) -> None:
    """Raises TraceError, with the extra that brings it, where a library is missing that the end of a postmortem needs:
    before the first program runs, not after the last."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise TraceError(f"a postmortem needs {' and '.join(missing)}: pip install 'tracekit[{extra}]'")


@dataclass(frozen=True)
class Places:
    """Where the runs of a seed are: in a store, or in a folder of the user's."""

    store: Store | None
    folder: Path | None = None

    def name(self, seed: Seed, run: Run) -> str:
        """What a run's trace is called in the report."""
        return (run.trace if self.folder is not None else trace_name(seed.seed, run)) or "not kept"

    @contextlib.contextmanager
    def local(self, seed: Seed, run: Run) -> Iterator[Path | None]:
        """A path of a run's trace on this machine; None where it was not kept."""
        if self.folder is not None:
            yield self.folder / run.trace if run.trace else None
            return
        name = trace_name(seed.seed, run)
        if self.store is None or name is None or not self.store.exists(name):
            yield None
            return
        with self.store.local(name) as path:
            yield path


def finish(store: Store, found: Postmortem, plan: Plan, *, with_repros: bool = True) -> list[str]:
    """Write repros and report, remove what `plan.keep` does not want. Says, a line each, of which group there is no
    repro, and why. Of a postmortem that was finished already only the removing is left. Raises TraceError."""
    asked = {"seeds": [seed.seed for seed in found.seeds], "repros": with_repros}
    done = read_json(store, FINISHED)
    without: list[str] = []
    if done is None or {name: done.get(name) for name in asked} != asked:
        places = Places(store)
        without = _write_repros(store, places, found, plan) if with_repros else []
        write_report(store, places, found)
        write_json(store, FINISHED, asked | {"without_repro": without})
    else:
        without = list(done.get("without_repro", []))
    remove_traces(store, found, plan.keep)
    return without


def write_report(store: Store, places: Places, found: Postmortem) -> None:
    """The report, with an example of each group whose traces are there. Raises TraceError."""
    with scratch_folder() as scratch:
        page = Path(scratch) / REPORT
        write_page(page, _pairs(places, found), found)
        store.deliver(page, REPORT)


def _pairs(places: Places, found: Postmortem) -> Iterator[Compared]:
    seeds = {seed.seed: seed for seed in found.seeds}
    for group in found.groups:
        seed = seeds[group.example]
        with _open(places, seed) as both:
            if both is not None and group.verdict is not None:
                names = tuple(places.name(seed, run) for run in (seed.reference, seed.candidate))
                yield Compared(group.name, Pair.of(*both), group.verdict, group.text, names=(names[0], names[1]))


@contextlib.contextmanager
def _open(places: Places, seed: Seed) -> Iterator[tuple[Trace, Trace] | None]:
    with places.local(seed, seed.reference) as one, places.local(seed, seed.candidate) as other:
        if one is None or other is None:
            yield None
            return
        with open_trace(one) as reference, open_trace(other) as candidate:
            yield reference, candidate


def _write_repros(store: Store, places: Places, found: Postmortem, plan: Plan) -> list[str]:
    """Repros of the groups; which have none, and why."""
    seeds = {seed.seed: seed for seed in found.seeds}
    without = []
    for group in found.groups:
        if group.verdict is None or not is_fault(group.cause):
            continue
        seed = seeds[group.example]
        why = _write_repro(store, places, seed, group.name, group.verdict, plan)
        if why is not None:
            without.append(f"{group.name}: {why}")
    return without


def _write_repro(
    store: Store, places: Places, seed: Seed, group: str, verdict: VerdictRecord, plan: Plan
) -> str | None:
    with (
        scratch_folder() as scratch,
        places.local(seed, seed.reference) as one,
        places.local(seed, seed.candidate) as other,
    ):
        if one is None or other is None:
            return "its traces were not kept"
        case = Case(group, seed.seed, verdict, one, other, candidate_command(plan, seed.seed))
        try:
            repro = write_repro(Path(scratch), case, time_limit=plan.timeout or 120.0)
        except TraceError as error:
            return str(error)
        if repro.path is None:
            return repro.why
        for path in sorted(path for path in repro.path.rglob("*") if path.is_file()):
            store.deliver(path, f"{REPROS}/{group}/{path.relative_to(repro.path).as_posix()}")
    return None


def candidate_command(plan: Plan, seed: int) -> Command:
    """The candidate's command for one seed, as a repro runs it."""
    words = plan.words(Side.CANDIDATE, seed)
    outside = {} if plan.takes_seed(Side.CANDIDATE) else {"TRACEKIT_SEED": str(seed)}
    if is_python(words):
        _, words = interpreter_and_program(words)
        return Command(tuple(words), plan.folder, native=False, environment=outside)
    return Command(tuple(words), plan.folder, environment=outside)
