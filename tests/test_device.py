"""Training on the strict stand-in for CuPy: NumPy's numbers to the last bit, and few operations.

Between log points it never waits for the device.
"""
from dataclasses import replace

import numpy as np
import pytest

import strict_device
from make_vectors import CASES
from tinymup import optim
from tinymup.backend import to_host, use
from tinymup.lab import checkpoint, data, run
from tinymup.lab.config import Config, build, complete, normalised, settings
from tinymup.network import initialize

TEXT = np.random.default_rng(0).integers(32, 127, 3000).astype(np.uint8)
CORPUS = data.Corpus(TEXT[:2700], TEXT[2700:], "random")

SHORT = dict(width=16, depth=2, base_width=8, steps=4, warmup=1, batch=2, seq=9)
TRANSFORMER = Config(**SHORT, head_dim=8, base_head_dim=4, base_depth=1)
MLP = Config(**SHORT, model="mlp")
MODELS = {"mlp": MLP, "transformer": TRANSFORMER}
PARAMS = ("sp", "ntk", "mup", "mup-table3", "mup-table9")
OPTIMIZERS = {
    "sgd": dict(optimizer="sgd", lr=0.1),
    "momentum": dict(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True),
    "adamw": dict(optimizer="adamw"),
    "muon": dict(optimizer="muon"),
}
OPTIONS = {
    "swiglu": dict(ffn="swiglu"),
    "relu": dict(ffn="relu"),
    "tied": dict(tied=True),
    "gains and biases": dict(gains=True, biases=True),
    "clip": dict(clip=0.1),
    "decay": dict(weight_decay=0.1, decay_form="coupled"),
    "zero": dict(zero_readout=True, zero_query=True),
    "completep": dict(depth_rule="completep"),
    "wsd": dict(schedule="wsd"),
    "multipliers": dict(embed_mult=2.0, attn_mult=0.5, output_mult=3.0),
    "float64": dict(dtype="float64"),
    "all": dict(ffn="swiglu", tied=True, gains=True, biases=True, clip=0.1, weight_decay=0.1,
                depth_rule="depth-mup", schedule="cosine"),
}
MUON_OPTIONS = {
    "muonclip": dict(optimizer="muonclip", qk_clip_threshold=0.01, biases=True),
    "per head, sum": dict(optimizer="muon", muon_per_head=True, momentum_form="sum"),
    "polar express": dict(optimizer="muon", coefficients="polar-express", weight_decay=0.1),
}
FORMATS = {"fp8": dict(matmul_format="fp8"), "bf16": dict(matmul_format="bf16")}


@pytest.fixture
def strict(monkeypatch):
    """Runs a function on the stand-in. Returns its result with the counts."""
    def call(function):
        with strict_device.in_use() as counts, monkeypatch.context() as patch:
            patch.setattr(run, "use", lambda device: None)      # or run.train would choose NumPy
            return function(), counts
    return call


def trained(config, **options):
    """A run's losses, and its parameters on the host."""
    record, _, params = run.train(complete(config), CORPUS, shown=False, **options)
    losses = record["curve"], record["loss"], record["status"], record["largest_logits"]
    return losses, {name: to_host(w) for name, w in params.items()}


def assert_equal_runs(config, strict):
    losses, params = trained(config)
    (device_losses, device_params), counts = strict(lambda: trained(config))
    assert counts.operations > 500                              # it did compute there
    assert losses == device_losses and losses[2] == "done"
    assert params.keys() == device_params.keys()
    for name, w in params.items():
        assert w.dtype == device_params[name].dtype == config.dtype
        assert w.tobytes() == device_params[name].tobytes()


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_training_is_the_same_on_the_device_to_the_last_bit(model, optimizer, param, strict):
    assert_equal_runs(replace(MODELS[model], param=param, **OPTIMIZERS[optimizer]), strict)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("options", OPTIONS)
