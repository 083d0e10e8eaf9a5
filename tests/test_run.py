"""One training run: what it records, how it stops, and that a stop and a resume change nothing."""
import json
import math
import os
import random
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from tinymup.backend import to_device
from tinymup.lab import checkpoint, data, run
from tinymup.lab.config import Config, build, complete
from tinymup.network import initialize

CORPUS = data.load([__file__], 16)
SIZES = dict(width=32, depth=1, steps=60, warmup=4, batch=2, seq=16)   # curve: every 3 steps
MLP = dict(model="mlp", **SIZES)
TINY = complete(Config(**SIZES))
KINDS = {name: complete(config) for name, config in {
    "transformer, adamw": TINY,
    "transformer, sgd with momentum": Config(
        **SIZES, optimizer="sgd", lr=0.125, momentum=0.9, nesterov=True, clip=1.0),
    "transformer, muonclip": Config(
        **SIZES, optimizer="muonclip", lr=0.03, momentum=0.95, nesterov=True,
        qk_clip_threshold=1.0),
    "mlp, adamw": Config(**MLP, weight_decay=1e-3, schedule="wsd"),
    "mlp, sgd with momentum": Config(
        **MLP, optimizer="sgd", lr=0.03, momentum=0.9, schedule="cosine"),
}.items()}
each_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


class Stop(Exception):
    """Ends a run as a crash would."""


def stop_at(monkeypatch, step):
    """Makes the batch of a step raise `Stop`. Returns the list of steps whose batch was drawn."""
    asked, batch = [], data.training_batch

    def training_batch(corpus, seed, here, *sizes):
        asked.append(here)
        if here == step:
            raise Stop
        return batch(corpus, seed, here, *sizes)
    monkeypatch.setattr(data, "training_batch", training_batch)
    return asked


def train(config, path=None, resume=False):
    """`run.train`, silent, with a checkpoint at every point of the curve."""
    return run.train(config, CORPUS, path, resume, checkpoint_seconds=-1, shown=False)


def as_bytes(arrays):
    """Arrays as something that `==` compares bit for bit."""
    return {name: (array.dtype.str, array.shape, array.tobytes())
            for name, array in arrays.items()}


def content(path):
    """All of a checkpoint but the seconds, which differ between runs."""
    params, state, progress = checkpoint.load(path)
    done = {key: value for key, value in progress.items() if key != "seconds"}
    return as_bytes(params), as_bytes(state), done


