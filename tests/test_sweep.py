"""Sweeps: nothing is lost or done twice, whatever is killed; and what the records show."""
import glob
import json
import math
import os
import pathlib
import random
import re
import select
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future
from contextlib import suppress

import pytest

import train
from tinymup.lab import data, optimum, plan, sweep
from tinymup.lab.config import Config, complete, record_of
from tinymup.lab.optimum import Point, curves, movement, point, report
from tinymup.lab.results import Results
from tinymup.lab.worker import THREADS, Workers

ROOT = pathlib.Path(__file__).parent.parent
ONE_THREAD = os.environ | {name: "1" for name in THREADS}
TINY = ["--model", "mlp", "--steps", "6", "--warmup", "1", "--batch", "2", "--seq", "16",
        "--data", __file__]
SIX = [*TINY, "--width", "32", "64", "--lr", "2^-7:2^-5"]
LONG = [*TINY, "--width", "32", "--steps", "6", "7", "1000000"]   # the last outlives the test
PATIENCE = 60   # seconds; only a failing test waits so long


def command(arguments, out):
    """The exit status of `train.py`, in this process."""
    try:
        status = train.main([*arguments, "--out", str(out)])
    except SystemExit as error:
        status = error.code
    return status or 0


def start(arguments, out):
    """`python train.py` in its own process."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments, "--no-plot", "--out", out],
        env=ONE_THREAD, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_runs(process, count):
    """Waits until a sweep has reported this many more runs. Returns the lines it printed."""
    said = []
    while sum("lr 2^" in line for line in said) < count:
        said.append(process.stderr.readline())
        assert said[-1], f"the sweep ended too early: {said}"
    return said


def children(process):
    """Process ids of the workers."""
    lists = [pathlib.Path(name).read_text()
             for name in glob.glob(f"/proc/{process.pid}/task/*/children")]
    return [int(pid) for pid in " ".join(lists).split()]


def lines(folder):
    """The lines of results.jsonl that are records."""
    records = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def outcome(records):
    """What two equal sweeps have in common, whatever the order of their runs."""
    return sorted((r["key"], r["status"], r["loss"], str(r["curve"])) for r in records)


def no_training(*args):
    """Replaces `Workers.train` where nothing may be trained."""
    raise AssertionError("a finished run was trained again")


def made_up(config, key="", status="done", loss=2.0):
    """A record without a training run, its config as JSON has it: lists for tuples."""
    return {"key": key, "status": status, "loss": loss, "curve": [],
            "config": json.loads(json.dumps(record_of(config)))}


def replay(folder, monkeypatch):
    """Lets `Workers.train` return the records of a folder. Returns the list of requested keys."""
    asked, known = [], {record["key"]: record for record in lines(folder)}

    def worker(self, config, key, *_):
        asked.append(key)
        return known[key]
    monkeypatch.setattr(Workers, "train", worker)
    return asked


def make_up(monkeypatch, status="done", loss=2.0):
    """Lets `Workers.train` return made-up records."""
    monkeypatch.setattr(Workers, "train", lambda self, config, key, *_:
                        made_up(config, key, status, loss))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an uninterrupted sweep of six runs, one by one, with one BLAS thread each."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as m:
        for name in THREADS:
            m.setenv(name, "1")
        assert command([*SIX, "--no-plot"], folder) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder, to be modified."""
    (tmp_path / "results.jsonl").write_bytes((finished / "results.jsonl").read_bytes())
    return tmp_path


needs_proc = pytest.mark.skipif(
    not glob.glob("/proc/self/task/*/children") or not hasattr(os, "pidfd_open"),
    reason="finds the workers and waits for them through Linux's /proc and pidfd")


# Kill -9

def test_a_sweep_killed_again_and_again_equals_one_that_never_was(finished, tmp_path):
    written = b""
    for count in random.Random(0).sample([0, 1, 2], 3):   # runs until the kill; 0: at the start
        process = start([*SIX, "--jobs", "2"], tmp_path)
        wait_for_runs(process, count)
        process.kill()
        process.wait(PATIENCE)
        process.stderr.close()
        results = tmp_path / "results.jsonl"
        now = results.read_bytes() if results.exists() else b""
        assert now.startswith(written)                    # nothing written is lost
        assert now.count(b"\n") >= written.count(b"\n") + count
        written = now
    assert command([*SIX, "--no-plot", "--jobs", "2"], tmp_path) == 0
    keys = [record["key"] for record in lines(tmp_path)]
    assert len(keys) == len(set(keys)) == 6               # none is missing, none is there twice
    assert outcome(lines(tmp_path)) == outcome(lines(finished))


