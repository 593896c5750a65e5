"""Samplers as data: a chain of processors, each with its name and numbers, in the order of transformers' `generate`.

Computed from recorded logits: sums and exponentials in float64, the scores themselves in the precision in which both
transformers and its ports keep them, float32 (float64 where the logits are). Sources: transformers
`generation/logits_process.py` (every class named here), the order of `GenerationMixin._get_logits_processor`, and, for
the repetition-aware sampling of CosyVoice, `cosyvoice/utils/common.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import Json

Floats = NDArray[Any]
GONE = -np.inf

PENALTY = "RepetitionPenaltyLogitsProcessor"
TEMPERATURE = "TemperatureLogitsWarper"
TOP_K = "TopKLogitsWarper"
TOP_P = "TopPLogitsWarper"
MIN_P = "MinPLogitsWarper"
NEW_LENGTH = "MinNewTokensLengthLogitsProcessor"


@dataclass(frozen=True)
class Context:
    """What a processor knows besides the scores: the prompt and the tokens so far, and how many are the prompt's."""

    history: Sequence[int] = ()
    prompt: int = 0

    @property
    def generated(self) -> Sequence[int]:
        """The tokens so far without the prompt."""
        return self.history[self.prompt :]


Apply = Callable[[Floats, Context], Floats]


@dataclass(frozen=True)
class Processor:
    """One change of the scores [vocabulary]; a token that it removes gets minus infinity."""

    name: str  # transformers' class
    settings: Json  # its numbers, by the names of its arguments
    apply: Apply

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self.settings.items())
        return f"{self.name}({shown})"


def _short(value: Any) -> str:
    return f"[{len(value)} tokens]" if isinstance(value, list) and len(value) > 4 else str(value)


# -------------------------------------------------------------------- what the processors do


def softmax(values: Floats) -> Floats:
    """Probabilities, f64 [vocabulary]; removed tokens get 0."""
    wide = values.astype(np.float64)
    exponents = np.exp(wide - wide.max())
    return np.asarray(exponents / exponents.sum())


