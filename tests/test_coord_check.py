"""The coordinate check passes what is right, fails what is wrong, and notices each changed rule."""
from dataclasses import replace

import numpy as np
import pytest

from tinymup import scaling
from tinymup.lab import coord_check, data, run
from tinymup.lab.config import Config, build, complete
from tinymup.lab.coord_check import Measurement, Slope

WIDTHS = [32, 64, 128, 256]
SMALL = Config(depth=1, batch=4, seq=16, head_dim=16, base_width=32)
SGD = replace(SMALL, optimizer="sgd")
MLP = Config(model="mlp", depth=2, batch=8, seq=16, base_width=32)
MLP_WIDTHS = [128, 256, 512]
ALL_STEPS = dict(seeds=(0, 1), steps=8)


@pytest.fixture(scope="module")
def corpus():
    files = data.standard_library()[:40]
    text = np.frombuffer(b"".join(f.read_bytes() for f in files), np.uint8)
    return data.Corpus(text, text, "a few files of the standard library")


def check(config, corpus, widths, seeds, steps):
    """(measurements, slopes, whether all slopes pass) of a config at several widths."""
    measured = coord_check.measure(config, corpus, widths, seeds, steps)
    narrow, wide = (build(complete(replace(config, width=w))) for w in (min(widths), max(widths)))
    slopes = coord_check.slopes(measured, coord_check.expected_slopes(narrow, wide))
    return measured, slopes, all(slope.passes for slope in slopes)


def failing(config, corpus, seeds=(0,), steps=3, widths=WIDTHS):
    """{(quantity, name): largest slope of those out of bounds}. Three steps are enough to fail."""
    _, slopes, passed = check(config, corpus, widths, seeds, steps)
    worst = {}
    for s in slopes:
        if not s.passes:
            worst[s.quantity, s.name] = max(s.slope, worst.get((s.quantity, s.name), -np.inf))
    assert passed == (not worst)
    return worst


# What is right passes, what is wrong fails

@pytest.mark.parametrize("lr", [None, 2**-5, 2**-11])   # None: the default, 2^-7
def test_mup_passes_with_adamw(corpus, lr):
    assert failing(replace(SMALL, lr=lr), corpus, **ALL_STEPS) == {}


def test_sp_fails_with_updates_that_grow_like_width(corpus):
    worst = failing(replace(SMALL, param="sp"), corpus)
    # Adam's steps have a constant size in each entry: the spectral norm grows like fan_in.
    assert worst["ΔW", "block0.query"] == pytest.approx(1, abs=0.2)
    assert ("Δx", "logits") in worst


@pytest.mark.parametrize("lr", [None, 2**-3, 2**-5, 2**-9])   # None: the default, 2^-1
@pytest.mark.parametrize("param", ["mup", "mup-table9"])
def test_mup_passes_with_sgd(corpus, param, lr):
    assert failing(replace(SGD, param=param, lr=lr), corpus, **ALL_STEPS) == {}


@pytest.mark.parametrize("lr", [None, 2**-3, 2**-5, 2**-9])
def test_sp_fails_with_sgd(corpus, lr):
    worst = failing(replace(SGD, param="sp", lr=lr), corpus)
    # The gradient of a hidden matrix is an outer product of features, which are √fan_in long, and
    # output gradients, whose length is constant: it grows like √width.
    assert worst["ΔW", "block0.query"] == pytest.approx(0.5, abs=0.2)
    assert ("Δx", "logits") in worst


def test_ntk_fails_with_sgd_as_its_features_do_not_move(corpus):
    worst = failing(replace(SGD, param="ntk"), corpus)
    assert worst["Δx", "block0.ffn"] < -0.25 and worst["ΔW", "block0.up"] < -0.25
    assert ("Δx", "logits") not in worst   # its output moves like μP's


def test_mup_passes_with_muon(corpus):
    assert failing(replace(SMALL, optimizer="muon"), corpus, **ALL_STEPS) == {}


# The default lr of SGD is that of the Transformer. The features of an MLP grow so fast with it that
# widths differ.
@pytest.mark.parametrize("optimizer, lr", [("adamw", None), ("sgd", 2**-2), ("sgd", 2**-4)])
def test_mup_passes_for_the_mlp(corpus, optimizer, lr):
    config = replace(MLP, optimizer=optimizer, lr=lr)
    assert failing(config, corpus, widths=MLP_WIDTHS, **ALL_STEPS) == {}


def test_sp_fails_for_the_mlp_with_sgd(corpus):
    config = replace(MLP, optimizer="sgd", param="sp", lr=2**-4)
    assert ("ΔW", "hidden0") in failing(config, corpus, widths=MLP_WIDTHS)


