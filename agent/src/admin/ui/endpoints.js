// The table of endpoints: sortable, searched as one types, rates from one poll to the next.

import { ago, ask, count, element, latency, visible } from "./client.js";

const COLUMNS = [
  ["service", "Service", "c-service", (e) => e.service],
  ["side", "Side", "c-side", (e) => e.side],
  ["method", "Method", "c-method", (e) => e.method],
  ["route", "Route", "e-route c-path", (e) => e.route],
  ["rate", "Calls/s", "c-number", (e) => e.rate],
  ["calls", "Calls", "c-number", (e) => e.calls],
  ["errors", "Errors", "c-number", (e) => e.errors],
  ["p50", "p50", "c-number", (e) => e.p50],
  ["p95", "p95", "c-number", (e) => e.p95],
  ["p99", "p99", "c-number", (e) => e.p99],
  ["seen", "Last seen", "c-number", (e) => e.seen],
];
const TEXT = new Set(["service", "side", "method", "route"]);
/** Rows drawn; the search finds the others. */
const MAX_ROWS = 500;

export class Endpoints {
  constructor() {
    this.sort = "calls";
    this.ascending = false;
    this.list = [];
    this.before = new Map();
    this.head = document.querySelector("#endpoints thead tr");
    this.body = document.querySelector("#endpoints tbody");
    this.find = document.querySelector("#endpoint-find");
    this.find.addEventListener("input", () => this.draw());
    for (const [key, title, kind] of COLUMNS) {
      const button = element("button", "", title);
      button.type = "button";
      button.addEventListener("click", () => this.sortBy(key));
      const cell = element("th", kind, null, button);
      cell.scope = "col";
      cell.dataset.key = key;
      this.head.append(cell);
    }
  }

  sortBy(key) {
    this.ascending = this.sort === key ? !this.ascending : TEXT.has(key);
    this.sort = key;
    this.draw();
  }

  async refresh() {
    const answer = await ask("/api/v1/endpoints");
    const now = performance.now();
    const seconds = (now - (this.at ?? now)) / 1000;
    this.at = now;
    const before = this.before;
    this.before = new Map();
    this.overflow = answer.overflow;
    this.list = answer.endpoints.map((e) => {
      const [service, side, method, route] = [e["service.name"], e.span_kind, e["http.request.method"], e["http.route"]];
      const key = JSON.stringify([service, side, method, route]);
      this.before.set(key, e.calls);
      const rate = seconds > 0 ? Math.max(0, e.calls - (before.get(key) ?? 0)) / seconds : 0;
      return {
        service: visible(service ?? "–"), side, method: visible(method ?? "–"), route: visible(route ?? "–"),
        rate, calls: e.calls, errors: e.errors, p50: e.duration_p50_ns, p95: e.duration_p95_ns, p99: e.duration_p99_ns, seen: e.last_seen_unix_ms,
      };
    });
    this.draw();
  }

  draw() {
    const words = this.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const value = COLUMNS.find(([key]) => key === this.sort)[3];
    const order = this.ascending ? 1 : -1;
    const matching = this.list.filter((e) => {
      const text = `${e.service} ${e.side} ${e.method} ${e.route}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    matching.sort((a, b) => order * (TEXT.has(this.sort) ? value(a).localeCompare(value(b)) : value(a) - value(b)) || a.route.localeCompare(b.route) || a.side.localeCompare(b.side));
    for (const cell of this.head.children) {
      if (cell.dataset.key === this.sort) cell.setAttribute("aria-sort", this.ascending ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    this.body.replaceChildren(...matching.slice(0, MAX_ROWS).map(row));
    document.querySelector("#endpoints-empty").hidden = matching.length > 0;
    const more = matching.length > MAX_ROWS ? `, the first ${MAX_ROWS} shown` : "";
    const overflow = this.overflow ? `, ${count(this.overflow)} calls of further endpoints only counted` : "";
    document.querySelector("#endpoint-note").textContent = `${count(matching.length)} endpoints${more}${overflow}`;
  }
}

function row(e) {
  const line = element("tr");
  const cell = (kind, text, ...children) => line.append(element("td", kind, text, ...children));
  cell("c-service", e.service);
  cell("c-side", null, element("span", `side ${e.side === "client" ? "client" : "server"}`, e.side));
  cell("c-method", e.method);
  const route = element("td", "e-route c-path", e.route);
  route.title = e.route;
  line.append(route);
  cell("c-number", e.rate >= 100 ? count(Math.round(e.rate)) : e.rate.toFixed(1));
  cell("c-number", count(e.calls));
  const share = e.calls > 0 ? (100 * e.errors) / e.calls : 0;
  cell(`c-number ${e.errors ? "bad" : "muted"}`, e.errors ? `${count(e.errors)} · ${share < 10 ? share.toFixed(1) : share.toFixed(0)}%` : "0");
  cell("c-number", latency(e.p50));
  cell("c-number", latency(e.p95));
  cell("c-number", latency(e.p99));
  cell("c-number muted", ago(e.seen));
  return line;
}
