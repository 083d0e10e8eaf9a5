"""Claims: most of a training step is its matrix products, and PyTorch eager is slower.

    python experiments/benchmark.py
    python experiments/benchmark.py --profile --width 128 512     (the step operation by operation)

A step is forward pass, backward pass and optimizer, without data loading. Refuted by: at width 512
a share of products below 0.65, or a width at which PyTorch eager takes less time on the same cores.
Where they are installed, torch.compile and JAX under jit run beside it. Nothing is claimed of them.

The second claim depends on the BLAS that each library brings: PyTorch's MKL is fast on Intel CPUs
and slow on others. So each library also computes the step's products alone, with its own matrix
product, and their share of its step tells what the step adds to them. The products are recorded
from a real step, with its shapes and dtype, but of contiguous arrays. The rivals do not compute the
gradient of the embedding as a product, so that one is left out of theirs.

All that is compared runs in turns, so another program on the machine slows all alike. A number is
the median of the turns. Writes results/benchmark.csv and results/benchmark_muon.csv, with _gpu
in their names if they are of a GPU.
"""
import argparse
import os
import sys

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")   # NPROC: XLA
PINNED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")   # they make OpenBLAS pick a slow kernel
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def options():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--width", type=int, nargs="+", default=[128, 256, 512, 1024])
    p.add_argument("--optimizer", choices=["adamw", "sgd", "muon"], default="adamw",
                   help="rivals run beside adamw only [adamw]")
    p.add_argument("--repeats", type=int, default=15,
                   help="turns of which the median is taken [15]")
    p.add_argument("--threads", type=int, default=1, help="CPU cores [1]")
    p.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    p.add_argument("--rivals", nargs="*", choices=["torch", "compile", "jax"], metavar="NAME",
                   help="torch, compile (torch.compile), jax; no name: none [all installed]")
    p.add_argument("--profile", action="store_true",
                   help="a table of the step's operations instead")
    return p.parse_args()


def restart(flags):
    """Runs this command again with what the libraries read from the environment as they load.

    On a CPU all of them get the same cores.
    """
    if flags.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:flags.threads])
    wanted = {name: value for name, value in os.environ.items() if name not in PINNED}
    wanted |= dict.fromkeys(THREADS, str(flags.threads))
    wanted["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"         # leaves GPU memory to the others
    if flags.threads == 1 and ONE_THREAD not in wanted.get("XLA_FLAGS", ""):
        wanted["XLA_FLAGS"] = f"{wanted.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, wanted)


if __name__ == "__main__":
    flags = options()
    restart(flags)
    import benchmark_tables   # after the restart, since it loads NumPy
    benchmark_tables.main(flags)
