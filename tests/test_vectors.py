"""The vectors of ports are up to date and notice mistakes, and the checker says what is wrong."""
import copy
import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import make_vectors
import mistakes
import op_vectors
from tinymup import optim
from tinymup.lab import vectors
from tinymup.lab.config import Config, build, complete
from tinymup.lab.resolved import resolved
from tinymup.number_formats import FORMATS

ROOT = Path(__file__).parent.parent
FOLDER = make_vectors.FOLDER
RUNS = list(make_vectors.CASES)
PARTS = {"ops": op_vectors.operations, "formats": op_vectors.formats,
         "optimizers": op_vectors.optimizers}
# BLAS sums in another order on other processors. Between four kernels of OpenBLAS the results
# differ by up to 7e-15 of their norms; the rest is room for other libraries.
OTHER_BLAS = 1e-12
NAMES = {name: makers for name, *makers in mistakes.MISTAKES}
TABLE = list(csv.DictReader(mistakes.RESULTS.read_text(encoding="utf-8").splitlines()))


def stored(name):
    """A case as its file has it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def computed(name, dtype="float64"):
    """What the program gives now."""
    if name in PARTS:
        return PARTS[name]() if dtype == "float64" or name == "formats" else PARTS[name](dtype)
    return make_vectors.run(replace(complete(make_vectors.CASES[name]), dtype=dtype))


def same(a, b):
    """Whether two values of JSON agree, numbers to within another BLAS's rounding."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=OTHER_BLAS)
    return a == b and type(a) is type(b)


@pytest.fixture
def check(tmp_path, capsys):
    """check(case, mine, flags) → exit code and lines. A text is written as it is."""
    def run(*values, flags=()):
        files = tmp_path / "case.json", tmp_path / "mine.json"
        for file, value in zip(files, values):
            text = value if isinstance(value, str) else json.dumps(value)
            file.write_text(text, encoding="utf-8")
        code = vectors.main(["check", *map(str, files), *flags])
        return code, capsys.readouterr().out.splitlines()
    return run


def results(case):
    """A case without its inputs: what a port computes."""
    return {key: value for key, value in case.items() if key not in vectors.IGNORED}


# The files

def test_there_is_a_file_for_each_case_and_no_other():
    assert {f.stem for f in FOLDER.glob("*.json")} == {*RUNS, *PARTS}


@pytest.mark.parametrize("name", [*RUNS, *PARTS])
def test_a_file_is_what_the_program_computes(name):
    case, now = stored(name), json.loads(json.dumps({"case": name} | computed(name)))
    assert list(case) == list(now) and case["case"] == name, "run: python tests/make_vectors.py"
    for key in vectors.IGNORED:
        assert same(case.get(key), now.get(key)), f"{key} changed: run python tests/make_vectors.py"
    found = list(vectors.common(case, now))
    assert len(found) == len(list(vectors.common(case, case)))
    for section, quantity, a, b in found:
        assert vectors.difference(a, b) <= OTHER_BLAS, (section, quantity)


@pytest.mark.parametrize("name", [*RUNS, *PARTS])
def test_a_file_is_small_strict_json(name):
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert len(text.encode()) <= 100_000
    assert json.loads(text, parse_constant=pytest.fail)          # NaN and Infinity are not JSON


@pytest.mark.parametrize("name", RUNS)
def test_initial_parameters_are_the_documented_lines(name):
    for r, row in enumerate(stored(name)["resolved"]["parameters"], 1):
        u, w = r, []
        for _ in range(math.prod(row["shape"])):
            u = 48271 * u % (2**31 - 1)
            w.append(row["init_mean"] + row["init_std"] * math.sqrt(12) * (u / (2**31 - 1) - 0.5))
        wanted = stored(name)["init"][row["name"]]
        assert w[:3] == pytest.approx(wanted["first"], rel=1e-15)
        assert w[-1] == pytest.approx(wanted["last"], rel=1e-15)
        norm, cosine = math.fsum(x * x for x in w)**0.5, math.fsum(
            x * math.cos(k) for k, x in enumerate(w))
        assert norm == pytest.approx(wanted["norm"], rel=OTHER_BLAS)
        assert cosine == pytest.approx(wanted["cosine"], rel=OTHER_BLAS, abs=OTHER_BLAS * norm)


