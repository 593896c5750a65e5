"""What counts as a failure: other tokens, another length, another exit code, or an expression of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tracekit.trace import TraceError
from tracekit.verdict.outcome import Run


@dataclass(frozen=True)
class Facts:
    """What a rule may ask of a seed."""

    seed: int
    reference: Run
    candidate: Run
    first_difference: int | None  # step, in the first sequence that differs
    values_differ: bool  # tokens, draws or probabilities are off by more than rounding

    @property
    def tokens_differ(self) -> bool:
        return self.first_difference is not None

    @property
    def lengths_differ(self) -> bool:
        return self.reference.tokens != self.candidate.tokens or self.reference.ends != self.candidate.ends

    @property
    def exits_differ(self) -> bool:
        return self.reference.exit_code != self.candidate.exit_code

    def names(self) -> dict[str, Any]:
        """The names of an expression: `ref`, `cand` and their fields, `seed`, `first_difference`, and the rules."""
        sides = {
            name: {"tokens": run.tokens, "exit": run.exit_code, "fallbacks": run.fallbacks, "redraws": run.redraws}
            for name, run in (("ref", self.reference), ("cand", self.candidate))
        }
        words = {"tokens": self.tokens_differ, "length": self.lengths_differ, "exit": self.exits_differ}
        first = -1 if self.first_difference is None else self.first_difference
        return {**sides, **words, "values": self.values_differ, "seed": self.seed, "first_difference": first}


Rule = Callable[[Facts], bool]
RULES: dict[str, Rule] = {
    "tokens": lambda facts: facts.tokens_differ,
    "length": lambda facts: facts.lengths_differ,
    "exit": lambda facts: facts.exits_differ,
    "values": lambda facts: facts.values_differ,
}
EXAMPLE = "abs(ref.tokens - cand.tokens) > 5 or exit"


def rule(text: str) -> Rule:
    """The rule of `--fail`. Raises TraceError where it is no rule."""
    return RULES.get(text) or _expression(text)


def _expression(text: str) -> Rule:
    try:
        from simpleeval import EvalWithCompoundTypes, InvalidExpression
    except ModuleNotFoundError:
        raise TraceError("--fail with an expression needs simpleeval: pip install 'tracekit[postmortem]'") from None

    def judge(facts: Facts) -> bool:
        reckoner = EvalWithCompoundTypes(names=facts.names(), functions={"abs": abs, "min": min, "max": max})
        work_out = reckoner.eval
        try:
            return bool(work_out(text))
        except (InvalidExpression, SyntaxError, TypeError, ValueError, KeyError, ArithmeticError) as error:
            known = ", ".join(facts.names())
            raise TraceError(
                f"--fail {text!r}: {error}; use tokens, length, exit, values or an expression of {known}, "
                f"such as {EXAMPLE!r}"
            ) from None

    judge(Facts(0, Run(0, 1), Run(0, 1), None, False))
    return judge
