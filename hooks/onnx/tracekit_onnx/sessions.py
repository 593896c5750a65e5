"""Sessions of ONNX Runtime: the one that is asked for, and that of the copy which gives the modules' values."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracekit.errors import first_line
from tracekit.trace import TraceError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

COPIED = (
    *("graph_optimization_level", "intra_op_num_threads", "inter_op_num_threads", "execution_mode"),
    *("enable_cpu_mem_arena", "enable_mem_pattern", "use_deterministic_compute"),
)
"""Settings of a session that its copy gets."""
LEVELS = ("disabled", "basic", "extended", "all")
"""What `--optimisation` takes."""
IDS = ("input_ids", "decoder_input_ids")
BESIDE_IDS = ("attention_mask", "position_ids", "cache_position")
INTEGERS = ("tensor(int64)", "tensor(int32)")
INLINE = 1 << 30
"""Bytes of external data that are put into the copy; larger ones are read from where they are."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def runtime() -> Any:
    """The library. Raises TraceError where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise TraceError("recording ONNX Runtime needs a library: pip install 'tracekit[onnx]'") from None
    return onnxruntime


def session_options(level: str = "all", threads: int = 1) -> Any:
    """Settings of a session. Raises TraceError for a level that there is not."""
    ort = runtime()
    known = dict(zip(LEVELS, ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"), strict=True))
    if level not in known:
        raise TraceError(f"--optimisation {level}: give one of {', '.join(LEVELS)}")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{known[level]}")
    options.intra_op_num_threads = threads
    return options


def load_session(path: str, options: Any = None) -> Any:
    """The session of a file. Raises TraceError, in one line, where ONNX Runtime does not load it."""
    ort = runtime()
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises many of its own
        raise TraceError(f"{path}: ONNX Runtime does not load it: {first_line(error)}") from None


def path_of(session: Any) -> str:
    """The file that a session was made from. Raises TraceError where it was made from bytes."""
    path = getattr(session, "_model_path", None)
    if not path:
        raise TraceError(
            "the session was made from bytes; give its path to InferenceSession, or to tracekit_onnx.record"
        )
    return str(path)


def copied_options(session: Any) -> Any:
    """The settings of a session, for another one."""
    theirs, ours = session.get_session_options(), runtime().SessionOptions()
    for name in COPIED:
        if hasattr(theirs, name):
            setattr(ours, name, getattr(theirs, name))
    ours.log_severity_level = 3  # the copy is nobody's concern
    return ours


def session_of(model: ModelProto, path: str, like: Any) -> Any:
    """The session of a copied graph, with the settings and the devices of another one. Raises TraceError where ONNX
    Runtime does not take it."""
    import onnx

    options, folder = copied_options(like), Path(path).resolve().parent
    outside = _outside(model.graph)
    if outside and sum((folder / name).stat().st_size for name in outside) <= INLINE:
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        onnx.load_external_data_for_model(whole, str(folder))
        model = whole
    elif outside:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(folder))
    try:
        providers, settings = like.get_providers(), like.get_provider_options()
        chosen = [(name, settings.get(name, {})) for name in providers]
        return runtime().InferenceSession(model.SerializeToString(), options, providers=chosen)
    except Exception as error:
        raise TraceError(
            f"{path}: ONNX Runtime does not load the graph that gives all values: {first_line(error)}"
        ) from None


def _outside(graph: GraphProto) -> set[str]:
    """Files beside the model that hold tensors of it."""
    found = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == 1
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _outside(attribute.g)
    return found


def optimised(session: Any, path: str) -> tuple[set[str], Counter[str]] | None:
    """Of the graph that a session really runs: the values that it still makes, and its operators that ONNX does not
    have (fused ones). None where ONNX Runtime does not write it down."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="tracekit-") as folder:
        options = copied_options(session)
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            runtime().InferenceSession(path, options, providers=session.get_providers())
            model = onnx.load_model(options.optimized_model_filepath, load_external_data=False)
        except Exception:  # some providers compile a graph into what no file holds
            return None
    made: set[str] = set()
    fused: Counter[str] = Counter()
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            made |= set(node.output)
            if node.domain not in ("", "ai.onnx"):
                fused[node.op_type] += 1
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return made, fused


def ids_input(values: Sequence[Any]) -> str | None:
    """The input of a graph that takes token ids: the one that is called so, else the only one of integers [batch,
    time]. `values`: what a session's `get_inputs` gives."""
    named = next((name for name in IDS if any(value.name == name for value in values)), None)
    integers = [each.name for each in values if each.type in INTEGERS and len(each.shape or ()) == 2]
    return named or (integers[0] if len(integers) == 1 and integers[0] not in BESIDE_IDS else None)
