"""A next-byte MLP: embeds the last bytes side by side and sends them through dense layers.

This is the smallest complete model (Bengio et al. 2003). `specs` declares its parameters, `forward`
computes the logits, and `backward` goes through its lines in reverse. Read next: transformer.py."""
from typing import NamedTuple

from . import ops
from .backend import xp
from .layers import activation, activation_backward, dense, dense_backward, ignore
from .resolve import Spec


class Architecture(NamedTuple):
    """The sizes and choices that define the network."""
    width: int = 64
    depth: int = 2                # hidden layers after the first
    ffn: str = "relu"             # the activation
    zero_readout: bool = False
    vocab: int = 256
    context: int = 8              # tokens that it sees
    embedding: int = 32           # numbers per token; does not grow with width


def specs(a):
    """The `Spec` of every parameter. Biases start at 0."""
    yield Spec("embedding", "scalar", (a.vocab, a.embedding), lookups=a.context)
    yield Spec("input", "input", (a.context * a.embedding, a.width))
    yield Spec("input.bias", "vector", (a.width,), std=0)
    for i in range(a.depth):
        yield Spec(f"hidden{i}", "hidden", (a.width, a.width), rounded=True)
        yield Spec(f"hidden{i}.bias", "vector", (a.width,), std=0)
    yield Spec("output", "output", (a.width, a.vocab), std=0 if a.zero_readout else 1)
    yield Spec("output.bias", "scalar", (a.vocab,), std=0)


def forward(p, ids, a, scales, watch=ignore):
    """The logits (B·T, V) of the token after each of ids (B, T). Rows are padded with token 0."""
    batch, time = ids.shape
    padded = xp.concatenate([xp.zeros((batch, a.context - 1), ids.dtype), ids], axis=1)
    seen = padded[:, xp.arange(time)[:, None] + xp.arange(a.context)]       # (B, T, context)
    e, c_embedding = ops.lookup(seen.reshape(-1), p["embedding"], scales.mult["embedding"])
    x, c_input = dense(e.reshape(batch * time, -1), p, "input", scales)
    watch("input", x)
    caches = []
    for i in range(a.depth):
        x, c_activation = activation(x, a.ffn, scales)
        x, c_hidden = dense(x, p, f"hidden{i}", scales)
        watch(f"hidden{i}", x)
        caches.append((c_activation, c_hidden))
    x, c_activation = activation(x, a.ffn, scales)
    logits, c_output = dense(x, p, "output", scales)
    watch("logits", logits)
    return logits, (c_embedding, c_input, caches, c_activation, c_output, a)

def backward(dlogits, cache):
    """The gradient of every parameter, a dict keyed like p. Uses up the cache."""
    c_embedding, c_input, caches, c_activation, c_output, a = cache
    grads = {}
    dx = dense_backward(dlogits, c_output, grads, "output")
    dx = activation_backward(dx, c_activation, a.ffn)
    for i in reversed(range(a.depth)):
        c_activation, c_hidden = caches.pop()
        dx = dense_backward(dx, c_hidden, grads, f"hidden{i}")
        dx = activation_backward(dx, c_activation, a.ffn)
    de = dense_backward(dx, c_input, grads, "input")
    grads["embedding"] = ops.lookup_backward(de.reshape(-1, a.embedding), c_embedding)
    return grads

def largest_logits(cache):
    """{}: there is no attention."""
    return {}
