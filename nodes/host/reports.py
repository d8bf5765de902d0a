"""A node's report: its last output, and the text that web/reports.js shows on the node. It stands in the history too, for
those who queue over the API."""

from __future__ import annotations

from comfy_api.latest import io, ui


def with_report(*outputs: object) -> io.NodeOutput:
    """Outputs of a node, of which the last is its report."""
    return io.NodeOutput(*outputs, ui=ui.PreviewText(outputs[-1]))
