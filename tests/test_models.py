"""Both models: gradients under all options, causality, sampling, tied embeddings, and learning."""
import inspect
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from gradients import TOLERANCE, model_errors
from tinymup import mlp, ops, transformer
from tinymup.lab import data, run
from tinymup.lab.config import FIELDS, Config, build, complete
from tinymup.network import build as build_network
from tinymup.network import initialize
from tinymup.resolve import Hyperparameters

# Width and head dimension differ from the base, so that no multiplier of the table is 1.
TINY = dict(width=8, depth=2, base_width=4, dtype="float64", batch=2, seq=5)
SMALL = Config(**TINY, head_dim=4, base_head_dim=2, base_depth=1)
MLP = Config(**TINY, model="mlp")
PARAMS = ("sp", "ntk", "mup", "mup-table3", "mup-table9")
OPTIONS = {
    "plain": {},
    "tied": dict(tied=True),
    "gains and biases": dict(gains=True, biases=True),
    "tied, gains and biases": dict(tied=True, gains=True, biases=True),
    "zero readout and query": dict(zero_readout=True, zero_query=True),
    "depth-mup": dict(depth_rule="depth-mup", gains=True),
    "completep": dict(depth_rule="completep", biases=True),
    "all multipliers": dict(embed_mult=3.0, attn_mult=0.7, output_mult=2.0, init_scale=0.5),
    "tied, all multipliers": dict(tied=True, embed_mult=3.0, attn_mult=0.7, output_mult=2.0),
}
MISTAKE = 1e-6        # a million times the tolerance, which rounding never reaches


def built(**options):
    return build(complete(replace(SMALL, **options)))


def prepared(config, moved=0.3, seed=0):
    """A network, parameters, and a batch.

    The parameters are moved off their initial values, where zeros would hide errors.
    """
    network = build(complete(config))
    rng = np.random.default_rng(seed)
    params = {name: w + moved * rng.standard_normal(w.shape)
              for name, w in initialize(network.rows, seed, config.dtype).items()}
    ids, targets = rng.integers(0, data.VOCAB, (2, config.batch, config.seq))
    return network, params, ids, targets


def worst_error(config):
    """The largest error of a gradient of all parameters."""
    network, params, ids, targets = prepared(config)
    return max(model_errors(network, params, ids, targets, np.random.default_rng(1)).values())


def relative(a, b):
    """The largest difference, in units of the largest element of b."""
    return np.abs(a - b).max() / np.abs(b).max()


# Gradients

@pytest.mark.parametrize("param, ffn, options", [
    (param, ffn, options)
    for param, ffn, options in itertools.product(PARAMS, ("relu", "gelu", "swiglu"), OPTIONS)
    if not (param == "mup-table3" and "tied" in options)])
def test_gradients_of_the_transformer_are_those_of_the_complex_step(param, ffn, options):
    assert worst_error(replace(SMALL, param=param, ffn=ffn, **OPTIONS[options])) < TOLERANCE


@pytest.mark.parametrize("zero_readout", [False, True])
@pytest.mark.parametrize("ffn", ["relu", "gelu"])
@pytest.mark.parametrize("param", PARAMS)
def test_gradients_of_the_mlp_are_those_of_the_complex_step(param, ffn, zero_readout):
    assert worst_error(replace(MLP, param=param, ffn=ffn, zero_readout=zero_readout)) < TOLERANCE


# Fields of an architecture that no config sets. Each is another number than the default.
OTHER_SIZES = [
    (transformer, dict(vocab=11)), (transformer, dict(norm_eps=0.1)),
    (transformer, dict(rope_base=3.0)),
    (mlp, dict(vocab=11)), (mlp, dict(context=3)), (mlp, dict(embedding=5)),
]


@pytest.mark.parametrize("model, fields", OTHER_SIZES, ids=str)
def test_gradients_hold_for_sizes_that_no_config_sets_and_each_changes_the_loss(model, fields):
    ids, targets = np.random.default_rng(0).integers(0, 11, (2, 2, 5))

    def loss_and_error(**fields):
        here = model.Architecture(width=8, depth=1, **fields)
        here = here._replace(head_dim=4) if model is transformer else here
        network = build_network(model, here, here._replace(width=4), Hyperparameters())
        params = initialize(network.rows, 0, "float64")
        errors = model_errors(network, params, ids, targets, np.random.default_rng(1))
        return network.loss(params, ids, targets), max(errors.values())
    loss, error = loss_and_error(**fields)
    assert error < TOLERANCE and loss != loss_and_error()[0]


