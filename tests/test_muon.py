"""Muon and MuonClip: the update and its size, the column of the tables, heads, clipped logits."""
import json
import math
import pathlib
from dataclasses import replace

import numpy as np
import pytest

import strict_device
from tinymup import backend, ops, optim, scaling
from tinymup.backend import to_device, to_host
from tinymup.lab import data, run
from tinymup.lab.config import Config, build, complete, normalised, settings
from tinymup.network import initialize
from tinymup.orthogonalize import newton_schulz
from tinymup.resolve import Hyperparameters, Spec, muon_numbers, resolve
from tinymup.scaling import (
    MUP, PARAMETRIZATIONS, PER_ROOT_IN, SHAPE_FACTORS, Power, Rule, shifted)
from trajectories import distance, logits_after

TEXT = np.random.default_rng(0).integers(32, 127, 3000).astype(np.uint8)
MUON = optim.Settings(momentum=0.95, nesterov=True)                 # the customary settings
CORPUS = data.Corpus(TEXT[:2700], TEXT[2700:], "random")

SHAPES = {"square": (24, 24), "wide": (16, 40), "tall": (40, 16)}                # (fan_in, fan_out)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
# All singular values come out as 1, but for rounding.
ORTHOGONAL = dict(coefficients="polar-express", newton_schulz_steps=12)
# Relative. Five Keller steps multiply a rounding error of 1e-16 by up to 3.44⁵ = 484, their slope
# at zero. Steps that converge leave a few roundings.
EXACT = 1e-12


def row(shape=(16, 40), param="mup", base_shape=None, head_dim=None, base_head_dim=None, **hyper):
    """The resolved row of a hidden matrix under Muon, split into heads if head_dim is given."""
    spec = Spec("w", "hidden", shape, base_shape=base_shape, head_dim=head_dim,
                base_head_dim=base_head_dim)
    hyper = Hyperparameters(param, "muon", muon_per_head=bool(head_dim), **hyper)
    resolved, = resolve([spec], hyper)
    return resolved


STEPS = 10


def trajectory(r, gradients, start=0.0, factors=(1.0,) * STEPS, **changes):
    """The matrix of row r before the first and after each step of the package's optimizer."""
    params = {r.name: np.zeros(r.shape) + start}
    optimizer = optim.Optimizer([r], params, MUON._replace(**changes))
    history = [params[r.name].copy()]
    for t, g in enumerate(gradients):
        optimizer.step(params, {r.name: g}, t, factors[t])
        history.append(params[r.name].copy())
    return np.array(history)


