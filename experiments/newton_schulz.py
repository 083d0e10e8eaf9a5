"""What each Newton–Schulz coefficient set does to singular values.

    python experiments/newton_schulz.py

Shows what becomes of s from 10⁻⁴ to 1 and of the singular values of a Gaussian matrix. Each set
takes its customary number of steps. Writes results/newton_schulz.csv, then
figures/newton_schulz.png from that file alone.

Claim: all singular values above one hundredth of the Frobenius norm come out in the interval that
tinymup/orthogonalize.py states for the set. A curve that leaves its interval right of 0.01 refutes
this.
"""
import numpy as np
import transfer  # first of ours: it sets the path
from polar_express import polynomial
from tinymup.lab.plot import BLUE, plt
from tinymup.orthogonalize import COEFFICIENTS, newton_schulz

SEED, SIZE = 0, 256


def measure():
    """Rows (kind, s in, s out of each set): "curve", of the polynomial, and "gaussian"."""
    s = np.geomspace(1e-4, 1, 1201)     # 0.01 is one of them
    curves = [polynomial(s, coefficients=coefficients) for coefficients in COEFFICIENTS.values()]
    rows = [("curve", *values) for values in zip(s, *curves)]

    g = np.random.default_rng(SEED).standard_normal((SIZE, SIZE))
    u, s, vt = np.linalg.svd(g / np.linalg.norm(g))
    # The diagonal of Uᵀ X V pairs each singular value with what it has become.
    outs = [np.einsum("ik,ij,kj->k", u, newton_schulz(g, coefficients=coefficients), vt,
                      optimize=True)
            for coefficients in COEFFICIENTS.values()]
    return rows + [("gaussian", *values) for values in zip(s, *outs)]


def write(rows):
    """Writes results/newton_schulz.csv."""
    transfer.write("newton_schulz", "python experiments/newton_schulz.py; "
                   f"{transfer.commit_and_kernel()}; seed {SEED}; float64; Gaussian {SIZE}x{SIZE}; "
                   "customary steps; s_in is divided by the Frobenius norm",
                   ["kind", "s_in", *COEFFICIENTS],
                   [[kind, *(f"{value:.6g}" for value in values)] for kind, *values in rows])


def read():
    """{kind: {column: values}}"""
    rows = transfer.rows_of("newton_schulz")
    names = [name for name in rows[0] if name != "kind"]
    return {kind: {name: np.array([float(row[name]) for row in rows if row["kind"] == kind])
                   for name in names}
            for kind in ("curve", "gaussian")}


def draw_set(left, right, name, curve, gaussian):
    """One set: left its curve and the matrix's singular values, right what becomes of them."""
    left.axhline(1, color="0.6", linewidth=0.8)
    left.axvline(0.01, color="0.6", linewidth=0.8, linestyle=":")
    left.hist(gaussian["s_in"], bins=np.geomspace(1e-4, 1, 41), weights=np.full(SIZE, 3 / SIZE),
              color="0.8")
    left.plot(curve["s_in"], curve[name], color=BLUE, linewidth=1.3)
    left.set(xscale="log", xlim=(1e-4, 1), ylim=(0, 1.3))
    right.hist(gaussian[name], bins=np.linspace(0, 1.3, 66), orientation="horizontal",
               color=BLUE)
    right.set(xticks=[])
    right.tick_params(left=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(False)
    seen = curve[name][curve["s_in"] >= 0.01]
    left.set_title(f"{name}, {COEFFICIENTS[name].steps} steps: {seen.min():.3f} to "
                   f"{seen.max():.3f}", loc="left", fontsize=9)


def draw(table):
    """A panel per set."""
    curve, gaussian = table["curve"], table["gaussian"]
    names = [name for name in curve if name != "s_in"]
    figure = plt.figure(figsize=(9.6, 6), layout="none")
    grid = figure.add_gridspec(2, 3, left=0.055, right=0.99, bottom=0.085, top=0.875, wspace=0.13,
                               hspace=0.27)
    for place, name in zip(grid, names):
        panel = place.subgridspec(1, 2, width_ratios=(5, 1), wspace=0.04)
        left, right = panel.subplots(sharey=True)
        draw_set(left, right, name, curve, gaussian)
        if place.colspan.start == 0:
            left.set_ylabel("singular value out")
        if place.rowspan.start == 1:
            left.set_xlabel("singular value in, over the Frobenius norm")
    figure.suptitle("Newton–Schulz: where singular values come out", x=0.055, ha="left",
                    fontsize=11, y=0.985)
    figure.text(0.055, 0.927, "Line: the polynomial; numbers: its range right of 0.01. Grey: the "
                f"singular values of a Gaussian {SIZE}×{SIZE} matrix; blue: what becomes of "
                "them.", fontsize=8.5, color="0.3")
    figure.savefig(transfer.FIGURES / "newton_schulz.png", dpi=100)


if __name__ == "__main__":
    if not transfer.arguments(__doc__, jobs=False).redraw:
        write(measure())
    draw(read())
