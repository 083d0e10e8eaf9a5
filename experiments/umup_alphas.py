"""Claim: u-μP's α's, tuned one at a time at width 64, are still the best ones at width 256.

    python experiments/umup_alphas.py --jobs 2

This is the u-μP paper's independent search (arXiv:2407.17465): with the learning rate fixed, each α
is swept with the others at 1, and the best values are then used together. Of an α, the values
within 0.005 nats of the best all count as best, and of their combinations the one with the lowest
loss at width 64 is "tuned". (That rule came after the runs: without it the search takes 8 for
α_loss, by 0.004 nats, which is the worse one beside the other tuned α's.)

The sweeps at width 64 are those of umup_transfer.csv, the rival is lr_transfer.csv's: both files
must exist. The same sweeps are run at width 256, and each combination is trained at widths 64 to
512 with a grid of learning rates, one seed at 512.

Refuted by: an α whose value tuned at width 64 loses more than 0.05 nats to the best one at width
256. The rivals are u-μP with all α's at 1, μP with everything at 1, and SP with its lr divided by
the width, each with its lr tuned at width 64. The search has 36 trials of three seeds, and 5 for
the lr of each combination. umup_rival.py gives μP a search, too.
"""
import itertools
import math

import transfer  # first: it sets the path
import tuned_small
import umup_transfer
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config
from umup_transfer import ALPHA_LR, ALPHA_WIDTH, ALPHAS, ENOUGH, SEEDS, VALUES

OURS = "u-μP, α tuned"
WIDTHS, LARGE, LRS = [64, 128, 256], 512, [2.0**e for e in range(-2, 3)]
OTHER_WIDTH, OTHER_SEEDS, TIE = 256, SEEDS[:1], 0.005             # TIE in nats


def alone(seeds=SEEDS):
    """{α's name: its best value at width 64, the others at 1}"""
    records = [r for r in transfer.read("umup_transfer") if r["config"]["seed"] in seeds]
    sweeps = umup_transfer.one_at_a_time(records)
    return {name: best(losses) for name, losses in sweeps.items()}


def combinations():
    """[{α's name: value}]: of each α the values that are as good as its best at width 64."""
    sweeps = umup_transfer.one_at_a_time(transfer.read("umup_transfer"))
    values = [[value for value, loss in losses.items()
               if loss is not None and loss - losses[best(losses)] < TIE]
              for losses in sweeps.values()]
    return [dict(zip(sweeps, chosen)) for chosen in itertools.product(*values)]


def curve_of(records, chosen):
    """{width: [Point, …]} of the runs with the chosen α's."""
    return transfer.curve([r for r in records if all(
        r["config"][alpha] == value for alpha, value in chosen.items())])


def tuned():
    """{α's name: value} of the combination that is best at width 64."""
    records = transfer.read("umup_alphas")
    return min(combinations(), key=lambda chosen: transfer.best_point(
        curve_of(records, chosen)[WIDTHS[0]]).loss)


def best(losses):
    """The value of {value: loss} with the lowest loss."""
    return min((value for value, loss in losses.items() if loss is not None), key=losses.get)


def grids():
    """The combinations at all widths, and the sweeps of single α's at the other width."""
    umup = Config(param="umup")
    return [*((Config(param="umup", **chosen), {"width": widths, "lr": LRS, "seed": seeds})
              for chosen in combinations()
              for widths, seeds in ((WIDTHS, SEEDS), ([LARGE], SEEDS[:1]))),
            *((umup, {"width": [OTHER_WIDTH], "lr": [ALPHA_LR], alpha: VALUES,
                      "seed": OTHER_SEEDS}) for alpha in ALPHAS)]


def transfers(records):
    """{name: {width: [Point, …]}}: u-μP's combinations, u-μP, μP, and SP for SP·1/width."""
    chosen = tuned()
    found = {OURS: curve_of(records, chosen)}
    for other in combinations():
        differs = [f"{alpha.replace('alpha', 'α')} {value:g}" for alpha, value in other.items()
                   if value != chosen[alpha]]
        if differs:
            found[f"u-μP, {', '.join(differs)}"] = curve_of(records, other)
    others = umup_transfer.transfers(transfer.read("umup_transfer"))
    return found | {"u-μP": others["umup"], "μP": others["mup"],
                    tuned_small.PER_WIDTH: others["sp"]}


def marked(value):
    """A value as a power of two, with ? if it lies at the edge of its grid."""
    return f"2^{math.log2(value):g}{'? '[VALUES[0] < value < VALUES[-1]]}"


def alphas(records):
    """A row per α: the best values at both widths, and what the one of width 64 loses at 256.

    Width 256 has one seed, so the last columns have the value that this seed prefers at width 64.
    """
    other = umup_transfer.one_at_a_time(records, OTHER_WIDTH)
    seeds = f"seed {', '.join(map(str, OTHER_SEEDS))}: "
    lines = [f"{'':16}{f'best at {ALPHA_WIDTH}':>14}{f'best at {OTHER_WIDTH}':>14}"
             f"{f'loses at {OTHER_WIDTH}':>16}{f'{seeds}best at {ALPHA_WIDTH}':>24}"
             f"{f'loses at {OTHER_WIDTH}':>16}"]
    same, bad = alone(OTHER_SEEDS), []
    for name, value in alone().items():
        losses, cells = other[name], []
        for chosen in (value, same[name]):
            loss = math.inf if losses[chosen] is None else losses[chosen] - losses[best(losses)]
            bad += [name] * (loss > ENOUGH)
            cells += [marked(chosen), f"{loss:.3f}"]
        lines.append(f"{name:16}{cells[0]:>14}{marked(best(losses)):>14}{cells[1]:>16}"
                     f"{cells[2]:>24}{cells[3]:>16}")
    return "\n".join([*lines, "? at the edge of the grid", f"lose more than {ENOUGH} nats: "
                      f"{', '.join(dict.fromkeys(bad)) or 'none'}; "
                      f"the claim is {'refuted' if bad else 'not refuted'}"])


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("umup_alphas", grids(), flags)
    records = transfer.read("umup_alphas")
    groups = transfers(records)
    print(optimum.report("width", {OURS: groups[OURS]}))
    ahead = tuned_small.leads(groups, OURS)
    print(f"\n{tuned_small.table(groups)}\n{tuned_small.told(ahead, OURS)}\n\n{alphas(records)}")
    for elsewhere in ("u-μP", tuned_small.PER_WIDTH):    # umup_transfer.png and lr_transfer.png
        del groups[elsewhere]
    plot.loss_against_lr("width", groups, transfer.FIGURES / "umup_alphas.png",
                         "300 steps of AdamW: mean and range of three seeds (u-μP at 512: one)"
                         "; ×: a seed diverged")
