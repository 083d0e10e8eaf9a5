"""A decoder-only Transformer: pre-norm blocks of causal attention with RoPE and a feed-forward net.

A block adds two branches to the residual stream x (N, C), N = B·T: attention, then the feed-forward
net. Each backward goes through its forward in reverse. Read next: orthogonalize.py, optim.py."""
from typing import NamedTuple

from . import layers, ops
from .layers import dense, dense_backward, ignore, norm, norm_backward
from .resolve import Spec


class Architecture(NamedTuple):
    """The sizes and choices that define the network."""
    width: int = 64
    depth: int = 2                # blocks, each an attention and a feed-forward branch
    head_dim: int = 32
    ffn: str = "gelu"             # gelu, relu, or swiglu with its two matrices gate and up
    tied: bool = False            # the readout is the embedding's matrix
    gains: bool = False           # a learned gain after each norm
    biases: bool = False          # a bias after each matrix
    zero_readout: bool = False
    zero_query: bool = False
    vocab: int = 256
    norm_eps: float = 1e-6
    rope_base: float = 10000


def ffn_width(a):
    """4 C, or for SwiGLU 8/3 C in steps of 8: its three matrices have about as many parameters."""
    return max(8, a.width * 8 // 3 // 8 * 8) if a.ffn == "swiglu" else 4 * a.width

def specs(a):
    """The `Spec` of every parameter. Biases start at 0, gains at 1."""
    def matrix(name, fan_in, fan_out, **fields):
        spec = Spec(name, "hidden", (fan_in, fan_out), in_branch=True)._replace(**fields)
        yield spec
        if a.biases:
            role = "scalar" if spec.role == "output" else "vector"
            yield Spec(name + ".bias", role, (fan_out,), std=0, in_branch=spec.in_branch,
                       logits=spec.logits)

    def gain(name, in_branch=True):
        if a.gains:
            yield Spec(name, "vector", (a.width,), mean=1, std=0, in_branch=in_branch)

    yield Spec("embedding", "tied" if a.tied else "embedding", (a.vocab, a.width), lookups=1)
    for i in range(a.depth):
        block, width, wide = f"block{i}.", a.width, ffn_width(a)
        yield from gain(block + "attention_norm")
        for name in ("query", "key", "value"):
            yield from matrix(block + name, width, width, head_dim=a.head_dim, rounded=True,
                              std=0 if name == "query" and a.zero_query else 1,
                              logits=block + "attention_logits" if name != "value" else None)
        yield from matrix(block + "attention_out", width, width)
        yield from gain(block + "ffn_norm")
        for name in ("gate", "up") if a.ffn == "swiglu" else ("up",):
            yield from matrix(block + name, width, wide, constrained=False, rounded=True)
        yield from matrix(block + "down", wide, width, constrained=False)
    yield from gain("final_norm", in_branch=False)
    if not a.tied:
        yield from matrix("output", a.width, a.vocab, role="output", in_branch=False,
                          std=0 if a.zero_readout else 1)


def attention_branch(x, p, block, a, scales, watch):
    """norm → query, key, value → RoPE → attention → attention_out      x (B, T, C) → y (N, C)"""
    n, c_norm = norm(x.reshape(-1, a.width), p, block + "attention_norm", scales, a.norm_eps)
    q, c_q = dense(n, p, block + "query", scales)
    k, c_k = dense(n, p, block + "key", scales)
    v, c_v = dense(n, p, block + "value", scales)
    split = (*x.shape[:2], a.width // a.head_dim, a.head_dim)     # (B, T, H, D)
    angles = ops.rope_angles(*split[1:], x.dtype, a.rope_base)
    q, _ = ops.rope(q.reshape(split), angles)
    k, _ = ops.rope(k.reshape(split), angles)
    y, c_attention = ops.attention(q, k, v.reshape(split), scales.attention, scales.attention_out)
    if watch is not ignore:
        watch(block + "attention_logits", ops.attention_logits(c_attention))
    y, c_out = dense(y.reshape(n.shape), p, block + "attention_out", scales)
    return y, (c_attention, c_norm, c_q, c_k, c_v, angles, c_out, split)

def attention_branch_backward(dy, cache, grads, block):
    c_attention, c_norm, c_q, c_k, c_v, angles, c_out, split = cache
    da = dense_backward(dy, c_out, grads, block + "attention_out")
    dq, dk, dv = ops.attention_backward(da.reshape(split), c_attention)
    dk = ops.rope_backward(dk, angles)
    dq = ops.rope_backward(dq, angles)
    dn = dense_backward(dv.reshape(dy.shape), c_v, grads, block + "value")
    dn += dense_backward(dk.reshape(dy.shape), c_k, grads, block + "key")
    dn += dense_backward(dq.reshape(dy.shape), c_q, grads, block + "query")
    return norm_backward(dn, c_norm, grads, block + "attention_norm")


def ffn_branch(x, p, block, a, scales):
    """norm → up → activation → down, or norm → up, gate → silu_gate → down          x, y (N, C)"""
    n, c_norm = norm(x, p, block + "ffn_norm", scales, a.norm_eps)
    f, c_up = dense(n, p, block + "up", scales)
    c_gate = None
    if a.ffn == "swiglu":
        gate, c_gate = dense(n, p, block + "gate", scales)
        f, c_activation = ops.silu_gate(f, gate, scales.activation, scales.activation_alpha)
    else:
        f, c_activation = layers.activation(f, a.ffn, scales)
    y, c_down = dense(f, p, block + "down", scales)
    return y, (c_norm, c_up, c_gate, c_activation, c_down, a)

def ffn_branch_backward(dy, cache, grads, block):
    c_norm, c_up, c_gate, c_activation, c_down, a = cache
    df = dense_backward(dy, c_down, grads, block + "down")
    if a.ffn == "swiglu":
        df, dgate = ops.silu_gate_backward(df, c_activation)
        dn = dense_backward(dgate, c_gate, grads, block + "gate")
        dn += dense_backward(df, c_up, grads, block + "up")
    else:
        df = layers.activation_backward(df, c_activation, a.ffn)
        dn = dense_backward(df, c_up, grads, block + "up")
    return norm_backward(dn, c_norm, grads, block + "ffn_norm")


def forward(p, ids, a, scales, watch=ignore):
    """The logits (B·T, V) of the token after each of ids (B, T), and the cache of `backward`."""
    x, c_embedding = ops.lookup(ids.reshape(-1), p["embedding"], scales.mult["embedding"])
    watch("embedding", x)
    caches = []
    for i in range(a.depth):
        block = f"block{i}."
        y, c_attention = attention_branch(x.reshape(*ids.shape, -1), p, block, a, scales, watch)
        watch(block + "attention", y)
        x, c_add1 = ops.residual(x, y, scales.branches[2 * i])
        y, c_ffn = ffn_branch(x, p, block, a, scales)
        watch(block + "ffn", y)
        x, c_add2 = ops.residual(x, y, scales.branches[2 * i + 1])
        caches.append((c_attention, c_add1, c_ffn, c_add2))
    x, c_norm = norm(x, p, "final_norm", scales, a.norm_eps)
    watch("final_norm", x)
    if a.tied:                                                    # one matrix with two uses
        p = p | {"output": p["embedding"].T}
    logits, c_output = dense(x, p, "output", scales)
    watch("logits", logits)
    return logits, (c_embedding, caches, c_norm, c_output, a)

def backward(dlogits, cache):
    """The gradient of every parameter, a dict keyed like p. Uses up the cache."""
    c_embedding, caches, c_norm, c_output, a = cache
    grads = {}
    dx = dense_backward(dlogits, c_output, grads, "output")
    dx = norm_backward(dx, c_norm, grads, "final_norm")
    for i in reversed(range(a.depth)):
        block = f"block{i}."
        c_attention, c_add1, c_ffn, c_add2 = caches.pop()         # frees each cache after its use
        dskip, dy = ops.residual_backward(dx, c_add2)
        dx = ops.residual_join(dskip, ffn_branch_backward(dy, c_ffn, grads, block), c_add2)
        dskip, dy = ops.residual_backward(dx, c_add1)
        dx = ops.residual_join(
            dskip, attention_branch_backward(dy, c_attention, grads, block), c_add1)
    grads["embedding"] = ops.lookup_backward(dx, c_embedding)
    if a.tied:
        grads["embedding"] += grads.pop("output").T
    return grads

def largest_logits(cache):
    """{name of the attention logits: the largest of each head (H,)}, from a cache of `forward`."""
    return {f"block{i}.attention_logits": ops.largest_by_head(c_attention)
            for i, ((c_attention, *_), *_) in enumerate(cache[1])}
