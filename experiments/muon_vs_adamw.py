"""Claim: Muon reaches the loss of a tuned AdamW in fewer steps, at widths 128 and 512.

    python experiments/muon_vs_adamw.py --jobs 2

Refuted by: no shorter Muon run whose held-out loss is as low as AdamW's after 300 steps.

Both optimizers are tuned on a grid of learning rates, and both have weight decay, 2^-10 per step,
near what what_transfers.py found best for AdamW. A point of a curve is the held-out loss of runs of
that length, each with its own warm-up and decay, at the best lr for that length. Reading the steps
off the training curve of one long run would be easier, and unfair: before its lr has decayed, a run
is far above one that ends at that step. Of Muon only its own lr is tuned. The AdamW beside it
(embedding, readout) keeps AdamW's default, 2^-7. A few hundred steps of a small network are not
pretraining.

Published: 1.35 times as fast in the NanoGPT speedrun (github.com/KellerJordan/Muon), and 52 % of
AdamW's training FLOPs (Moonlight, arXiv:2502.16982). Both are of far larger networks.
"""
import math
import statistics
from typing import NamedTuple

from transfer import FIGURES, arguments, read, train  # noqa: I001 (first: it sets the path)

from tinymup.lab.config import Config
from tinymup.lab.plot import BLUE, PURPLE, plt, save

# Width: (exponents of AdamW's lr, of Muon's, seeds). The best of each lies inside.
GRID = {128: (range(-8, -3), range(-8, -3), [0, 1, 2]), 512: (range(-8, -4), range(-6, -3), [0])}
FULL, LENGTHS, WARMUP, DECAY = 300, [150, 200, 250, 300], 20, 2.0**-10
PUBLISHED = {"speedrun": 1 - 1 / 1.35, "Moonlight": 1 - 0.52}      # parts of the work saved


def grids():
    """Both optimizers at all lengths."""
    return [(Config(optimizer=optimizer, warmup=WARMUP, weight_decay=DECAY),
             {"steps": LENGTHS, "width": [width], "lr": [2.0**e for e in exponents], "seed": seeds})
            for width, (adamw, muon, seeds) in GRID.items()
            for optimizer, exponents in (("adamw", adamw), ("muon", muon))]


class Tuned(NamedTuple):
    """The runs of one optimizer, width and length at the best lr of the grid."""

    lr: float
    losses: list      # held-out, by seed
    step_time: float  # seconds, in the fastest run: other programs can only make a run slower
    inside: bool      # whether the best lr has neighbours on both sides

    mean = property(lambda self: statistics.mean(self.losses))
    low = property(lambda self: min(self.losses))
    high = property(lambda self: max(self.losses))


def tuned(records):
    """{(optimizer, width): {steps: `Tuned`}}"""
    runs, fastest = {}, {}
    for record in records:
        c, loss = record["config"], record["loss"]
        key = c["optimizer"], c["width"]
        by_lr = runs.setdefault(key, {}).setdefault(c["steps"], {})
        by_lr.setdefault(c["lr"], []).append(math.inf if loss is None else loss)   # diverged
        if loss is not None:
            step_time = record["seconds"] / c["steps"]
            fastest[key] = min(fastest.get(key, math.inf), step_time)
    table = {}
    for key, by_steps in runs.items():
        for steps, by_lr in sorted(by_steps.items()):
            lr = min(by_lr, key=lambda lr: statistics.mean(by_lr[lr]))
            inside = min(by_lr) < lr < max(by_lr)
            table.setdefault(key, {})[steps] = Tuned(lr, by_lr[lr], fastest[key], inside)
    return table


def steps_to(target, curve):
    """Where the line through [(steps, loss), …] first comes down to target; None if nowhere.

    If the first point is below the target already, its steps.
    """
    if curve[0][1] <= target:
        return curve[0][0]
    for (n0, loss0), (n1, loss1) in zip(curve, curve[1:]):
        if loss1 <= target < loss0:
            return n0 + (n1 - n0) * (loss0 - target) / (loss0 - loss1)
    return None


