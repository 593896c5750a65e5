"""A generation of llama.cpp, recorded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import tracekit
from tracekit.checkpoints.gguf import GgufParameters
from tracekit.formats.log import LogWriter
from tracekit.formats.log_beside import begin_anew, finish
from tracekit.trace import Json, TraceError
from tracekit_llama_cpp.arithmetic import stated
from tracekit_llama_cpp.library import Library, library
from tracekit_llama_cpp.nodes import Nodes
from tracekit_llama_cpp.options import CACHE_TYPES, FLASH, Options
from tracekit_llama_cpp.sampler import Chain
from tracekit_llama_cpp.taps import Taps

IMPLEMENTATION = "llama.cpp"
FEW_BYTES = 64
"""Room for the text of a token; llama.cpp says where it needs more."""


MakeTaps: TypeAlias = Callable[[Library, Nodes, LogWriter, Options], Taps]


@dataclass(frozen=True)
class Generated:
    """What a generation gave: the prompt's ids, the tokens and their text, and why it ended (`stop` or `length`)."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    reason: str


class Model:
    """A GGUF file that llama.cpp loaded. Raises TraceError where it cannot."""

    def __init__(self, path: str | os.PathLike[str], options: Options) -> None:
        self.path, self._library = os.fspath(path), library()
        self.parameters, self.repacked = GgufParameters(self.path), options.repack
        self._lib, self._ffi = self._library.lib, self._library.ffi
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, options.repack
        self._library.errors.clear()
        self.pointer = self._lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if self.pointer == self._ffi.NULL:
            raise TraceError(f"{self.path}: llama.cpp does not load it: {self._why()}")
        if self._lib.llama_model_has_encoder(self.pointer):
            self.close()
            raise TraceError(f"{self.path}: has an encoder; only decoders are recorded")
        self._vocabulary = self._lib.llama_model_get_vocab(self.pointer)
        self.tokens = int(self._lib.llama_vocab_n_tokens(self._vocabulary))
        self.stop_tokens = [token for token in range(self.tokens) if self.stops(token)]

    def _why(self) -> str:
        return (self._library.errors or ["it does not say why"])[0]

    def close(self) -> None:
        """Free it."""
        self._lib.llama_model_free(self.pointer)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it read as such. Raises TraceError where it has none."""
        raw = text.encode()
        room = len(raw) + 16
        buffer = self._ffi.new("llama_token[]", room)
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), buffer, room, True, True)
        if count <= 0:
            raise TraceError(f"{self.path}: makes no token of the prompt; give a longer one")
        return [int(token) for token in buffer[0:count]]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written."""
        return b"".join(map(self._piece, tokens)).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        """The bytes of a token, which need be no whole characters."""
        room = FEW_BYTES
        while True:
            buffer = self._ffi.new("char[]", room)
            count = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, True)
            if count >= 0:
                return bytes(self._ffi.buffer(buffer, count)[:])
            room = -count

    def stops(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    @contextmanager
    def context(self, options: Options, positions: int, taps: Taps | None) -> Iterator[Any]:
        """llama.cpp's context for so many positions. Raises TraceError where it cannot be made."""
        params = self._lib.llama_context_default_params()
        params.n_ctx = options.context or positions
        params.n_batch, params.n_ubatch = options.batch, min(options.batch, options.micro_batch)
        params.n_threads = params.n_threads_batch = options.threads
        params.flash_attn_type = FLASH[options.flash_attention]
        params.type_k = params.type_v = CACHE_TYPES[options.cache_type]
        if taps is not None:
            params.cb_eval, params.cb_eval_user_data = taps.callback, taps.state
        self._library.errors.clear()
        pointer = self._lib.llama_init_from_model(self.pointer, params)
        if pointer == self._ffi.NULL:
            raise TraceError(f"{self.path}: llama.cpp makes no context: {self._why()}")
        try:
            yield pointer
        finally:
            self._lib.llama_free(pointer)

    def keep(self, context: Any, positions: int) -> None:
        """Take all but the first positions out of a context's cache. Raises TraceError where that cannot be done."""
        memory = self._lib.llama_get_memory(context)
        if not self._lib.llama_memory_seq_rm(memory, 0, positions, -1):
            raise TraceError(f"{self.path}: llama.cpp cannot keep {positions} positions of this model's cache")

    def decode(self, context: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One call of `llama_decode`, and the logits of its last token, f32 [vocabulary], a copy."""
        held = self._ffi.new("llama_token[]", list(tokens))
        batch = self._ffi.new("struct llama_batch *")
        batch.n_tokens, batch.token = len(tokens), held
        self._library.errors.clear()
        code = self._lib.llama_decode(context, batch[0])
        if code:
            raise TraceError(f"{self.path}: llama.cpp ends the computation with {code}: {self._why()}")
        logits = self._ffi.buffer(self._lib.llama_get_logits_ith(context, -1), self.tokens * 4)
        return np.frombuffer(logits, np.float32).copy()


def record(
    model: str | os.PathLike[str] | Model,
    out: str | os.PathLike[str],
    *,
    prompt: str | Sequence[int],
    options: Options | None = None,
    taps: MakeTaps = Taps,
    **settings: Any,
) -> Generated:
    """A generation of llama.cpp, which is recorded into the archive `out`; of several requests, the last one.

    Args:
        model: a GGUF file, or one that is loaded already.
        out: the archive (`.h5`).
        prompt: a text, or token ids.
        options: how the model is run and how much is recorded.
        taps: makes what copies values while they are computed.
        settings: fields of `Options`, in place of `options`.

    Raises:
        TraceError: the library is missing or of an unknown build, an option is not valid, the model cannot be loaded,
            or `out` cannot be written.
    """
    options = options or Options(**settings)
    target = Path(out)
    try:
        log = begin_anew(target, options.follow)
        log.unlink(missing_ok=True)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}") from None
    followed = None if options.follow is None else _tokens_of(options.follow)
    with _loaded(model, options) as loaded:
        ids = loaded.ids(prompt) if isinstance(prompt, str) else _checked(loaded, prompt)
        with LogWriter(log) as writer:
            _open(writer, loaded, options)
            done = _generate(loaded, writer, ids, prompt, options, followed, taps)
    finish(writer, target)
    return done


def generate(
    model: str | os.PathLike[str] | Model,
    *,
    prompt: str | Sequence[int],
    options: Options | None = None,
    **settings: Any,
) -> Generated:
    """The same generation without recording it. Arguments and errors are those of `record`."""
    options = options or Options(**settings)
    with _loaded(model, options) as loaded:
        ids = loaded.ids(prompt) if isinstance(prompt, str) else _checked(loaded, prompt)
        return _generate(loaded, None, ids, prompt, options, None)


@contextmanager
def _loaded(model: str | os.PathLike[str] | Model, options: Options) -> Iterator[Model]:
    """A model; one that is loaded here is freed again. Raises TraceError where a loaded one holds its weights in
    another order than the options say."""
    if isinstance(model, Model):
        if model.repacked != options.repack:
            raise TraceError(f"{model.path}: was loaded with repack={model.repacked}; load it as it shall run")
        yield model
        return
    loaded = Model(model, options)
    try:
        yield loaded
    finally:
        loaded.close()


def _checked(model: Model, ids: Sequence[int]) -> list[int]:
    """Token ids that the model has. Raises TraceError where one of them is none, or there is none."""
    out = [int(token) for token in ids]
    wrong = next((token for token in out if not 0 <= token < model.tokens), None)
    if wrong is not None or not out:
        said = "the prompt is empty" if wrong is None else f"{wrong} is no token id of its {model.tokens}"
        raise TraceError(f"{model.path}: {said}; give ids of this model's vocabulary")
    return out


def _tokens_of(path: str) -> list[int]:
    with tracekit.open(path) as trace:
        return [int(token) for token in trace.sequences[0].tokens] if trace.sequences else []


def _open(writer: LogWriter, model: Model, options: Options) -> None:
    """The first frame: what runs, and what of."""
    rows = [
        {"name": name, "dtype": model.parameters.dtype(name), "shape": list(model.parameters.shape(name))}
        for name in model.parameters.names
    ]
    writer.open(
        IMPLEMENTATION,
        versions=library().versions,
        device="cpu",
        dtype="float32",
        model=model.parameters.config,
        checkpoint=str(Path(model.path).resolve()),
        command={"argv": sys.argv, "cwd": str(Path.cwd())},
        seed=options.seed,
        recorder=options.as_json(),
        arithmetic=stated(model.parameters, options),
        weights=rows,
        follow=None if options.follow is None else _follows(options.follow),
    )


def _follows(path: str) -> Json:
    return {"trace": path, "tokens": True, "draws": False, "inputs": False, "follower": "tracekit_llama_cpp"}


def _generate(
    model: Model,
    writer: LogWriter | None,
    ids: list[int],
    prompt: str | Sequence[int],
    options: Options,
    followed: list[int] | None,
    make: MakeTaps = Taps,
) -> Generated:
    """The tokens of a generation; with a writer, recorded."""
    used = library()
    taps = None
    if writer is not None and options.level in ("layers", "all"):
        nodes = Nodes(used, model.parameters.architecture, model.parameters.file_names)
        taps = make(used, nodes, writer, options)
    with model.context(options, len(ids) + options.max_new_tokens, taps) as context:
        for index in range(options.requests):
            kept = min(options.keep_prefix, len(ids) - 1) if index else 0
            if index:
                model.keep(context, kept)
            if taps is not None:
                taps.sequence = index
            chain = Chain(used, options)
            try:
                steps = _Steps(model, writer, chain, options, followed, index)
                steps.begin(ids, prompt)
                done = steps.run(context, ids, taps, kept)
            finally:
                chain.close()
    return done


class _Steps:
    """The loop of a generation."""

    def __init__(
        self,
        model: Model,
        writer: LogWriter | None,
        chain: Chain,
        options: Options,
        followed: list[int] | None,
        sequence: int,
    ) -> None:
        self._model, self._writer, self._chain = model, writer, chain
        self._options, self._followed, self._sequence = options, followed, sequence
        self._told = 0  # steps whose token was forced

    def begin(self, ids: list[int], prompt: str | Sequence[int]) -> None:
        if self._writer is None:
            return
        text = prompt if isinstance(prompt, str) else None
        self._writer.sequence(
            self._sequence,
            {"prompt/token_ids": np.array(ids, dtype=np.int64)},
            prompt_text=text,
            sampling=self._options.sampling(self._model.stop_tokens),
            seed=self._options.seed,
        )

    def run(self, context: Any, ids: list[int], taps: Taps | None, kept: int = 0) -> Generated:
        """`kept`: positions of the prompt that the cache holds already."""
        tokens = list(self.each(context, ids, taps, kept))
        reason = "stop" if self._model.stops(tokens[-1]) else "length"
        if self._writer is not None:
            followed = None if self._followed is None else {"tokens": self._told}
            self._writer.end_sequence(self._sequence, len(tokens), reason, followed=followed)
        return Generated(tuple(ids), tuple(tokens), self._model.text(tokens), reason)

    def each(self, context: Any, ids: list[int], taps: Taps | None, kept: int = 0) -> Iterator[int]:
        """The tokens one by one, each computed when it is asked for."""
        logits = None
        for first in range(kept, len(ids), self._options.batch):
            logits = self._decode(context, ids[first : first + self._options.batch], first, taps)
        for step in range(self._limit):
            assert logits is not None
            position = len(ids) + step - 1
            choice = self._chain.choose(logits)
            token, told = choice.token, self._forced(step)
            events = list(choice.events)
            if told is not None:
                self._told += 1
                if told != token:
                    events.append({"kind": "forced", "detail": {"instead_of": token}})
                token = told
            self._chain.accept(token)
            self._write(step, position, token, logits, choice, events)
            yield token
            if self._model.stops(token):
                return
            if step + 1 < self._limit:
                logits = self._decode(context, [token], position + 1, taps)

    @property
    def _limit(self) -> int:
        most = self._options.max_new_tokens
        return most if self._followed is None else min(most, len(self._followed)) or most

    def _forced(self, step: int) -> int | None:
        given = self._followed
        return given[step] if given is not None and step < len(given) else None

    def _decode(self, context: Any, tokens: Sequence[int], position: int, taps: Taps | None) -> NDArray[np.float32]:
        if taps is not None:
            taps.batch(position, tokens)
        logits = self._model.decode(context, tokens)
        if taps is not None:
            taps.done()
        return logits

    def _write(
        self, step: int, position: int, token: int, logits: NDArray[np.float32], choice: Any, events: list[Json]
    ) -> None:
        if self._writer is None:
            return
        tensors: dict[str, NDArray[Any]] = {} if self._options.level == "tokens" else {"logits": logits}
        if choice.ids is not None:
            tensors |= {"survivors/id": choice.ids, "survivors/prob": choice.probs}
            tensors["draw/value"] = np.array(choice.values, dtype=np.float64)
        self._writer.step(
            self._sequence,
            step,
            position,
            token,
            tensors,
            text=self._model.text([token]),
            draws=choice.draws or None,
            events=events or None,
        )
