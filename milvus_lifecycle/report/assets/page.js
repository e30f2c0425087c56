// The report's page: controls, pages of lanes, the pointer, and the tables' rows.
"use strict";

class Page {
  constructor(log, view) {
    this.log = log;
    const model = (name) => view.model.children.find((child) => child.name === name);
    this.overview = model("overview");
    this.figure = model("lanes");
    this.stays = this.figure.renderers[0].data_source;
    this.share = this.overview.renderers[0].data_source;
    this.whole = [this.figure.x_range.start, this.figure.x_range.end];
    this.incidents = [...document.querySelectorAll("li[data-from]")].reverse(); // oldest first
    this.incident = null;
    this.page = 0;
    this.pointer = [0, 0];
    this.waiting = false;
    for (const name of ["start", "end"]) {
      this.figure.x_range.properties[name].change.connect(() => this.moved());
    }
    this.figure.properties.inner_width.change.connect(() => this.redrawSoon());
    this.listen();
    this.choose();
    const linked = document.getElementById(location.hash.slice(1));
    if (linked?.dataset.from) this.visit(linked);
  }

  listen() {
    $("filter").addEventListener("input", () => this.chooseSoon());
    for (const id of ["order", "troubled", "inview"]) {
      $(id).addEventListener("change", () => this.choose());
    }
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("whole").addEventListener("click", () => {
      $("inview").checked = false;
      this.incident = null;
      this.zoom(...this.whole);
      this.search("");
    });
    $("before").addEventListener("click", () => this.leap(-1));
    $("after").addEventListener("click", () => this.leap(1));
    $("before").hidden = $("after").hidden = !this.incidents.length;
    $("back").addEventListener("click", () => this.turn(-1));
    $("more").addEventListener("click", () => this.turn(1));
    // Before Bokeh hears of it: its events say where in the figure, not where on the screen.
    const follow = (event) => { this.pointer = [event.clientX, event.clientY]; };
    addEventListener("pointermove", follow, { capture: true, passive: true });
    this.figure.on_event("mousemove", (event) => this.hover(event));
    this.figure.on_event("mouseleave", () => this.hide());
    this.figure.on_event("tap", (event) => this.keep(this.stayAt(event.x, event.y)));
    $("chart").addEventListener("mouseleave", () => this.hide());
    for (const row of document.querySelectorAll("[data-from]")) {
      row.tabIndex = 0;
      row.addEventListener("click", () => this.visit(row));
      row.addEventListener("keydown", (event) => {
        if (event.key === "Enter") this.visit(row);
      });
    }
  }

  // -- lanes ----------------------------------------------------------------------------------

  chooseSoon() {
    clearTimeout(this.choosing);
    this.choosing = setTimeout(() => this.choose(), 150);
  }

  moved() {
    this.redrawSoon();
    if ($("inview").checked) this.chooseSoon();
  }

  choose() {
    const { start, end } = this.figure.x_range;
    this.lanes = chooseLanes(this.log, {
      filter: $("filter").value,
      order: $("order").value,
      troubled: $("troubled").checked,
      view: $("inview").checked ? [start, end] : null,
    });
    this.page = 0;
    const [data, peak] = shares(this.log, this.lanes);
    this.share.data = data;
    this.overview.y_range.end = Math.max(1, peak * 1.05);
    this.turn(0);
  }

  turn(by) {
    const last = Math.max(0, Math.ceil(this.lanes.length / PAGE_LANES) - 1);
    this.page = Math.min(last, Math.max(0, this.page + by));
    const first = this.page * PAGE_LANES;
    this.visible = this.lanes.slice(first, first + PAGE_LANES);
    $("back").disabled = this.page === 0;
    $("more").disabled = this.page === last;
    const upto = first + this.visible.length, all = this.lanes.length;
    $("shown").textContent = all
      ? `connections ${first + 1} to ${upto} of ${all.toLocaleString("en")}`
      : "no connection matches";
    const count = Math.max(1, this.visible.length);
    const labels = new Map();
    this.visible.forEach((lane, row) => labels.set(count - row - 0.5, this.label(lane)));
    const axis = this.figure.left[0];
    axis.ticker.ticks = [...labels.keys()];
    axis.major_label_overrides = labels;
    this.figure.y_range.setv({ start: 0, end: count });
    this.figure.height = count * (count > 8 ? 17 : 30) + 34;
    this.redraw();
  }

  label(lane) {
    const address = this.log.address(lane);
    const short = address.length > 30 ? `${address.slice(0, 14)}…${address.slice(-15)}` : address;
    return `${short}  ${this.log.lanes.id[lane].slice(0, 8)}`;
  }

