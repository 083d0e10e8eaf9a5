"""Layers: the operations of ops.py on parameters, which a model keeps in a dict by name.

Each layer takes the dict p of parameters and the `Scales`. Its backward returns dx and writes the
gradients of the parameters into the dict grads, under the same names. Read next: mlp.py."""
from typing import NamedTuple

from . import ops


class Scales(NamedTuple):
    """The factors in both passes. The defaults are those of an MLP under SP, NTK or μP."""
    mult: dict                     # parameter → ops.Mult; also "output" if the readout is tied
    attention: float = 1.0         # on the attention logits q·k
    branches: tuple = ()           # an ops.Branch for each residual branch
    attention_out: float = 1.0     # on the output of the attention
    activation: float = 1.0        # on the output of the activation
    activation_alpha: float = 1.0  # α of the activation f(αx)/α
    logits: float = 1.0            # on the logits, before the softmax of the loss
    dlogits: float = None          # on softmax − onehot; None: the gradient of the mean loss


ACTIVATIONS = {"relu": (ops.relu, ops.relu_backward), "gelu": (ops.gelu, ops.gelu_backward)}

def ignore(name, x):
    """The default of `watch`, which models call with the name and array of each activation."""


def dense(x, p, name, scales):
    """x times the matrix p[name], plus its bias if there is one. Each has its own multiplier."""
    y, c_linear = ops.linear(x, p[name], scales.mult[name])
    bias_name, c_bias = name + ".bias", None
    if bias_name in p:
        y, c_bias = ops.bias(y, p[bias_name], scales.mult[bias_name])
    return y, (c_linear, c_bias)

def dense_backward(dy, cache, grads, name):
    c_linear, c_bias = cache
    if c_bias is not None:
        dy, grads[name + ".bias"] = ops.bias_backward(dy, c_bias)
    dx, grads[name] = ops.linear_backward(dy, c_linear)
    return dx


def norm(x, p, name, scales, eps):
    """RMSNorm of x, times the gain p[name] if there is one."""
    y, c_norm = ops.rmsnorm(x, eps)
    c_gain = None
    if name in p:
        y, c_gain = ops.gain(y, p[name], scales.mult[name])
    return y, (c_norm, c_gain)

def norm_backward(dy, cache, grads, name):
    c_norm, c_gain = cache
    if c_gain is not None:
        dy, grads[name] = ops.gain_backward(dy, c_gain)
    return ops.rmsnorm_backward(dy, c_norm)


def activation(x, kind, scales):
    """ReLU or GELU of x; kind is a key of `ACTIVATIONS`."""
    return ACTIVATIONS[kind][0](x, scales.activation, scales.activation_alpha)

def activation_backward(dy, cache, kind):
    return ACTIVATIONS[kind][1](dy, cache)
