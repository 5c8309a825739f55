// The confusion matrix, as large as its place allows: names where they can be read, zoom, blocks that
// open and close.  The confusion explorer draws it, and the page of `nofe_lab.look`.

const READABLE = 9; // pixels of a row whose name can be read
const COLOURS = ["#8a5cd6", "#d9730d"]; // of differences above and below 0, in both themes

/** root: what is as wide as the place.  names: of the classes.  chosen(row, column): told of a cell that is taken; null: none can be.
 * show({order, groups: [{name, size, colour}], tables: [[labels, answers, counts], ...], networks, scale}):
 * draws these counts (with two tables their difference), blocks in groups, if there are any. */
function confusionMatrix(root, names, chosen) {
  const canvas = h("canvas", {
    tabindex: 0, role: "application",
    "aria-label": `Confusion matrix of ${names.length} classes. Arrow keys move between cells, with Shift ten at once; ` +
      `${chosen ? "Enter chooses one, " : ""}+ zooms into its block, - out again, C closes and opens the block of its row.`,
  });
  const cross = h("div", { class: "nofe-cross", hidden: true });
  const tip = h("div", { class: "nofe-tip", hidden: true, role: "status" });
  const beside = h("div", { class: "nofe-row-names" }), below = h("div", { class: "nofe-column-names" });
  const blocks = h("div", { class: "nofe-blocks" });
  const note = h("p", { class: "nofe-note" });
  const element = h("div", { class: "nofe-matrix" },
    h("span", { class: "nofe-axis nofe-upright" }, "class"), beside, h("div", { class: "nofe-canvas" }, canvas, cross, tip), blocks,
    below, h("span", { class: "nofe-axis" }, "predicted class"), note);
  const tool = (text, title, onclick) => h("button", { class: "nofe-tool", type: "button", title, onclick }, text);
  const nearer = tool("Zoom in", "+, or a double click: into the block of the marked cell", () => zoom());
  const farther = tool("Zoom out", "-", () => whole());
  const shut = tool("", "C closes or opens one block, as does a click on its name", () => {
    closed = new Set(closed.size ? [] : state.groups.keys());
    count();
    look(view);
  });
  const pen = canvas.getContext("2d");

  let state = null, closed = new Set(), view = { top: 0, left: 0, n: 1 };
  // a row and a column is a class, or a closed block
  let items = [], ranges = [], cells = new Map(), totals = [], top = 0, marked = [0, 0], cursor = [0, 0], side = 0, pointed = null;
  const place = new Int32Array(names.length);
  const C = () => items.length;
  const isRight = (i, j) => i === j && items[i].classes.length === 1;

  /** Count the cells of what is open and closed; all of them come into view. */
  const count = () => {
    const { order, groups, tables, scale } = state;
    items = [];
    ranges = [];
    let first = 0;
    for (const [k, { name, size }] of (groups.length ? groups : [{ size: order.length }]).entries()) {
      const classes = order.slice(first, first += size);
      ranges.push([items.length, closed.has(k) ? 1 : size]);
      items.push(...(closed.has(k) ? [{ name, classes, k }] : classes.map((c) => ({ name: names[c], classes: [c], k }))));
    }
    items.forEach(({ classes }, i) => classes.forEach((c) => { place[c] = i; }));
    cells = new Map();
    totals = tables.map(() => [new Float64Array(C()), new Float64Array(C())]);
    tables.forEach(([labels, answers, counts], t) => counts.forEach((n, at) => {
      const i = place[labels[at]], j = place[answers[at]];
      totals[t][0][i] += n;
      totals[t][1][j] += n;
      if (labels[at] === answers[at] && !isRight(i, j)) return; // a closed block counts its errors alone
      const key = i * C() + j;
      if (!cells.has(key)) cells.set(key, { n: tables.map(() => 0), most: 0 });
      const cell = cells.get(key);
      cell.n[t] += n;
      if (n > cell.most) Object.assign(cell, { most: n, row: labels[at], column: answers[at] });
    }));
    const of = { row: (t, i) => totals[t][0][i], column: (t, _, j) => totals[t][1][j], count: () => 1 }[scale];
    const sizes = [];
    for (const [key, cell] of cells) {
      const i = Math.floor(key / C()), j = key % C();
      const [one, two] = cell.n.map((n, t) => n / Math.max(of(t, i, j), 1));
      cell.value = isRight(i, j) ? 0 : one - (two ?? 0);
      if (cell.value) sizes.push(Math.abs(cell.value));
    }
    top = Float64Array.from(sizes).sort()[Math.floor(0.995 * (sizes.length - 1))] ?? 0;
    view = { top: 0, left: 0, n: C() };
  };
  const strength = (value) => (value ? Math.max(Math.sqrt(Math.min(Math.abs(value) / top, 1)), 0.06) : 0);

  /** What is counted in a cell, in words. */
  const phrase = ([i, j]) => {
    const cell = cells.get(i * C() + j);
    const said = state.tables.map((_, t) => {
      const n = cell?.n[t] ?? 0, byAnswer = state.scale === "column", all = totals[t][byAnswer ? 1 : 0][byAnswer ? j : i];
      const errors = i === j && !isRight(i, j) ? " errors inside," : "";
      const share = all ? ` (${(100 * n / all).toFixed(1)}%)` : "";
      return `${state.tables.length > 1 ? `${state.networks[t]} ` : ""}${n}${errors} of ${all} ${byAnswer ? "answers" : "images"}${share}`;
    });
    const closedHere = [i, j].some((x) => items[x].classes.length > 1);
    const most = closedHere && cell?.most ? `; most: ${names[cell.row]} → ${names[cell.column]}` : "";
    return `${items[i].name} → ${items[j].name}: ${said.join(", ")}${most}`;
  };
  const describe = () => {
    const what = { row: "share of a class's images", column: "share of the answers with a class", count: "number of images" }[state.scale];
    const amount = Number((top * (state.scale === "count" ? 1 : 100)).toPrecision(2));
    const unit = state.scale === "count" ? " images" : state.tables.length > 1 ? " points" : "%";
    const [more, less] = state.networks ?? [];
    const said = [
      state.tables.length > 1
        ? top ? `Purple: a larger ${what} with ${more} than with ${less}, orange: a smaller one` : "No difference"
        : top ? `The stronger, the larger the ${what}` : "No errors",
      top ? `full strength at ${amount}${unit} or more` : "",
      "a thin line marks right answers, which are off the scale",
      closed.size ? "where a closed block meets itself, its errors inside are counted" : "",
    ];
    note.textContent = `${said.filter(Boolean).join("; ")}.`;
  };

  const whole = () => look({ top: 0, left: 0, n: C() });
  const look = ({ top: y, left, n }) => {
    const within = (x) => Math.max(Math.min(x, C() - n), 0);
    view = { top: within(y), left: within(left), n };
    cursor = marked.map((c) => place[c]);
    nearer.setAttribute("aria-disabled", n <= Math.min(4, C()) && !closed.size);
    farther.setAttribute("aria-disabled", n === C());
    shut.textContent = closed.size ? "Open all blocks" : "Close all blocks";
    shut.setAttribute("aria-disabled", !state.groups.length);
    draw();
  };
  /** Into the blocks of the marked cell, which opens them; inside of them, and without any, by halves. */
  const zoom = () => {
    const wanted = cursor.map((x) => items[x].k);
    if (wanted.filter((k) => closed.delete(k)).length) count();
    const [rows, columns] = wanted.map((k) => ranges[k]);
    const n = Math.max(rows[1], columns[1], Math.min(4, C()));
    if (n < view.n) return look({ top: rows[0], left: columns[0], n });
    const half = Math.max(Math.ceil(view.n / 2), Math.min(4, C()));
    look({ top: cursor[0] - (half >> 1), left: cursor[1] - (half >> 1), n: half });
  };
  const toggle = (k) => {
    if (!state.groups.length) return;
    if (!closed.delete(k)) closed.add(k);
    count();
    look(view);
  };

  const draw = () => {
    const room = element.parentElement?.clientWidth;
    if (!room || !state) return;
    const { top: y, left, n } = view, ratio = window.devicePixelRatio || 1;
    const font = getComputedStyle(element), ink = font.color;
    const cap = (share) => Math.min(share * room, 120);
    const widest = (list, size, most) => {
      pen.font = `${size}px ${font.fontFamily}`;
      return Math.ceil(Math.min(Math.max(0, ...list.map((name) => pen.measureText(name).width)), most));
    };
    const rows = items.slice(y, y + n), columns = items.slice(left, left + n);
    const colours = state.groups.length ? 14 + widest(state.groups.map(({ name }) => `− ${name}`), 11, cap(0.18)) : 0;
    // beside the images where both have room; not higher than the window
    const across = (room >= 760 ? room - 232 : room) - 22 - colours;
    const high = Math.max(window.innerHeight - 190, 260);
    const written = n * READABLE <= high ? [...rows, ...columns].map(({ name }) => name) : [];
    const wide = widest(written, 11, cap(0.13)) + 4;
    side = Math.min(across, high) - wide;
    const named = side / n >= READABLE;
    if (!named) side = Math.min(across, high);
    let pixels = Math.round(side * ratio);
    if (pixels > 4 * n) pixels -= pixels % n; // no row is thicker than another
    side = pixels / ratio;
    const pitch = side / n, size = Math.min(pitch - 0.5, 11);
    canvas.width = canvas.height = pixels;
    canvas.style.width = canvas.style.height = `${side}px`;
    pen.font = `${size}px ${font.fontFamily}`;
    element.style.setProperty("--pitch", `${pitch}px`);
    element.style.setProperty("--size", `${size}px`);
    for (const [box, list] of [[beside, rows], [below, columns]]) {
      box.replaceChildren(...(named ? list.map(({ name }) => h("span", { title: name }, fitted(pen, name, wide - 4))) : []));
    }
    const edge = (x) => Math.round(x * pixels / n);
    const box = (i, j) => [edge(j - left), edge(i - y), Math.max(edge(j - left + 1) - edge(j - left), 1), Math.max(edge(i - y + 1) - edge(i - y), 1)];
    const each = (paint) => state.groups.forEach(({ colour }, k) => {
      const [first, many] = ranges[k], from = [edge(first - left), edge(first - y)], long = edge(many);
      paint(colour, ...from, long, long);
    });
    pen.globalAlpha = 0.12;
    each((colour, ...rest) => { pen.fillStyle = colour; pen.fillRect(...rest); });
    pen.globalAlpha = 0.4;
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = ratio;
    for (let i = Math.max(y, left); i < Math.min(y, left) + n; i++) {
      const [x, at, ...size] = box(i, i);
      if (isRight(i, i)) pen.stroke(new Path2D(`M${x},${at}l${size}`));
    }
    for (const [key, { value }] of cells) {
      const i = Math.floor(key / C()), j = key % C();
      if (!value || i < y || i >= y + n || j < left || j >= left + n) continue;
      pen.globalAlpha = strength(value);
      if (state.tables.length > 1) pen.fillStyle = COLOURS[value > 0 ? 0 : 1];
      pen.fillRect(...box(i, j));
    }
    pen.globalAlpha = 1;
    pen.lineWidth = 1.5 * ratio;
    each((colour, x, at, ...long) => { pen.strokeStyle = colour; pen.strokeRect(x + ratio, at + ratio, ...long.map((l) => Math.max(l - 2 * ratio, 1))); });
    blocks.replaceChildren(...state.groups.map(({ name, colour }, k) => {
      const from = Math.max(ranges[k][0], y), tall = (Math.min(ranges[k][0] + ranges[k][1], y + n) - from) * pitch;
      return tall <= 0 ? "" : h("button", {
        type: "button", tabindex: -1, title: name, "aria-expanded": String(!closed.has(k)), onclick: () => toggle(k),
        style: { height: `${tall}px`, "border-color": colour, width: `${colours}px` },
      }, tall >= 11 ? (pen.font = `11px ${font.fontFamily}`, fitted(pen, `${closed.has(k) ? "+" : "−"} ${name}`, colours - 12)) : "");
    }));
    describe();
    showCursor();
    if (!tip.hidden) explain();
  };
  const showCursor = () => {
    const [i, j] = [cursor[0] - view.top, cursor[1] - view.left];
    const pitch = side / view.n, grow = Math.max(pitch, 9);
    cross.hidden = Math.min(i, j) < 0 || Math.max(i, j) >= view.n;
    Object.assign(cross.style, {
      left: `${(j + 0.5) * pitch - grow / 2}px`, top: `${(i + 0.5) * pitch - grow / 2}px`, width: `${grow}px`, height: `${grow}px`,
    });
  };
  /** The cell under a point; of several in one pixel, the strongest. */
  const under = (point) => {
    const step = view.n / side;
    const near = point.map((at, d) => {
      const from = Math.min(Math.max(Math.floor(at * step), 0), view.n - 1), to = Math.max(Math.min(Math.floor((at + 1) * step), view.n), from + 1);
      return Array.from({ length: step > 1 ? to - from : 1 }, (_, x) => from + x + (d ? view.top : view.left));
    });
    const all = near[1].flatMap((i) => near[0].map((j) => [i, j]));
    const weight = ([i, j]) => Math.abs(cells.get(i * C() + j)?.value ?? 0);
    return all.reduce((best, cell) => (weight(cell) > weight(best) ? cell : best));
  };
  /** Say what is under the pointer, or under the cursor that keys have moved. */
  const explain = () => {
    const [x, y] = pointed ? position(pointed) : [cursor[1] - view.left, cursor[0] - view.top].map((at) => (at + 0.5) * side / view.n);
    tip.textContent = phrase(pointed ? under([x, y]) : cursor);
    tip.hidden = false;
    Object.assign(tip.style, {
      maxWidth: `${Math.max(side / 2 - 14, 120)}px`,
      left: x > side / 2 ? "auto" : `${x + 14}px`, right: x > side / 2 ? `${side - x + 14}px` : "auto",
      top: y > side / 2 ? "auto" : `${y + 14}px`, bottom: y > side / 2 ? `${side - y + 14}px` : "auto",
    });
  };
  const mark = (cell) => {
    cursor = cell;
    const { row, column } = classesOf(cell);
    marked = [row, column];
    showCursor();
  };
  /** The classes of a cell: of a closed block's those that are confused most. */
  const classesOf = ([i, j]) => {
    const cell = cells.get(i * C() + j);
    return cell?.most ? cell : { row: items[i].classes[0], column: items[j].classes[0] };
  };
  const take = (cell) => { mark(cell); chosen?.(...marked); };
  const position = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("mousemove", (event) => {
    pointed = event;
    explain();
  });
  const hide = () => { tip.hidden = true; pointed = null; };
  canvas.addEventListener("mouseleave", hide);
  canvas.addEventListener("blur", hide);
  canvas.addEventListener("click", (event) => take(under(position(event))));
  canvas.addEventListener("dblclick", (event) => { mark(under(position(event))); zoom(); });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const act = { Enter: () => take(cursor), " ": () => take(cursor), "+": zoom, "=": zoom, "-": whole, Escape: whole, c: () => toggle(items[cursor[0]].k) }[event.key];
    if (!step && !act) return;
    event.preventDefault();
    if (step) mark(cursor.map((x, d) => Math.min(Math.max(x + step[d] * (event.shiftKey ? 10 : 1), 0), C() - 1)));
    act?.();
    reach();
    pointed = null;
    explain();
  });
  /** Move a zoomed view until it holds the cursor. */
  const reach = () => {
    const { top: y, left, n } = view;
    const to = (x, from) => Math.max(Math.min(x, from), x - n + 1);
    const next = { top: to(cursor[0], y), left: to(cursor[1], left), n };
    if (next.top !== y || next.left !== left) look(next);
  };
  return {
    element, tools: [nearer, farther, shut],
    show(next) {
      const shape = ({ order, groups }) => String([order, groups.map(({ size }) => size)]);
      const old = state, { top: y, left, n } = view;
      state = next;
      const same = old && shape(old) === shape(next);
      if (!same) closed = new Set();
      count();
      look(same ? { top: y, left, n } : view);
    },
    choose(row, column) {
      marked = [row, column];
      cursor = marked.map((c) => place[c]);
      reach();
      showCursor();
    },
    stop: redrawn(root, draw),
  };
}
