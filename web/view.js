// The early Vue nodes (frontend 1.32.9) are measured while the view still moves to a graph that brings none, and stand wrong
// until the page is loaded again. So a graph of ours without a view gets the one that the frontend would move to.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "klein.view",
  beforeConfigureGraph(graph) {
    const ours = graph.nodes?.some((node) => node.type.startsWith("Klein"));
    if (!ours || graph.extra?.ds || !LiteGraph.vueNodesMode) return;
    const left = Math.min(...graph.nodes.map((node) => node.pos[0]));
    const top = Math.min(...graph.nodes.map((node) => node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT));
    const right = Math.max(...graph.nodes.map((node) => node.pos[0] + node.size[0]));
    const bottom = Math.max(...graph.nodes.map((node) => node.pos[1] + node.size[1]));
    const { ds } = app.canvas;
    ds.fitToBounds([left, top, right - left, bottom - top]);
    graph.extra = { ...graph.extra, ds: { offset: [...ds.offset], scale: ds.scale } };
  },
});
