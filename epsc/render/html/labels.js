// What is written on the bars of a timeline, or beside them.

// The name of a step and its chunk, as much of it as fits.
function label(pen, step, { left, right, y, height }, lift) {
  if (right - left < 14 || height < 12) return;
  const number = step.chunk === null ? "" : `${step.chunk}`;
  const texts = [`${number} ${step.node}`.trim(), `${number} ${step.node.split(".")[0]}`.trim(), number];
  const text = texts.find((each) => each && pen.measureText(each).width <= right - left - 8);
  if (!text) return;
  pen.fillStyle = "#000";
  pen.fillText(text, left + 4, y + height / 2 - lift);
}

// What nothing hides, and how long: in the bar, else behind it or before it, where there is room from `from` to `to`.
// Gives back where what was drawn ends.
function exposure(pen, app, step, time, { left, right, y, height }, from, to) {
  for (const text of [`${step.node.split(".")[0]} ${time}`, time]) {
    const wide = pen.measureText(text).width + 8;
    for (const [room, at, colour] of [[right - left, left, "back"], [to - right, right, "bad"], [left - from, left - wide, "bad"]]) {
      if (wide > room) continue;
      pen.fillStyle = app.colour(colour);
      pen.fillText(text, at + 4, y + height / 2);
      return Math.max(right, at + wide);
    }
  }
  return right;
}

function fitted(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let size = text.length;
  while (size > 1 && pen.measureText(`${text.slice(0, size)}…`).width > room) size -= 1;
  return `${text.slice(0, size)}…`;
}
