"""Muon and MuonClip: the update's definition and size, its column of the tables, who gets it, heads, and the clipping of logits."""
import json
import math
import pathlib
from dataclasses import replace

import numpy as np
import pytest

import strict_device
from tinymup import data, ops, optim, run, scaling
from tinymup.backend import to_device, to_host
from tinymup.initialize import initialize
from tinymup.network import Config, build, complete
from tinymup.orthogonalize import newton_schulz
from tinymup.scaling import MUP_TABLE8, PARAMETRIZATIONS, PER_ROOT_IN, SHAPE_FACTORS, Hyperparameters, Rule, Spec, muon_lr, resolve, shifted
from trajectories import distance, logits_after

TEXT = np.random.default_rng(0).integers(32, 127, 3000).astype(np.uint8)
CORPUS = data.Corpus(TEXT[:2700], TEXT[2700:], "random")

SHAPES = {"square": (24, 24), "wide": (16, 40), "tall": (40, 16)}                  # (fan_in, fan_out)
ORTHOGONAL = dict(coefficients="polar-express", newton_schulz_steps=12)            # all singular values 1, but for rounding
EXACT = 1e-12    # relative; seen: at most 1e-15 for one update


def row(shape=(16, 40), param="mup", base_shape=None, heads=None, **options):
    """The resolved row of a hidden matrix under Muon."""
    resolved, = resolve([Spec("w", "hidden", shape, base_shape or shape, heads=heads)], param, "muon", Hyperparameters(**options))
    return resolved


def trajectory(r, gradients, start=0.0, **options):
    """The matrix of a row before the first and after each step of the package's optimizer."""
    config = complete(Config(optimizer="muon", **options))
    params = {r.name: np.zeros(r.shape) + start}
    optimizer = optim.Optimizer([r], params, config)
    history = [params[r.name].copy()]
    for t, g in enumerate(gradients):
        optimizer.step(params, {r.name: g}, t, 1.0)
        history.append(params[r.name].copy())
    return np.array(history)


def gradients(shape, steps=10, seed=0):
    """Gradients whose size changes from step to step, so that a momentum which is not linear in them shows."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * 3.0**rng.standard_normal() for _ in range(steps)]


# ── momentum ─────────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ema_and_sum_go_the_same_way_with_the_same_learning_rate(shape, nesterov):
    ema, total = (trajectory(row(shape), gradients(shape), nesterov=nesterov, momentum_form=form) for form in ("ema", "sum"))
    assert distance(ema, total) < 1e-12                            # seen: 1e-15


def test_a_network_trains_to_the_same_logits_with_either_form():
    ema, total = (logits_after(replace(SMALL, momentum_form=form)) for form in ("ema", "sum"))
    assert distance(ema, total) < SAME
    assert distance(ema, ema[0]) > 0.05


@pytest.mark.parametrize("form", ["ema", "sum"])
def test_momentum_and_nesterov_are_their_formulas(form):
    share, mu = {"ema": 0.05, "sum": 1.0}[form], 0.95
    for nesterov in (True, False):
        w, m, wanted = np.zeros((16, 40)), 0.0, []
        for g in gradients(w.shape):
            m = mu * m + share * g
            w = w - 0.1 * math.sqrt(40 / 16) * newton_schulz(share * g + mu * m if nesterov else m)
            wanted.append(w)
        seen = trajectory(row(lr=0.1), gradients(w.shape), nesterov=nesterov, momentum_form=form)[1:]
        assert distance(seen, np.array(wanted)) < 1e-12


def test_the_buffers_of_the_two_forms_differ_by_the_factor_that_newton_schulz_divides_out():
    buffers = {}
    for form in ("ema", "sum"):
        w, m, scratch = np.zeros((16, 40)), np.zeros((16, 40)), np.empty((16, 40))
        for g in gradients(w.shape, 3):
            optim.muon(w, g, m, scratch, 0.1, 0.95, True, form, 5, "keller", 1)
        buffers[form] = m
    assert distance(buffers["sum"] * (1 - 0.95), buffers["ema"]) < 1e-12
    first, second, third = gradients((16, 40), 3)
    assert distance(buffers["sum"], 0.95**2 * first + 0.95 * second + third) < 1e-12


def test_nesterov_is_not_plain_momentum_and_neither_is_none():
    runs = [trajectory(row(lr=0.1), gradients((16, 40)), nesterov=n, momentum=m) for n, m in ((True, 0.95), (False, 0.95), (False, 0.0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert distance(runs[a], runs[b]) > 0.05                   # seen: 0.08 between the two forms
    assert distance(runs[0][1], runs[1][1]) < 1e-12                # in the first step all three see g alone


# ── torch.optim.Muon ─────────────────────────────────────────────────────────────────────────────────────────────────

TORCH = json.loads((pathlib.Path(__file__).parent / "data/torch_muon.json").read_text())
TORCH_RULES = {"original": "keller", "match_rms_adamw": "moonlight"}               # adjust_lr_fn → muon_scale
TORCH_RUNS = {f"{saved['adjust_lr_fn']}, {'nesterov' if saved['nesterov'] else 'plain'}": saved for saved in TORCH["runs"]}


def like_torch(name, saved, change=lambda r: r):
    """How far our matrix ends from torch's, which is stored (fan_out, fan_in) and loses lr · λ of itself a step, whatever s is."""
    lr, decay, momentum = (TORCH["settings"][key] for key in ("lr", "weight_decay", "momentum"))
    start, grads = np.array(TORCH["weights"][name]).T, [np.array(g).T for g in TORCH["gradients"][name]]
    r = change(row(start.shape, lr=lr, weight_decay=decay, decay_form="coupled", muon_scale=TORCH_RULES[saved["adjust_lr_fn"]]))
    ours = trajectory(r, grads, start, momentum=momentum, nesterov=saved["nesterov"])[-1]
    return distance(ours, np.array(saved["final"][name]).T)


