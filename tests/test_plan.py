"""What a sweep needs, said before it starts, is what it then has."""
import math
import tracemalloc
from dataclasses import replace

import pytest

from tinymup.lab import data, plan, run
from tinymup.lab.config import Config, build, complete
from tinymup.network import initialize

SMALL = Config(width=64, depth=3, batch=4, seq=32, steps=3)
CONFIGS = [complete(c) for c in (
    SMALL, replace(SMALL, ffn="swiglu", gains=True, biases=True), replace(SMALL, tied=True),
    replace(SMALL, depth=1), replace(SMALL, model="mlp", depth=5),
    replace(SMALL, optimizer="muonclip"), replace(SMALL, param="umup", optimizer="muon"))]


@pytest.fixture(scope="module")
def corpus():
    return data.load([__file__], 32)


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_counted_without_building_all_layers(config):
    assert plan.sizes(config)[0] == sum(math.prod(row.shape) for row in build(config).rows)


@pytest.mark.parametrize("config", CONFIGS)
def test_operations_are_those_of_matrices_attention_and_newton_schulz(config):
    rows, tokens = build(config).rows, config.batch * config.seq
    products = sum(math.prod(row.shape) for row in rows if len(row.shape) == 2
                   and (not row.spec.lookups or row.role == "tied"))
    # Queries times keys and weights times values: 2·C·T operations a token each, three times.
    attention = 12 * config.depth * config.width * config.seq * (config.model == "transformer")
    # Each of five steps: x xᵀ, its square, and the polynomial of it times x, with m ≤ n.
    shapes = [sorted(row.shape) for row in rows if row.optimizer == "muon"]
    muon = 5 * sum(2 * m * n * m + 2 * m * m * m + 2 * m * m * n for m, n in shapes)
    assert plan.sizes(config)[1] == tokens * (6 * products + attention) + muon


@pytest.mark.parametrize("config", [
    *CONFIGS[1:], complete(replace(SMALL, width=256)), complete(replace(SMALL, seq=256)),
    complete(replace(SMALL, batch=64, head_dim=16)), complete(replace(SMALL, dtype="float64")),
    complete(replace(SMALL, optimizer="sgd", width=512, batch=2)),
    complete(replace(SMALL, model="mlp", width=512, batch=16))])
def test_the_memory_of_a_run_is_known_to_within_a_third(config):
    corpus = data.load([data.__file__, __file__], config.seq)
    tracemalloc.start()
    try:
        network, params, optimizer, _ = run.start(config, corpus, None)
        for step in (0, 1):
            run.training_step(config, network, params, optimizer, corpus, step)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2 / 3 < (plan.memory(config) - plan.PROCESS) / peak < 4 / 3


def test_a_network_larger_than_the_memory_is_refused_by_its_size(monkeypatch):
    large = complete(Config(width=2**15))
    needed = plan.memory(large)
    monkeypatch.setattr(data, "machine_memory", lambda: needed)
    plan.check_memory([*CONFIGS, large])
    monkeypatch.setattr(data, "machine_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"a network of 2.58e\+10 parameters .* GB"):
        plan.check_memory([*CONFIGS, large])
    plan.check_memory([replace(large, device="gpu")])     # which has a memory of its own


def test_expected_minutes_grow_with_steps_and_shrink_with_jobs(corpus, monkeypatch):
    asked = []

    def seconds_of(config, _):
        asked.append(config)
        return 0.001 + 1e-9 * plan.sizes(config)[1]
    monkeypatch.setattr(plan, "seconds_of", seconds_of)
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 4)
    configs = [replace(CONFIGS[0], width=width, steps=1000) for width in (32, 64, 96, 128)]
    steps = 1000 + run.HELD_OUT_BATCHES / 3
    wanted = sum(plan.START + steps * seconds_of(c, None) for c in configs) / 60
    del asked[:]
    assert plan.minutes(configs, corpus, 1) == pytest.approx(wanted, rel=1e-12)
    assert asked == [configs[0], configs[-1]]
    for jobs, side_by_side in ((2, 2), (4, 4), (99, 4)):
        assert plan.minutes(configs, corpus, jobs) == pytest.approx(wanted / side_by_side)
    assert plan.minutes(configs[:1], corpus, 4) == pytest.approx(
        (plan.START + steps * seconds_of(configs[0], None)) / 60)


def test_a_network_too_large_to_be_tried_is_calibrated_with_a_smaller_one_or_not_at_all(
        corpus, monkeypatch):
    asked = []
    monkeypatch.setattr(plan, "seconds_of", lambda config, _: asked.append(config) or 1.0)
    large = complete(Config(width=1024, depth=8))
    assert plan.minutes([large], corpus, 1) > 60 and {c.depth for c in asked} == {1}
    assert plan.minutes([complete(Config(width=2**14))], corpus, 1) is None


def test_the_announcement_says_runs_parameters_operations_minutes_and_memory(corpus):
    configs = [replace(CONFIGS[0], width=width, lr=lr) for width in (32, 64) for lr in (0.1, 0.2)]
    said = plan.announcement(7, 3, configs[1:], corpus, 1)
    sizes = [plan.sizes(config) for config in configs]
    work = sum(config.steps * work for config, (_, work) in list(zip(configs, sizes))[1:])
    assert said.startswith("7 runs, 3 of them done, 1 identical to another: ")
    assert f"{sizes[0][0]:,} to {sizes[-1][0]:,} parameters, {work:.2g} FLOPs, about " in said
    assert "\n" not in said
    assert said.endswith(" s, up to 0.066 GB per run")
    assert "about" not in plan.announcement(4, 0, configs, corpus)
    network = build(configs[0])
    assert sum(w.size for w in initialize(network.rows).values()) == sizes[0][0]
