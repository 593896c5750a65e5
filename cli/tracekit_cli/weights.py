"""`tracekit weights`: two checkpoints compared, whatever their format."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tracekit.checkpoints.compare import Parameters, SafetensorsParameters, diff_weights
from tracekit.report.weight_text import weight_text
from tracekit.trace import TraceError

GGUF = b"GGUF"
TORCH_HEADS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of torch's zip format, and of the pickles before it."""
SPEECH_MODELS = ("llm.rl.pt", "llm.pt")
"""The language model of a CosyVoice folder."""
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


@click.command("weights")
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(first: str, second: str, as_json: bool) -> None:
    """Compare the tensors of SECOND with those of FIRST: missing, extra, shape, dtype, values.

    Each is a .safetensors file, a .pt file (read without running anything in it), a GGUF file or a HF folder.
    Exit code 0: the same, 1: different, 2: trouble.
    """
    one, other = open_parameters(first), open_parameters(second)
    found = diff_weights(one, other)
    if as_json:
        click.echo(json.dumps({"first": first, "second": second} | found.to_json(), indent=2))
    else:
        click.echo(weight_text(found, one, other))
    sys.exit(0 if found.same else 1)


def open_parameters(path: str) -> Parameters:
    """A checkpoint by what its file holds. Raises TraceError, in one sentence, for anything else."""
    place = Path(path)
    if place.is_dir():
        return _folder(place)
    try:
        with place.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    if head == GGUF:
        from tracekit.checkpoints.gguf import GgufParameters

        return GgufParameters(path)
    if head.startswith(TORCH_HEADS) or place.suffix in TORCH_SUFFIXES:
        return _torch(path)
    return SafetensorsParameters(path)


def _folder(folder: Path) -> Parameters:
    if any(folder.glob("*.safetensors")):
        return SafetensorsParameters(str(folder))
    speech = [folder / name for name in SPEECH_MODELS if (folder / name).exists()]
    if speech:
        return _torch(str(speech[0]))
    if any(folder.glob("pytorch_model*.bin*")):
        return _torch(str(folder))
    return SafetensorsParameters(str(folder))  # which says that there is nothing to compare


def _torch(path: str) -> Parameters:
    try:
        from tracekit_torch.checkpoint_file import TorchParameters
    except ImportError:
        raise TraceError(f"{path}: reading it needs torch; pip install 'tracekit[torch]'") from None
    return TorchParameters(path)
