"""The table of experiments/conformance.py is complete and says why, and PyTorch still agrees."""
import csv
import importlib.util
import re
import sys
from itertools import combinations
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))

import conformance  # noqa: E402 (after the path)

TABLE = conformance.read()
# Five steps in float64 round to 1e-15. Two rules differ by 1e-3 or more, see below.
AGREES = 1e-10
APART = 1e-3


def last(line):
    """The difference after all that was done to make the package agree."""
    return float(line.with_line or line.shipped)


def ids(line):
    """The name of a line in pytest's report."""
    return f"{line.package}: {line.name}"


# The table

def test_the_table_has_a_line_for_each_package():
    assert {line.package for line in TABLE} == set(conformance.packages())
    assert len({(line.package, line.name) for line in TABLE}) == len(TABLE)


def test_every_column_is_named_and_every_cell_has_its_kind():
    header = conformance.TABLE.read_text(encoding="utf-8").splitlines()[1]
    assert header == "package,version,name,rule,shipped,line,with_line,why"
    for line in TABLE:
        assert line.version and line.name, "made where this package was not installed"
        assert bool(line.rule) == bool(line.shipped)
        assert bool(line.line) == bool(line.with_line)
        assert all(float(x) >= 0 for x in (line.shipped, line.with_line) if x)


@pytest.mark.parametrize("line", TABLE, ids=ids)
def test_a_package_agrees_or_the_table_says_why_not(line):
    assert line.why or last(line) <= AGREES


def test_the_line_that_makes_a_package_agree_is_needed():
    for line in TABLE:
        if line.line and not line.why:
            assert float(line.shipped) > AGREES, ids(line)


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(conformance, "TABLE", tmp_path / "table.csv")
    conformance.write(TABLE)
    assert conformance.read() == TABLE


def test_the_printed_table_shows_every_line():
    text = conformance.markdown(TABLE)
    assert all(line.name in text and line.why in text for line in TABLE)
    assert text.count("\n| ") == 1 + sum(bool(line.rule) for line in TABLE)


# The measurement

def test_a_package_that_is_not_installed_has_a_line_that_says_so():
    def measure():
        raise AssertionError("measured although it is not installed")
    line, = conformance.lines({"no-such-package-of-tinymup": measure})
    assert line.why == "not installed" and not (line.version or line.rule or line.shipped)
    assert "not installed" in conformance.markdown([line])


@pytest.mark.parametrize("problem, rules", [
    (conformance.MATRICES, conformance.MUON_RULES),
    (conformance.NETWORK, conformance.adamw_rules()),
    (conformance.NETWORK, conformance.sgd_rules()),
    (conformance.UNIT, conformance.adamw_rules(["sp", "umup"])),
    (conformance.UNIT, conformance.sgd_rules(["sp", "umup"])),
], ids=["Muon", "AdamW", "SGD", "AdamW, unit-scaled", "SGD, unit-scaled"])
def test_no_two_rules_train_the_same_weights(problem, rules):
    finals = {label: conformance.ours(problem, *rule) for label, rule in rules.items()}
    for a, b in combinations(finals, 2):
        assert conformance.difference(finals[a], finals[b], problem.start) > APART, (a, b)


def test_the_nearest_rule_is_the_one_that_trained_the_weights():
    problem, rules = conformance.MATRICES, conformance.MUON_RULES
    for label in list(rules)[::7]:
        found, weights = conformance.nearest(problem, rules,
                                             conformance.ours(problem, *rules[label]))
        assert found == label
        assert conformance.difference(weights, weights, problem.start) == 0


def test_larger_gradients_do_not_change_a_step_of_muon():
    problem, rule = conformance.MATRICES, next(iter(conformance.MUON_RULES.values()))
    plain, large = conformance.ours(problem, *rule), conformance.ours(
        conformance.louder(problem), *rule)
    assert conformance.difference(large, plain, problem.start) == 0   # 2³⁰ is exact


# The traps of experiments/ports/README.md

def sizes():
    """(name, sizes) in the README of the ports, as *name*: 0.1 or *name*: 0.1 to 0.2."""
    text = (conformance.HERE / "ports/README.md").read_text(encoding="utf-8")
    found = re.findall(r"\*([^*\n]+)\*: ([\d.e-]+)(?: to ([\d.e-]+))?", text)
    return [(name, [x for x in numbers if x]) for name, *numbers in found]


def test_the_sizes_of_the_traps_are_those_of_the_tables():
    with (conformance.HERE / "results/mistakes.csv").open(encoding="utf-8", newline="") as file:
        known = {line["mistake"]: [line["difference"], line["largest"]]
                 for line in csv.DictReader(file)}
    known |= {ids(line): [line.shipped] for line in TABLE}
    assert len(sizes()) > 40
    for name, quoted in sizes():
        wanted = [f"{float(x):.2g}" for x in known[name]]
        assert quoted == list(dict.fromkeys(wanted)), name


# PyTorch

def measured(package):
    """The lines of a package now, and those of the table."""
    names = {"torch": "torch", "mup": "mup", "unit-scaling": "unit_scaling"}
    pytest.importorskip("torch")
    if importlib.util.find_spec(names[package]) is None:
        pytest.skip(f"{package} is not installed")
    now = list(conformance.lines({package: conformance.packages()[package]}))
    return now, [line for line in TABLE if line.package == package]


@pytest.mark.parametrize("package", ["torch", "mup", "unit-scaling"])
def test_an_installed_package_follows_the_rules_of_the_table(package):
    now, table = measured(package)
    assert [(x.name, x.rule, x.line) for x in now] == [(x.name, x.rule, x.line) for x in table]
    assert all(line.why or last(line) <= AGREES for line in now)
