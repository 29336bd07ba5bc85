// What is said of the step that is selected, the dataflow graph, the texts, and the table of all steps.

const WHY = { raw: "it makes", war: "it still reads", waw: "it still writes" };

function stepButton(app, side, index, words) {
  const { key } = app.state.sides[side].steps[index];
  return element("button", { type: "button", class: "link", onclick: () => app.select(side, index, null, true) }, words || key);
}

// Without a selection: the transfers that nothing hides, longest first, and why.
function exposures(app, side, at) {
  const runs = shownRuns(app.state, side);
  return (runs.length ? runs : side.measured.slice(0, 1)).flatMap((run) => exposuresOf(app, side, at, run));
}

function exposuresOf(app, side, at, run) {
  const found = [...run.exposed].sort((a, b) => b[1] - b[0] - (a[1] - a[0])).slice(0, 6);
  const items = found.map(([start, end, step, why]) => element("li", {}, element("strong", {}, duration(end - start)), " ",
    stepButton(app, at, step), why ? `: ${why}` : ""));
  return [element("h3", {}, run.ranks ? `${side.name}, ${run.ranks}` : side.name), items.length ? element("ul", { class: "exposures" }, ...items)
    : element("p", {}, "No transfer is exposed.")];
}

function showFacts(app) {
  const body = document.getElementById("facts-body"), chosen = app.state.selected;
  body.replaceChildren();
  document.getElementById("facts-head").textContent = chosen ? "Step" : "What is exposed";
  if (!chosen) {
    body.append(...app.state.sides.flatMap((side, at) => (here(app.state, side) ? exposures(app, side, at) : [])));
    body.append(element("p", { class: "hint" }, "Select a step in a timeline, the graph or the table to see its facts."));
    return;
  }
  const side = app.state.sides[chosen.side], step = side.steps[chosen.step], run = shownRun(app.state, side);
  const event = run && run.at.get(chosen.step), list = element("dl");
  const add = (term, ...what) => list.append(element("dt", {}, term), element("dd", {}, ...what));
  add("step", element("strong", {}, step.key), step.cut ? ` (part ${step.cut})` : "");
  if (app.state.sides.length > 1) add("schedule", side.name);
  if (step.kind) add("kind", step.kind);
  if (step.impl) add("implementation", event && event[EVENT.impl] !== step.impl ? `${event[EVENT.impl]}, of: ${step.impl}`
    : step.impl);
  add("lane", step.lane + (step.comm ? `, communicator ${step.comm}` : ""));
  if (step.kind) add("SMs", step.sms ? `${step.sms}` : "as many as it likes");
  if (event) {
    add("rows", amount(event[EVENT.rows], ""));
    add("memory", amount(event[EVENT.memory], "B"));
    add("sent to others", amount(event[EVENT.link], "B"));
    add("FLOP", amount(event[EVENT.flops], ""));
    const slower = event[EVENT.slowed] > 1e-7 ? `, of it ${duration(event[EVENT.slowed])} because of what runs beside it` : "";
    for (const each of shownRuns(app.state, side)) {
      const there = each.at.get(chosen.step), waits = waiting(there);
      add(each.ranks ? `predicted, ${each.ranks}` : "predicted", `${duration(there[EVENT.end] - there[EVENT.start])}${
        each === run ? slower : ""}${waits > 0 ? `, of it ${duration(waits)} until all ranks have come` : ""}; starts at ${
        duration(there[EVENT.start])}`);
    }
  }
  for (const each of side.measured) {
    const found = each.at.get(chosen.step);
    if (found) add(`measured, rank ${each.rank}`, `${duration(found[EVENT.end] - found[EVENT.start])}; starts at ${
      duration(found[EVENT.start])}`);
  }
  for (const [start, end, which, why] of run ? run.exposed : []) {
    if (which === chosen.step) add("exposed", `${duration(end - start)}${why ? `. ${why}` : ""}`);
  }
  if (run && run.critical.includes(chosen.step)) add("critical", "yes: the layer ends later if this does");
  if (event && event[EVENT.waited]) add("started after", event[EVENT.waited]);
  if (step.waits.length) add("waits for", element("ul", {}, ...step.waits.map(([other, value, hazard, everywhere]) =>
    element("li", {}, stepButton(app, chosen.side, other), ` ${everywhere ? "on every rank " : ""}(${WHY[hazard]} ${value})`))));
  const makers = step.needs.filter((other) => !step.waits.some((wait) => wait[0] === other));
  if (makers.length) add("reads what", element("ul", {}, ...makers.map((other) =>
    element("li", {}, stepButton(app, chosen.side, other), " makes; it is done by then"))));
  if (side.users[chosen.step].length) add("waited for by", element("ul", {}, ...side.users[chosen.step].map(([other]) =>
    element("li", {}, stepButton(app, chosen.side, other)))));
  if (step.python.length) add("Python", ...step.python.map(([file, line]) => element("div", { title: file }, `${file.split("/").pop()}, line ${line}`)));
  if (step.source) add("from", `${side.sources[step.source[0]].name}, line ${step.source[1]}`);
  if (step.code) add("emitted as", `${side.program.name}, line ${step.code}`);
  body.append(list);
}

