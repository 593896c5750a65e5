#!/bin/sh
# Names what is missing of the three things that make cannot install: python 3.11+, its venv module, cargo.
python=${1:-python3}
fail() { echo "tracekit: $1" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$python is missing or older than 3.11; install Python 3.11 or later, or run make PYTHON=/path/to/python3"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module; on Debian: apt-get install python3-venv"
command -v cargo >/dev/null ||
    fail "cargo is missing; install Rust 1.85 or later (https://rustup.rs)"
command -v cc >/dev/null ||
    fail "a C linker is missing; on Debian: apt-get install gcc"
