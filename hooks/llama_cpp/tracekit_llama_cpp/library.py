"""llama.cpp's shared object out of the package `xllamacpp`, opened without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit_llama_cpp.compiled import HEADER, NotCompiledError, compiled
from tracekit_llama_cpp.declarations import BUILDS, POINTERS, declarations, defaults

PACKAGE = "xllamacpp"
INSTALL = "pip install 'tracekit[llama-cpp]'"
ERROR_LEVEL = 4


class Library:
    """llama.cpp's functions (`lib`), cffi's view of its types (`ffi`), and the lines that it logged as errors."""

    def __init__(self, ffi: Any, lib: Any, build: str) -> None:
        self.ffi, self.lib, self.build = ffi, lib, build
        self.errors: list[str] = []
        self._log = ffi.callback("log_callback", self._logged)
        lib.llama_log_set(self._log, ffi.NULL)
        lib.llama_backend_init()

    def _logged(self, level: int, text: Any, _: Any) -> None:
        if level == ERROR_LEVEL:
            self.errors.append(self.ffi.string(text).decode(errors="replace").strip())

    def text(self, pointer: Any) -> str:
        """A C string."""
        return str(self.ffi.string(pointer).decode(errors="replace"))

    @cached_property
    def follow(self) -> Any:
        """The callback in C; None, said once on stderr, where it cannot be compiled."""
        try:
            return compiled(self.ffi, self.build)
        except NotCompiledError as why:
            said = f"tracekit: values are copied in Python, which takes more of the run's time: {why}"
            print(said, file=sys.stderr, flush=True)
            return None

    @property
    def versions(self) -> dict[str, str]:
        """What computes: the package's build, llama.cpp, ggml, and the vector units that it was built for."""
        lib = self.lib
        built_for = {"system": self.text(lib.llama_print_system_info())}
        versions = {"llama.cpp": self.text(lib.llama_version()), "ggml": self.text(lib.ggml_version())}
        return {PACKAGE: self.build} | versions | built_for


@cache
def library() -> Library:
    """The installed library. Raises TraceError where it is missing, cannot be loaded here, or is of a build whose
    interface is not known."""
    try:
        import cffi
    except ImportError:
        raise TraceError(f"recording llama.cpp needs cffi: {INSTALL}") from None
    try:
        build = importlib.metadata.version(PACKAGE)
        found = importlib.util.find_spec(PACKAGE)
    except (importlib.metadata.PackageNotFoundError, ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        raise TraceError(f"llama.cpp is not installed: {INSTALL}")
    check_build(build)
    objects = sorted(Path(found.origin).parent.glob(f"{PACKAGE}*.so"))
    if not objects:
        raise TraceError(f"{Path(found.origin).parent}: holds no shared object of llama.cpp; {INSTALL}")
    return load(cffi.FFI(), objects[0], build)


def check_build(build: str) -> None:
    """Raises TraceError where nobody compared a build's headers with the declarations."""
    if build not in BUILDS:
        known = ", ".join(sorted(BUILDS))
        raise TraceError(f"{PACKAGE} {build}: its interface is not known here (known: {known}); install one of those")


def load(ffi: Any, path: Path, build: str) -> Library:
    """The library of a file. Raises TraceError where it cannot be loaded, or does not fill in what its source says."""
    ffi.cdef(declarations(build) + HEADER)
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        raise TraceError(f"{path}: cannot be loaded on this machine: {error}; build {PACKAGE} from source") from None
    try:
        check_layout(ffi, lib, path, build)
        return Library(ffi, lib, build)
    except AttributeError as error:
        raise TraceError(f"{path}: is no llama.cpp of build {build}: {error}") from None


def check_layout(ffi: Any, lib: Any, path: Path, build: str) -> None:
    """Raises TraceError where the default parameters are not those of the headers."""
    for function, numbers in defaults(build).items():
        filled = getattr(lib, function)()
        other = [name for name, number in numbers.items() if getattr(filled, name) != number]
        other += [name for name in POINTERS[function] if getattr(filled, name) != ffi.NULL]
        if other:
            raise TraceError(f"{path}: {function} does not lay out {other[0]} as the headers of this build do")
