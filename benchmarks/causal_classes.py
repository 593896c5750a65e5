"""Does tracekit stay without an alarm on the model classes of transformers, whichever they are?

    python -m benchmarks.causal_classes --dtype float32 --attention eager --attention sdpa --append classes.jsonl
    python -m benchmarks.causal_classes --table classes.jsonl

Every class that generates: decoders (`--kind causal`), encoder-decoders (`seq2seq`), vision and language fed with text
alone (`vision`), speech fed with features (`speech`). Its default configuration is shrunk by the names of its numbers,
its weights are random; a class that cannot be made so, or does not generate, did not run and counts as that. Each class
runs in a child process with a time limit, in every combination of the `--dtype`, `--attention` and `--how` given:

- the tokens of the recorded run are those of the run without a recorder;
- `audit` by recipes and `audit --model` find nothing;
- `diff` of the run against the class's first one of the same dtype and prompt (eager against sdpa, whole against in
  chunks), with and without `--model`, is no divergence.

`--fault` plants one fault at random beside each clean run: a weight 1.01 times as large, an eps ten times as large,
query and key projections exchanged, another rotary base. The audit and the diff have to find it. Exit code 1 where
something is not as it should be.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tracekit_torch
import transformers
from tabulate import tabulate
from torch import nn
from transformers.models.auto import modeling_auto as auto

import tracekit
from tracekit.trace import TraceError

KINDS = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "vision": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "speech": auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
HOWS = ("greedy", "sampled", "batched", "chunked", "uncached")
SECONDS, WAITED = 120.0, 10.0
"""CPU time of a class, and how many times as long it may take on a machine that does something else as well."""
TOKENS, VOCABULARY = 5, 160
PROMPT = (72, 101, 50, 90, 80, 12, 70, 33, 91, 41, 17)
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}
SIZES: tuple[tuple[str, Any], ...] = (
    (r"(padded_)?vocab_size(_per_layer_input)?|.*_vocab_size", VOCABULARY),
    (r"(moe|expert|shared_expert|moe_shared_expert).*intermediate_size|expert_ffn_hidden_size", 16),
    (r".*intermediate_size|.*ffn_dim|d_ff|ffn_hidden_size|n_inner|.*ffn_hidden.*|mlp_dim|inner_dim", 48),
    (r"mamba_(d_head|head_dim)", 16),
    (r".*head_dim|d_kv|.*head_size|kv_channels", 8),
    (r"rotary_dim", 4),
    (r".*lora_rank|.*_rank", 16),
    (r".*hidden_size|d_model|n_embd|dim|embed_dim|.*embed_dim|.*embedding_size|word_embed_proj_dim|lru_width", 32),
    (r".*attention_hidden_size|hidden_size_per_layer_input|projection_dim|.*_proj_dim|output_dim", 32),
    (r"num_key_value_heads|num_kv_heads|n_kv_heads|multi_query_group_num|.*num_key_value_heads", 2),
    (r"linear_num_key_heads|.*num_key_heads", 2),
    (r".*heads|n_head|.*num_heads", 4),
    (r".*layers|n_layer|depth|num_blocks|n_layers", 2),
    (r"first_k_dense_replace|.*dense_layers.*", 1),
    (r"n_group|topk_group|num_expert_group.*|n_shared_experts|num_shared_experts", 1),
    (r"num_experts_per_tok|moe_topk|top_k_experts|moe_top_k|moe_k|top_k|num_selected_experts", 2),
    (r"num_.*experts|n_routed_experts|.*num_experts|moe_num_experts|num_experts", 4),
    (r"max_position_embeddings|n_positions|max_seq_len.*|max_source_positions|max_target_positions", 128),
    (r"sliding_window.*|attention_window.*|.*window_size", 6),
    (r"state_size|mamba_d_state|ssm_state_size|d_state", 8),
    (r"mamba_n_groups|n_groups|mamba_num_groups", 2),
    (r"chunk_size|mamba_chunk_size", 8),
    (r"(attn|expert)_layer_period", 2),
    (r"(attn|expert)_layer_offset", 1),
    (r"image_size", 16),
    (r"patch_size", 4),
    (r"num_mel_bins|input_feat_per_channel", 16),
)
"""What a number of a configuration becomes where it is larger, by the first pattern that its name matches."""

BINS = "num_mel_bins|input_feat_per_channel|feature_projection_input_dim|feature_size|num_mel_features"
SIDE, PATCH = "image_size", "patch_embed_hidden_size"
"""Names of what a frame, an image and a patch are wide."""

SECTIONS = {"mrope_section": [2, 1, 1]}
"""How the rotary pairs of a head of width 8 are shared between time, height and width."""


@dataclass(frozen=True)
class Way:
    """How a class is run."""

    dtype: str
    attention: str
    how: str

    def label(self) -> str:
        return f"{self.dtype} {self.attention} {self.how}"


@dataclass
class Outcome:
    """What came of one class."""

    name: str
    kind: str
    ways: list[str] = field(default_factory=list)
    """Those that ran."""
    failed: str = ""
    """Why none ran."""
    alarms: list[dict[str, Any]] = field(default_factory=list)
    """What is not as it should be: `way`, `what` (tokens, recipes, model, diff, traceback, ...), `said`."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """What was planted: `way`, `fault`, `at`, and the first sites that the audit and the diff name."""
    withheld: list[dict[str, Any]] = field(default_factory=list)
    """Audits and diffs that give no verdict, with the reason that they state."""
    sites: int = 0
    unjudged: int = 0
    seconds: float = 0.0


# ---------------------------------------------------------------- making a model


def shrunk(declared: dict[str, Any]) -> dict[str, Any]:
    """A configuration with small numbers; those of nested configurations too."""
    small = {name: _small(name, value) for name, value in declared.items() if name not in ("transformers_version",)}
    for names in ("layer_types", "layers_block_type"):
        kinds = list(dict.fromkeys(small.get(names) or ()))
        if not kinds:
            continue
        count = max(2, len(kinds))
        small[names] = [kinds[index % len(kinds)] for index in range(count)]
        small |= {name: count for name in ("num_hidden_layers", "n_layer", "num_layers") if name in small}
    if "kv_lora_rank" in small and "num_attention_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]  # latent attention: a key for each head
    if isinstance(small.get("per_layer_config"), dict):
        last = small.get("num_hidden_layers", 0)
        small["per_layer_config"] = {at: each for at, each in small["per_layer_config"].items() if int(at) < last}
    if {"state_size", "head_dim", "expand"} <= small.keys():
        small["head_dim"] = 16  # Mamba 2: heads of twice the width
    if "rope_parameters" in small and re.search("vl|4v|omni|ocr", str(small.get("model_type"))):
        small["rope_parameters"] = (small["rope_parameters"] or {"rope_type": "default", "rope_theta": 1e4}) | SECTIONS
    for name, value in small.items():
        if isinstance(value, list) and name not in ("layer_types", "layers_block_type") and len(value) > 2:
            old = next((declared[one] for one in ("num_hidden_layers", "num_layers") if one in declared), None)
            if old == len(value):
                small[name] = value[: small["num_hidden_layers" if "num_hidden_layers" in small else "num_layers"]]
    return small


def _small(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        inner = shrunk(value)
        return inner | SECTIONS if "mrope_section" in inner else inner
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name.endswith(("token_id", "token_index")):
        return value if 0 <= value < VOCABULARY else VOCABULARY - 1 - (sum(map(ord, name)) % 40)
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
    return value if size is None else min(value, size)


def made(name: str, folder: Path) -> None:
    """A checkpoint of a class, with random weights that make attention and norms matter. Raises what transformers
    does."""
    kind = getattr(transformers, name)
    declared = kind.config_class().to_dict()
    config = kind.config_class(**shrunk(declared))
    torch.manual_seed(11)
    model = kind(config).eval().float()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() >= 2 and "A_log" not in key:
                scale = 0.5 if "embed" in key or "wte" in key else value[0].numel() ** -0.5
                value.copy_(torch.randn_like(value) * scale)
            elif value.dim() == 1 and "norm" in key.lower():
                value.add_(0.2 * torch.randn_like(value))
            elif value.dim() == 1 and key.endswith("bias") and "dt_bias" not in key:
                value.copy_(0.1 * torch.randn_like(value))
            elif value.dim() == 1 and not value.any() and not key.endswith("bias"):
                value.copy_(0.5 * torch.randn_like(value))  # 0 until it is trained: choices by it tie (Doge's A)
    model.save_pretrained(folder)


def loaded(name: str, folder: Path, way: Way) -> nn.Module:
    kind = getattr(transformers, name)
    attention = None if way.attention == "default" else way.attention
    model: nn.Module = kind.from_pretrained(
        folder, attn_implementation=attention, dtype=getattr(torch, way.dtype)
    ).eval()
    return model


def generating(model: Any, way: Way) -> Callable[[], torch.Tensor]:
    """What generates a few tokens, the same each time."""
    settings: dict[str, Any] = dict(SAMPLED) if way.how in ("sampled", "batched") else {"do_sample": False}
    settings["num_beams"] = 1  # a default of some, and no choice of one token a step
    if way.how == "chunked":
        settings["prefill_chunk_size"] = 4
    if way.how == "uncached":
        settings["use_cache"] = False
    prompts = [list(PROMPT), [0, 0, 0, *PROMPT[3:]]] if way.how == "batched" else [list(PROMPT)]
    ids = torch.tensor(prompts)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if getattr(model.config, "is_encoder_decoder", False):
        given = {name: value.flip(1) for name, value in given.items()}
        told = model.generation_config
        if told.decoder_start_token_id is None and told.bos_token_id is None:
            settings["decoder_start_token_id"] = 3

    if model.generation_config is not None:
        model.generation_config.pad_token_id = 0

    def run(given: dict[str, Any]) -> torch.Tensor:
        torch.manual_seed(4)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model.generate(**given, max_new_tokens=TOKENS, min_new_tokens=TOKENS, **settings)
        tokens = out if isinstance(out, torch.Tensor) else out.sequences
        return tokens[:, -TOKENS:]

    taken = [*_features(model, len(prompts)), given]
    for each in taken[:-1]:
        with suppress(RuntimeError, ValueError, IndexError, AssertionError):
            run(each)
            return partial(run, each)
    return partial(run, taken[0])


def _features(model: Any, batch: int) -> Iterator[dict[str, Any]]:
    """Noise in each shape in which a model may take its features: what generates is what it takes."""
    asked = inspect.signature(model.generate).parameters
    main = next((name for name in ("input_features", "pixel_values") if name in asked), model.main_input_name)
    bins = dict.fromkeys([*_numbers(model.config.to_dict(), BINS), 16])
    shapes = {
        "input_features": [shape for count in bins for shape in ((batch, 256, count), (batch, count, 256))],
        "input_values": [(batch, 4096), *((batch, 256, count) for count in bins)],
        "pixel_values": [(batch, 3, side, side) for side in dict.fromkeys(_numbers(model.config.to_dict(), SIDE))],
        "flattened_patches": [(batch, 12, 2 + count) for count in _numbers(model.config.to_dict(), PATCH)],
    }
    for shape in shapes.get(main, ()):
        noise = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
        yield {main: noise.to(next(model.parameters()).dtype)}


def _numbers(declared: dict[str, Any], pattern: str) -> Iterator[int]:
    """Numbers of a configuration, and of those nested in it, whose name the pattern matches."""
    for name, value in declared.items():
        if isinstance(value, dict):
            yield from _numbers(value, pattern)
        elif isinstance(value, int) and re.fullmatch(pattern, name):
            yield value


# ---------------------------------------------------------------- judging it


def judged(name: str, kind: str, ways: list[Way], fault: int | None, scratch: Path) -> Outcome:
    """Run a class in every way, record, audit and compare."""
    out = Outcome(name, kind)
    began = time.process_time()
    folder = scratch / "model"
    try:
        made(name, folder)
    except Exception as error:
        out.failed = f"cannot be made: {_said(error)}"
        return out
    by: dict[str, Any] = {}
    first: dict[tuple[str, str], tuple[Way, Path]] = {}
    for way in ways:
        trace = _recorded(out, name, folder, way, scratch / f"{way.label().replace(' ', '-')}.h5")
        if trace is None:
            continue
        out.ways.append(way.label())
        try:
            by.setdefault(way.dtype, tracekit_torch.by_reference(str(folder)))
        except Exception as error:
            _alarm(out, way, "reference", error)
            return out
        _audited(out, way, trace, folder, by[way.dtype])
        prompt = way.how if way.how in ("sampled", "batched") else "alone"
        before = first.setdefault((way.dtype, prompt), (way, trace))
        if before[1] != trace:
            _compared(out, before[0], way, before[1], trace, folder, by[way.dtype])
        if fault is not None:
            _planted(out, name, folder, way, trace, by[way.dtype], random.Random(f"{fault}/{name}/{way.label()}"))
    out.seconds = time.process_time() - began
    return out


def _recorded(out: Outcome, name: str, folder: Path, way: Way, path: Path) -> Path | None:
    """The trace of a run; None where the class does not run so without a recorder."""
    try:
        model = loaded(name, folder, way)
        run = generating(model, way)
        plain = run()
        if not torch.equal(plain, run()):
            raise ValueError("does not give the same tokens twice")
    except Exception as error:
        out.failed = out.failed or f"{way.label()}: does not generate: {_said(error)}"
        return None
    heard = StringIO()
    try:
        with redirect_stderr(heard), tracekit_torch.record(model, path):
            tokens = run()
    except Exception as error:
        _alarm(out, way, "record", error)
        return None
    if not path.exists():
        out.withheld.append({"way": way.label(), "what": "record", "said": heard.getvalue().strip()[-300:]})
        return None
    if not torch.equal(plain, tokens):
        _alarm(out, way, "tokens", "the recorded run gives other tokens")
    if "Traceback" in heard.getvalue():
        _alarm(out, way, "record", heard.getvalue()[-300:])
    try:
        with tracekit.open(path) as trace:
            kept = [sequence.tokens.tolist() for sequence in trace.sequences]
    except TraceError as error:
        _alarm(out, way, "record", error)
        return None
    if kept != plain.tolist():
        _alarm(out, way, "trace", f"holds {kept}, not {plain.tolist()}")
    return path


def _audited(out: Outcome, way: Way, trace: Path, folder: Path, by: Any) -> None:
    auditors: dict[str, dict[str, Any]] = {"recipes": {}, "model": {"by": by}}
    for what, options in auditors.items():
        try:
            found = tracekit.audit(trace, folder, **options)
        except TraceError as error:
            out.withheld.append({"way": way.label(), "what": what, "said": str(error)[:300]})
            continue
        except Exception as error:
            _alarm(out, way, what, error)
            continue
        if what == "model":
            out.sites += len(found.clean) + len(found.culprits)
            out.unjudged += len(found.unknown)
        if found.exit_code == 1:
            over = [(one.site, one.own.statistic.name, round(max(one.own.over.values()), 2)) for one in found.culprits]
            _alarm(out, way, what, f"{over[:4]} {found.differences} {found.weights[:3]}"[:400])
        elif found.exit_code:
            said = [type(one).__name__ for one in found.lost]
            said += ["not finite"] if found.non_finite is not None else []
            out.withheld.append({"way": way.label(), "what": what, "said": ", ".join(said)})


def _compared(out: Outcome, one: Way, other: Way, before: Path, trace: Path, folder: Path, by: Any) -> None:
    judges: dict[str, dict[str, Any]] = {"diff": {}, "diff --model": {"by": by}}
    for what, options in judges.items():
        try:
            found = tracekit.diff(before, trace, weights=folder, **options)
        except TraceError as error:
            out.withheld.append({"way": other.label(), "what": what, "said": str(error)[:300]})
            continue
        except Exception as error:
            _alarm(out, other, what, error)
            continue
        if found.cause is tracekit.Cause.NEAR_TIE:
            out.withheld.append({"way": other.label(), "what": what, "said": "near-tie: rounding decided a token"})
        elif found.exit_code == 1:
            _alarm(out, other, what, f"against {one.label()}: " + " | ".join(found.text.splitlines()[:4])[:400])
        elif found.exit_code:
            out.withheld.append({"way": other.label(), "what": what, "said": " | ".join(found.text.splitlines()[:3])})


def _planted(out: Outcome, name: str, folder: Path, way: Way, clean: Path, by: Any, dice: random.Random) -> None:
    """Plant one fault, and ask the audit and the diff for it."""
    model = loaded(name, folder, way)
    faults = list(_faults(model))
    if not faults:
        return
    chosen = dice.choice(sorted({kind for kind, _, _ in faults}))
    _, at, plant = dice.choice([one for one in faults if one[0] == chosen])
    with torch.no_grad():
        plant()
    path = clean.with_suffix(".fault.h5")
    row: dict[str, Any] = {"way": way.label(), "fault": chosen, "at": at}
    try:
        with redirect_stderr(StringIO()), tracekit_torch.record(model, path):
            generating(model, way)()
        found = tracekit.audit(path, folder, by=by)
        row["audit"] = [found.exit_code, *(one.site for one in found.culprits[:3])]
        row["weights"] = list(found.weights[:2])
        verdict = tracekit.diff(clean, path, weights=folder, by=by)
        row["diff"] = [verdict.verdict, str(verdict.cause), verdict.site]
    except Exception as error:
        _alarm(out, way, f"fault {chosen} at {at}", error)
        return
    out.faults.append(row)


def _faults(model: nn.Module) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """What can be done wrong in a model: kind, where, and what does it."""
    for key, value in model.named_parameters():
        if value.dim() == 2 and not re.search("vision|visual|audio", key):
            yield "weight", key, partial(value.mul_, 1.01)
    for path, module in model.named_modules():
        if re.search("vision|visual|audio", path):
            continue
        for eps in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, eps, None), float):
                yield "eps", path, partial(setattr, module, eps, 10.0 * getattr(module, eps))
        query, key = getattr(module, "q_proj", None), getattr(module, "k_proj", None)
        if isinstance(query, nn.Linear) and isinstance(key, nn.Linear) and query.weight.shape == key.weight.shape:
            yield "swapped", path, partial(_swap, query, key)
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
            yield "theta", path, partial(module.inv_freq.pow_, 1.2)


def _swap(one: nn.Linear, other: nn.Linear) -> None:
    """Exchange what two projections hold."""
    one.weight, other.weight = other.weight, one.weight
    one.bias, other.bias = other.bias, one.bias


def _alarm(out: Outcome, way: Way, what: str, said: object) -> None:
    where = ""
    if isinstance(said, Exception):
        frame = traceback.extract_tb(said.__traceback__)[-1]
        where = f" ({Path(frame.filename).name}:{frame.lineno})"
        said = _said(said)
    out.alarms.append({"way": way.label(), "what": what, "said": f"{said}{where}"})


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


# ---------------------------------------------------------------- the children


def _child(given: tuple[str, str, list[Way], int | None], seconds: float, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    with tempfile.TemporaryDirectory(prefix="causal-classes-") as scratch, suppress(BrokenPipeError):
        try:
            with Path(os.devnull).open("w") as sink, redirect_stdout(sink), redirect_stderr(sink):
                out = judged(*given, Path(scratch))
        except Exception as error:
            out = Outcome(given[0], given[1], failed=f"this script: {_said(error)}")
        pipe.send(out)


def outcome(name: str, kind: str, ways: list[Way], fault: int | None, seconds: float) -> Outcome:
    """One class, in a child process with a time limit."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=((name, kind, ways, fault), seconds, theirs))
    child.start()
    theirs.close()
    late = f"not done after {seconds:g} s of CPU"
    out = Outcome(name, kind, failed=late, alarms=[{"way": "all", "what": "time", "said": late}])
    if ours.poll(WAITED * seconds):
        with suppress(EOFError):
            out = ours.recv()
    elif child.is_alive():
        child.kill()
    child.join()
    return out


