"""The scaling tables: what the papers print, what is derived, and which tables are equivalent."""
import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tinymup import optim, transformer
from tinymup.lab.config import Config, build, complete, normalised
from tinymup.lab.resolved import resolved
from tinymup.lab.tables import columns, render, symbolic
from tinymup.scaling import (
    DEPTH_RULES, MUP, MUP_TABLE3, MUP_TABLE9, ONE, OUT_PER_IN, PARAMETRIZATIONS, PER_IN,
    PER_ROOT_IN, ROOT_OUT, U_MUP_DEPTH, Parametrization, Power, Rule, Size, shifted)
from trajectories import distance, logits_after

FORMS_OF_MUP = ("mup", "mup-table3", "mup-table9")
BASED = ("sp", "ntk", *FORMS_OF_MUP)   # all parametrizations that have a base model


def with_eps(rule, power):
    """The rule with an ε of its own in place of the derived one."""
    return type("RuleWithEps", (Rule,), {"eps": power})(*rule)


# The algebra of powers

def test_powers_multiply_and_divide_as_the_numbers_that_they_stand_for():
    a, b, size = Power(1, -1/2, 2), Power(-1/2, 1/4, 1), Size(3.0, 5.0, 7.0)
    assert a.at(size) == pytest.approx(3 / math.sqrt(5) * 49, rel=1e-15)
    assert a.times(b).at(size) == pytest.approx(a.at(size) * b.at(size), rel=1e-15)
    assert a.over(b).at(size) == pytest.approx(a.at(size) / b.at(size), rel=1e-15)
    assert a.over(a) == ONE and ONE.at(size) == 1 and a.at(Size()) == 1


@pytest.mark.parametrize("power, text", [
    (ONE, "1"), (Power(1), "fan_in"), (Power(0.5), "√fan_in"), (Power(-1, 0.5), "√fan_out/fan_in"),
    (Power(-0.5, -1), "1/√fan_in/fan_out"), (Power(1, 1, -0.5), "fan_in·fan_out/√depth"),
    (Power(1.5), "fan_in^3/2"), (Power(0, 0, -1/3), "1/depth^1/3")])
def test_a_power_is_written_as_one_writes_it_by_hand(power, text):
    assert str(power) == text


# The papers' tables

# Tables 3, 8 and 9 of arXiv:2203.03466 as printed: variance of the initial values, multiplier, SGD
# lr, Adam lr, as functions of fan_in and fan_out. SP is what Table 3 has in brackets.
PAPER = {
    "sp": {
        "input":  lambda i, o: (1/i,    1,              1,   1),
        "output": lambda i, o: (1/i,    1,              1,   1),
        "hidden": lambda i, o: (1/i,    1,              1,   1)},
    "mup-table3": {
        "input":  lambda i, o: (1/i,    1,              o,   1),
        "output": lambda i, o: (1/i**2, 1,              1/i, 1/i),
        "hidden": lambda i, o: (1/i,    1,              1,   1/i)},
    "mup": {
        "input":  lambda i, o: (1/i,    1,              o,   1),
        "output": lambda i, o: (1,      1/i,            i,   1),
        "hidden": lambda i, o: (1/i,    1,              1,   1/i)},
    "mup-table9": {
        "input":  lambda i, o: (1/o,    math.sqrt(o),   1,   1/math.sqrt(o)),
        "output": lambda i, o: (1/i,    1/math.sqrt(i), 1,   1/math.sqrt(i)),
        "hidden": lambda i, o: (1/i,    1,              1,   1/i)},
}
# All widths of the paper grow together, by a factor of 9 here; data does not grow.
GROWN = {"input": Size(1, 9), "output": Size(9, 1), "hidden": Size(9, 9)}


@pytest.mark.parametrize("role", GROWN)
@pytest.mark.parametrize("param", PAPER)
def test_every_table_has_the_numbers_that_the_paper_prints(param, role):
    rule, size = PARAMETRIZATIONS[param].rules[role], GROWN[role]
    cells = (rule.init.at(size)**2, *(cell.at(size) for cell in (rule.mult, rule.sgd, rule.adamw)))
    assert cells == pytest.approx(PAPER[param][role](size.fan_in, size.fan_out), rel=1e-14)


