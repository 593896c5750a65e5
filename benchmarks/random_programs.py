"""Is a program recorded right, whatever order it does things in? Programs drawn at random, of operations on one model.

    python -m benchmarks.random_programs --programs 200 --seed 0

A program is up to five operations, drawn with their numbers: generations (greedy or sampled, a batch, padding, several
returned, embeddings given, a cache that a call before it filled, a static cache, a prompt longer than a window, in a
thread, one that fails), loops of its own (with a cache, without, in chunks), plain calls (with labels and gradients),
calls of parts, beam search; in float32 or bfloat16. Each program runs by itself, twice recorded, and once more with a
fault: what one of its Linears gives is multiplied.

A finding is: other results than those of the run by itself; an archive that is not complete; a generation whose tokens
stand in no sequence, and are not said to be lost; a culprit in the audit of a clean run; of the two clean recordings,
any verdict but parity or withheld; of a clean and the faulty one, parity; an audit of the faulty one that does not name
the fault. Exit code 1 if there is one; `--run N` repeats program N alone, and keeps its traces.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
import transformers

import tracekit
from tests import tiny_families

FAMILIES = ("llama", "gemma3", "qwen3", "gpt2", "mistral", "phi3", "mixtral", "gptneox", "olmo2", "cohere2")
LENGTHS = (1, 2, 7, 12)
Run = Callable[[Any], list[list[int]]]
"""What an operation does with a model, and the tokens of each generation that it made."""


class _Fails(transformers.LogitsProcessor):
    """Fails at a step of a generation."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("a processor fails")
        return scores


def _ids(draw: random.Random, batch: int = 1, least: int = 1) -> torch.Tensor:
    length = draw.choice([length for length in LENGTHS if length >= least])
    return torch.tensor([[draw.randrange(3, 150) for _ in range(length)] for _ in range(batch)])


