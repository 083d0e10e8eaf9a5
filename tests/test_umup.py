"""u-μP in the ops and the networks: unit scale, gradients, the reference library's decoder, number formats; and the depth rules."""
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import test_device
import train
from gradients import TOLERANCE, H, directional_error
from tinymup import coord_check, data, network, ops, optim, scaling, transformer
from tinymup import unit_scaling as us
from tinymup.initialize import initialize
from tinymup.network import BASE, UNIT_ONLY, Config, build, complete
from tinymup.number_formats import FORMATS, MATMUL_FORMATS, quantize
from tinymup.scaling import DEPTH_RULES, MUP_TABLE3, MUP_TABLE8, ONE, PER_IN, PER_ROOT_IN, U_MUP, U_MUP_DEPTH, Power, Size, shifted

ALPHAS = (0.25, 0.5, 1, 2, 4)
TINY = Config(param="umup", width=8, head_dim=4, depth=2, dtype="float64", batch=2, seq=5)
TINY_MLP = Config(model="mlp", param="umup", width=8, depth=2, dtype="float64", batch=2, seq=5)
TEXT = np.random.default_rng(0).integers(0, 256, 20000).astype(np.uint8)
CORPUS = data.Corpus(TEXT[:18000], TEXT[18000:], "random")


def prepared(config, seed=0):
    """A network, its initial parameters and a batch of random bytes."""
    config = complete(config)
    net = build(config)
    ids, targets = np.random.default_rng(seed).integers(0, data.VOCAB, (2, config.batch, config.seq))
    return net, initialize(net.rows, seed, config.dtype), ids, targets


def watched(config):
    """name → what `watch` sees of the network at initialisation."""
    net, params, ids, targets = prepared(config)
    seen = {}
    net.loss_and_gradients(params, ids, targets, lambda name, x: seen.update({name: x}))
    return seen


# ── unit scale, op by op ─────────────────────────────────────────────────────────────────────────────────────────────

N, C, F, T, D = 1024, 128, 512, 64, 32   # rows, width, feed-forward width, time, head dimension


def through_linear(normal, fan_in, fan_out, mult):
    x, w, dy = normal(N, fan_in), normal(fan_in, fan_out), normal(N, fan_out)
    y, cache = ops.linear(x, w, mult)
    return {"y": y} | dict(zip(("dx", "dw"), ops.linear_backward(dy, cache)))


def through_embedding(normal, mult):
    ids = np.random.default_rng(1).integers(0, data.VOCAB, N)
    y, cache = ops.embedding(ids, normal(data.VOCAB, C), mult)
    return {"y": y, "dw": ops.embedding_backward(normal(N, C), cache)}


def through_gelu(normal, mult, alpha):
    y, cache = ops.gelu(normal(N, C), mult, alpha)
    return {"y": y, "dx": ops.gelu_backward(normal(N, C), cache)}


def through_relu(normal, mult, alpha):
    y, cache = ops.relu(normal(N, C), mult, alpha)
    return {"y": y, "dx": ops.relu_backward(normal(N, C), cache)}


def through_silu_gate(normal, mult, alpha):
    y, cache = ops.silu_gate(normal(N, C), normal(N, C), mult, alpha)
    return {"y": y} | dict(zip(("dx", "dg"), ops.silu_gate_backward(normal(N, C), cache)))


def through_attention(normal, mult, alpha):
    y, cache = ops.attention(*(normal(8, T, 4, D) for _ in "qkv"), alpha / D, mult)
    return {"y": y} | dict(zip(("dq", "dk", "dv"), ops.attention_backward(normal(8, T, 4, D), cache)))


def through_norm(normal, mult):
    n, c_norm = ops.rmsnorm(normal(N, C))
    y, c_gain = ops.gain(n, np.ones(C), mult)
    dn, dg = ops.gain_backward(normal(N, C), c_gain)
    return {"y": y, "dx": ops.rmsnorm_backward(dn, c_norm), "dgain": dg}


def through_bias(normal, mult):
    _, db = ops.bias_backward(normal(N, C), ops.bias(normal(N, C), np.zeros(C), mult)[1])
    return {"db": db}


def through_residual(normal, weight):
    """A branch with unit output; what comes back from it is unit too."""
    y, weight = ops.residual(normal(N, C), normal(N, C), weight)
    dskip, dbranch = ops.residual_backward(normal(N, C), weight)
    return {"y": y, "dbranch": dbranch, "dx": ops.residual_join(dskip, normal(N, C), weight)}


def through_cross_entropy(normal, factor):
    _, cache = ops.cross_entropy(normal(N, data.VOCAB) / C**0.5, np.random.default_rng(1).integers(0, data.VOCAB, N), 1.0, factor)
    return {"dlogits": ops.cross_entropy_backward(cache)}