def needed(adamw, muon):
    """(steps that Muon needs by the mean of the seeds, [by each seed]); None where it fails."""
    mean = steps_to(adamw.mean, [(n, point.mean) for n, point in muon.items()])
    each = [steps_to(target, [(n, point.losses[i]) for n, point in muon.items()])
            for i, target in enumerate(adamw.losses)]
    return mean, each


def verdict(adamw, muon):
    """What the runs of one width say about the claim."""
    mean, each = needed(adamw, muon)
    if mean is None or mean >= FULL:
        return f"refuted: Muon does not reach AdamW's loss in less than {FULL} steps"
    at_most = "at most " if mean == min(muon) else ""
    reached = [n for n in each if n is not None]
    seeds = (f"seeds: {min(reached):.0f} to {max(reached):.0f}" if len(reached) == len(each) else
             f"{len(each) - len(reached)} of {len(each)} seeds do not reach it")
    clock = mean * muon[FULL].step_time / (FULL * adamw.step_time)
    published = ", ".join(f"{name} {100 * saved:.0f} %" for name, saved in PUBLISHED.items())
    return (f"Muon needs {at_most}{mean:.0f} of AdamW's {FULL} steps ({seeds}) "
            f"and {clock:.2f} of the seconds:\n{100 * (1 - mean / FULL):.0f} % of the steps saved "
            f"(published: {published})")


def report(table):
    """A table and the verdict for each width."""
    lines = []
    for width in sorted({width for _, width in table}):
        lines += [f"width {width}", f"{'':8}{'steps':>6}{'best lr':>10}{'held-out loss':>15}"
                                    f"{'seeds':>20}{'ms a step':>11}"]
        for optimizer in ("adamw", "muon"):
            lines += [f"{optimizer:8}{steps:>6}{t.lr:>10.5f}{t.mean:>15.4f}"
                      f"{f'{t.low:.4f} to {t.high:.4f}':>20}{1000 * t.step_time:>11.0f}"
                      + ("" if t.inside else "  the best lr lies at the edge of the grid")
                      for steps, t in table[optimizer, width].items()]
        lines += [verdict(table["adamw", width][FULL], table["muon", width]), ""]
    return "\n".join(lines)


def draw(table):
    """A panel per width: Muon's loss against the length of the run, beside AdamW's."""
    widths = sorted({width for _, width in table})
    figure, axes = plt.subplots(1, len(widths), figsize=(1.6 + 4.4 * len(widths), 4),
                                sharex=True, squeeze=False)
    for ax, width in zip(axes[0], widths):
        draw_width(ax, table["adamw", width], table["muon", width])
        ax.set(title=f"width {width}", xlabel="steps of the whole run")
    axes[0][0].set_ylabel("held-out loss, nats per byte")
    axes[0][0].legend()
    seeds = ", ".join(f"{len(seeds)} at width {width}" for width, (*_, seeds) in GRID.items())
    save(figure, FIGURES / "muon_vs_adamw.png", "Each point: runs of that length at their best lr, "
         f"with weight decay; mean and range of seeds ({seeds})")


def draw_width(ax, adamw, muon):
    """Both curves, and an arrow for the steps that Muon saves."""
    for name, curve, look, colour in (("AdamW", adamw, "--s", BLUE), ("Muon", muon, "-o", PURPLE)):
        ax.plot(list(curve), [t.mean for t in curve.values()], look, color=colour, markersize=4,
                label=name)
        ax.fill_between(list(curve), [t.low for t in curve.values()],
                        [t.high for t in curve.values()], color=colour, alpha=0.2, linewidth=0)
    target = adamw[FULL].mean
    mean, _ = needed(adamw[FULL], muon)
    if mean is not None:
        ax.annotate("", (mean, target), (FULL, target),
                    arrowprops={"arrowstyle": "->", "color": "black"})
        ax.text((mean + FULL) / 2, target, f"{100 - 100 * mean / FULL:.0f} % fewer steps",
                ha="center", va="bottom")


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        for count in (2, 4):                       # the CSV holds the widths that are finished
            train("muon_vs_adamw", grids()[:count], flags)
    table = tuned(read("muon_vs_adamw"))
    print(report(table))
    draw(table)
