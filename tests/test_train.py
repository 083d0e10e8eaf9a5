"""The command line: what it takes, what it refuses and how, and that every flag has an effect."""
import csv
import importlib.util
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import train
from tinymup import optim
from tinymup.lab import data, flags, run, sweep, tables
from tinymup.lab.config import (
    Config, build, complete, flag, normalised, record_of, restored, settings)
from tinymup.lab.resolved import resolved
from tinymup.lab.terminal import escaped
from tinymup.scaling import PARAMETRIZATIONS

ROOT = Path(__file__).parent.parent
DATA = ["--data", __file__]
TINY = ["--width", "32", "--depth", "1", "--steps", "3", "--warmup", "1", "--batch", "2",
        "--seq", "16", *DATA]
MLP = [*TINY, "--model", "mlp"]


def command(arguments):
    """The exit status of `train.py`, in this process."""
    try:
        status = train.main([str(a) for a in arguments])
    except SystemExit as error:
        status = error.code
    return status or 0


@pytest.fixture
def parsed(monkeypatch):
    """A function from arguments to the configs that `train.py` would train. It trains nothing."""
    found = []
    monkeypatch.setattr(train, "explain", lambda configs, format: found.append(configs))

    def parse(*arguments):
        assert command([*arguments, "--explain"]) == 0
        return found[-1]
    return parse


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function from arguments to the (record, network, params) of the one run they stand for."""
    results = []

    def spy(*args, train=run.train, **kwargs):
        results.append(train(*args, **kwargs))
        return results[-1]
    monkeypatch.setattr(run, "train", spy)
    monkeypatch.setattr(run, "sample", lambda network, params, prompt, *_: prompt)

    def train_one(*arguments):
        assert command([*arguments, "--out", tmp_path / str(len(results))]) == 0
        return results[-1]
    return train_one


# Values

@pytest.mark.parametrize("words, values", [
    (["0.01"], [0.01]), (["1e-3"], [1e-3]), (["2^-6"], [2**-6]), (["2^0.5"], [2**0.5]),
    (["2^-1.5"], [2**-1.5]),
    (["2^-10:2^-7"], [2**-10, 2**-9, 2**-8, 2**-7]),    # both ends
    (["2^3:2^3"], [8.0]),
    (["2^-1:2^1", "0.7", "1"], [0.5, 1.0, 2.0, 0.7]),   # in the order given, each once
    (["2^-8:2^-7:0.5"], [2**-8, 2**-7.5, 2**-7]), (["2^-7.5:2^-5.5"], [2**-7.5, 2**-6.5, 2**-5.5]),
    (["0.1:0.3:0.1"], [0.1, 0.2, 0.3]),                 # as one types them, not 0.1 + 0.1 + 0.1
])
def test_a_learning_rate_is_a_number_a_power_of_two_or_a_range_of_them(words, values, parsed):
    assert sorted(c.lr for c in parsed("--lr", *words)) == sorted(values)
    assert train.parser().parse_args(["--lr", *words]).lr[0][0] == values[0]


@pytest.mark.parametrize("words, values", [
    (["128"], [128]), (["2^7"], [128]), (["2^5:2^8"], [32, 64, 128, 256]),
    (["64:256:64"], [64, 128, 192, 256]), (["2^5:2^9:2"], [32, 128, 512]),
    (["64", "2^6", "64"], [64])])
def test_a_width_is_a_whole_number_a_power_of_two_or_a_range_of_them(words, values, parsed):
    found = [c.width for c in parsed("--width", *words)]
    assert sorted(found) == values and all(type(width) is int for width in found)


def test_several_values_are_an_axis_and_the_runs_are_all_combinations(parsed):
    configs = parsed("--width", "64", "128", "--param", "sp", "mup", "ntk", "--lr", "2^-8:2^-6",
                     "--seed", "0", "1", "--tied", "on", "off", "--betas", "0.9,0.95", "0.8,0.9")
    assert len(set(configs)) == len(configs) == 2 * 3 * 3 * 2 * 2 * 2
    assert {c.betas for c in configs} == {(0.9, 0.95), (0.8, 0.9)}
    assert {c.tied for c in configs} == {True, False}


def test_without_flags_the_run_is_the_default_config(parsed):
    assert parsed() == [complete(Config())]


def test_each_optimizer_has_its_own_learning_rate_where_none_is_given(parsed):
    lrs = {c.optimizer: c.lr for c in parsed("--optimizer", "sgd", "adamw")}
    assert lrs["sgd"] != lrs["adamw"] and None not in lrs.values()


def test_lr_factor_multiplies_the_default_of_each_run(parsed):
    both = "--param", "mup", "umup", "--optimizer", "sgd", "adamw"
    plain = {(c.param, c.optimizer): c.lr for c in parsed(*both)}
    found = parsed(*both, "--lr-factor", "2^-1:2^1")
    assert sorted((c.param, c.optimizer, c.lr) for c in found) == sorted(
        (*k, lr * f) for k, lr in plain.items() for f in (0.5, 1, 2))


def test_the_base_may_be_larger_than_the_width(parsed):
    assert [c.base_width for c in parsed("--width", "32", "--base-width", "256")] == [256]


# What is refused: one line, exit status 2

@pytest.mark.parametrize("arguments, named", [
    (["--foo", "1"], "--foo"),
    (["foo"], "foo"),
    (["--widt", "64"], "--widt"),   # no abbreviations: a later flag could make them ambiguous
    (["--resum"], "--resum"),
    (["--model", "rnn"], "transformer"),
    (["--param", "mup", "table8"], "table8"),
    (["--optimizer", "lion"], "lion"),
    (["--tied", "yes"], "on or off"),
    (["--lr"], "--lr"),
    (["--lr", "fast"], "fast"),
    (["--lr", "nan"], "nan"),
    (["--lr", "2^-4:2^-10"], "rising range"),
    (["--lr", "3:5"], "rising range"),
    (["--lr", "2^x"], "2^x"),
    (["--lr", "2^"], "2^"),
    (["--lr", "2^1:"], "2^1:"),
    (["--lr", "2^0.5:2^2"], "2^0.5:2^2"),
    (["--lr", "2^9999"], "2^9999"),
    (["--lr", "2^-8:2^-4:0.3"], "2^-8:2^-4:0.3"),                # does not lead to the end
    (["--lr", "2^-8:2^-4:0"], "2^-8:2^-4:0"),
    (["--lr", "2^-8:16:1"], "2^-8:16:1"),
    (["--lr", "1:2:3:4"], "1:2:3:4"),
    (["--lr", "nan:2:1"], "nan:2:1"),
    (["--width", "32:64:0.5"], "32:64:0.5"),
    (["--lr", "2^-99999999999:2^1"], "100,000,000,001 numbers"),
    (["--seed", "0:999:1", "--lr", "1:1001:1"], "000 runs: give at most 1,000,000"),
    (["--depth", "2^20"], "--depth 1048576"),
    (["--width", "2^17"], "4.12e+11 parameters"),
    (["--batch", "2^40"], "GB"),
    (["--seed", "1" * 320], "1" * 60),
    (["--lr", "1" * 320], "--lr inf"),
    (["--eps", "1e-60"], "smallest normal"),
    (["--data", "/dev/zero"], "/dev/zero"),
    (["--lr", "0"], "--lr"),
    (["--lr", "-0.1"], "--lr"),
    (["--lr", "inf"], "--lr"),
    (["--lr-factor", "0"], "--lr"),
    (["--lr-factor", "-1"], "--lr"),
    (["--lr-factor", "2", "--lr", "0.1"], "--lr-factor"),
    (["--base-width", "64", "--param", "umup"], "--base-width"),
    (["--alpha-res", "2"], "--alpha-res"),                       # of umup only
    (["--alpha-res", "2", "--param", "umup", "--model", "mlp"], "--alpha-res"),
    (["--output-mult", "2", "--param", "umup"], "--output-mult"),
    (["--momentum", "0.9"], "--momentum"),                       # AdamW has none
    (["--newton-schulz-steps", "3"], "--newton-schulz-steps"),   # of Muon only
    (["--optimizer", "muonclip", "--model", "mlp"], "muonclip"),
    (["--optimizer", "muon", "--newton-schulz-steps", "0"], "--newton-schulz-steps"),
    (["--width", "0"], "--width"),
    (["--width", "-64"], "--width"),
    (["--width", "64.5"], "64.5"),
    (["--width", "2^-1"], "2^-1"),
    (["--width", "48"], "--head-dim 32"),
    (["--head-dim", "3", "--width", "33"], "even"),
    (["--depth", "0"], "--depth"),
    (["--steps", "0"], "--steps"),
    (["--batch", "0"], "--batch"),
    (["--seq", "0"], "--seq"),
    (["--base-width", "0"], "--base-width"),
    (["--init-scale", "0"], "--init-scale"),
    (["--eps", "0"], "--eps"),                # 0/0 in the rows of bytes that never occur
    (["--eps", "-1"], "--eps"),
    (["--seed", "-1"], "--seed"),
    (["--clip", "-1"], "--clip"),
    (["--weight-decay", "-0.1"], "--weight-decay"),
    (["--warmup", "300"], "--warmup 300"),    # of 300 steps
    (["--warmup", "30", "--steps", "20"], "--steps 20"),
    (["--optimizer", "sgd", "--momentum", "1"], "--momentum"),
    (["--betas", "0.9"], "0.9"),
    (["--betas", "0.9,1"], "--betas"),
    (["--betas", "0.9,0.99,0.999"], "0.9,0.99,0.999"),
    (["--tied", "on", "--param", "mup-table3"], "mup-table3"),
    (["--tied", "on", "--zero-readout", "on"], "--zero-readout"),
    (["--tied", "on", "--model", "mlp"], "--tied"),
    (["--gains", "on", "--model", "mlp"], "--gains"),
    (["--zero-query", "on", "--model", "mlp"], "--zero-query"),
    (["--head-dim", "64", "--model", "mlp"], "--head-dim"),
    (["--attn-mult", "2", "--model", "mlp"], "--attn-mult"),
    (["--depth-rule", "completep", "--model", "mlp"], "--depth-rule"),
    (["--ffn", "swiglu", "--model", "mlp"], "swiglu"),
    (["--data", "/no/such/file"], "/no/such/file"),
    (["--seq", "100000"], "--seq 100000"),    # of a text that is shorter
    (["--jobs", "0"], "--jobs"),
    (["--jobs", "two"], "two"),
    (["--cluster", ""], "--cluster is empty"),
    (["--dtype", "float16"], "float16"),
    (["--device", "tpu"], "tpu"),
    (["--out", __file__], __file__),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_input_is_one_line_that_names_it_and_status_2(
        arguments, named, tmp_path, monkeypatch, capsys):
    def no_training(*args, **kwargs):
        raise AssertionError("wrong input was trained")
    monkeypatch.setattr(run, "train", no_training)
    monkeypatch.setattr(sweep.Workers, "train", no_training)
    for sizes in ([], ["--depth", "1", "2"][:3 * ("--depth" not in arguments)]):   # run and sweep
        defaults = [*DATA, *sizes, "--out", str(tmp_path / "out")]
        assert command([*defaults, *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.endswith("\n")
        assert named in err and "Traceback" not in err
        assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.parametrize("name, content", [
    ("empty", b""), ("short", b"x" * 100), ("binary", b"\0" * 10_000)])
def test_unusable_text_is_one_line_and_status_2(name, content, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert command(["--data", tmp_path / name, "--out", tmp_path]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--data" in err


def has_gpu():
    """Whether CuPy is installed and finds a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy
    return cupy.cuda.is_available()


