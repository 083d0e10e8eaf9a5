"""Writes the test vectors for ports, tests/vectors/*.json: `python tests/make_vectors.py`.

A case holds a config, its resolved run (`python -m tinymup --format json`), token ids, and digests
of what a program computes, in the order of computation. No weights are stored: parameter number r
(from 1) is mean + std · z, with z from the generator `minstd` below, seeded with r. Its three lines
give the same doubles in every language. op_vectors.py has the vectors of single operations.

The constants are loud on purpose. With the defaults a wrong ε changes a result by 1e-6, and swapped
fans by nothing where all ratios are equal. Here the sizes differ from their base by the ratios 2.4
(width), 1.5 (depth), 3 (heads) and 2.67 (SwiGLU's width), and ε is as large as many gradients.
mistakes.py shows that 180 mistakes of a port are noticed.
"""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tinymup import optim, orthogonalize  # noqa: E402
from tinymup.lab.config import Config, build, complete, settings  # noqa: E402
from tinymup.lab.resolved import resolved  # noqa: E402
from tinymup.lab.vectors import digest  # noqa: E402

FOLDER = ROOT / "tests/vectors"


def minstd(seed, count):
    """u ← 48271 · u mod 2³¹ − 1, starting with u = seed; returns the next count values of u."""
    values = []
    for _ in range(count):
        seed = 48271 * seed % (2**31 - 1)
        values.append(seed)
    return values


def draw(seed, shape):
    """z = √12 · (u/(2³¹ − 1) − ½), with mean 0 and variance 1, in the order of rows."""
    u = np.array(minstd(seed, int(np.prod(shape))))
    return (np.sqrt(12) * (u / (2**31 - 1) - 0.5)).reshape(shape)


def parameters(rows, dtype="float64"):
    """The initial parameters of a case."""
    return {row.name: (row.mean + row.std * draw(number, row.shape)).astype(dtype)
            for number, row in enumerate(rows, 1)}


def tokens(config):
    """ids (steps, batch, seq + 1) in 0 … 255, from the generator with seed 2³⁰."""
    shape = (config.steps, config.batch, config.seq + 1)
    return (np.array(minstd(2**30, int(np.prod(shape)))) % 256).reshape(shape)