@pytest.mark.parametrize("saved", TORCH_RUNS.values(), ids=TORCH_RUNS)
@pytest.mark.parametrize("name", TORCH["weights"])
def test_ten_steps_end_where_those_of_torch_do(name, saved):
    assert like_torch(name, saved) < 1e-12                           # seen: at most 2e-16


@pytest.mark.parametrize("wrong, seen_on, rule", [
    (lambda r: r._replace(shrink=r.shrink * r.shape_factor), ("wide", "tall", "square"), "match_rms_adamw"),      # decay scaled by s
    (lambda r: r._replace(shape_factor=SHAPE_FACTORS["keller"](*r.shape[::-1])), ("wide", "tall"), "original"),   # in and out swapped
    (lambda r: r._replace(shape_factor=0.2 * math.sqrt(min(r.shape))), ("wide", "tall"), "match_rms_adamw")])     # min for max
def test_ten_steps_of_another_definition_end_elsewhere(wrong, seen_on, rule):
    for name in seen_on:
        assert like_torch(name, TORCH_RUNS[rule + ", nesterov"], wrong) > 1e-3


# ── the size of an update ────────────────────────────────────────────────────────────────────────────────────────────

def update(r, seed=0, **options):
    """What one step subtracts from the matrix of a row."""
    return -trajectory(r, gradients(r.shape, 1, seed), **ORTHOGONAL | options)[-1]


PROMISES = {    # scale → what it promises of a step with lr 1, on (fan_in, fan_out); FORMULAS §5.3
    "spectral": ("spectral norm", lambda i, o: math.sqrt(o / i)),
    "keller": ("spectral norm", lambda i, o: math.sqrt(max(1, o / i))),
    "moonlight": ("RMS", lambda i, o: 0.2),
    "none": ("spectral norm", lambda i, o: 1.0)}


