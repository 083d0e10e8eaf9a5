"""Updates against their formulas and against PyTorch; schedules, clipping and memory."""
import math
import tracemalloc

import numpy as np
import pytest

from tinymup import optim
from tinymup.backend import BLOCK_BYTES
from tinymup.optim import Settings
from tinymup.resolve import Hyperparameters, Spec, resolve

STEPS = 8
EXACT = 1e-14    # relative: a few roundings of 1e-16 in each of eight steps


def row(optimizer="adamw", name="w", shape=(5, 3), lr=0.1, mult=1.0, eps=1e-3, shrink=0.0):
    """A resolved row with these numbers instead of its own."""
    resolved, = resolve([Spec(name, "hidden", shape)], Hyperparameters(optimizer=optimizer))
    return resolved._replace(lr=lr, mult=mult, eps=eps, weight_decay=shrink, shrink=shrink)


def gradients(steps=STEPS, shape=(5, 3), seed=0):
    """Gradients of a different size in each step, so that a wrong moment shows."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * 3.0**rng.standard_normal() for _ in range(steps)]


def run(r, factors=(1.0,) * STEPS, dtype=np.float64, **settings):
    """The parameter of row r after each step of the package's optimizer."""
    params = {r.name: np.ones(r.shape, dtype)}
    optimizer = optim.Optimizer([r], params, Settings(**settings))
    history = []
    for t, g in enumerate(gradients()):
        optimizer.step(params, {r.name: g.astype(dtype)}, t, factors[t])
        history.append(params[r.name].copy())
    return np.array(history)


def sgd_reference(lr, momentum, nesterov, shrink=0.0, factors=(1.0,) * STEPS):
    w, m, history = np.ones((5, 3)), 0.0, []
    for g, s in zip(gradients(), factors):
        m = momentum * m + g
        w = (1 - s * shrink) * w - s * lr * (g + momentum * m if nesterov else m)
        history.append(w)
    return np.array(history)


def adamw_reference(lr, beta1, beta2, eps, shrink=0.0, factors=(1.0,) * STEPS):
    w, m, v, history = np.ones((5, 3)), 0.0, 0.0, []
    for t, (g, s) in enumerate(zip(gradients(), factors), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w = (1 - s * shrink) * w - s * lr * m_hat / (np.sqrt(v_hat) + eps)
        history.append(w)
    return np.array(history)


FACTORS = [0.25, 0.5, 0.75, 1.0, 1.0, 0.7, 0.3, 0.1]


# Updates

@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("form, share", [("ema", 0.1), ("sum", 1.0)])
def test_momentum_is_its_formula_in_both_forms(form, share, nesterov):
    settings = Settings(momentum=0.9, nesterov=nesterov, momentum_form=form)
    m, u, m_wanted = np.zeros((5, 3)), np.full((5, 3), np.nan), 0.0
    for g in gradients():
        g.flags.writeable = False
        optim.momentum(m, g, u, **optim.momentum_numbers(settings))
        m_wanted = 0.9 * m_wanted + share * g
        wanted = share * g + 0.9 * m_wanted if nesterov else m_wanted
        assert np.allclose(m, m_wanted, rtol=EXACT, atol=EXACT)
        assert np.allclose(u, wanted, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("form", ["ema", "sum"])
def test_without_decay_momentum_is_the_gradient(form, nesterov):
    settings = Settings(momentum=0.0, nesterov=nesterov, momentum_form=form)
    m, u = np.zeros((5, 3)), np.empty((5, 3))
    for g in gradients():
        optim.momentum(m, g, u, **optim.momentum_numbers(settings))
        assert np.array_equal(u, g)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)],
                         ids=["plain", "momentum", "nesterov"])
@pytest.mark.parametrize("form", ["ema", "sum"])
def test_sgd_is_its_formula_whatever_the_momentum_form_of_muon(momentum, nesterov, form):
    history = run(row("sgd", shrink=0.05), FACTORS, momentum=momentum, nesterov=nesterov,
                  momentum_form=form)
    wanted = sgd_reference(0.1, momentum, nesterov, 0.05, FACTORS)
    assert np.allclose(history, wanted, rtol=EXACT, atol=EXACT)


def test_momentum_and_nesterov_are_different_and_neither_is_plain():
    histories = [run(row("sgd"), momentum=m, nesterov=n)
                 for m, n in ((0.0, False), (0.9, False), (0.9, True))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(histories[a][-1] - histories[b][-1]).max() > 0.1


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, 0.95), (0.0, 0.5)])
def test_adamw_is_its_formula(betas):
    history = run(row("adamw", shrink=0.05), FACTORS, betas=betas)
    wanted = adamw_reference(0.1, *betas, 1e-3, 0.05, FACTORS)
    assert np.allclose(history, wanted, rtol=EXACT, atol=EXACT)


def test_the_first_adamw_step_is_the_sign_of_the_gradient_whatever_its_size():
    for scale in (1e-6, 1.0, 1e6):                 # bias correction makes m̂ = g and √v̂ = |g|
        params = {"w": np.zeros((5, 3))}
        g = scale * gradients(1)[0]
        optim.Optimizer([row(eps=0.0)], params).step(params, {"w": g}, 0)
        assert np.allclose(params["w"], -0.1 * np.sign(g), rtol=1e-12)


