"""Newton–Schulz: moves the singular values of a matrix towards 1 by matrix products alone.

With g = U diag(s) Vᵀ, the polynomial p(s) = a s + b s³ + c s⁵ acts on the singular values alone:
a g + b (g gᵀ) g + c (g gᵀ)² g = U diag(p(s)) Vᵀ. A few such steps bring each s in [0.01, 1] near 1,
and g near U Vᵀ, the nearest matrix with orthonormal rows or columns. Read next: optim.py."""
from typing import NamedTuple

from .backend import xp


class Coefficients(NamedTuple):
    """The polynomials of a Newton–Schulz iteration."""
    triples: tuple        # (a, b, c) of each step; the last one repeats if more steps are asked for
    steps: int = 5        # the customary number of steps
    safety: float = 1.0   # singular values start below 1/safety, a margin for rounding errors


# Amsel, Persson, Musco, Gower 2025, arXiv:2505.16932. experiments/polar_express.py computes them.
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

COEFFICIENTS = {   # in brackets: where the customary steps carry singular values in [0.01, 1]
    # Jordan et al. 2024, kellerjordan.github.io/posts/muon [0.682, 1.134]; more steps do not help
    "keller": Coefficients(((3.4445, -4.7750, 2.0315),)),
    # docs.modula.systems, Newton-Schulz, the cubic iteration [0.076, 1]
    "cubic": Coefficients(((3 / 2, -1 / 2, 0.0),)),
    # the same page, the quintic iteration [0.972, 1.188]; near 1 a step multiplies errors by −0.6
    "quintic-convergent": Coefficients(((3.0, -16 / 5, 6 / 5),)),
    # github.com/microsoft/dion, dion/muon.py [0.978, 1.032]
    "tuned-5": Coefficients((
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))),
    # You Jiacheng 2025, in github.com/modula-systems/modula, modula/atom.py [0.996, 0.999]
    "modula-6": Coefficients(tuple((a / 1024, b / 1024, c / 1024) for a, b, c in (
        (3955, -8306, 5008), (3735, -6681, 3463), (3799, -6499, 3211),
        (4019, -6385, 2906), (2677, -3029, 1162), (2172, -1833, 682))), steps=6),
    # [0.870, 1.124]; 6 steps: [0.997, 1.001]; 8 steps: 1 to 1e-14. Each p(s) becomes p(s / 1.01)
    # but for the last, which must end at 1.
    "polar-express": Coefficients((
        *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in POLAR_EXPRESS[:-1]),
        POLAR_EXPRESS[-1]), safety=1.01),
}


def triples_of(steps, coefficients):
    """The (a, b, c) of each step. steps None: the customary number."""
    steps = coefficients.steps if steps is None else steps
    return [coefficients.triples[min(i, len(coefficients.triples) - 1)] for i in range(steps)]

def newton_schulz(g, steps=None, coefficients=COEFFICIENTS["keller"]):
    """U diag(p(… p(s/f))) Vᵀ, where g = U diag(s) Vᵀ, f = safety · ‖g‖_F     g, result (…, m, n)
    All s/f lie in [0, 1]. Zero stays zero. Leading axes are separate matrices. A step costs
    2 k² (2 l + k) floating-point operations, with k the smaller and l the larger of m and n."""
    tall = g.shape[-2] > g.shape[-1]
    norm = xp.sqrt((g * g).sum(axis=(-2, -1), keepdims=True))             # (…, 1, 1)
    x = g / (coefficients.safety * xp.maximum(norm, 1e-15))           # an `if` would wait for a GPU
    for a, b, c in triples_of(steps, coefficients):
        # The smaller Gram matrix. NumPy computes it as a symmetric product, half the operations.
        xt = x.swapaxes(-2, -1)
        gram = xt @ x if tall else x @ xt                                 # (…, k, k)
        quadratic = b * gram + c * (gram @ gram)
        x = a * x + (x @ quadratic if tall else quadratic @ x)
    return x
