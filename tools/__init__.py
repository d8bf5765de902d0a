"""What dev.py runs, and what tests and benchmarks share with it. Development only.

Importing it makes this checkout the package `klein`, without its entry point, whose nodes need a whole server: so the
engine exists once in a process, whether the host's adapters or a test ask for it.
"""

import sys
import types
from pathlib import Path

if "klein" not in sys.modules:
    sys.modules["klein"] = types.ModuleType("klein", __doc__)
    sys.modules["klein"].__path__ = [str(Path(__file__).resolve().parents[1])]
