"""The theory's sentences: which tables are equal, what the base width means, what every cell is for."""
import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tinymup import optim
from tinymup.network import Config, build, complete
from tinymup.scaling import (
    DEPTH_RULES, MUP_TABLE3, MUP_TABLE8, MUP_TABLE9, ONE, PARAMETRIZATIONS, SHAPE_FACTORS, Hyperparameters, Parametrization, Power, Size, Spec, attention_scale, render, resolve, resolved, shifted, symbolic)
from trajectories import distance, logits_after

MUP = ("mup", "mup-table3", "mup-table9")
ALL = ("sp", "ntk", *MUP)


# ── the algebra of powers ────────────────────────────────────────────────────────────────────────────────────────────

def test_powers_multiply_and_are_raised_as_the_numbers_they_stand_for():
    a, b, size = Power(1, -1/2, 2), Power(-1/2, 1/4, 1), Size(3.0, 5.0, 7.0)
    assert a.at(size) == pytest.approx(3 / math.sqrt(5) * 49, rel=1e-15)
    assert a.times(b).at(size) == pytest.approx(a.at(size) * b.at(size), rel=1e-15)
    assert a.to_the(-3/2).at(size) == pytest.approx(a.at(size)**-1.5, rel=1e-15)
    assert a.times(a.to_the(-1)) == ONE and ONE.at(size) == 1 and a.at(Size()) == 1


def test_powers_are_written_as_one_would_by_hand():
    assert list(map(str, [ONE, Power(1), Power(0.5), Power(-1, 0.5), Power(-0.5, -1), Power(1, 1, -0.5), Power(1.5), Power(0, 0, -1/3)])) == [
        "1", "fan_in", "√fan_in", "√fan_out/fan_in", "1/√fan_in/fan_out", "fan_in·fan_out/√depth", "fan_in^3/2", "1/depth^1/3"]


# ── three tables, one parametrization: as exponents ──────────────────────────────────────────────────────────────────

PER_IN, PER_ROOT_IN, ROOT_OUT = Power(-1), Power(-1/2), Power(0, 1/2)


@pytest.mark.parametrize("table, moves", [
    (MUP_TABLE8, {"output": PER_IN}),
    (MUP_TABLE9, {"output": PER_ROOT_IN, "embedding": ROOT_OUT, "input": ROOT_OUT, "vector": ROOT_OUT}),
], ids=["table 8", "table 9"])
@pytest.mark.parametrize("role", MUP_TABLE3)
def test_tables_8_and_9_are_table_3_shifted_by_the_moves_of_the_paper(table, moves, role):
    assert table[role] == shifted(MUP_TABLE3[role], moves.get(role, ONE))          # as exponents: exactly
    assert (table[role] == MUP_TABLE3[role]) == (role not in moves)


def test_tied_row_of_table_9_is_that_of_table_8_shifted():
    assert MUP_TABLE9["tied"] == shifted(MUP_TABLE8["tied"], ROOT_OUT)
    readouts = [PARAMETRIZATIONS[param].tied_readout for param in ("mup", "mup-table9")]
    assert readouts[1] == readouts[0].times(ROOT_OUT)


def test_a_tied_matrix_is_both_an_embedding_and_a_readout_of_its_table():
    for table in (MUP_TABLE8, MUP_TABLE9):
        assert table["tied"] == table["embedding"]
        # its readout is x @ w.T: what is fan_out for the lookup is fan_in there
        assert {q: getattr(table["output"], q)[0] for q in ("init", "adamw")} == {q: getattr(table["tied"], q)[1] for q in ("init", "adamw")}


def test_shifts_compose_and_their_inverse_brings_back():
    rule, theta, other = MUP_TABLE3["hidden"], Power(1, -1/2), Power(-1/4, 2)
    assert shifted(shifted(rule, theta), other) == shifted(rule, theta.times(other))
    assert shifted(shifted(rule, theta), theta.to_the(-1)) == rule


@pytest.mark.parametrize("param", ALL)
def test_what_a_shift_leaves_alone_is_the_effective_weight_and_its_update(param):
    for role, rule in PARAMETRIZATIONS[param].rules.items():
        moved = shifted(rule, Power(1/2, -1))
        for r in (rule, moved):
            assert r.mult.times(r.lr("muon")) == Power(-1/2, 1/2)                  # the spectral condition, in every form
        assert moved.mult.times(moved.init) == rule.mult.times(rule.init)
        assert moved.mult.to_the(2).times(moved.sgd) == rule.mult.to_the(2).times(rule.sgd)
        assert moved.mult.times(moved.adamw) == rule.mult.times(rule.adamw)
        assert moved.eps.times(moved.mult.to_the(-1)) == rule.eps.times(rule.mult.to_the(-1))