@needs_proc
def test_workers_end_when_the_sweep_is_killed(tmp_path):
    process = start([*LONG, "--jobs", "2"], tmp_path)
    wait_for_runs(process, 1)
    handles = [os.pidfd_open(pid) for pid in children(process)]
    process.kill()
    process.wait(PATIENCE)
    assert handles                    # at least the worker of the long run
    for handle in handles:            # readable once the process has ended
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(1000 * PATIENCE)
        os.close(handle)
    process.stderr.close()


@needs_proc
def test_a_killed_worker_is_a_failed_run_and_the_next_sweep_retries_only_that_run(
        tmp_path, monkeypatch, capsys):
    process = start([*LONG, "--jobs", "2"], tmp_path)
    wait_for_runs(process, 1)
    os.kill(min(children(process)), signal.SIGKILL)   # the first that started has the longest run
    said = process.stderr.readlines()
    process.stderr.close()
    assert process.wait(PATIENCE) == 1
    assert "1 of 3 runs failed" in said[-1] and "Traceback" not in "".join(said)
    failed, = [r for r in lines(tmp_path) if r["status"] == "failed"]
    assert failed["reason"] == "killed by signal 9" and failed["loss"] is None
    assert failed["config"]["steps"] == 1000000
    assert [r["status"] for r in lines(tmp_path)].count("done") == 2

    asked = []

    def worker(self, config, key, *_):
        asked.append(key)
        return made_up(config, key)
    monkeypatch.setattr(Workers, "train", worker)
    for _ in range(2):                                # the second time nothing is left to do
        assert command([*LONG, "--no-plot"], tmp_path) == 0
    assert asked == [failed["key"]]


