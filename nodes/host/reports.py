"""A node's report: its last output, and the text that web/reports.js shows on the node. It stands in the history too, for
those who queue over the API."""

from __future__ import annotations

from comfy_api.latest import io, ui

LOADER = "KleinFlowLoader"


def all_ours(node: type[io.ComfyNode]) -> bool:
    """Whether every model of the graph that runs is Klein Flow Loader's. The node's schema asks for its hidden prompt; where
    there is none, nobody knows."""
    graph = node.hidden.prompt if node.hidden else None
    if not graph:
        return False
    from nodes import NODE_CLASS_MAPPINGS  # only beside a server: elsewhere the name is this pack's

    gives = {
        number: getattr(NODE_CLASS_MAPPINGS.get(each.get("class_type")), "RETURN_TYPES", ()) for number, each in graph.items()
    }

    def made_here(each: dict) -> bool:
        """From a file, not from another model."""
        links = [value for value in each.get("inputs", {}).values() if isinstance(value, list) and len(value) == 2]
        return not any("MODEL" in gives.get(str(source), ()) for source, _ in links)

    makers = {each["class_type"] for number, each in graph.items() if "MODEL" in gives[number] and made_here(each)}
    return makers <= {LOADER}


def with_report(*outputs: object) -> io.NodeOutput:
    """Outputs of a node, of which the last is its report."""
    return io.NodeOutput(*outputs, ui=ui.PreviewText(outputs[-1]))
