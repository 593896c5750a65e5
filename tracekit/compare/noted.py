"""Which values are equal by the digests of their blocks: where their writer noted these, without reading them."""

from __future__ import annotations

import numpy as np

from tracekit.align.sites import SequencePair, SitePair


def noted_alike(pair: SequencePair, site: SitePair, first: int, stop: int) -> bool:
    """Whether both sides hold the same bits of a site at positions [first, stop): the digests of their blocks are
    equal, and so are the values where one block, which reaches beyond `stop` on one side, has to be read. False where
    a side has no digests, or another division into blocks."""
    one, other = pair.reference, pair.candidate
    stored = one.sites[site.name], other.sites[site.candidate]
    if (stored[0].dtype, stored[0].width) != (stored[1].dtype, stored[1].width):
        return False
    ours, theirs = one.blocks(site.name), other.blocks(site.candidate)
    if ours is None or theirs is None:
        return False
    if stored[0].ranges == stored[1].ranges:
        if ours.digest.tobytes() == theirs.digest.tobytes():
            return True
        if all(first <= begin and end <= stop for begin, end in stored[0].ranges):
            return False  # no block that differs reaches beyond what is asked for
    wanted = np.flatnonzero((ours.first < stop) & (ours.stop > first))
    place = np.searchsorted(theirs.first, ours.first[wanted])
    found = np.minimum(place, max(len(theirs.first) - 1, 0))
    if not len(theirs.first) or (theirs.first[found] != ours.first[wanted]).any():
        return False
    alike = (theirs.stop[found] == ours.stop[wanted]) & (theirs.digest[found] == ours.digest[wanted])
    rest = wanted[~alike]
    if len(rest) == 0:
        return True
    begin, end = max(first, int(ours.first[rest[0]])), min(stop, int(ours.stop[rest[0]]))
    reaches_beyond = max(int(ours.stop[rest[0]]), int(theirs.stop[found[~alike][0]])) > stop
    return len(rest) == 1 and reaches_beyond and _same_bits(pair, site, begin, end)


def _same_bits(pair: SequencePair, site: SitePair, first: int, stop: int) -> bool:
    rows = pair.reference.read(site.name, first, stop), pair.candidate.read(site.candidate, first, stop)
    ours, theirs = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in rows)
    return np.array_equal(ours, theirs)
