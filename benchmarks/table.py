"""Interleaved medians and the table they are printed in."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """value: seconds unless `unit` says otherwise; ratio: to what the row is held against; bound: what was asked."""

    name: str
    value: float
    ratio: float | None = None
    bound: str = ""
    unit: str = "s"


def interleaved(runs: dict, rounds: int) -> dict[str, float]:
    """Median seconds of each run."""
    return {name: statistics.median(values) for name, values in timed(runs, rounds).items()}


def timed(runs: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, all run once to warm up and then in turn `rounds` times."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def markdown(rows: list[Row]) -> str:
    lines = ["| what | median | ratio | asked |", "|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        lines.append(f"| {row.name} | {row.value:.4g} {row.unit} | {ratio} | {row.bound if ratio else ''} |")
    return "\n".join(lines)
