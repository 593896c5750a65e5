"""Make a CosyVoice3 model folder: the public checkpoint's names and shapes, for tests and benchmarks.

    python scripts/make_cosyvoice3.py .cache/cosyvoice3             # small, trained for a minute at most
    python scripts/make_cosyvoice3.py out/public --size public-ids  # small, text token ids as the public file has them
    python scripts/make_cosyvoice3.py out/full --size full          # 0.5B, random, not trained

The folder holds `llm.rl.pt`, `llm.rl.safetensors`, `cosyvoice3.yaml`, `tokenizer.json` with `<|endofprompt|>`,
`prompt_speech_tokens.safetensors`, and `CosyVoice-BlankEN`, which `Qwen2ForCausalLM.from_pretrained` and
`AutoTokenizer.from_pretrained` of transformers 4.51 and 5 load. A folder that is there already and was made by this
very script with the same options is left as it is.

The public program refuses a prompt without token 151646, its `<|endofprompt|>`. `public-ids` is the small model after
training, with a text table of the public size (39 MB) and that token's row at that id.

The small model is trained on speech that `Speech` makes up: each text token has a few speech tokens of its own, which
follow one another, stay for a while, and now and then stray; behind the last one the speech stops. So its
distributions are like a trained model's: peaked, with repetitions, and with an end that depends on the text's length.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "hooks" / "torch" / "examples"))

import cosyvoice3  # noqa: E402

SPEECH_TOKENS = 6561
PREFIX = "You are a helpful assistant. Please speak in English.<|endofprompt|>"
PROMPT_END = "<|endofprompt|>"
PUBLIC_PROMPT_END = 151646
"""The id that the public program looks for in every prompt."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", PROMPT_END)
INNER = "llm.model."
"""Begins the names of the Qwen2 inside."""
STAMP = "made_by.json"
PROMPT_SPEECH = "prompt_speech_tokens.safetensors"
PROMPT_LENGTH = 32
SENTENCES = """
You are a helpful assistant. Please speak in English.
Welcome back to the evening programme; tonight we will walk along the old harbour and listen to the ships.
The last train leaves at nine, so please have your ticket ready before you reach the platform.
A light rain is falling over the valley, and the lamps along the road are lit one after the other.
She opened the letter, read it twice, and put it back without a word.
There is a small garden behind the house where nobody has planted anything for years.
Turn left at the bridge, go on for a mile, and you will see the mill on the other side of the river.
My grandmother kept her recipes in a tin box, written on the backs of old tickets.
The wind came up from the south in the afternoon and carried the smell of the sea into the streets.
We have been waiting for the results since Monday, but the office says that nothing has come in yet.
He speaks three languages well and a fourth one badly, and he likes the fourth one best.
Before the concert begins, please turn off your telephone and find the nearest way out.
The children counted the boats in the bay: seven, eight, and a ninth that was only a cloud.
It takes about an hour to walk around the lake, or a little longer if you stop to look at the birds.
Nobody could say when the clock had been put there, only that it had never been right.
In winter the road over the pass is closed, and the post comes once a week.
I will read you the first page again, slowly, and then you tell me what you heard.
The bread was still warm, and the whole kitchen smelled of it.
""".strip()