LOOSE, TIGHT = (0.5, 2.0), (0.9, 1.1)
SMALL_BY_DESIGN = (0.0, 0.5)
FIRST, _ = us.residual(depth=1)
# op → (what it computes, its arguments under u-μP, the same without factors, {output or gradient: range of its std other than TIGHT}).
# Not tight: dx of an activation, because it must have y's factor (ReLU 1.21); dx of a constrained linear layer with fan_out = 4 fan_in.
# Small: a readout's y is 1/√C, which is μP; dq and dk shrink with the logits' 1/D, for which the library has no factor.
UNIT_SCALED = {
    "linear": (through_linear, (C, C, ops.Mult(*us.linear(C, C, N))), (C, C, ops.UNIT), {}),
    "linear, constrained": (through_linear, (C, F, ops.Mult(*us.linear(C, F, N))), (C, F, ops.UNIT), {"dx": (1.9, 2.1)}),
    "linear, up": (through_linear, (C, F, ops.Mult(*us.linear(C, F, N, constrained=False))), (C, F, ops.UNIT), {}),
    "linear, down": (through_linear, (F, C, ops.Mult(*us.linear(F, C, N, constrained=False))), (F, C, ops.UNIT), {}),
    "readout": (through_linear, (C, 256, ops.Mult(*us.linear_readout(C, 256, N))), (C, 256, ops.UNIT), {"y": SMALL_BY_DESIGN}),
    "embedding": (through_embedding, (ops.Mult(1, None, us.embedding(data.VOCAB, N)),), (ops.UNIT,), {}),
    **{f"gelu, α {a}": (through_gelu, (us.gelu(a), a), (1, a), {"dx": LOOSE}) for a in ALPHAS},
    **{f"relu, α {a}": (through_relu, (us.relu(a), a), (1, a), {"dx": LOOSE}) for a in (1,)},
    **{f"silu_gate, α {a}": (through_silu_gate, (us.silu_glu(a), a), (1, a), {}) for a in ALPHAS},
    **{f"attention, α {a}": (through_attention, (us.attention(a, D, T), a), (1, a), {"dq": SMALL_BY_DESIGN, "dk": SMALL_BY_DESIGN}) for a in ALPHAS[:-1]},
    "norm": (through_norm, (ops.Mult(1, 1, us.norm_gain(N)),), (ops.UNIT,), {"dgain": LOOSE}),                        # 128 numbers: ± 6 %
    "bias": (through_bias, (ops.Mult(1, 1, us.norm_gain(N)),), (ops.UNIT,), {"db": LOOSE}),
    "residual": (through_residual, (ops.Branch(FIRST[1], FIRST[0], 1.0, FIRST[0]),), (ops.Branch(1.0, 1.0, 1.0, 1.0),), {}),
    "cross-entropy": (through_cross_entropy, (us.cross_entropy(data.VOCAB),), (None,), {}),
}
# Which of them need no factor for a std within LOOSE: rows that are copied, a norm, a gradient handed on, a sum of two unit terms (1.41).
NEED_NONE = {("embedding", "y"), ("norm", "y"), ("norm", "dx"), ("residual", "dbranch"), ("residual", "y"), ("residual", "dx")}


def stds(op, unit=True):
    rng = np.random.default_rng(0)
    function, scaled, unscaled, _ = UNIT_SCALED[op]
    return {name: a.std() for name, a in function(lambda *shape: rng.standard_normal(shape), *(scaled if unit else unscaled)).items()}


@pytest.mark.parametrize("op", UNIT_SCALED)
def test_outputs_and_gradients_have_unit_scale(op):
    exceptions = UNIT_SCALED[op][3]
    for name, std in stds(op).items():
        low, high = exceptions.get(name, TIGHT)
        assert low < std < high, f"{name} has std {std:.3f}"


@pytest.mark.parametrize("op", UNIT_SCALED)
def test_without_their_factors_they_have_not(op):
    exceptions = UNIT_SCALED[op][3]
    scaled = stds(op)
    for name, std in stds(op, unit=False).items():
        if (op, name) in NEED_NONE:
            assert 0.5 < std < 2
        elif exceptions.get(name) != SMALL_BY_DESIGN and not op.startswith(("gelu", "relu", "silu")):
            assert not 0.5 < std < 2, f"{name} has std {std:.3f} without a factor"
        elif name == "y":
            assert abs(math.log(std)) > 5 * abs(math.log(scaled[name])) or op == "readout"


def test_a_residual_sum_keeps_unit_scale_only_with_its_weights():
    assert stds("residual")["y"] == pytest.approx(1, abs=0.02)
    assert stds("residual", unit=False)["y"] == pytest.approx(2**0.5, abs=0.02)


# ── unit scale, the whole network ────────────────────────────────────────────────────────────────────────────────────

def stream_rms(config):
    """RMS of the residual stream where each branch reads it, and at the end: from what the norms keep for their backward."""
    net, params, ids, _ = prepared(config)
    _, (_, caches, c_final, _, _) = net.model.forward(params, ids, net.architecture, net.scales)
    norms = [c for c_attention, _, c_ffn, _ in caches for c in (c_attention[0], c_ffn[0])] + [c_final]
    return [float((1 / inv**2).mean()**0.5) for (_, inv), _ in norms]


SHAPES = [(64, 2), (64, 16), (512, 2), (512, 16)]


@pytest.mark.parametrize("width, depth", SHAPES)
def test_the_residual_stream_starts_with_unit_rms_at_every_layer(width, depth):
    """Tokens on their own (sequences of 1), which is what the factors assume: independent values. Seen: 0.977 to 1.033."""
    rms = stream_rms(Config(param="umup", width=width, depth=depth, ffn="swiglu", batch=32 if width == 512 else 256, seq=1))
    assert len(rms) == 2 * depth + 1 and max(abs(r - 1) for r in rms) < 0.1


@pytest.mark.parametrize("param", ["sp", "mup"])
@pytest.mark.parametrize("width, depth", SHAPES[:3])
def test_under_sp_and_mup_the_stream_grows_with_every_branch(param, width, depth):
    rms = stream_rms(Config(param=param, width=width, depth=depth, ffn="swiglu", batch=64, seq=1))
    assert rms[-1] > 1.5 and rms[-1] / rms[0] > 0.9 * math.sqrt(1 + depth)          # seen: 1.96 and 4.56


@pytest.mark.parametrize("width, depth", SHAPES[:3])
def test_attention_over_like_tokens_makes_the_stream_larger_but_not_deeper_networks_explode(width, depth):
    """From the second block on, neighbouring tokens have averaged the same values: they are alike, and their mean shrinks less than the
    factor of `unit_scaling.attention` makes up for. The reference library does the same: 1.33 at depth 2 and 1.80 at depth 16."""
    rms = stream_rms(Config(param="umup", width=width, depth=depth, ffn="swiglu", batch=4))
    assert rms[1] == pytest.approx(1, abs=0.1) and 1.2 < max(rms) < 2               # seen: 1.30, 1.72, 1.29


