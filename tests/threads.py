"""One thread for the tests, and for the commands that they start: they run beside each other, one a core, and
threads of their own would only wait for each other."""
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
