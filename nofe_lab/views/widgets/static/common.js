// What all widgets share.  Names of classes are other people's text: they enter the page as text
// alone (textContent, title, value), never as HTML.

const SVG = "http://www.w3.org/2000/svg";

// JupyterLab takes keys for its shortcuts unless the focused element itself asks it not to
const FOCUSABLE = new Set(["button", "canvas", "input", "select"]);

/** An element with attributes, listeners (onclick: ...), and children (elements or texts). */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  if (FOCUSABLE.has(element.localName) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** The frame of a widget, and the link to its kernel. */
function frame(el, name, model) {
  const notice = h("p", { class: "nofe-kernel", role: "alert", hidden: true });
  const root = h("div", { class: `nofe nofe-${name}` }, notice);
  el.replaceChildren(root);
  links.set(model, link(model, root, notice));
  return root;
}

const PATIENCE = 1500; // milliseconds; a kernel at rest answers within a few
const links = new WeakMap();

/** Whether the kernel answers.  `ask` resolves to true once it does; to false, with a notice, if it
 * does not, and then nothing may be done: it would be obeyed when the reader has long forgotten it.
 * While the kernel has never answered, the widget is a dead picture of saved state; its style sheet
 * shows the still picture below it instead. */
function link(model, root, notice) {
  const waiting = new Map();
  let sent = 0;
  const alive = () => {
    root.classList.add("nofe-live");
    notice.hidden = true;
  };
  const heard = (message) => {
    if (message?.pong === undefined) return;
    alive();
    waiting.get(message.pong)?.(true);
  };
  model.on("msg:custom", heard);
  model.on("change:words", alive); // the kernel alone changes them
  const kernel = model.widget_manager?.kernel;
  let forgotten = false;
  kernel?.statusChanged?.connect?.((_, status) => {
    forgotten ||= ["restarting", "autorestarting", "terminating", "dead"].includes(status);
  });
  const say = () => {
    notice.textContent = forgotten
      ? "The kernel was started anew, or is gone: run the cell again. Nothing is done here."
      : kernel?.status === "busy"
        ? "The kernel is busy: nothing is done here until it is free. Try again then."
        : "The kernel does not answer, it is busy or gone: nothing is done here. Try again.";
    notice.hidden = false;
  };
  const ask = (quietly = false) => new Promise((resolve) => {
    const token = ++sent;
    const done = (answered) => {
      clearTimeout(timer);
      waiting.delete(token);
      resolve(answered);
    };
    const timer = setTimeout(() => {
      if (!quietly) say();
      done(false);
    }, PATIENCE);
    waiting.set(token, done);
    try {
      model.send({ do: "ping", token });
    } catch {
      if (!quietly) say();
      done(false);
    }
  });
  ask(true);
  return { ask };
}

/** Set traits and send them to the kernel, if it answers; resolves to whether it does. */
async function send(model, traits) {
  if (!(await links.get(model).ask())) return false;
  for (const [name, value] of Object.entries(traits)) model.set(name, value);
  model.save_changes();
  return true;
}

/** Tell the kernel something, if it answers; resolves to whether it does. */
async function tell(model, what, buffers = []) {
  if (!(await links.get(model).ask())) return false;
  model.send(what, undefined, buffers);
  return true;
}

/** A long name cut in its middle: names of a series differ in their ends. */
function short(name, most) {
  const letters = [...name];
  if (letters.length <= most) return name;
  const tail = Math.floor((most - 1) / 2);
  return `${letters.slice(0, most - 1 - tail).join("")}…${letters.slice(-tail).join("")}`;
}

/** A name cut in its middle until it is at most so many pixels wide in the pen's font. */
function fitted(pen, name, width) {
  let text = name;
  for (let most = [...name].length - 1; most > 2 && pen.measureText(text).width > width; most--) text = short(name, most);
  return text;
}

/** Call `draw` whenever the root's width, the window or the theme changes; returns what ends that. */
function redrawn(root, draw) {
  let width = 0;
  const sized = new ResizeObserver(() => {
    if (Math.abs(root.clientWidth - width) > 1) { width = root.clientWidth; draw(); }
  });
  sized.observe(root);
  const theme = new MutationObserver(() => draw()); // JupyterLab's
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const again = () => draw();
  dark.addEventListener("change", again);
  window.addEventListener("resize", again);
  return () => {
    sized.disconnect();
    theme.disconnect();
    dark.removeEventListener("change", again);
    window.removeEventListener("resize", again);
  };
}

/** Call `draw` now and whenever one of the traits changes; returns what ends that. */
function follow(model, traits, draw) {
  const event = traits.map((name) => `change:${name}`).join(" ");
  model.on(event, draw);
  draw();
  return () => model.off(event, draw);
}

/** A labelled menu bound to a trait; options: [[value, text], ...]. */
function menu(model, trait, label, options, number = false) {
  const select = h("select", {
    "aria-label": label,
    onchange: async () => {
      const done = await send(model, { [trait]: number ? Number(select.value) : select.value });
      if (!done) select.value = String(model.get(trait));
    },
  });
  select.replaceChildren(...options.map(([value, text]) => h("option", { value, title: text }, short(text, 40))));
  select.value = String(model.get(trait));
  model.on(`change:${trait}`, () => { select.value = String(model.get(trait)); });
  return h("label", { class: "nofe-menu" }, h("span", {}, label), select);
}

/** Many small images, of one: `piece(i, size)` is the i-th. */
function sprites() {
  let url = null, sheet = null;
  return {
    load(next) {
      if (url) URL.revokeObjectURL(url);
      sheet = next;
      url = next && next.data ? URL.createObjectURL(new Blob([next.data], { type: "image/jpeg" })) : null;
    },
    piece(i, size) {
      const image = h("span", { class: "nofe-image", style: { width: `${size}px`, height: `${size}px` } });
      if (url) {
        image.style.backgroundImage = `url(${url})`;
        image.style.backgroundSize = `${sheet.columns * size}px ${sheet.rows * size}px`;
        image.style.backgroundPosition =
          `-${(i % sheet.columns) * size}px -${Math.floor(i / sheet.columns) * size}px`;
      }
      return image;
    },
    free() { if (url) URL.revokeObjectURL(url); },
  };
}

const percent = (share) => (share === null || Number.isNaN(share) ? "–" : `${Math.round(100 * share)}%`);

/** Horizontal bars: rows of {name, share (of the longest), text, colour, hollow, strong}. */
function bars(rows) {
  return h("div", { class: "nofe-bars" }, rows.map((row) =>
    [h("span", { class: row.strong ? "nofe-strong" : "", title: row.name }, short(row.name, 22)),
     h("span", { class: "nofe-track" },
       h("span", { class: "nofe-bar", style: {
         width: `${Math.max(100 * row.share, 0.5)}%`,
         background: row.hollow ? "transparent" : row.colour,
         "border-color": row.colour,
       } }),
       h("span", { class: "nofe-bar-text" }, row.text))]));
}

/** How far a training is.  idle(step, steps): what stands for its title between stages. */
function howFar(model, idle) {
  const title = h("strong", {}), bar = h("progress", { "aria-label": "steps" }), said = h("output", {});
  const draw = () => {
    const [step, steps] = model.get("progress");
    title.textContent = model.get("stage") || idle(step, steps);
    bar.max = Math.max(steps, 1);
    bar.value = step;
    said.textContent = steps ? `step ${step.toLocaleString()} of ${steps.toLocaleString()}` : "";
  };
  return { parts: [title, bar, said], draw };
}

/** A table of {columns, rows: [{name, values}]}. */
function table({ columns, rows }) {
  return h("table", { class: "nofe-table" },
    h("thead", {}, h("tr", {}, h("th", {}, ""), columns.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.name), row.values.map((value) => h("td", {}, value))))));
}