def test_gradients_of_all_weights_start_near_one_under_u_mup_and_tiny_under_mup():
    """Not exactly 1, for they are not independent of the activations; those of queries and keys shrink with the logits' 1/D."""
    sizes = {}
    for param in ("umup", "mup"):
        net, params, ids, targets = prepared(Config(param=param, width=128))
        sizes[param] = {name: float((g * g).mean()**0.5) for name, g in net.loss_and_gradients(params, ids, targets)[1].items()}
    assert all(0.05 < size < 0.2 if name.endswith(("query", "key")) else 0.5 < size < 2 for name, size in sizes["umup"].items())
    assert all(size < 0.002 for size in sizes["mup"].values())


# ── gradients ────────────────────────────────────────────────────────────────────────────────────────────────────────

IDS, TARGETS = np.array([2, 0, 2, 4, 1]), np.array([0, 6, 3, 3, 2])
MULT = ops.Mult(*us.linear(6, 7, 5, constrained=False))
READOUT = ops.Mult(*us.linear_readout(6, 7, 5))
EMBEDDING = ops.Mult(1.0, None, us.embedding(5, len(IDS)))
SPLIT = ops.Branch(skip=0.8, amount=0.6, enter=1.0, leave=0.6)


def cosine_branch(x, weight):
    """x ← skip · x + amount · cos(x), to see what a residual join makes of a gradient."""
    y, weight = ops.residual(x, np.cos(x), weight)
    return y, (x, weight)


def cosine_branch_backward(dy, cache):
    x, weight = cache
    dskip, dbranch = ops.residual_backward(dy, weight)
    return ops.residual_join(dskip, -np.sin(x) * dbranch, weight)


# op → (the unscaled function, the pair under u-μP, its backward, shapes of the inputs, β of each of them)
BETAS = {
    "linear": (lambda x, w: x @ w, lambda x, w: ops.linear(x, w, MULT), ops.linear_backward, [(5, 6), (6, 7)], (7**-0.5, 5**-0.5)),
    "readout": (lambda x, w: x @ w, lambda x, w: ops.linear(x, w, READOUT), ops.linear_backward, [(5, 6), (6, 7)], (7**-0.5, 5**-0.5)),
    "embedding": (lambda w: w[IDS], lambda w: ops.embedding(IDS, w, EMBEDDING), ops.embedding_backward, [(5, 3)], (1.0,)),
    "bias": (lambda x, b: x + b, lambda x, b: ops.bias(x, b, ops.Mult(1, 1, us.norm_gain(5))), ops.bias_backward, [(5, 3), (3,)], (1, 5**-0.5)),
    "gain": (lambda x, g: x * g, lambda x, g: ops.gain(x, g, ops.Mult(1, 1, us.norm_gain(5))), ops.gain_backward, [(5, 3), (3,)], (1, 5**-0.5)),
    "gelu": (lambda x: ops.gelu(x, 1.0, 2.0)[0], lambda x: ops.gelu(x, us.gelu(2.0), 2.0), ops.gelu_backward, [(5, 6)], (1.728546,)),
    "silu_gate": (lambda x, g: x * g / (1 + np.exp(-2 * g)), lambda x, g: ops.silu_gate(x, g, us.silu_glu(2.0), 2.0), ops.silu_gate_backward,
                  [(5, 6), (5, 6)], (1.515717, 1.515717)),
    "attention": (lambda q, k, v: ops.attention(q, k, v, 1 / 16)[0], lambda q, k, v: ops.attention(q, k, v, 1 / 16, us.attention(1.0, 16, 64)),
                  ops.attention_backward, [(1, 64, 1, 16)] * 3, (3.841221,) * 3),
    "residual": (lambda x: 0.8 * x + 0.6 * np.cos(x), lambda x: cosine_branch(x, SPLIT), cosine_branch_backward, [(5, 6)], (1.0,)),
}