// The lines of Python that the statement was read from: as a comment of the text names them, for no file is opened.
function showPython(lines) {
  document.getElementById("python-name").hidden = document.getElementById("python-body").hidden = !lines.length;
  const files = [...new Set(lines.map(([file]) => file))];
  document.getElementById("python-name").textContent = files.join(", ");
  document.getElementById("python-body").replaceChildren(...lines.map(([file, line, text]) =>
    element("div", {}, element("span", { class: "no" }, `${line}`), text || (files.length > 1 ? file : " "))));
}

// Lines of a text, those from `first` to `last` marked; all of them, or those near the marked ones.
function showText(name, body, text, first, last, around) {
  const lines = text.text.split("\n"), from = around ? Math.max(1, (first || 1) - around) : 1;
  const to = around ? Math.min(lines.length, (last || 1) + around) : lines.length;
  document.getElementById(name).textContent = first ? `${text.name}, line ${first}` : text.name;
  const made = [];
  for (let no = from; no <= to; no += 1) {
    const here = first && no >= first && no <= last;
    made.push(element("div", here ? { class: "here", "aria-current": "true" } : {}, element("span", { class: "no" }, `${no}`),
      lines[no - 1] || " "));
  }
  const box = document.getElementById(body);
  box.replaceChildren(...made);
  const mark = box.querySelector(".here");
  if (mark) box.scrollTop = mark.offsetTop - box.offsetTop - 70;
}

function showTexts(app) {
  const at = app.state.selected ? app.state.selected.side : firstHere(app.state), side = app.state.sides[at];
  const step = app.state.selected ? side.steps[app.state.selected.step] : null;
  const place = step && step.source ? step.source : [0, 0, 0];
  const source = side.sources[place[0]];
  showPython(step ? step.python : []);
  document.getElementById("texts").hidden = !source && !side.program;
  if (source) showText("source-name", "source-body", source, place[1], place[2], 0);
  if (side.program) {
    // The block of a step ends before the next comment.
    const line = step && step.code ? step.code : 0, lines = side.program.text.split("\n");
    let last = line;
    while (line && last < lines.length && /^ {9,}\S|^ {8}\)/.test(lines[last])) last += 1;
    showText("program-name", "program-body", side.program, line, last, line ? 12 : 40);
  }
}

const NODE = { height: 34, gapX: 14, gapY: 26, letter: 6.7 };

function showGraph(app) {
  const at = app.state.selected ? app.state.selected.side : firstHere(app.state), { graph, steps } = app.state.sides[at];
  document.getElementById("graph").hidden = !graph;
  if (!graph) return;
  const body = document.getElementById("graph-body");
  if (body.dataset.side !== `${at}`) {
    body.dataset.side = `${at}`;
    body.replaceChildren(graphPicture(app, at, graph));
  }
  const step = app.state.selected ? steps[app.state.selected.step].node : null;
  for (const node of body.querySelectorAll("g[data-name]")) node.setAttribute("aria-pressed", node.dataset.name === step);
  const mark = body.querySelector("g[aria-pressed=true]");
  if (mark) {
    const box = body.getBoundingClientRect(), place = mark.getBoundingClientRect();
    if (place.top < box.top || place.bottom > box.bottom) body.scrollTop += place.top - box.top - body.clientHeight / 2;
  }
  for (const path of body.querySelectorAll("path[data-from]")) {
    path.classList.toggle("near", path.dataset.from === step || path.dataset.to === step);
  }
}

function graphPicture(app, at, graph) {
  const rows = [];
  for (const node of graph.nodes) {
    const wide = node.passing ? 8 : Math.max(60, Math.max(node.name.replace(/^in:/, "").length, node.kind.length) * NODE.letter + 16);
    (rows[node.row] = rows[node.row] || []).push({ ...node, wide });
  }
  const across = (row) => row.reduce((sum, node) => sum + node.wide + NODE.gapX, -NODE.gapX);
  const width = Math.max(...rows.map(across)) + 24, places = new Map();
  rows.forEach((row, i) => {
    row.sort((a, b) => a.column - b.column);
    let x = (width - across(row)) / 2;
    for (const node of row) {
      places.set(node.name, { x, y: 12 + i * (NODE.height + NODE.gapY), ...node });
      x += node.wide + NODE.gapX;
    }
  });
  const height = 24 + rows.length * (NODE.height + NODE.gapY) - NODE.gapY;
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Dataflow graph" });
  for (const [from, to, value, type, via] of graph.lines) {
    const path = svg("path", { d: route([from, ...via, to].map((name) => places.get(name))), "data-from": from, "data-to": to });
    const title = svg("title");
    title.textContent = `${value}: ${type}`;
    path.append(title);
    picture.append(path);
  }
  for (const node of places.values()) if (!node.passing) picture.append(graphNode(app, at, node));
  return picture;
}