# Every rule of the table is needed

def without(monkeypatch, role, **cells):
    """μP with some cells of a role's row replaced."""
    table = scaling.PARAMETRIZATIONS["mup"]
    changed = table.rules | {role: table.rules[role]._replace(**cells)}
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "mup", table._replace(rules=changed))


@pytest.mark.parametrize("role, optimizer, power, noticed", [
    ("hidden", "adamw", scaling.ONE, ("ΔW", "block0.up")),
    ("hidden", "adamw", scaling.PER_ROOT_IN, ("ΔW", "block0.up")),
    ("embedding", "adamw", scaling.PER_ROOT_OUT, ("Δx", "embedding")),
    ("output", "adamw", scaling.PER_IN, ("ΔW", "output")),
    ("hidden", "sgd", scaling.PER_IN, ("ΔW", "block0.up")),
    ("embedding", "sgd", scaling.ONE, ("Δx", "embedding")),
    ("output", "sgd", scaling.ONE, ("ΔW", "output")),
])
def test_a_wrong_learning_rate_is_noticed(corpus, monkeypatch, role, optimizer, power, noticed):
    without(monkeypatch, role, **{optimizer: power})
    assert noticed in failing(replace(SMALL, optimizer=optimizer), corpus)


def test_a_missing_output_multiplier_is_noticed(corpus, monkeypatch):
    without(monkeypatch, "output", mult=scaling.ONE)
    assert ("x", "logits") in failing(SMALL, corpus)


def test_an_output_multiplier_that_shrinks_too_fast_is_noticed(corpus, monkeypatch):
    without(monkeypatch, "output", mult=scaling.PER_IN.times(scaling.PER_ROOT_IN))
    assert ("x", "logits") in failing(SMALL, corpus)


def test_hidden_weights_that_do_not_start_smaller_are_noticed(corpus, monkeypatch):
    without(monkeypatch, "hidden", init=scaling.ONE)
    worst = failing(SMALL, corpus)
    assert worst["x", "block0.attention"] > 0.4   # a sum of fan_in random terms: √fan_in


def test_attention_logits_divided_by_the_root_of_a_growing_head_are_noticed(corpus, monkeypatch):
    """The head grows with the width. Training aligns q and k: divided by √d, the logits grow."""
    growing = replace(SMALL, base_head_dim=8, lr=2**-6, warmup=0)

    def check():
        sized = [replace(growing, width=w, head_dim=w // 4) for w in WIDTHS]
        measured = [m for c in sized
                    for m in coord_check.measure(c, corpus, [c.width], (0,), 4)]
        narrow, *_, wide = (build(complete(c)) for c in sized)
        slopes = coord_check.slopes(measured, coord_check.expected_slopes(narrow, wide))
        return {(s.quantity, s.name) for s in slopes if not s.passes}

    assert ("Δx", "block0.attention_logits") not in check()
    table = scaling.PARAMETRIZATIONS["mup"]
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "mup",
                        table._replace(attention=scaling.PER_ROOT_IN))
    assert ("Δx", "block0.attention_logits") in check()


# Why the bounds are what they are

def logits_and_gradient(network, params, ids, targets):
    """The logits of a batch (N, V), and softmax − onehot, the gradient of the summed loss."""
    z = network.logits(params, ids).astype(float)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(p)), targets.reshape(-1)] -= 1
    return z, p


def parts_of_the_first_update(config, corpus):
    """How far the logits move along the negative gradient, and the norm of the rest."""
    network, params, updater, _ = run.start(config, corpus, None)
    ids, targets = data.training_batch(corpus, config.seed, 0, config.batch, config.seq)
    before, gradient = logits_and_gradient(network, params, ids, targets)
    _, grads = network.loss_and_gradients(params, ids, targets)
    run.update(config, network, params, updater, grads, {}, 0)
    change = logits_and_gradient(network, params, ids, targets)[0] - before
    share = -np.vdot(change, gradient) / np.vdot(gradient, gradient)
    return share, np.linalg.norm(change + share * gradient)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_aligned_part_of_the_logits_update_is_constant_and_the_rest_shrinks(corpus, optimizer):
    config = replace(SMALL, optimizer=optimizer, lr=2**-9, warmup=0, steps=1)
    parts = [np.mean([parts_of_the_first_update(complete(replace(config, width=w, seed=s)), corpus)
                      for s in range(4)], axis=0) for w in WIDTHS]
    aligned, rest = np.polyfit(np.log2(WIDTHS), np.log2(parts), 1)[0]
    assert abs(aligned) < 0.1       # measured: 0.02 and 0.00
    assert -0.5 < rest < -0.2       # measured: −0.33 and −0.35; −0.5 for widths ≪ vocabulary


