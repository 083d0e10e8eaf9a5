"""Claim: under u-μP the RMS of every operand of a product with a weight is in FP8's normal range.

    python experiments/tensor_rms.py --jobs 2

What counts is each tensor's RMS at steps 0, 30, 100 and 300: of activations and weights against the
range of E4M3, of incoming gradients against that of E5M2. Single entries may lie outside. At the
start u-μP aims at 1. The rivals are SP and μP: their incoming gradients start near or below E5M2's
smallest normal number, smaller in a wider network, and shrink in training.

Refuted by: an operand of a u-μP run outside the range of its format, or an SP or μP run of whose
incoming gradients half or more lie inside.
"""
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import patch

from transfer import (  # noqa: I001 (first: it sets the path)
    FIGURES, arguments, commit_and_kernel, rows_of, write)

from tinymup import layers, transformer
from tinymup.lab import data, run, worker
from tinymup.lab.config import Config, build, complete, settings
from tinymup.lab.plot import BLUE, ORANGE, legend, named, plt, save
from tinymup.network import initialize
from tinymup.number_formats import FORMATS
from tinymup.optim import Optimizer, schedule

PARAMS, WIDTHS, STEPS, SEED = ("sp", "mup", "umup"), (64, 256), (0, 30, 100, 300), 0
# Of a matrix: its input x, w, the incoming dy, dw, and what a step adds to w. The activations also
# include those that enter no matrix, such as the logits, but not the attention logits.
GRADIENT = "output gradient"
KINDS = ("activation", "weight", GRADIENT, "weight gradient", "update")
LOOKS = [{"color": color, "marker": marker, "markersize": 3, "linestyle": ""}
         for color, marker in ((ORANGE, "o"), (BLUE, "^"))]      # of a width
CAST = {"activation": "fp8-e4m3", "weight": "fp8-e4m3", GRADIENT: "fp8-e5m2"}


def rms(x):
    """√(mean x²)"""
    return math.sqrt((x * x).mean(dtype=float))


def watched_gradients(network, params, batch):
    """(gradients, [(kind, name, RMS), …] of activations and of what comes into each matrix)."""
    found = []

    def watch(name, x):
        if not name.endswith("attention_logits"):
            found.append(("activation", name, rms(x)))

    def dense_backward(dy, cache, grads, name):
        (x, *_), _ = cache
        found.append(("activation", "into " + name, rms(x)))
        found.append((GRADIENT, name, rms(dy)))
        return layers.dense_backward(dy, cache, grads, name)

    with patch.object(transformer, "dense_backward", dense_backward):
        _, grads = network.loss_and_gradients(params, *batch, watch)
    return grads, found


def measure(param, width, steps=STEPS):
    """[(param, width, step, kind, name, RMS), …] of a run with the default lr, at these steps."""
    config = complete(Config(param=param, width=width, seed=SEED, steps=steps[-1] + 1))
    corpus, network = data.load(seq=config.seq), build(config)
    params = initialize(network.rows, SEED, config.dtype)
    optimizer, rows = Optimizer(network.rows, params, settings(config)), []
    for step in range(config.steps):
        batch = data.training_batch(corpus, SEED, step, config.batch, config.seq)
        factor = schedule(config.schedule, step, config.steps, config.warmup)
        if step not in steps:
            _, grads = network.loss_and_gradients(params, *batch)
            optimizer.step(params, grads, step, factor)
            continue
        grads, found = watched_gradients(network, params, batch)
        before = {name: w.copy() for name, w in params.items()}
        optimizer.step(params, grads, step, factor)
        for name, w in before.items():
            found += [("weight", name, rms(w)), ("weight gradient", name, rms(grads[name])),
                      ("update", name, rms(params[name] - w))]
        rows += [(param, width, step, *size) for size in found]
    return rows


def measure_all(jobs):
    """Runs all parametrizations and widths side by side, and writes results/tensor_rms.csv."""
    config = complete(Config())
    about = (f"python experiments/tensor_rms.py; {commit_and_kernel()}; "
             f"corpus {data.load().digest}; numpy {run.versions()['numpy']}; seed {SEED}; "
             f"default lr of adamw; batch {config.batch} x {config.seq}")
    os.environ |= dict.fromkeys(worker.THREADS, "1")      # read by the BLAS of each new process
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(measure, param, width)
                for width in reversed(WIDTHS) for param in PARAMS]
        rows = [row for done in runs for row in done.result()]
    write("tensor_rms", about, ["param", "width", "step", "kind", "name", "rms"],
          [[*row[:-1], f"{row[-1]:.4g}"] for row in rows])


