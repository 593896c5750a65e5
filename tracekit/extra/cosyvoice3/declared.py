"""What a model's configuration file declares, against what each recorded run says that it used.

`cosyvoice3.yaml` is written for a loader that calls whatever its tags name (`!new:`, `!name:`, `!apply:`). Here a tag
is data: nothing is imported, called or included, and tags that ask YAML itself for a Python object are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracekit.extra.cosyvoice3.speech import PROMPT_TEXT, SPOKEN_TEXT
from tracekit.extra.cosyvoice3.tagged_yaml import Tagged, parse
from tracekit.inspection.settings import SWITCHES, as_used, in_effect, same_setting
from tracekit.sampling.chain import REPETITION_SETTINGS
from tracekit.sampling.processors import GENERATE, ONLY_SAMPLED
from tracekit.trace import Json, Sequence, Trace, TraceError

SIZE_LIMIT = 1 << 20
"""Longest configuration in bytes; real ones take some 10 KB."""
RESERVED = 200
"""Ids from `speech_token_size` on that are no speech: all of them stop a generation."""
RAS = "ras_sampling"
RAS_SETTINGS = ("top_p", "top_k", *REPETITION_SETTINGS)
RAS_DEFAULTS: Json = {"top_p": 0.7}
"""Defaults of the function itself that differ from what the published YAML gives it."""
SIZES = {"llm_input_size": "hidden_size", "llm_output_size": "hidden_size", "speech_token_size": "speech_token_size"}
"""Key of the language model in the YAML -> the trace's word for it."""
RATIOS = {"min_len": 2, "max_len": 20}
"""Length limits, in speech tokens a token of the text to speak: defaults of `inference`. The prompt does not count."""
MODEL_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling", "hidden_act", "tie_word_embeddings"),
    *("sliding_window", "max_position_embeddings"),
)
SAMPLING_KEYS = ("do_sample", *(each.setting for each in GENERATE), "max_new_tokens", "eos_token_id")


class Unresolved(str):
    """A value that the file gives by a tag, a list or a mapping, as it is shown: it is compared with nothing."""

    __slots__ = ()

    @classmethod
    def of(cls, what: str) -> Unresolved:
        return cls(f"not a plain value: {what}")


@dataclass(frozen=True)
class Setting:
    """One declared value; `place` says where the file has it, `part` where a trace does."""

    name: str
    value: Any
    place: str
    part: str  # "model", "sampling", "ratio", "stop", "seed"
    switches: Json = field(default_factory=dict)
    """The file's settings that turn others off."""


@dataclass(frozen=True)
class Used:
    """What one run used; `agrees` is None where it does not say, or where nothing follows from it."""

    trace: str
    value: Any
    agrees: bool | None
    note: str | None = None


@dataclass(frozen=True)
class Row:
    """A declared setting, and what each run used."""

    setting: Setting
    used: tuple[Used, ...]

    def to_json(self) -> Json:
        used = [{"trace": one.trace, "value": one.value, "agrees": one.agrees, "note": one.note} for one in self.used]
        said = self.setting
        return {"setting": said.name, "declared": said.value, "place": said.place, "used": used}


def compare_declared(path: Path, traces: list[Trace]) -> list[Row]:
    """A row for every setting that the file declares. Raises TraceError where it is no configuration."""
    return [Row(setting, tuple(_used(setting, trace) for trace in traces)) for setting in read_declared(path)]


def differs(rows: list[Row]) -> bool:
    return any(used.agrees is False for row in rows for used in row.used)


# -------------------------------------------------------------------- the file


def read_declared(path: Path) -> list[Setting]:
    """Settings of a `cosyvoice3.yaml`, a `config.json` or a `generation_config.json`."""
    text = _text(path)
    settings = _of_json(path, text) if path.suffix == ".json" else _of_yaml(parse(path, text))
    if not settings:
        raise TraceError(f"{path}: declares no setting that a trace knows; give cosyvoice3.yaml or config.json")
    return settings


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
        text = data.decode()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: is no text; give cosyvoice3.yaml or config.json") from None
    if len(data) > SIZE_LIMIT:
        raise TraceError(f"{path}: is longer than a configuration ever is; give cosyvoice3.yaml or config.json")
    return text