/** Words that a screen reader speaks when they change. */
function spoken(model) {
  const words = h("p", { class: "nofe-words", role: "status", "aria-live": "polite" });
  const stop = follow(model, ["words"], () => { words.textContent = model.get("words"); });
  return Object.assign(words, { stop });
}

/** Arrow keys among buttons that lie in groups: left, right in a group, up, down between groups.
 * One button alone is reached by Tab. */
function roam(root, groups) {
  root.addEventListener("keydown", (event) => {
    const lists = groups().map((group) => [...group.querySelectorAll("button.nofe-class")]).filter((list) => list.length);
    const g = lists.findIndex((list) => list.includes(document.activeElement));
    if (g < 0 || event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    const i = lists[g].indexOf(document.activeElement);
    const to = {
      ArrowRight: () => lists[g][i + 1] || (lists[g + 1] || [])[0],
      ArrowLeft: () => lists[g][i - 1] || (lists[g - 1] || []).at(-1),
      ArrowDown: () => (lists[g + 1] || [])[Math.min(i, (lists[g + 1] || []).length - 1)],
      ArrowUp: () => (lists[g - 1] || [])[Math.min(i, (lists[g - 1] || []).length - 1)],
      Home: () => lists[g][0],
      End: () => lists[g].at(-1),
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const next = to();
    if (next) {
      lists.flat().forEach((button) => { button.tabIndex = button === next ? 0 : -1; });
      next.focus();
    }
  });
}
