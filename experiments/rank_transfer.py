"""Claim: width 64 ranks random settings as width 512 does under μP; under SP and SP·1/width, worse.

    python experiments/rank_transfer.py --jobs 2

The first 32 settings of mutransfer.py's searches, which draw the learning rate, init_scale,
output_mult, attn_mult and embed_mult, are trained at width 512 too, each from its own seed. The
losses at width 64 are those of the searches: SP and μP are one network there. u-μP has its own
settings. The rival is SP with its lr divided by the growth of the width, 8.

ρ is Spearman's: the correlation of the ranks, with average ranks for ties. Runs that diverge share
the worst rank. Beside it stand ρ of the half that is better at 64, where one would choose, and what
the choice costs: the loss at 512 of the setting that is best at 64, less the best loss at 512. The
intervals hold 95 % of ρ when the settings are drawn anew from these 32, with replacement.

Refuted by: ρ under μP below 0.9, or not above that of both SP and SP·1/width.

The CSV is written after 8, 16, 24 and 32 settings; the same command goes on after an interruption.
"""
import math
import statistics

import mutransfer  # first of ours: it sets the path
import numpy as np
import transfer
from tinymup.lab.config import Config
from tinymup.lab.plot import plt, save

SMALL, LARGE, COUNTS, ENOUGH = mutransfer.SMALL, 512, [8, 16, 24, 32], 0.9
NOTHING = math.log(256)   # nats per byte of a uniform guess
# Rule: (parametrization, search, factor on the lr at the large width).
RULES = {"SP": ("sp", "mup", 1.0), "SP·1/width": ("sp", "mup", SMALL / LARGE),
         "μP": ("mup", "mup", 1.0), "u-μP": ("umup", "umup", 1.0)}


def trials(search, count):
    """The first settings of a search, [(seed, {field: value})]: one of each seed in turn."""
    by_seed = [[(seed, setting) for setting in mutransfer.trials(search, seed)]
               for seed in mutransfer.SEEDS]
    return [trial for turn in zip(*by_seed) for trial in turn][:count]


def used(rule, setting):
    """(parametrization, setting) with which a rule trains the large width."""
    param, _, factor = RULES[rule]
    return param, setting | {"lr": setting["lr"] * factor}


def grids(count):
    """The runs at the large width as grids of one run each: all rules of a trial, then the next."""
    found = []
    for i in range(count):
        for rule, (_, search, _) in RULES.items():
            seed, setting = trials(search, count)[i]
            param, setting = used(rule, setting)
            found.append((Config(param=param, width=LARGE, **setting), {"seed": [seed]}))
    return found


def losses_of(records, search):
    """{(parametrization, seed, values of the search's fields): loss, infinite if it diverged}"""
    return {(r["config"]["param"], r["config"]["seed"],
             *(r["config"][field] for field in mutransfer.PRIORS[search])):
            math.inf if r["loss"] is None else r["loss"] for r in records}


def pairs(small, large):
    """{rule: [(lr relative to its default, loss at 64, loss at 512)]} of the trials that ran."""
    table = {}
    for rule, (_, search, _) in RULES.items():
        before, after = losses_of(small, search), losses_of(large, search)
        for seed, setting in trials(search, COUNTS[-1]):
            param, there = used(rule, setting)
            key = param, seed, *there.values()
            if key in after:
                lr = setting["lr"] * (1 if search == "umup" else 2**7)
                table.setdefault(rule, []).append(
                    (lr, before[search, seed, *setting.values()], after[key]))
    return table


def ranks(values):
    """The rank of each value, from 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [order.index(v) + (order.count(v) + 1) / 2 for v in values]


def spearman(x, y):
    """Spearman's ρ; NaN if all values of one are equal."""
    try:
        return statistics.correlation(ranks(x), ranks(y))
    except statistics.StatisticsError:
        return math.nan


