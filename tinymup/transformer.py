"""A decoder-only Transformer on bytes: pre-norm blocks of causal attention with RoPE and a feed-forward layer.

x (N, C) is the residual stream, N = B·T rows. Every block reads it through a norm and adds two branches to it.
"""
from typing import NamedTuple

from . import ops
from .data import VOCAB


class Architecture(NamedTuple):
    """The sizes and choices that define the network."""

    width: int
    depth: int                    # blocks, each an attention and a feed-forward branch
    head_dim: int
    activation: str = "gelu"      # "gelu", "relu", or "swiglu": gate and up instead of up alone
    tied: bool = False            # the readout is the embedding's matrix
    gains: bool = False           # learned gain after each norm
    biases: bool = False          # bias after each matrix
    zero_readout: bool = False
    zero_query: bool = False


def ffn_width(a):
    """4 C; for SwiGLU's three matrices 8/3 C in steps of 8, which is as many parameters."""
    return max(8, a.width * 8 // 3 // 8 * 8) if a.activation == "swiglu" else 4 * a.width


def shapes(a):
    """(name, role, shape, mean, std, in_branch) of every parameter, std in units of the table's. Biases start at 0, gains at 1."""
    def matrix(name, fan_in, fan_out, role="hidden", std=1, in_branch=True):
        yield name, role, (fan_in, fan_out), 0, std, in_branch
        if a.biases:
            yield name + ".bias", "scalar" if role == "output" else "vector", (fan_out,), 0, 0, in_branch

    def norm(name, in_branch=True):
        if a.gains:
            yield name, "vector", (a.width,), 1, 0, in_branch

    yield "embedding", "tied" if a.tied else "embedding", (VOCAB, a.width), 0, 1, False
    for i in range(a.depth):
        yield from norm(f"block{i}.attention_norm")
        yield from matrix(f"block{i}.query", a.width, a.width, std=0 if a.zero_query else 1)
        yield from matrix(f"block{i}.key", a.width, a.width)
        yield from matrix(f"block{i}.value", a.width, a.width)
        yield from matrix(f"block{i}.attention_out", a.width, a.width)
        yield from norm(f"block{i}.ffn_norm")
        if a.activation == "swiglu":
            yield from matrix(f"block{i}.gate", a.width, ffn_width(a))
        yield from matrix(f"block{i}.up", a.width, ffn_width(a))
        yield from matrix(f"block{i}.down", ffn_width(a), a.width)
    yield from norm("final_norm", in_branch=False)
    if not a.tied:
        yield from matrix("output", a.width, VOCAB, "output", 0 if a.zero_readout else 1, in_branch=False)


def attention_branch(x, p, b, a, scales, batch, angles, watch):
    """norm → q, k, v → heads → attention → attention_out          x, y (N, C);   b is the block's prefix, as in "block0." """
    n, c_norm = ops.norm(x, p, b + "attention_norm", scales.mult)
    q, c_q = ops.dense(n, p, b + "query", scales.mult)
    k, c_k = ops.dense(n, p, b + "key", scales.mult)
    v, c_v = ops.dense(n, p, b + "value", scales.mult)
    q, k, v = (m.reshape(batch, -1, a.width // a.head_dim, a.head_dim) for m in (q, k, v))
    q, _ = ops.rope(q, angles)
    k, _ = ops.rope(k, angles)
    y, c_attention = ops.attention(q, k, v, scales.attention, scales.attention_out)
    watch(b + "attention_logits", c_attention)
    y, c_out = ops.dense(y.reshape(x.shape), p, b + "attention_out", scales.mult)
    return y, (c_norm, c_q, c_k, c_v, angles, c_attention, c_out, q.shape)


def attention_branch_backward(dy, cache, g, b):
    """The lines of `attention_branch`, bottom to top. Gradients of parameters go into g."""
    c_norm, c_q, c_k, c_v, angles, c_attention, c_out, heads = cache
    da = ops.dense_backward(dy, c_out, g, b + "attention_out")
    dq, dk, dv = ops.attention_backward(da.reshape(heads), c_attention)
    dk = ops.rope_backward(dk, angles)
    dq = ops.rope_backward(dq, angles)
    dn = ops.dense_backward(dv.reshape(dy.shape), c_v, g, b + "value")
    dn += ops.dense_backward(dk.reshape(dy.shape), c_k, g, b + "key")
    dn += ops.dense_backward(dq.reshape(dy.shape), c_q, g, b + "query")
    return ops.norm_backward(dn, c_norm, g, b + "attention_norm")


def ffn_branch(x, p, b, a, scales):
    """norm → up → activation → down, or norm → up, gate → silu_gate → down          x, y (N, C)"""
    n, c_norm = ops.norm(x, p, b + "ffn_norm", scales.mult)
    f, c_up = ops.dense(n, p, b + "up", scales.mult)
    if a.activation == "swiglu":
        gate, c_gate = ops.dense(n, p, b + "gate", scales.mult)
        f, c_act = ops.silu_gate(f, gate, scales.activation, scales.activation_alpha)
    else:
        c_gate = None
        f, c_act = ops.ACTIVATIONS[a.activation][0](f, scales.activation, scales.activation_alpha)
    y, c_down = ops.dense(f, p, b + "down", scales.mult)
    return y, (c_norm, c_up, c_gate, c_act, c_down, a)


def ffn_branch_backward(dy, cache, g, b):
    """The lines of `ffn_branch`, bottom to top. Gradients of parameters go into g."""
    c_norm, c_up, c_gate, c_act, c_down, a = cache
    df = ops.dense_backward(dy, c_down, g, b + "down")
    if a.activation == "swiglu":
        df, dgate = ops.silu_gate_backward(df, c_act)
        dn = ops.dense_backward(dgate, c_gate, g, b + "gate")
        dn += ops.dense_backward(df, c_up, g, b + "up")
    else:
        df = ops.ACTIVATIONS[a.activation][1](df, c_act)
        dn = ops.dense_backward(df, c_up, g, b + "up")
    return ops.norm_backward(dn, c_norm, g, b + "ffn_norm")


def forward(p, ids, a, scales, watch=ops.ignore):
    """logits (B·T, V) of the byte after each of ids (B, T). The same function trains, evaluates and samples."""
    batch, time = ids.shape
    angles = ops.rope_angles(time, a.width // a.head_dim, a.head_dim, p["embedding"].dtype)
    x, c_embedding = ops.embedding(ids.reshape(-1), p["embedding"], scales.mult["embedding"])
    watch("embedding", x)
    caches = []
    for i in range(a.depth):
        b = f"block{i}."
        y, c_attention = attention_branch(x, p, b, a, scales, batch, angles, watch)
        watch(b + "attention", y)
        x, c_add1 = ops.residual(x, y, scales.branches[2 * i])
        y, c_ffn = ffn_branch(x, p, b, a, scales)
        watch(b + "ffn", y)
        x, c_add2 = ops.residual(x, y, scales.branches[2 * i + 1])
        caches.append((c_attention, c_add1, c_ffn, c_add2))
    x, c_norm = ops.norm(x, p, "final_norm", scales.mult)
    watch("final_norm", x)
    if a.tied:
        logits, c_output = ops.linear(x, p["embedding"].T, scales.mult["output"])
    else:
        logits, c_output = ops.dense(x, p, "output", scales.mult)
    watch("logits", logits)
    return logits, (c_embedding, caches, c_norm, c_output, a)


def backward(dlogits, cache):
    """The lines of `forward`, bottom to top: the gradient of every parameter, a dict keyed like p."""
    c_embedding, caches, c_norm, c_output, a = cache
    g = {}
    if a.tied:
        dx, d_output = ops.linear_backward(dlogits, c_output)
    else:
        dx = ops.dense_backward(dlogits, c_output, g, "output")
    dx = ops.norm_backward(dx, c_norm, g, "final_norm")
    for i in reversed(range(a.depth)):
        b = f"block{i}."
        c_attention, c_add1, c_ffn, c_add2 = caches.pop()         # popped, so that each cache is freed once used
        dskip, dy = ops.residual_backward(dx, c_add2)
        dx = ops.residual_join(dskip, ffn_branch_backward(dy, c_ffn, g, b), c_add2)
        dskip, dy = ops.residual_backward(dx, c_add1)
        dx = ops.residual_join(dskip, attention_branch_backward(dy, c_attention, g, b), c_add1)
    g["embedding"] = ops.embedding_backward(dx, c_embedding)
    if a.tied:
        g["embedding"] += d_output.T                              # one matrix, used twice
    return g
