"""What a program says, on streams that may be closed, full, ASCII or no terminal; how it ends."""
import functools
import os
import signal
import sys
from contextlib import contextmanager, suppress


def say(text):
    """One line on standard error. Nobody may be listening: that ends nothing."""
    with suppress(OSError, ValueError, AttributeError):   # full or broken; closed; None
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


say_once = functools.lru_cache(maxsize=None)(say)


def watched():
    """Whether standard error is a terminal."""
    with suppress(OSError, ValueError, AttributeError):
        return sys.stderr.isatty()
    return False


def escaped(text):
    """The text with everything that a terminal might obey as \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def quit(*_):
    """Ends the process at once, as Ctrl-C does where nothing has begun."""
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(130)


def start():
    """What a program does before it imports the rest: from now on Ctrl-C shows no traceback."""
    while (stream := os.open(os.devnull, os.O_RDWR)) < 3:   # no file may get the number of a stream
        pass
    os.close(stream)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, quit)


@contextmanager
def program(name, interrupted):
    """Ends what it contains in one line and with the usual status, whatever goes wrong."""
    if signal.getsignal(signal.SIGINT) is quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):                      # closed: None
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            flush()
    except BrokenPipeError:                                 # | head: nobody reads on
        raise SystemExit(128 + 13) from None                # like a tool that SIGPIPE ends
    except (ValueError, OSError) as error:
        say(f"{name}: {error}")
        raise SystemExit(2) from None
    except MemoryError:
        say(f"{name}: out of memory: choose a smaller --width, --batch or --seq, or fewer --jobs")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, quit)                  # a second one ends what is left to do
        say("\n" + interrupted)
        raise SystemExit(130) from None


def flush():
    """Writes what standard output still holds. If it cannot, nothing tries so again at exit."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
