// The specialty explorer: cards of one partition or of two, and the chosen class beside them.

function render({ model, el }) {
  const root = frame(el, "explorer", model);
  const pictures = sprites(), examples = sprites();
  const names = () => model.get("class_names");
  const cardsBox = h("div", { class: "nofe-cards-box" });
  const detail = h("aside", { class: "nofe-detail", "aria-label": "the chosen class" });
  const words = spoken(model);
  const toolbar = h("div", { class: "nofe-toolbar" },
    menu(model, "sort_by", "Sort by", model.get("sorts").map((name) => [name, name])),
    searchBox(model),
    menu(model, "compare_with", "Compare with",
      [["", "nothing"], ...model.get("others").map((name) => [name, name])]));
  root.append(toolbar, h("div", { class: "nofe-columns" }, cardsBox, detail), words);

  const facts = (specialty) => specialty.facts.length === 0 ? [] : h("div", { class: "nofe-facts" },
    specialty.facts.map(([name, value]) => [h("span", {}, name), h("span", {}, value)]));
  // beside another partition, a line below each class has the colour of its specialty on the left
  const column = (title, list, colourOf) => h("div", { class: "nofe-partition" },
    colourOf ? h("h4", {}, title) : null,
    h("div", { class: "nofe-cards" }, list.map((specialty) => card(specialty, names(), pictures, {
      extra: facts(specialty),
      each: (button, label) => {
        button.addEventListener("click", () => send(model, { label }));
        if (colourOf) button.style.borderBottom = `3px solid ${colourOf[label]}`;
      },
    }))));
  const highlight = () => mark(cardsBox, names(), model.get("label"), model.get("search"));
  const drawCards = () => {
    pictures.load(model.get("thumbnails"));
    const { titles, cards, other, agreement } = model.get("shown");
    const colourOf = other.length ? Object.fromEntries(
      cards.flatMap((specialty) => specialty.members.map((label) => [label, specialty.colour]))) : null;
    const held = cardsBox.contains(document.activeElement) && document.activeElement.dataset.label;
    cardsBox.replaceChildren(
      agreement ? h("p", { class: "nofe-agreement" }, agreement) : "",
      h("div", { class: "nofe-pair" }, column(titles[0], cards, colourOf),
        colourOf ? column(titles[1], other, colourOf) : null));
    highlight();
    if (held) cardsBox.querySelector(`button.nofe-class[data-label="${held}"]`)?.focus();
  };
  const drawDetail = () => {
    examples.load(model.get("examples"));
    const found = model.get("detail");
    detail.style.setProperty("--colour", found.colour);
    detail.replaceChildren(
      h("h4", {}, found.name), h("p", { class: "nofe-where" }, found.where),
      h("div", { class: "nofe-examples" }, Array.from({ length: found.images }, (_, i) => examples.piece(i, 48))),
      ...found.panels.map((panel) => h("div", {}, h("h5", {}, panel.title),
        panel.rows.length ? bars(panel.rows) : h("p", {}, panel.none))));
  };
  roam(root, () => [...root.querySelectorAll(".nofe-cards .nofe-card")]);
  const stops = [
    follow(model, ["shown", "thumbnails"], drawCards),
    follow(model, ["label", "search"], highlight),
    follow(model, ["detail"], drawDetail),
    words.stop,
  ];
  return () => { stops.forEach((stop) => stop()); pictures.free(); examples.free(); };
}

export default { render };