def test_token_ids_are_the_documented_generator():
    case, u = stored("mup-adamw"), 2**30
    for x in np.array(case["ids"]).ravel():
        u = 48271 * u % (2**31 - 1)
        assert x == u % 256


def test_digest_tells_an_array_from_its_transpose_and_from_permutations():
    w = make_vectors.draw(3, (6, 6))
    for other in (w.T, w[::-1], w[:, ::-1], -w):
        assert vectors.difference(vectors.digest(w), vectors.digest(other)) > 0.01
        assert vectors.digest(other)["norm"] == pytest.approx(vectors.digest(w)["norm"], rel=1e-14)


@pytest.mark.parametrize("name", FORMATS)
def test_format_vectors_hold_every_kind_of_number(name):
    case, f = stored("formats"), FORMATS[name]
    x, y = np.array(case["inputs"][name]["x"]), np.array(case[name]["rounded"])
    assert (x == x.astype(np.float32)).all()                      # a float32 port gets the same
    assert (np.signbit(x) == np.signbit(y)).all() and (x == 0).sum() == 2
    assert (abs(x) > f.max).any() and abs(y).max() == f.max
    assert ((0 < abs(y)) & (abs(y) < f.min_normal)).any()         # subnormal numbers
    assert ((x != 0) & (y == 0)).any()                            # less than half of the smallest
    kept = np.frexp(abs(x) / f.min_subnormal)[0] * 2.0**(f.mantissa_bits + 2)
    normal = (abs(x) > f.min_normal) & (abs(x) < f.max)
    assert ((kept % 2 == 1) & normal).sum() >= 6                  # ties, halfway between two


# Mistakes

def test_the_table_of_mistakes_has_each_of_at_least_60():
    assert [line["mistake"] for line in TABLE] == list(NAMES) and len(NAMES) >= 60


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line["mistake"])
def test_a_mistake_is_noticed_by_the_case_that_the_table_names(line):
    quantity, difference, noise, _ = mistakes.noticed(NAMES[line["mistake"]], line["case"])
    assert quantity == line["quantity"]
    assert difference == pytest.approx(float(line["difference"]), rel=0.02)   # it has three digits
    assert difference >= mistakes.LEAST > vectors.TOLERANCE32
    assert difference >= mistakes.ABOVE_NOISE * noise


def test_the_1e_6_of_pytorchs_clip_shows_in_float64_alone(check):
    name = "mup-adamw-gelu-tied-clip"
    only = mistakes.edit(optim.clip, "xp.sqrt(squares)", "(xp.sqrt(squares) + 1e-6)")
    with mistakes.made([only]):
        mine = results(computed(name))
    assert check(stored(name), mine)[0] == 1
    assert check(stored(name), mine, flags=["--float32"])[0] == 0


def test_after_a_mistake_the_package_is_as_before():
    before = computed("umup-muon")
    for makers in NAMES.values():
        with mistakes.made(makers):
            pass
    assert computed("umup-muon") == before


def test_an_edit_of_a_text_that_is_gone_says_so():
    with pytest.raises(AssertionError, match="up to date"), mistakes.made(
            [mistakes.edit(make_vectors.draw, "no such text", "")]):
        pass


def test_a_program_without_a_mistake_is_not_noticed():
    assert not [name for name in RUNS if mistakes.noticed([], name)]


# The checker: agreement

@pytest.mark.parametrize("name", [*RUNS, *PARTS])
def test_the_program_itself_agrees(name, check):
    case = stored(name)
    code, lines = check(case, results(computed(name)))
    count = len(list(vectors.common(case, case)))
    assert (code, lines) == (0, [f"{count} of {count} quantities agree to 1e-10"])


