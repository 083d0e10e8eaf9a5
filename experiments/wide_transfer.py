"""Claim: what lr_transfer.py and umup_transfer.py find up to width 1024 holds to width 4096.

    CUPY_TF32=1 python experiments/wide_transfer.py --device gpu --jobs 6

Refuted by: from width 64 to 4096, a drift of more than half an octave under μP or u-μP, or of less
than one octave under SP. Each grid has the predicted optimum between its inner points, but for
u-μP, whose optimum at width 64 lies just below them.

The rival is SP with its learning rate divided by the width: SP's curve, read one octave further
left for each doubling of the width. In theory its embedding learns too little at large widths. If
so, it has to show here, where the lr is divided by up to 64. It wins if its loss with the lr tuned
at width 64 is as good as μP's at width 4096.

Widths 2048 and 4096 are trained here, with one seed. A network of width 4096 has 400 million
parameters: this needs a GPU. Matrix products are in TF32, which rounds their inputs to 10 bits. The
same seed at widths 64 and 1024 comes from lr_transfer.csv and umup_transfer.csv, in float32.
"""
import transfer  # first: it sets the path
import tuned_small
import umup_transfer
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config

SEED, SMALL = 0, [64, 1024]
LARGE = {"sp": {2048: (-13, -10), 4096: (-14, -11)},              # first and last log2 lr
         "mup": dict.fromkeys([2048, 4096], (-8, -5)), "umup": dict.fromkeys([2048, 4096], (-1, 2))}
NAMES = {"sp": "SP", "mup": "μP", "umup": "u-μP"}


def grids():
    """The grids of runs, the widest networks first."""
    return [(Config(param=rule), {"width": [width], "seed": [SEED],
                                  "lr": [2.0**e for e in range(first, last + 1)]})
            for width in (4096, 2048) for rule, exponents in LARGE.items()
            for first, last in [exponents[width]]]


def groups(records):
    """{rule: {width: [Point, …]}} of these records and of the small widths."""
    records = records + transfer.read("lr_transfer") + [
        r for r in transfer.read("umup_transfer") if umup_transfer.at_one(r["config"])]
    kept = [r for r in records if r["config"]["seed"] == SEED
            and r["config"]["width"] in [*SMALL, *LARGE["sp"]]]
    return {NAMES[rule]: transfer.curve([r for r in kept if r["config"]["param"] == rule])
            for rule in LARGE}


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("wide_transfer", grids(), flags)
    found = groups(transfer.read("wide_transfer"))
    print(optimum.report("width", found) + "\n")
    print(tuned_small.table({"SP": found["SP"], tuned_small.PER_WIDTH: found["SP"], **found}))
    print(tuned_small.verdict_on_transfer(found))
    plot.loss_against_lr("width", found, transfer.FIGURES / "wide_transfer.png",
                         "300 steps of AdamW, one seed; widths 2048 and 4096 on a GPU")
