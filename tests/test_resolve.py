"""The tables applied to parameters: specs in, rows out, and nothing that depends on a name."""
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from test_scaling import BASED, FORMS_OF_MUP, TRANSFORMER, with_eps
from tinymup import optim, transformer
from tinymup.lab import data, run
from tinymup.lab.config import MODELS, Config, build, complete, normalised, settings
from tinymup.network import initialize
from tinymup.resolve import (
    Hyperparameters, Spec, attention_scale, branch_weight, relative_to, resolve)
from tinymup.scaling import DEPTH_RULES, PARAMETRIZATIONS, PER_IN, SHAPE_FACTORS, Size

VOCAB = 256


# Specs and their base

def test_relative_to_adds_the_sizes_of_the_base_model_and_nothing_else():
    here, base = (list(transformer.specs(transformer.Architecture(width=w, head_dim=d, gains=True)))
                  for w, d in ((128, 32), (64, 16)))
    for spec, old, small in zip(relative_to(here, base), here, base, strict=True):
        assert (spec.base_shape, spec.base_head_dim) == (small.shape, small.head_dim)
        assert spec._replace(base_shape=None, base_head_dim=None) == old


@pytest.mark.parametrize("base", [dict(depth=3), dict(biases=True), dict(tied=True)])
def test_a_base_model_with_other_parameters_is_an_error(base):
    architecture = transformer.Architecture()
    with pytest.raises(ValueError, match="different parameters"):
        relative_to(transformer.specs(architecture),
                    transformer.specs(architecture._replace(**base)))


def test_specs_without_a_base_are_their_own_base():
    spec = Spec("w", "hidden", (32, 48), head_dim=8)
    for param in BASED:
        hyper = Hyperparameters(param=param, optimizer="muon", muon_per_head=True)
        own, = resolve([spec._replace(base_shape=spec.shape, base_head_dim=8)], hyper)
        row, = resolve([spec], hyper)
        assert row._replace(spec=None) == own._replace(spec=None)


def test_a_row_has_the_name_role_and_shape_of_its_spec():
    row, = resolve([Spec("w", "hidden", (32, 48))])
    assert (row.name, row.role, row.shape) == ("w", "hidden", (32, 48))


@pytest.mark.parametrize("param", BASED)
def test_a_role_without_a_rule_is_an_error_that_names_the_parameter(param):
    for role in ("", "hiden", "Hidden"):
        with pytest.raises(ValueError, match=rf"(?s)block7\.query.*{role!r}.*hidden"):
            resolve([Spec("block7.query", role, (8, 8))], Hyperparameters(param=param))


def test_tied_embeddings_without_a_rule_are_an_error_that_says_where_they_can_be():
    tied = [Spec("embedding", "tied", (VOCAB, 8))]
    for param in ("mup-table3", "umup"):
        with pytest.raises(ValueError, match="embedding.*'tied'.*tie embeddings under sp, ntk, mup "
                                             "or mup-table9"):
            resolve(tied, Hyperparameters(param=param))
        with pytest.raises(ValueError, match=f"--tied on: --param {param} .*use mup"):
            complete(normalised(replace(TRANSFORMER, tied=True, param=param)))
    for param in ("sp", "ntk", "mup", "mup-table9"):
        build(complete(replace(TRANSFORMER, tied=True, param=param)))


def test_a_hidden_parameter_that_is_no_matrix_is_an_error_under_muon():
    with pytest.raises(ValueError, match=r"parameter w has shape \(8,\), and Muon takes matrices"):
        resolve([Spec("w", "hidden", (8,))], Hyperparameters(optimizer="muon"))


@pytest.mark.parametrize("param", ["ntk", *FORMS_OF_MUP])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_away_from_the_base_width_no_parametrization_is_sp(param, optimizer):
    specs = [Spec("hidden", "hidden", (32, 32), base_shape=(8, 8)),
             Spec("output", "output", (32, 256), base_shape=(8, 256)),
             Spec("bias", "vector", (32,), base_shape=(8,))]
    rows, sp = (resolve(specs, Hyperparameters(param=p, optimizer=optimizer))
                for p in (param, "sp"))
    assert rows != sp


# The mup package

