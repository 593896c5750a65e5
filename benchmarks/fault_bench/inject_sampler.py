"""Faults behind the logits, and before the first of them: filters, draws, stop rules, prompts.

Filters are changed where `generate` makes its chain of logits processors; a changed one keeps its class name and its
settings, as a port's wrong top-p is still called top-p. Draws are changed while the recorder watches (`Run.inside`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessorList

from benchmarks.fault_bench.inject_torch import injection
from benchmarks.fault_bench.patching import Run, attribute

Scores = torch.Tensor
Rule = Callable[[Any, torch.Tensor, Scores], Scores]
"""A processor's `__call__`: (processor, ids [batch, positions], scores [batch, vocabulary]) -> scores."""
GONE = -float("inf")


@contextmanager
def _chain(model: Any, change: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    """Change the logits processors that `generate` makes."""
    original = model._get_logits_processor

    def make(*args: Any, **kwargs: Any) -> LogitsProcessorList:
        return LogitsProcessorList(change(list(original(*args, **kwargs))))

    with attribute(model, "_get_logits_processor", make):
        yield


def _named(processors: list[Any], word: str) -> int:
    return next(index for index, item in enumerate(processors) if word in type(item).__name__)


def _with_rule(processor: Any, rule: Rule) -> Any:
    """A processor of the same name and settings that does something else."""
    kind = type(processor)
    wrong = object.__new__(type(kind.__name__, (kind,), {"__call__": rule, "__module__": kind.__module__}))
    wrong.__dict__.update(processor.__dict__)
    return wrong


@contextmanager
def _ruled(model: Any, word: str, rule: Rule) -> Iterator[None]:
    """Give the processor whose class name has `word` another rule."""

    def change(processors: list[Any]) -> list[Any]:
        index = _named(processors, word)
        processors[index] = _with_rule(processors[index], rule)
        return processors

    with _chain(model, change):
        yield


# -------------------------------------------------------------------- filters


@injection("order")
@contextmanager
def order(model: Any, run: Run, words: list[str]) -> Iterator[None]:
    """Processors in the order of these words (parts of their class names); others stay in front."""

    def change(processors: list[Any]) -> list[Any]:
        def rank(item: Any) -> int:
            return next((index for index, word in enumerate(words) if word in type(item).__name__), -1)

        return sorted(processors, key=rank)

    with _chain(model, change):
        yield


@injection("processor-dropped")
@contextmanager
def processor_dropped(model: Any, run: Run, word: str, after: int = 0) -> Iterator[None]:
    """A setting is read and never applied (or only to the first `after` tokens)."""
    prompt = len(run.ids[0])

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        early = ids.shape[1] < prompt + after
        return type(processor).__mro__[1].__call__(processor, ids, scores) if early else scores  # type: ignore[operator, no-any-return]

    with _ruled(model, word, rule):
        yield


@injection("first-step-unpenalised")
@contextmanager
def first_step_unpenalised(model: Any, run: Run, word: str) -> Iterator[None]:
    """The first step takes another path, which leaves a processor out."""
    prompt = len(run.ids[0])

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        if ids.shape[1] == prompt:
            return scores
        return type(processor).__mro__[1].__call__(processor, ids, scores)  # type: ignore[operator, no-any-return]

    with _ruled(model, word, rule):
        yield


@injection("value")
@contextmanager
def value(model: Any, run: Run, word: str, name: str, to: Any) -> Iterator[None]:
    """A processor works with another number than was asked for."""

    def change(processors: list[Any]) -> list[Any]:
        setattr(processors[_named(processors, word)], name, to)
        return processors

    with _chain(model, change):
        yield


@injection("top-k-off")
@contextmanager
def top_k_off(model: Any, run: Run, by: int) -> Iterator[None]:
    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        kth = torch.topk(scores, processor.top_k + by)[0][..., -1, None]
        return scores.masked_fill(scores < kth, GONE)

    with _ruled(model, "TopK", rule):
        yield


@injection("top-k-strict")
@contextmanager
def top_k_strict(model: Any, run: Run) -> Iterator[None]:
    """What ties with the k-th largest goes too: `<=` for `<`."""

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        kth = torch.topk(scores, processor.top_k)[0][..., -1, None]
        return scores.masked_fill(scores <= kth, GONE)

    with _ruled(model, "TopK", rule):
        yield


@injection("top-k-exact")
@contextmanager
def top_k_exact(model: Any, run: Run) -> Iterator[None]:
    """Exactly k stay where those that tie with the k-th stay as well."""

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        kept = torch.full_like(scores, GONE)
        best = torch.sort(scores, descending=True, stable=True).indices[..., : processor.top_k]
        return kept.scatter(-1, best, scores.gather(-1, best))

    with _ruled(model, "TopK", rule):
        yield


def _nucleus(scores: Scores, p: float, keep: Callable[[Scores, Scores, float], Scores], probs: Scores) -> Scores:
    """Keep by rule `keep(mass up to and with the token, its own mass, p)`; the largest always stays."""
    ordered = torch.sort(probs, descending=True, stable=True)
    through = ordered.values.cumsum(dim=-1)
    stays = keep(through, ordered.values, p)
    stays[..., 0] = True
    return scores.masked_fill(~torch.zeros_like(stays).scatter(-1, ordered.indices, stays), GONE)


@injection("top-p-rule")
@contextmanager
def top_p_rule(model: Any, run: Run, which: str) -> Iterator[None]:
    """`crossing-dropped`: the token that crosses p goes. `one-more`: the one after it stays. `unnormalised`: the mass
    that an earlier cut took away is counted."""
    rules: dict[str, Callable[[Scores, Scores, float], Scores]] = {
        "crossing-dropped": lambda through, own, p: through <= p,
        "one-more": lambda through, own, p: torch.nn.functional.pad((through - own < p)[..., :-1], (1, 0), value=True),
        "unnormalised": lambda through, own, p: through - own < p,
    }
    whole: list[Scores] = []

    def first(processors: list[Any]) -> list[Any]:
        index = _named(processors, "TopP")
        if which == "unnormalised":
            before = _named(processors, "TopK")
            original = processors[before]

            def note(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
                whole[:] = [torch.softmax(scores, dim=-1)]
                return original(ids, scores)  # type: ignore[no-any-return]

            processors[before] = _with_rule(original, note)
        processors[index] = _with_rule(processors[index], rule)
        return processors

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        probs = torch.softmax(scores, dim=-1)
        if which == "unnormalised":
            probs = torch.where(scores == GONE, 0.0, whole[0])
        return _nucleus(scores, processor.top_p, rules[which], probs)

    with _chain(model, first):
        yield


@injection("min-p-of-logits")
@contextmanager
def min_p_of_logits(model: Any, run: Run) -> Iterator[None]:
    """The min-p share is taken of the largest logit, not of the largest probability."""

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        return scores.masked_fill(scores < processor.min_p * scores.amax(dim=-1, keepdim=True), GONE)

    with _ruled(model, "MinP", rule):
        yield


@injection("spliced-back")
@contextmanager
def spliced_back(model: Any, run: Run, token: int) -> Iterator[None]:
    """A token's logit is saved before the filters and put back behind them: it escapes them."""
    saved: list[Scores] = []

    class Save:
        def __call__(self, ids: torch.Tensor, scores: Scores) -> Scores:
            saved[:] = [scores[:, token].clone()]
            return scores

    class Restore:
        def __call__(self, ids: torch.Tensor, scores: Scores) -> Scores:
            scores = scores.clone()
            scores[:, token] = saved[0]
            return scores

    with _chain(model, lambda processors: [Save(), *processors, Restore()]):
        yield


# -------------------------------------------------------------------- penalties and masks


@injection("penalty-rule")
@contextmanager
def penalty_rule(model: Any, run: Run, which: str, window: int = 0) -> Iterator[None]:
    """How a repetition penalty goes wrong: what it looks at, which way, how often."""
    prompt = len(run.ids[0])

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        penalty = processor.penalty
        if which == "generated-only":
            ids = ids[:, prompt:]
        elif which == "stale":
            ids = ids[:, :-1] if ids.shape[1] > prompt else ids
        elif which == "window":
            ids = ids[:, -window:]
        elif which == "other-row":
            ids = ids.flip(0)
        elif which == "twice":
            penalty = penalty**2
        elif which == "prompt-only":
            ids = ids[:, :prompt]
        if not ids.shape[1]:
            return scores
        seen = scores.gather(1, ids)
        if which == "divides":
            changed = seen / penalty
        elif which == "reversed":
            changed = torch.where(seen < 0, seen / penalty, seen * penalty)
        elif which == "counted":
            counts = (ids[:, :, None] == ids[:, None, :]).sum(dim=-1)
            changed = torch.where(seen < 0, seen * penalty**counts, seen / penalty**counts)
        else:
            changed = torch.where(seen < 0, seen * penalty, seen / penalty)
        return scores.scatter(1, ids, changed)

    with _ruled(model, "RepetitionPenalty", rule):
        yield


@injection("minimum-masks")
@contextmanager
def minimum_masks(model: Any, run: Run, tokens: list[int]) -> Iterator[None]:
    """During the minimum length these ids are forbidden in place of the stop ids."""
    first = len(run.ids[0]) + run.settings["min_new_tokens"]

    def rule(processor: Any, ids: torch.Tensor, scores: Scores) -> Scores:
        if ids.shape[1] >= first:
            return scores
        scores = scores.clone()
        scores[:, tokens] = GONE
        return scores

    def change(processors: list[Any]) -> list[Any]:
        return [_with_rule(item, rule) if "Length" in type(item).__name__ else item for item in processors]

    with _chain(model, change):
        yield


@injection("masked")
@contextmanager
def masked(model: Any, run: Run, token: int) -> Iterator[None]:
    """A token is forbidden throughout."""

    class Mask:
        def __call__(self, ids: torch.Tensor, scores: Scores) -> Scores:
            scores = scores.clone()
            scores[:, token] = GONE
            return scores

    with _chain(model, lambda processors: [*processors, Mask()]):
        yield


@injection("forced")
@contextmanager
def forced(model: Any, run: Run, token: int, step: int) -> Iterator[None]:
    """A processor that should not be there any more forces a token at a step."""
    positions = len(run.ids[0]) + step

    class Force:
        def __call__(self, ids: torch.Tensor, scores: Scores) -> Scores:
            if ids.shape[1] != positions:
                return scores
            out = torch.full_like(scores, GONE)
            out[:, token] = 0.0
            return out

    with _chain(model, lambda processors: [*processors, Force()]):
        yield


# -------------------------------------------------------------------- draws


Sampler = Callable[[torch.Tensor, int], torch.Tensor]
"""(probabilities [batch, vocabulary], step) -> tokens [batch, 1]."""


@contextmanager
def _sampled_by(run: Run, sampler: Callable[[Callable[..., torch.Tensor]], Sampler]) -> Iterator[None]:
    """Replace `multinomial`; `sampler` is given the right one."""

    @contextmanager
    def replaced() -> Iterator[None]:
        choose, step = sampler(torch.multinomial), [0]

        def multinomial(probs: torch.Tensor, num_samples: int = 1, **_: Any) -> torch.Tensor:
            step[0] += 1
            return choose(probs, step[0] - 1)

        with attribute(torch, "multinomial", multinomial):
            yield

    run.inside.append(replaced)
    yield


@injection("inverse-cdf")
@contextmanager
def inverse_cdf(model: Any, run: Run) -> Iterator[None]:
    """One uniform number against the cumulative sum, where torch runs an exponential race."""

    def sampler(_: Callable[..., torch.Tensor]) -> Sampler:
        def choose(probs: torch.Tensor, step: int) -> torch.Tensor:
            goal = torch.rand(probs.shape[0], 1)
            return (probs.cumsum(dim=-1) < goal).sum(dim=-1, keepdim=True).clamp(max=probs.shape[-1] - 1)

        return choose

    with _sampled_by(run, sampler):
        yield


@injection("other-noise")
@contextmanager
def other_noise(model: Any, run: Run) -> Iterator[None]:
    """The race is run with normal noise in place of exponential."""

    def sampler(_: Callable[..., torch.Tensor]) -> Sampler:
        return lambda probs, step: (probs / torch.randn(probs.shape).abs()).max(dim=-1, keepdim=True).indices

    with _sampled_by(run, sampler):
        yield


@injection("argmax")
@contextmanager
def argmax(model: Any, run: Run, steps: list[int] | None = None) -> Iterator[None]:
    """The largest probability is taken, at some steps or at all; the distribution was made for nothing."""

    def sampler(right: Callable[..., torch.Tensor]) -> Sampler:
        def choose(probs: torch.Tensor, step: int) -> torch.Tensor:
            if steps is None or step in steps:
                return probs.max(dim=-1, keepdim=True).indices
            return right(probs, num_samples=1)

        return choose

    with _sampled_by(run, sampler):
        yield


@injection("extra-draw")
@contextmanager
def extra_draw(model: Any, run: Run, step: int, count: int = 1) -> Iterator[None]:
    """Before the token of a step, more is drawn from the same generator."""

    def sampler(right: Callable[..., torch.Tensor]) -> Sampler:
        def choose(probs: torch.Tensor, at: int) -> torch.Tensor:
            if at == step:
                torch.rand(count)
            return right(probs, num_samples=1)

        return choose

    with _sampled_by(run, sampler):
        yield


@injection("reseeded")
@contextmanager
def reseeded(model: Any, run: Run, every: bool = True) -> Iterator[None]:
    """The generator is seeded again for each token."""

    def sampler(right: Callable[..., torch.Tensor]) -> Sampler:
        def choose(probs: torch.Tensor, at: int) -> torch.Tensor:
            torch.manual_seed(run.seed)
            return right(probs, num_samples=1)

        return choose

    with _sampled_by(run, sampler):
        yield


@injection("drawn-twice")
@contextmanager
def drawn_twice(model: Any, run: Run, step: int) -> Iterator[None]:
    """A token is drawn, thrown away and drawn again: a retry loop."""

    def sampler(right: Callable[..., torch.Tensor]) -> Sampler:
        def choose(probs: torch.Tensor, at: int) -> torch.Tensor:
            if at == step:
                right(probs, num_samples=1)
            return right(probs, num_samples=1)

        return choose

    with _sampled_by(run, sampler):
        yield


@injection("seed")
@contextmanager
def seed(model: Any, run: Run, delta: int) -> Iterator[None]:
    run.seed += delta
    yield


@injection("words-used")
@contextmanager
def words_used(model: Any, run: Run, count: int) -> Iterator[None]:
    """Something was drawn between seeding and the first token."""

    @contextmanager
    def drawn() -> Iterator[None]:
        torch.rand(count)
        yield

    run.inside.append(drawn)
    yield


# -------------------------------------------------------------------- tokens, stop rules, settings, prompts


@injection("token-replaced")
@contextmanager
def token_replaced(model: Any, run: Run, step: int, rank: int = 1) -> Iterator[None]:
    """Greedy, but at a step another token than the largest is accepted (a draft that nobody checked)."""

    @contextmanager
    def replaced() -> Iterator[None]:
        right, at = torch.argmax, [0]

        def choose(scores: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            out = right(scores, *args, **kwargs)
            at[0] += 1
            if at[0] - 1 == step:
                out.copy_(torch.topk(scores, rank + 1, dim=-1).indices[..., rank])
            return out

        with attribute(torch, "argmax", choose):
            yield

    run.inside.append(replaced)
    yield


@injection("settings")
@contextmanager
def settings(model: Any, run: Run, **changed: Any) -> Iterator[None]:
    """Other settings, stated as such."""
    run.settings.update(changed)
    yield


@injection("stops")
@contextmanager
def stops(model: Any, run: Run, token: int | None = None, never: bool = False) -> Iterator[None]:
    """The stop rule looks for another id than is stated, or for none."""
    original = model._get_stopping_criteria

    class Stops:
        def __init__(self, criteria: Any) -> None:
            self._criteria = criteria

        def __call__(self, ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            if token is None:
                return torch.zeros(ids.shape[0], dtype=torch.bool)
            return ids[:, -1] == token

    def make(*args: Any, **kwargs: Any) -> Any:
        criteria = original(*args, **kwargs)
        for index, item in enumerate(criteria):
            if "Eos" in type(item).__name__:
                wrong = Stops(item)
                wrong.eos_token_id = item.eos_token_id  # type: ignore[attr-defined]
                criteria[index] = wrong
        return criteria

    with attribute(model, "_get_stopping_criteria", make):
        yield


@injection("length")
@contextmanager
def length(model: Any, run: Run, by: int) -> Iterator[None]:
    """The limit is counted from another place; the settings say the same."""
    original = model._get_stopping_criteria

    def make(*args: Any, **kwargs: Any) -> Any:
        criteria = original(*args, **kwargs)
        for item in criteria:
            if hasattr(item, "max_length"):
                item.max_length += by
        return criteria

    with attribute(model, "_get_stopping_criteria", make):
        yield


@injection("prompt")
@contextmanager
def prompt(model: Any, run: Run, ids: list[int]) -> Iterator[None]:
    """Another prompt than was meant."""
    run.ids = [list(ids), *run.ids[1:]]
    yield
