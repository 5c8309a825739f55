// The confusion explorer: a matrix on a canvas, and the images behind the chosen cell.

const SIDE = 660; // of the matrix, in pixels of the page

function render({ model, el }) {
  const root = frame(el, "confusion", model);
  const examples = sprites();
  const names = () => model.get("class_names");
  const canvas = h("canvas", {
    tabindex: "0", role: "application",
    "aria-label": "Confusion matrix. Arrow keys move between cells, Enter shows the images.",
  });
  const tip = h("div", { class: "nofe-tip", hidden: true, role: "tooltip" });
  const live = h("p", { class: "nofe-words", "aria-live": "polite" });
  const rowNames = h("div", { class: "nofe-row-names" });
  const detail = h("aside", { class: "nofe-detail", "aria-label": "the images of the chosen cell" });
  const blocks = h("div", { class: "nofe-blocks" });
  const legend = h("p", { class: "nofe-note" });
  const words = spoken(model);
  const options = (list) => list.map((name) => [name, name]);
  const classMenu = (trait, text) => menu(model, trait, text, names().map((name, c) => [c, name]), true);
  root.append(
    h("div", { class: "nofe-toolbar" },
      menu(model, "network", "Network", options(model.get("networks"))),
      menu(model, "order_by", "Order by", options(model.get("orders"))),
      classMenu("row", "Class"), classMenu("column", "answered")),
    h("div", { class: "nofe-columns" },
      h("div", { class: "nofe-matrix" }, rowNames, h("div", { class: "nofe-canvas" }, canvas, tip), blocks, legend, live),
      detail), words);

  let shares = null, cursor = [0, 0];
  const numbers = () => {
    const bytes = model.get("counts");
    return new Int32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  };
  const at = (i, j) => { // class, answer, and what is counted at a place of the matrix
    const { order } = model.get("matrix");
    const C = order.length, row = order[i], column = order[j];
    const of = (counts) => ({ n: counts[row * C + column], images: totals(counts, row, C) });
    return { row, column, figures: shares.map(of) };
  };
  const totals = (counts, row, C) => {
    let sum = 0;
    for (let c = 0; c < C; c++) sum += counts[row * C + c];
    return sum;
  };
  const phrase = ({ row, column, figures }) => {
    const said = figures.map(({ n, images }) => `${n} of ${images} images${images ? ` (${(100 * n / images).toFixed(1)}%)` : ""}`);
    const shown = model.get("shown_networks");
    return `${names()[row]} → ${names()[column]}: ` +
      said.map((text, i) => (said.length > 1 ? `${shown[i]} ` : "") + text).join(", ");
  };

  const draw = () => {
    const { order, groups, top, signed } = model.get("matrix");
    const C = order.length;
    const all = numbers();
    shares = all.length > C * C ? [all.subarray(0, C * C), all.subarray(C * C)] : [all];
    // a whole number of device pixels a cell, so that no row is thicker than another
    const ratio = window.devicePixelRatio || 1;
    const cell = Math.max(Math.round(SIDE * ratio / C), 1);
    canvas.width = canvas.height = cell * C;
    canvas.style.width = canvas.style.height = `${cell * C / ratio}px`;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(C, C);
    const [first, second] = shares, blank = [211, 228, 243, 255];
    for (let i = 0; i < C; i++) {
      const row = order[i];
      const images = Math.max(totals(first, row, C), 1), others = signed ? Math.max(totals(second, row, C), 1) : 1;
      for (let j = 0; j < C; j++) {
        const at = row * C + order[j];
        const value = first[at] / images - (signed ? second[at] / others : 0);
        if (row === order[j]) pixels.data.set(blank, 4 * (i * C + j));
        else if (value === 0) pixels.data.fill(255, 4 * (i * C + j), 4 * (i * C + j) + 4);
        else pixels.data.set(colour(value / top, signed), 4 * (i * C + j));
      }
    }
    const small = new OffscreenCanvas(C, C);
    small.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, cell * C, cell * C);
    context.lineWidth = 2 * ratio;
    for (const group of groups) {
      context.strokeStyle = group.colour;
      context.strokeRect(group.first * cell, group.first * cell, group.size * cell, group.size * cell);
    }
    // names beside the rows where there is room for them, those of the groups always
    const pitch = cell / ratio;
    const letter = Math.min(pitch * 1.1, 11); // pixels; 110 of them for a name
    rowNames.replaceChildren(...(pitch >= 5.5 ? order.map((c) => h("span", {
      style: { height: `${pitch}px`, "font-size": `${letter}px`, "line-height": `${pitch}px` }, title: names()[c],
    }, short(names()[c], Math.floor(190 / letter)))) : []));
    blocks.replaceChildren(...groups.map((group) => h("span", {
      style: { height: `${group.size * pitch}px`, "border-color": group.colour }, title: group.name,
    }, group.size * pitch >= 11 ? group.name : "")));
    legend.textContent = signed
      ? `purple: ${model.get("shown_networks")[0]} answers so more often, orange: less often; full colour from ${(100 * top).toFixed(1)} points of the class's images on`
      : `darker: more of the class's images, black from ${(100 * top).toFixed(1)}% on; the diagonal (right) is left blank`;
    choose();
  };
  const place = (label) => model.get("matrix").order.indexOf(label);
  const choose = () => {
    cursor = [place(model.get("row")), place(model.get("column"))];
    showCursor();
  };
  const cross = h("div", { class: "nofe-cross" });
  canvas.after(cross);
  const showCursor = () => {
    const pitch = parseFloat(canvas.style.width) / model.get("matrix").order.length;
    const grow = Math.max(pitch, 9);
    Object.assign(cross.style, {
      left: `${(cursor[1] + .5) * pitch - grow / 2}px`, top: `${(cursor[0] + .5) * pitch - grow / 2}px`,
      width: `${grow}px`, height: `${grow}px`,
    });
  };
  const cellUnder = (event) => {
    const box = canvas.getBoundingClientRect(), C = model.get("matrix").order.length;
    const to = (x, length) => Math.min(Math.max(Math.floor(C * x / length), 0), C - 1);
    return [to(event.clientY - box.top, box.height), to(event.clientX - box.left, box.width)];
  };
  const take = ([i, j]) => { const { row, column } = at(i, j); send(model, { row, column }); };
  canvas.addEventListener("mousemove", (event) => {
    const [i, j] = cellUnder(event), box = canvas.getBoundingClientRect();
    tip.textContent = phrase(at(i, j));
    tip.hidden = false;
    const x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = x > box.width / 2 ? "auto" : `${x + 14}px`;
    tip.style.right = x > box.width / 2 ? `${box.width - x + 14}px` : "auto";
    tip.style.top = `${y + 14}px`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => take(cellUnder(event)));
  canvas.addEventListener("keydown", (event) => {
    const C = model.get("matrix").order.length;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) cursor = cursor.map((x, d) => Math.min(Math.max(x + step[d] * (event.shiftKey ? 10 : 1), 0), C - 1));
    else if (event.key === "Enter" || event.key === " ") take(cursor);
    else return;
    event.preventDefault();
    showCursor();
    live.textContent = phrase(at(...cursor));
  });
  const drawDetail = () => {
    examples.load(model.get("examples"));
    const found = model.get("detail");
    detail.replaceChildren(h("h4", {}, found.title), h("p", { class: "nofe-where" }, found.where),
      h("div", { class: "nofe-examples" }, found.captions.map((caption, i) =>
        h("figure", {}, examples.piece(i, 64), h("figcaption", { title: caption }, short(caption, 28))))),
      found.captions.length ? "" : h("p", {}, "no image"));
  };
  const stops = [
    follow(model, ["matrix", "counts"], draw),
    follow(model, ["row", "column"], choose),
    follow(model, ["detail", "examples"], drawDetail),
    words.stop,
  ];
  return () => { stops.forEach((stop) => stop()); examples.free(); };
}

/** Grey for shares from 0 to 1; for differences from -1 to 1 purple above and orange below 0. */
function colour(value, signed) {
  const x = Math.min(Math.abs(value), 1);
  const mix = (end) => [...end.map((channel) => Math.round(255 + (channel - 255) * x)), 255];
  if (!signed) return mix([0, 0, 0]);
  return mix(value >= 0 ? [84, 39, 136] : [179, 88, 6]);
}

export default { render };
