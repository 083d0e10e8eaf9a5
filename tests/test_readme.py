"""What the README says is so: its commands, its tables, its line counts, its example."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train
from tinymup.scaling import PARAMETRIZATIONS, render, symbolic

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, (ROOT / "experiments/README.md").read_text()]
COMMANDS = sorted({line.split("#")[0].strip() for page in PAGES for line in re.findall(r"(?:^|&& |`)(python [^`\n]+)", page, re.M)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_exists(command):
    words = shlex.split(command)[1:]
    if words[0] == "train.py":
        train.parser().parse_args(words[1:])                      # an unknown flag or value would exit
    elif words[0] == "-m":
        assert words[1] in ("pytest", "tinymup.scaling")
    else:
        assert (ROOT / words[0]).is_file()


def test_the_readme_has_commands():
    assert any(command.startswith("python train.py --width 64 128 256") for command in COMMANDS)
    assert any(command.startswith("python experiments/") for command in COMMANDS)


def test_the_tables_are_those_of_the_code():
    shown = README.split("<!-- tables -->")[1].split("<!-- /tables -->")[0]
    for param in PARAMETRIZATIONS:
        assert f"`--param {param}`)\n\n{render(symbolic(param))}\n" in shown


def test_the_module_prints_the_same_tables():
    printed = subprocess.run([sys.executable, "-m", "tinymup.scaling", "--param", "mup"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert render(symbolic("mup")) in printed


def test_line_counts_are_true_and_no_file_is_left_out():
    counts = {name: int(lines) for name, lines in re.findall(r"^\| \[([\w/.]+\.py)\]\([\w/.]+\) \| (\d+) \|", README, re.M)}
    files = [*ROOT.glob("tinymup/*.py"), ROOT / "train.py"]
    assert counts == {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in files if f.name != "__init__.py"}
    assert f"{sum(counts.values()):,} lines" in README


def test_the_example_prints_what_is_shown():
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S).groups()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == output


@pytest.mark.parametrize("page, folder", [(README, ROOT), (PAGES[1], ROOT / "experiments")], ids=["README", "gallery"])
def test_links_and_figures_exist(page, folder):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if not link.startswith("http")]
    assert links and all((folder / link).exists() for link in links)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", README))))
def test_a_test_that_the_readme_names_exists(name):
    assert any(f"def {name}(" in f.read_text() for f in ROOT.glob("tests/test_*.py"))
