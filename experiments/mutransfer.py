"""Claim: tuned at width 64 for 7 % of a large run's FLOPs, μP is as good at 1024 as if tuned there.

    python experiments/mutransfer.py --jobs 2

A search draws TRIALS settings at random, trains them at width 64, and keeps the one with the lowest
held-out loss. SP and μP are the same network at width 64, so they share a search: of the learning
rate, init_scale, output_mult, attn_mult and embed_mult. u-μP has its own: of the learning rate and
its α's. The winner is trained once at width 1024. Everything is done three times, with a seed for
the draws, the initial parameters and the batches.

The rivals cost no more than μTransfer, which costs 1.07 runs at width 1024:
    SP default    AdamW's customary lr of 0.001, no search
    SP            the winner as it is
    SP·1/width    the winner with its lr divided by the growth of the width, 16
    direct        a search at width 1024 under SP: the budget allows one trial
    u-μP          its own winner
The rows "lr alone" are rivals, too, and cheaper: they have the best of the six learning rates of
lr_transfer.csv at width 64, all else at its defaults. An oracle, one for SP and one for μP, has the
best lr of that file's grid at width 1024.

Refuted by: a mean loss of μP more than 0.05 nats above the better of the two oracles, or above
that of a rival.
"""
import math
import statistics

import numpy as np
import transfer  # first of ours: it sets the path
from tinymup.lab import optimum
from tinymup.lab.config import Config, complete
from tinymup.lab.plan import sizes
from tinymup.lab.plot import BLUE, ORANGE, plt, save

SMALL, LARGE, TRIALS, SEEDS = 64, 1024, 13, [0, 1, 2]
FACTORS = np.arange(-4, 5) / 2                   # log2 of a multiplier: 2^-2 … 2^2, half octaves
PRIORS = {"mup": {"lr": np.arange(-24, -7) / 2,  # 2^-12 … 2^-4: the best lr of all widths is inside
                  "init_scale": FACTORS, "output_mult": FACTORS, "attn_mult": FACTORS,
                  "embed_mult": FACTORS},
          "umup": {"lr": np.arange(-8, 9) / 2, "alpha_attn": FACTORS, "alpha_ffn": FACTORS,
                   "alpha_res": FACTORS, "alpha_res_ratio": FACTORS, "alpha_loss": FACTORS}}
FIELDS = dict.fromkeys(field for prior in PRIORS.values() for field in prior)
RULES = {"SP default": "sp", "SP": "sp", "SP·1/width": "sp", "direct": "sp", "μP": "mup",
         "u-μP": "umup"}
ENOUGH = 0.05                                    # nats above the oracle that refute the claim


def trials(param, seed):
    """The settings of a search, {field: value}: each drawn from the octaves of its prior."""
    rng = np.random.default_rng(seed)
    return [{field: float(2.0 ** rng.choice(octaves)) for field, octaves in PRIORS[param].items()}
            for _ in range(TRIALS)]


def search():
    """The runs at width 64 as grids of one run each."""
    return [(Config(param=param, width=SMALL, **setting), {"seed": [seed]})
            for param in PRIORS for seed in SEEDS for setting in trials(param, seed)]


def winner(records, param, seed):
    """The setting of the best trial of a search."""
    tried = {tuple(setting.values()): setting for setting in trials(param, seed)}
    found = [(r["loss"], tuple(r["config"][field] for field in PRIORS[param])) for r in records
             if r["config"]["param"] == param and r["config"]["width"] == SMALL
             and r["config"]["seed"] == seed and r["loss"] is not None]
    return tried[min(found)[1]]


def target(rule, seed, records):
    """The setting with which a rule trains width 1024."""
    best = winner(records, "umup" if rule == "u-μP" else "mup", seed)
    if rule == "SP default":
        return {"lr": 1e-3}
    if rule == "direct":
        return trials("mup", seed)[0]
    return best | {"lr": best["lr"] * SMALL / LARGE} if rule == "SP·1/width" else best


def targets(records):
    """The runs at width 1024, given the records of the search."""
    return [(Config(param=param, width=LARGE, **target(rule, seed, records)), {"seed": [seed]})
            for rule, param in RULES.items() for seed in SEEDS]


def flops(width, param="mup"):
    """Floating-point operations of the matrix products of a run."""
    config = complete(Config(param=param, width=width))
    return config.steps * sizes(config)[1]


def losses_at(records, param, width, lr):
    """{seed: loss} of the runs of one learning rate."""
    return {r["config"]["seed"]: r["loss"] for r in records
            if [r["config"][f] for f in ("param", "width", "lr")] == [param, width, lr]}


def best_lr(records, param, width):
    """The learning rate of the grid with the lowest mean loss."""
    by_width = optimum.curves([r for r in records if r["config"]["param"] == param])[1][param]
    return transfer.best_point(by_width[width]).lr