@pytest.mark.skipif(has_gpu(), reason="here is a GPU")
def test_the_gpu_is_refused_where_there_is_none(tmp_path, capsys):
    assert command([*TINY, "--device", "gpu", "--out", tmp_path]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--device gpu" in err and "--device cpu" in err


# Every flag has an effect

SGD, MUON, UMUP = ["--optimizer", "sgd"], ["--optimizer", "muon"], ["--param", "umup"]
MUONCLIP, FP8 = ["--optimizer", "muonclip"], ["--matmul-format", "fp8"]
EFFECTS = {   # field: (flags under which it has an effect, a value)
    "model": ([], "mlp"), "param": ([], "sp"), "optimizer": ([], "sgd"), "width": ([], "64"),
    "depth": ([], "2"), "head_dim": ([], "16"), "base_width": ([], "16"),
    "base_depth": (["--depth-rule", "completep"], "1"), "base_head_dim": ([], "16"),
    "depth_rule": ([], "depth-mup"), "ffn": ([], "swiglu"), "tied": ([], "on"),
    "gains": ([], "on"), "biases": ([], "on"), "zero_readout": ([], "on"),
    "zero_query": ([], "on"), "lr": ([], "2^-5"), "init_scale": ([], "2"),
    "embed_mult": ([], "2"), "attn_mult": ([], "2"), "output_mult": ([], "2"),
    "momentum": (SGD, "0.9"), "nesterov": ([*SGD, "--momentum", "0.9"], "on"),
    "betas": ([], "0.8,0.9"), "eps": ([], "1e-3"), "weight_decay": ([], "0.1"),
    "decay_form": (["--weight-decay", "0.1"], "coupled"), "clip": ([], "0.01"),
    "steps": ([], "4"), "warmup": ([], "2"), "schedule": ([], "constant"), "batch": ([], "3"),
    "seq": ([], "17"), "seed": ([], "1"), "adam_lr": (MUON, "2^-5"),
    "momentum_form": (MUON, "sum"), "muon_scale": (MUON, "moonlight"),
    "muon_per_head": ([*MUON, "--head-dim", "16"], "on"), "coefficients": (MUON, "cubic"),
    "newton_schulz_steps": (MUON, "3"), "qk_clip_threshold": (MUONCLIP, "0.01"),
    "alpha_attn": (UMUP, "2"), "alpha_ffn": (UMUP, "2"), "alpha_res": (UMUP, "2"),
    "alpha_res_ratio": (UMUP, "2"), "alpha_loss": (UMUP, "2"), "matmul_format": ([], "bf16"),
    "rounded": (FP8, "all"), "loss_scale": (FP8, "2^20"),
    "data": ([], train.__file__), "dtype": ([], "float64"),
}
# The MLP has every field that the Transformer does not own, and no attention logits to clip.
EFFECTS_ON_MLP = {f.name: EFFECTS[f.name] for f in fields(Config)
                  if "model" not in f.metadata["owner"] and f.name != "qk_clip_threshold"
                  and f.name not in ("model", "device")}
EFFECTS_ON_MLP["ffn"] = ([], "relu")


def trace(result):
    """A run's final parameters, as something that `==` compares bit for bit."""
    return {name: (w.dtype.str, w.shape, w.tobytes()) for name, w in result[2].items()}


def test_the_list_of_effects_names_every_field_of_a_config_and_every_flag():
    assert set(EFFECTS) == set(record_of(Config())) - {"device"}   # its refusal has a test
    dests = {a.dest for a in train.parser()._actions} - {"help"}
    assert dests == set(EFFECTS) | {   # the others have tests of their own
        "lr_factor", "device", "jobs", "cluster", "out", "resume", "explain", "dump",
        "no_plot"}


@pytest.mark.parametrize("model, name", [("transformer", n) for n in EFFECTS] + [
    ("mlp", n) for n in EFFECTS_ON_MLP])
def test_every_flag_changes_what_is_trained(model, name, trained):
    scene, value = (EFFECTS if model == "transformer" else EFFECTS_ON_MLP)[name]
    common = [*TINY, "--model", model, *scene]   # of a flag that is given twice the last one counts
    assert trace(trained(*common, flag(name), value)) != trace(trained(*common))


def test_a_flag_given_its_default_changes_nothing(trained):
    expected = trace(trained(*TINY))
    for name in ("lr", "betas", "param", "tied", "schedule", "eps", "output_mult"):
        default = getattr(complete(Config()), name)
        word = {"betas": "0.9,0.99", "tied": "off"}.get(name, default)
        assert trace(trained(*TINY, flag(name), word)) == expected


def test_nesterov_changes_nothing_where_momentum_is_zero(trained):
    with_nesterov = trained(*TINY, *SGD, "--momentum", "0", "--nesterov", "on")
    assert trace(with_nesterov) == trace(trained(*TINY, *SGD))


# A single run

def test_a_single_run_prints_its_losses_and_a_sample_and_keeps_both(tmp_path, capsys):
    assert command([*TINY, "--steps", "5", "--out", tmp_path]) == 0
    out, err = capsys.readouterr()
    record, = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert f"held-out loss {record['loss']:.4f} nats per byte" in out and "tokens/s" in out
    assert len(record["sample"]) >= 75                  # 300 bytes, up to 4 a letter
    assert escaped(record["sample"]) in out
    assert re.findall(r"step (\d+):", out.splitlines()[0]) == ["1", "5"]   # each point once
    steps = [line.split()[1] for line in err.splitlines()]   # no terminal: plain lines
    assert steps == [f"{i}/5" for i in range(1, 6)]


def test_a_run_that_is_interrupted_while_it_draws_its_sample_is_kept(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(run, "sample", interrupted)
    assert command([*TINY, "--out", tmp_path]) == 130
    record, = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert record["status"] == "done"


def test_a_finished_single_run_is_shown_again_and_not_trained_again(
        tmp_path, monkeypatch, capsys):
    assert command([*TINY, "--out", tmp_path]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(run, "train", None)
    assert command([*TINY, "--out", tmp_path]) == 0
    out, err = capsys.readouterr()
    assert out == first and str(tmp_path) in err


def test_a_single_run_that_diverges_says_so_and_ends_with_status_0(tmp_path, capsys):
    assert command([*TINY, "--lr", "2^100", "--out", tmp_path]) == 0
    out, err = capsys.readouterr()
    assert "diverged" in out and "Traceback" not in err + out and "Warning" not in err
    assert json.loads((tmp_path / "results.jsonl").read_text())["status"] == "diverged"


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_run_continues_with_resume_and_starts_again_without(
        resume, tmp_path, monkeypatch, capsys):
    arguments = [*TINY, "--steps", "12"]
    assert command([*arguments, "--out", tmp_path / "whole"]) == 0
    asked, batch, original = [], data.training_batch, run.train

    def training_batch(corpus, seed, step, *sizes):
        asked.append(step)
        if len(asked) == 9:
            raise KeyboardInterrupt
        return batch(corpus, seed, step, *sizes)

    def often_saved(*args):   # with a checkpoint at each point of the curve
        return original(*args, checkpoint_seconds=-1)
    monkeypatch.setattr(data, "training_batch", training_batch)
    monkeypatch.setattr(run, "train", often_saved)
    capsys.readouterr()
    assert command([*arguments, "--out", tmp_path / "cut"]) == 130
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    assert command([*arguments, "--out", tmp_path / "cut", *["--resume"] * resume]) == 0
    assert asked[9:] == list(range(8 if resume else 0, 12))
    whole, cut = (json.loads((tmp_path / name / "results.jsonl").read_text())
                  for name in ("whole", "cut"))
    for key in ("key", "loss", "curve", "sample"):
        assert cut[key] == whole[key]


def test_a_damaged_checkpoint_is_one_line_and_status_2(tmp_path, capsys):
    config = complete(Config(width=32, depth=1, steps=3, warmup=1, batch=2, seq=16,
                             data=(__file__,)))
    key = config.key(data.load([__file__], 16).digest)
    (tmp_path / f"{key}.npz").write_bytes(b"PK")
    assert command([*TINY, "--resume", "--out", tmp_path]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{key}.npz" in err and "delete it" in err


def test_a_sample_cannot_speak_to_the_terminal():
    assert escaped("a\x1b[2J\r\0\x7f\x9b\u202e") == r"a\x1b[2J\r\x00\x7f\x9b\u202e"
    assert escaped("Größe:\tμ\n\\") == "Größe:\tμ\n\\"


# Streams and signals

def program(*arguments, **options):
    """A finished process of `python …`."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, timeout=PATIENCE,
                          stderr=subprocess.PIPE, **options)


PATIENCE = 60   # seconds; only a failing test waits so long
PRINTING = [["train.py", "--help"], ["train.py", "--explain"], ["-m", "tinymup"],
            ["-m", "tinymup", "--width", "64"]]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_what_an_ascii_terminal_cannot_show_is_escaped(arguments):
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    shown = program(*arguments, env=ascii_only, stdout=subprocess.PIPE)
    assert shown.returncode == 0 and shown.stderr == ""
    assert shown.stdout.isascii() and re.search(r"\\(x|u)", shown.stdout)


@pytest.mark.parametrize("arguments", [*PRINTING, ["-m", "tinymup", "--format", "csv"]],
                         ids=" ".join)
def test_a_closed_pipe_ends_quietly(arguments):
    read, write = os.pipe()
    os.close(read)                            # as head does when it has seen enough
    try:
        ended = program(*arguments, stdout=write)
    finally:
        os.close(write)
    # As for tools that SIGPIPE ends. Python itself writes the help, and leaves it there.
    assert (ended.stderr, ended.returncode) == ("", 0 if "--help" in arguments else 141)


@pytest.mark.parametrize("closing, status", [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0),
                                             (">/dev/full", 2)])
def test_a_run_with_closed_or_full_streams_keeps_its_record(closing, status, tmp_path):
    out = tmp_path / "out"
    words = shlex.join([sys.executable, "train.py", *TINY, "--out", str(out)])
    ended = subprocess.run(["sh", "-c", f"{words} {closing}"], cwd=ROOT, capture_output=True,
                           text=True, timeout=PATIENCE)
    assert ended.returncode == status and "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr
    record, = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert record["status"] == "done"


@pytest.mark.parametrize("arguments", [["train.py", "--help"], ["-m", "tinymup"]], ids=" ".join)
def test_ctrl_c_during_the_imports_is_one_line(arguments, tmp_path):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    ended = program(*arguments, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                    stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\ninterrupted\n")


@pytest.mark.parametrize("error, said", [
    ("MemoryError", "MemoryError"), ("OSError(24, 'Too many open files')", "Too many open files"),
    ("ImportError('long\\n\\nfailed to map segment\\n')", "failed to map segment")])
def test_an_import_without_memory_or_files_is_one_line(error, said, tmp_path):
    (tmp_path / "numpy.py").write_text(f"raise {error}")
    ended = program("train.py", "--help", env=os.environ | {"PYTHONPATH": str(tmp_path)},
                    stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("train.py: cannot start: ") and said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_error_of_the_program_itself_while_it_is_imported_keeps_its_traceback(tmp_path):
    (tmp_path / "numpy.py").write_text("1 / 0")
    ended = program("train.py", "--help", env=os.environ | {"PYTHONPATH": str(tmp_path)},
                    stdout=subprocess.PIPE)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


def test_a_run_imports_nothing_of_numpy_once_it_has_begun(tmp_path):
    words = ["--model", "mlp", "--width", "8", "--steps", "2", "--warmup", "1", "--lr", "2^-8",
             "2^-7", "--no-plot", "--data", __file__, "--out", str(tmp_path)]
    code = ("import sys, train; before = set(sys.modules); train.main(sys.argv[1:]); "
            "print('late:', sorted(n for n in set(sys.modules) - before if 'numpy' in n))")
    ended = program("-c", code, *words, stdout=subprocess.PIPE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "late: []"


def test_an_odd_name_of_a_backend_for_plots_does_no_harm():
    for name in ("foo", "TkAgg", ""):
        ended = program("train.py", "--explain", env=os.environ | {"MPLBACKEND": name},
                        stdout=subprocess.DEVNULL)
        assert (ended.returncode, ended.stderr) == (0, "")


# --dump

def dumped(folder):
    """The index and {section: {name: array}} of a dump, read as its index says, with NumPy only."""
    index, found = json.loads((folder / "index.json").read_text(encoding="utf-8")), {}
    for file, places in index["files"].items():
        numbers = np.fromfile(folder / file, "<f8")
        found[file] = {name: numbers[place["offset"] // 8:][:math.prod(place["shape"])].reshape(
            place["shape"]) for name, place in places.items()}
        assert sum(array.size for array in found[file].values()) == numbers.size
    return index, found


@pytest.mark.parametrize("arguments", [
    [], ["--optimizer", "muonclip", "--param", "umup", "--clip", "0.5", "--qk-clip-threshold", "1"],
    ["--model", "mlp", "--width", "32"]], ids=" ".join)
def test_a_dump_has_all_that_trains_to_the_same_losses_and_parameters(arguments, tmp_path, capsys):
    assert command([*TINY, *arguments, "--dtype", "float64", "--dump", tmp_path / "dump",
                    "--out", tmp_path / "out"]) == 0
    assert "index.json" in capsys.readouterr().out and not (tmp_path / "out").exists()
    index, found = dumped(tmp_path / "dump")
    config = restored(index["resolved"]["config"])
    assert index["resolved"] == json.loads(json.dumps(resolved(config)))
    network = build(config)
    params = {name: w.copy() for name, w in found["initial.f64"].items()}
    assert {r["name"]: r["shape"] for r in index["resolved"]["parameters"]} == {
        name: list(w.shape) for name, w in params.items()}
    optimizer, losses = optim.Optimizer(network.rows, params, settings(config)), []
    for step, ids in enumerate(found["ids.f64"]["ids"].astype(int)):
        largest = {}
        loss, grads = network.loss_and_gradients(params, ids[:, :-1], ids[:, 1:], largest=largest)
        if step == 0:
            for name, g in grads.items():
                assert g.tobytes() == found["gradients.f64"][name].tobytes()
        run.update(config, network, params, optimizer, grads, largest, step)
        losses.append(loss)
    assert losses == found["losses.f64"]["losses"].tolist() and len(losses) == 3
    for name, w in params.items():
        assert w.tobytes() == found["final.f64"][name].tobytes()
        assert not np.array_equal(w, found["initial.f64"][name])


def test_a_dump_is_the_run_that_is_recorded(tmp_path):
    assert command([*TINY, "--dump", tmp_path / "dump"]) == 0
    assert command([*TINY, "--out", tmp_path]) == 0
    record = json.loads((tmp_path / "results.jsonl").read_text())
    losses = dumped(tmp_path / "dump")[1]["losses.f64"]["losses"]
    assert [loss for _, loss in record["curve"]] == losses.tolist()   # a point for each of 3 steps


def test_a_dump_of_several_runs_is_refused(tmp_path, capsys):
    assert command([*TINY, "--lr", "0.1", "0.2", "--dump", tmp_path / "dump"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "single run" in err and not (tmp_path / "dump").exists()


# --explain, --help and --no-plot

def test_explain_prints_every_parameter_and_trains_and_writes_nothing(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "train", None)
    monkeypatch.setattr(data, "load", None)
    out = tmp_path / "out"
    assert command([*TINY, "--gains", "on", "--biases", "on", "--explain", "--out", out]) == 0
    rows = capsys.readouterr().out.splitlines()
    network = build(complete(Config(width=32, depth=1, gains=True, biases=True, steps=3)))
    for parameter in network.rows:
        row, = [row for row in rows if row.startswith(f"| {parameter.name} ")]
        cells = [cell.strip() for cell in row.split("|")]
        assert {str(list(parameter.shape)), str(parameter.lr), str(parameter.std)} <= set(cells)
    assert not out.exists()


def test_explain_shows_a_network_once_for_all_its_seeds_and_learning_rates(capsys):
    def tables_of(*arguments):
        assert command([*TINY, *arguments, "--explain"]) == 0
        return capsys.readouterr().out.count("\n| embedding ")
    assert tables_of("--lr", "2^-8:2^-4", "--seed", "0", "1") == 1
    assert tables_of("--width", "32", "64", "--param", "sp", "mup") == 4
    assert tables_of("--model", "mlp", "transformer") == 2
    assert tables_of("--weight-decay", "0", "0.1") == 2


@pytest.mark.parametrize("arguments", [
    ["--width", "256"], ["--param", "sp", "mup", "--width", "64", "128"],
    ["--param", "umup", "--optimizer", "muon", "--gains", "on"], ["--model", "mlp"]])
def test_explain_and_the_tables_of_the_module_are_the_same(arguments, capsys):
    assert command([*arguments, "--explain"]) == 0
    explained = capsys.readouterr().out
    tables.main(arguments)
    assert capsys.readouterr().out == explained
    assert "| output " in explained


@pytest.mark.parametrize("arguments", [
    ["--width", "32", "64"], ["--param", "sp", "umup", "--optimizer", "muon"], ["--width", "64"]])
@pytest.mark.parametrize("program", ["train.py", "tinymup"])
def test_json_is_one_list_of_the_resolved_runs(program, arguments, capsys):
    if program == "train.py":
        assert command([*arguments, "--explain", "json"]) == 0
    else:
        tables.main([*arguments, "--format", "json"])
    runs = json.loads(capsys.readouterr().out)
    wanted = flags.configs_of(vars(train.parser().parse_args(arguments)))
    assert runs == json.loads(json.dumps([resolved(config) for config in wanted]))


def test_the_cells_of_a_resolved_run_times_its_sizes_are_its_numbers():
    """Exponents and sizes include the depth. A base shape is there where there is a base model."""
    for param in PARAMETRIZATIONS:
        for optimizer in ("sgd", "adamw"):
            run = resolved(complete(normalised(Config(
                width=96, depth=6, head_dim=16, param=param, eps=1e-3, depth_rule="completep",
                optimizer=optimizer, lr=0.25))))
            for row in run["parameters"]:
                def power(cell):
                    return math.prod(row["sizes"][size]**e
                                     for size, e in row["exponents"][cell].items())
                assert row["lr"] == pytest.approx(0.25 * power(optimizer), rel=1e-14)
                assert row["eps"] is None or row["eps"] == pytest.approx(1e-3 * power("eps"))
                assert (row["base_shape"] is None) == (param == "umup")
                if param != "umup" and row["in_branch"]:
                    assert row["sizes"]["depth"] == 3


def rows_of_csv(capsys, *arguments):
    """What `python -m tinymup --format csv` prints, as dicts."""
    tables.main([*arguments, "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_csv_has_one_header_of_identifiers_a_column_for_the_parametrization_and_all_digits(capsys):
    arguments = ["--param", "sp", "umup", "--optimizer", "muon", "adamw"]
    rows = rows_of_csv(capsys, *arguments)
    assert all(key.isidentifier() for key in rows[0])
    wanted = [(str(i), row, c.param) for i, c in enumerate(flags.configs_of(
        vars(train.parser().parse_args(arguments))), 1) for row in resolved(c)["parameters"]]
    for found, (run, row, param) in zip(rows, wanted, strict=True):
        assert (found.pop("run"), found.pop("param")) == (run, param)
        for key, value in row.items():
            assert (found[key] if isinstance(value, str) else
                    json.loads(found[key]) if found[key] else None) == value
    muon, = (row for row in rows if (row["name"], row["optimizer"]) == ("block0.up", "muon")
             and row["init_std"] == "1.0")
    assert muon["eps"] == "" and muon["shape"] == "[128, 512]" and muon["shape_factor"] == "2.0"


def test_symbolic_tables_are_one_document_too(capsys):
    tables.main(["--format", "json"])
    found = json.loads(capsys.readouterr().out)
    rows = rows_of_csv(capsys)
    assert [r["param"] for r in found] == [r["param"] for r in rows]
    assert set(PARAMETRIZATIONS) == {r["param"] for r in found}
    assert all(key.isidentifier() for key in (*found[0], *rows[0]))
    assert rows[0]["muon"] == "AdamW" and found[2]["muon"] == {"fan_in": -0.5, "fan_out": 0.5}


def test_tables_for_readers_have_no_empty_column_and_say_what_belongs_to_no_parameter(capsys):
    tables.main(["--optimizer", "adamw", "--width", "64"])
    out = capsys.readouterr().out
    header = out.splitlines()[3]
    assert "eps" in header and not re.search("shape_factor|mult_dx|sizes", header)
    run = resolved(complete(Config(width=64)))
    assert f"attention {run['scales']['attention']}" in out and "momentum" not in out
    assert f"{run['schedule'][0]}, {run['schedule'][1]}" in out and "branch 0 to 3: skip" in out
    tables.main(["--param", "umup", "--optimizer", "muon"])
    out = capsys.readouterr().out
    assert re.search("eps .*shape_factor|shape_factor.* eps", out) and "mult_dx" in out
    assert "newton_schulz [[3.4445" in out and "branch 3: skip" in out and "dlogits" in out


@pytest.mark.parametrize("arguments, named", [
    (["--foo"], "--foo"), (["--steps", "2000000", "--width", "64"], "--steps 2000000"),
    (["--width", "0"], "--width"), (["--width", "x"], "x"),
    (["--param", "table8"], "table8"), (["--format", "word"], "word"),
    (["--alpha-res", "2"], "--alpha-res"), (["--lr-factor", "2"], "--lr-factor"),
    (["--tied", "on", "--param", "mup-table3"], "mup-table3")])
def test_the_module_refuses_wrong_input_in_one_line_with_status_2(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        tables.main(arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1 and named in err


@pytest.mark.parametrize("program", [["train.py"], ["-m", "tinymup"]])
def test_help_opens_with_a_short_usage_line_and_examples(program):
    shown = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout
    name = "python " + " ".join(program)
    usage, *text = shown.splitlines()
    assert usage.startswith(f"usage: {name} ") and len(usage) <= 80 and text[0] == ""
    before_options = shown.split("--model NAME")[0]
    assert len(re.findall(rf"^  {re.escape(name)}", before_options, re.M)) >= 2


def test_the_examples_of_help_are_valid():
    examples = [line.split("  ")[0].split() for text in (train.EXAMPLES, tables.EXAMPLES)
                for line in re.findall(r"^  (python .*)", text, re.M)]
    assert len(examples) >= 5
    for _, *words in examples:
        if words[0] == "train.py":
            assert train.configs_of(vars(train.parser().parse_args(words[1:])))
        else:
            tables.main(words[2:])


def test_help_lists_every_flag_with_its_default(capsys):
    assert command(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(Config):
        assert f"{flag(f.name)} " in text
    assert "[128]" in text and "[transformer]" in text and "2^-10:2^-4" in text


def test_no_plot_leaves_the_plot_away(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.Workers, "train", lambda self, config, key, *_: {
        "key": key, "status": "done", "loss": 2.0,
        "config": json.loads(json.dumps(record_of(config)))})
    for arguments, drawn in (["--no-plot"], False), ([], True):
        assert command([*MLP, "--width", "32", "64", *arguments, "--out", tmp_path]) == 0
        assert (tmp_path / "plot.png").exists() == drawn
