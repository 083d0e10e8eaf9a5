"""Faults of the machine: kills, damaged files, full disks, limits, streams, a dying cluster."""
import os
import signal
import subprocess
from contextlib import suppress

from fault_tries import SWEEP, TOLD, Command, Failed, records_of


def resume(t):
    """--resume or nothing."""
    return ["--resume"] * t.rng.randrange(2)


def kill_sweep(t):
    """SIGKILL to the sweep, up to three times."""
    for _ in range(t.rng.randrange(1, 4)):
        command = t.sweep(*resume(t))
        t.moment(command)
        command.process.kill()
        command.wait()
        t.kept(command)
    t.check(*resume(t))


def kill_worker(t):
    """SIGKILL to a run's process: the run has failed, the others go on."""
    command = t.sweep(*resume(t))
    command.until(command.workers, "worker")
    t.moment(command)
    with suppress(ProcessLookupError, IndexError):
        os.kill(t.rng.choice(command.workers()), signal.SIGKILL)
    expect(command, 0, 1)
    t.kept(command)
    t.check(*resume(t))


def send_signal(t):
    """SIGINT, SIGTERM or SIGHUP to the sweep alone or to the whole group."""
    command, number = t.sweep(*resume(t)), t.rng.choice(["SIGINT", "SIGTERM", "SIGHUP"])
    t.moment(command)
    number, send = getattr(signal, number), t.rng.choice([os.kill, os.killpg])
    with suppress(ProcessLookupError):
        send(command.process.pid, number)
    expect(command, 0, 1, 130, -number)
    t.kept(command)
    t.check(*resume(t))


def expect(command, *statuses):
    """The exit status, which has to be one of these; 2 comes with a single line of the program."""
    status = command.wait()
    if status not in statuses:
        raise Failed("other", f"exit status {status}: {command.said()[-500:]!r}")
    said = TOLD.sub("", command.said()).splitlines()
    if status == 2 and command.heard and sum(x.startswith("train.py: ") for x in said) != 1:
        raise Failed("other", f"not one line: {command.said()[-500:]!r}")
    return status


def killed_or_ended(t, command):
    """Kills a sweep at some moment, or lets it end, and checks what it leaves."""
    t.moment(command)
    if t.rng.randrange(2):
        command.process.kill()
        command.wait()
    else:
        expect(command, 0)
    t.kept(command)
    t.check(*resume(t))


def damage(t, file, how):
    """Cuts a file at a random place, or flips one of its bits; nothing if it is not there."""
    with suppress(OSError), open(file, "r+b") as f:
        size = f.seek(0, os.SEEK_END)
        place = t.rng.randrange(size or 1)
        if how == "cut":
            f.truncate(place)
        elif size:
            f.seek(place)
            byte = f.read(1)[0] ^ 1 << t.rng.randrange(8)
            f.seek(place)
            f.write(bytes([byte]))


def results(t, how):
    """Damages results.jsonl while a sweep runs, and between two."""
    command = t.sweep(*resume(t))
    t.moment(command)
    damage(t, t.out / "results.jsonl", how)
    if t.rng.randrange(2):
        command.process.kill()
        command.wait()
    else:
        expect(command, 0)
    if t.rng.randrange(2):
        damage(t, t.out / "results.jsonl", how)
    t.check(*resume(t))


def checkpoints(t, how):
    """Damages checkpoints while a sweep runs, and before one resumes."""
    command = t.sweep()
    for _ in range(2):
        t.moment(command)
        for file in list(t.out.glob("*.npz")):
            damage(t, file, how)
    command.process.kill()
    command.wait()
    t.kept(command)
    again = t.sweep("--resume")
    if expect(again, 0, 1):                          # what the reason tells the user to do
        for record in records_of(t.out).values():
            if record["status"] == "failed":
                if ".npz is damaged: delete it" not in record["reason"]:
                    raise Failed("other", record["reason"])
                (t.out / f"{record['key']}.npz").unlink()
    t.check("--resume")


def disk_full(t):
    """A full disk: a tmpfs with a few free pages. Once it is cleared, all checkpoints fit."""
    t.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "faults", t.out], check=True)
    t.atend.append(lambda: subprocess.run(["umount", t.out], check=True))
    filler = t.out / "filler"
    with suppress(OSError), open(filler, "wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, max(0, filler.stat().st_size - 4096 * t.rng.choice(
        [0, 1, 2, 3, 4, t.rng.randrange(250)])))
    command = t.sweep(*resume(t))
    expect(command, 0, 1, 2)
    t.kept(command)
    filler.unlink()
    t.check(*resume(t))


def limited(t, name, value, **settings):
    """A sweep that may have only so much of a resource."""
    text = f"import resource; resource.setrlimit(resource.RLIMIT_{name}, ({value}, {value}))"
    command = t.sweep(*resume(t), before=text, **settings)
    expect(command, 0, 1, 2)
    t.kept(command)
    t.check(*resume(t))


def quota(t):
    """No file may become larger than a few kilobytes, which is room for what is told."""
    limited(t, "FSIZE", t.rng.randrange(2_000, t.rng.choice([10_000, 1_000_000])))


def descriptors(t):
    """Few file descriptors."""
    limited(t, "NOFILE", t.rng.randrange(6, 24))


def memory(t):
    """Little address space."""
    limited(t, "AS", t.rng.randrange(60, 400) * 1_000_000)


