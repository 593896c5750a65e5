"""Causal language models of transformers: `generate`, and loops that call the model themselves.

In `generate`, a step is what happens between two forward calls: the logits processors are called, a token is drawn or
the largest score taken, and the stopping criteria are called with the new token. Those three calls are watched at class
level, and `_sample`, which greedy search and sampling share, for the beginning and the end of the sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tracekit.trace import Json
from tracekit_torch import describe
from tracekit_torch.adapters.causal_calls import (
    NOT_DRAWN,
    cache_length,
    is_largest,
    left_padding,
    output_logits,
    write_call,
)
from tracekit_torch.adapters.causal_loop import CausalLoop
from tracekit_torch.adapters.processors import Stage
from tracekit_torch.draws import Drawn
from tracekit_torch.recorder import Choice, Recorder, Row, generator_state, rows_of, survivors


def knows(module: nn.Module) -> bool:
    """Whether `module` is a causal language model of transformers."""
    config = getattr(module, "config", None)
    generates = hasattr(module, "generate") and hasattr(module, "get_output_embeddings")
    if not generates or config is None or getattr(config, "is_encoder_decoder", False):
        return False
    return isinstance(head_of(module), nn.Module)


def head_of(module: nn.Module) -> nn.Module | None:
    """The module that makes the logits."""
    head = module.get_output_embeddings()  # type: ignore[operator]
    return head if isinstance(head, nn.Module) else None


class Generation:
    """One call of `generate`: a sequence for each row of its batch."""

    def __init__(
        self, recorder: Recorder, model: nn.Module, input_ids: torch.Tensor, settings: Any, arguments: Json
    ) -> None:
        self.processors = arguments["logits_processor"]
        self.criteria = arguments["stopping_criteria"]
        self.rows: list[Row] = []
        self._recorder = recorder
        self._model = model
        self._settings = settings
        self._logits: torch.Tensor | None = None
        self._scores: torch.Tensor | None = None
        self._chain: list[Stage] = []
        self._drawn: list[Drawn] = []
        self._natural: list[int] | None = None
        self._call_first = 0
        self._begin(input_ids, arguments)

    @property
    def goes_on(self) -> bool:
        """Whether a row still asks for tokens."""
        return any(row.reason is None for row in self.rows)

    def _begin(self, input_ids: torch.Tensor, arguments: Json) -> None:
        recorder = self._recorder
        embeds = arguments.get("inputs_embeds")
        without_ids = input_ids.shape[1] == 0 and embeds is not None
        length = embeds.shape[1] if without_ids and embeds is not None else input_ids.shape[1]
        mask = arguments.get("attention_mask")
        # Going on from a cache, only the new tokens may be given; the mask covers the old ones too.
        covered = getattr(self._settings, "_mask_length", length) if mask is None else mask.shape[-1]
        cached = max(0, covered - length) if cache_length(arguments) else 0
        paddings = left_padding(mask, input_ids.shape[0])
        state = generator_state()
        settings = describe.sampling(self._settings)
        for index, ids in enumerate(rows_of(input_ids)):
            padding = paddings[index]
            row = recorder.new_row(padding, cached + length - padding)
            inputs = {"inputs_embeds": embeds[index, padding:]} if without_ids and embeds is not None else {}
            self.rows.append(row)
            recorder.begin_sequence(
                row,
                None if without_ids else ids[max(0, padding - cached) :],
                inputs,
                state,
                sampling=settings,
                row=index,
            )

    # ---------------------------------------------------------------- calls

    def begin_call(self, arguments: Json) -> None:
        """The model is called with [batch, time] token ids or embeddings."""
        taps = self._recorder.taps
        value = arguments.get("input_ids")
        value = arguments.get("inputs_embeds") if value is None else value
        if taps is None or value is None or value.shape[0] != len(self.rows):
            return
        self._call_first = cache_length(arguments)
        taps.begin(value.shape[0], value.shape[1])

    def write(self) -> None:
        """Write what the taps hold of the current call."""
        taps = self._recorder.taps
        if taps is not None and taps.call is not None:
            write_call(self._recorder, self.rows, self._call_first, taps.call.time)
            taps.memory.clear()

    def end_call(self, output: Any) -> None:
        """The model has answered: its last logits are those of the step to come."""
        taps = self._recorder.taps
        if taps is None or taps.call is None:
            return
        call = taps.call
        logits = output_logits(output)
        if logits is not None:
            taps.logits_are(logits)
            if self._recorder.keeps_logits:
                self._logits = logits[:, -1].detach().to("cpu", copy=True)
        self.write()
        for row in self.rows:
            if row.reason is None:
                row.next_position = self._call_first + call.time - row.padding
        taps.end()

    # ---------------------------------------------------------------- the step between two calls

    def processed(self, scores: torch.Tensor, chain: list[Stage] | None = None) -> None:
        """The logits processors gave these scores [batch, vocabulary]; `chain` is what each of them left."""
        self._scores = scores
        self._chain = chain or []
        self._drawn = []
        self._natural = None

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """Something was drawn between two calls."""
        self._drawn.append(drawn)
        if self._is_token_draw(drawn):
            self._natural = [int(token) for token in drawn.result.reshape(-1).tolist()]
            return self._forced(drawn.result)
        return None

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """Greedy search took the largest of the processed scores."""
        if scores is not self._scores or result.numel() != len(self.rows):
            return None
        self._natural = [int(token) for token in result.reshape(-1).tolist()] if self._recorder.follow else None
        return self._forced(result)

    def stopped(self, input_ids: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """The stopping criteria saw `input_ids`, which end with the new tokens, and found the rows `done`."""
        tokens = [int(token) for token in input_ids[:, -1].tolist()]
        ends = [bool(end) for end in done.tolist()]
        for index, row in enumerate(self.rows):
            if row.reason is not None:
                continue
            if self._recorder.follow is not None and self._recorder.forced(row) is None:
                ends[index] = True  # the followed trace has no such sequence
                self._recorder.end_row(row, "left", "the followed trace has no tokens for it")
                continue
            self._recorder.write_step(row, self._choice(index, tokens[index]))
            if ends[index]:
                self._recorder.end_row(row, self._reason(tokens[index], input_ids))
            elif self._recorder.follow is not None and self._recorder.forced(row) is None:
                ends[index] = True
                self._recorder.end_row(row, "left", "the followed trace ends")
        self._logits = self._scores = None
        self._drawn, self._chain = [], []
        if self._recorder.follow is None:
            return done
        return torch.tensor(ends, dtype=done.dtype, device=done.device)

    def end(self, reason: str, detail: str | None = None) -> None:
        """`generate` is over."""
        for row in self.rows:
            self._recorder.end_row(row, reason, detail)
            fed = row.prompt_length + row.steps - 1
            if row.steps and row.next_position < fed and self._recorder.active:
                self._recorder.note(
                    f"{row.next_position} of {fed} positions of sequence {row.sequence} are recorded: how this version "
                    "of transformers calls the model is not understood"
                )

    def _is_token_draw(self, drawn: Drawn) -> bool:
        source = drawn.source
        return (
            drawn.op == "multinomial"
            and source is not None
            and source.dim() == 2
            and drawn.result.shape == (len(self.rows), 1)
        )

    def _choice(self, index: int, token: int) -> Choice:
        choice = Choice(token)
        choice.events += [stage.event(index) for stage in self._chain]
        if self._logits is not None:
            choice.logits = self._logits[index]
        for drawn in self._drawn:
            if self._is_token_draw(drawn):
                choice.draws.append(self._row_of(drawn, index))
                choice.values.append(None)
                if drawn.source is not None:
                    choice.survivors = survivors(drawn.source[index])
            else:
                choice.draws.append(drawn.as_json())
                choice.values.append(drawn.value)
        choice.own = None if self._natural is None else self._natural[index]
        if not self._drawn and self._recorder.follow is None and not is_largest(self._scores, index, token):
            choice.unseen = f"{NOT_DRAWN}, and it is not the largest of the processed scores"
        return choice

    def _row_of(self, drawn: Drawn, index: int) -> Json:
        """The part of a batch's draw that belongs to one row: the race takes two words a category, row after row."""
        result = self._natural[index] if self._natural is not None else None
        source = drawn.source
        if source is None or drawn.offset is None or drawn.generator != "mt19937" or not source.is_contiguous():
            return drawn.as_json(result)
        words = 2 * source.shape[1]
        return drawn.as_json(result, drawn.offset + words * index, words)

    def _forced(self, result: torch.Tensor) -> torch.Tensor | None:
        if self._recorder.follow is None:
            return None
        forced = result.clone()
        flat = forced.view(-1)
        for index, row in enumerate(self.rows):
            token = self._recorder.forced(row) if row.reason is None else None
            if token is not None:
                flat[index] = token
        return forced

    def _reason(self, token: int, input_ids: torch.Tensor) -> str:
        eos = describe.plain(self._settings.eos_token_id)
        stops = eos if isinstance(eos, list) else [eos]
        if token in stops:
            return "stop"
        limit = self._settings.max_length
        return "length" if limit is not None and input_ids.shape[1] >= limit else "stop"


