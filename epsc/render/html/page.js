// Wires it together: which load is shown, what part of the time axis, which step; and draws when any of it changes.

function swatch(key) {
  const made = element("span", { class: "swatch" });
  made.style.background = `var(--${key})`;
  return made;
}

class App {
  constructor(data) {
    this.state = model(data);
    this.view = { from: 0, to: 1 };
    this.colours = new Map();
    this.pending = false;
    this.tables = this.state.sides.map((_, at) => stepTable(this, at));
    const box = document.getElementById("tables");
    this.boxes = this.tables.map((each, at) => {
      const head = this.tables.length > 1 ? element("h3", {}, this.state.sides[at].name) : null;
      return element("div", {}, head, each.table);
    });
    box.append(...this.boxes);
    this.controls();
    this.build();
    showFacts(this);
    showTexts(this);
    showGraph(this);
  }

  controls() {
    const on = (id, act) => document.getElementById(id).addEventListener("click", act);
    on("zoom-in", () => this.zoom(0.6));
    on("zoom-out", () => this.zoom(1 / 0.6));
    on("fit", () => this.fit());
    const root = document.documentElement, wish = window.matchMedia("(prefers-color-scheme: dark)");
    const dark = () => (root.dataset.theme || (wish.matches ? "dark" : "light")) === "dark";
    const name = () => {
      document.getElementById("theme").textContent = dark() ? "Light" : "Dark";
      this.colours.clear();
      this.redraw();
    };
    on("theme", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
    wish.addEventListener("change", name);
    name();
    window.addEventListener("resize", () => this.redraw());
    const loads = document.getElementById("loads");
    if (this.state.loads.length) loads.append(element("span", {}, "tokens per rank"));
    for (const load of this.state.loads) {
      loads.append(element("button", { type: "button", "data-load": `${load}`, onclick: () => this.setLoad(load) }, `${load}`));
    }
    const plans = document.getElementById("plans"), byLoad = this.state.sides.filter((side) => side.range);
    if (byLoad.length) plans.append(element("span", {}, "plan"));
    for (const { name, range } of byLoad) {
      plans.append(element("button", { type: "button", "data-from": `${range[0]}`, onclick: () => this.setLoad(range[1]) },
        `${name}: ${range[0]} to ${range[1]}`));
    }
    const ranks = document.getElementById("ranks"), kinds = this.state.kinds;
    for (const kind of kinds.length > 1 ? [null, ...kinds] : []) {
      ranks.append(element("button", { type: "button", "data-ranks": kind || "", onclick: () => this.setRanks(kind) }, kind || "all ranks"));
    }
    const legend = document.getElementById("legend");
    const used = new Set(this.state.sides.flatMap((side) => side.steps.map((step) => step.look)));
    for (const look of this.state.looks) if (used.has(look.key)) legend.append(element("span", {}, swatch(look.key), look.words));
    legend.append(element("span", {}, swatch("bad"), "a transfer that nothing hides"), element("span", {}, "0 1 2 : chunk"));
    if (this.state.sides.some((side) => side.runs.some((run) => run.events.some((event) => waiting(event) > 0)))) {
      legend.append(element("span", {}, "thin : waits for busier ranks"));
    }
  }

  setLoad(load) {
    this.state.load = load;
    const { selected, sides } = this.state;
    if (selected && !here(this.state, sides[selected.side])) this.state.selected = null;
    this.build();
    showFacts(this);
    showTexts(this);
    showGraph(this);
    const plan = sides.find((side) => side.range && here(this.state, side));
    this.say(`${load} tokens per rank${plan ? `, plan ${plan.name}` : ""}`);
  }

  setRanks(kind) {
    this.state.ranks = kind;
    this.build();
    showFacts(this);
    this.say(kind || "all ranks");
  }

  // Panels, for the load and ranks that are shown: all on one time axis.
  build() {
    for (const button of document.querySelectorAll("#loads button")) {
      button.setAttribute("aria-pressed", button.dataset.load === `${this.state.load}`);
    }
    for (const button of document.querySelectorAll("#ranks button")) {
      button.setAttribute("aria-pressed", button.dataset.ranks === (this.state.ranks || ""));
    }
    const plan = this.state.sides.find((side) => side.range && here(this.state, side));
    for (const button of document.querySelectorAll("#plans button")) {
      button.setAttribute("aria-pressed", button.dataset.from === `${plan && plan.range[0]}`);
    }
    this.timelines = [];
    const box = document.getElementById("panels");
    box.replaceChildren();
    this.state.sides.forEach((side, at) => {
      this.boxes[at].hidden = !here(this.state, side);
      if (this.boxes[at].hidden) return;
      const runs = shownRuns(this.state, side), all = side.ep > 1 ? `ranks 0–${side.ep - 1}` : "rank 0";
      for (const run of runs) {
        const kind = side.ep > 1 && !run.ranks ? "predicted, every rank alike" : "predicted";
        box.append(this.panel(at, run, run.ranks || all, run.headline, kind));
      }
      if (!runs.length && !side.measured.length) {
        box.append(element("p", { class: "panel" }, `${side.name} has no times: a plan says neither its machine nor its load.`));
      }
      for (const each of side.measured) box.append(this.panel(at, each, `rank ${each.rank}`, each.headline, each.trace));
    });
    this.total = Math.max(1e-9, ...this.timelines.map((each) => each.run.total));
    this.tables.forEach((each) => each.fill());
    this.fit();
  }

  panel(at, run, ranks, words, kind) {
    const timeline = new Timeline(this, at, run, ranks, `${words} (${kind})`);
    this.timelines.push(timeline);
    const told = element("div", { class: "spent" });
    const looks = { products: "compute", "gathers, activations, sums": "memory", "transfers that nothing hides": "bad",
      "routing and counts": "control", "the host, which reads sizes": "host" };
    for (const [what, seconds] of run.spent) {
      const words = `${(seconds / run.total * 100).toFixed(0)}% ${what}`;
      told.append(element("span", looks[what] === "bad" ? { class: "bad" } : {}, ...(looks[what] ? [swatch(looks[what])] : []), words));
    }
    // What is exposed is what one looks for: it stands out.
    const [total, before, exposed, after] = run.head;
    const said = before ? element("p", { class: "said" }, before, element("strong", run.exposed.length ? { class: "bad" } : {},
      exposed), after) : null;
    return element("div", { class: "panel" }, element("h2", {}, `${total} · ${kind}`), said, told, timeline.canvas);
  }

  colour(name) {
    if (!this.colours.has(name)) {
      this.colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
    }
    return this.colours.get(name);
  }

  // The step of a side that is hovered, or else selected.
  shown(at) {
    const found = this.state.hovered || this.state.selected;
    if (!found) return null;
    if (found.side === at) return found.step;
    const same = this.state.sides[at].byKey.get(this.state.sides[found.side].steps[found.step].key);
    return same === undefined ? null : same;
  }

  hover(timeline, step, event) {
    const tip = document.getElementById("tip");
    const before = this.state.hovered && this.state.hovered.step;
    this.state.hovered = step === null ? null : { side: timeline.sideIndex, step };
    tip.style.display = step === null ? "none" : "block";
    if (step !== null) {
      const found = timeline.run.at.get(step), { key } = timeline.side.steps[step];
      const impl = found[EVENT.impl] ? `, ${found[EVENT.impl]}` : "";
      tip.textContent = `${key}${impl}\n${duration(found[EVENT.end] - found[EVENT.start])} from ${duration(found[EVENT.start])}${
        found[EVENT.waited] ? `\nafter ${found[EVENT.waited]}` : ""}${
        waiting(found) ? `\nof it ${duration(waiting(found))} until all ranks have come` : ""}`;
      tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 440)}px`;
      tip.style.top = `${event.clientY + 16}px`;
    }
    if (before !== (this.state.hovered && this.state.hovered.step)) this.redraw();
  }

  select(side, step, timeline, reveal) {
    this.state.selected = step === null ? null : { side, step, ranks: timeline ? timeline.run.ranks : null };
    if (step !== null) {
      const found = (timeline ? timeline.run : shownRun(this.state, this.state.sides[side]) || { at: new Map() }).at.get(step);
      const { key } = this.state.sides[side].steps[step];
      if (found && reveal) this.bring(found[EVENT.start], found[EVENT.end]);
      const time = found ? `, ${duration(found[EVENT.end] - found[EVENT.start])} from ${duration(found[EVENT.start])}` : "";
      this.say(`${key}${time}${found && found[EVENT.waited] ? `, after ${found[EVENT.waited]}` : ""}`);
      this.tables[side].reveal(step);
    }
    this.tables.forEach((each) => each.fill());
    showFacts(this);
    showTexts(this);
    showGraph(this);
    this.redraw();
  }

  // Move the view if a stretch is not in it.
  bring(start, end) {
    const { from, to } = this.view;
    if (start >= from && end <= to) return;
    const middle = (start + end) / 2, half = Math.max((to - from) / 2, (end - start) * 0.6);
    this.look(middle - half, middle + half);
  }

  look(from, to) {
    const most = this.total * 1.01, span = Math.min(most, Math.max(LEAST_SPAN, to - from));
    const start = Math.min(Math.max(0, from), most - span);
    this.view = { from: start, to: start + span };
    this.redraw();
  }

  fit() { this.look(0, this.total * 1.01); }
  pan(share) { const { from, to } = this.view, by = share * (to - from); this.look(from + by, to + by); }

  zoom(factor, around) {
    const { from, to } = this.view, at = around === undefined ? (from + to) / 2 : around;
    this.look(at - (at - from) * factor, at + (to - at) * factor);
  }

  say(words) { document.getElementById("said").textContent = words; }

  redraw() {
    if (this.pending || !this.timelines) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.timelines.forEach((each) => each.draw());
      if (!this.readyAfter) this.readyAfter = performance.now();
      document.body.dataset.ready = "true";
    });
  }
}

unpack().then((data) => { window.epsc = new App(data); });