def timeless(record):
    """A record without its times, which differ between runs."""
    return {k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(path of the last checkpoint, record, network, params) of a finished run of TINY."""
    path = tmp_path_factory.mktemp("finished") / "run.npz"
    return path, *train(TINY, path)


# Resume

@each_kind
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(config, tmp_path, monkeypatch):
    whole, _, params = train(config, tmp_path / "whole.npz")
    for step in (11, 40):   # neither is a checkpoint: the steps since the last one are lost
        with monkeypatch.context() as m, pytest.raises(Stop):
            stop_at(m, step)
            train(config, tmp_path / "stopped.npz", resume=True)
    asked = stop_at(monkeypatch, None)
    resumed, _, resumed_params = train(config, tmp_path / "stopped.npz", resume=True)
    assert asked == list(range(39, 60))   # it continued from the last checkpoint
    assert as_bytes(resumed_params) == as_bytes(params)
    assert content(tmp_path / "stopped.npz") == content(tmp_path / "whole.npz")
    assert timeless(resumed) == timeless(whole)


@pytest.mark.parametrize("forgotten", ["params", "state", "step"])
def test_a_resume_that_forgets_something_is_noticed(forgotten, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as m, pytest.raises(Stop):
        stop_at(m, 40)
        train(TINY, tmp_path / "run.npz")
    params, state, progress = checkpoint.load(tmp_path / "run.npz")
    if forgotten == "params":
        params = initialize(build(TINY).rows, TINY.seed, TINY.dtype)
    elif forgotten == "state":
        state = {name: np.zeros_like(array) for name, array in state.items()}
    else:
        progress["step"] -= 1
    checkpoint.save(tmp_path / "run.npz", params, state, progress)
    _, _, resumed = train(TINY, tmp_path / "run.npz", resume=True)
    assert as_bytes(resumed) != as_bytes(finished[3])


def test_without_resume_a_run_starts_from_its_beginning(finished, monkeypatch):
    asked = stop_at(monkeypatch, None)
    record, *_ = train(TINY, finished[0])
    assert asked == list(range(60)) and timeless(record) == timeless(finished[1])


def test_resuming_a_finished_run_trains_nothing(finished, monkeypatch):
    asked = stop_at(monkeypatch, 0)
    record, _, params = train(TINY, finished[0], resume=True)
    assert not asked and timeless(record) == timeless(finished[1])
    assert as_bytes(params) == as_bytes(finished[3])


def test_a_checkpoint_of_another_config_or_corpus_is_refused(finished):
    path = finished[0]
    for config, corpus in [(replace(TINY, lr=0.01), CORPUS), (replace(TINY, seed=1), CORPUS),
                           (TINY, CORPUS._replace(digest="another"))]:
        with pytest.raises(ValueError) as error:
            run.train(config, corpus, path, resume=True, shown=False)
        message = str(error.value)
        assert str(path) in message and "another" in message and "\n" not in message


# Checkpoints

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3),
          "block0.b": np.array([1e-300, np.nan, -0.0])}
PROGRESS = {"step": 3, "curve": [[3, 0.1]], "status": "running"}


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    path = tmp_path / "new" / "folder" / "run.npz"
    moments = {"w.m": ARRAYS["w"] + 1}
    checkpoint.save(path, ARRAYS, moments, PROGRESS)
    params, state, progress = checkpoint.load(path)
    assert as_bytes(params) == as_bytes(ARRAYS) and as_bytes(state) == as_bytes(moments)
    assert progress == PROGRESS


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "numpy.savez"])
def test_a_failed_write_leaves_the_old_checkpoint_as_it_was(broken, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    checkpoint.save(path, ARRAYS, {}, PROGRESS)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError):
        checkpoint.save(path, {"w": ARRAYS["w"] + 1}, {}, PROGRESS | {"step": 4})
    assert path.read_bytes() == before


def test_a_checkpoint_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    order, fsync, exchange = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (order.append("fsync"), fsync(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("replace"), exchange(*a)))
    checkpoint.save(tmp_path / "run.npz", ARRAYS, {}, PROGRESS)
    assert order == ["fsync", "replace"]


def test_a_checkpoint_holds_arrays_of_numbers_and_no_pickle(finished):
    with zipfile.ZipFile(finished[0]) as file:
        names = file.namelist()
        assert all(name.endswith(".npy") for name in names)
        for name in names:
            with file.open(name) as member:
                assert np.lib.format.read_magic(member) == (1, 0)
                _, _, dtype = np.lib.format.read_array_header_1_0(member)
                assert not dtype.hasobject
    assert {f"params/{name}.npy" for name in finished[3]} <= set(names)


def damaged(path):
    """Whether a checkpoint is refused as damaged, in one line."""
    try:
        checkpoint.load(path)
    except ValueError as error:
        message = str(error)
        assert str(path) in message and "damaged" in message and "\n" not in message
        return True
    return False


def test_a_flipped_bit_is_refused_or_changes_nothing(finished, tmp_path):
    whole, rng = finished[0].read_bytes(), random.Random(0)
    expected, path, noticed = content(finished[0]), tmp_path / "run.npz", 0
    for place in rng.sample(range(len(whole)), 100):
        flipped = bytes([whole[place] ^ 1 << rng.randrange(8)])
        path.write_bytes(whole[:place] + flipped + whole[place + 1:])
        if damaged(path):
            noticed += 1
        else:
            assert content(path) == expected   # a date or a creator's name in the .zip
    assert noticed >= 95                       # arrays are nearly all of the file


def test_a_flipped_bit_in_a_parameter_is_refused(finished, tmp_path):
    whole, weights = finished[0].read_bytes(), finished[3]["embedding"].tobytes()
    place = whole.index(weights) + len(weights) // 2
    path = tmp_path / "run.npz"
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
    assert damaged(path)


def test_the_checksum_notices_what_the_zip_does_not(tmp_path):
    checkpoint.save(tmp_path / "run.npz", ARRAYS, {}, PROGRESS)
    with np.load(tmp_path / "run.npz") as file:
        arrays = dict(file)
    changes = [{"params/w": ARRAYS["w"] + 1}, {"params/w": ARRAYS["w"].reshape(3, 2)},
               {"params/extra": ARRAYS["w"]}, {"params/w": ARRAYS["w"].view(np.int32)},
               {"progress": np.frombuffer(b'{"step": 4}', np.uint8)}]
    for change in changes:
        np.savez(tmp_path / "changed.npz", **arrays | change)
        assert damaged(tmp_path / "changed.npz")
    np.savez(tmp_path / "changed.npz", **arrays)
    assert not damaged(tmp_path / "changed.npz")


def test_a_checkpoint_cut_short_is_refused(finished, tmp_path):
    whole = finished[0].read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "run.npz").write_bytes(whole[:length])
        assert damaged(tmp_path / "run.npz")


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
        error, finished, monkeypatch):
    def load(*args, **kwargs):
        raise error
    monkeypatch.setattr(np, "load", load)
    with pytest.raises(error):
        checkpoint.load(finished[0])


def test_a_run_does_not_continue_from_a_damaged_checkpoint(tmp_path):
    (tmp_path / "run.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged"):
        train(TINY, tmp_path / "run.npz", resume=True)


WRONG = {"another parameter": lambda p, s, d: p.update(extra=p["embedding"]),
         "a parameter missing": lambda p, s, d: p.popitem(),
         "another shape": lambda p, s, d: p.update(embedding=p["embedding"][:-1]),
         "another type": lambda p, s, d: p.update(embedding=p["embedding"].astype("float16")),
         "a moment missing": lambda p, s, d: s.popitem(),
         "a step that is text": lambda p, s, d: d.update(step="ten"),
         "a negative step": lambda p, s, d: d.update(step=-3),
         "no first loss": lambda p, s, d: d.pop("first"),
         "no curve": lambda p, s, d: d.pop("curve"),
         "a curve of numbers": lambda p, s, d: d.update(curve=[1, 2]),
         "an unknown status": lambda p, s, d: d.update(status="won"),
         "no time": lambda p, s, d: d.update(seconds=None),
         "a list of a status": lambda p, s, d: d.update(status=["done"])}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_checkpoint_with_a_valid_checksum_and_wrong_content_is_refused_in_one_line(
        change, finished, tmp_path):
    params, state, done = checkpoint.load(finished[0])
    change(params, state, done)
    checkpoint.save(tmp_path / "run.npz", params, state, done)
    with pytest.raises(ValueError, match="delete it") as error:
        train(TINY, tmp_path / "run.npz", resume=True)
    assert "run.npz" in str(error.value) and "\n" not in str(error.value)


def test_progress_that_is_no_table_is_refused(finished, tmp_path):
    params, state, _ = checkpoint.load(finished[0])
    checkpoint.save(tmp_path / "run.npz", params, state, [1, 2])
    with pytest.raises(ValueError, match="another config"):
        train(TINY, tmp_path / "run.npz", resume=True)


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_fails_no_run(
        finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "run.npz"       # its folder is a file
    record, *_ = train(TINY, path)             # tries at every point of the curve
    assert timeless(record) == timeless(finished[1])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and "no checkpoint" in said


def test_a_checkpoint_is_written_through_no_link_and_leaves_nothing_but_itself(
        tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    out = tmp_path / "out"
    out.mkdir()
    token = "0f" * 8
    monkeypatch.setattr(checkpoint.secrets, "token_hex", lambda n: token)
    for name in ("run.tmp", f".run.{token}.tmp"):   # the second as if it had been guessed
        (out / name).symlink_to(outside)
    with pytest.raises(FileExistsError):
        checkpoint.save(out / "run.npz", ARRAYS, {}, PROGRESS)
    monkeypatch.undo()
    checkpoint.save(out / "run.npz", ARRAYS, {}, PROGRESS)
    assert outside.read_text() == "kept"
    assert [f.name for f in out.iterdir() if not f.is_symlink()] == ["run.npz"]


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "numpy.savez"])
def test_a_failed_write_leaves_no_temporary_file(broken, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError):
        checkpoint.save(tmp_path / "run.npz", ARRAYS, {}, PROGRESS)
    assert not list(tmp_path.iterdir())


# The record

@each_kind
def test_a_record_is_plain_json_and_training_lowers_the_loss(config):
    record, *_ = train(config)
    assert json.loads(json.dumps(record, allow_nan=False))["loss"] == record["loss"]
    assert type(record["loss"]) is float
    assert all(type(loss) is float for _, loss in record["curve"])
    assert record["status"] == "done"
    assert record["loss"] < record["curve"][0][1] - 0.5   # they fall by 0.9 to 3.4 nats
    steps = [step for step, _ in record["curve"]]
    assert steps == sorted(set(steps)) and steps[-1] == config.steps and 20 <= len(steps) <= 21


def test_the_same_config_gives_the_same_record_and_another_seed_another(finished):
    again, *_ = train(TINY)
    assert timeless(again) == timeless(finished[1])
    other, *_ = train(replace(TINY, seed=1))
    assert other["loss"] != again["loss"] and other["curve"] != again["curve"]


def batch_of(config, step):
    """The batch of a step, on the device."""
    return map(to_device,
               data.training_batch(CORPUS, config.seed, step, config.batch, config.seq))


def test_the_curve_begins_with_the_loss_of_the_untrained_network():
    config = replace(TINY, steps=10)   # a point of the curve every step
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    first = network.loss(params, *batch_of(config, 0))
    assert train(config)[0]["curve"][0] == [1, float(first)]


def test_the_curve_is_the_mean_loss_of_the_steps_since_its_last_point():
    # lr is so small that float32 parameters do not change: each loss can be computed afterwards.
    config = replace(TINY, lr=1e-30)
    record, network, params = train(config)
    losses = [float(network.loss(params, *batch_of(config, step)))
              for step in range(config.steps)]
    last = 0
    for step, mean in record["curve"]:
        # float32 sums of up to 3 losses: 2 roundings of 6e-8 each
        assert mean == pytest.approx(sum(losses[last:step]) / (step - last), rel=1e-6)
        last = step


def test_the_held_out_loss_is_that_of_the_final_parameters_on_the_fixed_batches(finished):
    _, record, network, params = finished
    batches = data.held_out_batches(CORPUS, run.HELD_OUT_BATCHES, TINY.batch, TINY.seq)
    losses = [network.loss(params, *batch) for batch in batches]
    assert record["loss"] == float(sum(losses)) / len(batches)


def test_all_seeds_are_judged_by_the_same_batches_and_trained_on_different_ones(monkeypatch):
    judged, trained = {}, {}
    for seed in (0, 1):
        def held_out_batches(*args, make=data.held_out_batches):
            judged[seed] = make(*args)
            return judged[seed]

        def training_batch(*args, make=data.training_batch):
            trained.setdefault(seed, []).append(make(*args))
            return trained[seed][-1]
        with monkeypatch.context() as m:
            m.setattr(data, "held_out_batches", held_out_batches)
            m.setattr(data, "training_batch", training_batch)
            train(replace(TINY, steps=5, seed=seed))

    def same(a, b):
        return all(np.array_equal(x, y) for one, other in zip(a, b) for x, y in zip(one, other))
    assert same(judged[0], judged[1]) and not same(trained[0], trained[1])


@pytest.mark.parametrize("config, blocks", [
    (TINY, 1), (replace(TINY, depth=2), 2), (KINDS["mlp, adamw"], 0)])
def test_the_record_has_the_largest_attention_logit_of_each_head_since_the_last_point(
        config, blocks, monkeypatch):
    config, seen, step_of = replace(config, steps=40, width=64), [], run.training_step

    def training_step(*args):
        loss, largest = step_of(*args)
        seen.append([largest[f"block{i}.attention_logits"].tolist() for i in range(blocks)])
        return loss, largest
    monkeypatch.setattr(run, "training_step", training_step)
    record, *_ = train(config)
    assert [step for step, _ in record["largest_logits"]] == (
        [step for step, _ in record["curve"]] if blocks else [])
    for step, by_block in record["largest_logits"]:
        wanted = np.max(seen[step - 2:step], axis=0)          # a point every 2 steps
        assert np.shape(by_block) == (blocks, 2)              # 64/32 heads
        assert np.array(by_block) == pytest.approx(wanted, rel=1e-4)   # written with 5 digits


# Divergence

@pytest.mark.parametrize("lr", [2.0**12, 1e30, 1e300])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("model", ["transformer", "mlp"])
def test_a_learning_rate_far_too_large_is_recorded_as_divergence(model, optimizer, lr, tmp_path):
    # With 2^12 the losses are finite, thousands of nats; with the others they are NaN.
    config = complete(Config(**SIZES | dict(
        model=model, optimizer=optimizer, lr=lr, warmup=0, steps=1000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record, *_ = train(config, tmp_path / "run.npz")
    assert record["status"] == "diverged" and record["loss"] is None
    assert record["curve"][-1][0] <= 100                         # a hopeless run stops early
    json.dumps(record, allow_nan=False)
    again, *_ = train(config, tmp_path / "run.npz", resume=True)
    assert timeless(again) == timeless(record)


@pytest.mark.parametrize("loss, first, verdict", [
    (2.0, 5.5, False), (10.0, 5.5, False), (11.2, 5.5, True),
    (math.nan, 5.5, True), (math.inf, 5.5, True),
    (11.2, 8.0, False),   # the first loss was high: this is less than twice that
    (math.inf, math.inf, True), (math.nan, math.nan, True), (2.0, math.nan, False)])
def test_divergence_is_nan_or_twice_the_loss_of_a_guess_and_of_the_first_step(
        loss, first, verdict):
    assert run.diverged(loss, first) == verdict   # a uniform guess: log 256 = 5.545


# Samples

def test_a_sample_continues_the_prompt_with_bytes_and_is_reproducible(finished):
    _, _, network, params = finished
    prompt = "Köln\n".encode()
    text = run.sample(network, params, prompt, 50, 16, 0)
    assert type(text) is bytes and text.startswith(prompt) and len(text) == len(prompt) + 50
    assert run.sample(network, params, prompt, 50, 16, 0) == text
    assert run.sample(network, params, prompt, 50, 16, 1) != text
    assert run.sample(network, params, prompt, 0, 16, 0) == prompt


def test_a_sample_depends_on_the_last_window_of_its_prompt_only(finished):
    _, _, network, params = finished
    tail = bytes(CORPUS.held_out[:16])
    first = run.sample(network, params, tail, 20, 16, 0)[16:]
    assert run.sample(network, params, b"something before " + tail, 20, 16, 0)[-20:] == first
    assert run.sample(network, params, bytes(CORPUS.held_out[16:32]), 20, 16, 0)[16:] != first


def test_a_sample_is_drawn_from_the_logits_of_training(finished):
    """The mean surprise of the next byte over many seeds is the entropy of the softmax."""
    _, _, network, params = finished
    prompt = bytes(CORPUS.held_out[:8])
    logits = network.logits(params, np.array([list(prompt)]))[-1].astype(np.float64)

    def surprise_and_entropy(logits):
        log_p = logits - np.log(np.exp(logits).sum())
        return -log_p, -(np.exp(log_p) * log_p).sum()
    surprise, entropy = surprise_and_entropy(logits)
    drawn = np.array([surprise[run.sample(network, params, prompt, 1, 16, seed)[-1]]
                      for seed in range(2000)])
    error = drawn.std() / math.sqrt(len(drawn))   # standard error of the mean, 0.02 nats
    assert abs(drawn.mean() - entropy) < 5 * error
    for factor in (0.5, 2):                       # as if the output multiplier were forgotten
        assert abs(drawn.mean() - surprise_and_entropy(factor * logits)[1]) > 5 * error


def test_a_record_names_the_versions_that_it_may_depend_on(finished):
    versions = finished[1]["versions"]
    assert versions["numpy"] == np.__version__
    assert {"python", "arrays", "machine"} <= set(versions)
