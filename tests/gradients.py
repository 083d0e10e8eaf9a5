"""Gradient checks by the complex step: imag f(x + i·h·u)/h is the derivative along u, exact to rounding, for h = 1e-30.

No difference is taken, so nothing cancels, and the tolerance is that of float64 arithmetic.
"""
import numpy as np

H = 1e-30
TOLERANCE = 1e-12   # DESIGN's mark; the worst seen over all ops and models is a few 1e-15


def directional_error(f, gradient, x, rng):
    """|u·∇f − complex step| / scale, for a scalar function f of an array x and its gradient by hand, along a random u."""
    u = rng.standard_normal(x.shape)
    exact = f(x + 1j * H * u).imag / H
    by_hand = np.vdot(gradient, u)
    return abs(exact - by_hand) / max(abs(exact), np.linalg.norm(gradient) * np.linalg.norm(u), 1e-300)


def pair_errors(forward, backward, inputs, rng):
    """The error of each gradient that `backward` returns for `forward(*inputs)` → (y, cache), under a random dy.

    All inputs are float64 arrays; backward(dy, cache) returns one gradient per input, or one array for one input.
    """
    y, cache = forward(*inputs)
    dy = rng.standard_normal(y.shape)
    grads = backward(dy, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert len(grads) == len(inputs)
    errors = []
    for i, (x, g) in enumerate(zip(inputs, grads)):
        assert g.shape == x.shape
        f = lambda moved, i=i: (dy * forward(*inputs[:i], moved, *inputs[i + 1:])[0]).sum()
        errors.append(directional_error(f, g, x, rng))
    return errors


def model_errors(network, params, ids, targets, rng):
    """name → error, for the gradient of the loss with respect to every parameter of a network."""
    _, grads = network.loss_and_gradients(params, ids, targets)
    assert grads.keys() == params.keys()
    return {name: directional_error(lambda w: network.loss(params | {name: w}, ids, targets), grads[name], params[name], rng)
            for name in params}
