"""The museum: faults that were reported in public, staged one by one. A row is one issue thread.

`python -m benchmarks.fault_bench.museum` runs them and writes docs/museum.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.fault_bench.fault import Expected, Fault, layer
from benchmarks.fault_bench.kinds import Dice, core, gated
from benchmarks.fault_bench.setups import SETUPS

Staging = Callable[[Dice], Fault]


@dataclass(frozen=True)
class Exhibit:
    """One thread: what was wrong, and how it is staged."""

    thread: str
    words: str
    setup: str
    stage: Staging

    def fault(self, dice: Dice) -> Fault:
        """The fault, named after its thread."""
        return replace(self.stage(dice), name=self.words, thread=self.thread)


def torch_side(kind: str, expected: Expected, /, twin: dict[str, Any] | None = None, **given: Any) -> Staging:
    """Staged in PyTorch."""
    return lambda dice: Fault("torch", dice.setup, kind, given, expected, twin)


def native(fault: str, expected: Expected, *words: str) -> Staging:
    """Staged in the Rust engine, with more words on its command line."""
    return lambda dice: Fault("native", dice.setup, fault, {"words": words} if words else {}, expected)


def at_core(**options: Any) -> Staging:
    """Staged in the attention cores of all layers, written out."""
    return torch_side("core", layer(core(0)), {}, **options)


def prompt(edit: Callable[[Dice, list[int]], list[int]]) -> Staging:
    """Another prompt."""

    def stage(dice: Dice) -> Fault:
        ids = edit(dice, list(dice.studio.run(SETUPS[dice.setup]).ids[0]))
        return Fault("torch", dice.setup, "prompt", {"ids": ids}, Expected(("input",), ("prompt/token_ids",)))

    return stage


def text(change: Callable[[str], str], **options: Any) -> Staging:
    """The prompt of another text, or of other tokens of the same text."""
    return prompt(lambda dice, _: dice.studio.encode(change(SETUPS[dice.setup].prompt), **options))


def stopping(kind: str, expected: Expected, name: str, which: int) -> Staging:
    """A stop rule that knows only one of two ids (0: the one that never comes)."""

    def stage(dice: Dice) -> Fault:
        ids = dice.studio.run(SETUPS[dice.setup]).settings["eos_token_id"]
        value: Any = [ids[which]] if name == "tokens" else ids[which]
        return Fault("torch", dice.setup, kind, {name: value}, expected)

    return stage


def forced_token(step: int) -> Staging:
    """A processor of an earlier call forces a token."""
    return torch_side("forced", Expected(("filter",), ("survivors",), step), token=5, step=step)


FILTER = Expected(("filter",), ("survivors",), None)
STATED = Expected(("config",), ("survivors",), None)
STOP = Expected(("stop",), ("stop",), None)
STATED_STOP = Expected(("config",), ("stop",), None)
RNG = Expected(("rng",), ("draws",))
SEED = Expected(("config", "rng"), ("draws",))
OTHER_DRAW = Expected(("sampler", "rng"), ("draws", "token", "survivors"), None)
QUIET = "--quiet-config"

ROTARY = [
    Exhibit(
        "lyogavin/airllm#368",
        "rotary theta of the config dropped, 10000 used",
        "smollm2",
        native("rope-theta:10000", layer(core(0)), QUIET),
    ),
    Exhibit(
        "ml-explore/mlx-examples#170",
        "interleaved rotation on a half-split checkpoint",
        "smollm2",
        native("rope-interleaved", layer(core(0))),
    ),
    Exhibit(
        "ggml-org/llama.cpp#3364",
        "rows of the K projection permuted with a wrong head count",
        "smollm2",
        torch_side(
            "rows-permuted", layer("model.layers.0.self_attn.k_proj"), site="model.layers.0.self_attn.k_proj", heads=6
        ),
    ),
    Exhibit(
        "ml-explore/mlx-lm#1698",
        "whole head rotated where half should be",
        "stablelm",
        torch_side("rope-whole", layer(core(0))),
    ),
    Exhibit(
        "Blaizzy/mlx-vlm#1710",
        "llama3 rotary scaling dropped",
        "llama3-rope",
        native("rope-scaling-off", layer(core(0))),
    ),
    Exhibit(
        "ml-explore/mlx-lm#660",
        "LongRoPE: long factors at every length",
        "llama-longrope",
        torch_side("rope-frequencies", layer(core(0)), divide=[1.0, 2.0, 3.0, 5.0, 8.0, 11.0, 14.0, 20.0]),
    ),
    Exhibit(
        "Blaizzy/mlx-vlm#1709",
        "a layer's own rotary scaling left out",
        "llama-linear",
        torch_side("rope-frequencies", layer(core(1)), layer=1, plain=True),
    ),
    Exhibit(
        "onnxruntime/mobius#548", "square of mscale missing in the softmax scale", "smollm2", at_core(scale=1 / 1.59)
    ),
    Exhibit(
        "huggingface/transformers#29285",
        "rotary angles rounded to bfloat16",
        "smollm2",
        native("rope-angles-bf16", layer(core(0))),
    ),
    Exhibit(
        "kvcache-ai/sglang#31",
        "first prefill attends unrotated keys, the cache is right",
        "smollm2",
        native("rope-k-unrotated", layer(core(0))),
    ),
]

POSITIONS = [
    Exhibit(
        "Blaizzy/mlx-vlm#1983",
        "every decoded token stands at position 0",
        "smollm2",
        native("rope-decode-zero", layer(core(0), step=1, at_position=True)),
    ),
    Exhibit(
        "microsoft/onnxruntime-genai#2354",
        "first decoded row written one slot late, a blank one attended",
        "smollm2",
        native("cache-hole:1", layer(core(0), step=1, at_position=True)),
    ),
    Exhibit(
        "unslothai/unsloth#3699",
        "left-padded batch: one position vector for all rows",
        "gpt2",
        torch_side("shared-positions", layer("transformer.wpe")),
    ),
    Exhibit(
        "scouzi1966/maclocal-api#92",
        "decode queries shifted by the row's padding",
        "smollm2",
        torch_side("rope-offset", layer(core(0), step=1, at_position=True), by=3),
    ),
    Exhibit(
        "huggingface/sentence-transformers#3879",
        "learned positions counted from 0 instead of padding_idx + 1",
        "roberta",
        torch_side("position-embedding-offset", layer("embeddings.position_embeddings"), by=-2),
    ),
    Exhibit(
        "Blaizzy/mlx-vlm#1715",
        "sliding window's ring buffer holds a wrong row",
        "mistral",
        torch_side("cache-window-row", layer(core(1), step=3), layer=1, step=3),
    ),
]

MASKS = [
    Exhibit("huggingface/transformers#39408", "window of W + 1 keys instead of W", "mistral", at_core(window_end=1)),
    Exhibit(
        "huggingface/transformers#31775",
        "sliding and full layers alternate the wrong way round",
        "gemma2",
        torch_side("core", layer(core(0)), {"layer": 0}, layer=0, window=None),
    ),
]

NORMS = [
    Exhibit(
        "huggingface/candle#271",
        "norm eps 1e-6 in place of 1e-5",
        "smollm2",
        native("norm-eps:1e-6", layer("model.layers.0.input_layernorm"), QUIET),
    ),
    Exhibit(
        "pytorch/executorch#19901",
        "norm weight w where 1 + w is meant",
        "gemma2",
        torch_side(
            "norm-plus-one", layer("model.layers.0.input_layernorm"), site="model.layers.0.input_layernorm", amount=-1.0
        ),
    ),
    Exhibit(
        "vllm-project/vllm#31464",
        "1 added twice to a norm's weight",
        "gemma2",
        torch_side("norm-plus-one", layer("model.layers.1.input_layernorm"), site="model.layers.1.input_layernorm"),
    ),
    Exhibit(
        "vllm-project/vllm-metal#659",
        "norm of the queries skipped",
        "qwen3",
        torch_side("norm-skipped", layer("model.layers.0.self_attn.q_norm"), site="model.layers.0.self_attn.q_norm"),
    ),
]

ATTENTION = [
    Exhibit(
        "sbryngelson/ANEForge#253",
        "bias of a projection never loaded",
        "qwen2",
        native("missing-bias:model.layers.0.self_attn.q_proj", layer("model.layers.0.self_attn.q_proj")),
    ),
    Exhibit(
        "huggingface/text-generation-inference#1036",
        "bias added twice",
        "qwen2",
        native("double-bias:model.layers.1.self_attn.v_proj", layer("model.layers.1.self_attn.v_proj")),
    ),
    Exhibit(
        "HazyResearch/HipKittens#22",
        "KV head index with the group size as modulus and stride",
        "llama-8-heads",
        at_core(heads="stride"),
    ),
    Exhibit("ollama/ollama#13893", "softmax scale of another width", "smollm2", at_core(scale=(256 / 576) ** 0.5)),
    Exhibit("vllm-project/vllm-metal#665", "attention soft cap left out", "gemma2", at_core(cap=None)),
    Exhibit(
        "ml-explore/mlx#3071",
        "ALiBi slopes for head counts that are no power of two",
        "bloom",
        torch_side("alibi-slopes", layer("transformer.h.0.self_attention.dense:in")),
    ),
    Exhibit(
        "huggingface/candle#3703",
        "transposed view read as if it were contiguous",
        "smollm2",
        torch_side("core", layer(core(2)), {"layer": 2}, layer=2, layout="untransposed"),
    ),
]

BLOCK = [
    Exhibit(
        "huggingface/candle#3745",
        "SiLU where tanh GELU is meant",
        "gemma2",
        torch_side("activation", layer(gated(0)), layer=0, name="silu"),
    ),
    Exhibit(
        "sgl-project/sglang#32430", "gate and up in the wrong order", "smollm2", native("swap-gate-up", layer(gated(0)))
    ),
    Exhibit(
        "jundot/omlx#2571",
        "clamp of the gated activation in one of two engines",
        "smollm2",
        torch_side("clamped", layer(gated(20)), layer=20, limit=0.05),
    ),
    Exhibit(
        "TensorAuto/OpenTau#179",
        "embedding scale applied once too often",
        "smollm2",
        native("embed-scale", layer("model.embed_tokens", "model.layers.0.input_layernorm:in")),
    ),
    Exhibit(
        "sgl-project/sglang#1508",
        "tied head not wired, random",
        "smollm2",
        torch_side("random-head", layer("logits"), site="lm_head"),
    ),
    Exhibit(
        "ml-explore/mlx-lm#586",
        "attention and MLP read the same input",
        "smollm2",
        native("parallel-residual:3", layer("model.layers.3.post_attention_layernorm:in")),
    ),
    Exhibit(
        "tenstorrent/tt-xla#4190",
        "head reads another row of the prefill",
        "smollm2",
        torch_side("head-row", layer("lm_head:in", "logits")),
    ),
]

PRECISION = [
    Exhibit(
        "ggml-org/llama.cpp#10232",
        "products of queries and keys in float16",
        "smollm2",
        native("attention-scores-f16", layer(core(0))),
    ),
    Exhibit(
        "ggml-org/llama.cpp#13137",
        "matmul ignores that float32 was asked for",
        "smollm2",
        torch_side(
            "linear-in", layer("model.layers.4.mlp.up_proj"), site="model.layers.4.mlp.up_proj", dtype="bfloat16"
        ),
    ),
    Exhibit(
        "huggingface/transformers#36832",
        "residual stream in float16",
        "smollm2",
        native("residual-f16:8", layer("model.layers.8.post_attention_layernorm:in")),
    ),
    Exhibit(
        "vllm-project/vllm#38966",
        "every weight one quantisation step too large",
        "smollm2",
        torch_side("zero-point", layer("model.layers.6.mlp.gate_proj"), site="model.layers.6.mlp.gate_proj"),
    ),
]

FILTERS = [
    Exhibit(
        "mlc-ai/mlc-llm#951", "temperature and top-p swapped", "smollm2", native("swapped-temperature-top-p", FILTER)
    ),
    Exhibit(
        "ggml-org/llama.cpp#1953", "token that crosses top-p is lost", "smollm2", native("top-p-drops-crossing", FILTER)
    ),
    Exhibit(
        "fishaudio/fish-speech#1171",
        "token that crosses top-p is lost",
        "qwen2",
        torch_side("top-p-rule", FILTER, which="crossing-dropped"),
    ),
    Exhibit(
        "kingoflolz/mesh-transformer-jax#164",
        "k + 1 tokens survive top-k",
        "smollm2-top-k",
        native("top-k-off-by-one", FILTER),
    ),
    Exhibit(
        "ml-explore/mlx-lm#388",
        "top-p measures the mass before top-k",
        "smollm2",
        torch_side("top-p-rule", FILTER, which="unnormalised"),
    ),
    Exhibit(
        "sgl-project/sglang-jax#1563",
        "temperature applied after the filters",
        "smollm2",
        native("temperature-after-top-p", FILTER),
    ),
    Exhibit(
        "fishaudio/fish-speech#1150",
        "temperature applied after the top-p cut",
        "qwen2-penalty",
        torch_side("order", FILTER, words=["TopK", "TopP", "Temperature"]),
    ),
    Exhibit(
        "timtoole02/Camelid#534",
        "temperature first where min-p measures the plain mass",
        "qwen2-min-p",
        torch_side("order", FILTER, words=["MinP", "Temperature"]),
    ),
    Exhibit(
        "lablup/mlxcel#1379", "order of the cuts: top-p before top-k", "smollm2", native("top-p-before-top-k", FILTER)
    ),
    Exhibit(
        "vllm-project/vllm#50979",
        "exactly k kept where ties at the k-th stay",
        "smollm2-ties-bf16",
        torch_side("top-k-exact", FILTER),
    ),
    Exhibit(
        "vllm-project/vllm#2415",
        "top-k 50 by default where it is off",
        "qwen2-open",
        torch_side("settings", STATED, top_k=50),
    ),
    Exhibit("Blaizzy/mlx-audio#68", "top-k 1 by default", "smollm2", torch_side("settings", STATED, top_k=1)),
    Exhibit(
        "CrispStrobe/CrispASR#337",
        "temperature flag does not reach the sampler",
        "smollm2",
        native("temperature-ignored", FILTER),
    ),
    Exhibit(
        "Blaizzy/mlx-audio#897", "a stop token escapes the cuts", "qwen2", torch_side("spliced-back", FILTER, token=319)
    ),
    Exhibit(
        "NVIDIA/TensorRT-LLM#12358",
        "minimum length forbids the last id instead of the stop id",
        "qwen2-minimum",
        torch_side("minimum-masks", FILTER, tokens=[319]),
    ),
    Exhibit(
        "QwenAudio/CosyVoice#1916",
        "minimum length forbids only the first of the stop ids",
        "qwen2-minimum",
        stopping("minimum-masks", FILTER, "tokens", 0),
    ),
    Exhibit(
        "vllm-project/vllm#15407",
        "further stop ids lost, minimum length without effect",
        "qwen2-minimum",
        stopping("minimum-masks", FILTER, "tokens", 0),
    ),
    Exhibit("resemble-ai/chatterbox#510", "hooks of earlier calls force a token", "qwen2", forced_token(5)),
    Exhibit(
        "microsoft/onnxruntime-genai#2241",
        "no-repeat n-gram read and never applied",
        "qwen2-ngram",
        torch_side(
            "processor-dropped", Expected(("filter", "sampler"), ("survivors", "token"), None), word="NoRepeatNGram"
        ),
    ),
]

PENALTIES = [
    Exhibit(
        "vllm-project/vllm#1577",
        "penalty looks at generated tokens only",
        "qwen2-penalty",
        native("penalty-generated-only", FILTER),
    ),
    Exhibit(
        "sgl-project/sglang-omni#1817", "penalty applied twice", "qwen2-penalty", native("penalty-squared", FILTER)
    ),
    Exhibit(
        "huggingface/transformers#2302",
        "penalty divides negative logits too",
        "qwen2-penalty-open",
        native("penalty-divides-negative", FILTER),
    ),
    Exhibit(
        "mlc-ai/mlc-llm#2451",
        "penalty's sign test the wrong way round",
        "qwen2-penalty",
        native("penalty-inverted-sign", FILTER),
    ),
    Exhibit(
        "ml-explore/mlx-lm#1225",
        "a row reads another row's token list",
        "qwen2-batch",
        torch_side("penalty-rule", FILTER, which="other-row"),
    ),
    Exhibit(
        "vllm-project/vllm-omni#6458",
        "penalty over a window instead of the whole stream",
        "qwen2-penalty",
        native("penalty-window:4", FILTER),
    ),
    Exhibit("vllm-project/vllm-omni#7667", "penalty left out", "qwen2-penalty", native("penalty-ignored", FILTER)),
    Exhibit(
        "vllm-project/vllm-metal#69",
        "first step's penalty does not see the prompt",
        "qwen2-penalty-open",
        torch_side("first-step-unpenalised", FILTER, word="RepetitionPenalty"),
    ),
    Exhibit("youssofal/MTPLX#156", "penalty's list one token stale", "qwen2-penalty", native("penalty-stale", FILTER)),
    Exhibit(
        "EleutherAI/lm-evaluation-harness#3154",
        "penalty of generation_config applied by one side",
        "qwen2",
        torch_side("settings", STATED, repetition_penalty=1.1),
    ),
    Exhibit(
        "huggingface/text-generation-inference#1796",
        "neutral penalty becomes 2",
        "qwen2-penalty",
        torch_side("value", FILTER, word="RepetitionPenalty", name="penalty", to=2.0),
    ),
    Exhibit(
        "gianlucamazza/xllama#141",
        "penalty runs before argmax at temperature 0",
        "qwen2-greedy",
        torch_side("settings", Expected(("config", "sampler"), ("survivors", "token"), None), repetition_penalty=1.5),
    ),
]

DRAWS = [
    Exhibit(
        "RVC-Boss/GPT-SoVITS#835",
        "other noise in place of the exponential",
        "smollm2",
        torch_side("other-noise", OTHER_DRAW),
    ),
    Exhibit("openai/gpt-oss#270", "a second rank draws its own token", "smollm2", torch_side("seed", SEED, delta=1)),
    Exhibit(
        "ohdearquant/lattice#243",
        "a draft token is accepted unchecked",
        "smollm2-greedy",
        torch_side("token-replaced", Expected(("sampler",), ("token",), 3), step=3),
    ),
    Exhibit(
        "ROCm/ATOM#2318",
        "argmax at every drafted position",
        "smollm2",
        torch_side("argmax", OTHER_DRAW, steps=[1, 2, 4, 5]),
    ),
    Exhibit(
        "EricLBuehler/mistral.rs#2424",
        "argmax of the filtered distribution",
        "smollm2",
        torch_side("argmax", OTHER_DRAW),
    ),
    Exhibit(
        "tenstorrent/tt-metal#32025",
        "first token is always the largest",
        "smollm2",
        native("first-token-greedy", OTHER_DRAW),
    ),
    Exhibit(
        "thinking-machines-lab/tinker-cookbook#198",
        "temperature 0 acts like 1",
        "smollm2-greedy",
        native(
            "temperature-zero-as-one",
            Expected(("sampler", "config", "rng", "filter"), ("token", "draws", "survivors"), None),
        ),
    ),
    Exhibit(
        "CrispStrobe/CrispASR#197",
        "argmax without penalty where the reference samples",
        "qwen2-penalty",
        torch_side(
            "settings",
            Expected(("config",), ("survivors", "draws", "token"), None),
            do_sample=False,
            repetition_penalty=1.0,
        ),
    ),
    Exhibit(
        "vllm-project/vllm#51226", "a seeded request loses its seed", "smollm2", torch_side("seed", SEED, delta=12345)
    ),
    Exhibit(
        "tenstorrent/tt-xla#4539",
        "generator seeded again for each token",
        "smollm2",
        native("seed-each-step", Expected(("rng",), ("draws",), 1)),
    ),
    Exhibit("tenstorrent/tt-metal#53802", "a salt is added to the seed", "smollm2", native("seed:7", RNG)),
    Exhibit(
        "Blaizzy/mlx-vlm#2029",
        "draws used in another order",
        "smollm2",
        native("extra-draw:3", Expected(("rng",), ("draws",), 3)),
    ),
    Exhibit(
        "Blaizzy/mlx-audio#571",
        "a retry draws again",
        "smollm2",
        torch_side("drawn-twice", Expected(("rng",), ("draws",), 4), step=4),
    ),
]

STOPS = [
    Exhibit(
        "NVIDIA/TensorRT-Model-Connect#640",
        "only one of the stop ids is honoured",
        "qwen2-stops",
        stopping("stops", STOP, "token", 0),
    ),
    Exhibit(
        "Blaizzy/mlx-vlm#2112",
        "configured stop id replaces the tokenizer's",
        "qwen2-stops",
        stopping("settings", STATED_STOP, "eos_token_id", 0),
    ),
    Exhibit("vllm-project/vllm#45591", "stop ids dropped by an override", "qwen2-stops", torch_side("stops", STOP)),
    Exhibit(
        "vllm-project/vllm-omni#2486",
        "length limit falls back to 16",
        "qwen2-greedy",
        torch_side("settings", STATED_STOP, max_new_tokens=16),
    ),
    Exhibit(
        "openvinotoolkit/openvino.genai#4189",
        "last token dropped at the length limit",
        "smollm2",
        native("drop-last-token", STOP),
    ),
]

PROMPTS = [
    Exhibit(
        "InfiniTensor/InfiniLM#388",
        "first token twice",
        "smollm2-chat",
        native("bos-twice", Expected(("input",), ("prompt/token_ids",))),
    ),
    Exhibit("abetlen/llama-cpp-python#1537", "first token missing", "smollm2-chat", prompt(lambda _, ids: ids[1:])),
    Exhibit(
        "FlashML-org/FreeToken#315",
        "special token split into sub-words",
        "smollm2-chat",
        text(lambda words: words, split_special_tokens=True),
    ),
    Exhibit(
        "vllm-project/vllm-omni#4756",
        "instruction wrapper dropped",
        "smollm2-chat",
        text(lambda words: words.removeprefix("<|im_start|>user\n")),
    ),
    Exhibit(
        "ggml-org/llama.cpp#7193",
        "a word's bytes merged by other rules",
        "smollm2",
        prompt(
            lambda dice, _: [
                *dice.studio.encode("The history of Rome began when two bro"),
                *dice.studio.encode("thers"),
            ]
        ),
    ),
    Exhibit(
        "ggml-org/llama.cpp#4772",
        "leading space after a special token lost",
        "smollm2-chat",
        text(lambda words: words.replace("\nName", "\n Name")),
    ),
    Exhibit(
        "ggml-org/llama.cpp#4025",
        "special tokens of the prompt not parsed",
        "smollm2-chat",
        text(lambda words: words, split_special_tokens=True),
    ),
    Exhibit(
        "utilityai/llama-cpp-rs#1096",
        "end mark of the turn missing",
        "smollm2-chat",
        text(lambda words: words.replace("<|im_end|>", "")),
    ),
    Exhibit(
        "vllm-project/vllm#20717",
        "template adds white space",
        "smollm2-chat",
        text(lambda words: words.replace("<|im_end|>\n", "<|im_end|>\n\n")),
    ),
    Exhibit(
        "withcatai/node-llama-cpp#634",
        "text after the assistant header dropped",
        "smollm2-chat",
        text(lambda words: words.removesuffix("assistant\n")),
    ),
    Exhibit(
        "huggingface/transformers#20652", "start token twice", "smollm2-chat", prompt(lambda _, ids: [ids[0], *ids])
    ),
    Exhibit(
        "TransformerLensOrg/TransformerLens#1760",
        "padding on the right, its mask thrown away",
        "qwen2",
        prompt(lambda _, ids: [*ids, 319, 319]),
    ),
    Exhibit("ggml-org/llama.cpp#26700", "text fed a second time", "smollm2", text(lambda words: f"{words} {words}")),
    Exhibit(
        "SparkAudio/Spark-TTS#90",
        "end mark after the reference text missing",
        "smollm2-chat",
        text(lambda words: words.replace("<|im_end|>\n", "")),
    ),
    Exhibit(
        "elbruno/ElBruno.QwenTTS#37",
        "parts of the prompt in another order",
        "smollm2",
        prompt(lambda _, ids: [*ids[4:], *ids[:4]]),
    ),
    Exhibit(
        "nvidia-china-sae/mair-hub#35",
        "special ids of another model version",
        "smollm2-chat",
        prompt(lambda _, ids: [ids[0] + 1, *ids[1:]]),
    ),
]

EXHIBITS = [
    *ROTARY,
    *POSITIONS,
    *MASKS,
    *NORMS,
    *ATTENTION,
    *BLOCK,
    *PRECISION,
    *FILTERS,
    *PENALTIES,
    *DRAWS,
    *STOPS,
    *PROMPTS,
]

ABSENT = {
    "sgl-project/sglang#29368": "state of a recurrent layer; no dense decoder has one",
    "vllm-project/vllm#49616": "a rounding moved by one operation: 0.85 units of roundoff, as correct norms differ",
    "huggingface/transformers#39389": "block of image tokens; no images here",
    "vllm-project/vllm#52156": "learned attention sinks; the dense decoders of transformers have none",
    "lablup/mlxcel#391": "router of a mixture of experts",
    "vllm-project/vllm#12002": "router of a mixture of experts",
    "vllm-project/vllm#24119": "router of a mixture of experts",
    "vllm-project/vllm-ascend#15953": "shared expert of a mixture of experts",
    "vllm-project/vllm-gaudi#1796": "experts spread over ranks",
    "huggingface/transformers#18976": "shows only where the mass is p to the last bit; no step of a real run is",
    "qi-hua/async_cosyvoice#126": "repetition-aware sampling; transformers' chain has no such rule",
    "huggingface/transformers.js#1705": "classifier-free guidance takes two forward calls a step",
    "huggingface/transformers#26672": "the reference stops by the end token's probability, as transformers never does",
    "ggml-org/whisper.cpp#1098": "encoder-decoder: its steps are not recorded; as a prompt it is llama.cpp#7193",
    "vllm-project/vllm#56981": "audio placeholders; as a prompt of another length it is llama.cpp#26700",
    "elbruno/ElBruno.QwenTTS#16": "speaker embedding; the decoders here are given token ids",
    "huggingface/optimum-nvidia#66": "the same as text-generation-inference#1796: another neutral value of the penalty",
    "ml-explore/mlx-examples#1427": "retry rule of a whole Whisper segment, outside one generation",
    "sgl-project/sglang#2664": "which log-probabilities are reported, not which token is drawn",
    "PrimeIntellect-ai/prime-rl#697": "which log-probabilities are reported, not which token is drawn",
    "huggingface/transformers#39421": "near-tie, no fault: among the harmless rewrites (prefill in chunks)",
    "vllm-project/vllm#40896": "near-tie, no fault: among the harmless rewrites (prefill in chunks)",
    "am17an/llama.cpp#38": "near-tie, no fault: among the harmless rewrites (token by token)",
    "blazux/qwen3.8-Flash-DGX#32": "near-tie, no fault: among the harmless rewrites (batches)",
    "sgl-project/sglang-omni#1179": "false alarm: among the harmless rewrites",
    "Blaizzy/mlx-audio#921": "false alarm: among the harmless rewrites",
    "vllm-project/vllm#28172": "false alarm: among the harmless rewrites",
    "tenstorrent/tt-metal#48222": "false alarm: among the harmless rewrites",
    "Pushkinist/rMLX#373": "false alarm: among the harmless rewrites",
    "0xShug0/audio.cpp#67": "false alarm: among the harmless rewrites",
    "MoonshotAI/Kimi-Audio#161": "false alarm: among the harmless rewrites",
}
"""Threads that are not staged as faults, and why."""
