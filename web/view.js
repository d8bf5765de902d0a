// The frontend fits a graph that brings no view into three quarters of the window, where the text of larger ones is no longer
// drawn; and the early Vue nodes (1.32.9) are measured while that view still moves, and stand wrong until the page is loaded
// again. So a graph of ours without a view gets one that fills the window, or shows its beginning where all of it would be too
// small to read.
import { app } from "../../scripts/app.js";

const [BEFORE, ABOVE, AFTER] = [70, 100, 20]; // pixels of the canvas under the bars at its left and top, and to spare
const READABLE = 0.58; // no text is drawn below

let view; // of the graph that is being opened

app.registerExtension({
  name: "klein.view",
  beforeConfigureGraph(graph) {
    view = undefined;
    const ours = graph.nodes?.some((node) => node.type.startsWith("Klein"));
    if (!ours || graph.extra?.ds) return;
    const left = Math.min(...graph.nodes.map((node) => node.pos[0]));
    const top = Math.min(...graph.nodes.map((node) => node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT));
    const right = Math.max(...graph.nodes.map((node) => node.pos[0] + node.size[0]));
    const bottom = Math.max(...graph.nodes.map((node) => node.pos[1] + node.size[1]));
    const { width, height } = app.canvas.canvas.getBoundingClientRect();
    const fitted = Math.min((width - BEFORE - AFTER) / (right - left), (height - ABOVE - AFTER) / (bottom - top), 1);
    const scale = Math.max(fitted, READABLE);
    view = { offset: [BEFORE / scale - left, ABOVE / scale - top], scale };
    graph.extra = { ...graph.extra, ds: view };
  },
  afterConfigureGraph() {
    if (!view) return; // newer frontends fit a template whatever view it has
    app.canvas.ds.scale = view.scale;
    app.canvas.ds.offset = [...view.offset];
    app.canvas.setDirty(true, true);
  },
});
