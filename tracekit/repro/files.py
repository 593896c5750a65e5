"""The folder of a repro: tensors, what is followed, the tests of both languages, a README."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from tracekit.repro.cut import Cut
from tracekit.repro.failing_run import Case
from tracekit.repro.fault import Evidence, Fault
from tracekit.repro.rerun import FOLLOW_FILE, write_followed
from tracekit.repro.safetensors_file import write_tensors
from tracekit.repro.why_uncut import WHY_UNCUT
from tracekit.trace import Json, TraceError

FORMAT = 1
PLAIN = {"Cargo.toml": "Cargo.toml", "Cargo.lock": "Cargo.lock", "repro.rs": "tests/repro.rs"}
"""Files that are the same in every repro, and where they go."""
RENDERED = {"README.md.jinja": "README.md", "test_repro.py.jinja": "test_repro.py"}


def write_folder(path: Path, case: Case, fault: Fault, found: Cut, before: tuple[int, int]) -> Path:
    """Write the folder under a scratch name, then rename; what stood there goes. Raises TraceError."""
    environment = _templates()
    evidence = fault.evidence(found.trace, found.fed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            _write(scratch, case, fault, found, evidence)
            said = _said(case, found, evidence, before)
            for template, name in RENDERED.items():
                (scratch / name).write_text(environment.get_template(template).render(said))
            scratch.chmod(0o755)
            if path.exists():
                shutil.rmtree(path)
            scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def _templates() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError:
        raise TraceError("a repro needs jinja2: pip install 'tracekit[postmortem]'") from None
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tracekit.repro", "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _write(folder: Path, case: Case, fault: Fault, found: Cut, evidence: Evidence) -> None:
    templates = resources.files("tracekit.repro") / "templates"
    (folder / "tests").mkdir()
    for template, name in PLAIN.items():
        (folder / name).write_text((templates / template).read_text())
    write_followed(found.fed, folder / FOLLOW_FILE)
    write_tensors(folder / "input.safetensors", evidence.input)
    settings = {"settings": evidence.settings} if evidence.settings else None
    write_tensors(folder / "parameters.safetensors", evidence.parameters, settings)
    write_tensors(folder / "expected.safetensors", evidence.expected)
    write_tensors(folder / "actual.safetensors", evidence.actual)
    if evidence.declared is not None:
        (folder / "config.json").write_text(json.dumps(evidence.declared, indent=1) + "\n")
    (folder / "repro.json").write_text(json.dumps(_repro_json(case, fault, found, evidence), indent=1) + "\n")


def _repro_json(case: Case, fault: Fault, found: Cut, evidence: Evidence) -> Json:
    verdict, command, recording = case.verdict, case.command, fault.recording
    return {
        "format": FORMAT,
        "group": case.group,
        "seed": case.seed,
        "cause": verdict.cause,
        "site": verdict.site,
        "explanation": verdict.json["explanation"],
        "command": shlex.join(command.words),
        "recorder": recording.words(command, found.fed),
        "folder": command.folder,
        "environment": dict(command.environment) | (recording.environment(found.fed) if command.native else {}),
        "sequence": found.fed.sequence,
        "check": evidence.check,
    }


def _said(case: Case, found: Cut, evidence: Evidence, before: tuple[int, int]) -> Json:
    """What the templates are filled with. Texts of traces stay on one line."""
    verdict, fed = case.verdict, found.fed
    said = verdict.evidence[0].text if verdict.evidence else ""
    mechanism = said if verdict.explanation is None else verdict.explanation.text
    prompt, steps = fed.lengths(before)
    return {
        "group": case.group,
        "seed": case.seed,
        "cause": verdict.cause,
        "site": verdict.site,
        "mechanism": " ".join(mechanism.split()),
        "kind": evidence.check["kind"],
        "check": evidence.check,
        "prompt": (before[0], prompt),
        "steps": (before[1], steps),
        "sequence": fed.sequence,
        "note": "" if found.uncut is None else WHY_UNCUT[found.uncut],
        "fed": fed,
        "command": shlex.quote(shlex.join(case.command.words)),
        "folder": case.command.folder,
    }
