"""How a program prints and ends, even if a stream is closed, full, ASCII-only or no terminal."""
import functools
import os
import signal
import sys
from contextlib import contextmanager, suppress


def say(text):
    """Writes a line to standard error. If that is impossible, the program goes on."""
    with suppress(OSError, ValueError, AttributeError):   # full or broken; closed; absent
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


say_once = functools.lru_cache(maxsize=None)(say)


def watched():
    """Whether standard error is a terminal."""
    with suppress(OSError, ValueError, AttributeError):
        return sys.stderr.isatty()
    return False


def escaped(text):
    """The text with characters that control a terminal spelled out, as in \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def quit(*_):
    """Ends the process at once: for Ctrl-C before the program has begun, and for a second one."""
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(130)


def start():
    """Sets up a program before its imports: Ctrl-C or a failing import gives no traceback."""
    while (stream := os.open(os.devnull, os.O_RDWR)) < 3:   # no file becomes stream 0, 1 or 2
        pass
    os.close(stream)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, quit)
    sys.excepthook = cannot_start


def cannot_start(kind, error, trace):
    """Ends the process with one line if an import fails for lack of memory, files or a package."""
    if not issubclass(kind, (MemoryError, ImportError, OSError)):
        return sys.__excepthook__(kind, error, trace)
    reason = [line.strip() for line in str(error).splitlines() if line.strip()] or [kind.__name__]
    say(f"{os.path.basename(sys.argv[0])}: cannot start: {reason[-1]}")
    os._exit(2)


@contextmanager
def program(name, interrupted):
    """A context in which an error or Ctrl-C ends the program, with one line and a status."""
    sys.excepthook = sys.__excepthook__
    if signal.getsignal(signal.SIGINT) is quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):                      # a closed one is None
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            flush()
    except BrokenPipeError:                                 # the reader has gone, as with | head
        raise SystemExit(128 + 13) from None                # the status of a tool that SIGPIPE ends
    except (ValueError, OSError, MemoryError) as error:
        memory = "out of memory: choose a smaller --width, --batch or --seq, or fewer --jobs"
        say(f"{name}: {memory if isinstance(error, MemoryError) else error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, quit)                  # a second one ends the process at once
        say("\n" + interrupted)
        raise SystemExit(130) from None


def flush():
    """Flushes standard output. If that fails, drops what is left, or Python retries at exit."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
