// A canvas to draw on with mouse, touch or pen, for networks of small images.

const SKETCH_SIDE = 320; // pixels of its longer side

/** shape: [channels, height, width] of the network's images; paper, ink: colours to begin with.
 * drawn(canvas, done, stroked) is called while one draws, and with done = true after a stroke, or
 * when one was taken back or recoloured (stroked = false); canvas is null when nothing is drawn. */
function sketch({ shape: [channels, height, width], paper, ink }, drawn) {
  const scale = SKETCH_SIDE / Math.max(width, height);
  const canvas = h("canvas", {
    width: Math.round(width * scale), height: Math.round(height * scale), tabindex: "0", role: "img",
    "aria-label": "a canvas to draw on with mouse, touch or pen; Control+Z takes the last stroke back",
  });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const hint = h("span", { class: "nofe-hint" }, "draw here");
  const thick = h("input", { type: "range", min: "2", max: "20", value: "8" });
  const colours = [paper, ink].map((value) => h("input", { type: "color", value }));
  const [ground, pen] = colours;
  const named = (text, input) => h("label", { class: "nofe-menu" }, h("span", {}, text), input);
  const tool = (text, onclick) => h("button", { class: "nofe-tool", type: "button", onclick }, text);
  let strokes = [], pointer = null, frame = 0;

  const paint = (done, stroked = false) => {
    cancelAnimationFrame(frame);
    frame = 0;
    context.fillStyle = ground.value;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.lineCap = context.lineJoin = "round";
    for (const { colour, size, points } of strokes) {
      context.strokeStyle = colour;
      context.lineWidth = size;
      context.beginPath();
      context.moveTo(points[0][0] - 0.01, points[0][1]); // a line without length is not drawn
      for (const [x, y] of points) context.lineTo(x, y);
      context.stroke();
    }
    hint.hidden = strokes.length > 0;
    hint.style.color = pen.value;
    undo.disabled = clear.disabled = !strokes.length;
    drawn(strokes.length ? canvas : null, done, stroked);
  };
  const add = (event) => {
    const box = canvas.getBoundingClientRect();
    strokes.at(-1).points.push([(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height]);
    frame ||= requestAnimationFrame(() => paint(false, true));
  };
  const keep = (kept, stroked = false) => { pointer = null; strokes = kept; paint(true, stroked); };
  const back = () => keep(strokes.slice(0, -1));
  const undo = tool("Undo", back), clear = tool("Clear", () => keep([]));
  const finish = (event) => { if (event.pointerId === pointer) keep(strokes, true); };
  const on = {
    pointerdown: (event) => {
      if (event.button || pointer !== null) return;
      pointer = event.pointerId;
      canvas.setPointerCapture(pointer);
      strokes.push({ colour: pen.value, size: thick.value / 100 * SKETCH_SIDE, points: [] });
      add(event);
    },
    pointermove: (event) => { if (event.pointerId === pointer) (event.getCoalescedEvents?.() ?? [event]).forEach(add); },
    pointerup: finish,
    pointercancel: finish,
  };
  for (const [name, listener] of Object.entries(on)) canvas.addEventListener(name, listener);
  colours.forEach((input) => input.addEventListener("change", () => paint(true)));
  const root = h("div", {
    class: "nofe-sketch",
    onkeydown: (event) => {
      if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || !strokes.length) return;
      event.preventDefault();
      event.stopPropagation();
      back();
    },
  }, h("div", { class: "nofe-canvas" }, canvas, hint),
  h("div", { class: "nofe-toolbar" }, undo, clear, named("stroke", thick),
    channels === 3 ? [named("ink", pen), named("paper", ground)] : null));
  paint(true);
  return root;
}