def test_training_with_options_is_the_same_on_the_device_to_the_last_bit(options, param, strict):
    if param == "mup-table3" and OPTIONS[options].get("tied"):
        param = "mup"           # Table 3 has no rule for tied embeddings
    assert_equal_runs(replace(TRANSFORMER, param=param, **OPTIONS[options]), strict)


@pytest.mark.parametrize("model, options", [
    ("mlp", {}), ("transformer", {}),
    ("transformer", dict(ffn="swiglu", gains=True, biases=True, clip=0.1))])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_under_u_mup_is_the_same_on_the_device_to_the_last_bit(
        model, options, optimizer, strict):
    config = replace(MODELS[model], param="umup", **options, **OPTIMIZERS[optimizer] | {"lr": 0.01})
    assert_equal_runs(normalised(config), strict)               # u-μP has no base sizes


@pytest.mark.parametrize("options", MUON_OPTIONS)
def test_training_with_muons_options_is_the_same_on_the_device_to_the_last_bit(options, strict):
    assert_equal_runs(replace(TRANSFORMER, **MUON_OPTIONS[options]), strict)


@pytest.mark.parametrize("options", FORMATS)
def test_training_with_rounded_products_is_the_same_on_the_device_to_the_last_bit(options, strict):
    assert_equal_runs(replace(TRANSFORMER, **FORMATS[options]), strict)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_changes_the_run(options):
    (curve, *_), params = trained(TRANSFORMER)
    (other_curve, *_), other = trained(replace(TRANSFORMER, **OPTIONS[options]))
    assert params.keys() != other.keys() or any(
        params[name].tobytes() != other[name].tobytes() for name in params)
    assert curve != other_curve


# Waiting for the device