@pytest.mark.parametrize("name", [*RUNS, *PARTS])
def test_single_precision_needs_the_wider_tolerance(name, check):
    mine = results(computed(name, "float32"))
    assert check(stored(name), mine, flags=["--float32"])[0] == 0
    assert check(stored(name), mine)[0] == (0 if name == "formats" else 1)


def test_float32_tolerance_is_above_what_single_precision_moves_and_below_every_mistake():
    noise = [d for _, differences in mistakes.references().values() for d in differences.values()]
    # With four kernels of OpenBLAS it is 2.8e-6 to 4.8e-6.
    assert 1e-6 < max(noise) < vectors.TOLERANCE32 / 3
    assert vectors.TOLERANCE32 < mistakes.LEAST / 3


@pytest.mark.parametrize("keys", [["loss"], ["gradients"], ["case", "ids", "init", "losses"]])
def test_any_part_of_a_case_may_be_given(keys, check):
    case = stored("mup-adamw")
    assert check(case, {key: case[key] for key in keys})[0] == 0


def test_the_numbers_themselves_may_stand_for_a_digest(check):
    case = stored("mup-adamw")
    params = make_vectors.parameters(build(complete(make_vectors.CASES["mup-adamw"])).rows)
    mine = {name: w.tolist() for name, w in params.items()}
    assert check(case, {"init": mine}) == (0, ["52 of 52 quantities agree to 1e-10"])


def test_the_first_difference_is_the_first_in_the_order_of_computation(check):
    case = stored("mup-adamw")
    mine = copy.deepcopy(dict(reversed(results(case).items())))
    for section, name in ("after_first_step", "embedding"), ("activations", "block1.ffn"):
        mine[section][name]["norm"] *= 1.234567
    code, lines = check(case, mine)
    assert code == 1 and lines[1] == "the first difference: activations block1.ffn"
    assert lines[0].split(" ")[:3] == [str(len(list(vectors.common(case, case))) - 2), "of",
                                       str(len(list(vectors.common(case, case))))]
    wanted, found = case["activations"]["block1.ffn"], mine["activations"]["block1.ffn"]
    assert lines[2:4] == [f"  case  {wanted}", f"  mine  {found}"]


# The checker: hints

