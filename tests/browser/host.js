// What JupyterLab and a kernel do for a widget, for the class Host in conftest.py.
async ([code, state]) => {
  const bytes = (value) => {
    if (Array.isArray(value)) return value.map(bytes);
    if (value === null || typeof value !== "object") return value;
    if ("base64" in value) {
      return new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer);
    }
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, bytes(each)]));
  };
  const now = bytes(state), heard = new Map();
  const calls = (event) => heard.get(event) ?? [];
  const fire = (event, ...told) => calls(event).forEach((call) => call(...told));
  window.take = ({ state, messages }) => {
    const fresh = bytes(state);
    Object.assign(now, fresh);
    Object.keys(fresh).forEach((name) => fire(`change:${name}`));
    messages.forEach((message) => fire("msg:custom", message));
  };
  const tell = (what) => window.toKernel(what).then(window.take);
  let own = {};
  const model = {
    get: (name) => now[name],
    set(name, value) {
      if (now[name] === value) return;
      now[name] = own[name] = value;
      fire(`change:${name}`);
    },
    save_changes() {
      tell({ state: own });
      own = {};
    },
    send: (content) => tell({ content }),
    on: (events, call) => events.split(" ").forEach((each) => heard.set(each, [...calls(each), call])),
    off: (events, call) => events.split(" ").forEach((event) =>
      heard.set(event, calls(event).filter((each) => each !== call))),
  };
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { default: { render } } = await import(url);
  window.show = (place) => { render({ model, el: document.getElementById(place) }); };
  window.show("cell");
}
