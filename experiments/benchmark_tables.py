"""The tables of benchmark.py: every library's step, Muon's part of a step, a step by operation."""
import cProfile
import collections
import os
import pathlib
import platform
import pstats
import sys
import time
from dataclasses import replace

from transfer import commit, kernel, write  # noqa: I001 (first: it sets the path)

import numpy
from benchmark_rivals import RIVALS, installed
from benchmark_steps import (
    Tinymup, flops, in_turns, least_memory, losses, one_step, peak_memory, recorded_products,
    release, run_alone, without_lookup)

from tinymup import backend, ops, optim
from tinymup.backend import to_device, xp
from tinymup.lab import data
from tinymup.lab.config import Config, complete
from tinymup.lab.run import keep_freed_memory
from tinymup.orthogonalize import COEFFICIENTS, newton_schulz

BATCH, SEQ = 16, 128
SAME_LOSS = 1e-4              # relative, over three float32 steps: 3e-7 was seen
SHARE, SHARE_WIDTH = 0.65, 512                     # the claim: products / step, at this width


def started(names, config, threads, batches):
    """The rivals that run here, warmed up. The others are named on standard error.

    Errors: AssertionError if a rival does not train the same model.
    """
    wanted, rivals = losses(Tinymup(config), batches), []
    for name in names:
        try:
            rival = RIVALS[name](config, threads)
            found = losses(rival, batches)
        except (ImportError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{RIVALS[name].name} is left out: {reason}", file=sys.stderr)
            continue
        for step, (a, b) in enumerate(zip(wanted, found)):
            assert abs(a - b) <= SAME_LOSS * abs(a), (
                f"step {step}: loss {a} here, {b} in {rival.name}: not the same model")
        rivals.append(rival)
    return rivals


def measure(config, names, batches, flags):
    """A row per library: its step, its own products, and the share of these in the step."""
    products = recorded_products(config, batches[0])
    peak = peak_memory(config, batches[0])
    ours, rivals = Tinymup(config), started(names, config, flags.threads, batches)
    products_of = dict.fromkeys([r.family for r in rivals], without_lookup(products, config))
    products_of[ours.family] = products
    work = {}
    for library in (ours, *rivals):
        work[library.name, "step"] = one_step(library, batches[0])
        if (library.family, "products") not in work:      # eager and compiled share theirs
            work[library.family, "products"] = run_alone(
                library, products_of[library.family], config.dtype)
    _, grads = ours.network.loss_and_gradients(ours.params, *ours.batch(*batches[0]))
    work[ours.name, "optimizer"] = lambda: ours.wait(ours.optimizer.step(ours.params, grads, 3))
    s = in_turns(work, flags.repeats)
    rows = []
    for library in (ours, *rivals):
        step, alone = s[library.name, "step"], s[library.family, "products"]
        gflop = flops(products_of[library.family]) / 1e9
        rows.append({
            "width": config.width, "library": library.name, "step ms": 1e3 * step,
            "step / tinymup": step / s[ours.name, "step"], "products ms": 1e3 * alone,
            "products / step": alone / step, "step GFLOP/s": gflop / step,
            "products GFLOP/s": gflop / alone, "tokens/s": config.batch * config.seq / step,
            "of it optimizer": "", "peak MB": "", "least MB": ""})
    rows[0] |= {"of it optimizer": 1e3 * s[ours.name, "optimizer"], "peak MB": peak / 1e6,
                "least MB": least_memory(ours.network, config.batch, config.seq) / 1e6}
    return rows


def measure_muon(config, batch, repeats):
    """A row: Newton–Schulz on a square matrix beside the bare product; Muon's part of a step.

    The ratio of their speeds can exceed 1: NumPy computes x xᵀ with half the operations counted.
    """
    g = to_device(numpy.random.default_rng(0).standard_normal((config.width, config.width)),
                  config.dtype)
    out, muon = xp.empty_like(g), Tinymup(config)
    here = muon.batch(*batch)
    _, grads = muon.network.loss_and_gradients(muon.params, *here)
    s = in_turns({
        "product": lambda: muon.wait(xp.matmul(g, g, out=out)),
        "Newton–Schulz": lambda: muon.wait(newton_schulz(g)),
        "step": one_step(muon, batch),
        "optimizer": lambda: muon.wait(muon.optimizer.step(muon.params, grads, 3))}, repeats)
    gflop = 2e-9 * config.width**3
    steps = 3 * COEFFICIENTS["keller"].steps               # x xᵀ, its square, that times x
    speed, bare = steps * gflop / s["Newton–Schulz"], gflop / s["product"]
    return {"width": config.width, "Newton–Schulz ms": 1e3 * s["Newton–Schulz"],
            "its GFLOP/s": speed, "sgemm GFLOP/s": bare, "ratio": speed / bare,
            "Muon's step ms": 1e3 * s["step"], "Muon's part of it": s["optimizer"] / s["step"]}


OPERATIONS, INSIDE = (ops.__file__, optim.__file__), backend.__file__
SMALL = ("times",)                                  # counted with everything else


def profile(config, batch, repeats):
    """Rows of (operation, calls, ms) of the mean step. On a GPU: the time that queueing took.

    An operation is a function of ops.py or optim.py that something outside of them calls. What it
    calls itself, also through the wrappers in backend.py, counts as part of it.
    """
    trainer, profiler = Tinymup(config), cProfile.Profile()
    here = trainer.batch(*batch)
    trainer.wait(trainer.step(0, here))
    whole = time.perf_counter()
    for t in range(repeats):
        profiler.runcall(trainer.step, t, here)
    whole = (time.perf_counter() - whole) / repeats
    seconds, calls = collections.Counter(), collections.Counter()
    for (file, _, name), (*_, callers) in pstats.Stats(profiler).stats.items():
        if file not in OPERATIONS or name in SMALL:
            continue
        name = "optimizer" if name == "step" else name
        for (caller, *_), (_, count, _, total) in callers.items():
            if caller not in (*OPERATIONS, INSIDE):
                seconds[name] += total / repeats
                calls[name] += count // repeats
    seconds["everything else"] = whole - sum(seconds.values())
    return [{"width": config.width, "operation": name, "calls": calls[name], "ms": 1e3 * s,
             "share": s / whole} for name, s in seconds.most_common()]


def machine(flags, rivals):
    """What runs: commit, processor, BLAS and its kernel, versions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    names = [line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    lines = [f"commit {commit()}",
             f"CPU {next(iter(names), platform.processor())}, {os.cpu_count()} cores; "
             f"threads used: {flags.threads}",
             f"BLAS {blas['name']} {blas['version']}, kernel {kernel()}",
             f"Python {platform.python_version()}, NumPy {numpy.__version__}, "
             f"arrays: {xp.module.__name__} {xp.__version__}"]
    if flags.device == "gpu":
        lines.append("GPU " + xp.cuda.runtime.getDeviceProperties(0)["name"].decode())
    return lines + list(dict.fromkeys(RIVALS[name].about() for name in rivals))


def command(flags, rivals):
    """The command that repeats this run, with every option spelled out."""
    return (f"python experiments/benchmark.py --width {' '.join(map(str, flags.width))} "
            f"--optimizer {flags.optimizer} --repeats {flags.repeats} --threads {flags.threads} "
            f"--device {flags.device} " + " ".join(["--rivals", *rivals]))


def text(value):
    """A cell: numbers with three digits, or whole."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def show(rows):
    """Prints the rows as a table."""
    for line in [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]:
        print("|", " | ".join(map(text, line)), "|")


def save(name, about, rows):
    """Writes the rows to results/NAME.csv."""
    write(name, about, list(rows[0]), [[text(v) for v in row.values()] for row in rows])


def verdicts(rows):
    """What the rows say of the two claims."""
    ours = {row["width"]: row for row in rows if row["library"] == "tinymup"}
    if SHARE_WIDTH in ours:
        share = ours[SHARE_WIDTH]["products / step"]
        yield (f"products / step at width {SHARE_WIDTH}: {share:.2f}, claimed {SHARE} or more: "
               + ("refuted" if share < SHARE else "not refuted"))
    eager = {row["width"]: row["step / tinymup"] for row in rows
             if row["library"] == RIVALS["torch"].name}
    if eager:
        faster = [width for width, ratio in eager.items() if ratio < 1]
        yield (f"PyTorch eager takes {min(eager.values()):.2f} to {max(eager.values()):.2f} times "
               "as long as tinymup: "
               + (f"refuted at width {', '.join(map(str, faster))}" if faster
                  else "the claim that it is slower is not refuted"))


def main(flags):
    """Measures every width, prints the tables and writes the results."""
    names = installed() if flags.rivals is None else flags.rivals
    names = names if flags.optimizer == "adamw" and not flags.profile else []
    backend.use(flags.device)
    described = machine(flags, names)
    print(*described, "", sep="\n", flush=True)
    keep_freed_memory()                             # in the whole process: rivals gain from it too
    corpus = data.load(seq=SEQ)
    batches = [data.training_batch(corpus, 0, step, BATCH, SEQ) for step in range(3)]
    rows, muon_rows = [], []
    for width in flags.width:
        config = Config(width=width, batch=BATCH, seq=SEQ, device=flags.device)
        muon, config = (complete(replace(config, optimizer=optimizer))
                        for optimizer in ("muon", flags.optimizer))
        if flags.profile:
            rows += profile(config, batches[0], flags.repeats)
        else:
            rows += measure(config, names, batches, flags)
            muon_rows.append(measure_muon(muon, batches[0], flags.repeats))
        release([Tinymup, *(RIVALS[name] for name in names)])
    show(rows)
    if flags.profile:
        return
    print()
    show(muon_rows)
    print("", *verdicts(rows), sep="\n")
    about = "; ".join([command(flags, names), *described])
    where = "_gpu" if flags.device == "gpu" else ""
    save("benchmark" + where, about, rows)
    save("benchmark_muon" + where, about, muon_rows)
