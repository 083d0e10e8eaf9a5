"""Faults of the user's input: odd paths, wrong command lines, wrong data."""
import os
import socket
import string

from fault_kinds import expect, killed_or_ended, resume
from fault_tries import Failed, lines_of


def odd_name(t):
    """A name of a file that a shell or a terminal might stumble over."""
    alphabet = [*" :\n\t'\"*?[]{}$;|&<>\\~%#-.", *"é字\u202e\x1b", os.fsdecode(b"\xff"),
                *string.ascii_letters]
    return "x" + "".join(t.rng.choices(alphabet, k=t.rng.randrange(1, 40)))


def paths(t):
    """Odd names of the results' folder and of the text, also through links."""
    t.out = t.folder / odd_name(t) / odd_name(t)
    if t.rng.randrange(2):
        t.out.parent.mkdir()
        (t.folder / "elsewhere").mkdir()
        t.out.symlink_to(t.folder / "elsewhere")
    text = t.folder / f"{odd_name(t)}.txt"
    text.write_bytes(t.campaign.text.read_bytes())
    if t.rng.randrange(2):
        link = t.folder / f"{odd_name(t)}.link"
        link.symlink_to(text)
        text = link
    t.options["data"] = text
    command = t.sweep(*resume(t))
    killed_or_ended(t, command)


WHOLE = ["0", "-3", "1.5", "nan", "inf", "x", "", "2^-1", "2^99", "5:1", "3:4:0", "1e3", "1:2:3:4"]
REAL = ["0", "-1", "nan", "inf", "1e999", "x", "", "2^x", "2^-4:2^-7", "1:2", "2^1:2^3:0",
        "9" * 400, "2^1:2^2:-1", "2^-99999999999:2^1", "2^nan", "--", "1,2", "2^1:3"]
WRONG = {
    "--width": [*WHOLE, "33", "2^40", "64:100000000", "100000000000"], "--steps": [*WHOLE, "2^63"],
    "--batch": [*WHOLE, "2^50"], "--seq": [*WHOLE, "2^50", "100000"], "--depth": [*WHOLE, "10001"],
    "--head-dim": [*WHOLE, "3", "64"], "--seed": WHOLE[1:], "--warmup": [*WHOLE[1:], "40", "99"],
    "--lr": REAL, "--lr-factor": [*REAL, "2^-1"], "--eps": [*REAL, "1e-60"], "--init-scale": REAL,
    "--weight-decay": REAL[1:], "--clip": REAL[1:], "--betas": ["0.9", "1,1", "x,y", "nan,0", ""],
    "--model": ["", "MLP", "rnn"], "--param": ["", "μP", "sp,mup"], "--ffn": ["x", "swiglu"],
    "--optimizer": ["adam", "muonclip"], "--momentum": ["0.9", "1", "x"], "--nesterov": ["on"],
    "--tied": ["yes", "", "True"], "--dtype": ["float16", "x"], "--device": ["tpu", "cuda"],
    "--jobs": ["0", "-1", "x", "1.5", "", "9" * 5000], "--alpha-res": ["1", "0"],
    "--out": ["/dev/null/x", "/proc/x", "y" * 300, "/dev/null"], "--explain": ["x"],
    "--widht": ["32"], "--lear": ["1"], "--dump": ["/tmp/never"], "-x": [""], "word": ["x"],
    "--qk-clip-threshold": ["1"], "--coefficients": ["x"], "--muon-scale": ["spectral", "x"]}


def refused(t, *more, **settings):
    """Runs a command that has to end with status 2 and one line, and to leave the results alone."""
    t.out.mkdir()
    old = (t.campaign.out / "results.jsonl").read_bytes()
    (t.out / "results.jsonl").write_bytes(old)
    command = t.sweep(*more, **settings)
    status, said = command.wait(), command.said()
    if status != 2 or said.count("\n") != 1 or not said.startswith("train.py: "):
        raise Failed("other", f"exit status {status}, {more} {settings}: {said[-500:]!r}")
    if b"".join(lines_of(t.out)) != old or command.said("stdout"):
        raise Failed("changed", f"{more}: results or {command.said('stdout')!r}")


def bad_command(t):
    """A command line with a wrong word."""
    name = t.rng.choice(list(WRONG))
    refused(t, name, t.rng.choice(WRONG[name]))


def bad_data(t):
    """Text that is none, or that cannot be read."""
    file, text = t.folder / "bad", t.campaign.text.read_bytes()
    how = t.rng.choice(["missing", "empty", "short", "zero", "fifo", "socket", "folder", "dangling",
                        "loop", "huge", "device", "glob", "binary", "long"])
    if how in ("empty", "short", "zero", "binary", "huge"):
        place = t.rng.randrange(len(text))
        file.write_bytes({"short": text[:place % 160], "zero": text[:place] + b"\0" + text[place:],
                          "binary": t.rng.randbytes(5000) + b"\0"}.get(how, b""))
    if how == "huge":
        os.truncate(file, 1 << 43)
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(file))
    elif how == "folder":
        file.mkdir()
    elif how in ("dangling", "loop"):
        file.symlink_to(file if how == "loop" else t.folder / "nothing")
    named = {"device": t.rng.choice(["/dev/zero", "/dev/tty", "/dev/null"]), "long": "x" * 5000,
             "glob": t.folder / "**/*.none"}.get(how, file)
    words = [str(named)] if t.rng.randrange(2) else [str(t.campaign.text), str(named)]
    if how in ("empty", "short", "folder"):
        words = words[-1:]
    refused(t, "--data", *words)
