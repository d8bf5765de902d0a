"""A job from the host's queue to its pictures."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from . import host
from .graphs import graph, look
from .job import Job
from .patience import Patience
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
        return self.path.read_bytes() if self.format == "png" else coded(self.path, self.format, self.quality)


@dataclass(frozen=True)
class Partial:
    """What a picture looks like on its way."""

    seed: int
    index: int
    preview: bytes
    format: str
    quality: int

    def data(self) -> bytes:
        return coded(BytesIO(self.preview), self.format, self.quality)


def coded(file: Path | BytesIO, format: str, quality: int) -> bytes:
    done = BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(done, format, quality=quality)
    return done.getvalue()


async def queued(job: Job, settings: Settings) -> list[str]:
    """A run for each seed, all in the queue."""
    runs = [await host.prepare(graph(job, seed, f"klein/{secrets.token_hex(4)}"), job.partials > 0) for seed in job.seeds]
    host.put(runs, settings.queue)
    return [run[0] for run in runs]


async def report(job: Job, settings: Settings, patience: Patience) -> str:
    """What Klein Preflight says of a job."""
    run = await host.prepare(look(job), told=False)
    host.put([run], settings.queue)
    try:
        async for _ in host.looks(run[0]):
            patience()
        return host.said(run[0])
    finally:
        host.cancel(run[0])


@asynccontextmanager
async def pictures(job: Job, runs: list[str], patience: Patience) -> AsyncIterator[AsyncIterator[Picture | Partial]]:
    """What becomes of the runs; what is still to run is cancelled when this ends early, be it before the first look at it."""
    try:
        async with aclosing(in_order(job, runs, patience)) as found:
            yield found
    finally:
        for run in runs:
            host.cancel(run)


async def in_order(job: Job, runs: list[str], patience: Patience) -> AsyncGenerator[Picture | Partial, None]:
    """Each as soon as it is there, and what it looks like on its way as often as that is asked."""
    with host.Previews(runs) if job.partials else nullcontext() as previews:
        for seed, run in zip(job.seeds, runs, strict=True):
            shown = 0
            async for _ in host.looks(run):
                patience()
                while previews and previews.steps[run]:
                    progress, preview = previews.steps[run].pop(0)
                    if shown < job.partials and (shown + 1) / (job.partials + 1) <= progress < 1:
                        yield Partial(seed, shown, preview, job.format, job.quality)
                        shown += 1
            yield Picture(seed, host.saved(run), job.format, job.quality)
