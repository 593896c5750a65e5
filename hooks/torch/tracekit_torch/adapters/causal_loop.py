"""Loops that call a causal model themselves: `model(input_ids, past_key_values=...)`, again and again.

Nothing tells where a sequence begins or which token was chosen, so both are read off the calls. A call goes on with the
sequence when its cache holds what was recorded, or, without a cache, when its ids begin with the recorded ones. What is
fed then tells the token: one token, or one that was seen to be chosen (`multinomial` or `argmax` over the vocabulary)
is a step; several tokens that nothing chose are more of the prompt (a prefill in chunks).

Until the first step is known, a call may be a plain evaluation, whose logits are a site of all positions, or a prompt
that goes on. It is held back in memory until the next call, or the end, decides.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tracekit.formats.log import Tensor, TensorLike
from tracekit.inspection.masked import MASK, PLACES
from tracekit.trace import ENCODER, NO_TOKEN, Json
from tracekit_torch import describe
from tracekit_torch.adapter import Choice, Row
from tracekit_torch.adapters.causal_calls import (
    NOT_DRAWN,
    as_padding,
    cache_length,
    cache_of,
    fed_to,
    is_largest,
    left_padding,
    masked_prompt,
    ordered_alike,
    output_logits,
    processed_survivors,
    seen_by_each,
    spans,
    write_call,
)
from tracekit_torch.adapters.encoder_runs import EncoderRun, encoded, encoder_axis, encoder_inputs
from tracekit_torch.adapters.given_beside import GivenBeside, packs
from tracekit_torch.adapters.processors import Stage
from tracekit_torch.draws import Drawn
from tracekit_torch.recorder import Recorder, as_tensor, generator_state, survivors
from tracekit_torch.rows import Axis


@dataclass
class HeldCall:
    """A call of one row that is not written yet."""

    first: int
    rows: int
    tensors: dict[str, TensorLike]
    tail: bool = False
    """Sites that have only the last rows of a call, which is held as well."""
    axis: str | None = None


@dataclass(eq=False)
class Waiting:
    """What is known between two calls."""

    logits: torch.Tensor | None  # [batch, vocabulary] on the host
    chosen: list[int] | None = None
    drawn: list[Drawn] = field(default_factory=list)
    survivors: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    """What each row's token was drawn from; copied as it was drawn, since the program may go on with its tensor."""
    chain: list[Stage] = field(default_factory=list)
    """What each logits processor left."""
    processed: torch.Tensor | None = None
    """The scores that they gave, [batch, vocabulary]."""
    elsewhere: bool = False
    """Whether what was chosen may be of other positions than the last: a program that scores a text takes the largest
    of each of its positions."""
    natural: list[int] | None = None
    """What would have been chosen, where another trace is followed."""


