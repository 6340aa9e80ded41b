// One trace as a waterfall: spans under their parents, on a common axis.

import { ask, element, latency, methodOf, serviceOf, statusBadge, svg, visible } from "./client.js";

const panel = document.querySelector("#trace");
const MAX_DEPTH = 12;
let request;
let opener;

/** Show the trace `id` with the span `selected` opened; `row` gets the focus back on close. */
export async function showTrace(id, selected, row) {
  request?.abort();
  request = new AbortController();
  opener = row;
  panel.hidden = false;
  panel.parentElement.classList.add("open");
  try {
    const trace = await ask(`/api/v1/traces/${encodeURIComponent(id)}`, request.signal);
    draw(id, trace.calls, selected);
  } catch (error) {
    if (error.name === "AbortError") return;
    draw(id, [], selected, error.message);
  }
}

export function closeTrace() {
  if (panel.hidden) return false;
  request?.abort();
  panel.hidden = true;
  panel.parentElement.classList.remove("open");
  document.querySelector("#calls [aria-selected='true']")?.removeAttribute("aria-selected");
  if (opener?.isConnected) opener.focus();
  return true;
}

function draw(id, calls, selected, problem) {
  const close = element("button", "", "Close");
  close.type = "button";
  close.title = "Escape";
  close.addEventListener("click", closeTrace);
  const spans = ordered(calls);
  const start = Math.min(...spans.map(({ begin }) => begin));
  const length = Math.max(1, Math.max(...spans.map(({ begin, call }) => begin + call.duration_ns)) - start);
  const count = spans.length === 1 ? "1 span" : `${spans.length} spans`;
  panel.replaceChildren(
    element("header", "", null, element("h2", "", `Trace, ${count}`), close),
    element("p", "id", id),
  );
  if (problem) return panel.append(element("p", "muted", problem));
  panel.append(element("div", "axis", null, element("span", "", "0"), element("span", "", latency(length / 2)), element("span", "", latency(length))));
  // Below the waterfall, so that opening a span does not push the others away.
  const fields = element("dl", "fields");
  const buttons = spans.map((span) => row(span, start, length));
  const open = (index) => {
    buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === index)));
    fields.replaceChildren(...fieldsOf(spans[index].call));
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => open(index)));
  panel.append(...buttons, fields);
  open(Math.max(0, spans.findIndex(({ call }) => call.span_id === selected)));
}

/** Nanoseconds after the epoch as offset to the first call's second: whole nanoseconds do not fit a number. */
function beginnings(calls) {
  const second = Math.min(...calls.map((call) => Math.floor(Date.parse(call.timestamp) / 1000)));
  return calls.map((call) => {
    const fraction = /\.(\d{1,9})/.exec(call.timestamp)?.[1] ?? "0";
    return (Math.floor(Date.parse(call.timestamp) / 1000) - second) * 1e9 + Number(fraction.padEnd(9, "0"));
  });
}

/** Depth first, siblings by time; spans whose parent is not here stand at the top. */
function ordered(calls) {
  const begin = beginnings(calls);
  const spans = calls.map((call, index) => ({ call, begin: begin[index], depth: 0 }));
  spans.sort((a, b) => a.begin - b.begin || b.call.duration_ns - a.call.duration_ns);
  const known = new Set(calls.map((call) => call.span_id));
  const children = Map.groupBy ? Map.groupBy(spans, parentOf) : group(spans, parentOf);
  function parentOf({ call }) {
    return known.has(call.parent_span_id) && call.parent_span_id !== call.span_id ? call.parent_span_id : "";
  }
  const sorted = [];
  const seen = new Set();
  const stack = [...(children.get("") ?? [])].reverse();
  while (stack.length > 0) {
    const span = stack.pop();
    if (seen.has(span)) continue;
    seen.add(span);
    sorted.push(span);
    const below = [...(children.get(span.call.span_id) ?? [])].reverse();
    below.forEach((child) => (child.depth = span.depth + 1));
    stack.push(...below);
  }
  // Parents in a circle have no top: they still are calls.
  return [...sorted, ...spans.filter((span) => !seen.has(span))];
}

function group(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

function row({ call, begin, depth }, start, length) {
  const side = call.span_kind === "client" ? "client" : "server";
  const name = `${methodOf(call)} ${visible(call["http.route"] || call["url.path"] || "")}`;
  const what = element("span", "what", null, element("span", `side ${side}`, side), element("strong", "", serviceOf(call)), element("span", "name", name), statusBadge(call), element("span", "took", latency(call.duration_ns)));
  const x = (1000 * (begin - start)) / length;
  const width = Math.max(4, (1000 * call.duration_ns) / length);
  const failed = call["error.type"] ? " failed" : "";
  const track = svg("svg", { class: "track", viewBox: "0 0 1000 9", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "rail", x: 0, y: 0, width: 1000, height: 9, rx: 2 }),
    svg("rect", { class: `bar ${side}${failed}`, x: Math.min(x, 996), y: 0, width, height: 9, rx: 2 }));
  const button = element("button", "span", null, what, track);
  button.type = "button";
  // The one style that is set here is a number of ours.
  what.style.paddingLeft = `${Math.min(depth, MAX_DEPTH) * 14}px`;
  return button;
}

function fieldsOf(call) {
  return Object.entries(call).flatMap(([key, value]) => {
    const shown = typeof value === "object" ? JSON.stringify(value) : value;
    return [element("dt", "", visible(key)), element("dd", "", visible(shown))];
  });
}
