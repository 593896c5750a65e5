"""The whole postmortem: every seed sparsely, the failing ones in full, then groups. It goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field, replace
from typing import Protocol

from tracekit.postmortem import examine
from tracekit.postmortem.examine import SEEDS, Task
from tracekit.postmortem.groups import conclude
from tracekit.postmortem.plan import Plan
from tracekit.postmortem.program import STOPPED, Stopped
from tracekit.postmortem.recorded_in_full import control_of, wanted
from tracekit.postmortem.store import Store, read_as, read_json, write_json
from tracekit.report.postmortem_text import postmortem_json
from tracekit.trace import TraceError
from tracekit.verdict.outcome import BROKEN, Postmortem, Run, Seed, State

PLAN = "plan.json"
FOUND = "postmortem.json"


class Watcher(Protocol):
    """Is told how it goes."""

    def expects(self, stage: str, count: int) -> None:
        """So many seeds more are to be examined: `sparse` or `full`."""

    def has(self, stage: str, seed: Seed, *, new: bool) -> None:
        """A seed has been examined; not `new`: by an earlier run."""


@dataclass
class Conduct:
    """One postmortem under way. `run` may be called once."""

    plan: Plan
    store: Store
    seeds: tuple[int, ...]
    crew: Executor
    watcher: Watcher
    _sparse: dict[int, Seed] = field(default_factory=dict)
    _full: dict[int, Seed] = field(default_factory=dict)
    _running: list[Future[Seed]] = field(default_factory=list)

    def run(self) -> Postmortem:
        """Examine every seed and say what was found. Raises TraceError; after KeyboardInterrupt, no program runs on."""
        claim(self.store, self.plan)
        try:
            self._examine_sparsely()
            self._examine_in_full(wanted(self._sparse.values()))
            control = self._control()
        except KeyboardInterrupt:
            STOPPED.set()
            for future in self._running:
                future.cancel()
            raise
        found = conclude(
            self.plan.reference, self.plan.candidate, self._outcomes(control).values(), asked=len(self.seeds)
        )
        if control is not None:
            full = self._full[control]
            found = replace(found, control=control, control_text=full.text, control_headline=full.headline)
        write_json(self.store, FOUND, postmortem_json(found))
        return found

    def _outcomes(self, control: int | None) -> dict[int, Seed]:
        """What is known of each seed, in full where that was looked for."""
        out = {}
        for number in self.seeds:
            out[number], full = self._sparse[number], self._full.get(number)
            # A control that passes is a passing seed like the others.
            passes = number == control and full is not None and full.state is State.PASS
            if full is not None and full.state not in BROKEN and not passes:
                out[number] = full
        return out

    def _examine_sparsely(self) -> None:
        self.watcher.expects("sparse", len(self.seeds))
        for number in self.seeds:
            self._start("sparse", number)
        self._collect("sparse")

    def _examine_in_full(self, numbers: Iterable[int]) -> None:
        new = [number for number in numbers if number not in self._full]
        self.watcher.expects("full", len(new))
        for number in new:
            self._start("full", number)
        self._collect("full")

    def _control(self) -> int | None:
        """The control, recorded in full; None where no seed is one."""
        control = control_of(self._sparse.values(), self._full)
        if control is not None:
            self._examine_in_full([control])
        return control

    # ------------------------------------------------------------ one seed after the other

    def _start(self, stage: str, number: int) -> None:
        known = read_as(self.store, _outcome(stage, number), Seed.from_json)
        if known is not None:
            self._keep(stage, known, new=False)
            return
        task = Task(self.plan, self.store.place, number)
        if stage == "sparse":
            self._running.append(self.crew.submit(guarded, examine.sparse, task))
        else:
            self._running.append(self.crew.submit(guarded, examine.full, task, self._sparse[number]))

    def _collect(self, stage: str) -> None:
        """Wait until nothing runs."""
        for future in as_completed(self._running):
            self._keep(stage, future.result(), new=True)
        self._running.clear()

    def _keep(self, stage: str, seed: Seed, *, new: bool) -> None:
        if new and not seed.again:
            write_json(self.store, _outcome(stage, seed.seed), seed.to_json())
        (self._sparse if stage == "sparse" else self._full)[seed.seed] = seed
        self.watcher.has(stage, seed, new=new)


def guarded(work: Callable[..., Seed], task: Task, *more: Seed) -> Seed:
    """What a worker does: trouble with one seed is that seed's."""
    try:
        return work(task, *more)
    except Stopped:
        raise
    except (OSError, TraceError, MemoryError) as error:
        nothing = Run(None, 0)
        return Seed(
            task.seed,
            State.TROUBLE,
            nothing,
            nothing,
            note=f"could not be examined: {error or type(error).__name__}",
            again=True,
        )


def _outcome(stage: str, number: int) -> str:
    return f"{SEEDS}/{number}/{stage}.json"


def claim(store: Store, plan: Plan) -> None:
    """Make the store this plan's. Raises TraceError where it holds what another plan has found."""
    mine = plan.identity()
    other = read_json(store, PLAN)
    if other is None:
        write_json(store, PLAN, mine)
    elif other != mine:
        apart = next(name for name in mine if mine[name] != other.get(name))
        what = "another build of a program" if apart == "programs" else f"another {apart}: {other.get(apart)!r}"
        raise TraceError(f"{store.place}: holds a postmortem with {what}; give another folder with -o, or remove it")


def remove_traces(store: Store, found: Postmortem, keep: str) -> None:
    """Remove recordings as `keep` says: `failing` leaves those of seeds that do not pass, `none` none, `all` all."""
    if keep == "all":
        return
    for seed in found.seeds:
        if keep == "failing" and seed.state is not State.PASS:
            continue
        for side in ("reference", "candidate"):
            for ending in (".h5", ".tklog", ".full.h5", ".full.tklog"):
                store.remove(f"{SEEDS}/{seed.seed}/{side}{ending}")
