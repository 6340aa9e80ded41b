// The live table of calls: keeps the newest rows, draws at most once per frame, and says when it could not keep up.

import { aboveHttp, count, element, latency, methodOf, peerOf, serviceOf, statusBadge, timeOfDay, visible } from "./client.js";

const KEEP = 300;
// More calls a second nobody reads; the agent leaves them out and says how many.
const RATE = 200;
const SERVICES = 200;
const RETRY_MS = 1500;

export class Calls {
  /** `onState(state, text)` tells of the connection; `onTrace(id, span)` is a click on a row. */
  constructor({ onState, onTrace, onUnauthorized }) {
    this.onState = onState;
    this.onTrace = onTrace;
    this.onUnauthorized = onUnauthorized;
    this.table = document.querySelector("#calls");
    this.body = document.querySelector("#calls-live");
    this.empty = document.querySelector("#calls-empty");
    this.waiting = [];
    this.paused = false;
    this.unseen = 0;
    this.services = new Set();
    this.last = undefined;
    this.table.addEventListener("click", (event) => this.open(event.target.closest("tr")));
    this.table.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Begin again with these filters. */
  start(query) {
    this.stop();
    this.query = query;
    this.last = undefined;
    this.dropped = 0;
    this.clear();
    this.connect();
  }

  stop() {
    this.source?.close();
    clearTimeout(this.timer);
  }

  clear() {
    this.body.replaceChildren();
    this.waiting = [];
    this.empty.hidden = false;
  }

  pause(paused) {
    this.paused = paused;
    if (!paused) {
      this.unseen = 0;
      this.schedule();
    }
    this.tell();
  }

  async connect() {
    const query = new URLSearchParams(this.query);
    try {
      if (this.last === undefined) {
        const recent = await fetch(`/api/v1/calls?${new URLSearchParams([...query, ["limit", "100"]])}`);
        if (recent.status === 401) return this.onUnauthorized();
        const page = await recent.json();
        if (!recent.ok) throw new Error(page.error);
        if (String(query) !== String(new URLSearchParams(this.query))) return;
        this.last = page.next;
        page.calls.forEach((call) => this.add(call, false));
      }
    } catch {
      return this.retry();
    }
    query.set("since", this.last);
    query.set("rate", RATE);
    this.source?.close();
    const source = new EventSource(`/api/v1/calls/stream?${query}`);
    this.source = source;
    source.addEventListener("open", () => this.tell("live"));
    source.addEventListener("call", (event) => {
      this.last = event.lastEventId || this.last;
      this.add(JSON.parse(event.data), true);
    });
    source.addEventListener("lost", (event) => {
      this.dropped = (this.dropped || 0) + (JSON.parse(event.data).dropped || 0);
      this.tell();
    });
    source.addEventListener("error", () => {
      // The browser's own retry gives up on a refusal and does not tell why.
      source.close();
      this.retry();
    });
  }

  retry() {
    this.tell("lost");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      fetch("/api/v1/calls?limit=1").then(
        async (answer) => {
          if (answer.status === 401) return this.onUnauthorized();
          // A restarted agent counts from the start: what it has now is new.
          const { next } = await answer.json();
          if (Number(this.last) > next) this.last = undefined;
          return this.connect();
        },
        () => this.retry(),
      );
    }, RETRY_MS);
  }

  tell(state) {
    if (state) this.state = state;
    const skipped = this.dropped ? `, a sample: ${count(this.dropped)} left out of this list` : "";
    if (this.state === "lost") this.onState("lost", "no answer from the agent, trying again");
    else if (this.paused) this.onState("paused", `paused, ${this.unseen} new`);
    else if (this.state === "live") this.onState("live", `live${skipped}`);
  }

  add(call, fresh) {
    this.waiting.push([call, fresh]);
    if (this.waiting.length > KEEP) this.waiting.shift();
    if (this.paused) {
      this.unseen += 1;
      if (this.unseen < 100 || this.unseen % 50 === 0) this.tell();
    } else {
      this.schedule();
    }
  }

  schedule() {
    if (this.frame || this.paused) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    if (this.paused || this.waiting.length === 0) return;
    const batch = this.waiting.splice(0);
    // A flash for each of many a second is noise.
    const now = performance.now();
    const flash = batch.length < 8 && now - (this.drawn ?? 0) > 300;
    this.drawn = now;
    const rows = document.createDocumentFragment();
    for (const [call, fresh] of batch.reverse()) {
      rows.append(this.row(call, fresh && flash));
      this.remember(serviceOf(call));
    }
    this.body.prepend(rows);
    while (this.body.childElementCount > KEEP) this.body.lastElementChild.remove();
    this.empty.hidden = true;
  }

  row(call, fresh) {
    const row = element("tr", fresh ? "fresh" : "");
    row.tabIndex = -1;
    row.dataset.trace = call.trace_id || "";
    row.dataset.span = call.span_id || "";
    const cell = (kind, text, ...children) => row.append(element("td", kind, text, ...children));
    cell("c-time", timeOfDay(call.timestamp));
    cell("c-side", null, element("span", `side ${call.span_kind === "client" ? "client" : "server"}`, call.span_kind));
    cell("c-service", serviceOf(call));
    cell("c-method", methodOf(call));
    const path = element("td", "c-path", visible(call["url.path"] ?? "unknown"));
    if (call["url.query"]) path.append(element("span", "muted", `?${visible(call["url.query"])}`));
    path.title = visible(call["http.route"] ? `${call["url.path"]}\nroute ${call["http.route"]}` : call["url.path"]);
    const above = aboveHttp(call);
    if (above.text) path.append(element("span", "above", above.text));
    if (above.problem) path.append(element("span", "flag", above.problem));
    if (call["weir.in_progress"]) path.append(element("span", "flag going", "goes on"));
    if (call["weir.incomplete"]) path.append(element("span", "flag", visible(call["weir.incomplete"]).replaceAll("_", " ")));
    row.append(path);
    cell("c-status", null, statusBadge(call));
    cell("c-latency", latency(call.duration_ns));
    cell("c-peer", peerOf(call));
    cell("c-trace", (call.trace_id || "").slice(0, 8));
    if (!this.body.querySelector("tr[tabindex='0']")) row.tabIndex = 0;
    return row;
  }

  remember(service) {
    if (this.services.has(service) || this.services.size >= SERVICES) return;
    this.services.add(service);
    const option = document.createElement("option");
    option.value = service;
    document.querySelector("#services").append(option);
  }

  onKey(event) {
    const row = event.target.closest("tr");
    const next = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
    if (event.key === "Enter") this.open(row);
    else if (!next) return;
    else {
      row.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
    event.preventDefault();
  }

  open(row) {
    if (!row?.dataset.trace) return;
    this.table.querySelector("[aria-selected='true']")?.removeAttribute("aria-selected");
    row.setAttribute("aria-selected", "true");
    this.onTrace(row.dataset.trace, row.dataset.span, row);
  }
}