MUP_PACKAGE = [   # base width 16 and feed-forward width 64, here 64 and 512
    Spec("up", "hidden", (64, 512), base_shape=(16, 64)),
    Spec("down", "hidden", (512, 64), base_shape=(64, 16)),
    Spec("embedding", "embedding", (VOCAB, 64), base_shape=(VOCAB, 16)),
    Spec("norm", "vector", (64,), base_shape=(16,)),
    Spec("down.bias", "vector", (64,), base_shape=(16,)),
    Spec("readout", "output", (64, VOCAB), base_shape=(16, VOCAB)),
    Spec("up.bias", "vector", (512,), base_shape=(64,)),
    Spec("readout.bias", "scalar", (VOCAB,), base_shape=(VOCAB,))]


@pytest.mark.parametrize("optimizer, wanted", [
    ("adamw", {"up": (0.25, 0.4), "down": (0.125, 0.8), "embedding": (1, 0.1), "norm": (1, 0.1),
               "down.bias": (1, 0.1), "readout": (1, 0.1), "up.bias": (1, 0.1),
               "readout.bias": (1, 0.1)}),
    ("sgd", {"up": (2, 0.05), "down": (0.5, 0.2), "embedding": (4, 0.025), "norm": (4, 0.025),
             "down.bias": (4, 0.025), "readout": (4, 0.025), "up.bias": (8, 0.0125),
             "readout.bias": (1, 0.1)})])
def test_learning_rates_and_weight_decays_are_those_of_the_mup_package(optimizer, wanted):
    """What MuAdamW and MuSGD of microsoft/mup give these shapes for lr 1 and weight decay 0.1."""
    rows = resolve(MUP_PACKAGE, Hyperparameters(optimizer=optimizer, lr=1, weight_decay=0.1,
                                                decay_form="coupled"))
    assert {row.name: (row.lr, row.weight_decay) for row in rows} == {
        name: pytest.approx(pair, rel=1e-15) for name, pair in wanted.items()}


def test_multiplier_and_initialisation_of_a_readout_are_those_of_the_mup_package():
    rows = {row.name: row for row in resolve(MUP_PACKAGE)}
    assert rows["readout"].mult == 1 / 4
    assert rows["readout.bias"].mult == 1            # MuReadout does not divide its bias
    assert rows["readout"].std == 1 / math.sqrt(16)  # 1/√64, rescaled by 2
    assert rows["up"].std == 1 / math.sqrt(64)
    assert rows["down"].std == pytest.approx(1 / math.sqrt(512), rel=1e-15)


# Depth and attention

