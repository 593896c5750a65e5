"""A proposed map of names, as TOML and as JSON."""

from __future__ import annotations

from tracekit.align.proposals import FoundBy, Proposals
from tracekit.trace import Json

_SAID = {
    FoundBy.VALUES: "equal values",
    FoundBy.NAME: "by name and width: check it",
    FoundBy.ORDER: "by width and order: check it",
}


def names_toml(found: Proposals) -> str:
    """The map as `diff --names` reads it, each line with what it was found by."""
    return found.names.to_toml(_SAID[line.by] for line in found.lines)


def names_json(found: Proposals) -> Json:
    """Everything, ready for `json.dumps`."""
    return {
        "names": [
            {"name": line.alias.name, "parts": line.alias.parts, "by": line.by, "why": _SAID[line.by]}
            for line in found.lines
        ],
        "matched": found.matched,
        "unmatched": {"reference": found.left_reference, "candidate": found.left_candidate},
    }