def test_adams_eps_is_added_outside_the_root_and_after_bias_correction():
    params = {"w": np.zeros((5, 3))}
    optimizer = optim.Optimizer([row(lr=1.0, eps=1e-3)], params)
    optimizer.step(params, {"w": np.full((5, 3), 1e-3)}, 0)
    assert np.allclose(params["w"], -0.5, rtol=1e-12)    # g / (|g| + ε); inside the root: −0.03


def test_weight_decay_shrinks_before_the_step_and_leaves_the_moments_alone():
    params = {"w": np.full((5, 3), 2.0)}
    optimizer = optim.Optimizer([row(shrink=0.1)], params)
    optimizer.step(params, {"w": np.zeros((5, 3))}, 0, 0.5)
    assert np.allclose(params["w"], 2.0 * 0.95, rtol=1e-15)        # with the schedule's factor
    assert not any(array.any() for array in optimizer.state.values())


@pytest.mark.parametrize("optimizer, name, settings", [
    ("sgd", "SGD", {}), ("sgd", "SGD", {"momentum": 0.9}),
    ("sgd", "SGD", {"momentum": 0.9, "nesterov": True}),
    ("adamw", "AdamW", {"betas": (0.9, 0.95)})])
def test_updates_are_pytorchs(optimizer, name, settings):
    torch = pytest.importorskip("torch")
    # PyTorch's AdamW shrinks w by lr · λ. Its SGD adds λ w to the gradient instead: no decay there.
    shrink = 0.02 if optimizer == "adamw" else 0.0
    theirs = dict(settings, lr=0.1, weight_decay=shrink / 0.1)
    if optimizer == "adamw":
        theirs["eps"] = 1e-3
    w = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    torch_optimizer = getattr(torch.optim, name)([w], **theirs)
    history = []
    for g in gradients():
        w.grad = torch.from_numpy(g)
        torch_optimizer.step()
        history.append(w.detach().numpy().copy())
    ours = run(row(optimizer, shrink=shrink), **settings)
    assert np.allclose(ours, history, rtol=1e-13, atol=1e-13)      # in another order of operations


@pytest.mark.parametrize("optimizer, settings", [
    ("sgd", {}), ("sgd", {"momentum": 0.9, "nesterov": True}), ("adamw", {})])
def test_float32_runs_in_float32_and_follows_float64(optimizer, settings):
    single, double = (run(row(optimizer, shrink=0.01), FACTORS, dtype, **settings)
                      for dtype in (np.float32, np.float64))
    assert single.dtype == np.float32
    # Eight steps of a few roundings of 6e-8
    assert np.abs(single - double).max() < 1e-5 * np.abs(double).max()


def test_every_parameter_has_its_own_numbers_and_memory():
    rows = [row("sgd", "a", lr=0.1), row("adamw", "b", (7,), lr=0.2),
            row("adamw", "c", (2, 2), lr=0.3)]
    params = {r.name: np.ones(r.shape) for r in rows}
    optimizer = optim.Optimizer(rows, params, Settings(momentum=0.9))
    assert {name: array.shape for name, array in optimizer.state.items()} == {
        "a.m": (5, 3), "b.m": (7,), "b.v": (7,), "c.m": (2, 2), "c.v": (2, 2)}
    for t in range(3):
        optimizer.step(params, {name: np.full_like(w, t + 1.0) for name, w in params.items()}, t)
    for r in rows:
        alone = {r.name: np.ones(r.shape)}
        other = optim.Optimizer([r], alone, Settings(momentum=0.9))
        for t in range(3):
            other.step(alone, {r.name: np.full(r.shape, t + 1.0)}, t)
        assert np.array_equal(params[r.name], alone[r.name])


# Schedules

KINDS = ("constant", "linear", "cosine", "wsd")


def values(kind, steps=120, warmup=20):
    return np.array([optim.schedule(kind, step, steps, warmup) for step in range(steps)])


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_warm_up_in_a_line_and_never_exceed_1(kind):
    s = values(kind)
    assert np.allclose(s[:20], np.arange(1, 21) / 20, rtol=1e-15)
    assert s[20] == s.max() == 1 and s.min() > 0
    assert (np.diff(s[20:]) <= 0).all()
    assert values(kind, 100, 0)[0] == 1                            # also without a warm-up


@pytest.mark.parametrize("kind, half, last", [
    ("constant", 1, 1), ("linear", 0.5, 0.01), ("cosine", 0.5, math.sin(math.pi / 200)**2),
    ("wsd", 1, 0.05)])
def test_schedules_have_their_values_half_way_and_in_the_last_step(kind, half, last):
    s = values(kind)
    assert s[20 + 50] == pytest.approx(half, rel=1e-12)
    assert s[-1] == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize("kind, after_warmup", [
    ("constant", 100), ("linear", 50.5), ("cosine", 50.5), ("wsd", 80 + 10.5)])
