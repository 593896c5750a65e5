"""Generate text with a causal language model of transformers: an ordinary program, with no tracekit in it."""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--prompt", required=True, action="append", help="may be given more than once, for a batch")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, help="0: off")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--attn", choices=["eager", "sdpa"], default="sdpa")
    parser.add_argument("--batch", type=int, default=1, help="how many continuations of each prompt")
    parser.add_argument("--prefill-chunk", type=int, help="feed the prompt in pieces of this many tokens")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, help="threads that torch may use")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype), attn_implementation=arguments.attn
    ).eval()
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    settings: dict[str, object] = {"do_sample": False}
    if not arguments.greedy:
        settings = {
            "do_sample": True,
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
        }
    if arguments.prefill_chunk:
        settings["prefill_chunk_size"] = arguments.prefill_chunk
    inputs = tokenizer(arguments.prompt, return_tensors="pt", padding=True)
    tokens = model.generate(
        **inputs,
        max_new_tokens=arguments.max_new_tokens,
        num_return_sequences=arguments.batch,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    for row in tokens:
        print(tokenizer.decode(row, skip_special_tokens=True))


if __name__ == "__main__":
    main()
