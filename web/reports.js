// A node's report, on the node: each line whole, warnings in amber. It is kept with the node, so that it is there again
// after a reload. A node that the server has cached says nothing in a run: what it said is found by all that decides it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const KEPT = "klein_report";
const WARNING = /^Warning:/;

// Before there is a text, a widget that takes no room: the early Vue nodes (1.32.9) lose sight of a node's widgets with its
// first changed value or link, and never show what is added then.
function prepare(node) {
  const box = document.createElement("div");
  box.className = "klein-report";
  Object.assign(box.style, {
    overflowY: "auto", whiteSpace: "pre-wrap", overflowWrap: "break-word", userSelect: "text",
    font: "11px sans-serif", lineHeight: "1.35", color: "var(--descrip-text, #bbb)",
  });
  const widget = node.addDOMWidget(KEPT, KEPT, box, {
    serialize: false, hideOnZoom: false, getMinHeight: () => Math.min(box.childElementCount * 16 + 8, 120),
  });
  Object.assign(widget, {
    serialize: false, // neither in the graph's values nor in the prompt's
    hidden: true,
    computeSize: () => [0, -4], // the canvas of 1.32.9 counts hidden widgets, each with 4 pixels between
    computeLayoutSize: undefined, // Vue nodes share free room among widgets that have one
  });
}

function warningsFirst(lines) {
  return [...lines.filter((line) => WARNING.test(line)), ...lines.filter((line) => !WARNING.test(line))];
}

function show(node, text) {
  const widget = node.widgets?.find((each) => each.name === KEPT);
  if (!text || !widget) return;
  if (widget.hidden) {
    widget.hidden = false;
    widget.element.style.padding = "2px 6px";
    delete widget.computeSize;
    delete widget.computeLayoutSize;
  }
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.push(widget); // newer Vue nodes look at a widget again when the list changes
  widget.element.replaceChildren(
    ...warningsFirst(text.split("\n")).map((line) => {
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

const numbers = new Map(); // of descriptions
const queued = new Map(); // prompt -> its nodes as they were queued: numbers by id, and the nodes themselves
const said = new Map(); // prompt -> node -> report
const ended = new Set(); // prompts: a short one has before the page hears its name
const told = new Map(); // number -> report

// Equal for nodes of one type with the same values and the same nodes before them.
function numbered(prompt) {
  const found = {};
  const linked = (value) => Array.isArray(value) && prompt[value[0]];
  const number = (id) => {
    if (found[id] === undefined) {
      const { class_type, inputs } = prompt[id];
      const values = Object.entries(inputs).map(([name, value]) => [name, linked(value) ? [number(value[0]), value[1]] : value]);
      const text = JSON.stringify([class_type, values]);
      if (!numbers.has(text)) numbers.set(text, numbers.size);
      found[id] = numbers.get(text);
    }
    return found[id];
  };
  Object.keys(prompt).forEach(number);
  return found;
}

async function settle(prompt) {
  const [run, reports] = [queued.get(prompt), said.get(prompt)];
  if (!run || !reports || !ended.has(prompt)) return;
  for (const each of [queued, said, ended]) each.delete(prompt);
  for (const [node, text] of Object.entries(reports)) told.set(run.made[node], text);
  const shown = numbered((await app.graphToPrompt()).output);
  for (const node of app.graph.nodes) {
    const made = run.nodes.has(node) ? run.made : shown; // a seed may have changed since
    const text = told.get(made[node.id]);
    if (!text || node.properties[KEPT] === text) continue;
    node.properties[KEPT] = text;
    show(node, text);
  }
}

const { queuePrompt } = api;
api.queuePrompt = async function (place, prompt) {
  const nodes = new Set(app.graph.nodes);
  const answer = await queuePrompt.apply(this, arguments);
  if (answer?.prompt_id && prompt?.output) {
    queued.set(answer.prompt_id, { made: numbered(prompt.output), nodes });
    settle(answer.prompt_id);
  }
  return answer;
};

app.registerExtension({
  name: "klein.reports",
  setup() {
    api.addEventListener("execution_start", ({ detail }) => said.set(detail.prompt_id, {}));
    api.addEventListener("executed", ({ detail }) => {
      const text = detail.output?.text?.join?.("\n");
      if (text && said.has(detail.prompt_id)) said.get(detail.prompt_id)[detail.node] = text;
    });
    for (const end of ["execution_success", "execution_error", "execution_interrupted"])
      api.addEventListener(end, ({ detail }) => {
        ended.add(detail.prompt_id);
        settle(detail.prompt_id);
      });
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Klein") || !nodeData.output_name?.includes("report")) return;
    const { onNodeCreated, onExecuted, onConfigure } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      prepare(this);
    };
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
