// The picture that Klein Example Picture will give, on the node before anything runs, in both node styles.
import { app } from "../../scripts/app.js";

const HEIGHT = 130;

app.registerExtension({
  name: "klein.pictures",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "KleinExamplePicture") return;
    const { onNodeCreated, onConfigure } = nodeType.prototype;
    const show = (node) => {
      const name = node.widgets.find((each) => each.name === "picture").value;
      node.kleinPicture.src = new URL(`pictures/${name}.png`, import.meta.url);
    };
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      const box = document.createElement("div");
      this.kleinPicture = box.appendChild(document.createElement("img"));
      box.style.textAlign = "center";
      Object.assign(this.kleinPicture.style, { height: "100%", maxHeight: `${HEIGHT}px`, imageRendering: "pixelated" });
      const size = () => HEIGHT;
      this.addDOMWidget("klein_picture", "klein_picture", box, {
        serialize: false, hideOnZoom: false, getMinHeight: size, getMaxHeight: size,
      }).serialize = false;
      const picture = this.widgets.find((each) => each.name === "picture");
      const { callback } = picture;
      picture.callback = (...given) => {
        callback?.apply(picture, given);
        show(this);
      };
      show(this);
    };
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      show(this);
    };
  },
});
