// The page: what the API says, as tables; logs, a terminal and plots of one container.
import { Terminal } from "./terminal.js";
import { Plot } from "./plot.js";

const main = document.getElementById("main");
// Ends everything that the view before this one had begun.
let view = new AbortController();

// An element: its text is never taken for markup.
function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

let hiding;
function notice(text) {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { box.hidden = true; }, 8000);
}

// Half of what lets this page in. The other half is a cookie, which every port of this host gets; this is for this port's pages only.
const KEY = "vessel-key";
const key = () => localStorage.getItem(KEY) || "";

async function api(method, path, body, signal) {
  const options = { method, signal, headers: key() ? { "X-Vessel-Key": key() } : {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch("api" + path, options);
  if (response.status === 401) {
    login();
    throw new DOMException("log in first", "AbortError");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.message || `the daemon answered ${response.status}`);
  }
  return response;
}

const get = async (path) => (await api("GET", path, undefined, view.signal)).json();

function button(text, act, danger) {
  return el("button", {
    class: danger ? "danger" : undefined,
    onclick: async (event) => {
      event.target.disabled = true;
      try {
        await act();
      } catch (error) {
        notice(error.message);
      }
      event.target.disabled = false;
    },
  }, text);
}

const post = (text, path, danger) => button(text, async () => { await api("POST", path, undefined); await show(); }, danger);
const remove = (path, what) => button("Remove", async () => {
  const { Enabled: kept } = await (await api("GET", "/vessel/bin", undefined)).json();
  if (!await sure(`Remove ${what}?`, kept ? "It can be brought back from the bin for a while." : "There is no bin: it cannot be brought back.", "Remove")) return;
  await api("DELETE", path, undefined);
  notice(kept ? `Removed: ${what}. It is in the bin for a while.` : `Removed: ${what}.`);
  await show();
}, true);

// Asks; only the button that says so is a yes.
function sure(question, consequence, yes) {
  return new Promise((answer) => {
    const dialog = el("dialog", { onclose: () => { dialog.remove(); answer(dialog.returnValue === "yes"); } },
      el("p", {}, question), el("p", { class: "soft" }, consequence),
      el("form", { method: "dialog", class: "bar" },
        el("button", { value: "no", autofocus: true }, "Cancel"), el("button", { value: "yes", class: "danger" }, yes)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

function table(headings, rows, empty) {
  if (!rows.length) return el("p", { class: "soft" }, empty);
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...headings.map((text) => el("th", {}, text)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map(
      (cell) => cell instanceof HTMLTableCellElement ? cell : el("td", {}, cell)))))));
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toPrecision(3)} ${units[unit]}`;
}

function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  for (const [length, name] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    const count = Math.floor(past / length);
    if (count) return `${count} ${name}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

const short = (id) => id.replace("sha256:", "").slice(0, 12);
const mono = (text) => el("code", {}, text);
const number = (text) => el("td", { class: "number" }, text);
const actions = (...buttons) => el("td", { class: "actions" }, ...buttons);

async function containers() {
  const list = await get("/containers/json?all=1");
  const rows = list.map((container) => {
    const running = container.State === "running";
    const id = encodeURIComponent(container.Id);
    const ports = (container.Ports || []).filter((port) => port.PublicPort)
      .map((port) => `${port.IP}:${port.PublicPort} → ${port.PrivatePort}/${port.Type}`);
    return [
      el("a", { href: `#container/${id}/logs` }, (container.Names[0] || "").replace("/", "")),
      mono(short(container.Id)), container.Image,
      el("span", { class: running ? "running" : "soft" }, container.Status),
      ports.join(", "),
      actions(
        running ? post("Stop", `/containers/${id}/stop`) : post("Start", `/containers/${id}/start`),
        running ? post("Restart", `/containers/${id}/restart`) : undefined,
        running ? undefined : remove(`/containers/${id}`, `container ${(container.Names[0] || container.Id).replace("/", "")}`)),
    ];
  });
  return [el("h1", {}, "Containers"),
    table(["Name", "ID", "Image", "State", "Ports", ""], rows, "There are no containers: vessel run makes one.")];
}

async function images() {
  const list = await get("/images/json");
  const rows = list.flatMap((image) => (image.RepoTags && image.RepoTags.length ? image.RepoTags : [short(image.Id)])
    .map((name) => [name, mono(short(image.Id)), ago(image.Created), number(bytes(image.Size)),
      actions(remove(`/images/${name.split("/").map(encodeURIComponent).join("/")}`, `image ${name}`))]));
  return [el("h1", {}, "Images"), table(["Name", "ID", "Made", "Size", ""], rows, "There are no images.")];
}

async function networks() {
  const list = await get("/networks");
  const rows = list.map((network) => [network.Name, mono(short(network.Id)), network.Driver,
    ((network.IPAM && network.IPAM.Config) || []).map((config) => config.Subnet).join(", "),
    network.Internal ? "internal" : "",
    actions(["bridge", "host", "none"].includes(network.Name) ? undefined
      : remove(`/networks/${encodeURIComponent(network.Id)}`, `network ${network.Name}`))]);
  return [el("h1", {}, "Networks"), table(["Name", "ID", "Driver", "Subnet", "", ""], rows, "There are no networks.")];
}

async function volumes() {
  const [list, usage] = await Promise.all([get("/volumes"), get("/v1.51/system/df?type=volume")]);
  const sizes = new Map((usage.Volumes || []).map((volume) => [volume.Name, volume.UsageData]));
  const rows = (list.Volumes || []).map((volume) => {
    const used = sizes.get(volume.Name) || { Size: 0, RefCount: 0 };
    return [volume.Name.length === 64 ? mono(short(volume.Name)) : volume.Name, volume.CreatedAt.slice(0, 16).replace("T", " "),
      used.RefCount ? `${used.RefCount} container${used.RefCount > 1 ? "s" : ""}` : "nobody", number(bytes(Math.max(0, used.Size))),
      actions(remove(`/volumes/${encodeURIComponent(volume.Name)}`, `volume ${volume.Name}`))];
  });
  return [el("h1", {}, "Volumes"), table(["Name", "Made", "Used by", "Size", ""], rows, "There are no volumes.")];
}

async function operations() {
  const response = await api("GET", "/vessel/log?tail=200", undefined, view.signal);
  const lines = (await response.text()).trim().split("\n").filter(Boolean).map((line) => JSON.parse(line)).reverse();
  const rows = lines.map((line) => [line.Time.slice(0, 19).replace("T", " "),
    line.Client || (line.Program ? `${line.Program} (uid ${line.Uid})` : line.Address || line.Via), line.Action, line.Object || "",
    Object.entries(line.Details || {}).map(([name, value]) => `${name}=${value}`).join(", "),
    line.Error || line.Status >= 400 ? el("span", { class: "failed" }, line.Error || String(line.Status)) : `${line.Milliseconds} ms`]);
  return [el("h1", {}, "Operations"), table(["When", "Who", "What", "Object", "", "Outcome"], rows, "Nothing was done yet.")];
}

async function bin() {
  const list = await get("/vessel/bin");
  const rows = list.Items.map((item) => [item.Kind, item.Name.length === 64 ? mono(short(item.Name)) : item.Name,
    ago(Date.parse(item.Removed) / 1000), number(bytes(item.Size || 0)),
    actions(button("Undo", async () => {
      const report = await (await api("POST", "/vessel/undo", { Operation: item.Command })).json();
      const back = report.Restored.map((line) => `${line.Kind} ${line.Name}`).join(", ");
      const failed = (report.Failed || []).map((line) => `${line.Kind} ${line.Name}: ${line.Note}`).join("; ");
      notice(`Back: ${back}.${failed ? ` Not back: ${failed}` : ""}`);
      await show();
    }))]);
  const size = `${bytes(list.Size)} of ${bytes(list.Limit)}`;
  const text = list.Enabled ? size : `The daemon runs without a bin${rows.length ? ` and keeps nothing more; ${size} are left of before` : ""}.`;
  return [el("h1", {}, "Bin"), el("p", { class: "soft" }, text), table(["Kind", "Name", "Removed", "Size", ""], rows, "The bin is empty.")];
}

async function* pieces(response) {
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

// Docker's frames: one byte stream, three zeros, four bytes of length.
export async function* frames(chunks, raw) {
  let rest = new Uint8Array();
  for await (const chunk of chunks) {
    if (raw) { yield [1, chunk]; continue; }
    const all = new Uint8Array(rest.length + chunk.length);
    all.set(rest); all.set(chunk, rest.length);
    let at = 0;
    while (all.length - at >= 8) {
      const length = new DataView(all.buffer, at + 4, 4).getUint32(0);
      if (all.length - at - 8 < length) break;
      yield [all[at], all.subarray(at + 8, at + 8 + length)];
      at += 8 + length;
    }
    rest = all.slice(at);
  }
}

async function logs(id, inspected) {
  const out = el("pre", { class: "output", tabindex: 0 });
  const signal = view.signal;
  (async () => {
    const path = `/containers/${id}/logs?follow=1&stdout=1&stderr=1&tail=1000`;
    const response = await api("GET", path, undefined, signal);
    const decoders = [null, new TextDecoder(), new TextDecoder()];
    for await (const [stream, data] of frames(pieces(response), inspected.Config.Tty)) {
      const text = (decoders[stream] || decoders[1]).decode(data, { stream: true });
      const below = out.scrollHeight - out.scrollTop - out.clientHeight < 40;
      out.append(el("span", { class: stream === 2 ? "stderr" : undefined }, text));
      while (out.childNodes.length > 5000) out.firstChild.remove();
      if (below) out.scrollTop = out.scrollHeight;
    }
  })().catch((error) => { if (!signal.aborted) notice(error.message); });
  return out;
}

async function terminal(id, inspected) {
  if (!inspected.State.Running) return el("p", { class: "soft" }, "The container does not run: start it first.");
  const node = el("div", {});
  const signal = view.signal;
  const open = async (shell) => {
    const made = await (await api("POST", `/containers/${id}/exec`, {
      AttachStdin: true, AttachStdout: true, AttachStderr: true, Tty: true, Cmd: ["/bin/sh", "-c", shell], Env: ["TERM=xterm-256color"],
    })).json();
    const exec = encodeURIComponent(made.Id);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/api/vessel/exec/${exec}/ws`,
      ["vessel.page", ...(key() ? [`vessel.key.${key()}`] : [])]);
    socket.binaryType = "arraybuffer";
    const screen = new Terminal(
      (data) => { if (socket.readyState === 1) socket.send(data); },
      (rows, columns) => api("POST", `/exec/${exec}/resize?h=${rows}&w=${columns}`, undefined).catch(() => {}));
    node.replaceChildren(screen.node);
    socket.onopen = () => { screen.fit(true); screen.node.focus(); };
    socket.onmessage = (event) => screen.write(new Uint8Array(event.data));
    socket.onclose = () => { screen.end(); if (!signal.aborted) node.append(button("Open another", () => open(shell))); };
    signal.addEventListener("abort", () => { socket.close(); screen.end(); });
  };
  open("command -v bash >/dev/null && exec bash; exec sh").catch((error) => { if (!signal.aborted) notice(error.message); });
  return node;
}

async function statistics(id, inspected) {
  if (!inspected.State.Running) return el("p", { class: "soft" }, "The container does not run: there is nothing to measure.");
  const percent = (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`;
  const rate = (value) => `${bytes(value)}/s`;
  const plots = {
    cpu: new Plot("Processor", [""], percent), memory: new Plot("Memory", [""], bytes),
    network: new Plot("Network", ["in", "out"], rate), disk: new Plot("Disk", ["read", "written"], rate),
  };
  const signal = view.signal;
  (async () => {
    const response = await api("GET", `/containers/${id}/stats`, undefined, signal);
    const decoder = new TextDecoder();
    let rest = "", before;
    for await (const piece of pieces(response)) {
      rest += decoder.decode(piece, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines.filter(Boolean)) {
        const now = JSON.parse(line);
        measure(plots, before, now);
        before = now;
      }
    }
  })().catch((error) => { if (!signal.aborted) notice(error.message); });
  return el("div", { class: "plots" }, ...Object.values(plots).map((plot) => plot.node));
}

function measure(plots, before, now) {
  const memory = now.memory_stats || {};
  if (memory.usage !== undefined) {
    const cache = (memory.stats || {}).total_inactive_file || (memory.stats || {}).inactive_file || 0;
    plots.memory.add([Math.max(0, memory.usage - cache)]);
  }
  if (!before) return;
  const seconds = (Date.parse(now.read) - Date.parse(before.read)) / 1000;
  if (!(seconds > 0)) return;
  plots.cpu.add([(now.cpu_stats.cpu_usage.total_usage - before.cpu_stats.cpu_usage.total_usage) / seconds / 1e7]);
  const network = (stats, key) => Object.values(stats.networks || {}).reduce((sum, one) => sum + one[key], 0);
  plots.network.add(["rx_bytes", "tx_bytes"].map((key) => Math.max(0, network(now, key) - network(before, key)) / seconds));
  const disk = (stats, op) => ((stats.blkio_stats || {}).io_service_bytes_recursive || [])
    .filter((entry) => entry.op.toLowerCase() === op).reduce((sum, entry) => sum + entry.value, 0);
  plots.disk.add(["read", "write"].map((op) => Math.max(0, disk(now, op) - disk(before, op)) / seconds));
}

async function details(id, inspected) {
  // Environments hold secrets: they are shown when somebody asks for them.
  const shown = structuredClone(inspected);
  const hidden = (shown.Config.Env || []).length;
  shown.Config.Env = [`${hidden} variables`];
  const pre = el("pre", {}, JSON.stringify(shown, null, 2));
  return el("div", {}, button("Show the environment", () => { pre.textContent = JSON.stringify(inspected, null, 2); }),
    el("div", { class: "scroll" }, pre));
}

const TABS = { logs: ["Logs", logs], terminal: ["Terminal", terminal], statistics: ["Statistics", statistics], details: ["Details", details] };

async function container(word, tab) {
  const id = encodeURIComponent(decodeURIComponent(word));
  const inspected = await get(`/containers/${id}/json`);
  const running = inspected.State.Running;
  const [, content] = TABS[tab] || TABS.logs;
  return [
    el("div", { class: "bar" }, el("h1", {}, inspected.Name.replace("/", ""), " ",
      el("span", { class: running ? "running" : "soft" }, inspected.State.Status)),
    running ? post("Stop", `/containers/${id}/stop`) : post("Start", `/containers/${id}/start`),
    running ? post("Restart", `/containers/${id}/restart`) : undefined),
    el("div", { class: "tabs" }, ...Object.entries(TABS).map(([key, [title]]) =>
      el("a", { href: `#container/${id}/${key}`, class: key === tab ? "here" : undefined }, title))),
    await content(id, inspected),
  ];
}

const VIEWS = { containers, images, networks, volumes, operations, bin, container };

function login() {
  view.abort();
  const input = el("input", { type: "password", autocomplete: "off", "aria-label": "Token" });
  const form = el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      if (await enter(input.value.trim())) { await begin(); } else { notice("That is not the token."); }
    },
  }, el("h1", {}, "Vessel"), el("p", {}, "The daemon printed a token when it began to serve this page."), input, el("button", {}, "Log in"));
  main.replaceChildren(form);
  input.focus();
}

async function enter(token) {
  const response = await fetch("login", { method: "POST", body: token });
  if (response.ok) localStorage.setItem(KEY, (await response.json()).Key);
  return response.ok;
}

async function show() {
  view.abort();
  view = new AbortController();
  const signal = view.signal;
  const [name, ...rest] = (location.hash.slice(1) || "containers").split("/");
  for (const link of document.querySelectorAll("nav a")) {
    link.className = link.hash.slice(1) === name || (name === "container" && link.hash === "#containers") ? "here" : "";
  }
  try {
    const content = await (VIEWS[name] || containers)(...rest);
    if (!signal.aborted) main.replaceChildren(...content);
  } catch (error) {
    if (!signal.aborted) main.replaceChildren(el("p", { class: "failed" }, error.message));
  }
}

// Lists follow what happens: soon, and however much it is. A log or a terminal that was opened meanwhile stays as it is.
async function follow() {
  let timer;
  const again = () => {
    timer = undefined;
    if (!location.hash.startsWith("#container/")) show();
  };
  for (;;) {
    try {
      for await (const _ of pieces(await api("GET", "/events", undefined, undefined))) {
        if (timer === undefined) timer = setTimeout(again, 300);
      }
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

// The token comes behind the `#`, which no server and no log sees, and does not stay there.
const given = location.hash.match(/^#token=([0-9a-f]+)$/);
if (given) {
  history.replaceState(null, "", location.pathname);
  await enter(given[1]);
}
let following = false;

async function begin() {
  await show();
  const info = await (await api("GET", "/info", undefined, undefined)).json();
  document.getElementById("host").textContent = `${info.Name}, ${info.ContainersRunning} running`;
  if (following) return;
  following = true;
  await follow();
  following = false;
}

window.addEventListener("hashchange", show);
begin().catch(() => {});
