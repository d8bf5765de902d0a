"""Tests import the pack as the package `klein`."""

import tools  # noqa: F401