def processes(t):
    """No or few new processes and threads, as a user of its own: root has no such limit."""
    files = "+dac_override,+dac_read_search"
    user = ["setpriv", "--reuid", 60_000 + t.rng.randrange(1_000_000), "--inh-caps", files,
            "--ambient-caps", files, "--bounding-set", "-sys_resource,-sys_admin"]
    limited(t, "NPROC", t.rng.randrange(1, 8), prefix=user)


def two_sweeps(t):
    """A second sweep in the same folder: it is refused while the first runs."""
    first = t.sweep(*resume(t))
    t.moment(first)
    second = t.sweep(*resume(t))
    for command in (first, second):
        if expect(command, 0, 2) == 2 and "another sweep" not in command.said():
            raise Failed("other", command.said())
        t.kept(command)
    if first.process.returncode == second.process.returncode == 2:
        raise Failed("other", "both were refused")
    t.check(*resume(t))


def streams(t):
    """Standard streams that are closed, full, broken or read by `head`. All runs are kept."""
    before, settings, head = [], {}, None
    for number, stream in enumerate(["stdin", "stdout", "stderr"]):
        how = t.rng.choice(["as it is", "closed", "full", "broken", "head"])
        if how == "closed":
            before.append(f"os.close({number})")
        elif how == "full":
            settings[stream] = open("/dev/full", "r+b", 0)
        elif how in ("broken", "head") and stream != "stdin":
            reading, settings[stream] = os.pipe()
            if how == "head":
                head = subprocess.Popen(["head", f"-n{t.rng.randrange(1, 4)}"], stdin=reading,
                                        stdout=subprocess.DEVNULL)
            os.close(reading)
    command = t.sweep(*resume(t), before="; ".join(before), **settings)
    for stream in settings.values():
        os.close(stream) if isinstance(stream, int) else stream.close()
    command.heard = "os.close(2)" not in before and "stderr" not in settings
    expect(command, 0, 2, 141)
    if head:
        head.wait()
    if len(records_of(t.out)) != 4:
        raise Failed("lost", f"{len(records_of(t.out))} of 4 runs with {before} {settings}")
    t.check()


def surroundings(t):
    """Locales, variables, and figures where the terminal knows only ASCII."""
    odd = {"LC_ALL": ["C", "POSIX", "xx_XX"], "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16"],
           "PYTHONUTF8": ["0", "1"], "PYTHONCOERCECLOCALE": ["0"], "TERM": ["", "dumb", "xx"],
           "MPLBACKEND": ["qtagg", "nonsense", ""], "COLUMNS": ["1", "0", "x"],
           "HOME": ["/nowhere"], "TMPDIR": ["/nowhere"], "PATH": [""], "LANG": ["C"],
           "PYTHONOPTIMIZE": ["2"], "OPENBLAS_NUM_THREADS": ["1"], "TZ": ["x"]}
    chosen = {name: t.rng.choice(odd[name]) for name in t.rng.sample(list(odd), 5)}
    words = t.rng.choice([SWEEP, SWEEP, SWEEP[:-1], [*SWEEP, "--explain"], ["--help"]])
    command = t.sweep(*resume(t), words=words, env=t.campaign.environment | chosen)
    expect(command, 0)
    t.kept(command)
    t.check(*resume(t))


def current_folder(t):
    """A current folder that is gone, or full of modules with familiar names."""
    here = t.folder / "here"
    here.mkdir()
    before = ""
    if t.rng.randrange(2):
        before = f"os.rmdir({str(here)!r})"
    else:
        for name in t.rng.sample(["json", "numpy", "tinymup", "random", "train", "tqdm", "io"], 4):
            (here / f"{name}.py").write_text("raise SystemExit('shadowed')")
    command = t.sweep(*resume(t), cwd=here, before=before)
    killed_or_ended(t, command)


def dask(t):
    """A scheduler and two workers of Dask, as commands; the sweep goes to its file."""
    for folder in ("dask", "dask/worker"):
        (t.folder / folder).mkdir(exist_ok=True)
    file = t.folder / "dask/scheduler.json"
    file.unlink(missing_ok=True)

    def start(*words):
        """Starts one of Dask's programs."""
        name = t.folder / f"dask/{len(t.commands)}"
        t.commands.append(Command(
            ["-m", f"distributed.cli.dask_{words[0]}", *words[1:], "--scheduler-file", file,
             "--host", "127.0.0.1", "--no-dashboard"], None, name, cwd=t.folder,
            env=t.campaign.environment))
        return t.commands[-1]
    scheduler = start("scheduler", "--port", "0")
    scheduler.until(lambda: file.exists() and file.read_text().endswith("}"), "scheduler")
    workers = [start("worker", "--no-nanny", "--nthreads", "1", "--local-directory",
                     t.folder / "dask/worker") for _ in range(2)]
    t.options["words"] = [*SWEEP, "--cluster", str(file)]
    return scheduler, workers


def kill_dask_worker(t):
    """SIGKILL to a Dask worker: the other one does its runs."""
    workers = dask(t)[1]
    command = t.sweep(*resume(t))
    t.moment(command)
    t.rng.choice(workers).process.kill()
    expect(command, 0)
    t.kept(command)
    t.check(*resume(t))


def kill_dask_scheduler(t):
    """SIGKILL to the Dask scheduler: the same command goes on with another."""
    scheduler, workers = dask(t)
    command = t.sweep(*resume(t))
    t.moment(command)
    for process in [scheduler, *workers]:
        process.process.kill()
    expect(command, 0, 2)
    t.kept(command)
    dask(t)
    t.check(*resume(t))