@pytest.mark.parametrize("op", BETAS)
def test_a_unit_scaled_gradient_is_beta_times_that_of_the_unscaled_op(op):
    """β as FORMULAS §3.3 prints it, to six digits where it is a number; the gradient to the last."""
    rng = np.random.default_rng(0)
    unscaled, forward, backward, shapes, printed = BETAS[op]
    inputs = [rng.standard_normal(shape) for shape in shapes]
    y, cache = forward(*inputs)
    dy = rng.standard_normal(y.shape)
    grads = backward(dy, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    for i, (x, g, beta) in enumerate(zip(inputs, grads, printed, strict=True)):
        f = lambda moved, i=i: (dy * unscaled(*inputs[:i], moved, *inputs[i + 1:])).sum()
        u = rng.standard_normal(x.shape)
        ratio = np.vdot(g, u) / (f(x + 1j * H * u).imag / H)
        assert ratio == pytest.approx(beta, abs=1e-6)
        assert directional_error(f, g / ratio, x, rng) < TOLERANCE                  # along another direction: the same ratio


@pytest.mark.parametrize("alpha", (1.0, 3.0))
def test_gradient_of_the_loss_knows_neither_the_number_of_tokens_nor_alpha(alpha):
    """β V/√(V−1) times the gradient of the summed loss with respect to z = α · logits."""
    logits = np.random.default_rng(0).standard_normal((5, 7))
    loss, cache = ops.cross_entropy(logits, TARGETS, alpha, us.cross_entropy(7))
    grad = ops.cross_entropy_backward(cache)
    assert loss == ops.cross_entropy(alpha * logits, TARGETS)[0]                    # the loss itself is not scaled
    f = lambda z: 5 * ops.cross_entropy(z, TARGETS)[0]
    assert directional_error(f, grad / (7 / 6**0.5), alpha * logits, np.random.default_rng(1)) < TOLERANCE


def ratios(net, params, ids, targets, name, directions=4):
    """u·gradient over the loss's true derivative along several random u, for one parameter."""
    grad = net.loss_and_gradients(params, ids, targets)[1][name]
    found = []
    for u in np.random.default_rng(2).standard_normal((directions, *grad.shape)):
        found.append(np.vdot(grad, u) * H / net.loss(params | {name: params[name] + 1j * H * u}, ids, targets).imag)
    return np.array(found)


def moved(config):
    net, params, ids, targets = prepared(config)
    rng = np.random.default_rng(3)
    return net, {name: w + 0.3 * rng.standard_normal(w.shape) for name, w in params.items()}, ids, targets


@pytest.mark.parametrize("config", [TINY, replace(TINY, ffn="swiglu", gains=True, biases=True), replace(TINY, ffn="relu"), TINY_MLP,
                                    replace(TINY, alpha_attn=2.0, alpha_ffn=0.5, alpha_res=0.5, alpha_res_ratio=2.0, alpha_loss=3.0)],
                         ids=["gelu", "swiglu, gains, biases", "relu", "mlp", "alphas"])
def test_every_weights_gradient_is_the_true_one_times_a_constant(config):
    """Which Adam does not feel. It holds because paths that meet carry equal factors: along the stream, and from up and gate."""
    net, params, ids, targets = moved(config)
    for name in params:
        r = ratios(net, params, ids, targets, name)
        assert np.ptp(r) < 1e-9 * r.mean()          # seen: 3e-12; the true derivative along a u may be small
        assert not math.isclose(r[0], 1, rel_tol=1e-3)


def test_an_unconstrained_layer_on_the_stream_would_bend_the_gradient():
    """The value matrix beside query and key: with a dx factor of its own the sum of the three is no multiple of the truth."""
    net, params, ids, targets = moved(TINY)
    mult = net.scales.mult["block1.value"]._replace(dx=1.0)
    bent = net._replace(scales=net.scales._replace(mult=net.scales.mult | {"block1.value": mult}))
    r = ratios(bent, params, ids, targets, "embedding")
    assert np.ptp(r) > 1e-3 * abs(r.mean())


# ── the reference library's decoder ──────────────────────────────────────────────────────────────────────────────────

REFERENCE = json.loads((Path(__file__).parent / "data/unit_scaling_decoder.json").read_text())


@pytest.fixture
def reference(monkeypatch):
    """Our Transformer as the decoder of unit-scaling 0.3.5 that data/make_unit_scaling_decoder.py ran, its weights and its batch.

    Where we differ on purpose is undone here and nowhere else: that decoder has no positions, 11 tokens and ε = 1e-5 in its norms.
    Ours has byte tokens, RoPE, ε = 1e-6.
    """
    size, settings = REFERENCE["sizes"], REFERENCE["adamw"]
    for module in (network, transformer):
        monkeypatch.setattr(module, "VOCAB", size["vocab"])
    monkeypatch.setattr(ops, "rope", lambda x, angles: (x, angles))
    monkeypatch.setattr(ops, "rope_backward", lambda dy, angles: dy)
    monkeypatch.setattr(ops.rmsnorm, "__defaults__", (1e-5,))
    config = complete(Config(param="umup", ffn="swiglu", width=size["width"], depth=size["depth"], head_dim=size["width"] // size["heads"],
                             batch=size["batch"], seq=size["seq"], dtype="float64", lr=settings["lr"], betas=tuple(settings["betas"]),
                             eps=settings["eps"], weight_decay=settings["weight_decay"]))
    net = build(config)
    params = {row.name: np.array(REFERENCE["weights"][row.name]) for row in net.rows}
    assert all(params[row.name].shape == row.shape for row in net.rows) and params.keys() == REFERENCE["weights"].keys()
    return config, net, params, np.array(REFERENCE["tokens"]), np.array(REFERENCE["targets"])


def assert_equal(got, wanted):
    """Seen: at most 3e-14 of the largest entry."""
    wanted = np.array(wanted)
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_logits_loss_and_gradients_are_the_reference_librarys(reference):
    _, net, params, ids, targets = reference
    assert_equal(net.logits(params, ids), REFERENCE["logits"])
    loss, grads = net.loss_and_gradients(params, ids, targets)
    assert loss == pytest.approx(REFERENCE["loss_before_each_step"][0], rel=1e-13)
    for name in params:
        assert_equal(grads[name], REFERENCE["gradients"][name])


def test_factors_of_the_table_are_the_reference_librarys(reference):
    _, net, *_ = reference
    for row in net.rows:
        assert row.lr / REFERENCE["adamw"]["lr"] == pytest.approx(REFERENCE["lr_factor"][row.name], rel=1e-14)
        if row.name != "embedding":
            assert net.scales.mult[row.name].dx == pytest.approx(REFERENCE["input_gradient_factor"][row.name], rel=1e-14)


def test_adamw_steps_are_the_reference_librarys(reference):
    config, net, params, ids, targets = reference
    optimizer, losses = optim.Optimizer(net.rows, params, config), []
    for step in range(REFERENCE["adamw"]["steps"]):
        loss, grads = net.loss_and_gradients(params, ids, targets)
        losses.append(loss)
        optimizer.step(params, grads, step, 1.0)
    assert losses == pytest.approx(REFERENCE["loss_before_each_step"], rel=1e-12)
    for name, w in params.items():
        assert_equal(w, REFERENCE["weights_after"][name])


@pytest.mark.parametrize("name, cut", [("block0.value", dict(dx=1.0)), ("block1.down", dict(dx=16**-0.5)), ("output", dict(dx=8**-0.5)), ("block0.up", dict(dw=1.0))])
def test_another_factor_is_seen_in_the_gradients(reference, name, cut):
    """Among them the slides' readout factor 1/√fan_in, where the library has 1/√fan_out, and an FFN under the constraint."""
    _, net, params, ids, targets = reference
    changed = net._replace(scales=net.scales._replace(mult=net.scales.mult | {name: net.scales.mult[name]._replace(**cut)}))
    grads = changed.loss_and_gradients(params, ids, targets)[1]
    assert max(np.abs(grads[n] - REFERENCE["gradients"][n]).max() / np.abs(REFERENCE["gradients"][n]).max() for n in params) > 0.01


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────

def test_hidden_and_output_cells_are_those_of_mup_shifted():
    assert U_MUP["hidden"][:2] == shifted(MUP_TABLE8["hidden"], PER_ROOT_IN)[:2] and U_MUP["hidden"].adamw == shifted(MUP_TABLE8["hidden"], PER_ROOT_IN).adamw
    assert U_MUP["output"][:2] == shifted(MUP_TABLE3["output"], PER_IN)[:2] and U_MUP["output"].adamw == shifted(MUP_TABLE3["output"], PER_IN).adamw


def test_only_the_embeddings_learning_rate_is_new():
    assert U_MUP["embedding"][:2] == MUP_TABLE8["embedding"][:2]
    assert U_MUP["embedding"].adamw == MUP_TABLE8["embedding"].adamw.times(Power(fan_out=-1/2))


@pytest.mark.parametrize("width", (16, 64, 1024))
@pytest.mark.parametrize("ffn", ("gelu", "swiglu"))
def test_multipliers_of_rows_and_forward_factors_agree(width, ffn):
    net = build(complete(Config(param="umup", width=width, head_dim=8, ffn=ffn, gains=True, biases=True)))
    for row in net.rows:
        assert row.std in (0.0, 1.0) and net.scales.mult[row.name].y == pytest.approx(row.mult, rel=1e-15)
        if len(row.shape) == 2 and row.role in ("hidden", "output"):
            factor = us.linear if row.role == "hidden" else us.linear_readout
            assert factor(*row.shape, rows=1)[0] == pytest.approx(U_MUP[row.role].mult.at(Size(*row.shape)), rel=1e-15)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learning_rates_of_rows_are_the_printed_table(optimizer):
    """FORMULAS §3.1 and §3.5: SGD has Adam's column, gradients being of unit scale; 1/√depth inside the blocks."""
    rows = {row.name: row for row in build(complete(Config(param="umup", optimizer=optimizer, width=64, depth=4, lr=1.0, gains=True, biases=True))).rows}
    wanted = {"embedding": 1 / 8, "block2.query": 1 / 8 / 2, "block3.up": 1 / 8 / 2, "block0.down": 1 / 16 / 2, "output": 1, "output.bias": 1,
              "final_norm": 1, "block1.ffn_norm": 1 / 2, "block1.key.bias": 1 / 2}
    assert {name: rows[name].lr for name in wanted} == pytest.approx(wanted, rel=1e-14)
    assert {row.eps for row in rows.values()} == {1e-8}                             # ε is constant


def test_muon_moves_a_unit_scaled_matrix_as_it_moves_mups():
    """A·lr·s, the spectral norm of the effective step, is the same up to u-μP's 1/√depth."""
    steps = []
    for param in ("umup", "mup"):
        rows = build(complete(Config(param=param, optimizer="muon", width=256, lr=1.0))).rows
        steps.append(np.array([r.mult * r.lr * r.shape_factor for r in rows if r.optimizer == "muon"]))
    assert steps[0] * math.sqrt(2) == pytest.approx(steps[1], rel=1e-14)


# ── hyperparameters ──────────────────────────────────────────────────────────────────────────────────────────────────

FOREIGN = [*BASE, "init_scale", "embed_mult", "attn_mult", "output_mult"]


@pytest.mark.parametrize("name", FOREIGN)
def test_u_mup_knows_no_base_model_and_no_multipliers(name, capsys):
    with pytest.raises(ValueError, match="umup") as error:
        complete(replace(Config(param="umup"), **{name: 64 if name in BASE else 2.0}))
    assert network.flag(name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(SystemExit) as stop:
        train.main(["--param", "umup", network.flag(name), "64", "--explain"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_u_mup_takes_no_depth_rule_because_it_has_one():
    with pytest.raises(ValueError, match="--depth-rule means nothing to --param umup"):
        complete(Config(param="umup", depth_rule="completep"))


@pytest.mark.parametrize("param", ["sp", "ntk", "mup", "mup-table3", "mup-table9"])
@pytest.mark.parametrize("name", UNIT_ONLY)
def test_the_alphas_belong_to_u_mup_alone(name, param):
    with pytest.raises(ValueError, match=f"{network.flag(name)} means nothing to --param {param}"):
        complete(replace(Config(param=param), **{name: 2.0}))


@pytest.mark.parametrize("alpha", (0.25, 4.0))
def test_alpha_attn_multiplies_the_attention_logits(alpha):
    plain, changed = build(complete(TINY)).scales, build(complete(replace(TINY, alpha_attn=alpha))).scales
    assert changed == plain._replace(attention=alpha / 4, attention_out=us.attention(alpha, 4, 5)) and plain.attention == 1 / 4
    logits = [ops.attention_logits(watched(replace(TINY, alpha_attn=a))["block0.attention_logits"]) for a in (1.0, alpha)]
    np.testing.assert_allclose(logits[1], alpha * logits[0], rtol=1e-13)


@pytest.mark.parametrize("ffn, factor", [("gelu", us.gelu), ("swiglu", us.silu_glu)])
@pytest.mark.parametrize("alpha", (0.25, 4.0))
def test_alpha_ffn_sharpens_the_activation_and_keeps_its_scale(alpha, ffn, factor):
    config = replace(TINY, ffn=ffn)
    plain, changed = build(complete(config)).scales, build(complete(replace(config, alpha_ffn=alpha))).scales
    assert changed == plain._replace(activation=factor(alpha), activation_alpha=alpha)
    z = np.linspace(-3, 3, 20)
    act = (lambda z, *s: ops.gelu(z, *s)[0]) if ffn == "gelu" else (lambda z, *s: ops.silu_gate(np.ones_like(z), z, *s)[0])
    np.testing.assert_allclose(act(z, changed.activation, alpha), factor(alpha) / alpha * act(alpha * z, 1.0, 1.0), rtol=1e-12)


@pytest.mark.parametrize("alpha", (0.25, 4.0))
def test_alpha_loss_multiplies_the_logits_of_loss_and_sampling(alpha):
    (net, params, ids, targets), (changed, *_) = prepared(TINY), prepared(replace(TINY, alpha_loss=alpha))
    assert changed.scales == net.scales._replace(logits=alpha)                      # dlogits has no α: gradients keep unit scale
    np.testing.assert_allclose(changed.logits(params, ids), alpha * net.logits(params, ids), rtol=1e-13)
    assert changed.loss(params, ids, targets) == pytest.approx(ops.cross_entropy(alpha * net.logits(params, ids), targets.reshape(-1))[0], rel=1e-14)


@pytest.mark.parametrize("alpha_res, ratio, shares", [(1, 1, (1/3, 1/12, 1/12)), (0.5, 2, (2/3, 1/15, 1/60)), (2, 0.5, (1/9, 2/45, 8/45))])
def test_alpha_res_and_its_ratio_set_what_each_branch_contributes(alpha_res, ratio, shares):
    """Of embedding, of one attention and of one feed-forward branch, to the variance at the end of four blocks (FORMULAS §3.4)."""
    config = Config(param="umup", depth=4, ffn="swiglu", batch=512, seq=1, alpha_res=alpha_res, alpha_res_ratio=ratio)
    seen, branches = watched(config), build(complete(config)).scales.branches
    names = ["embedding"] + [f"block{i}.{branch}" for i in range(4) for branch in ("attention", "ffn")]
    parts = []                                                      # what each has become at the end of the stream
    for i, name in enumerate(names):
        weight = math.prod([branches[i - 1].amount if i else 1.0, *(b.skip for b in branches[i:])])
        parts.append(weight * seen[name])
    assert [part.var() for part in parts] == pytest.approx([shares[0]] + 4 * list(shares[1:]), rel=0.1)
    assert sum(parts).var() == pytest.approx(1, rel=0.1)            # they are independent: their variances add up
    assert all(b.skip**2 + b.amount**2 == pytest.approx(1) and b.enter == 1 and b.leave == b.amount for b in branches)


# ── matrix products in low precision ─────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name", MATMUL_FORMATS)
def test_a_linear_layer_multiplies_rounded_operands_and_scales_afterwards(name):
    """FORMULAS §3.6: x and w in E4M3, dy in E5M2; the two operands that a backward product meets again are rounded as in the forward."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 24), (24, 56), (40, 56)))
    operand, gradient = MATMUL_FORMATS[name]
    mult = ops.Mult(3.0, 5.0, 7.0, MATMUL_FORMATS[name])
    y, cache = ops.linear(x, w, mult)
    dx, dw = ops.linear_backward(dy, cache)
    qx, qw, qdy = quantize(x, operand), quantize(w, operand), quantize(dy, gradient)
    for got, wanted in ((y, 3 * (qx @ qw)), (dx, 5 * (qdy @ qw.T)), (dw, 7 * (qx.T @ qdy))):
        np.testing.assert_array_equal(got, wanted)
    assert not np.array_equal(y, 3 * (x @ w)) and not np.array_equal(qx, x)         # x and w themselves are left alone


CAST = {"transformer": (Config(), ("query", "key", "value", "up")), "swiglu": (Config(ffn="swiglu"), ("query", "key", "value", "gate", "up")),
        "mlp": (Config(model="mlp"), ("hidden0", "hidden1"))}


@pytest.mark.parametrize("param", ["sp", "mup", "umup"])
@pytest.mark.parametrize("model", CAST)
@pytest.mark.parametrize("name", MATMUL_FORMATS)
def test_last_projections_embedding_and_readout_stay_in_high_precision(name, model, param):
    config, cast = CAST[model]
    low = {n for n, mult in build(complete(replace(config, param=param, matmul_format=name))).scales.mult.items() if mult.formats}
    assert {n.split(".")[-1] for n in low} == set(cast)
    assert all(build(complete(replace(config, param=param))).scales.mult[n].formats is None for n in low)


def test_about_seven_tenths_of_a_swiglu_blocks_products_are_cast():
    net = build(complete(Config(width=768, ffn="swiglu", matmul_format="fp8")))
    size = {row.name: math.prod(row.shape) for row in net.rows if row.role == "hidden"}
    assert sum(n for name, n in size.items() if net.scales.mult[name].formats) / sum(size.values()) == pytest.approx(25 / 36, rel=0.01)


def test_a_step_rounds_each_cast_matrix_twice_forward_and_once_backward(monkeypatch):
    calls = []
    monkeypatch.setattr(ops, "quantize", lambda x, format: calls.append((x.shape, format)) or quantize(x, format))
    net, params, ids, targets = prepared(Config(param="umup", width=32, batch=2, seq=8, depth=1, matmul_format="fp8"))
    net.loss_and_gradients(params, ids, targets)
    e4m3, e5m2 = FORMATS["fp8-e4m3"], FORMATS["fp8-e5m2"]
    square = [((16, 32), e4m3), ((32, 32), e4m3)]
    assert calls == 3 * square + [((16, 32), e4m3), ((32, 128), e4m3)] + [((16, 128), e5m2)] + 3 * [((16, 32), e5m2)]


def lost(config):
    """The largest share of the entries of an incoming gradient that E5M2 rounds to zero, over the cast matrices.

    Entries that are but float32's rounding (the first position's query has one key to look at, hence no gradient) are not counted.
    """
    shares = []

    def count(x, format):
        y = quantize(x, format)
        if format == FORMATS["fp8-e5m2"]:
            entries = abs(x) > 1e-5 * x.std()
            shares.append(1 - np.count_nonzero(y[entries]) / entries.sum())
        return y
    net, params, ids, targets = prepared(replace(config, matmul_format="fp8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "quantize", count)
        net.loss_and_gradients(params, ids, targets)
    return max(shares)


def test_fp8_loses_next_to_no_gradient_under_u_mup_and_most_under_sp_and_mup():
    """What unit scaling is for: 16 × 64 tokens, width 128. Seen: 0.004; 0.77 and 0.81."""
    assert lost(Config(param="umup")) < 0.01
    assert lost(Config(param="sp")) > 0.5 < lost(Config(param="mup"))


# ── depth ────────────────────────────────────────────────────────────────────────────────────────────────────────────

DEPTHS = (2, 8, 32)
# Learning rates so small that the change of the last norm's output, which cannot exceed 2, is far from that.
RATES = {"adamw": dict(lr=2**-14), "sgd": dict(lr=2**-13), "muon": dict(lr=2**-9, adam_lr=2**-14)}
UNIT_RATES = {"adamw": dict(lr=2**-8), "sgd": dict(lr=2**-10), "muon": dict(lr=2**-10, adam_lr=2**-10)}


def depth_slope(**options):
    """d log2 RMS(Δx) / d log2 depth after two steps, x the stream's end as the readout sees it: a coordinate check over depth.

    Short sequences: where attention averages over many tokens they grow alike with depth, branches no longer add up like independent
    terms, and the rules with α = ½ (u-μP's among them) keep a slope of 0.1 to 0.2; 0.3 to 0.4 with sequences of 32. α = 1 does not care.
    """
    config = Config(width=64, batch=8, seq=8, warmup=0, **options)
    means = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coord_check, "spectral_norm", lambda w: 0.0)  # not asked for here, and slow
        for depth in DEPTHS:
            found = [m for seed in (0, 1) for m in coord_check.measure_one(complete(replace(config, depth=depth, seed=seed)), CORPUS, steps=2)]
            means.append(np.mean([m.rms for m in found if (m.quantity, m.name, m.step) == ("Δx", "final_norm", 2)]))
    assert max(means) < 0.5
    return np.polyfit(np.log2(DEPTHS), np.log2(means), 1)[0]


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("rule", ["depth-mup", "completep"])
def test_updates_keep_their_size_with_depth_under_the_depth_rules(rule, optimizer):
    assert abs(depth_slope(optimizer=optimizer, depth_rule=rule, **RATES[optimizer])) < coord_check.TOLERANCE


@pytest.mark.parametrize("optimizer", RATES)
def test_without_a_depth_rule_updates_grow_with_depth(optimizer):
    assert depth_slope(optimizer=optimizer, **RATES[optimizer]) > 1.5 * coord_check.TOLERANCE


@pytest.mark.parametrize("optimizer", UNIT_RATES)
def test_updates_keep_their_size_with_depth_under_u_mup(optimizer):
    assert abs(depth_slope(param="umup", optimizer=optimizer, **UNIT_RATES[optimizer])) < coord_check.TOLERANCE


# AdamW and Muon under CompleteP and SGD under Depth-μP have no lr rule to remove.
@pytest.mark.parametrize("rule, optimizer, cell", [
    ("depth-mup", "adamw", "branch"), ("depth-mup", "adamw", "adamw"), ("depth-mup", "sgd", "branch"), ("depth-mup", "muon", "branch"),
    ("depth-mup", "muon", "muon"), ("completep", "adamw", "branch"), ("completep", "sgd", "sgd"), ("completep", "sgd", "branch"), ("completep", "muon", "branch")])
def test_a_removed_depth_rule_is_caught(rule, optimizer, cell, monkeypatch):
    monkeypatch.setitem(DEPTH_RULES, rule, DEPTH_RULES[rule]._replace(**{cell: ONE}))
    assert abs(depth_slope(optimizer=optimizer, depth_rule=rule, **RATES[optimizer])) > coord_check.TOLERANCE


@pytest.mark.parametrize("optimizer", UNIT_RATES)
def test_u_mup_without_its_depth_rule_is_caught(optimizer, monkeypatch):
    monkeypatch.setattr(scaling, "U_MUP_DEPTH", U_MUP_DEPTH._replace(**{optimizer: ONE}))
    assert depth_slope(param="umup", optimizer=optimizer, **UNIT_RATES[optimizer]) > coord_check.TOLERANCE


# CompleteP's Table 1 (FORMULAS §4.1) with m_N = 4 and m_L = 9: lr over η, ε over its base, and λ in the coupled form over λ₀, by α.
# Embedding and norms outside the blocks keep their lr. ε: the table scales it in the blocks, where it is μP's 1/m_N times m_L^-α.
def completep(alpha, m_n=4.0, m_l=9.0):
    eps = m_l**-alpha / m_n
    return {"embedding": (1, 1 / m_n, 1), "block4.attention_norm": (m_l**(alpha - 1), eps, m_l**(1 - alpha)), "block4.query": (m_l**(alpha - 1) / m_n, eps, m_n * m_l**(1 - alpha)),
            "block4.down": (m_l**(alpha - 1) / m_n, eps, m_n * m_l**(1 - alpha)), "block4.up.bias": (m_l**(alpha - 1), eps, m_l**(1 - alpha)),
            "final_norm": (1, 1 / m_n, 1), "output": (1, 1 / m_n, 1)}


def rows_of(alpha, **options):
    rule = {0.5: "depth-mup", 1: "completep"}[alpha]
    config = complete(Config(width=64, base_width=16, depth=18, base_depth=2, gains=True, biases=True, lr=1.0, eps=1.0, depth_rule=rule, **options))
    net = build(config)
    assert {b.amount for b in net.scales.branches} == {9**-alpha} and {b.skip for b in net.scales.branches} == {1}
    return {row.name: row for row in net.rows}


@pytest.mark.parametrize("alpha", (0.5, 1))
def test_resolved_rows_are_the_table_of_completep(alpha):
    rows = rows_of(alpha, weight_decay=0.1, decay_form="coupled")
    flat = {row.name: row for row in build(complete(Config(width=64, base_width=16, depth=18, base_depth=2, gains=True, biases=True))).rows}
    for name, (lr, eps, _) in completep(alpha).items():
        assert (rows[name].lr, rows[name].eps) == pytest.approx((lr, eps), rel=1e-14)
        assert (rows[name].std, rows[name].mult, rows[name].mean) == (flat[name].std, flat[name].mult, flat[name].mean)   # depth changes no init


@pytest.mark.parametrize("alpha", (0.5, 1))
@pytest.mark.parametrize("form", ("coupled", "independent"))
def test_depth_changes_no_parameters_shrinkage_per_step(form, alpha):
    """Where we go past the table: it has λ·m_N at every depth, so that lr·λ falls with depth for α = ½; here λ makes up for lr."""
    rows = rows_of(alpha, weight_decay=0.1, decay_form=form)
    assert [row.shrink for row in rows.values()] == pytest.approx([0.1] * len(rows), rel=1e-14)
    if form == "coupled":
        assert {name: rows[name].weight_decay / 0.1 for name in completep(alpha)} == pytest.approx({n: d for n, (_, _, d) in completep(alpha).items()}, rel=1e-14)
    if alpha == 1 and form == "coupled":                            # and CompleteP itself is as printed: λ·m_N for hidden matrices
        assert rows["block4.query"].weight_decay / 0.1 == pytest.approx(4, rel=1e-14)


@pytest.mark.parametrize("optimizer, exponent", [("sgd", lambda alpha: 2 * alpha - 1), ("muon", lambda alpha: alpha - 1)])
@pytest.mark.parametrize("alpha", (0.5, 1))
def test_depth_entries_of_sgd_and_muon_are_the_derived_ones(alpha, optimizer, exponent):
    """FORMULAS §4.3: a gradient carries the branch weight once, Muon's step not at all. Biases and gains are AdamW's under Muon."""
    rows = rows_of(alpha, optimizer=optimizer)
    flat = {row.name: row for row in build(complete(Config(optimizer=optimizer, width=64, base_width=16, depth=18, base_depth=2, gains=True, biases=True, lr=1.0))).rows}
    for name in ("block0.query", "block17.down"):
        assert rows[name].lr / flat[name].lr == pytest.approx(9**exponent(alpha), rel=1e-14)
    for name in ("embedding", "final_norm", "output"):
        assert rows[name].lr == flat[name].lr
    assert rows["block3.key.bias"].lr / flat["block3.key.bias"].lr == pytest.approx(9**(alpha - 1 if optimizer == "muon" else exponent(alpha)), rel=1e-14)


# ── the device ───────────────────────────────────────────────────────────────────────────────────────────────────────

strict = test_device.strict
SMALL = replace(test_device.TRANSFORMER, **test_device.ABSOLUTE, lr=0.01)
PATHS = {
    **{f"umup, {name}": replace(SMALL, matmul_format=name) for name in MATMUL_FORMATS},
    "umup, fp8, swiglu, muon": replace(SMALL, ffn="swiglu", matmul_format="fp8", optimizer="muon"),
    "umup, fp8, sgd": replace(SMALL, matmul_format="fp8", optimizer="sgd"),
    "umup, muonclip": replace(SMALL, optimizer="muonclip", qk_clip_threshold=0.01),
    "umup, alphas, decay": replace(SMALL, ffn="swiglu", alpha_attn=2.0, alpha_ffn=0.5, alpha_res=0.5, alpha_res_ratio=2.0, alpha_loss=3.0, weight_decay=0.1),
    "umup, mlp, fp8": replace(test_device.MLP, **test_device.ABSOLUTE, lr=0.01, matmul_format="fp8"),
    "mup, fp16": replace(test_device.TRANSFORMER, matmul_format="fp16"),
    "sp, fp8, completep, muon": replace(test_device.TRANSFORMER, param="sp", matmul_format="fp8", depth_rule="completep", optimizer="muon"),
    "mup, depth-mup, sgd": replace(test_device.TRANSFORMER, depth_rule="depth-mup", optimizer="sgd", lr=0.1),
}


@pytest.mark.parametrize("path", PATHS)
def test_new_paths_are_the_same_on_the_device_to_the_last_bit(path, strict):
    test_device.assert_equal_runs(PATHS[path], strict)


@pytest.mark.parametrize("path", PATHS)
def test_no_step_of_a_new_path_waits_for_the_device(path, strict):
    _, counts = strict(lambda: test_device.steps_of(complete(PATHS[path])))
    assert counts.syncs == 0 and counts.operations > 100


@pytest.mark.parametrize("role, name", [("hidden", "block0.up"), ("output", "output"), ("embedding", "embedding")])
def test_the_forward_multiplier_is_the_tables_and_no_copy_of_it(monkeypatch, role, name):
    table = scaling.PARAMETRIZATIONS["umup"]
    rule = table.rules[role]
    changed = rule._replace(mult=rule.mult.times(scaling.Power(fan_out=1)))
    config = complete(Config(param="umup", width=64))
    before = build(config)
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "umup", table._replace(rules=table.rules | {role: changed}))
    after = build(config)
    fan_out = next(row.shape[1] for row in before.rows if row.name == name)
    assert after.scales.mult[name].y == pytest.approx(fan_out * before.scales.mult[name].y, rel=1e-12)
