"""CosyVoice's speech-token language models, `CosyVoice3LM` and `Qwen2LM`.

One segment of text is one sequence. Its input is rows of two embedding tables, which `inference` puts together; the
Qwen2 inside runs over them, `llm_decoder` makes the logits, and `sampling_ids` draws. What the Qwen2's own head gives
is not used and not recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tracekit.extra.cosyvoice3.speech import SILENT
from tracekit.inspection.sanity import UNSEEN
from tracekit.trace import NO_TOKEN, Json
from tracekit_torch.adapter import Choice, Row
from tracekit_torch.adapters.causal_calls import NOT_DRAWN, cache_length, is_largest
from tracekit_torch.adapters.ras_step import RasStep, sampling_numbers
from tracekit_torch.adapters.speech_models import silent_tokens
from tracekit_torch.adapters.speech_rows import InputRow, Run, Vocabulary, runs
from tracekit_torch.adapters.speech_segment import Segment
from tracekit_torch.draws import Drawn
from tracekit_torch.patching import Hook
from tracekit_torch.recorder import Recorder, as_tensor, generator_state

SPECIAL = ("sos", "eos_token", "task_id", "fill_token")
NOT_CALLED = "sampling_ids was not called, or is not the class's own"
"""Why a draw was not seen."""


class CosyVoice:
    """Records `inference`, `inference_wrapper` and `inference_bistream` of a speech-token language model."""

    def __init__(self, recorder: Recorder, model: Any) -> None:
        self._recorder = recorder
        self._model = model
        self._inner = model.llm.model
        self._text: Any = self._inner.get_input_embeddings()
        self._speech: Any = model.speech_embedding
        self.head: nn.Module = model.llm_decoder
        """The module that makes the logits."""
        stops = getattr(model, "stop_token_ids", None) or [int(model.eos_token)]
        self._stops = [int(token) for token in stops]
        self._names = {getattr(model, name, None): f"<{name.removesuffix('_token')}>" for name in SPECIAL}
        self._segments: list[Segment] = []
        self._inside: tuple[int, Segment] | None = None
        """The thread and the segment that compute."""
        self._lock = threading.RLock()

    def listen(self) -> None:
        """Hook the modules that a segment calls."""
        held = self._recorder.hold
        held(self._inner.register_forward_pre_hook(Hook(self._before_inner), with_kwargs=True, prepend=True))
        held(self.head.register_forward_hook(Hook(self._after_decoder)))
        for module, vocabulary in ((self._text, Vocabulary.TEXT), (self._speech, Vocabulary.SPEECH)):
            if module is not None:
                held(module.register_forward_pre_hook(Hook(self._looking_up(vocabulary))))

    # ---------------------------------------------------------------- as the recorder wants it

    def begin(self, arguments: Json) -> None:
        """The model's own forward is training: not recorded."""

    def end(self, output: Any) -> None:
        """As `begin`."""

    def write(self) -> None:
        """Write what the taps hold of the current call."""
        taps, segment = self._recorder.taps, self._current
        if taps is None or taps.call is None or segment is None or segment.row is None:
            return
        self._recorder.write_sites()
        if segment.row.reason is None:
            self._recorder.write_call(segment.row, segment.first, 0, 0)
        taps.memory.clear()

    def listening(self) -> bool:
        """Inside `sampling_ids`."""
        return self._current is not None and self._current.step is not None

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """Something was drawn for a token."""
        if self._current is not None and self._current.step is not None:
            self._current.step.drew(drawn)
        return None

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """An argmax says nothing here: `sampling_ids` does."""
        return None

    def finish(self, reason: str | None, detail: str | None) -> None:
        """The run is over: segments that were neither left nor finished."""
        for segment in self._segments:
            self._end(segment, reason or "left", detail or "the program ended")
        self._segments = []

    # ---------------------------------------------------------------- segments

    def begin_segment(self, arguments: Json) -> Segment | None:
        """A generation begins; None where it is a part of the one that goes on."""
        if self._current is not None:
            self._note_limits(self._current, arguments)
            return None
        segment = Segment(arguments)
        self._segments.append(segment)
        return segment

    @contextmanager
    def inside(self, segment: Segment) -> Iterator[None]:
        """`segment` computes its next token inside the block; other threads wait for theirs."""
        with self._lock:
            before, self._inside = self._inside, (threading.get_ident(), segment)
            try:
                yield
            finally:
                self._inside = before
                self._recorder.drawing = segment.step = None
                if self._recorder.taps is not None:
                    self._recorder.taps.call = None

    @property
    def _current(self) -> Segment | None:
        """The segment that computes in this thread."""
        inside = self._inside
        return inside[1] if inside is not None and inside[0] == threading.get_ident() else None

    def ended(self, segment: Segment) -> None:
        """The generation came to its end."""
        row = segment.row
        if row is None:
            self._uncalled(segment)
        elif segment.answered:
            self._lost(segment, "the last token was not seen: sampling_ids was not called for it")
        elif segment.last in self._stops:
            self._end(segment, "stop", f"stop token {segment.last} at step {row.steps - 1}")
        elif segment.max_len is not None and row.steps >= segment.max_len:
            self._end(segment, "length", f"max_len {segment.max_len}")
        else:
            self._end(segment, "left", "the generation ended without a stop token")
        self._forget(segment)

    def left(self, segment: Segment, reason: str, detail: str) -> None:
        """The generation was left early, or failed."""
        if segment.row is None:
            self._uncalled(segment)
        self._end(segment, reason, detail)
        self._forget(segment)

    def _uncalled(self, segment: Segment) -> None:
        """Tokens that came without a call of the model in this process."""
        if segment.given:
            self._recorder.missed("the program never called the model inside, as with vLLM", segment.given)

    def _lost(self, segment: Segment, why: str) -> None:
        """A token that cannot be known: the sequence ends before it."""
        self._recorder.missed(why)
        self._end(segment, UNSEEN, why)

    def gave(self, segment: Segment, token: Any) -> None:
        """The generation gave `token` to its caller."""
        segment.given += 1
        if not segment.answered or segment.row is None or segment.row.reason is not None:
            return
        number = _whole_number(token)
        if number is None:
            self._lost(segment, f"{NOT_CALLED}, and the generation gives {type(token).__name__}, not token ids")
        else:
            self._write_step(segment, Choice(number, unseen=NOT_CALLED))

    def _end(self, segment: Segment, reason: str, detail: str) -> None:
        if segment.row is not None:
            with self._lock:
                self._recorder.end_row(segment.row, reason, detail)

    def _forget(self, segment: Segment) -> None:
        if segment in self._segments:
            self._segments.remove(segment)

    @staticmethod
    def _note_limits(segment: Segment, arguments: Json) -> None:
        for name in ("min_len", "max_len"):
            if isinstance(arguments.get(name), int):
                setattr(segment, name, arguments[name])

    # ---------------------------------------------------------------- calls

    def _looking_up(self, vocabulary: Vocabulary) -> Any:
        def looking_up(module: Any, args: tuple[Any, ...]) -> None:
            segment = self._current
            if segment is not None and args and isinstance(args[0], torch.Tensor) and not args[0].is_floating_point():
                ids = [int(token) for token in args[0].reshape(-1).tolist()]
                self._recorder.guarded(segment.known.add, module.weight, vocabulary, ids)

        return looking_up

    def _before_inner(self, _: nn.Module, args: tuple[Any, ...], kwargs: Json | None = None) -> None:
        rows = (kwargs or {}).get("inputs_embeds")
        if self._current is not None and isinstance(rows, torch.Tensor) and self._recorder.active:
            self._recorder.guarded(self._begin_call, self._current, rows, cache_length(kwargs or {}) or 0)

    def _begin_call(self, segment: Segment, rows: torch.Tensor, first: int) -> None:
        """The Qwen2 inside is called with `rows` [1, time, width], the first at position `first`."""
        taps = self._recorder.taps
        if taps is None or rows.shape[0] != 1:
            return
        if segment.answered:
            self._unsampled(segment, rows)
        segment.first = first
        if self._is_last_token(segment, rows):
            taps.begin(1, 1)
            taps.keep(self._speech, rows)
            return
        labels = self._labels(segment, rows[0])
        if segment.row is None:
            self._begin_sequence(segment, labels)
        else:
            segment.fed = _fed(first, labels)
        self._write_lookups(segment, rows[0], labels)
        taps.begin(1, rows.shape[1])

    def _is_last_token(self, segment: Segment, rows: torch.Tensor) -> bool:
        """Whether `rows` is nothing but the token that was chosen last."""
        if rows.shape[1] != 1 or segment.row is None or segment.last is None:
            return False
        return torch.equal(rows[0, 0], self._speech.weight[segment.last])

    def _labels(self, segment: Segment, rows: torch.Tensor) -> list[InputRow]:
        """What each of `rows` [time, width] is."""
        known, table = segment.known, self._speech.weight
        reserved = range(int(self._model.speech_token_size), table.shape[0])
        known.add(table, Vocabulary.SPEECH, [*reserved, *segment.parts.get("speech_token_ids", [])])
        if self._text is not None:
            written = segment.parts.get("prompt_text_token_ids", []) + segment.parts.get("tts_text_token_ids", [])
            known.add(self._text.weight, Vocabulary.TEXT, written)
        named = getattr(self._model, "llm_embedding", None)  # CosyVoice2 has sos and task id in a table of their own
        if isinstance(named, nn.Embedding):
            for name in ("sos", "task_id"):
                row = InputRow(Vocabulary.NEITHER, NO_TOKEN, f"<{name}>")
                known.add_named(named.weight[int(getattr(self._model, name))], row)
        return known.of(rows)

    def _write_lookups(self, segment: Segment, rows: torch.Tensor, labels: list[InputRow]) -> None:
        """The rows [time, width] as what the two embeddings gave; they ran before the call, or were indexed."""
        taps, row = self._recorder.taps, segment.row
        if taps is None or row is None or row.reason is not None:
            return
        tables = {Vocabulary.TEXT: self._text, Vocabulary.SPEECH: self._speech}
        names = {kind: taps.declare(module) for kind, module in tables.items() if module is not None}
        self._recorder.write_sites()
        for run in runs(labels):
            name = names.get(run.vocabulary)
            if name is not None:
                self._write_run(row, segment.first, run, name, rows)

    def _write_run(self, row: Row, first: int, run: Run, name: str, rows: torch.Tensor) -> None:
        values = as_tensor(rows[run.first : run.stop])
        self._recorder.writer.call(row.sequence, first + run.first, run.stop - run.first, {name: values})

    def _after_decoder(self, _: nn.Module, args: Any, output: Any) -> None:
        taps = self._recorder.taps
        if self._current is not None and taps is not None and taps.call is not None and self._recorder.active:
            self._recorder.guarded(self._end_call, self._current, output)

    def _end_call(self, segment: Segment, output: torch.Tensor) -> None:
        """`llm_decoder` gave `output` [..., V]: its last row is the logits of the step to come."""
        taps, row = self._recorder.taps, segment.row
        if taps is None or taps.call is None or row is None:
            return
        taps.mark_logits()
        if self._recorder.keeps_logits:
            segment.logits = output.detach().reshape(-1, output.shape[-1])[-1].to("cpu", copy=True)
        self.write()
        row.next_position = segment.first + taps.call.time
        taps.end()
        segment.answered = True

    # ---------------------------------------------------------------- steps

    def begin_step(self, scores: torch.Tensor, decoded: Any) -> None:
        """`sampling_ids` is called with log-probabilities [V] and the tokens so far."""
        segment = self._current
        if segment is not None and segment.row is not None and segment.answered:
            numbers = sampling_numbers(self._model.sampling)
            segment.step = RasStep(scores.detach().reshape(-1), list(decoded), numbers)
            self._recorder.drawing = segment.row

    def took(self, token: int) -> int | None:
        """`sampling_ids` gave `token`. What is returned replaces it (when another trace is followed)."""
        segment = self._current
        if segment is None or segment.step is None or segment.row is None or segment.row.reason is not None:
            return None
        step, segment.step = segment.step, None
        choice = Choice(token, survivors=step.survivors, draws=step.draws, values=step.values, events=step.events())
        choice.own = token
        if not step.draws and not is_largest(step.scores.unsqueeze(0), 0, token):
            choice.unseen = f"{NOT_DRAWN}, and it is not the most probable one"
        forced = self._recorder.forced(segment.row)
        if forced is not None:
            choice.token = forced
        elif forced is None and self._recorder.follow is not None:
            self._end(segment, "left", "the followed trace ends")
            return self._stops[0]
        self._write_step(segment, choice)
        return forced

    def _unsampled(self, segment: Segment, rows: torch.Tensor) -> None:
        """The model is called again with `rows` [1, time, width] and no sampling was seen. Where text comes in pieces
        and more of it is fed, the program has set the fill token; else a token was chosen in another way."""
        if self._recorder.taps is None or segment.row is None or segment.row.reason is not None:
            return
        fill, token = getattr(self._model, "fill_token", None), self._fed_token(rows)
        if (
            fill is not None
            and segment.streams
            and (token is None or token == fill)
            and self._feeds_text(segment, rows)
        ):
            self._write_step(segment, Choice(int(fill), events=[{"kind": "fill", "detail": None}]))
        elif token is not None:
            self._write_step(segment, Choice(token, unseen=NOT_CALLED))
        else:
            self._lost(segment, f"{NOT_CALLED}, and what is fed next is no row of speech_embedding")

    def _fed_token(self, rows: torch.Tensor) -> int | None:
        """The speech token whose embedding is all of `rows`; None where it is none, or more than one has that row."""
        if rows.shape[1] != 1:
            return None
        same = (self._speech.weight == rows[0, 0]).all(dim=-1).nonzero()
        return int(same) if same.numel() == 1 else None

    def _feeds_text(self, segment: Segment, rows: torch.Tensor) -> bool:
        """Whether a text token is among `rows`, or the task id that follows the last one."""
        task = int(getattr(self._model, "task_id", NO_TOKEN))
        labels = self._labels(segment, rows[0])
        fill = int(getattr(self._model, "fill_token", NO_TOKEN))
        return any(
            label.vocabulary is Vocabulary.TEXT or label.name == "<task_id>" or label.token in (task, fill)
            for label in labels
        )

    def _write_step(self, segment: Segment, choice: Choice) -> None:
        row = segment.row
        if row is None:
            return
        choice.logits = segment.logits
        choice.position = row.next_position - 1
        choice.text = self._speech_text(choice.token)
        if segment.fed is not None:
            choice.events.insert(0, {"kind": "input", "detail": segment.fed})
        segment.last, segment.answered, segment.logits, segment.fed = choice.token, False, None, None
        self._recorder.write_step(row, choice)

    def _speech_text(self, token: int) -> str:
        if token < int(self._model.speech_token_size):
            return f"<speech {token}>"
        return self._names.get(token) or f"<stop {token}>"

    # ---------------------------------------------------------------- the beginning

    def _begin_sequence(self, segment: Segment, labels: list[InputRow]) -> None:
        recorder, parts = self._recorder, segment.parts
        segment.row = recorder.new_row(0, len(labels))
        silent = silent_tokens(self._model)
        inputs = {name: torch.tensor(ids, dtype=torch.int64) for name, ids in parts.items()}
        inputs["vocabulary"] = torch.tensor([int(label.vocabulary) for label in labels], dtype=torch.uint8)
        written = parts.get("prompt_text_token_ids", []), parts.get("tts_text_token_ids", [])
        limits = {"min_len": segment.min_len, "max_len": segment.max_len, "stop_token_ids": self._stops}
        recorder.begin_sequence(
            segment.row,
            [label.token for label in labels],
            inputs,
            generator_state(),
            sampling=sampling_numbers(self._model.sampling)
            | {name: value for name, value in limits.items() if value is not None},
            prompt_text=recorder.texts.text(written[0] + written[1]),
            texts=[self._row_text(label) for label in labels],
            prompt_part=recorder.texts.text(written[0]),
            tts_text=recorder.texts.text(written[1]) if "tts_text_token_ids" in parts else None,
            segment=segment.row.sequence,
            **({} if silent is None else {SILENT: silent}),
        )

    def _row_text(self, label: InputRow) -> str | None:
        if label.name is not None:
            return label.name
        if label.vocabulary is Vocabulary.SPEECH:
            return self._speech_text(label.token)
        return self._recorder.texts.token(label.token)


def _whole_number(value: Any) -> int | None:
    if isinstance(value, torch.Tensor):
        return int(value) if value.numel() == 1 and not value.is_floating_point() else None
    return int(value) if isinstance(value, int) else None


def _fed(first: int, labels: list[InputRow]) -> Json:
    """Rows that go in at position `first` on, as an `input` event has them."""
    return {
        "position": first,
        "token_ids": [label.token for label in labels],
        "vocabulary": [int(label.vocabulary) for label in labels],
    }