def gradients(shape, steps=STEPS, seed=0):
    """Gradients of a different size in each step, so that a momentum not linear in them shows."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * 3.0**rng.standard_normal() for _ in range(steps)]


# Momentum

def test_the_command_line_and_the_library_have_the_same_customary_settings():
    assert settings(complete(Config(optimizer="muon"))) == MUON == optim.MUON


def test_an_optimizer_without_settings_has_those_that_are_customary_for_its_rows():
    """With momentum 0, the default of `Settings`, Muon would train, and train worse."""
    w = np.zeros((4, 4))
    for name, momentum, moments in ("muon", 0.95, {"w.m"}), ("sgd", 0.0, set()):
        hidden, = resolve([Spec("w", "hidden", w.shape)], Hyperparameters(optimizer=name))
        optimizer = optim.Optimizer([hidden], {"w": w})
        assert optimizer.settings.momentum == momentum and optimizer.state.keys() == moments


@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
@each_shape
def test_ema_and_sum_go_the_same_way_with_the_same_learning_rate(shape, nesterov):
    ema, total = (trajectory(row(shape), gradients(shape), nesterov=nesterov, momentum_form=form)
                  for form in ("ema", "sum"))
    assert distance(ema, total) < EXACT


def test_a_network_trains_to_the_same_logits_with_either_form():
    ema, total = (logits_after(replace(SMALL, momentum_form=form)) for form in ("ema", "sum"))
    assert distance(ema, total) < SAME
    assert distance(ema, ema[0]) > 0.05


@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
@pytest.mark.parametrize("form, share", [("ema", 0.05), ("sum", 1.0)])
def test_muon_is_its_formula(form, share, nesterov):
    w, m, mu, wanted = np.ones((16, 40)), 0.0, 0.95, []
    factors = [1 / (t + 1) for t in range(STEPS)]
    for g, s in zip(gradients(w.shape), factors):
        m = mu * m + share * g
        u = share * g + mu * m if nesterov else m
        w = (1 - s * 0.02) * w - s * 0.1 * math.sqrt(40 / 16) * newton_schulz(u)
        wanted.append(w)
    seen = trajectory(row(lr=0.1, weight_decay=0.02), gradients(w.shape), 1.0, factors,
                      nesterov=nesterov, momentum_form=form)
    assert distance(seen[1:], np.array(wanted)) < EXACT


def test_the_momenta_of_the_two_forms_differ_by_the_factor_that_newton_schulz_divides_out():
    momenta = {}
    for form in ("ema", "sum"):
        w, m = np.zeros((16, 40)), np.zeros((16, 40))
        for g in gradients(w.shape, 3):
            optim.muon([w], [g], [m], [0.1], MUON._replace(momentum_form=form))
        momenta[form] = m
    assert distance(momenta["sum"] * (1 - 0.95), momenta["ema"]) < EXACT
    first, second, third = gradients((16, 40), 3)
    assert distance(momenta["sum"], 0.95**2 * first + 0.95 * second + third) < EXACT


def test_nesterov_is_not_plain_momentum_and_neither_is_none():
    runs = [trajectory(row(lr=0.1), gradients((16, 40)), nesterov=n, momentum=m)
            for n, m in ((True, 0.95), (False, 0.95), (False, 0.0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert distance(runs[a], runs[b]) > 0.05
    assert distance(runs[0][1], runs[1][1]) < EXACT   # the first step depends on g alone


# Lists of matrices

def random_lists(shape, count, dtype, seed=0):
    """weights, grads, momenta and learning rates of so many matrices."""
    rng = np.random.default_rng(seed)
    scales = 10.0**rng.uniform(-3, 3, (3, count, 1, 1))           # each matrix has its own norm
    arrays = (scales * rng.standard_normal((3, count, *shape))).astype(dtype)
    return *map(list, arrays), [0.1 * (i + 1) for i in range(count)]


def stepped(lists, *args):
    """What a step of `muon` makes of the weights and momenta."""
    weights, grads, momenta, lrs = lists
    weights, momenta = [w.copy() for w in weights], [m.copy() for m in momenta]
    optim.muon(weights, grads, momenta, lrs, *args)
    return weights, momenta


LISTS = {"square": (24, 24), "wide": (16, 48), "tall": (48, 18), "several to a block": (48, 72),
         "one to a block": (192, 144), "one row": (1, 24), "one column per head": (16, 6)}


@pytest.mark.parametrize("coefficients", ["keller", "polar-express"])
@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", LISTS.values(), ids=LISTS)
def test_a_list_of_matrices_is_its_matrices_one_by_one_to_the_last_bit(
        shape, dtype, heads, coefficients):
    chosen = MUON._replace(coefficients=coefficients)
    lists = random_lists(shape, 11, dtype)
    together = stepped(lists, chosen, heads)
    for i in range(11):
        alone = stepped([array[i:i + 1] for array in lists], chosen, heads)
        for ours, theirs in zip(together, alone):
            assert ours[i].dtype == dtype and ours[i].tobytes() == theirs[0].tobytes()


def test_the_lists_cover_one_block_several_blocks_and_one_matrix_per_block():
    def lengths(shape):
        stack = np.empty((11, *shape))
        return [len(stack[block]) for block in backend.blocks(stack)]
    assert lengths(LISTS["wide"]) == [11]
    assert lengths(LISTS["several to a block"]) == [4, 4, 3]
    assert lengths(LISTS["one to a block"]) == [1] * 11


@pytest.mark.parametrize("heads", [1, 3])
@each_shape
def test_a_step_reads_gradients_only_and_writes_weights_and_momenta_in_place(shape, heads):
    shape = (shape[0], shape[1] // 4 * 3)                         # a multiple of 3 columns
    weights, grads, momenta, lrs = random_lists(shape, 4, "float64")
    before = [(id(array), array.copy()) for array in weights + momenta]
    for g in grads:
        g.flags.writeable = False
    optim.muon(weights, grads, momenta, lrs, heads=heads)
    for array, (place, old) in zip(weights + momenta, before):
        assert id(array) == place and (array != old).any()


WIDE, TALL = (16, 40), (40, 16)
MIXED = [Spec("a", "hidden", WIDE), Spec("b", "hidden", TALL),
         Spec("c", "hidden", WIDE, head_dim=8), Spec("d", "vector", (16,)),
         Spec("e", "hidden", WIDE), Spec("f", "hidden", WIDE, head_dim=20),
         Spec("g", "output", WIDE), Spec("h", "hidden", TALL, head_dim=8),
         Spec("i", "hidden", (24, 24)), Spec("j", "hidden", WIDE, head_dim=8),
         Spec("k", "hidden", TALL)]


@pytest.mark.parametrize("momentum_form", ["ema", "sum"])
def test_a_step_on_a_mixed_list_is_a_step_on_each_parameter_alone(momentum_form):
    rows = resolve(MIXED, Hyperparameters(
        optimizer="muon", muon_per_head=True, lr=0.1, adam_lr=0.03, weight_decay=0.02))
    rows = [r._replace(lr=r.lr * (i + 1)) for i, r in enumerate(rows)]       # each its own
    assert {r.heads for r in rows if r.shape == WIDE} == {1, 2, 5}
    chosen = MUON._replace(momentum_form=momentum_form)

    def trained(rows):
        """Parameters and moments of these rows after four steps."""
        params = {r.name: gradients(r.shape, 1, ord(r.name))[0] for r in rows}
        optimizer = optim.Optimizer(rows, params, chosen)
        for t in range(4):
            grads = {r.name: gradients(r.shape, 4, 100 + ord(r.name))[t] for r in rows}
            optimizer.step(params, grads, t, factor=1 / (t + 1))
        return params | optimizer.state
    together = trained(rows)
    for r in rows:
        for name, array in trained([r]).items():
            assert together[name].tobytes() == array.tobytes()


# torch.optim.Muon

TORCH = json.loads((pathlib.Path(__file__).parent / "data/torch_muon.json").read_text())
TORCH_RULES = {"original": "keller", "match_rms_adamw": "moonlight"}     # adjust_lr_fn → muon_scale
TORCH_RUNS = {f"{saved['adjust_lr_fn']}, {'nesterov' if saved['nesterov'] else 'plain'}": saved
              for saved in TORCH["runs"]}


def distance_from_torch(name, saved, change=lambda r: r):
    """How far our matrix ends from PyTorch's, which is stored as (fan_out, fan_in).

    PyTorch's shrinks by lr · λ per step, whatever the shape factor.
    """
    lr, decay, mu = (TORCH["settings"][key] for key in ("lr", "weight_decay", "momentum"))
    start = np.array(TORCH["weights"][name]).T
    grads = [np.array(g).T for g in TORCH["gradients"][name]]
    r = change(row(start.shape, lr=lr, weight_decay=decay, decay_form="coupled",
                   muon_scale=TORCH_RULES[saved["adjust_lr_fn"]]))
    ours = trajectory(r, grads, start, momentum=mu, nesterov=saved["nesterov"])[-1]
    return distance(ours, np.array(saved["final"][name]).T)


@pytest.mark.parametrize("saved", TORCH_RUNS.values(), ids=TORCH_RUNS)
@pytest.mark.parametrize("name", TORCH["weights"])
def test_ten_steps_end_where_those_of_torch_do(name, saved):
    assert distance_from_torch(name, saved) < EXACT


def decay_scaled_by_s(r):
    return r._replace(shrink=r.shrink * r.shape_factor)


def fans_swapped(r):
    return r._replace(shape_factor=SHAPE_FACTORS["keller"](*r.shape[::-1]))


def smaller_fan_in_place_of_the_larger(r):
    return r._replace(shape_factor=0.2 * math.sqrt(min(r.shape)))


@pytest.mark.parametrize("wrong, names, rule", [
    (decay_scaled_by_s, ("wide", "tall", "square"), "match_rms_adamw"),
    (fans_swapped, ("wide", "tall"), "original"),
    (smaller_fan_in_place_of_the_larger, ("wide", "tall"), "match_rms_adamw")])
def test_ten_steps_of_another_definition_end_elsewhere(wrong, names, rule):
    for name in names:
        assert distance_from_torch(name, TORCH_RUNS[rule + ", nesterov"], wrong) > 1e-3


# The size of an update

def update(r, seed=0, **changes):
    """What one step subtracts from the matrix of row r."""
    return -trajectory(r, gradients(r.shape, 1, seed), **ORTHOGONAL | changes)[-1]


PROMISES = {    # scale → the size that it promises of a step with lr 1, by (fan_in, fan_out)
    "spectral": ("spectral norm", lambda i, o: math.sqrt(o / i)),
    "keller": ("spectral norm", lambda i, o: math.sqrt(max(1, o / i))),
    "moonlight": ("RMS", lambda i, o: 0.2),
    "none": ("spectral norm", lambda i, o: 1.0)}


@pytest.mark.parametrize("scale", PROMISES)
@each_shape
def test_an_update_has_the_size_that_its_scale_promises(shape, scale):
    step = update(row(shape, lr=0.03, muon_scale=scale))
    singular = np.linalg.svd(step, compute_uv=False)
    measured = {"spectral norm": singular[0], "RMS": math.sqrt((step**2).mean())}
    what, promised = PROMISES[scale]
    assert measured[what] == pytest.approx(0.03 * promised(*shape), rel=EXACT)
    assert singular == pytest.approx([singular[0]] * min(shape), rel=EXACT)
    rms = singular[0] / math.sqrt(max(shape))         # Moonlight, arXiv:2502.16982, Lemma 1
    assert measured["RMS"] == pytest.approx(rms, rel=EXACT)


def test_under_the_spectral_scale_an_input_of_rms_1_moves_by_at_most_lr():
    for shape in SHAPES.values():
        step, rng = update(row(shape, lr=0.03)), np.random.default_rng(1)

        def growth(x):
            return np.sqrt(((x @ step)**2).mean(1) / (x**2).mean(1))
        x = rng.standard_normal((1000, shape[0]))
        assert growth(x).max() <= 0.03 * (1 + EXACT)
        aligned = x @ step @ step.T                   # the part of x to which the step responds
        assert growth(aligned) == pytest.approx([0.03] * 1000, rel=EXACT)


def test_five_keller_steps_keep_the_promise_to_their_range():
    for shape in SHAPES.values():
        step = update(row(shape, lr=1.0, muon_scale="none"), coefficients="keller",
                      newton_schulz_steps=5)
        singular = np.sort(np.linalg.svd(step, compute_uv=False))
        # The smallest singular value of a square matrix may lie below 0.01, where p is not near 1.
        smallest = singular[1 if shape[0] == shape[1] else 0]
        assert 1.05 < singular.max() < 1.135 and 0.68 < smallest < 0.75


@pytest.mark.parametrize("scale", PROMISES)
@each_shape
def test_a_weight_stored_as_fan_out_by_fan_in_gets_the_same_update(shape, scale):
    """`muon` knows no layout. The shape factor depends on it, and takes the fans by name."""
    g, factor = gradients(shape, 1)[0], SHAPE_FACTORS[scale](*shape)
    w, turned = np.zeros(shape), np.zeros(shape[::-1])
    optim.muon([w], [g], [np.zeros_like(w)], [0.1 * factor])
    optim.muon([turned], [g.T.copy()], [np.zeros_like(turned)], [0.1 * factor])
    assert distance(turned.T, w) < EXACT
    if shape[0] != shape[1] and scale in ("spectral", "keller"):
        assert SHAPE_FACTORS[scale](*shape[::-1]) != pytest.approx(factor, rel=0.1)


# Muon's column of the tables

# C over its value at the base, as an exponent of the width ratio, for the scales spectral, keller
# and moonlight: C·s must grow as √(fan_out/fan_in)/A, and s grows as its scale says. The package
# gives input and output matrices to AdamW; the column holds for them too.
COLUMN = {
    "input": {"sp": (0, 0, 0), "mup-table3": (0, 0, 0), "mup": (0, 0, 0),
              "mup-table9": (-1/2, -1/2, -1/2)},
    "hidden": dict.fromkeys(("sp", "mup-table3", "mup", "mup-table9"), (0, 0, -1/2)),
    "output, n > V": {"sp": (0, -1/2, -1), "mup-table3": (0, -1/2, -1), "mup": (1, 1/2, 0),
                      "mup-table9": (1/2, 0, -1/2)},
    "output, n < V": {"sp": (0, 0, -1/2), "mup-table3": (0, 0, -1/2), "mup": (1, 1, 1/2),
                      "mup-table9": (1/2, 1/2, 0)}}
WIDTHS = {"input": (32, 128), "hidden": (32, 128), "output, n > V": (512, 2048),
          "output, n < V": (32, 128)}
SHAPE_OF = {"input": lambda n: (16, n), "hidden": lambda n: (n, n), "output": lambda n: (n, 256)}


@pytest.mark.parametrize("layer, param", [(layer, param) for layer in COLUMN
                                          for param in COLUMN[layer]])
def test_muons_column_is_the_general_formula(layer, param):
    role, (base, wide) = layer.split(",")[0], WIDTHS[layer]
    spec = Spec("w", role, SHAPE_OF[role](wide), base_shape=SHAPE_OF[role](base))
    for scale, exponent in zip(("spectral", "keller", "moonlight"), COLUMN[layer][param]):
        c, s, heads = muon_numbers(
            spec, PARAMETRIZATIONS[param], Hyperparameters(param, "muon", muon_scale=scale))
        assert c == pytest.approx((wide / base)**exponent, rel=1e-14)
        assert s == SHAPE_FACTORS[scale](*spec.shape) and heads == 1


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (64, 256), (256, 64)])
def test_u_mups_column_is_the_general_formula_in_absolute_sizes(shape):
    i, o = shape
    wanted = {"spectral": math.sqrt(i), "keller": math.sqrt(min(i, o)),
              "moonlight": math.sqrt(o / max(i, o)), "none": math.sqrt(o)}
    for scale, c in wanted.items():
        r = row(shape, "umup", base_shape=(16, 16), lr=0.5, muon_scale=scale)
        assert r.lr == pytest.approx(0.5 * c, rel=1e-14)


RATIOS = {"square": lambda n: (n, n), "up": lambda n: (n, 4 * n), "down": lambda n: (4 * n, n)}


def relative_step(param, scale, shape, change=lambda r: r):
    """‖Δ(A w)‖₂ · √(fan_in/fan_out) of one step on matrices 1, 2 and 8 times the base's size."""
    norms = []
    for width in (8, 16, 64):
        r = change(row(RATIOS[shape](width), param, RATIOS[shape](8), lr=0.1, muon_scale=scale))
        fan_in, fan_out = r.shape
        norms.append(r.mult * np.linalg.norm(update(r), 2) * math.sqrt(fan_in / fan_out))
    return np.array(norms)