@pytest.mark.parametrize("mistake, case, first, words", [
    ("readout multiplier missing", "mup-adamw", "activations logits", "2.4 = width ratio"),
    ("readout multiplier 1/√fan_in", "mup-adamw", "activations logits", "√(width ratio)"),
    ("attention scale 1/√d in μP", "mup-adamw", "activations block0.attention_logits",
     "√(head_dim ratio)"),
    ("attn_mult missing", "mup-adamw", "activations block0.attention_logits", "1/(attn_mult)"),
    ("embed_mult missing", "mup-adamw", "activations embedding", "1/(mult_y)"),
    ("tied lookup without the root of the base width", "mup-adamw-gelu-tied-clip",
     "activations embedding", "1/√(base_width)"),
    ("u-μP: attention scale 1/√d", "umup-adamw", "activations block0.attention_logits",
     "√(head_dim)"),
    ("u-μP: attention's factor missing", "umup-adamw", "activations block0.attention",
     "1/(attention_out)"),
    ("u-μP: τ without recursion", "umup-adamw", "activations block1.attention_logits",
     "no known ratio"),
    ("readout init 1 taken as an absolute 1", "mup-adamw", "init output", "√(base_width)"),
    ("hidden init the same at all widths", "mup-adamw", "init block0.query", "√(width ratio)"),
    ("gains start at 0", "mup-adamw", "init block0.attention_norm", "missing"),
    ("loss a sum, not a mean", "mup-adamw", "loss", "batch·seq"),
    ("loss in bits", "mup-adamw", "loss", "1/(ln 2: bits?)"),
    ("u-μP: the loss's gradient with 1/N", "umup-adamw", "gradients output.bias", "1/(batch·seq)"),
    ("u-μP: the loss's gradient without V/√(V−1)", "umup-adamw", "gradients output.bias",
     "1/(dlogits)"),
    ("multiplier missing in the weight's gradient", "mup-adamw", "gradients output",
     "1/(mult_y)"),
    ("weights drawn in PyTorch's order", "mup-adamw", "init embedding",
     "the norm agrees: the same values in another order, transposed?"),
    ("hidden AdamW lr the same at all widths", "mup-adamw", "after_first_step block0.query",
     "its update is off by exactly 2.4"),
    ("CompleteP without its SGD lr", "sp-sgd-completep", "after_first_step block0.attention_norm",
     "= 1/(depth ratio)"),
    ("SGD without Nesterov", "mup-sgd-nesterov-depth-mup", "after_first_step embedding",
     "1/(1 + momentum: Nesterov?)"),
    ("SGD's momentum an average", "mup-sgd-nesterov-depth-mup", "after_first_step embedding",
     "1 − momentum: ema or sum?"),
    ("decay without the schedule", "mup-adamw", "after_first_step embedding",
     "1/(schedule's first factor)"),
    ("no decay of biases and gains", "mup-adamw", "after_first_step block0.attention_norm",
     "its decay is missing"),
    ("decay after the update", "mup-adamw", "after_first_step embedding",
     "decay after the update?"),
    ("warm-up from 0", "mup-adamw-gelu-untied-independent", "after_first_step embedding",
     "no known ratio"),                                           # neither update nor decay
    ("Muon without Nesterov", "mup-muon-spectral", "after_last_step embedding",
     "only later steps see: momentum (Nesterov?)"),
    ("linear decay that ends at 0", "mup-adamw", "after_last_step embedding", "schedule"),
])
@pytest.mark.parametrize("flags", [[], ["--float32"]], ids=["float64", "float32"])
def test_a_mistake_gets_a_hint(mistake, case, first, words, flags, check):
    config = replace(complete(make_vectors.CASES[case]), dtype="float32" if flags else "float64")
    with mistakes.made(NAMES[mistake]):
        mine = make_vectors.run(config)
    code, lines = check(stored(case), results(mine), flags=flags)
    assert code == 1 and lines[1] == f"the first difference: {first}"
    assert len(lines) == 5 and lines[4].startswith("  hint  ") and words in lines[4]


@pytest.mark.parametrize("turn, words", [
    (lambda w: w.T, "equal after transposing to the axes (1, 0)"),
    (lambda w: -w, "off by exactly -1 = −1: its sign?"),
    (lambda w: 2 * w, "off by exactly 2 = 2"),
    (lambda w: 0 * w, "missing"),
    (lambda w: w[::-1], "the norm agrees: the same values in another order"),
    (lambda w: 2.0001 * w, "no known ratio"),
    (lambda w: w + 1, "no known ratio")], ids=range(7))
def test_a_full_array_gets_a_hint(turn, words, check):
    w = make_vectors.draw(5, (4, 4))
    code, lines = check({"case": "x", "y": vectors.digest(w)}, {"y": turn(w).tolist()})
    assert code == 1 and words in lines[-1]


def test_attention_logits_with_queries_in_rows_are_recognised(check):
    s = make_vectors.draw(5, (2, 3, 5, 5))
    _, lines = check({"y": vectors.digest(s)}, {"y": s.swapaxes(2, 3).tolist()})
    assert "equal after transposing to the axes (0, 1, 3, 2)" in lines[-1]


def test_an_operations_own_numbers_are_known(check):
    case = stored("ops")
    mine = copy.deepcopy(case["gelu"]["y"])
    mine = {key: [x / 0.7 for x in value] if key == "first" else value if key == "shape"
            else value / 0.7 for key, value in mine.items()}
    _, lines = check(case, {"gelu": {"y": mine}})
    assert lines[-1].endswith("off by exactly 1.42857 = 1/(mult)")


