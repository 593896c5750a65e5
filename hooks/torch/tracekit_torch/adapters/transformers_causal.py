"""Language models of transformers: `generate`, and loops that call the model themselves.

In `generate`, a step is what happens between two forward calls: the logits processors are called, a token is drawn or
the largest score taken, and the stopping criteria are called with the new token. Those three calls are watched at class
level, and `_sample`, which greedy search and sampling share, for the beginning and the end of the sequences. Of an
encoder-decoder the sequence is the decoder's; what the encoder computed before it is written to every sequence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tracekit.inspection.masked import PLACES
from tracekit.sampling.chain import chain as chain_of
from tracekit.trace import ENCODER, NO_TOKEN, Json
from tracekit_torch import describe
from tracekit_torch.adapter import About, Choice, Row
from tracekit_torch.adapters.causal_calls import (
    NOT_DRAWN,
    cache_length,
    fed_to,
    is_largest,
    left_padding,
    masked_prompt,
    output_logits,
    processed_survivors,
    write_call,
)
from tracekit_torch.adapters.causal_loop import CausalLoop
from tracekit_torch.adapters.encoder_runs import EncoderRun, encoded, encoder_axis
from tracekit_torch.adapters.given_beside import GivenBeside
from tracekit_torch.adapters.processors import Stage
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.draws import Drawn
from tracekit_torch.named_arguments import parameters_of
from tracekit_torch.patching import Hook
from tracekit_torch.recorder import BESIDE, Recorder, generator_state, rows_of, survivors
from tracekit_torch.rows import Axis


def knows(module: nn.Module) -> bool:
    """Whether `module` is a causal language model of transformers, or an encoder-decoder with one."""
    config = getattr(module, "config", None)
    generates = hasattr(module, "generate") and hasattr(module, "get_output_embeddings")
    if not generates or config is None:
        return False
    if getattr(config, "is_encoder_decoder", False) and encoder_of(module) is None:
        return False
    return isinstance(head_of(module), nn.Module)


def encoder_of(module: nn.Module) -> nn.Module | None:
    """The encoder of an encoder-decoder."""
    if not getattr(getattr(module, "config", None), "is_encoder_decoder", False) or not hasattr(module, "get_encoder"):
        return None
    encoder = module.get_encoder()  # type: ignore[operator]
    return encoder if isinstance(encoder, nn.Module) and encoder is not module else None


def about(module: nn.Module, *, replayable: bool) -> About:
    """What the trace says of the model. `replayable`: the trace says where the program ran."""
    return About(describe.model_config(module), describe.checkpoint(module, replayable), encoder=encoder_of(module))


def head_of(module: nn.Module) -> nn.Module | None:
    """The module that makes the logits."""
    head = module.get_output_embeddings()  # type: ignore[operator]
    return head if isinstance(head, nn.Module) else None


def _repeats(hidden: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether what the model is given is what the encoder gave, each row of it the same number of times."""
    if hidden is output:
        return True
    if hidden.dim() != output.dim() or hidden.shape[1:] != output.shape[1:] or hidden.shape[0] % output.shape[0]:
        return False
    return torch.equal(hidden, output.repeat_interleave(hidden.shape[0] // output.shape[0], dim=0))


MORE_FED = (
    "steps of a generation that feeds the model more positions than the tokens it has, as PEFT's virtual tokens where "
    "they are put in again at each step; call the model in a loop, or without them"
)


class Generation:
    """One call of `generate`: a sequence for each row of its batch."""

    def __init__(
        self,
        recorder: Recorder,
        model: nn.Module,
        input_ids: torch.Tensor,
        settings: Any,
        arguments: Json,
        encoding: EncoderRun | None = None,
        given: Json | None = None,
    ) -> None:
        """`given`: the arguments of the `generate` that this is of, where it was seen."""
        self.thread = threading.get_ident()
        self.processors = arguments["logits_processor"]
        self.criteria = arguments["stopping_criteria"]
        self.rows: list[Row] = []
        self._recorder = recorder
        self._model = model
        self._settings = settings
        self._logits: torch.Tensor | None = None
        self._scores: torch.Tensor | None = None
        self._chain: list[Stage] = []
        self._filtered = False
        """Whether the settings ask for logits processors; a step may have run none of them."""
        self._drawn: list[Drawn] = []
        self._natural: list[int] | None = None
        self._call_first = 0
        self._fed = 0
        """Positions of the batch that were fed so far, those of the cache that was given included."""
        self._known = 0
        """Positions of the batch whose tokens are known."""
        self._encoding = encoding
        self._spans: list[tuple[int, int]] | None = None
        self._write_beginning: Callable[[Json], None] | None = None
        self._begin(input_ids, arguments, arguments if given is None else given)

    def _begin(self, input_ids: torch.Tensor, arguments: Json, given: Json) -> None:
        recorder = self._recorder
        decoder = "decoder_" if encoder_of(self._model) is not None else ""
        embeds = arguments.get(f"{decoder}inputs_embeds")
        without_ids = input_ids.shape[1] == 0 and embeds is not None
        length = embeds.shape[1] if without_ids and embeds is not None else input_ids.shape[1]
        mask = arguments.get(f"{decoder}attention_mask")
        # Going on from a cache, only the new tokens may be given; the mask covers the old ones too.
        covered = getattr(self._settings, "_mask_length", length) if mask is None else mask.shape[-1]
        cached = max(0, covered - length) if not decoder and cache_length(arguments) != 0 else 0
        before = cache_length(arguments)
        self._fed = cached if before is None else before
        self._known = cached + length
        encoding, batch = self._encoding, input_ids.shape[0]
        if encoding is not None:
            each = batch // encoding.axis.batch
            self._spans = [span for span in encoding.spans() for _ in range(each)]
        paddings = left_padding(mask, batch)
        self.rows = [recorder.new_row(padding, cached + length - padding) for padding in paddings]
        stands = arguments.get(PLACES)  # in version 4, each call works them out
        state, settings, ids = generator_state(), describe.sampling(self._settings), rows_of(input_ids)
        self._filtered = bool(chain_of(settings))
        times = getattr(self._settings, "num_return_sequences", None) or 1
        beside = GivenBeside(self._model, {} if decoder else given, input_ids, cached, times)

        def write(call: Json) -> None:
            places = call.get(PLACES) if stands is None else stands
            vectors, masks, told = embeds if without_ids else None, mask, ids
            value, before = fed_to(call, bool(decoder)), max(0, (cache_length(call) or 0) - self._fed)
            wide = value is not None and value.is_floating_point() and value.shape[1] > length
            if value is not None and not without_ids and value.shape[0] == batch and (before or wide):
                # As PEFT puts virtual tokens before those that it is told, as embeddings or into the cache.
                vectors, masks = value if wide and not before else None, call.get(f"{decoder}attention_mask")
                more = before + value.shape[1] if wide else before
                told = [[NO_TOKEN] * more + ([] if wide else row) for row in ids]
                self._known = cached + more + (0 if wide else length)
                for row, padding in zip(self.rows, left_padding(masks, batch), strict=True):
                    row.padding, row.prompt_length = padding, self._known - padding
            for index, row in enumerate(self.rows):
                padding = row.padding
                inputs = {} if vectors is None else {"inputs_embeds": vectors[index, padding:]}
                inputs |= masked_prompt(masks, places, index, padding)
                inputs |= beside.of_row(index, padding, cached + length)
                if encoding is not None:
                    inputs |= encoding.prompt(index * encoding.axis.batch // batch)
                prompt = None if vectors is not None else told[index][max(0, padding - cached) :]
                recorder.begin_sequence(row, prompt, inputs, state, sampling=settings, row=index, **beside.metadata)
            if encoding is not None:
                recorder.write_sites()
                for index, row in enumerate(self.rows):
                    encoding.write(recorder, row, index * encoding.axis.batch // batch)

        self._write_beginning = write

    def _written(self, arguments: Json) -> None:
        """Write that the sequences begin: the first call says where their positions stand, and what is before them."""
        write, self._write_beginning = self._write_beginning, None
        if write is not None:
            write(arguments)

    # ---------------------------------------------------------------- calls

    def begin_call(self, arguments: Json) -> None:
        """The model is called with [batch, time] token ids or embeddings."""
        self._written(arguments)
        taps = self._recorder.taps
        encoder = encoder_of(self._model) is not None
        value = fed_to(arguments, encoder)
        if taps is None or value is None or value.shape[0] != len(self.rows):
            return
        time = value.shape[1]
        self._call_first = self._first_of(arguments, time)
        self._fed = self._call_first + time
        for row in self.rows:
            more = self._fed - row.padding - row.prompt_length - row.steps
            if more > 0 and row.reason is None:
                self._recorder.lost(MORE_FED)
                self._recorder.end_row(row, "left", f"{more} positions more than its tokens were fed")
        hidden = encoded(arguments) if encoder else None
        axis = None if hidden is None or hidden.dim() != 3 else Axis(hidden.shape[0], hidden.shape[1], name=ENCODER)
        if axis is not None and self._spans is None:
            self._spans = [(0, hidden.shape[1])] * len(self.rows) if hidden is not None else None
        taps.begin(value.shape[0], time, length=self._fed, encoder=axis)

    def _first_of(self, arguments: Json, time: int) -> int:
        """Position of the batch at which a call of `time` positions begins: what the cache holds, or, where it does not
        say, by what was fed: all that is known, the next part of the prompt, or the last token."""
        cached = cache_length(arguments)
        if cached:
            return cached
        known = self._known + max((row.steps for row in self.rows), default=0)
        if time >= known or (cached == 0 and self._fed == 0):
            return 0
        return self._fed if self._fed + time <= known else max(0, known - time)

    def write(self) -> None:
        """Write what the taps hold of the current call."""
        taps = self._recorder.taps
        if taps is not None and taps.call is not None:
            write_call(self._recorder, self.rows, self._call_first, taps.call.time, self._spans)
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
        self._written({})
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
        if choice.survivors is None and (self._chain or self._filtered) and self._scores is not None:
            choice.survivors = processed_survivors(self._scores, index)
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
        self._generation: Generation | None = None
        self._beginning = threading.Lock()
        self._loop = CausalLoop(recorder, model)
        self._loop.ran = self._ran
        self._encodes = encoder_of(model) is not None
        self._encoding: EncoderRun | None = None
        """The last run of the encoder by itself."""
        self._encoding_now: EncoderRun | None = None
        self._thread = threading.get_ident()

    def listen(self, model: nn.Module) -> None:
        """Hook the model's encoder, which `generate` calls by itself."""
        encoder = encoder_of(model)
        if encoder is not None:
            names = list(parameters_of(encoder))

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: Json | None = None) -> None:
                if kwargs is not None and self._recorder.active and not self.muted:
                    self._recorder.guarded(self._begin_encoder, dict(zip(names, args, strict=False)) | kwargs)

            def after(_: nn.Module, args: Any, output: Any) -> None:
                if self._recorder.active and not self.muted:
                    self._recorder.guarded(self._end_encoder, output)

            hold = self._recorder.hold
            hold(encoder.register_forward_pre_hook(Hook(before), with_kwargs=True, prepend=True))
            hold(encoder.register_forward_hook(Hook(after)))

    def _begin_encoder(self, arguments: Json) -> None:
        taps = self._recorder.taps
        if taps is None or self._of_another_thread:
            return
        taps.encoded = None
        if taps.call is not None:
            taps.call.inside_encoder = True
            return
        axis = encoder_axis(arguments)
        if axis is not None:
            self._encoding_now = EncoderRun(axis, arguments, arguments.get("attention_mask"))
            taps.begin_encoder(axis)

    def _end_encoder(self, output: Any) -> None:
        taps, run = self._recorder.taps, self._encoding_now
        if taps is None or taps.call is None or self._of_another_thread:
            return
        value = first_tensor(output)
        if value is not None:
            taps.encoded = (value, taps.site_of(value))
        taps.call.inside_encoder = False
        if run is not None:
            run.keep(self._recorder)
            run.output = value
            self._encoding, self._encoding_now = run, None
            taps.end()

    def begin(self, arguments: Json) -> None:
        """The model is called."""
        if self._of_another_thread:
            return
        self._thread = threading.get_ident()
        if self._generation is not None:
            self._generation.begin_call(arguments)
        else:
            self._loop.begin_call(arguments)

    def end(self, output: Any) -> None:
        """The model has answered."""
        if self.muted or self._of_another_thread:
            return
        if self._generation is not None:
            self._generation.end_call(output)
        else:
            self._loop.end_call(output)

    @property
    def _of_another_thread(self) -> bool:
        """Whether this thread runs the model while another one's generation or call goes on; said once."""
        taps = self._recorder.taps
        call = None if taps is None else taps.call
        busy = self._generation.thread if self._generation is not None else None if call is None else call.thread
        if busy is None or busy == threading.get_ident():
            return False
        self._recorder.lost(BESIDE)
        return True

    def write(self) -> None:
        """Write what the taps hold of the current call."""
        if self._encoding_now is not None:
            self._encoding_now.keep(self._recorder)
            if self._recorder.taps is not None:
                self._recorder.taps.memory.clear()
        elif self._generation is not None:
            self._generation.write()
        else:
            self._loop.write()

    def listening(self) -> bool:
        """Between two calls of a generation or a loop."""
        if self._generation is not None:
            return not self.muted and self._generation.thread == threading.get_ident()
        return not self.muted and self._loop.waits_for_token and self._thread == threading.get_ident()

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
        self._loop.finish_all(reason, detail)

    # ---------------------------------------------------------------- told by the watch on transformers

    def processed(self, processors: Any, scores: torch.Tensor, chain: list[Stage]) -> None:
        """A list of logits processors was called between two calls of the model; `chain` is what each of them left."""
        if self._generation is None:
            self._loop.processed(scores, chain)
        elif processors is self._generation.processors:
            self._generation.processed(scores, chain)

    @property
    def generation(self) -> Generation | None:
        """The generation that goes on."""
        return self._generation

    def begin_generation(self, model: nn.Module, arguments: Json, given: Json | None = None) -> bool:
        """`_sample` begins on `model`, in a `generate` that was `given` that; False where it is none of ours or already
        goes on."""
        with self._beginning:
            busy = self._generation is not None or self.muted or self._recorder.inside_call
            if model is not self._recorder.model or busy or self._recorder.thread is not None:
                return False
            self._recorder.thread = threading.get_ident()
        self._loop.finish(None, None)
        input_ids = arguments["input_ids"]
        run = self._ran(encoded(arguments)) if self._encodes else None
        settings = arguments["generation_config"]
        self._generation = Generation(self._recorder, model, input_ids, settings, arguments, run, given)
        return True

    def _ran(self, hidden: torch.Tensor | None) -> EncoderRun | None:
        """The run of the encoder by itself that gave `hidden`; said where there is none."""
        run = self._encoding
        if run is not None and run.output is not None and hidden is not None and _repeats(hidden, run.output):
            return run
        self._recorder.lost(
            "a run of the encoder that was over before the recording, or that was changed since; run it while "
            "recording and give its output as it is"
        )
        return None

    def end_generation(self, reason: str, detail: str | None = None) -> None:
        """`_sample` is over."""
        generation, self._generation = self._generation, None
        self._recorder.thread = None
        if generation is not None:
            generation.end(reason, detail)

    @property
    def muted(self) -> bool:
        """Whether calls of this thread are left out now."""
        return self._recorder.left_out is not None