def test_ctrl_c_ends_with_one_line_and_keeps_what_is_finished(tmp_path):
    process = start([*LONG, "--jobs", "2"], tmp_path)
    wait_for_runs(process, 1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().splitlines()
    said = [line for line in rest if line and "lr 2^" not in line]
    process.stderr.close()
    assert process.wait(PATIENCE) == 130
    assert len(said) == 1 and said[0].startswith("interrupted")
    assert {r["status"] for r in lines(tmp_path)} == {"done"}


# Workers that fail in other ways

def test_a_worker_that_dies_before_it_reads_its_job_is_a_failed_run(monkeypatch):
    def popen(*args, start=subprocess.Popen, **kwargs):
        process = start(*args, **kwargs)
        process.wait(PATIENCE)        # it is dead before the job is written
        return process
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(subprocess, "Popen", popen)
    record = Workers(1).train(complete(Config()), "key", None, False)
    assert (record["status"], record["key"]) == ("failed", "key")
    assert record["reason"] == "exit status 1"


def test_a_failed_run_has_the_last_line_of_its_error_as_the_reason():
    config = complete(Config(data=("/no/such/file",)))
    record = Workers(1).train(config, "key", None, False)
    assert record["status"] == "failed"
    assert "/no/such/file" in record["reason"] and "\n" not in record["reason"]


def test_text_that_changes_while_a_sweep_runs_is_a_failed_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("before " * 200)
    config = complete(Config(data=(str(text),), steps=2, warmup=1))
    record = Workers(1).train(config, config.key("digest of other bytes"), None, False)
    assert record["status"] == "failed" and "changed" in record["reason"]


def test_a_failed_run_stands_in_the_table_of_its_group():
    failed, other = (complete(Config(width=w, data=("/no/such/file",))) for w in (32, 64))
    record = Workers(1).train(failed, "key", None, False)
    _, groups = curves([record, made_up(other)])
    assert [(label, list(sizes)) for label, sizes in groups.items()] == [("mup", [32, 64])]


def test_a_diverging_run_is_recorded_and_the_others_finish(tmp_path, capsys):
    assert command([*TINY, "--width", "32", "--lr", "2^100", "2^-6"], tmp_path) == 0
    by_lr = {r["config"]["lr"]: r for r in lines(tmp_path)}
    bad, good = by_lr[2.0**100], by_lr[2**-6]
    assert (bad["status"], bad["loss"], good["status"]) == ("diverged", None, "done")
    assert "no loss" in capsys.readouterr().out and (tmp_path / "plot.png").exists()
    assert not list(tmp_path.glob("*.npz"))   # checkpoints of finished runs are deleted
    for line in (tmp_path / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("outcome, status", [("diverged", 0), ("failed", 1)])
def test_a_sweep_without_any_loss_ends_with_its_table_and_no_plot(
        outcome, status, tmp_path, monkeypatch, capsys):
    make_up(monkeypatch, outcome, None)
    assert command(SIX, tmp_path) == status
    assert "at width 32 or 64 no lr has a loss for every seed" in capsys.readouterr().out
    assert not (tmp_path / "plot.png").exists()


def test_a_sweep_in_which_no_lr_has_all_seeds_ends_with_its_table_and_no_plot(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Workers, "train", lambda self, config, key, *_: made_up(
        config, key, *(("done", 2.0) if config.seed else ("diverged", None))))
    assert command([*SIX, "--seed", "0", "1"], tmp_path) == 0
    assert "at width 32 or 64 no lr has a loss for every seed" in capsys.readouterr().out
    assert not (tmp_path / "plot.png").exists()


def test_the_table_is_printed_even_if_the_plot_cannot_be_written(tmp_path, monkeypatch, capsys):
    make_up(monkeypatch)
    (tmp_path / "plot.png").mkdir()
    assert command(SIX, tmp_path) == 2
    assert "mup: the best lr moves by" in capsys.readouterr().out


# The results file

def test_the_same_sweep_again_trains_nothing_and_remakes_table_and_plot_from_the_file(
        copied, monkeypatch, capsys):
    assert command(SIX, copied) == 0
    first, _ = capsys.readouterr()
    (copied / "plot.png").unlink()
    monkeypatch.setattr(Workers, "train", no_training)
    before = (copied / "results.jsonl").read_bytes()
    assert command(SIX, copied) == 0
    assert capsys.readouterr().out == first and "log2 lr*" in first
    assert (copied / "plot.png").exists()
    assert (copied / "results.jsonl").read_bytes() == before


def test_more_values_of_an_axis_train_the_new_runs_only(copied, monkeypatch):
    make_up(monkeypatch)
    assert command([*SIX, "2^-9", "--no-plot"], copied) == 0   # the last flag of SIX is --lr
    new = [(r["config"]["width"], r["config"]["lr"]) for r in lines(copied)[6:]]
    assert new == [(64, 2**-9), (32, 2**-9)]


@pytest.mark.parametrize("cut", [1, 2, 300, "all but one byte"])
def test_a_last_line_cut_short_is_trained_again_and_not_joined_to_the_next(
        cut, copied, finished, monkeypatch):
    whole = (copied / "results.jsonl").read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    part = whole[:last + 1] if cut == "all but one byte" else whole[:-cut]
    (copied / "results.jsonl").write_bytes(part)
    trained = replay(finished, monkeypatch)
    assert command([*SIX, "--no-plot"], copied) == 0
    assert outcome(lines(copied)) == outcome(lines(finished))
    assert len(trained) == (0 if cut == 1 else 1)   # 1: only the newline was lost


def test_a_record_after_a_lost_newline_stands_on_its_own_line(copied, monkeypatch, finished):
    (copied / "results.jsonl").write_bytes((finished / "results.jsonl").read_bytes()[:-1])
    make_up(monkeypatch)
    assert command([*SIX, "2^-9", "--no-plot"], copied) == 0
    assert len(lines(copied)) == 8


def test_lines_that_are_no_records_are_skipped(copied, monkeypatch):
    with open(copied / "results.jsonl", "ab") as file:
        file.write(b'\n{}\n[1]\nnull\n7\n{"key": \n\xff\xfe\n{"key": "k", "config": 3}\n'
                   b'{"key": "k", "config": {"width": -1}, "corpus": "c"}\n')
    monkeypatch.setattr(Workers, "train", no_training)
    assert command([*SIX, "--no-plot"], copied) == 0


def test_one_run_of_a_sweep_can_be_shown_again_by_itself(copied, monkeypatch, capsys):
    monkeypatch.setattr(train.run, "train", no_training)
    assert command([*TINY, "--width", "32", "--lr", "2^-6"], copied) == 0
    assert "held-out loss" in capsys.readouterr().out


def test_a_record_without_a_curve_can_be_shown(copied, capsys):
    later = "curve", "version", "sum"           # without the checksum, it is an old record
    old = [{name: record[name] for name in record if name not in later} for record in lines(copied)]
    (copied / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    assert command([*TINY, "--width", "32", "--lr", "2^-6"], copied) == 0
    assert "held-out loss" in capsys.readouterr().out


# One program under two names

ALIKE = [*TINY, "--width", "32", "64", "--base-width", "32", "--no-plot", "--param", "sp", "mup"]


def test_runs_that_are_one_program_are_trained_once_and_recorded_under_both_keys(
        tmp_path, monkeypatch, capsys):
    asked, train = [], Workers.train

    def worker(self, config, *rest):
        asked.append((config.param, config.width))
        return train(self, config, *rest)
    monkeypatch.setattr(Workers, "train", worker)
    assert command(ALIKE, tmp_path) == 0
    assert sorted(asked) in ([("mup", 64), ("sp", 32), ("sp", 64)],
                             [("mup", 32), ("mup", 64), ("sp", 64)])
    assert "4 runs, 0 of them done, 1 identical to another" in capsys.readouterr().err
    found = {r["key"]: r for r in lines(tmp_path)}
    at_base = [r for r in found.values() if r["config"]["width"] == 32]
    assert len(found) == 4 and {r["config"]["param"] for r in at_base} == {"sp", "mup"}
    assert len({r["program"] for r in at_base}) == 1
    assert len({r["program"] for r in found.values()}) == 3
    monkeypatch.setattr(Workers, "train", no_training)
    assert command(ALIKE, tmp_path) == 0


def test_a_finished_run_answers_for_the_same_program_under_another_name(
        tmp_path, monkeypatch, capsys):
    at_base = [*TINY, "--width", "32", "--base-width", "32", "--no-plot"]
    assert command([*at_base, "--param", "ntk"], tmp_path) == 0    # one run: in this process
    monkeypatch.setattr(train.run, "train", no_training)
    assert command([*at_base, "--param", "mup"], tmp_path) == 0
    monkeypatch.setattr(Workers, "train", no_training)
    assert command([*at_base, "--param", "mup", "sp"], tmp_path) == 0
    found = lines(tmp_path)
    assert [r["config"]["param"] for r in found] == ["ntk", "mup", "sp"]
    assert len({r["loss"] for r in found}) == 1
    assert "2 of them under another name" in capsys.readouterr().err


def test_a_failed_run_fails_under_both_names_and_is_tried_again(tmp_path, monkeypatch):
    make_up(monkeypatch, "failed", None)
    assert command(ALIKE, tmp_path) == 1
    assert [r["status"] for r in lines(tmp_path)] == ["failed"] * 4
    make_up(monkeypatch)
    assert command(ALIKE, tmp_path) == 0
    assert [r["status"] for r in lines(tmp_path)[4:]] == ["done"] * 4


def test_two_names_of_one_program_really_have_one_result(tmp_path):
    config = [*TINY, "--width", "32", "--base-width", "32", "--no-plot", "--lr", "0.01", "0.02"]
    for param in ("sp", "mup"):
        assert command([*config, "--param", param], tmp_path / param) == 0
    sp, mup = (sorted((r["loss"], str(r["curve"])) for r in lines(tmp_path / param))
               for param in ("sp", "mup"))
    assert sp == mup


# One line and exit status 2

def refusal(arguments, out, capsys):
    """What `train.py` prints when it ends with status 2: one line."""
    capsys.readouterr()
    assert command(arguments, out) == 2
    err = [line for line in capsys.readouterr().err.splitlines()
           if not line.startswith(("mup ", "6 runs, "))]   # what is planned, and a line a run
    assert len(err) == 1
    return err[0]


def test_a_second_sweep_in_the_same_folder_is_refused(copied, capsys):
    first = Results(copied)
    assert "another sweep" in refusal(SIX, copied, capsys)
    first.file.close()
    assert command([*SIX, "--no-plot"], copied) == 0


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
        tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Workers, "train", no_training)
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        assert str(out) in refusal(SIX, out, capsys)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_full_disk_ends_the_sweep_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    make_up(monkeypatch)
    monkeypatch.setattr(Results, "read", lambda self: {})   # /dev/full is an endless file of zeros
    said = refusal([*SIX, "--no-plot"], tmp_path, capsys)
    assert "No space left" in said and "same command again" in said


def test_the_same_command_completes_what_a_full_disk_cut_short(finished, tmp_path, monkeypatch):
    """A file-size limit replaces the full disk: only a part of the third record fits."""
    pytest.importorskip("resource")
    size = int(2.5 * len((finished / "results.jsonl").read_bytes()) / 6)
    code = f"""import json, resource, sys, train
from tinymup.lab.worker import Workers
records = {{r["key"]: r for r in map(json.loads, open({str(finished / "results.jsonl")!r}))}}
Workers.train = lambda self, config, key, checkpoint, resume: records[key]
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
train.main(sys.argv[1:])"""
    process = subprocess.run([sys.executable, "-c", code, *SIX, "--no-plot", "--out", tmp_path],
                             cwd=ROOT, env=ONE_THREAD, text=True, capture_output=True)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "same command again" in process.stderr.splitlines()[-1]
    assert len(lines(tmp_path)) == 2 and (tmp_path / "results.jsonl").stat().st_size == size
    trained = replay(finished, monkeypatch)
    assert command([*SIX, "--no-plot"], tmp_path) == 0
    assert outcome(lines(tmp_path)) == outcome(lines(finished)) and len(trained) == 4


# Surroundings

def short_run(folder):
    """A config of two steps on a text in the folder, and its key."""
    text = folder / "text.txt"
    text.write_text("some words " * 200)
    config = complete(Config(model="mlp", width=8, steps=2, warmup=1, batch=2, seq=8,
                             data=(str(text),)))
    return config, config.key(data.load(config.data, 8).digest)


def test_a_worker_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    config, key = short_run(tmp_path)
    trap = f"open({str(tmp_path / 'trapped')!r}, 'a').write(__name__ + ' ')\n"
    for name in ("json", "numpy", "signal", "os", "threading", "enum", "hashlib"):
        (tmp_path / f"{name}.py").write_text(trap)
    (tmp_path / "tinymup/lab").mkdir(parents=True)
    for name in ("__init__", "lab/__init__", "lab/worker"):
        (tmp_path / f"tinymup/{name}.py").write_text(trap)
    monkeypatch.chdir(tmp_path)
    record = Workers(1).train(config, key, None, False)
    assert record["status"] == "done", record
    assert not (tmp_path / "trapped").exists()


def test_the_folder_of_the_project_may_have_a_colon_in_its_name(tmp_path):
    project = tmp_path / "a:b ü"
    shutil.copytree(ROOT / "tinymup", project / "tinymup")
    shutil.copy(ROOT / "train.py", project)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 500)
    process = subprocess.run(
        [sys.executable, project / "train.py", *TINY, "--width", "8", "--lr", "2^-6", "2^-5",
         "--data", text,
         "--no-plot", "--out", tmp_path / "out"], env=ONE_THREAD, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert {r["status"] for r in lines(tmp_path / "out")} == {"done"}


NOISE = """
import atexit, os, sys
def noise():
    os.write(2, b"noise on stderr \\xff" * 20000)
    os.write(1, b"{} noise on stdout \\xff")
noise()
atexit.register(noise)
"""


def test_noise_on_the_streams_of_a_worker_neither_stops_it_nor_hides_its_record(
        tmp_path, monkeypatch):
    config, key = short_run(tmp_path)
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy/sitecustomize.py").write_text(NOISE)   # runs before anything of ours
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "noisy"))
    record = Workers(1).train(config, key, None, False)
    assert record["status"] == "done" and record["key"] == key


