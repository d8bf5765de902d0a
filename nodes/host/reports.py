"""A node's report: its last output, text on the node, and in the history for those who queue over the API."""

from __future__ import annotations

from comfy_api.latest import io, ui
from server import PromptServer


def with_report(node: type[io.ComfyNode], *outputs: object) -> io.NodeOutput:
    """Outputs of a node, of which the last is its report. The node's schema asks for its hidden unique_id."""
    report = outputs[-1]
    PromptServer.instance.send_progress_text(report, node.hidden.unique_id)
    return io.NodeOutput(*outputs, ui=ui.PreviewText(report))
