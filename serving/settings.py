"""What the host's owner may change, by environment variables or in ComfyUI's dialog (nodes/host/settings.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import KleinError

MEGA = 1024 * 1024
ON, OFF = ("1", "on", "true", "yes"), ("0", "off", "false", "no")


@dataclass(frozen=True)
class Settings:
    enabled: bool = True
    key: str = ""  # no key: whoever reaches the host may ask, as with the host's own routes
    remote: bool = False  # whether pictures may be fetched from URLs that a request names
    body: int = 64 * MEGA  # bytes of a request
    queue: int = 64  # runs that wait or run, the host's own among them
    images: int = 10  # of one request
    pixels: int = 4 * MEGA  # of one picture, in or out
    store: int = 2048 * MEGA  # bytes of request pictures that are kept in input/klein
    seconds: int = 1800  # that a request may take, its time in the queue included


def settings(environment: Mapping[str, str]) -> Settings:
    def switch(name: str, default: bool) -> bool:
        value = environment.get(name, "").strip().lower()
        if value not in ("", *ON, *OFF):
            raise KleinError(f"{name} is {value!r}, expected on or off: change it.")
        return value in ON if value else default

    def count(name: str, default: int, unit: int = 1) -> int:
        value = environment.get(name, "").strip()
        if value and not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
            raise KleinError(f"{name} is {value!r}, expected a whole number above 0: change it.")
        return int(value) * unit if value else default

    return Settings(
        switch("KLEIN_SERVING", True),
        environment.get("KLEIN_API_KEY", ""),
        switch("KLEIN_REMOTE_IMAGES", False),
        count("KLEIN_MAX_BODY_MB", Settings.body, MEGA),
        count("KLEIN_MAX_QUEUE", Settings.queue),
        count("KLEIN_MAX_IMAGES", Settings.images),
        count("KLEIN_MAX_MEGAPIXELS", Settings.pixels, MEGA),
        count("KLEIN_REQUESTS_MB", Settings.store, MEGA),
        count("KLEIN_MAX_SECONDS", Settings.seconds),
    )
