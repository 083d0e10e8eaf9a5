"""Where a training step's time goes: beside its own matrix products, and beside the same model in PyTorch eager.

    python experiments/benchmark.py                         (3 minutes)
    python experiments/benchmark.py --profile --width 128   (one step, operation by operation)

The step is forward, backward and optimizer, without data loading. The products are those of one recorded step: same shapes and
dtype, but contiguous inputs and a ready output, which is the fastest they can run here. What is compared runs in turns, and a
number is the median of the turns, so that a neighbour's load hits all alike. Writes results/benchmark.csv.
"""
import argparse
import csv
import ctypes
import functools
import importlib.util
import math
import os
import pathlib
import platform
import statistics
import sys
import time
import types

HERE = pathlib.Path(__file__).resolve().parent
COMMAND = " ".join(["python", *sys.argv])


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--optimizer", default="adamw", help="any other runs without PyTorch beside it")
    parser.add_argument("--repeats", type=int, default=15, help="turns of which the median is taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=importlib.util.find_spec("torch") is not None)
    parser.add_argument("--profile", action="store_true", help="a table of the step's operations instead")
    return parser.parse_args()


def restart(threads):
    """Runs this command again with the number of threads in the environment, where BLAS libraries look when they are loaded.

    Without the two variables that make OpenBLAS run another CPU's kernel. They go together: a cache size given for one kernel makes
    another slow.
    """
    wanted = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    wanted.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
    if wanted != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, wanted)


if __name__ == "__main__":
    OPTIONS = options()
    restart(OPTIONS.threads)

import tracemalloc  # noqa: E402

import numpy  # noqa: E402

sys.path.insert(0, str(HERE.parent))
from tinymup import backend, data, ops, optim  # noqa: E402
from tinymup.backend import to_device, to_host, xp  # noqa: E402
from tinymup.initialize import initialize  # noqa: E402
from tinymup.network import Config, build  # noqa: E402

BATCH, SEQ, STEPS = 16, 128, 1000
SAME_LOSS = 1e-4          # relative, over the first three steps; float32 rounding is 1e-6


class Trainer:
    """tinymup's own training step, as run.py takes it."""

    def __init__(self, config):
        self.config, self.network = config, build(config)
        self.params = initialize(self.network.rows, config.seed, config.dtype)
        self.optimizer = optim.Optimizer(self.network.rows, self.params, config.momentum, config.nesterov, config.betas)

    def step(self, t, batch):
        loss, grads = self.network.loss_and_gradients(self.params, *batch)
        self.optimizer.step(self.params, grads, t, optim.schedule("constant", t, STEPS, 0))
        return loss


# ── the step's own matrix products ───────────────────────────────────────────────────────────────────────────────────

class Recorder(numpy.ndarray):
    """An array that notes the products it takes part in. Every result computed from it is one too."""

    products, operation = [], [None]                              # (operation, shape of a, shape of b); operations under way

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        if ufunc is numpy.matmul:
            self.products.append((self.operation[-1], *(x.shape for x in inputs)))
        if out:
            kwargs["out"] = tuple(plain(x) for x in out)
        result = getattr(ufunc, method)(*map(plain, inputs), **kwargs)
        return out[0] if out else result.view(Recorder) if isinstance(result, numpy.ndarray) else result


def plain(x):
    return x.view(numpy.ndarray) if isinstance(x, Recorder) else x


def record(config, batch):
    """The products of one step, in order. Checks that being watched did not change the step."""
    watched, unwatched = Trainer(config), Trainer(config)
    watched.params = {name: w.view(Recorder) for name, w in watched.params.items()}
    Recorder.products = []
    if watched.step(0, batch) != unwatched.step(0, batch):
        raise AssertionError("the recorded step has another loss")
    for name, w in unwatched.params.items():
        numpy.testing.assert_array_equal(w, plain(watched.params[name]))
    return Recorder.products


def flops(products):
    """2 · rows · inner · columns, times the number of matrices in a stack."""
    return sum(2 * numpy.prod(a, dtype=float) * b[-1] for _, a, b in products)


