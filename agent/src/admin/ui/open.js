// Calls that go on: streams and slow answers, above the live list until their end takes them there.

import { ask } from "./client.js";

// More at a time nobody watches; the number of all is on the page.
const SHOWN = 20;

export class OpenCalls {
  /** `row` makes the row of a call. */
  constructor(row) {
    this.row = row;
    this.body = document.querySelector("#calls-open");
  }

  /** Draw them anew; `query` are the filters of the list below, `held` how many there are. */
  async refresh(query, held) {
    if (held === 0) return this.body.replaceChildren();
    const { calls } = await ask(`/api/v1/calls/open?${new URLSearchParams([...query, ["limit", String(SHOWN)]])}`);
    const selected = this.body.querySelector("[aria-selected='true']")?.dataset.span;
    const focused = this.body.contains(document.activeElement) && document.activeElement.dataset.span;
    // Newest first, as below.
    const rows = calls.reverse().map((call) => this.row(call));
    for (const row of rows) if (row.dataset.span === selected) row.setAttribute("aria-selected", "true");
    this.body.replaceChildren(...rows);
    rows.find((row) => row.dataset.span === focused)?.focus();
  }
}