def test_these_are_all_the_fields_that_no_config_sets():
    for model in (mlp, transformer):
        fields = {name for other, given in OTHER_SIZES if other is model for name in given}
        assert fields == set(model.Architecture._fields) - set(FIELDS)


# The function of transformer.py, a piece of it as it stands, the mistake, and options that show it.
MUTANTS = [
    ("backward",
     "ops.residual_join(dskip, ffn_branch_backward(dy, c_ffn, grads, block), c_add2)",
     "ffn_branch_backward(dy, c_ffn, grads, block)", {}),
    ("backward", 'grads["embedding"] += grads.pop("output").T', 'grads.pop("output")',
     dict(tied=True)),
    ("backward", "attention_branch_backward(dy, ", "attention_branch_backward(dskip, ",
     dict(depth_rule="completep")),
    ("attention_branch_backward", "dk = ops.rope_backward(dk, angles)", "pass", {}),
    ("attention_branch_backward", "dn += dense_backward(dk", "dn -= dense_backward(dk", {}),
    ("ffn_branch_backward", "dn += dense_backward(df", "dn = dense_backward(df",
     dict(ffn="swiglu")),
]


@pytest.mark.parametrize("function, line, mistake, options", MUTANTS)
def test_a_wrong_line_in_the_models_backward_is_caught(
        monkeypatch, function, line, mistake, options):
    original = getattr(transformer, function)
    source = inspect.getsource(original)
    count = source.count(line)
    assert count == 1, f"the source has changed: {line!r} stands there {count} times"
    namespace = {}
    exec(source.replace(line, mistake), {}, namespace)
    monkeypatch.setattr(original, "__code__", namespace[function].__code__)
    assert worst_error(replace(SMALL, **options)) > MISTAKE


# What a prediction may see

# a config, and how many bytes a prediction sees
SEEING = {"transformer": (replace(SMALL, batch=1, seq=12), 12),
          "mlp": (replace(MLP, batch=1, seq=12), mlp.Architecture().context)}


@pytest.mark.parametrize("model", SEEING)
def test_prediction_ignores_the_future_and_sees_the_past(model):
    config, sight = SEEING[model]
    network, params, ids, _ = prepared(config)
    logits = network.logits(params, ids)
    for s in range(config.seq):
        other = ids.copy()
        other[0, s] = (ids[0, s] + 1) % data.VOCAB
        moved = (network.logits(params, other) != logits).any(1)   # to the last bit
        assert np.flatnonzero(moved).tolist() == list(range(s, min(s + sight, config.seq)))


@pytest.mark.parametrize("model", SEEING)
def test_gradient_of_a_prediction_reaches_no_later_byte(model):
    config, sight = SEEING[model]
    network, params, ids, _ = prepared(config)
    ids[0] = np.arange(config.seq)          # each byte has a row of the embedding to itself
    for t in range(config.seq):
        logits, cache = network.model.forward(params, ids, network.architecture, network.scales)
        dlogits = np.zeros_like(logits)
        dlogits[t] = np.random.default_rng(t).standard_normal(data.VOCAB)
        reached = network.model.backward(dlogits, cache)["embedding"].any(1)
        assert np.flatnonzero(reached).tolist() == list(range(max(0, t - sight + 1), t + 1))


# Sampling

def watched(network, params, ids, targets):
    """The named activations of a forward pass, as they were when they were shown."""
    seen = {}
    network.loss_and_gradients(
        params, ids, targets, watch=lambda name, x: seen.update({name: x.copy()}))
    return seen


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, tied=True), MLP],
                         ids=["transformer", "tied", "mlp"])
def test_sampling_logits_are_the_training_logits_away_from_the_base_width(config):
    config = replace(config, output_mult=3.0)
    network, params, ids, targets = prepared(config)
    logits = watched(network, params, ids, targets)["logits"]
    assert np.array_equal(network.logits(params, ids), logits)
    # They contain the readout's multiplier: a sampler that leaves it out sees other logits.
    mult = network.scales.mult | {"output": ops.UNIT}
    forgetful = network._replace(scales=network.scales._replace(mult=mult))
    assert relative(forgetful.logits(params, ids), logits) > 0.1


@pytest.mark.parametrize("config", [SMALL, MLP], ids=["transformer", "mlp"])
def test_a_prefix_has_the_logits_it_has_within_the_whole(config):
    network, params, ids, _ = prepared(config)
    whole = network.logits(params, ids).reshape(*ids.shape, -1)
    for t in range(1, ids.shape[1]):
        prefix = network.logits(params, ids[:, :t]).reshape(len(ids), t, -1)
        # matrix products of other sizes add in another order
        assert relative(prefix, whole[:, :t]) < 1e-13


