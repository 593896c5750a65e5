"""A map of names: what one side calls otherwise than the other, fused projections included.

A TOML file with a table `names`. A key is a name as one side has it, the value what the other side calls it; a list
says that the value is those sites side by side, in that order. `{N}` stands for a number. A name that is not given from
its beginning stands for every name that ends so:

    [names]
    "transformer.h.{N}.mlp.c_fc" = "model.layers.{N}.mlp.up_proj"
    "self_attn.qkv_proj" = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tracekit.trace import Trace, TraceError

WILDCARD = re.compile(r"\{(\w+)\}")
LARGEST = 1 << 20
"""Bytes of a map that is read: the largest models have some hundred kinds of sites."""


@dataclass(frozen=True)
class Alias:
    """One line of a map."""

    name: str
    parts: tuple[str, ...]

    def of(self, name: str) -> tuple[str, ...] | None:
        """What `name` is called on the other side; None where this line does not speak of it."""
        found = re.fullmatch(_expression(self.name), name)
        if found is None:
            return None
        numbers = found.groupdict()
        prefix = numbers.pop("prefix") or ""
        return tuple(prefix + WILDCARD.sub(lambda hit: numbers[hit[1]], part) for part in self.parts)

    def before(self, name: str) -> int | None:
        """Length of what stands before this line's name in `name`; None where the line does not speak of it."""
        return _before(self.name, name)

    def before_value(self, name: str) -> int | None:
        """The same of the line's value: `name` is then what the other side calls one of the parts."""
        return min((found for part in self.parts if (found := _before(part, name)) is not None), default=None)


@dataclass(frozen=True)
class NameMap:
    """The lines of a map, and the file that they are from."""

    aliases: tuple[Alias, ...]
    path: str = "the map of names"

    def parts(self, name: str) -> tuple[str, ...] | None:
        """What `name` is called on the other side, one name or those of its parts; None where it keeps its name.

        `norm = "model.norm"` is of `norm`, and of `decoder.norm`; `model.norm` itself is the other side's already.
        """
        alias = next((alias for alias in self.aliases if alias.before(name) is not None), None)
        if alias is None:
            return None
        own = alias.before(name) or 0
        values = (other.before_value(name) for other in self.aliases)
        return None if any(found is not None and found < own for found in values) else alias.of(name)

    def to_toml(self, comments: Iterable[str] = ()) -> str:
        """The file. `comments`: one for each line, empty where there is nothing to say."""
        said = [*comments, *[""] * len(self.aliases)]
        lines = ["[names]"]
        for alias, comment in zip(self.aliases, said, strict=False):
            value = _quoted(alias.parts[0]) if len(alias.parts) == 1 else f"[{', '.join(map(_quoted, alias.parts))}]"
            lines.append(f"{_quoted(alias.name)} = {value}" + (f"  # {comment}" if comment else ""))
        return "\n".join(lines) + "\n"


GGUF = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's word for a module of the decoder family -> the state-dict path (after `model.layers.N.` within a block)."""
SANDWICHED = GGUF | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""The same of Gemma 2 and 3, whose branches have a norm before and one after."""
GGUF_BLOCK = re.compile(r"blk\.\d+\.\w+(:in)?$")


def gguf_names(*traces: Trace) -> NameMap | None:
    """The map of GGUF's names to Hugging Face's, where one of the traces has GGUF's and another, or none at all, has
    Hugging Face's: two sides that both speak GGUF understand each other."""
    speak = [any(GGUF_BLOCK.match(name) for name in trace.sites) for trace in traces]
    if not any(speak) or (len(traces) > 1 and all(speak)):
        return None
    sandwiched = any(name.endswith("post_ffw_norm") for trace in traces for name in trace.sites)
    words = SANDWICHED if sandwiched else GGUF
    return NameMap(tuple(Alias(*_gguf_line(word, path)) for word, path in words.items()), "GGUF's names")


def _gguf_line(word: str, path: str) -> tuple[str, tuple[str, ...]]:
    if path.startswith(("model.", "lm_head")):
        return word, (path,)
    return f"blk.{{N}}.{word}", (f"model.layers.{{N}}.{path}",)


def read_names(path: str | os.PathLike[str]) -> NameMap:
    """The map in a TOML file. Raises TraceError, in one sentence, for anything else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise TraceError(f"{path}: is {len(data)} bytes long, no map of names; `tracekit names` writes one")
    try:
        table = tomllib.loads(data.decode()).get("names")
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: is not TOML: {error}") from None
    if not isinstance(table, dict):
        raise TraceError(f"{path}: has no table [names]; write one, or let `tracekit names` do it")
    return NameMap(tuple(_alias(path, name, value) for name, value in table.items()), os.fspath(path))


def _alias(path: str | os.PathLike[str], name: str, value: object) -> Alias:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part for part in parts):
        raise TraceError(f'{path}: "{name}": is neither a name nor a list of names in quotes')
    wanted = {found for part in parts for found in WILDCARD.findall(part)}
    given = WILDCARD.findall(name)
    if wanted - set(given):
        raise TraceError(f'{path}: "{name}": its value has {{{min(wanted - set(given))}}}, which the name has not')
    if len(set(given)) < len(given) or "prefix" in given:
        raise TraceError(f'{path}: "{name}": give each number a name of its own, and none of them "prefix"')
    return Alias(name, tuple(parts))


def _expression(pattern: str) -> str:
    pieces = WILDCARD.split(pattern)  # text, wildcard, text, ...
    said = [re.escape(piece) if index % 2 == 0 else rf"(?P<{piece}>\d+)" for index, piece in enumerate(pieces)]
    return r"(?P<prefix>(?:.*\.)?)" + "".join(said)


def _before(pattern: str, name: str) -> int | None:
    found = re.fullmatch(_expression(pattern), name)
    return None if found is None else len(found["prefix"])


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
