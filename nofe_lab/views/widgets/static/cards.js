// Cards of specialties: a coloured frame, a head, and a button for each class.

/** One card.  names: of all classes.  extra: what stands between head and classes.  tools: in the
 * head.  each(button, label): for what else a class's button should do. */
function card(specialty, names, pictures, { extra = [], tools = [], each = () => {} } = {}) {
  const count = specialty.members.length;
  const classes = h("div", { class: "nofe-classes", role: "group", "aria-label": `classes of ${specialty.name}` },
    specialty.members.map((label) => {
      const button = h("button", {
        class: "nofe-class", type: "button", tabindex: "-1", "data-label": label, title: names[label],
      }, pictures.piece(label, 40), h("span", {}, short(names[label], 11)));
      each(button, label);
      return button;
    }));
  return h("section", { class: "nofe-card", "data-k": specialty.k, style: { "--colour": specialty.colour } },
    h("header", {}, h("strong", { title: specialty.name }, specialty.name),
      h("span", { class: "nofe-count" }, count === 1 ? "1 class" : `${count} classes`), tools),
    extra, classes);
}

/** Mark the chosen class, and dim those whose names do not hold the text that is searched for. */
function mark(root, names, label, search) {
  const wanted = search.trim().toLowerCase();
  let reachable = null;
  for (const button of root.querySelectorAll("button.nofe-class")) {
    const own = Number(button.dataset.label);
    button.setAttribute("aria-pressed", own === label);
    button.classList.toggle("nofe-dim", wanted !== "" && !names[own].toLowerCase().includes(wanted));
    button.tabIndex = -1;
    if (own === label || reachable === null) reachable = button;
  }
  if (reachable) reachable.tabIndex = 0;
}

/** A box to search a class in: Enter chooses the first whose name holds the text. */
function searchBox(model, label = "Search a class") {
  const input = h("input", {
    type: "search", placeholder: "part of a name", "aria-label": label,
    oninput: () => { // a matter of this view: no kernel is needed
      model.set("search", input.value);
      model.save_changes();
    },
    onkeydown: (event) => {
      if (event.key !== "Enter") return;
      const wanted = input.value.trim().toLowerCase();
      const names = model.get("class_names");
      const exact = names.findIndex((name) => name.toLowerCase() === wanted);
      const first = exact >= 0 ? exact : names.findIndex((name) => name.toLowerCase().includes(wanted));
      if (wanted && first >= 0) send(model, { label: first });
    },
  });
  input.value = model.get("search");
  model.on("change:search", () => { if (input.value !== model.get("search")) input.value = model.get("search"); });
  return h("label", { class: "nofe-menu" }, h("span", {}, label), input);
}
