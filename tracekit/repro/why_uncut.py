"""What a repro's README says of what was not cut."""

from __future__ import annotations

from tracekit.repro.failing_run import Uncut

WHY_UNCUT = {
    Uncut.FOLLOWS_NOTHING: "Nothing is forced: the program does not follow other tokens, and runs as it is",
    Uncut.ON_ITS_OWN: "Nothing is forced: with the reference's tokens and draws the fault does not show",
    Uncut.OWN_PROMPT: "The prompt is left whole: a Python program makes its own",
    Uncut.OTHER_PROMPT_NOT_FOLLOWED: "The prompt is left whole: the program does not follow another one",
    Uncut.PROMPT_AT_FAULT: "The prompt is left whole: it is what is wrong",
    Uncut.KNOWN_FOR_IT_ALONE: "The prompt is left whole: what is right is known for it alone",
    Uncut.WHOLE_PROMPT_NEEDED: "The prompt is left whole: with a shorter one the fault does not show",
}
