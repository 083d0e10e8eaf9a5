"""Claim: under NTK hidden features move like 1/√width, under μP by the same amount at every width.

    python experiments/feature_learning.py

The two are the same network at width 64, the base, and have the same learning rate everywhere. What
is measured is the last hidden activations on one held-out batch: the RMS of their change since
initialisation, relative to their RMS there, after 1, 10 and 100 training steps. An MLP takes SGD,
a Transformer AdamW, each at a sixteenth of its default learning rate: a change that is not small
beside the features themselves saturates, above all behind a norm, and then has no slope. (A pilot
at the default showed that.) Both theories keep the change of the logits, so it is shown too.

Refuted by: a slope of log2 change against log2 width that is more than 0.25 from −½ under NTK, or
from 0 under μP, for either network after any of these steps. The logits have no bounds.
"""
import math
import statistics
from dataclasses import replace

from transfer import (  # noqa: I001 (first: it sets the path)
    FIGURES, arguments, commit_and_kernel, rows_of, verdict, write)

import numpy
from tinymup.backend import to_device, to_host
from tinymup.lab import data, run
from tinymup.lab.config import Config, complete
from tinymup.lab.coord_check import TOLERANCE, sizes
from tinymup.lab.plot import BLUE, ORANGE, plt, save

EXPECTED, NAMES = {"ntk": -0.5, "mup": 0.0}, {"ntk": "NTK", "mup": "μP"}
SEEDS, AFTER, LESS = [0, 1, 2], [1, 10, 100], 1 / 16
# Network: (config, name of the last hidden activations, widths).
NETWORKS = {"MLP, SGD": (Config(model="mlp", optimizer="sgd"), "hidden1",
                         [64, 128, 256, 512, 1024, 2048]),
            "Transformer, AdamW": (Config(), "final_norm", [64, 128, 256, 512])}
COLUMNS = ["network", "param", "width", "seed", "step", "features", "logits", "loss"]
COLOURS = {"ntk": ORANGE, "mup": BLUE}
STYLES = {1: ("o", ":"), 10: ("s", "--"), 100: ("^", "-")}


def configs(base, widths):
    """The configs of one network, the narrow ones first."""
    lr = complete(base).lr * LESS
    return [complete(replace(base, param=param, width=width, seed=seed, lr=lr, batch=8, seq=32,
                             steps=AFTER[-1]))
            for width in widths for param in EXPECTED for seed in SEEDS]


def measure_one(config, name, corpus):
    """[(step, relative change of the features, RMS of the logits' change, loss)] of one run."""
    network, params, optimizer, _ = run.start(config, corpus, None)
    ids, targets = map(to_device, data.held_out_batches(corpus, 1, config.batch, config.seq)[0])
    found, start = [], {}
    for step in range(AFTER[-1] + 1):
        if step in (0, *AFTER):
            seen = {}
            loss, _ = network.loss_and_gradients(
                params, ids, targets, lambda key, x: seen.update({key: to_host(x).copy()}))
            start = start or seen
            moved = sizes(seen[name] - start[name])[1] / sizes(start[name])[1]
            found += [(step, moved, sizes(seen["logits"] - start["logits"])[1],
                       float(to_host(loss)))] * (step > 0)
        if step < AFTER[-1]:
            run.training_step(config, network, params, optimizer, corpus, step)
    return found


def measure():
    """Trains all networks and writes results/feature_learning.csv."""
    rows, corpus = [], data.load((), 32)
    for label, (base, name, widths) in NETWORKS.items():
        for config in configs(base, widths):
            rows += [[label, config.param, config.width, config.seed, step,
                      *(f"{x:.5g}" for x in numbers)]
                     for step, *numbers in measure_one(config, name, corpus)]
    lrs = ", ".join(f"{label} 2^{math.log2(configs(base, [64])[0].lr):g}"
                    for label, (base, *_) in NETWORKS.items())
    write("feature_learning", f"python experiments/feature_learning.py; {commit_and_kernel()}; "
          f"corpus {corpus.digest}; numpy {run.versions()['numpy']}; 8 x 32 bytes, {AFTER[-1]} "
          f"steps; lr: {lrs}; features: RMS of the change relative to the RMS at the start; "
          "logits: RMS of the change; on one held-out batch", COLUMNS, rows)


def table(rows, column):
    """{(network, param, step): {width: [value of each seed]}}"""
    found = {}
    for row in rows:
        by_width = found.setdefault((row["network"], row["param"], int(row["step"])), {})
        by_width.setdefault(int(row["width"]), []).append(float(row[column]))
    return found


def slope(by_width):
    """(least-squares slope of the log2 mean against log2 width, the same of each seed)"""
    x = numpy.log2(list(by_width))
    fits = [float(numpy.polyfit(x, numpy.log2(y), 1)[0])
            for y in ([statistics.mean(v) for v in by_width.values()], *zip(*by_width.values()))]
    return fits[0], fits[1:]


def report(rows):
    """A row per network, parametrization and step: changes by width, slopes; then the verdict."""
    widths = sorted({int(row["width"]) for row in rows})
    lines, against = [], []
    for column in ("features", "logits"):
        relative = " relative to the start" * (column == "features")
        lines += [f"{column}: RMS of the change{relative}",
                  f"{'':20}{'':5}{'step':>5}" + "".join(f"{w:>8}" for w in widths)
                  + f"{'slope':>8}{'of each seed':>22}"]
        for (network, param, step), by_width in table(rows, column).items():
            fit, each = slope(by_width)
            cells = "".join(f"{statistics.mean(by_width[w]):8.3f}" if w in by_width else " " * 8
                            for w in widths)
            lines.append(f"{network:20}{NAMES[param]:5}{step:>5}{cells}{fit:>8.2f}"
                         f"{', '.join(f'{s:.2f}' for s in each):>22}")
            if column == "features" and not abs(fit - EXPECTED[param]) <= TOLERANCE:
                against.append(f"{network}, {NAMES[param]}, step {step}: {fit:.2f}, "
                               f"not {EXPECTED[param]:g}")
        lines.append("")
    return "\n".join([*lines, verdict(against)])


def draw(rows):
    """A panel per network: the change of the features against width, with reference slopes."""
    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(9.6, 5.2), sharex=True, sharey=True)
    widths = sorted({int(row["width"]) for row in rows})
    for ax, network in zip(axes, NETWORKS):
        for (label, param, step), by_width in table(rows, "features").items():
            if label != network:
                continue
            marker, line = STYLES[step]
            means = {width: statistics.mean(v) for width, v in by_width.items()}
            ax.plot(means.keys(), means.values(), line, marker=marker, markersize=5,
                    color=COLOURS[param],
                    label=f"{NAMES[param]}, step {step}: slope {slope(by_width)[0]:+.2f}")
            ax.fill_between(list(by_width), *([f(v) for v in by_width.values()]
                                              for f in (min, max)), color=COLOURS[param], alpha=0.2)
            first, *_, last = by_width
            ax.plot([first, last], [means[first] * (w / first) ** EXPECTED[param]
                                    for w in (first, last)], color="#888888", linewidth=0.8)
        ax.set(xlabel="width", title=network)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xticks(widths, list(map(str, widths)))
        ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    axes[0].set_ylabel("RMS change of the last hidden features,\nrelative to the start")
    save(figure, FIGURES / "feature_learning.png",
         f"Mean and range of {len(SEEDS)} seeds; grey: slope −½ (NTK) and 0 (μP)")


if __name__ == "__main__":
    if not arguments(__doc__, jobs=False).redraw:
        measure()
    rows = rows_of("feature_learning")
    print(report(rows))
    draw(rows)
