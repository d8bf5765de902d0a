"""How long a run is waited for: no longer than its client is there, than this host allows, and than the host itself runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from aiohttp import web

from .refused import Refused
from .settings import Settings

GRACE = 3  # seconds that a host which shall end gives to answers that are on their way
ENDING = threading.Event()
OPEN: set[int] = set()  # ids of requests without an answer
Patience = Callable[[], None]  # asked again and again; raises what there is to say when it is over


def patience(settings: Settings, request: web.Request | None = None) -> Patience:
    """request: where a client holds its connection."""
    end = time.monotonic() + settings.seconds

    def look() -> None:
        running()
        if request is not None and (request.transport is None or request.transport.is_closing()):
            raise Refused("The client went away: the run is cancelled.", "", 499)
        if time.monotonic() > end:
            raise Refused(
                f"The request took more than {settings.seconds} seconds (KLEIN_MAX_SECONDS) and is cancelled: ask for less, or later.",
                "", 504,
            )  # fmt: skip

    return look


def running() -> None:
    if ENDING.is_set():
        raise Refused("The host is shutting down: ask again in a moment.", "", 503, 5)


def mind_the_end(app: web.Application) -> None:
    """A host that ends answers first. ComfyUI knows no shutting down: a signal ends it at once, so ours comes before."""

    async def on_shutdown(app: web.Application) -> None:
        ENDING.set()

    app.on_shutdown.append(on_shutdown)
    if os.name == "nt" or threading.current_thread() is not threading.main_thread():
        return
    for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is usual:  # else somebody has plans for it
            signal.signal(number, lambda number, frame, usual=usual: end(number, usual))


def end(number: int, usual) -> None:
    """What the signal usually does, once all have their answer; at once if it comes again."""
    signal.signal(number, usual)
    ENDING.set()

    def later() -> None:
        until = time.monotonic() + GRACE
        while OPEN and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=later, daemon=True).start()
