"""Test vectors of parts, written by make_vectors.py: ops.json, formats.json, optimizers.json.

`inputs` holds what each section starts from: numbers, and seed and shape of arrays. These are drawn
like the parameters of a case, √12 · (u/(2³¹ − 1) − ½), or are u mod `below` where they are whole.
The other sections hold digests of results; formats.json holds the results themselves.
"""
import math
from itertools import count

import numpy as np

from make_vectors import draw, minstd
from tinymup import ops, optim, orthogonalize
from tinymup.lab.vectors import digest
from tinymup.number_formats import FORMATS, MATMUL_FORMATS, quantize
from tinymup.resolve import Hyperparameters, Spec, resolve


def whole(seed, shape, below):
    """Whole numbers in [0, below)."""
    return np.array(minstd(seed, int(np.prod(shape)))).reshape(shape) % below


def mult(n, formats=None):
    """Three different factors, as u-μP has them."""
    return ops.Mult(n["mult_y"], n["mult_dx"], n["mult_dw"], MATMUL_FORMATS.get(formats))


def branch(n):
    """The weights of a residual branch."""
    return ops.Branch(n["skip"], n["amount"], n["enter"], n["leave"])


def angles(x, n):
    """RoPE's angles for x (B, T, H, D)."""
    return ops.rope_angles(*x.shape[1:], x.dtype, n["base"])


FACTORS = {"mult_y": 0.7, "mult_dx": 1.3, "mult_dw": 0.4}
WEIGHTS = {"skip": 0.8, "amount": 0.6, "enter": 1.7, "leave": 0.3}
HEADS = dict.fromkeys("qkv", (2, 5, 3, 4))                        # (B, T, H, D)
LINEAR = ({"x": (6, 8), "w": (8, 10)}, FACTORS, ("y", "dx", "dw"))
# name → forward (arrays and the dict n of numbers → y, cache), backward, shapes, numbers, results.
# A shape with a third number is one of whole numbers below it.
OPS = {
    "linear": (lambda x, w, n: ops.linear(x, w, mult(n)), ops.linear_backward, *LINEAR),
    "linear_fp8": (lambda x, w, n: ops.linear(x, w, mult(n, "fp8")), ops.linear_backward, *LINEAR),
    "linear_bf16": (lambda x, w, n: ops.linear(x, w, mult(n, "bf16")), ops.linear_backward,
                    *LINEAR),
    "bias": (lambda x, b, n: ops.bias(x, b, mult(n)), ops.bias_backward,
             {"x": (6, 10), "b": (10,)}, FACTORS, ("y", "dx", "db")),
    "lookup": (lambda ids, w, n: ops.lookup(ids, w, mult(n)), ops.lookup_backward,
               {"ids": (6, "below", 11), "w": (11, 5)}, FACTORS, ("y", "dw")),
    "rmsnorm": (lambda x, n: ops.rmsnorm(x, n["eps"]), ops.rmsnorm_backward,
                {"x": (6, 5)}, {"eps": 0.1}, ("y", "dx")),
    "gain": (lambda x, w, n: ops.gain(x, w, mult(n)), ops.gain_backward,
             {"x": (6, 5), "w": (5,)}, FACTORS, ("y", "dx", "dw")),
    "relu": (lambda x, n: ops.relu(x, n["mult"]), ops.relu_backward,
             {"x": (6, 8)}, {"mult": 0.7}, ("y", "dx")),
    "gelu": (lambda x, n: ops.gelu(x, n["mult"], n["alpha"]), ops.gelu_backward,
             {"x": (6, 8)}, {"mult": 0.7, "alpha": 1.6}, ("y", "dx")),
    "silu_gate": (lambda x, gate, n: ops.silu_gate(x, gate, n["mult"], n["alpha"]),
                  ops.silu_gate_backward, {"x": (6, 8), "gate": (6, 8)},
                  {"mult": 0.7, "alpha": 1.6}, ("y", "dx", "dgate")),
    "rope": (lambda x, n: ops.rope(x, angles(x, n)), ops.rope_backward,
             {"x": (2, 5, 3, 6)}, {"base": 10000}, ("y", "dx")),
    "attention": (lambda q, k, v, n: ops.attention(q, k, v, n["scale"], n["mult"]),
                  ops.attention_backward, HEADS, {"scale": 0.9, "mult": 1.4},
                  ("y", "dq", "dk", "dv")),
    "residual": (lambda x, f, n: ops.residual(x, f, branch(n)), ops.residual_backward,
                 {"x": (6, 5), "branch": (6, 5)}, WEIGHTS, ("y", "dskip", "dbranch")),
    "residual_join": (lambda dskip, dx, n: (ops.residual_join(dskip, dx, branch(n)), None), None,
                      {"dskip": (6, 5), "dx": (6, 5)}, WEIGHTS, ("y",)),
    "attention_logits": (lambda q, k, v, n: (ops.attention_logits(
        ops.attention(q, k, v, n["scale"])[1]), None), None, HEADS, {"scale": 0.9}, ("y",)),
    "largest_logits": (lambda q, k, v, n: (ops.largest_by_head(
        ops.attention(q, k, v, n["scale"])[1]), None), None, HEADS, {"scale": 0.9}, ("y",)),
    "cross_entropy": (lambda z, ids, n: ops.cross_entropy(z, ids, n["alpha"]), None,
                      {"logits": (6, 11), "targets": (6, "below", 11)}, {"alpha": 1.4},
                      ("loss", "dlogits")),
    "cross_entropy_umup": (lambda z, ids, n: ops.cross_entropy(z, ids, n["alpha"], n["factor"]),
                           None, {"logits": (6, 11), "targets": (6, "below", 11)},
                           {"alpha": 1.4, "factor": 3.5}, ("loss", "dlogits")),
}


