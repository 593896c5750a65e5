"""Python programs that a recorder must survive: what each does, and what its trace holds.

Each prints what it computed. Recorded, it prints the same and ends the same; its trace is right, or one line says what
it lacks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

LAYER = """
import os, sys, threading, signal
import torch
torch.manual_seed(0)
layer = torch.nn.Linear(4, 6)
def call(rows=2, module=None):
    with torch.no_grad():
        value = (layer if module is None else module)(torch.full((rows, 4), float(rows)))
    # In one piece: a process that it forked writes at the same time.
    print(f"sum {value.sum().item()}\\n", end="", flush=True)
class Holds(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = layer
    def forward(self, value):
        return self.layer(value)
def use_up_descriptors():
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        print(error.strerror)
    return held
"""
CAUSAL = """
import os, sys, threading, signal
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList
torch.manual_seed(0)
config = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40,
                     initializer_range=0.3, bos_token_id=1, eos_token_id=None, max_position_embeddings=64)
model = LlamaForCausalLM(config).eval()
def generate(first=3, **more):
    ids = torch.arange(first, first + 4)[None]
    out = model.generate(ids, **{"max_new_tokens": 5, "do_sample": False, **more})
    print("tokens", out[0, 4:].tolist(), flush=True)
def speak(first):
    ids, cache = torch.arange(first, first + 4)[None], None
    while True:
        with torch.no_grad():
            out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        yield ids.item()
"""


@dataclass(frozen=True)
class Misbehaving:
    """A program. `sequences`: how many its trace holds; `tokens`: which lines of its stdout those are, by number."""

    name: str
    text: str
    prelude: str = LAYER
    sequences: int | None = 1
    tokens: Sequence[int] | None = None
    may_say: Sequence[str] = ()
    """What it says where its threads meet."""
    says: Sequence[str] = ()
    """What stderr says, a line each, besides where the trace was written."""
    left: str = "run.h5"
    """What the program leaves; `` where nothing can be kept."""
    limits: dict[str, int] = field(default_factory=dict)
    recovered: bool = False
    unrecorded: bool = False
    """Nothing can be recorded, which is said; the exit code is 2 where the program's is 0."""

    @property
    def source(self) -> str:
        return self.prelude + textwrap.dedent(self.text)


def layer(name: str, text: str, **more: object) -> Misbehaving:
    return Misbehaving(name, text, LAYER, **more)  # type: ignore[arg-type]


def causal(name: str, text: str, **more: object) -> Misbehaving:
    return Misbehaving(name, text, CAUSAL, **more)  # type: ignore[arg-type]


