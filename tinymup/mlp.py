"""A next-byte MLP (Bengio et al. 2003): the last 8 bytes, embedded and laid side by side, through dense layers to logits.

The smallest complete example: read `shapes`, `forward` and `backward`, and the Transformer is more of the same.
"""
from typing import NamedTuple

from . import ops
from .backend import xp
from .data import VOCAB

CONTEXT, EMBEDDING = 8, 32   # bytes seen, numbers per byte: no widths, they stay as the network grows


class Architecture(NamedTuple):
    """The sizes and choices that define the network."""

    width: int
    depth: int                    # hidden layers after the first
    activation: str = "relu"
    zero_readout: bool = False


def shapes(a):
    """(name, role, shape, mean, std, in_branch) of every parameter, std in units of the table's. Biases start at 0."""
    yield "embedding", "scalar", (VOCAB, EMBEDDING), 0, 1, False
    yield "input", "input", (CONTEXT * EMBEDDING, a.width), 0, 1, False
    yield "input.bias", "vector", (a.width,), 0, 0, False
    for i in range(a.depth):
        yield f"hidden{i}", "hidden", (a.width, a.width), 0, 1, False
        yield f"hidden{i}.bias", "vector", (a.width,), 0, 0, False
    yield "output", "output", (a.width, VOCAB), 0, 0 if a.zero_readout else 1, False
    yield "output.bias", "scalar", (VOCAB,), 0, 0, False


def forward(p, ids, a, scales, watch=ops.ignore):
    """logits (B·T, V) of the byte after each of ids (B, T); before the first byte stand zeros."""
    act, _ = ops.ACTIVATIONS[a.activation]
    batch, time = ids.shape
    padded = xp.concatenate([xp.zeros((batch, CONTEXT - 1), ids.dtype), ids], axis=1)
    windows = xp.arange(time)[:, None] + xp.arange(CONTEXT)
    context = padded[:, windows].reshape(-1)                      # (B·T·CONTEXT,)

    e, c_embedding = ops.embedding(context, p["embedding"], scales.mult["embedding"])
    x, c_input = ops.dense(e.reshape(batch * time, -1), p, "input", scales.mult)
    watch("input", x)
    caches = []
    for i in range(a.depth):
        x, c_act = act(x, scales.activation, scales.activation_alpha)
        x, c_hidden = ops.dense(x, p, f"hidden{i}", scales.mult)
        watch(f"hidden{i}", x)
        caches.append((c_act, c_hidden))
    x, c_act = act(x, scales.activation, scales.activation_alpha)
    logits, c_output = ops.dense(x, p, "output", scales.mult)
    watch("logits", logits)
    return logits, (c_embedding, c_input, caches, c_act, c_output, a)


def backward(dlogits, cache):
    """The lines of `forward`, bottom to top: the gradient of every parameter, a dict keyed like p."""
    c_embedding, c_input, caches, c_act, c_output, a = cache
    _, act_backward = ops.ACTIVATIONS[a.activation]
    g = {}
    dx = ops.dense_backward(dlogits, c_output, g, "output")
    dx = act_backward(dx, c_act)
    for i in reversed(range(a.depth)):
        c_act, c_hidden = caches.pop()
        dx = ops.dense_backward(dx, c_hidden, g, f"hidden{i}")
        dx = act_backward(dx, c_act)
    de = ops.dense_backward(dx, c_input, g, "input")
    g["embedding"] = ops.embedding_backward(de.reshape(-1, EMBEDDING), c_embedding)
    return g
