"""Claim: Muon reaches the loss of an AdamW tuned on the same grid of learning rates in fewer steps; published: 20 to 50 % fewer.

    python experiments/muon_vs_adamw.py --jobs 2

Refuted by: no shorter Muon run with a held-out loss as low as AdamW's after 300 steps.

A point of Muon's curve is the held-out loss of a run of that many steps, with warm-up and linear decay of its own, at the best lr of the
grid for that length. Reading the steps off the training curve of one long run would be easier and unfair, to Muon: before its
decay a run's loss is far above what a run that ends there reaches. Muon's lr alone is tuned; its AdamW companion (embedding, readout)
keeps AdamW's default, 2^-7. Few steps of a small network are not pretraining: the early phase is where Muon gains most.
Sources of the 20 to 50 %: Moonlight, arXiv:2502.16982 (52 % of the FLOPs); github.com/KellerJordan/Muon (1.35 times as fast).
"""
import csv
import math
import statistics

from transfer import FIGURES, RESULTS, arguments, train  # noqa: I001 (first: it sets the path)

from tinymup.network import Config

WIDTHS, SEEDS = [128], [0, 1, 2]
LRS = [2.0**e for e in range(-8, -3)]                              # one grid for both: AdamW's best and Muon's lie inside
FULL, LENGTHS = 300, [150, 200, 250, 300]
PUBLISHED = 0.2, 0.5                                               # parts of the steps saved
RESULT, FIGURE = RESULTS / "muon_vs_adamw.csv", FIGURES / "muon_vs_adamw.png"


def grids():
    """AdamW at full length, Muon at all lengths."""
    return [(Config(optimizer="adamw", steps=FULL), {"width": WIDTHS, "lr": LRS, "seed": SEEDS}),
            (Config(optimizer="muon"), {"steps": LENGTHS, "width": WIDTHS, "lr": LRS, "seed": SEEDS})]


def tuned():
    """{(optimizer, width): {steps: (best lr, [held-out loss of each seed], seconds a step, whether the lr lies inside the grid)}}

    Seconds a step: of the fastest run of that optimizer and width, for other programs can only add to it.
    """
    runs, fastest = {}, {}
    with open(RESULT) as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            key = row["optimizer"], int(row["width"])
            by_lr = runs.setdefault(key, {}).setdefault(int(row["steps"]), {}).setdefault(float(row["lr"]), [])
            by_lr.append(float(row["loss"] or "inf"))              # diverged: no loss
            if row["loss"]:
                fastest[key] = min(fastest.get(key, math.inf), float(row["seconds"]) / int(row["steps"]))
    table = {}
    for key, by_steps in runs.items():
        for steps, by_lr in sorted(by_steps.items()):
            lr = min(by_lr, key=lambda lr: statistics.mean(by_lr[lr]))
            table.setdefault(key, {})[steps] = lr, by_lr[lr], fastest[key], min(by_lr) < lr < max(by_lr)
    return table


def steps_to(target, curve):
    """Where the line through [(steps, loss), …] first comes down to target; None where it does not. Before the first point: the first."""
    if curve[0][1] <= target:
        return curve[0][0]
    for (n0, loss0), (n1, loss1) in zip(curve, curve[1:]):
        if loss1 <= target < loss0:
            return n0 + (n1 - n0) * (loss0 - target) / (loss0 - loss1)
    return None


def compare(table, width):
    """(steps that Muon needs by the mean of the seeds, [by each seed], ratio of seconds); steps are None where it does not get there."""
    _, target, adamw_seconds, _ = table["adamw", width][FULL]
    muon = table["muon", width]
    mean = steps_to(statistics.mean(target), [(n, statistics.mean(losses)) for n, (_, losses, _, _) in muon.items()])
    each = [steps_to(target[i], [(n, losses[i]) for n, (_, losses, _, _) in muon.items()]) for i in range(len(target))]
    return mean, each, mean and mean / FULL * muon[FULL][2] / adamw_seconds


def report(table):
    lines = []
    for width in sorted({width for _, width in table}):
        lines += [f"width {width}", f"{'':8}{'steps':>6}{'best lr':>10}{'held-out loss':>15}{'seeds':>20}{'ms a step':>11}"]
        for optimizer in ("adamw", "muon"):
            for steps, (lr, losses, seconds, inside) in table[optimizer, width].items():
                lines.append(f"{optimizer:8}{steps:>6}{lr:>10.5f}{statistics.mean(losses):>15.4f}{f'{min(losses):.4f} to {max(losses):.4f}':>20}"
                             f"{1000 * seconds:>11.0f}" + ("" if inside else "  the best lr lies at the edge of the grid"))
        mean, each, clock = compare(table, width)
        if mean is None or None in each:
            lines += [f"Muon does not reach AdamW's loss in {FULL} steps with " + ("the mean of" if mean is None else "some of") + " the seeds: refuted", ""]
            continue
        saved, few = 1 - mean / FULL, "at most " * (mean == min(table["muon", width]))
        against = "fewer than published" if saved < PUBLISHED[0] else "more than published" if saved > PUBLISHED[1] else "as published"
        lines += [f"Muon needs {few}{mean:.0f} of AdamW's {FULL} steps (seeds: {min(each):.0f} to {max(each):.0f}): {100 * saved:.0f} % saved, {against} "
                  f"({100 * PUBLISHED[0]:.0f} to {100 * PUBLISHED[1]:.0f} %), in {clock:.2f} of the seconds", ""]
    return "\n".join(lines)


def draw(table):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    widths = sorted({width for _, width in table})
    figure, axes = plt.subplots(1, len(widths), figsize=(2.6 + 4.4 * len(widths), 4), squeeze=False, layout="constrained")
    for ax, width in zip(axes[0], widths):
        muon = table["muon", width]
        means = [statistics.mean(losses) for _, losses, _, _ in muon.values()]
        ax.plot(list(muon), means, "-o", color="#ee6677", markersize=4, label="Muon, each point runs of their own")
        ax.fill_between(list(muon), *([f(losses) for _, losses, _, _ in muon.values()] for f in (min, max)), color="#ee6677", alpha=0.2, linewidth=0)
        _, target, _, _ = table["adamw", width][FULL]
        level, needed = statistics.mean(target), compare(table, width)[0]
        ax.axhspan(min(target), max(target), color="#4477aa", alpha=0.2, linewidth=0)
        ax.axhline(level, color="#4477aa", linestyle="--", linewidth=1)
        ax.plot(FULL, level, "s", color="#4477aa", label=f"AdamW, {FULL} steps")
        if needed:
            ax.annotate("", (needed, level), (FULL, level), arrowprops={"arrowstyle": "->", "color": "black"})
            ax.text((needed + FULL) / 2, level, f"{100 - 100 * needed / FULL:.0f} % fewer steps", ha="center", va="bottom", fontsize=9)
        ax.set(title=f"width {width}", xlabel="steps of the whole run")
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out loss, nats per byte")
    axes[0][0].legend(fontsize=8)
    figure.suptitle("Muon against AdamW, both at their best lr of one grid; mean and range of the seeds", fontsize=11)
    figure.savefig(FIGURE, dpi=100)


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("muon_vs_adamw", grids(), flags.jobs)
    table = tuned()
    print(report(table))
    draw(table)
