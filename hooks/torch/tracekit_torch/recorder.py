"""The recorder: one trace in the making. Adapters tell it of sequences, calls and steps; it writes the log.

Recording may break, the recorded program may not: an error in here is said once on stderr, ends the recording, and
leaves what was recorded until then.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from tracekit.formats.archive import write_archive
from tracekit.formats.log import LogWriter, Tensor, TensorLike
from tracekit.formats.log_beside import begin_anew, log_beside
from tracekit.formats.log_trace import LogTrace
from tracekit.formats.opening import open_trace
from tracekit.inspection.following import FORCED, shortfalls
from tracekit.inspection.known_positions import MASK_UNKNOWN, WEIGHTS_UNKNOWN
from tracekit.inspection.losses import lost_rows
from tracekit.inspection.sanity import UNSEEN, no_such_site, written
from tracekit.trace import ENCODER, Json, TraceError
from tracekit_torch import describe, precision
from tracekit_torch.adapter import About, Adapter, Choice, Row
from tracekit_torch.called_directly import CalledDirectly
from tracekit_torch.choices import Choices
from tracekit_torch.contained_tensors import first_tensor
from tracekit_torch.draws import CHOICES, Drawn, Draws
from tracekit_torch.follow import Follow
from tracekit_torch.memory import WORDS
from tracekit_torch.named_arguments import named, parameters_of
from tracekit_torch.options import Options
from tracekit_torch.outermost import Outermost, Standing
from tracekit_torch.patching import Hook, replace
from tracekit_torch.tapped import Call
from tracekit_torch.taps import Taps
from tracekit_torch.texts import Texts
from tracekit_torch.weights import Watched, weight_table


@dataclass(frozen=True)
class LeftOut:
    """What a program computes and a recording leaves out. `by_chance`: another run may record it, and leave out what
    this one records."""

    what: str
    by_chance: bool = False


BESIDE = LeftOut(
    "calls of the model that another thread made during a generation or call that is recorded; run one after the other",
    by_chance=True,
)


def _left_out(what: LeftOut | str) -> LeftOut:
    return LeftOut(what) if isinstance(what, str) else what


_DELETED = nn.Module()


class Recorder:
    """One run. `out` is the archive to make; the log stands next to it, with the suffix `.tklog`, until it is made."""

    def __init__(self, out: Path, options: Options, command: Json | None = None) -> None:
        self.named = out
        """The archive, as it is asked for; the program may go to another folder."""
        self.out = out.absolute()
        self.log_path = log_beside(self.out)
        self.options = options
        self.command = command
        self.texts = Texts(self.note)
        self._followed = str(Path(options.follow or "").absolute())
        self.follow = Follow(self._followed, options.follow_draws) if options.follow else None
        self._model: weakref.ref[nn.Module] | None = None
        self.adapter: Adapter | None = None
        self.taps: Taps | None = None
        self.sequences = 0
        self.steps = 0
        self.broken: str | None = None
        self.closed = False
        self.unwritten = False
        """The archive could not be made; the log is there."""
        self.notes: list[str] = []
        self.not_followed: list[str] = []
        """What was to be followed and was not, once the recording is closed."""
        self.unseen: dict[str, int] = {}
        """Why it was not seen how tokens were drawn -> how many of them."""
        self.incomplete = False
        """Draws are surely missing."""
        self.written: str | None = None
        """What the file holds, once it is closed."""
        self.choices = Choices()
        """Tokens that were chosen, whether or not steps were made of them."""
        self._draws = Draws(self, options.rng)
        self._writer: LogWriter | None = None
        self._process = os.getpid()
        self._rows: list[Row] = []  # those that go on
        self.drawing: Row | None = None
        """The row that draws now, where an adapter knows it."""
        self._outermost = Outermost()
        self._left_out: dict[int, LeftOut] = {}
        """Threads whose calls are left out now, and what those calls are."""
        self._around: Call | None = None
        """The recorded call, while the model runs inside it once more."""
        self._parameters: list[Parameter] = []
        self._weights: Watched | None = None
        self._reweighted = False
        """The program has changed the weights since the recording began."""
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._undo: list[Callable[[], None]] = []
        self.called_outside: Callable[[nn.Module], None] = lambda part: None
        """Told of a part of the model that runs outside of the model's calls."""

    # ---------------------------------------------------------------- life

    @property
    def model(self) -> nn.Module | None:
        """What is recorded; None until it is found. It is the program's to delete: after that, a module that is no
        one's."""
        return None if self._model is None else self._model() or _DELETED

    def begin(self) -> None:
        """A run begins: an archive of an earlier one goes. Raises TraceError where it cannot."""
        try:
            begin_anew(self.out, self._followed if self.follow is not None else None)
        except OSError as error:
            raise TraceError(f"{self.named}: cannot be written: {error.strerror}") from None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch torch's random operators inside the block, and whether the program ends without an end."""
        put_back = replace(os, "_exit", self._ending_at_once(os._exit))
        try:
            with self._draws.watching():
                yield
        finally:
            put_back()

    def _ending_at_once(self, original: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
        @functools.wraps(original)
        def leave(*args: Any, **kwargs: Any) -> NoReturn:
            if self.sequences and not self.closed and not self.in_child:
                say(
                    f"the program ends in os._exit, before an archive is made: what was recorded is in "
                    f"{self.log_path}; every command reads it, and `tracekit import` makes the archive"
                )
            original(*args, **kwargs)

        return leave

    def attach(
        self,
        model: nn.Module,
        adapter: Adapter,
        head: nn.Module | None,
        sampling: Json | None = None,
        about: About | None = None,
    ) -> None:
        """Record `model` through `adapter`. Writes the log's first frame. Raises TraceError where it cannot."""
        if isinstance(model, torch.jit.ScriptModule):
            raise TraceError(
                f"{type(model).__name__} is TorchScript, which calls no hooks; use tracekit_torch.record_script, "
                "or record the module that it was made from"
            )
        about = about or About(describe.model_config(model), describe.checkpoint(model, self.command is not None))
        if self.options.dtype is not None:
            precision.run_in(model, self.options.dtype, about.lifted)
        self.adapter = adapter
        self.texts.source = getattr(getattr(about.lifted or model, "config", None), "_name_or_path", None)
        self._parameters = list(parameters_of(model).values())
        table = weight_table(model)
        self._weights = Watched(model, table)
        writer = self._open()
        writer.open(
            "python",
            versions=describe.versions(),
            **describe.device_and_dtype(model),
            model=about.model,
            sampling=sampling,
            seed=self.options.seed,
            command=self.command,
            checkpoint=about.checkpoint,
            recorder=self.options.as_json(),
            follow=self._following(),
            weights=table,
        )
        self._handles = [model.register_forward_pre_hook(Hook(self._before), with_kwargs=True, prepend=True)]
        self.taps = Taps(model, head, self.options, adapter.write, self.fail, about.left_out, about.encoder)
        self._handles.append(model.register_forward_hook(Hook(self._after), always_call=True))
        directly = CalledDirectly(model, self._outermost, self.lost)
        self._undo.append(directly.remove)
        self.called_outside = self.taps.outside = lambda part: self.guarded(directly.outside, part, self.model)
        # Last: a thread that sees it goes on to call the model, hooks and all.
        self._model = weakref.ref(model)

    def close(self, reason: str = "done", detail: str | None = None) -> None:
        """End the trace and make the archive; where that cannot be written it is said, and the log stays."""
        if self.closed or self.in_child:
            return
        self.closed = True
        self._detach()
        writer = self._writer
        if writer is None:
            return
        if self.broken is None and self.adapter is not None:
            try:
                self.adapter.finish("error" if reason == "error" else None, detail)
            except Exception as error:
                self.fail(error)
        if not self.steps and self.choices.tokens and self.sequences:
            self._say_lost(LeftOut(self.choices.lost()))
        for why, tokens in self.unseen.items():
            self.note(f"how {tokens} tokens were drawn was not seen: {why}; tracekit diff gives no verdict on them")
        if self.broken is None:
            self.guarded(writer.close, reason)
        writer.abandon()
        try:
            self._make_archive()
        except Exception as error:
            self.broken = self.broken or str(error)
            self.unwritten = True
            self.note(f"{error}; what was recorded is in {self.log_path}")

    def _make_archive(self) -> None:
        if self.sequences:
            with LogTrace(self.log_path) as trace:
                if self.log_path != self.out:
                    write_archive(trace, self.out)
                self.written = written(trace)
                missed = _sentences([*no_such_site(trace, self.options.sites), *lost_rows(trace)])
                self.not_followed = self._not_followed(trace)
            for said in (*missed, *self.not_followed):
                self.note(said)
            if self.log_path != self.out and not self.options.keep_log:
                self.log_path.unlink()

    def _not_followed(self, trace: LogTrace) -> list[str]:
        """What the run was to follow and did not."""
        if self.follow is None or self.broken is not None:
            return []
        with open_trace(self._followed) as followed:
            return _sentences(shortfalls(trace, followed))

    @property
    def in_child(self) -> bool:
        """Whether this is a child process, which the program forked: the recording is its parent's."""
        return os.getpid() != self._process

    def discard(self) -> None:
        """Remove what was written: it holds no sequence."""
        if self._writer is not None:
            self.log_path.unlink(missing_ok=True)
            self.out.unlink(missing_ok=True)

    def leave_to_the_parent(self) -> None:
        """A child process does not record. What is called after a fork is kept for good: it must not keep this
        recorder, and all it holds, with it."""
        own = weakref.ref(self)

        def forked() -> None:
            recorder = own()
            if recorder is not None:
                recorder._forked()

        os.register_at_fork(after_in_child=forked)

    def _forked(self) -> None:
        """Called in a child process: it shares the log's file and must not write to it."""
        self.broken = "this is a child process"
        self._detach()
        if self._writer is not None:
            self._writer.abandon()

    def fail(self, error: Exception) -> None:
        """Give up recording, not the program."""
        if self.broken is None:
            what = str(error) if isinstance(error, (TraceError, OSError)) else f"{type(error).__name__}: {error}"
            self.broken = what
            self._detach()
            self._leave_reason(what)
            say(f"recording stopped, the program goes on: {what}")
            if os.environ.get("TRACEKIT_DEBUG"):
                sys.excepthook(type(error), error, error.__traceback__)

    def _leave_reason(self, what: str) -> None:
        """Into the log, where it takes it: a full disk may not."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.trouble(what)

    def guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """What `action` gives; None where it fails, which ends the recording and not the program."""
        try:
            return action(*args)
        except Exception as error:
            self.fail(error)
            return None

    def hold(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        """Take a hook of an adapter's, to be removed when the recording ends."""
        self._handles.append(handle)

    def note(self, sentence: str) -> None:
        """Say something once on stderr."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            say(sentence)

    def lost(self, left_out: LeftOut | str) -> None:
        """Say, once, on stderr and in the trace, what the program computed and the trace does not hold."""
        if (left_out := _left_out(left_out)).what not in self.notes and self.active:
            self._say_lost(left_out)

    def _say_lost(self, left_out: LeftOut) -> None:
        if self.broken is None:
            self.notes.append(left_out.what)
            say(f"not recorded: {left_out.what}")
            self.guarded(self.writer.lost, left_out.what, left_out.by_chance)

    @property
    def active(self) -> bool:
        """Whether a model is being recorded."""
        return self._writer is not None and self.broken is None and not self.closed

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for undo in self._undo:
            undo()
        if self.taps is not None:
            self.taps.remove()
            self.taps.call = None

    def _open(self) -> LogWriter:
        try:
            self._writer = LogWriter(self.log_path)
        except OSError as error:
            raise TraceError(f"{self.log_path}: cannot be written: {error.strerror}") from None
        return self._writer

    @property
    def writer(self) -> LogWriter:
        """The log. Only after `attach`."""
        if self._writer is None:
            raise TraceError("nothing is recorded yet")
        return self._writer

    # ---------------------------------------------------------------- the model's calls and draws

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: Json) -> None:
        if self.active and self.adapter is not None:
            try:
                if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
                    self.lost("calls that torch.jit.trace or torch.export makes to see what the model does")
                    return
                if self.left_out is not None:
                    self.lost(self.left_out)
                    return
                if not self._begins():
                    return
                self._look_at_weights(sampled=False)
                given = named(self._parameters, args, kwargs)
                value = first_tensor(given)
                if value is not None and value.is_meta:
                    self.lost("calls of the model on the meta device, which have no values; load it on another device")
                elif value is not None and torch._C._functorch.is_functorch_wrapped_tensor(value):
                    self.lost("calls under vmap or grad of torch.func, whose tensors have no values; call it without")
                else:
                    self.adapter.begin(given)
            except Exception as error:
                self.fail(error)

    @property
    def thread(self) -> int | None:
        """The thread whose generation is recorded now: the model's calls in others are none of it."""
        return self._outermost.owner

    @thread.setter
    def thread(self, thread: int | None) -> None:
        self._outermost.owner = thread

    @property
    def left_out(self) -> LeftOut | None:
        """What the calls of this thread are, where they are left out now."""
        return self._left_out.get(threading.get_ident())

    @contextmanager
    def leaving_out(self, calls: LeftOut | str) -> Iterator[None]:
        """Leave out this thread's calls inside the block, which are no steps; `calls` is what they are, said at the
        first."""
        thread, inside = threading.get_ident(), self.left_out is not None
        self._left_out.setdefault(thread, _left_out(calls))
        try:
            yield
        finally:
            if not inside:
                del self._left_out[thread]

    @property
    def inside_call(self) -> bool:
        """Whether this thread, or another, runs the model now."""
        return self._outermost.depth > 0

    def _begins(self) -> bool:
        """Whether a call that begins is the one to record; said where it is not."""
        standing = self._outermost.begins()
        if standing is Standing.BESIDE:
            self.lost(BESIDE)
        elif standing is Standing.INSIDE:
            self.lost("calls of the model that were made inside another call of it")
            if self.taps is not None and self.taps.call is not None:
                self._around, self.taps.call = self.taps.call, None
        return standing is Standing.RECORDED

    def _after(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.active and self.adapter is not None:
            try:
                standing = self._outermost.ends()
                back = standing is not Standing.BESIDE and self._outermost.depth < 2
                if back and self._around is not None and self.taps is not None:
                    self.taps.call, self._around = self._around, None
                if standing is not Standing.RECORDED:
                    return
                if output is None and sys.exc_info()[0] is not None and self.taps is not None:
                    self.taps.end()  # it failed
                    return
                self.adapter.end(output)
            except Exception as error:
                self.fail(error)

    def listening(self) -> bool:
        """Whether a draw made now belongs to a step: never inside the model's own forward."""
        if not self.active or self.adapter is None or self.taps is None or self.taps.call is not None:
            return False
        return bool(self.guarded(self.adapter.listening))

    def draws_from(self, generator: torch.Generator) -> None:
        """As `tracekit_torch.draws.Listener`."""
        row = self.drawing or next((row for row in self._rows if row.reason is None), None)
        if self.follow is not None and row is not None and generator.device.type == "cpu":
            self.follow.place(row.sequence, row.steps, generator)

    def passed(self, op: str, source: torch.Tensor | None, result: torch.Tensor) -> None:
        """As `tracekit_torch.draws.Listener`."""
        if self.steps or not self.sequences or not self.active or self.taps is None or self.taps.call is not None:
            return
        if self.left_out is not None or self.inside_call:
            return
        if op in CHOICES and source is not None:
            self.choices.chose(source, result)
        elif op not in CHOICES:
            self.choices.drew(op, result)

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """As `tracekit_torch.draws.Listener`."""
        self.passed(drawn.op, drawn.source, drawn.result)
        try:
            return None if self.adapter is None else self.adapter.drew(drawn)
        except Exception as error:
            self.fail(error)
            return None

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """As `tracekit_torch.draws.Listener`."""
        self.passed("argmax", scores, result)
        try:
            return None if self.adapter is None else self.adapter.chose(scores, result)
        except Exception as error:
            self.fail(error)
            return None

    # ---------------------------------------------------------------- what is written

    def begin_sequence(
        self, row: Row, prompt_ids: list[int] | None, inputs: dict[str, torch.Tensor], state: Json, /, **metadata: Any
    ) -> None:
        """Write that `row` begins. `state` is `generator_state()` as it was when the sequence began."""
        tensors: dict[str, TensorLike] = {f"prompt/{name}": as_tensor(value) for name, value in inputs.items()}
        if prompt_ids is not None:
            tensors["prompt/token_ids"] = np.array(prompt_ids, dtype=np.int64)
            if "texts" not in metadata:
                metadata["prompt_text"] = self.texts.text(prompt_ids)
                metadata["texts"] = self.texts.tokens(prompt_ids)
        tensors["rng/state"] = np.frombuffer(state["state"], dtype=np.uint8)
        self.writer.sequence(row.sequence, tensors, seed=state["seed"], **metadata)

    def _look_at_weights(self, *, sampled: bool) -> None:
        if self._weights is not None and self._weights.changed(sampled=sampled):
            self._weights, self._reweighted = None, True
            self.note("the program changed the weights of its model: what it computes from now on is not audited")

    def new_row(self, padding: int, prompt_length: int) -> Row:
        """The next sequence."""
        self.sequences += 1
        row = Row(self.sequences - 1, padding, prompt_length)
        self._look_at_weights(sampled=True)
        if self._reweighted:
            row.weights_unknown = 0
        self._rows = [*(other for other in self._rows if other.reason is None), row]
        if self.taps is not None:
            self.taps.new_sequences()
        return row

    def write_call(self, row: Row, position: int, first: int, batch_row: int, again: int = 0) -> None:
        """Write the values that the taps hold of one row of the batch, rows `first` on, the first at `position`.
        `again`: positions before it that this call computed again."""
        taps = self.taps
        if taps is None or taps.call is None:
            return
        call = taps.call
        if row.weights_unknown is None and self._reweighted:
            row.weights_unknown = position
        for rows, tail in self.tails(first, batch_row):
            self.writer.call(row.sequence, position + call.time - first - rows, rows, tail)
        if not taps.memory.slots:
            return
        mixed = call.encoder is not None and any(slot.axis is not None for slot in taps.memory.slots)
        layout = taps.memory.layout() if call.batch == 1 and first == 0 and not mixed else None
        if layout is None:
            tensors = self.call_tensors(first, batch_row)
            self.writer.call(row.sequence, position, call.time - first, tensors, again=again)
            return
        self._wait()
        metadata = {"sequence": row.sequence, "position": position, "rows": call.time}
        self.writer.write_packed("call", metadata, layout, taps.memory.buffers())

    def call_tensors(self, first: int, batch_row: int) -> dict[str, Tensor]:
        """The values that the taps hold of one row of the batch, rows `first` on: views into memory that is reused."""
        taps = self.taps
        if taps is None or taps.call is None:
            return {}
        return self._rows_of(batch_row, first, taps.call.time, None)

    def encoder_tensors(self, batch_row: int, first: int, stop: int) -> dict[str, Tensor]:
        """The same of rows [first, stop) of the encoder's input."""
        return self._rows_of(batch_row, first, stop, ENCODER)

    def _rows_of(self, batch_row: int, first: int, stop: int, axis: str | None) -> dict[str, Tensor]:
        self._wait()
        tensors: dict[str, Tensor] = {}
        for slot in self.taps.memory.slots if self.taps is not None else ():
            if slot.axis != axis or not slot.rows[1]:
                continue
            size = slot.width * slot.item
            begin = slot.offset + batch_row * slot.rows[1] * size
            data = slot.memory[begin + first * size : begin + stop * size]
            tensors[slot.name] = Tensor(slot.word, (stop - first, slot.width), data)
        return tensors

    def tails(self, first: int, batch_row: int) -> Iterator[tuple[int, dict[str, TensorLike]]]:
        """Sites that have only the last rows of the call: how many, and their values."""
        taps = self.taps
        if taps is None or taps.call is None:
            return
        for name, values in taps.memory.tails.items():
            rows = min(values.shape[1], taps.call.time - first)
            yield rows, {name: as_tensor(values[batch_row, -rows:].flatten(1))}

    def _wait(self) -> None:
        """Wait for copies from the device."""
        if self.taps is not None and self.taps.memory.pinned:
            torch.cuda.current_stream().synchronize()

    def write_sites(self) -> None:
        """Write the rows of the site table that changed."""
        if self.taps is not None and self.taps.changed:
            self.writer.sites(list(self.taps.changed.values()))
            self.taps.changed = {}

    def write_step(self, row: Row, choice: Choice) -> None:
        """Write that `row` got its next token; an event says where that is another trace's and not its own."""
        tensors: dict[str, TensorLike] = {}
        if self.follow is not None and choice.own is not None and choice.own != choice.token:
            choice.events.append({"kind": FORCED, "detail": {"instead_of": choice.own}})
        if choice.unseen is not None:
            self.missed(choice.unseen, may_be_given=choice.may_be_given)
            choice.events.append({"kind": UNSEEN, "detail": choice.unseen})
        if choice.logits is not None:
            tensors |= self._logits(choice.logits)
        if choice.survivors is not None:
            tensors["survivors/id"] = choice.survivors[0].numpy()
            tensors["survivors/prob"] = choice.survivors[1].numpy()
        if choice.draws and any(value is not None for value in choice.values):
            tensors["draw/value"] = np.array(choice.values, dtype=np.float64)  # None becomes NaN
        self.writer.step(
            row.sequence,
            row.steps,
            row.prompt_length - 1 + row.steps if choice.position is None else choice.position,
            choice.token,
            tensors,
            text=choice.text or self.texts.token(choice.token),
            draws=choice.draws or None,
            events=choice.events or None,
        )
        row.followed += choice.own is not None and self.forced(row) == choice.token
        row.steps += 1
        self.steps += 1

    def end_row(self, row: Row, reason: str, detail: str | None = None) -> None:
        """Write that `row` ends."""
        if row.reason is None:
            row.reason = reason
            followed = {"tokens": row.followed} if self.follow is not None else None
            told = {"followed": followed, MASK_UNKNOWN: row.mask_unknown, WEIGHTS_UNKNOWN: row.weights_unknown}
            self.writer.end_sequence(row.sequence, row.steps, reason, detail, **told)

    def missed(self, why: str, tokens: int = 1, *, may_be_given: bool = False) -> None:
        """It was not seen how that many tokens were drawn."""
        self.unseen[why] = self.unseen.get(why, 0) + tokens
        self.incomplete = self.incomplete or not may_be_given

    @property
    def keeps_logits(self) -> bool:
        """Whether steps hold logits."""
        return self.options.level != "tokens"

    def _following(self) -> Json | None:
        """What is followed, for the log's first frame; what came of it, the steps and ends say."""
        if self.follow is None:
            return None
        draws, follower = self.options.follow_draws, f"tracekit {describe.versions().get('tracekit', '')} (Python)"
        return {"trace": self.options.follow, "tokens": True, "draws": draws, "inputs": False, "follower": follower}

    def forced(self, row: Row) -> int | None:
        """The token that the followed trace has for the next step of `row`."""
        return None if self.follow is None else self.follow.token(row.sequence, row.steps)

    def _logits(self, logits: torch.Tensor) -> dict[str, TensorLike]:
        count = self.options.top_logits
        if count is None:
            return {"logits": as_tensor(logits)}
        logprob = torch.log_softmax(logits.double(), dim=-1)
        top, order = torch.sort(logprob, descending=True, stable=True)
        return {"topk/id": order[:count].numpy(), "topk/logprob": top[:count].float().numpy()}


def as_tensor(value: torch.Tensor) -> Tensor:
    """A tensor as the log takes it, whatever its dtype."""
    host = value.detach().cpu().contiguous()
    data = host.reshape(-1).view(torch.uint8).numpy().data if host.numel() else b""
    return Tensor(WORDS[host.dtype], tuple(host.shape), data)


def generator_state() -> Json:
    """Seed and state (5056 bytes) of torch's CPU generator as it stands."""
    return {"seed": torch.initial_seed(), "state": torch.get_rng_state().numpy().tobytes()}


def survivors(probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids i64 [n] and probabilities f32 [n] of what could be drawn from `probs` [V]: descending, ties by lower id."""
    probs = probs.detach()
    ids = torch.nonzero(probs).reshape(-1)
    kept, order = torch.sort(probs[ids], descending=True, stable=True)
    return ids[order].cpu(), kept.float().cpu()


def _sentences(findings: Sequence[object]) -> list[str]:
    """Findings as the user reads them; a recording with none does without the modules that word them."""
    if not findings:
        return []
    from tracekit.report.words import sentence

    return [sentence(each) for each in findings]


def say(sentence: str) -> None:
    """One line on stderr, where the program still has one; stdout belongs to the recorded program."""
    if sys.stderr is not None:
        # Closed, or whatever the program put there.
        with contextlib.suppress(Exception):
            print(f"tracekit: {sentence}", file=sys.stderr, flush=True)


def rows_of(tokens: torch.Tensor) -> Sequence[list[int]]:
    """[batch, time] token ids as lists."""
    return [[int(token) for token in row] for row in tokens.tolist()]
