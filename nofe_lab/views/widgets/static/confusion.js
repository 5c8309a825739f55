// The confusion explorer: a matrix, and the images behind the chosen cell.

function render({ model, el }) {
  const root = frame(el, "confusion", model);
  const examples = sprites();
  const names = model.get("class_names");
  const detail = h("aside", { class: "nofe-detail", "aria-label": "the images of the chosen cell" });
  const words = spoken(model);
  const matrix = confusionMatrix(root, names, (row, column) => send(model, { row, column }));
  const options = (list) => list.map((name) => [name, name]);
  const classMenu = (trait, text) => menu(model, trait, text, names.map((name, c) => [c, name]), true);
  root.append(
    h("div", { class: "nofe-toolbar" },
      menu(model, "network", "Network", options(model.get("networks"))),
      menu(model, "order_by", "Order by", options(model.get("orders"))),
      menu(model, "scale", "Scale", [["row", "share of the row"], ["column", "share of the column"], ["count", "count"]]),
      matrix.tools, classMenu("row", "Class"), classMenu("column", "answered")),
    h("div", { class: "nofe-columns" }, matrix.element, detail), words);

  const counts = (view) => {
    const all = new Int32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)), n = all.length / 3;
    return [0, 1, 2].map((part) => all.subarray(part * n, (part + 1) * n));
  };
  const draw = () => {
    const found = model.get("matrix");
    matrix.show({ ...found, tables: found.tables.map(counts), scale: model.get("scale") });
  };
  const choose = () => matrix.choose(model.get("row"), model.get("column"));
  const drawDetail = () => {
    examples.load(model.get("examples"));
    const found = model.get("detail");
    detail.replaceChildren(h("h4", {}, found.title), h("p", { class: "nofe-where" }, found.where),
      h("div", { class: "nofe-examples" }, found.captions.map((caption, i) =>
        h("figure", {}, examples.piece(i, 64), h("figcaption", { title: caption }, short(caption, 28))))),
      found.captions.length ? "" : h("p", {}, "no image"));
  };
  const stops = [
    follow(model, ["matrix", "scale"], draw),
    follow(model, ["row", "column"], () => queueMicrotask(choose)), // when both are set
    follow(model, ["detail", "examples"], drawDetail),
    matrix.stop, words.stop,
  ];
  return () => { stops.forEach((stop) => stop()); examples.free(); };
}

export default { render };
