"""Trains the tiny Klein that ships with the pack (development only: needs diffusers, never imported by the nodes)."""