def run(config):
    """A case: what the program of a complete config computes."""
    network, ids = build(config), tokens(config)
    params = parameters(network.rows, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    case = {"config": resolved(config)["config"], "resolved": resolved(config),
            "ids": ids.tolist(), "init": digests(params)}
    losses = []
    for step, batch in enumerate(ids):
        seen, largest = {}, {}
        loss, grads = network.loss_and_gradients(
            params, batch[:, :-1], batch[:, 1:], lambda name, x: seen.update({name: digest(x)}),
            largest)
        if step == 0:
            case["activations"], case["loss"] = seen, float(loss)
            case["gradients"] = digests(grads)
            squares = sum((grads[r.name]**2).sum() / r.mult**2 for r in network.rows)
            case["effective_gradient_norm"] = float(np.sqrt(squares))
        if config.clip:
            optim.clip(grads, network.rows, config.clip)
        if step == 0 and config.optimizer.startswith("muon"):
            case["orthogonalized"] = orthogonalized(network.rows, grads, settings(config))
        factor = optim.schedule(config.schedule, step, config.steps, config.warmup)
        optimizer.step(params, grads, step, factor)
        if config.optimizer == "muonclip":
            optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
        losses.append(float(loss))
        if step == 0:
            case["after_first_step"] = digests(params)
    return case | {"after_last_step": digests(params), "losses": losses}


def orthogonalized(rows, grads, s):
    """O of the first step for the last of Muon's matrices, which has no heads."""
    row = [row for row in rows if row.optimizer == "muon"][-1]
    m, u = np.zeros(row.shape), np.empty(row.shape)
    optim.momentum(m, grads[row.name], u, **optim.momentum_numbers(s))
    o = orthogonalize.newton_schulz(u, s.newton_schulz_steps,
                                    orthogonalize.COEFFICIENTS[s.coefficients])
    return {row.name: digest(o)}


def digests(arrays):
    """The digest of each array of a dict."""
    return {name: digest(array) for name, array in arrays.items()}


SMALL = Config(width=24, head_dim=6, depth=3, steps=5, warmup=2, batch=5, seq=7, dtype="float64",
               eps=1e-2, weight_decay=0.05, lr=0.05, betas=(0.8, 0.9))
LOUD = replace(SMALL, base_width=10, base_head_dim=2, base_depth=2, embed_mult=0.45, attn_mult=1.3,
               output_mult=1.7, init_scale=0.8)
FULL = replace(LOUD, ffn="swiglu", gains=True, biases=True)
MUON = dict(optimizer="muon", lr=0.1, adam_lr=0.03, momentum=0.9)
UNIT = replace(SMALL, param="umup", ffn="swiglu", gains=True, biases=True, alpha_attn=1.3,
               alpha_ffn=0.7, alpha_res=0.6, alpha_res_ratio=1.7, alpha_loss=1.4, lr=0.3, eps=0.5)
MLP = replace(LOUD, model="mlp", head_dim=32, base_head_dim=None, base_depth=None, embed_mult=1.0,
              attn_mult=1.0)
SGD = dict(optimizer="sgd", lr=0.3, momentum=0.9, nesterov=True, betas=(0.9, 0.99), eps=1e-8)

CASES = {
    "mup-adamw-swiglu-completep-coupled": replace(FULL, depth_rule="completep",
                                                  decay_form="coupled"),
    "mup-adamw-gelu-tied-clip": replace(LOUD, tied=True, gains=True, biases=True, clip=0.3),
    "mup-adamw-gelu-untied-independent": replace(LOUD, schedule="cosine", embed_mult=0.02),
    "mup-sgd-nesterov-depth-mup": replace(FULL, depth_rule="depth-mup", **SGD),
    "mup-muon-spectral": replace(FULL, **MUON, attn_mult=1e-3),
    "mup-muon-per-head-moonlight": replace(FULL, muon_per_head=True, muon_scale="moonlight",
                                           nesterov=False, depth_rule="depth-mup", **MUON),
    "mup-muon-keller-polar-express-sum": replace(
        FULL, muon_scale="keller", coefficients="polar-express", momentum_form="sum", clip=0.3,
        decay_form="coupled", depth_rule="completep", **MUON),
    "mup-muonclip": replace(FULL, qk_clip_threshold=0.05, **MUON | {"optimizer": "muonclip"}),
    "sp-adamw": replace(FULL, param="sp"),
    "sp-sgd-completep": replace(FULL, param="sp", depth_rule="completep", **SGD | {"lr": 0.1}),
    "ntk-adamw": replace(FULL, param="ntk"),
    "mup-table3-adamw": replace(FULL, param="mup-table3", depth_rule="depth-mup"),
    "mup-adamw": FULL,
    "mup-table9-adamw": replace(FULL, param="mup-table9"),
    "umup-adamw": UNIT,
    "umup-sgd": replace(UNIT, **SGD | {"lr": 0.1}),
    "umup-muon": replace(UNIT, **MUON),
    "umup-adamw-gelu": replace(UNIT, ffn="gelu", schedule="wsd", steps=8, warmup=1),
    "mlp-sgd": replace(MLP, ffn="relu", **SGD),
    "mlp-adamw": replace(MLP, ffn="gelu", zero_readout=False),
}


def text(case):
    """A case as JSON, one entry of a section per line."""
    def lines(value):
        if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
            return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}"
                                      for k, v in value.items()) + "}"
        return json.dumps(value, ensure_ascii=False)
    return "{" + ",\n".join(f"{json.dumps(key)}: {lines(value)}"
                            for key, value in case.items()) + "}\n"


def everything():
    """name → text of every vector file."""
    import op_vectors                                             # which imports `draw` from here

    found = {name: {"case": name} | run(complete(config)) for name, config in CASES.items()}
    found |= {case["case"]: case for case in (op_vectors.operations(), op_vectors.formats(),
                                              op_vectors.optimizers())}
    return {name: text(case) for name, case in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, lines in everything().items():
        (FOLDER / f"{name}.json").write_text(lines, encoding="utf-8")
