"""Make a candle-nn that records itself, for programs whose sources are to stay as they are.

    python scripts/candle_patch.py FOLDER

Writes three crates into FOLDER and prints the `[patch.crates-io]` lines that bring them into a program:

- `candle-nn-real`, the source of candle-nn from cargo's registry under another name: a patch replaces candle-nn
  everywhere, so what it re-exports cannot be called candle-nn;
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
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    make(folder)
    print(patch(folder))


def make(folder: Path) -> None:
    """Write the three crates; what is there of them already is replaced."""
    source, version = real()
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
    (folder / "tracekit" / "Cargo.toml").write_text(own_manifest())
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


def real() -> tuple[Path, str]:
    """Folder and version of the candle-nn that the workspace is locked to."""
    done = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--all-features"],
        cwd=RUST,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(f"candle_patch: cargo metadata failed:\n{done.stderr}")
    [package] = [one for one in json.loads(done.stdout)["packages"] if one["name"] == NAME]
    return Path(package["manifest_path"]).parent, package["version"]


def without_dropped(manifest: str) -> str:
    return "".join(part for part in re.split(r"^(?=\[)", manifest, flags=re.M) if not DROPPED.match(part))


def own_manifest() -> str:
    """The crate's manifest outside its workspace, on the renamed candle-nn."""
    workspace = tomllib.loads((RUST / "Cargo.toml").read_text())["workspace"]
    manifest = without_dropped((RUST / "tracekit" / "Cargo.toml").read_text()).replace('readme = "README.md"\n', "")

    def package(found: re.Match[str]) -> str:
        return f'{found[1]} = "{workspace["package"][found[1]]}"'

    def dependency(found: re.Match[str]) -> str:
        name, more = found[1], found[2]
        if name == NAME:
            return f'{NAME} = {{ package = "{NAME}-real", path = "../{NAME}-real"{more} }}'
        given = workspace["dependencies"][name]
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
