// The relabelling list: one image after the other, and a decision about each.

function render({ model, el }) {
  const root = frame(el, "relabel", model);
  const pictures = sprites();
  const words = spoken(model);
  const problem = h("p", { class: "nofe-problem", role: "alert" });
  const shown = h("div", { class: "nofe-doubt" });
  const list = h("div", { class: "nofe-queue", role: "group", "aria-label": "images" });
  const select = h("select", {
    "aria-label": "the right class", onkeydown: (event) => { if (event.key === "Enter") decide("relabel"); },
  }, model.get("class_names").map((name) => h("option", { value: name }, name)));
  const tools = [["keep", "k"], ["relabel", "r"], ["exclude", "e"], ["undo", "u"]];
  const buttons = tools.map(([decision, key]) => h("button", {
    class: "nofe-tool", type: "button", "data-decision": decision, "aria-keyshortcuts": key, onclick: () => decide(decision),
  }, decision, h("kbd", {}, key.toUpperCase())));
  const decision = h("div", { class: "nofe-toolbar" },
    h("label", { class: "nofe-menu" }, h("span", {}, "The right class"), select), h("div", { class: "nofe-decide" }, buttons));
  root.append(
    h("div", { class: "nofe-toolbar" }, menu(model, "which", "Images", model.get("choices")),
      h("span", { class: "nofe-note" }, "arrow keys: go on and back")),
    problem,
    h("div", { class: "nofe-columns" }, h("div", {}, shown, decision), list), words);

  let refused = null;
  const hear = ({ file, refused: why }) => { // a refused decision brings its image back
    if (!why) return;
    const items = model.get("items"), n = items.findIndex((item) => item.file === file);
    if (n >= 0) go(n);
    refused = { file: items[model.get("place")]?.file, why };
    drawPlace();
  };
  /** Decide on the image that is shown, and go on at once: the next key is for the next image. */
  const decide = async (what) => {
    const place = model.get("place"), item = model.get("items")[place];
    if (what !== "undo" && !item) return;
    refused = null;
    const corrected = what === "relabel" ? select.value : "";
    go(what === "undo" ? place : Math.min(place + 1, model.get("items").length - 1));
    if (what === "undo") return tell(model, { do: "undo" });
    const done = await tell(model, { do: "decide", file: item.file, decision: what, corrected });
    if (!done && model.get("items")[place] === item && place < model.get("place")) go(place);
  };
  const go = (place) => { // a matter of this view: no kernel is needed
    if (place < 0 || place >= model.get("items").length) return;
    model.set("place", place);
    model.save_changes();
  };
  const told = { keep: () => "✓ kept", exclude: () => "✗ excluded", relabel: (to) => `→ ${to}` };
  const draw = () => {
    pictures.load(model.get("sheet"));
    list.replaceChildren(...model.get("items").map((item, n) => h("button", {
      class: "nofe-item", type: "button", tabindex: "-1", onclick: () => go(n),
    }, pictures.piece(item.piece, 40), h("span", {}))));
    drawPlace();
  };
  const drawPlace = () => {
    const items = model.get("items"), decisions = model.get("decisions"), place = model.get("place");
    if (list.children.length !== items.length) return; // another list, which is drawn next
    const item = items[place];
    problem.textContent = refused && refused.file === item?.file ? refused.why : "";
    problem.hidden = !problem.textContent;
    decision.hidden = !item;
    [...list.children].forEach((button, n) => {
      const { label, suggested } = items[n], decided = decisions[n] ?? null;
      button.lastChild.replaceChildren(h("span", { class: "nofe-quiet" }, label), " ",
        decided ? h("strong", {}, told[decided[0]](decided[1])) : `→ ${suggested}?`);
      button.dataset.decision = decided?.[0] ?? "";
      button.setAttribute("aria-current", n === place);
      button.tabIndex = n === place ? 0 : -1;
    });
    if (!item) return shown.replaceChildren(h("p", {}, "No image stands out."));
    const decided = decisions[place] ?? null;
    const current = list.children[place];
    if (list.contains(document.activeElement)) current.focus({ preventScroll: true });
    const top = current.offsetTop; // the list is its offset parent
    if (top < list.scrollTop) list.scrollTop = top;
    else list.scrollTop = Math.max(list.scrollTop, top + current.offsetHeight - list.clientHeight);
    const wanted = `${decided?.[1] || item.suggested} of ${item.file}`;
    if (select.dataset.wanted !== wanted) select.value = decided?.[1] || item.suggested; // else it is the reader's
    select.dataset.wanted = wanted;
    buttons.forEach((button) => button.setAttribute("aria-pressed", decided?.[0] === button.dataset.decision));
    shown.replaceChildren(pictures.piece(item.piece, 160), h("div", {},
      h("h4", {}, h("span", { class: "nofe-quiet" }, "labelled "), item.label),
      h("p", { class: "nofe-quiet" }, `${place + 1} of ${items.length}: ${item.file}`),
      h("ul", {}, item.said.map(([name, said, p, own]) => h("li", {}, `${name}: `, h("strong", {}, said), ` ${percent(p)}`,
        said === item.label ? null : h("span", { class: "nofe-quiet" }, `, ${item.label} ${percent(own)}`))))));
  };
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    const tool = tools.find(([, key]) => key === event.key.toLowerCase());
    if (!by && !tool) return;
    event.preventDefault();
    if (by) go(model.get("place") + by);
    else decide(tool[0]);
  });
  root.addEventListener("click", () => { // else JupyterLab gets the keys: its R makes a cell raw
    if (!root.contains(document.activeElement)) list.children[model.get("place")]?.focus({ preventScroll: true });
  });
  model.on("msg:custom", hear);
  const stops = [
    follow(model, ["items", "sheet"], draw),
    follow(model, ["decisions", "place"], drawPlace),
    words.stop, () => model.off("msg:custom", hear),
  ];
  return () => { stops.forEach((stop) => stop()); pictures.free(); };
}

export default { render };
