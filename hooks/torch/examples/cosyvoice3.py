"""CosyVoice3's speech-token language model: own code, with the public program's names, shapes and calls.

A Qwen2 of transformers reads text and speech tokens and predicts the next speech token. An ordinary program: there is
no tracekit in it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import AutoConfig, Qwen2ForCausalLM

RESERVED = 200
"""Rows behind the speech tokens: sos, eos, task id, fill and others. Each of them stops the speech."""
MOST_TRIALS = 100
"""Draws in a row that may give a stop token where none is allowed yet."""
Sampler = Callable[[torch.Tensor, Sequence[int], int], int]
"""(log-probabilities [V], tokens so far, `sampling`) -> token."""


# -------------------------------------------------------------------- sampling


def nucleus_sampling(weighted_scores: torch.Tensor, top_p: float = 0.8, top_k: int = 25) -> int:
    """A token from the most probable ones: taken while their sum is below `top_p` and they are fewer than `top_k`."""
    probs, order = weighted_scores.softmax(dim=0).sort(descending=True, stable=True)
    kept: list[torch.Tensor] = []
    total: Any = 0.0
    for prob in probs[:top_k]:
        if not total < top_p:
            break
        total += prob
        kept.append(prob)
    drawn = torch.stack(kept).multinomial(1, replacement=True)
    return int(order[drawn].item())


def random_sampling(weighted_scores: torch.Tensor, decoded_tokens: Sequence[int], sampling: int) -> int:
    """A token from all of them."""
    return int(weighted_scores.softmax(dim=0).multinomial(1, replacement=True).item())


def ras_sampling(
    weighted_scores: torch.Tensor,
    decoded_tokens: Sequence[int],
    sampling: int,
    top_p: float = 0.7,
    top_k: int = 25,
    win_size: int = 10,
    tau_r: float = 0.1,
) -> int:
    """Repetition-aware: a token of the nucleus, drawn again from all where the last `win_size` hold it too often."""
    token = nucleus_sampling(weighted_scores, top_p=top_p, top_k=top_k)
    count = int((torch.tensor(decoded_tokens[-win_size:]).to(weighted_scores.device) == token).sum().item())
    if count >= win_size * tau_r:
        token = random_sampling(weighted_scores, decoded_tokens, sampling)
    return token


# -------------------------------------------------------------------- the model


class Qwen2Encoder(nn.Module):
    """The decoder inside: a whole Qwen2, whose own head runs too and is not used."""

    def __init__(self, pretrain_path: str | Path) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(pretrain_path)
        config._name_or_path = str(pretrain_path)
        self.model = Qwen2ForCausalLM(config)

    def forward_one_step(self, xs: torch.Tensor, masks: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Hidden states [1, time, width] behind the final norm, and the cache. `masks` is [1, all, all]."""
        outs = self.model(
            inputs_embeds=xs,
            attention_mask=masks[:, -1, :],
            output_hidden_states=True,
            return_dict=True,
            use_cache=True,
            past_key_values=cache,
        )
        return outs.hidden_states[-1], outs.past_key_values


