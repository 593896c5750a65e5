"""A run from a quantised file beside the checkpoint that the file was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tracekit.align.rotary_order import in_order_of
from tracekit.auditing.audit import other_model
from tracekit.auditing.layer_costs import LayerCost, layer_costs
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.stated import find_checkpoint, open_checkpoint, why_no_checkpoint
from tracekit.compare.kld import Kld, kld
from tracekit.formats.opening import open_trace
from tracekit.trace import Trace, TraceError

RECORDED = (".h5", ".tklog")


@dataclass(frozen=True)
class Quantised:
    """What the file, the arithmetic and the engine cost, layer by layer, and the distance of the distributions where a
    recording of the original was given."""

    original: str
    layers: tuple[LayerCost, ...]
    kld: Kld | None


def quantised(run: Trace, held: Checkpoint, original: str) -> Quantised:
    """`run` was computed with `held`, a file made of `original`: a checkpoint, or a recording of a run with it. Raises
    TraceError where that cannot be read or is of another model."""
    if Path(original).suffix not in RECORDED:
        return _beside(run, held, original, None)
    with open_trace(original) as reference:
        path = find_checkpoint(reference)
        if path is None:
            raise TraceError(f"{original}: {why_no_checkpoint(reference)}")
        return _beside(run, held, path, kld(reference, run))


def _beside(run: Trace, held: Checkpoint, original: str, distance: Kld | None) -> Quantised:
    checkpoint = open_checkpoint(original, run)
    apart = other_model(run, checkpoint)
    if apart is not None:
        raise TraceError(f"{original}: is of another model than {run.path}: {apart}")
    run, _ = in_order_of(held, run)
    return Quantised(checkpoint.path, layer_costs(run, held, checkpoint), distance)