@pytest.mark.parametrize("scale", PROMISES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_update_has_the_size_that_its_scale_promises(shape, scale):
    step = update(row(shape, lr=0.03, muon_scale=scale))
    singular = np.linalg.svd(step, compute_uv=False)
    measured = {"spectral norm": singular[0], "RMS": math.sqrt((step**2).mean())}
    what, promised = PROMISES[scale]
    assert measured[what] == pytest.approx(0.03 * promised(*shape), rel=EXACT)
    assert singular == pytest.approx([singular[0]] * min(shape), rel=EXACT)        # one size in all directions
    assert measured["RMS"] == pytest.approx(singular[0] / math.sqrt(max(shape)), rel=EXACT)      # Moonlight, Lemma 1


def test_under_the_spectral_scale_an_input_of_rms_1_moves_by_at_most_lr():
    for shape in SHAPES.values():
        step, rng = update(row(shape, lr=0.03)), np.random.default_rng(1)
        x = rng.standard_normal((1000, shape[0]))
        growth = np.sqrt(((x @ step)**2).mean(1) / (x**2).mean(1))
        assert growth.max() <= 0.03 * (1 + EXACT)
        aligned = step @ step.T @ x.T                              # in the span of the step: there it is lr
        assert np.sqrt(((aligned.T @ step)**2).mean(1) / (aligned**2).mean(0)) == pytest.approx([0.03] * 1000, rel=EXACT)


def test_five_keller_steps_keep_the_promise_to_their_range():
    for shape in SHAPES.values():
        singular = np.linalg.svd(update(row(shape, lr=1.0, muon_scale="none"), coefficients="keller", newton_schulz_steps=5), compute_uv=False)
        assert 1.05 < singular.max() < 1.135
        assert 0.68 < np.sort(singular)[1 if shape[0] == shape[1] else 0] < 0.75    # the last of a square matrix may be next to none


@pytest.mark.parametrize("scale", PROMISES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_weight_stored_as_fan_out_by_fan_in_gets_the_same_update(shape, scale):
    """optim.muon knows no layout; what depends on it is s, which takes fan_in and fan_out by name."""
    g, factor = gradients(shape, 1)[0], SHAPE_FACTORS[scale](*shape)
    changes = []
    for g, turn in (g, lambda w: w), (g.T.copy(), lambda w: w.T):
        w, m, scratch = np.zeros(g.shape), np.zeros(g.shape), np.empty(g.shape)
        optim.muon(w, g, m, scratch, 0.1 * factor, 0.95, True, "ema", 5, "keller", 1)
        changes.append(turn(w))
    assert distance(changes[1], changes[0]) < 1e-12
    if shape[0] != shape[1] and scale in ("spectral", "keller"):
        assert SHAPE_FACTORS[scale](*shape[::-1]) != pytest.approx(factor, rel=0.1)  # swapped, as in Keras, it would be another


# ── Muon's column of the tables ──────────────────────────────────────────────────────────────────────────────────────

# FORMULAS §5.5, derived: C over its value at the base, as an exponent of the width ratio m, for s = spectral, keller, moonlight.
# The package gives input and output matrices to AdamW; the column holds for them all the same. V = 256 outputs, d_in = 16 inputs.
COLUMN = {
    "input": {"sp": (0, 0, 0), "mup-table3": (0, 0, 0), "mup": (0, 0, 0), "mup-table9": (-1/2, -1/2, -1/2)},
    "hidden": dict.fromkeys(("sp", "mup-table3", "mup", "mup-table9"), (0, 0, -1/2)),
    "output, n > V": {"sp": (0, -1/2, -1), "mup-table3": (0, -1/2, -1), "mup": (1, 1/2, 0), "mup-table9": (1/2, 0, -1/2)},
    "output, n < V": {"sp": (0, 0, -1/2), "mup-table3": (0, 0, -1/2), "mup": (1, 1, 1/2), "mup-table9": (1/2, 1/2, 0)}}
WIDTHS = {"input": (32, 128), "hidden": (32, 128), "output, n > V": (512, 2048), "output, n < V": (32, 128)}


@pytest.mark.parametrize("layer, param", [(layer, param) for layer in COLUMN for param in COLUMN[layer]])
def test_muons_column_is_the_general_formula(layer, param):
    role, (base, wide) = layer.split(",")[0], WIDTHS[layer]
    shape = {"input": lambda n: (16, n), "hidden": lambda n: (n, n), "output": lambda n: (n, 256)}[role]
    for scale, exponent in zip(("spectral", "keller", "moonlight"), COLUMN[layer][param]):
        c, s = muon_lr(Spec("w", role, shape(wide), shape(base)), PARAMETRIZATIONS[param].rules[role], scale, False)
        assert c == pytest.approx((wide / base)**exponent, rel=1e-14) and s == SHAPE_FACTORS[scale](*shape(wide))


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (64, 256), (256, 64)])
def test_u_mups_column_is_the_general_formula_in_absolute_sizes(shape):
    i, o = shape
    wanted = {"spectral": math.sqrt(i), "keller": math.sqrt(min(i, o)), "moonlight": math.sqrt(o / max(i, o)), "none": math.sqrt(o)}
    for scale, c in wanted.items():
        assert row(shape, "umup", base_shape=(16, 16), lr=0.5, muon_scale=scale).lr == pytest.approx(0.5 * c, rel=1e-14)


RATIOS = {"square": lambda n: (n, n), "up": lambda n: (n, 4 * n), "down": lambda n: (4 * n, n)}


