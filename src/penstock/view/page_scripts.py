"""What a page does in the browser, as the bodies of small functions in JavaScript.

`panels` is a list, one a timeline: `figure`, `labels` (source of the numbers in bars), `state` (source of what each
rank does at the cursor), `bars` (a list of `{source, letter, word, ink}`, one a kind), `waiting` and `transfer`
(sources), `ranks` (how many) and `end` (of the last op).
"""

NUMBER_BARS = """
// Numbers go only into bars in view that are wide enough, and nowhere while these are too many.
const MOST = 600, DIGIT = 6.2, LETTERS = 46;
const write = () => {
  for (const {figure, labels, bars} of panels) {
    const from = figure.x_range.start, to = figure.x_range.end;
    const scale = (figure.inner_width || 800) / (to - from);
    const x = [], y = [], text = [], color = [];
    for (const {source, letter, ink} of bars) {
      const {rank, start, end, stage, microbatch} = source.data;
      for (let i = 0; i < start.length && x.length <= MOST; i++) {
        if (end[i] <= from || start[i] >= to || microbatch[i] < 0) continue;
        const left = Math.max(start[i], from), right = Math.min(end[i], to);
        const wide = (right - left) * scale;
        let words = `${microbatch[i]}`;
        if (wide < DIGIT * words.length + 3) continue;
        if (wide > LETTERS + DIGIT * words.length) words = `${stage[i]}${letter}${microbatch[i]}`;
        x.push((left + right) / 2); y.push(rank[i]); text.push(words); color.push(ink);
      }
    }
    const many = x.length > MOST, empty = many || x.length == 0;
    // A source that is empty and stays so is left alone: setting it would draw the whole panel again.
    if (empty && labels.data.x.length == 0) continue;
    labels.data = many ? {x: [], y: [], text: [], color: []} : {x, y, text, color};
  }
};
// Both ends of the range change one after the other; once a frame is enough.
cancelAnimationFrame(cursor._frame);
cursor._frame = requestAnimationFrame(write);
"""
"""Runs when the time axis changes. Arguments: panels, cursor."""

MOVE_CURSOR = """
const now = moments[Math.min(slider.value, moments.length - 1)];
for (const line of lines) line.location = now;
shown.text = `<b>${+now.toPrecision(6)} ${unit}</b>`;
for (const {state, bars, waiting, transfer, ranks, end} of panels) {
  const text = Array(ranks).fill(now >= end ? "done" : "idle");
  const color = Array(ranks).fill("#9a9a9a");
  const look = (source, tell) => {
    const {rank, start, end} = source.data;
    for (let i = 0; i < start.length; i++)
      if (start[i] <= now && now < end[i]) [text[rank[i]], color[rank[i]]] = tell(source.data, i);
  };
  look(waiting, (d, i) => [`waits for rank ${d.source[i]}, for ${d.op[i]}`, "#5c5c5c"]);
  look(transfer, (d, i) => [`message for ${d.op[i]} under way`, "#a8476f"]);
  for (const {source, letter, word} of bars)
    look(source, (d, i) => {
      const microbatch = d.microbatch[i] < 0 ? "" : d.microbatch[i];
      return [`${d.stage[i]}${letter}${microbatch}  ${word}`, "#1b1b1b"];
    });
  state.data = {x: Array(ranks).fill(0), y: [...Array(ranks).keys()], text, color};
}
"""
"""Runs when the slider moves. Arguments: panels, slider, moments, lines, shown, unit."""

STEP = "slider.value = Math.min(slider.end, Math.max(slider.start, slider.value + by));"
"""Runs when a button is pressed. Arguments: slider, by."""

TELL_DELAY = """
const {waited, transfer} = source.data, i = special_vars.index;
if (value < 0) return "waited for nobody";
const told = [];
if (waited[i] > 0) told.push(`waited ${+waited[i].toPrecision(4)} ${unit} for rank ${value}`);
if (transfer[i] > 0) told.push(`${+transfer[i].toPrecision(4)} ${unit} for the message from rank ${value}`);
return told.join("<br>");
"""
"""Returns the last lines of a bar's tooltip. Arguments: source, unit; `value` is the rank that was waited for."""
