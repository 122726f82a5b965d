// What a page does in the browser. A panel is one timeline, with
//   figure, image, state, cursor     its plot, the sources of its pixels and of what ranks do, a line
//   spans, waits                     columns sorted by rank and start; those of rank r from first[r] to first[r + 1]
//   firstSpan, firstWait, ranks, end
//   memory                           null, or {figure, image, steps, first, colours, top}: steps sorted likewise
// and `looks` is kind -> {letter, word, fill, ink}, with {fill} of idle, waiting and transfer beside the kinds.
//
//   spans, waits   ──binary search──▶   what lies in view   ──▶   one row of pixels a rank   ──▶   one image
//
// A bar narrower than a pixel colours its part of it, so a picture costs as much for a hundred spans as for a million
// pixels' worth of them, and none is left out. What the pointer is over is searched for in the columns, not in pixels.
const penstock = (() => {
  const FONT = 11, DIGIT = 6.2, LETTERS = 46;  // CSS pixels
  const GAP = 0.16;  // of a row, between ranks
  const MOST_PIXELS = 4096;
  const NOBODY = -1;
  const drawn = new WeakMap();  // figure -> the view that it shows

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

  const pixelsOf = length => Math.max(1, Math.min(MOST_PIXELS, Math.round(length * (window.devicePixelRatio || 1))));

  // Puts `pixels`, rows from the lowest y, where `figure` shows its time axis now.
  const show = (image, {x_range: {start, end}}, pixels, shape) => {
    const Pixels = image.data.image[0].constructor;
    image.data = {x: [start], dw: [end - start], image: [new Pixels(pixels, shape)]};
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

  const opaque = (red, green, blue) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;

  const finish = (sums, width, row, idle) => {
    for (let x = 0, at = 0; x < width; x++, at += 4) {
      const rest = Math.max(0, 1 - sums[at + 3]), whole = Math.max(1, sums[at + 3]);
      const red = (sums[at] + rest * idle[0]) / whole;
      const green = (sums[at + 1] + rest * idle[1]) / whole;
      const blue = (sums[at + 2] + rest * idle[2]) / whole;
      row[x] = opaque(red, green, blue);
    }
  };

  // A pale pixel parts a bar from the next, the paler the wider the bar.
  const rim = (row, x1, wide) => {
    const at = Math.round(x1) - 1, pale = Math.min(0.85, (wide - 3) / 8);
    if (pale <= 0 || at < 0 || at >= row.length) return;
    const mixed = shift => Math.round(255 * pale + (row[at] >>> shift & 255) * (1 - pale));
    row[at] = opaque(mixed(0), mixed(8), mixed(16));
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
        cover(sums, width, x0, left, fills.waiting);
        cover(sums, width, left, (waits.end[i] - from) * scale, fills.transfer);
      }
      const [begin, end] = inView(spans, firstSpan, rank, from, to);
      for (i = begin; i < end; i++)
        cover(sums, width, (spans.start[i] - from) * scale, (spans.end[i] - from) * scale, fills[spans.kind[i]]);
      finish(sums, width, row, fills.idle);
      for (i = begin; i < end; i++)
        rim(row, (spans.end[i] - from) * scale, (spans.end[i] - spans.start[i]) * scale);
    }
    return all;
  };

  // ----------------------------------------------------------------------------------- numbers in bars

  // Writes into every bar what fits: its microbatch, with stage and letter where there is more room.
  const writeNumbers = (canvas, panel, looks, {from, to, width, ratio, height}) => {
    const {spans: {data: spans}, firstSpan, ranks} = panel, scale = width / (to - from);
    canvas.font = `${FONT * ratio}px Helvetica, Arial, sans-serif`;
    canvas.textAlign = "center";
    canvas.textBaseline = "middle";
    for (let rank = 0; rank < ranks; rank++) {
      const [begin, end] = inView(spans, firstSpan, rank, from, to);
      for (let i = begin; i < end; i++) {
        const left = Math.max(spans.start[i], from), right = Math.min(spans.end[i], to);
        const wide = (right - left) * scale / ratio, microbatch = spans.microbatch[i];
        if (microbatch < 0 || wide < DIGIT + 3) continue;
        let words = `${microbatch}`;
        if (wide < DIGIT * words.length + 3) continue;
        const {letter, ink} = looks[spans.kind[i]];
        if (wide > LETTERS + DIGIT * words.length) words = `${spans.stage[i]}${letter}${words}`;
        canvas.fillStyle = ink;
        canvas.fillText(words, ((left + right) / 2 - from) * scale, (rank + 0.53) * height / ranks);
      }
    }
  };

  // The picture of a panel: a row of pixels a rank, stretched, with gaps between the ranks and numbers in the bars.
  const drawBars = (panel, looks) => {
    const {figure, image, ranks} = panel, {start: from, end: to} = figure.x_range, ratio = window.devicePixelRatio || 1;
    const width = pixelsOf(figure.inner_width), height = pixelsOf(figure.inner_height), row = height / ranks;
    const rows = new ImageData(new Uint8ClampedArray(pixels(panel, looks, from, to, width).buffer), width, ranks);
    const thin = new OffscreenCanvas(width, ranks), whole = new OffscreenCanvas(width, height);
    thin.getContext("2d").putImageData(rows, 0, 0);
    const canvas = whole.getContext("2d", {willReadFrequently: true});
    canvas.imageSmoothingEnabled = false;
    canvas.drawImage(thin, 0, 0, width, height);
    canvas.fillStyle = "white";
    for (let rank = 0; rank <= ranks; rank++) canvas.fillRect(0, (rank - GAP / 2) * row, width, GAP * row);
    if (row >= FONT * ratio) writeNumbers(canvas, panel, looks, {from, to, width, ratio, height});
    show(image, figure, new Uint32Array(canvas.getImageData(0, 0, width, height).data.buffer), [height, width]);
  };

  // -------------------------------------------------------------------------------------------- memory

  // For each column of the view the least and the most that `rank` holds there, what it holds at its start included.
  const reach = ({time, held}, first, rank, from, to, width) => {
    const least = new Float64Array(width).fill(NaN), most = new Float64Array(width).fill(NaN);
    const [begin, end] = inView({start: time}, first, rank, from, to), scale = width / (to - from);
    const stop = Math.min(width, Math.ceil((time[first[rank + 1] - 1] - from) * scale));
    let now = begin < end ? held[begin] : NaN;
    for (let x = 0, i = begin; x < stop; x++) {
      least[x] = most[x] = now;
      for (; i < end && (time[i] - from) * scale < x + 1; i++) {
        now = held[i];
        if ((time[i] - from) * scale < x) least[x] = most[x] = now;
        else [least[x], most[x]] = [Math.min(least[x], now), Math.max(most[x], now)];
      }
    }
    return [least, most];
  };

  // Every curve as a line of `thick` pixels, later ranks over earlier ones; row 0 of the image is the bottom.
  const curves = ({steps: {data: steps}, first, colours, top}, from, to, width, height) => {
    const all = new Uint32Array(width * height), thick = Math.max(1, Math.round(1.4 * (window.devicePixelRatio || 1)));
    colours.forEach(([red, green, blue], rank) => {
      const [least, most] = reach(steps, first, rank, from, to, width), tone = opaque(red, green, blue);
      for (let x = 0; x < width; x++) {
        if (!(most[x] >= 0)) continue;
        const low = Math.round(least[x] / top * height), high = Math.round(most[x] / top * height) + thick;
        for (let y = Math.max(0, low); y < Math.min(height, high); y++) all[y * width + x] = tone;
      }
    });
    return all;
  };

  const drawMemory = ({memory}) => {
    if (!memory) return;
    const {figure, image} = memory, {start: from, end: to} = figure.x_range;
    const width = pixelsOf(figure.inner_width), height = pixelsOf(figure.inner_height);
    show(image, figure, curves(memory, from, to, width, height), [height, width]);
  };

  // ---------------------------------------------------------------------------------------- what to call

  const elements = new WeakMap();
  const elementOf = figure => {
    if (!elements.has(figure)) elements.set(figure, Bokeh.index.find_one(figure).el);
    return elements.get(figure);
  };

  const onScreen = ({figure}) => {
    const {top, bottom} = elementOf(figure).getBoundingClientRect();
    return bottom > 0 && top < window.innerHeight;
  };

  const drawPanel = (panel, looks) => {
    const {figure, figure: {x_range: {start, end}, inner_width, inner_height}} = panel;
    const now = `${start} ${end} ${inner_width} ${inner_height}`;
    if (!inner_width || !inner_height || drawn.get(figure) === now) return;
    drawn.set(figure, now);
    drawBars(panel, looks);
    drawMemory(panel);
  };

  // Gives the panels on screen the time axis of the one that changed, and draws them: at once, so that it is in time for
  // the frame that Bokeh paints. Those elsewhere follow when they come on screen, and cost nothing until then.
  let view = null, following = false;
  const follow = (panels, looks) => {
    following = true;
    for (const panel of panels.filter(onScreen)) {
      panel.figure.x_range.setv(view);
      drawPanel(panel, looks);
    }
    following = false;
  };

  const draw = (panels, looks, {figure: {x_range: {start, end}}}) => {
    if (following) return;
    if (view === null) {
      const observer = new IntersectionObserver(() => follow(panels, looks));
      for (const {figure} of panels) observer.observe(elementOf(figure));
    }
    view = {start, end};
    follow(panels, looks);
  };

  const short = number => `${+number.toPrecision(6)}`;
  const named = ({stage, kind, microbatch, replica}, i, looks) =>
    `${stage[i]}${looks[kind[i]].letter}${microbatch[i] < 0 ? "" : microbatch[i]}${replica[i] ? `@${replica[i]}` : ""}`;

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

  // The rank whose curve is nearest to the pointer, and what it holds.
  const tellMemory = ({steps: {data: {time, held}}, first, colours}, unit, {x, y}) => {
    let best = null;
    for (let rank = 0; rank < colours.length; rank++) {
      const at = lastUpTo(time, first[rank], first[rank + 1], x), away = at < first[rank] ? NaN : Math.abs(held[at] - y);
      if (best === null ? !isNaN(away) : away < best.away) best = {rank, away, held: held[at]};
    }
    return best === null ? "" : `rank ${best.rank}: ${short(best.held)} ${unit}`;
  };

  return {draw, move, tell, tellMemory};
})();