def relative_step(param, scale, shape, change=lambda r: r):
    """‖Δ(A w)‖₂ · √(fan_in/fan_out) of one step on matrices 1, 2 and 8 times the base's size."""
    norms = []
    for width in (8, 16, 64):
        r = change(row(RATIOS[shape](width), param, RATIOS[shape](8), lr=0.1, muon_scale=scale))
        norms.append(r.mult * np.linalg.norm(update(r), 2) * math.sqrt(r.shape[0] / r.shape[1]))
    return np.array(norms)


@pytest.mark.parametrize("scale", SHAPE_FACTORS)
@pytest.mark.parametrize("param", PARAMETRIZATIONS)
def test_no_width_is_counted_twice(param, scale):
    """NVIDIA/Megatron-LM #3715: muP's factor and Muon's were both applied. The relative step must be the same at all widths."""
    for shape in RATIOS:
        norms = relative_step(param, scale, shape)
        assert norms == pytest.approx([norms[0]] * 3, rel=EXACT)


def test_widths_counted_twice_or_left_out_are_noticed():
    adamws = lambda r: r._replace(lr=r.lr * 8 / r.shape[0])        # AdamW's hidden cell on top
    assert relative_step("mup", "spectral", "square", adamws) == pytest.approx(0.1 / np.array([1, 2, 8]), rel=EXACT)
    undivided = lambda r: r._replace(lr=0.1)                       # Moonlight's s with an lr that stays
    assert relative_step("mup", "moonlight", "square", undivided) == pytest.approx(0.02 * np.sqrt([8, 16, 64]), rel=EXACT)
    without_a = lambda r: r._replace(lr=r.lr * r.mult)             # u-μP multiplies by A = 1/√fan_in in its forward pass
    assert relative_step("umup", "spectral", "square", without_a) == pytest.approx(0.1 / np.sqrt([8, 16, 64]), rel=EXACT)


# ── one training run, written differently ────────────────────────────────────────────────────────────────────────────

# A width three times the base's, so that multipliers are no powers of two and rounding differs between the forms.
SMALL = Config(optimizer="muon", width=24, head_dim=8, depth=2, base_width=8, base_head_dim=4, base_depth=1, gains=True, biases=True,
               batch=2, seq=6, dtype="float64", lr=0.1, adam_lr=0.03, eps=1e-3, weight_decay=0.01)
TABLES = ("mup", "mup-table3", "mup-table9")
SAME = 1e-10     # seen: at most 3e-15; the room is for BLAS kernels that round otherwise: Newton–Schulz multiplies small singular values by 3.4 a step
FORMS = {
    "spectral": {}, "keller": dict(muon_scale="keller"), "moonlight": dict(muon_scale="moonlight"), "none": dict(muon_scale="none"),
    "sum, plain": dict(momentum_form="sum", nesterov=False), "polar-express": dict(coefficients="polar-express"),
    "per head": dict(muon_per_head=True, ffn="swiglu"), "muonclip": dict(optimizer="muonclip", qk_clip_threshold=0.02)}


@pytest.mark.parametrize("form", FORMS)
def test_tables_3_8_and_9_train_to_the_same_logits(form):
    first, *others = (logits_after(replace(SMALL, param=param, **FORMS[form])) for param in TABLES)
    assert distance(first, first[0]) > 0.05                        # it did learn
    assert max(distance(other, first) for other in others) < SAME


def test_a_hidden_matrix_with_a_multiplier_trains_to_the_same_logits_and_without_1_over_a_it_would_not(monkeypatch):
    """In Tables 3, 8 and 9 hidden matrices have A = 1: what Muon does about A shows only once it is shifted."""
    table = PARAMETRIZATIONS["mup"]
    moved = table._replace(rules=MUP_TABLE8 | {"hidden": shifted(MUP_TABLE8["hidden"], PER_ROOT_IN)})
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "moved", moved)
    plain = logits_after(SMALL)
    assert distance(logits_after(replace(SMALL, param="moved")), plain) < SAME
    monkeypatch.setattr(Rule, "lr", lambda rule, optimizer: scaling.Power(-1/2, 1/2) if optimizer == "muon" else getattr(rule, optimizer))
    assert distance(logits_after(SMALL), plain) == 0
    assert distance(logits_after(replace(SMALL, param="moved")), plain) > 0.01


