"""The coordinate check passes what is right, fails what is wrong, and notices each rule of the table that is taken away."""
from dataclasses import replace

import numpy as np
import pytest

from tinymup import coord_check, data, scaling
from tinymup.network import Config

WIDTHS = [32, 64, 128, 256]
SMALL = Config(depth=1, batch=4, seq=16, head_dim=16, base_width=32)


@pytest.fixture(scope="module")
def corpus():
    text = np.frombuffer(b"".join(f.read_bytes() for f in data.standard_library()[:40]), np.uint8)
    return data.Corpus(text, text, "a few files of the standard library")


def failing(config, corpus, seeds=(0,), steps=3, widths=WIDTHS):
    """(quantity, name) → largest slope of those out of bounds. Few steps are enough to fail; to pass, the logits' updates need 8 to align."""
    _, slopes, passed = coord_check.check(config, corpus, widths, seeds, steps)
    worst = {}
    for s in slopes:
        if not s.passes:
            worst[s.quantity, s.name] = max(s.slope, worst.get((s.quantity, s.name), -np.inf))
    assert passed == (not worst)
    return worst


def test_mup_passes(corpus):
    assert failing(SMALL, corpus, seeds=(0, 1), steps=8) == {}


def test_mup_passes_for_the_mlp(corpus):
    assert failing(Config(model="mlp", depth=2, batch=8, seq=16, base_width=32), corpus, (0, 1), 8, [128, 256, 512]) == {}


def test_sp_fails_with_updates_that_grow_like_width(corpus):
    worst = failing(replace(SMALL, param="sp"), corpus)
    assert worst["ΔW", "block0.query"] == pytest.approx(1, abs=0.2)   # an Adam step of constant size has spectral norm ∝ fan_in
    assert ("Δx", "logits") in worst


def without(monkeypatch, role, **cells):
    """μP with some cells of a role's row replaced."""
    table = scaling.PARAMETRIZATIONS["mup"]
    changed = table.rules | {role: table.rules[role]._replace(**cells)}
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "mup", table._replace(rules=changed))


def test_a_hidden_learning_rate_that_does_not_shrink_is_noticed(corpus, monkeypatch):
    without(monkeypatch, "hidden", adamw=scaling.ONE)
    assert ("ΔW", "block0.up") in failing(SMALL, corpus)


def test_a_missing_output_multiplier_is_noticed(corpus, monkeypatch):
    without(monkeypatch, "output", mult=scaling.ONE)
    assert ("x", "logits") in failing(SMALL, corpus)


def test_hidden_weights_that_do_not_start_smaller_are_noticed(corpus, monkeypatch):
    without(monkeypatch, "hidden", init=scaling.ONE)
    worst = failing(SMALL, corpus)
    assert worst["x", "block0.attention"] > 0.4                       # a sum of fan_in random terms: √fan_in


def test_attention_logits_divided_by_the_root_of_a_growing_head_are_noticed(corpus, monkeypatch):
    """The head grows with width here, four to a block. q·k is aligned by training, so that 1/√d lets its logits grow."""
    growing = replace(SMALL, base_head_dim=8, lr=2**-6)

    def check():
        measurements = [m for w in WIDTHS for m in coord_check.measure(replace(growing, head_dim=w // 4), corpus, [w], (0,), 4)]
        narrow, wide = (coord_check.build(coord_check.complete(replace(growing, width=w, head_dim=w // 4))) for w in (WIDTHS[0], WIDTHS[-1]))
        slopes = coord_check.slopes(measurements, coord_check.expected_slopes(narrow, wide))
        return {(s.quantity, s.name) for s in slopes if not s.passes}

    assert ("Δx", "block0.attention_logits") not in check()
    table = scaling.PARAMETRIZATIONS["mup"]
    monkeypatch.setitem(scaling.PARAMETRIZATIONS, "mup", table._replace(attention=scaling.PER_ROOT_IN))
    assert ("Δx", "block0.attention_logits") in check()


def test_a_slope_is_the_exponent_of_a_power_law():
    rows = [coord_check.Measurement(w, seed, 1, "Δx", "made up", 0, 3 * w**0.7, None) for w in WIDTHS for seed in (0, 1)]
    slope, = coord_check.slopes(rows, {})
    assert slope.slope == pytest.approx(0.7) and not slope.passes


def test_a_quantity_that_is_zero_or_not_a_number_does_not_pass():
    for size in (0.0, np.nan):
        slope, = coord_check.slopes([coord_check.Measurement(w, 0, 1, "Δx", "made up", 0, size, None) for w in WIDTHS], {})
        assert not slope.passes


def test_the_spectral_norm_is_the_largest_singular_value():
    for shape in (5, 9), (9, 5), (7, 7):
        w = np.random.default_rng(0).standard_normal(shape)
        assert coord_check.spectral_norm(w) == pytest.approx(np.linalg.svd(w)[1][0], rel=1e-12)


def test_the_report_marks_what_fails():
    bad = coord_check.Slope(1, "Δx", "logits", 0.9, -0.25, 0.25)
    good = coord_check.Slope(1, "Δx", "embedding", 0.1, -0.25, 0.25)
    assert "0.90!" in coord_check.report([bad, good]) and "FAIL: 1 of 2" in coord_check.report([bad, good])
    assert "PASS" in coord_check.report([good])