class TransformersCausal:
    """Records a causal language model of transformers, in `generate` and in loops of the program's own."""

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        self._recorder = recorder
        self._model = model
        self._generation: Generation | None = None
        self._muted = False
        self._loop = CausalLoop(recorder, model)

    def begin(self, arguments: Json) -> None:
        """The model is called."""
        if self._muted:
            return
        if self._generation is not None:
            self._generation.begin_call(arguments)
        else:
            self._loop.begin_call(arguments)

    def end(self, output: Any) -> None:
        """The model has answered."""
        if self._muted:
            return
        if self._generation is not None:
            self._generation.end_call(output)
        else:
            self._loop.end_call(output)

    def write(self) -> None:
        """Write what the taps hold of the current call."""
        if self._generation is not None:
            self._generation.write()
        else:
            self._loop.write()

    def listening(self) -> bool:
        """Between two calls of a generation or a loop."""
        return not self._muted and (self._generation is not None or self._loop.waits_for_token)

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """Something was drawn."""
        return self._generation.drew(drawn) if self._generation is not None else self._loop.drew(drawn)

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """An argmax was taken."""
        if self._generation is not None:
            return self._generation.chose(scores, result)
        return self._loop.chose(scores, result)

    def finish(self, reason: str | None, detail: str | None) -> None:
        """The run is over."""
        if self._generation is not None:
            self._generation.end(reason or "left", detail)
        self._loop.finish(reason, detail)

    # ---------------------------------------------------------------- told by the watch on transformers

    def processed(self, processors: Any, scores: torch.Tensor, chain: list[Stage]) -> None:
        """A list of logits processors was called between two calls of the model; `chain` is what each of them left."""
        if self._generation is None:
            self._loop.processed(chain)
        elif processors is self._generation.processors:
            self._generation.processed(scores, chain)

    @property
    def generation(self) -> Generation | None:
        """The generation that goes on."""
        return self._generation

    def begin_generation(self, model: nn.Module, arguments: Json) -> bool:
        """`_sample` begins on `model`; False where that is none of ours or already goes on."""
        if model is not self._model or self._generation is not None or self._muted:
            return False
        self._loop.finish(None, None)
        input_ids = arguments["input_ids"]
        self._generation = Generation(self._recorder, model, input_ids, arguments["generation_config"], arguments)
        return True

    def end_generation(self, reason: str, detail: str | None = None) -> None:
        """`_sample` is over."""
        generation, self._generation = self._generation, None
        if generation is not None:
            generation.end(reason, detail)

    def mute(self, muted: bool) -> None:
        """Leave out calls of a decoding method whose steps cannot be told apart."""
        self._muted = muted
