// One timeline: rows of bars on a canvas. Only what is in view is drawn, so 5,000 steps scroll and zoom at once.

const GUTTER = 168, HEAD = 32, LANE = 34, THIN = 20, LEAST_SPAN = 1e-7;

// Steps at once on one row lie above each other: each gets the first level that is free when it starts.
function levels(items) {
  const ends = [];
  for (const item of items) {
    let level = ends.findIndex((end) => end <= item.start + 1e-12);
    if (level < 0) level = ends.length;
    ends[level] = item.end;
    item.level = level;
  }
  return Math.max(1, ends.length);
}

function rowsOf(side, run, ranks) {
  const bars = run.events.map((event) => ({ start: event[EVENT.start], end: event[EVENT.end], step: event[EVENT.step],
    taken: event[EVENT.taken], moves: event[EVENT.moves] }));
  const rows = side.lanes.map((lane) => ({ label: `${ranks} · ${lane}`, kind: "lane", height: LANE,
    items: bars.filter((bar) => side.steps[bar.step].lane === lane).map((bar) => ({ ...bar })) }));
  rows.push({ label: "exposed transfer", kind: "exposed", height: THIN,
    items: run.exposed.map(([start, end, step]) => ({ start, end, step })) });
  run.resources.forEach((name, i) => rows.push({ label: name, kind: "resource", height: THIN,
    items: bars.filter((bar) => bar.taken.includes(i))
      .map((bar) => ({ ...bar, start: i < run.partitions ? bar.start : bar.moves, moves: undefined })) }));
  let y = HEAD;
  for (const row of rows) {
    row.items.sort((a, b) => a.start - b.start);
    row.levels = levels(row.items);
    row.longest = row.items.reduce((most, item) => Math.max(most, item.end - item.start), 0);
    row.y = y;
    y += row.height + 3;
    if (row.kind === "lane" && rows[rows.indexOf(row) + 1].kind !== "lane") y += 4;
  }
  return { rows, height: y + 4 };
}

// The first item that can reach into what starts at `time`.
function firstAt(row, time) {
  let low = 0, high = row.items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (row.items[middle].start < time - row.longest) low = middle + 1; else high = middle;
  }
  return low;
}

class Timeline {
  constructor(app, sideIndex, run, ranks, words) {
    Object.assign(this, { app, sideIndex, run, side: app.state.sides[sideIndex] });
    Object.assign(this, rowsOf(this.side, run, ranks));
    this.canvas = element("canvas", { tabindex: "0", role: "application", "aria-roledescription": "timeline",
      "aria-label": `${words}. ${run.events.length} steps; the table below has them all.`, "aria-describedby": "keys" });
    this.canvas.style.height = `${this.height}px`;
    this.listen();
  }

  get width() { return this.canvas.clientWidth; }
  x(time) { const { from, to } = this.app.view; return GUTTER + (time - from) / (to - from) * (this.width - GUTTER - 8); }
  time(x) { const { from, to } = this.app.view; return from + (x - GUTTER) / (this.width - GUTTER - 8) * (to - from); }

  listen() {
    const { canvas, app } = this;
    let drag = null;
    canvas.addEventListener("pointermove", (event) => {
      if (drag) {
        const moved = this.time(drag.x) - this.time(event.offsetX);
        if (Math.abs(event.offsetX - drag.x) > 3) drag.far = true;
        if (!drag.far) return;
        app.look(app.view.from + moved, app.view.to + moved);
        drag.x = event.offsetX;
      } else app.hover(this, this.hit(event.offsetX, event.offsetY), event);
    });
    canvas.addEventListener("pointerleave", () => app.hover(this, null));
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, far: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", (event) => {
      const far = drag && drag.far;
      drag = null;
      if (!far) app.select(this.sideIndex, this.hit(event.offsetX, event.offsetY), this);
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return;
      event.preventDefault();
      if (event.ctrlKey) app.zoom(Math.exp(event.deltaY * 0.002), this.time(event.offsetX));
      else app.pan((event.deltaY || event.deltaX) / 1000);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const { app } = this, step = app.state.selected && app.state.selected.side === this.sideIndex
      ? app.state.selected.step : null;
    const act = { "+": () => app.zoom(0.7), "=": () => app.zoom(0.7), "-": () => app.zoom(1 / 0.7), 0: () => app.fit(),
      Escape: () => app.select(this.sideIndex, null, this),
      ArrowRight: () => this.beside(step, 1), ArrowLeft: () => this.beside(step, -1),
      ArrowDown: () => this.across(step, 1), ArrowUp: () => this.across(step, -1) }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }

  get laneRows() { return this.rows.filter((row) => row.kind === "lane" && row.items.length); }
  rowOf(step) { return this.laneRows.find((row) => row.items.some((item) => item.step === step)); }

  beside(step, by) {
    const row = this.rowOf(step);
    const items = row ? row.items : (this.laneRows[0] || { items: [] }).items;
    const at = row ? items.findIndex((item) => item.step === step) + by : 0;
    if (items[at]) this.app.select(this.sideIndex, items[at].step, this, true);
  }

  across(step, by) {
    const row = this.rowOf(step);
    if (!row) return this.beside(null, 0);
    const next = this.laneRows[this.laneRows.indexOf(row) + by];
    if (!next) return undefined;
    const { start } = row.items.find((item) => item.step === step);
    const near = next.items.reduce((best, item) =>
      Math.abs(item.start - start) < Math.abs(best.start - start) ? item : best);
    return this.app.select(this.sideIndex, near.step, this, true);
  }

  // The step under a point; a bar narrower than the pointer is found up to 3 px beside it.
  hit(x, y) {
    if (x < GUTTER) return null;
    const row = this.rows.find((each) => y >= each.y && y < each.y + each.height);
    if (!row) return null;
    const time = this.time(x), slack = this.time(x + 3) - time, level = (y - row.y) / row.height * row.levels | 0;
    let best = null, far = slack;
    for (let i = firstAt(row, time - slack); i < row.items.length && row.items[i].start <= time + slack; i += 1) {
      const item = row.items[i], away = Math.max(0, item.start - time, time - item.end);
      if (away <= far && (row.levels === 1 || item.level === level)) { best = item; far = away; }
    }
    return best && best.step;
  }

  draw() {
    const { canvas, app } = this, scale = window.devicePixelRatio || 1, width = this.width;
    if (!width) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(this.height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(this.height * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, this.height);
    this.axis(pen, width);
    const near = this.near();
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, width - GUTTER, this.height);
    pen.clip();
    for (const row of this.rows) this.bars(pen, row, near);
    this.arrows(pen);
    pen.restore();
    pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
    pen.textBaseline = "middle";
    for (const row of this.rows) {
      pen.fillStyle = row.kind === "exposed" && row.items.length ? app.colour("bad") : app.colour(
        row.kind === "lane" ? "text" : "soft");
      pen.fillText(fitted(pen, row.label, GUTTER - 16), 8, row.y + row.height / 2);
    }
  }