def _sampling(draw: random.Random) -> dict[str, Any]:
    if draw.random() < 0.4:
        return {"do_sample": False} | draw.choice([{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
    kinds = ({"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 0}, {"typical_p": 0.9}, {"epsilon_cutoff": 0.01})
    return {"do_sample": True, "temperature": draw.choice([0.7, 1.0, 1.4])} | draw.choice(kinds)


def generates(draw: random.Random) -> Run:
    """`generate`, of one row or several."""
    batch, settings, count = draw.choice([1, 1, 2, 3]), _sampling(draw), draw.randrange(1, 6)
    ids = _ids(draw, batch)
    settings |= draw.choice([{}, {}, {"output_scores": True, "output_hidden_states": True}])
    settings |= draw.choice([{}, {}, {}, {"use_cache": False}, {"cache_implementation": "static"}])
    if settings["do_sample"] and batch == 1:
        settings |= draw.choice([{}, {}, {"num_return_sequences": 2}])
    mask = torch.ones_like(ids)
    if batch > 1 and ids.shape[1] > 2:
        pads = [draw.randrange(0, ids.shape[1] - 1) for _ in range(batch - 1)] + [0]
        for row, pad in enumerate(pads):
            mask[row, :pad] = 0
            ids[row, :pad] = 0

    def run(model: Any) -> list[list[int]]:
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=count, return_dict_in_generate=True, pad_token_id=0, **settings
        )
        return _until_stop(out.sequences[:, ids.shape[1] :].tolist())

    return run


def _until_stop(rows: list[list[int]]) -> list[list[int]]:
    stop = tiny_families.SIZES["eos_token_id"]
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def generates_from_embeddings(draw: random.Random) -> Run:
    """`generate`, given embeddings instead of ids."""
    ids, settings = _ids(draw), _sampling(draw)
    settings.pop("no_repeat_ngram_size", None), settings.pop("repetition_penalty", None)

    def run(model: Any) -> list[list[int]]:
        given = model.get_input_embeddings()(ids).detach()
        out = model.generate(inputs_embeds=given, max_new_tokens=3, pad_token_id=0, **settings)
        return _until_stop(out.tolist())

    return run


def generates_after_a_prefill(draw: random.Random) -> Run:
    """`generate` with the cache of a call before it."""
    ids, settings, left = _ids(draw, least=7), _sampling(draw), draw.randrange(1, 4)

    def run(model: Any) -> list[list[int]]:
        with torch.no_grad():
            cache = model(ids[:, :-left], use_cache=True).past_key_values
        out = model.generate(ids, past_key_values=cache, max_new_tokens=3, pad_token_id=0, **settings)
        return _until_stop(out[:, ids.shape[1] :].tolist())

    return run


def generates_in_a_thread(draw: random.Random) -> Run:
    """`generate` in a thread, as servers do."""
    inner = generates(draw)

    def run(model: Any) -> list[list[int]]:
        made: list[list[int]] = []
        thread = threading.Thread(target=lambda: made.extend(inner(model)))
        thread.start()
        thread.join()
        return made

    return run


def fails(draw: random.Random) -> Run:
    """A generation that fails, which the program catches."""
    ids, after = _ids(draw), draw.randrange(0, 4)

    def run(model: Any) -> list[list[int]]:
        processors = transformers.LogitsProcessorList([_Fails(after)])
        with contextlib.suppress(RuntimeError):
            model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, logits_processor=processors)
        return []

    return run


def beams(draw: random.Random) -> Run:
    """Beam search, which is not recorded."""
    ids = _ids(draw)

    def run(model: Any) -> list[list[int]]:
        model.generate(ids, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0)
        return []

    return run


def loops(draw: random.Random) -> Run:
    """A loop of the program's own."""
    batch = draw.choice([1, 1, 2])
    ids, count, samples = _ids(draw, batch), draw.randrange(2, 6), draw.random() < 0.5
    cached, chunk = draw.random() < 0.7, draw.choice([None, None, 3])

    def run(model: Any) -> list[list[int]]:
        fed, cache, tokens = ids, None, []
        with torch.no_grad():
            if cached and chunk:
                for first in range(0, ids.shape[1], chunk):
                    out = model(ids[:, first : first + chunk], past_key_values=cache, use_cache=True)
                    cache = out.past_key_values
            else:
                out = model(fed, use_cache=cached)
            for step in range(count):
                cache, logits = out.past_key_values, out.logits[:, -1]
                token = torch.multinomial(logits.softmax(-1), 1) if samples else logits.argmax(-1, keepdim=True)
                tokens.append(token)
                if step < count - 1:
                    fed = token if cached else torch.cat([fed, token], dim=1)
                    out = model(fed, past_key_values=cache, use_cache=True) if cached else model(fed, use_cache=False)
        return torch.cat(tokens, dim=1).tolist()

    return run


def calls(draw: random.Random) -> Run:
    """A call without a step: its logits are looked at, or its loss."""
    batch, labels, gradients = draw.choice([1, 2]), draw.random() < 0.5, draw.random() < 0.5
    ids = _ids(draw, batch, least=2)

    def run(model: Any) -> list[list[int]]:
        with contextlib.nullcontext() if gradients else torch.no_grad():
            out = model(ids, labels=ids if labels else None)
            if labels and gradients:
                out.loss.backward()
        return []

    return run


def calls_a_part(draw: random.Random) -> Run:
    """A call of the inner model, without its head."""
    ids = _ids(draw)

    def run(model: Any) -> list[list[int]]:
        with torch.no_grad():
            model.base_model(ids)
        return []

    return run


OPERATIONS = (
    *[generates] * 4,
    *[loops] * 3,
    *[calls] * 2,
    generates_from_embeddings,
    generates_after_a_prefill,
    generates_in_a_thread,
    fails,
    beams,
    calls_a_part,
)


@dataclass(frozen=True)
class Program:
    """A program that was drawn."""

    family: str
    attention: str
    dtype: torch.dtype
    operations: tuple[str, ...]
    fault: random.Random
    run: Callable[[Any], list[list[list[int]]]]
    """Gives the tokens of each generation of each operation."""

    def __str__(self) -> str:
        return f"{self.family}, {self.attention}, {self.dtype}: {', '.join(self.operations)}"

    def model(self, folders: Path) -> tuple[Path, Any]:
        """Its checkpoint, and a model of it."""
        folder = folders / self.family
        if not folder.exists():
            tiny_families.make(self.family, folder)
        return folder, tiny_families.load(folder, self.attention).to(self.dtype)


def program(number: int, seed: int) -> Program:
    """The program of a number."""
    draw = random.Random(f"{seed} {number}")
    family, attention = draw.choice(FAMILIES), draw.choice(["eager", "sdpa"])
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16])
    chosen = [draw.choice(OPERATIONS) for _ in range(draw.randrange(1, 6))]
    runs = [each(draw) for each in chosen]

    def run(model: Any) -> list[list[list[int]]]:
        torch.manual_seed(number)
        return [each(model) for each in runs]

    return Program(family, attention, dtype, tuple(each.__name__ for each in chosen), draw, run)


def _spoil(model: Any, draw: random.Random) -> str:
    """Multiply what one Linear gives; its site."""
    linears = [(path, module) for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    path, module = draw.choice(linears)
    module.register_forward_hook(lambda _, __, output: output * 1.25)
    return path


def findings(number: int, seed: int, folders: Path) -> tuple[str, list[str], list[str]]:
    """What a program is, what is wrong with its recordings, and what was withheld of their audit and comparison."""
    drawn = program(number, seed)
    what = f"{number}: {drawn}"
    folder, model = drawn.model(folders)
    plain = drawn.run(model)
    first, second, faulty = (folders / f"{number}.{name}.h5" for name in ("first", "second", "faulty"))
    found, said = [], ""
    for path in (first, second):
        tokens, said = _recorded(drawn.model(folders)[1], drawn, path)
        if tokens != plain:
            found.append(f"other tokens: {tokens} for {plain}")
    if not first.exists():
        return what, [*found, f"nothing recorded: {said[-300:]}"] if any(map(any, plain)) else found, []
    trace = tracekit.open(first)
    verdict = tracekit.diff(first, second)
    found += _of_trace(trace, plain, said=verdict.verdict == "withheld")
    wrong, withheld = _of_audits(trace, folder)
    if verdict.verdict == "withheld":
        withheld.append(f"diff: {verdict.text}")
    elif verdict.verdict != "parity":
        wrong.append(f"diff: {verdict.text}")
    if any(sequence.sites for sequence in trace.sequences):
        _, model = drawn.model(folders)
        site = _spoil(model, drawn.fault)
        _recorded(model, drawn, faulty)
        wrong += _of_fault(first, faulty, folder, site)
    return what, [*found, *wrong], withheld


def _recorded(model: Any, drawn: Program, path: Path) -> tuple[list[list[list[int]]], str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), tracekit_torch.record(model, path):
        return drawn.run(model), said.getvalue()


def _of_trace(trace: tracekit.Trace, plain: list[list[list[int]]], *, said: bool) -> list[str]:
    """`said`: a verdict on it is withheld, as of a prompt whose last chunk is one token, which may be a step's."""
    found = [] if trace.status == "complete" else [f"{trace.status}: {trace.status_detail}"]
    held = [sequence.tokens.tolist() for sequence in trace.sequences if sequence.step_count]
    missing = [tokens for made in plain for tokens in made if tokens and not _taken(held, tokens)]
    if missing and not (said or trace.config.get("lost")):
        found.append(f"tokens in no sequence, and not a word: {missing}; held {held}")
    return found


def _of_audits(trace: tracekit.Trace, folder: Path) -> tuple[list[str], list[str]]:
    """What audits of a clean run find, and what they withhold."""
    found, withheld = [], []
    for name, options in (("recipes", {}), ("reference", {"by": tracekit_torch.by_reference(str(folder))})):
        try:
            audit = tracekit.audit(trace, folder, **options)
        except tracekit.TraceError as error:
            withheld.append(f"audit by {name}: {error}")
            continue
        if audit.culprits:
            found.append(f"audit by {name}: {audit.text}")
        elif audit.exit_code:
            withheld.append(f"audit by {name}: {audit.text}")
    return found, withheld


def _of_fault(clean: Path, faulty: Path, folder: Path, site: str) -> list[str]:
    verdict = tracekit.diff(clean, faulty)
    found = [f"a fault at {site} is parity: {verdict.text}"] if verdict.verdict == "parity" else []
    try:
        audit = tracekit.audit(faulty, folder, by=tracekit_torch.by_reference(str(folder)))
    except tracekit.TraceError as error:
        return [*found, f"a fault at {site}: {error}"]
    named = {culprit.site for culprit in audit.culprits}
    if site not in named and not (site.endswith(("lm_head", "embed_out")) and "logits" in named):
        found.append(f"a fault at {site} is not named: {audit.text}")
    return found


def _taken(held: list[list[int]], tokens: list[int]) -> bool:
    if tokens in held:
        held.remove(tokens)
        return True
    return False


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=int, help="repeat this program alone")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    folders = Path(tempfile.mkdtemp(prefix="random_programs."))
    numbers = range(options.programs) if options.run is None else [options.run]
    for number in numbers:
        try:
            what, found, withheld = findings(number, options.seed, folders)
        except Exception:
            what, found, withheld = str(number), [traceback.format_exc()], []
        counts["wrong" if found else "withheld" if withheld else "whole"] += 1
        for text in found:
            print(f"WRONG {what}\n  {text}", flush=True)
        for text in withheld:
            print(f"withheld {what}\n  {text}", flush=True)
        if options.run is None:
            for path in folders.glob(f"{number}.*"):
                path.unlink()
    print(f"{len(numbers)} programs of seed {options.seed}: {dict(counts)}; {folders}")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