def test_single_updates_of_sgd_depend_on_when_a_width_oscillates_and_their_sum_does_not(corpus):
    """Without warm-up the loss rises and falls, and the slope of ‖ΔW‖ of one step scatters."""
    config = replace(SGD, lr=2**-1, warmup=0)
    measured, slopes, _ = check(config, corpus, WIDTHS, **ALL_STEPS)
    sums = [s.slope for s in slopes if (s.quantity, s.name) == ("ΔW", "block0.down")]
    assert max(map(abs, sums)) < 0.25
    norms = {w: single_updates(replace(config, width=w), corpus) for w in WIDTHS}
    singles = np.polyfit(np.log2(WIDTHS), np.log2(list(norms.values())), 1)[0]
    assert np.ptp(singles) > 2 * np.ptp(sums)


def single_updates(config, corpus):
    """The spectral norm of each update of a matrix, mean over two seeds."""
    by_seed = []
    for seed in (0, 1):
        c = complete(replace(config, seed=seed))
        network, params, updater, _ = run.start(c, corpus, None)
        ids, targets = data.training_batch(corpus, c.seed, 0, c.batch, c.seq)
        norms = []
        for step in range(8):
            before = params["block0.down"].astype(float)
            _, grads = network.loss_and_gradients(params, ids, targets)
            run.update(c, network, params, updater, grads, {}, step)
            norms.append(coord_check.spectral_norm(params["block0.down"] - before))
        by_seed.append(norms)
    return np.mean(by_seed, axis=0)


def test_the_check_takes_the_first_steps_of_a_training_run(corpus):
    """Its learning rate warms up, and its gradients are clipped."""
    def first_update(**changes):
        measured = coord_check.measure(replace(SGD, **changes), corpus, [32], [0], 1)
        return {m.name: m.spectral for m in measured if m.quantity == "ΔW"}
    whole = first_update(warmup=0)
    warm, clipped = first_update(warmup=10), first_update(warmup=0, clip=1e-3)
    for name in whole:
        # ΔW is a difference of float32 weights, hence the tolerance
        assert warm[name] == pytest.approx(whole[name] / 10, rel=1e-2)
        assert clipped[name] < 0.1 * whole[name]


# The parts

def test_a_slope_is_the_exponent_of_a_power_law():
    rows = [Measurement(w, seed, 1, "Δx", "made up", 0, 3 * w**0.7, None)
            for w in WIDTHS for seed in (0, 1)]
    slope, = coord_check.slopes(rows, {})
    assert slope.slope == pytest.approx(0.7) and not slope.passes


def test_a_quantity_that_is_zero_or_nan_does_not_pass():
    for size in (0.0, np.nan):
        rows = [Measurement(w, 0, 1, "Δx", "made up", 0, size, None) for w in WIDTHS]
        slope, = coord_check.slopes(rows, {})
        assert not slope.passes


def test_a_matrix_is_expected_to_change_like_the_spectral_condition_says():
    narrow, wide = (build(complete(replace(SMALL, width=w))) for w in (32, 256))
    hidden = ("query", "key", "value", "attention_out", "up", "down")
    expected = coord_check.expected_slopes(narrow, wide)
    assert {name: slope for (quantity, name), slope in expected.items() if quantity == "ΔW"} == {
        "embedding": (0.5, 0.5), "output": (-0.5, -0.5),
        **{f"block0.{name}": (0, 0) for name in hidden}}
    narrow, wide = (build(complete(replace(MLP, optimizer="sgd", width=w))) for w in (32, 256))
    assert coord_check.expected_slopes(narrow, wide)["ΔW", "embedding"] == (-0.5, 0)


def test_the_spectral_norm_is_the_largest_singular_value():
    for shape in (5, 9), (9, 5), (7, 7):
        w = np.random.default_rng(0).standard_normal(shape)
        # the Gram matrix squares the condition: 1e-16 of the largest squared value
        assert coord_check.spectral_norm(w) == pytest.approx(np.linalg.svd(w)[1][0], rel=1e-12)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_the_spectral_norm_of_a_network_that_blew_up_is_no_number(broken):
    w = np.ones((5, 7))
    w[1, 2] = broken
    assert np.isnan(coord_check.spectral_norm(w))


def test_the_report_marks_what_fails():
    bad = Slope(1, "Δx", "logits", 0.9, -0.25, 0.25)
    good = Slope(1, "Δx", "embedding", 0.1, -0.25, 0.25)
    assert "0.90!" in coord_check.report([bad, good])
    assert "FAIL: 1 of 2" in coord_check.report([bad, good])
    assert "PASS" in coord_check.report([good])
