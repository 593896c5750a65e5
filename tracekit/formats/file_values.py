"""The boundary to files that nobody vouches for: what a library raises becomes one line, and a value that later stages
index, count or compute with is checked where it is read.

Only readers use this. Beyond them an IndexError is a bug of ours, and is shown as one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tracekit.trace import ENCODER, Array, Json, TraceError

LIBRARY_ERRORS = (
    LookupError,
    RuntimeError,  # h5py's word for most of HDF5's errors; NotImplementedError and RecursionError are among them
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    SystemError,
)
"""What h5py, numpy and json raise where a file is not what they expect."""
MOST_TOKEN = 2**31 - 1
MOST_POSITION = 2**40
"""A cache of so many positions is beyond any machine."""
MOST_WORDS = 2**48
"""32-bit words of a generator: at a thousand million a second, three days."""


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Raises TraceError, in one line with the file's name, where what is done in it fails in a library."""
    try:
        yield
    except TraceError:
        raise
    except LIBRARY_ERRORS as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise TraceError(f"{path}: is damaged: {why}; record or import it again") from None


def is_number(value: Any) -> bool:
    """A finite number, small enough to count with."""
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**64


def is_count(value: Any) -> bool:
    """An integer of 64 bits."""
    return isinstance(value, int) and abs(value) < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_numbers(value: Any) -> bool:
    """A number, or one for each layer."""
    return is_number(value) or (isinstance(value, list) and all(is_number(item) for item in value))


def is_ids(value: Any) -> bool:
    """A token id, or several."""
    return is_count(value) or (isinstance(value, list) and all(is_count(item) for item in value))


def _is_texts(value: Any) -> bool:
    """Texts, null where there is none."""
    return isinstance(value, list) and all(item is None or isinstance(item, str) for item in value)


Kind = Callable[[Any], bool]

CONFIG: dict[str, Kind] = {
    **dict.fromkeys(("versions", "model", "sampling", "recorder", "command", "follow", "arithmetic"), _is_object),
    **dict.fromkeys(("device", "dtype", "checkpoint"), _is_text),
    "seed": _is_seed,
    **dict.fromkeys(("lost", "by_chance", "troubles"), _is_texts),
}
SAMPLING: dict[str, Kind] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "tau_r"), is_number),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "max_length", "min_length", "min_len", "max_len"), is_number),
    **dict.fromkeys(("do_sample", "top_k", "win_size", "no_repeat_ngram_size"), is_count),
    **dict.fromkeys(("eos_token_id", "stop_token_ids"), is_ids),
    "sampler": _is_text,
}
"""What `docs/format.md` fixes. A setting that is not here may be anything; one that is not of its processor's kind is
unknown to the chain."""
MODEL: dict[str, Kind] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), _is_numbers),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta"), _is_numbers),
    **dict.fromkeys(("max_position_embeddings", "sliding_window", "speech_token_size"), _is_numbers),
    **dict.fromkeys(("model_type", "hidden_act"), _is_text),
    "rope_scaling": _is_object,
    "eos_token_id": is_ids,
}
SEQUENCE: dict[str, Kind] = {
    "prompt_text": _is_text,
    "texts": _is_texts,
    "sampling": _is_object,
    "seed": _is_seed,
    **dict.fromkeys(("counts", "followed", "arguments"), _is_object),
    **dict.fromkeys(("recomputed", "mask_unknown", "weights_unknown"), is_count),
}
DRAW: dict[str, Kind] = {
    "op": _is_text,
    "generator": _is_text,
    "seed": _is_seed,
    "offset": lambda value: _is_seed(value) and 0 <= value < MOST_WORDS,
    "words": lambda value: _is_seed(value) and 0 <= value < MOST_WORDS,
    "result": is_count,
}
STEP: dict[str, Kind] = {
    "text": _is_text,
    "position": lambda value: is_count(value) and -1 <= value < MOST_POSITION,
    **dict.fromkeys(("draws", "events"), lambda value: isinstance(value, list)),
}
TOLD_AT_END: dict[str, Kind] = {"followed": _is_object, "mask_unknown": is_count, "weights_unknown": is_count}
"""What the end of a sequence tells of all of it."""
END: dict[str, Kind] = {"reason": _is_text, "detail": _is_text, **TOLD_AT_END}
SITE: dict[str, Kind] = {
    **dict.fromkeys(("name", "class", "input", "same_as", "recorded_as", "skipped", "ended", "partial"), _is_text),
    "axis": lambda value: value == ENCODER,
    "order": is_count,
    "parameters": lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    "attributes": _is_object,
}
WEIGHT: dict[str, Kind] = {
    "name": _is_text,
    "dtype": _is_text,
    "shape": lambda value: isinstance(value, list | tuple) and all(is_count(side) and side >= 0 for side in value),
}


def check(what: str, row: Any, kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> Json:
    """The row, an object whose known values are of their kinds, or null. Raises ValueError, with `what` it is of."""
    if not isinstance(row, dict):
        raise ValueError(f"{what} is not an object")
    for name in required:
        if row.get(name) is None:
            raise ValueError(f"{what} has no {name}")
    for name, kind in kinds.items():
        value = row.get(name)
        if value is not None and not kind(value):
            raise ValueError(f"{name} of {what} cannot be {str(value)[:40]!r}")
    return row


def check_config(config: Any) -> Json:
    """What a trace states of its run. Raises ValueError."""
    check("its configuration", config, CONFIG)
    check("its model", config.get("model") or {}, MODEL)
    check("its sampling", config.get("sampling") or {}, SAMPLING)
    return dict(config)


def check_sequence(info: Any) -> Json:
    """What a trace states of a sequence. Raises ValueError."""
    check("a sequence", info, SEQUENCE)
    check("its sampling", info.get("sampling") or {}, SAMPLING)
    check("its counts", info.get("counts") or {}, dict.fromkeys(info.get("counts") or {}, is_count))
    return dict(info)


def check_ids(ids: Array, what: str, most: int = MOST_TOKEN, least: int = 0) -> Array:
    """Token ids, [n] integers from `least` to `most`, as i64. Raises ValueError."""
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise ValueError(f"{what} are not a row of integers")
    if ids.size and (int(ids.min()) < least or int(ids.max()) > most):
        wrong = next(int(one) for one in ids if not least <= int(one) <= most)
        raise ValueError(f"{what} hold {wrong}, which is no token id of its vocabulary")
    return ids.astype(np.int64, copy=False)
