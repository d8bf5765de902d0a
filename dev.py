"""python3 dev.py demo | test | bench | train | thumbnails : sets up what is needed (once), then runs it in a real ComfyUI."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tests"))

from environment.provision import provision, python  # noqa: E402

COMMANDS = {
    "demo": ["-m", "environment.demo"],
    "test": ["-m", "pytest"],
    "bench": ["benchmarks/run.py"],
    "train": ["-m", "training.run"],
    "thumbnails": ["-m", "environment.thumbnails"],
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        return 2
    provision()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run([python(), *COMMANDS[sys.argv[1]], *sys.argv[2:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
