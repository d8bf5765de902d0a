"""Tests import the pack as the package `klein`. What is longer than every push can wait for is marked `long`, and runs by
hand: python3 dev.py test --long."""

import torch

import tools  # noqa: F401

torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings, most of all beside a server


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also what is marked `long`")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
