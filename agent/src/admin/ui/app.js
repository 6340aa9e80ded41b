// The page: signs in, polls the agent's state, and switches between the views.

import { Unauthorized, ask, bytes, count, element, openSession, visible } from "./client.js";
import { Calls } from "./calls.js";
import { Endpoints } from "./endpoints.js";
import { OpenCalls } from "./open.js";
import { closeTrace, showTrace } from "./trace.js";

const POLL_MS = 2000;
const VIEWS = ["calls", "endpoints", "agent"];
const $ = (id) => document.getElementById(id);

let view = "calls";
let signedIn = false;
let previous;
const rates = [];

const calls = new Calls({
  onState(state, text) {
    $("link").dataset.state = state;
    $("link-text").textContent = text;
  },
  onTrace: showTrace,
  onUnauthorized: signOut,
});
const openCalls = new OpenCalls((call) => calls.row(call, false));
const endpoints = new Endpoints();

// --- session

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    // Out of the address bar and the history before anything else.
    history.replaceState(null, "", location.pathname);
    await openSession(token).catch(() => false);
  }
  await poll();
  setInterval(poll, POLL_MS);
}

function signIn() {
  signedIn = true;
  $("login").hidden = true;
  for (const id of ["tiles", "tabs"]) $(id).hidden = false;
  show(view);
  calls.start(filters());
}

function signOut() {
  signedIn = false;
  calls.stop();
  closeTrace();
  for (const id of ["tiles", "tabs", "banner", ...VIEWS.map((name) => `view-${name}`)]) $(id).hidden = true;
  $("login").hidden = false;
  $("link").dataset.state = "";
  $("link-text").textContent = "signed out";
  $("token").focus();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const good = await openSession($("token").value.trim()).catch(() => undefined);
  $("token").value = "";
  $("login-error").textContent = good ? "" : good === undefined ? "The agent does not answer." : "This is not the agent’s token.";
  if (good) await poll();
});

// --- state

async function poll() {
  try {
    const status = await ask("/api/v1/status");
    if (!signedIn) signIn();
    figures(status);
    banner(status);
    if (view === "agent") agent(status);
    if (view === "calls" && !calls.paused) await openCalls.refresh(filters(), status.store.open);
    if (view === "endpoints") await endpoints.refresh();
  } catch (error) {
    if (error instanceof Unauthorized) {
      if ($("login").hidden) signOut();
    } else if (!signedIn) {
      $("link").dataset.state = "lost";
      $("link-text").textContent = "no answer from the agent, trying again";
    }
  }
}

const sum = (list, key) => list.reduce((total, item) => total + item[key], 0);

function figures(status) {
  const at = performance.now();
  const lost = sum(status.losses, "count");
  $("tile-calls").textContent = count(status.store.calls);
  $("tile-lost").textContent = count(lost);
  $("tile-lost").className = lost ? "warn" : "";
  const coverage = status.coverage_ratio;
  // Never rounded up to 100 %.
  $("tile-coverage").textContent = coverage == null ? "–" : `${(Math.floor(coverage * 10_000) / 100).toFixed(coverage === 1 ? 0 : 2)} %`;
  $("tile-coverage").className = coverage == null || coverage >= 0.9999 ? "" : "warn";
  $("tile-memory").textContent = bytes(status.memory_bytes);
  $("tile-memory").title = `limit ${bytes(status.memory_limit_bytes)}`;
  $("tile-mode").textContent = visible(status.mode);
  if (previous && status.uptime_seconds > previous.status.uptime_seconds) {
    const seconds = (at - previous.at) / 1000;
    const rate = (status.store.calls - previous.status.store.calls) / seconds;
    rates.push(rate);
    if (rates.length > 60) rates.shift();
    $("tile-rate").textContent = rate >= 100 ? count(Math.round(rate)) : rate.toFixed(1);
    $("tile-cpu").textContent = `${((100 * (status.cpu_seconds - previous.status.cpu_seconds)) / seconds).toFixed(1)} %`;
    $("tile-cpu").title = "of one core";
    spark();
  }
  previous = { at, status };
}

function spark() {
  const top = Math.max(1, ...rates);
  const step = 120 / Math.max(14, rates.length - 1);
  const points = rates.map((rate, index) => `${(120 - (rates.length - 1 - index) * step).toFixed(1)},${(26 - (24 * rate) / top).toFixed(1)}`);
  document.querySelector("#spark polyline").setAttribute("points", points.join(" "));
}

