// What each expert says of one picture, as a table.

/** experts: rows of {name, colour, best (its class), alone and mass (shares), gate (a share, or null
 * without one), right, answers}.  together, alone: the heads of `mass`, and of `best`. */
function expertTable(experts, together, alone = "asked alone, it says") {
  const gated = experts.some((expert) => expert.gate !== null);
  const heads = ["expert", alone, "", together, gated ? "gate" : null];
  const notes = [
    experts.some((expert) => expert.right) ? "✓: the expert of the right class." : null,
    "Bold: the expert that gives the answer.",
    gated ? "Gate: its belief in the expert's best class." : null,
  ];
  return [h("table", {},
    h("thead", {}, h("tr", {}, heads.filter((head) => head !== null).map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, experts.map((expert) => h("tr", { class: expert.answers ? "nofe-answers" : "" },
      h("th", { scope: "row", style: { "border-left-color": expert.colour }, title: expert.name + (expert.right ? ": the class is one of its own" : "") },
        expert.name + (expert.right ? " ✓" : "")),
      h("td", { class: "nofe-name", title: expert.best }, expert.best), h("td", {}, percent(expert.alone)),
      h("td", {}, h("span", { class: "nofe-track" },
        h("span", { class: "nofe-bar", style: { width: `${Math.max(100 * expert.mass, 0.5)}%`, background: expert.colour, "border-color": expert.colour } }),
        h("span", { class: "nofe-bar-text" }, percent(expert.mass)))),
      gated ? h("td", {}, percent(expert.gate)) : null)))),
  h("p", { class: "nofe-note" }, notes.filter((note) => note !== null).join(" "))];
}
