// Training as it goes: progress, curves, and the specialties after the last update of the map.

function render({ model, el }) {
  const root = frame(el, "live", model);
  const pictures = sprites();
  const how = howFar(model, (step, steps) => !steps ? (model.get("loaded").length ? "loaded" : "nothing trained yet")
    : step < steps ? "broken off" : "trained");
  const curves = h("div", { class: "nofe-curves" });
  const cardsBox = h("div", { class: "nofe-cards-box" });
  const words = spoken(model);
  root.append(h("div", { class: "nofe-toolbar" }, how.parts), curves, cardsBox, words);

  const drawCurves = () => {
    const histories = Object.entries(model.get("histories"));
    const colours = model.get("colours");
    if (!histories.length) return curves.replaceChildren();
    curves.replaceChildren(...["loss", "accuracy"].map((what) => chart(histories, what, colours)),
      h("p", { class: "nofe-key" }, histories.map(([name], i) =>
        h("span", { style: { "--colour": colours[i % colours.length] } }, name)),
        h("em", {}, "full: training images, dashed: validation images")));
  };
  const drawCards = () => {
    pictures.load(model.get("thumbnails"));
    const moved = model.get("moved");
    cardsBox.replaceChildren(h("div", { class: "nofe-cards" }, model.get("cards").map((specialty) =>
      card(specialty, model.get("class_names"), pictures, {
        each: (button, label) => button.classList.toggle("nofe-changed", moved.includes(label)),
      }))));
  };
  const stops = [
    follow(model, ["progress", "stage", "loaded"], how.draw),
    follow(model, ["histories"], drawCurves),
    follow(model, ["cards", "thumbnails"], drawCards),
    words.stop,
  ];
  return () => { stops.forEach((stop) => stop()); pictures.free(); };
}

function chart(histories, what, colours) {
  const W = 440, H = 190, L = 46, B = 30, T = 8;
  const rows = histories.flatMap(([, history]) => history);
  const last = Math.max(...rows.map((row) => row.epoch), 2);
  const values = rows.flatMap((row) => [row[`train_${what}`], row[`val_${what}`]]).filter((value) => value !== undefined);
  const top = Math.max(...values) * 1.05 || 1;
  const x = (epoch) => L + (W - L - 8) * (epoch - 1) / (last - 1);
  const y = (value) => T + (H - B - T) * (1 - value / top);
  const shown = (value) => (what === "accuracy" ? `${Math.round(100 * value)}%` : value.toFixed(1));
  const line = (history, part, colour) => {
    const points = history.filter((row) => row[`${part}_${what}`] !== undefined)
      .map((row) => [x(row.epoch), y(row[`${part}_${what}`])]);
    return points.length ? [
      s("polyline", { points: points.map((p) => p.join(",")).join(" "), fill: "none", stroke: colour, "stroke-width": 2,
        "stroke-dasharray": part === "val" ? "5 4" : null }),
      points.map(([cx, cy]) => s("circle", { cx, cy, r: 2.5, fill: colour }))] : [];
  };
  return s("svg", { viewBox: `0 0 ${W} ${H}`, class: "nofe-svg-text", role: "img", "aria-label": `${what} over the epochs` },
    [0, top / 2, top].map((value) => [
      s("line", { x1: L, x2: W, y1: y(value), y2: y(value), class: "nofe-grid" }),
      s("text", { x: L - 6, y: y(value), "text-anchor": "end", "dominant-baseline": "middle" }, shown(value))]),
    [1, last].map((epoch) => s("text", { x: x(epoch), y: H - B + 13, "text-anchor": "middle" }, epoch)),
    s("text", { x: (L + W) / 2, y: H - 4, "text-anchor": "middle" }, `${what}, by epoch`),
    histories.map(([, history], i) => ["train", "val"].map((part) => line(history, part, colours[i % colours.length]))));
}

export default { render };