def test_sampling_sees_the_last_bytes_of_the_text_so_far():
    class Successor:
        """Says with certainty that the next byte is the one after the last."""
        contexts = []

        def logits(self, params, ids):
            self.contexts.append(bytes(ids[0].astype(np.uint8)))
            return np.where(np.arange(256) == ids[0][:, None] + 1, 100.0, 0.0)
    assert run.sample(Successor(), {}, b"ab", 4, 3, 0) == b"abcdef"
    assert Successor.contexts == [b"ab", b"abc", b"bcd", b"cde"]


def test_sampling_draws_from_the_models_distribution():
    network, params, ids, _ = prepared(SMALL, moved=1.0)
    first = [run.sample(network, params, b"ab", 1, 5, seed)[2] for seed in range(300)]
    logits = network.logits(params, np.array([list(b"ab")]))[-1]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    top = p.argsort()[-16:]
    share = p[top].sum()
    assert share < 0.99                                            # a real choice
    spread = math.sqrt(300 * share * (1 - share))                  # of a binomial
    assert abs(np.isin(first, top).sum() - 300 * share) < 4 * spread
    text = run.sample(network, params, b"ab", 9, 5, 0)
    assert text == run.sample(network, params, b"ab", 9, 5, 0) and len(text) == 11


# Tied embeddings

@pytest.mark.parametrize("param", ["sp", "ntk", "mup", "mup-table9"])
def test_tied_gradients_add_up(param):
    """The gradient of a matrix used twice is the sum of those of two equal ones used once each."""
    tied, params, ids, targets = prepared(replace(SMALL, param=param, tied=True))
    untied = tied._replace(architecture=tied.architecture._replace(tied=False))
    loss, grads = tied.loss_and_gradients(params, ids, targets)
    loss2, grads2 = untied.loss_and_gradients(
        params | {"output": params["embedding"].T.copy()}, ids, targets)
    # float64, summed in another order
    assert math.isclose(loss, loss2, rel_tol=1e-14)
    lookup, readout = grads2["embedding"], grads2["output"].T
    assert relative(grads["embedding"], lookup + readout) < 1e-13
    for part in (lookup, readout):
        assert relative(grads["embedding"], part) > 1e-3           # neither is negligible
    assert all(relative(grads[name], grads2[name]) < 1e-12 for name in grads if name != "embedding")


def tied_matrix(param, width):
    """The matrix of a tied network and the network."""
    network = built(param=param, tied=True, width=width, base_width=64, depth=1)
    return initialize(network.rows[:1], 0, "float64")["embedding"], network


def test_std_of_a_tied_matrix_does_not_grow_with_width():
    stds = [tied_matrix("mup", width)[0].std() for width in (64, 256, 1024)]
    # 16384 numbers have a std known to 0.6 %
    assert stds == pytest.approx([1 / 8] * 3, rel=0.02)
    # in the other forms it shrinks, and in none does it grow
    for param in ("sp", "mup-table9"):
        stds = [tied_matrix(param, width)[0].std() for width in (64, 256, 1024)]
        assert stds == pytest.approx([1 / 8, 1 / 16, 1 / 32], rel=0.02)


@pytest.mark.parametrize("param", ["sp", "mup", "mup-table9"])
@pytest.mark.parametrize("width", [16, 64, 256])
def test_a_tied_lookup_has_unit_variance_at_every_width(param, width):
    matrix, network = tied_matrix(param, width)
    # 4096 numbers have a std known to 1.1 %
    assert (matrix * network.scales.mult["embedding"].y).std() == pytest.approx(1, rel=0.05)


# Options do what they say

def test_zero_readout_makes_a_uniform_guess_and_zero_query_equal_attention():
    network, params, ids, targets = prepared(replace(SMALL, zero_readout=True), moved=0)
    assert math.isclose(network.loss(params, ids, targets), math.log(256), rel_tol=1e-15)
    network, params, ids, targets = prepared(replace(SMALL, zero_query=True), moved=0)
    assert not watched(network, params, ids, targets)["block0.attention_logits"].any()
    _, cache = network.model.forward(params, ids, network.architecture, network.scales)
    (c_attention, *_), *_ = cache[1][0]
    p = c_attention[3]                                             # (B, H, key, query)
    assert np.allclose(p, np.triu(np.ones((5, 5))) / np.arange(1, 6), rtol=1e-15)


def test_untrained_gains_and_biases_change_nothing():
    plain, params, ids, _ = prepared(SMALL, moved=0)
    full, more, _, _ = prepared(replace(SMALL, gains=True, biases=True), moved=0)
    assert all(np.array_equal(params[name], more[name]) for name in params)
    assert len(more) > len(params)
    assert np.array_equal(plain.logits(params, ids), full.logits(more, ids))