def sizes_of(rows):
    """{(param, width, step, kind): [RMS, …]}"""
    found = {}
    for row in rows:
        key = row["param"], int(row["width"]), int(row["step"]), row["kind"]
        found.setdefault(key, []).append(float(row["rms"]))
    return found


def outside(kind, sizes):
    """How many of the sizes lie outside the normal range of the kind's format."""
    form = FORMATS[CAST[kind]]
    return sum(not form.min_normal <= size <= form.max for size in sizes)


def report(found):
    """Smallest and largest RMS as powers of two, ! where one is outside; then how many are."""
    lines = [f"{'log2 RMS, smallest … largest':34}" + "".join(f"{f'step {t}':>18}" for t in STEPS)]
    for param in PARAMS:
        for width in WIDTHS:
            for kind in KINDS:
                cells = []
                for step in STEPS:
                    sizes = found[param, width, step, kind]
                    mark = "!" if kind in CAST and outside(kind, sizes) else " "
                    cells.append(f"{math.log2(min(sizes)):.1f} … {math.log2(max(sizes)):.1f}{mark}")
                lines.append(f"{param:5}{width:5} {kind:23}"
                             + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join([*lines, "", *counts(found)])


def counts(found):
    """How many tensors lie outside the range of their format, and the verdict on the claim."""
    umup = 0
    for param in PARAMS:
        cells = []
        for kind, name in CAST.items():
            sizes = [size for key, each in found.items() if (key[0], key[3]) == (param, kind)
                     for size in each]
            count = outside(kind, sizes)
            umup += count * (param == "umup")
            cells.append(f"{kind} {count} of {len(sizes)} ({name})")
        yield f"{param:5} outside the normal range: " + ", ".join(cells)
    gradients = ([size for step in STEPS for size in found[param, width, step, GRADIENT]]
                 for param in ("sp", "mup") for width in WIDTHS)
    inside = any(2 * outside(GRADIENT, sizes) <= len(sizes) for sizes in gradients)
    yield "the claim is " + ("refuted" if umup or inside else "not refuted")


def draw(found):
    """A panel per parametrization: a dot per tensor, over the normal range of its FP8 format."""
    figure, axes = plt.subplots(1, len(PARAMS), figsize=(9.8, 5), sharex=True, sharey=True)
    for ax, param in zip(axes, PARAMS):
        draw_ranges(ax)
        for k, width in enumerate(WIDTHS):
            for i, kind in enumerate(KINDS):
                for j, step in enumerate(STEPS):
                    sizes = [math.log2(size) for size in found[param, width, step, kind]]
                    ax.plot([5 * i + j + 0.4 * k] * len(sizes), sizes, alpha=0.6, **LOOKS[k])
        ax.set_xticks([5 * i + 1.5 for i in range(len(KINDS))],
                      [kind.replace(" ", "\n") for kind in KINDS], rotation=90)
        ax.set(ylim=(-22, 19), title=named(param))
        ax.grid(False, axis="x")
    axes[0].set_ylabel("log2 RMS")
    legend(figure, {f"width {width}": look for width, look in zip(WIDTHS, LOOKS)} | {
        "normal range of the FP8 format": {"color": "0.85", "linewidth": 8}})
    save(figure, FIGURES / "tensor_rms.png", "RMS of every tensor, one seed; in each group from "
         f"left to right steps {', '.join(map(str, STEPS))}")


def draw_ranges(ax):
    """Grey: the normal range of the format that FP8 training casts each kind to, with its name."""
    for i, kind in enumerate(KINDS):
        if kind in CAST:
            form = FORMATS[CAST[kind]]
            low, high = math.log2(form.min_normal), math.log2(form.max)
            ax.fill_between([5 * i - 0.5, 5 * i + 3.9], low, high, color="0.85", linewidth=0)
            ax.text(5 * i + 1.7, high, CAST[kind].removeprefix("fp8-").upper(), ha="center",
                    va="bottom", fontsize=8)


if __name__ == "__main__":
    flags = arguments(__doc__, device=False)
    if not flags.redraw:
        measure_all(flags.jobs)
    found = sizes_of(rows_of("tensor_rms"))
    print(report(found))
    draw(found)