@dataclass(eq=False)
class Begun:
    """The sequences of one loop, a row of the batch each."""

    rows: list[Row]
    ids: list[list[int]]
    """All token ids so far, the batch's padding included; of a prompt of embeddings, those after it."""
    state: Json
    parent: int | None
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    held: list[list[HeldCall]] | None = None
    """What waits for the first step, for each row; None once it is written."""
    head: list[torch.Tensor] = field(default_factory=list)
    """The head's outputs of the held calls."""
    first: int = 0
    fed: int = 0
    """Positions of the batch that were fed."""
    spans: list[tuple[int, int]] | None = None
    """Of an encoder-decoder, for each row, which rows of the encoder's input are no padding."""
    encoder: list[dict[str, torch.Tensor]] | None = None
    """What the encoder was given, for each row."""
    encoding: EncoderRun | None = None
    """Its run, where the program called it by itself."""
    mask: torch.Tensor | None = None
    """The mask that the last call before the first step was given, [batch, positions]."""
    seen: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    """Of calls before the first step whose masks say it: the first position and what each of them attends to, bool
    [batch, time, positions]."""
    last: torch.Tensor | None = None
    """What the prompt's last position attends to, bool [batch, positions]; None where that is all."""
    each: bool = False
    """Whether the prompt's mask is no padding."""
    places: list[torch.Tensor] = field(default_factory=list)
    """The positions that each call was given, [batch or 1, time] each."""
    held_cache: Callable[[], Any] = lambda: None
    beside: GivenBeside | None = None
    """What the first call was given beside its tokens."""
    embedded: int = 0
    """Positions of a prompt that was given as embeddings."""

    @property
    def known(self) -> int:
        """Positions whose tokens, or embeddings, are known."""
        return self.embedded + min(map(len, self.ids), default=0)

    @property
    def stands(self) -> torch.Tensor | None:
        """Where the positions that were fed stand, [batch, fed]; None where a call did not say it."""
        rows = [part.expand(len(self.rows), -1) for part in self.places]
        found = torch.cat(rows, dim=1) if rows else None
        return found if found is not None and found.shape[1] == self.fed else None

    @property
    def told(self) -> torch.Tensor | None:
        """What is masked of the positions that were fed: [batch, positions], or what each of them attends to, [batch,
        positions, positions], where that is another mask; None where no call says it."""
        if not self.seen:
            return self.mask
        count = self.fed
        shown = torch.ones(len(self.rows), count) if self.mask is None else self.mask
        out = shown.bool()[:, None, :] & torch.ones(count, count, dtype=torch.bool).tril()
        for first, rows in self.seen:
            out[:, first : first + rows.shape[1]] = False
            out[:, first : first + rows.shape[1], : rows.shape[2]] = rows
        padding = as_padding(out)
        return out if padding is None else padding

    def shown(self, count: int) -> torch.Tensor:
        """bool [batch, count]: the positions that what is decoded is to see."""
        out = torch.ones(len(self.rows), count, dtype=torch.bool)
        if self.last is not None:
            out[:, : self.last.shape[1]] = self.last.bool()
        return out

    @property
    def cache(self) -> Any:
        """The cache that the last call was given or made; None once the program has let it go, or where that cannot be
        seen (of tuples)."""
        return self.held_cache()

    def hold(self, cache: Any) -> None:
        """The last call gave this cache."""
        try:
            self.held_cache = weakref.ref(cache)
        except TypeError:
            self.held_cache = lambda: None


PACKED = (
    "calls that hold several sequences in one row (continuous batching, a packed batch); call the model with a row for "
    "each"
)


