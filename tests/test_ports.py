"""The ports agree with the vectors. Each runs where its library is installed."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinymup.lab import vectors

ROOT = Path(__file__).parent.parent
PORTS = ROOT / "experiments/ports"
CASES = sorted(path for path in (ROOT / "tests/vectors").glob("*.json")
               if path.stem not in ("ops", "formats", "optimizers"))


def agrees(case, mine):
    """Whether the checker finds no difference, over as many quantities as the case has."""
    code = vectors.main(["check", str(case), str(mine)])
    return code == 0 and json.loads(mine.read_text()).keys() >= {"activations", "losses"}


def run(*command, **options):
    """Runs a command that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("port, library", [("port_torch", "torch"), ("port_jax", "optax")])
def test_the_port_agrees_with_the_vectors(port, library, case, tmp_path):
    pytest.importorskip(library)
    run(sys.executable, str(PORTS / f"{port}.py"), str(case), str(tmp_path / "mine.json"))
    assert agrees(case, tmp_path / "mine.json")


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    compiler = shutil.which("gcc") or pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("c") / "port"
    run(compiler, "-std=c99", "-O2", "-o", str(path), str(PORTS / "port.c"), "-lm")
    return path


@pytest.mark.parametrize("case", [case for case in CASES if not case.stem.startswith("mlp")],
                         ids=lambda path: path.stem)
def test_the_c_port_agrees_with_the_vectors(case, binary, tmp_path):
    text = run(sys.executable, str(PORTS / "case_to_text.py"), str(case)).stdout
    (tmp_path / "mine.json").write_text(run(str(binary), input=text).stdout)
    assert agrees(case, tmp_path / "mine.json")


def test_a_wrong_number_is_noticed(tmp_path):
    case = json.loads(CASES[0].read_text())
    mine = {key: case[key] for key in ("activations", "losses")}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    assert agrees(CASES[0], tmp_path / "mine.json")
    mine["losses"][-1] *= 1 + 1e-6
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    assert not agrees(CASES[0], tmp_path / "mine.json")