def test_a_run_without_residual_branches_has_known_factors_too():
    run = resolved(complete(Config(model="mlp", param="umup")))
    case = {"config": run["config"], "resolved": run}
    assert vectors.known(case, "init", "hidden_1.weight")["width"] == 128


# The checker: unusable input

GOOD = {"shape": [2, 3], "norm": 1.0, "cosine": 0.5, "first": [0.1, 0.2, 0.3], "last": 0.4}
SMALL = {"case": "x", "config": None, "gradients": {"w": GOOD}, "loss": 2.0, "losses": [2.0, 1.0]}


@pytest.mark.parametrize("mine, words", [
    ("{", "mine.json: Expecting"),
    ("[1, 2]", "the file: unknown key [1, 2]; known are case, config, gradients"),
    ("3", "the file: unknown key 3"),
    ({}, "mine.json: no quantity of the case"),
    ({"case": "x"}, "mine.json: no quantity of the case"),
    ({"gradient": {}}, "the file: unknown key gradient; known are case, config, gradients"),
    ({"gradients": {"w.weight": GOOD}}, "gradients: unknown key w.weight; known are w"),
    ({"gradients": [1]}, "gradients: unknown key [1]; known are w"),
    ({"gradients": {"w": GOOD | {"shape": [3, 2]}}},
     "gradients w: shape [3, 2], but [2, 3] in the case: digest the transpose"),
    ({"gradients": {"w": [[1, 2], [3, 4], [5, 6]]}},
     "gradients w: shape [3, 2], but [2, 3] in the case: digest the transpose"),
    ({"gradients": {"w": [1, 2]}}, "gradients w: shape [2], but [2, 3] in the case"),
    ({"gradients": {"w": {"norm": 1}}}, "gradients w: no digest, and no numbers"),
    ({"gradients": {"w": GOOD | {"norm": "one"}}}, "gradients w: no digest, and no numbers"),
    ({"gradients": {"w": GOOD | {"first": [0.1]}}}, "gradients w: no digest, and no numbers"),
    ({"gradients": {"w": [[1, 2, 3], [4, 5]]}}, "gradients w: no digest, and no numbers"),
    ({"gradients": {"w": None}}, "gradients w: "),
    ({"gradients": {"w": GOOD | {"cosine": math.nan}}}, "gradients w: a NaN or an infinity"),
    ({"gradients": {"w": [[1, 2, 3], [4, 5, math.inf]]}}, "gradients w: a NaN or an infinity"),
    ({"loss": math.nan}, "loss: a NaN or an infinity"),
    ({"loss": GOOD}, "loss: shape [2, 3], but [] in the case"),
    ({"losses": [2.0]}, "losses: shape [1], but [2] in the case"),
])
def test_unusable_input_exits_with_2_and_one_line(mine, words, check):
    code, lines = check(SMALL, mine)
    assert code == 2 and len(lines) == 1 and words in lines[0]


def test_a_missing_file_and_a_broken_case_exit_with_2(tmp_path, check, capsys):
    path = str(tmp_path / "none.json")
    assert vectors.main(["check", path, path]) == 2
    assert capsys.readouterr().out.startswith(f"{path}: ")
    code, lines = check("{", {})
    assert code == 2 and len(lines) == 1 and "case.json: Expecting" in lines[0]


def test_help_shows_the_command(capsys):
    with pytest.raises(SystemExit) as exit:
        vectors.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0 and "tinymup.vectors check CASE.json MINE.json" in shown


def test_the_command_line_runs_the_checker():
    path = f"{FOLDER}/mlp-sgd.json"
    command = [sys.executable, "-m", "tinymup.vectors", "check", path, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "quantities agree to 1e-10" in done.stdout
