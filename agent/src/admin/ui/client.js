// Requests to the agent, and how its figures are written. Everything shown goes through textContent: paths, names and
// headers were sent by strangers.

/** The agent wants the token. */
export class Unauthorized extends Error {}

export async function ask(path, signal) {
  const response = await fetch(path, { signal, cache: "no-store", credentials: "same-origin" });
  if (response.status === 401) throw new Unauthorized("a token is needed");
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `the agent answered ${response.status}`);
  return answer;
}

/** Exchange the token for a cookie; false when it is wrong. */
export async function openSession(token) {
  const headers = { Authorization: `Bearer ${token}` };
  const response = await fetch("/api/v1/session", { method: "POST", headers, credentials: "same-origin" });
  return response.ok;
}

/** An element with classes, text and children. */
export function element(tag, classes, text, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text !== undefined && text !== null) node.textContent = text;
  node.append(...children);
  return node;
}

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Controls and marks that reorder text would make a path look like another.
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const escaped = (c) => `\\u{${c.charCodeAt(0).toString(16)}}`;

/** Text of the observed traffic, with what cannot be seen made visible. */
export const visible = (text) => String(text ?? "").replace(UNSAFE, escaped);

export function latency(ns) {
  if (!Number.isFinite(ns)) return "";
  if (ns < 1e6) return `${(ns / 1e3).toFixed(0)} µs`;
  if (ns < 1e9) return `${(ns / 1e6).toFixed(ns < 1e7 ? 2 : 1)} ms`;
  return `${(ns / 1e9).toFixed(2)} s`;
}

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const WHOLE = new Intl.NumberFormat("en");
export const count = (n) => (n < 100_000 ? WHOLE.format(n) : SHORT.format(n));

export function bytes(n) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (n < 1024) return `${n < 10 && unit !== "B" ? n.toFixed(1) : Math.round(n)} ${unit}`;
    n /= 1024;
  }
  return `${n.toFixed(1)} GiB`;
}

const two = (n) => String(n).padStart(2, "0");

/** Local time of day with milliseconds. */
export function timeOfDay(timestamp) {
  const date = new Date(timestamp);
  if (Number.isNaN(date.getTime())) return "";
  const ms = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${ms}`;
}

export function ago(ms) {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

export const serviceOf = (call) => visible(call["service.name"] || call["process.executable.name"] || "–");

export const methodOf = (call) => {
  const method = call["http.request.method"];
  return visible((method === "_OTHER" && call["http.request.method_original"]) || method || "–");
};

/** A coloured status: the code, or a dash for a call without response. */
export function statusBadge(call) {
  const code = call["http.response.status_code"];
  const badge = element("span", `status s${code ? Math.floor(code / 100) : 0}`, code ?? "–");
  if (call["error.type"]) badge.title = visible(call["error.type"]);
  return badge;
}

const arrow = (call, side, mark) => {
  const messages = call[`weir.${side}.messages`];
  return messages === undefined ? "" : `${mark}${count(messages)}${call[`weir.${side}.messages_exact`] === false ? "+" : ""}`;
};

/** What the call is above HTTP, and what went wrong there, in a few words. */
export function aboveHttp(call) {
  const operation = [call["graphql.operation.type"], call["graphql.operation.name"]];
  const rpc = call["rpc.system"] === "jsonrpc" ? [call["rpc.method"], call["gen_ai.tool.name"]] : [];
  const many = call["weir.graphql.batch_size"] ?? call["weir.jsonrpc.batch_size"];
  const named = [...operation, ...rpc, many && `batch of ${count(many)}`].filter(Boolean).map(visible);
  const messages = [arrow(call, "request", "↑"), arrow(call, "response", "↓")].filter(Boolean).join(" ");
  const kind = messages && visible(call["weir.messages.kind"]).replaceAll("_", " ");
  const code = call["rpc.response.status_code"];
  return { text: [...named, kind, messages].filter(Boolean).join(" "), problem: code && code !== "OK" ? visible(code).replaceAll("_", " ") : "" };
}

export function peerOf(call) {
  const side = call.span_kind === "server" ? "client" : "server";
  const known = call["network.peer.address"] ? "network.peer" : side;
  const address = visible(call[`${known}.address`]);
  const port = call[`${known}.port`];
  if (!address || port === undefined) return address;
  return address.includes(":") && !address.startsWith("unix:") ? `[${address}]:${port}` : `${address}:${port}`;
}