function banner(status) {
  const lines = [];
  const line = (title, text) => lines.push(element("p", "", null, element("strong", "", title), ` ${text}`));
  if (status.readiness === "blind") line("Nothing is observed:", "no probe could be attached.");
  if (status.readiness === "starting") line("Starting:", "probes are being attached.");
  const missing = status.probes.filter((probe) => !probe.attached);
  if (status.readiness !== "starting" && missing.length > 0) {
    line("Not attached:", missing.map((probe) => `${visible(probe.name)}${probe.reason ? ` (${visible(probe.reason)})` : ""}`).join("; "));
  }
  const losses = status.losses.filter((loss) => loss.count > 0);
  if (losses.length > 0) line("Lost:", losses.map((loss) => `${count(loss.count)} ${visible(loss.stage)}/${visible(loss.reason)}`).join(", "));
  if (status.blind_spots.length > 0) line("Not seen:", status.blind_spots.map(visible).join("; "));
  $("banner").className = status.readiness === "blind" ? "banner bad" : "banner";
  $("banner").hidden = lines.length === 0;
  // Only a change is read out.
  const text = lines.map((node) => node.textContent).join("\n");
  if ($("banner").dataset.text !== text) {
    $("banner").dataset.text = text;
    $("banner").replaceChildren(...lines);
  }
}

function agent(status) {
  const card = (title, items) => element("section", "card", null, element("h2", "", title), element("ul", "", null, ...items));
  const item = (name, value, kind, note) => {
    const left = element("span", "", name);
    if (note) left.append(element("small", "", note));
    return element("li", "", null, left, element("span", kind ?? "", value));
  };
  const or = (items, text) => (items.length > 0 ? items : [item(text, "")]);
  const minutes = Math.floor(status.uptime_seconds / 60);
  const uptime = minutes < 1 ? `${Math.floor(status.uptime_seconds)} s` : minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const store = status.store;
  $("agent").replaceChildren(
    card("Agent", [
      item("Version", visible(status.version)), item("Mode", visible(status.mode)),
      item("State", status.readiness, status.readiness === "ready" ? "good" : status.readiness === "blind" ? "bad" : "warn"),
      item("Up", uptime), item("CPU time", `${status.cpu_seconds.toFixed(1)} s`),
      item("Memory", `${bytes(status.memory_bytes)} of ${bytes(status.memory_limit_bytes)}`),
    ]),
    card("Probes", or(status.probes.map((probe) => item(visible(probe.name), probe.attached ? "attached" : "missing", probe.attached ? "good" : "bad", probe.reason && visible(probe.reason))), "none planned")),
    card("Losses", or(status.losses.map((loss) => item(`${visible(loss.stage)} / ${visible(loss.reason)}`, count(loss.count), loss.count ? "warn" : "")), "none")),
    card("Exporters", or(status.exporters.map((exporter) => item(visible(exporter.name), `${count(exporter.sent)} sent, ${count(exporter.lost)} lost`, exporter.lost ? "warn" : "", exporter.last_error && visible(exporter.last_error))), "none: calls are shown here and not sent anywhere")),
    card("Recent calls", [
      item("Kept", `${count(store.kept)} calls, ${bytes(store.kept_bytes)}`), item("Made room for newer ones", count(store.evicted)),
      item("Going on", `${count(store.open)} calls`), item("Endpoints", count(store.endpoints)), item("Calls without room for their endpoint", count(store.endpoint_overflow)),
      item("Live streams", count(store.subscribers)), item("Not shown on slow streams", count(store.subscriber_dropped)),
    ]),
    card("Not seen", or(status.blind_spots.map((spot) => item(visible(spot), "")), "no known blind spot")),
  );
}

// --- views

function show(name) {
  view = name;
  for (const other of VIEWS) {
    const selected = other === name;
    $(`tab-${other}`).setAttribute("aria-selected", String(selected));
    $(`tab-${other}`).tabIndex = selected ? 0 : -1;
    $(`view-${other}`).hidden = !selected;
  }
}

for (const name of VIEWS) {
  $(`tab-${name}`).addEventListener("click", () => {
    show(name);
    poll();
  });
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: VIEWS.length - 1 }[event.key];
    if (!step) return;
    const next = VIEWS[(VIEWS.indexOf(name) + step) % VIEWS.length];
    $(`tab-${next}`).click();
    $(`tab-${next}`).focus();
  });
}

// --- filters

function filters() {
  const chosen = [...new FormData($("filters"))].filter(([, value]) => value.trim() !== "");
  return new URLSearchParams(chosen.map(([name, value]) => [name, value.trim()]));
}

let typing;
$("filters").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => calls.start(filters()), 250);
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => calls.clear());
$("pause").addEventListener("click", () => pause(!calls.paused));

function pause(paused) {
  calls.pause(paused);
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Resume" : "Pause";
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && closeTrace()) return;
  if (event.target.closest("input, select, button, textarea") || view !== "calls" || !signedIn) return;
  if (event.key === " ") {
    event.preventDefault();
    pause(!calls.paused);
  }
});

begin();
