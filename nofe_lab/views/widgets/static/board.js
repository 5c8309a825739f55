// The specialty board: classes are dragged, or moved by keyboard, from one specialty to another.

function render({ model, el }) {
  const root = frame(el, "board", model);
  const pictures = sprites();
  const names = () => model.get("class_names");
  const chosen = () => model.get("label");
  const tool = (text, what, title) => h("button", { class: "nofe-tool", type: "button", title, onclick: () => tell(model, what) }, text);
  const undo = tool("Undo", { do: "undo" }, "Ctrl+Z"), redo = tool("Redo", { do: "redo" }, "Ctrl+Y");
  const add = h("button", {
    class: "nofe-tool", type: "button", title: "an empty one, behind the others", onclick: () => { adding = true; tell(model, { do: "add" }); },
  }, "Add a specialty");
  const reset = tool("Start again", { do: "reset" }, "back to the specialties that the board began with");
  const moveTo = h("select", {
    "aria-label": "Move the chosen class to",
    onchange: () => { if (moveTo.value !== "") tell(model, { do: "move", label: chosen(), k: Number(moveTo.value) }); moveTo.value = ""; },
  });
  const lock = h("button", { class: "nofe-tool", type: "button", title: "L", onclick: () => tell(model, { do: "lock", label: chosen() }) });
  root.append(h("div", { class: "nofe-toolbar" }, searchBox(model), h("label", { class: "nofe-menu" }, h("span", {}, "Move to"), moveTo), lock, undo, redo, add, reset));
  const judged = h("div", { class: "nofe-judged" });
  const train = h("button", { class: "nofe-tool", type: "button", onclick: () => tell(model, { do: model.get("training") ? "stop" : "train" }) });
  const how = howFar(model, () => "");
  const progress = h("div", { class: "nofe-toolbar" }, how.parts);
  const standing = h("div", { role: "status", "aria-live": "polite" });
  const cardsBox = h("div", { class: "nofe-cards-box" });
  const words = spoken(model);
  const experts = h("section", { hidden: !model.get("can_train") }, h("h5", {}, "Experts for this partition"), train, progress, standing);
  root.append(h("div", { class: "nofe-columns" }, h("div", { class: "nofe-beside" }, judged, experts), cardsBox),
    h("p", { class: "nofe-note" }, "Drag a class to another specialty. By keyboard: arrow keys move between classes, " +
      "Shift with ← or → moves the class, L locks it (a dashed frame), Ctrl+Z takes back."), words);

  let dragged = null, adding = false, shown = 0;
  const locked = (label) => model.get("locked").includes(label);
  const drawCards = () => {
    const list = model.get("cards");
    const held = cardsBox.contains(document.activeElement);
    const scrolled = cardsBox.scrollTop;
    const largest = Math.max(...list.map((specialty) => specialty.members.length), 1);
    cardsBox.replaceChildren(h("div", { class: "nofe-cards" }, list.map((specialty) => {
      const element = card(specialty, names(), pictures, {
        tools: specialty.members.length ? [] : h("button", {
          class: "nofe-tool", type: "button", "aria-label": `remove ${specialty.name}`, onclick: () => tell(model, { do: "remove", k: specialty.k }),
        }, "remove"),
        extra: h("div", { class: "nofe-balance", title: `${specialty.members.length} classes` },
          h("span", { style: { width: `${100 * specialty.members.length / largest}%` } }),
          h("i", { style: { left: `${100 * names().length / list.length / largest}%` }, title: "equal sizes" })),
        each: (button, label) => {
          button.draggable = !locked(label);
          button.classList.toggle("nofe-locked", locked(label));
          if (model.get("changed").includes(label)) button.classList.add("nofe-changed");
          button.addEventListener("click", () => send(model, { label }));
          button.addEventListener("focus", () => { if (chosen() !== label) send(model, { label }); });
          button.addEventListener("dragstart", (event) => {
            dragged = label;
            event.dataTransfer.effectAllowed = "move";
            event.dataTransfer.setData("text/plain", names()[label]);
          });
          button.addEventListener("dragend", () => { dragged = null; });
        },
      });
      element.addEventListener("dragover", (event) => {
        if (dragged === null) return;
        event.preventDefault();
        element.classList.add("nofe-over");
      });
      element.addEventListener("dragleave", (event) => {
        if (!element.contains(event.relatedTarget)) element.classList.remove("nofe-over");
      });
      element.addEventListener("drop", (event) => {
        event.preventDefault();
        event.stopPropagation();
        element.classList.remove("nofe-over");
        if (dragged !== null) tell(model, { do: "move", label: dragged, k: specialty.k });
        dragged = null;
      });
      return element;
    })));
    cardsBox.scrollTop = scrolled;
    if (adding && list.length > shown) {
      adding = false;
      cardsBox.querySelector(".nofe-card:last-child").scrollIntoView({ block: "nearest" });
    }
    shown = list.length;
    moveTo.replaceChildren(h("option", { value: "" }, "…"), ...list.map((specialty) => h("option", { value: specialty.k }, specialty.name)));
    highlight();
    if (held) cardsBox.querySelector(`button.nofe-class[data-label="${chosen()}"]`)?.focus();
  };
  const highlight = () => {
    mark(cardsBox, names(), chosen(), model.get("search"));
    lock.textContent = locked(chosen()) ? "Unlock" : "Lock";
    moveTo.disabled = locked(chosen());
  };
  const judge = () => {
    const found = model.get("judgement");
    judged.replaceChildren(h("h5", {}, "Before any training"), table(found), h("p", { role: "status" }, found.said));
    // a button that is disabled while it has the focus would lose it, and the keys with it
    undo.setAttribute("aria-disabled", !model.get("can_undo"));
    redo.setAttribute("aria-disabled", !model.get("can_redo"));
  };
  const drawTraining = () => {
    const state = model.get("training"), found = model.get("standing");
    train.textContent = { training: "Stop", stopping: "Stopping …" }[state] || "Train experts for this partition";
    train.setAttribute("aria-disabled", state === "stopping");
    how.draw();
    progress.hidden = !state;
    standing.replaceChildren(...(found.said ? [
      found.rows.length ? table(found) : "", h("p", {}, found.said, found.rows.length && model.get("outdated") ? " The partition has changed since." : "")] : []));
  };
  roam(root, () => [...cardsBox.querySelectorAll(".nofe-card")]);
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    const keys = event.ctrlKey || event.metaKey ? { z: { do: event.shiftKey ? "redo" : "undo" }, y: { do: "redo" } } : {
      l: { do: "lock", label: chosen() },
      ...(event.shiftKey ? {
        arrowleft: { do: "shift", label: chosen(), by: -1 },
        arrowright: { do: "shift", label: chosen(), by: 1 },
      } : {}),
    };
    const what = keys[event.key.toLowerCase()];
    if (!what) return;
    event.preventDefault();
    event.stopPropagation();
    tell(model, what);
  });
  pictures.load(model.get("thumbnails"));
  const stops = [
    follow(model, ["cards", "locked"], drawCards),
    follow(model, ["label", "search"], highlight),
    follow(model, ["judgement", "can_undo", "can_redo"], judge),
    follow(model, ["training", "progress", "stage", "standing", "outdated"], drawTraining),
    words.stop,
  ];
  return () => { stops.forEach((stop) => stop()); pictures.free(); };
}

export default { render };
