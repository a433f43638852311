"use strict";
// One state, the frame that is shown; everything that moves it goes through show().
const data = JSON.parse(document.getElementById("data").textContent);
const { times_s: times, scores, chosen, spans, passages, frame } = data; // no scores, no curve
const last = times.length - 1;
const rankOf = new Map(chosen.map(({ sample_idx, rank }) => [sample_idx, rank]));
const dismissed = new Set(data.dismissed);
const by = (id) => document.getElementById(id);
const [scrub, chart, film, list] = ["scrub", "chart", "film", "chosen"].map(by);
const MARGIN = { left: 34, right: 8, top: 10, bottom: 24 };
const CEILINGS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1];
const STEPS_S = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
const passageButtons = [...document.querySelectorAll("#passages button")];
let current = 0;
let scale = null;

/* Pictures: cells of sheets, placed by percentages so that any size of element will do. */

const sheets = data.sheets.map((base64) => {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
  return image; // kept, so that the browser keeps it decoded
});

function paint(element, sampleIdx) {
  const sheet = Math.floor(sampleIdx / data.frames_per_sheet);
  const cell = sampleIdx % data.frames_per_sheet;
  const onSheet = Math.min(data.frames_per_sheet, times.length - sheet * data.frames_per_sheet);
  const rows = Math.ceil(onSheet / data.columns);
  const row = Math.floor(cell / data.columns);
  const column = cell % data.columns;
  const { style } = element;
  style.backgroundImage = `url("${sheets[sheet].src}")`;
  style.backgroundSize = `${100 * data.columns}% ${100 * rows}%`;
  style.backgroundPosition =
    `${(100 * column) / (data.columns - 1)}% ${rows > 1 ? (100 * row) / (rows - 1) : 0}%`;
}

/* Words. */

const timeDigits = times.some((s, i) => i > 0 && s - times[i - 1] < 0.1) ? 2 : 1;

