"""A node's report: its last output, text on the node, and in the history for those who queue over the API."""

from __future__ import annotations

from comfy_api.latest import io, ui
from server import PromptServer


def with_report(node: type[io.ComfyNode], *outputs: object) -> io.NodeOutput:
    """Outputs of a node, of which the last is its report. The node's schema asks for its hidden unique_id."""
    report = outputs[-1]
    server = getattr(PromptServer, "instance", None)  # none where nodes are called without one
    client = getattr(server, "client_id", None)  # who queued the running prompt; None: nobody looks on
    if client is not None:
        server.send_progress_text(report, node.hidden.unique_id, client)
    return io.NodeOutput(*outputs, ui=ui.PreviewText(report))
