"""What a quantised file costs and what an engine makes of it, as lines and as JSON."""

from __future__ import annotations

from tracekit.auditing.layer_costs import LayerCost
from tracekit.compare.kld import Kld
from tracekit.report.words.numbers import percent
from tracekit.trace import Json
from tracekit.verdict.quantised import Quantised


def quantised_lines(found: Quantised | None) -> list[str]:
    """A row a layer: the cost of the quantisation, of the stated arithmetic, the error of the engine."""
    if found is None:
        return []
    lines = [f"quantised from {found.original}"]
    if found.kld is not None:
        lines.append(f"  {_distance(found.kld)}")
    if not found.layers:
        return [*lines, "  no layer was recorded with its inputs: record with --level all"]
    wide = max(len("layer"), *(len(layer.layer) for layer in found.layers))
    lines.append(f"  {'layer':{wide}}  quantisation  arithmetic    engine")
    lines += [f"  {layer.layer:{wide}}  {_row(layer)}" for layer in found.layers]
    if found.of_the_file:
        lines.append("  its weights are the file's own values: give the checkpoint that the file was made of")
    worst = max(found.layers, key=lambda layer: layer.engine)
    return [*lines, f"  the engine is off most in {worst.layer}, at {worst.worst}"]


def _row(layer: LayerCost) -> str:
    file = "" if layer.file is None else f"{layer.file:.1e}"
    return f"{file:>12}  {layer.arithmetic:>10.1e}  {layer.engine:>8.1e}"


def _distance(found: Kld) -> str:
    return (
        f"KLD over {found.steps} steps: mean {found.mean:.3g}, 99.9 % {found.most:.3g}, "
        f"same top p {percent(found.same_top)}"
    )


def quantised_json(found: Quantised | None) -> Json | None:
    """The same, ready for `json.dumps`; None where no original was given."""
    if found is None:
        return None
    return {
        "original": found.original,
        "layers": [vars(layer) for layer in found.layers],
        "kld": None if found.kld is None else vars(found.kld),
    }
