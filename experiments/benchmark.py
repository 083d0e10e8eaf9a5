"""Where a training step's time goes: beside its own matrix products, and beside the same model in PyTorch eager.

    python experiments/benchmark.py                               (5 minutes)
    python experiments/benchmark.py --profile --width 128 512     (the step operation by operation)

A step is forward, backward and optimizer, without data loading. Its products are recorded from a real step and run alone: same
shapes and dtype, contiguous inputs, a ready output. What is compared runs in turns, and a number is the median of the turns, so
that a neighbour's load hits all alike. Writes results/benchmark.csv.
"""
import argparse
import cProfile
import collections
import csv
import ctypes
import functools
import importlib.util
import math
import os
import pathlib
import platform
import pstats
import statistics
import sys
import time
import tracemalloc

HERE = pathlib.Path(__file__).resolve().parent


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--optimizer", default="adamw", help="PyTorch runs beside adamw only")
    parser.add_argument("--repeats", type=int, default=15, help="turns of which the median is taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=importlib.util.find_spec("torch") is not None)
    parser.add_argument("--profile", action="store_true", help="a table of the step's operations instead")
    return parser.parse_args()


def restart(threads):
    """Runs this command again with the thread count in the environment, which BLAS libraries read while they are loaded.

    Without two variables that make OpenBLAS run another CPU's kernel; together, as the cache size is meant for that kernel.
    """
    wanted = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    wanted.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
    if wanted != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, wanted)


if __name__ == "__main__":
    OPTIONS = options()
    restart(OPTIONS.threads)

import numpy  # noqa: E402  (after the restart)

sys.path.insert(0, str(HERE.parent))
from tinymup import backend, data, ops, optim  # noqa: E402
from tinymup.backend import to_device, to_host, xp  # noqa: E402
from tinymup.initialize import initialize  # noqa: E402
from tinymup.network import Config, build, complete  # noqa: E402
from tinymup.orthogonalize import KELLER, newton_schulz  # noqa: E402

BATCH, SEQ = 16, 128
SAME_LOSS = 1e-4          # relative, over the first three steps


class Trainer:
    """tinymup's own training step, as run.py takes it."""

    def __init__(self, config):
        self.network = build(config)
        self.params = initialize(self.network.rows, config.seed, config.dtype)
        self.optimizer = optim.Optimizer(self.network.rows, self.params, config)

    def step(self, t, ids, targets):
        loss, grads = self.network.loss_and_gradients(self.params, ids, targets)
        self.optimizer.step(self.params, grads, t, 1.0)
        return loss


class Recorder(numpy.ndarray):
    """An array that notes the shapes of the products it takes part in. Every result computed from it is one too."""

    products = []

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        if ufunc is numpy.matmul:
            self.products.append(tuple(x.shape for x in inputs))
        if out:
            kwargs["out"] = tuple(map(plain, out))
        result = getattr(ufunc, method)(*map(plain, inputs), **kwargs)
        return out[0] if out else result.view(Recorder) if isinstance(result, numpy.ndarray) else result


def plain(x):
    return x.view(numpy.ndarray) if isinstance(x, Recorder) else x


def recorded_products(config, batch):
    """(shape of a, shape of b) of every product a @ b of one step, in order; being watched must not change the step."""
    watched, unwatched = Trainer(config), Trainer(config)
    watched.params = {name: w.view(Recorder) for name, w in watched.params.items()}
    Recorder.products.clear()
    assert watched.step(0, *batch) == unwatched.step(0, *batch)
    for name, w in unwatched.params.items():
        numpy.testing.assert_array_equal(w, plain(watched.params[name]))
    return list(Recorder.products)


def run_alone(products, dtype):
    """A function that computes all products. Equal shapes share their arrays, so that these are rather in the cache than not."""
    rng, arrays = numpy.random.default_rng(0), {}
    for shapes in set(products):
        a, b = (to_device(rng.standard_normal(shape), dtype) for shape in shapes)
        arrays[shapes] = a, b, xp.matmul(a, b)

    def run():
        for shapes in products:
            a, b, out = arrays[shapes]
            xp.matmul(a, b, out=out)
    return run