PROCESSES = (
    layer(
        "fork",
        """
        call(2)
        child = os.fork()
        call(3)
        if child:
            print("child", os.waitpid(child, 0)[1])
            call(4)
        """,
        sequences=3,
    ),
    layer(
        "fork-before-the-model",
        """
        child = os.fork()
        if not child:
            call(3)
            sys.exit(4)
        print("child", os.waitpid(child, 0)[1])
        call(2)
        """,
    ),
    layer(
        "fork-in-a-hook",
        """
        def hook(*_):
            child = os.fork()
            if not child:
                sys.exit(0)
            print("child", os.waitpid(child, 0)[1])
        layer.register_forward_hook(hook)
        call(2)
        """,
    ),
    layer(
        "daemonize",
        """
        call(2)
        done, told = os.pipe()
        if os.fork():
            os.close(told)
            os.read(done, 1)  # what the daemon prints is there when this process ends
            os._exit(0)
        os.setsid()
        call(3)
        os.close(told)
        """,
        left="run.tklog",
        recovered=True,
        says=("the program ends in os._exit, before an archive is made",),
    ),
    layer(
        "multiprocessing-fork",
        """
        import multiprocessing
        def work(rows):
            with torch.no_grad():
                return layer(torch.ones(rows, 4)).sum().item()
        call(2)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, [3, 4]))
        call(5)
        """,
        sequences=2,
    ),
    layer(
        "os._exit",
        """
        call(2)
        call(3)
        os._exit(7)
        """,
        sequences=2,
        left="run.tklog",
        recovered=True,
        says=("the program ends in os._exit, before an archive is made",),
    ),
    layer(
        "killed-by-SIGTERM",
        """
        call(2)
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        left="run.tklog",
        recovered=True,
    ),
    layer(
        "killed-by-SIGINT",
        """
        call(2)
        os.kill(os.getpid(), signal.SIGINT)
        """,
    ),
    layer(
        "catches-SIGINT",
        """
        call(2)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            import time; time.sleep(5)
        except KeyboardInterrupt:
            print("caught")
        call(3)
        """,
        sequences=2,
    ),
    layer(
        "SIGTERM-is-an-exit",
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        call(2)
        os.kill(os.getpid(), signal.SIGTERM)
        """,
    ),
    layer(
        "a-signal-inside-a-forward",
        """
        class Late(Exception): pass
        def late(*_): raise Late
        signal.signal(signal.SIGALRM, late)
        class Slow(Holds):
            def forward(self, value):
                value = super().forward(value)
                if value.shape[0] == 3:
                    signal.setitimer(signal.ITIMER_REAL, 0.01)
                    import time; time.sleep(5)
                return value
        slow = Slow()
        call(2, slow)
        try:
            call(3, slow)
        except Late:
            print("late")
        call(4, slow)
        """,
        sequences=3,
    ),
    layer(
        "execv",
        """
        call(2)
        os.execv("/bin/echo", ["echo", "another program"])
        """,
        left="run.tklog",
        recovered=True,
    ),
)

THREADS = (
    layer(
        "threads-in-one-module",
        """
        class Slow(Holds):
            def forward(self, value):
                value = super().forward(value)
                meet.wait(5)
                return value
        meet, slow, sums = threading.Barrier(2), Slow(), {}
        def work(rows):
            with torch.no_grad():
                sums[rows] = slow(torch.full((rows, 4), float(rows))).sum().item()
        threads = [threading.Thread(target=work, args=(rows,)) for rows in (2, 3)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        print(sorted(sums.items()))
        """,
        sequences=1,
        says=("not recorded: calls of the model that another thread made during",),
    ),
    layer(
        "sys.exit-in-a-thread",
        """
        def work():
            call(2)
            sys.exit(3)
        thread = threading.Thread(target=work)
        thread.start(), thread.join()
        call(3)
        """,
        sequences=2,
    ),
    layer(
        "threads-that-go-on-at-the-end",
        """
        call(2)
        def work():
            import time; time.sleep(0.2)
            call(3)
        threading.Thread(target=work).start()
        threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
        """,
        sequences=2,
    ),
    causal(
        "two-requests-at-once",
        """
        import http.server, json, urllib.request
        meet = threading.Barrier(2)
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                first = int(self.path[1:])
                meet.wait(10)
                ids = torch.arange(first, first + 4)[None]
                out = model.generate(ids, max_new_tokens=5, do_sample=False)
                body = json.dumps(out[0, 4:].tolist()).encode()
                self.send_response(200), self.end_headers(), self.wfile.write(body)
            def log_message(self, *_): pass
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answers = {}
        def ask(first):
            url = f"http://127.0.0.1:{server.server_port}/{first}"
            answers[first] = json.load(urllib.request.urlopen(url))
        for pair in ((3, 9), (5, 11)):
            asking = [threading.Thread(target=ask, args=(first,)) for first in pair]
            [thread.start() for thread in asking], [thread.join() for thread in asking]
        for first in sorted(answers):
            print("tokens", answers[first])
        server.shutdown()
        """,
        sequences=None,
        may_say=("not recorded: calls of the model that another thread made during",),
    ),
    causal(
        "asyncio-loops-that-take-turns",
        """
        import asyncio
        async def take_turns(first):
            tokens = []
            for _, token in zip(range(5), speak(first)):
                tokens.append(token)
                await asyncio.sleep(0)
            return tokens
        async def main():
            for tokens in await asyncio.gather(take_turns(3), take_turns(9)):
                print("tokens", tokens)
        asyncio.run(main())
        """,
        sequences=None,
    ),
    causal(
        "asyncio-to-thread",
        """
        import asyncio
        def speak(first):
            ids = torch.arange(first, first + 4)[None]
            return model.generate(ids, max_new_tokens=5, do_sample=False)[0, 4:].tolist()
        async def main():
            for tokens in await asyncio.gather(asyncio.to_thread(speak, 3), asyncio.to_thread(speak, 9)):
                print("tokens", tokens)
        asyncio.run(main())
        """,
        sequences=None,
        may_say=("not recorded: calls of the model that another thread made during",),
    ),
)