def _of_json(path: Path, text: str) -> list[Setting]:
    try:
        declared = json.loads(text)
    except (ValueError, RecursionError):
        raise TraceError(f"{path}: is no JSON; fetch it again") from None
    if not isinstance(declared, dict):
        raise TraceError(f"{path}: holds no settings; give the model's config.json")
    if "model_type" not in declared and "hidden_size" not in declared:
        unused = ONLY_SAMPLED if declared.get("do_sample") is False else ()
        keys = [key for key in SAMPLING_KEYS if key in declared and key not in unused]
        return [Setting(key, declared[key], key, "sampling") for key in keys]
    plain = as_used(declared)
    switches = {key: plain[key] for key in SWITCHES if key in plain}
    # One that is switched off is a setting too: an engine may apply it.
    named = [key for key in MODEL_KEYS if plain.get(key) is not None or declared.get(key) is not None]
    return [Setting(key, plain[key], key, "model", switches) for key in named]


def _of_yaml(tree: Json) -> list[Setting]:
    out: list[Setting] = []
    for place, node in _mappings(tree):
        tag, value = (node.tag, node.value) if isinstance(node, Tagged) else ("", node)
        if tag.endswith(RAS) and not any(setting.part == "sampling" for setting in out):
            out += _ras(place, value, tree)
        elif tag.startswith("!new:") and "speech_token_size" in value and not any(one.part == "model" for one in out):
            out += _sizes(place, value, tree)
    seed = next((value for value in tree.values() if _seeds_torch(value)), None)
    if out and seed is not None:
        out.append(Setting("seed", seed.value[0], seed.tag.removeprefix("!apply:"), "seed"))
    return out


def _mappings(tree: Json) -> Iterator[tuple[str, Json | Tagged]]:
    """Every mapping of the tree with its dotted place, tagged ones with their tag; a node with aliases comes once."""
    waiting: list[tuple[str, Any]] = [("", tree)]
    seen: set[int] = set()
    while waiting:
        place, node = waiting.pop(0)
        value = node.value if isinstance(node, Tagged) else node
        if id(value) in seen or not isinstance(value, dict | list):
            if isinstance(node, Tagged) and node.tag.endswith(RAS):
                yield place, Tagged(node.tag, {})
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            yield place, node
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(f"{place}.{key}".lstrip("."), part) for key, part in parts]


def _ras(place: str, given: Json, tree: Json) -> list[Setting]:
    out = [
        Setting(key, _resolved(given[key], tree), f"{place}.{key}", "sampling") for key in RAS_SETTINGS if key in given
    ]
    defaults = [key for key in RAS_DEFAULTS if key not in given]
    return out + [Setting(key, RAS_DEFAULTS[key], f"{place}: {RAS}'s own default", "sampling") for key in defaults]


def _sizes(place: str, given: Json, tree: Json) -> list[Setting]:
    out = [
        Setting(name, _resolved(given[key], tree), f"{place}.{key}", "model")
        for key, name in SIZES.items()
        if key in given
    ]
    size = _resolved(given["speech_token_size"], tree)
    if isinstance(size, int):
        stops = [size, size + RESERVED - 1]
        out.append(Setting("stop tokens", stops, f"{place}: every id from speech_token_size on", "stop"))
    return out + [
        Setting(name, ratio, "inference's default, a text token (prompt text not counted)", "ratio")
        for name, ratio in RATIOS.items()
    ]