# ── who gets Muon ────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("param", PARAMETRIZATIONS)
@pytest.mark.parametrize("optimizer", ["muon", "muonclip"])
def test_hidden_matrices_get_muon_and_all_else_adamw(optimizer, param):
    nets = [SMALL, replace(SMALL, ffn="swiglu", muon_per_head=True)]
    nets += [replace(SMALL, tied=True)] if PARAMETRIZATIONS[param].tied_readout else []
    nets += [Config(model="mlp", width=24, base_width=8)] if optimizer == "muon" else []
    for net in nets:
        absolute = dict(base_width=None, base_depth=None, base_head_dim=None) if param == "umup" else {}
        config = complete(replace(net, param=param, optimizer=optimizer, **absolute))
        rows = build(config).rows
        muon = {r.name.rpartition(".")[2] for r in rows if r.optimizer == "muon"}
        matrices = {"query", "key", "value", "attention_out", "up", "down"} | ({"gate"} if net.ffn == "swiglu" else set())
        assert muon == ({"hidden0", "hidden1"} if net.model == "mlp" else matrices)
        assert {r.optimizer for r in rows} == {"muon", "adamw"}
        assert all((r.optimizer == "muon") == (r.role == "hidden") and (r.role != "hidden" or len(r.shape) == 2) for r in rows)
        state = optim.Optimizer(rows, initialize(rows, 0, "float32"), config).state
        assert set(state) == {f"{r.name}.{m}" for r in rows for m in ("m" if r.optimizer == "muon" else "mv")}


def test_the_companion_has_its_own_learning_rate_in_the_adamw_column():
    muon, adamw = (build(complete(replace(SMALL, optimizer=optimizer, lr=0.03))).rows for optimizer in ("muon", "adamw"))
    for a, b in zip(muon, adamw):
        assert a == b or a.role == "hidden" and a.lr == pytest.approx(0.03, rel=1e-15)      # spectral: flat in width; AdamW: a third of it here
        assert a.role != "hidden" or b.lr == pytest.approx(0.01, rel=1e-15)


def test_under_muon_a_parameter_without_a_rule_is_an_error_that_names_it():
    for role in ("", "conv", "Hidden"):
        with pytest.raises(ValueError, match=f"block3.filter.*{role!r}"):
            resolve([Spec("block3.filter", role, (8, 8), (8, 8))], "mup", "muon")


# ── heads ────────────────────────────────────────────────────────────────────────────────────────────────────────────

def test_per_head_is_each_heads_block_by_itself():
    g = gradients((24, 24))
    whole, blocks = row((24, 24), lr=0.1), row((24, 24), lr=0.1, heads=(3, 8, 8))
    assert blocks.heads == 3 and blocks.shape_factor == pytest.approx(math.sqrt(8 / 24), rel=1e-15)        # of (24, 8)
    together = trajectory(blocks, g)
    for head in range(3):
        columns = slice(8 * head, 8 * head + 8)
        alone = trajectory(row((24, 8), lr=0.1), [part[:, columns] for part in g])
        assert distance(together[:, :, columns], alone) < 1e-12
    assert distance(together[1] / np.linalg.norm(together[1]), trajectory(whole, g)[1] / np.linalg.norm(trajectory(whole, g)[1])) > 0.1


@pytest.mark.parametrize("scale", SHAPE_FACTORS)
def test_per_head_the_base_is_a_head_of_the_base(scale):
    at_base = row((16, 16), base_shape=(16, 16), heads=(2, 8, 8), lr=0.1, muon_scale=scale)
    assert at_base.lr == 0.1 and at_base.shape_factor == SHAPE_FACTORS[scale](16, 8)
    wide = row((48, 48), base_shape=(16, 16), heads=(3, 16, 8), lr=0.1, muon_scale=scale)         # width × 3, head × 2
    assert wide.lr * wide.shape_factor == pytest.approx(0.1 * at_base.shape_factor * math.sqrt(2 / 3), rel=1e-14)