  axis(pen, width) {
    const { from, to } = this.app.view, span = to - from;
    const [unit, name] = [[1, "s"], [1e-3, "ms"], [1e-6, "us"], [1e-9, "ns"]].find(([size]) => to >= size) || [1e-9, "ns"];
    const least = span / unit / ((width - GUTTER) / 90), power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least);
    pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
    pen.textBaseline = "middle";
    for (let k = Math.ceil(from / unit / step); k * step * unit <= to; k += 1) {
      const x = Math.round(this.x(k * step * unit)) + 0.5;
      pen.strokeStyle = this.app.colour("grid");
      pen.beginPath();
      pen.moveTo(x, HEAD - 4);
      pen.lineTo(x, this.height);
      pen.stroke();
      pen.fillStyle = this.app.colour("soft");
      const text = `${+(k * step).toPrecision(6)} ${name}`;
      if (x + 4 + pen.measureText(text).width < width) pen.fillText(text, x + 3, 10);
    }
  }

  // Steps that the one in question reads from or waits for, or that wait for it.
  near() {
    const shown = this.app.shown(this.sideIndex);
    if (shown === null) return null;
    const side = this.side, found = new Set([shown]);
    side.steps[shown].waits.forEach(([other]) => found.add(other));
    side.steps[shown].needs.forEach((other) => found.add(other));
    side.users[shown].forEach(([other]) => found.add(other));
    return found;
  }

  bars(pen, row, near) {
    const { app, side } = this, { from, to } = app.view, height = row.height / row.levels;
    pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
    pen.textBaseline = "middle";
    let last = -1e9, lastLevel = -1, taken = GUTTER;
    for (let i = firstAt(row, from); i < row.items.length && row.items[i].start <= to; i += 1) {
      const item = row.items[i];
      if (item.end < from) continue;
      // Thin while it waits for other ranks.
      const step = side.steps[item.step], waits = item.moves > item.start, left = this.x(waits ? item.moves : item.start);
      const wide = Math.max(1, this.x(item.end) - left), y = row.y + item.level * height;
      // Many steps in one pixel are one pixel.
      if (wide <= 1 && left - last < 1 && item.level === lastLevel && !(near && near.has(item.step))) continue;
      [last, lastLevel] = [left, item.level];
      pen.globalAlpha = near && !near.has(item.step) ? 0.5 : 1;
      pen.fillStyle = row.kind === "exposed" ? app.colour("bad") : app.colour(step.look);
      if (waits) pen.fillRect(this.x(item.start), y + height / 2 - 3, left - this.x(item.start), 5);
      pen.fillRect(left, y, wide > 3 ? wide - 1 : wide, height - 1);
      if (row.kind === "lane") this.exposedOf(pen, item, y, height);
      if (near && near.has(item.step) && row.kind === "lane") {
        const chosen = app.shown(this.sideIndex) === item.step;
        pen.strokeStyle = app.colour(chosen ? "text" : "accent");
        pen.lineWidth = chosen ? 2.5 : 1.5;
        pen.strokeRect(left + 1, y + 1, Math.max(1, wide - 3), height - 3);
      }
      const box = { left: Math.max(left, GUTTER), right: Math.min(left + wide, this.width), y, height };
      const next = row.items[i + 1] ? Math.min(this.x(row.items[i + 1].start), this.width) : this.width;
      if (row.kind === "exposed") taken = exposure(pen, app, step, duration(item.end - item.start), box, taken, next);
      else label(pen, step, box, row.kind === "lane" ? 1 : 0);
    }
    pen.globalAlpha = 1;
  }

  // A red edge under the part of a transfer that nothing hides.
  exposedOf(pen, item, y, height) {
    const look = this.side.steps[item.step].look;
    if (look !== "dispatch" && look !== "combine") return;
    for (const [start, end] of this.run.exposed) {
      if (start >= item.end || end <= item.start) continue;
      const a = this.x(Math.max(start, item.start)), b = this.x(Math.min(end, item.end));
      pen.fillStyle = this.app.colour("bad");
      pen.fillRect(a, y + height - 6, Math.max(1, b - a), 5);
    }
  }

  // What the step in question reads from, waits for, and lets go on; dashed: a signal, from that step on every rank.
  arrows(pen) {
    const shown = this.app.shown(this.sideIndex);
    if (shown === null || !this.run.at.has(shown)) return;
    const { side } = this, { waits, needs } = side.steps[shown], after = this.run.at.get(shown)[EVENT.after];
    const waited = new Set(waits.map(([other]) => other));
    for (const other of new Set([...needs, after])) {
      if (other >= 0 && !waited.has(other)) this.arrow(pen, other, shown, "soft", false);
    }
    for (const [other, wait] of side.users[shown]) this.arrow(pen, shown, other, "text", wait[3]);
    for (const [other, , , everywhere] of waits) this.arrow(pen, other, shown, "accent", everywhere);
  }

  arrow(pen, from, to, colour, dashed) {
    const a = this.run.at.get(from), b = this.run.at.get(to), rowA = this.rowOf(from), rowB = this.rowOf(to);
    if (!a || !b || !rowA || !rowB) return;
    const x0 = this.x(a[EVENT.end]), x1 = this.x(b[EVENT.start]);
    // Within a row over the bars, so that no label is struck through.
    const same = rowA === rowB, lift = same ? 15 : 0, bend = same ? 0 : Math.max(18, Math.abs(x1 - x0) / 2);
    const y0 = rowA.y + (same ? 1 : rowA.height / 2), y1 = rowB.y + (same ? 1 : rowB.height / 2);
    pen.strokeStyle = pen.fillStyle = this.app.colour(colour);
    pen.lineWidth = 2;
    pen.setLineDash(dashed ? [6, 4] : []);
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.bezierCurveTo(x0 + bend, y0 - lift, x1 - bend, y1 - lift, x1 - (same ? 0 : 5), y1);
    pen.stroke();
    pen.setLineDash([]);
    pen.beginPath();
    pen.moveTo(x1, y1);
    const back = same ? [[-4, -7], [4, -7]] : [[-8, -4], [-8, 4]];
    for (const [dx, dy] of back) pen.lineTo(x1 + dx, y1 + dy);
    pen.fill();
  }
}
