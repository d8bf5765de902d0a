// A node's report, on the node: each line whole, warnings in amber. It is kept with the node, so that it is there again
// after a reload, and with a run that the server had cached.
import { app } from "../../scripts/app.js";

const KEPT = "klein_report";
const WARNING = /^Warning:/;

function show(node, text) {
  let widget = node.widgets?.find((each) => each.name === KEPT);
  if (!text) return;
  if (!widget) {
    const box = document.createElement("div");
    box.className = "klein-report";
    Object.assign(box.style, {
      overflowY: "auto", whiteSpace: "pre-wrap", overflowWrap: "break-word", userSelect: "text",
      font: "11px sans-serif", lineHeight: "1.35", color: "var(--descrip-text, #bbb)", padding: "2px 6px",
    });
    widget = node.addDOMWidget(KEPT, KEPT, box, {
      serialize: false, hideOnZoom: false, getMinHeight: () => Math.min(box.childElementCount * 16 + 8, 120),
    });
    widget.serialize = false; // neither in the graph's values nor in the prompt's
  }
  widget.element.replaceChildren(
    ...text.split("\n").map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      if (WARNING.test(line)) row.style.color = "#e0a030";
      return row;
    }),
  );
  const wanted = node.computeSize(); // with these lines
  node.setSize([Math.max(node.size[0], wanted[0]), Math.max(node.size[1], wanted[1])]);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "klein.reports",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Klein") || !nodeData.output_name?.includes("report")) return;
    const { onExecuted, onConfigure } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const text = output?.text?.join("\n");
      if (!text) return;
      this.properties[KEPT] = text;
      show(this, text);
    };
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      show(this, this.properties?.[KEPT]);
    };
  },
});
