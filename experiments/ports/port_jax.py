"""tinymup in JAX and optax: python experiments/ports/port_jax.py tests/vectors/CASE.json MINE.json

Computes a case's digests from its config, token ids and Newton–Schulz coefficients.
Needs: pip install jax optax (written with jax 0.10.2 and optax 0.2.8, run on a CPU).
Claims every training case. Not ops.json, formats.json and optimizers.json, and no option that no
case uses: number formats, zero_readout, zero_query, tied matrices but μP's, u-μP of the MLP.
"""
import json
import math
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)             # before the first array

# Init std, multiplier A, SGD lr and AdamW lr at i = fan_in and o = fan_out over the base model's.
# "wide" are the roles without an entry of their own. A scalar's i and o are 1
TABLES = {
    "sp": {"wide": lambda i, o: (1, 1, 1, 1),
           "hidden": lambda i, o: (i**-0.5, 1, 1, 1), "output": lambda i, o: (i**-0.5, 1, 1, 1)},
    "ntk": {"wide": lambda i, o: (1, 1, 1, o**-0.5),
            "hidden": lambda i, o: (1, i**-0.5, 1, (i * o)**-0.5),
            "output": lambda i, o: (1, i**-0.5, 1, i**-0.5)},
    "mup": {"wide": lambda i, o: (1, 1, o, 1), "hidden": lambda i, o: (i**-0.5, 1, o / i, 1 / i),
            "output": lambda i, o: (1, 1 / i, i, 1)},
    "umup": {"wide": lambda i, o: (1, 1, 1, 1), "output": lambda i, o: (1, 1 / i, 1, 1),
             "hidden": lambda i, o: (1, i**-0.5, i**-0.5, i**-0.5),
             "embedding": lambda i, o: (1, 1, o**-0.5, o**-0.5)}}
# Tables 3 and 9 are Table 8 ("mup") with A·θ, B/θ, and C/θ² (SGD) or C/θ (AdamW)
THETA = {"mup-table3": lambda role, i, o: {"output": i}.get(role, 1), "mup-table9":
         lambda role, i, o: {"hidden": 1, "output": i**0.5}.get(role, o**0.5)}
# Exponents of the depth ratio: branch weight, SGD lr, and the lr of AdamW and Muon
DEPTH = {"none": (0, 0, 0), "depth-mup": (-0.5, 0, -0.5), "completep": (-1, 1, 0),
         "umup": (None, -0.5, -0.5)}
SHAPE_FACTORS = {"spectral": lambda i, o: (o / i)**0.5, "keller": lambda i, o: max(1, o / i)**0.5,
                 "moonlight": lambda i, o: 0.2 * max(i, o)**0.5}
ACTIVATIONS = {"relu": lambda x, alpha: jax.nn.relu(x),
               "gelu": lambda x, alpha: jax.nn.gelu(alpha * x, approximate=True) / alpha,
               "swiglu": lambda x, alpha: jax.nn.silu(alpha * x) / alpha}

Row = namedtuple("Row", "shape mean std y dx dw group")        # y is A; without u-μP dx = dw = A
Group = namedtuple("Group", "rule lr eps shrink heads")        # lr is C, for Muon C·s


