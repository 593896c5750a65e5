"""Did the sampler do it? Filter, draw, token and stop, recomputed from what was recorded.

At the step where the sides diverge, the token is computed from either side's logits with either side's draws: the
ingredient that flips it is the cause. What a side does against its own settings is looked for among the mistakes of
`mistakes.filters` and `mistakes.draws`, and named only if it reproduces every step.
"""

from tracekit.verdict.counterfactual.draw import rule_draw
from tracekit.verdict.counterfactual.filter import rule_filter
from tracekit.verdict.counterfactual.margins import run_margins
from tracekit.verdict.counterfactual.stop import rule_stop
from tracekit.verdict.counterfactual.token import rule_token

__all__ = ["rule_draw", "rule_filter", "rule_stop", "rule_token", "run_margins"]
