"""Make a candle-nn that records itself, for programs whose sources are to stay as they are.

    python scripts/candle_patch.py FOLDER [PROGRAM]

Writes three crates into FOLDER and prints the `[patch.crates-io]` lines that bring them into a program:

- `candle-nn-real`, the source of candle-nn from cargo's registry under another name: a patch replaces candle-nn
  everywhere, so what it re-exports cannot be called candle-nn. It is of the version that the program in the folder
  PROGRAM has; without one, of the newest that tracekit takes;
- `tracekit`, this crate, whose drop-ins wrap `candle-nn-real`;
- `candle-nn`, of the same version, which is `tracekit::nn`.

Then the program, and every crate that it depends on (candle-transformers), is recorded without a changed line. The loop
says `tracekit::sequence`, `forward`, `close` where it wants to; see docs/rust.md.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

RUST = Path(__file__).resolve().parent.parent / "hooks" / "rust"
NAME = "candle-nn"
# Parts of a manifest that are of no use to a copy.
DROPPED = re.compile(r"\[\[(bench|example|test|bin)\]\]|\[dev-dependencies|\[target\..*\.dev-dependencies")


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    make(folder, *map(Path, sys.argv[2:]))
    print(patch(folder))


def make(folder: Path, program: Path = RUST) -> None:
    """Write the three crates; what is there of them already is replaced."""
    source, version = real(program)
    for name in ("candle-nn-real", "tracekit", "candle-nn"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(source / "src", folder / "candle-nn-real" / "src")
    manifest = (source / "Cargo.toml").read_text()
    manifest = manifest.replace(f'name = "{NAME}"', f'name = "{NAME}-real"', 1)
    manifest = manifest.replace('name = "candle_nn"', 'name = "candle_nn_real"', 1).replace(
        'readme = "README.md"\n', ""
    )
    (folder / "candle-nn-real" / "Cargo.toml").write_text(without_dropped(manifest))
    shutil.copytree(RUST / "tracekit" / "src", folder / "tracekit" / "src")
    (folder / "tracekit" / "Cargo.toml").write_text(own_manifest(version))
    features = tomllib.loads(manifest).get("features", {})
    passed_on = "\n".join(f'{name} = ["{NAME}-real/{name}"]' for name in features if name != "default")
    (folder / NAME / "src").mkdir(parents=True)
    (folder / NAME / "src" / "lib.rs").write_text("//! candle_nn that records itself.\npub use tracekit::nn::*;\n")
    (folder / NAME / "Cargo.toml").write_text(
        f'[package]\nname = "{NAME}"\nversion = "{version}"\nedition = "2021"\n\n[features]\n{passed_on}\n\n'
        '[dependencies]\ntracekit = { path = "../tracekit", features = ["candle"] }\n'
        f'{NAME}-real = {{ path = "../{NAME}-real" }}\n'
    )


def patch(folder: Path) -> str:
    crates = "\n".join(f'{name} = {{ path = "{folder / name}" }}' for name in (NAME, "tracekit"))
    return f"[patch.crates-io]\n{crates}"


def real(program: Path) -> tuple[Path, str]:
    """Folder and version of the candle-nn that a program is built with."""
    locked = ["--locked"] if program == RUST else []
    done = subprocess.run(
        ["cargo", "metadata", *locked, "--format-version", "1", "--all-features"],
        cwd=program,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(f"candle_patch: cargo metadata failed:\n{done.stderr}")
    found = [one for one in json.loads(done.stdout)["packages"] if one["name"] == NAME]
    if len(found) != 1 or not str(found[0]["source"]).startswith("registry+"):
        versions = ", ".join(f"{one['version']} of {one['source'] or 'a folder'}" for one in found) or "none"
        sys.exit(f"candle_patch: the program in {program} must have one {NAME}, of crates.io; it has {versions}")
    return Path(found[0]["manifest_path"]).parent, found[0]["version"]


def without_dropped(manifest: str) -> str:
    return "".join(part for part in re.split(r"^(?=\[)", manifest, flags=re.M) if not DROPPED.match(part))


def own_manifest(version: str) -> str:
    """The crate's manifest outside its workspace, on the renamed candle-nn and the candle-core of its version."""
    workspace = tomllib.loads((RUST / "Cargo.toml").read_text())["workspace"]
    manifest = without_dropped((RUST / "tracekit" / "Cargo.toml").read_text()).replace('readme = "README.md"\n', "")

    def package(found: re.Match[str]) -> str:
        return f'{found[1]} = "{workspace["package"][found[1]]}"'

    def dependency(found: re.Match[str]) -> str:
        name, more = found[1], found[2]
        if name == NAME:
            return f'{NAME} = {{ package = "{NAME}-real", path = "../{NAME}-real"{more} }}'
        given = version if name == "candle-core" else workspace["dependencies"][name]
        words = {"version": given} if isinstance(given, str) else given
        inner = ", ".join(f"{key} = {json.dumps(value)}" for key, value in words.items())
        return f"{name} = {{ {inner}{more} }}"

    head, rest = manifest.split("[dependencies]", 1)
    head = re.sub(r"^([\w-]+)\.workspace = true$", package, head, flags=re.M)
    rest = re.sub(r"^([\w-]+)\.workspace = true()$", dependency, rest, flags=re.M)
    rest = re.sub(r"^([\w-]+) = \{ workspace = true(.*?) \}$", dependency, rest, flags=re.M)
    return f"{head}[dependencies]{rest}"


if __name__ == "__main__":
    main()
