"""A job from the host's queue to its pictures."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from . import host
from .graphs import graph
from .job import Job
from .settings import Settings


@dataclass(frozen=True)
class Picture:
    """A picture as the host has saved it, and how it was asked for."""

    seed: int
    path: Path
    format: str
    quality: int

    def data(self) -> bytes:
        """png: the host's own file, with its graph; else coded anew."""
        if self.format == "png":
            return self.path.read_bytes()
        coded = BytesIO()
        with Image.open(self.path) as image:
            image.convert("RGB").save(coded, self.format, quality=self.quality)
        return coded.getvalue()


async def queued(job: Job, settings: Settings) -> list[str]:
    """A run for each seed, all in the queue."""
    runs = [await host.prepare(graph(job, seed, f"klein/{secrets.token_hex(4)}")) for seed in job.seeds]
    host.put(runs, settings.queue)
    return [run[0] for run in runs]


async def pictures(job: Job, runs: list[str], gone: Callable[[], bool]) -> AsyncIterator[Picture]:
    """In order, each as soon as it is there; what is still to run is cancelled when this ends early."""
    left = list(runs)
    try:
        for seed, run in zip(job.seeds, runs, strict=True):
            path = await host.saved(run, gone)
            left.remove(run)
            yield Picture(seed, path, job.format, job.quality)
    finally:
        for run in left:
            host.cancel(run)