@pytest.mark.parametrize("rule, alpha", [("depth-mup", 1/2), ("completep", 1)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_depth_rules_are_table_1_of_completep(rule, alpha, optimizer):
    specs = [Spec("inside", "hidden", (32, 32), base_shape=(8, 8), in_branch=True),
             Spec("outside", "hidden", (32, 32), base_shape=(8, 8))]
    m, deep = 4, 9
    hyper = Hyperparameters(optimizer=optimizer)
    inside, outside = resolve(specs, hyper._replace(depth_rule=rule), depth_ratio=deep)
    plain = resolve(specs, hyper)[0]
    power = 2 * alpha - 1 if optimizer == "sgd" else alpha - 1
    assert outside == plain._replace(spec=specs[1])   # depth counts inside a branch only
    assert inside.lr == pytest.approx(plain.lr * deep**power, rel=1e-15)
    assert inside.eps == pytest.approx(plain.eps * deep**-alpha, rel=1e-15)
    assert plain.eps == 1e-8 / m
    assert (inside.std, inside.mult) == (plain.std, plain.mult)
    assert DEPTH_RULES[rule].branch.at(Size(depth=deep)) == pytest.approx(deep**-alpha, rel=1e-15)
    assert branch_weight(rule, deep) == pytest.approx(deep**-alpha, rel=1e-15)


# A network four times as wide and nine times as deep as its base.
M_N, M_L = 4.0, 9.0
LARGE = Config(width=64, base_width=16, depth=18, base_depth=2, gains=True, biases=True, lr=1.0)
DEEP = {1/2: "depth-mup", 1: "completep"}


def completep(alpha):
    """{parameter: (lr over η, ε over its base, coupled λ over λ₀)} of CompleteP's Table 1.

    Embedding and readout keep their lr at every depth. ε in a block is μP's 1/m_N times m_L^-α.
    """
    eps, deep = M_L**-alpha / M_N, M_L**(alpha - 1)
    matrix, vector, outside = (deep / M_N, eps, M_N / deep), (deep, eps, 1 / deep), (1, 1 / M_N, 1)
    return {"embedding": outside, "final_norm": outside, "output": outside,
            "block4.query": matrix, "block4.down": matrix,
            "block4.attention_norm": vector, "block4.up.bias": vector}


def rows_of(alpha, **options):
    net = build(complete(replace(LARGE, depth_rule=DEEP.get(alpha, "none"), **options)))
    return {row.name: row for row in net.rows}


@pytest.mark.parametrize("alpha", DEEP)
def test_resolved_rows_are_the_table_of_completep(alpha):
    rows = rows_of(alpha, eps=1.0, weight_decay=0.1, decay_form="coupled")
    flat = rows_of(None)
    for name, (lr, eps, _) in completep(alpha).items():
        row = rows[name]
        assert (row.lr, row.eps) == pytest.approx((lr, eps), rel=1e-14)
        # depth changes no initial value
        assert (row.std, row.mult, row.mean) == (flat[name].std, flat[name].mult, flat[name].mean)


@pytest.mark.parametrize("alpha", DEEP)
def test_branches_have_the_weight_of_the_depth_rule_and_the_stream_has_1(alpha):
    net = build(complete(replace(LARGE, depth_rule=DEEP[alpha])))
    assert {(b.amount, b.enter, b.skip, b.leave) for b in net.scales.branches} == {
        (M_L**-alpha, M_L**-alpha, 1, 1)}


@pytest.mark.parametrize("alpha", DEEP)
@pytest.mark.parametrize("form", ("coupled", "independent"))
def test_depth_does_not_change_what_weight_decay_removes_per_step(form, alpha):
    """The paper's table has λ·m_N at every depth, so lr·λ falls with depth for α = ½.

    Here λ makes up for the lr. For α = 1 both are the same.
    """
    rows = rows_of(alpha, weight_decay=0.1, decay_form=form)
    shrinks = [row.shrink for row in rows.values()]
    assert shrinks == pytest.approx([0.1] * len(rows), rel=1e-14)
    if form == "coupled":
        wanted = {name: decay for name, (_, _, decay) in completep(alpha).items()}
        assert {name: rows[name].weight_decay / 0.1 for name in wanted} == pytest.approx(
            wanted, rel=1e-14)
    if alpha == 1 and form == "coupled":
        assert rows["block4.query"].weight_decay / 0.1 == pytest.approx(M_N, rel=1e-14)


@pytest.mark.parametrize("alpha", DEEP)
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_depth_cells_of_sgd_and_muon_are_the_derived_ones(alpha, optimizer):
    """A gradient carries the branch weight once; Muon's step and AdamW's do not carry it."""
    power = 2 * alpha - 1 if optimizer == "sgd" else alpha - 1
    rows, flat = rows_of(alpha, optimizer=optimizer), rows_of(None, optimizer=optimizer)
    for name in ("block0.query", "block17.down", "block3.key.bias"):
        assert rows[name].lr / flat[name].lr == pytest.approx(M_L**power, rel=1e-14)
    for name in ("embedding", "final_norm", "output"):
        assert rows[name].lr == flat[name].lr


def test_attention_scale_is_one_over_root_d_in_sp_and_one_over_d_in_mup():
    for d in (8, 32, 128):
        for param in ("sp", "ntk"):
            assert attention_scale(param, d, 32) == pytest.approx(1 / math.sqrt(d), rel=1e-15)
        for param in FORMS_OF_MUP:
            assert attention_scale(param, d, 32) == pytest.approx(math.sqrt(32) / d, rel=1e-15)
        assert attention_scale("umup", d, None) == pytest.approx(1 / d, rel=1e-15)
    assert attention_scale("mup", 64, 64) == 8 / 64   # "8/d" of the mup package's README


# Weight decay

def rows_at(width, **hyper):
    """Rows by name over the base width 16; the feed-forward layer grows twice as much, from 64."""
    ffn = 64 if width == 16 else 8 * width

    def specs(width, ffn):
        return [Spec("embedding", "embedding", (VOCAB, width)),
                Spec("square", "hidden", (width, width)), Spec("up", "hidden", (width, ffn)),
                Spec("down", "hidden", (ffn, width)), Spec("output", "output", (width, VOCAB)),
                Spec("bias", "vector", (width,))]
    rows = resolve(relative_to(specs(width, ffn), specs(16, 64)), Hyperparameters(**hyper))
    return {row.name: row for row in rows}


def shrinkage(param, optimizer, form, width, forgets_lambda=False):
    """The part of each parameter that one step with zero gradients removes, measured on it."""
    config = complete(replace(TRANSFORMER, param=param, optimizer=optimizer, lr=0.5,
                              weight_decay=0.1, decay_form=form, width=width))
    rows = build(config).rows
    if forgets_lambda:
        rows = [row._replace(shrink=row.lr * config.weight_decay) for row in rows]
    params = {row.name: np.ones(row.shape) for row in rows}
    zeros = {name: np.zeros_like(w) for name, w in params.items()}
    optim.Optimizer(rows, params, settings(config)).step(params, zeros, 0)
    return {name: 1 - w.mean() for name, w in params.items()}


@pytest.mark.parametrize("form, wanted", [("independent", 0.1), ("coupled", 0.05)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("param", BASED)
def test_weight_decay_removes_the_same_part_at_every_width(param, optimizer, form, wanted):
    for width in (8, 64):
        removed = shrinkage(param, optimizer, form, width)
        assert list(removed.values()) == pytest.approx([wanted] * len(removed), rel=1e-12)


def test_a_coupled_decay_whose_lambda_is_not_scaled_fades_with_width():
    """The defect of nanoGPT-mup: λ is the same for all widths, and lr·λ is removed."""
    removed = [shrinkage("mup", "adamw", "coupled", width, forgets_lambda=True)["block0.query"]
               for width in (8, 64)]
    assert removed[0] == pytest.approx(8 * removed[1], rel=1e-12)


def test_independent_weight_decay_does_not_depend_on_the_learning_rate():
    for lr in (1e-3, 1.0):
        rows = rows_at(64, lr=lr, weight_decay=0.1).values()
        assert {row.shrink for row in rows} == {0.1}
        coupled = rows_at(64, lr=lr, weight_decay=0.1, decay_form="coupled").values()
        assert [row.shrink for row in coupled] == pytest.approx([0.1 * lr] * len(rows), rel=1e-15)


# Muon's column

@pytest.mark.parametrize("scale, exponent", [("spectral", 0), ("keller", 0), ("moonlight", -1/2)])
@pytest.mark.parametrize("param", ["sp", *FORMS_OF_MUP])
def test_muons_learning_rate_of_a_square_hidden_matrix_is_the_formula(param, scale, exponent):
    base, wide = (rows_at(width, param=param, optimizer="muon", muon_scale=scale)["square"]
                  for width in (16, 256))
    assert base.lr == Hyperparameters().lr   # the user's lr is the factor on s·O at the base
    assert wide.lr / base.lr == pytest.approx(16**exponent, rel=1e-15)


@pytest.mark.parametrize("name", ["square", "up", "down"])
@pytest.mark.parametrize("param", BASED)
def test_muons_whole_step_is_the_same_power_of_width_for_every_shape_factor(param, name):
    """lr·s over its value at the base is C·s = √(fan_out/fan_in)/A: no width counts twice."""
    for scale in SHAPE_FACTORS:
        base, wide = (rows_at(width, param=param, optimizer="muon", muon_scale=scale)[name]
                      for width in (16, 256))
        m_in, m_out = (here / there for here, there in zip(wide.shape, base.shape))
        growth = wide.lr * wide.shape_factor / (base.lr * base.shape_factor)
        assert growth * wide.mult == pytest.approx(math.sqrt(m_out / m_in), rel=1e-14)
        assert wide.shape_factor == SHAPE_FACTORS[scale](*wide.shape)


def test_shape_factors_are_those_of_their_sources():
    """Of a matrix that is wider than tall, and of its transpose."""
    assert {name: (s(64, 256), s(256, 64)) for name, s in SHAPE_FACTORS.items()} == {
        "spectral": (2, 0.5), "keller": (2, 1), "moonlight": (3.2, 3.2), "none": (1, 1)}


def test_muon_takes_the_hidden_matrices_and_leaves_the_rest_to_adamw():
    rows = rows_at(256, optimizer="muon", lr=0.5, adam_lr=0.01)
    assert {name for name, row in rows.items() if row.optimizer == "muon"} == {
        "square", "up", "down"}
    adamw = rows_at(256, optimizer="adamw", lr=0.01)
    assert all(rows[name] == adamw[name] for name in ("embedding", "output", "bias"))
    # without an lr of their own they share Muon's
    assert rows_at(256, optimizer="muon", lr=0.5)["output"].lr == 0.5


# A network of one's own, from specs alone

TOKENS = 37   # its vocabulary


def own_specs(width, wide, contract_std=1):
    """An embedding, a residual branch through another width, and a readout."""
    return [Spec("look up", "embedding", (TOKENS, width)), Spec("expand", "hidden", (width, wide)),
            Spec("contract", "hidden", (wide, width), std=contract_std),
            Spec("read out", "output", (width, TOKENS))]


def own_rows(here, base, hyper, **options):
    return resolve(relative_to(own_specs(*here, **options), own_specs(*base, **options)), hyper)


def own_loss_and_gradients(rows, p):
    """x = e[ids],  y = x + tanh(x u) d,  z = y r, each matrix times its multiplier.

    The targets are a function of the ids, so there is something to learn.
    """
    ids = np.random.default_rng(0).integers(0, TOKENS, 64)
    targets = (7 * ids + 3) % TOKENS
    e, u, d, r = (row.mult * p[row.name] for row in rows)
    x, onehot = e[ids], np.eye(TOKENS)
    h = np.tanh(x @ u)
    y = x + h @ d
    z = np.exp(y @ r)
    z /= z.sum(-1, keepdims=True)
    loss = -np.log(z[np.arange(len(ids)), targets]).mean()
    dz = (z - onehot[targets]) / len(ids)
    dy = dz @ r.T
    dh = dy @ d.T * (1 - h * h)
    grads = onehot[ids].T @ (dy + dh @ u.T), x.T @ dh, h.T @ dy, y.T @ dz
    return loss, {row.name: row.mult * g for row, g in zip(rows, grads)}


def own_losses(rows, setting, steps=60):
    """The loss before each step of training."""
    params = initialize(rows, seed=0, dtype="float64")
    optimizer, losses = optim.Optimizer(rows, params, setting), []
    for step in range(steps):
        loss, grads = own_loss_and_gradients(rows, params)
        losses.append(loss)
        optimizer.step(params, grads, step)
    return losses


OWN_OPTIMIZERS = {"sgd": (dict(lr=0.1), optim.Settings()),
                  "adamw": (dict(lr=0.02), optim.Settings()),
                  "muon": (dict(lr=0.1, adam_lr=0.02),
                           optim.Settings(momentum=0.95, nesterov=True))}


def own_run(param, optimizer, here):
    numbers, setting = OWN_OPTIMIZERS[optimizer]
    hyper = Hyperparameters(param=param, optimizer=optimizer, **numbers)
    return own_losses(own_rows(here, (16, 64), hyper), setting)


@pytest.mark.parametrize("here", [(16, 64), (48, 64), (16, 320), (80, 24)])
@pytest.mark.parametrize("optimizer", OWN_OPTIMIZERS)
@pytest.mark.parametrize("param", BASED)
def test_a_list_of_specs_needs_only_resolve_initialize_and_optimizer_to_train(
        param, optimizer, here):
    losses = own_run(param, optimizer, here)
    assert losses[0] > 0.9 * math.log(TOKENS)   # a guess
    assert losses[-1] < 0.5 * losses[0]         # seen: at most 0.09 of it


@pytest.mark.parametrize("optimizer", OWN_OPTIMIZERS)
def test_the_three_forms_of_mup_train_such_a_network_alike(optimizer):
    first, *others = (own_run(param, optimizer, (48, 320)) for param in FORMS_OF_MUP)
    for other in others:
        assert other == pytest.approx(first, rel=1e-9)   # rounding, over 60 steps; seen: 2e-13


# The size of gradients where the two sides of a layer do not grow alike

GROWTHS = {"wide": [(128, 256 * k) for k in (1, 2, 4, 8)],
           "width": [(128 * k, 256) for k in (1, 2, 4, 8)]}


def epsilon_slopes(param, grows, steps=0, **options):
    """{parameter: slope of log2(ε / RMS of its gradient) against log2 of the growing size}.

    The mean of three seeds. ε has the size of the gradients at every width if the slope is 0. Then
    Adam's step is also the same multiple of SGD's, since ε is C_adam/C_sgd.
    """
    def sizes(here, seed):
        hyper = Hyperparameters(param=param, lr=2**-10)   # steps hardly move the loss
        rows = own_rows(here, GROWTHS[grows][0], hyper, **options)
        params = initialize(rows, seed, "float64")
        optimizer = optim.Optimizer(rows, params)
        for step in range(steps):
            optimizer.step(params, own_loss_and_gradients(rows, params)[1], step)
        grads = own_loss_and_gradients(rows, params)[1]
        return [math.log2(row.eps / np.sqrt(np.mean(grads[row.name]**2))) for row in rows]
    y = [np.mean([sizes(here, seed) for seed in range(3)], axis=0) for here in GROWTHS[grows]]
    names = [spec.name for spec in own_specs(1, 1)]
    return dict(zip(names, np.polyfit(range(len(y)), y, 1)[0]))


FLAT = dict.fromkeys(["look up", "expand", "contract", "read out"], 0)
# The gradient of `expand` passes `contract`: its random start, as a sum of random terms, and its
# updates, as a sum of aligned ones. If all widths grow alike, both have the same power of width. If
# they do not, the two differ by half a power, and μP's table has the power of the updates.
AT_THE_START = {
    ("mup", "wide"): FLAT | {"expand": -1/2}, ("mup", "width"): FLAT | {"expand": 1/2},
    ("ntk", "wide"): FLAT, ("ntk", "width"): FLAT}
NOISE = 0.05   # of a slope over three octaves; seen: 0.02


@pytest.mark.parametrize("param, grows", AT_THE_START)
def test_epsilon_follows_the_gradients_at_the_start(param, grows):
    wanted = AT_THE_START[param, grows]
    assert epsilon_slopes(param, grows) == pytest.approx(wanted, abs=NOISE)


@pytest.mark.parametrize("param", FORMS_OF_MUP)
@pytest.mark.parametrize("grows", GROWTHS)
def test_epsilon_follows_the_gradients_that_come_through_updates(param, grows):
    """With `contract` starting at 0 its first update is all of it."""
    found = epsilon_slopes(param, grows, steps=1, contract_std=0)
    # A random part of the sum vanishes slowly as the width grows: 0.11 for `expand` from width 128
    # on, 0.06 from 256 on. All others: at most 0.02.
    assert found == pytest.approx(FLAT, abs=0.15)


def with_wrong_hidden(monkeypatch, param, **cells):
    """The hidden rule with ε = 1/fan_in. cells: other cells that change with it."""
    rules = PARAMETRIZATIONS[param].rules
    monkeypatch.setitem(rules, "hidden", with_eps(rules["hidden"]._replace(**cells), PER_IN))


@pytest.mark.parametrize("grows, sign", [("wide", 1), ("width", -1)])
def test_an_epsilon_of_one_over_fan_in_does_not_follow_them_under_mup(monkeypatch, grows, sign):
    with_wrong_hidden(monkeypatch, "mup")
    start = epsilon_slopes("mup", grows)
    assert start["contract"] == pytest.approx(-sign, abs=NOISE)      # a whole power off
    through_updates = epsilon_slopes("mup", grows, steps=1, contract_std=0)
    assert through_updates["expand"] == pytest.approx(sign, abs=0.15)
    assert through_updates["contract"] == pytest.approx(-sign, abs=0.15)


@pytest.mark.parametrize("grows, sign", [("wide", 1), ("width", -1)])
def test_an_epsilon_of_one_over_fan_in_does_not_follow_them_under_ntk(monkeypatch, grows, sign):
    with_wrong_hidden(monkeypatch, "ntk", adamw=PER_IN)
    start = epsilon_slopes("ntk", grows)
    assert start["expand"] == pytest.approx(sign / 2, abs=NOISE)     # half a power off
    assert start["contract"] == pytest.approx(-sign / 2, abs=NOISE)


# Names mean nothing

TEXT = np.random.default_rng(0).integers(32, 127, 3000).astype(np.uint8)
CORPUS = data.Corpus(TEXT[:2700], TEXT[2700:], "random")


def disguised(model, architecture):
    """(the model with its parameters' names exchanged among them, {true name: its new name}).

    What reads a meaning from a name is misled, for the first parameter has the name of the last.
    """
    specs = list(model.specs(architecture))
    names = [spec.name for spec in specs]
    new = dict(zip(names, reversed(names)))
    logits = list(dict.fromkeys(spec.logits for spec in specs if spec.logits))
    new_logits = dict(zip(logits, [f"logits of {name}" for name in reversed(logits)]))

    def renamed(values, names):
        return {names.get(name, name): value for name, value in values.items()}

    def new_specs(a):
        return [spec._replace(name=new[spec.name], logits=new_logits.get(spec.logits))
                for spec in model.specs(a)]

    def forward(p, ids, a, scales, watch):
        true = {name: old for old, name in new.items()}
        scales = scales._replace(mult=renamed(scales.mult, true))
        return model.forward(renamed(p, true), ids, a, scales, watch)
    return SimpleNamespace(
        Architecture=model.Architecture, specs=new_specs, forward=forward,
        backward=lambda dlogits, cache: renamed(model.backward(dlogits, cache), new),
        largest_logits=lambda cache: renamed(model.largest_logits(cache), new_logits)), new


DISGUISED = {
    "mup, per head, clips": replace(TRANSFORMER, optimizer="muonclip", muon_per_head=True,
                                    qk_clip_threshold=0.1, clip=0.1, matmul_format="bf16"),
    "umup, per head, clips": replace(
        TRANSFORMER, param="umup", ffn="swiglu", optimizer="muonclip", muon_per_head=True,
        qk_clip_threshold=0.1, weight_decay=0.1, matmul_format="fp8"),
    "umup, adamw": replace(TRANSFORMER, param="umup", matmul_format="fp8"),
    "tied": replace(TRANSFORMER, tied=True, depth_rule="completep", embed_mult=2.0),
    "mlp": Config(model="mlp", param="umup", width=24, batch=2, seq=6, matmul_format="fp8"),
}


@pytest.mark.parametrize("case", DISGUISED)
def test_exchanging_the_names_of_all_parameters_changes_no_number(monkeypatch, case):
    config = complete(normalised(DISGUISED[case]))   # u-μP has no base sizes
    plain = build(config)
    model, new = disguised(MODELS[config.model], plain.architecture)
    monkeypatch.setitem(MODELS, config.model, model)
    other = build(config)
    assert all(new[row.name] != row.name for row in plain.rows[:len(plain.rows) // 2])

    for row, moved in zip(plain.rows, other.rows, strict=True):
        assert moved.name == new[row.name]
        assert moved._replace(spec=None) == row._replace(spec=None)
    assert {new.get(name, name): mult for name, mult in plain.scales.mult.items()} == (
        other.scales.mult)
    assert other.scales._replace(mult=None) == plain.scales._replace(mult=None)

    # the random numbers of a parameter are those of its name, so both start from the same arrays
    params = initialize(plain.rows, 0, config.dtype)
    others = {new[name]: w.copy() for name, w in params.items()}
    losses = [trained(config, *pair) for pair in ((plain, params), (other, others))]
    assert losses[0] == losses[1]
    for name, w in params.items():
        assert np.array_equal(others[new[name]], w)


def trained(config, net, params):
    """The losses of four steps, which change params. Checks that the options have an effect."""
    optimizer, losses = optim.Optimizer(net.rows, params, settings(config)), []
    for step in range(4):
        loss, largest = run.training_step(config, net, params, optimizer, CORPUS, step)
        losses.append(loss)
    if config.optimizer == "muonclip":
        assert max(s.max() for s in largest.values()) > 0.1   # QK-Clip has something to clip
        assert sum(row.heads > 1 for row in net.rows) == 3 * config.depth
    if config.matmul_format != "float":
        assert any(mult.formats for mult in net.scales.mult.values())
    return losses