def steps_of(config, steps=3, after_first=lambda: None):
    """The loss of the last of some steps, each with clipping. Nothing is logged."""
    network = build(config)
    params = initialize(network.rows, 0, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    for step in range(steps):
        loss, _ = run.training_step(config, network, params, optimizer, CORPUS, step)
        if step == 0:
            after_first()
    return loss


@pytest.mark.parametrize("model, options", [
    ("mlp", {}), ("transformer", {}),
    ("transformer", dict(ffn="swiglu", tied=True, gains=True, biases=True, weight_decay=0.1))])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_step_never_waits_for_the_device(model, options, optimizer, strict):
    config = replace(MODELS[model], clip=0.1, **options, **OPTIMIZERS[optimizer])
    loss, counts = strict(lambda: steps_of(complete(config)))
    assert counts.syncs == 0 and counts.operations > 100
    assert isinstance(loss, strict_device.DeviceArray)


@pytest.mark.parametrize("options", MUON_OPTIONS | FORMATS)
def test_a_training_step_with_other_options_never_waits_for_the_device(options, strict):
    config = replace(TRANSFORMER, clip=0.1, **(MUON_OPTIONS | FORMATS)[options])
    _, counts = strict(lambda: steps_of(complete(config)))
    assert counts.syncs == 0


@pytest.mark.parametrize("steps, logs", [(4, 4), (60, 20), (50, 25), (61, 21)])
def test_a_run_waits_once_per_log_point_and_once_to_evaluate(steps, logs, strict):
    config = complete(replace(MLP, steps=steps, clip=0.1))
    (record, _, _), counts = strict(lambda: run.train(config, CORPUS, shown=False))
    assert len(record["curve"]) == logs and counts.syncs == logs + 1


def test_a_checkpoint_waits_once_per_array_and_a_log_point_of_the_transformer_twice(
        strict, tmp_path):
    config = complete(TRANSFORMER)
    (_, _, params), counts = strict(
        lambda: run.train(config, CORPUS, tmp_path / "run.npz", shown=False))
    logs = config.steps * 2     # each of the 4 steps is a log point: its loss and largest logits
    arrays = 3 * len(params)    # each with AdamW's two moments
    assert counts.syncs == logs + 1 + arrays


def test_a_number_read_within_a_step_is_counted(strict, monkeypatch):
    right = optim.clip

    def reading(grads, rows, most):
        float(grads[rows[0].name].sum())
        right(grads, rows, most)
    monkeypatch.setattr(optim, "clip", reading)
    _, counts = strict(lambda: steps_of(complete(replace(TRANSFORMER, clip=0.1))))
    assert counts.syncs == 3


def test_a_sample_waits_once_per_byte_and_is_the_same(strict):
    config = complete(TRANSFORMER)

    def sampled():
        network = build(config)
        params = initialize(network.rows, 0, config.dtype)
        return run.sample(network, params, b"abc", 12, config.seq, 0)
    text, counts = strict(sampled)
    assert text == sampled() and counts.syncs == 12


def test_a_resumed_run_is_the_same_on_the_device_to_the_last_bit(strict, tmp_path, monkeypatch):
    """Stopped half-way, and resumed from the file that a log point wrote."""
    path, config = tmp_path / "run.npz", replace(TRANSFORMER, clip=0.1)
    losses, params = trained(config)

    class Stopped(Exception):
        pass

    save = checkpoint.save

    def save_and_stop(*args):
        save(*args)
        raise Stopped

    def stopped():
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(checkpoint, "save", save_and_stop)
            trained(config, checkpoint_path=path, checkpoint_seconds=0.0)
    strict(stopped)
    assert checkpoint.load(path)[2]["step"] == 1
    (resumed_losses, resumed), _ = strict(
        lambda: trained(config, checkpoint_path=path, resume=True))
    assert resumed_losses == losses
    assert all(resumed[name].tobytes() == w.tobytes() for name, w in params.items())


def test_a_diverging_run_ends_as_one_on_the_device_too(strict):
    config = replace(MLP, optimizer="sgd", lr=1e6, steps=40)
    (losses, _), _ = strict(lambda: trained(config))
    assert losses[2] == "diverged" and len(losses[0]) < 20


def test_a_host_array_in_the_middle_of_a_step_is_refused(strict):
    def forgetful():
        config = complete(TRANSFORMER)
        network = build(config)
        params = initialize(network.rows, 0, config.dtype)
        ids, _ = data.training_batch(CORPUS, 0, 0, 2, 9)        # without to_device
        return network.logits(params, ids)
    with pytest.raises(TypeError):
        strict(forgetful)


# Operations of a step. Each costs a launch, and at the default sizes launches are what takes time.

@pytest.mark.parametrize("optimizer, most", [("adamw", 280), ("muon", 560)])    # seen: 245, 413
def test_a_training_step_at_the_default_sizes_starts_few_operations(optimizer, most, strict):
    config = complete(Config(width=128, depth=2, batch=16, seq=64, optimizer=optimizer))
    # counted from the second step on: the first computes the arrays that are kept
    _, counts = strict(lambda: steps_of(config, 2, strict_device.counts.reset))
    assert 100 < counts.operations <= most


# A real GPU

def cupy_without_a_gpu():
    try:
        import cupy
        return cupy.cuda.runtime.getDeviceCount() == 0
    except Exception:          # CuPy's own errors, or no CuPy
        return True


@pytest.mark.skipif(cupy_without_a_gpu(), reason="no GPU")
@pytest.mark.parametrize("case", [*CASES, *FORMATS])
def test_a_gpu_trains_to_the_numbers_of_the_cpu(case):
    """Sums have another order there. In float64 Newton–Schulz multiplies that by up to 3.44⁵ = 480
    a step; in float32 a number beside a boundary of FP8 or BF16 rounds to its other side."""
    config = CASES[case] if case in CASES else replace(TRANSFORMER, **FORMATS[case])
    tolerance = 1e-9 if config.dtype == "float64" else 1e-2
    try:
        losses, params = trained(replace(config, device="gpu"))
    finally:
        use("cpu")
    expected_losses, expected = trained(config)
    assert losses[2] == expected_losses[2] == "done"
    assert losses[1] == pytest.approx(expected_losses[1], rel=tolerance)
    for name, w in expected.items():
        assert np.abs(params[name] - w).max() <= tolerance * max(np.abs(w).max(), 1)
