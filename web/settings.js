// The pack's settings in ComfyUI's own dialog, read by nodes/host/settings.py when the server starts. Their names in other
// languages are in locales/*/settings.json.
import { app } from "../../scripts/app.js";

const LATER = " Counts from ComfyUI's next start on.";
const SETTINGS = [
  ["klein.serving", "Klein agents", "boolean", true, "Answer agents over HTTP", "The image APIs of OpenAI, Black Forest Labs and the AI Gateway, on ComfyUI's own port."],
  ["klein.max_queue", "Klein agents", "number", 64, "Runs in the queue", "Runs that may wait or run, others' among them, before agents are told to come later."],
  ["klein.max_images", "Klein agents", "number", 10, "Pictures of one request", "The most pictures that one request may ask for."],
  ["klein.max_megapixels", "Klein agents", "number", 4, "Megapixels of a picture", "Of one picture, in or out, in units of 1048576 pixels."],
  ["klein.max_body_mb", "Klein agents", "number", 64, "Megabytes of a request", "A larger request is refused."],
  ["klein.requests_mb", "Klein agents", "number", 2048, "Megabytes of requests' pictures", "What input/klein may hold; the oldest go first."],
  ["klein.max_seconds", "Klein agents", "number", 1800, "Seconds of a request", "Its time in the queue included; then it is cancelled."],
  ["klein.store", "Klein store", "boolean", true, "Keep encoded prompts and pictures on disk", "In user/klein_store, so that they are known after a restart too; off: in memory only."],
  ["klein.store_gb", "Klein store", "number", 4, "Gigabytes of the store", "What was not asked for the longest goes first."]
];

app.registerExtension({
  name: "klein.settings",
  settings: SETTINGS.map(([id, group, type, defaultValue, name, tooltip], i) => ({
    id, name, type, defaultValue, category: ["Klein", group, id], tooltip: tooltip + LATER, sortOrder: SETTINGS.length - i,
    attrs: type === "number" ? { min: id === "klein.store_gb" ? 0 : 1, maxFractionDigits: id === "klein.store_gb" ? 2 : 0 } : undefined,
  })),
});