  redrawSoon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.redraw(); });
  }

  redraw() {
    const { start, end } = this.figure.x_range;
    const width = this.figure.inner_width || $("chart").clientWidth || 1000;
    this.stays.data = bars(this.log, this.visible, start, end, width);
  }

  zoom(from, to) {
    const [least, most] = this.whole;
    this.figure.x_range.setv({ start: Math.max(least, from), end: Math.min(most, to) });
  }

  // -- the pointer ----------------------------------------------------------------------------

  // The stay at a place; of several within four pixels, the worst.
  stayAt(x, y) {
    const row = this.visible.length - 1 - Math.floor(y);
    const lane = this.visible[row];
    if (lane === undefined) return null;
    const { start, end } = this.figure.x_range;
    const near = (4 * (end - start)) / (this.figure.inner_width || 1000);
    const { log } = this;
    const exact = log.at(lane, x);
    let best = exact >= 0 && x <= log.stop(exact, lane) + near ? exact : null;
    for (let stay = Math.max(log.first(lane), log.at(lane, x - near)); stay < log.end(lane); stay++) {
      if (log.start(stay) > x + near) break;
      if (log.stop(stay, lane) < x - near) continue;
      const rank = (one) => log.rank[log.stays.state[one]];
      if (best === null || rank(stay) > rank(best)) best = stay;
    }
    return best === null ? null : { lane, stay: best };
  }

  hover(event) {
    const found = this.stayAt(event.x, event.y);
    if (!found) { this.hide(); return; }
    const tip = $("tip");
    tip.replaceChildren();
    describe(this.log, found.lane, found.stay, tip, true);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const [x, y] = this.pointer;
    tip.style.left = `${Math.max(4, x + 16 + width > innerWidth ? x - width - 16 : x + 16)}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 8))}px`;
  }

  hide() { $("tip").hidden = true; }

  keep(found) {
    const box = $("record");
    box.replaceChildren();
    box.hidden = !found;
    if (!found) return;
    const { lane, stay } = found;
    const head = describe(this.log, lane, stay, box, false);
    const button = (text, action, on = true) => {
      const made = element("button", text, head);
      made.type = "button";
      made.disabled = !on;
      made.addEventListener("click", action);
    };
    element("span", null, head, "grow");
    const to = (other) => () => this.keep({ lane, stay: other });
    button("‹ Earlier", to(stay - 1), stay > this.log.first(lane));
    button("Later ›", to(stay + 1), stay + 1 < this.log.end(lane));
    button("Only this connection", () => this.search(this.log.lanes.id[lane]));
    button("Close", () => this.keep(null));
  }

  search(text) {
    $("filter").value = text;
    this.choose();
  }

  // From one incident to the next, round and round: what lies between is skipped.
  leap(by) {
    const count = this.incidents.length;
    const here = this.incident ?? (by > 0 ? -1 : count);
    this.visit(this.incidents[(here + by + count) % count]);
  }

  // A row of the tables: its connections, and its time with some room on both sides.
  visit(row) {
    const { from, to, search } = row.dataset, found = this.incidents.indexOf(row);
    this.incident = found < 0 ? null : found;
    const room = Math.max(500, (to - from) * 0.25);
    $("inview").checked = true;
    this.zoom(Number(from) + this.log.shift - room, Number(to) + this.log.shift + room);
    this.search(search);
    $("h-timeline").scrollIntoView({ behavior: "smooth" });
  }
}

function legend() {
  for (const [state, [color, height]] of Object.entries(LOOKS)) {
    const item = element("span", null, $("legend"));
    const mark = element("i", null, item);
    mark.style.background = color;
    mark.style.height = `${Math.round(13 * height)}px`;
    if (state === "CLOSED") mark.style.width = "3px";
    item.append(state);
  }
}

function tellLocalTime() {
  for (const time of document.querySelectorAll("time")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

async function begin() {
  tellLocalTime();
  const log = new Log(await unpacked);
  legend();
  const addresses = [...new Set(log.lanes.address)].map((number) => log.texts[number]).sort();
  for (const address of addresses.slice(0, 500)) element("option", null, $("addresses")).value = address;
  if (!log.total) return;
  // Its ranges of time, of all ranges those that say anything, go by the reader's clock.
  const item = JSON.parse($("chart-item").textContent, (key, value) => {
    if (value?.name === "Range1d" && value.attributes) {
      const { start, end, bounds } = value.attributes, move = (ms) => ms + log.shift;
      Object.assign(value.attributes, { start: move(start), end: move(end) });
      if (bounds) value.attributes.bounds = bounds.map(move);
    }
    return value;
  });
  const views = await Bokeh.embed.embed_item(item, $("chart"));
  window.reportPage = new Page(log, [...views][0]);
}

const drawn = begin().then(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
drawn.then(() => { document.documentElement.dataset.ready = String(Math.round(performance.now())); },
  (error) => {
    document.documentElement.dataset.failed = String(error);
    $("chart").textContent = `The timeline cannot be drawn: ${error}. It needs a browser of 2023 or later.`;
  });
