// How the partition formed: an alluvial picture that is uncovered update by update.

const WIDE = 640, TALL = 460, BESIDE = 120, BAR = 7;

function render({ model, el }) {
  const root = frame(el, "evolution", model);
  const names = () => model.get("class_names");
  const last = () => model.get("last_update");
  const { specialties, places, blocks, height } = model.get("drawing");
  const x = (update) => BESIDE + BAR / 2 + (last() ? (WIDE - BESIDE - BAR) * update / last() : 0);
  const y = (row) => 4 + (TALL - 8) * row / height;
  const slider = h("input", {
    type: "range", min: 0, max: last(), step: 1, "aria-label": "update of the map",
    oninput: async () => { if (!(await send(model, { update: Number(slider.value) }))) slider.value = model.get("update"); },
  });
  const play = h("button", { class: "nofe-tool", type: "button", onclick: () => (timer ? stop() : start()) });
  const said = h("output", { class: "nofe-update" });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶ play"; };
  const start = () => {
    if (model.get("update") >= last()) send(model, { update: 0 });
    play.textContent = "❚❚ pause";
    timer = setInterval(() => {
      if (model.get("update") >= last()) return stop();
      send(model, { update: model.get("update") + 1 }).then((done) => { if (!done) stop(); });
    }, 700);
  };
  stop();

  const picture = s("svg", {
    viewBox: `0 0 ${WIDE} ${TALL}`, class: "nofe-alluvial", role: "img",
    "aria-label": "The specialty of each class, from the random start to the final map.",
  });
  const pitch = (TALL - 8) / height;
  const lines = s("g", { fill: "none", "stroke-width": Math.min(Math.max(0.7 * pitch, 0.6), 6) });
  const colours = specialties.map((each) => each.colour);
  const final = places.at(-1).of;
  for (let c = 0; c < names().length; c++) {
    const way = places.map(({ row }, update) => [x(update), y(row[c])]);
    const path = s("path", {
      d: way.map(([px, py], n) => {
        if (n === 0) return `M${px},${py}`;
        const [qx, qy] = way[n - 1], half = (px - qx) / 2;
        return `C${qx + half},${qy} ${px - half},${py} ${px},${py}`;
      }).join(""),
      stroke: colours[final[c]], class: "nofe-way", "data-label": c,
      onclick: () => send(model, { label: model.get("label") === c ? -1 : c }),
    }, s("title", {}, `${names()[c]}: ${places.map(({ of }) => specialties[of[c]].short).join(" → ")}`));
    lines.append(path);
  }
  const bars = s("g", {}, blocks.map(({ update, k, first, size }) => s("rect", {
    x: x(update) - BAR / 2, width: BAR, y: y(first - 0.5), height: size * pitch, fill: colours[k],
  })));
  const labels = s("g", { class: "nofe-svg-text", "text-anchor": "end" }, blocks.filter((block) => block.update === 0)
    .map(({ k, first, size }) => s("text", { x: BESIDE - 6, y: y(first + size / 2 - 0.5), "dominant-baseline": "middle" },
      short(specialties[k].name, 17),
      s("title", {}, specialties[k].name))));
  const curtain = s("rect", { class: "nofe-curtain", y: 0, height: TALL });
  const cursor = s("line", { class: "nofe-cursor", y1: 0, y2: TALL });
  picture.append(lines, bars, labels, curtain, cursor);

  const objective = h("div", { class: "nofe-objective" });
  const moved = h("div", {});
  const unsettled = h("div", {});
  root.append(
    h("div", { class: "nofe-toolbar" }, play, slider, said,
      menu(model, "label", "Follow a class", [[-1, "none"], ...names().map((name, c) => [c, name])], true)),
    h("div", { class: "nofe-columns" }, h("div", {}, picture), h("aside", { class: "nofe-detail" }, objective, moved, unsettled)));
  const words = spoken(model);
  root.append(words);

  const redraw = (box, ...children) => { // a chip that has the focus keeps it
    const held = box.contains(document.activeElement) && document.activeElement.dataset.label;
    box.replaceChildren(...children);
    if (held) box.querySelector(`[data-label="${held}"]`)?.focus();
  };
  const chips = (labels) => h("p", { class: "nofe-chips" }, labels.map((c) => h("button", {
    class: "nofe-tool", type: "button", "data-label": c, style: { "border-left": `5px solid ${colours[final[c]]}` },
    "aria-pressed": c === model.get("label"), onclick: () => send(model, { label: c }),
  }, names()[c])));
  const drawObjective = () => {
    const rows = model.get("objectives"), now = model.get("update");
    if (!rows.length) return objective.replaceChildren(h("p", {}, "The map was never updated."));
    const W = 300, H = 130, L = 40, B = 22;
    const values = rows.flatMap((row) => [row.before, row.after]);
    const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.12 || 0.05;
    const px = (update) => L + (W - L - 8) * (last() > 1 ? (update - 1) / (last() - 1) : 0.5);
    const py = (value) => H - B - (H - B - 6) * (value - low + room) / (high - low + 2 * room);
    objective.replaceChildren(h("h5", {}, "objective: share that goes to its own specialty"),
      s("svg", { viewBox: `0 0 ${W} ${H}`, class: "nofe-svg-text", role: "img", "aria-label": "objective before and after each update" },
        [low, high].map((value) => s("text", { x: L - 5, y: py(value), "text-anchor": "end", "dominant-baseline": "middle" }, percent(value))),
        s("line", { x1: px(Math.max(now, 1)), x2: px(Math.max(now, 1)), y1: 0, y2: H - B, class: "nofe-cursor", visibility: now ? "visible" : "hidden" }),
        rows.map((row) => s("g", { opacity: row.update <= now ? 1 : 0.25 },
          s("line", { x1: px(row.update), x2: px(row.update), y1: py(row.before), y2: py(row.after), stroke: "currentColor" }),
          s("circle", { cx: px(row.update), cy: py(row.before), r: 3.2, class: "nofe-hollow" }),
          s("circle", { cx: px(row.update), cy: py(row.after), r: 3.2, fill: "currentColor" }))),
        s("text", { x: (L + W) / 2, y: H - 5, "text-anchor": "middle" }, "update (○ before, ● after it)")));
  };
  const drawUpdate = () => {
    const now = model.get("update"), found = model.get("step");
    slider.value = now;
    said.textContent = now === 0 ? "random start" : `update ${now} of ${last()}`;
    const at = x(now) + BAR / 2 + 1;
    curtain.setAttribute("x", at);
    curtain.setAttribute("width", Math.max(WIDE - at, 0));
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(now));
    drawObjective();
    redraw(moved, h("h5", {}, found.title), chips(found.moved),
      found.more ? h("p", { class: "nofe-note" }, found.more) : "");
  };
  const drawLabel = () => {
    const label = model.get("label");
    picture.classList.toggle("nofe-following", label >= 0);
    for (const path of lines.children) {
      const own = Number(path.dataset.label) === label;
      path.classList.toggle("nofe-followed", own);
    }
    lines.querySelector(".nofe-followed")?.parentNode.append(lines.querySelector(".nofe-followed"));
    const { labels: list, title } = model.get("never_settled");
    redraw(unsettled, h("h5", {}, title), chips(list));
  };
  const stops = [follow(model, ["step", "label"], drawUpdate), follow(model, ["label", "never_settled"], drawLabel), words.stop];
  return () => { stop(); stops.forEach((end) => end()); };
}

export default { render };
