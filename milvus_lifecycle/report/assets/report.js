// The report's timeline: fills Bokeh's figures with what is in view, and answers the pointer.
"use strict";

const LOOKS = JSON.parse(document.getElementById("looks").textContent);
const WORST = ["IDLE", "ACTIVE", "CLOSED", "PROBING", "RECOVERING"];
const PAGE_LANES = 40, BINS = 300;
const $ = (id) => document.getElementById(id);

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// -- the data ---------------------------------------------------------------------------------

// What the reader's clock is ahead of UTC at a moment.
const offset = (ms) => -60_000 * new Date(ms).getTimezoneOffset();

class Log {
  constructor(data) {
    Object.assign(this, data);
    // Bokeh knows of UTC alone: moments are moved so that its axis shows the reader's clock.
    this.shift = offset(this.since);
    this.since += this.shift;
    this.count = this.lanes.id.length;
    this.total = this.stays.start.length;
    this.rank = this.states.map((state) => WORST.indexOf(state));
    this.until = this.since + this.span;
  }
  first(lane) { return this.lanes.first[lane]; }
  end(lane) { return lane + 1 < this.count ? this.lanes.first[lane + 1] : this.total; }
  text(column, row) { return this.texts[column[row]]; }
  address(lane) { return this.text(this.lanes.address, lane); }
  start(stay) { return this.since + this.stays.start[stay]; }
  // The last stay goes on to the end of the log, unless it is CLOSED: then it has no length.
  stop(stay, lane) {
    if (stay + 1 < this.end(lane)) return this.start(stay + 1);
    return this.states[this.stays.state[stay]] === "CLOSED" ? this.start(stay) : this.until;
  }
  alive(lane, from, to) {
    const last = this.end(lane) - 1;
    return this.start(this.first(lane)) <= to && this.stop(last, lane) >= from;
  }
  // The index of the last stay of a lane that starts at or before a moment; -1 for none.
  at(lane, moment) {
    let low = this.first(lane), high = this.end(lane);
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.start(middle) <= moment) low = middle + 1; else high = middle;
    }
    return low - 1 >= this.first(lane) ? low - 1 : -1;
  }
}

// -- what is shown ----------------------------------------------------------------------------

function chooseLanes(log, { filter, order, troubled, view }) {
  const wanted = filter.trim().toLowerCase();
  const lanes = [];
  for (let lane = 0; lane < log.count; lane++) {
    if (troubled && !log.lanes.outages[lane]) continue;
    if (view && !log.alive(lane, ...view)) continue;
    const words = `${log.address(lane)} ${log.lanes.id[lane]}`.toLowerCase();
    if (!wanted || words.includes(wanted)) lanes.push(lane);
  }
  const start = (lane) => log.stays.start[log.first(lane)] ?? 0;
  if (order === "address") {
    lanes.sort((a, b) => log.address(a).localeCompare(log.address(b)) || start(a) - start(b));
  } else if (order === "start") {
    lanes.sort((a, b) => start(a) - start(b));
  }
  return lanes; // the data come with the most time in outages first
}

// Bars for the lanes of a page between two moments. Stays narrower than a pixel share one bar of
// the worst among them, and what hurts is never drawn narrower than two pixels.
function bars(log, lanes, from, to, width) {
  const pixel = (to - from) / Math.max(1, width);
  const found = WORST.map(() => []);
  lanes.forEach((lane, row) => {
    const y = lanes.length - row - 0.5;
    const push = (left, right, state) => {
      const rank = log.rank[state];
      if (rank < 0) return;
      const least = (rank >= 3 ? 2 : 1.3) * pixel;
      if (right - left < least) right = left + least;
      found[rank].push([Math.max(left, from), Math.min(right, to + least), state, y]);
    };
    let open = null;
    for (let stay = Math.max(log.at(lane, from), log.first(lane)); stay < log.end(lane); stay++) {
      const left = log.start(stay), right = log.stop(stay, lane), state = log.stays.state[stay];
      if (left > to) break;
      if (open && right - open[0] < pixel) {
        open[1] = right;
        if (log.rank[state] > log.rank[open[2]]) open[2] = state;
        continue;
      }
      if (open) push(...open);
      open = [left, right, state];
    }
    if (open && open[1] >= from) push(...open);
  });
  const data = { left: [], right: [], bottom: [], top: [], color: [] };
  for (const [left, right, state, y] of found.flat()) {
    const [color, height] = LOOKS[log.states[state]];
    data.left.push(left); data.right.push(right); data.color.push(color);
    data.bottom.push(y - 0.42 * height); data.top.push(y + 0.42 * height);
  }
  return data;
}

