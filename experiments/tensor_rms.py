"""Claim: under u-μP the operands of every matrix product (activations, weights, and the gradients that come in) have an RMS near 1 at
initialisation, at every width, and stay within FP8's range through training; under SP and μP incoming gradients start below E5M2's smallest normal
number, lower still in a wider network, and fall further.

Refuted by: an operand of a u-μP run whose RMS lies outside the normal range of its format, E4M3 or E5M2; or an SP or μP run all of whose
output gradients lie within it.
"""
import csv
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import transfer  # first: it sets the path
from tinymup import data, ops, optim, run, sweep
from tinymup.initialize import initialize
from tinymup.network import Config, build, complete
from tinymup.number_formats import FORMATS
from tinymup.plot import plt

PARAMS, WIDTHS, STEPS, SEED = ("sp", "mup", "umup"), (64, 256), (0, 30, 100, 300), 0
KINDS = ("activation", "weight", "output gradient", "weight gradient", "update")   # x, w, dy and dw of a matrix, and what a step adds to w
CAST = {"activation": "fp8-e4m3", "weight": "fp8-e4m3", "output gradient": "fp8-e5m2"}


def rms(x):
    """√(mean x²)"""
    return math.sqrt((x * x).mean(dtype=float))


def measure(param, width):
    """[(param, width, step, kind, name, RMS), …] of a run with the default learning rate, before and through training."""
    config = complete(Config(param=param, width=width, seed=SEED, steps=STEPS[-1] + 1))
    corpus, network = data.load(seq=config.seq), build(config)
    params = initialize(network.rows, SEED, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, config)
    dense_backward, rows = ops.dense_backward, []
    for step in range(config.steps):
        ids, targets = data.training_batch(corpus, SEED, step, config.batch, config.seq)
        found = []

        def watch(name, x):
            if not name.endswith("attention_logits"):
                found.append(("activation", name, rms(x)))

        def watch_operands(dy, cache, g, name):
            (x, _, _), _ = cache
            found.extend([("activation", "into " + name, rms(x)), ("output gradient", name, rms(dy))])
            return dense_backward(dy, cache, g, name)

        measured = step in STEPS
        ops.dense_backward = watch_operands if measured else dense_backward
        _, grads = network.loss_and_gradients(params, ids, targets, watch if measured else ops.ignore)
        before = {name: w.copy() for name, w in params.items()} if measured else {}
        optimizer.step(params, grads, step, optim.schedule(config.schedule, step, config.steps, config.warmup))
        for name, w in before.items():
            found += [("weight", name, rms(w)), ("weight gradient", name, rms(grads[name])), ("update", name, rms(params[name] - w))]
        rows += [(param, width, step, *record) for record in found]
    return rows


def write(rows, config):
    """results/tensor_rms.csv"""
    with open(transfer.RESULTS / "tensor_rms.csv", "w") as file:
        file.write(f"# python experiments/tensor_rms.py; commit {transfer.commit()}; corpus {data.load().digest}; numpy {run.versions()['numpy']}; seed {SEED}; "
                   f"default lr of adamw; batch {config.batch} x {config.seq}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["param", "width", "step", "kind", "name", "rms"])
        table.writerows([*row[:-1], f"{row[-1]:.4g}"] for row in rows)


def read():
    """{(param, width, step, kind): {name: RMS}}"""
    found = {}
    with open(transfer.RESULTS / "tensor_rms.csv") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            key = row["param"], int(row["width"]), int(row["step"]), row["kind"]
            found.setdefault(key, {})[row["name"]] = float(row["rms"])
    return found


def report(found):
    """Per parametrization, width and kind the smallest and largest RMS as powers of two, at each step; ! beyond the normal range of its format."""
    lines = [f"{'log2 RMS, smallest … largest':34}" + "".join(f"{'step %d' % step:>18}" for step in STEPS)]
    for param in PARAMS:
        for width in WIDTHS:
            for kind in KINDS:
                cells = []
                for step in STEPS:
                    sizes = found[param, width, step, kind].values()
                    form = FORMATS.get(CAST.get(kind))
                    beyond = form and not form.min_normal <= min(sizes) <= max(sizes) <= form.max
                    cells.append(f"{math.log2(min(sizes)):.1f} … {math.log2(max(sizes)):.1f}{'!' if beyond else ' '}")
                lines.append(f"{param:5}{width:5} {kind:23}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def draw(found):
    """A panel per parametrization: a dot per tensor, by kind and step, a colour per width; beside them the formats' normal ranges."""
    figure, axes = plt.subplots(1, len(PARAMS), figsize=(15, 5), sharey=True, layout="constrained")
    for ax, param in zip(axes, PARAMS):
        for i, kind in enumerate(KINDS):
            for j, step in enumerate(STEPS):
                for k, (width, colour) in enumerate(zip(WIDTHS, ("tab:orange", "tab:blue"))):
                    sizes = [math.log2(size) for size in found[param, width, step, kind].values()]
                    ax.plot([5 * i + j + 0.3 * k] * len(sizes), sizes, ".", color=colour, markersize=4, alpha=0.6, label=f"width {width}" if i == j == 0 else None)
        for i, (name, form) in enumerate(FORMATS.items()):
            low, high = math.log2(form.min_normal), math.log2(form.max)
            x = 5 * len(KINDS) + 1.3 * i
            ax.plot([x, x], [max(low, -40), high], linewidth=6, color="tab:gray", alpha=0.5, solid_capstyle="butt", clip_on=True)
            ax.text(x, 20.5, name.removeprefix("fp8-").upper(), rotation=90, ha="center", va="bottom", fontsize=7)
        for i, kind in enumerate(KINDS):
            if kind in CAST:                                        # what FP8 training would have to hold, between what it can
                form = FORMATS[CAST[kind]]
                ax.fill_between([5 * i - 0.5, 5 * i + 3.8], math.log2(form.min_normal), math.log2(form.max), color="tab:green", alpha=0.12, linewidth=0)
        ax.set_xticks([5 * i + 1.5 for i in range(len(KINDS))], [kind.replace(" ", "\n") for kind in KINDS], fontsize=8)
        ax.set_ylim(-36, 20)
        ax.set_title(param, pad=32)
        ax.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel("log2 RMS")
    axes[0].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"RMS of every tensor; in each group from left to right steps {', '.join(map(str, STEPS))}; "
                    "green: normal range of the format that FP8 training casts to; grey: that of each format", fontsize=10)
    figure.savefig(transfer.FIGURES / "tensor_rms.png", dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        os.environ |= {name: "1" for name in sweep.THREADS}         # read by the BLAS of each process as it starts
        with ProcessPoolExecutor(flags.jobs, multiprocessing.get_context("spawn")) as pool:
            runs = [pool.submit(measure, param, width) for width in reversed(WIDTHS) for param in PARAMS]
            write([row for run in runs for row in run.result()], complete(Config()))
    found = read()
    print(report(found))
    draw(found)
