"""llama.cpp run again with the right values at the sites that are wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tracekit
from tracekit.align.rotary_order import ReorderedTrace, in_order_of
from tracekit.auditing.audit import audit, auditable
from tracekit.auditing.consequence import StepTokens
from tracekit.auditing.recipe import Recipe
from tracekit.auditing.recompute import Parameters, Recomputation, Window
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.rotary_pairs import halves, interleaved
from tracekit.checkpoints.stated import find_checkpoint, open_checkpoint
from tracekit.inspection.site_rows import logits_width
from tracekit.mistakes.culprits import ExplainedAudit, explained_audit, is_precise
from tracekit.trace import LOGITS, Trace, TraceError
from tracekit.trace_view import SequenceView
from tracekit.verdict.live_repair import LiveRepair, beside
from tracekit_llama_cpp.nodes import HEAD
from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.recording import IMPLEMENTATION, Model, record
from tracekit_llama_cpp.writing import Placed, Written


def repair(
    reference: Trace,
    candidate: Trace,
    *,
    model: str | None = None,
    weights: str | None = None,
    sites: Sequence[str] = (),
) -> LiveRepair:
    """Run llama.cpp as it ran for `candidate`, with the right values at its culprits, and compare with the reference.

    Args:
        reference: the run that is taken as right, of the same prompt.
        candidate: a recorded run of llama.cpp, of one request.
        model: the GGUF file that it ran with, if it is not where the trace says.
        weights: the checkpoint that right values are computed from; else that of the reference, or the GGUF file.
        sites: write at these alone, culprits or not.

    Raises:
        TraceError: a run cannot be repeated or compared, a file cannot be read, or a site cannot be recomputed.
    """
    _check(reference, candidate)
    file = model or find_checkpoint(candidate)
    if file is None:
        raise TraceError(f"{candidate.path}: the file that it ran with is not here; give it: --model")
    options = Options.of(candidate)
    loaded = Model(file, options)
    try:
        with tempfile.TemporaryDirectory(prefix="tracekit-repair-") as folder:
            checkpoint = weights or find_checkpoint(reference) or file
            return _repaired(reference, candidate, loaded, options, checkpoint, tuple(sites), Path(folder))
    finally:
        loaded.close()


def _check(reference: Trace, candidate: Trace) -> None:
    """Raises TraceError where the two cannot be put beside each other, or the candidate cannot be run again."""
    if candidate.implementation != IMPLEMENTATION:
        raise TraceError(f"{candidate.path}: is a run of {candidate.implementation}, not of {IMPLEMENTATION}")
    if len(candidate.sequences) != 1 or not candidate.sequences[0].step_count:
        raise TraceError(f"{candidate.path}: is no recording of one generation; record it with --requests 1")
    if not reference.sequences or not reference.sequences[0].step_count:
        raise TraceError(f"{reference.path}: has no generated token to compare with; record a generation")
    one, other = reference.sequences[0], candidate.sequences[0]
    if other.prompt_ids is None or one.prompt_ids is None or not np.array_equal(one.prompt_ids, other.prompt_ids):
        raise TraceError(f"{reference.path} and {candidate.path}: prompts differ; record both with one --prompt-ids")
    ours, theirs = ([(draw.generator, draw.seed, draw.offset) for draw in each.step(0).draws] for each in (one, other))
    if ours != theirs:
        raise TraceError(
            f"{reference.path} and {candidate.path}: tokens are drawn from different generators or seeds, so that they "
            "differ without a fault; record both with greedy decoding"
        )


def _repaired(
    reference: Trace,
    candidate: Trace,
    model: Model,
    options: Options,
    weights: str,
    sites: tuple[str, ...],
    folder: Path,
) -> LiveRepair:
    prompt = [int(token) for token in candidate.sequences[0].prompt_ids]  # type: ignore[union-attr]
    taps: list[Placed] = []

    def placed(*given: Any) -> Placed:
        taps.append(Placed(*given))
        return taps[-1]

    again = folder / "again.h5"
    record(model, again, prompt=prompt, options=options, taps=placed)
    with tracekit.open(again) as run:
        repeated = _repeats(candidate, run, model.path)
        checkpoint = open_checkpoint(weights, run)
        view, _ = in_order_of(checkpoint, run)
        found = explained_audit(view, checkpoint, audit(view, checkpoint))
        wrong = tuple(culprit for culprit in found.culprits if not is_precise(culprit))
        recipes = _recipes(view, checkpoint, found, sites)
        target = again
        if recipes:
            right = Right(view, checkpoint, recipes)
            target = folder / "repaired.h5"
            made = partial(Written, right=right, places=taps[0].places)
            record(model, target, prompt=prompt, options=options, taps=made)
        with tracekit.open(target) as mended:
            runs = [trace.sequences[0] for trace in (reference, mended, run)]
            tokens = [[int(token) for token in sequence.tokens] for sequence in runs]
            return LiveRepair(
                IMPLEMENTATION,
                model.path,
                checkpoint.path,
                reference.path,
                candidate.path,
                tuple(recipe.site for recipe in recipes),
                wrong,
                audited=len(found.clean) + len(found.culprits),
                unaudited=len(found.unknown),
                repeated=repeated,
                drawn=options.sampled,
                before=beside(runs[0], runs[2]),
                after=beside(runs[0], runs[1]),
                tokens=tuple(StepTokens(step, *each) for step, each in enumerate(zip(*tokens, strict=False))),
                texts=(_text(model, tokens[0]), model.text(tokens[1]), model.text(tokens[2])),
            )


def _text(model: Model, tokens: list[int]) -> str:
    """Tokens of the reference as text; the file may lack some that pad its table."""
    return model.text([token for token in tokens if 0 <= token < model.tokens])


def _repeats(candidate: Trace, run: Trace, model: str) -> bool:
    """Whether the run again has the candidate's logits bit for bit. Raises TraceError where its tokens are others,
    unless they were forced."""
    recorded, again = candidate.sequences[0], run.sequences[0]
    both = beside(recorded, again)
    forced = candidate.config.get("follow") is not None
    if not forced and not (both.whole and recorded.step_count == again.step_count):
        raise TraceError(
            f"{candidate.path}: llama.cpp gives other tokens with {model}, from step {both.same} on; give the file "
            "that it ran with (--model), or record it again here"
        )
    steps = min(both.steps, both.same + 1)
    held, made = recorded.logits(0, steps), again.logits(0, steps)
    return held is not None and made is not None and np.array_equal(held, made)


def _recipes(trace: Trace, checkpoint: Checkpoint, found: ExplainedAudit, sites: tuple[str, ...]) -> list[Recipe]:
    """What is to be written: culprits but for choices of precision, or the sites that are asked for. Raises TraceError
    for a site that cannot be recomputed."""
    known, unknown = auditable(trace, checkpoint, Parameters(trace, checkpoint), None)
    wanted = set(sites) or {culprit.site for culprit in found.culprits if not is_precise(culprit)}
    recipes = [recipe for recipe in known if recipe.site in wanted]
    missing = sorted(wanted - {recipe.site for recipe in recipes})
    if missing:
        said = "cannot be recomputed" if missing[0] in unknown else "is no site of this run"
        raise TraceError(f"--site {missing[0]}: {said}; `tracekit audit --json` lists the sites that are not audited")
    return recipes


class Right:
    """What sites should hold in a run that is going on (`writing.RightValues`)."""

    def __init__(self, trace: Trace, checkpoint: Checkpoint, recipes: list[Recipe]) -> None:
        """`trace`: an earlier run, in the order of the checkpoint's rows: what its sites are."""
        self._live = _Live(trace.sequences[0])
        self._parameters = Parameters(trace, checkpoint)
        self._heads: Mapping[str, int] = trace.heads if isinstance(trace, ReorderedTrace) else {}
        self._recipes = {HEAD if recipe.stored == LOGITS else recipe.stored: recipe for recipe in recipes}
        self._first_step = self._live.step(0).position
        self.sites: Mapping[str, int] = {name: self._width(recipe) for name, recipe in self._recipes.items()}
        self.needed: Collection[str] = frozenset(name for recipe in recipes for name in recipe.inputs)

    def _width(self, recipe: Recipe) -> int:
        sequence = self._live.inner
        return (logits_width(sequence) or 1) if recipe.stored == LOGITS else sequence.sites[recipe.stored].width

    def fed(self, tokens: list[int]) -> None:
        self._live.fed += tokens

    def computed(self, site: str, first: int, values: NDArray[Any]) -> None:
        heads = self._heads.get(site)
        self._live.put(site, first, values if heads is None else halves(values.T, heads).T)

    def of(self, site: str, first: int, rows: int) -> NDArray[np.float64] | None:
        recipe = self._recipes[site]
        if recipe.stored == LOGITS:
            first -= self._first_step
            if first < 0:
                return None  # no token is chosen there
        run = Recomputation(self._live, self._parameters)
        window = Window(first, first + rows)
        with np.errstate(all="ignore"):
            values = run.result(recipe, window, run.inputs(recipe, window)).values
        heads = self._heads.get(site)
        return np.asarray(values if heads is None else interleaved(values.T, heads).T)


class _Live(SequenceView):
    """A sequence of which only what was put is there to be read."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.fed: list[int] = []
        self._rows: dict[str, NDArray[Any]] = {}

    @property
    def tokens(self) -> NDArray[np.int64]:
        """What was fed after the prompt."""
        prompt = self.inner.prompt_ids
        return np.array(self.fed[0 if prompt is None else len(prompt) :], np.int64)

    def put(self, site: str, first: int, values: NDArray[Any]) -> None:
        """Rows of positions from `first` on."""
        held, stop = self._rows.get(site), first + len(values)
        if held is None or len(held) < stop:
            grown = np.zeros((2 * stop, values.shape[1]), values.dtype)
            if held is not None:
                grown[: len(held)] = held
            self._rows[site] = held = grown
        held[first:stop] = values

    def read(self, site: str, first: int, stop: int) -> NDArray[Any]:
        """As `Sequence.read`."""
        return self._rows[site][first:stop]