class CausalLoop:
    """Records calls of a causal model that no `generate` makes."""

    def __init__(self, recorder: Recorder, model: nn.Module) -> None:
        self._recorder = recorder
        config: Any = getattr(model, "config", None)
        self._vocabulary = getattr(config, "vocab_size", None)
        eos = describe.plain(getattr(config, "eos_token_id", None))
        self._stops = eos if isinstance(eos, list) else [eos]
        self._begun: Begun | None = None
        self._waiting: Waiting | None = None
        self._aside: list[tuple[Begun, Waiting]] = []
        """Loops that another one came in between of: each goes on when its cache is given again."""
        self._encodes = bool(getattr(config, "is_encoder_decoder", False))
        self.ran: Callable[[torch.Tensor | None], EncoderRun | None] = lambda hidden: None
        """The run of the encoder by itself that gave this."""

    @property
    def waits_for_token(self) -> bool:
        """Whether the model has answered and no call came since."""
        return self._waiting is not None

    # ---------------------------------------------------------------- calls

    def begin_call(self, arguments: Json) -> None:
        """The model is called."""
        taps = self._recorder.taps
        value = self._fed(arguments)
        if taps is None or value is None:
            self._recorder.lost("calls of the model without input_ids or inputs_embeds; give one of them by its name")
            return
        if packs(arguments):
            self.finish(None, None)
            self._recorder.lost(PACKED)
            return
        self._turn_to(arguments)
        cached = self._cached(arguments)
        seen, unknown = self._seen(arguments, value.shape[0], cached, value.shape[1])
        fed = [] if value.is_floating_point() else [[int(token) for token in row] for row in value.tolist()]
        if not self._goes_on(fed, cached, cache_of(arguments)):
            self._begin(arguments, value, fed, cached)
        begun = self._begun
        if begun is None:
            return
        begun.first = cached
        begun.fed = cached + value.shape[1]
        known = self._keep_mask(begun, arguments, value.shape[1], seen)
        for row in begun.rows:
            if (unknown or not known) and row.mask_unknown is None:
                row.mask_unknown = max(0, cached - row.padding)
        axis = self._encoder_axis(arguments) if self._encodes else None
        if axis is not None and begun.spans is None and axis.time is not None:
            begun.spans = spans(arguments.get("attention_mask"), axis.batch, axis.time)
        taps.begin(value.shape[0], value.shape[1], length=begun.fed, encoder=axis)

    def _seen(self, arguments: Json, batch: int, first: int, time: int) -> tuple[torch.Tensor | None, bool]:
        """What each position of a call attends to by a mask that says so (`seen_by_each`), and whether another mask is
        given, which a trace does not hold."""
        mask = arguments.get(("decoder_" if self._encodes else "") + MASK)
        if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2):
            return None, False
        seen = seen_by_each(mask.detach(), batch, first, time) if isinstance(mask, torch.Tensor) else None
        return seen, seen is None

    def _keep_mask(self, begun: Begun, arguments: Json, time: int, seen: torch.Tensor | None) -> bool:
        """Keep what a call of `time` positions says of the prompt's: which are masked, or what each attends to, `seen`;
        and where each stands. Whether what it says of decoded ones is known: they see what the prompt's last position
        does, and what comes after that."""
        prefix = "decoder_" if self._encodes else ""
        mask, places = (arguments.get(prefix + name) for name in (MASK, PLACES))
        two = isinstance(mask, torch.Tensor) and mask.shape == (len(begun.rows), begun.fed)
        if begun.held is not None:
            begun.mask = None
            if seen is not None:
                begun.seen.append((begun.fed - time, seen))
            if isinstance(mask, torch.Tensor) and two:
                begun.mask = mask.detach().to("cpu", copy=True)
        if isinstance(places, torch.Tensor) and places.dim() == 2 and places.shape[1] == time:
            begun.places.append(places.detach().to("cpu", copy=True))
        if begun.held is not None or mask is None:
            return True
        causal = torch.ones(time, begun.fed, dtype=torch.bool).tril(begun.fed - time)
        if seen is None and begun.each and isinstance(mask, torch.Tensor) and two:
            seen = mask.bool().cpu()[:, None] & causal
        new = max(0, *(row.next_position + row.padding - begun.fed + time for row in begun.rows))
        return seen is None or torch.equal(seen[:, new:], (begun.shown(begun.fed)[:, None] & causal)[:, new:])

    def _turn_to(self, arguments: Json) -> None:
        """Go on with the loop whose cache is given, where several take turns. One whose cache is gone has ended."""
        cache = cache_of(arguments)
        if self._begun is not None and (cache is None or self._begun.cache is not cache):
            found = next((each for each in self._aside if cache is not None and each[0].cache is cache), None)
            if found is not None or (self._begun.cache is not None and cache_length(arguments) == 0):
                self._put_aside()
            if found is not None:
                self._aside.remove(found)
                self._begun, self._waiting = found
        self._end_aside([each for each in self._aside if each[0].cache is None], None, None)

    def _put_aside(self) -> None:
        if self._begun is not None and self._waiting is not None:
            self._aside.append((self._begun, self._waiting))
            self._begun = self._waiting = None
        else:
            self.finish(None, None)

    def _end_aside(self, loops: list[tuple[Begun, Waiting]], reason: str | None, detail: str | None) -> None:
        now = self._begun, self._waiting
        for loop in loops:
            self._aside.remove(loop)
            self._begun, self._waiting = loop
            self.finish(reason, detail)
        self._begun, self._waiting = now

    def finish_all(self, reason: str | None, detail: str | None) -> None:
        """The run is over."""
        self.finish(reason, detail)
        self._end_aside(list(self._aside), reason, detail)

    def _cached(self, arguments: Json) -> int:
        """Positions before a call; where the cache does not say it, those that were fed to this very cache."""
        cached = cache_length(arguments)
        if cached is not None:
            return cached
        begun = self._begun
        cache = cache_of(arguments)
        return begun.fed if begun is not None and cache is not None and begun.cache is cache else 0

    @staticmethod
    def _encoder_axis(arguments: Json) -> Axis | None:
        hidden = encoded(arguments)
        if hidden is None or hidden.dim() != 3:
            return encoder_axis(arguments)
        return Axis(hidden.shape[0], hidden.shape[1], name=ENCODER)

    def write(self) -> None:
        """Write what the taps hold, or hold it back."""
        taps, begun = self._recorder.taps, self._begun
        if taps is None or taps.call is None or begun is None:
            return
        if begun.held is None:
            again = not taps.call.narrows
            write_call(self._recorder, begun.rows, begun.first, taps.call.time, begun.spans, again=again)
        else:
            self._hold(begun, taps.call.time)
        taps.memory.clear()

    def end_call(self, output: Any) -> None:
        """The model has answered."""
        taps, begun = self._recorder.taps, self._begun
        if taps is None or taps.call is None or begun is None:
            return
        axis = taps.call.encoder
        if axis is not None and begun.spans is None:
            begun.spans = spans(None, *axis.size)
        begun.hold(cache_of(output))
        logits = self._logits(output)
        head = taps.call.head_output
        if logits is not None and head is not None and head.data_ptr() != logits.data_ptr():
            taps.logits_are(logits)
        self.write()
        if begun.held is not None and taps.call.head_output is not None:
            begun.head.append(taps.call.head_output.detach().to("cpu", copy=True))
        for row in begun.rows:
            row.next_position = max(row.next_position, begun.fed - row.padding)
        taps.end()
        last = logits[:, -1].detach().to("cpu", copy=True) if logits is not None else None
        self._waiting = Waiting(last)

    def finish(self, reason: str | None, detail: str | None) -> None:
        """No call follows: a token that was chosen last is a step, and the sequences end."""
        begun, waiting = self._begun, self._waiting
        if begun is None:
            return
        if waiting is not None and waiting.chosen is not None and not waiting.elsewhere and reason is None:
            self._step(begun, waiting, waiting.chosen)
        plain = begun.held is not None
        if plain:
            self._release(begun, with_head=True)
        for row in begun.rows:
            ended = reason or ("done" if plain else self._reason(begun, row))
            self._recorder.end_row(row, ended, detail)
        self._begun = self._waiting = None

    # ---------------------------------------------------------------- between two calls

    def processed(self, scores: torch.Tensor, chain: list[Stage]) -> None:
        """A list of logits processors was called between two calls and gave these scores [batch, vocabulary]."""
        waiting, begun = self._waiting, self._begun
        if waiting is not None and begun is not None:
            waiting.chain = [stage for stage in chain if len(stage.survivors) == len(begun.rows)]
            waiting.processed = scores

    def drew(self, drawn: Drawn) -> torch.Tensor | None:
        """Something was drawn between two calls."""
        waiting, begun = self._waiting, self._begun
        if waiting is None or begun is None:
            return None
        waiting.drawn.append(drawn)
        if drawn.op == "multinomial" and drawn.source is not None and self._over_vocabulary(drawn.source, drawn.result):
            probs = drawn.source.reshape(-1, drawn.source.shape[-1])
            waiting.survivors = [survivors(row) for row in probs]
            return self._chosen(begun, waiting, drawn.result)
        return None

    def chose(self, scores: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """An argmax was taken between two calls."""
        waiting, begun = self._waiting, self._begun
        if waiting is None or begun is None or not self._over_vocabulary(scores, result):
            return None
        if waiting.chain and scores is waiting.processed:
            waiting.survivors = [processed_survivors(scores, row) for row in range(len(begun.rows))]
        if begun.held is not None and waiting.logits is not None and not waiting.drawn:
            waiting.elsewhere = not ordered_alike(scores.detach().reshape(waiting.logits.shape), waiting.logits)
        return self._chosen(begun, waiting, result)

    def _over_vocabulary(self, scores: torch.Tensor, result: torch.Tensor) -> bool:
        begun, waiting = self._begun, self._waiting
        width = waiting.logits.shape[-1] if waiting is not None and waiting.logits is not None else self._vocabulary
        return (
            begun is not None
            and scores.dim() > 0
            and scores.shape[-1] == width
            and scores.numel() == len(begun.rows) * scores.shape[-1]
            and result.numel() == len(begun.rows)
        )

    def _chosen(self, begun: Begun, waiting: Waiting, result: torch.Tensor) -> torch.Tensor | None:
        waiting.chosen = [int(token) for token in result.reshape(-1).tolist()]
        if self._recorder.follow is None:
            return None
        waiting.natural = list(waiting.chosen)
        for index, row in enumerate(begun.rows):
            token = self._recorder.forced(row)
            waiting.chosen[index] = waiting.chosen[index] if token is None else token
        return torch.tensor(waiting.chosen, dtype=result.dtype, device=result.device).reshape(result.shape)

    # ---------------------------------------------------------------- what the next call says

    def _goes_on(self, fed: list[list[int]], cached: int, cache: Any) -> bool:
        """Whether this call goes on with the sequences; what was chosen before it is then known."""
        begun, waiting = self._begun, self._waiting
        if begun is None or waiting is None or len(fed) != len(begun.rows) or not begun.known:
            self.finish(None, None)
            return False
        known = begun.known
        if cached == known:
            new = fed
        elif cached == begun.embedded == 0 and all(
            now[:known] == then for now, then in zip(fed, begun.ids, strict=True)
        ):
            new = [row[known:] for row in fed]
        elif begun.embedded <= cached < known and cached and cache is not None and cache is begun.cache:
            # What was only tried is taken back, as speculative decoding does.
            return self._next_turn(begun, fed, cached)
        else:
            new = []
        if not new or not new[0]:
            self.finish(None, None)
            return False
        if len(new[0]) == 1:
            self._step(begun, waiting, [row[0] for row in new])
        elif begun.held is None or waiting.chosen is not None:
            return self._next_turn(begun, new, known)
        for row, ids in zip(begun.ids, new, strict=True):
            row.extend(ids)
        self._waiting = None
        return True

    def _next_turn(self, begun: Begun, new: list[list[int]], kept: int) -> bool:
        """Tokens of another turn were fed on top of the `kept` positions of the cache: new sequences, whose prompts
        hold the old ones."""
        parents = [row.sequence for row in begun.rows]
        paddings = [row.padding for row in begun.rows]
        ids = [old[: kept - begun.embedded] + more for old, more in zip(begun.ids, new, strict=True)]
        self.finish(None, None)
        self._waiting = None
        rows = [
            self._recorder.new_row(padding, begun.embedded + len(all_ids) - padding)
            for padding, all_ids in zip(paddings, ids, strict=True)
        ]
        held: list[list[HeldCall]] = [[] for _ in rows]
        state = generator_state()
        self._begun = Begun(rows, ids, state, parents[0], held=held, places=begun.places, embedded=begun.embedded)
        return True

    def _fed(self, arguments: Json) -> torch.Tensor | None:
        """Token ids [batch, time] or embeddings [batch, time, width] of a call."""
        return fed_to(arguments, self._encodes)

    def _logits(self, output: Any) -> torch.Tensor | None:
        """[batch, time, vocabulary] of what the model answered."""
        return output_logits(output)

    def _paddings(self, arguments: Json, batch: int) -> list[int]:
        """Leading positions of each row of a first call that are padding."""
        mask = arguments.get("decoder_attention_mask" if self._encodes else "attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            seen = seen_by_each(mask.detach(), batch, 0, mask.shape[2])
            mask = None if seen is None else as_padding(seen)
        return left_padding(mask, batch)

    def _beside(self, arguments: Json, value: torch.Tensor, first: int) -> GivenBeside | None:
        """What a first call gives beside its tokens `value`, at positions `first` on, that is given again as it is."""
        model = self._recorder.model
        return None if self._encodes or model is None else GivenBeside(model, arguments, value, first)

    def _inputs(self, arguments: Json, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a first call gives beside token ids, by name: [batch, ...]; `value` is what it feeds."""
        return {"inputs_embeds": value.detach().to("cpu", copy=True)} if value.is_floating_point() else {}

    def _begin(self, arguments: Json, value: torch.Tensor, fed: list[list[int]], cached: int) -> None:
        batch = value.shape[0]
        paddings = self._paddings(arguments, batch)
        rows = [self._recorder.new_row(padding, cached + value.shape[1] - padding) for padding in paddings]
        inputs = self._inputs(arguments, value)
        fed = [[NO_TOKEN] * cached + ids for ids in fed]  # of a cache that something else has filled
        known, embedded = fed or [[] for _ in rows], 0 if fed else value.shape[1]
        held: list[list[HeldCall]] = [[] for _ in rows]
        beside = self._beside(arguments, value, cached)
        self._begun = begun = Begun(
            rows, known, generator_state(), None, inputs, held, beside=beside, embedded=embedded
        )
        axis = encoder_axis(arguments) if self._encodes else None
        if axis is not None:
            mask = arguments.get("attention_mask")
            ends = spans(mask, axis.batch, axis.time) if axis.time else [(0, 0)] * axis.batch
            begun.encoder = [encoder_inputs(arguments, axis, index, *ends[index]) for index in range(axis.batch)]
        elif self._encodes and (run := self.ran(encoded(arguments))) is not None:
            each = max(1, batch // run.axis.batch)
            begun.encoding, begun.spans = run, [span for span in run.spans() for _ in range(each)]
            begun.encoder = [run.prompt(index // each) for index in range(batch)]
        self._waiting = None

    def _step(self, begun: Begun, waiting: Waiting, tokens: list[int]) -> None:
        if begun.held is not None:
            for row in begun.rows:
                row.prompt_length = begun.known - row.padding
            self._release(begun, with_head=False)
        for index, row in enumerate(begun.rows):
            if row.reason is not None:
                continue
            self._recorder.write_step(row, self._choice(waiting, index, tokens[index]))

    def _choice(self, waiting: Waiting, index: int, token: int) -> Choice:
        choice = Choice(token)
        choice.events += [stage.event(index) for stage in waiting.chain]
        if waiting.logits is not None and self._recorder.keeps_logits:
            choice.logits = waiting.logits[index]
        if waiting.survivors is not None:
            choice.survivors = waiting.survivors[index]
        for drawn in waiting.drawn:
            source = drawn.source
            of_token = drawn.op == "multinomial" and source is not None and self._over_vocabulary(source, drawn.result)
            if of_token and source is not None:
                natural = waiting.natural or waiting.chosen
                alone = len(waiting.survivors or ()) == 1 or drawn.offset is None or drawn.generator != "mt19937"
                words = None if alone else 2 * source.shape[-1]
                offset = None if words is None or drawn.offset is None else drawn.offset + words * index
                choice.draws.append(drawn.as_json(natural[index] if natural else None, offset, words))
            else:
                choice.draws.append(drawn.as_json())
            choice.values.append(drawn.value)
        choice.own = None if waiting.natural is None else waiting.natural[index]
        chosen = waiting.chosen is not None and waiting.chosen[index] == token
        if not (chosen or waiting.drawn or is_largest(waiting.logits, index, token)):
            choice.unseen = f"{NOT_DRAWN}, and it is not the largest logit (given by the program, or drawn elsewhere)"
            choice.may_be_given = True
        return choice

    def _reason(self, begun: Begun, row: Row) -> str:
        index = begun.rows.index(row)
        waiting = self._waiting
        if waiting is not None and waiting.chosen is not None:
            last: int | None = waiting.chosen[index]
        else:
            last = begun.ids[index][-1] if begun.ids[index] else None
        return "stop" if last is not None and last in self._stops else "left"

    # ---------------------------------------------------------------- what is held back

    def _hold(self, begun: Begun, time: int) -> None:
        if begun.held is None:
            return
        for index, row in enumerate(begun.rows):
            skipped = max(0, row.next_position + row.padding - begun.first, row.padding - begun.first)
            if skipped >= time:
                continue
            first = begun.first + skipped - row.padding
            held = HeldCall(first, time - skipped, _copied(self._recorder.call_tensors(skipped, index)))
            begun.held[index].append(held)
            for rows, tail in self._recorder.tails(skipped, index):
                at = first + time - skipped - rows
                begun.held[index].append(HeldCall(at, rows, _copied(tail), tail=True))
            if begun.spans is not None:
                begin, stop = begun.spans[index]
                encoded_rows = _copied(self._recorder.encoder_tensors(index, begin, stop))
                begun.held[index].append(HeldCall(0, stop - begin, encoded_rows, axis=ENCODER))

    def _release(self, begun: Begun, *, with_head: bool) -> None:
        """Write the beginning of the sequences and the calls that were held back."""
        recorder, taps = self._recorder, self._recorder.taps
        if begun.held is None or taps is None:
            return
        if not with_head:
            taps.mark_logits()
        recorder.write_sites()
        told = begun.told
        begun.each = told is not None and told.dim() == 3
        begun.last = told if told is None or told.dim() == 2 else told[:, -1]
        for index, row in enumerate(begun.rows):
            blind = None if told is None or not begun.each else ~told[index, row.padding :].any(1)
            if blind is not None and bool(blind.any()) and row.mask_unknown is None:
                row.mask_unknown = int(blind.int().argmax())  # what it computes depends on how many it does not see
        for index, row in enumerate(begun.rows):
            ids = None if begun.embedded else begun.ids[index][row.padding :]
            inputs = {name: value[index] for name, value in begun.inputs.items()}
            inputs = {name: value[row.padding :] if value.dim() else value for name, value in inputs.items()}
            inputs |= masked_prompt(told, begun.stands, index, row.padding)
            inputs |= begun.encoder[index] if begun.encoder is not None else {}
            if begun.beside is not None:
                inputs |= begun.beside.of_row(index, row.padding, row.prompt_length + row.padding)
            recorder.begin_sequence(row, ids, inputs, begun.state, row=index, **self._metadata(begun))
            if begun.encoding is not None:
                begun.encoding.write(recorder, row, index * begun.encoding.axis.batch // len(begun.rows))
            for call in begun.held[index]:
                if call.tensors:
                    recorder.writer.call(row.sequence, call.first, call.rows, call.tensors, call.axis)
            if with_head:
                self._write_head(begun, index, row)
        begun.held = None
        begun.head = []

    def _metadata(self, begun: Begun) -> Json:
        """What else there is to write of sequences that begin."""
        told = {} if begun.beside is None else begun.beside.metadata
        return told | ({"parent": begun.parent} if begun.parent is not None else {})

    def _write_head(self, begun: Begun, index: int, row: Row) -> None:
        """The head's outputs of plain calls, where they cover all positions of their call."""
        taps = self._recorder.taps
        name = taps.head_site if taps is not None else None
        if name is None or begun.held is None:
            return
        calls = {call.first: call for call in begun.held[index] if not call.tail and call.axis is None}.values()
        for call, head in zip(calls, begun.head, strict=False):
            if head.dim() == 3 and head.shape[1] >= call.rows:
                rows = head[index, head.shape[1] - call.rows :]
                self._recorder.writer.call(row.sequence, call.first, call.rows, {name: as_tensor(rows)})


def _copied(tensors: Mapping[str, TensorLike]) -> dict[str, TensorLike]:
    """The same values in memory of their own."""
    return {
        name: Tensor(value.dtype, value.shape, bytes(value.data))
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
