"""Measurements of the pack beside its peers: python3 dev.py bench."""

import tools  # noqa: F401  the pack as the package `klein`