function clock(seconds, digits = timeDigits) {
  const sign = seconds < 0 ? "-" : "";
  const unit = 10 ** digits;
  const ticks = Math.round(Math.abs(seconds) * unit);
  const minutes = Math.floor(ticks / (60 * unit));
  const rest = ((ticks % (60 * unit)) / unit).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  const hours = Math.floor(minutes / 60);
  if (!hours) return `${sign}${minutes}:${rest}`;
  return `${sign}${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

function place(sampleIdx) {
  if (dismissed.has(sampleIdx)) return data.words.dismissed;
  if (!rankOf.has(sampleIdx)) return "";
  return scores ? `${data.words.chosen}, rank ${rankOf.get(sampleIdx)}` : data.words.chosen;
}

const scoreOf = (sampleIdx) => (scores ? `score ${scores[sampleIdx].toFixed(3)}` : "");

function words(sampleIdx) {
  const parts = [clock(times[sampleIdx]), scoreOf(sampleIdx), place(sampleIdx)];
  return parts.filter(Boolean).join(", ");
}

/* The curve. */

function add(parent, name, attributes, text) {
  const element = document.createElementNS(chart.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

function stepOver(range_s, most) {
  const longest = STEPS_S.at(-1);
  return STEPS_S.find((step) => range_s / step <= most) ?? longest * Math.ceil(range_s / longest / most);
}

function measure() {
  const { width, height } = chart.getBoundingClientRect();
  const [first, end] = [times[0], times[last]];
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
  const best = scores ? Math.max(...scores) : 1;
  const ceiling = CEILINGS.find((value) => best <= value) ?? 1;
  const x = (s) => (end > first ? left + ((s - first) / (end - first)) * (right - left) : (left + right) / 2);
  const y = (score) => bottom - (score / ceiling) * (bottom - top);
  const yOf = (sampleIdx) => y(scores ? scores[sampleIdx] : 0.4);
  return { x, y, yOf, left, right, top, bottom, first, end, ceiling };
}

function drawAxes() {
  const { x, y, left, right, bottom, first, end, ceiling } = scale;
  for (const part of scores ? [0, 0.5, 1] : [0]) {
    const at = y(part * ceiling);
    add(chart, "line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
    if (scores) add(chart, "text", { x: left - 8, y: at + 4, "text-anchor": "end" }, String(+(part * ceiling).toFixed(3)));
  }
  const step = stepOver(end - first, (right - left) / 72);
  for (let i = Math.ceil(first / step); i * step <= end; i++) {
    const at = x(i * step);
    add(chart, "line", { class: "grid", x1: at, x2: at, y1: bottom, y2: bottom + 5 });
    const anchor = at > right - 16 ? "end" : "middle";
    add(chart, "text", { x: at, y: bottom + 19, "text-anchor": anchor }, clock(i * step, step < 0.1 ? 2 : step < 1 ? 1 : 0));
  }
}

function drawCurve() {
  const { x, yOf, left, right, bottom } = scale;
  const points = times.map((s, i) => `${x(s).toFixed(1)},${yOf(i).toFixed(1)}`);
  add(chart, "path", { class: "area", d: `M${x(times[0])},${bottom}L${points.join("L")}L${x(times[last])},${bottom}Z` });
  const crowded = times.length > (right - left) / 2;
  add(chart, "path", { class: crowded ? "curve thin" : "curve", d: `M${points.join("L")}` });
  for (const { sample_idx: i } of chosen) {
    add(chart, "line", { class: "stem", x1: x(times[i]), x2: x(times[i]), y1: bottom, y2: yOf(i) });
  }
}

function drawChart() {
  scale = measure();
  chart.replaceChildren();
  const { x, yOf, left, right, top, bottom } = scale;
  const inside = (s) => Math.min(right, Math.max(left, x(s)));
  for (const [start, end] of spans) {
    const from = inside(start);
    add(chart, "rect", { class: "span", x: from, y: top, width: inside(end) - from, height: bottom - top });
  }
  for (const [start, end, picked] of passages) {
    const from = inside(start);
    const width = Math.max(0, inside(end) - from - 1);
    add(chart, "rect", { class: picked ? "passage is-picked" : "passage", x: from, y: top - 6, width, height: 4 });
  }
  drawAxes();
  if (scores) drawCurve();
  const radius = chosen.length > (right - left) / 24 ? 3 : 4.5;
  for (const i of dismissed) add(chart, "circle", { class: "hollow", cx: x(times[i]), cy: yOf(i), r: radius });
  for (const { sample_idx: i } of chosen) {
    add(chart, "circle", { class: "dot", cx: x(times[i]), cy: yOf(i), r: radius });
  }
  add(chart, "line", { class: "cursor", y1: top - 4, y2: bottom });
  add(chart, "circle", { r: 5.5 });
}

function drawFilm() {
  film.replaceChildren();
  film.style.marginLeft = `${scale.left}px`;
  film.style.marginRight = `${MARGIN.right}px`;
  const width = scale.right - scale.left;
  const height = width < 480 ? 36 : 52;
  const count = Math.max(1, Math.round(width / (height * (frame.width / frame.height))));
  for (let i = 0; i < count; i++) {
    const cell = film.appendChild(document.createElement("div"));
    cell.className = "frame";
    paint(cell, nearest(scale.first + ((i + 0.5) / count) * (scale.end - scale.first)));
  }
}

function draw() {
  drawChart();
  drawFilm();
  moveCursor();
}

/* The frame that is shown. */

function nearest(seconds) {
  let low = 0;
  let high = last;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < seconds) low = middle + 1;
    else high = middle;
  }
  return low > 0 && seconds - times[low - 1] < times[low] - seconds ? low - 1 : low;
}

function moveCursor() {
  const at = scale.x(times[current]);
  const [line, ring] = [chart.querySelector(".cursor"), chart.lastElementChild];
  line.setAttribute("x1", at);
  line.setAttribute("x2", at);
  ring.setAttribute("cx", at);
  ring.setAttribute("cy", scale.yOf(current));
  ring.setAttribute("class", rankOf.has(current) ? "ring is-chosen" : "ring");
}

function show(sampleIdx) {
  current = Math.min(last, Math.max(0, sampleIdx));
  paint(by("frame"), current);
  by("frame").setAttribute("aria-label", `Frame ${data.source_idx[current]} of the video, at ${words(current)}`);
  by("time").textContent = clock(times[current]);
  by("score").textContent = scoreOf(current);
  by("place").textContent = place(current);
  by("place").className = dismissed.has(current) ? "" : "is-chosen";
  scrub.setAttribute("aria-valuenow", current);
  scrub.setAttribute("aria-valuetext", words(current));
  for (const button of list.querySelectorAll("button")) {
    if (Number(button.dataset.sampleIdx) !== current) button.removeAttribute("aria-current");
    else {
      button.setAttribute("aria-current", "true");
      list.querySelector('[tabindex="0"]').tabIndex = -1;
      button.tabIndex = 0; // the list is one stop of the Tab key: its current frame
    }
  }
  passageButtons.forEach((button, i) => {
    const [start, end] = passages[i];
    if (start <= times[current] && times[current] < end) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  moveCursor();
}

/* From one chosen frame to the next, or to the outermost. */
function chosenBeside(direction) {
  const places = chosen.map(({ sample_idx }) => sample_idx);
  if (direction > 0) return places.find((i) => i > current) ?? current;
  return places.findLast((i) => i < current) ?? current;
}

/* The hands: pointer and keys. */

function follow(event) {
  const { left } = chart.getBoundingClientRect();
  const { first, end } = scale;
  const part = (event.clientX - left - scale.left) / (scale.right - scale.left);
  show(nearest(first + part * (end - first)));
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const onSlider = document.activeElement === scrub;
  const inList = list.contains(document.activeElement);
  const arrows = { ArrowLeft: -1, ArrowRight: 1, ...(onSlider && { ArrowDown: -1, ArrowUp: 1 }) };
  const jumps = onSlider ? { Home: 0, End: last, PageDown: current - 10, PageUp: current + 10 } : {};
  if (event.key in jumps) show(jumps[event.key]);
  else if (!(event.key in arrows)) return;
  else if (event.shiftKey || inList) show(chosenBeside(arrows[event.key]));
  else show(current + arrows[event.key]);
  if (inList) list.querySelector("[aria-current]")?.focus();
  event.preventDefault();
}

function fillList() {
  const items = chosen.map(({ sample_idx: i }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.sampleIdx = i;
    button.tabIndex = -1;
    button.setAttribute("aria-label", words(i));
    const picture = document.createElement("div");
    picture.className = "frame";
    paint(picture, i);
    const label = document.createElement("div");
    label.className = "words";
    const score = scores ? scores[i].toFixed(3) : "";
    label.append(clock(times[i]), Object.assign(document.createElement("span"), { textContent: score }));
    button.append(picture, label);
    button.addEventListener("click", () => show(i));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  list.append(...items);
  if (items.length) items[0].firstChild.tabIndex = 0;
}

document.documentElement.style.setProperty("--aspect", frame.width / frame.height);
document.body.classList.toggle("is-unscored", !scores);
document.querySelector(".of-curve").hidden = !scores;
document.querySelector(".of-span").hidden = spans.length === 0;
document.querySelector(".of-dismissed").hidden = dismissed.size === 0;
document.querySelector(".of-passage").hidden = !passages.some(([, , picked]) => picked);
passageButtons.forEach((button, i) => {
  button.addEventListener("click", () => show(times.findIndex((s) => s >= passages[i][0])));
});
scrub.setAttribute("aria-valuemin", 0);
scrub.setAttribute("aria-valuemax", last);
scrub.addEventListener("pointermove", follow);
scrub.addEventListener("pointerdown", follow);
document.addEventListener("keydown", onKey);
fillList();
draw();
show(chosen.find(({ rank }) => rank === 0)?.sample_idx ?? 0); // the best one, or the first
new ResizeObserver(draw).observe(chart);