def layout(c, width):
    """(role, shape) of each parameter by name, in the order of the vectors."""
    inner = 8 * (8 * width // 3 // 8) if c["ffn"] == "swiglu" else 4 * width
    norm, square, up = ("vector", width), ("hidden", width, width), ("hidden", width, inner)
    block = [("attention_norm", norm), ("query", square), ("key", square), ("value", square),
             ("attention_out", square), ("ffn_norm", norm), ("gate", up), ("up", up),
             ("down", ("hidden", inner, width))]
    if c["model"] == "mlp":
        layers = [("embedding", ("scalar", 256, 32)), ("input", ("input", 8 * 32, width)),
                  *((f"hidden{k}", square) for k in range(c["depth"]))]
    else:
        layers = [("embedding", ("tied" if c["tied"] else "embedding", 256, width)),
                  *((f"block{k}.{name}", layer) for k in range(c["depth"])
                    for name, layer in block if name != "gate" or c["ffn"] == "swiglu"),
                  ("final_norm", norm)]
    found, biases = {}, c["biases"] or c["model"] == "mlp"
    for name, (role, *shape) in layers + [("output", ("output", width, 256))] * (not c["tied"]):
        if role != "vector" or c["gains"]:
            found[name] = role, tuple(shape)
        if biases and role in ("input", "hidden", "output"):
            found[name + ".bias"] = "scalar" if role == "output" else "vector", (shape[1],)
    return found


def row_of(c, name, role, shape, base_shape):
    """The table's cells times the numbers of the base model. u-μP's cells are absolute."""
    unit, matrix, per_head = c["param"] == "umup", len(shape) == 2, 1
    fan_in, fan_out = (1, *shape)[-2:]
    base_in, base_out = (1, 1) if unit else (1, *base_shape)[-2:]
    i, o, table = fan_in / base_in, fan_out / base_out, TABLES[c["param"].split("-")[0]]
    init, mult, sgd, adamw = table.get(role, table["wide"])(i, o)
    theta = THETA.get(c["param"], lambda *_: 1)(role, i, o)
    init, mult, sgd, adamw = init / theta, mult * theta, sgd / theta**2, adamw / theta
    if c["muon_per_head"] and name.endswith(("query", "key", "value")):
        per_head, base_out = fan_out // c["head_dim"], 1 if unit else c["base_head_dim"]
    muon = ((fan_out / per_head / base_out / i)**0.5 / mult *
            SHAPE_FACTORS[c["muon_scale"]](base_in, base_out))
    if name.startswith("block"):                      # in a branch
        depth = c["depth"] / (1 if unit else c["base_depth"])
        _, of_sgd, of_adamw = DEPTH["umup" if unit else c["depth_rule"]]
        sgd, adamw, muon = sgd * depth**of_sgd, adamw * depth**of_adamw, muon * depth**of_adamw
    std = {"embedding": 1, "scalar": 1, "tied": base_out**-0.5}.get(role, base_in**-0.5)
    y = mult * {"embedding": c["embed_mult"] * (base_out**0.5 if c["tied"] else 1),
                "output": c["output_mult"]}.get(name, 1)
    lr, rule = c["lr"], c["optimizer"].removesuffix("clip")
    if rule == "muon" and role != "hidden":
        lr, rule = c["adam_lr"], "adamw"
    shrink = c["weight_decay"] * (lr if c["decay_form"] == "coupled" else 1)
    group = Group(rule, lr * {"sgd": sgd, "adamw": adamw, "muon": muon}[rule],
                  c["eps"] * adamw / sgd, shrink, per_head)
    dx = fan_out**-0.5 if unit and matrix else y      # attention's matrices are square: dx = y
    dw = ((fan_in if name == "embedding" else 1) / c["batch"] / c["seq"])**0.5 if unit else y
    mean = init if role == "vector" and not name.endswith(".bias") else 0.0
    return Row(shape, mean, matrix * c["init_scale"] * std * init, y, dx, dw, group)


def initial(rows):
    """mean + std·z: z of parameter number u is a linear congruential sequence from u."""
    params, modulus = {}, 2**31 - 1
    for u, (name, row) in enumerate(rows.items(), 1):
        z = [(u := 48271 * u % modulus) / modulus - 0.5 for _ in range(math.prod(row.shape))]
        params[name] = row.mean + row.std * 12**0.5 * jnp.array(z).reshape(row.shape)
    return params


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def scaled(x, forward, backward):
    """x times a factor, with another factor for its gradient."""
    return forward * x


scaled.defvjp(lambda x, forward, backward: (forward * x, None), lambda _, b, __, dy: (b * dy,))


def linear(p, rows, name, x):
    """p[name] is A·w and carries dw for its gradient. That of x gets dx in place of A."""
    x = scaled(x, 1.0, rows[name].dx / rows[name].y)
    return x @ p[name] + p.get(name + ".bias", 0.0)


def norm(p, name, x):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * p.get(name, 1.0)


def rope(x):                                          # (batch, heads, time, head_dim)
    half = x.shape[3] // 2
    angle = jnp.arange(x.shape[2])[:, None] * 10000.0**(-jnp.arange(half, dtype=float) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angle)
    return jnp.concatenate([turned.real, turned.imag], -1)


def scales_of(c):
    """Attention's scale and factor, the FFN's factor, and (skip, amount) of each branch."""
    dim, depth = c["head_dim"], c["depth"]
    if c["param"] != "umup":
        amount = (depth / c["base_depth"])**DEPTH[c["depth_rule"]][0]
        power = c["base_head_dim"]**0.5 / dim if "mup" in c["param"] else dim**-0.5
        return c["attn_mult"] * power, 1.0, 1.0, [(1.0, amount)] * 2 * depth
    alpha, square, seq = c["alpha_attn"], c["alpha_ffn"]**2, c["seq"]
    attention = (seq / math.log(seq))**(0.5 - 0.5 / (1 + 4 * dim / alpha**2))
    a, limit = ((1 / (1 + 1 / square), 2) if c["ffn"] == "swiglu" else
                (1 / (1 + 0.25 / square), 2 / (1 - 1 / math.pi)))
    second = 2 * c["alpha_res"]**2 / (1 + c["alpha_res_ratio"]**2) / depth
    stream, branches = 1.0, []
    for branch in [c["alpha_res_ratio"]**2 * second, second] * depth:
        branches.append(((stream / (stream + branch))**0.5, (branch / (stream + branch))**0.5))
        stream += branch
    return alpha / dim, attention, 2**(1 - a) * limit**(a / 2), branches


def transformer(p, ids, c, rows):
    """ids (B, T) → logits (N, vocab), and what the case watches by name."""
    seen, (batch, time), unit = {}, ids.shape, c["param"] == "umup"
    scale, attention_factor, ffn_factor, branches = scales_of(c)
    act, mask = ACTIVATIONS[c["ffn"]], jnp.tril(jnp.ones((time, time), bool))

    def attention(b, x):
        q, k, v = (linear(p, rows, b + name, x).reshape(batch, time, -1, c["head_dim"])
                   .swapaxes(1, 2) for name in ("query", "key", "value"))
        logits = scale * rope(q) @ rope(k).swapaxes(2, 3)
        seen[b + "attention_logits"] = logits.swapaxes(2, 3)        # (B, H, key, query)
        y = attention_factor * jax.nn.softmax(jnp.where(mask, logits, -jnp.inf)) @ v
        return linear(p, rows, b + "attention_out", y.swapaxes(1, 2).reshape(x.shape))

    def ffn(b, x):
        up = linear(p, rows, b + "up", x)
        h = (up * act(linear(p, rows, b + "gate", x), c["alpha_ffn"])
             if c["ffn"] == "swiglu" else act(up, c["alpha_ffn"]))
        return linear(p, rows, b + "down", ffn_factor * h)

    x = seen["embedding"] = p["embedding"][ids.reshape(-1)]
    for k, (skip, amount) in enumerate(branches):
        b, (name, f) = f"block{k // 2}.", (("attention", attention), ("ffn", ffn))[k % 2]
        y = f(b, norm(p, f"{b}{name}_norm", scaled(x, 1.0, amount if unit else 1.0)))
        seen[b + name], x = y, skip * x + scaled(y, amount, 1.0 if unit else amount)
    x = seen["final_norm"] = norm(p, "final_norm", x)
    if not c["tied"]:
        return linear(p, rows, "output", x), seen
    readout = c["output_mult"] * c["base_width"] / c["width"] / rows["embedding"].y
    return readout * x @ p["embedding"].T, seen


def mlp(p, ids, c, rows):
    """As transformer. A position sees the last 8 tokens side by side, the oldest first."""
    window = np.arange(ids.shape[1])[:, None] + np.arange(8)
    seen, x = {}, p["embedding"][jnp.pad(ids, ((0, 0), (7, 0)))[:, window]].reshape(ids.size, -1)
    for name in ["input", *(f"hidden{k}" for k in range(c["depth"]))]:
        seen[name] = linear(p, rows, name, x)
        x = ACTIVATIONS[c["ffn"]](seen[name], c["alpha_ffn"])
    return linear(p, rows, "output", x), seen


def loss_of(params, ids, c, rows):
    """ids (B, T + 1) → the mean loss in nats, and what the case watches."""
    p = {name: scaled(w, rows[name].y, rows[name].dw) for name, w in params.items()}
    logits, seen = (mlp if c["model"] == "mlp" else transformer)(p, ids[:, :-1], c, rows)
    (tokens, vocab), seen["logits"], targets = logits.shape, logits, ids[:, 1:].reshape(-1)
    if c["param"] == "umup":                          # and the mean's 1/N taken back
        logits = scaled(logits, c["alpha_loss"], tokens * vocab / (vocab - 1)**0.5)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), seen