def closed():
    os.close(2)


def full():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def unread():
    end, other = os.pipe()
    os.close(end)
    os.dup2(other, 2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
@pytest.mark.parametrize("stderr", [closed, full, unread])
def test_a_closed_full_or_broken_stderr_does_not_end_a_sweep(stderr, tmp_path):
    process = subprocess.run(
        [sys.executable, ROOT / "train.py", *TINY, "--width", "32", "--lr", "2^-6", "2^-5",
         "--no-plot", "--out", tmp_path], env=ONE_THREAD, stdout=subprocess.PIPE, text=True,
        preexec_fn=stderr)
    assert process.returncode == 0 and "log2 lr*" in process.stdout
    assert [r["status"] for r in lines(tmp_path)] == ["done", "done"]


# Interruptions and failures of the sweep's own process

class Ended:
    """Replaces `sweep.Local`: every run has ended when it is submitted."""

    window = 4

    def __init__(self, jobs):
        self.stopped = False

    def submit(self, config, key, checkpoint, resume):
        future = Future()
        future.set_result(made_up(config, key))
        return future

    def record(self, future, config, key):
        return future.result()

    def running(self, keys):
        return 2

    def stop(self):
        self.stopped = True

    close = stop


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interruption_keeps_every_run_that_has_ended(moment, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "Local", Ended)
    append, calls = Results.append, []

    def interrupted(self, record):
        calls.append(record)
        if moment == "after" or len(calls) > 1:
            append(self, record)
        if len(calls) == 1:
            raise KeyboardInterrupt
    monkeypatch.setattr(Results, "append", interrupted)
    assert command([*SIX, "--no-plot"], tmp_path) == 130
    assert len({r["key"] for r in lines(tmp_path)}) == 4    # all that were submitted


def test_no_worker_starts_once_a_sweep_has_ended(monkeypatch):
    workers = Workers(2)
    workers.kill()
    monkeypatch.setattr(subprocess, "Popen", no_training)
    record = workers.train(complete(Config()), "key", None, False)
    assert record["status"] == "failed"


@needs_proc
def test_an_interruption_of_the_sweep_alone_while_workers_start_hangs_nothing(tmp_path):
    for fraction in (0.0, 0.1, 0.3):
        process = start([*LONG, "--jobs", "2"], tmp_path)
        while not children(process):         # the interpreter of the first worker starts
            assert process.poll() is None
        with suppress(subprocess.TimeoutExpired):
            process.wait(fraction)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 130 and "Traceback" not in said
    assert {r["status"] for r in lines(tmp_path)} <= {"done"}


def test_a_thread_that_cannot_start_is_one_line(tmp_path, monkeypatch, capsys):
    def submit(*_):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(sweep.ThreadPoolExecutor, "submit", submit)
    assert "fewer --jobs" in refusal(SIX, tmp_path, capsys)


def test_a_process_that_cannot_start_is_a_failed_run(monkeypatch):
    def popen(*_, **__):
        raise OSError(24, "Too many open files")
    monkeypatch.setattr(subprocess, "Popen", popen)
    record = Workers(1).train(complete(Config()), "key", None, False)
    assert record["status"] == "failed" and "Too many open files" in record["reason"]


@pytest.mark.parametrize("full_disk", [False, True])
def test_a_checkpoint_is_deleted_only_when_its_record_is_on_the_disk(
        full_disk, tmp_path, monkeypatch):
    def worker(self, config, key, checkpoint, resume):
        pathlib.Path(checkpoint).write_text("arrays")
        return made_up(config, key)
    append = Results.append

    def checked(self, record):
        assert (tmp_path / f"{record['key']}.npz").exists()
        if full_disk:
            raise ValueError("No space left")
        append(self, record)
    monkeypatch.setattr(Workers, "train", worker)
    monkeypatch.setattr(Results, "append", checked)
    assert command([*SIX, "--no-plot"], tmp_path) == (2 if full_disk else 0)
    assert len(list(tmp_path.glob("*.npz"))) >= 1 if full_disk else not list(tmp_path.glob("*.npz"))


def test_the_warnings_of_all_runs_are_said_once_of_each_kind(tmp_path, monkeypatch, capsys):
    def worker(self, config, key, checkpoint, resume):
        return made_up(config, key) | {
            "warnings": [f"warning: no checkpoint can be written: {checkpoint}: Full"],
            "versions": {"python": "3.0.1", "numpy": "1.2.3"}}
    monkeypatch.setattr(Workers, "train", worker)
    assert command([*SIX, "--no-plot"], tmp_path) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 3 and ".npz" in said[0]
    assert "python" in said[1] and "3.0.1" in said[1] and "numpy" in said[2]
    assert all("warnings" not in r and r["versions"]["numpy"] == "1.2.3" for r in lines(tmp_path))


def test_the_progress_has_running_done_failed_speed_and_time_left(tmp_path, capsys):
    long, short = complete(Config(steps=300)), complete(Config(steps=100))
    state = sweep.Sweep(dict.fromkeys(range(4), long) | dict.fromkeys(range(4, 10), short),
                        None, True)
    state.counts.update(done=2, diverged=1, failed=1)
    state.left -= 4 * plan.work(long)        # 6 of 18 parts are left
    state.start -= 120                       # four runs in two minutes
    state.shown_at -= 61
    state.show(2)
    said = capsys.readouterr().err
    assert "2 running, 3 done, 1 failed, 2 runs/min, 1 min left" in said
    state.show(2)
    assert capsys.readouterr().err == ""     # a line a minute where there is no terminal


def test_the_line_of_a_run_tells_what_varies(tmp_path, monkeypatch, capsys):
    make_up(monkeypatch)
    assert command([*TINY, "--betas", "0.9,0.95", "0.8,0.9", "--no-plot"], tmp_path) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "loss 2.0000" in line]
    assert sorted(line[line.index("betas"):] for line in said) == [
        "betas 0.8,0.9   loss 2.0000", "betas 0.9,0.95   loss 2.0000"]