def ready(products, dtype):
    """(a, b, out) of every product; equal shapes share their arrays."""
    rng = numpy.random.default_rng(0)

    @functools.cache
    def arrays(a, b):
        x, y = (to_device(rng.standard_normal(shape, numpy.float32), dtype) for shape in (a, b))
        return x, y, xp.matmul(x, y)
    return [arrays(a, b) for _, a, b in products]


def multiply(triples):
    for a, b, out in triples:
        xp.matmul(a, b, out=out)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────

def least_memory(network, batch, seq, itemsize=4):
    """Bytes that a step of the GELU Transformer without gains and biases cannot do without, unless it computes things twice.

    Kept from forward to backward: both inputs of every product, and per nonlinear function what its derivative is written in, if
    that is not among them. With N = batch · seq rows, in multiples of numbers:
    each block      the norms' outputs 2 N C and 1/rms 2 N, q, k, v and attention's output 4 N C, GELU's input and output 8 N C,
                    the probabilities P batch · heads · seq²
    at the end      the norm's output N C and 1/rms N, the softmax N V
    Parameters and AdamW's two moments are always there. A gradient is made where its activations are let go, so that the most is
    needed either when the backward pass begins (all activations) or when it ends (all gradients).
    """
    a, rows = network.architecture, batch * seq
    block = 14 * rows * a.width + 2 * rows + rows * seq * a.width // a.head_dim
    activations = a.depth * block + rows * a.width + rows + rows * data.VOCAB
    parameters = sum(numpy.prod(row.shape) for row in network.rows)
    return itemsize * (3 * parameters + max(parameters, activations))