INSIDE = (
    causal(
        "generate-in-a-processor",
        """
        class Asks(LogitsProcessor):
            def __call__(self, ids, scores):
                if ids.shape[1] == 6:
                    generate(20)
                return scores
        generate(3, logits_processor=LogitsProcessorList([Asks()]))
        generate(7)
        """,
        sequences=2,
        tokens=(1, 2),
        says=("not recorded: ",),
    ),
    causal(
        "generate-in-a-hook",
        """
        asked = []
        def hook(module, args, output):
            if not asked:
                asked.append(1)
                generate(20)
        model.model.layers[0].register_forward_hook(hook)
        generate(3)
        generate(7)
        """,
        sequences=2,
        tokens=(1, 2),
        says=("not recorded: generations inside another",),
    ),
    causal(
        "generate-in-a-streamer",
        """
        class Streamer:
            asked = False
            def put(self, tokens):
                if not self.asked:
                    self.asked = True
                    generate(20)
            def end(self): pass
        generate(3, streamer=Streamer())
        generate(7)
        """,
        sequences=None,
    ),
    layer(
        "calls-itself",
        """
        class Twice(Holds):
            def forward(self, value, again=True):
                below = self(value[:1], again=False) if again else 0
                return self.layer(value) + below
        call(3, Twice())
        call(2, Twice())
        """,
        sequences=1,
        says=("not recorded: calls of the model that were made inside",),
    ),
    layer(
        "raises-in-a-hook",
        """
        def hook(module, args, output):
            if args[0].shape[0] == 3:
                raise ValueError("not three")
        two = Holds()
        layer.register_forward_hook(hook)
        for rows in (2, 3, 4):
            try:
                call(rows, two)
            except ValueError as error:
                print(error)
        """,
        sequences=3,
    ),
    causal(
        "raises-in-a-hook-of-generate",
        """
        def hook(module, args, output):
            if getattr(hook, "on", False):
                raise ValueError("off")
        model.model.layers[0].mlp.register_forward_hook(hook)
        generate(3)
        hook.on = True
        try:
            generate(5)
        except ValueError as error:
            print(error)
        hook.on = False
        generate(7)
        """,
        sequences=3,
    ),
    causal(
        "a-generator-left-early",
        """
        for first, most in ((3, 4), (9, 2)):
            spoken = []
            for token in speak(first):
                spoken.append(token)
                if len(spoken) == most:
                    break
            print("tokens", spoken)
        generate(5)
        """,
        sequences=3,
        tokens=(0, 1, 2),
    ),
    causal(
        "sampled-in-threads-with-generators",
        """
        def speak(first):
            torch.manual_seed(first)
            generate(first, do_sample=True, top_k=8)
        for first in (3, 9):
            thread = threading.Thread(target=speak, args=(first,))
            thread.start(), thread.join()
        """,
        sequences=2,
        tokens=(0, 1),
    ),
)

CHANGED = "the program changed the weights of its model"

