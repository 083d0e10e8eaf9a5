"""The results file: what is done to it from outside loses no record and changes none."""
import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from tinymup.lab import data, sweep
from tinymup.lab.config import Config, complete, record_of
from tinymup.lab.results import Results, line_of, parsed

OLD = Path(__file__).parent / "data/old_results.jsonl"   # six runs without version and checksum


def record(i, status="done"):
    """The i-th made-up record."""
    return {"key": f"{i:012x}", "status": status, "loss": 2.0 + i / 8 if status == "done" else None,
            "config": record_of(complete(Config(seed=i))), "curve": [[1, 5.5], [2, None]]}


def losses(folder):
    """key → loss, as another process would read it."""
    results = Results.__new__(Results)
    results.path, results.warned = folder / "results.jsonl", True
    return {key: found["loss"] for key, found in results.read().items()}


# Another program changes the file while a sweep runs

def replaced(path):
    """As an editor saves: a new file with what it had read, all but the last line."""
    new = path.with_name("new")
    new.write_bytes(b"".join(path.read_bytes().splitlines(True)[:-1]))
    os.replace(new, path)


def emptied(path):
    path.write_bytes(b"")


def shortened(path):
    os.truncate(path, path.stat().st_size - 40)


def folder_deleted(path):
    shutil.rmtree(path.parent)


CHANGES = {"replaced": replaced, "deleted": Path.unlink, "emptied": emptied,
           "cut short": shortened, "folder deleted": folder_deleted,
           "renamed": lambda path: path.rename(path.with_name("old.jsonl"))}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_record_is_lost_if_another_program_changes_the_file(change, tmp_path, capsys):
    results = Results(tmp_path / "out")
    for i in range(3):
        results.append(record(i))
    assert capsys.readouterr().err == ""
    change(results.path)
    for i in range(3, 5):
        results.append(record(i))
    said = capsys.readouterr().err
    assert losses(tmp_path / "out") == {record(i)["key"]: record(i)["loss"] for i in range(5)}
    assert said.count("changed by another program") == 1 and str(results.path) in said


def test_a_file_with_runs_of_an_earlier_sweep_is_restored_too(tmp_path):
    first = Results(tmp_path)
    first.append(record(0))
    first.file.close()
    second = Results(tmp_path)
    second.path.unlink()
    second.append(record(1))
    assert set(losses(tmp_path)) == {record(0)["key"], record(1)["key"]}


def test_a_record_is_written_even_if_another_sweep_has_the_new_file(tmp_path):
    results = Results(tmp_path)
    results.append(record(0))
    results.path.rename(tmp_path / "moved.jsonl")
    other = Results(tmp_path)
    with pytest.raises(ValueError, match="another sweep"):
        results.append(record(1))
    lines = (tmp_path / "moved.jsonl").read_bytes().splitlines()
    assert [parsed(line)["key"] for line in lines] == [record(i)["key"] for i in range(2)]
    other.file.close()


# Damage

def test_a_flipped_bit_is_a_damaged_line_and_never_another_number(tmp_path, capsys):
    results = Results(tmp_path)
    for i in range(3):
        results.append(record(i))
    results.file.close()
    whole, expected = results.path.read_bytes(), losses(tmp_path)
    rng, lost = random.Random(0), 0
    for place in rng.sample(range(len(whole)), 400):
        flipped = bytes([whole[place] ^ 1 << rng.randrange(8)])
        results.path.write_bytes(whole[:place] + flipped + whole[place + 1:])
        found = losses(tmp_path)
        assert found.items() <= expected.items() and len(found) >= 1
        lost += len(found) < 3
    assert lost >= 390          # the newline of the last line is no part of a record


def test_damaged_lines_are_said_once_with_the_file_and_their_number(tmp_path, capsys):
    results = Results(tmp_path)
    for i in range(3):
        results.append(record(i))
    lines = results.path.read_bytes().splitlines(True)
    results.path.write_bytes(lines[0] + lines[1].replace(b"2.125", b"2.225") + lines[2])
    assert set(results.read()) == set(results.read()) == {record(0)["key"], record(2)["key"]}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "1 damaged line" in said and "line 2" in said
    assert str(results.path) in said


