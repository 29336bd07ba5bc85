// What the page knows: sides (schedules or traces) with steps and runs; what is selected; how numbers are written.

const EVENT = { step: 0, start: 1, end: 2, after: 3, waited: 4, impl: 5, rows: 6, memory: 7, link: 8, flops: 9, slowed: 10,
  taken: 11, moves: 12 };

async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function model(data) {
  for (const side of data.sides) {
    side.byKey = new Map(side.steps.map((step, i) => [step.key, i]));
    side.users = side.steps.map(() => []);
    side.steps.forEach((step, i) => step.waits.forEach((wait) => side.users[wait[0]].push([i, wait])));
    for (const run of [...side.runs, ...side.measured]) {
      run.at = new Map(run.events.map((event) => [event[EVENT.step], event]));
    }
  }
  const loads = [...new Set(data.sides.flatMap((side) => side.runs.map((run) => run.load)))].sort((a, b) => a - b);
  // Kinds of ranks, where they are not alike; null: all of them are shown.
  const kinds = [...new Set(data.sides.flatMap((side) => side.runs.map((run) => run.ranks)).filter((ranks) => ranks))];
  return { ...data, loads, load: loads.length ? loads[loads.length - 1] : null, kinds, ranks: null, selected: null, hovered: null };
}

// Of plans by load only the one for the load that is shown is there.
const here = (state, side) => !side.range || (side.range[0] <= state.load && state.load <= side.range[1]);

// The side that is shown where none is chosen.
const firstHere = (state) => Math.max(0, state.sides.findIndex((side) => here(state, side)));

// The predictions of a side at the load that is shown: one, or one for each kind of ranks that is shown.
const shownRuns = (state, side) => side.runs.filter((run) => run.load === state.load
  && (!state.ranks || !run.ranks || run.ranks === state.ranks));

// Of these the one in which a step was selected, else the first: of the ranks that have most rows.
function shownRun(state, side) {
  const runs = shownRuns(state, side);
  return runs.find((run) => state.selected && run.ranks === state.selected.ranks) || runs[0] || null;
}

// Seconds of an event in which nothing moves, because other ranks have not come.
const waiting = (event) => event[EVENT.moves] - event[EVENT.start];

const three = (value) => value.toFixed(Math.max(0, 2 - (value >= 9.995) - (value >= 99.95)));

function duration(seconds) {
  for (const [unit, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "us"]]) {
    if (seconds >= unit) return `${three(seconds / unit)} ${name}`;
  }
  return seconds ? `${(seconds * 1e9).toFixed(0)} ns` : "0";
}

function amount(value, unit) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${three(value / size)} ${letter}${unit}`;
  }
  return value ? `${value.toFixed(0)} ${unit}`.trim() : "-";
}

// Text is put in as text, never as HTML: names come from files that nobody vouched for.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
