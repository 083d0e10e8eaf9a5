"""Newton-Schulz: moves every singular value of a matrix towards 1 by matrix products alone, without an SVD.

An odd polynomial of a matrix acts on its singular values only. With g = U diag(s) V^T and p(s) = a s + b s^3 + c s^5,

    a g + b (g g^T) g + c (g g^T)^2 g = U diag(p(s)) V^T,

and a few such steps carry s in (0, 1] close to 1: the result is nearly U V^T, the orthogonal matrix nearest to g. Nothing here
depends on the layout of a weight; (fan_in, fan_out) and its transpose give the same update, transposed.
"""
import math
from typing import NamedTuple

from .backend import xp


class Coefficients(NamedTuple):
    triples: tuple        # (a, b, c) of each step; the last one repeats when more steps are asked for
    steps: int            # the customary number of steps
    safety: float         # singular values start below 1/safety, so that rounding cannot carry them past 1
    source: str


def safer(triples, safety):
    """p(s) becomes p(s / safety) in every step but the last one listed, which is to end at 1 exactly."""
    return tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in triples[:-1]) + triples[-1:]


# Amsel, Persson, Musco, Gower 2025, arXiv:2505.16932; `polar_express` below computes these numbers.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

# The comments say where s in [0.01, 1] comes out after the customary steps (measured; a test holds them).
COEFFICIENTS = {
    "keller": Coefficients(                     # 0.682 to 1.134; p(1) = 0.70, so further steps do not bring them closer
        ((3.4445, -4.7750, 2.0315),), 5, 1.0, "Jordan et al. 2024, kellerjordan.github.io/posts/muon"),
    "cubic": Coefficients(                      # 0.076 to 1; 15 steps: 1 - 3e-7 to 1
        ((3 / 2, -1 / 2, 0.0),), 5, 1.0, "docs.modula.systems, Newton-Schulz, a cubic iteration"),
    "quintic-convergent": Coefficients(         # 0.972 to 1.188; p'(1) = -0.6, so the error shrinks by 0.6 a step
        ((3.0, -16 / 5, 6 / 5),), 5, 1.0, "docs.modula.systems, Newton-Schulz, a quintic iteration"),
    "tuned-5": Coefficients(                    # 0.978 to 1.032
        ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
         (2.8366, -3.0525, 1.2012)), 5, 1.0, "github.com/microsoft/dion, dion/muon.py"),
    "modula-6": Coefficients(                   # 0.996 to 0.999
        tuple((a / 1024, b / 1024, c / 1024) for a, b, c in (
            (3955, -8306, 5008), (3735, -6681, 3463), (3799, -6499, 3211), (4019, -6385, 2906), (2677, -3029, 1162),
            (2172, -1833, 682))), 6, 1.0, "You Jiacheng 2025, in github.com/modula-systems/modula, modula/atom.py"),
    "polar-express": Coefficients(              # 0.870 to 1.124; 6 steps: 0.997 to 1.001; 8 steps: 1 to 1e-14
        safer(POLAR_EXPRESS, 1.01), 5, 1.01, "Amsel et al. 2025, arXiv:2505.16932"),
}
KELLER = COEFFICIENTS["keller"]


def schedule(steps, coefficients):
    """The triples of `steps` steps (None: the customary number)."""
    steps = coefficients.steps if steps is None else steps
    return [coefficients.triples[min(step, len(coefficients.triples) - 1)] for step in range(steps)]


def newton_schulz(g, steps=None, coefficients=KELLER):
    """U diag(polynomial(s / |g|_F)) V^T   where g = U diag(s) V^T          g (..., m, n) -> (..., m, n)

    The scale of g does not matter: the Frobenius norm is at least the largest singular value, so after the division all lie in
    (0, 1]. Zero singular values stay zero, hence so does a zero matrix. Leading axes are separate matrices (heads, say).
    Costs 2 k^2 (2 l + k) floating-point operations a step, with k the smaller and l the larger of m and n.
    """
    tall = g.shape[-2] > g.shape[-1]
    norm = xp.sqrt((g * g).sum(axis=(-2, -1), keepdims=True))                # (..., 1, 1)
    x = g / (coefficients.safety * xp.maximum(norm, 1e-15))                  # not `if norm > 0`: that would wait for a GPU
    for a, b, c in schedule(steps, coefficients):
        # S, the smaller Gram matrix. Tall matrices take it from the right: S is what their transpose would give, and the two
        # strided copies are saved (2048 x 512: 47 ms, transposed 55 ms). NumPy forms x x^T by a symmetric rank-k update, as it
        # sees one buffer twice: 512 x 2048 in 3.5 ms, 5.1 ms as a general product. For S S^T that is no gain up to k = 512.
        gram = transposed(x) @ x if tall else x @ transposed(x)              # (..., k, k)
        quadratic = gram @ gram
        quadratic *= c                                                       # in place, as fresh memory costs more than the sum
        quadratic += b * gram                                                # b S + c S^2
        y = x @ quadratic if tall else quadratic @ x
        y += a * x
        x = y
    return x