class Qwen2LM(nn.Module):
    """Text and speech tokens in, speech tokens out. CosyVoice2's; CosyVoice3 has other special rows."""

    sos: int
    eos_token: int
    task_id: int
    fill_token: int

    def __init__(
        self,
        llm_input_size: int,
        llm_output_size: int,
        speech_token_size: int,
        llm: Qwen2Encoder,
        sampling: Sampler,
        mix_ratio: Sequence[int] = (5, 15),
    ) -> None:
        super().__init__()
        self.llm_input_size = llm_input_size
        self.llm_output_size = llm_output_size
        self.speech_token_size = speech_token_size
        self.sampling = sampling
        self.mix_ratio = list(mix_ratio)
        self.llm = llm
        self._add_speech()

    def _add_speech(self) -> None:
        self.sos, self.task_id = 0, 1
        self.eos_token, self.fill_token = self.speech_token_size, self.speech_token_size + 2
        self.stop_token_ids = [self.speech_token_size + index for index in range(3)]
        self.llm_embedding = nn.Embedding(2, self.llm_input_size)
        self.llm_decoder = nn.Linear(self.llm_output_size, self.speech_token_size + 3)
        self.speech_embedding = nn.Embedding(self.speech_token_size + 3, self.llm_input_size)

    def special_row(self, index: int) -> torch.Tensor:
        """The embedding [1, 1, width] of sos or of the task id."""
        return self.llm_embedding.weight[index].reshape(1, 1, -1)

    def sampling_ids(
        self, weighted_scores: torch.Tensor, decoded_tokens: Sequence[int], sampling: int, ignore_eos: bool = True
    ) -> int:
        """A token; with `ignore_eos` drawn again until it is none that stops. Raises RuntimeError after many trials."""
        trials = 0
        while True:
            token = self.sampling(weighted_scores, decoded_tokens, sampling)
            if not ignore_eos or token not in self.stop_token_ids:
                return token
            trials += 1
            if trials > MOST_TRIALS:
                raise RuntimeError(f"sampling reached {MOST_TRIALS} trials and only drew stop tokens; check the input")

    @torch.inference_mode()
    def inference(
        self,
        text: torch.Tensor,
        text_len: torch.Tensor,
        prompt_text: torch.Tensor,
        prompt_text_len: torch.Tensor,
        prompt_speech_token: torch.Tensor,
        prompt_speech_token_len: torch.Tensor,
        embedding: torch.Tensor,
        sampling: int = 25,
        max_token_text_ratio: float = 20,
        min_token_text_ratio: float = 2,
        uuid: str = "",
    ) -> Generator[int, None, None]:
        """Speech tokens of a segment, one by one. Token ids are [1, n], lengths [1]; `embedding` is not used."""
        text = torch.concat([prompt_text, text], dim=1)
        text_len = text_len + prompt_text_len
        text_emb = self.llm.model.model.embed_tokens(text)
        rows = [self.special_row(self.sos), text_emb, self.special_row(self.task_id)]
        lm_input = torch.concat([*rows, self._speech_rows(prompt_speech_token, prompt_speech_token_len)], dim=1)
        min_len = int((text_len - prompt_text_len) * min_token_text_ratio)
        max_len = int((text_len - prompt_text_len) * max_token_text_ratio)
        yield from self.inference_wrapper(lm_input, sampling, min_len, max_len, uuid)

    def _speech_rows(self, tokens: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        if int(length) != 0:
            rows: torch.Tensor = self.speech_embedding(tokens)
            return rows
        weight = self.speech_embedding.weight
        return torch.zeros(1, 0, self.llm_input_size, dtype=weight.dtype, device=weight.device)

    @torch.inference_mode()
    def inference_wrapper(
        self, lm_input: torch.Tensor, sampling: int, min_len: int, max_len: int, uuid: str
    ) -> Iterator[int]:
        """Decode from `lm_input` [1, rows, width] until a stop token is drawn or `max_len` tokens are there."""
        out_tokens: list[int] = []
        cache = None
        for index in range(max_len):
            logp, cache = self._next(lm_input, cache)
            token = self.sampling_ids(logp, out_tokens, sampling, ignore_eos=index < min_len)
            if token in self.stop_token_ids:
                break
            yield token
            out_tokens.append(token)
            lm_input = self.speech_embedding.weight[token].reshape(1, 1, -1)
        logging.info("LLM generated %d speech tokens", len(out_tokens))

    def _next(self, lm_input: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Log-probabilities [V] behind the last row, and the cache."""
        length = lm_input.shape[1] + (0 if cache is None else cache.get_seq_length())
        masks = torch.tril(torch.ones((1, length, length), device=lm_input.device)).to(torch.bool)
        y_pred, cache = self.llm.forward_one_step(lm_input, masks=masks, cache=cache)
        logp = self.llm_decoder(y_pred[:, -1]).log_softmax(dim=-1)
        return logp.squeeze(dim=0), cache

    @torch.inference_mode()
    def inference_bistream(
        self,
        text: Iterable[torch.Tensor],
        prompt_text: torch.Tensor,
        prompt_text_len: torch.Tensor,
        prompt_speech_token: torch.Tensor,
        prompt_speech_token_len: torch.Tensor,
        embedding: torch.Tensor,
        sampling: int = 25,
        max_token_text_ratio: float = 20,
        min_token_text_ratio: float = 2,
    ) -> Generator[int, None, None]:
        """Speech tokens while the text still comes in pieces [1, n]: so many of text, then so many of speech."""
        of_text, of_speech = self.mix_ratio
        embed_text = self.llm.model.model.embed_tokens
        out_tokens: list[int] = []
        cache = None
        lm_input = self.special_row(self.sos)
        speech = self._speech_rows(prompt_speech_token, prompt_speech_token_len)
        waiting = embed_text(prompt_text)
        given = prompt_speech_token.shape[1]
        next_fill = (given // of_speech + 1) * of_speech - given
        for piece in text:
            waiting = torch.concat([waiting, embed_text(piece)], dim=1)
            while speech.size(1) != 0 and waiting.size(1) >= of_text:
                lm_input = torch.concat([lm_input, waiting[:, :of_text], speech[:, :of_speech]], dim=1)
                waiting, speech = waiting[:, of_text:], speech[:, of_speech:]
            if speech.size(1) != 0:
                continue
            filled = bool(out_tokens) and out_tokens[-1] == self.fill_token
            if filled or (not out_tokens and lm_input.size(1) == 1):
                if waiting.size(1) < of_text:
                    continue
                more = waiting[:, :of_text]
                lm_input = more if filled else torch.concat([lm_input, more], dim=1)
                waiting = waiting[:, of_text:]
            while True:
                logp, cache = self._next(lm_input, cache)
                if len(out_tokens) == next_fill:
                    token = self.fill_token
                    next_fill += of_speech + 1
                else:
                    token = self.sampling_ids(logp, out_tokens, sampling, ignore_eos=True)
                out_tokens.append(token)
                if token == self.fill_token:
                    break
                yield token
                lm_input = self.speech_embedding.weight[token].reshape(1, 1, -1)
        rest = [waiting, self.special_row(self.task_id), speech]
        # After a fill token nothing of the old input is left to feed.
        fed = bool(out_tokens) and out_tokens[-1] == self.fill_token
        lm_input = torch.concat(rest if fed else [lm_input, *rest], dim=1)
        while True:
            logp, cache = self._next(lm_input, cache)
            token = self.sampling_ids(logp, out_tokens, sampling, ignore_eos=False)
            out_tokens.append(token)
            if token in self.stop_token_ids:
                break
            yield token
            lm_input = self.speech_embedding.weight[token].reshape(1, 1, -1)
        logging.info("LLM generated %d speech tokens", sum(token < self.speech_token_size for token in out_tokens))


class CosyVoice3LM(Qwen2LM):
    """CosyVoice3's: sos, eos, task id and fill are rows of the speech embedding, and every reserved row stops."""

    def _add_speech(self) -> None:
        first = self.speech_token_size
        self.sos, self.eos_token, self.task_id, self.fill_token = first, first + 1, first + 2, first + 3
        self.stop_token_ids = [first + index for index in range(RESERVED)]
        self.llm_decoder = nn.Linear(self.llm_output_size, first + RESERVED, bias=False)
        self.speech_embedding = nn.Embedding(first + RESERVED, self.llm_input_size)

    def special_row(self, index: int) -> torch.Tensor:
        return self.speech_embedding.weight[index].reshape(1, 1, -1)


# -------------------------------------------------------------------- a model folder


class _Tagged(yaml.SafeLoader):
    """Reads `!new:`, `!name:` and their like as the plain mapping, sequence or text that they stand before."""


def _untagged(loader: _Tagged, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_Tagged.add_multi_constructor("!", _untagged)


def settings_of(folder: Path) -> dict[str, Any]:
    """The `llm` part of `cosyvoice3.yaml`, tags left out and `<names>` filled in."""
    whole = yaml.load((folder / "cosyvoice3.yaml").read_text(), Loader=_Tagged)
    llm: dict[str, Any] = whole["llm"]

    def filled(value: Any) -> Any:
        named = isinstance(value, str) and value.startswith("<") and value.endswith(">")
        return whole[value[1:-1]] if named else value

    return {name: filled(value) for name, value in llm.items()}


def load(folder: Path, weights: str = "llm.rl.pt") -> CosyVoice3LM:
    """The model of a folder: `cosyvoice3.yaml`, `CosyVoice-BlankEN/config.json` and the weights."""
    settings = settings_of(folder)
    model = CosyVoice3LM(
        llm_input_size=settings["llm_input_size"],
        llm_output_size=settings["llm_output_size"],
        speech_token_size=settings["speech_token_size"],
        llm=Qwen2Encoder(folder / "CosyVoice-BlankEN"),
        sampling=functools.partial(ras_sampling, **settings["sampling"]),
        mix_ratio=settings["mix_ratio"],
    )
    model.load_state_dict(torch.load(folder / weights, map_location="cpu", weights_only=True), strict=True)
    return model.eval()