# The same as powers, where unequal ratios count too: init std, multiplier, SGD lr, Adam lr.
# NTK as in arXiv:2011.14522; its Adam column is that of the same limit.
CELLS = {
    "sp": {"input": ("1", "1", "1", "1"),
           "output": ("1/√fan_in", "1", "1", "1"),
           "hidden": ("1/√fan_in", "1", "1", "1")},
    "ntk": {"input": ("1", "1", "1", "1/√fan_out"),
            "output": ("1", "1/√fan_in", "1", "1/√fan_in"),
            "hidden": ("1", "1/√fan_in", "1", "1/√fan_in/√fan_out")},
    "mup-table3": {"input": ("1", "1", "fan_out", "1"),
                   "output": ("1/fan_in", "1", "1/fan_in", "1/fan_in"),
                   "hidden": ("1/√fan_in", "1", "fan_out/fan_in", "1/fan_in")},
    "mup": {"input": ("1", "1", "fan_out", "1"),
            "output": ("1", "1/fan_in", "fan_in", "1"),
            "hidden": ("1/√fan_in", "1", "fan_out/fan_in", "1/fan_in")},
    "mup-table9": {"input": ("1/√fan_out", "√fan_out", "1", "1/√fan_out"),
                   "output": ("1/√fan_in", "1/√fan_in", "1", "1/√fan_in"),
                   "hidden": ("1/√fan_in", "1", "fan_out/fan_in", "1/fan_in")},
}


@pytest.mark.parametrize("param", BASED)
def test_every_cell_is_the_literal_power(param):
    rules = PARAMETRIZATIONS[param].rules
    for role, cells in CELLS[param].items():
        assert tuple(map(str, rules[role])) == cells
    assert rules["embedding"] == rules["input"] == rules["vector"]   # "input weights & all biases"
    assert set(rules["scalar"]) == {ONE}


@pytest.mark.parametrize("table, thetas", [
    (MUP, {"output": PER_IN}),
    (MUP_TABLE9, {"output": PER_ROOT_IN, "embedding": ROOT_OUT, "input": ROOT_OUT,
                  "vector": ROOT_OUT}),
], ids=["table 8", "table 9"])
@pytest.mark.parametrize("role", MUP_TABLE3)
def test_tables_8_and_9_are_table_3_shifted(table, thetas, role):
    assert table[role] == shifted(MUP_TABLE3[role], thetas.get(role, ONE))
    assert (table[role] == MUP_TABLE3[role]) == (role not in thetas)


def test_tied_row_of_table_9_is_that_of_table_8_shifted():
    assert MUP_TABLE9["tied"] == shifted(MUP["tied"], ROOT_OUT)
    readouts = [PARAMETRIZATIONS[param].tied_readout for param in ("mup", "mup-table9")]
    assert readouts[1] == readouts[0].times(ROOT_OUT)


def test_a_tied_matrix_is_both_an_embedding_and_a_readout_of_its_table():
    for table in (MUP, MUP_TABLE9):
        assert table["tied"] == table["embedding"]
        # the readout is x @ w.T, so its fan_in is the fan_out of the lookup
        for cell in ("init", "adamw"):
            assert getattr(table["output"], cell).fan_in == getattr(table["tied"], cell).fan_out


# The abc-symmetry

def test_shifts_compose_and_have_an_inverse():
    rule, theta, other = MUP_TABLE3["hidden"], Power(1, -1/2), Power(-1/4, 2)
    assert shifted(shifted(rule, theta), other) == shifted(rule, theta.times(other))
    assert shifted(shifted(rule, theta), ONE.over(theta)) == rule


@pytest.mark.parametrize("param", PARAMETRIZATIONS)
def test_a_shift_changes_neither_the_effective_weight_nor_its_update(param):
    for rule in PARAMETRIZATIONS[param].rules.values():
        moved = shifted(rule, Power(1/2, -1))
        assert moved.mult.times(moved.init) == rule.mult.times(rule.init)
        # C for a gradient that has the factor A once, and moves a weight that has it again
        assert (moved.mult.times(moved.mult).times(moved.sgd)
                == rule.mult.times(rule.mult).times(rule.sgd))
        assert moved.mult.times(moved.adamw) == rule.mult.times(rule.adamw)
        assert moved.mult.times(moved.muon) == rule.mult.times(rule.muon)
        assert moved.eps.over(moved.mult) == rule.eps.over(rule.mult)