def operations(dtype="float64"):
    """ops.json: results and gradients of every operation, for one dy each."""
    seeds = count(101)
    case = {"case": "ops", "inputs": {}}
    for name, (forward, backward, shapes, numbers, results) in OPS.items():
        inputs, arrays = dict(numbers), []
        for key, shape in shapes.items():
            seed = next(seeds)
            inputs[key] = {"seed": seed, "shape": list(shape)}
            if "below" in shape:
                inputs[key] = {"seed": seed, "shape": list(shape[:1]), "below": shape[-1]}
                arrays.append(whole(seed, shape[:1], shape[-1]))
            else:
                arrays.append(draw(seed, shape).astype(dtype))
        y, cache = forward(*arrays, numbers)
        found = [y]
        if name.startswith("cross_entropy"):
            found.append(ops.cross_entropy_backward(cache))
        elif backward:
            seed = next(seeds)
            inputs["dy"] = {"seed": seed, "shape": list(y.shape)}
            gradients = backward(draw(seed, y.shape).astype(dtype), cache)
            found += gradients if isinstance(gradients, tuple) else [gradients]
        case["inputs"][name] = inputs
        case[name] = {result: digest(np.asarray(x))
                      for result, x in zip(results, found, strict=True)}
    return case


def samples(f):
    """Numbers that show how a format rounds, each one exact in float32."""
    step = 2.0**-f.mantissa_bits                                  # between neighbours in [1, 2)
    least, normal = f.min_subnormal, f.min_normal
    top = f.max - 2.0**math.floor(math.log2(f.max)) * step / 2    # halfway to max's neighbour
    ties = [1 + step / 2, 1 + 1.5 * step, 1.5 + step / 2, normal * (1 + step / 2),
            least / 2, 1.5 * least, 2.5 * least, normal - least / 2, top]
    near = [np.nextafter(np.float32(x), np.float32(side)) for x in ties for side in (0, math.inf)]
    edges = [0.0, 1.0, 1 / 3, least, normal - least, normal, 0.75 * least, f.max, f.max * 1.001,
             min(f.max * 4, 3.4e38)]
    spread = [z * 2.0**k for k, z in zip(range(-12, 12), draw(7, (24,)))]
    values = [float(np.float32(x)) for x in (*edges, *ties, *near, *spread)]
    return values + [-x for x in values]


def formats():
    """formats.json: what each format rounds numbers to: ties to even, overflow to ±max."""
    case = {"case": "formats", "inputs": {}}
    for name, f in FORMATS.items():
        x = samples(f)
        case["inputs"][name] = {"x": x}
        case[name] = {"rounded": quantize(np.array(x), f).tolist()}
    return case


SGD = {"lr": 0.1}
ADAMW = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.2}
MUON = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "momentum_form": "ema",
        "coefficients": "keller", "heads": 1}
OPTIMIZERS = {   # name → optimizer, shape, numbers
    "sgd": ("sgd", (8, 6), SGD),
    "sgd-momentum": ("sgd", (8, 6), SGD | {"momentum": 0.9, "nesterov": False}),
    "sgd-nesterov": ("sgd", (8, 6), SGD | {"momentum": 0.9, "nesterov": True}),
    "adamw": ("adamw", (8, 6), ADAMW),
    "adamw-decay": ("adamw", (8, 6), ADAMW | {"shrink": 0.05}),
    "adamw-small-eps": ("adamw", (8, 6), ADAMW | {"eps": 1e-8}),
    "muon-wide": ("muon", (6, 8), MUON),
    "muon-heavy-ball": ("muon", (8, 6), MUON | {"nesterov": False}),
    "muon-sum": ("muon", (8, 6), MUON | {"momentum_form": "sum"}),
    "muon-heads": ("muon", (8, 6), MUON | {"heads": 3}),
    "muon-decay": ("muon", (8, 6), MUON | {"shrink": 0.05}),
} | {f"muon-{name}": ("muon", (8, 6), MUON | {"coefficients": name})
     for name in orthogonalize.COEFFICIENTS}


def optimizers(dtype="float64"):
    """optimizers.json: one matrix after each of five steps, whose gradients differ in size."""
    factors = [0.5, 1.0, 0.75, 0.5, 0.25]
    case = {"case": "optimizers", "inputs": {
        name: {"optimizer": optimizer, **numbers, "w": {"seed": 201, "shape": list(shape)},
               "gradients": {"seeds": [301, 302, 303, 304, 305], "sizes": [1, 0.3, 3, 0.1, 1]},
               "schedule": factors} for name, (optimizer, shape, numbers) in OPTIMIZERS.items()}}
    for name, (optimizer, shape, numbers) in OPTIMIZERS.items():
        row, = resolve([Spec("w", "hidden", shape)], Hyperparameters(optimizer=optimizer))
        row = row._replace(shape_factor=1.0, **{"shrink": 0.0} | {
            key: x for key, x in numbers.items() if key in row._fields})
        settings = optim.Settings(**{
            key: x for key, x in numbers.items() if key in optim.Settings._fields})
        given, params = case["inputs"][name]["gradients"], {"w": draw(201, shape).astype(dtype)}
        if optimizer == "muon":
            coefficients = orthogonalize.COEFFICIENTS[settings.coefficients]
            case["inputs"][name] |= {"newton_schulz": orthogonalize.triples_of(None, coefficients),
                                     "newton_schulz_safety": coefficients.safety}
        state = optim.Optimizer([row], params, settings)
        case[name] = {}
        for t, (seed, size, factor) in enumerate(zip(given["seeds"], given["sizes"], factors)):
            state.step(params, {"w": (size * draw(seed, shape)).astype(dtype)}, t, factor)
            case[name][f"w after step {t + 1}"] = digest(params["w"])
    return case