@dataclass(frozen=True)
class Size:
    """The Qwen2 inside, in the words of its `config.json`, and how long it is trained."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    steps: int
    """Steps of training; 0 leaves the weights random."""
    grown_vocab_size: int | None = None
    """Rows that the text table gets after training, where not `vocab_size`."""


SIZES = {
    "small": Size(64, 192, 3, 4, 2, 512, 2048, 240),
    "public-ids": Size(64, 192, 3, 4, 2, 512, 2048, 240, 151936),
    "full": Size(896, 4864, 24, 14, 2, 151936, 32768, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    made = make(options.folder, options.size, options.seed)
    words = f"made in {time.monotonic() - began:.0f} s" if made else "is there already"
    print(f"{options.folder}: {words}")


def make(folder: Path, size: str = "small", seed: int = 0) -> bool:
    """Make the folder unless it is there; True where it was made. Safe against others that make the same one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"script": _digest(), "size": size, "seed": seed}
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if _stamp_of(folder) == stamp:
            return False
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _fill(scratch, SIZES[size], seed)
            (scratch / STAMP).write_text(json.dumps(stamp))
            scratch.chmod(0o755)
            if folder.exists():
                if _stamp_of(folder) is None:
                    raise SystemExit(f"{folder}: is there and was not made by this script; give another folder")
                shutil.rmtree(folder)
            scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest() -> str:
    """Of this script, so that a folder made by an older one is made again."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _stamp_of(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None


def _fill(folder: Path, size: Size, seed: int) -> None:
    blank = folder / "CosyVoice-BlankEN"
    words = tokenizer()
    words.save_pretrained(blank)
    (blank / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (blank / "config.json").write_text(json.dumps(qwen2_config(size), indent=2) + "\n")
    (folder / "cosyvoice3.yaml").write_text(YAML.format(width=size.hidden_size))
    torch.manual_seed(seed)
    model = new_model(folder)
    speech = Speech(words, seed)
    if size.steps:
        train(model, speech, size.steps)
    prompt = torch.tensor(speech.prompt(PROMPT_LENGTH), dtype=torch.int64)
    save_file({"speech_token_ids": prompt}, folder / PROMPT_SPEECH)
    if size.grown_vocab_size is not None:
        grow(model, folder, size.grown_vocab_size, words.convert_tokens_to_ids(PROMPT_END))
    save(model, folder)


def grow(model: cosyvoice3.CosyVoice3LM, folder: Path, rows: int, prompt_end: int) -> None:
    """Give the text table `rows` rows and move that of `<|endofprompt|>` to its public id, in the files too."""
    inner = model.llm.model
    old = inner.get_input_embeddings().weight.detach()
    new = torch.zeros(rows, old.shape[1])
    new[: len(old)] = old
    new[PUBLIC_PROMPT_END] = old[prompt_end]
    inner.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        inner.get_input_embeddings().weight.copy_(new)
    blank = folder / "CosyVoice-BlankEN"
    config = json.loads((blank / "config.json").read_text()) | {"vocab_size": rows}
    (blank / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in (folder / "tokenizer.json", blank / "tokenizer.json"):
        told = json.loads(path.read_text())
        for token in told["added_tokens"]:
            if token["content"] == PROMPT_END:
                token["id"] = PUBLIC_PROMPT_END
        # A token of the model's own vocabulary keeps its id; one that is only added gets the next free one.
        told["model"]["vocab"][PROMPT_END] = PUBLIC_PROMPT_END
        path.write_text(json.dumps(told, ensure_ascii=False, indent=2))


def save(model: torch.nn.Module, folder: Path) -> None:
    """Both forms of the weights; the tied head is in each, as in the public file."""
    state = model.state_dict()
    torch.save(state, folder / "llm.rl.pt")
    seen: set[int] = set()
    plain = {}
    for name, value in state.items():
        # safetensors holds no tensor twice.
        plain[name] = value.clone() if value.data_ptr() in seen else value.contiguous()
        seen.add(value.data_ptr())
    save_file(plain, folder / "llm.rl.safetensors")
    inner = {name.removeprefix(INNER): value for name, value in plain.items() if name.startswith(INNER)}
    tied = inner.pop("lm_head.weight")
    assert torch.equal(tied, inner["model.embed_tokens.weight"])
    # `from_pretrained` of transformers 4 refuses a file that does not say what wrote it.
    save_file(inner, folder / "CosyVoice-BlankEN" / "model.safetensors", {"format": "pt"})


# -------------------------------------------------------------------- what the folder declares


def qwen2_config(size: Size) -> dict[str, Any]:
    """The Qwen2's `config.json`."""
    shape = {name: value for name, value in asdict(size).items() if name not in ("steps", "grown_vocab_size")}
    config = Qwen2Config(
        **shape,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        use_sliding_window=False,
    )
    told: dict[str, Any] = config.to_dict()
    told["architectures"] = ["Qwen2ForCausalLM"]
    told["rope_theta"] = told.pop("rope_parameters")["rope_theta"]  # as the public file says it
    told["torch_dtype"] = told.pop("dtype", None) or "float32"
    for name in ("transformers_version", "layer_types", "_name_or_path", "sliding_window"):
        told.pop(name, None)
    return {name: value for name, value in told.items() if value is not None}


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": SPECIAL[0],
    "pad_token": SPECIAL[0],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 32768,
}
"""Written by hand: transformers 5 names a class that transformers 4 does not have."""
YAML = """\
# set random seed, so that you may reproduce your result.
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:numpy.random.seed [1986]
__set_seed3: !apply:torch.manual_seed [1986]
__set_seed4: !apply:torch.cuda.manual_seed_all [1986]

# fixed params
sample_rate: 24000
llm_input_size: {width}
llm_output_size: {width}
spk_embed_dim: 192
qwen_pretrain_path: ''
token_frame_rate: 25
token_mel_ratio: 2

# stream related params
chunk_size: 25 # streaming inference chunk size, in token
num_decoding_left_chunks: -1

llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_output_size>
    speech_token_size: 6561
    length_normalized_loss: True
    lsm_weight: 0
    mix_ratio: [5, 15]
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1

# processor functions
get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
    version: cosyvoice3
allowed_special: 'all'
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the sentences above, with Qwen2's way of splitting words and the special tokens."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["small"].vocab_size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain.train_from_iterator(SENTENCES.splitlines(), trainer)
    plain.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=SPECIAL[0], pad_token=SPECIAL[0])


def new_model(folder: Path) -> cosyvoice3.CosyVoice3LM:
    """The model with random weights, wide enough that attention looks at something and logits are peaked."""
    settings = cosyvoice3.settings_of(folder)
    model = cosyvoice3.CosyVoice3LM(
        llm_input_size=settings["llm_input_size"],
        llm_output_size=settings["llm_output_size"],
        speech_token_size=settings["speech_token_size"],
        llm=cosyvoice3.Qwen2Encoder(folder / "CosyVoice-BlankEN"),
        sampling=cosyvoice3.ras_sampling,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.8, 1.2)
            elif parameter.ndim == 1:
                parameter.normal_(0.0, 0.1)
            else:
                gain = 4.0 if name == "llm_decoder.weight" else 1.0
                parameter.normal_(0.0, gain / parameter.shape[1] ** 0.5)
    return model


# -------------------------------------------------------------------- made-up speech


class Speech:
    """Text and the speech tokens that go with it. `words` tells text tokens; `seed` what belongs to what."""

    KINDS = 120
    """Sounds; a text token has one of them."""
    TOKENS = 5
    """Speech tokens of a sound."""

    def __init__(self, words: PreTrainedTokenizerFast, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.sounds = self.random.permutation(SPEECH_TOKENS)[: self.KINDS * self.TOKENS].reshape(self.KINDS, -1)
        self.prefix = [int(token) for token in words.encode(PREFIX, add_special_tokens=False)]
        ids = [words.encode(f" {word}", add_special_tokens=False) for word in sorted(set(SENTENCES.split()))]
        self.words = [[int(token) for token in word] for word in ids]

    def text(self) -> list[int]:
        """Some words, as text tokens."""
        count = int(self.random.integers(4, 16))
        return [token for index in self.random.integers(0, len(self.words), count) for token in self.words[index]]

    def spoken(self, text: list[int]) -> list[int]:
        """Speech tokens of a text; a hurried speaker takes fewer of them."""
        pace = float(self.random.choice([0.25, 0.7, 1.0, 1.3], p=[0.06, 0.3, 0.34, 0.3]))
        return [token for word in text for token in self._sound(word, pace)]

    def _sound(self, word: int, pace: float) -> list[int]:
        sound = self.sounds[word * 7 % self.KINDS]
        place, out = 0, []
        while place < self.TOKENS:
            strays = self.random.random() < 0.02
            out.append(int(self.random.choice(self.sounds.reshape(-1)) if strays else sound[place]))
            stays = self.random.random() < 0.2 * pace
            place += 0 if stays else 1 + int(self.random.random() < 0.25 / pace)
        return out

    def prompt(self, length: int) -> list[int]:
        """Speech tokens of a voice to go on with."""
        out: list[int] = []
        while len(out) < length:
            out += self.spoken(self.text())
        return out[:length]

    def stop(self) -> int:
        """What ends a speech: eos nearly always, sometimes another of the reserved rows."""
        last = SPEECH_TOKENS + 1
        return last if self.random.random() < 0.85 else int(self.random.integers(last, SPEECH_TOKENS + 200))


@dataclass(frozen=True)
class Example:
    """Rows of an input: ids, whether each is of the speech vocabulary, and what should follow (-100: anything)."""

    ids: list[int]
    speech: list[bool]
    targets: list[int]


def example(speech: Speech) -> Example:
    """One segment as `inference` lays it out, or, now and then, as `inference_bistream` does."""
    text = speech.text()
    said = speech.spoken(text)
    heard = speech.prompt(int(speech.random.integers(8, 48))) if speech.random.random() < 0.5 else []
    written = (speech.prefix if speech.random.random() < 0.9 else []) + text
    rows = _Rows()
    rows.add([SPEECH_TOKENS], speech=True)
    if speech.random.random() < 0.2:
        written, said = _mixed(rows, written, said)
        heard = []
    rows.add(written, speech=False)
    rows.add([SPEECH_TOKENS + 2, *heard, *said], speech=True, follow=[*heard, *said, speech.stop()])
    return Example(rows.ids, rows.speech, rows.targets)


class _Rows:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.speech: list[bool] = []
        self.targets: list[int] = []

    def add(self, ids: list[int], *, speech: bool, follow: list[int] | None = None) -> None:
        self.ids += ids
        self.speech += [speech] * len(ids)
        self.targets += [-100] * len(ids) if follow is None else follow


def _mixed(rows: _Rows, written: list[int], said: list[int]) -> tuple[list[int], list[int]]:
    """Five of text, fifteen of speech, a fill token, and again; what is left of both."""
    while len(written) >= 5 and len(said) > 15:
        rows.add(written[:4], speech=False)
        rows.add(written[4:5], speech=False, follow=said[:1])
        rows.add(said[:15], speech=True, follow=[*said[1:15], SPEECH_TOKENS + 3])
        written, said = written[5:], said[15:]
    return written, said


# -------------------------------------------------------------------- training


def train(model: cosyvoice3.CosyVoice3LM, speech: Speech, steps: int, batch: int = 10) -> None:
    """Teach `model` what follows in made-up speech. In one thread: sums then come out the same on any machine."""
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    model.train()
    for step in range(steps):
        loss = _loss(model, [example(speech) for _ in range(batch)])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 40 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.2f}", file=sys.stderr)
    model.eval()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def _rate(step: int, steps: int) -> float:
    """Learning rate: up for a while, then down to a tenth."""
    warm = min(1.0, (step + 1) / 20)
    return 4e-3 * warm * (0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * step / steps))))


def _loss(model: cosyvoice3.CosyVoice3LM, examples: list[Example]) -> torch.Tensor:
    longest = max(len(each.ids) for each in examples)

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    ids = padded([each.ids for each in examples], 0)
    spoken = padded([[int(flag) for flag in each.speech] for each in examples], 0).bool()
    targets = padded([each.targets for each in examples], -100)
    inner = model.llm.model.model
    text = inner.embed_tokens(torch.where(spoken, 0, ids))
    rows = torch.where(spoken.unsqueeze(-1), model.speech_embedding(torch.where(spoken, ids, 0)), text)
    hidden = inner(inputs_embeds=rows).last_hidden_state
    wanted = targets != -100
    return functional.cross_entropy(model.llm_decoder(hidden[wanted]), targets[wanted])


if __name__ == "__main__":
    main()
