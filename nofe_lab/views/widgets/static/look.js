// The page of nofe_lab.look: drawn in a notebook by the widget, and in a saved page by itself.

const WIDEST = 640; // of the matrix, in pixels of the page
const NAMED = 50; // most classes whose names stand beside the matrix

function render({ model, el }) {
  const root = frame(el, "look", model);
  const page = h("div");
  root.append(page);
  const stop = drawPage(page, { ...model.get("found"), sheet: model.get("sheet"), K: model.get("K") }, (K) => {
    model.set("K", K);
    model.save_changes();
  });
  const follow = () => page.setK(model.get("K"));
  model.on("change:K", follow);
  return () => { model.off("change:K", follow); stop(); };
}

/** Draw the page into `main`; `chosen` is told of the reader's K.  Returns what ends that. */
function drawPage(main, found, chosen = () => {}) {
  const images = sprites();
  const { sheet } = found;
  const packed = sheet.data;
  if (typeof packed === "string") sheet.data = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  images.load(sheet);
  const hasImages = found.pairs.some(({ examples }) => examples.length) || found.suspects?.some(({ piece }) => piece !== null);
  const [blocks, stop] = drawBlocks(main, found, chosen);
  main.replaceChildren(
    h("header", {}, h("h1", {}, found.title), h("p", { class: "nofe-quiet" }, `${found.summary}.`),
      found.notes.map((note) => h("p", { class: "nofe-quiet" }, note))),
    blocks,
    drawPairs(found, images, hasImages),
    h("div", { class: "nofe-two" }, drawSuspects(found, images), drawReliability(found)),
  );
  return () => { stop(); images.free(); };
}

function section(title, explained, ...children) {
  return h("section", {}, h("h2", {}, title), h("p", { class: "nofe-quiet" }, explained), children);
}