@pytest.mark.parametrize("param", ["sp", "mup", "umup"])
def test_per_head_splits_queries_keys_and_values_only_and_keeps_the_spectral_condition(param):
    absolute = dict(base_width=None, base_depth=None, base_head_dim=None) if param == "umup" else {}
    steps = {}
    for width in (16, 48):
        config = complete(replace(SMALL, param=param, muon_per_head=True, width=width, **absolute))
        for r in build(config).rows:
            split = r.name.endswith((".query", ".key", ".value"))
            assert r.heads == (width // 8 if split else 1)
            if r.optimizer == "muon":
                fan_out = r.shape[1] // r.heads
                norm = r.mult * np.linalg.norm(update(r)[:, :fan_out], 2) * math.sqrt(r.shape[0] / fan_out)
                steps.setdefault(r.name, []).append(norm)
    for norms in steps.values():
        assert norms[0] == pytest.approx(norms[1], rel=EXACT)


def test_queries_keys_and_values_are_orthogonalised_apart():
    config = complete(SMALL)
    rows = {r.name: r for r in build(config).rows}
    names = [f"block0.{part}" for part in ("query", "key", "value")]
    g = {name: gradients((24, 24), 1, seed)[0] for seed, name in enumerate(names)}

    def stepped(g):
        params = {name: np.zeros((24, 24)) for name in names}
        optim.Optimizer([rows[name] for name in names], params, config).step(params, g, 0, 1.0)
        return params
    before, after = stepped(g), stepped(g | {"block0.key": gradients((24, 24), 1, 9)[0]})
    assert [np.array_equal(before[name], after[name]) for name in names] == [True, False, True]
    fused = newton_schulz(np.concatenate([g[name] for name in names], axis=1))     # as one (24, 72) matrix they would mix
    assert distance(-before["block0.query"] / 0.1, newton_schulz(g["block0.query"])) < 1e-12
    assert distance(fused[:, :24], newton_schulz(g["block0.query"])) > 0.1


# ── QK-Clip ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLIPPED = replace(SMALL, optimizer="muonclip", width=32, head_dim=8, gains=False)  # four heads
QUERIES_AND_KEYS = ("query", "query.bias", "key", "key.bias")


@pytest.fixture
def attentions(monkeypatch):
    """A list that grows by (q, k, scale) of every attention that is computed, whatever the pass remembers of it."""
    seen, attention = [], ops.attention

    def noted(q, k, v, scale, *rest):
        seen.append((q.copy(), k.copy(), scale))
        return attention(q, k, v, scale, *rest)
    monkeypatch.setattr(ops, "attention", noted)
    return seen


def logits_one_by_one(q, k, scale):
    """(B, H, query, key) from the queries and keys (B, T, H, D) that went into the softmax; −inf where the key is in the future."""
    batch, time, heads, _ = q.shape
    logits = np.full((batch, heads, time, time), -np.inf)
    for b, h, i in np.ndindex(batch, heads, time):
        for j in range(i + 1):
            logits[b, h, i, j] = scale * (q[b, i, h] * k[b, j, h]).sum()
    return logits


def forward_pass(network, params, ids, attentions):
    """prefix → (the maxima that training would see, all logits)."""
    attentions.clear()
    largest = {}
    network.model.forward(params, ids, network.architecture, network.scales, run.watch_logits(largest))
    return {prefix: (s, logits_one_by_one(*inputs)) for (prefix, s), inputs in zip(largest.items(), attentions, strict=True)}


def large_logits(config, seed=3):
    """A network with random biases, whose queries and keys are three times their initial size; its parameters, a batch, and both."""
    network = build(complete(config))
    params, rng = initialize(network.rows, seed, config.dtype), np.random.default_rng(seed)
    for r in network.rows:
        if r.role == "vector":
            params[r.name] = rng.standard_normal(r.shape) / r.mult
        elif r.name.endswith((".query", ".key")):
            params[r.name] *= 3
    return network, params, rng.integers(0, data.VOCAB, (2, 6))


ABSOLUTE = dict(base_width=None, base_depth=None, base_head_dim=None)
CLIP_CONFIGS = {
    "biases": CLIPPED, "no biases": replace(CLIPPED, biases=False), "table 9": replace(CLIPPED, param="mup-table9"),
    "sp": replace(CLIPPED, param="sp", attn_mult=0.5), "u-mup": replace(CLIPPED, param="umup", **ABSOLUTE)}


@pytest.mark.parametrize("block", ["block0.", "block1."])
@pytest.mark.parametrize("name", CLIP_CONFIGS)
def test_on_the_same_batch_a_clipped_heads_largest_logit_is_the_threshold_and_the_others_do_not_change(name, block, attentions):
    """One block at a time: a block that was clipped hands another input to the next."""
    network, params, ids = large_logits(CLIP_CONFIGS[name])
    s, before = forward_pass(network, params, ids, attentions)[block]
    threshold = float(np.sort(s)[1:3].mean())                      # two heads above, two not
    clipped = {key: w.copy() for key, w in params.items()}
    optim.qk_clip(clipped, network.rows, {block: s}, threshold)
    after, now = forward_pass(network, clipped, ids, attentions)[block]
    above = s > threshold
    assert above.sum() == 2 and threshold > 0
    assert after[above] == pytest.approx([threshold] * 2, rel=1e-12)               # 1e-6 was asked for; seen: 4e-16
    assert np.array_equal(after[~above], s[~above])
    assert np.array_equal(now[:, ~above], before[:, ~above])
    seen = np.isfinite(before)
    gamma = (np.minimum(1, threshold / s)[None, :, None, None] * np.ones_like(before))[seen]
    assert now[seen] == pytest.approx(gamma * before[seen], rel=1e-9, abs=1e-9)    # every logit, with RoPE and with biases
    for key, w in params.items():
        if key.removeprefix(block) in QUERIES_AND_KEYS:
            heads, heads_now = (x.reshape(-1, 4, 8) for x in (w, clipped[key]))
            assert np.array_equal(heads_now[:, ~above], heads[:, ~above])
            assert heads_now[:, above] == pytest.approx(heads[:, above] * np.sqrt(threshold / s[above])[:, None], rel=1e-12)
        else:
            assert np.array_equal(clipped[key], w)                 # values, outputs, the other block, all else


def test_twice_the_threshold_halves_the_logits_by_the_root_of_one_half_on_each_side():
    rows = build(complete(CLIPPED)).rows
    params = {r.name: np.ones(r.shape) for r in rows}
    optim.qk_clip(params, rows, {"block1.": np.array([20.0, 5.0, 10.0, 40.0])}, 10.0)
    roots = np.repeat([math.sqrt(0.5), 1, 1, 0.5], 8)
    for r in rows:
        wanted = roots if r.name.removeprefix("block1.") in QUERIES_AND_KEYS else 1.0
        assert np.array_equal(params[r.name], np.broadcast_to(wanted, r.shape))


def test_block_1_is_not_block_10():
    rows = build(complete(replace(CLIPPED, depth=11))).rows
    params = {r.name: np.ones(r.shape) for r in rows}
    optim.qk_clip(params, rows, {"block1.": np.full(4, 20.0)}, 10.0)
    assert {name.partition(".")[0] for name, w in params.items() if (w != 1).any()} == {"block1"}


SMALL_LOGITS = np.array([-1e6, 0.0, 5.0, 10.0])                    # negative, none, half the threshold, the threshold


def clip_ones(s, threshold=10.0):
    rows = build(complete(CLIPPED)).rows
    params = {r.name: np.ones(r.shape) for r in rows}
    with np.errstate(all="ignore"):
        optim.qk_clip(params, rows, {"block0.": s}, threshold)
    return params["block0.query"].reshape(32, 4, 8)[0, :, 0]


def test_small_and_negative_maxima_do_nothing():
    assert np.array_equal(clip_ones(SMALL_LOGITS), np.ones(4))
    assert (clip_ones(np.linspace(-50, 50, 4)) <= 1).all()


def test_without_the_maximum_small_logits_would_be_raised(monkeypatch):
    class Unguarded:
        """NumPy whose maximum(s, threshold) forgets the threshold."""

        def __getattr__(self, name):
            return (lambda s, threshold: s) if name == "maximum" else getattr(np, name)
    monkeypatch.setattr(optim, "xp", Unguarded())
    factors = clip_ones(SMALL_LOGITS)
    assert np.isnan(factors[0]) and np.isinf(factors[1]) and factors[2] > 1 and factors[3] == 1


TRAINED = replace(CLIPPED, steps=3, warmup=1, biases=True, lr=0.5, qk_clip_threshold=0.05)


def test_recorded_maxima_are_those_of_the_forward_that_ran_and_no_other_runs(attentions):
    """Each of the three steps' two attentions, recomputed one logit at a time; then the 16 held-out batches, and nothing else."""
    config = complete(TRAINED)
    record, *_ = run.train(config, CORPUS, progress=False)
    assert len(attentions) == config.depth * (config.steps + run.HELD_OUT_BATCHES)
    assert [step for step, _ in record["largest_logits"]] == [1, 2, 3]
    recorded = [heads for _, blocks in record["largest_logits"] for heads in blocks]
    for heads, inputs in zip(recorded, attentions):
        assert heads == pytest.approx(logits_one_by_one(*inputs).max((0, 2, 3)), rel=1e-4)         # recorded with five digits


def test_between_log_points_the_largest_is_kept(monkeypatch):
    every = complete(replace(TRAINED, steps=4, optimizer="muon"))
    each = np.array([heads for _, heads in run.train(every, CORPUS, progress=False)[0]["largest_logits"]])
    monkeypatch.setattr(run, "LOGS", 2)
    pairs = np.array([heads for _, heads in run.train(every, CORPUS, progress=False)[0]["largest_logits"]])
    assert each.shape == (4, 2, 4) and np.array_equal(pairs, each.reshape(2, 2, 2, 4).max(1))


def one_step(config):
    """Parameters, Muon's memory and the maxima after a step of training as `run.train` does it."""
    config = complete(config)
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, config)
    ids, targets = data.training_batch(CORPUS, config.seed, 0, config.batch, config.seq)
    largest = {}
    _, grads = network.loss_and_gradients(params, ids, targets, run.watch_logits(largest))
    optimizer.step(params, grads, 0, optim.schedule(config.schedule, 0, config.steps, config.warmup))
    if config.optimizer == "muonclip":
        optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
    return params, optimizer.state, largest


