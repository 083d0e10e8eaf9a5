"""Claim: on other kinds of text, too, the best learning rate stays under μP and moves under SP.

    python experiments/corpora.py --jobs 2 prose=tinyshakespeare.txt 'C=/usr/include/linux/*.h'

Each NAME=PATHS is a text, as `--data` takes it; its digest is in the first line of its CSV. Widths
64 to 256, two seeds. lr_transfer.py has these runs on Python source, among others.

Refuted by: on one of the texts a drift of more than half an octave under μP, or of less than one
octave under SP. The rival is SP with its lr divided by the width. It wins where its loss at width
256, with the lr tuned at width 64, is as good as μP's.
"""
import transfer  # first: it sets the path
import tuned_small
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config

SEEDS = [0, 1]
# Exponents of the learning rates: two on each side of the optimum that Python source has.
LRS = {("sp", 64): range(-9, -4), ("sp", 128): range(-10, -5), ("sp", 256): range(-11, -6),
       ("mup", 64): range(-9, -4), ("mup", 128): range(-9, -4), ("mup", 256): range(-9, -4)}


def grids(paths):
    """The grids of one text, as `transfer.train` takes them."""
    return [(Config(param=param, data=(paths,)),
             {"width": [width], "lr": [2.0**e for e in exponents], "seed": SEEDS})
            for (param, width), exponents in LRS.items()]


def report(found):
    """The tables of a text, its drifts, and its losses with the lr that is tuned at width 64."""
    return optimum.report("width", found) + "\n\n" + tuned_small.beside(found["sp"], found["mup"])


if __name__ == "__main__":
    parser = transfer.parser(__doc__)
    parser.add_argument("texts", nargs="*", metavar="NAME=PATHS", help="a text and its files")
    flags = parser.parse_args()
    texts = dict(text.partition("=")[::2] for text in flags.texts)
    if not flags.redraw and not all(texts.values() or [""]):
        parser.error("no text, or one without a file: give NAME=PATHS, as in prose=shakespeare.txt")
    for name, paths in texts.items() if not flags.redraw else ():
        transfer.train(f"corpora_{name}", grids(paths), flags, "corpora")
    panels = {}
    for file in sorted(transfer.RESULTS.glob("corpora_*.csv")):
        name = file.stem.removeprefix("corpora_")
        found = optimum.curves(transfer.read(file.stem))[1]
        print(f"== {name}\n{report(found)}\n")
        panels |= {f"{name}, {param}": found[param] for param in ("sp", "mup")}
    if not panels:
        transfer.refuse("results/corpora_*.csv are missing: name a text as NAME=PATHS first")
    figure, axes = plot.panels(len(panels), columns=2)
    plot.draw_losses(axes, "width", panels)
    plot.save(figure, transfer.FIGURES / "corpora.png",
              f"300 steps of AdamW on other texts: mean and range of {len(SEEDS)} seeds")
