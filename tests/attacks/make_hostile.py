"""Files that nobody should be hurt by: damaged, cut, lying about lengths, or something else altogether.

python tests/attacks/make_hostile.py FOLDER
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import xxhash

from tests.small_run import write_run
from tracekit.formats.archive import write_archive
from tracekit.formats.log import FRAME_HEAD, MAGIC
from tracekit.formats.log_trace import LogTrace


def frame(header: bytes, data: bytes = b"", *, length: int | None = None, digest: int | None = None) -> bytes:
    """A frame around any header, sound but for what is asked to be wrong."""
    header += b" " * (-len(header) % 8)
    payload = struct.pack("<Q", len(header)) + header + data
    payload += bytes(-len(payload) % 8)
    told = len(payload) if length is None else length
    return FRAME_HEAD.pack(MAGIC, 0, told, xxhash.xxh3_64_intdigest(payload) if digest is None else digest) + payload


def opening(**fields: object) -> dict[str, dict[str, str]]:
    words = {"format": "1", "implementation": '"x"', **{name: json.dumps(value) for name, value in fields.items()}}
    return {"__metadata__": {"kind": "open", **words}}


def tensor(dtype: str, shape: list[object], offsets: list[object]) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def logs() -> dict[str, bytes]:
    """Logs whose very first frame is bad."""
    sound = opening()
    with_tensor = lambda entry: json.dumps({**sound, "t": entry}).encode()  # noqa: E731
    return {
        "header-longer-than-frame": FRAME_HEAD.pack(MAGIC, 0, 16, 0) + struct.pack("<QQ", 2**63, 0),
        "frame-longer-than-file": frame(json.dumps(sound).encode(), length=2**62),
        "length-not-of-eight": frame(json.dumps(sound).encode(), length=17),
        "wrong-hash": frame(json.dumps(sound).encode(), digest=1),
        "reserved-set": MAGIC + b"\x01" + frame(json.dumps(sound).encode())[5:],
        "header-not-json": frame(b"{" * 64),
        "header-deep": frame(b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "header-not-utf8": frame(b'{"__metadata__":{"kind":"\xff\xfe"}}'),
        "header-a-list": frame(b"[1, 2, 3]"),
        "no-metadata": frame(b"{}"),
        "metadata-not-json": frame(b'{"__metadata__":{"kind":"open","format":"{"}}'),
        "name-twice": frame(b'{"__metadata__":{"kind":"open","format":"1","format":"1"}}'),
        "unknown-dtype": frame(with_tensor(tensor("F13", [1], [0, 4])), bytes(8)),
        "negative-shape": frame(with_tensor(tensor("F32", [-1], [0, 4])), bytes(8)),
        "huge-shape": frame(with_tensor(tensor("F32", [2**62, 2**62], [0, 8])), bytes(8)),
        "overflowing-shape": frame(with_tensor(tensor("U8", [2**33, 2**31], [0, 0]))),
        "float-shape": frame(with_tensor(tensor("F32", [2.0], [0, 8])), bytes(8)),
        "offsets-past-end": frame(with_tensor(tensor("F32", [2], [8, 16])), bytes(8)),
        "offsets-backwards": frame(with_tensor(tensor("F32", [2], [8, 0])), bytes(8)),
        "hole-in-data": frame(with_tensor(tensor("F32", [1], [4, 8])), bytes(8)),
        "not-an-open": frame(b'{"__metadata__":{"kind":"step"}}'),
        "wrong-format": frame(json.dumps(opening(format=99)).encode()),
        "weights-without-names": frame(json.dumps(opening(weights=[{"dtype": "float32"}])).encode()),
        "empty": b"",
        "magic-only": MAGIC,
        "text": b"this is no trace\n" * 10,
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    }


Edit = Callable[[h5py.File], None]


def replace(path: str, **creation: object) -> Edit:
    def edit(file: h5py.File) -> None:
        del file[path]
        file.create_dataset(path, **creation)

    return edit


def external_link(file: h5py.File) -> None:
    del file["sequences/0/sites/up"]
    file["sequences/0/sites/up"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_link(file: h5py.File) -> None:
    del file["config"]
    file["config"] = h5py.SoftLink("/site_table")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(9, 32), dtype="<f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(9, 32))
    del file["sequences/0/sites/up"]
    file.create_virtual_dataset("sequences/0/sites/up", layout)


def attribute(path: str, name: str, value: object) -> Edit:
    def edit(file: h5py.File) -> None:
        file[path].attrs[name] = value

    return edit


def index(entries: list[object]) -> Edit:
    return replace("sequences/0/site_index", data=np.bytes_(json.dumps(entries).encode()))


def archives() -> dict[str, Edit]:
    """Ways to spoil a sound archive."""
    external = [("/etc/passwd", 0, 1152)]
    return {
        "external-link": external_link,
        "soft-link": soft_link,
        "virtual-dataset": virtual,
        "external-storage": replace("sequences/0/sites/up", shape=(9, 32), dtype="<f4", external=external),
        "compressed-bomb": replace("sequences/0/sites/up", shape=(1 << 20, 1 << 12), dtype="<f4", compression="gzip"),
        "unallocated-giant": replace("sequences/0/sites/up", shape=(1 << 40, 32), dtype="<f4"),
        "giant-string": replace("config", shape=(1 << 40,), dtype="S64"),
        "big-endian": replace("sequences/0/sites/up", data=np.zeros((9, 32), dtype=">f4")),
        "other-width": replace("sequences/0/sites/up", data=np.zeros((9, 31), dtype="<f4")),
        "site-a-group": lambda file: (file.pop("sequences/0/sites/up"), file.create_group("sequences/0/sites/up")),
        "index-lies": index([["up", "float32", 32, [[0, 1 << 40]]]]),
        "index-overlaps": index([["up", "float32", 32, [[5, 9], [0, 5]]]]),
        "index-dtype": index([["up", "object", 32, [[0, 9]]]]),
        "index-no-list": index([7]),
        "config-not-json": replace("config", data=np.bytes_(b"{")),
        "site-table-missing": lambda file: file.pop("site_table"),
        "wrong-format": attribute("/", "tracekit_format", 99),
        "steps-lie": attribute("sequences/0", "steps", 1 << 40),
        "tokens-text": replace("sequences/0/steps/token", data=np.array([b"a"] * 6)),
        "offsets-lie": replace("sequences/0/survivors/offset", data=np.array([0, -5, 99, 0, 1, 2, 3])),
    }


def make(folder: Path) -> list[Path]:
    """Write all of them into `folder`."""
    out = []
    for name, data in logs().items():
        path = folder / f"{name}.tklog"
        path.write_bytes(data)
        out.append(path)
    with LogTrace(write_run(folder / "sound.tklog")) as trace:
        write_archive(trace, folder / "sound.h5")
    sound = (folder / "sound.h5").read_bytes()
    for name, edit in archives().items():
        path = folder / f"{name}.h5"
        path.write_bytes(sound)
        with h5py.File(path, "r+") as file:
            edit(file)
        out.append(path)
    cut = folder / "cut.h5"
    cut.write_bytes(sound[: len(sound) // 2])
    other = folder / "unrelated.h5"
    with h5py.File(other, "w") as file:
        file["temperature"] = np.arange(5)
    return [*out, cut, other]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(f"{len(make(target))} files in {target}")