def test_muonclip_is_muons_step_then_the_clip_by_maxima_from_before_the_step():
    config = replace(TRAINED, steps=1, warmup=0)
    clipped, state, largest = one_step(config)
    plain, plain_state, _ = one_step(replace(config, optimizer="muon"))
    _, _, trained = run.train(complete(config), CORPUS, progress=False)
    assert all(np.array_equal(trained[name], w) for name, w in clipped.items())    # this is what `run.train` does
    assert all(np.array_equal(state[name], m) for name, m in plain_state.items())  # the memory does not know of the clip
    for prefix, s in largest.items():
        assert (s > config.qk_clip_threshold).any()
        for part in QUERIES_AND_KEYS:
            w = plain[prefix + part]
            w *= np.repeat(np.sqrt(np.minimum(1, config.qk_clip_threshold / s)), 8)
    assert all(distance(clipped[name], plain[name]) < 1e-15 for name in plain if plain[name].any())


def test_clipping_holds_logits_at_the_threshold_that_muon_alone_drives_up():
    config = replace(SMALL, biases=False, gains=False, lr=0.1, steps=40, warmup=2, schedule="constant", qk_clip_threshold=1.0, dtype="float32")
    peaks = {}
    for optimizer in ("muon", "muonclip"):
        record, *_ = run.train(complete(replace(config, optimizer=optimizer)), CORPUS, progress=False)
        peaks[optimizer] = np.array([heads for _, heads in record["largest_logits"]])[-5:].max()
    assert peaks["muon"] > 6 and peaks["muonclip"] < 3             # seen: 10 and 2; a step and another 12 bytes later it is 1 only roughly


