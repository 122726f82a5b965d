// What a page does in the browser. A panel is one timeline, with
//   figure, image, labels, state     its plot, and the sources of its pixels, of the numbers in bars, of what ranks do
//   spans, waits                     columns sorted by rank and start; those of rank r from first[r] to first[r + 1]
//   firstSpan, firstWait, ranks, end
//   memory                           null, or {first, time, held, sources}: steps sorted likewise, a source a rank
// and `looks` is kind -> {letter, word, fill, ink}.
//
//   spans, waits   ──binary search──▶   what lies in view   ──▶   one row of pixels a rank   ──▶   one image
//
// A bar narrower than a pixel colours its part of it, so a picture costs as much for a hundred spans as for a million
// pixels' worth of them, and none is left out. What the pointer is over is searched for in the columns, not in pixels.
const penstock = (() => {
  const MOST_LABELS = 700, DIGIT = 6.2, LETTERS = 46;
  const MOST_PIXELS = 4096, MOST_STEPS = 24000;
  const IDLE = [243, 243, 243], WAITING = [230, 230, 230], TRANSFER = [238, 182, 204];
  const NOBODY = -1;

  // The last of sorted `starts` from `low` to before `high` that is not after `time`; low - 1 where all are.
  const lastUpTo = (starts, low, high, time) => {
    let from = low, to = high;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (starts[middle] <= time) from = middle + 1;
      else to = middle;
    }
    return from - 1;
  };

  // The first and one past the last entry of `rank` that may lie between `from` and `to`.
  const inView = ({start}, first, rank, from, to) => [
    Math.max(first[rank], lastUpTo(start, first[rank], first[rank + 1], from)),
    lastUpTo(start, first[rank], first[rank + 1], to) + 1,
  ];

  // The entry of `rank` that runs at `time`, or -1.
  const runningAt = ({start, end}, first, rank, time) => {
    const found = lastUpTo(start, first[rank], first[rank + 1], time);
    return found >= first[rank] && time < end[found] ? found : -1;
  };

  // ---------------------------------------------------------------------------------------------- bars

  // Adds colour to the pixels from x0 to x1, to the first and last the part that is covered.
  const cover = (sums, width, x0, x1, [red, green, blue]) => {
    const left = Math.max(x0, 0), right = Math.min(x1, width);
    for (let x = Math.floor(left); x < right; x++) {
      const part = Math.min(x + 1, right) - Math.max(x, left), at = 4 * x;
      sums[at] += part * red;
      sums[at + 1] += part * green;
      sums[at + 2] += part * blue;
      sums[at + 3] += part;
    }
  };

  const finish = (sums, width, row) => {
    for (let x = 0, at = 0; x < width; x++, at += 4) {
      const rest = Math.max(0, 1 - sums[at + 3]), whole = Math.max(1, sums[at + 3]);
      const [red, green, blue] = IDLE.map((tone, i) => (sums[at + i] + rest * tone) / whole);
      row[x] = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
    }
  };

  // A pale pixel parts a bar from the next, the paler the wider the bar.
  const rim = (row, x1, wide) => {
    const at = Math.round(x1) - 1, pale = Math.min(0.85, (wide - 3) / 8);
    if (pale <= 0 || at < 0 || at >= row.length) return;
    const mixed = shift => Math.round(255 * pale + (row[at] >>> shift & 255) * (1 - pale));
    row[at] = (255 << 24 | mixed(16) << 16 | mixed(8) << 8 | mixed(0)) >>> 0;
  };

  const pixels = (panel, looks, from, to, width) => {
    const {spans: {data: spans}, waits: {data: waits}, firstSpan, firstWait, ranks} = panel;
    const scale = width / (to - from), all = new Uint32Array(ranks * width), sums = new Float32Array(4 * width);
    const fills = Object.fromEntries(Object.entries(looks).map(([kind, {fill}]) => [kind, fill]));
    for (let rank = 0; rank < ranks; rank++) {
      const row = all.subarray(rank * width, (rank + 1) * width);
      sums.fill(0);
      let [i, stop] = inView(waits, firstWait, rank, from, to);
      for (; i < stop; i++) {
        const x0 = (waits.start[i] - from) * scale, left = (waits.left[i] - from) * scale;
        cover(sums, width, x0, left, WAITING);
        cover(sums, width, left, (waits.end[i] - from) * scale, TRANSFER);
      }
      const [begin, end] = inView(spans, firstSpan, rank, from, to);
      for (i = begin; i < end; i++)
        cover(sums, width, (spans.start[i] - from) * scale, (spans.end[i] - from) * scale, fills[spans.kind[i]]);
      finish(sums, width, row);
      for (i = begin; i < end; i++)
        rim(row, (spans.end[i] - from) * scale, (spans.end[i] - spans.start[i]) * scale);
    }
    return all;
  };

  const drawBars = (panel, looks) => {
    const {figure, image, ranks} = panel, {start: from, end: to} = figure.x_range;
    const width = Math.max(1, Math.min(MOST_PIXELS, Math.round(figure.inner_width * (window.devicePixelRatio || 1))));
    const Pixels = image.data.image[0].constructor;
    image.data = {x: [from], dw: [to - from], image: [new Pixels(pixels(panel, looks, from, to, width), [ranks, width])]};
  };

  // ----------------------------------------------------------------------------------- numbers in bars

  const numbers = (panel, looks) => {
    const {figure, spans: {data: spans}, firstSpan, ranks} = panel, {start: from, end: to} = figure.x_range;
    const scale = figure.inner_width / (to - from);
    const x = [], y = [], text = [], color = [];
    for (let rank = 0; rank < ranks; rank++) {
      const [begin, end] = inView(spans, firstSpan, rank, from, to);
      for (let i = begin; i < end; i++) {
        const left = Math.max(spans.start[i], from), right = Math.min(spans.end[i], to);
        const wide = (right - left) * scale, microbatch = spans.microbatch[i];
        let words = `${microbatch}`;
        if (microbatch < 0 || wide < DIGIT * words.length + 3) continue;
        const {letter, ink} = looks[spans.kind[i]];
        if (wide > LETTERS + DIGIT * words.length) words = `${spans.stage[i]}${letter}${microbatch}`;
        x.push((left + right) / 2); y.push(rank); text.push(words); color.push(ink);
      }
      if (x.length > MOST_LABELS) return {x: [], y: [], text: [], color: []};
    }
    return {x, y, text, color};
  };

  const drawNumbers = (panel, looks) => {
    const found = panel.figure.inner_height >= 11 * panel.ranks ? numbers(panel, looks) : {x: [], y: [], text: [], color: []};
    // Setting a source that is empty and stays so would draw the whole panel again.
    if (found.x.length || panel.labels.data.x.length) panel.labels.data = found;
  };

  // -------------------------------------------------------------------------------------------- memory

  // Of a curve at most four steps a column of the view: the first, the least, the most, the last.
  const thinned = (time, held, begin, end, from, to, columns) => {
    const x = [], y = [], scale = columns / (to - from);
    for (let i = begin; i < end;) {
      const column = Math.floor((time[i] - from) * scale);
      let least = i, most = i, last = i;
      for (; i < end && Math.floor((time[i] - from) * scale) === column; last = i++) {
        if (held[i] < held[least]) least = i;
        if (held[i] > held[most]) most = i;
      }
      const first = x.length === 0 ? begin : Math.min(least, most);
      for (const at of [...new Set([first, least, most, last])].sort((a, b) => a - b)) x.push(time[at]), y.push(held[at]);
    }
    return {x, y};
  };

  const drawMemory = ({figure, memory, ranks}) => {
    if (!memory) return;
    const {start: from, end: to} = figure.x_range, {time, held} = memory.steps.data;
    const columns = Math.max(64, Math.min(figure.inner_width, MOST_STEPS / (4 * ranks)));
    for (let rank = 0; rank < ranks; rank++) {
      const [begin, end] = inView({start: time}, memory.first, rank, from, to);
      memory.sources[rank].data = thinned(time, held, begin, Math.min(end + 1, memory.first[rank + 1]), from, to, columns);
    }
  };

  // ---------------------------------------------------------------------------------------- what to call

  // Draws the panels for the time axis as it is now. Both of its ends change one after the other; once a frame is enough.
  let frame = 0;
  const draw = (panels, looks) => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      for (const panel of panels) {
        if (!panel.figure.inner_width) continue;
        drawBars(panel, looks);
        drawNumbers(panel, looks);
        drawMemory(panel);
      }
    });
  };

  const short = number => `${+number.toPrecision(6)}`;
  const named = ({stage, kind, microbatch}, i, looks) =>
    `${stage[i]}${looks[kind[i]].letter}${microbatch[i] < 0 ? "" : microbatch[i]}`;

  // Writes what every rank does at `now` beside the panels.
  const state = ({spans: {data: spans}, waits: {data: waits}, firstSpan, firstWait, end}, rank, now, looks) => {
    const span = runningAt(spans, firstSpan, rank, now), wait = runningAt(waits, firstWait, rank, now);
    if (span >= 0) return [`${named(spans, span, looks)}  ${looks[spans.kind[span]].word}`, "#1b1b1b"];
    if (wait < 0) return now >= end ? ["done", "#9a9a9a"] : ["idle", "#9a9a9a"];
    const op = named(waits, wait, looks);
    return now < waits.left[wait]
      ? [`waits for rank ${waits.source[wait]}, for ${op}`, "#5c5c5c"]
      : [`message for ${op} under way`, "#a8476f"];
  };

  const move = (panels, looks, now) => {
    for (const panel of panels) {
      const ranks = [...Array(panel.ranks).keys()], told = ranks.map(rank => state(panel, rank, now, looks));
      panel.cursor.location = now;
      panel.state.data = {x: ranks.map(() => 0), y: ranks, text: told.map(([t]) => t), color: told.map(([, c]) => c)};
    }
  };

  // The lines about what is under the pointer at (x, y), by name; a line that has nothing to say is empty.
  const aboutSpan = (spans, i, rank, looks, unit) => {
    const {word} = looks[spans.kind[i]], of = spans.microbatch[i] < 0 ? "" : ` of microbatch ${spans.microbatch[i]}`;
    const {start: {[i]: start}, end: {[i]: end}, source: {[i]: source}, waited, transfer} = spans;
    return {
      title: `${named(spans, i, looks)} on rank ${rank}`,
      what: `${word}${of}, stage ${spans.stage[i]}`,
      when: `${short(start)} to ${short(end)} ${unit}, takes ${short(end - start)} ${unit}`,
      waited: source == NOBODY ? "waited for nobody"
        : waited[i] > 0 ? `waited ${short(waited[i])} ${unit} for rank ${source}` : "",
      transfer: transfer[i] > 0 ? `${short(transfer[i])} ${unit} for the message from rank ${source}` : "",
    };
  };

  const aboutWait = (waits, i, rank, looks, unit) => ({
    title: `rank ${rank} waits`,
    what: `for rank ${waits.source[i]}, before ${named(waits, i, looks)}`,
    when: `${short(waits.start[i])} to ${short(waits.end[i])} ${unit}`,
    waited: waits.left[i] > waits.start[i] ? `${short(waits.left[i] - waits.start[i])} ${unit} until it sends` : "",
    transfer: waits.end[i] > waits.left[i] ? `${short(waits.end[i] - waits.left[i])} ${unit} for the message` : "",
  });

  const tell = (panel, looks, unit, {x, y}, line) => {
    const rank = Math.round(y), {spans: {data: spans}, waits: {data: waits}, firstSpan, firstWait} = panel;
    if (!(rank >= 0 && rank < panel.ranks)) return "";
    const span = runningAt(spans, firstSpan, rank, x), wait = runningAt(waits, firstWait, rank, x);
    const idle = {title: `rank ${rank} is ${x < panel.end ? "idle" : "done"}`, when: `at ${short(x)} ${unit}`};
    const lines = span >= 0 ? aboutSpan(spans, span, rank, looks, unit)
      : wait >= 0 ? aboutWait(waits, wait, rank, looks, unit) : idle;
    return lines[line] ?? "";
  };

  return {draw, move, tell, pixels, lastUpTo, runningAt, thinned};
})();