def _resolved(value: Any, tree: Json, depth: int = 8) -> Any:
    """A plain value. `!ref <name>` is the value of that key; any other tag, and a list or mapping, is named only."""
    if isinstance(value, dict | list):
        return Unresolved.of(type(value).__name__)
    if not isinstance(value, Tagged):
        return value
    named = re.fullmatch(r"<([\w.]+)>", value.value.strip()) if isinstance(value.value, str) else None
    if value.tag != "!ref" or named is None or named[1] not in tree or depth == 0:
        return Unresolved.of(value.tag)
    return _resolved(tree[named[1]], tree, depth - 1)


def _seeds_torch(value: Any) -> bool:
    return (
        isinstance(value, Tagged)
        and value.tag == "!apply:torch.manual_seed"
        and isinstance(value.value, list)
        and len(value.value) == 1
    )


# -------------------------------------------------------------------- the traces


def _used(setting: Setting, trace: Trace) -> Used:
    if setting.part == "model":
        model = in_effect(trace.config.get("model") or {}, setting.switches)
        return _judged(setting, trace, [model[setting.name]] if setting.name in model else [])
    if setting.part == "seed":
        seeds = {sequence.seed for sequence in trace.sequences}
        return Used(trace.path, seeds.pop() if len(seeds) == 1 else None, None)
    if setting.part == "stop":
        return _stops(setting, trace)
    if setting.part == "ratio":
        return _ratio(setting, trace)
    said = [one.sampling[setting.name] for one in trace.sequences if setting.name in one.sampling]
    return _judged(setting, trace, said)


def _judged(setting: Setting, trace: Trace, values: list[Any]) -> Used:
    """The first value that is another than declared, else the value."""
    if not values or isinstance(setting.value, Unresolved):
        return Used(trace.path, values[0] if values else None, None)
    wrong = [value for value in values if not _same(setting.value, value)]
    if not wrong:
        return Used(trace.path, values[0], True)
    return Used(trace.path, wrong[0], False, _trap(setting, trace, wrong[0]))


def _trap(setting: Setting, trace: Trace, value: Any) -> str | None:
    """The function's own default where the YAML gives another number: the YAML's call was not used."""
    sampler = trace.sequences[0].sampling.get("sampler") if trace.sequences else None
    if sampler != "ras" or not _same(RAS_DEFAULTS.get(setting.name), value):
        return None
    return f"{setting.name} {value} is {RAS}'s own default; {setting.place} gives {setting.value}, and is not used"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) is not isinstance(other, list):
        one, other = (value if isinstance(value, list) else [value] for value in (one, other))
    return same_setting(one, other)


def _stops(setting: Setting, trace: Trace) -> Used:
    lists = [one.sampling["stop_token_ids"] for one in trace.sequences if "stop_token_ids" in one.sampling]
    if not lists or not isinstance(lists[0], list):
        return Used(trace.path, None, None)
    first, last = setting.value
    ids = next((stops for stops in lists if sorted(stops) != list(range(first, last + 1))), None)
    if ids is None:
        return Used(trace.path, setting.value, True)
    return Used(trace.path, f"{len(ids)} ids" if len(ids) != 1 else f"{ids[0]} only", False)


def _ratio(setting: Setting, trace: Trace) -> Used:
    """A length limit as a number a text token; the first sequence that has another one."""
    told = [one for one in trace.sequences if setting.name in one.sampling and SPOKEN_TEXT in one.inputs]
    if not told:
        return Used(trace.path, None, None)
    for sequence in told:
        limit, words = sequence.sampling[setting.name], len(sequence.inputs[SPOKEN_TEXT])
        if limit != setting.value * words:
            return _other_ratio(setting, trace, sequence)
    return Used(trace.path, setting.value, True)


def _other_ratio(setting: Setting, trace: Trace, sequence: Sequence) -> Used:
    limit, words = sequence.sampling[setting.name], len(sequence.inputs[SPOKEN_TEXT])
    prompt = len(sequence.inputs.get(PROMPT_TEXT, ()))
    note = None
    if limit == setting.value * (words + prompt):
        note = f"{setting.name} {limit} counts the prompt text too: {setting.value} x ({words} + {prompt}) tokens"
    return Used(trace.path, round(limit / words, 2) if words else limit, False, note)
