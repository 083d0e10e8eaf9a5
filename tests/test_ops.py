"""Every pair of ops.py and layers.py: gradients, shapes, types, purity, and further promises."""
import ast
import inspect
import math
import re
import sys

import numpy as np
import pytest

from gradients import TOLERANCE, pair_errors
from tinymup import layers, ops
from tinymup.layers import Scales
from tinymup.ops import Branch, Mult

# Sizes by the letters of ops.py, no two alike, so that an exchanged axis has a wrong shape.
SIZES = dict(N=6, B=2, T=7, C=5, H=3, D=4, V=11, F=8, I=9, O=10)
N, B, T, C, H, D, V, F, I, O = SIZES.values()
IDS = np.array([3, 0, 3, 10, 3, 1])                      # a repeated byte and unused ones
TARGETS = np.array([0, 10, 2, 2, 7, 5])
ANGLES = ops.rope_angles(T, H, D, np.float64)
EXACT = Mult.exact(0.7)
HEADS = [(B, T, H, D)] * 3                               # q, k, v
MISTAKE = 1e-6        # a million times the tolerance, which rounding never reaches


def gaussian(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def heads():
    """q, k and v for attention."""
    return [gaussian(*shape, seed=i) for i, shape in enumerate(HEADS)]


# A pair: (forward, backward, shapes of the differentiated inputs, which come first in forward)

def pair(op, *shapes, first=(), **options):
    """The pair of ops.py of that name, looked up at each call, so that tests can exchange it."""
    def forward(*arrays):
        return getattr(ops, op)(*first, *arrays, **options)

    def backward(dy, cache):
        return getattr(ops, op + "_backward")(dy, cache)
    return forward, backward, shapes


def loss_pair(**options):
    """The loss. Its backward takes no dy, so here the gradient is dy times that of the loss."""
    def backward(dy, cache):
        return dy * ops.cross_entropy_backward(cache)
    return pair("cross_entropy", targets=TARGETS, **options)[0], backward, [(N, V)]


def layer(op, names, *shapes, scales=Scales({"w": EXACT, "w.bias": Mult.exact(0.3)}), **options):
    """A pair of layers.py: the gradients that it writes into a dict become results."""
    def forward(x, *arrays):
        return getattr(layers, op)(x, dict(zip(names, arrays)), "w", scales, **options)

    def backward(dy, cache):
        grads = {}
        dx = getattr(layers, op + "_backward")(dy, cache, grads, "w")
        return dx, *(grads[name] for name in names)
    return forward, backward, shapes


def activation(kind):
    """The activation of layers.py with both of its factors."""
    def forward(x):
        return layers.activation(x, kind, Scales({}, activation=1.7, activation_alpha=0.6))

    def backward(dy, cache):
        return layers.activation_backward(dy, cache, kind)
    return forward, backward, [(N, F)]


def branch(*weights):
    """A residual branch around a GELU: the factor on leaving shows only where a gradient leaves."""
    def forward(x):
        f, c_gelu = ops.gelu(x)
        y, c_add = ops.residual(x, f, Branch(*weights))
        return y, (c_gelu, c_add)

    def backward(dy, cache):
        c_gelu, c_add = cache
        dskip, df = ops.residual_backward(dy, c_add)
        return ops.residual_join(dskip, ops.gelu_backward(df, c_gelu), c_add)
    return forward, backward, [(N, C)]


PAIRS = {
    "linear": pair("linear", (N, I), (I, O)),
    "linear times 0.7": pair("linear", (N, I), (I, O), mult=EXACT),
    "bias": pair("bias", (N, O), (O,)),
    "bias times 0.7": pair("bias", (N, O), (O,), mult=EXACT),
    "lookup": pair("lookup", (V, C), first=[IDS]),
    "lookup times 0.7": pair("lookup", (V, C), first=[IDS], mult=EXACT),
    "rmsnorm": pair("rmsnorm", (N, C)),
    "rmsnorm of values as small as its eps": pair("rmsnorm", (N, C), eps=1.0),
    "gain": pair("gain", (N, C), (C,)),
    "gain times 0.7": pair("gain", (N, C), (C,), mult=EXACT),
    "relu": pair("relu", (N, F)),
    "relu with factors": pair("relu", (N, F), factor=1.7, alpha=0.6),
    "gelu": pair("gelu", (N, F)),
    "gelu with factors": pair("gelu", (N, F), factor=1.7, alpha=0.6),
    "silu_gate": pair("silu_gate", (N, F), (N, F)),
    "silu_gate with factors": pair("silu_gate", (N, F), (N, F), factor=1.7, alpha=0.6),
    "rope": pair("rope", (B, T, H, D), angles=ANGLES),
    "attention": pair("attention", *HEADS, scale=0.6),
    "attention, scale 1": pair("attention", *HEADS, scale=1.0),
    "attention with a factor": pair("attention", *HEADS, scale=0.6, factor=1.7),
    "residual": branch(1.0, 1.0, 1.0, 1.0),
    "residual, scaled on entering": branch(1.0, 0.3, 0.3, 1.0),
    "residual, scaled on leaving": branch(0.8, 0.6, 1.0, 0.6),
    "residual, scaled on both": branch(0.8, 0.6, 0.2, 3.0),
    "cross_entropy": loss_pair(),
    "cross_entropy of scaled logits": loss_pair(alpha=1.7),
}
LAYERS = {
    "dense": layer("dense", ["w"], (N, I), (I, O)),
    "dense with bias": layer("dense", ["w", "w.bias"], (N, I), (I, O), (O,)),
    "norm": layer("norm", [], (N, C), eps=1e-6),
    "norm with gain": layer("norm", ["w"], (N, C), (C,), eps=1e-6),
    "norm with another eps": layer("norm", ["w"], (N, C), (C,), eps=1.0),
    "activation: relu": activation("relu"),
    "activation: gelu": activation("gelu"),
}
ALL = PAIRS | LAYERS
each_pair = pytest.mark.parametrize("name", ALL)


def inputs_of(name, dtype=np.float64):
    return [gaussian(*shape, seed=i).astype(dtype) for i, shape in enumerate(ALL[name][2])]


def errors_of(name):
    """The errors of a pair's gradients."""
    forward, backward, _ = ALL[name]
    return pair_errors(forward, backward, inputs_of(name), np.random.default_rng(1))


# Gradients

@each_pair
def test_gradients_are_those_of_the_complex_step(name):
    assert max(errors_of(name)) < TOLERANCE


@pytest.mark.parametrize("module, pairs", [(ops, PAIRS), (layers, LAYERS)])
def test_no_pair_is_left_unchecked(module, pairs):
    backwards = {name.removesuffix("_backward") for name in vars(module)
                 if name.endswith("_backward") and not name.startswith("_")}
    assert backwards == {re.match(r"\w+", name)[0] for name in pairs}
    assert all(hasattr(module, name) for name in backwards)


def test_every_activation_is_checked():
    assert {f"activation: {kind}" for kind in layers.ACTIVATIONS} <= LAYERS.keys()


# The pair that shows it, the function of ops.py, a piece of it as it stands, and the mistake.
MUTANTS = [
    ("linear times 0.7", "linear_backward", "times(mult.dx, dy @ w.T)", "dy @ w.T"),
    ("linear times 0.7", "linear_backward", "times(mult.dw, x.T @ dy)", "x.T @ dy"),
    ("bias times 0.7", "bias_backward", "mult.dw * dy.sum(0)", "dy.sum(0)"),
    ("lookup", "lookup_backward", "onehot.T @ dy",                  # one of the repeated only
     "(onehot.T > 0) / onehot.T.sum(1, keepdims=True).clip(1) @ dy"),
    ("lookup times 0.7", "lookup_backward", "times(mult.dw, onehot.T @ dy)", "onehot.T @ dy"),
    ("rmsnorm", "rmsnorm_backward", "dx = y * -row_mean(dy, y)", "dx = 0 * y"),
    ("rmsnorm", "rmsnorm_backward", ") * inv", ")"),
    ("gain times 0.7", "gain_backward", "dy * (mult.y * weight)", "dy * weight"),
    ("gain times 0.7", "gain_backward", "mult.dw * (dy * x).sum(0)", "(dy * x).sum(0)"),
    ("relu", "relu_backward", "dy * slope", "dy"),
    ("gelu", "gelu_backward", "6 * GELU_SLOPE", "2 * GELU_SLOPE"),
    ("gelu", "_gelu_backward", " + 1) * gate", ") * gate"),
    ("gelu", "_gelu_backward", " * (1 - gate)", ""),
    ("gelu with factors", "gelu_backward", "times(factor, dx)", "dx"),
    ("gelu with factors", "gelu_backward", "alpha**3", "alpha"),
    ("silu_gate", "silu_gate_backward", "(1 - s) * gate", "0 * gate"),
    ("silu_gate", "silu_gate_backward", "* s * x * dy", "* s * dy"),
    ("silu_gate with factors", "silu_gate_backward", " * alpha + 1", " + 1"),
    ("silu_gate with factors", "silu_gate_backward", "times(factor, dgate)", "dgate"),
    ("rope", "rope_backward", "(cos, minus_sin, sin)", "(cos, sin, minus_sin)"),
    ("attention", "attention_backward", "times(scale, ds.swapaxes(-1, -2) @ k)",
     "ds.swapaxes(-1, -2) @ k"),
    ("attention with a factor", "attention_backward", "times(factor, dy)", "dy"),
    ("attention", "attention_backward", "ds[b] -= along[b]", "pass"),
    ("attention", "attention_backward", "ds[b] *= p[b]", "pass"),
    ("attention", "attention_backward", "dq.swapaxes(1, 2), dk.swapaxes(1, 2)",
     "dk.swapaxes(1, 2), dq.swapaxes(1, 2)"),
    ("attention", "attention_backward", "p @ dy", "p.swapaxes(-1, -2) @ dy"),
    ("residual, scaled on both", "residual_backward", "times(branch.enter, dy)",
     "times(branch.amount, dy)"),
    ("residual, scaled on both", "residual_backward", "times(branch.skip, dy)", "dy"),
    ("residual, scaled on leaving", "residual_join", "times(branch.leave, dx)", "dx"),
    ("residual", "residual_join", "dskip + times", "times"),
    ("cross_entropy", "cross_entropy_backward", "factor * (", "("),
    ("cross_entropy", "cross_entropy_backward", "p - (", "p - 0 * ("),
    ("cross_entropy of scaled logits", "cross_entropy", "alpha / len(z)", "1 / len(z)"),
]


def mutated(function, line, mistake):
    """The function with one piece of its source exchanged."""
    source = inspect.getsource(function)
    count = source.count(line)
    assert count == 1, f"the source has changed: {line!r} stands there {count} times"
    namespace = dict(vars(ops))
    exec(source.replace(line, mistake), namespace)
    return namespace[function.__name__]


@pytest.mark.parametrize("name, function, line, mistake", MUTANTS)
def test_a_wrong_line_is_caught(name, function, line, mistake, monkeypatch):
    monkeypatch.setattr(ops, function, mutated(getattr(ops, function), line, mistake))
    assert max(errors_of(name)) > MISTAKE


def test_every_backward_of_ops_has_a_wrong_line_that_is_caught():
    functions = {name for name in vars(ops) if name.endswith("_backward")}
    assert functions <= {function for _, function, _, _ in MUTANTS}


# Ways to write x + b of a complex b into the memory of a real x.
REAL_TARGETS = {
    "in place": lambda x, b: x.__iadd__(b),
    "out=": lambda x, b: np.add(x, b, out=x),
    "out= of a product": lambda x, b: np.matmul(x, b * np.eye(len(b)), out=x),
    "an assignment": lambda x, b: x.__setitem__(..., x + b) or x,
    "astype": lambda x, b: (x + b).astype(x.dtype),
}


@pytest.mark.parametrize("way", REAL_TARGETS)
def test_a_complex_number_written_into_a_real_array_stops_the_check(way):
    """The convention at the top of ops.py. Otherwise the gradient of b would be taken for 0."""
    def forward(x, b):
        return REAL_TARGETS[way](x.copy(), b), None
    with pytest.raises((TypeError, np.exceptions.ComplexWarning), match="[Cc]omplex"):
        pair_errors(forward, lambda dy, _: (dy, dy.sum(0)), [gaussian(N, O), gaussian(O)],
                    np.random.default_rng(1))


def test_a_complex_number_written_into_a_fresh_array_does_not():
    def forward(x, b):
        y = x + b
        y *= 2
        return y, None
    errors = pair_errors(forward, lambda dy, _: (2 * dy, 2 * dy.sum(0)),
                         [gaussian(N, O), gaussian(O)], np.random.default_rng(1))
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize("op, shapes", [
    ("linear", [(N, I), (I, O)]), ("bias", [(N, O), (O,)]), ("gain", [(N, C), (C,)]),
    ("lookup", [(V, C)])])
def test_each_factor_of_mult_acts_on_its_own_product(op, shapes):
    """y, dx and dw are those of the plain operation times mult.y, mult.dx and mult.dw.

    But dx of a bias has no factor, and dx of a gain goes through the gain as used, mult.y · weight.
    """
    mult = Mult(y=2.0, dx=3.0, dw=5.0)
    forward, backward = getattr(ops, op), getattr(ops, op + "_backward")
    arrays = [gaussian(*shape) for shape in shapes]
    arrays = [IDS] + arrays if op == "lookup" else arrays
    y_plain, c_plain = forward(*arrays)
    y, cache = forward(*arrays, mult)
    dy = gaussian(*y.shape, seed=9)
    plain, grads = backward(dy, c_plain), backward(dy, cache)

    def close(a, b):
        return np.allclose(a, b, rtol=1e-14, atol=1e-14)    # x·(3w) and 3·(x·w) round differently
    if op == "lookup":
        assert close(y, 2 * y_plain) and close(grads, 5 * plain)
        return
    x, w = arrays
    assert close(y, x + 2 * w) if op == "bias" else close(y, 2 * y_plain)
    assert close(grads[0], {"linear": 3, "bias": 1, "gain": 2}[op] * plain[0])
    assert close(grads[1], 5 * plain[1])


def test_exact_is_one_factor_three_times():
    assert Mult.exact(0.7)[:3] == (0.7, 0.7, 0.7) and ops.UNIT[:3] == (1, 1, 1)


def test_times_scales_by_a_factor_of_one_too():
    x = gaussian(N, C)
    assert np.array_equal(ops.times(1.0, x.copy()), x)
    assert np.array_equal(ops.times(0.5, x.copy()), 0.5 * x)


# Shapes that docstrings and comments state

CALLED_APART = [      # what no pair calls, or only where nothing is kept yet
    lambda: ops.rope_angles.__wrapped__(T, H, D, np.float64),
    lambda: ops.causal_mask.__wrapped__(T, np.float64),
    lambda: ops.attention_logits(ops.attention(*heads(), 0.6)[1]),
    lambda: ops.largest_by_head(ops.attention(*heads(), 0.6)[1]),
]
SHAPE = r"\(((?:[A-Z1],? ?)*)\)"


def sizes(letters):
    return tuple(SIZES.get(letter, 1) for letter in re.findall("[A-Z1]", letters))


def claims_of(function):
    """(name, shape) of all that a docstring says. The name is "" for the result."""
    for names, letters in re.findall(rf"((?:\w+, )*\w+ )?{SHAPE}", function.__doc__):
        yield from ((name, sizes(letters)) for name in names.strip().split(", "))


def comments_of(function):
    """(expression or name, shape) of the lines that end in a comment with a shape."""
    source = inspect.getsource(function)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            line = source.splitlines()[node.end_lineno - 1]
            stated = re.search(rf"# {SHAPE}$", line)
            if stated:
                is_name = isinstance(node, ast.Assign)
                yield ast.unparse(node.targets[0] if is_name else node.value), sizes(stated[1])


def frames_of(call):
    """{function of ops.py: (arguments, variables at its return, result)} of its last call."""
    entered, seen = {}, {}

    def profile(frame, event, result):
        if frame.f_code.co_filename == ops.__file__:
            if event == "call":
                entered[frame] = dict(frame.f_locals)
            elif event == "return":
                arguments = entered.pop(frame, {})
                seen[frame.f_code.co_name] = arguments, dict(frame.f_locals), result
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


@pytest.fixture(scope="module")
def frames():
    """Those of every pair and helper of ops.py, at sizes that tell the letters apart."""
    seen = {}
    for name, (forward, backward, _) in PAIRS.items():
        def both():
            y, cache = forward(*inputs_of(name))
            backward(gaussian(*y.shape), cache)
        seen |= frames_of(both)
    for call in CALLED_APART:
        seen |= frames_of(call)
    return seen


def stating_shapes():
    return [name for name, f in vars(ops).items()
            if inspect.isfunction(f) and f.__module__ == ops.__name__ and f.__doc__
            and (list(claims_of(f)) or list(comments_of(f)))]


@pytest.mark.parametrize("name", stating_shapes())
def test_shapes_are_those_that_the_docstring_states(name, frames):
    arguments, variables, result = frames[name]
    first = result[0] if isinstance(result, tuple) else result
    for stated, shape in claims_of(getattr(ops, name)):
        if stated in arguments:
            array = arguments[stated]
        elif stated == "all":
            arrays = [x for x in arguments.values() if isinstance(x, np.ndarray)]
            assert len(arrays) > 1 and {x.shape for x in arrays} == {shape}
            array = first
        elif stated in ("", "y", "loss"):
            array = first
        else:
            array = variables[stated if stated in variables else stated.lower()]
        assert np.shape(array) == shape, stated


@pytest.mark.parametrize("name", stating_shapes())
def test_shapes_are_those_that_comments_state(name, frames):
    _, variables, _ = frames[name]
    for expression, shape in comments_of(getattr(ops, name)):
        assert eval(expression, vars(ops), variables).shape == shape, expression


def test_the_stated_shapes_are_found():
    stated = set(stating_shapes())
    assert stated >= {"linear", "bias", "lookup", "lookup_backward", "rmsnorm", "gain", "silu_gate",
                      "rope_angles", "rope", "causal_mask", "attention",
                      "attention_logits", "largest_by_head", "residual", "cross_entropy"}
    assert dict(claims_of(ops.attention))["P"] == (B, H, T, T)
    assert dict(claims_of(ops.cross_entropy)) == {"logits": (N, V), "targets": (N,), "loss": ()}
    assert ("inv", (N, 1)) in comments_of(ops.rmsnorm)


@pytest.mark.parametrize("name", PAIRS)
def test_each_gradient_has_the_shape_and_each_output_the_type_of_its_array(name):
    forward, backward, shapes = PAIRS[name]
    y, cache = forward(*inputs_of(name))
    grads = backward(gaussian(*y.shape), cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert [g.shape for g in grads] == list(shapes)
    assert {x.dtype for x in (y, *grads)} == {np.dtype(np.float64)}


def test_rope_angles_and_the_mask_have_the_shape_and_type_they_state():
    for array, shape in [(ops.causal_mask(T, np.float32), (T, T)),
                         *[(angles, (T, H, D)) for angles in ops.rope_angles(T, H, D, np.float32)]]:
        assert array.shape == shape and array.dtype == np.float32


# Types and purity

@each_pair
def test_float32_stays_float32(name):
    # A float64 factor of NumPy, not of Python, would make all after it float64, at half the speed.
    forward, backward, _ = ALL[name]
    inputs = inputs_of(name, np.float32)
    if name == "rope":
        forward, *_ = pair("rope", angles=ops.rope_angles(T, H, D, np.float32))
    y, cache = forward(*inputs)
    grads = backward(np.float32(1) if name.startswith("cross_entropy")
                     else gaussian(*y.shape).astype(np.float32), cache)
    assert y.dtype == np.float32
    assert all(g.dtype == np.float32 for g in (grads if isinstance(grads, tuple) else (grads,)))


def arrays_in(cache):
    """All arrays of a nested cache."""
    if isinstance(cache, tuple):
        return [array for part in cache for array in arrays_in(part)]
    return [cache] if isinstance(cache, np.ndarray) else []


@each_pair
def test_no_input_and_no_cache_is_written_to(name):
    forward, backward, _ = ALL[name]
    inputs = inputs_of(name)
    for x in inputs:
        x.flags.writeable = False                        # NumPy refuses from now on
    y, cache = forward(*inputs)
    dy = gaussian(*y.shape)
    for array in [dy, *arrays_in(cache)]:
        if array.ndim:
            array.flags.writeable = False
    backward(dy, cache)


@pytest.mark.parametrize("name, kept, args", [
    ("rope", ops.rope_angles, (T, H, D, np.dtype("float64"))),
    ("attention", ops.causal_mask, (T, np.dtype("float64")))])
def test_no_operation_writes_to_a_kept_array(name, kept, args):
    forward, backward, _ = ALL[name]
    y, cache = forward(*inputs_of(name))
    backward(gaussian(*y.shape), cache)
    assert np.array_equal(kept(*args), kept.__wrapped__(*args))


@pytest.mark.parametrize("op", ["linear", "lookup", "gelu", "attention", "residual"])
def test_an_output_never_shares_memory_with_an_input(op):
    # so that the next operation may write in place to what it was given as its own
    for name in (name for name in PAIRS if re.match(rf"{op}\b", name)):
        inputs = inputs_of(name)
        y, _ = PAIRS[name][0](*inputs)
        assert not any(np.shares_memory(y, x) for x in inputs)


# What the operations promise

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
    q, k, v = heads()
    # values of order 1, 7 terms
    assert np.abs(ops.attention(q, k, v, 0.6)[0] - naive_attention(q, k, v, 0.6)).max() < 1e-14


def test_attention_logits_are_the_scaled_products_of_keys_and_queries():
    q, k, v = heads()
    s = ops.attention_logits(ops.attention(q, k, v, 0.6)[1])
    assert s.shape == (B, H, T, T)
    assert np.isclose(s[1, 2, 3, 5], 0.6 * k[1, 3, 2] @ q[1, 5, 2], rtol=1e-14)


def test_largest_logits_are_the_largest_that_no_mask_hides():
    q, k, v = heads()
    _, cache = ops.attention(q, k, v, -0.6)
    s = ops.attention_logits(cache)
    seen = s[..., np.triu(np.ones((T, T), bool))].max((0, 2))      # key not later than query
    assert np.allclose(ops.largest_by_head(cache), seen, rtol=1e-14)
    assert (seen < s.max((0, 2, 3))).any()


def test_attention_gives_the_future_no_weight_and_the_past_some():
    q, k, v = heads()
    y = ops.attention(q, k, v, 0.6)[0]
    for t in range(T):
        k2, v2 = k.copy(), v.copy()
        k2[:, t] *= -3
        v2[:, t] += 1e3
        moved = ops.attention(q, k2, v2, 0.6)[0] != y
        assert not moved[:, :t].any() and moved[:, t:].all()       # to the last bit: weights of 0
        k2[:, t] *= 1e6                                            # a mask of −1e4 would not do
        assert np.array_equal(ops.attention(q, k2, v2, 0.6)[0][:, :t], y[:, :t])


def test_attention_survives_logits_that_overflow_a_plain_softmax():
    q, k, v = (x.astype(np.float32) for x in heads())
    # logits of order 1e4; e^89 overflows float32
    y, cache = ops.attention(100 * q, 100 * k, v, 1.0)
    assert np.isfinite(y).all()
    assert all(np.isfinite(g).all() for g in ops.attention_backward(v, cache))


def test_first_query_sees_its_own_value_only():
    q, k, v = heads()
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
        assert np.ptp(np.diagonal(products, distance)) < 1e-13     # angles up to 40 round by 4e-15
    assert np.ptp(products[0]) > 0.1
    assert np.ptp(rotated_products(False)) < 1e-13                 # nothing but RoPE does so


@pytest.mark.parametrize("base", [10000, 100])
def test_rope_turns_pairs_by_the_stated_angles_and_keeps_lengths(base):
    x = gaussian(B, T, H, D)
    y, _ = ops.rope(x, ops.rope_angles(T, H, D, np.float64, base))
    assert np.array_equal(y[:, 0], x[:, 0])                        # time 0: not turned
    assert np.allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    angles = np.arange(T)[:, None, None] * float(base)**(-2 * np.arange(D // 2) / D)
    turned = (x[..., :D // 2] + 1j * x[..., D // 2:]) * np.exp(1j * angles)
    assert np.allclose(y, np.concatenate([turned.real, turned.imag], -1), rtol=0, atol=1e-14)


def test_gelus_gate_is_the_normal_distribution_function_to_within_5e4():
    x = np.linspace(-8, 8, 20_000)                                 # an even number leaves out 0
    y = ops.gelu(x)[0]
    exact = np.array([(1 + math.erf(z / math.sqrt(2))) / 2 for z in x])
    for error in (y / x - exact, y - x * exact):                   # seen: 1.8e-4 and 4.7e-4
        assert 1e-4 < np.abs(error).max() < 5e-4


def test_silu_gate_is_the_product_with_a_sigmoid_and_does_not_overflow():
    x, gate = gaussian(N, F), gaussian(N, F, seed=1)
    sigmoid = (1 + np.tanh(gate / 2)) / 2
    assert np.allclose(ops.silu_gate(x, gate)[0], x * gate * sigmoid, rtol=1e-13)
    ones = np.ones(2, np.float32)
    with np.errstate(over="ignore"):                               # e^-gate is inf, and σ rightly 0
        y, cache = ops.silu_gate(ones, np.float32([-200, 200]))
        assert y.tolist() == [0, 200] and np.isfinite(ops.silu_gate_backward(ones, cache)).all()


def test_rmsnorm_has_unit_mean_square_whatever_the_scale_of_x():
    x = gaussian(N, C)
    for scale in (1e-1, 1, 1e6):       # 1e-3: eps over the smallest mean square
        assert np.allclose((ops.rmsnorm(scale * x)[0]**2).mean(-1), 1, atol=1e-3)
    assert np.abs(ops.rmsnorm(1e-6 * x)[0]).max() < 1e-2           # far below √eps it does nothing


def test_cross_entropy_is_log_v_for_equal_logits_and_ignores_a_shift():
    uniform = ops.cross_entropy(np.zeros((N, V)), TARGETS)[0]
    assert math.isclose(uniform, math.log(V), rel_tol=1e-15)
    logits = gaussian(N, V)
    shifted = ops.cross_entropy(logits + 1e4, TARGETS)[0]          # e^1e4 overflows
    # 1e4 · 1e-16, a few times
    assert math.isclose(shifted, ops.cross_entropy(logits, TARGETS)[0], abs_tol=1e-11)


def test_loss_gradients_of_a_row_add_up_to_zero():
    dlogits = ops.cross_entropy_backward(ops.cross_entropy(gaussian(N, V), TARGETS)[1])
    assert np.abs(dlogits.sum(-1)).max() < 1e-16 and np.abs(dlogits).max() > 1e-2
