"""llama.cpp, recorded from a registry's wheel alone: no patch, no build.

import tracekit_llama_cpp
tracekit_llama_cpp.record("model.gguf", "out.h5", prompt="The capital of France is", max_new_tokens=16)
"""

from tracekit_llama_cpp.options import Options
from tracekit_llama_cpp.recording import Generated, generate, record

__all__ = ["Generated", "Options", "generate", "record"]
