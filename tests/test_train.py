"""The command line: what it takes, what it refuses and how, and that no flag is read and forgotten."""
import importlib.util
import json
import re
from dataclasses import fields

import pytest

import train
from tinymup import data, run, sweep
from tinymup.network import Config, build, complete

DATA = ["--data", __file__]
TINY = ["--width", "32", "--depth", "1", "--steps", "3", "--warmup", "1", "--batch", "2", "--seq", "16", *DATA]
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
    """A function from arguments to the configs that `train.py` would train; nothing is trained."""
    found = []
    monkeypatch.setattr(train, "explain", lambda configs: found.append(configs))

    def parse(*arguments):
        assert command([*arguments, "--explain"]) == 0
        return found[-1]
    return parse


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function from arguments to the (record, network, params) of the one run that `train.py` makes of them."""
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


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("words, values", [
    (["0.01"], [0.01]), (["1e-3"], [1e-3]), (["2^-6"], [2**-6]), (["2^0.5"], [2**0.5]), (["2^-1.5"], [2**-1.5]),
    (["2^-10:2^-7"], [2**-10, 2**-9, 2**-8, 2**-7]),              # both ends
    (["2^3:2^3"], [8.0]),
    (["2^-1:2^1", "0.7", "1"], [0.5, 1.0, 2.0, 0.7]),             # in the order given, each once
])
def test_a_learning_rate_is_a_number_a_power_of_two_or_a_range_of_them(words, values, parsed):
    assert sorted(c.lr for c in parsed("--lr", *words)) == sorted(values)
    assert train.parser().parse_args(["--lr", *words]).lr[0][0] == values[0]


@pytest.mark.parametrize("words, values", [(["128"], [128]), (["2^7"], [128]), (["2^5:2^8"], [32, 64, 128, 256]), (["64", "2^6", "64"], [64])])
def test_a_width_is_a_whole_number_a_power_of_two_or_a_range_of_them(words, values, parsed):
    found = [c.width for c in parsed("--width", *words)]
    assert sorted(found) == values and all(type(width) is int for width in found)


def test_several_values_are_an_axis_and_the_runs_are_all_combinations(parsed):
    configs = parsed("--width", "64", "128", "--param", "sp", "mup", "ntk", "--lr", "2^-8:2^-6", "--seed", "0", "1", "--tied", "on", "off",
                     "--betas", "0.9,0.95", "0.8,0.9")
    assert len(set(configs)) == len(configs) == 2 * 3 * 3 * 2 * 2 * 2
    assert {c.betas for c in configs} == {(0.9, 0.95), (0.8, 0.9)} and {c.tied for c in configs} == {True, False}


def test_without_flags_the_run_is_the_default_config(parsed):
    assert parsed() == [complete(Config())]


def test_each_optimizer_has_a_learning_rate_of_its_own_where_none_is_given(parsed):
    lrs = {c.optimizer: c.lr for c in parsed("--optimizer", "sgd", "adamw")}
    assert lrs["sgd"] != lrs["adamw"] and None not in lrs.values()


def test_lr_factor_multiplies_the_default_of_each_run(parsed):
    plain = {(c.param, c.optimizer): c.lr for c in parsed("--param", "mup", "umup", "--optimizer", "sgd", "adamw")}
    found = parsed("--param", "mup", "umup", "--optimizer", "sgd", "adamw", "--lr-factor", "2^-1:2^1")
    assert sorted((c.param, c.optimizer, c.lr) for c in found) == sorted((*k, lr * f) for k, lr in plain.items() for f in (0.5, 1, 2))


def test_the_base_may_be_larger_than_the_width(parsed):
    assert [c.base_width for c in parsed("--width", "32", "--base-width", "256")] == [256]


# ── what is refused: one line, exit status 2 ─────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("arguments, named", [
    (["--foo", "1"], "--foo"),
    (["foo"], "foo"),
    (["--widt", "64"], "--widt"),                                # no abbreviations: a later flag could make them ambiguous
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
    (["--lr", "0"], "--lr"),
    (["--lr", "-0.1"], "--lr"),
    (["--lr", "inf"], "--lr"),
    (["--lr-factor", "0"], "--lr"),
    (["--lr-factor", "-1"], "--lr"),
    (["--lr-factor", "2", "--lr", "0.1"], "--lr-factor"),
    (["--base-width", "64", "--param", "umup"], "--base-width"),
    (["--alpha-res", "2"], "--alpha-res"),                       # of umup alone
    (["--alpha-res", "2", "--param", "umup", "--model", "mlp"], "--alpha-res"),
    (["--output-mult", "2", "--param", "umup"], "--output-mult"),
    (["--optimizer", "muonclip", "--model", "mlp"], "muonclip"),
    (["--newton-schulz-steps", "0"], "--newton-schulz-steps"),
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
    (["--eps", "0"], "--eps"),                                   # 0/0 in the rows of bytes that never occur
    (["--eps", "-1"], "--eps"),
    (["--seed", "-1"], "--seed"),
    (["--clip", "-1"], "--clip"),
    (["--weight-decay", "-0.1"], "--weight-decay"),
    (["--warmup", "300"], "--warmup 300"),                       # of 300 steps
    (["--warmup", "30", "--steps", "20"], "--steps 20"),
    (["--momentum", "1"], "--momentum"),
    (["--betas", "0.9"], "0.9"),
    (["--betas", "0.9,1"], "--betas"),
    (["--betas", "0.9,0.99,0.999"], "0.9,0.99,0.999"),
    (["--tied", "on", "--param", "mup-table3"], "mup-table3"),
    (["--tied", "on", "--model", "mlp"], "--tied"),
    (["--gains", "on", "--model", "mlp"], "--gains"),
    (["--zero-query", "on", "--model", "mlp"], "--zero-query"),
    (["--head-dim", "64", "--model", "mlp"], "--head-dim"),
    (["--attn-mult", "2", "--model", "mlp"], "--attn-mult"),
    (["--depth-rule", "completep", "--model", "mlp"], "--depth-rule"),
    (["--ffn", "swiglu", "--model", "mlp"], "swiglu"),
    (["--data", "/no/such/file"], "/no/such/file"),
    (["--seq", "100000"], "--seq 100000"),                       # of a text that is shorter
    (["--jobs", "0"], "--jobs"),
    (["--jobs", "two"], "two"),
    (["--dtype", "float16"], "float16"),
    (["--device", "tpu"], "tpu"),
    (["--out", __file__], __file__),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_input_is_one_line_that_names_it_and_status_2(arguments, named, tmp_path, monkeypatch, capsys):
    def no_training(*args, **kwargs):
        raise AssertionError("wrong input was trained")
    monkeypatch.setattr(run, "train", no_training)
    monkeypatch.setattr(sweep.Workers, "train", no_training)
    defaults = [*DATA, "--out", str(tmp_path / "out")]
    assert command([*defaults, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    assert named in err and "Traceback" not in err
    assert not (tmp_path / "out" / "results.jsonl").exists() or "--out" not in err


@pytest.mark.parametrize("name, content", [("empty", b""), ("short", b"x" * 100), ("binary", b"\0" * 10_000)])
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


# ── no flag is read and forgotten ────────────────────────────────────────────────────────────────────────────────────

SGD, MUON, UMUP = ["--optimizer", "sgd"], ["--optimizer", "muon"], ["--param", "umup"]
EFFECTS = {   # field: (flags that set the scene, the flag's value)
    "model": ([], "mlp"), "param": ([], "sp"), "optimizer": ([], "sgd"), "width": ([], "64"), "depth": ([], "2"), "head_dim": ([], "16"),
    "base_width": ([], "16"), "base_depth": (["--depth-rule", "completep"], "1"), "base_head_dim": ([], "16"), "depth_rule": ([], "depth-mup"),
    "ffn": ([], "swiglu"), "tied": ([], "on"), "gains": ([], "on"), "biases": ([], "on"), "zero_readout": ([], "on"), "zero_query": ([], "on"),
    "lr": ([], "2^-5"), "init_scale": ([], "2"), "embed_mult": ([], "2"), "attn_mult": ([], "2"), "output_mult": ([], "2"),
    "momentum": (SGD, "0.9"), "nesterov": ([*SGD, "--momentum", "0.9"], "on"), "betas": ([], "0.8,0.9"), "eps": ([], "1e-3"),
    "weight_decay": ([], "0.1"), "decay_form": (["--weight-decay", "0.1"], "coupled"), "clip": ([], "0.01"), "steps": ([], "4"),
    "warmup": ([], "2"), "schedule": ([], "constant"), "batch": ([], "3"), "seq": ([], "17"), "seed": ([], "1"),
    "adam_lr": (MUON, "2^-5"), "momentum_form": (MUON, "sum"), "muon_scale": (MUON, "moonlight"), "muon_per_head": ([*MUON, "--head-dim", "16"], "on"),
    "coefficients": (MUON, "cubic"), "newton_schulz_steps": (MUON, "3"), "qk_clip_threshold": (["--optimizer", "muonclip"], "0.01"),
    "alpha_attn": (UMUP, "2"), "alpha_ffn": (UMUP, "2"), "alpha_res": (UMUP, "2"), "alpha_res_ratio": (UMUP, "2"), "alpha_loss": (UMUP, "2"),
    "matmul_format": ([], "bf16"),
    "data": ([], train.__file__), "dtype": ([], "float64"),
}
EFFECTS_ON_MLP = {name: EFFECTS[name] for name in (
    "param", "optimizer", "width", "depth", "base_width", "lr", "init_scale", "output_mult", "zero_readout", "momentum", "nesterov", "betas", "eps",
    "weight_decay", "decay_form", "clip", "schedule", "adam_lr", "momentum_form", "muon_scale", "coefficients", "newton_schulz_steps", "alpha_ffn",
    "alpha_loss", "matmul_format")}
EFFECTS_ON_MLP["ffn"] = ([], "relu")


def trace(result):
    """All that a run leaves in its parameters, as something that `==` compares bit for bit."""
    return {name: (w.dtype.str, w.shape, w.tobytes()) for name, w in result[2].items()}


def flag(name):
    return "--" + name.replace("_", "-")


def test_the_list_of_effects_names_every_field_of_a_config_and_every_flag():
    assert set(EFFECTS) == {f.name for f in fields(Config)} - {"device"}       # without a GPU, a test of the refusal
    flags = {a.dest for a in train.parser()._actions} - {"help"}
    assert flags == set(EFFECTS) | {"lr_factor", "device", "jobs", "out", "resume", "explain", "no_plot"}   # each has tests of its own


@pytest.mark.parametrize("model, name", [("transformer", n) for n in EFFECTS] + [("mlp", n) for n in EFFECTS_ON_MLP])
def test_every_flag_changes_what_is_trained(model, name, trained):
    scene, value = (EFFECTS if model == "transformer" else EFFECTS_ON_MLP)[name]
    common = [*TINY, "--model", model, *scene]                   # of a flag that is given twice the last one counts
    assert trace(trained(*common, flag(name), value)) != trace(trained(*common))


def test_a_flag_given_its_default_changes_nothing(trained):
    expected = trace(trained(*TINY))
    for name in ("lr", "betas", "param", "tied", "schedule", "eps", "output_mult"):
        default = getattr(complete(Config()), name)
        word = {"betas": "0.9,0.99", "tied": "off"}.get(name, default)
        assert trace(trained(*TINY, flag(name), word)) == expected


def test_momentum_of_sgd_without_nesterov_and_with_it_agree_where_momentum_is_none(trained):
    assert trace(trained(*TINY, *SGD, "--momentum", "0", "--nesterov", "on")) == trace(trained(*TINY, *SGD))


# ── a single run ─────────────────────────────────────────────────────────────────────────────────────────────────────

def test_a_single_run_prints_its_losses_and_a_sample_and_keeps_both(tmp_path, capsys):
    assert command([*TINY, "--steps", "5", "--out", tmp_path]) == 0
    out, err = capsys.readouterr()
    record, = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert f"held-out loss {record['loss']:.4f} nats per byte" in out and "tokens/s" in out
    assert len(record["sample"]) >= 75 and record["sample"] in out   # 300 bytes, up to 4 of them in a character
    first = out.splitlines()[0]
    assert re.findall(r"step (\d+):", first) == ["1", "5"]       # some points of the curve, each once
    assert [line.split()[1] for line in err.splitlines()] == [f"{i}/5" for i in range(1, 6)]   # no terminal: plain lines


def test_a_finished_single_run_is_shown_again_and_not_trained_again(tmp_path, monkeypatch, capsys):
    assert command([*TINY, "--out", tmp_path]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(run, "train", None)
    assert command([*TINY, "--out", tmp_path]) == 0
    out, err = capsys.readouterr()
    assert out == first and str(tmp_path) in err


def test_a_single_run_that_diverges_says_so_and_ends_well(tmp_path, capsys):
    assert command([*TINY, "--lr", "2^100", "--out", tmp_path]) == 0
    out, err = capsys.readouterr()
    assert "diverged" in out and "Traceback" not in err + out and "Warning" not in err
    assert json.loads((tmp_path / "results.jsonl").read_text())["status"] == "diverged"


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_single_run_goes_on_with_resume_and_starts_again_without(resume, tmp_path, monkeypatch, capsys):
    arguments = [*TINY, "--steps", "12"]
    assert command([*arguments, "--out", tmp_path / "whole"]) == 0
    asked, batch, original = [], data.training_batch, run.train

    def training_batch(corpus, seed, step, *sizes):
        asked.append(step)
        if len(asked) == 9:
            raise KeyboardInterrupt
        return batch(corpus, seed, step, *sizes)
    monkeypatch.setattr(data, "training_batch", training_batch)
    monkeypatch.setattr(run, "train", lambda *args: original(*args, checkpoint_seconds=-1))   # a checkpoint at each point of the curve
    capsys.readouterr()
    assert command([*arguments, "--out", tmp_path / "cut"]) == 130
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    assert command([*arguments, "--out", tmp_path / "cut", *["--resume"] * resume]) == 0
    assert asked[9:] == list(range(8 if resume else 0, 12))
    whole, cut = (json.loads((tmp_path / name / "results.jsonl").read_text()) for name in ("whole", "cut"))
    for key in ("key", "loss", "curve", "sample"):
        assert cut[key] == whole[key]


def test_a_damaged_checkpoint_is_one_line_and_status_2(tmp_path, capsys):
    key = complete(Config(width=32, depth=1, steps=3, warmup=1, batch=2, seq=16, data=(__file__,))).key(data.load([__file__], 16).digest)
    (tmp_path / f"{key}.npz").write_bytes(b"PK")
    assert command([*TINY, "--resume", "--out", tmp_path]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{key}.npz" in err and "delete it" in err


# ── --explain and --no-plot ──────────────────────────────────────────────────────────────────────────────────────────

def test_explain_prints_every_parameter_and_trains_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "train", None)
    monkeypatch.setattr(data, "load", None)
    assert command([*TINY, "--gains", "on", "--biases", "on", "--explain", "--out", tmp_path / "out"]) == 0
    rows = capsys.readouterr().out.splitlines()
    network = build(complete(Config(width=32, depth=1, gains=True, biases=True, steps=3, warmup=1)))
    for parameter in network.rows:
        row, = [row for row in rows if row.startswith(f"| {parameter.name} ")]
        assert "×".join(map(str, parameter.shape)) in row and f"{parameter.lr:.4g}" in row
    assert not (tmp_path / "out").exists()


def test_explain_shows_each_network_once_for_all_its_seeds_and_learning_rates(capsys):
    tables = lambda *arguments: (command([*TINY, *arguments, "--explain"]), capsys.readouterr().out.count("\n| embedding "))[1]
    assert tables("--lr", "2^-8:2^-4", "--seed", "0", "1") == 1
    assert tables("--width", "32", "64", "--param", "sp", "mup") == 4
    assert tables("--model", "mlp", "transformer") == 2
    assert tables("--weight-decay", "0", "0.1") == 2


def test_help_lists_every_flag_with_its_default(capsys):
    assert command(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(Config):
        assert f"--{f.name.replace('_', '-')} " in text
    assert "[128]" in text and "[transformer]" in text and "2^-10:2^-4" in text


def test_no_plot_leaves_the_plot_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep.Workers, "train", lambda self, config, key, *_: {
        "key": key, "status": "done", "loss": 2.0, "config": json.loads(json.dumps(sweep.asdict(config)))})
    for arguments, drawn in (["--no-plot"], False), ([], True):
        assert command([*MLP, "--width", "32", "64", *arguments, "--out", tmp_path]) == 0
        assert (tmp_path / "plot.png").exists() == drawn