@pytest.mark.parametrize("scale", SHAPE_FACTORS)
@pytest.mark.parametrize("param", PARAMETRIZATIONS)
def test_no_width_is_counted_twice(param, scale):
    """As it is if both μP's factor and Muon's are applied. The relative step must stay the same."""
    for shape in RATIOS:
        norms = relative_step(param, scale, shape)
        assert norms == pytest.approx([norms[0]] * 3, rel=EXACT)


def test_widths_counted_twice_or_left_out_are_noticed():
    def adamws_too(r):
        return r._replace(lr=r.lr * 8 / r.shape[0])   # AdamW's hidden cell on top of Muon's

    def without_1_over_s(r):
        return r._replace(lr=0.1)

    def without_1_over_a(r):
        return r._replace(lr=r.lr * r.mult)
    assert relative_step("mup", "spectral", "square", adamws_too) == pytest.approx(
        0.1 / np.array([1, 2, 8]), rel=EXACT)
    assert relative_step("mup", "moonlight", "square", without_1_over_s) == pytest.approx(
        0.02 * np.sqrt([8, 16, 64]), rel=EXACT)
    assert relative_step("umup", "spectral", "square", without_1_over_a) == pytest.approx(
        0.1 / np.sqrt([8, 16, 64]), rel=EXACT)


