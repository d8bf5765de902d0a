"""What a machine can say of the code without running it: ruff's rules and format, and mypy's types on the engine."""

from __future__ import annotations

import subprocess
import sys

from .provision import ROOT

CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])


def main() -> int:
    """The number of checks that fail; all are run, so that one look shows all."""
    package = ROOT / "out/types/klein"  # whatever the checkout's folder is called
    package.parent.mkdir(parents=True, exist_ok=True)
    package.unlink(missing_ok=True)
    package.symlink_to(ROOT, target_is_directory=True)
    return sum(subprocess.run([sys.executable, "-m", *check], cwd=ROOT).returncode != 0 for check in CHECKS)


if __name__ == "__main__":
    sys.exit(main())
