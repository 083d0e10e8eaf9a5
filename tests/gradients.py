"""Gradient checks by the complex step: imag f(x + i·h·u)/h is the derivative of f along u.

No difference is taken, so nothing cancels. At h = 1e-30 the terms in h² are lost in rounding, and
the tolerance is that of float64 arithmetic.

The check sends a complex array through f, so f may not write a complex result into a real array.
NumPy raises UFuncTypeError where an operation does so in place (`x += y`, `x *= a`) or by `out=`.
An assignment (`x[i] = y`) or `astype` only warns and drops the imaginary part, so that a gradient
would be taken for 0. `complex_step` makes an error of that warning.
"""
import warnings

import numpy as np

H = 1e-30
TOLERANCE = 1e-12   # rounding of float64: the worst seen is 2e-15. A mistake is above 1e-6


def complex_step(f, x, u):
    """The derivative of the function f of an array at x along u.

    Errors: UFuncTypeError or ComplexWarning where f writes a complex number into a real array.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        return f(x + 1j * H * u).imag / H


def directional_error(f, gradient, x, rng):
    """|u·∇f − complex step| / scale for a random u, a number f(x) and its gradient by hand."""
    u = rng.standard_normal(x.shape)
    exact = complex_step(f, x, u)
    by_hand = np.vdot(gradient, u)
    scale = max(abs(exact), np.linalg.norm(gradient) * np.linalg.norm(u), 1e-300)
    return abs(exact - by_hand) / scale


def pair_errors(forward, backward, inputs, rng):
    """The error of each gradient that `backward` returns for `forward(*inputs)` → (y, cache).

    All inputs are float64 arrays. The gradient is that of Σ dy · y for a random dy; backward(dy,
    cache) returns one gradient per input, or one array for one input.
    """
    y, cache = forward(*inputs)
    dy = rng.standard_normal(y.shape)
    grads = backward(dy, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert len(grads) == len(inputs)

    def error(i):
        x, gradient = inputs[i], grads[i]
        assert gradient.shape == x.shape
        return directional_error(
            lambda moved: (dy * forward(*inputs[:i], moved, *inputs[i + 1:])[0]).sum(),
            gradient, x, rng)
    return [error(i) for i in range(len(inputs))]


def model_errors(network, params, ids, targets, rng):
    """name → error, for the gradient of the loss with respect to every parameter of a network."""
    _, grads = network.loss_and_gradients(params, ids, targets)
    assert grads.keys() == params.keys()
    return {name: directional_error(lambda w: network.loss(params | {name: w}, ids, targets),
                                    grads[name], w, rng)
            for name, w in params.items()}