def rows(searched, trained, grid):
    """[(rule, runs at width 64, runs at width 1024, {seed: loss})]: what each spends and gets."""
    table, counts = [], {(param, width): len({r["config"]["lr"] for r in grid
                                              if (r["config"]["param"], r["config"]["width"])
                                              == (param, width)})
                         for param in ("sp", "mup") for width in (SMALL, LARGE)}
    for rule, param in RULES.items():
        found = {}
        for seed in SEEDS:
            setting = target(rule, seed, searched)
            wanted = dict.fromkeys(FIELDS, 1.0) | setting | {"param": param, "seed": seed}
            found[seed], = [r["loss"] for r in trained
                            if all(r["config"][f] == value for f, value in wanted.items())]
        table.append((rule, 0 if rule in ("SP default", "direct") else TRIALS, 1, found))
    small = best_lr(grid, "mup", SMALL)
    for rule, param, lr in (("SP, lr alone", "sp", small), ("μP, lr alone", "mup", small),
                            ("SP·1/width, lr alone", "sp", small * SMALL / LARGE)):
        table.append((rule, counts["mup", SMALL], 1, losses_at(grid, param, LARGE, lr)))
    for rule, param in (("oracle SP", "sp"), ("oracle μP", "mup")):
        lr = best_lr(grid, param, LARGE)
        table.append((rule, 0, counts[param, LARGE], losses_at(grid, param, LARGE, lr)))
    return table


def mean(losses):
    """The mean over seeds, infinite if a run has no loss."""
    return math.inf if None in losses.values() else statistics.mean(losses.values())


def report(table, minutes):
    """A row per rule: its cost, its losses, its distance from the better oracle; and a verdict."""
    share = flops(SMALL) / flops(LARGE)
    oracle = min(mean(losses) for rule, *_, losses in table if rule.startswith("oracle"))
    lines = [f"one run at width {LARGE}: {flops(LARGE):.3g} FLOPs, {minutes[LARGE]:.1f} minutes of "
             f"one core; at width {SMALL}: {100 * share:.2f} % of the FLOPs, "
             f"{minutes[SMALL]:.2f} minutes",
             f"{'rule':22}{'runs at 64':>11}{'at 1024':>8}{'cost, runs':>11}{'loss':>8}"
             f"{'range of seeds':>30}{'above oracle':>14}"]
    for rule, small, large, losses in table:
        known = [loss for loss in losses.values() if loss is not None]
        spread = f"{min(known):.3f} to {max(known):.3f}" if known else "none"
        spread += f", {len(losses) - len(known)} diverged" * (len(known) < len(losses))
        lines.append(f"{rule:22}{small:>11}{large:>8}{large + small * share:>11.2f}"
                     f"{mean(losses):>8.3f}{spread:>30}{mean(losses) - oracle:>+14.3f}")
    found = {rule: mean(losses) for rule, *_, losses in table}
    against = [f"μP is {found['μP'] - oracle:.3f} above the oracle"] * (
        found["μP"] - oracle > ENOUGH)
    against += [f"{rule} is better by {found['μP'] - loss:.3f}" for rule, loss in found.items()
                if not rule.startswith("oracle") and loss < found["μP"]]
    return "\n".join([*lines, transfer.verdict(against)])


def minutes_of(*tables):
    """{width: mean minutes of a run} from the seconds in the CSVs."""
    records = [r for table in tables for r in table]
    return {width: statistics.mean(r["seconds"] / 60 for r in records
                                   if r["config"]["width"] == width) for width in (SMALL, LARGE)}


def draw(table):
    """A row per rule: a dot per seed, a bar at the mean, the cost at the right.

    A seed that diverged is a cross at the axis' edge, where no loss can be mistaken for it. Its
    rule has no mean: that of the other seeds would make it look better than it is.
    """
    share = flops(SMALL) / flops(LARGE)
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    for y, (rule, small, large, losses) in enumerate(reversed(table)):
        known = [loss for loss in losses.values() if loss is not None]
        ax.plot(known, [y] * len(known), "o", color=BLUE, alpha=0.6, markersize=6)
        gone = len(losses) - len(known)
        ax.plot([0.98 - 0.03 * i for i in range(gone)], [y] * gone, "x", color=ORANGE,
                markersize=9, markeredgewidth=2, transform=ax.get_yaxis_transform())
        if not gone:
            ax.plot(statistics.mean(known), y, "|", color="black", markersize=16)
        ax.text(1.01, y, f"{large + small * share:.2f}", transform=ax.get_yaxis_transform(),
                va="center", fontsize=9)
    ax.text(1.01, -1, "cost, runs", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.set_yticks(range(len(table)), [rule for rule, *_ in reversed(table)], fontsize=9)
    ax.margins(x=0.1)
    ax.set_xlabel(f"held-out loss at width {LARGE}, nats per byte")
    save(figure, transfer.FIGURES / "mutransfer.png",
         f"Tuned at width {SMALL} and trained once at width {LARGE}\n"
         f"{len(SEEDS)} seeds; bar: their mean; × at the edge: a seed that diverged (then no mean)")


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("mutransfer_search", search(), flags, "mutransfer")
        transfer.train("mutransfer", targets(transfer.read("mutransfer_search")), flags)
    searched, trained = transfer.read("mutransfer_search"), transfer.read("mutransfer")
    table = rows(searched, trained, transfer.read("lr_transfer"))
    print(report(table, minutes_of(searched, trained)))
    draw(table)
