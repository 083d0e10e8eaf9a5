"""The README is true: its commands, generated tables, line counts and examples."""
import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import readme
import train
from tinymup.lab.tables import render, symbolic
from tinymup.scaling import PARAMETRIZATIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, (ROOT / "experiments/README.md").read_text()]
# Files without a line of their own in the README: packages, and entries for `python -m`.
ENTRIES = {f"tinymup/{name}.py" for name in ("__init__", "__main__", "vectors", "lab/__init__")}
COMMANDS = sorted({line.split("  #")[0].strip() for page in PAGES
                   for line in re.findall(r"(?:^|&& |`)(python [^`\n]+)", page, re.M)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_exists(command):
    words = shlex.split(command)[1:]
    if words[0] == "train.py":
        if words[1:] != ["--help"]:
            train.parser().parse_args(words[1:])            # an unknown flag or value would exit
    elif words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        assert words[1] == "pytest" or module.exists() or module.with_suffix(".py").exists()
    else:
        assert (ROOT / words[0]).is_file()


def test_the_readme_has_commands():
    assert any(c.startswith("python train.py --width 64 128 256") for c in COMMANDS)
    assert any(c.startswith("python experiments/") for c in COMMANDS)


def test_the_generated_parts_are_up_to_date():
    assert readme.rewritten(README) == README, "run: python tests/readme.py"


def test_a_stale_count_is_noticed():
    assert readme.rewritten(README.replace(" lines in one", "7 lines in one")) == README


def test_every_file_of_the_package_stands_in_the_reading_order():
    shown = set(re.findall(r"\]\(((?:tinymup/|train)[\w/.]*\.py)\)", README))
    files = [*ROOT.glob("tinymup/*.py"), *ROOT.glob("tinymup/lab/*.py"), ROOT / "train.py"]
    assert shown == {str(f.relative_to(ROOT)) for f in files} - ENTRIES


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 300


def test_the_module_prints_the_same_tables():
    printed = subprocess.run([sys.executable, "-m", "tinymup"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout
    assert all(render(symbolic(param)) in printed for param in PARAMETRIZATIONS)


def test_the_loop_with_the_core_alone_trains():
    code, output = re.search(r"```python\n(.*?)```.*?```\n(.*?)```", README, re.S).groups()
    assert len(code.splitlines()) <= 36 and "lab" not in code
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    losses, shown = (list(map(float, re.findall(r"loss (\S+)", text))) for text in (ran, output))
    # The text that it trains on differs between versions of Python, so the losses are only near.
    assert len(losses) == len(shown) and losses[0] == shown[0] and losses[-1] < losses[0] - 3


@pytest.mark.parametrize("page, folder", [(README, ROOT), (PAGES[1], ROOT / "experiments")],
                         ids=["README", "gallery"])
def test_links_and_figures_exist(page, folder):
    links = re.findall(r"\]\(([^)#]+)\)", page) + re.findall(r'src="([^"]+)"', page)
    links = [link for link in links if not link.startswith("http")]
    assert links and all((folder / link).exists() for link in links)


def test_each_line_of_the_specification_names_tests_that_exist():
    lines = re.findall(r"^\* \*.*$", README.split("**The network, exactly.**")[1], re.M)
    tests = "".join(file.read_text() for file in ROOT.glob("tests/test_*.py"))
    assert len(lines) == 11
    for line in lines:
        names = re.findall(r"`(test_\w+)`", line)
        assert names and all(f"def {name}(" in tests for name in names), line


def losses():
    """{(parametrization, width, lr): [loss of each seed]} of the main experiment."""
    found = {}
    with open(ROOT / "experiments/results/lr_transfer.csv") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            key = row["param"], int(row["width"]), float(row["lr"])
            found.setdefault(key, []).append(float(row["loss"]))
    return found


def test_the_table_of_the_readme_is_that_of_the_experiment():
    lines = README.split("mup: held-out loss")[1].splitlines()
    lrs = [2.0**int(e) for e in re.findall(r"2\^(-\d+)", lines[1])]
    measured, compared = losses(), 0
    for line in lines[2:5]:
        width, *shown = re.findall(r"[\d.]+", line)[:len(lrs) + 1]
        for lr, loss in zip(lrs, shown, strict=True):
            seed_0 = measured.get(("mup", int(width), lr), [None])[0]  # 2^-10 is not in its grid
            assert seed_0 is None or f"{seed_0:.3f}" == loss
            compared += seed_0 is not None
    assert compared == 18


def test_the_losses_of_the_introduction_are_those_of_the_experiment():
    mean = {key: sum(each) / len(each) for key, each in losses().items()}
    tuned = {param: min((loss, lr) for (p, width, lr), loss in mean.items()
                        if (p, width) == (param, 64))[1] for param in ("sp", "mup")}
    best = min(loss for (p, width, _), loss in mean.items() if (p, width) == ("sp", 1024))
    numbers = (mean["sp", 1024, tuned["sp"]], mean["mup", 1024, tuned["mup"]], best,
               mean["sp", 1024, tuned["sp"] * 64 / 1024])
    sentence = ("At width 1024 the learning rate tuned at 64 gives a loss of {:.3f} under SP and "
                "{:.3f} under μP; tuned there, SP reaches {:.3f}. A rival that needs no table, SP "
                "with its learning rate divided by the width, gives {:.3f} as well")
    assert sentence.format(*numbers) in README