def test_the_path_of_a_checkpoint_holds_in_any_folder(tmp_path, monkeypatch):
    sent = []

    def worker(self, config, key, checkpoint, resume):
        sent.append(checkpoint)
        return made_up(config, key)
    monkeypatch.setattr(Workers, "train", worker)
    monkeypatch.chdir(tmp_path)
    assert command([*SIX, "--no-plot"], pathlib.Path("here")) == 0
    assert {pathlib.Path(path).parent for path in sent} == {tmp_path / "here"}


# The grid

def test_a_grid_is_every_combination_once_the_most_work_first():
    axes = {"width": [64, 256, 128], "lr": [0.1, 0.2], "param": ["sp", "mup"]}
    configs = sweep.grid(Config(), axes)
    assert len(set(configs)) == len(configs) == 12
    assert [c.width for c in configs] == [256] * 4 + [128] * 4 + [64] * 4
    assert sweep.grid(Config(), {}) == [complete(Config())]


# What the records show

def points(losses):
    """The curve of {log2 lr: loss}."""
    return [point(2.0**x, {0: loss}) for x, loss in sorted(losses.items())]


def parabola(vertex, xs, curvature=0.1):
    """The curve of a parabola at the places xs."""
    return points({x: 2 + curvature * (x - vertex)**2 for x in xs})


