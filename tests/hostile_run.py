"""Runs whose every text tries to be markup, a script, or the end of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tracekit.formats.log import LogWriter

PROMPT = "<script>alert(1)</script>\u2028<img src=x onerror=alert(2)>"
SITES = [
    "up\"><img src=x onerror='alert(3)'>",
    "</script><script>alert(4)</script>",
    "down{{ 7 * 7 }}' onclick='alert(5)",
]
TOKENS = [
    "</script><script>alert(6)</script>",
    "\u2028\u2029",
    '"><b onmouseover=alert(7)>',
    "&lt;i&gt;",
    "\ud800",
    "<!--",
]
SETTING = "<svg onload=alert(8)>"
WIDTH, VOCABULARY = 16, 12


def write_hostile(path: Path, *, wrong: bool = False) -> Path:
    """A log of four prompt tokens and six steps; with `wrong`, the last site is off and the last token another one."""
    log = LogWriter(path)
    rows = [{"name": name, "class": "<b>Linear</b>", "order": order} for order, name in enumerate(SITES)]
    rows[1]["input"] = SITES[0]
    log.open(
        "<u>native</u>", dtype="float32", device=SETTING, model={"hidden_size": WIDTH, SETTING: SETTING}, sites=rows
    )
    sampling = {"do_sample": True, "temperature": 0.8, "note": SETTING + ("2" if wrong else "")}
    log.sequence(0, {"prompt/token_ids": np.arange(4)}, sampling=sampling, seed=1, prompt_text=PROMPT, texts=TOKENS[:4])
    truth = np.random.default_rng(1)
    for step in range(len(TOKENS)):
        first, count = (0, 4) if step == 0 else (3 + step, 1)
        values = {name: truth.normal(size=(count, WIDTH)).astype(np.float32) for name in SITES}
        values[SITES[2]] *= np.float32(1.5 if wrong else 1.0)
        log.call(0, first, count, values)
        last = step == len(TOKENS) - 1
        token = 8 if wrong and last else 4 + step % 4
        tensors = {"logits": truth.normal(size=VOCABULARY).astype(np.float32)}
        draws = [{"op": SETTING, "generator": "mt19937", "seed": 1, "offset": step, "words": 1, "result": token}]
        log.step(0, step, 3 + step, token, tensors, text=TOKENS[step], draws=draws)
    log.end_sequence(0, len(TOKENS), "length")
    log.close()
    return path
