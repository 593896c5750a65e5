"""A run from a quantised file beside the checkpoint that the file was made of."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.align.rotary_order import in_order_of
from tracekit.auditing.audit import other_model
from tracekit.auditing.layer_costs import LayerCost, layer_costs
from tracekit.checkpoints.checkpoint import Checkpoint
from tracekit.checkpoints.stated import open_checkpoint
from tracekit.compare.kld import Kld
from tracekit.trace import Trace, TraceError


@dataclass(frozen=True)
class Quantised:
    """What the file, the arithmetic and the engine cost, layer by layer, and the distance of the distributions where a
    recording of the original was given."""

    original: str
    layers: tuple[LayerCost, ...]
    kld: Kld | None

    @property
    def of_the_file(self) -> bool:
        """Whether no product of any layer costs anything: the original holds what the file's blocks stand for."""
        costs = [layer.file for layer in self.layers if layer.file is not None]
        return bool(costs) and not any(costs)


def quantised(run: Trace, held: Checkpoint, original: str, distance: Kld | None = None) -> Quantised:
    """`run` was computed with `held`, a file made of the checkpoint `original`; `distance`: of its distributions from
    those of a run with that. Raises TraceError where it cannot be read or is of another model."""
    checkpoint = open_checkpoint(original, run)
    apart = other_model(run, checkpoint)
    if apart is not None:
        raise TraceError(f"{original}: is of another model than {run.path}: {apart}")
    run, _ = in_order_of(held, run)
    return Quantised(checkpoint.path, layer_costs(run, held, checkpoint), distance)
