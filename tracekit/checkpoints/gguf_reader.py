"""The gguf library's reader, without a Python object for each token of a vocabulary.

It makes a dozen objects an entry, ten seconds for the 262,144 tokens of Gemma 3, and nothing here reads one of them.
"""

from __future__ import annotations

import struct
from typing import Any

SETTINGS = 4096
"""Entries up to which a list may be a setting (one number a layer, say) and is read by the library."""
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF's number of a plain type: its bytes."""
STRING, ARRAY = 8, 9
HEAD = struct.Struct("<IQ")
LENGTH = struct.Struct("<Q")


def open_reader(path: str) -> Any:
    """A `gguf.GGUFReader` whose fields leave out long lists. Raises ImportError, and what the library raises."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _get_field_parts(self, offset: int, kind: int, *more: Any) -> Any:
            # The library reads field by field through this; a version of it that does not is slow, and as right.
            if int(kind) == ARRAY and self.endianess == gguf.GGUFEndian.LITTLE and offset + HEAD.size <= len(self.data):
                of, count = HEAD.unpack_from(self.data[offset : offset + HEAD.size].tobytes())
                if count > SETTINGS and (of == STRING or of in BYTES):
                    stop = _end(self.data, offset + HEAD.size, of, count)
                    return stop - offset, [], [], [gguf.GGUFValueType.ARRAY]
            return super()._get_field_parts(offset, kind, *more)

    return Reader(path)


def _end(data: Any, offset: int, of: int, count: int) -> int:
    """Where a list ends. Raises ValueError where that is not in the file."""
    size = len(data)
    if of != STRING:
        offset += BYTES[of] * count
    else:
        if count * LENGTH.size > size:
            raise ValueError("a list is longer than the file")
        held, read = memoryview(data), LENGTH.unpack_from
        for _ in range(count):
            if offset + LENGTH.size > size:
                break
            offset += LENGTH.size + read(held, offset)[0]
    if offset > size:
        raise ValueError("a list ends after the file")
    return offset