# One training run in equivalent forms

# The width is three times the base's: multipliers are no powers of two, so the forms round
# differently.
SMALL = Config(optimizer="muon", width=24, head_dim=8, depth=2, base_width=8, base_head_dim=4,
               base_depth=1, gains=True, biases=True, batch=2, seq=6, dtype="float64", lr=0.1,
               adam_lr=0.03, eps=1e-3, weight_decay=0.01)
TABLES = ("mup", "mup-table3", "mup-table9")
# The rounding errors that Newton–Schulz multiplies add up over six steps of training.
SAME = 1e-10
FORMS = {
    "spectral": {}, "keller": dict(muon_scale="keller"),
    "moonlight": dict(muon_scale="moonlight"), "none": dict(muon_scale="none"),
    "sum, plain": dict(momentum_form="sum", nesterov=False),
    "polar-express": dict(coefficients="polar-express"),
    "per head": dict(muon_per_head=True, ffn="swiglu"),
    "muonclip": dict(optimizer="muonclip", qk_clip_threshold=0.02)}


def config_of(config=SMALL, **changes):
    """The complete config with these changes, without what it then does not use."""
    return complete(normalised(replace(config, **changes)))


@pytest.mark.parametrize("form", FORMS)
def test_tables_3_8_and_9_train_to_the_same_logits(form):
    first, *others = (logits_after(replace(SMALL, param=param, **FORMS[form])) for param in TABLES)
    assert distance(first, first[0]) > 0.05                       # it did learn
    assert max(distance(other, first) for other in others) < SAME