def peak_memory(config, batch):
    """Bytes in use at most during a step, with parameters and moments; measured in the second step."""
    if config.device == "gpu":
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        trainer = Trainer(config)
        trainer.step(0, batch)
        return pool.total_bytes() - before                        # what the pool had to grow to
    tracemalloc.start()
    trainer = Trainer(config)
    trainer.step(0, batch)
    tracemalloc.reset_peak()
    trainer.step(1, batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# ── the same model in PyTorch ────────────────────────────────────────────────────────────────────────────────────────

class TorchTrainer:
    """The same parameters, numbers and step in PyTorch eager; torch's own kernels wherever it has one."""

    variants = [(attend, update) for attend in ("sdpa", "softmax") for update in ("loop", "foreach", "fused")]

    def __init__(self, config, attend, update):
        import torch
        torch.set_num_threads(OPTIONS.threads)
        self.config, self.network, self.attend, self.torch = config, build(config), attend, torch
        self.device = "cuda" if config.device == "gpu" else "cpu"
        self.params, groups = {}, {}
        for row in self.network.rows:
            w = to_host(initialize([row], config.seed, config.dtype)[row.name])
            w = torch.from_numpy(w if row.name == "embedding" else w.T.copy()).to(self.device).requires_grad_()   # torch's (O, I)
            self.params[row.name] = w
            groups.setdefault((row.lr, row.eps), []).append(w)    # few groups, for foreach and fused work group by group
        groups = [{"params": ws, "lr": lr, "eps": eps} for (lr, eps), ws in groups.items()]
        flags = {} if update == "loop" else {update: True}
        self.optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=0, **{"foreach": False, **flags})

    def dense(self, x, name):
        y, a = self.torch.nn.functional.linear(x, self.params[name]), self.network.scales.mult[name].y
        return y if a == 1 else y * a

    def attention(self, n, b, batch, cos, sin):
        torch, a, scale = self.torch, self.network.architecture, self.network.scales.attention
        q, k, v = (self.dense(n, b + name).view(batch, -1, a.width // a.head_dim, a.head_dim).transpose(1, 2)
                   for name in ("query", "key", "value"))
        q, k = (x * cos + torch.cat((-x[..., a.head_dim // 2:], x[..., :a.head_dim // 2]), -1) * sin for x in (q, k))
        if self.attend == "sdpa":
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        else:
            s = q @ k.transpose(-1, -2) * scale
            future = torch.full(s.shape[-2:], -torch.inf, device=s.device).triu(1)
            y = (s + future).softmax(-1) @ v
        return self.dense(y.transpose(1, 2).reshape(n.shape), b + "attention_out")

    def step(self, t, batch):
        torch, F, a = self.torch, self.torch.nn.functional, self.network.architecture
        ids, targets = (torch.from_numpy(to_host(x)).to(self.device) for x in batch)
        cos, sin = (torch.from_numpy(to_host(x)).to(self.device)[:, 0].repeat(1, 2)
                    for x in ops.rope_angles(ids.shape[1], a.head_dim, self.config.dtype))
        x = F.embedding(ids.reshape(-1), self.params["embedding"]) * self.network.scales.mult["embedding"].y
        for i in range(a.depth):
            b = f"block{i}."
            x = x + self.attention(F.rms_norm(x, (a.width,), eps=1e-6), b, len(ids), cos, sin)
            x = x + self.dense(F.gelu(self.dense(F.rms_norm(x, (a.width,), eps=1e-6), b + "up"), approximate="tanh"), b + "down")
        loss = F.cross_entropy(self.dense(F.rms_norm(x, (a.width,), eps=1e-6), "output"), targets.reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def fastest_torch(config, batches):
    """The variant whose step is fastest here, and its name."""
    trainers = {variant: TorchTrainer(config, *variant) for variant in TorchTrainer.variants}
    times = in_turns({variant: functools.partial(trainer.step, 0, batches[0]) for variant, trainer in trainers.items()}, 4)
    best = min(times, key=times.get)
    return TorchTrainer(config, *best), " + ".join(best)


def same_loss(ours, theirs, batches):
    for t in range(3):
        a, b = float(to_host(ours.step(t, batches[t]))), float(theirs.step(t, batches[t]))
        if abs(a - b) > SAME_LOSS * abs(a):
            raise AssertionError(f"step {t}: loss {a} here, {b} in PyTorch: the two are not the same model")


# ── timing ───────────────────────────────────────────────────────────────────────────────────────────────────────────

def wait():
    """Until the device has finished: a transfer queues behind everything else, PyTorch's work included."""
    to_host(xp.zeros(1))


def in_turns(work, repeats):
    """{name: median seconds} of functions that are called in turns; the first turn warms up and does not count."""
    seconds = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(config, batches):
    """One row of the table."""
    backend.use("cpu")
    products = record(config, batches[0])                         # on the host, for CuPy has no such subclass
    backend.use(config.device)
    batches = [tuple(map(to_device, batch)) for batch in batches]
    peak = peak_memory(config, batches[0])
    ours, triples = Trainer(config), ready(products, config.dtype)
    work = {"step": lambda: ours.step(3, batches[0]), "products": lambda: multiply(triples)}
    variant = "–"
    if OPTIONS.torch and config.optimizer == "adamw":
        theirs, variant = fastest_torch(config, batches)
        same_loss(ours, theirs, batches)
        work["torch"] = lambda: theirs.step(3, batches[0])
    ms = {name: 1000 * seconds for name, seconds in in_turns(work, OPTIONS.repeats).items()}
    grads = ours.network.loss_and_gradients(ours.params, *batches[0])[1]
    update = in_turns({"": lambda: ours.optimizer.step(ours.params, grads, 3, 1.0)}, OPTIONS.repeats)[""]
    gflop, torch_ms = flops(products) / 1e9, ms.get("torch", math.nan)
    return {"width": config.width, "step ms": ms["step"], "of it optimizer": 1000 * update, "products ms": ms["products"],
            "products / step": ms["products"] / ms["step"], "GFLOP/s step": 1000 * gflop / ms["step"],
            "GFLOP/s products": 1000 * gflop / ms["products"], "peak MB": peak / 1e6,
            "least MB": least_memory(ours.network, BATCH, SEQ) / 1e6, "tokens/s": 1000 * BATCH * SEQ / ms["step"],
            "torch ms": torch_ms, "torch / step": torch_ms / ms["step"], "torch variant": variant}


LAYERS = ("dense", "norm", "dense_backward", "norm_backward", "ignore", "times", "causal_mask")   # made of other operations


def profile(config, batches):
    """Rows of operation, calls, ms, ms of its products alone: the median of the repeats, for one step."""
    seconds, calls = {}, {}

    def timed(name, f):
        @functools.wraps(f)
        def wrapper(*args):
            if Recorder.operation[-1]:                            # part of an operation already timed: rope in rope_backward
                return f(*args)
            Recorder.operation.append(name)
            start = time.perf_counter()
            result = f(*args)
            wait()
            seconds[name][-1] += time.perf_counter() - start
            calls[name] += 1
            Recorder.operation.pop()
            return result
        seconds[name], calls[name] = [0.0], 0
        return wrapper

    for name, f in list(vars(ops).items()):
        if isinstance(f, types.FunctionType) and name not in LAYERS:
            setattr(ops, name, timed(name, f))
    for name, pair in ops.ACTIVATIONS.items():
        ops.ACTIVATIONS[name] = tuple(getattr(ops, f.__name__) for f in pair)
    optim.Optimizer.step = timed("optimizer", optim.Optimizer.step)

    backend.use("cpu")
    products = record(config, batches[0])
    backend.use(config.device)
    trainer, batch = Trainer(config), tuple(map(to_device, batches[0]))
    for name in seconds:
        calls[name] = 0
    whole = []
    for t in range(OPTIONS.repeats):
        for times in seconds.values():
            times.append(0.0)
        start = time.perf_counter()
        trainer.step(t, batch)
        wait()
        whole.append(time.perf_counter() - start)
    alone = in_turns({name: functools.partial(multiply, ready([p for p in products if p[0] == name], config.dtype))
                      for name in seconds}, OPTIONS.repeats)
    ms = {name: 1000 * statistics.median(times[1:]) for name, times in seconds.items() if calls[name]}
    total = 1000 * statistics.median(whole)
    ms["everything else"] = total - sum(ms.values())
    rows = [{"width": config.width, "operation": name, "calls": calls.get(name, 0) // OPTIONS.repeats, "ms": ms[name],
             "products alone ms": 1000 * alone.get(name, 0), "share of step": ms[name] / total} for name in ms]
    return sorted(rows, key=lambda row: -row["ms"])


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────────

def machine():
    """Lines on what ran: processor, BLAS library and the kernel that it chose, threads, versions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    names = [line for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else []) if line.startswith("model name")]
    cpu = names[0].split(": ")[1] if names else platform.processor()
    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    versions = f"Python {platform.python_version()}, NumPy {numpy.__version__}, arrays on {OPTIONS.device}: {xp.module.__name__} {xp.__version__}"
    if OPTIONS.torch:
        import torch
        versions += f", PyTorch {torch.__version__}"
    return [f"CPU {cpu}, {os.cpu_count()} cores, {OPTIONS.threads} thread(s) used",
            f"BLAS {blas['name']} {blas['version']}, kernel {kernel()}", versions]


def kernel():
    """The name of the kernel that OpenBLAS picked for this CPU; NumPy's wheels carry the library beside the package."""
    for library in pathlib.Path(numpy.__file__).parent.parent.glob("numpy.libs/*openblas*"):
        for symbol in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename"):
            function = getattr(ctypes.CDLL(str(library)), symbol, None)
            if function:
                function.restype = ctypes.c_char_p
                return function().decode()
    return "unknown"


def text(value):
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}" if isinstance(value, float) else str(value)


def markdown(rows):
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(text, row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    backend.use(OPTIONS.device)
    backend.keep_freed_memory()
    print(*machine(), "", sep="\n")
    corpus = data.load(seq=SEQ)
    batches = [data.training_batch(corpus, 0, step, BATCH, SEQ) for step in range(3)]
    rows = []
    for width in OPTIONS.width:
        config = Config(width=width, batch=BATCH, seq=SEQ, optimizer=OPTIONS.optimizer, lr=2**-6, device=OPTIONS.device)
        rows += profile(config, batches) if OPTIONS.profile else [measure(config, batches)]
    print(markdown(rows))
    if not OPTIONS.profile:
        table = HERE / "results" / "benchmark.csv"
        with table.open("w", newline="") as file:
            file.write(f"# {COMMAND}; {'; '.join(machine())}\n")
            out = csv.DictWriter(file, rows[0], lineterminator="\n")
            out.writeheader()
            out.writerows(rows)


if __name__ == "__main__":
    main()
