"""Claim: with tuned α's u-μP is ahead of a μP that was tuned alike, and of SP·1/width.

    python experiments/umup_rival.py --jobs 2

u-μP's five α's are those of umup_alphas.py: each swept alone at width 64 on eight values, 36
trials, then 5 learning rates for each of the best combinations. μP's four multipliers are swept
alike, on seven values, since none is best at an edge: 25 trials, then 5 learning rates. So u-μP has
more trials. Both are trained to width 512 with a grid of learning rates, three seeds to width 256,
and at 1024 with the learning rate of width 64 and its neighbours. The runs of u-μP to 512 are those
of umup_alphas.csv. umup_transfer.csv and lr_transfer.csv must exist, too.

The other rival has nothing to tune but its learning rate: SP, its lr divided by the width, from
lr_transfer.csv.

Refuted by: a width at which a rival is as good as the tuned u-μP or better, each at the learning
rate that is best for it at width 64, on the seeds that both have.
"""
import math

import transfer  # first: it sets the path
import tuned_small
import umup_alphas
import umup_transfer
from tinymup.lab import optimum, plot, sweep
from tinymup.lab.config import Config
from umup_alphas import LARGE, OURS, WIDTHS, best
from umup_transfer import SEEDS

LRS, LARGEST = [2.0**e for e in range(-9, -4)], 1024
RIVAL = "μP, tuned"
MULTIPLIERS = ["output_mult", "attn_mult", "embed_mult", "init_scale"]
SWEEP_WIDTH, SWEEP_LR, VALUES = 64, 2.0**-7, [2.0**e for e in range(-3, 4)]
TITLE = "300 steps of AdamW; mean and range of seeds (tuned: 3 to width 256, else 1; μP: 3)"


def searches():
    """μP's search: each multiplier swept at width 64, the others at 1."""
    return [(Config(width=SWEEP_WIDTH, lr=SWEEP_LR), {name: VALUES, "seed": SEEDS})
            for name in MULTIPLIERS]


def sweeps(records):
    """{multiplier: {value: mean loss}} of the search."""
    return umup_transfer.one_at_a_time(records, SWEEP_WIDTH, SWEEP_LR, MULTIPLIERS)


def tuned(records):
    """{multiplier: its best value at width 64}"""
    return {name: best(losses) for name, losses in sweeps(records).items()}


def train(flags):
    """The search, then the tuned μP at all widths but the largest, then both there.

    There the learning rate that is best at width 64 comes first, then its neighbours, then one more
    for μP, since its best was at the edge. The CSV is written after each stage but the search.
    """
    configs = list(dict.fromkeys(c for grid in searches() for c in sweep.grid(*grid)))
    found, _ = transfer.finished_runs("umup_rival", configs, flags)
    bases = {OURS: Config(param="umup", **umup_alphas.tuned()), RIVAL: Config(**tuned(found))}
    grids = [*searches(), (bases[RIVAL], {"width": WIDTHS, "lr": LRS, "seed": SEEDS}),
             (bases[RIVAL], {"width": [LARGE], "lr": LRS, "seed": SEEDS[:1]})]
    transfer.train("umup_rival", grids, flags)
    groups = transfers(transfer.read("umup_rival"))
    for names, factors in (([OURS, RIVAL], [1]), ([OURS, RIVAL], [1/2, 2]), ([RIVAL], [1/4])):
        for name in names:
            lr, _ = tuned_small.tuned(name, groups[name])
            grids.append((bases[name], {"width": [LARGEST], "lr": [f * lr for f in factors],
                                        "seed": SEEDS[:1]}))
        transfer.train("umup_rival", grids, flags)


def transfers(records):
    """{name: {width: [Point, …]}}: both tuned, μP with everything at 1, and SP for SP·1/width."""
    def curve(records, param, chosen):            # a CSV lacks an α that is 1 in all its runs
        return transfer.curve([
            r for r in records if r["config"]["param"] == param
            and all(r["config"].get(name, 1.0) == value for name, value in chosen.items())])
    alphas = umup_alphas.tuned()
    others = umup_transfer.transfers(transfer.read("umup_transfer"))
    return {OURS: curve([*transfer.read("umup_alphas"), *records], "umup", alphas),
            RIVAL: curve(records, "mup", tuned(records)),
            "μP": others["mup"], tuned_small.PER_WIDTH: others["sp"]}


def table(records):
    """A row per multiplier of μP: its losses at width 64, the best marked."""
    lines = [f"μP, width {SWEEP_WIDTH}, lr 2^{math.log2(SWEEP_LR):g}: held-out loss, the others "
             "at 1", f"{'':12}" + "".join(f"{f'2^{math.log2(v):g}':>8} " for v in VALUES)]
    for name, losses in sweeps(records).items():
        cells = ("no loss " if losses[v] is None else f"{losses[v]:.3f}{'* '[v != best(losses)]}"
                 for v in VALUES)
        lines.append(f"{name:12}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def verdict(groups):
    """The leads of the tuned u-μP, and where it is not ahead of a rival."""
    ahead = tuned_small.leads(groups, OURS)
    behind = [f"{name} at width {', '.join(widths)}" for name, by_width in ahead.items()
              if (widths := [str(width) for width, lead in by_width.items() if lead <= 0])]
    return f"{tuned_small.told(ahead, OURS)}\n{transfer.verdict(behind)}"


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        train(flags)
    records = transfer.read("umup_rival")
    groups = transfers(records)
    own = {name: groups[name] for name in (OURS, RIVAL, "μP")}      # SP's is lr_transfer.py's
    print(f"{table(records)}\n\n{optimum.report('width', own)}\n\n{tuned_small.table(groups)}\n"
          f"{verdict(groups)}")
    plot.loss_against_lr("width", own, transfer.FIGURES / "umup_rival.png", TITLE)