# ── the device ───────────────────────────────────────────────────────────────────────────────────────────────────────

ON_DEVICE = {
    "muon": dict(optimizer="muon"), "muon, sum, per head, moonlight": dict(optimizer="muon", momentum_form="sum", muon_per_head=True, muon_scale="moonlight"),
    "muonclip": dict(optimizer="muonclip", qk_clip_threshold=0.02), "muonclip, per head, table 9": dict(
        optimizer="muonclip", qk_clip_threshold=0.02, muon_per_head=True, param="mup-table9", ffn="swiglu", coefficients="polar-express"),
    "muonclip, u-mup": dict(optimizer="muonclip", qk_clip_threshold=0.02, param="umup", lr=0.01, **ABSOLUTE)}


def trained_steps(config, steps=3):
    """Parameters after some steps with all that `run.train` does between two log points; nothing is read back."""
    config = complete(config)
    network = build(config)
    params = initialize(network.rows, 0, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, config)
    for step in range(steps):
        ids, targets = map(to_device, data.training_batch(CORPUS, 0, step, config.batch, config.seq))
        largest = {}
        _, grads = network.loss_and_gradients(params, ids, targets, run.watch_logits(largest))
        optimizer.step(params, grads, step, 1.0)
        if config.optimizer == "muonclip":
            optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
    return params, optimizer.state


@pytest.mark.parametrize("name", ON_DEVICE)
def test_steps_on_the_device_are_the_same_to_the_last_bit_and_never_wait(name):
    config = replace(SMALL, dtype="float32", **ON_DEVICE[name])
    host = trained_steps(config)
    with strict_device.in_use() as counts:
        device = trained_steps(config)
        assert counts.syncs == 0 and counts.operations > 1000
        back = [{key: to_host(array) for key, array in arrays.items()} for arrays in device]
    for ours, theirs in zip(host, back):
        assert ours.keys() == theirs.keys() and all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