MODELS = (
    layer(
        "half-midway",
        """
        call(2)
        layer.half()
        print(layer(torch.ones(2, 4).half()).sum().item())
        layer.double()
        print(layer(torch.ones(2, 4).double()).sum().item())
        """,
        sequences=3,
        says=(CHANGED,),
    ),
    layer(
        "meta-midway",
        """
        call(2)
        layer.to("meta")
        print(layer(torch.ones(2, 4, device="meta")).shape)
        """,
        says=("not recorded: calls of the model on the meta device",),
    ),
    causal(
        "bfloat16-midway",
        """
        generate(3)
        model.bfloat16()
        generate(3)
        """,
        sequences=2,
        tokens=(0, 1),
        says=(CHANGED,),
    ),
    layer(
        "compiled",
        """
        compiled = torch.compile(layer, backend="eager")
        call(2, compiled)
        call(3, compiled)
        """,
        sequences=2,
        says=("not recorded: what torch.compile computes",),
    ),
    layer(
        "copied",
        """
        import copy
        two = torch.nn.Sequential(layer, torch.nn.ReLU())
        call(2, two)
        other = copy.deepcopy(two)
        call(3, other)
        call(4, two)
        """,
        sequences=2,
    ),
    layer(
        "pickled",
        """
        import io, pickle
        two = torch.nn.Sequential(layer, torch.nn.ReLU())
        call(2, two)
        call(3, pickle.loads(pickle.dumps(two)))
        file = io.BytesIO()
        torch.save(two, file)
        file.seek(0)
        call(4, torch.load(file, weights_only=False))
        call(5, two)
        """,
        sequences=2,
    ),
    layer(
        "scripted-and-traced-and-exported",
        """
        import warnings
        warnings.simplefilter("ignore")
        two = torch.nn.Sequential(layer, torch.nn.ReLU())
        call(2, two)
        call(3, torch.jit.trace(two, torch.ones(3, 4)))
        call(4, torch.jit.script(two))
        print(torch.fx.symbolic_trace(two).code.count("linear"))
        call(5, torch.export.export(two, (torch.ones(5, 4),)).module())
        call(6, two)
        """,
        sequences=3,
        says=("not recorded: calls that torch.jit.trace or torch.export makes",),
    ),
    layer(
        "trained",
        """
        two = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Linear(6, 1))
        optimiser = torch.optim.SGD(two.parameters(), lr=0.1)
        from torch.utils.checkpoint import checkpoint
        for _ in range(3):
            optimiser.zero_grad()
            loss = checkpoint(two, torch.ones(2, 4), use_reentrant=False).square().mean()
            loss.backward()
            optimiser.step()
            print("loss", loss.item())
        """,
        sequences=None,
        says=(CHANGED,),
    ),
    layer(
        "warnings-are-errors",
        """
        import warnings
        warnings.simplefilter("error")
        call(2)
        """,
    ),
    layer(
        "default-device-and-dtype",
        """
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        call(2, layer.double())
        torch.set_default_device("meta")
        print(torch.ones(1).device)
        """,
    ),
    layer(
        "Module.__call__-is-replaced",
        """
        original, count = torch.nn.Module.__call__, []
        def counted(module, *args, **kwargs):
            count.append(type(module).__name__)
            return original(module, *args, **kwargs)
        torch.nn.Module.__call__ = counted
        call(2)
        call(3)
        torch.nn.Module.__call__ = original
        call(4)
        print(count)
        """,
        sequences=3,
    ),
    layer(
        "Module.__call__-is-replaced-by-its-own",
        """
        torch.nn.Module.__call__ = lambda module, *args, **kwargs: module.forward(*args, **kwargs)
        call(2)
        """,
        sequences=0,
        says=("the program never called a torch module with parameters",),
        left="",
        unrecorded=True,
    ),
)

