"""Newton–Schulz against its definition by an SVD, its promises, and the Polar Express generator."""
import runpy
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import strict_device
from tinymup import backend
from tinymup.orthogonalize import COEFFICIENTS, POLAR_EXPRESS, newton_schulz

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.append(str(EXPERIMENTS))
from polar_express import best_quintic, polar_express, polynomial, quintic  # noqa: E402

SHAPES = {"square": (12, 12), "wide": (7, 20), "tall": (20, 7), "one row": (1, 9),
          "one column": (9, 1), "batched": (2, 3, 5, 8), "batched tall": (4, 8, 5)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
each_set = pytest.mark.parametrize("name", COEFFICIENTS)

# The composition of the polynomials multiplies a rounding error by its slope at zero: 2e4 for eight
# Keller steps. That makes 2e-12 of float64's 1e-16.
FLOAT64 = 1e-10
# After the customary steps the slope is 1.1e3, which makes 7e-5 of float32's 6e-8.
FLOAT32 = 1e-4

# github.com/microsoft/dion, dion/polar_express.py: cushion 0.02, safety 1.02.
DION = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323))


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def by_svd(g, steps, coefficients):
    """The definition: U diag(p(… p(s/‖g‖_F))) Vᵀ, where g = U diag(s) Vᵀ."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / np.linalg.norm(s, axis=-1, keepdims=True)
    return (u * polynomial(s, steps, coefficients)[..., None, :]) @ vt


@each_set
@each_shape
def test_newton_schulz_is_the_scalar_polynomial_on_the_singular_values(shape, name):
    g = gaussian(shape)
    for steps in (None, 1, 8):
        expected = by_svd(g, steps, COEFFICIENTS[name])
        assert np.abs(newton_schulz(g, steps, COEFFICIENTS[name]) - expected).max() < FLOAT64


@pytest.mark.parametrize("name, steps, smallest, low, high", [
    ("keller", 5, 0.01, 0.68183, 1.13436), ("keller", 5, 0.001, 0.47054, 1.20237),
    ("cubic", 5, 0.01, 0.07582, 1), ("cubic", 15, 0.01, 1, 1),
    ("quintic-convergent", 5, 0.01, 0.97205, 1.18834),
    ("tuned-5", 5, 0.01, 0.97775, 1.03178), ("tuned-5", 3, 0.01, 0.38208, 1.24725),
    ("modula-6", 6, 0.01, 0.99559, 0.99933), ("modula-6", 3, 0.01, 0.49648, 1.15986),
    ("polar-express", 5, 0.01, 0.87026, 1.12356), ("polar-express", 6, 0.01, 0.99744, 1.00118),
    ("polar-express", 8, 0.01, 1, 1)])
def test_the_output_interval_is_the_published_one(name, steps, smallest, low, high):
    # The sources give three digits. Five digits, and the intervals after three steps, also show a
    # wrong digit in a coefficient. The grid misses the extrema by less than 1e-6.
    out = polynomial(np.geomspace(smallest, 1, 100_001), steps, COEFFICIENTS[name])
    assert out.min() == pytest.approx(low, abs=6e-6)
    assert out.max() == pytest.approx(high, abs=6e-6)


def test_keller_steps_do_not_converge_but_the_convergent_sets_do():
    a, b, c = COEFFICIENTS["keller"].triples[0]
    assert abs(a + b + c - 0.701) < 1e-3                            # p(1): 1 is no fixed point
    s = np.linspace(0.05, 1, 100)
    for steps in (5, 15, 40):
        assert np.abs(polynomial(s, steps) - 1).max() > 0.1
    for name in ("cubic", "quintic-convergent"):                    # |p'(1)| ≤ 0.6, 0.6^60 = 5e-14
        assert np.abs(polynomial(s, 60, COEFFICIENTS[name]) - 1).max() < 1e-12


def test_gaussian_matrices_come_out_nearly_orthogonal():
    x = newton_schulz(gaussian((40, 160)), coefficients=COEFFICIENTS["modula-6"])
    assert np.abs(x @ x.T - np.eye(40)).max() < 0.01                # [0.996, 0.999] squared


@each_set
@each_shape
def test_the_scale_of_the_gradient_does_not_matter(shape, name):
    g = gaussian(shape)
    out = newton_schulz(g, coefficients=COEFFICIENTS[name])
    scaled = newton_schulz(g * 2.0**-30, coefficients=COEFFICIENTS[name])    # rounds nothing
    assert np.array_equal(scaled, out)
    assert np.abs(newton_schulz(-1e9 * g, coefficients=COEFFICIENTS[name]) + out).max() < FLOAT64


def test_float32_gradients_of_norm_1e_12_are_not_taken_for_zero():
    g = gaussian((8, 8)).astype(np.float32)
    tiny = newton_schulz(g * np.float32(2.0**-43))
    assert np.array_equal(tiny, newton_schulz(g))


@each_set
@each_shape
def test_the_transpose_gives_the_transpose(shape, name):
    g = gaussian(shape)
    out = newton_schulz(g, coefficients=COEFFICIENTS[name])
    turned = newton_schulz(np.swapaxes(g, -1, -2), coefficients=COEFFICIENTS[name])
    assert np.abs(np.swapaxes(turned, -1, -2) - out).max() < FLOAT64


@pytest.mark.parametrize("shape", [(2, 2000), (2000, 2)])
def test_the_gram_matrix_is_the_small_one(shape):
    g = gaussian(shape)
    tracemalloc.start()
    newton_schulz(g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * g.nbytes                  # the large Gram matrix alone would take 1000


def test_a_batch_is_its_matrices_one_by_one():
    g = gaussian((2, 3, 6, 4)) * np.array([1.0, 10.0, 0.1])[:, None, None]    # of different norms
    one_by_one = np.array([[newton_schulz(matrix) for matrix in row] for row in g])
    assert np.abs(newton_schulz(g) - one_by_one).max() < FLOAT64


@each_set
def test_without_the_normalisation_it_diverges(name):
    g = 10 * gaussian((8, 8))                                       # spectral norm about 50
    cancelled = 1 / np.linalg.norm(g)                               # undoes the division
    unnormalised = COEFFICIENTS[name]._replace(safety=cancelled)
    with np.errstate(all="ignore"):
        out = newton_schulz(g, coefficients=unnormalised)
    assert not np.abs(out).max() < 1e6


@each_set
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_zero_matrix_gives_zero_beside_others(name, dtype):
    g = gaussian((3, 6, 4)).astype(dtype)
    g[1] = 0
    with np.errstate(all="raise", under="ignore"):                  # no 0/0 on the way
        out = newton_schulz(g, coefficients=COEFFICIENTS[name])
    assert not out[1].any() and np.isfinite(out).all() and out[0].any() and out[2].any()


@each_set
@pytest.mark.parametrize("shape", [(10, 15), (15, 10), (10, 10)])
def test_the_rank_is_kept(name, shape):
    u, _, vt = np.linalg.svd(gaussian(shape), full_matrices=False)
    g = (u[:, :3] * [3.0, 2.0, 1.0]) @ vt[:3]                       # rank 3
    s = np.linalg.svd(newton_schulz(g, coefficients=COEFFICIENTS[name]), compute_uv=False)
    assert (s[:3] > 0.6).all() and (s[3:] < FLOAT64).all()


@each_shape
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_input_is_not_written_and_the_dtype_is_kept(shape, dtype):
    g = gaussian(shape).astype(dtype)
    g.flags.writeable = False
    for coefficients in COEFFICIENTS.values():
        out = newton_schulz(g, coefficients=coefficients)
        assert out.dtype == dtype and out.shape == g.shape and out.flags.c_contiguous
        assert not np.shares_memory(newton_schulz(g, 0, coefficients), g)


@each_set
@each_shape
def test_a_device_never_waits_and_agrees_to_the_last_bit(shape, name):
    g = gaussian(shape).astype(np.float32)
    expected = newton_schulz(g, coefficients=COEFFICIENTS[name])
    with strict_device.in_use() as counts:
        g = backend.to_device(g)
        out = newton_schulz(g, coefficients=COEFFICIENTS[name])
        assert counts.syncs == 0
        assert np.array_equal(backend.to_host(out), expected)


@each_set
@each_shape
def test_float32_is_float64_within_its_rounding(shape, name):
    g = gaussian(shape).astype(np.float32)
    out = newton_schulz(g, coefficients=COEFFICIENTS[name])
    double = newton_schulz(g.astype(np.float64), coefficients=COEFFICIENTS[name])
    assert np.abs(out - double).max() < FLOAT32


def test_the_last_listed_triple_repeats_and_is_the_only_one_without_the_safety_factor():
    s = 0.3 / 1.01
    for step in range(10):
        s = quintic(POLAR_EXPRESS[min(step, 7)], s / 1.01 if step < 7 else s)
    assert abs(polynomial(0.3, 10, COEFFICIENTS["polar-express"]) - s) < 1e-14


def test_the_safety_factor_keeps_slightly_too_large_singular_values_from_diverging():
    too_large = 1.009                                               # by rounding in low precision
    assert abs(polynomial(too_large, 8, COEFFICIENTS["polar-express"]) - 1) < 1e-12
    bare = [quintic(POLAR_EXPRESS[0], s) for s in (1.0, too_large)]
    assert bare[0] < 1.9918 < bare[1]          # it leaves the interval that the second step expects


# The Polar Express generator

@pytest.mark.parametrize("step", range(8))
def test_the_generator_reproduces_the_listed_triples(step):
    # The last two steps have such short intervals that float64 determines their coefficients to 10
    # and 8 digits only. Row 8 of the list is the limit.
    tolerance = 1e-12 if step < 6 else 1e-9 if step == 6 else 1e-8
    assert polar_express()[step] == pytest.approx(POLAR_EXPRESS[step], rel=tolerance)


def test_the_generator_reproduces_the_list_of_dion():
    ours = np.array(polar_express(1e-3, 5, cushion=0.02, safety=1.02))
    assert ours == pytest.approx(np.array(DION), rel=1e-12)


def test_the_program_prints_every_coefficient_with_its_difference_from_the_list(capsys):
    runpy.run_path(str(EXPERIMENTS / "polar_express.py"), run_name="__main__")
    _, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(listed) for _, _, _, listed, _ in lines] == pytest.approx(
        np.ravel(POLAR_EXPRESS), rel=1e-14)                         # 15 digits are printed
    for _, _, computed, listed, difference in lines:
        assert abs(float(difference)) < 1e-8
        # The rounding of the printed numbers, 1e-15 each, and two digits of the difference
        assert float(difference) == pytest.approx(
            float(computed) / float(listed) - 1, rel=0.05, abs=1e-14)


@pytest.mark.parametrize("lower", [0.03, 0.2, 0.5, 0.9, 0.99])
def test_no_other_odd_quintic_comes_closer_to_1(lower):
    s = np.linspace(lower, 1, 20_001)
    best = np.array(best_quintic(lower, 1.0))
    error = np.abs(1 - quintic(best, s)).max()
    for end in (lower, 1.0):                                        # the error is largest at both
        assert abs(1 - quintic(best, end)) == pytest.approx(error, rel=1e-6)
    for direction in gaussian((20, 3)):
        assert np.abs(1 - quintic(best + 0.1 * error * direction, s)).max() > error


def test_the_cushion_keeps_the_first_polynomial_away_from_0_inside_the_interval():
    s = np.linspace(0.1, 1, 10_001)
    bare, cushioned = (quintic(polar_express(cushion=cushion)[0], s).min()
                       for cushion in (0.0, 0.02407327424182761))
    assert bare < 0.01 < 0.1 < cushioned


def test_a_generated_list_can_be_used_like_a_published_one():
    generated = polar_express(1e-2, 4, cushion=0.0)
    coefficients = COEFFICIENTS["keller"]._replace(triples=generated, steps=4)
    out = polynomial(np.geomspace(1e-2, 1, 1000), coefficients=coefficients)
    made_for_five = polynomial(np.geomspace(1e-2, 1, 1000), 4, COEFFICIENTS["tuned-5"])
    assert np.abs(out - 1).max() < np.abs(made_for_five - 1).max()
