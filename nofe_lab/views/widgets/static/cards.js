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

/** Letters without case and accents: e finds é and ê. */
const fold = (text) => text.trim().normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

/** Mark the chosen class, and dim those whose names do not hold the text that is searched for. */
function mark(root, names, label, search) {
  const wanted = fold(search);
  let reachable = null;
  for (const button of root.querySelectorAll("button.nofe-class")) {
    const own = Number(button.dataset.label);
    button.setAttribute("aria-pressed", own === label);
    button.classList.toggle("nofe-dim", wanted !== "" && !fold(names[own]).includes(wanted));
    button.tabIndex = -1;
    if (own === label || reachable === null) reachable = button;
  }
  if (reachable) reachable.tabIndex = 0;
}

/** A box to search a class in: the first whose name holds the text is scrolled to, Enter chooses it. */
function searchBox(model, label = "Search a class") {
  const found = () => {
    const wanted = fold(input.value), folded = model.get("class_names").map(fold);
    const hits = wanted ? [...folded.keys()].filter((c) => folded[c].includes(wanted)) : [];
    const exact = folded.indexOf(wanted);
    return exact >= 0 ? [exact, ...hits.filter((c) => c !== exact)] : hits;
  };
  const scroll = (c) => input.closest(".nofe").querySelector(`button.nofe-class[data-label="${c}"]`)?.scrollIntoView({ block: "nearest" });
  const say = () => {
    const { length } = found();
    said.textContent = !input.value.trim() ? "" : length ? `${length} ${length === 1 ? "class" : "classes"}` : "no class is called so";
  };
  const said = h("span", { role: "status" });
  const input = h("input", {
    type: "search", placeholder: "part of a name", "aria-label": label,
    oninput: () => { // a matter of this view: no kernel is needed
      model.set("search", input.value);
      model.save_changes();
      say();
      const [first] = found();
      if (first !== undefined) scroll(first);
    },
    onkeydown: async (event) => {
      const [first] = found();
      if (event.key === "Enter" && first !== undefined && await send(model, { label: first })) scroll(first);
    },
  });
  input.value = model.get("search");
  model.on("change:search", () => { if (input.value !== model.get("search")) { input.value = model.get("search"); say(); } });
  return h("label", { class: "nofe-menu" }, h("span", {}, label), input, said);
}
