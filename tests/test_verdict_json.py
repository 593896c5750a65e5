"""The verdict as JSON: what docs/verdict.schema.json says, of every kind of verdict; ids beside sentences."""

from __future__ import annotations

import inspect
import json
import re
import string
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

import tracekit
from tests.small_run import write_run
from tracekit.auditing.evidence import ErrorEvidence
from tracekit.auditing.not_audited import Lacks
from tracekit.checkpoints.relations import Relation
from tracekit.compare.findings import Finding
from tracekit.inspection.losses import Loss
from tracekit.report.words import TEMPLATES, has_words, not_audited
from tracekit.verdict import evidence, unexercised
from tracekit.verdict.attribution import SiteAtFault
from tracekit.verdict.cause import Cause
from tracekit.verdict.causes import rules
from tracekit.verdict.counterfactual import evidence as sampler
from tracekit.verdict.outcome import Chance

ROOT = Path(__file__).parent.parent
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/verdict.schema.json").read_text(encoding="utf-8"))
DOCS = (ROOT / "docs/verdict.md").read_text(encoding="utf-8")


def valid(found: dict[str, Any]) -> dict[str, Any]:
    """The JSON as a file holds it, which follows the schema."""
    read: dict[str, Any] = json.loads(json.dumps(found))
    jsonschema.Draft202012Validator(SCHEMA).validate(read)
    return read


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", ["native", "layer", "filter", "rng", "stop"])
def test_sample_traces(name: str) -> None:
    verdict = tracekit.diff(ROOT / "traces/python.h5", ROOT / f"traces/{name}.h5")
    told = valid(verdict.to_json())
    assert len(told["findings"]) == len(told["evidence"])
    assert [each["text"] for each in told["findings"]] == told["evidence"]
    assert (told["finding"] is None) == (name == "native")
    if told["finding"] is not None:
        assert [told["finding"][key] for key in ("step", "site")] == [verdict.step, verdict.site]


def test_other_kinds_of_verdict(tmp_path: Path) -> None:
    """An input, a setting, tokens alone, a file that was cut."""
    reference = write_run(tmp_path / "reference.tklog")
    cut = tmp_path / "cut.tklog"
    cut.write_bytes(reference.read_bytes()[:-300])
    for other in (
        write_run(tmp_path / "prompt.tklog", prompt=(5, 6, 8)),
        write_run(tmp_path / "stated.tklog", stated={"temperature": 0.5}),
        cut,
    ):
        valid(tracekit.diff(reference, other).to_json())


def test_the_page_names_every_type_and_cause() -> None:
    def below(kind: type) -> list[type]:
        return [each for sub in kind.__subclasses__() for each in (sub, *below(sub))]

    kinds = {each.__name__ for each in (*below(Finding), SiteAtFault)}
    ids = {"".join("_" + letter.lower() if letter.isupper() else letter for letter in name)[1:] for name in kinds}
    assert [each for each in sorted(ids) if f"| `{each}` |" not in DOCS] == []
    assert [rule.cause for rule in rules() if f"`{rule.cause}`" not in DOCS] == []


def test_every_finding_has_words() -> None:
    """A verdict that holds it can be printed: words are registered by type, which no type checker looks at."""
    said = {*get_args(ErrorEvidence), *get_args(Loss), *get_args(Chance), *get_args(Relation), SiteAtFault}
    for module in (evidence, sampler, unexercised):
        found = {each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__}
        said |= {each for each in found if is_dataclass(each) and each is not sampler.ProcessorRun}  # a part of others
    assert len(said) > 60
    assert sorted(each.__name__ for each in said if not has_words(each)) == []
    assert not_audited.WORDS.keys() == set(Lacks)
    for kind, text in TEMPLATES.items():
        named = {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name}
        assert named <= {each.name for each in fields(kind)}, kind


def test_causes_are_one_file_each_in_one_order() -> None:
    orders = [rule.order for rule in rules()]
    assert orders == sorted(set(orders)) and len({rule.cause for rule in rules()}) == len(rules())
    assert Cause.LAYER == "layer" and {Cause.LAYER, Cause.NEAR_TIE, Cause.CAPTURE} <= {rule.cause for rule in rules()}
    for rule in rules():
        assert rule.headline and (rule.repro.shows is not None) != bool(rule.repro.why_none), rule.cause
