"""What a machine can say of the code without running it: ruff's rules and format, and mypy's types on the engine."""

from __future__ import annotations

import subprocess
import sys

from .provision import ROOT

CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])


def main() -> int:
    """The number of checks that fail; all are run, so that one look shows all."""
    return sum(subprocess.run([sys.executable, "-m", *check], cwd=ROOT).returncode != 0 for check in CHECKS)


if __name__ == "__main__":
    sys.exit(main())