// A line from the foot of one box to the head of another, straight where it passes a row.
function route(stops) {
  const middle = (stop) => stop.x + stop.wide / 2;
  let text = `M${middle(stops[0])} ${stops[0].y + NODE.height}`;
  stops.slice(1).forEach((stop, i) => {
    const top = stops[i].y + NODE.height, bend = (stop.y - top) / 2;
    text += `C${middle(stops[i])} ${top + bend} ${middle(stop)} ${stop.y - bend} ${middle(stop)} ${stop.y}`;
    if (stop.passing) text += `L${middle(stop)} ${stop.y + NODE.height}`;
  });
  return text;
}

function graphNode(app, at, node) {
  const { steps } = app.state.sides[at], first = steps.findIndex((step) => step.node === node.name);
  const box = svg("g", { transform: `translate(${node.x} ${node.y})` });
  const plain = node.look === "input" ? { class: "plain" } : {};
  const rect = svg("rect", { width: node.wide, height: NODE.height, rx: 5 });
  rect.style.fill = `var(--${node.look})`;
  const name = svg("text", { x: 8, y: 14, ...plain }), kind = svg("text", { x: 8, y: 28, ...plain });
  name.textContent = `${node.name.replace(/^in:/, "")} `;
  name.style.fontWeight = "700";
  kind.textContent = node.kind;
  box.append(rect, name, kind);
  if (first >= 0) {
    const said = { tabindex: "0", role: "button", "data-name": node.name, "aria-pressed": "false" };
    for (const [key, value] of Object.entries(said)) box.setAttribute(key, value);
    const choose = () => app.select(at, first, null, true);
    box.addEventListener("click", choose);
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    });
  }
  return box;
}

const COLUMNS = ["#", "step", "by", "lane", "SMs", "rows", "memory", "sent", "FLOP", "predicted", "measured", "waits for"];
const NUMBERS = new Set(["#", "SMs", "rows", "memory", "sent", "FLOP", "predicted", "measured"]);

function cells(app, at, index) {
  const side = app.state.sides[at], step = side.steps[index], run = shownRun(app.state, side);
  const event = run && run.at.get(index), took = (each) => each[EVENT.end] - each[EVENT.start];
  const times = side.measured.map((each) => each.at.get(index)).filter(Boolean).map(took);
  return [`${index}`, stepButton(app, at, index), event ? event[EVENT.impl] : step.impl || "-", step.lane, step.sms ? `${step.sms}` : "-",
    event ? amount(event[EVENT.rows], "") : "-", event ? amount(event[EVENT.memory], "B") : "-",
    event ? amount(event[EVENT.link], "B") : "-", event ? amount(event[EVENT.flops], "") : "-", event ? duration(took(event)) : "-",
    times.length ? duration(Math.max(...times)) : "-", step.waits.map((wait) => side.steps[wait[0]].key).join(", ") || "-"];
}

// A table that has only the rows in view, however many there are.
function stepTable(app, at) {
  const side = app.state.sides[at], tall = 26, view = Math.min(side.steps.length, 20) * tall;
  const cell = (what, i, role) => element("span", { role, class: NUMBERS.has(COLUMNS[i]) ? "number" : "" }, what);
  const head = element("div", { class: "row head", role: "row", "aria-rowindex": "1" },
    ...COLUMNS.map((name, i) => cell(name, i, "columnheader")));
  const space = element("div", { role: "presentation" }), box = element("div", { class: "window", role: "rowgroup", tabindex: "0" }, space);
  const table = element("div", { class: "grid", role: "table", "aria-label": `Steps of ${side.name}`,
    "aria-rowcount": `${side.steps.length + 1}`, "aria-colcount": `${COLUMNS.length}` },
    element("div", { role: "rowgroup" }, head), box);
  box.style.height = `${view}px`;
  space.style.height = `${side.steps.length * tall}px`;
  const fill = () => {
    const from = Math.max(0, Math.floor(box.scrollTop / tall) - 5), to = Math.min(side.steps.length, from + view / tall + 10);
    const rows = [];
    for (let i = from; i < to; i += 1) {
      const chosen = app.state.selected && app.state.selected.side === at && app.state.selected.step === i;
      const row = element("div", { class: "row", role: "row", "aria-rowindex": `${i + 2}`, "data-key": side.steps[i].key,
        ...(chosen ? { "aria-selected": "true" } : {}) }, ...cells(app, at, i).map((what, c) => cell(what, c, "cell")));
      row.style.top = `${i * tall}px`;
      rows.push(row);
    }
    const focused = box.contains(document.activeElement) && document.activeElement.closest("[data-key]");
    space.replaceChildren(...rows);
    if (focused) {
      const again = rows.find((row) => row.dataset.key === focused.dataset.key);
      (again ? again.querySelector("button") : box).focus({ preventScroll: true });
    }
  };
  box.addEventListener("scroll", () => requestAnimationFrame(fill));
  return { table, fill, reveal: (i) => {
    if (i * tall < box.scrollTop || (i + 1) * tall > box.scrollTop + view) box.scrollTop = i * tall - view / 2;
  } };
}