def newton_schulz(numbers, g, heads):
    """Orthogonalizes g, or the columns of each head."""
    x, safety = g.reshape(len(g), heads, -1).swapaxes(0, 1), numbers["newton_schulz_safety"]
    x = x / (safety * jnp.maximum(jnp.linalg.norm(x, axis=(1, 2), keepdims=True), 1e-15))
    for a, b, c in numbers["newton_schulz"]:
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.swapaxes(0, 1).reshape(g.shape)


def schedule(c, count):
    """The factor of lr and decay in the step with optax's count, which is 0 in the first."""
    t = count.astype(float)                           # int32 / int is float32, even with x64
    left = (c["steps"] - t) / (c["steps"] - c["warmup"])
    after = {"linear": left, "cosine": (1 - jnp.cos(math.pi * left)) / 2,
             "wsd": jnp.minimum(1.0, left / 0.2)}[c["schedule"]]
    return jnp.where(t < c["warmup"], (t + 1) / c["warmup"], after)


def optimizer_of(c, rows, orthogonalize):
    """One chain per group of parameters. Decay comes after the lr, which must not multiply it."""
    def transform(group):
        momentum = optax.trace(c["momentum"] or 0.0, c["nesterov"])
        rule = {"sgd": [momentum], "adamw": [optax.scale_by_adam(*c["betas"], eps=group.eps)],
                "muon": [momentum, optax.stateless_with_tree_map(
                    lambda u, _: orthogonalize(u, group.heads))]}[group.rule]
        return optax.chain(*rule, optax.scale(group.lr), optax.add_decayed_weights(group.shrink),
                           optax.scale_by_schedule(lambda count: -schedule(c, count)))
    return optax.multi_transform({str(row.group): transform(row.group) for row in rows.values()},
                                 {name: str(row.group) for name, row in rows.items()})


