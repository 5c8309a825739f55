// The prediction inspector: the pictures of one image, and what each expert says of it.

function render({ model, el }) {
  const root = frame(el, "inspector", model);
  const pictures = sprites();
  const step = (by) => tell(model, { do: "step", by });
  const button = (text, by, label) => h("button", { class: "nofe-tool", type: "button", "aria-label": label, onclick: () => step(by) }, text);
  const before = button("◀", -1, "the image before"), after = button("▶", 1, "the next image");
  const where = h("output", {});
  const upload = h("input", {
    type: "file", accept: "image/*", "aria-label": "an image of yours",
    onchange: async () => {
      const file = upload.files[0];
      if (file) tell(model, { do: "upload", name: file.name }, [await file.arrayBuffer()]);
    },
  });
  // sent when the pen has rested, since an answer takes a moment; undo is, if the drawing is shown
  let rest = null;
  const drawn = (canvas, done, stroked) => {
    clearTimeout(rest);
    const isShown = model.get("detail").title === "a drawing of yours";
    if (canvas && done && (stroked || isShown)) rest = setTimeout(() => canvas.toBlob(async (png) => {
      tell(model, { do: "upload", name: "a drawing of yours" }, [await png.arrayBuffer()]);
    }), 400);
  };
  const about = model.get("drawing");
  const drawing = about && h("details", { class: "nofe-drawing" }, h("summary", {}, "Draw one"), sketch(about, drawn));
  const problem = h("p", { class: "nofe-problem", role: "alert" });
  const shown = h("div", { class: "nofe-maps", tabindex: 0, role: "group", "aria-label": "the image; ← and → step to the one before and the next" });
  const said = h("div", {});
  const words = spoken(model);
  root.append(
    h("div", { class: "nofe-toolbar" }, menu(model, "which", "Step through", model.get("choices")), before, where, after,
      h("label", { class: "nofe-menu" }, h("span", {}, "or an image of yours"), upload)),
    problem,
    h("div", { class: "nofe-columns" }, shown, h("div", { class: "nofe-said" }, said, drawing)), words);

  const draw = () => {
    pictures.load(model.get("pictures"));
    const { title, captions, experts, networks } = model.get("detail");
    shown.replaceChildren(h("h4", {}, title), h("div", { class: "nofe-examples" }, captions.map((caption, i) =>
      h("figure", {}, pictures.piece(i, 160), h("figcaption", { title: caption }, caption)))));
    said.replaceChildren(...expertTable(experts, "common softmax"),
      h("div", { class: "nofe-pair" }, networks.map((network) => h("div", { class: "nofe-partition" },
        h("h5", {}, network.name), bars(network.best)))));
  };
  const drawPlace = () => {
    const place = model.get("place"), index = model.get("index"), listed = model.get("in_step");
    where.textContent = listed ? `${place + 1} of ${model.get("size")}` : index < 0 ? "an image of yours" : `image ${index}`;
    // not `disabled`, which would take the focus and with it the arrow keys
    before.setAttribute("aria-disabled", listed && place === 0);
    after.setAttribute("aria-disabled", listed && place + 1 >= model.get("size"));
    problem.textContent = model.get("problem");
    problem.hidden = !model.get("problem");
  };
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  const stops = [
    follow(model, ["detail", "pictures"], draw),
    follow(model, ["place", "size", "index", "in_step", "problem"], drawPlace),
    words.stop,
  ];
  return () => { clearTimeout(rest); stops.forEach((stop) => stop()); pictures.free(); };
}

export default { render };
