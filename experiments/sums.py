"""The figure of the README's first step: sums of random and of aligned terms against their number.

    python experiments/sums.py

Draws figures/sums.png and prints the numbers. There is no claim to refute: the slopes are ½, since
the variances of independent terms add, and 1 by counting.
"""
import numpy as np
from transfer import FIGURES  # noqa: I001 (first: it sets the path)

from tinymup.lab.plot import plt

SIZES = [64, 128, 256, 512, 1024, 2048, 4096]


def rms(y):
    """√(mean y²)"""
    return float(np.sqrt(np.mean(y**2)))


def measure(n, rng):
    """The RMS of x @ w for n inputs of size 1 and entries of size 1: random w, aligned w."""
    x = rng.standard_normal(n)
    random = rng.choice([-1.0, 1.0], (n, 64))                       # independent of x
    aligned = np.sign(np.outer(x, rng.standard_normal(64)))         # signs of a gradient xᵀ dy
    return rms(x @ random), rms(x @ aligned)


def draw(table):
    """One panel: both sums, and theory's slopes through the first point of each."""
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for i, (name, marker, slope) in enumerate([("random terms, √fan_in", "o", 0.5),
                                               ("aligned terms, fan_in", "s", 1.0)]):
        y = [sums[i] for sums in table.values()]
        ax.loglog(SIZES, y, marker, base=2, color=["#31688e", "#e69f00"][i], label=name)
        ax.loglog(SIZES, [y[0] * (n / SIZES[0])**slope for n in SIZES], "--", base=2, color="grey",
                  linewidth=1)
    ax.set_xlabel("fan_in, the number of terms")
    ax.set_ylabel("RMS of the sum")
    ax.legend()
    ax.grid(alpha=0.3)
    figure.savefig(FIGURES / "sums.png", dpi=110)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    table = {n: measure(n, rng) for n in SIZES}
    print("fan_in   random   aligned")
    for n, (random, aligned) in table.items():
        print(f"{n:6} {random:8.0f} {aligned:9.0f}")
    draw(table)