def test_swiglu_has_as_many_numbers_as_the_plain_feed_forward_layer():
    def count(ffn, width):
        rows = built(ffn=ffn, width=width).rows
        return sum(math.prod(row.shape) for row in rows if row.role == "hidden")
    for width in (64, 128, 512):            # 8/3 width, in steps of 8
        assert count("swiglu", width) == pytest.approx(count("gelu", width), rel=0.05)


def seen(config):
    """The named activations of a forward pass at the initial values."""
    return watched(*prepared(config, moved=0))


@pytest.mark.parametrize("option, activation", [
    ("embed_mult", "embedding"), ("attn_mult", "block0.attention_logits"),
    ("output_mult", "logits")])
@pytest.mark.parametrize("tied", [False, True])
def test_each_multiplier_multiplies_what_it_names(option, activation, tied):
    plain = replace(SMALL, tied=tied)
    multiplied = seen(replace(plain, **{option: 3.0}))
    assert relative(multiplied[activation], 3 * seen(plain)[activation]) < 1e-14    # rounding


def test_init_scale_multiplies_every_std_and_no_mean():
    plain, scaled = (
        built(init_scale=scale, gains=True, biases=True).rows for scale in (1.0, 0.5))
    assert [row.std for row in scaled] == [0.5 * row.std for row in plain]
    assert [row.mean for row in scaled] == [row.mean for row in plain]


@pytest.mark.parametrize("branch, silent", [
    (0, "block0.attention_out"), (1, "block0.down"),
    (2, "block1.attention_out"), (3, "block1.down")])
def test_each_branch_has_a_weight_of_its_own(branch, silent):
    network, params, ids, targets = prepared(SMALL)
    branches = list(network.scales.branches)
    branches[branch] = ops.Branch(1.0, 0.0, 0.0, 1.0)
    network = network._replace(scales=network.scales._replace(branches=tuple(branches)))
    grads = network.loss_and_gradients(params, ids, targets)[1]
    out = [name for name in grads if name.endswith(("attention_out", "down"))]
    assert [name for name in out if not grads[name].any()] == [silent]
    errors = model_errors(network, params, ids, targets, np.random.default_rng(1))
    assert max(errors.values()) < TOLERANCE


def test_branch_weights_follow_the_depth_rule():
    for rule, amount in [("none", 1), ("depth-mup", 1 / 3), ("completep", 1 / 9)]:
        branches = built(depth=9, depth_rule=rule).scales.branches
        assert [(branch.skip, branch.amount) for branch in branches] == [(1, amount)] * 18


# Learning

TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 200, np.uint8)
CORPUS = data.Corpus(TEXT[:8000], TEXT[8000:], "fox")


@pytest.mark.parametrize("param", ["sp", "mup"])
@pytest.mark.parametrize("model", ["transformer", "mlp"])
def test_a_tiny_run_learns(model, param):
    config = Config(model=model, param=param, width=32, base_width=16, steps=40, warmup=4, batch=8,
                    seq=32, lr=2**-5)
    record, _, _ = run.train(complete(config), CORPUS, shown=False)
    # nats; a uniform guess has 5.5. Seen: 0.05 to 0.13
    assert record["status"] == "done" and record["loss"] < 2.0


def test_same_seed_same_bytes():
    def trained(seed):
        config = Config(width=32, base_width=16, steps=3, warmup=1, batch=4, seq=16, seed=seed)
        _, _, params = run.train(complete(config), CORPUS, shown=False)
        return b"".join(params[name].tobytes() for name in sorted(params))
    assert trained(0) == trained(0) != trained(1)


def test_adding_parameters_leaves_the_initial_values_of_others():
    small = initialize(built().rows, 0, "float64")
    large = initialize(built(depth=3, gains=True, biases=True).rows, 0, "float64")
    assert all(np.array_equal(small[name], large[name]) for name in small)
    assert len({w.tobytes() for w in small.values()}) == len(small)     # no two draws are alike


def test_initial_values_have_the_mean_and_std_of_their_row():
    rows = built(width=256, base_width=64, param="mup-table9", gains=True, biases=True).rows
    for row, w in zip(rows, initialize(rows, 0, "float64").values()):
        error = row.std / math.sqrt(w.size)                        # of the mean
        assert abs(w.mean() - row.mean) <= 5 * error
        assert abs(w.std() - row.std) <= 5 * error / math.sqrt(2) + 1e-15