@pytest.mark.parametrize("xs", [range(-9, -2), [-9, -8.5, -6, -5.75, -3], [-8, -6.25, -4.5]],
                         ids=["even", "uneven", "three points"])
@pytest.mark.parametrize("vertex", [-6.9, -6, -5.6])
@pytest.mark.parametrize("curvature", [1e-3, 0.1, 10])
def test_the_optimum_of_a_parabola_is_its_vertex(vertex, xs, curvature):
    curve = parabola(vertex, xs, curvature)
    best = optimum.optimum(curve)
    # Differences of losses near 2 have rounding errors of 4e-16. Chords of length 1/4 or more and
    # curvatures of 1e-3 or more raise them to 1e-11 at most.
    assert best.exact and best.log2_lr == pytest.approx(vertex, abs=1e-11)
    assert best.loss == min(p.loss for p in curve)


def test_the_optimum_lies_within_half_a_step_of_the_best_point_of_an_even_grid():
    rng = random.Random(0)
    for _ in range(200):
        curve = points({x: rng.random() for x in range(-6, 0)})
        best = optimum.optimum(curve)
        lowest = min(curve, key=lambda p: p.loss)
        assert abs(best.log2_lr - math.log2(lowest.lr)) <= (0.5 if best.exact else 0)


@pytest.mark.parametrize("losses, at, exact", [
    ({-8: 2.0, -7: 2.1, -6: 2.3}, -8, False),              # the left edge
    ({-8: 2.3, -7: 2.1, -6: 2.0}, -6, False),              # the right edge
    ({-8: 2.3, -7: 2.0, -6: None}, -7, False),             # beside divergence
    ({-8: None, -7: 2.0, -6: 2.1}, -7, False),
    ({-7: 2.0}, -7, False),
    ({-8: 2.1, -7: 2.0, -6: 2.1, -5: None}, -7, True),     # divergence is further away
    ({-8: 2.0, -7: 2.0, -6: 2.0}, -8, False),              # flat: the first, at the edge
    ({-9: 2.1, -8: 2.0, -7: 2.0, -6: 2.1}, -7.5, True),
])
def test_an_optimum_at_the_edge_or_beside_divergence_is_flagged(losses, at, exact):
    best = optimum.optimum(points(losses))
    assert (best.log2_lr, best.exact) == (pytest.approx(at, abs=1e-12), exact)


