"""Why a variation of a check came to nothing."""

from __future__ import annotations

from tracekit.report.words import template
from tracekit.selfcheck.variation import Failed, NoLayers, NoSiteAudited, PromptTooLong

template(Failed, "{said}")
template(NoLayers, "no layers are recorded to compare")
template(PromptTooLong, "needs a prompt of more than {positions} positions")
template(NoSiteAudited, "holds no site that can be audited against {checkpoint}")