// How many connections were in which state, on average, in each of BINS slices of the log.
function shares(log, lanes) {
  const step = log.span / BINS;
  const live = log.states.filter((state) => state !== "CLOSED");
  const sums = live.map(() => new Float64Array(BINS));
  for (const lane of lanes) {
    for (let stay = log.first(lane); stay < log.end(lane); stay++) {
      const bins = sums[live.indexOf(log.states[log.stays.state[stay]])];
      if (!bins) continue;
      const left = log.start(stay) - log.since, right = log.stop(stay, lane) - log.since;
      const last = Math.min(BINS - 1, Math.floor(right / step));
      for (let bin = Math.max(0, Math.floor(left / step)); bin <= last; bin++) {
        bins[bin] += Math.max(0, Math.min(right, (bin + 1) * step) - Math.max(left, bin * step));
      }
    }
  }
  const data = { left: [], right: [], bottom: [], top: [], color: [] };
  const order = ["RECOVERING", "PROBING", "ACTIVE", "IDLE"];
  let peak = 0;
  for (let bin = 0; bin < BINS; bin++) {
    let height = 0;
    for (const state of order) {
      const part = sums[live.indexOf(state)]?.[bin] / step;
      if (!(part > 0)) continue;
      // A little wider than the slice: no seams between neighbours.
      data.left.push(log.since + bin * step); data.right.push(log.since + (bin + 1.1) * step);
      data.bottom.push(height); data.top.push(height + part); data.color.push(LOOKS[state][0]);
      height += part;
    }
    peak = Math.max(peak, height);
  }
  return [data, peak];
}

// -- a record ---------------------------------------------------------------------------------

function element(tag, text, parent, name) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (name) made.className = name;
  parent?.append(made);
  return made;
}

function duration(ms) {
  const steps = [[1, 1e-3, "µs"], [1e3, 1, "ms"], [1e5, 1e3, "s"], [6e6, 6e4, "min"], [1.728e8, 3.6e6, "h"]];
  const [, unit, name] = steps.find(([limit]) => ms < limit) ?? [0, 8.64e7, "d"];
  const value = ms / unit;
  return `${value && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${name}`;
}

const clock = (ms) => new Date(ms + offset(ms)).toISOString().replace("T", " ").replace("Z", "");

function fieldsOf(log, lane, stay) {
  const { stays, lanes } = log;
  const [start, stop] = [log.start(stay), log.stop(stay, lane)];
  const state = log.states[stays.state[stay]] ?? "?";
  const entered = stays.trigger[stay] !== 0;
  const open = stay + 1 === log.end(lane) && state !== "CLOSED";
  const fields = [
    ["from", clock(start - log.shift)],
    ["for", state === "CLOSED" ? null : duration(stop - start) + (open ? ", until the log ends" : "")],
    ["reason", entered ? log.text(stays.reason, stay) : "the log starts later than the connection"],
    ["error_code", log.text(stays.error_code, stay)],
    ["address", log.text(stays.address, stay) || log.address(lane)],
    ["connection_id", lanes.id[lane]],
    ["seq", stays.seq[stay]],
    ["generation", stays.generation[stay]],
    ["attempt", stays.attempt[stay]],
    ["clients", stays.clients[stay]],
    ["in_flight", stays.in_flight[stay]],
    ["waiting", stays.waiting[stay] || null],
    ["waited", stays.waited[stay] || null],
    ["failed", stays.failed[stay] || null],
    ["dwell_s", stays.dwell_s[stay]],
    ["topology_version", stays.topology_version[stay]],
    ["strategy", `${log.text(lanes.strategy, lane)}, ${log.text(lanes.flavour, lane)}`],
    ["pid", lanes.pid[lane]],
    ["thread_name", log.text(stays.thread_name, stay)],
    ["merged", stays.merged[stay] > 1 ? `the worst of ${stays.merged[stay]} records` : null],
  ];
  return fields.filter(([, value]) => value !== null && value !== "" && value !== undefined);
}

function describe(log, lane, stay, parent, brief) {
  const { stays } = log;
  const state = log.states[stays.state[stay]] ?? "?";
  const head = element("div", null, parent, "record-head");
  element("span", null, head, "dot").style.background = LOOKS[state]?.[0] ?? "#999";
  element("b", state, head);
  if (stays.trigger[stay]) {
    const source = log.text(stays.source, stay);
    element("span", `${log.text(stays.trigger, stay)}${source ? ` from ${source}` : ""}`, head);
  }
  const list = element("dl", null, parent, "fields");
  const hidden = brief ? ["strategy", "dwell_s", "pid", "thread_name", "topology_version"] : [];
  for (const [name, value] of fieldsOf(log, lane, stay)) {
    if (hidden.includes(name)) continue;
    const row = brief ? list : element("div", null, list);
    element("dt", name, row); element("dd", value, row);
  }
  return head;
}

// Begun before Bokeh's script is read: unpacking does not wait for it.
const unpacked = unpack($("packed").textContent);