# What the papers print, per role: init std, multiplier, SGD lr, Adam lr. (arXiv:2203.03466, Tables 3, 8, 9; FORMULAS §2.2.)
PRINTED = {
    "mup-table3": {"input": ("1", "1", "fan_out", "1"), "output": ("1/fan_in", "1", "1/fan_in", "1/fan_in"),
                   "hidden": ("1/√fan_in", "1", "fan_out/fan_in", "1/fan_in")},
    "mup": {"input": ("1", "1", "fan_out", "1"), "output": ("1", "1/fan_in", "fan_in", "1"),
            "hidden": ("1/√fan_in", "1", "fan_out/fan_in", "1/fan_in")},
    "mup-table9": {"input": ("1/√fan_out", "√fan_out", "1", "1/√fan_out"), "output": ("1/√fan_in", "1/√fan_in", "1", "1/√fan_in"),
                   "hidden": ("1/√fan_in", "1", "fan_out/fan_in", "1/fan_in")},
    "sp": {"input": ("1", "1", "1", "1"), "output": ("1/√fan_in", "1", "1", "1"), "hidden": ("1/√fan_in", "1", "1", "1")},
    "ntk": {"input": ("1", "1", "1", "1/√fan_out"), "output": ("1", "1/√fan_in", "1", "1/√fan_in"),
            "hidden": ("1", "1/√fan_in", "1", "1/fan_in")},
}
# And ε after the root, FORMULAS §2.6. SP leaves it alone.
PRINTED_EPS = {
    "mup-table3": {"input": "1/fan_out", "hidden": "1/fan_in", "output": "1"},
    "mup": {"input": "1/fan_out", "hidden": "1/fan_in", "output": "1/fan_in"},
    "mup-table9": {"input": "1/√fan_out", "hidden": "1/fan_in", "output": "1/√fan_in"},
    "sp": {"input": "1", "hidden": "1", "output": "1"}}


@pytest.mark.parametrize("param", ALL)
def test_cells_are_those_the_papers_print(param):
    rules = PARAMETRIZATIONS[param].rules
    for role, printed in PRINTED[param].items():
        assert tuple(map(str, rules[role][:4])) == printed
    for role, printed in PRINTED_EPS.get(param, {}).items():
        assert str(rules[role].eps) == printed
    assert rules["embedding"] == rules["input"] == rules["vector"]                 # "input weights & all biases"
    assert set(rules["scalar"]) == {ONE}


# ── three tables, one training run ───────────────────────────────────────────────────────────────────────────────────

# A width three times the base's, so that rounding differs between the forms; biases and gains, so that all roles occur.
TRANSFORMER = Config(width=24, head_dim=8, depth=2, base_width=8, base_head_dim=4, base_depth=1, gains=True, biases=True,
                     batch=2, seq=6, dtype="float64")