def test_lines_of_the_old_version_have_no_checksum_and_are_read(tmp_path, capsys):
    shutil.copy(OLD, tmp_path / "results.jsonl")
    assert len(Results(tmp_path).read()) == 6 and capsys.readouterr().err == ""


def test_a_line_of_today_without_its_checksum_is_damaged():
    line = line_of(record(0))
    assert parsed(line)["loss"] == 2.0
    cut = json.loads(line)
    del cut["sum"]
    assert parsed(json.dumps(cut).encode()) is None


STRANGE = [b"[" * 100_000, b'{"a":' * 100_000, b'"text"', b"{}", b"\xff\xfe", b"\0" * 50,
           b'{"key": "k", "status": "done", "loss": 1' + b"0" * 320 + b"}",
           b'{"key": "k", "status": "done", "loss": 1' + b"0" * 5000 + b"}",
           b'{"key": "k", "status": "done", "loss": NaN}',
           b'{"key": "k", "status": "done", "loss": null}',
           b'{"key": "k", "status": "done", "loss": "2.0"}',
           b'{"key": "k", "status": "won", "loss": 2.0}',
           b'{"key": ["k"], "status": "done", "loss": 2.0}',
           b'{"key": "k", "status": ["done"], "loss": 2.0}',
           b'{"key": "k", "status": "done", "loss": 2.0, "curve": 7}',
           b'{"key": "k", "status": "done", "loss": 2.0, "curve": [[1]]}',
           b'{"key": "k", "status": "done", "loss": 2.0, "config": {"width": {}}, "corpus": "c"}',
           b'{"key": "k", "status": "done", "loss": 2.0, "config": {"steps": 1e999}, "corpus": 1}']


@pytest.mark.parametrize("line", STRANGE, ids=range(len(STRANGE)))
def test_a_strange_line_is_a_damaged_line(line, tmp_path):
    (tmp_path / "results.jsonl").write_bytes(line + b"\n" + line_of(record(0)))
    assert list(Results(tmp_path).read()) == [record(0)["key"]]


def test_the_table_has_the_config_that_was_asked_for(tmp_path):
    asked = complete(Config())
    made = record(0) | {"key": asked.key("digest"), "config": record_of(complete(Config(lr=0.5)))}
    del made["curve"]
    (tmp_path / "results.jsonl").write_bytes(line_of(made))
    corpus = data.Corpus(None, None, "digest")
    found, = sweep.run_all([asked], corpus, Results(tmp_path), shown=False)
    assert found["config"] == record_of(asked) and found["loss"] == made["loss"]


# The folder

def test_temporary_files_that_a_kill_left_are_swept_and_no_others(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("kept")
    out = tmp_path / "out"
    out.mkdir()
    stale = [out / "0123456789ab.tmp", out / f".0123456789ab.{'0f' * 8}.tmp"]
    stale[0].write_text("")
    stale[1].symlink_to(outside)
    kept = [out / name for name in ("notes.tmp", "0123456789ab.npz", "my.0123456789ab.tmp")]
    for file in kept:
        file.write_text("")
    Results(out).file.close()
    assert not any(os.path.lexists(file) for file in stale)
    assert all(file.exists() for file in kept) and outside.read_text() == "kept"


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_not_called_another_sweep(
        code, tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    monkeypatch.setattr(fcntl, "flock", flock)
    Results(tmp_path).append(record(0))
    said = capsys.readouterr().err
    assert "cannot be locked" in said and "being written" not in said
    assert len(losses(tmp_path)) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of Unix")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match="pipe"):
        Results(tmp_path)


@pytest.mark.parametrize("strange", [
    {"curve": [[1, [2]]]}, {"curve": [["a", "b"]]}, {"curve": [[1, 2.0, 3]]}, {"sample": 5},
    {"seconds": "x"}, {"tokens_per_second": []}])
def test_a_line_without_a_checksum_whose_values_cannot_be_shown_is_damaged(strange):
    old = record(0) | {"corpus": "digest"}
    assert parsed(json.dumps(old).encode()) and not parsed(json.dumps(old | strange).encode())