PLACES = (
    layer(
        "chdir-before-the-model",
        """
        os.mkdir("elsewhere")
        os.chdir("elsewhere")
        call(2)
        print(os.listdir("."))
        """,
    ),
    layer(
        "chdir-after-the-model",
        """
        os.mkdir("elsewhere")
        call(2)
        os.chdir("elsewhere")
        print(os.listdir("."))
        """,
    ),
    layer(
        "in-a-folder-that-is-gone",
        """
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
        call(2)
        """,
    ),
    layer(
        "its-trace-s-folder-is-removed",
        """
        import glob
        call(2)
        for path in glob.glob("*.tklog"):
            os.unlink(path)
        """,
        says=("No such file",),
        left="",
        unrecorded=True,
    ),
    layer(
        "closes-all-descriptors",
        """
        call(2)
        os.closerange(3, 256)
        data = open("data.bin", "w+b", buffering=0)
        others = [open(f"other{i}.bin", "w+b", buffering=0) for i in range(40)]
        data.write(b"mine")
        call(3)
        call(4)
        print([os.path.getsize(f"other{i}.bin") for i in range(40)], os.path.getsize("data.bin"))
        """,
        says=("recording stopped, the program goes on: ",),
        sequences=None,
        recovered=True,
        unrecorded=True,
    ),
    layer(
        "no-descriptors-left",
        """
        held = use_up_descriptors()
        call(2)
        call(3)
        for number in held:
            os.close(number)
        call(4)
        """,
        limits={"NOFILE": 64},
        says=("recording stopped, the program goes on: ",),
        left="",
        unrecorded=True,
    ),
    layer(
        "no-descriptors-left-at-the-end",
        """
        call(2)
        held = use_up_descriptors()
        """,
        limits={"NOFILE": 64},
        says=("run.tklog",),
        left="run.tklog",
        unrecorded=True,
    ),
    layer(
        "stdout-and-stderr-closed",
        """
        call(2)
        print("the end", flush=True)
        sys.stdout.close()
        sys.stderr.close()
        call.__globals__["print"] = lambda *_, **__: None
        call(3)
        """,
        sequences=2,
    ),
    layer(
        "descriptors-1-and-2-closed",
        """
        call(2)
        os.close(1), os.close(2)
        data = [open(name, "w+b", buffering=0) for name in ("one", "two")]
        print = lambda *_, **__: None
        call(3)
        os._exit(sum(os.path.getsize(name) for name in ("one", "two")))
        """,
        sequences=2,
        left="run.tklog",
        recovered=True,
    ),
    layer(
        "stderr-is-None",
        """
        sys.stderr = None
        call(2)
        """,
    ),
    layer(
        "stderr-fails-while-recording-does",
        """
        class Broken:
            def write(self, text): raise OSError("gone")
            def flush(self): raise OSError("gone")
        sys.stderr = Broken()
        import tracekit_torch.taps as taps
        def broken(*_, **__): raise RuntimeError("planted")
        taps.Taps._see = broken
        call(2)
        call(3)
        """,
        sequences=None,
        recovered=True,
        unrecorded=True,
    ),
    layer(
        "a-low-recursion-limit",
        """
        call(2)
        sys.setrecursionlimit(120)
        call(3)
        def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
        print(deep(60))
        """,
        sequences=2,
    ),
    layer(
        "recursion-to-the-limit",
        """
        def deep(n):
            try:
                return deep(n + 1)
            except RecursionError:
                return n
        call(2)
        print(deep(0) > 900)
        call(3)
        """,
        sequences=2,
    ),
    layer(
        "prints-what-no-encoding-can-say",
        r"""
        call(2)
        print("\\ud800")
        """,
    ),
    layer(
        "exits-with-a-sentence",
        """
        call(2)
        sys.exit("that was it")
        """,
        says=("that was it",),
    ),
    layer(
        "an-atexit-that-calls-the-model",
        """
        import atexit
        atexit.register(call, 3)
        call(2)
        """,
    ),
    layer(
        "an-excepthook-of-its-own",
        """
        sys.excepthook = lambda kind, error, trace: print("mine", error)
        call(2)
        raise ValueError("x")
        """,
    ),
    layer(
        "out-of-memory",
        """
        call(2)
        try:
            torch.ones(1 << 40)
        except RuntimeError:
            print("too much")
        call(3)
        """,
        sequences=2,
    ),
)

PROGRAMS = (*PROCESSES, *THREADS, *INSIDE, *MODELS, *PLACES)