def test_a_curve_without_a_loss_has_no_optimum_and_no_drift():
    gone, fine = points({-8: None, -7: None}), parabola(-6, range(-9, -2))
    assert optimum.optimum(gone) is None and optimum.optimum([]) is None
    for by_size in ({64: gone, 128: fine}, {64: fine, 128: gone}, {64: gone, 128: gone}):
        assert movement(by_size)[:2] == (None, False)
        assert "no lr has a loss for every seed" in report("width", {"mup": by_size})


@pytest.mark.parametrize("vertices, octaves, verdict", [
    ([-6, -6.2, -6.1], -0.1, "stays"), ([-5, -6, -7.5], -2.5, "moves"),
    ([-7.5, -6, -5], 2.5, "moves"), ([-6, -6, -6.75], -0.75, "drifts")])
def test_drift_is_counted_from_the_smallest_size_to_the_largest(vertices, octaves, verdict):
    by_size = {size: parabola(v, range(-10, -2)) for size, v in zip((64, 128, 256), vertices)}
    moved = movement(by_size)
    assert moved.octaves == pytest.approx(octaves, abs=1e-11) and moved.exact   # as for a vertex
    text = report("width", {"mup": by_size})
    assert f"{octaves:+.2f} octaves from width 64 to 256: it {verdict}" in text
    assert "?" not in text


def test_a_drift_from_or_to_the_edge_of_the_grid_is_flagged():
    fine, edge = parabola(-6, range(-9, -2)), parabola(-12, range(-9, -2))
    for by_size in ({64: fine, 128: edge}, {64: edge, 128: fine}):
        assert movement(by_size).exact is False
        assert "extend --lr" in report("width", {"sp": by_size})
    assert "extend --lr" not in report("width", {"sp": {64: fine, 128: fine}})


