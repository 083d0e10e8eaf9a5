"""Sweeps on a Dask cluster: real schedulers and workers, which do not have this package."""
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from tinymup.lab import cluster, data, sweep
from tinymup.lab.config import Config, complete
from tinymup.lab.worker import THREADS

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parent.parent
TINY = ["--model", "mlp", "--warmup", "1", "--batch", "2", "--seq", "16", "--data", __file__,
        "--width", "32", "--no-plot"]
SHORT = [*TINY, "--steps", "6", "--lr", "2^-7:2^-5"]
LONG = [*TINY, "--steps", "6", "7", "100000000"]   # the last outlives the test
PATIENCE = 60                                      # seconds; only a failing test waits so long


def until(condition, of=None):
    """Waits until a condition holds, or the process `of` has ended."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end and (of is None or of.poll() is None)
        time.sleep(0.02)


class Cluster:
    """A scheduler and its workers, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder, **settings):
        self.folder, self.file, self.started = folder, folder / "scheduler.json", []
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environment = environment | {
            f"DASK_DISTRIBUTED__{name.upper()}": value for name, value in settings.items()}
        self.scheduler = self.start("scheduler", "--port", "0", "--scheduler-file", self.file)
        until(lambda: self.file.exists() and self.file.read_text().endswith("}"), self.scheduler)
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, *words):
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:],
             "--host", "127.0.0.1", "--no-dashboard"], cwd=self.folder, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(process)
        return process

    def worker(self, *words):
        return self.start("worker", "--scheduler-file", self.file, "--no-nanny", "--nthreads", "1",
                          "--local-directory", self.folder, *words)


@contextmanager
def running(folder, workers, **settings):
    """A cluster with its workers as [[word, …], …]; whatever happens, its processes end."""
    made = Cluster(folder, **settings)
    try:
        made.workers = [made.worker(*words) for words in workers]
        yield made
    finally:
        for process in made.started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A cluster of two workers that no test harms."""
    with running(tmp_path_factory.mktemp("cluster"), [[], []]) as made:
        yield made


def start(arguments, address, out):
    """`python train.py --cluster`, in its own process."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments, "--cluster", address, "--out", out],
        text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_runs(process, count):
    """Waits until a sweep has told of this many runs."""
    said = []
    while sum("lr 2^" in line for line in said) < count:
        said.append(process.stderr.readline())
        assert said[-1], f"the sweep ended too early: {said}"


def command(arguments, out):
    """The exit status of `train.py`, in this process."""
    try:
        return train.main([*arguments, "--out", str(out)]) or 0
    except SystemExit as error:
        return error.code or 0


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def outcome(folder):
    """What two equal sweeps have in common."""
    return sorted((r["key"], r["status"], r["loss"], str(r["curve"])) for r in lines(folder))


def runs_of(workers):
    """Process ids of the runs of Dask workers that have read their job: then they have a thread."""
    found = []
    for worker in workers:
        for task in Path(f"/proc/{worker.pid}/task").glob("*/children"):
            for pid in task.read_text().split():
                with suppress(OSError):                        # it has just ended
                    process = Path(f"/proc/{pid}")
                    if (b"tinymup.lab.worker" in (process / "cmdline").read_bytes()
                            and len(list((process / "task").iterdir())) > 1):
                        found.append(int(pid))
    return found


@pytest.mark.parametrize("where", ["address", "file"])
def test_a_cluster_gives_the_records_of_this_machine_bit_for_bit(
        where, two, tmp_path, monkeypatch):
    for name in THREADS:
        monkeypatch.setenv(name, "1")
    assert command(SHORT, tmp_path / "here") == 0
    address = str(getattr(two, where))
    assert command([*SHORT, "--cluster", address], tmp_path / "there") == 0
    assert outcome(tmp_path / "there") == outcome(tmp_path / "here")
    assert all(r["versions"]["numpy"] for r in lines(tmp_path / "there"))
    monkeypatch.setattr(cluster.Cluster, "submit", None)       # nothing is left to train
    assert command([*SHORT, "--cluster", address], tmp_path / "there") == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="finds processes in /proc")
def test_ctrl_c_ends_the_runs_of_the_cluster_and_keeps_the_finished_ones(two, tmp_path):
    process = start(LONG, two.address, tmp_path)
    wait_for_runs(process, 2)
    until(lambda: runs_of(two.workers), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert [r["status"] for r in lines(tmp_path)] == ["done", "done"]
    until(lambda: not runs_of(two.workers))


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="finds processes in /proc")
def test_a_run_whose_worker_dies_is_done_by_another_and_a_worker_may_come_late(tmp_path):
    with running(tmp_path, [[]]) as made:
        arguments = [*TINY, "--steps", "6", "3000"]
        process = start(arguments, made.address, tmp_path / "out")
        until(lambda: runs_of(made.workers), process)
        made.workers[0].kill()
        made.worker()
        said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, said
    assert [r["status"] for r in lines(tmp_path / "out")] == ["done", "done"]


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="finds processes in /proc")
@pytest.mark.parametrize("allowed", ["0", "3"], ids=["strict", "as by default"])
def test_only_the_run_that_workers_die_of_has_failed_and_says_why(allowed, tmp_path):
    """Dask gives up every task that too many workers held as they died, also those in a queue."""
    two = ["--nthreads", "2"]                    # one for the run without end, one for the others
    with running(tmp_path, [two], scheduler__allowed_failures=allowed) as made:
        process = start(LONG, made.address, tmp_path / "out")
        while process.poll() is None:
            until(lambda: runs_of(made.workers[-1:]) or process.poll() is not None)
            made.workers[-1].kill()
            made.workers.append(made.worker(*two))
            if len(made.workers) == 2:
                wait_for_runs(process, 2)
        assert process.returncode == 1 and "Traceback" not in process.stderr.read()
    failed, = [r for r in lines(tmp_path / "out") if r["status"] == "failed"]
    # The first worker may have died before it could tell that it does the run without end.
    assert failed["reason"] in [f"{n} workers died while they did this run" for n in (3, 4)]
    assert failed["config"]["steps"] == 100000000 and len(made.workers) <= 6
    assert [r["status"] for r in lines(tmp_path / "out")].count("done") == 2