def main() -> None:
    options = parse_arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if options.table:
        rows = [Outcome(**json.loads(line)) for line in options.table.read_text(encoding="utf-8").splitlines()]
    else:
        ways = [Way(*each) for each in product(options.dtype, options.attention, options.how)]
        done = set()
        if options.append and options.append.exists():
            done = {json.loads(line)["name"] for line in options.append.read_text(encoding="utf-8").splitlines()}
        rows = []
        for kind in options.kind:
            for name in sorted(set(KINDS[kind].values())):
                if not re.search(options.only, name) or name in done:
                    continue
                rows.append(outcome(name, kind, ways, options.fault, options.seconds))
                if options.append:
                    with options.append.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(rows[-1])) + "\n")
                for one in rows[-1].alarms:
                    print(f"{name}: {one['way']}: {one['what']}: {one['said']}", file=sys.stderr, flush=True)
    print(report(rows))
    sys.exit(any(one.alarms for one in rows))


def report(rows: list[Outcome]) -> str:
    """How many ran, and alarms by kind."""
    cells = []
    for kind in KINDS:
        ours = [one for one in rows if one.kind == kind]
        if ours:
            ran = [one for one in ours if one.ways]
            alarmed = sum(bool(one.alarms) for one in ours)
            cells.append(
                (kind, len(ours), len(ran), sum(len(one.ways) for one in ran), sum(one.sites for one in ran), alarmed)
            )
    heads = ("classes", "tried", "ran", "runs", "sites judged by the model", "classes with an alarm")
    kinds = Counter(alarm["what"] for one in rows for alarm in one.alarms)
    reasons = Counter((each["what"], each["said"][:100]) for one in rows for each in one.withheld)
    lines = [tabulate(cells, headers=heads, tablefmt="github"), ""]
    lines += [f"{what}: {count} alarms" for what, count in kinds.most_common()]
    lines += [f"{one.name}: {a['way']}: {a['what']}: {a['said']}" for one in rows for a in one.alarms]
    lines += [f"no verdict: {count} x {what}: {said}" for (what, said), count in reasons.most_common(12)]
    lines += [f"{one.name}: planted {fault}" for one in rows for fault in one.faults]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="classes whose name this regular expression is found in")
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be given more than once; default causal")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"), help="default float32")
    parser.add_argument("--attention", action="append", choices=("eager", "sdpa", "default"), help="default eager")
    parser.add_argument("--how", action="append", choices=HOWS, help="default greedy")
    parser.add_argument("--fault", type=int, help="plant a fault beside each run, drawn with this seed")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"CPU time of a class; default {SECONDS:g}")
    parser.add_argument("--append", type=Path, help="append every outcome to this file; classes in it are left out")
    parser.add_argument("--table", type=Path, help="print the figures of such a file, and run nothing")
    options = parser.parse_args()
    options.kind = options.kind or ["causal"]
    options.dtype, options.attention = options.dtype or ["float32"], options.attention or ["eager"]
    options.how = options.how or ["greedy"]
    return options


if __name__ == "__main__":
    main()
