"""ONNX Runtime, recorded: the values of a graph's modules, by the names of the program that it was exported from."""

from tracekit_onnx.generation import Generated, generate
from tracekit_onnx.recording import RecordedSession, record

__all__ = ["Generated", "RecordedSession", "generate", "record"]