def interval(rows, others=None, draws=2000):
    """The 95 % bootstrap interval of ρ over settings; with others, of ρ less theirs, in pairs."""
    def rho(table, drawn):
        _, small, large = zip(*(table[i] for i in drawn))
        return spearman(small, large)
    all_drawn = np.random.default_rng(0).integers(len(rows), size=(draws, len(rows)))
    return np.nanpercentile([rho(rows, drawn) - (rho(others, drawn) if others else 0)
                             for drawn in all_drawn], [2.5, 97.5])


def report(table):
    """A row per rule: ρ, divergence, what the best at 64 loses at 512; and the verdict."""
    lines = [f"{'rule':12}{'settings':>9}{'ρ':>7}{'95 %':>15}{'better half':>13}"
             f"{'diverged at 64':>16}{'at 512':>8}{'best at 512':>13}{'best at 64 has':>16}"
             f"{'loses':>8}"]
    found = {}
    for rule, rows in table.items():
        _, small, large = zip(*rows)
        found[rule] = spearman(small, large)
        best, chosen = min(large), min(rows, key=lambda row: row[1])[2]
        half = sorted(rows, key=lambda row: row[1])[:len(rows) // 2]
        low, high = interval(rows)
        lines.append(f"{rule:12}{len(rows):>9}{found[rule]:>7.2f}{f'{low:.2f} to {high:.2f}':>15}"
                     f"{spearman(*list(zip(*half))[1:]):>13.2f}{small.count(math.inf):>16}"
                     f"{large.count(math.inf):>8}{best:>13.3f}{chosen:>16.3f}{chosen - best:>8.3f}")
    low, high = interval(table["μP"], table["SP·1/width"])
    lines.append(f"ρ of μP less that of SP·1/width: {found['μP'] - found['SP·1/width']:+.3f}, "
                 f"95 %: {low:+.3f} to {high:+.3f}")
    against = [f"ρ of μP is below {ENOUGH}"] * (not found["μP"] >= ENOUGH)
    against += [f"ρ of {rule} is not below μP's" for rule in ("SP", "SP·1/width")
                if not found[rule] < found["μP"]]
    return "\n".join([*lines, transfer.verdict(against)])


def draw(table):
    """A panel per rule: loss at 64 against loss at 512. What learned nothing stands at the edge."""
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 7), sharex=True, sharey=True)
    losses = [loss for rows in table.values() for row in rows for loss in row[1:]]
    edge = max(loss for loss in losses if loss < NOTHING) + 0.1
    for ax, (rule, rows) in zip(axes.flat, table.items()):
        for gone, marker in ((False, "o"), (True, "X")):
            drawn = [(min(x, edge), min(y, edge), math.log2(lr)) for lr, x, y in rows
                     if (max(x, y) >= NOTHING) == gone]
            if drawn:
                x, y, lr = zip(*drawn)
                points = ax.scatter(x, y, c=lr, marker=marker, s=36, cmap="viridis", vmin=-5,
                                    vmax=4, edgecolor="black", linewidth=0.4, clip_on=False)
        ax.plot([min(losses), edge], [min(losses), edge], "--", color="#888888", linewidth=0.8)
        _, x, y = zip(*rows)
        ax.set_title(f"{rule}: ρ = {spearman(x, y):.2f}")
    for ax in axes[-1]:
        ax.set_xlabel(f"held-out loss at width {SMALL}, nats per byte")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"held-out loss at width {LARGE}, nats per byte")
    figure.colorbar(points, ax=axes, label="log2 (learning rate / its default)", shrink=0.9)
    save(figure, transfer.FIGURES / "rank_transfer.png",
         f"{len(table['μP'])} random settings, each with one of {len(mutransfer.SEEDS)} seeds; "
         "dashed: equal loss\nX at the edge: diverged, or above a uniform guess")


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        for count in COUNTS:
            transfer.train("rank_transfer", grids(count), flags)
    table = pairs(transfer.read("mutransfer_search"), transfer.read("rank_transfer"))
    print(report(table))
    draw(table)
