"""The routes of all API families, on the host's own server."""

from __future__ import annotations

import logging

from ..errors import KleinError
from ..nodes.host.settings import given
from . import bfl, gateway, openai
from .host import server
from .http import take
from .settings import settings

log = logging.getLogger(__name__)


def register() -> None:
    """To be called before the host starts to listen; does nothing where there is no server."""
    if server() is None:
        return
    try:
        chosen = settings(given())
    except KleinError as error:
        log.error("Klein: the HTTP for agents is off: %s", error)
        return
    if chosen.enabled:
        take(server(), [*openai.ROUTES, *bfl.ROUTES, *gateway.ROUTES], chosen)