def test_a_scheduler_that_dies_ends_the_sweep_in_one_line_and_keeps_the_finished_runs(tmp_path):
    with running(tmp_path, [[], []]) as made:
        process = start(LONG, made.address, tmp_path / "out")
        wait_for_runs(process, 2)
        made.scheduler.kill()
        said = process.communicate(timeout=PATIENCE)[1].splitlines()
    said = [line for line in said if "lr 2^" not in line]
    assert process.returncode == 2 and len(said) == 1, said
    assert "scheduler" in said[0] and "gone" in said[0] and "same command" in said[0]
    assert [r["status"] for r in lines(tmp_path / "out")] == ["done", "done"]


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="finds processes in /proc")
@pytest.mark.parametrize("dead", ["client", "scheduler", "worker"])
def test_no_run_outlives_a_client_scheduler_or_worker_that_is_killed(dead, tmp_path):
    with running(tmp_path, [[]]) as made:
        client = start([*TINY, "--steps", "100000000"], made.address, tmp_path / "out")
        until(lambda: runs_of(made.workers), client)
        run, = runs_of(made.workers)
        {"client": client, "scheduler": made.scheduler, "worker": made.workers[0]}[dead].kill()
        until(lambda: gone(run))
        client.kill()
        client.communicate()


def gone(pid):
    """Whether a process has ended; a zombie has, and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_run_on_a_gpu_waits_for_a_worker_with_one(tmp_path):
    with running(tmp_path, [[]]) as made:
        process = start([*SHORT, "--device", "gpu"], made.address, tmp_path / "out")
        assert "no worker with --resources GPU=1" in process.stderr.readline()
        made.worker("--resources", "GPU=1")
        said = process.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in said       # without CuPy or a GPU each run says what it lacks
    assert {r["status"] for r in lines(tmp_path / "out")} <= {"done", "failed"}
    assert len(lines(tmp_path / "out")) == 3


@pytest.mark.parametrize("address", ["nonsense", "nonsense://here", "tcp://", "/no/such.json"])
def test_an_address_without_a_scheduler_is_one_line_and_status_2(
        address, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    assert command([*SHORT, "--cluster", address], tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"--cluster {address}" in said


def test_a_process_with_a_wrong_address_ends(tmp_path):
    """A Client that could not start waits for itself when Python ends."""
    done = subprocess.run([sys.executable, ROOT / "train.py", *SHORT, "--cluster", "nonsense",
                           "--out", tmp_path], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1


def test_a_file_that_is_no_scheduler_file_is_one_line_and_status_2(tmp_path, capsys):
    for text in ("", "{}", "[]", "no json"):
        (tmp_path / "s.json").write_text(text)
        assert command([*SHORT, "--cluster", str(tmp_path / "s.json")], tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "s.json" in said


def test_without_dask_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert command([*SHORT, "--cluster", "tcp://127.0.0.1:1"], tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and 'pip install "dask[distributed]"' in said


def test_code_and_text_travel_once_and_not_with_each_run(two, monkeypatch):
    corpus = data.load([__file__], 16)
    executor, sent = cluster.Cluster(two.address, corpus, gpu=False), []
    monkeypatch.setattr(executor.client, "submit", lambda *args, **kwargs: sent.append(args))
    config, = sweep.grid(train.configs_of({"width": [[32]]})[0], {})
    executor.submit(config, "key", "/no/such/folder/key.npz", False)
    (_, function, (job,)), = sent
    assert isinstance(function, distributed.Future)
    assert len(json.dumps(job)) < 3000 < len(corpus.train)
    executor.close()


def test_a_run_whose_workers_always_die_before_it_starts_fails_in_the_end():
    class KilledWorker(Exception):
        pass
    executor = object.__new__(cluster.Cluster)
    executor.client, executor.starts, executor.given_up = (
        SimpleNamespace(status="running"), Counter(), Counter())
    future = SimpleNamespace(cancelled=lambda: False, exception=KilledWorker)
    records = [executor.record(future, complete(Config()), "key") for _ in range(11)]
    assert records[:10] == [None] * 10 and records[10]["status"] == "failed"
    assert records[10]["reason"] == "workers died 11 times before this run started"