def test_schedules_sum_to_their_area(kind, after_warmup):
    """The number of steps at the peak that would decay the weights as much."""
    assert values(kind).sum() == pytest.approx(10.5 + after_warmup, rel=1e-12)


def test_wsd_is_full_until_the_last_fifth():
    s = values("wsd")
    assert (s[20:101] == 1).all()
    assert np.diff(s[100:]) == pytest.approx([-1 / 20] * 19, rel=1e-12)


# Clipping

CLIPPED = [row(name="a", mult=1.0), row(name="b", mult=0.25, shape=(7,)),
           row(name="c", mult=3.0)]


def effective_norm(grads):
    """‖g/A‖ over all parameters."""
    return math.sqrt(sum(((grads[r.name] / r.mult)**2).sum() for r in CLIPPED))


@pytest.mark.parametrize("part", [0.1, 0.999, 1.001, 10.0])
def test_clipping_leaves_the_smaller_of_norm_and_limit_and_the_direction(part):
    grads = {r.name: gradients(1, r.shape, i)[0] for i, r in enumerate(CLIPPED)}
    before = {name: g.copy() for name, g in grads.items()}
    same = dict(grads)
    norm = effective_norm(before)
    optim.clip(grads, CLIPPED, part * norm)
    assert effective_norm(grads) == pytest.approx(min(1, part) * norm, rel=EXACT)
    for name in grads:
        assert grads[name] is same[name]
        assert np.allclose(grads[name], min(1, part) * before[name], rtol=EXACT)


def test_clipping_takes_the_norm_of_effective_gradients():
    """A shift of the table multiplies A and g by the same θ. The factor must not change."""
    factors = []
    for theta in (1.0, 10.0):
        rows = [r._replace(mult=r.mult * theta) for r in CLIPPED]
        grads = {r.name: theta * gradients(1, r.shape, i)[0] for i, r in enumerate(CLIPPED)}
        optim.clip(grads, rows, 1.0)
        before = theta * gradients(1, (5, 3), 0)[0]
        factors.append(grads["a"][0, 0] / before[0, 0])
    assert factors[0] == pytest.approx(factors[1], rel=EXACT) and factors[0] < 0.9


def test_clipping_gradients_of_zero_leaves_zero_and_nan_spreads():
    with np.errstate(divide="ignore"):
        grads = {r.name: np.zeros(r.shape) for r in CLIPPED}
        optim.clip(grads, CLIPPED, 1.0)
        assert not any(g.any() for g in grads.values())
    grads = {r.name: np.ones(r.shape) for r in CLIPPED}
    grads["b"][0] = np.nan
    optim.clip(grads, CLIPPED, 1.0)
    assert all(np.isnan(g).all() for g in grads.values())


# Memory

def model(optimizer):
    """Rows and float64 parameters: one of 1 MiB and two of 256 KiB."""
    rows = [row(optimizer, "large", (256, 512), shrink=0.1),
            row(optimizer, "small", (64, 512), shrink=0.1), row(optimizer, "vector", (32768,))]
    return rows, {r.name: np.ones(r.shape) for r in rows}


def traced(function):
    """(bytes kept, bytes at the highest, result) of a call."""
    tracemalloc.start()
    result = function()
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept, most, result


MIB = 2**20
SLACK = 16384    # Python objects; the smallest parameter has 256 KiB


@pytest.mark.parametrize("optimizer, momentum, moments", [
    ("sgd", 0.0, 0), ("sgd", 0.9, 1), ("adamw", 0.0, 2)])
def test_an_optimizer_holds_its_moments_and_one_scratch_of_the_largest_parameter(
        optimizer, momentum, moments):
    rows, params = model(optimizer)
    kept, most, _ = traced(lambda: optim.Optimizer(rows, params, Settings(momentum=momentum)))
    assert most - SLACK < kept == pytest.approx(moments * 1.5 * MIB + MIB, abs=SLACK)


@pytest.mark.parametrize("optimizer, momentum, nesterov", [
    ("sgd", 0.0, False), ("sgd", 0.9, False), ("sgd", 0.9, True), ("adamw", 0.0, False)])
def test_a_step_works_in_place_and_allocates_nothing(optimizer, momentum, nesterov):
    rows, params = model(optimizer)
    o = optim.Optimizer(rows, params, Settings(momentum=momentum, nesterov=nesterov))
    grads = {name: np.full_like(w, 0.5) for name, w in params.items()}

    def places():
        arrays = {**params, **o.state, "scratch": o.scratch}
        return {name: (id(array), array.ctypes.data) for name, array in arrays.items()}
    before = places()
    _, most, _ = traced(lambda: (optim.clip(grads, rows, 1.0), o.step(params, grads, 0)))
    assert most < SLACK + BLOCK_BYTES     # Nesterov's look-ahead has a temporary of one block
    assert places() == before
    assert all((w != 1).all() for w in params.values())                    # something did happen
    assert all((g > 0).all() and np.ptp(g) == 0 for g in grads.values())   # gradients are only read


def test_an_update_that_makes_a_copy_is_noticed():
    w = np.ones((256, 512))
    assert traced(lambda: w - 0.1 * w)[1] > MIB > SLACK
