"""python3 dev.py demo | check | test | bench | train | thumbnails | store : sets up what is needed (once), then runs it in a real ComfyUI."""

import os
import subprocess
import sys
from pathlib import Path

from tools.provision import install_chromium, install_clients, provision, python

ROOT = Path(__file__).resolve().parent

WORKERS = str(min(os.cpu_count() or 1, 4))  # of the tests: each has a ComfyUI of its own
COMMANDS = {
    "demo": ["-m", "tools.demo"],
    "check": ["-m", "tools.check"],
    # files of few tests, which are the long ones, not last: both workers end together
    "test": ["-m", "pytest", "-n", WORKERS, "--dist", "loadfile", "--no-loadscope-reorder"],
    "bench": ["-m", "benchmarks.run"],
    "train": ["-m", "tools.train.run"],
    "store": ["-m", "tools.store"],
    "thumbnails": ["-m", "tools.thumbnails"],
}
WITH_BROWSER = ("test", "thumbnails")


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        return 2
    provision()
    if sys.argv[1] in WITH_BROWSER:
        install_chromium()
    if sys.argv[1] == "test":
        install_clients()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    if sys.argv[1] == "test":
        environment.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker; more threads only wait for one another
    return subprocess.run([python(), *COMMANDS[sys.argv[1]], *sys.argv[2:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