def survivors(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Ids that can be drawn and their probabilities, descending, ties by lower id."""
    probs = softmax(values)
    ids = np.flatnonzero(probs)
    order = ids[np.lexsort((ids, -probs[ids]))]
    return order, probs[order]


def penalised(values: Floats, penalty: float | None, history: Sequence[int]) -> Floats:
    """Positive logits of seen tokens divided by the penalty, negative ones multiplied."""
    if not penalty or penalty == 1.0 or not len(history):
        return values
    out = values.copy()
    seen = seen_tokens(history, values.size)
    out[seen] = np.where(out[seen] < 0, out[seen] * penalty, out[seen] / penalty)
    return out


def seen_tokens(history: Sequence[int], vocabulary: int) -> NDArray[np.int64]:
    """The tokens of a history, each once; ids beyond the vocabulary are left out."""
    seen = np.unique(np.asarray(history, dtype=np.int64))
    return seen[(seen >= 0) & (seen < vocabulary)]


def kth_largest(values: Floats, k: int) -> float:
    """The k-th largest score; the smallest where there are fewer."""
    k = max(1, min(k, values.size))
    return float(np.partition(values, values.size - k)[values.size - k])


def keep_top_k(values: Floats, k: int) -> Floats:
    """What is below the k-th largest goes; what ties with it stays."""
    return np.where(values < kth_largest(values, k), GONE, values)


def keep_top_p(values: Floats, p: float) -> Floats:
    """The smallest set of mass p or more: the token that crosses p stays, and the largest always does."""
    above = mass_above(values)
    return np.where((above < p) | (above == 0.0), values, GONE)


def mass_above(values: Floats) -> Floats:
    """Probability of all tokens that stand before each in descending order, f64 [vocabulary]; 1 for removed ones.

    Of equal scores the higher id stands first: transformers sorts ascending and takes away from the bottom.
    """
    probs = softmax(values)
    above = np.ones_like(probs)
    alive = np.flatnonzero(values > GONE)[::-1]
    order = alive[np.argsort(-values[alive], kind="stable")]
    above[order] = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    return above


def keep_min_p(values: Floats, min_p: float) -> Floats:
    """Tokens of at least this share of the largest probability; the largest always stays."""
    probs = softmax(values)
    return np.where(probs < min_p * probs.max(), GONE, values)


def keep_typical(values: Floats, mass: float) -> Floats:
    """The tokens whose surprise is nearest to the entropy, up to a mass; the nearest always stays."""
    probs = softmax(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probs)
        entropy = np.nansum(surprise * probs)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probs[order]) < mass).sum()), values.size - 1)
    goes = distance > distance[order[last]]
    goes[order[0]] = False
    return np.where(goes, GONE, values)


def keep_epsilon(values: Floats, epsilon: float) -> Floats:
    """Tokens of at least this probability; the largest always stays."""
    return np.where((softmax(values) < epsilon) & (values < values.max()), GONE, values)


def keep_eta(values: Floats, epsilon: float) -> Floats:
    """As `keep_epsilon`, with a cutoff that falls with the entropy."""
    probs = softmax(values)
    alive = probs[probs > 0]
    entropy = float(-(alive * np.log(alive)).sum())
    return keep_epsilon(values, min(epsilon, float(np.sqrt(epsilon) * np.exp(-entropy))))


def without(values: Floats, ids: Iterable[int]) -> Floats:
    """These tokens removed."""
    out = values.copy()
    out[seen_tokens(list(ids), values.size)] = GONE
    return out


def without_repeats(values: Floats, size: int, history: Sequence[int]) -> Floats:
    """Tokens that would complete an n-gram of the history a second time removed."""
    past = [int(token) for token in history]
    if size < 1 or len(past) + 1 < size:
        return values
    tail = past[len(past) - size + 1 :]
    ends = range(size - 1, len(past))
    return without(values, [past[end] for end in ends if past[end - size + 1 : end] == tail])


def without_bad_words(values: Floats, words: Sequence[Sequence[int]], history: Sequence[int]) -> Floats:
    """The last tokens of forbidden words removed where the history ends with what comes before them."""
    past = list(history)
    return without(values, [word[-1] for word in words if past[len(past) - len(word) + 1 :] == list(word[:-1])])


def nucleus(values: Floats, p: float, k: int) -> Floats:
    """CosyVoice's: from the top while the mass so far is below p and fewer than k are taken."""
    probs = softmax(values)
    order = np.argsort(-probs, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    out = np.full_like(values, GONE)
    taken = order[: max(1, k)][before[: max(1, k)] < p]
    out[taken] = values[taken]
    return out


def repeats_too_often(token: int, decoded: Sequence[int], window: int, share: float) -> bool:
    """CosyVoice's rule: the token just drawn stands in the last `window` tokens at least `window * share` times."""
    recent = list(decoded)[-window:] if window else []
    return recent.count(token) >= window * share


# -------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Kind:
    """A processor that this module knows: which setting asks for it, and what its class calls its number."""

    setting: str
    name: str
    argument: str
    make: Callable[[Any, Json], Apply]
    neutral: tuple[Any, ...] = ()
    sampled: bool = False


def _stops(settings: Json) -> list[int]:
    eos = settings.get("eos_token_id")
    return [int(token) for token in eos] if isinstance(eos, list) else [] if eos is None else [int(eos)]


def _bar_until(length: int, ids: list[int], *, new: bool) -> Apply:
    def apply(values: Floats, context: Context) -> Floats:
        reached = len(context.generated) if new else len(context.history)
        return values if reached >= length else without(values, ids)

    return apply


def _without_words(words: Any, settings: Json) -> Apply:
    stops = [[token] for token in _stops(settings)]
    kept = [list(word) for word in words if list(word) not in stops]
    return lambda values, context: without_bad_words(values, kept, context.history)


def _at_begin(ids: Any, _: Json) -> Apply:
    return lambda values, context: values if context.generated else without(values, ids)


def _divide(temperature: Any, _: Json) -> Apply:
    return lambda values, context: values / values.dtype.type(temperature)


def _scored(rule: Callable[[Floats, Any], Floats]) -> Callable[[Any, Json], Apply]:
    """Of a rule that needs the scores and its number alone."""
    return lambda number, settings: lambda values, context: rule(values, number)


KINDS = (
    Kind("repetition_penalty", PENALTY, "penalty", lambda x, _: lambda v, c: penalised(v, x, c.history), (1.0,)),
    Kind(
        "no_repeat_ngram_size",
        "NoRepeatNGramLogitsProcessor",
        "ngram_size",
        lambda size, _: lambda values, context: without_repeats(values, int(size), context.history),
        (0,),
    ),
    Kind("bad_words_ids", "NoBadWordsLogitsProcessor", "bad_word_ids", _without_words),
    Kind(
        "min_length",
        "MinLengthLogitsProcessor",
        "min_length",
        lambda length, settings: _bar_until(int(length), _stops(settings), new=False),
        (0,),
    ),
    Kind(
        "min_new_tokens",
        NEW_LENGTH,
        "min_new_tokens",
        lambda length, settings: _bar_until(int(length), _stops(settings), new=True),
        (0,),
    ),
    Kind("suppress_tokens", "SuppressTokensLogitsProcessor", "suppress_tokens", _scored(without)),
    Kind("begin_suppress_tokens", "SuppressTokensAtBeginLogitsProcessor", "begin_suppress_tokens", _at_begin),
    Kind("temperature", TEMPERATURE, "temperature", _divide, (1.0,), True),
    Kind("top_k", TOP_K, "top_k", _scored(keep_top_k), (0,), True),
    Kind("top_p", TOP_P, "top_p", _scored(keep_top_p), (1.0,), True),
    Kind("min_p", MIN_P, "min_p", _scored(keep_min_p), (), True),
    Kind("typical_p", "TypicalLogitsWarper", "mass", _scored(keep_typical), (1.0,), True),
    Kind("epsilon_cutoff", "EpsilonLogitsWarper", "epsilon", _scored(keep_epsilon), (0.0,), True),
    Kind("eta_cutoff", "EtaLogitsWarper", "epsilon", _scored(keep_eta), (0.0,), True),
)
"""In the order of `generate`."""

APPLIED = tuple(kind.setting for kind in KINDS)
"""Settings that `chain` knows."""
ELSEWHERE = (
    "do_sample",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "max_new_tokens",
    "max_length",
    "sampler",
    "win_size",
    "tau_r",
    "min_len",
    "max_len",
    "stop_token_ids",
    "seed",
    "num_beams",
    "use_cache",
    "processors",
)
"""Settings that change no score, or that other code reads."""
NUCLEUS = "nucleus_sampling"
"""CosyVoice's own function."""
RAS = "ras"
"""`sampler` of a sequence whose tokens CosyVoice's repetition-aware sampling chose."""


def chain(settings: Json) -> list[Processor]:
    """The processors that these settings ask for, by the names that GenerationConfig gives them."""
    if settings.get("sampler") == RAS:
        return [_nucleus(settings)]
    sampled = settings.get("do_sample", True)
    out = []
    for kind in KINDS:
        number = settings.get(kind.setting)
        if number is None or number in kind.neutral or (kind.sampled and not sampled):
            continue
        out.append(processor(kind, number, settings))
    return out


def processor(kind: Kind, number: Any, settings: Json) -> Processor:
    """One processor of a kind."""
    return Processor(kind.name, {kind.argument: number}, kind.make(number, settings))


def of_setting(setting: str, number: Any, settings: Json) -> Processor:
    """The processor that one setting asks for. Raises KeyError for an unknown one."""
    return processor({kind.setting: kind for kind in KINDS}[setting], number, settings)


def _nucleus(settings: Json) -> Processor:
    p, k = float(settings.get("top_p", 0.8)), int(settings.get("top_k", 25))
    return Processor(NUCLEUS, {"top_p": p, "top_k": k}, lambda values, context: nucleus(values, p, k))


def unknown_settings(settings: Json) -> list[str]:
    """Settings that may change scores in a way that this module does not know: what is worked out leaves them out."""
    return sorted(
        name
        for name, value in settings.items()
        if name not in (*APPLIED, *ELSEWHERE) and value not in (None, False, [], {})
    )


def recorded_chain(rows: Iterable[Json], settings: Json) -> tuple[list[Processor], list[str]]:
    """The processors of a step's recorded `processor` events, and the classes among them that are not known.

    `rows` are the details: `class`, `settings`, `survivors`.
    """
    known = {kind.name: kind for kind in KINDS}
    out, unknown = [], []
    for row in rows:
        kind = known.get(str(row.get("class")))
        numbers = row.get("settings") or {}
        if kind is None or kind.argument not in numbers:
            unknown.append(str(row.get("class")))
            continue
        out.append(processor(kind, numbers[kind.argument], settings))
    return out, unknown


# -------------------------------------------------------------------- running a chain


def run(processors: Iterable[Processor], logits: Floats, context: Context) -> Floats:
    """Scores behind a chain, [vocabulary]."""
    values = working(logits)
    for each in processors:
        values = each.apply(values, context)
    return values


def working(logits: Floats) -> Floats:
    """Logits in the precision in which scores are kept."""
    return logits if logits.dtype == np.float64 else logits.astype(np.float32)


def stages(processors: Iterable[Processor], logits: Floats, context: Context) -> list[tuple[Processor, Floats]]:
    """Each processor of a chain with the scores behind it."""
    values, out = working(logits), []
    for each in processors:
        values = each.apply(values, context)
        out.append((each, values))
    return out


def scores(logits: Floats, sampling: Json, history: Sequence[int] = (), prompt: int = 0) -> Floats:
    """Logits behind the processors of these settings, [vocabulary]; minus infinity where a token was removed.

    `history` holds the prompt, its first `prompt` tokens, and the tokens so far.
    """
    return run(chain(sampling), logits, Context(history, prompt))


def remover(processors: Iterable[Processor], logits: Floats, context: Context, token: int) -> Processor | None:
    """The processor that takes a token away."""
    return next((each for each, values in stages(processors, logits, context) if values[token] == GONE), None)


# -------------------------------------------------------------------- how near a cut is


@dataclass(frozen=True)
class Cut:
    """How far tokens are from what one processor cuts at: nats of score for top-k, else probability mass."""

    processor: Processor
    distances: Floats  # f64 [vocabulary]; infinite for tokens that came removed
    unit: str

    @property
    def nearest(self) -> tuple[float, int]:
        """The smallest distance, and its token."""
        token = int(np.argmin(self.distances))
        return float(self.distances[token]), token


def cuts(processors: Sequence[Processor], logits: Floats, context: Context) -> list[Cut]:
    """The cuts of a chain, each measured on the scores that reach it."""
    values, out = working(logits), []
    for each in processors:
        measured = _cut_of(each, values)
        if measured is not None:
            distances = np.where(values > GONE, np.abs(measured[0]), np.inf)
            out.append(Cut(each, distances, measured[1]))
        values = each.apply(values, context)
    return out


def _cut_of(each: Processor, values: Floats) -> tuple[Floats, str] | None:
    """Signed distances of all tokens from the cut of a processor on these scores."""
    if each.name == TOP_K:
        k = min(int(each.settings["top_k"]), values.size)
        ordered = np.partition(values, [max(values.size - k - 1, 0), values.size - k])
        kth, following = float(ordered[values.size - k]), float(ordered[max(values.size - k - 1, 0)])
        if k == values.size or following == GONE:
            return np.full(values.size, np.inf), "nats"
        # A token that stays is cut when it falls below the next one, and the other way round.
        wide = values.astype(np.float64)
        return np.where(wide >= kth, wide - following, kth - wide), "nats"
    if each.name == NUCLEUS:
        return _nucleus_cut(each, values)
    if each.name == TOP_P:
        return mass_above(values) - float(each.settings["top_p"]), "probability mass"
    if each.name == MIN_P:
        probs = softmax(values)
        return probs - float(each.settings["min_p"]) * probs.max(), "probability mass"
    return None


def _nucleus_cut(each: Processor, values: Floats) -> tuple[Floats, str]:
    """CosyVoice's nucleus ends where the mass is reached, or behind its k-th token if that comes first."""
    k = min(int(each.settings["top_k"]), values.size)
    if int(np.sum(each.apply(values, Context()) > GONE)) < k or k == values.size:
        return mass_above(values) - float(each.settings["top_p"]), "probability mass"
    ordered = np.sort(values.astype(np.float64))[::-1]
    wide = values.astype(np.float64)
    return np.where(wide >= ordered[k - 1], wide - ordered[k], ordered[k - 1] - wide), "nats"


def cut_distance(
    logits: Floats, sampling: Json, tokens: Sequence[int], history: Sequence[int] = (), prompt: int = 0
) -> float:
    """How far the nearest cut is from `tokens`: in nats of score for top-k, in probability mass for top-p and min-p.

    The largest over the tokens of the smallest over the cuts: an error smaller than this cannot move all of them
    across a cut. Infinity where no cut is set.
    """
    if not len(tokens):
        return 0.0
    distances = np.full(len(tokens), np.inf)
    for cut in cuts(chain(sampling), logits, Context(history, prompt)):
        distances = np.minimum(distances, cut.distances[np.asarray(tokens)])
    return float(distances.max())
