"""What to know beside the differences of two checkpoints."""

from __future__ import annotations

from tracekit.checkpoints.compare import OtherOrder, PrefixIgnored, TiedHead
from tracekit.extra.cosyvoice3.speaker_weights import SpeakerProjection
from tracekit.report.words import template

template(PrefixIgnored, "{path}: names are compared without their prefix {prefix!r}")
template(TiedHead, "{name} is on one side only, and repeats {embeddings} (tied)")
template(OtherOrder, "{name}: the same numbers in another order")
template(SpeakerProjection, "{part}.* projects a speaker's embedding, which CosyVoice3's language model does not take")