# What is derived: ε, Muon's column, the tied readout

ALIKE = "embedding", "input", "vector", "tied"
SQUARE = "√fan_out/√fan_in"      # the spectral condition for A = 1
DERIVED = {   # parametrization → role → (ε, Muon's C·s)
    "sp": dict.fromkeys(ALIKE, ("1", SQUARE)) | {
        "hidden": ("1", SQUARE), "output": ("1", SQUARE), "scalar": ("1", SQUARE),
        "tied": ("1", "1/√fan_in")},
    "ntk": dict.fromkeys(ALIKE, ("1/√fan_out", SQUARE)) | {
        "hidden": ("1/√fan_in/√fan_out", "√fan_out"), "output": ("1/√fan_in", "√fan_out"),
        "scalar": ("1", SQUARE)},
    "mup": dict.fromkeys(ALIKE, ("1/fan_out", SQUARE)) | {
        "hidden": ("1/fan_out", SQUARE), "output": ("1/fan_in", "√fan_in·√fan_out"),
        "scalar": ("1", SQUARE)},
    "mup-table3": dict.fromkeys(ALIKE[:-1], ("1/fan_out", SQUARE)) | {
        "hidden": ("1/fan_out", SQUARE), "output": ("1", SQUARE), "scalar": ("1", SQUARE)},
    "mup-table9": dict.fromkeys(ALIKE, ("1/√fan_out", "1/√fan_in")) | {
        "hidden": ("1/fan_out", SQUARE), "output": ("1/√fan_in", "√fan_out"),
        "scalar": ("1", SQUARE)},
    "umup": {"embedding": ("1", SQUARE), "input": ("1", "√fan_out"), "hidden": ("1", "√fan_out"),
             "output": ("1", "√fan_in·√fan_out"), "vector": ("1", SQUARE), "scalar": ("1", SQUARE)},
}


@pytest.mark.parametrize("param", PARAMETRIZATIONS)
def test_derived_cells_of_every_rule_are_the_literal_ones(param):
    rules = PARAMETRIZATIONS[param].rules
    assert {role: (str(rule.eps), str(rule.muon)) for role, rule in rules.items()} == DERIVED[param]


TIED_READOUTS = {"sp": "1", "ntk": "1/√fan_out", "mup": "1/fan_out", "mup-table9": "1/√fan_out"}


@pytest.mark.parametrize("param", PARAMETRIZATIONS)
def test_derived_multiplier_of_a_tied_readout_is_the_literal_one(param):
    table = PARAMETRIZATIONS[param]
    assert ("tied" in table.rules) == (param in TIED_READOUTS)
    if param in TIED_READOUTS:
        assert str(table.tied_readout) == TIED_READOUTS[param]


@pytest.mark.parametrize("rule, cells", [   # branch, SGD, AdamW, ε, Muon
    (DEPTH_RULES["none"], ("1", "1", "1", "1", "1")),
    (DEPTH_RULES["depth-mup"], ("1/√depth", "1", "1/√depth", "1/√depth", "1/√depth")),
    (DEPTH_RULES["completep"], ("1/depth", "depth", "1", "1/depth", "1")),
    (U_MUP_DEPTH, ("1", "1/√depth", "1/√depth", "1", "1/√depth")),
], ids=[*DEPTH_RULES, "umup"])
def test_every_cell_of_a_depth_rule_is_the_literal_power(rule, cells):
    assert tuple(map(str, (*rule, rule.eps, rule.muon))) == cells


# Three tables, one training run

# The width is three times that of the base, where the forms round differently. Biases and gains are
# there so that every role occurs.
TRANSFORMER = Config(width=24, head_dim=8, depth=2, base_width=8, base_head_dim=4, base_depth=1,
                     gains=True, biases=True, batch=2, seq=6, dtype="float64")