def test_one_lr_has_no_drift():
    by_size = {64: points({-7: 2.0}), 128: points({-7: 1.9})}
    assert "the best lr moves" not in report("width", {"mup": by_size})
    by_size[128] = points({-7: 1.9, -6: 1.8})
    assert "the best lr moves" in report("width", {"mup": by_size})


# Groups

def records(loss=lambda c: 2.0, **axes):
    """Made-up records of a grid. loss: config → number, or None for a run that diverged."""
    configs = sweep.grid(Config(), {"lr": [2**-7, 2**-6], **axes})
    return [made_up(c, status="done" if loss(c) else "diverged", loss=loss(c)) for c in configs]


def test_seeds_are_the_spread_of_a_point():
    made = records(lambda c: 2.0 + c.seed / 4, seed=[0, 1, 2], width=[64, 128])
    _, groups = curves(made)
    assert list(groups) == ["mup"] and list(groups["mup"]) == [64, 128]
    by_seed = {0: 2.0, 1: 2.25, 2: 2.5}
    assert groups["mup"][64] == [Point(lr, 2.25, 2.0, 2.5, 3, by_seed) for lr in (2**-7, 2**-6)]


def test_a_seed_without_a_loss_leaves_the_point_without_one():
    made = records(lambda c: None if c.seed == 1 and c.lr == 2**-6 else 2.0, seed=[0, 1, 2])
    _, groups = curves(made)
    assert [p.loss for p in groups["mup"][128]] == [2.0, None]


def test_what_is_neither_size_nor_lr_nor_seed_makes_a_group():
    size, groups = curves(records(param=["sp", "mup"], width=[64, 128]))
    assert size == "width" and sorted(groups) == ["mup", "sp"]
    _, groups = curves(records(param=["sp", "mup"], optimizer=["sgd", "adamw"]))
    assert sorted(groups) == ["mup, adamw", "mup, sgd", "sp, adamw", "sp, sgd"]
    _, groups = curves(records(betas=[(0.9, 0.95), (0.8, 0.9)], width=[64, 128]))
    assert sorted(groups) == ["betas 0.8,0.9", "betas 0.9,0.95"]
    assert sorted(curves(records(tied=[True, False]))[1]) == ["tied off", "tied on"]
    _, groups = curves(records(weight_decay=[0.0, 0.1], width=[64, 128], seed=[0, 1]))
    assert sorted(groups) == ["weight_decay 0.0", "weight_decay 0.1"]


@pytest.mark.parametrize("size, values", [
    ("width", [64, 128]), ("depth", [2, 4]), ("head_dim", [16, 32]), ("batch", [8, 16]),
    ("steps", [100, 200])])
def test_the_size_is_whatever_size_varies(size, values):
    found, groups = curves(records(**{size: values}))
    assert found == size and list(groups["mup"]) == values


def test_points_are_in_the_order_of_lr_and_sizes_in_theirs_whatever_the_order_of_the_records():
    lrs = [2.0**-k for k in range(8, 2, -1)]
    made = records(lambda c: c.width + c.lr, width=[64, 128, 256], lr=lrs[::-1])
    shuffled = random.Random(0).sample(made, len(made))
    assert curves(shuffled) == curves(made)
    _, groups = curves(shuffled)
    assert list(groups["mup"]) == [64, 128, 256]
    assert [p.lr for p in groups["mup"][64]] == lrs


# The table

MADE_UP = {
    "sp": {64: parabola(-6, range(-9, -2)),
           128: [*parabola(-7, range(-9, -3)), point(2**-3, {0: None})]},
    "mup": {64: parabola(-6, range(-9, -2)), 128: parabola(-6.2, range(-9, -2))}}


def test_the_table_marks_the_best_of_each_row():
    rows = [row for row in report("width", MADE_UP).splitlines() if re.match(r" +(64|128) ", row)]
    assert len(rows) == 4
    for row, best in zip(rows, [-6, -7, -6, -6]):
        cells = row.replace("no loss", "no_loss").split()
        starred = [i for i, cell in enumerate(cells) if cell.endswith("*")]
        assert starred == [1 + best + 9]   # the first cell is the width, the next 2^-9
        losses = [float(cell.strip("*")) for cell in cells[1:-1] if cell != "no_loss"]
        assert float(cells[starred[0]][:-1]) == min(losses)
    assert "no loss" in rows[1] and "no loss" not in rows[0]


def test_a_run_that_is_missing_is_an_empty_cell():
    text = report("width", {"mup": {64: points({-8: 2.0, -7: 2.1}), 128: points({-7: 2.2})}})
    first, second = text.splitlines()[2:4]
    assert [row.split()[1:-1] for row in (first, second)] == [["2.000*", "2.100"], ["2.200*"]]
    assert second.index("2.200") == first.index("2.100")
