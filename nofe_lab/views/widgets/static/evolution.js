// How the partition formed: an alluvial picture that is uncovered update by update.

const WIDE = 640, TALL = 460, BESIDE = 120, BAR = 7;
const LONG = 600; // milliseconds of a move

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
    viewBox: `0 0 ${WIDE} ${TALL}`, class: "nofe-alluvial", role: "application", tabindex: 0,
    "aria-label": "The specialty of each class, from the random start to the final map. ← and → move between updates, ↑ and ↓ follow the class above and below.",
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
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `10px ${getComputedStyle(root).fontFamily}`;
  const labels = s("g", { class: "nofe-svg-text", "text-anchor": "end" });
  const letter = () => { // the picture shrinks with its place, its letters do not
    const grow = Math.max(WIDE / (picture.clientWidth || WIDE), 1);
    labels.style.setProperty("--grow", grow);
    labels.replaceChildren(...blocks.filter((block) => block.update === 0).map(({ k, first, size }) =>
      s("text", { x: BESIDE - 6, y: y(first + size / 2 - 0.5), "dominant-baseline": "middle" },
        fitted(pen, specialties[k].name, (BESIDE - 8) / grow), s("title", {}, specialties[k].name))));
  };
  const curtain = s("rect", { class: "nofe-curtain", y: 0, height: TALL });
  const cursor = s("line", { class: "nofe-cursor", y1: 0, y2: TALL });
  const marks = s("g", { class: "nofe-marks" });
  picture.append(lines, bars, labels, curtain, cursor, marks);

  /** Draw the update `t`: between two whole ones, the classes that the later one moves are on their way. */
  const paint = (t) => {
    const n = Math.ceil(t), part = t - n + 1, rise = part * part * (3 - 2 * part);
    const across = n ? x(n - 1) + (x(n) - x(n - 1)) * (1.5 * part * (1 - part) + part ** 3) : x(0); // as the lines run
    curtain.setAttribute("x", across + BAR / 2 + 1);
    curtain.setAttribute("width", Math.max(WIDE - across - BAR / 2 - 1, 0));
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, across);
    if (marks.dataset.update !== String(n)) {
      marks.dataset.update = n;
      marks.replaceChildren(...[...names().keys()].filter((c) => n && places[n].of[c] !== places[n - 1].of[c]).map((c) => s("g", {
        "data-label": c, color: colours[final[c]], class: c === model.get("label") ? "nofe-followed" : "",
      },
        s("circle", { class: "nofe-hollow", cx: x(n - 1), cy: y(places[n - 1].row[c]), r: 3 }),
        s("circle", { fill: "currentColor", r: 3 }))));
    }
    for (const { dataset, lastChild } of marks.children) {
      const [from, to] = [n - 1, n].map((update) => y(places[update].row[dataset.label]));
      lastChild.setAttribute("cx", across);
      lastChild.setAttribute("cy", from + (to - from) * rise);
    }
  };
  let at = model.get("update"), frameAsked = 0;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const move = () => {
    cancelAnimationFrame(frameAsked);
    const from = at, to = model.get("update"), begun = performance.now();
    const go = (now) => {
      const part = still.matches ? 1 : Math.min(Math.max((now - begun) / LONG, 0), 1);
      paint(at = part < 1 ? from + (to - from) * part : to);
      if (part < 1) frameAsked = requestAnimationFrame(go);
    };
    go(from === to ? Infinity : begun);
  };

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
    // before stands left of its update and after right of it: both are seen, however close they are
    const pitch = (W - L - 16) / Math.max(last(), 1), beside = Math.min(pitch / 4, 4), r = Math.min(0.75 * beside, 3.2);
    const px = (update) => L + 4 + pitch * (update - 0.5);
    const py = (value) => H - B - (H - B - 6) * (value - low + room) / (high - low + 2 * room);
    objective.replaceChildren(h("h5", {}, "objective: share that goes to its own specialty"),
      s("svg", { viewBox: `0 0 ${W} ${H}`, class: "nofe-svg-text", role: "img", "aria-label": "objective before and after each update" },
        [low, high].map((value) => s("text", { x: L - 5, y: py(value), "text-anchor": "end", "dominant-baseline": "middle" }, `${(100 * value).toFixed(1)}%`)),
        s("line", { x1: px(Math.max(now, 1)), x2: px(Math.max(now, 1)), y1: 0, y2: H - B, class: "nofe-cursor", visibility: now ? "visible" : "hidden" }),
        rows.map((row) => s("g", { opacity: row.update <= now ? 1 : 0.25 },
          s("line", { x1: px(row.update) - beside, x2: px(row.update) + beside, y1: py(row.before), y2: py(row.after), stroke: "currentColor" }),
          s("circle", { cx: px(row.update) - beside, cy: py(row.before), r, class: "nofe-hollow" }),
          s("circle", { cx: px(row.update) + beside, cy: py(row.after), r, fill: "currentColor" }))),
        s("text", { x: (L + W) / 2, y: H - 5, "text-anchor": "middle" }, "update (○ before, ● after it)")));
  };
  const drawUpdate = () => {
    const now = model.get("update"), found = model.get("step");
    slider.value = now;
    said.textContent = now === 0 ? "random start" : `update ${now} of ${last()}`;
    move();
    drawObjective();
    redraw(moved, h("h5", {}, found.title), chips(found.moved),
      found.more ? h("p", { class: "nofe-note" }, found.more) : "");
  };
  const drawLabel = () => {
    const label = model.get("label");
    picture.classList.toggle("nofe-following", label >= 0);
    for (const each of [...lines.children, ...marks.children]) each.classList.toggle("nofe-followed", Number(each.dataset.label) === label);
    lines.querySelector(".nofe-followed")?.parentNode.append(lines.querySelector(".nofe-followed"));
    const { labels: list, title } = model.get("never_settled");
    redraw(unsettled, h("h5", {}, title), chips(list));
  };
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const now = model.get("update"), { row } = places[now];
    const ranked = [...names().keys()].sort((a, b) => row[a] - row[b]); // as they lie below each other
    const here = ranked.indexOf(model.get("label"));
    const next = (by) => ({ label: ranked.at((Math.max(here, by < 0 ? 0 : -1) + by) % ranked.length) });
    const traits = {
      ArrowLeft: { update: Math.max(now - 1, 0) }, ArrowRight: { update: Math.min(now + 1, last()) }, Home: { update: 0 }, End: { update: last() },
      ArrowUp: next(-1), ArrowDown: next(1), Escape: { label: -1 },
    }[event.key];
    if (!traits) return;
    event.preventDefault();
    send(model, traits);
  });
  const stops = [follow(model, ["step", "label"], drawUpdate), follow(model, ["label", "never_settled"], drawLabel), redrawn(root, letter), words.stop];
  return () => { stop(); cancelAnimationFrame(frameAsked); stops.forEach((end) => end()); };
}

export default { render };