def test_a_hidden_multiplier_leaves_training_the_same_only_with_1_over_a_in_muons_cell(monkeypatch):
    """In Tables 3, 8 and 9 hidden matrices have A = 1, so they are shifted here."""
    plain, table = logits_after(SMALL), PARAMETRIZATIONS["mup"]
    moved = table._replace(rules=MUP | {"hidden": shifted(MUP["hidden"], PER_ROOT_IN)})
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "mup", moved)
    assert distance(logits_after(SMALL), plain) < SAME
    monkeypatch.setattr(Rule, "muon", property(lambda rule: Power(-1/2, 1/2)))
    assert distance(logits_after(SMALL), plain) > 0.01
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "mup", table)
    assert distance(logits_after(SMALL), plain) == 0


# Who gets Muon

@pytest.mark.parametrize("param", PARAMETRIZATIONS)
@pytest.mark.parametrize("optimizer", ["muon", "muonclip"])
def test_hidden_matrices_get_muon_and_all_else_adamw(optimizer, param):
    nets = [SMALL, replace(SMALL, ffn="swiglu", muon_per_head=True)]
    nets += [replace(SMALL, tied=True)] if "tied" in PARAMETRIZATIONS[param].rules else []
    nets += [Config(model="mlp", width=24, base_width=8)] if optimizer == "muon" else []
    for net in nets:
        config = config_of(net, param=param, optimizer=optimizer)
        rows = build(config).rows
        muon = {r.name.rpartition(".")[2] for r in rows if r.optimizer == "muon"}
        matrices = {"query", "key", "value", "attention_out", "up", "down"}
        matrices |= {"gate"} if net.ffn == "swiglu" else set()
        assert muon == ({"hidden0", "hidden1"} if net.model == "mlp" else matrices)
        assert {r.optimizer for r in rows} == {"muon", "adamw"}
        for r in rows:
            assert (r.optimizer == "muon") == (r.role == "hidden")
            assert r.role != "hidden" or len(r.shape) == 2
        state = optim.Optimizer(rows, initialize(rows), settings(config)).state
        assert set(state) == {f"{r.name}.{moment}" for r in rows
                              for moment in ("m" if r.optimizer == "muon" else "mv")}


def test_the_companion_has_its_own_learning_rate_in_the_adamw_column():
    muon, adamw = (build(config_of(optimizer=optimizer, lr=0.03)).rows
                   for optimizer in ("muon", "adamw"))
    for a, b in zip(muon, adamw):
        if a.role == "hidden":                        # at three times the base's width
            assert a.lr == pytest.approx(0.03, rel=1e-15)
            assert b.lr == pytest.approx(0.01, rel=1e-15)
        else:
            assert a == b


def test_under_muon_a_parameter_without_a_rule_is_an_error_that_names_it():
    for role in ("", "conv", "Hidden"):
        with pytest.raises(ValueError, match=f"block3.filter.*{role!r}"):
            resolve([Spec("block3.filter", role, (8, 8))], Hyperparameters(optimizer="muon"))


# Heads

def test_per_head_is_each_heads_block_by_itself():
    g = gradients((24, 24))
    whole, blocks = row((24, 24), lr=0.1), row((24, 24), lr=0.1, head_dim=8)
    assert blocks.heads == 3
    assert blocks.shape_factor == pytest.approx(math.sqrt(8 / 24), rel=1e-15)     # of (24, 8)
    together = trajectory(blocks, g)
    for head in range(3):
        columns = slice(8 * head, 8 * head + 8)
        alone = trajectory(row((24, 8), lr=0.1), [part[:, columns] for part in g])
        assert distance(together[:, :, columns], alone) < EXACT
    steps = [step / np.linalg.norm(step) for step in (together[1], trajectory(whole, g)[1])]
    assert distance(*steps) > 0.1


