"""Every pair of ops.py: gradients by the complex step, shapes, types, purity, and what each operation promises beyond that."""
import inspect
import math
import re

import numpy as np
import pytest

from gradients import TOLERANCE, pair_errors
from tinymup import ops
from tinymup.ops import Branch, Mult

# Sizes by the letters of ops.py, no two alike, so that an exchanged axis has a wrong shape.
N, B, T, C, H, D, V, F, I, O = 6, 2, 7, 5, 3, 4, 11, 8, 9, 10
IDS = np.array([3, 0, 3, 10, 3, 1])                      # a repeated byte and unused ones
TARGETS = np.array([0, 10, 2, 2, 7, 5])
ANGLES = ops.rope_angles(T, H, D, np.float64)
EXACT = Mult.exact(0.7)


def gaussian(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def layer(forward, backward, names):
    """`dense` or `norm` as a pair of functions of arrays: the gradients that it writes into a dict become results."""
    def pair_forward(x, *arrays):
        return forward(x, dict(zip(names, arrays)), "w", {"w": EXACT, "w.bias": Mult.exact(0.3)})

    def pair_backward(dy, cache):
        g = {}
        dx = backward(dy, cache, g, "w")
        return dx, *(g[name] for name in names)
    return pair_forward, pair_backward


def around_gelu(weight):
    """A residual branch with something in it, as a pair: where its gradient is scaled shows only where it comes out again."""
    def pair_forward(x):
        f, c_gelu = ops.gelu(x)
        y, c_add = ops.residual(x, f, weight)
        return y, (c_gelu, c_add)

    def pair_backward(dy, cache):
        c_gelu, c_add = cache
        dskip, df = ops.residual_backward(dy, c_add)
        return ops.residual_join(dskip, ops.gelu_backward(df, c_gelu), c_add)
    return pair_forward, pair_backward


# What is differentiated: name → (forward, backward, shapes of the differentiated inputs, the first as in the docstring).
PAIRS = {
    "linear": (ops.linear, ops.linear_backward, [(N, I), (I, O)]),
    "linear times 0.7": (lambda x, w: ops.linear(x, w, EXACT), ops.linear_backward, [(N, I), (I, O)]),
    "bias": (ops.bias, ops.bias_backward, [(N, O), (O,)]),
    "bias times 0.7": (lambda x, b: ops.bias(x, b, EXACT), ops.bias_backward, [(N, O), (O,)]),
    "embedding": (lambda w: ops.embedding(IDS, w), ops.embedding_backward, [(V, C)]),
    "embedding times 0.7": (lambda w: ops.embedding(IDS, w, EXACT), ops.embedding_backward, [(V, C)]),
    "rmsnorm": (ops.rmsnorm, ops.rmsnorm_backward, [(N, C)]),
    "rmsnorm of values as small as its eps": (lambda x: ops.rmsnorm(x, eps=1.0), ops.rmsnorm_backward, [(N, C)]),
    "gain": (ops.gain, ops.gain_backward, [(N, C), (C,)]),
    "gain times 0.7": (lambda x, g: ops.gain(x, g, EXACT), ops.gain_backward, [(N, C), (C,)]),
    "relu": (ops.relu, ops.relu_backward, [(N, F)]),
    "relu with factors": (lambda x: ops.relu(x, 1.7, 0.6), ops.relu_backward, [(N, F)]),
    "gelu": (ops.gelu, ops.gelu_backward, [(N, F)]),
    "gelu with factors": (lambda x: ops.gelu(x, 1.7, 0.6), ops.gelu_backward, [(N, F)]),
    "silu_gate": (ops.silu_gate, ops.silu_gate_backward, [(N, F), (N, F)]),
    "silu_gate with factors": (lambda x, g: ops.silu_gate(x, g, 1.7, 0.6), ops.silu_gate_backward, [(N, F), (N, F)]),
    "rope": (lambda x: ops.rope(x, ANGLES), ops.rope_backward, [(B, T, H, D)]),
    "attention": (lambda q, k, v: ops.attention(q, k, v, 0.6), ops.attention_backward, [(B, T, H, D)] * 3),
    "attention, scale 1": (lambda q, k, v: ops.attention(q, k, v, 1.0), ops.attention_backward, [(B, T, H, D)] * 3),
    "attention with a factor": (lambda q, k, v: ops.attention(q, k, v, 0.6, 1.7), ops.attention_backward, [(B, T, H, D)] * 3),
    "residual": (*around_gelu(Branch(1.0, 1.0, 1.0, 1.0)), [(N, C)]),
    "residual, scaled on the way in": (*around_gelu(Branch(1.0, 0.3, 0.3, 1.0)), [(N, C)]),
    "residual, scaled on the way out": (*around_gelu(Branch(0.8, 0.6, 1.0, 0.6)), [(N, C)]),
    "residual, scaled on both": (*around_gelu(Branch(0.8, 0.6, 0.2, 3.0)), [(N, C)]),
    # the loss is a number and its backward takes no dy: here it is the product of both
    "cross_entropy": (lambda logits: ops.cross_entropy(logits, TARGETS), lambda dy, c: dy * ops.cross_entropy_backward(c), [(N, V)]),
    "cross_entropy of scaled logits": (
        lambda logits: ops.cross_entropy(logits, TARGETS, 1.7), lambda dy, c: dy * ops.cross_entropy_backward(c), [(N, V)]),
    "dense": (*layer(ops.dense, ops.dense_backward, ["w"]), [(N, I), (I, O)]),
    "dense with bias": (*layer(ops.dense, ops.dense_backward, ["w", "w.bias"]), [(N, I), (I, O), (O,)]),
    "norm": (*layer(ops.norm, ops.norm_backward, []), [(N, C)]),
    "norm with gain": (*layer(ops.norm, ops.norm_backward, ["w"]), [(N, C), (C,)]),
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def inputs_of(name, dtype=np.float64):
    return [gaussian(*shape, seed=i).astype(dtype) for i, shape in enumerate(PAIRS[name][2])]


def errors_of(name, backward=None):
    """The errors of a pair's gradients; with another backward in its place, that one's."""
    forward, own_backward, _ = PAIRS[name]
    return pair_errors(forward, backward or own_backward, inputs_of(name), np.random.default_rng(1))


# ── gradients ────────────────────────────────────────────────────────────────────────────────────────────────────────

@each_pair
def test_gradients_are_those_of_the_complex_step(name):
    assert max(errors_of(name)) < TOLERANCE


def test_no_pair_is_left_unchecked():
    backwards = {name.removesuffix("_backward") for name in vars(ops) if name.endswith("_backward")}
    assert backwards == {re.match(r"\w+", name)[0] for name in PAIRS}
    assert all(hasattr(ops, name) for name in backwards)


# The pair that shows it, a piece of its backward as it stands, and the mistake.
MUTANTS = [
    ("linear times 0.7", "times(mult.dx, dy @ w.T)", "dy @ w.T"),
    ("linear times 0.7", "times(mult.dw, x.T @ dy)", "x.T @ dy"),
    ("bias times 0.7", "mult.dw * dy.sum(0)", "dy.sum(0)"),
    ("embedding", "onehot.T @ dy", "(onehot.T > 0) / onehot.T.sum(1, keepdims=True).clip(1) @ dy"),   # one of the repeated
    ("embedding times 0.7", "times(mult.dw, onehot.T @ dy)", "onehot.T @ dy"),
    ("rmsnorm", "y * -row_mean(dy, y)", "0 * y"),
    ("rmsnorm", "dx *= inv", "pass"),
    ("gain times 0.7", "dy * (mult.y * g)", "dy * g"),
    ("gain times 0.7", "mult.dw * (dy * x).sum(0)", "(dy * x).sum(0)"),
    ("relu", "dy * slope", "dy"),
    ("gelu", "6 * GELU_SLOPE", "2 * GELU_SLOPE"),
    ("gelu", "d += 1\n", "pass\n"),
    ("gelu with factors", "times(mult, dx)", "dx"),
    ("gelu with factors", "alpha**3", "alpha"),
    ("silu_gate", "dg = 1 - s", "dg = 0 * s"),
    ("silu_gate", "dg *= x", "pass"),
    ("silu_gate with factors", "dg *= alpha", "pass"),
    ("silu_gate with factors", "times(mult, dg)", "dg"),
    ("rope", "-sin", "sin"),
    ("attention", "times(scale, ds.swapaxes(-1, -2) @ k)", "ds.swapaxes(-1, -2) @ k"),
    ("attention with a factor", "mult * dy if mult != 1 else dy", "dy"),
    ("attention", "ds[b] -= along[b]", "pass"),
    ("attention", "ds[b] *= p[b]", "pass"),
    ("attention", "dq.swapaxes(1, 2), dk.swapaxes(1, 2)", "dk.swapaxes(1, 2), dq.swapaxes(1, 2)"),
    ("attention", "p @ dy", "p.swapaxes(-1, -2) @ dy"),
]
RESIDUAL_MUTANTS = [
    ("residual_backward", "dy * weight.enter", "dy * weight.amount", "residual, scaled on both"),
    ("residual_backward", "dy * weight.skip", "dy", "residual, scaled on both"),
    ("residual_join", "times(weight.leave, dx)", "dx", "residual, scaled on the way out"),
    ("residual_join", "dx += dskip", "pass", "residual"),
]


def mutated(function, line, mistake):
    """The function with one piece of its source exchanged."""
    source = inspect.getsource(function)
    assert source.count(line) == 1, f"the source has changed: {line!r} stands there {source.count(line)} times"
    namespace = dict(vars(ops))
    exec(source.replace(line, mistake), namespace)
    return namespace[function.__name__]


@pytest.mark.parametrize("name, line, mistake", MUTANTS)
def test_a_wrong_line_in_a_backward_is_caught(name, line, mistake):
    broken = mutated(PAIRS[name][1], line, mistake)
    assert max(errors_of(name, broken)) > 1e-6      # a million times the tolerance: a mistake is no matter of rounding


@pytest.mark.parametrize("function, line, mistake, name", RESIDUAL_MUTANTS)
def test_a_wrong_line_in_a_residual_branch_is_caught(monkeypatch, function, line, mistake, name):
    monkeypatch.setattr(ops, function, mutated(getattr(ops, function), line, mistake))
    assert max(errors_of(name)) > 1e-6


def test_a_loss_gradient_without_its_mean_or_its_target_is_caught():
    for line, mistake in [("dlogits *= factor", "pass"), ("targets] -= 1", "targets] -= 0")]:
        broken = mutated(ops.cross_entropy_backward, line, mistake)
        assert errors_of("cross_entropy", lambda dy, cache: dy * broken(cache))[0] > 1e-6


@pytest.mark.parametrize("op, mult_free, shapes", [
    ("linear", 0, [(N, I), (I, O)]), ("bias", 1, [(N, O), (O,)]), ("gain", 0, [(N, C), (C,)]), ("embedding", None, [(V, C)])])
def test_each_factor_of_mult_acts_on_its_own_product(op, mult_free, shapes):
    """y, dx and dw are those of the plain operation times mult.y, mult.dx, mult.dw, except that dx of a bias has no factor and dx of
    a gain goes through the gain as used, mult.y · g."""
    mult = Mult(y=2.0, dx=3.0, dw=5.0)
    forward, backward = getattr(ops, op), getattr(ops, op + "_backward")
    arrays = [gaussian(*shape) for shape in shapes]
    arrays = [IDS] + arrays if op == "embedding" else arrays
    y_plain, c_plain = forward(*arrays)
    y, cache = forward(*arrays, mult)
    dy = gaussian(*y.shape, seed=9)
    plain, grads = backward(dy, c_plain), backward(dy, cache)

    # powers of two and small integers, but x·(3w) and 3·(x·w) round differently
    close = lambda a, b: np.allclose(a, b, rtol=1e-14, atol=1e-14)
    if op == "embedding":
        assert close(y, 2 * y_plain) and close(grads, 5 * plain)
        return
    x, w = arrays
    assert close(y, x + 2 * w) if op == "bias" else close(y, 2 * y_plain)
    assert close(grads[0], {"linear": 3, "bias": 1, "gain": 2}[op] * plain[0])
    assert close(grads[1], 5 * plain[1])


def test_exact_is_one_factor_three_times():
    assert Mult.exact(0.7)[:3] == (0.7, 0.7, 0.7) and ops.UNIT[:3] == (1, 1, 1)


# ── shapes, types, purity ────────────────────────────────────────────────────────────────────────────────────────────

# Calls with sizes of distinct letters, for reading the shapes off the docstrings.
CALLS = {
    "linear": (gaussian(N, I), gaussian(I, O)), "bias": (gaussian(N, O), gaussian(O)), "embedding": (IDS, gaussian(V, C)),
    "rmsnorm": (gaussian(N, C),), "gain": (gaussian(N, C), gaussian(C)), "silu_gate": (gaussian(N, F), gaussian(N, F)),
    "rope": (gaussian(B, T, H, D), ANGLES), "attention": (*[gaussian(B, T, H, D)] * 3, 1.0),
    "residual": (gaussian(N, C), gaussian(N, C), Branch(1, 1, 1, 1)), "cross_entropy": (gaussian(N, V), TARGETS)}
SIZES = dict(N=N, B=B, T=T, C=C, H=H, D=D, V=V, F=F, I=I, O=O)


@pytest.mark.parametrize("op", CALLS)
def test_shapes_are_those_of_the_docstring(op):
    function = getattr(ops, op)
    arrays = dict(zip(inspect.signature(function).parameters, CALLS[op]))
    arrays["loss" if op == "cross_entropy" else "y"] = function(*CALLS[op])[0]
    stated = {}
    for names, letters in re.findall(r"((?:\w+, )*\w+) \(((?:[A-Z](?:, |,)?)*)\)", function.__doc__):
        stated.update({name: tuple(SIZES[letter] for letter in re.findall("[A-Z]", letters)) for name in names.split(", ")})
    seen = {name: np.shape(array) for name, array in arrays.items() if name not in ("weight", "angles", "scale")}
    assert seen == {name: shape for name, shape in stated.items() if name in seen}


def test_rope_angles_have_the_shape_and_type_they_state():
    for angles in ops.rope_angles(T, H, D, np.float32):
        assert angles.shape == (T, H, D) and angles.dtype == np.float32


@each_pair
def test_float32_stays_float32(name):
    # A float64 factor from NumPy instead of Python would make everything after it float64, at half the speed.
    forward, backward, _ = PAIRS[name]
    inputs = inputs_of(name, np.float32)
    if name == "rope":
        forward = lambda x: ops.rope(x, ops.rope_angles(T, H, D, np.float32))
    y, cache = forward(*inputs)
    grads = backward(gaussian(*y.shape).astype(np.float32) if y.shape else np.float32(1), cache)
    assert y.dtype == np.float32
    assert all(g.dtype == np.float32 for g in (grads if isinstance(grads, tuple) else (grads,)))


def arrays_in(cache):
    """All arrays of a nested cache."""
    if isinstance(cache, tuple):
        return [array for part in cache for array in arrays_in(part)]
    return [cache] if isinstance(cache, np.ndarray) else []


@each_pair
def test_no_input_and_no_cache_is_written_to(name):
    forward, backward, _ = PAIRS[name]
    inputs = inputs_of(name)
    for x in inputs:
        x.flags.writeable = False                        # NumPy refuses from now on
    y, cache = forward(*inputs)
    dy = gaussian(*y.shape)
    for array in [dy, *arrays_in(cache)]:
        if isinstance(array, np.ndarray) and array.ndim:
            array.flags.writeable = False
    backward(dy, cache)


@pytest.mark.parametrize("op", ["linear", "embedding", "gelu", "attention", "residual"])
def test_an_output_never_shares_memory_with_an_input(op):
    # so that the next operation may work in place on what it was given as its own
    for name in (pair for pair in PAIRS if re.match(rf"{op}\b", pair)):
        inputs = inputs_of(name)
        y, _ = PAIRS[name][0](*inputs)
        assert not any(np.shares_memory(y, x) for x in inputs)


# ── what the operations promise ──────────────────────────────────────────────────────────────────────────────────────

def naive_attention(q, k, v, scale):
    """Query by query, over the keys up to its own time."""
    y = np.empty_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for t in range(q.shape[1]):
                s = [scale * np.dot(q[b, t, h], k[b, j, h]) for j in range(t + 1)]
                p = np.exp(s) / np.exp(s).sum()
                y[b, t, h] = sum(p[j] * v[b, j, h] for j in range(t + 1))
    return y


def test_attention_equals_a_loop_over_queries():
    q, k, v = (gaussian(B, T, H, D, seed=i) for i in range(3))
    assert np.abs(ops.attention(q, k, v, 0.6)[0] - naive_attention(q, k, v, 0.6)).max() < 1e-14   # values of order 1, 7 terms


def test_attention_logits_are_the_scaled_products_of_keys_and_queries():
    q, k, v = (gaussian(B, T, H, D, seed=i) for i in range(3))
    s = ops.attention_logits(ops.attention(q, k, v, 0.6)[1])       # also after the softmax has worked in place
    assert s.shape == (B, H, T, T) and np.isclose(s[1, 2, 3, 5], 0.6 * k[1, 3, 2] @ q[1, 5, 2], rtol=1e-14)


def test_largest_logits_are_the_largest_that_no_mask_hides():
    q, k, v = (gaussian(B, T, H, D, seed=i) for i in range(3))
    _, cache = ops.attention(q, k, v, -0.6)
    s = ops.attention_logits(cache)
    seen = s[..., np.triu(np.ones((T, T), bool))].max((0, 2))      # key not later than query
    assert np.allclose(ops.largest_logits(cache), seen, rtol=1e-14) and (seen < s.max((0, 2, 3))).any()


def test_attention_gives_the_future_no_weight_and_the_past_some():
    q, k, v = (gaussian(B, T, H, D, seed=i) for i in range(3))
    y = ops.attention(q, k, v, 0.6)[0]
    for t in range(T):
        k2, v2 = k.copy(), v.copy()
        k2[:, t] *= -3
        v2[:, t] += 1e3
        moved = ops.attention(q, k2, v2, 0.6)[0] != y
        assert not moved[:, :t].any() and moved[:, t:].all()       # to the last bit: weights of exactly 0
        k2[:, t] *= 1e6                                            # which a mask of, say, −1e4 would let through
        assert np.array_equal(ops.attention(q, k2, v2, 0.6)[0][:, :t], y[:, :t])


def test_attention_survives_logits_that_overflow_a_plain_softmax():
    q, k, v = (gaussian(B, T, H, D, seed=i).astype(np.float32) for i in range(3))
    y, cache = ops.attention(100 * q, 100 * k, v, 1.0)             # logits of order 1e4, e^89 is float32's largest
    assert np.isfinite(y).all() and all(np.isfinite(g).all() for g in ops.attention_backward(v, cache))


def test_first_query_sees_its_own_value_only():
    q, k, v = (gaussian(B, T, H, D, seed=i) for i in range(3))
    assert np.array_equal(ops.attention(q, k, v, 0.6)[0][:, 0], v[:, 0])


def rotated_products(with_rope):
    """q(t)·k(s) for one q and one k that stand at every time."""
    q, k = (np.broadcast_to(gaussian(D, seed=i), (1, 40, 1, D)) for i in range(2))
    if with_rope:
        q, k = (ops.rope(x, ops.rope_angles(40, 1, D, np.float64))[0] for x in (q, k))
    return q[0, :, 0] @ k[0, :, 0].T


def test_rope_makes_q_k_depend_on_the_distance_in_time_only():
    products = rotated_products(True)
    for distance in range(-39, 40):
        assert np.ptp(np.diagonal(products, distance)) < 1e-13     # angles up to 40 are rounded to 40 · 1e-16
    assert np.ptp(products[0]) > 0.1                               # and it does depend on it,
    assert np.ptp(rotated_products(False)) < 1e-13                 # which nothing else brings about


def test_rope_turns_pairs_by_the_stated_angles_and_keeps_lengths():
    x = gaussian(B, T, H, D)
    y, _ = ops.rope(x, ANGLES)
    assert np.array_equal(y[:, 0], x[:, 0])                        # time 0: not turned
    assert np.allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    turned = (x[..., :D // 2] + 1j * x[..., D // 2:]) * np.exp(1j * np.arange(T)[:, None, None] * 10000.0**(-2 * np.arange(D // 2) / D))
    assert np.allclose(y, np.concatenate([turned.real, turned.imag], -1), rtol=0, atol=1e-14)


def test_gelus_gate_is_the_normal_distribution_function_to_within_5e4():
    x = np.linspace(-8, 8, 20_000)                                 # even: 0 is left out
    y = ops.gelu(x)[0]
    exact = np.array([(1 + math.erf(z / math.sqrt(2))) / 2 for z in x])
    for error in (y / x - exact, y - x * exact):                   # seen: 1.8e-4 and 4.7e-4, so not exact, but close
        assert 1e-4 < np.abs(error).max() < 5e-4


def test_silu_gate_is_the_product_with_a_sigmoid_and_does_not_overflow():
    x, g = gaussian(N, F), gaussian(N, F, seed=1)
    assert np.allclose(ops.silu_gate(x, g)[0], x * g * (1 + np.tanh(g / 2)) / 2, rtol=1e-13)
    with np.errstate(over="ignore"):                               # e^-g is inf there, and σ rightly 0
        y, cache = ops.silu_gate(np.ones(2, np.float32), np.float32([-200, 200]))
        assert y.tolist() == [0, 200] and np.isfinite(ops.silu_gate_backward(np.ones(2, np.float32), cache)).all()


def test_rmsnorm_has_unit_mean_square_whatever_the_scale_of_x():
    x = gaussian(N, C)
    for scale in (1e-1, 1, 1e6):
        assert np.allclose((ops.rmsnorm(scale * x)[0]**2).mean(-1), 1, atol=1e-3)     # eps over the smallest mean square
    assert np.abs(ops.rmsnorm(1e-6 * x)[0]).max() < 1e-2           # far below √eps there is nothing to normalise


def test_cross_entropy_is_log_v_for_equal_logits_and_ignores_a_shift():
    assert math.isclose(ops.cross_entropy(np.zeros((N, V)), TARGETS)[0], math.log(V), rel_tol=1e-15)
    logits = gaussian(N, V)
    shifted = ops.cross_entropy(logits + 1e4, TARGETS)[0]          # e^1e4 overflows
    assert math.isclose(shifted, ops.cross_entropy(logits, TARGETS)[0], abs_tol=1e-11)    # 1e4 · 1e-16, a few times


def test_loss_gradients_of_a_row_add_up_to_zero():
    dlogits = ops.cross_entropy_backward(ops.cross_entropy(gaussian(N, V), TARGETS)[1])
    assert np.abs(dlogits.sum(-1)).max() < 1e-16 and np.abs(dlogits).max() > 1e-2
