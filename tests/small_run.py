"""A generation small enough to be made in numpy, so that each fault can be planted in exactly one place.

Two sites, logits, transformers' filter, torch's exponential race. Values are a float64 truth plus rounding noise of
float32, so that two runs of different `noise` are harmless rewrites of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.formats.log import LogWriter
from tracekit.sampling.chain import scores as scores_of
from tracekit.sampling.scores import survivors
from tracekit.torch_rng.generator import TorchGenerator

WIDTH, VOCABULARY, PROMPT, STEPS = 32, 50, 4, 6
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "max_new_tokens": STEPS}
Change = Callable[[str, int, np.ndarray], np.ndarray]
Filter = Callable[[np.ndarray, list[int], int], np.ndarray]
"""(logits f64 [vocabulary], prompt and tokens so far, step) -> scores."""
Drawn = list[tuple[int, int]]
"""Words and result of each draw of a step; the last one's is the token."""
Draw = Callable[[TorchGenerator, np.ndarray, int], int | Drawn]
"""(generator, probabilities f32 [vocabulary], step) -> token, or the draws that led to it."""


def write_run(
    path: Path,
    *,
    noise: int = 0,
    change: Change = lambda site, position, row: row,
    dtype: str = "float32",
    used: dict[str, Any] | None = None,
    stated: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    seed: int = 3,
    generator_seed: int | None = None,
    words_between_draws: int = 0,
    prompt: tuple[int, ...] = (5, 6, 7, 8),
    steps: int = STEPS,
    reason: str = "length",
    pick: Callable[[int, int, np.ndarray], int] = lambda step, token, ids: token,
    filtered: Filter | None = None,
    draw: Draw | None = None,
    words: int = 2 * VOCABULARY,
    stops: tuple[int, ...] = (),
    tell: bool = True,
    op: str = "multinomial",
    digest: int = 1,
    close: bool = True,
    sparse: bool = False,
    greedy: bool = False,
    unseeded: bool = False,
) -> Path:
    """Write a log. `change` alters a row of a site; `used` are the sampler's numbers where not those `stated`.

    `filtered` makes the scores in place of the stated filter, `draw` the token in place of the race; `words` is what it
    takes, and `unseeded` says that nobody seeded the generator. The run ends behind a token of `stops`. Without `tell`
    the draws and survivors are not recorded; `sparse`, nothing else is. A `greedy` run draws nothing.
    """
    log = LogWriter(path)
    settings = {**SAMPLING, **(stated or {})}
    log.open(
        "python",
        dtype=dtype,
        seed=seed,
        model={"hidden_size": WIDTH, "vocab_size": VOCABULARY, "rope_theta": 10000.0, **(model or {})},
        weights=[{"name": "up.weight", "dtype": dtype, "shape": [WIDTH, WIDTH], "digest": digest}],
        sites=[
            {"name": "up", "class": "Linear", "order": 0},
            {"name": "down", "class": "Linear", "order": 1, "input": "up"},
        ],
    )
    log.sequence(0, {"prompt/token_ids": np.array(prompt)}, sampling=settings, seed=seed)
    generator = TorchGenerator(seed if generator_seed is None else generator_seed)
    rounding = np.random.default_rng(noise)
    context = list(prompt)
    for step in range(steps):
        first = 0 if step == 0 else len(prompt) - 1 + step
        rows = [_rows(context, position, rounding, change, dtype) for position in range(first, len(context))]
        if not sparse:
            log.call(0, first, len(rows), {name: np.stack([row[name] for row in rows]) for name in ("up", "down")})
        logits = rows[-1]["logits"]
        numbers = {**settings, **(used or {})}
        if filtered is None:
            scores = scores_of(logits, numbers, context, len(prompt))
        else:
            scores = filtered(logits.astype(np.float64), context, step)
        ids, probs = survivors(scores)
        full = np.zeros(VOCABULARY, dtype=np.float32)
        full[ids] = probs
        generator.skip(words_between_draws if step else 0)
        offset = generator.offset
        drawn = int(generator.multinomial(full)[0]) if draw is None else draw(generator, full, step)
        each = [(words, drawn)] if isinstance(drawn, int) else drawn
        token = pick(step, each[-1][1], ids)
        each[-1] = (each[-1][0], token)
        draws, tensors = [], {} if sparse else {"logits": logits}
        for count, result in each:
            row = {"op": op, "generator": "mt19937", "seed": generator.seed, "offset": offset, "words": count}
            if unseeded:
                row = {"op": op, "generator": "thread_rng"}
            draws.append(row | {"result": result if op == "multinomial" else None})
            offset += count
        if tell:
            tensors |= {"survivors/id": ids, "survivors/prob": probs.astype(np.float32)}
        told = draws if tell and not greedy else None
        log.step(0, step, len(context) - 1, token, tensors, text=f"<{token}>", draws=told)
        context.append(token)
        if token in stops:
            steps, reason = step + 1, "stop"
            break
    if close:
        log.end_sequence(0, steps, reason)
        log.close()
    else:
        log.abandon()
    return path


def _rows(
    context: list[int], position: int, rounding: np.random.Generator, change: Change, dtype: str
) -> dict[str, np.ndarray]:
    """The two sites and the logits of a position; they depend on everything before it."""
    truth = np.random.default_rng([1, *context[: position + 1]])
    up = change("up", position, _rounded(truth.normal(size=WIDTH), rounding, dtype))
    mixed = np.roll(up.astype(np.float64), 1) + 0.5 * truth.normal(size=WIDTH)
    down = change("down", position, _rounded(mixed, rounding, dtype))
    head = np.random.default_rng(2).normal(size=(VOCABULARY, WIDTH)) / np.sqrt(WIDTH)
    logits = change("logits", position, _rounded(3.0 * head @ down.astype(np.float64), rounding, dtype))
    return {"up": up, "down": down, "logits": logits}


def _rounded(values: np.ndarray, rounding: np.random.Generator, dtype: str) -> np.ndarray:
    """A few units of roundoff, as another order of summation leaves them; float64 stands for an exact oracle."""
    if dtype == "float64":
        return values
    noise = 1.0 + 2.0**-23 * rounding.uniform(-1, 1, size=values.shape)
    return (values * noise).astype(np.float32)
