"""What recording ONNX Runtime costs: the same runs of a session, plain and recorded, side by side.

    python -m benchmarks.onnx_recording [--layers 8] [--hidden 512]

The model is a decoder of random weights, exported here. The runs alternate, so that a machine that slows down slows all
of them; ratios of medians are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recording import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--positions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("ONNX", runs(options, Path(folder)), options.rounds)


def runs(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    import tracekit_onnx
    from tracekit_onnx.sessions import load_session, session_options

    path = exported(options, folder)
    session = load_session(str(path), session_options("all", 1))
    feeds = {"input_ids": np.arange(options.positions)[None] % 512}
    everything = tracekit_onnx.RecordedSession(session, folder / "all.tklog")
    layers = tracekit_onnx.RecordedSession(session, folder / "layers.tklog", sites=r"^model\.layers\.\d+$|^output$")
    few = tracekit_onnx.RecordedSession(session, folder / "few.tklog", sites="^output$")
    return {
        "plain": timed(lambda: session.run(None, feeds)),
        "twice, recording nothing": timed(lambda: (session.run(None, feeds), session.run(None, feeds))),
        "recorded, output alone": timed(lambda: few.run(None, feeds)),
        f"recorded, {count(layers)} sites": timed(lambda: layers.run(None, feeds)),
        f"recorded, all {count(everything)} sites": timed(lambda: everything.run(None, feeds)),
    }


def count(recorded: Any) -> int:
    """Sites with values of their own."""
    return sum(site.place is not None for site in recorded._sites.values())


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    def measured() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return measured


def exported(options: argparse.Namespace, folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model: Any = LlamaForCausalLM(config).eval()
    given = {"input_ids": torch.arange(options.positions)[None] % 512, "use_cache": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (), folder / "model.onnx", kwargs=given, dynamo=True, verbose=False)
    return folder / "model.onnx"


if __name__ == "__main__":
    main()
