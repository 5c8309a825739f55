// The page to hand on: a picture is dropped, pasted, chosen or drawn, and the network answers in the
// browser.  Every answer is also an event "answer" of `main`, for pages that embed this one.

const NO_NETWORK = "The network cannot be loaded. This folder must be served, as README.txt in it says: python -m http.server, then http://localhost:8000 in a browser.";
const BEST = 5;

async function drawPage(main) {
  const problem = h("p", { class: "nofe-problem", role: "alert", hidden: true });
  const say = (text) => { problem.textContent = text; problem.hidden = !text; };
  main.append(problem);
  let about, pictures = { piece: () => null }, sheet = null;
  const explained = ({ name, message }) => (location.protocol === "file:" || name === "TypeError" ? `${NO_NETWORK} (${message})` : `This page is damaged: ${message}.`);
  try {
    about = await (await fetched("page.json")).json();
    for (const name of ["cards", "shape", "names", "runtime"]) if (!Array.isArray(about[name])) throw new Error(`page.json has no ${name}`);
  } catch (error) {
    say(explained(error));
    return;
  }
  try {
    if (about.sheet) {
      const packed = await (await fetched("thumbnails.jpg")).blob();
      sheet = await createImageBitmap(packed);
      pictures = sprites();
      pictures.load({ ...about.sheet, data: packed });
    }
  } catch { // whoever hands the page on may leave them out
    sheet = null;
  }
  const { shape, cards } = about, [, height, width] = shape;
  const network = loaded(about).catch((error) => { throw new Error(explained(error)); });
  network.catch((error) => say(error.message)).finally(() => { state.textContent = ""; });

  // --- what is asked
  const state = h("p", { class: "nofe-note", role: "status" }, "The network is being loaded …");
  const chosen = h("input", { type: "file", accept: "image/*", class: "nofe-file", onchange: () => { file(chosen.files[0], chosen.files[0]?.name); chosen.value = ""; } });
  const own = h("img", { class: "nofe-own", alt: "the picture that is asked about", hidden: true });
  const zone = h("label", { class: "nofe-zone" }, own,
    h("span", {}, h("strong", {}, "Drop a picture here"), ", paste one, or ", h("u", {}, "choose a file"), "."), chosen);
  const show = (url) => {
    if (own.src) URL.revokeObjectURL(own.src);
    own.hidden = !url;
    if (url) own.src = url;
    else own.removeAttribute("src");
  };
  const file = (found, title) => {
    if (!found) return;
    ask(title, async () => {
      const picture = await decoded(found, title, about.bit_depth);
      show(URL.createObjectURL(found));
      const pixels = await toSize(picture, shape);
      picture.close();
      return pixels;
    });
  };
  const over = (is) => (event) => { event.preventDefault(); zone.classList.toggle("nofe-over", is); };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", over(false));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    const [found] = event.dataTransfer?.files ?? [];
    if (found) file(found, found.name || "the picture that was dropped");
    else say("What was dropped is no file; a picture of another page can be copied and pasted here.");
  });
  document.addEventListener("paste", (event) => {
    const [found] = event.clipboardData?.files ?? [];
    if (found) file(found, "the picture that was pasted");
    else if (!event.target.closest?.("input")) say("What was pasted is no picture.");
  });
  const thumbnail = (label) => {
    const { side, columns } = about.sheet, scale = side / Math.max(width, height);
    const w = Math.max(Math.round(width * scale), 1), h = Math.max(Math.round(height * scale), 1);
    const x = label % columns * side + Math.floor((side - w) / 2), y = Math.floor(label / columns) * side + Math.floor((side - h) / 2);
    ask(`the thumbnail of ${about.class_names[label]}`, async () => {
      show(null);
      return toSize(await createImageBitmap(sheet, x, y, w, h), shape);
    });
  };

  // --- the answer
  const seen = h("canvas", { width, height, class: "nofe-seen", role: "img", "aria-label": "the picture as the network sees it" });
  const name = h("h2", {}), sure = h("p", {}), asked = h("p", { class: "nofe-quiet" }), said = h("div", { class: "nofe-said" });
  const answer = h("section", { class: "nofe-answer", "aria-label": "the answer", hidden: true },
    h("div", { class: "nofe-headline" }, h("figure", {}, seen, h("figcaption", {}, `as the network sees it: ${width} × ${height} pixels`)),
      h("div", { "aria-live": "polite" }, asked, name, sure)), said);
  const nothing = h("section", { class: "nofe-nothing" }, h("p", {}, "The answer will be here.",
    sheet ? " Click one of the small pictures to try it: they are training images, which the network knows." : null));
  const shares = new Map(cards.map(({ k }) => [k, h("output", { class: "nofe-share" })]));
  const gallery = h("div", { class: "nofe-cards" }, cards.map((each) => card(each, about.class_names, pictures, {
    tools: about.kind === "flat" ? [] : [shares.get(each.k)],
    each: (button, label) => { if (sheet) button.addEventListener("click", () => thumbnail(label)); else button.disabled = true; },
  })));
  const display = (title, pixels, found) => {
    answer.hidden = found === null;
    nothing.hidden = found !== null;
    const { best, specialty, rows } = found ?? { best: -1, specialty: null, rows: [] };
    for (const { k, mass } of rows) shares.get(k).textContent = percent(mass);
    if (!rows.length) for (const share of shares.values()) share.textContent = "";
    for (const each of gallery.children) each.classList.toggle("nofe-over", Number(each.dataset.k) === specialty?.k && about.kind !== "flat");
    mark(gallery, about.class_names, about.kind === "generalist" ? -1 : best, "");
    if (found === null) return;
    const text = [title, about.names[best], `${percent(found.probabilities[best])} sure` + (about.kind === "nofe" ? `, by the expert of ${specialty.name}` : "")];
    [asked, name, sure].forEach((element, i) => { if (element.textContent !== text[i]) element.textContent = text[i]; });
    name.classList.toggle("nofe-long", [...text[1]].length > 12);
    answer.style.setProperty("--colour", specialty.colour);
    seen.getContext("2d").putImageData(imageOf(pixels, shape), 0, 0);
    const few = about.answering; // a gate and so many experts, whose answers cannot be told apart
    said.replaceChildren(...(about.kind === "nofe" ? [h("h5", {}, few ? "Which specialty" : "Which specialty, and what each expert says"),
      h("p", { class: "nofe-note" }, few ? `A gate and its ${few === 1 ? "best expert" : `${few} best experts`} answer together.`
        : "Each expert knows the classes of its own specialty alone. Asked alone, it must choose one of them."),
      ...expertTable(rows, "its share", few ? "its most probable class" : undefined)] : []),
      h("h5", {}, `The most probable ${about.kind === "generalist" ? "specialties" : "classes"}`), bars(found.top));
  };

  // --- one question at a time; of those that come meanwhile, the last
  let next = null, busy = false;
  const ask = async (title, read) => {
    next = [title, read];
    if (busy) return;
    busy = true;
    while (next) {
      const [title, read] = next;
      next = null;
      say("");
      if (read === null) {
        display(title, null, null);
        continue;
      }
      try {
        const slow = setTimeout(() => { state.textContent = `Reading ${title} …`; }, 200);
        const pixels = await read().finally(() => { clearTimeout(slow); });
        const outputs = await (await network)(pixels);
        display(title, pixels, found(about, outputs));
        main.dispatchEvent(new CustomEvent("answer", { detail: { title, pixels, ...outputs } }));
      } catch (error) {
        say(error.message);
        show(null);
        display(title, null, null);
      }
      state.textContent = "";
    }
    busy = false;
  };

  const drawing = about.canvas && sketch({ shape, ...about.canvas }, (canvas, done, stroked) => {
    if (!stroked && asked.textContent !== "your drawing") return; // another picture is shown
    if (canvas) ask("your drawing", () => { show(null); return toSize(canvas, shape); });
    else ask("", null);
  });
  main.append(
    h("header", {}, h("h1", {}, about.title), h("p", { class: "nofe-quiet" }, about.summary),
      h("p", { class: "nofe-quiet" }, "The network runs in this browser: no picture leaves it.")),
    h("div", { class: "nofe-three" },
      h("div", { class: "nofe-asked" }, zone, drawing ? [h("p", { class: "nofe-or" }, "or"), drawing] : null, state),
      h("div", {}, nothing, answer),
      h("section", { "aria-label": "what it knows" }, gallery)));
  main.insertBefore(problem, main.querySelector(".nofe-three"));
  roam(gallery, () => [...gallery.children]);
  mark(gallery, about.class_names, -1, "");
}

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** The network: a function from pixels to {logits, probabilities}. */
async function loaded({ runtime: [script, binary], shape }) {
  const ort = await import(new URL(script, document.baseURI).href);
  ort.env.wasm.numThreads = 1; // more need headers that plain servers do not send
  ort.env.wasm.wasmPaths = { wasm: new URL(binary, document.baseURI).href };
  const model = await (await fetched("model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(model);
  return async (pixels) => {
    const { logits, probabilities } = await session.run({ images: new ort.Tensor("uint8", pixels, [1, ...shape]) });
    return { logits: [...logits.data], probabilities: [...probabilities.data] };
  };
}

/** What the outputs mean: the best one, its specialty, a row for each expert, the top bars. */
function found({ kind, names, class_names, cards }, { logits, probabilities }) {
  const largest = (of, indices) => indices.reduce((a, b) => (of[b] > of[a] ? b : a));
  const of = (output) => cards.find(({ k, members }) => (kind === "generalist" ? k === output : members.includes(output)));
  const outputs = names.map((_, i) => i), best = largest(probabilities, outputs), specialty = of(best);
  const rows = cards.map(({ k, name, colour, members }) => {
    if (kind === "generalist") return { k, mass: probabilities[k] };
    const own = largest(logits, members);
    const alone = 1 / members.reduce((sum, label) => sum + Math.exp(logits[label] - logits[own]), 0);
    const mass = members.reduce((sum, label) => sum + probabilities[label], 0);
    return { k, name, colour, best: class_names[own], alone, mass, gate: null, right: false, answers: k === specialty.k };
  });
  const top = outputs.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, BEST).map((output) => ({
    name: names[output], share: probabilities[output], text: percent(probabilities[output]),
    colour: of(output).colour, strong: output === best,
  }));
  return { best, specialty, rows, top, probabilities };
}

/** Pixels uint8 [channels, height, width] as the browser's. */
function imageOf(pixels, [channels, height, width]) {
  const image = new ImageData(width, height), area = width * height;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[(channels === 1 ? 0 : c) * area + i];
    image.data[4 * i + 3] = 255;
  }
  return image;
}
