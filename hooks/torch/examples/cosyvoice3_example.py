"""Speak two texts with CosyVoice3's language model: an ordinary program, with no tracekit in it.

python scripts/make_cosyvoice3.py .cache/cosyvoice3
python hooks/torch/examples/cosyvoice3_example.py --model .cache/cosyvoice3 --seed 0
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cosyvoice3 import CosyVoice3LM, load
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXTS = (
    "Welcome back to the evening programme; tonight we will walk along the old harbour and listen to the ships.",
    "The last train leaves at nine, so please have your ticket ready before you reach the platform.",
)
PREFIX = "You are a helpful assistant. Please speak in English.<|endofprompt|>"
TOKENS_A_SECOND = 25
PIECE = 7
"""Text tokens that come at a time with --stream."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--text", action="append", help="may be given more than once; default: two texts")
    parser.add_argument("--prompt-text", default=PREFIX, help="what goes before each text; default: the prefix")
    parser.add_argument("--prompt-speech-tokens", help="safetensors file, `-` for none; default: the model folder's")
    parser.add_argument("--seed", type=int, help="seed torch once, before the first text")
    parser.add_argument("--top-p", type=float, help="instead of the number in cosyvoice3.yaml")
    parser.add_argument("--stream", action="store_true", help="let the text come in pieces")
    parser.add_argument("--stop-after", type=int, help="leave each generation after this many speech tokens")
    parser.add_argument("--fail-after", type=int, help="raise in the last text after this many speech tokens")
    parser.add_argument("--out-tokens", type=Path, help="write the speech tokens to this safetensors file")
    parser.add_argument("--threads", type=int, help="threads that torch may use")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model / "CosyVoice-BlankEN")
    model = load(arguments.model)
    if arguments.top_p is not None:
        model.sampling.keywords["top_p"] = arguments.top_p  # type: ignore[attr-defined]
    speech = prompt_speech(arguments)
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    texts = arguments.text or TEXTS
    spoken = {}
    for index, text in enumerate(texts):
        fails = arguments.fail_after if index == len(texts) - 1 else None
        tokens = limited(speak(model, tokenizer, text, speech, arguments), arguments.stop_after, fails)
        spoken[f"segment_{index}"] = torch.tensor(list(tokens), dtype=torch.int64)
        print(f"{len(spoken[f'segment_{index}']) / TOKENS_A_SECOND:.2f} s: {text}")
    if arguments.out_tokens:
        save_file(spoken, arguments.out_tokens)


def prompt_speech(arguments: argparse.Namespace) -> torch.Tensor:
    """The prompt's speech tokens, [1, n]."""
    if arguments.prompt_speech_tokens == "-":
        return torch.zeros(1, 0, dtype=torch.int64)
    path = arguments.prompt_speech_tokens or arguments.model / "prompt_speech_tokens.safetensors"
    return load_file(path)["speech_token_ids"].unsqueeze(0)


def speak(
    model: CosyVoice3LM,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    speech: torch.Tensor,
    arguments: argparse.Namespace,
) -> Iterator[int]:
    """Speech tokens of a text, one by one."""
    prompt, words = (encoded(tokenizer, part) for part in (arguments.prompt_text, text))
    print(f"prompt text {prompt.shape[1]} tokens, text {words.shape[1]}, prompt speech {speech.shape[1]}")
    shared: dict[str, Any] = {
        "prompt_text": prompt,
        "prompt_text_len": length(prompt),
        "prompt_speech_token": speech,
        "prompt_speech_token_len": length(speech),
        "embedding": torch.zeros(1, 192),
    }
    if arguments.stream:
        return model.inference_bistream(text=iter(torch.split(words, PIECE, dim=1)), **shared)
    return model.inference(text=words, text_len=length(words), uuid="example", **shared)


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Token ids of a text, [1, n]."""
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False)], dtype=torch.int64)


def length(tokens: torch.Tensor) -> torch.Tensor:
    """[1]: the length of [1, n] tokens, as the model wants it."""
    return torch.tensor([tokens.shape[1]], dtype=torch.int32)


def limited(tokens: Iterator[int], most: int | None, fails: int | None) -> Iterator[int]:
    """The first tokens of a generation, which is then left without asking for one more; or an error in the middle."""
    for count, token in enumerate(tokens, start=1):
        yield token
        if count == fails:
            raise RuntimeError(f"failed on purpose after {count} speech tokens")
        if count == most:
            return


if __name__ == "__main__":
    main()