function drawBlocks(main, found, chosen) {
  const { names, partitions, images } = found;
  const C = names.length;
  let at = Math.max(partitions.findIndex(({ K }) => K === found.K), 0);
  const canvas = h("canvas", { role: "img" });
  const tip = h("div", { class: "nofe-tip", hidden: true, role: "tooltip" });
  const beside = h("div", { class: "nofe-row-names" }), below = h("div", { class: "nofe-column-names" });
  const groups = h("ol", { class: "nofe-groups" });
  const sentence = h("p", { class: "nofe-ceiling", role: "status" });
  const crossed = h("span", {}), line = h("code", {});
  const file = h("a", { download: "specialties.json" }, "these groups as a file");
  const slider = h("input", {
    type: "range", min: 0, max: partitions.length - 1, step: 1, "aria-label": "number of groups",
    oninput: () => { at = Number(slider.value); show(); chosen(partitions[at].K); },
  });
  const said = h("output", { class: "nofe-update" });
  const by = h("select", { "aria-label": "order of the classes", onchange: () => show() },
    h("option", { value: "groups" }, "groups"), h("option", { value: "leaves" }, "leaf order"));

  let order = [], grid = new Map(), side = WIDEST;
  const position = new Int32Array(C);
  const show = () => {
    const { K, of, colours, sentence: words, line: code } = partitions[at];
    slider.value = at;
    said.textContent = `K = ${K}`;
    slider.setAttribute("aria-valuetext", `${K} groups`);
    const rank = new Int32Array(C);
    found.order.forEach((c, n) => { rank[c] = n; });
    const inGroups = by.value === "groups";
    order = inGroups ? [...found.order].sort((a, b) => of[a] - of[b] || rank[a] - rank[b]) : found.order;
    order.forEach((c, n) => { position[c] = n; });
    for (const list of [beside, below]) {
      list.hidden = C > NAMED;
      if (C <= NAMED) list.replaceChildren(...order.map((c) => h("span", { title: names[c] }, short(names[c], 18))));
    }
    sentence.textContent = words.replaceAll("->", "→");
    crossed.textContent = partitions[at].crossed.replace("->", "→");
    line.textContent = code;
    const members = Array.from({ length: K }, () => []);
    order.forEach((c) => members[of[c]].push(c));
    const inside = new Array(K).fill(0), all = new Array(K).fill(0);
    const [rows, columns, counts] = found.errors;
    rows.forEach((row, i) => {
      all[of[row]] += counts[i];
      if (of[row] === of[columns[i]]) inside[of[row]] += counts[i];
    });
    const parts = members.map((part, k) => ({ k, part, colour: colours[k], inside: inside[k], all: all[k] }));
    groups.replaceChildren(...parts.map(({ part, colour, inside: held, all: errors }) => {
      const listed = part.map((c) => names[c]).join(", ");
      return h("li", { style: { "--colour": colour } },
        h("strong", {}, `${part.length} ${part.length === 1 ? "class" : "classes"}`),
        h("span", { class: "nofe-quiet" }, ` · ${held} of ${errors} errors inside`),
        h("div", { class: "nofe-listed", title: listed.slice(0, 2000) }, listed.slice(0, 2000)));
    }));
    const json = {
      class_names: names,
      specialties: parts.map(({ k, part }) => ({ name: String(k + 1), classes: [...part].sort((a, b) => a - b).map((c) => names[c]) })),
    };
    file.href = `data:application/json;charset=utf-8,${encodeURIComponent(JSON.stringify(json))}`;
    draw(inGroups ? parts : []);
  };
  const draw = (parts) => {
    side = Math.max(Math.min(WIDEST, holder.clientWidth - (C > NAMED ? 0 : beside.clientWidth + 4) - 2, window.innerWidth - 40) || WIDEST, 200);
    holder.style.setProperty("--pitch", `${side / C}px`);
    holder.style.setProperty("--size", `${Math.min(Math.max(side / C - 1, 7), 11)}px`);
    const ratio = window.devicePixelRatio || 1;
    const pixels = Math.round(side * ratio);
    const cells = Math.min(C, pixels); // of more classes than pixels, the darkest of several is seen
    canvas.width = canvas.height = pixels;
    canvas.style.width = canvas.style.height = `${side}px`;
    canvas.setAttribute("aria-label", `Confusions of ${C} classes, rows: labels, columns: predictions; the worst pairs are listed below.`);
    grid = new Map();
    const [rows, columns, counts] = found.errors;
    rows.forEach((row, i) => {
      const y = Math.floor(position[row] * cells / C), x = Math.floor(position[columns[i]] * cells / C);
      const share = counts[i] / images[row];
      const best = grid.get(y * cells + x);
      if (!best || best.share < share) grid.set(y * cells + x, { share, row, column: columns[i], n: counts[i] });
    });
    const pen = canvas.getContext("2d");
    const ink = getComputedStyle(main).color;
    const edge = (cell) => Math.round(cell * pixels / cells);
    pen.clearRect(0, 0, pixels, pixels);
    let first = 0;
    for (const { part, colour } of parts) {
      const from = first * pixels / C, size = part.length * pixels / C;
      pen.globalAlpha = 0.16;
      pen.fillStyle = colour;
      pen.fillRect(from, from, size, size);
      first += part.length;
    }
    pen.fillStyle = ink;
    for (const [cell, { share }] of grid) {
      const y = Math.floor(cell / cells), x = cell % cells;
      pen.globalAlpha = Math.max(Math.sqrt(Math.min(share / found.top, 1)), 0.06);
      pen.fillRect(edge(x), edge(y), Math.max(edge(x + 1) - edge(x), 1), Math.max(edge(y + 1) - edge(y), 1));
    }
    first = 0;
    pen.globalAlpha = 1;
    pen.lineWidth = Math.max(1.5 * ratio, 1);
    for (const { part, colour } of parts) {
      const from = first * pixels / C, size = part.length * pixels / C;
      pen.strokeStyle = colour;
      pen.strokeRect(from + 0.75, from + 0.75, Math.max(size - 1.5, 1), Math.max(size - 1.5, 1));
      first += part.length;
    }
  };
  canvas.addEventListener("mousemove", (event) => {
    const cells = Math.min(C, canvas.width);
    const cell = (offset) => Math.min(Math.max(Math.floor(offset * cells / side), 0), cells - 1);
    const x = cell(event.offsetX), y = cell(event.offsetY);
    const best = grid.get(y * cells + x);
    const row = best?.row ?? order[Math.floor(y * C / cells)], column = best?.column ?? order[Math.floor(x * C / cells)];
    tip.textContent = row === column
      ? `${names[row]}: ${images[row]} images`
      : `${names[row]} → ${names[column]}: ${best?.n ?? 0} of ${images[row]} images`;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.offsetX + 12, side - 180)}px`;
    tip.style.top = `${event.offsetY + 14}px`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  const holder = h("div", { class: "nofe-holder" }, beside, h("div", {}, h("div", { class: "nofe-canvas" }, canvas, tip), below, h("p", { class: "nofe-quiet nofe-axis" },
    `predicted class (full strength: ${Number((100 * found.top).toPrecision(2))}% of a class's images${found.top < 0.995 ? " or more" : ""})`)));
  const element = section("What is confused", [
    "Rows are labels, columns predictions; the stronger a cell, the larger its share of the row. Right ",
    "predictions, on the diagonal, are left out. Groups of one size are made of the confusions themselves.",
  ].join(""),
  h("div", { class: "nofe-toolbar" },
    h("label", { class: "nofe-menu" }, h("span", {}, "Groups"), slider, said),
    h("label", { class: "nofe-menu" }, h("span", {}, "Order by"), by)),
  h("div", { class: "nofe-columns" }, h("div", {}, holder),
    h("div", { class: "nofe-beside" }, sentence,
      h("p", { class: "nofe-quiet" }, "A ceiling, not a forecast: experts make errors of their own, and these groups were made of these very errors. Groups made of one half of the images, counted on the other: ", crossed, "."),
      groups,
      h("p", {}, "Train experts for these groups (", file, "):"), h("pre", {}, line))));
  main.setK = (K) => {
    const wanted = partitions.findIndex((each) => each.K === K);
    if (wanted >= 0 && wanted !== at) { at = wanted; show(); }
  };
  const again = () => show();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", again);
  const theme = new MutationObserver(again); // JupyterLab's
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (Math.abs(element.clientWidth - width) > 1) { width = element.clientWidth; show(); }
  });
  resized.observe(element);
  return [element, () => { dark.removeEventListener("change", again); theme.disconnect(); resized.disconnect(); }];
}

