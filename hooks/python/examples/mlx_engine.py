"""An unedited model of mlx-lm, recorded: tracekit record -o mlx.h5 -- python mlx_engine.py MODEL_FOLDER ID ID ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

import tracekit

TOKENS = 12


def with_parameters(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that have parameters, and what is made of them."""
    return [(name, module) for name, module in model.named_modules() if name and module.parameters()]


def site(name: str, module: nn.Module) -> dict[str, Any]:
    """What the audit needs of a module: its class, its numbers, and where its parameters are in the checkpoint."""
    held = {role: f"{name}.{role}" for role in ("weight", "bias") if role in module}
    numbers = {"eps": module.eps} if "eps" in dir(module) else {}
    return {"class": type(module).__name__, "parameters": held, "attributes": numbers}


def tap(model: nn.Module, values: dict[str, Any]) -> None:
    """Let each module put its input and its output into `values`, by its name."""
    names = {id(module): name for name, module in with_parameters(model)}

    def tapped(call: Any) -> Any:
        def wrapped(self: nn.Module, *given: Any, **named: Any) -> Any:
            made = call(self, *given, **named)
            if (name := names.get(id(self))) and isinstance(made, mx.array) and isinstance(given[0], mx.array):
                if mx.issubdtype(given[0].dtype, mx.floating):
                    values[f"{name}:in"] = given[0]
                values[name] = made
            return made

        return wrapped

    for kind in {type(module) for module in model.modules()}:
        kind.__call__ = tapped(kind.__call__)


def main() -> None:
    folder, prompt = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    model, config = load_model(folder)
    values: dict[str, Any] = {}
    described = {"model": config, "checkpoint": str(folder), "versions": {"mlx": mx.__version__}}
    sites = {name: site(name, module) for name, module in with_parameters(model)}
    with tracekit.Recording("mlx", dtype="float32", sites=sites, **described) as recording:
        if recording.enabled:
            tap(model, values)
        generation = recording.sequence(prompt, do_sample=False, max_new_tokens=TOKENS)
        cache, ids, first, out = make_prompt_cache(model), prompt, 0, []
        for _ in range(TOKENS):
            values.clear()
            logits = model(mx.array([ids]), cache=cache)[0, -1]
            generation.forward(first, len(ids), values)
            first += len(ids)
            ids = [generation.next_token(int(mx.argmax(logits)), logits=logits)]
            out += ids
        generation.end("length")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
