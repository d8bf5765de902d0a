// A newer frontend (ComfyUI 0.33's) says of any node that fails that it threw an error, and what it was only behind a click.
// Ours says it at once. Older ones, and newer ones without their tab of errors, open a dialog that does.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

app.registerExtension({
  name: "klein.errors",
  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      const { setting, toast } = app.extensionManager;
      if (detail.exception_type !== "KleinError" || !setting.get("Comfy.RightSidePanel.ShowErrorsTab")) return;
      const node = LiteGraph.registered_node_types[detail.node_type]?.title ?? detail.node_type;
      toast.add({ severity: "error", summary: node, detail: detail.exception_message.trim(), life: 20_000 });
    });
  },
});