function drawPairs(found, images, hasImages) {
  const { names, pairs } = found;
  if (!pairs.length) return section("The worst pairs", "No image was got wrong.");
  const cards = pairs.map((pair) => h("article", { class: "nofe-pair-card" },
    h("h3", {}, h("span", {}, pair.class), h("span", { class: "nofe-quiet" }, " → "), h("span", {}, pair.rival)),
    h("p", { class: "nofe-quiet" },
      `${pair.errors} errors, ${(100 * pair.share).toFixed(1)}% of all: ${pair.mistaken} → and ${pair.errors - pair.mistaken} ←`),
    !hasImages ? null : h("div", { class: "nofe-examples" }, pair.examples.map(({ piece, label, said, sure }) => h("figure", {},
      images.piece(piece, 60),
      h("figcaption", { title: `label ${names[label]}, predicted ${names[said]}` }, names[label],
        sure === null ? null : h("span", { class: "nofe-quiet" }, ` ${percent(sure)}`))))),
  ));
  const explained = hasImages
    ? `Pairs of classes with the most errors between them, → and back ←. Below an image: its label${found.reliability ? ", and how sure the classifier is of the other class" : ""}.`
    : "Pairs of classes with the most errors between them, → and back ←.";
  return section("The worst pairs", explained, h("div", { class: "nofe-pairs" }, cards));
}