def qk_clip(params, seen, c):
    """Query and key of each head times √(threshold/largest logit), if the largest is above it."""
    for b in (f"block{k}." for k in range(c["depth"])):
        logits = seen[b + "attention_logits"]                       # (B, H, key, query)
        causal = jnp.triu(jnp.ones(logits.shape[2:], bool))
        largest = logits.max((0, 2, 3), where=causal, initial=0.0)
        factor = jnp.repeat(jnp.minimum(1.0, c["qk_clip_threshold"] / largest)**0.5, c["head_dim"])
        params = params | {name: params[name] * factor for name in params
                           if name.startswith((b + "query", b + "key"))}
    return params


def digest(array):
    flat = np.asarray(array, float).reshape(-1)
    return {"shape": array.shape, "norm": np.sqrt(flat @ flat), "first": flat[:3].tolist(),
            "last": flat[-1], "cosine": flat @ np.cos(np.arange(flat.size))}


def run(case):
    """The digests of a case."""
    c = case["config"]
    c |= {"base_" + key: c["base_" + key] or c[key] for key in ("width", "depth", "head_dim")}
    base = layout(c, c["base_width"])
    rows = {name: row_of(c, name, role, shape, base[name][1])
            for name, (role, shape) in layout(c, c["width"]).items()}
    orthogonalize = partial(newton_schulz, case["resolved"]["optimizer"])
    optimizer = optimizer_of(c, rows, orthogonalize)

    @jax.jit
    def step(params, state, ids):
        (loss, seen), grads = jax.value_and_grad(loss_of, has_aux=True)(params, ids, c, rows)
        norm = optax.tree.norm({name: g / rows[name].y for name, g in grads.items()})
        clipped = optax.tree.scale(jnp.minimum(1.0, (c["clip"] or jnp.inf) / norm), grads)
        updates, state = optimizer.update(clipped, state, params)
        params = optax.apply_updates(params, updates)
        if c["optimizer"] == "muonclip":
            params = qk_clip(params, seen, c)
        return params, state, {
            "activations": seen, "loss": loss, "gradients": grads, "after_first_step": params,
            "effective_gradient_norm": norm,
            # m was 0 before the first step, so the update is proportional to the gradient.
            "orthogonalized": {name: orthogonalize(grads[name], rows[name].group.heads)
                               for name in case.get("orthogonalized", ())}}

    params = initial(rows)
    mine, state, losses = {"init": params}, optimizer.init(params), []
    for ids in case["ids"]:
        params, state, found = step(params, state, jnp.array(ids))
        losses.append(found["loss"])
        mine = found | mine                           # the first step's
    mine |= {"after_last_step": params, "losses": losses}
    return jax.tree.map(lambda x: digest(x) if x.ndim else float(x),
                        {key: mine[key] for key in mine if key in case})


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