def least_memory(network, itemsize=4):
    """Bytes that an AdamW step of the GELU Transformer (no gains, no biases) needs, unless it computes something twice.

    From forward to backward stay both inputs of every product and, per nonlinear function, what its derivative is written in, if
    that is not among them. In numbers, with N = batch · seq rows:
        a block: the two norms' outputs 2 N C and 1/rms 2 N; q, k, v and attention's output 4 N C; GELU's input and output 8 N C;
                 attention's probabilities batch · heads · seq²
        the end: the norm's output N C and 1/rms N; the softmax N V
    Parameters and two moments are always there. Gradients appear while activations are let go, so that the most is needed when
    the backward pass begins (all activations) or when it ends (all gradients).
    """
    a, rows = network.architecture, BATCH * SEQ
    block = 14 * rows * a.width + 2 * rows + BATCH * (a.width // a.head_dim) * SEQ**2
    activations = a.depth * block + rows * a.width + rows + rows * data.VOCAB
    parameters = sum(math.prod(row.shape) for row in network.rows)
    return itemsize * (3 * parameters + max(parameters, activations))


def peak_memory(config, batch):
    """Bytes in use at most during the second step, parameters and moments included."""
    tracemalloc.start()
    trainer = Trainer(config)
    trainer.step(0, *batch)
    tracemalloc.reset_peak()
    trainer.step(1, *batch)
    peak = tracemalloc.get_traced_memory()[1]                     # NumPy reports its arrays to tracemalloc
    tracemalloc.stop()
    return peak if xp.module is numpy else xp.get_default_memory_pool().total_bytes()


class TorchTrainer:
    """The same step from the same parameters in PyTorch eager, with PyTorch's own function wherever it has one.

    The faster of its choices, ms per step at width 128 and 512: attention by scaled_dot_product_attention (195, 2025; by matmul,
    softmax, matmul 205, 2081), AdamW fused (200, 2056; foreach 199, 2072; loop over parameters 201, 2032: all within the noise).
    """

    def __init__(self, config):
        import torch
        torch.set_num_threads(OPTIONS.threads)
        self.torch, self.network, self.params, groups = torch, build(config), {}, {}
        self.tensor = functools.partial(torch.tensor, device="cuda" if config.device == "gpu" else "cpu")
        for row, w in zip(self.network.rows, initialize(self.network.rows, config.seed, config.dtype).values()):
            w = to_host(w if row.name == "embedding" else w.T.copy())          # F.linear takes (O, I)
            self.params[row.name] = self.tensor(w, requires_grad=True)
            groups.setdefault((row.lr, row.eps), []).append(self.params[row.name])   # few and large, as foreach and fused like
        groups = [{"params": ws, "lr": lr, "eps": eps} for (lr, eps), ws in groups.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=0, fused=True)
        frequency = 10000 ** (-self.tensor(range(0, config.head_dim, 2)) / config.head_dim)
        angle = (self.tensor(range(SEQ))[:, None] * frequency).repeat(1, 2)    # (T, D)
        self.cos, self.sin = angle.cos(), angle.sin()

    def dense(self, x, name):
        y, a = self.torch.nn.functional.linear(x, self.params[name]), self.network.scales.mult[name].y
        return y if a == 1 else y * a

    def attention(self, x, b):
        torch, d, scale = self.torch, self.network.architecture.head_dim, self.network.scales.attention
        q, k, v = (self.dense(x, b + name).view(BATCH, SEQ, -1, d).transpose(1, 2) for name in ("query", "key", "value"))
        q, k = (m * self.cos + torch.cat((-m[..., d // 2:], m[..., :d // 2]), -1) * self.sin for m in (q, k))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.dense(y.transpose(1, 2).reshape(x.shape), b + "attention_out")

    def step(self, t, ids, targets):
        F, a = self.torch.nn.functional, self.network.architecture
        ids, targets = (self.tensor(to_host(m)).reshape(-1) for m in (ids, targets))
        norm = functools.partial(F.rms_norm, normalized_shape=(a.width,), eps=1e-6)
        x = F.embedding(ids, self.params["embedding"]) * self.network.scales.mult["embedding"].y
        for i in range(a.depth):
            b = f"block{i}."
            x = x + self.attention(norm(x), b)
            x = x + self.dense(F.gelu(self.dense(norm(x), b + "up"), approximate="tanh"), b + "down")
        loss = F.cross_entropy(self.dense(norm(x), "output"), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def in_turns(work, repeats):
    """{name: median seconds} of functions called in turns; the first turn warms up and does not count."""
    seconds = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            to_host(xp.zeros(1))                                  # a GPU has finished when this arrives
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def measure(config, products, batches):
    """One row of the table."""
    peak, ours = peak_memory(config, batches[0]), Trainer(config)
    work = {"step": lambda: ours.step(3, *batches[0]), "products": run_alone(products, config.dtype)}
    if OPTIONS.torch and config.optimizer == "adamw":
        theirs = TorchTrainer(config)
        for t, batch in enumerate(batches):
            a, b = float(to_host(ours.step(t, *batch))), float(theirs.step(t, *batch))
            assert abs(a - b) <= SAME_LOSS * abs(a), f"step {t}: loss {a} here, {b} in PyTorch: not the same model"
        work["torch"] = lambda: theirs.step(3, *batches[0])
    _, grads = ours.network.loss_and_gradients(ours.params, *batches[0])
    work["optimizer"] = lambda: ours.optimizer.step(ours.params, grads, 3, 1.0)
    s = {"torch": math.nan, **in_turns(work, OPTIONS.repeats)}
    gflop = sum(2 * math.prod(a) * b[-1] for a, b in products) / 1e9
    return {"width": config.width, "step ms": 1e3 * s["step"], "of it optimizer": 1e3 * s["optimizer"],
            "products ms": 1e3 * s["products"], "products / step": s["products"] / s["step"],
            "step GFLOP/s": gflop / s["step"], "products GFLOP/s": gflop / s["products"], "tokens/s": BATCH * SEQ / s["step"],
            "peak MB": peak / 1e6, "least MB": least_memory(ours.network) / 1e6,
            "torch ms": 1e3 * s["torch"], "torch / step": s["torch"] / s["step"]}


def measure_muon(config, batch):
    """One row: Newton–Schulz on a square matrix beside the bare product of that size, and Muon's part of a training step."""
    g = to_device(numpy.random.default_rng(0).standard_normal((config.width, config.width)), config.dtype)
    out, muon = xp.empty_like(g), Trainer(config)
    _, grads = muon.network.loss_and_gradients(muon.params, *batch)
    s = in_turns({"sgemm": lambda: xp.matmul(g, g, out=out), "newton_schulz": lambda: newton_schulz(g), "step": lambda: muon.step(3, *batch),
                  "optimizer": lambda: muon.optimizer.step(muon.params, grads, 3, 1.0)}, OPTIONS.repeats)
    product = 2e-9 * config.width**3
    speed, sgemm = KELLER.steps * 3 * product / s["newton_schulz"], product / s["sgemm"]     # x xᵀ, its square, times x
    return {"width": config.width, "Newton–Schulz ms": 1e3 * s["newton_schulz"], "its GFLOP/s": speed, "sgemm GFLOP/s": sgemm,
            "ratio": speed / sgemm, "Muon's step ms": 1e3 * s["step"], "Muon's part of it": s["optimizer"] / s["step"]}


LAYERS = ("dense", "norm", "dense_backward", "norm_backward", "ignore", "times")       # made of other operations, or too small


def profile(config, batch):
    """Rows of (operation, calls, ms) of the mean step. On a GPU the time that queueing took, not computing."""
    trainer, profiler = Trainer(config), cProfile.Profile()
    trainer.step(0, *batch)
    whole = time.perf_counter()
    for t in range(OPTIONS.repeats):
        profiler.runcall(trainer.step, t, *batch)
    whole = (time.perf_counter() - whole) / OPTIONS.repeats
    functions = {key: row for key, row in pstats.Stats(profiler).stats.items()         # key: file, line, name
                 if key[0] in (ops.__file__, optim.__file__) and key[2] not in LAYERS}
    seconds, calls = collections.Counter(), collections.Counter()
    for key, (*_, callers) in functions.items():
        for caller, (_, count, _, total) in callers.items():
            if caller not in functions:                           # an operation inside another counts as part of that one
                seconds[key[2]] += total / OPTIONS.repeats
                calls[key[2]] += count // OPTIONS.repeats
    seconds["everything else"] = whole - sum(seconds.values())
    return [{"width": config.width, "operation": name, "calls": calls[name], "ms": 1e3 * s, "share": s / whole}
            for name, s in seconds.most_common()]


def kernel():
    """The name of the kernel that OpenBLAS picked for this CPU; NumPy's wheels carry the library beside the package."""
    for library in pathlib.Path(numpy.__file__).parent.parent.glob("numpy.libs/*openblas*"):
        for symbol in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename"):
            if hasattr(ctypes.CDLL(str(library)), symbol):
                function = getattr(ctypes.CDLL(str(library)), symbol)
                function.restype = ctypes.c_char_p
                return function().decode()
    return "unknown"


def machine():
    """What runs: processor, BLAS and its kernel, threads, versions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    cpu = next((line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")), platform.processor())
    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    torch = f", PyTorch {importlib.import_module('torch').__version__}" if OPTIONS.torch else ""
    arrays = f"{xp.module.__name__} {xp.__version__}"
    return [f"CPU {cpu}, {os.cpu_count()} cores; threads used: {OPTIONS.threads}",
            f"BLAS {blas['name']} {blas['version']}, kernel {kernel()}",
            f"Python {platform.python_version()}, NumPy {numpy.__version__}, arrays: {arrays}{torch}"]


def text(value):
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def main():
    backend.use(OPTIONS.device)
    print(*machine(), "", sep="\n")
    backend.keep_freed_memory()
    corpus = data.load(seq=SEQ)
    batches = [data.training_batch(corpus, 0, step, BATCH, SEQ) for step in range(3)]
    rows, muon_rows = [], []
    for width in OPTIONS.width:
        config = complete(Config(width=width, batch=BATCH, seq=SEQ, optimizer=OPTIONS.optimizer, device=OPTIONS.device))
        backend.use("cpu")                                        # products are recorded here: CuPy has no such subclass
        products = recorded_products(config, batches[0])
        backend.use(OPTIONS.device)
        here = [tuple(map(to_device, batch)) for batch in batches]
        rows += profile(config, here[0]) if OPTIONS.profile else [measure(config, products, here)]
        if not OPTIONS.profile:
            muon_rows.append(measure_muon(complete(Config(width=width, batch=BATCH, seq=SEQ, optimizer="muon", device=OPTIONS.device)), here[0]))
    show(rows, None if OPTIONS.profile else "benchmark.csv")
    if muon_rows:
        print()
        show(muon_rows, "benchmark_muon.csv")


def show(rows, name):
    """Prints the rows as a table and, if it has a name, writes them to that file of results/."""
    for line in [rows[0], dict.fromkeys(rows[0], "---").values(), *(row.values() for row in rows)]:
        print("|", " | ".join(map(text, line)), "|")
    if name:
        with (HERE / "results" / name).open("w", newline="") as file:
            file.write(f"# {' '.join(['python', *sys.argv])}; {'; '.join(machine())}\n")
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows({key: text(value) for key, value in row.items()} for row in rows)


if __name__ == "__main__":
    main()
