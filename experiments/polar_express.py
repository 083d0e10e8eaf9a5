"""Computes the coefficients of Polar Express.

    python experiments/polar_express.py

Prints each triple (a, b, c) that `polar_express` computes, the one listed in
tinymup/orthogonalize.py, and the relative difference. Tests and experiments/newton_schulz.py import
the functions of this file.

Source: Amsel, Persson, Musco, Gower 2025, arXiv:2505.16932.
"""
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tinymup.orthogonalize import COEFFICIENTS, POLAR_EXPRESS, triples_of  # noqa: E402


def quintic(triple, s):
    """p(s) = a s + b s³ + c s⁵"""
    a, b, c = triple
    return a * s + b * s**3 + c * s**5


def polynomial(s, steps=None, coefficients=COEFFICIENTS["keller"]):
    """What `newton_schulz` makes of a singular value s ∈ [0, 1] of g/‖g‖."""
    s = s / coefficients.safety
    for triple in triples_of(steps, coefficients):
        s = quintic(triple, s)
    return s


def polar_express(lower=1e-3, steps=8, cushion=0.02407327424182761, safety=1.0):
    """The triples whose composition carries [lower, 1] as close to 1 as so many quintics can.

    Each step takes the best quintic for the interval to which the steps before it have carried
    [lower, 1]. This greedy choice is optimal (Algorithm 1 of the paper). The defaults give
    `POLAR_EXPRESS`. Five steps with cushion 0.02 and safety 1.02 give the list in
    github.com/microsoft/dion, dion/polar_express.py.

    The best quintic for a wide interval carries a point inside it as close to 0 as the lower end.
    To avoid that, no step is optimized for an interval wider than [cushion · upper, upper].
    """
    upper, triples = 1.0, []
    for step in range(steps):
        triple = best_quintic(max(lower, cushion * upper), upper)
        if cushion * upper > lower:                     # p(lower) and p(upper) are not centred on 1
            centre = 2 / (quintic(triple, lower) + quintic(triple, upper))
            triple = tuple(centre * coefficient for coefficient in triple)
        if step < steps - 1:
            a, b, c = triple
            triple = a / safety, b / safety**3, c / safety**5
        triples.append(triple)
        lower = quintic(triple, lower)
        upper = 2 - lower
    return tuple(triples)


def best_quintic(lower, upper):
    """The (a, b, c) with the smallest maximum of |1 − p(s)| over [lower, upper].

    The Remez algorithm: the error 1 − p of the best p is +E, −E, +E, −E at lower, q, r and upper,
    with q and r the extrema of p. Divided by s, these four equations say that a quadratic in z = s²
    passes through four points. One does if their third divided difference is 0, which gives E.
    """
    if lower / upper > 1 - 1e-4:   # rounding hides the extrema; this p, the limit, is 1 to 3e-12
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    q, r = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    for _ in range(10):            # converges quadratically
        s = lower, q, r, upper
        z, ones = [t * t for t in s], [1 / t for t in s]
        signs = [1 / lower, -1 / q, 1 / r, -1 / upper]
        error = divided_difference(z, ones) / divided_difference(z, signs)
        f = [one - error * sign for one, sign in zip(ones, signs)]   # a + b z + c z² at the points
        c = divided_difference(z[:3], f[:3])
        b = divided_difference(z[:2], f[:2]) - c * (z[0] + z[1])
        a = f[0] - b * z[0] - c * z[0]**2
        root = math.sqrt(9 * b * b - 20 * a * c)                     # of p′(s) = a + 3 b z + 5 c z²
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def divided_difference(z, f):
    """f[z₀ … zₙ] = (f[z₁ … zₙ] − f[z₀ … zₙ₋₁]) / (zₙ − z₀), which is 0 for degree n − 1."""
    if len(z) == 1:
        return f[0]
    return (divided_difference(z[1:], f[1:]) - divided_difference(z[:-1], f[:-1])) / (z[-1] - z[0])


if __name__ == "__main__":
    print(f"{'step':>4}{'':>3}{'computed':>22}{'listed':>22}{'difference':>12}")
    for number, (computed, listed) in enumerate(zip(polar_express(), POLAR_EXPRESS), 1):
        for name, ours, theirs in zip("abc", computed, listed):
            print(f"{number:>4}{name:>3}{ours:>22.15g}{theirs:>22.15g}{ours / theirs - 1:>12.1e}")