NETS = {
    "transformer": TRANSFORMER,
    "swiglu": replace(TRANSFORMER, ffn="swiglu"),   # its feed-forward layer grows by 4, from 16
    "completep": replace(TRANSFORMER, depth_rule="completep"),
    "mlp": Config(model="mlp", width=24, depth=2, base_width=8, batch=2, seq=6, dtype="float64"),
}
OPTIMIZERS = {
    "sgd": dict(optimizer="sgd", lr=1.0),
    "nesterov": dict(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd coupled": dict(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.1,
                        decay_form="coupled"),
    "adamw": dict(optimizer="adamw", lr=0.03, eps=1e-3, weight_decay=0.01),
    "adamw coupled": dict(optimizer="adamw", lr=0.03, eps=1e-3, weight_decay=0.3,
                          decay_form="coupled"),
    "muon": dict(optimizer="muon", lr=0.1, adam_lr=0.03, eps=1e-3, weight_decay=0.01),
    "muon, moonlight": dict(optimizer="muon", muon_scale="moonlight", lr=0.1, adam_lr=0.03,
                            eps=1e-3, weight_decay=0.3, decay_form="coupled"),
}
EXACT = 1e-10    # float64's rounding, grown over the steps. Seen: at most 2e-13


def differ(config, params=FORMS_OF_MUP):
    """The largest distance between the trajectory of the first parametrization and the others."""
    first, *others = (logits_after(replace(config, param=param)) for param in params)
    assert distance(first, first[0]) > 0.05   # it did learn
    return max(distance(other, first) for other in others)