def transposed(x):
    """x^T of each matrix          (..., m, n) -> (..., n, m)"""
    return xp.swapaxes(x, -2, -1)


def quintic(triple, s):
    """p(s) = a s + b s^3 + c s^5"""
    a, b, c = triple
    return a * s + b * s**3 + c * s**5


def polynomial(s, steps=None, coefficients=KELLER):
    """What `newton_schulz` does to one singular value s in [0, 1] of g / |g|_F."""
    s = s / coefficients.safety
    for triple in schedule(steps, coefficients):
        s = quintic(triple, s)
    return s


def polar_express(lower=1e-3, steps=8, cushion=0.02407327424182761, safety=1.0):
    """The triples whose composition carries [lower, 1] as close to 1 as so many quintics can (Amsel et al. 2025, Algorithm 1).

    Greedy is optimal: each step is the best quintic for the interval that the steps before it have left. The cushion keeps the
    lower end of that interval above cushion * upper, or the first steps would send the middle of it close to zero.
    The defaults give POLAR_EXPRESS; cushion 0.02 and safety 1.02 in 5 steps give the list of github.com/microsoft/dion.
    """
    upper, triples = 1.0, []
    for step in range(steps):
        triple = best_quintic(max(lower, cushion * upper), upper)
        if cushion * upper > lower:                                          # centre p(lower), p(upper) around 1 again
            centre = 2 / (quintic(triple, lower) + quintic(triple, upper))
            triple = tuple(centre * coefficient for coefficient in triple)
        if step < steps - 1:
            triple = tuple(coefficient / safety**power for coefficient, power in zip(triple, (1, 3, 5)))
        triples.append(triple)
        lower = quintic(triple, lower)
        upper = 2 - lower
    return tuple(triples)


def best_quintic(lower, upper):
    """The (a, b, c) that minimise the largest |1 - p(s)| for s in [lower, upper], by Remez' exchange.

    At the best p the error 1 - p is +E, -E, +E, -E at lower, q, r, upper, with q and r the extrema of p. Divided by s this asks a
    quadratic in z = s^2 to pass through four points, which it can only if their third divided difference is zero: that gives E.
    """
    if lower / upper > 1 - 1e-4:                     # p below is 1 to 3e-12 here, while rounding would hide its extrema from us
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    q, r = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    for _ in range(10):                              # 4 suffice: the convergence is quadratic
        s = (lower, q, r, upper)
        z, ones, signs = [t * t for t in s], [1 / t for t in s], [1 / lower, -1 / q, 1 / r, -1 / upper]
        error = divided_difference(z, ones) / divided_difference(z, signs)
        f = [one - error * sign for one, sign in zip(ones, signs)]           # a + b z + c z^2 = (1 -+ E) / s
        c = divided_difference(z[:3], f[:3])
        b = divided_difference(z[:2], f[:2]) - c * (z[0] + z[1])
        a = f[0] - b * z[0] - c * z[0] ** 2
        root = math.sqrt(9 * b * b - 20 * a * c)                             # p'(s) = a + 3 b z + 5 c z^2 = 0
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def divided_difference(z, f):
    """f[z0, ..., zn] = (f[z1, ..., zn] - f[z0, ..., zn-1]) / (zn - z0); zero if a polynomial of degree n - 1 fits."""
    if len(z) == 1:
        return f[0]
    return (divided_difference(z[1:], f[1:]) - divided_difference(z[:-1], f[:-1])) / (z[-1] - z[0])
