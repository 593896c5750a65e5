"""Make the test vectors that Python and Rust both read: `tests/vectors/`.

    python scripts/make_vectors.py

- rng.json: what the installed torch draws, floats as hexadecimal bits.
- sampling.json: what transformers' logits processors leave.
- log/python.tklog and log/python.json: a log and its content. log/rust.tklog is written by
  `cargo run --release -p tracekit --example write_vector -- tests/vectors/log/rust.tklog` with the same content.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tracekit.formats.log import LogWriter, Tensor, TensorLike

VECTORS = Path(__file__).resolve().parent.parent / "tests/vectors"
SEEDS = [0, 7, 2**32 - 1, 2**32 + 5, 2**63]
SIZES = [1, 10, 700]


def hexed(values: torch.Tensor) -> list[str]:
    """Bits of float32 or float64 values."""
    return [value.tobytes()[::-1].hex() for value in values.contiguous().numpy()]


def rng_case(seed: int, size: int) -> dict[str, Any]:
    """Each op in turn on one generator."""
    generator = torch.Generator()
    generator.manual_seed(seed - 2**64 if seed >= 2**63 else seed)
    probs = torch.linspace(0.1, 0.9, size)
    return {
        "seed": seed,
        "size": size,
        "rand_f32": hexed(torch.rand(size, generator=generator)),
        "rand_f64": hexed(torch.rand(size, dtype=torch.float64, generator=generator)),
        "exponential_f32": hexed(torch.empty(size).exponential_(1.5, generator=generator)),
        "bernoulli": torch.empty(size).bernoulli_(0.3, generator=generator).int().tolist(),
        "bernoulli_each": torch.bernoulli(probs, generator=generator).int().tolist(),
        "randint_7": torch.randint(7, (size,), generator=generator).tolist(),
        "randint_2_28": torch.randint(2**28, (size,), generator=generator).tolist(),
        "randperm": torch.randperm(size, generator=generator).tolist(),
        "multinomial": torch.multinomial(probs, 1, generator=generator).item(),
        "normal_f32": hexed(torch.cat([torch.randn(3, generator=generator) for _ in range(2)])),
        "randn_f32": hexed(torch.randn(2 * size + 3, generator=generator)),
        "uniform_f32": hexed(torch.empty(size).uniform_(-1.5, 2.7, generator=generator)),
        "state": generator.get_state().numpy().tobytes().hex() if size == 10 else None,
    }


PROCESSORS: dict[str, Any] = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
"""In the order in which `generate` puts them."""

SETTINGS: list[dict[str, float]] = [
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 7},
    {"temperature": 0.6, "min_p": 0.1},
    {"temperature": 1.0, "top_p": 0.01},
    {"repetition_penalty": 1.3, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


def sampling_case(seed: int, settings: dict[str, float]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/8: exact in decimal, and with ties at the cuts.
    logits = (torch.randn(120, generator=generator) * 24).round() / 8
    history = torch.randint(120, (12,), generator=generator)
    chain = LogitsProcessorList([PROCESSORS[name](settings[name]) for name in PROCESSORS if name in settings])
    probs = torch.softmax(chain(history[None], logits[None].clone()), dim=-1)[0]
    kept = torch.nonzero(probs)[:, 0]
    order = sorted(kept.tolist(), key=lambda token: (-probs[token].item(), token))
    generator.manual_seed(seed)
    return {
        "settings": settings,
        "logits": logits.tolist(),
        "history": history.tolist(),
        "survivors": order,
        "probs": [probs[token].item() for token in order],
        "seed": seed,
        "token": torch.multinomial(probs, 1, generator=generator).item(),
    }


def write_log(path: Path) -> dict[str, Any]:
    """The content that both languages write; `examples/write_vector.rs` is its twin."""
    values: dict[str, TensorLike] = {
        "BOOL": np.array([True, False, True]),
        "I64": np.array([-(2**63), 0, 2**63 - 1]),
        "F32": np.array([1.5, -0.0, np.inf], dtype=np.float32),
        "F64": np.array([np.pi, -1e300, 5e-324]),
        "BF16": Tensor("bfloat16", (3,), np.array([0x3F80, 0xC040, 0x7FC1], dtype=np.uint16).tobytes()),
    }
    writer = LogWriter(path)
    writer.write_frame("open", {"format": 1, "implementation": "vector", "model": {"hidden_size": 3}})
    writer.write_frame("note", {"text": 'a "quoted" line\nand é', "numbers": [1, 2.5, None]}, values)
    writer.write_frame("end", {"scope": "file", "reason": "done"})
    writer.abandon()
    return {
        "kinds": ["open", "note", "end"],
        "metadata": {"text": 'a "quoted" line\nand é', "numbers": [1, 2.5, None]},
        "tensors": {name: bytes_of(value).hex() for name, value in values.items()},
    }


def bytes_of(value: TensorLike) -> bytes:
    return bytes(value.data) if isinstance(value, Tensor) else value.tobytes()


def main() -> None:
    (VECTORS / "log").mkdir(parents=True, exist_ok=True)
    rng = [rng_case(seed, size) for seed in SEEDS for size in SIZES]
    (VECTORS / "rng.json").write_text(json.dumps({"torch": torch.__version__, "cases": rng}, separators=(",", ":")))
    sampling = [sampling_case(seed, settings) for seed, settings in enumerate(SETTINGS * 2)]
    (VECTORS / "sampling.json").write_text(json.dumps({"cases": sampling}, separators=(",", ":")))
    content = write_log(VECTORS / "log/python.tklog")
    (VECTORS / "log/content.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