@pytest.mark.parametrize("scale", SHAPE_FACTORS)
def test_per_head_the_base_is_a_head_of_the_base(scale):
    at_base = row((16, 16), head_dim=8, lr=0.1, muon_scale=scale)
    assert at_base.lr == 0.1 and at_base.shape_factor == SHAPE_FACTORS[scale](16, 8)
    # The width times 3 and the head times 2
    wide = row((48, 48), base_shape=(16, 16), head_dim=16, base_head_dim=8, lr=0.1,
               muon_scale=scale)
    assert wide.lr * wide.shape_factor == pytest.approx(
        0.1 * at_base.shape_factor * math.sqrt(2 / 3), rel=1e-14)


@pytest.mark.parametrize("param", ["sp", "mup", "umup"])
def test_per_head_splits_queries_keys_and_values_only_and_keeps_the_spectral_condition(param):
    steps = {}
    for width in (16, 48):
        for r in build(config_of(param=param, muon_per_head=True, width=width)).rows:
            split = r.name.endswith((".query", ".key", ".value"))
            assert r.heads == (width // 8 if split else 1)
            if r.optimizer == "muon":
                fan_out = r.shape[1] // r.heads
                norm = r.mult * np.linalg.norm(update(r)[:, :fan_out], 2)
                steps.setdefault(r.name, []).append(norm * math.sqrt(r.shape[0] / fan_out))
    for norms in steps.values():
        assert norms[0] == pytest.approx(norms[1], rel=EXACT)


def test_queries_keys_and_values_are_orthogonalised_apart():
    config = complete(SMALL)
    rows = {r.name: r for r in build(config).rows}
    names = [f"block0.{part}" for part in ("query", "key", "value")]
    g = {name: gradients((24, 24), 1, seed)[0] for seed, name in enumerate(names)}

    def after_a_step(g):
        params = {name: np.zeros((24, 24)) for name in names}
        optimizer = optim.Optimizer([rows[name] for name in names], params, settings(config))
        optimizer.step(params, g, 0)
        return params
    before = after_a_step(g)
    after = after_a_step(g | {"block0.key": gradients((24, 24), 1, 9)[0]})
    assert [np.array_equal(before[name], after[name]) for name in names] == [True, False, True]
    query = newton_schulz(g["block0.query"])
    assert distance(-before["block0.query"] / 0.1, query) < EXACT
    side_by_side = newton_schulz(np.concatenate([g[name] for name in names], axis=1))
    assert distance(side_by_side[:, :24], query) > 0.1            # one (24, 72) matrix mixes them


# QK-Clip

CLIPPED = replace(SMALL, optimizer="muonclip", width=32, head_dim=8, gains=False)    # four heads
QUERIES_AND_KEYS = ("query", "query.bias", "key", "key.bias")
LOGITS = "attention_logits"


@pytest.fixture
def attentions(monkeypatch):
    """A list that grows by (q, k, scale) of every attention that is computed."""
    seen, attention = [], ops.attention

    def noted(q, k, v, scale, *rest):
        seen.append((q.copy(), k.copy(), scale))
        return attention(q, k, v, scale, *rest)
    monkeypatch.setattr(ops, "attention", noted)
    return seen


def logits_one_by_one(q, k, scale):
    """(B, H, query, key) from the queries and keys (B, T, H, D); −inf for keys in the future."""
    batch, time, heads, _ = q.shape
    logits = np.full((batch, heads, time, time), -np.inf)
    for b, h, i in np.ndindex(batch, heads, time):
        for j in range(i + 1):
            logits[b, h, i, j] = scale * (q[b, i, h] * k[b, j, h]).sum()
    return logits


def forward_pass(network, params, ids, attentions):
    """name of the attention logits → (the maxima that training sees, all logits)."""
    attentions.clear()
    _, cache = network.model.forward(params, ids, network.architecture, network.scales)
    largest = network.model.largest_logits(cache)
    return {name: (s, logits_one_by_one(*inputs))
            for (name, s), inputs in zip(largest.items(), attentions, strict=True)}


def large_logits(config, seed=3):
    """A network, parameters with random biases and queries and keys times three, and a batch."""
    network = build(config)
    params = initialize(network.rows, seed, config.dtype)
    rng = np.random.default_rng(seed)
    for r in network.rows:
        if r.role == "vector":
            params[r.name] = rng.standard_normal(r.shape) / r.mult
        elif r.name.endswith((".query", ".key")):
            params[r.name] *= 3
    return network, params, rng.integers(0, data.VOCAB, (2, 6))


CLIP_CONFIGS = {
    "biases": config_of(CLIPPED), "no biases": config_of(CLIPPED, biases=False),
    "table 9": config_of(CLIPPED, param="mup-table9"),
    "sp": config_of(CLIPPED, param="sp", attn_mult=0.5), "u-mup": config_of(CLIPPED, param="umup")}


@pytest.mark.parametrize("block", ["block0.", "block1."])
@pytest.mark.parametrize("name", CLIP_CONFIGS)
def test_a_clipped_heads_largest_logit_becomes_the_threshold_and_other_heads_keep_theirs(
        name, block, attentions):
    """On the same batch, one block at a time: a clipped block changes the input of the next."""
    network, params, ids = large_logits(CLIP_CONFIGS[name])
    s, before = forward_pass(network, params, ids, attentions)[block + LOGITS]
    threshold = float(np.sort(s)[1:3].mean())                     # two heads above, two not
    clipped = {key: w.copy() for key, w in params.items()}
    optim.qk_clip(clipped, network.rows, {block + LOGITS: s}, threshold)
    after, now = forward_pass(network, clipped, ids, attentions)[block + LOGITS]
    above = s > threshold
    assert above.sum() == 2 and threshold > 0
    # The logits sum a few products of float64 numbers.
    assert after[above] == pytest.approx([threshold] * 2, rel=1e-12)
    assert np.array_equal(after[~above], s[~above])
    assert np.array_equal(now[:, ~above], before[:, ~above])
    seen = np.isfinite(before)
    gamma = np.minimum(1, threshold / s)[None, :, None, None]
    # Every logit, with RoPE and biases. Small ones are sums that cancel.
    assert now[seen] == pytest.approx((gamma * np.where(seen, before, 0))[seen], rel=1e-9, abs=1e-9)
    for key, w in params.items():
        if key.removeprefix(block) in QUERIES_AND_KEYS:
            heads, heads_now = (x.reshape(-1, 4, 8) for x in (w, clipped[key]))
            root = np.sqrt(threshold / s[above])[:, None]
            assert np.array_equal(heads_now[:, ~above], heads[:, ~above])
            assert heads_now[:, above] == pytest.approx(heads[:, above] * root, rel=1e-12)
        else:
            assert np.array_equal(clipped[key], w)    # values, outputs, the other block, all else


def ones_clipped(rows, largest, threshold=10.0):
    """Parameters of ones after QK-Clip."""
    params = {r.name: np.ones(r.shape) for r in rows}
    with np.errstate(all="ignore"):
        optim.qk_clip(params, rows, largest, threshold)
    return params


def test_logits_at_twice_the_threshold_scale_queries_and_keys_by_the_root_of_one_half_each():
    rows = build(complete(CLIPPED)).rows
    params = ones_clipped(rows, {"block1." + LOGITS: np.array([20.0, 5.0, 10.0, 40.0])})
    roots = np.repeat([math.sqrt(0.5), 1, 1, 0.5], 8)
    for r in rows:
        wanted = roots if r.name.removeprefix("block1.") in QUERIES_AND_KEYS else 1.0
        assert np.array_equal(params[r.name], np.broadcast_to(wanted, r.shape))


def test_block_1_is_not_block_10():
    rows = build(config_of(CLIPPED, depth=11)).rows
    params = ones_clipped(rows, {"block1." + LOGITS: np.full(4, 20.0)})
    changed = {name.partition(".")[0] for name, w in params.items() if (w != 1).any()}
    assert changed == {"block1"}


@pytest.mark.parametrize("biases", [True, False])
def test_the_model_declares_which_logits_its_queries_and_keys_and_their_biases_make(biases):
    network, params, ids = large_logits(config_of(CLIPPED, biases=biases))
    declared = {r.name: r.spec.logits for r in network.rows if r.spec.logits}
    parts = QUERIES_AND_KEYS if biases else ("query", "key")
    assert declared == {f"block{i}.{part}": f"block{i}.{LOGITS}"
                        for i in range(2) for part in parts}
    _, cache = network.model.forward(params, ids, network.architecture, network.scales)
    assert set(network.model.largest_logits(cache)) == set(declared.values())


def test_qk_clip_goes_by_what_a_spec_declares_and_not_by_its_name():
    """Here the parameters have exchanged names: a query is called block0.down or the like."""
    rows, s = build(complete(CLIPPED)).rows, np.array([20.0, 5.0, 10.0, 40.0])
    names = dict(zip((r.name for r in rows), (r.name for r in reversed(rows))))
    renamed = [r._replace(spec=r.spec._replace(
        name=names[r.name], logits=r.spec.logits and "scores " + r.spec.logits)) for r in rows]
    plain = ones_clipped(rows, {"block1." + LOGITS: s})
    params = ones_clipped(renamed, {"scores block1." + LOGITS: s})
    assert sum((w != 1).any() for w in params.values()) == len(QUERIES_AND_KEYS)
    for r in rows:
        assert np.array_equal(params[names[r.name]], plain[r.name])


def test_a_query_that_declares_no_logits_is_not_clipped():
    rows = [r._replace(spec=r.spec._replace(logits=None)) if r.name == "block0.query" else r
            for r in build(complete(CLIPPED)).rows]
    params = ones_clipped(rows, {f"block0.{LOGITS}": np.full(4, 20.0)})
    changed = {name for name, w in params.items() if (w != 1).any()}
    assert changed == {"block0.query.bias", "block0.key", "block0.key.bias"}


SMALL_LOGITS = np.array([-1e6, 0.0, 5.0, 10.0])       # the threshold is 10


def factors_of(s):
    """What QK-Clip multiplies the queries of each head with."""
    params = ones_clipped(build(complete(CLIPPED)).rows, {f"block0.{LOGITS}": s})
    return params["block0.query"].reshape(32, 4, 8)[0, :, 0]


def test_small_and_negative_maxima_do_nothing():
    assert np.array_equal(factors_of(SMALL_LOGITS), np.ones(4))
    assert (factors_of(np.linspace(-50, 50, 4)) <= 1).all()


def test_without_the_maximum_small_logits_would_be_raised(monkeypatch):
    class Unguarded:
        """NumPy whose maximum(s, threshold) forgets the threshold."""

        def __getattr__(self, name):
            return (lambda s, threshold: s) if name == "maximum" else getattr(np, name)
    monkeypatch.setattr(optim, "xp", Unguarded())
    factors = factors_of(SMALL_LOGITS)
    assert np.isnan(factors[0]) and np.isinf(factors[1]) and factors[2] > 1 and factors[3] == 1


TRAINED = replace(CLIPPED, steps=3, warmup=1, biases=True, lr=0.5, qk_clip_threshold=0.05)


def test_recorded_maxima_are_those_of_the_forward_that_ran_and_no_other_runs(attentions):
    config = complete(TRAINED)
    record, *_ = run.train(config, CORPUS, shown=False)
    assert len(attentions) == config.depth * (config.steps + run.HELD_OUT_BATCHES)
    assert [step for step, _ in record["largest_logits"]] == [1, 2, 3]
    recorded = [heads for _, blocks in record["largest_logits"] for heads in blocks]
    for heads, inputs in zip(recorded, attentions):
        largest = logits_one_by_one(*inputs).max((0, 2, 3))
        assert heads == pytest.approx(largest, rel=1e-4)          # recorded with five digits


def test_between_log_points_the_largest_is_kept(monkeypatch):
    config = config_of(TRAINED, steps=4, optimizer="muon")

    def recorded():
        record, *_ = run.train(config, CORPUS, shown=False)
        return np.array([heads for _, heads in record["largest_logits"]])
    each = recorded()
    monkeypatch.setattr(run, "LOGS", 2)
    assert each.shape == (4, 2, 4)
    assert np.array_equal(recorded(), each.reshape(2, 2, 2, 4).max(1))


def one_step(config):
    """Parameters, moments and maxima after a step of training as `run.train` does it."""
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    ids, targets = data.training_batch(CORPUS, config.seed, 0, config.batch, config.seq)
    largest = {}
    _, grads = network.loss_and_gradients(params, ids, targets, largest=largest)
    factor = optim.schedule(config.schedule, 0, config.steps, config.warmup)
    optimizer.step(params, grads, 0, factor)
    if config.optimizer == "muonclip":
        optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
    return params, optimizer.state, largest


def test_muonclip_is_muons_step_then_the_clip_by_maxima_from_before_the_step():
    config = config_of(TRAINED, steps=1, warmup=0)
    clipped, state, largest = one_step(config)
    plain, plain_state, _ = one_step(config_of(config, optimizer="muon"))
    _, _, trained = run.train(config, CORPUS, shown=False)
    assert all(np.array_equal(trained[name], w) for name, w in clipped.items())
    assert all(np.array_equal(state[name], m) for name, m in plain_state.items())
    for name, s in largest.items():
        assert (s > config.qk_clip_threshold).any()
        for part in QUERIES_AND_KEYS:
            w = plain[name.removesuffix(LOGITS) + part]
            w *= np.repeat(np.sqrt(np.minimum(1, config.qk_clip_threshold / s)), 8)
    # 1e-15: a few roundings of the factor
    assert all(distance(clipped[name], w) < 1e-15 for name, w in plain.items() if w.any())


def test_clipping_holds_logits_near_the_threshold_that_muon_alone_drives_up():
    peaks = {}
    for optimizer in ("muon", "muonclip"):
        config = config_of(optimizer=optimizer, biases=False, gains=False, lr=0.1, steps=40,
                           warmup=2, schedule="constant", qk_clip_threshold=1.0, dtype="float32")
        record, *_ = run.train(config, CORPUS, shown=False)
        logits = np.array([heads for _, heads in record["largest_logits"]])
        peaks[optimizer] = logits[-5:].max()
    # The clip goes by the batch before, so the next batch meets the threshold only roughly.
    assert peaks["muon"] > 6 and peaks["muonclip"] < 3


# The device

ON_DEVICE = {
    "muon": {}, "muon, sum, per head, moonlight": dict(
        momentum_form="sum", muon_per_head=True, muon_scale="moonlight"),
    "muonclip": dict(optimizer="muonclip", qk_clip_threshold=0.02),
    "muonclip, per head, table 9": dict(
        optimizer="muonclip", qk_clip_threshold=0.02, muon_per_head=True, param="mup-table9",
        ffn="swiglu", coefficients="polar-express"),
    "muonclip, u-mup": dict(optimizer="muonclip", qk_clip_threshold=0.02, param="umup", lr=0.01)}


def trained_steps(config, steps=3):
    """Parameters and moments after some steps with all that `run.train` does between log points."""
    network = build(config)
    params = initialize(network.rows, 0, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    for step in range(steps):
        batch = data.training_batch(CORPUS, 0, step, config.batch, config.seq)
        ids, targets = map(to_device, batch)
        largest = {}
        _, grads = network.loss_and_gradients(params, ids, targets, largest=largest)
        optimizer.step(params, grads, step)
        if config.optimizer == "muonclip":
            optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
    return params, optimizer.state


@pytest.mark.parametrize("name", ON_DEVICE)
def test_steps_on_the_device_are_the_same_to_the_last_bit_and_never_wait(name):
    config = config_of(dtype="float32", **ON_DEVICE[name])
    host = trained_steps(config)
    with strict_device.in_use() as counts:
        device = trained_steps(config)
        assert counts.syncs == 0 and counts.operations > 1000
        back = [{key: to_host(array) for key, array in arrays.items()} for arrays in device]
    for ours, theirs in zip(host, back):
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
