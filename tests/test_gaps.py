"""Sites recorded at some positions only: what both sides hold is compared and audited, the rest is no error."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tracekit_cli.main import group

import tracekit
from tracekit.formats.log import Frame, LogWriter, Tensor, map_file, read_frames
from tracekit.trace import Json, resolve

Keep = Callable[[str, int, int], bool]
"""(site, position of the call's first row, rows) -> whether the call's rows of the site are kept."""


def thinned(log: Path, out: Path, keep: Keep, row: Callable[[Json], Json] = lambda row: row) -> Path:
    """The log again, without some calls' rows of some sites; `row` alters the rows of the site table."""
    data = map_file(log)
    writer = LogWriter(out)
    for frame in read_frames(data):
        metadata = dict(frame.metadata)
        if "sites" in metadata:
            metadata["sites"] = [row(site) for site in metadata["sites"]]
        names = list(frame.tensors)
        if frame.kind == "call":
            names = [name for name in names if keep(name, metadata["position"], metadata["rows"])]
        writer.write_frame(frame.kind, metadata, {name: _tensor(data, frame, name) for name in names})
    writer.abandon()
    return out


def _tensor(data: mmap.mmap, frame: Frame, name: str) -> Tensor:
    stored = frame.tensors[name]
    rows = frame.array(data, name)
    assert rows is not None
    return Tensor(stored.dtype, stored.shape, rows.tobytes())


def holes(seed: int) -> Keep:
    """Drops the rows of half of the sites in a quarter of the calls."""
    chance = np.random.default_rng(seed)
    holed: dict[str, bool] = {}

    def keep(site: str, position: int, rows: int) -> bool:
        if site not in holed:
            holed[site] = bool(chance.random() < 0.5)
        return not (holed[site] and chance.random() < 0.25)

    return keep


def told(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(group, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("seed", range(6))
def test_any_gaps_in_any_sites_are_no_error(
    whole_run: Callable[..., Path], tiny_llama: Path, tmp_path: Path, seed: int
) -> None:
    fault = ("--fault", "gain:model.layers.1.mlp.up_proj:1.05") if seed % 2 else ()
    first = thinned(whole_run(), tmp_path / "first.tklog", holes(seed))
    second = thinned(whole_run(*fault), tmp_path / "second.tklog", holes(seed + 100))
    weights = ("--weights", str(tiny_llama))
    wanted = 1 if fault else 0
    for oracle in ((), ("--oracle", str(first)), ("--noise", str(first))):
        code, said = told("diff", str(first), str(second), *weights, *oracle)
        assert code in (0, 1) and (code == wanted or not fault), said
    code, said = told("audit", str(second), *weights)
    assert code == wanted, said
    for words in (["show", str(second)], ["summary", str(first), str(second)], ["names", str(first), str(second)]):
        assert told(*words)[0] == 0
    out = tmp_path / "page.html"
    assert told("report", str(first), str(second), *weights, "-o", str(out))[0] in (0, 1)


def test_a_site_that_was_skipped_in_the_prefill_alone_is_one_that_was_stored(
    whole_run: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    """As an engine that narrows to the last row before the head leaves it."""
    site = "model.layers.1.mlp.up_proj"
    skipped = "its shape does not have 7 rows"

    def row(entry: Json) -> Json:
        return entry | {"skipped": skipped} if entry["name"] == site else entry

    def keep(name: str, position: int, rows: int) -> bool:
        return name != site or rows == 1

    log = thinned(whole_run("--fault", f"gain:{site}:1.05"), tmp_path / "skipped.tklog", keep, row)
    trace = tracekit.open(log)
    assert trace.sites[site].skipped == skipped and resolve(trace, site) == site
    code, said = told("audit", str(log), "--weights", str(tiny_llama))
    assert code == 1 and f"{site} at step 1, position 7" in said and "1.05" in said
    verdict = tracekit.diff(tracekit.open(whole_run()), trace, weights=str(tiny_llama))
    assert (verdict.cause, verdict.site, verdict.position) == ("layer", site, 7)
    clean = thinned(whole_run(), tmp_path / "clean.tklog", keep, row)
    covered = tracekit.diff(tracekit.open(whole_run()), tracekit.open(clean)).coverage
    assert covered is not None and covered.in_part == (site,)  # decoding's rows were compared, the prompt's were not
    code, said = told("diff", str(whole_run()), str(clean))
    assert code == 0 and f"{covered.sites} sites (1 of them in part)" in said
