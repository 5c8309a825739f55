// The page of nofe_lab.look: drawn in a notebook by the widget, and in a saved page by itself.

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
  const { names, partitions, counts } = found;
  let at = Math.max(partitions.findIndex(({ K }) => K === found.K), 0);
  const matrix = confusionMatrix(main, names, null);
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

  const show = () => {
    const { K, of, colours, sentence: words, line: code } = partitions[at];
    slider.value = at;
    said.textContent = `K = ${K}`;
    slider.setAttribute("aria-valuetext", `${K} groups`);
    sentence.textContent = words.replaceAll("->", "→");
    crossed.textContent = partitions[at].crossed.replace("->", "→");
    line.textContent = code;
    const members = Array.from({ length: K }, () => []);
    found.order.forEach((c) => members[of[c]].push(c));
    const inside = new Array(K).fill(0), all = new Array(K).fill(0);
    counts[0].forEach((label, i) => {
      const [, answer, n] = counts.map((each) => each[i]);
      if (label === answer) return;
      all[of[label]] += n;
      if (of[label] === of[answer]) inside[of[label]] += n;
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
    const blocks = by.value === "groups" ? parts.map(({ k, part, colour }) => ({ name: `group ${k + 1}`, size: part.length, colour })) : [];
    matrix.show({ order: blocks.length ? members.flat() : found.order, groups: blocks, tables: [counts], scale: "row" });
  };
  const element = section("What is confused",
    "Rows are labels, columns predictions. Groups of one size are made of the confusions themselves.",
    h("div", { class: "nofe-toolbar" },
      h("label", { class: "nofe-menu" }, h("span", {}, "Groups"), slider, said),
      h("label", { class: "nofe-menu" }, h("span", {}, "Order by"), by), matrix.tools),
    h("div", { class: "nofe-columns" }, matrix.element,
    h("div", { class: "nofe-beside" }, sentence,
      h("p", { class: "nofe-quiet" }, "A ceiling, not a forecast: experts make errors of their own, and these groups were made of these very errors. Groups made of one half of the images, counted on the other: ", crossed, "."),
      groups,
      h("p", {}, "Train experts for these groups (", file, "):"), h("pre", {}, line))));
  main.setK = (K) => {
    const wanted = partitions.findIndex((each) => each.K === K);
    if (wanted >= 0 && wanted !== at) { at = wanted; show(); }
  };
  show();
  return [element, matrix.stop];
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