@pytest.mark.parametrize("clip", [0.0, 0.1], ids=["", "clip"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_tables_3_8_and_9_train_to_the_same_logits(net, optimizer, clip):
    assert differ(replace(NETS[net], clip=clip, **OPTIMIZERS[optimizer])) < EXACT


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_tables_8_and_9_train_to_the_same_logits_with_tied_embeddings(optimizer):
    config = replace(TRANSFORMER, tied=True, embed_mult=0.5, clip=0.1, **OPTIMIZERS[optimizer])
    assert differ(config, ("mup", "mup-table9")) < EXACT


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_mup_is_neither_sp_nor_ntk_away_from_the_base_width(optimizer):
    config = replace(TRANSFORMER, **OPTIMIZERS[optimizer])
    assert differ(config, ("mup", "sp")) > 1e-2 < differ(config, ("mup", "ntk"))


@pytest.fixture
def uneven(monkeypatch):
    """Feed-forward layers that grow with the square of the width: 32 at width 8, 288 at 24."""
    monkeypatch.setattr(transformer, "ffn_width", lambda a: a.width**2 // 2)


# The gradients of TRANSFORMER have an RMS of 0.003 to 0.11, so this ε counts in every update.
LOUD = dict(optimizer="adamw", lr=0.03, eps=1e-2)


def test_with_a_loud_epsilon_and_unequal_ratios_tables_3_8_and_9_still_agree(uneven):
    assert differ(replace(TRANSFORMER, **LOUD)) < EXACT


@pytest.mark.parametrize("role, power", [("hidden", PER_IN), ("output", ONE)])
def test_with_a_loud_epsilon_a_table_with_another_epsilon_trains_elsewhere(
        monkeypatch, uneven, role, power):
    monkeypatch.setitem(MUP_TABLE9, role, with_eps(MUP_TABLE9[role], power))
    assert differ(replace(TRANSFORMER, **LOUD)) > 1e-3   # seen: 0.04 and 0.03


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("param", PARAMETRIZATIONS)
def test_adamw_with_an_epsilon_far_above_all_gradients_is_sgd(uneven, param, net):
    """Then Adam's step is lr·g/ε, so the cells C_adam/ε and C_sgd have to be equal."""
    assert drowned(param, net) < 1e-9   # g/ε is at most about 1e-10. Seen: 3e-10


@pytest.mark.parametrize("param, wrong", [
    ("mup", with_eps(MUP["hidden"], PER_IN)),
    ("ntk", with_eps(PARAMETRIZATIONS["ntk"].rules["hidden"], PER_IN)),
    ("sp", with_eps(PARAMETRIZATIONS["sp"].rules["hidden"], PER_IN))])
def test_with_an_epsilon_of_one_over_fan_in_it_is_not(monkeypatch, uneven, param, wrong):
    monkeypatch.setitem(PARAMETRIZATIONS[param].rules, "hidden", wrong)
    assert drowned(param, "transformer") > 1e-3   # seen: at least 0.07


def drowned(param, net):
    """How far AdamW with an ε of 1e10, and no momentum, is from SGD."""
    config, eps = normalised(replace(NETS[net], param=param)), 1e10
    lr = 1e-3 if param == "umup" else 0.1   # u-μP's gradients are larger
    sgd = logits_after(replace(config, optimizer="sgd", lr=lr))
    adamw = logits_after(replace(config, optimizer="adamw", lr=lr * eps, eps=eps,
                                 betas=(0.0, 0.99)))
    assert distance(sgd, sgd[0]) > 0.01
    return distance(adamw, sgd)


WRONG_CELLS = [
    (net, role, cell, optimizer)
    for net, roles in (("transformer", ("embedding", "hidden", "output", "vector")),
                       ("mlp", ("input", "hidden", "output", "vector")))
    for role in roles
    for cell, optimizer in (("init", "adamw"), ("mult", "adamw"), ("adamw", "adamw"),
                            ("eps", "adamw"), ("sgd", "sgd"))
    if (net, role, cell) != ("mlp", "vector", "init")]   # its biases start at 0: nothing to scale


@pytest.mark.parametrize("net, role, cell, optimizer", WRONG_CELLS)
def test_one_wrong_cell_breaks_the_equivalence(monkeypatch, net, role, cell, optimizer):
    rule = MUP_TABLE9[role]
    # ε is derived: a wrong C keeps the right ε, and the other way round
    wrong = {"eps": rule.eps} | rule._asdict()
    wrong[cell] = wrong[cell].times(PER_ROOT_IN if role == "output" else ROOT_OUT)
    eps = wrong.pop("eps")
    monkeypatch.setitem(MUP_TABLE9, role, with_eps(Rule(**wrong), eps))
    assert differ(replace(NETS[net], **OPTIMIZERS[optimizer])) > 1e-4   # seen: at least 4.7e-4


def test_clipping_the_norm_of_the_plain_gradients_breaks_the_equivalence(monkeypatch):
    config, right = replace(TRANSFORMER, clip=0.1, **OPTIMIZERS["sgd"]), optim.clip

    def of_plain_gradients(grads, rows, most):
        right(grads, [row._replace(mult=1.0) for row in rows], most)
    monkeypatch.setattr(optim, "clip", of_plain_gradients)
    assert differ(config) > 1e-3


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("param", ["sp", "ntk", "mup"])
def test_any_shift_of_any_rule_trains_alike(monkeypatch, uneven, param, optimizer, tied):
    """The abc-symmetry, with a factor per role that no table has."""
    config = replace(TRANSFORMER, param=param, tied=tied, clip=0.1, **OPTIMIZERS[optimizer])
    start = logits_after(config)
    rng, table = np.random.default_rng(0), PARAMETRIZATIONS[param]
    thetas = {role: Power(*rng.uniform(-1, 1, 2)) for role in table.rules}
    moved = Parametrization("moved", {role: shifted(rule, thetas[role])
                                      for role, rule in table.rules.items()}, table.attention)
    # a tied readout has the tied row's θ, since it reads the same matrix
    assert moved.tied_readout.over(table.tied_readout) == pytest.approx(thetas["tied"])
    monkeypatch.setitem(PARAMETRIZATIONS, param, moved)
    assert distance(start, start[0]) > 0.05   # it did learn
    assert distance(logits_after(config), start) < EXACT


# At the base width, all are one

BASE_NET = Config(width=8, head_dim=4, depth=2, base_width=8, base_head_dim=4, base_depth=2,
                  batch=2, seq=6)
BASE_MLP = Config(model="mlp", width=8, base_width=8, depth=2, batch=2, seq=6)


@pytest.mark.parametrize("config", [
    BASE_NET, replace(BASE_NET, gains=True, biases=True), replace(BASE_NET, tied=True),
    replace(BASE_NET, ffn="swiglu", depth_rule="completep"), BASE_MLP,
    replace(BASE_NET, tied=True, embed_mult=3.0, output_mult=2.0, attn_mult=0.5, init_scale=0.7),
], ids=["plain", "gains and biases", "tied", "swiglu, completep", "mlp", "multipliers"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw coupled"])
def test_at_the_base_width_every_parametrization_is_sp_to_the_last_bit(config, optimizer):
    config = replace(config, **OPTIMIZERS[optimizer])
    sp = build(complete(replace(config, param="sp")))
    start = logits_after(replace(config, param="sp"), steps=3)
    for param in set(BASED) - ({"mup-table3"} if config.tied else set()):
        network = build(complete(replace(config, param=param)))
        assert network.rows == sp.rows and network.scales == sp.scales
        assert np.array_equal(logits_after(replace(config, param=param), steps=3), start)


# Printing

def plain_text(latex):
    """LaTeX as the text that it was made from."""
    for tex, plain in ((r"$\sqrt{\mathrm{fan\_out}}$", "√fan_out"),
                       (r"$\sqrt{\mathrm{fan\_in}}$", "√fan_in"), (r"$\varepsilon$", "ε"),
                       (r"$\times$", "×"), (r"$\cdot$", "·"), (r"\_", "_"), (r" \hline", "")):
        latex = latex.replace(tex, plain)
    return latex


def parsed(text, format):
    """A rendered table as a list of rows of cells, the header first."""
    if format == "json":
        records = json.loads(text)
        return [list(records[0])] + [list(record.values()) for record in records]
    if format == "csv":
        return list(csv.reader(io.StringIO(text)))
    if format == "latex":
        return [line.removesuffix(r" \\").split(" & ")
                for line in plain_text(text).splitlines() if " & " in line]
    lines = [line.strip("|") for line in text.splitlines()]
    return [[cell.strip() for cell in line.split("|")] for i, line in enumerate(lines) if i != 1]


RUNS = {param: resolved(complete(normalised(replace(TRANSFORMER, param=param, optimizer="muon"))))
        for param in PARAMETRIZATIONS}
TABLES = {f"symbolic {param}": symbolic(param) for param in PARAMETRIZATIONS} | {
    f"resolved {param}": columns(run["parameters"]) for param, run in RUNS.items()}


def test_symbolic_tables_have_a_column_for_every_cell():
    hidden, = (record for record in symbolic("mup") if record["role"] == "hidden")
    assert {key: str(cell) for key, cell in hidden.items()} == {
        "role": "hidden", "init": "1/√fan_in", "mult": "1", "sgd": str(OUT_PER_IN),
        "adamw": "1/fan_in", "eps": "1/fan_out", "muon": SQUARE}
    heading = render([hidden]).splitlines()[0]
    assert [cell.strip() for cell in heading.strip("|").split("|")] == [
        "role", "init std", "multiplier", "SGD lr", "AdamW lr", "AdamW ε", "Muon lr·s"]


def test_symbolic_cells_are_exponents_in_json():
    hidden, = (r for r in json.loads(render(symbolic("mup"), "json")) if r["role"] == "hidden")
    assert hidden == {"role": "hidden", "init": {"fan_in": -0.5}, "mult": {},
                      "sgd": {"fan_in": -1, "fan_out": 1}, "adamw": {"fan_in": -1},
                      "eps": {"fan_out": -1}, "muon": {"fan_in": -0.5, "fan_out": 0.5}}


@pytest.mark.parametrize("format", ["markdown", "json", "csv", "latex"])
@pytest.mark.parametrize("table", TABLES)
def test_a_printed_table_reads_back_as_the_same_cells(table, format):
    header, *rows = parsed(render(TABLES[table], format, {}), format)
    assert header == list(TABLES[table][0]) and len(rows) == len(TABLES[table])
    for row, record in zip(rows, TABLES[table]):
        for cell, original in zip(row, record.values(), strict=True):
            if isinstance(original, Power):
                assert cell == (str(original) if format != "json" else {
                    key: x for key, x in original._asdict().items() if x})
            elif isinstance(original, str) or format == "json":
                assert cell == original
            else:                                          # all digits, also of lists
                assert (json.loads(cell) if cell else None) == original


@pytest.mark.parametrize("table", TABLES)
def test_markdown_columns_line_up(table):
    assert len(set(map(len, render(TABLES[table]).splitlines()))) == 1


@pytest.mark.parametrize("table", TABLES)
def test_latex_has_no_character_that_pdflatex_refuses(table):
    text = render(TABLES[table], "latex")
    assert text.isascii()
    outside = "".join(text.split("$")[::2]).replace(r"\_", "").replace(r"\\", "")
    assert not set("_^%#~") & set(outside)
    assert text.startswith(r"\begin{tabular}") and text.endswith(r"\end{tabular}")