NETS = {
    "transformer": TRANSFORMER,
    "swiglu": replace(TRANSFORMER, ffn="swiglu"),                                  # 8/3 C in steps of 8: grows 16 → 64
    "completep": replace(TRANSFORMER, depth_rule="completep"),
    "mlp": Config(model="mlp", width=24, depth=2, base_width=8, batch=2, seq=6, dtype="float64"),
}
OPTIMIZERS = {
    "sgd": dict(optimizer="sgd", lr=1.0),
    "nesterov": dict(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd coupled": dict(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.1, decay_form="coupled"),
    "adamw": dict(optimizer="adamw", lr=0.03, eps=1e-3, weight_decay=0.01),
    "adamw coupled": dict(optimizer="adamw", lr=0.03, eps=1e-3, weight_decay=0.3, decay_form="coupled"),
    "muon": dict(optimizer="muon", lr=0.1, adam_lr=0.03, eps=1e-3, weight_decay=0.01),
    "muon, moonlight": dict(optimizer="muon", muon_scale="moonlight", lr=0.1, adam_lr=0.03, eps=1e-3, weight_decay=0.3, decay_form="coupled"),
}
EXACT = 1e-10    # seen: at most 2e-13; float64's rounding, grown over the steps


def differ(config, params=MUP):
    """How far the trajectories of several parametrizations are from that of the first, at most; and how far that one went."""
    first, *others = (logits_after(replace(config, param=param)) for param in params)
    assert distance(first, first[0]) > 0.05                                        # it did learn
    return max(distance(other, first) for other in others)


@pytest.mark.parametrize("clip", [0.0, 0.1], ids=["", "clip"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_tables_3_8_and_9_train_to_the_same_logits(net, optimizer, clip):
    assert differ(replace(NETS[net], clip=clip, **OPTIMIZERS[optimizer])) < EXACT


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_tables_8_and_9_train_to_the_same_logits_with_tied_embeddings(optimizer):
    config = replace(TRANSFORMER, tied=True, embed_mult=0.5, clip=0.1, **OPTIMIZERS[optimizer])
    assert differ(config, ("mup", "mup-table9")) < EXACT


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_mup_is_neither_sp_nor_ntk_away_from_the_base_width(optimizer):
    config = replace(TRANSFORMER, **OPTIMIZERS[optimizer])
    assert differ(config, ("mup", "sp")) > 1e-2 < differ(config, ("mup", "ntk"))


CELLS = [(net, role, cell, optimizer)
         for net, roles in (("transformer", ("embedding", "hidden", "output", "vector")), ("mlp", ("input", "hidden", "output", "vector")))
         for role in roles for cell, optimizer in (("init", "adamw"), ("mult", "adamw"), ("adamw", "adamw"), ("eps", "adamw"), ("sgd", "sgd"))
         if not (net == "mlp" and role == "vector" and cell == "init")]            # its biases start at 0: nothing to scale


@pytest.mark.parametrize("net, role, cell, optimizer", CELLS)
def test_one_wrong_cell_breaks_the_equivalence(monkeypatch, net, role, cell, optimizer):
    wrong = getattr(MUP_TABLE9[role], cell).times(Power(fan_out=1/2) if role != "output" else Power(fan_in=1/2))
    monkeypatch.setitem(MUP_TABLE9, role, MUP_TABLE9[role]._replace(**{cell: wrong}))
    assert differ(replace(NETS[net], **OPTIMIZERS[optimizer])) > 1e-4              # seen: at least 5e-4


def test_clipping_the_norm_of_the_plain_gradients_breaks_the_equivalence(monkeypatch):
    config = replace(TRANSFORMER, clip=0.1, **OPTIMIZERS["sgd"])
    right = optim.clip
    monkeypatch.setattr(optim, "clip", lambda grads, rows, most: right(grads, [row._replace(mult=1.0) for row in rows], most))
    assert differ(config) > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("param", ["sp", "ntk", "mup"])
def test_any_shift_of_any_rule_trains_alike(monkeypatch, param, optimizer):
    """The abc-symmetry, with a factor per role that no table has."""
    rng = np.random.default_rng(0)
    thetas = {role: Power(*rng.uniform(-1, 1, 2)) for role in PARAMETRIZATIONS[param].rules}
    for tied in (False, True):
        table = PARAMETRIZATIONS[param]
        readout = table.tied_readout.times(Power(fan_out=thetas["tied"].fan_out))
        moved = Parametrization("moved", {role: shifted(rule, thetas[role]) for role, rule in table.rules.items()}, table.attention, readout)
        monkeypatch.setitem(PARAMETRIZATIONS, "moved", moved)
        config = replace(TRANSFORMER, tied=tied, clip=0.1, **OPTIMIZERS[optimizer])
        assert differ(config, (param, "moved")) < EXACT
    assert thetas["tied"].fan_out and moved.rules != table.rules


# ── at the base width, all are one ───────────────────────────────────────────────────────────────────────────────────

BASE = Config(width=8, head_dim=4, depth=2, base_width=8, base_head_dim=4, base_depth=2, batch=2, seq=6)


@pytest.mark.parametrize("options", [
    {}, dict(gains=True, biases=True), dict(tied=True), dict(ffn="swiglu", depth_rule="completep"),
    dict(model="mlp", head_dim=32, base_head_dim=32),
    dict(tied=True, embed_mult=3.0, output_mult=2.0, attn_mult=0.5, init_scale=0.7)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw coupled"])
def test_at_the_base_width_every_parametrization_is_sp_to_the_last_bit(options, optimizer):
    config = replace(BASE, **options, **OPTIMIZERS[optimizer])
    sp = build(complete(replace(config, param="sp")))
    start = logits_after(replace(config, param="sp"), steps=3)
    for param in ALL:
        if param == "mup-table3" and config.tied:
            continue
        network = build(complete(replace(config, param=param)))
        assert network.rows == sp.rows and network.scales == sp.scales
        assert np.array_equal(logits_after(replace(config, param=param), steps=3), start)


@pytest.mark.parametrize("param", ["ntk", *MUP])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_away_from_the_base_width_they_differ(param, optimizer):
    specs = [Spec("hidden", "hidden", (32, 32), (8, 8)), Spec("output", "output", (32, 256), (8, 256)), Spec("bias", "vector", (32,), (8,))]
    assert resolve(specs, param, optimizer) != resolve(specs, "sp", optimizer)


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────

VOCAB = 256
MUP_PACKAGE = [    # base d = 16, d_ff = 64; target d = 64, d_ff = 512
    Spec("up", "hidden", (64, 512), (16, 64)), Spec("down", "hidden", (512, 64), (64, 16)),
    Spec("embedding", "embedding", (VOCAB, 64), (VOCAB, 16)), Spec("norm", "vector", (64,), (16,)), Spec("down.bias", "vector", (64,), (16,)),
    Spec("readout", "output", (64, VOCAB), (16, VOCAB)), Spec("up.bias", "vector", (512,), (64,)),
    Spec("readout.bias", "scalar", (VOCAB,), (VOCAB,))]


@pytest.mark.parametrize("optimizer, wanted", [
    ("adamw", {"up": (0.25, 0.4), "down": (0.125, 0.8)}
     | dict.fromkeys(("embedding", "norm", "down.bias", "readout", "up.bias", "readout.bias"), (1, 0.1))),
    ("sgd", {"up": (2, 0.05), "down": (0.5, 0.2), "up.bias": (8, 0.0125), "readout.bias": (1, 0.1)}
     | dict.fromkeys(("embedding", "norm", "down.bias", "readout"), (4, 0.025)))])
def test_learning_rates_and_weight_decays_are_those_of_the_mup_package(optimizer, wanted):
    """What MuAdamW and MuSGD of microsoft/mup give to the same shapes with lr 1 and weight decay 0.1."""
    rows = resolve(MUP_PACKAGE, "mup", optimizer, Hyperparameters(lr=1, weight_decay=0.1, decay_form="coupled"))
    assert {row.name: (row.lr, row.weight_decay) for row in rows} == {name: pytest.approx(pair, rel=1e-15) for name, pair in wanted.items()}


def test_multiplier_and_initialisation_of_a_readout_are_those_of_the_mup_package():
    rows = {row.name: row for row in resolve(MUP_PACKAGE, "mup")}
    assert rows["readout"].mult == 1 / 4 and rows["readout.bias"].mult == 1        # MuReadout does not divide its bias
    assert rows["readout"].std == 1 / math.sqrt(16)                                # 1/√64, rescaled by 2
    assert rows["up"].std == 1 / math.sqrt(64) and rows["down"].std == pytest.approx(1 / math.sqrt(512), rel=1e-15)


@pytest.mark.parametrize("rule, alpha", [("depth-mup", 1/2), ("completep", 1)])
def test_depth_rules_are_table_1_of_completep(rule, alpha):
    specs = [Spec("inside", "hidden", (32, 32), (8, 8), in_branch=True), Spec("outside", "hidden", (32, 32), (8, 8))]
    m, deep = 4, 9
    for optimizer, power in (("adamw", alpha - 1), ("sgd", 2 * alpha - 1), ("muon", alpha - 1)):
        inside, outside = resolve(specs, "mup", optimizer, depth_ratio=deep, depth_rule=rule)
        plain = resolve(specs, "mup", optimizer)[0]
        assert outside == plain._replace(name="outside")                           # depth counts inside a branch only
        assert inside.lr == pytest.approx(plain.lr * deep**power, rel=1e-15)
        assert inside.eps == pytest.approx(plain.eps * deep**-alpha, rel=1e-15) and plain.eps == 1e-8 / m
        assert (inside.std, inside.mult) == (plain.std, plain.mult)
    assert DEPTH_RULES[rule].branch.at(Size(depth=deep)) == pytest.approx(deep**-alpha, rel=1e-15)


def test_attention_is_scaled_by_the_root_of_the_head_dimension_in_sp_and_by_itself_in_mup():
    for d in (8, 32, 128):
        for param in ("sp", "ntk"):
            assert attention_scale(param, d, 32) == pytest.approx(1 / math.sqrt(d), rel=1e-15)
        for param in MUP:
            assert attention_scale(param, d, 32) == pytest.approx(math.sqrt(32) / d, rel=1e-15)
    assert attention_scale("mup", 64, 64) == 8 / 64                                # "8/d" of the mup package's README


# ── weight decay ─────────────────────────────────────────────────────────────────────────────────────────────────────

def rows_at(width, param="mup", optimizer="adamw", **options):
    """Rows by name over the base width 16, with a feed-forward layer that grows twice as much as the width, 64 → 8 · width."""
    ffn = 64 if width == 16 else 8 * width
    specs = [Spec("embedding", "embedding", (VOCAB, width), (VOCAB, 16)), Spec("square", "hidden", (width, width), (16, 16)),
             Spec("up", "hidden", (width, ffn), (16, 64)), Spec("down", "hidden", (ffn, width), (64, 16)),
             Spec("output", "output", (width, VOCAB), (16, VOCAB)), Spec("bias", "vector", (width,), (16,))]
    return {row.name: row for row in resolve(specs, param, optimizer, Hyperparameters(**options))}


def shrinkage(param, optimizer, form, width, forgets_lambda=False):
    """What one step with gradients of zero takes off each parameter, seen on the parameters themselves."""
    config = complete(replace(TRANSFORMER, param=param, optimizer=optimizer, lr=0.5, weight_decay=0.1, decay_form=form, width=width))
    network = build(config)
    rows = network.rows
    if forgets_lambda:
        rows = [row._replace(shrink=row.lr * config.weight_decay) for row in rows]
    params = {row.name: np.ones(row.shape) for row in rows}
    optim.Optimizer(rows, params, config).step(params, {name: np.zeros_like(w) for name, w in params.items()}, 0, 1.0)
    return {name: 1 - w.mean() for name, w in params.items()}


@pytest.mark.parametrize("form, wanted", [("independent", 0.1), ("coupled", 0.05)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("param", ALL)
def test_weight_decay_takes_off_the_same_part_at_every_width(param, optimizer, form, wanted):
    for width in (8, 64):
        taken = shrinkage(param, optimizer, form, width)
        assert list(taken.values()) == pytest.approx([wanted] * len(taken), rel=1e-12)


def test_weight_decay_multiplied_by_a_scaled_lr_and_not_itself_scaled_fades_with_width():
    """The defect of nanoGPT-mup: λ the same for all widths and lr·λ taken off."""
    taken = [shrinkage("mup", "adamw", "coupled", width, forgets_lambda=True)["block0.query"] for width in (8, 64)]
    assert taken[0] == pytest.approx(8 * taken[1], rel=1e-12)


def test_independent_weight_decay_does_not_feel_the_learning_rate():
    for lr in (1e-3, 1.0):
        assert {row.shrink for row in rows_at(64, lr=lr, weight_decay=0.1).values()} == {0.1}
        coupled = rows_at(64, lr=lr, weight_decay=0.1, decay_form="coupled").values()
        assert [row.shrink for row in coupled] == pytest.approx([0.1 * lr] * len(coupled), rel=1e-15)


# ── Muon's column ────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("scale, exponent", [("spectral", 0), ("keller", 0), ("moonlight", -1/2)])
@pytest.mark.parametrize("param", ["sp", *MUP])
def test_muons_learning_rate_of_a_square_hidden_matrix_is_the_formula(param, scale, exponent):
    base, wide = (rows_at(width, param, "muon", muon_scale=scale)["square"] for width in (16, 256))
    assert base.lr == Hyperparameters().lr                         # the user's lr is the factor on s·O at the base
    assert wide.lr / base.lr == pytest.approx(16**exponent, rel=1e-15)


@pytest.mark.parametrize("name", ["square", "up", "down"])
@pytest.mark.parametrize("param", ALL)
def test_muons_whole_step_is_the_same_power_of_width_whatever_the_shape_factor(param, name):
    """lr · s over its value at the base is C·s = √(fan_out/fan_in)/A: no rule counts a width twice, also where ratios differ."""
    for scale in SHAPE_FACTORS:
        base, wide = (rows_at(width, param, "muon", muon_scale=scale)[name] for width in (16, 256))
        m_in, m_out = (here / there for here, there in zip(wide.shape, base.shape))
        growth = wide.lr * wide.shape_factor / (base.lr * base.shape_factor)
        assert growth * wide.mult == pytest.approx(math.sqrt(m_out / m_in), rel=1e-14)
        assert wide.shape_factor == SHAPE_FACTORS[scale](*wide.shape)


def test_shape_factors_are_those_of_their_sources():
    """FORMULAS §5.3, on (fan_in, fan_out), one matrix wider than tall and its transpose."""
    assert {name: (s(64, 256), s(256, 64)) for name, s in SHAPE_FACTORS.items()} == {
        "spectral": (2, 0.5), "keller": (2, 1), "moonlight": (3.2, 3.2), "none": (1, 1)}


def test_muon_takes_the_hidden_matrices_and_leaves_the_rest_to_adamw():
    rows = rows_at(256, "mup", "muon", lr=0.5, adam_lr=0.01)
    assert {name for name, row in rows.items() if row.optimizer == "muon"} == {"square", "up", "down"}
    adamw = rows_at(256, "mup", "adamw", lr=0.01)
    assert all(rows[name] == adamw[name] for name in ("embedding", "output", "bias"))
    assert rows_at(256, "mup", "muon", lr=0.5)["output"].lr == 0.5                 # without an lr of their own they share


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("param", ALL)
def test_a_role_without_a_rule_is_an_error_that_names_the_parameter(param):
    for role in ("", "hiden", "Hidden"):
        with pytest.raises(ValueError, match=rf"(?s)block7\.query.*{role!r}.*hidden"):
            resolve([Spec("block7.query", role, (8, 8), (8, 8))], param)


def test_tied_embeddings_in_table_3_are_an_error_that_says_where_they_can_be():
    with pytest.raises(ValueError, match="embedding.*'tied'.*tie embeddings under sp, ntk, mup or mup-table9"):
        build(complete(replace(TRANSFORMER, tied=True, param="mup-table3")))
    for param in set(ALL) - {"mup-table3"}:
        build(complete(replace(TRANSFORMER, tied=True, param=param)))


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

def parsed(text, format):
    """A rendered table as a list of rows of cells, the header first."""
    if format == "json":
        records = json.loads(text)
        return [list(records[0])] + [list(record.values()) for record in records]
    if format == "csv":
        return list(csv.reader(io.StringIO(text)))
    if format == "latex":
        for tex, plain in ((r"$\sqrt{\mathrm{fan\_out}}$", "√fan_out"), (r"$\sqrt{\mathrm{fan\_in}}$", "√fan_in"), (r"$\varepsilon$", "ε"),
                           (r"$\times$", "×"), (r"$\cdot$", "·"), (r"\_", "_"), (r" \hline", "")):
            text = text.replace(tex, plain)
        return [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    lines = [line.strip("|") for line in text.splitlines()]
    return [[cell.strip() for cell in line.split("|")] for i, line in enumerate(lines) if i != 1]


TABLES = {f"symbolic {param}": symbolic(param) for param in ALL} | {
    f"resolved {param}": resolved(build(complete(replace(TRANSFORMER, param=param))).rows) for param in ALL}


@pytest.mark.parametrize("format", ["markdown", "json", "csv", "latex"])
@pytest.mark.parametrize("table", TABLES)
def test_a_printed_table_reads_back_as_the_same_cells(table, format):
    header, *rows = parsed(render(TABLES[table], format), format)
    assert header == list(TABLES[table][0]) and len(rows) == len(TABLES[table])
    for row, record in zip(rows, TABLES[table]):
        for cell, original in zip(row, record.values(), strict=True):
            if isinstance(original, str) or format == "json":
                assert cell == original
            else:
                assert float(cell) == pytest.approx(original, rel=5e-4)            # four digits


@pytest.mark.parametrize("param", ALL)
def test_markdown_columns_line_up(param):
    for records in (symbolic(param), TABLES[f"resolved {param}"]):
        assert len(set(map(len, render(records).splitlines()))) == 1


@pytest.mark.parametrize("table", TABLES)
def test_latex_has_no_character_that_pdflatex_refuses(table):
    text = render(TABLES[table], "latex")
    assert text.isascii()
    outside = "".join(text.split("$")[::2]).replace(r"\_", "").replace(r"\\", "")
    assert not set("_^%#~") & set(outside)
    assert text.startswith(r"\begin{tabular}") and text.endswith(r"\end{tabular}")
