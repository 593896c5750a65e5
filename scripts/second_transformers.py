"""Put a second transformers into a folder of its own, for runs with both: CosyVoice pins 4.51.3.

    python scripts/second_transformers.py .cache/transformers4
    PYTHONPATH=.cache/transformers4 python ...

What it needs besides (torch, numpy, safetensors) is the environment's own. A folder that is there already is left.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("transformers==4.51.3", "tokenizers==0.21.4", "huggingface_hub==0.36.0")
"""Of the same time: transformers refuses others."""
STAMP = "made_by.txt"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == "\n".join(PACKAGES):
        print(f"{folder}: is there already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(scratch), *PACKAGES], check=True)
        (scratch / STAMP).write_text("\n".join(PACKAGES))
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.replace(folder)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{folder}: pip could not install {', '.join(PACKAGES)} (exit code {error.returncode})")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{folder}: {', '.join(PACKAGES)}")


if __name__ == "__main__":
    main()