function drawSuspects(found, images) {
  const { suspects, n_suspects: n } = found;
  const title = "Labelled wrongly?";
  if (suspects === null) return section(title, "This needs probabilities: predicted classes alone do not say how sure the classifier is.");
  if (!suspects.length) return section(title, "No image stands out.");
  const shown = n > suspects.length ? `The first ${suspects.length} of ${n.toLocaleString("en")} images` : `${n} ${n === 1 ? "image" : "images"}`;
  const explained = `${shown} whose label is improbable while another class is as probable as it usually is for its own images. Valid only if the classifier has not trained on them.`;
  if (suspects.some(({ piece }) => piece !== null)) {
    return section(title, explained, h("div", { class: "nofe-examples nofe-suspects" }, suspects.map((each) => h("figure", {
      title: `${each.file || `row ${each.row}`}: label ${each.label} ${percent(each.p_label)}, ${each.suggested} ${percent(each.p_suggested)}`,
    }, images.piece(each.piece, 72),
    h("figcaption", {}, h("s", {}, each.label), h("br"), `${each.suggested} ${percent(each.p_suggested)}`)))));
  }
  return section(title, explained, h("div", { class: "nofe-scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["row", "label", "", "suggested", ""].map((name) => h("th", {}, name)))),
    h("tbody", {}, suspects.map((each) => h("tr", {}, [
      String(each.row), each.label, percent(each.p_label), each.suggested, percent(each.p_suggested),
    ].map((text) => h("td", {}, text))))))));
}

function drawReliability(found) {
  const title = "Can its confidence be believed?";
  if (found.reliability === null) return section(title, "This needs probabilities: predicted classes alone do not say how sure the classifier is.");
  const bins = found.reliability;
  const W = 340, H = 260, L = 52, R = 18, B = 70, T = 8; // axes from L to W - R, from T to H - B
  const x = (share) => L + (W - L - R) * share, y = (share) => H - B - (H - B - T) * share;
  const most = Math.max(...bins.map(({ images }) => images));
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const bars = bins.filter(({ images }) => images).map(({ low, high, images, confidence, accuracy }) => [
    s("rect", { x: x(low) + 1, width: x(high) - x(low) - 2, y: y(accuracy), height: y(0) - y(accuracy), class: "nofe-accuracy" },
      s("title", {}, `${images} images, confidence ${percent(confidence)}, accuracy ${percent(accuracy)}`)),
    s("rect", { x: x(low) + 1, width: x(high) - x(low) - 2, y: H - 34 - 28 * images / most, height: 28 * images / most, class: "nofe-many" },
      s("title", {}, `${images} images`)),
  ]);
  const picture = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "nofe-svg-text nofe-reliability", role: "img", "aria-label": "Accuracy against confidence" },
    ticks.map((tick) => [
      s("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "nofe-grid" }),
      s("text", { x: L - 5, y: y(tick) + 3, "text-anchor": "end" }, percent(tick)),
      s("text", { x: x(tick), y: H - 20, "text-anchor": "middle" }, percent(tick)),
    ]),
    bars,
    s("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "nofe-cursor" }),
    s("text", { x: x(0.5), y: H - 5, "text-anchor": "middle" }, "confidence"),
    s("text", { x: 10, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 10 ${y(0.5)})` }, "accuracy"),
    s("text", { x: L - 5, y: H - 42, "text-anchor": "end" }, "images"));
  const gap = bins.reduce((sum, { images, confidence, accuracy }) => sum + images * (confidence - accuracy), 0);
  const words = Math.abs(found.calibration_error) < 0.01 ? "" : gap > 0 ? " It is too sure on the whole." : " It is not sure enough on the whole.";
  return section(title,
    `Bars below the dashed line: more sure than right. Calibration error ${(100 * found.calibration_error).toFixed(1)}%.${words}`, picture);
}

export default { render };
