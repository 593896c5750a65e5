"""May seeds that pass have the fault, too?"""

from __future__ import annotations

from tracekit.report.words import words
from tracekit.report.words.numbers import number
from tracekit.verdict.outcome import Agreement, AllAgree, EndsTooSoon, OtherDraws, WrongProbabilities

UNLIKELY = 0.01
"""A probability below which luck is no explanation."""
UNLIKELY_DRAWS = -2.0
"""The same as a power of ten."""
AGREEMENTS = {
    Agreement.SURVIVORS: "survivors",
    Agreement.PROMPTS: "prompts",
    Agreement.SETTINGS: "settings and survivors",
}


@words(AllAgree)
def _agree(found: AllAgree) -> str:
    return f"the {AGREEMENTS[found.of]} of all {found.passing} passing seeds agree: none of them has the fault"


@words(OtherDraws)
def _draws(found: OtherDraws) -> str:
    if found.log10_chance_at_most >= UNLIKELY_DRAWS:
        return "passing seeds are so short or so certain that they may have the fault, too"
    chance = f"1e{found.log10_chance_at_most:.0f}"
    said = f"with this fault, a passing seed would draw its tokens with probability {chance} at most"
    return f"{said}: none of the {found.passing} passing seeds has it"


@words(WrongProbabilities)
def _probabilities(found: WrongProbabilities) -> str:
    said = f"with probabilities off by {number(found.error_nats, 2)}, a seed keeps all of its tokens"
    said += f" with probability {found.pass_probability:.0%}"
    if found.pass_probability < UNLIKELY:
        return f"{said}: a seed that passes does not have the fault"
    if found.suspicious:
        return f"{said}: equal tokens prove little"
    apart = number(found.largest_apart_nats, 2)
    return (
        f"{said}, so equal tokens prove little; but the probabilities of the {found.passing} passing seeds differ by "
        f"{apart} at most: none of them has the fault"
    )


@words(EndsTooSoon)
def _ends(found: EndsTooSoon) -> str:
    where = f"step {found.first_step}, where the fault shows first"
    if found.too_short:
        return f"{found.too_short} of {found.passing} passing seeds end before {where}: they may have it, too"
    return f"all {found.passing} passing seeds run past {where}: none of them has it"
