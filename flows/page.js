"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { displayModeBar: false, displaylogo: false, responsive: false, showTips: false };
const shown = { pattern: "0", phase: figures.phases[0] };

function chosen(element) {
  return ["pattern", "phase"].every((key) => !(key in element.dataset) || element.dataset[key] === shown[key]);
}

// -- labels of the roofline: over no marker and no other label, and over no line where there is room ---------------

function boxesMeet(a, b) {
  return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
}

function boxAround(x, y, width, height) {
  return { x0: x - width / 2, x1: x + width / 2, y0: y - height / 2, y1: y + height / 2 };
}

function alongLine([from, to]) {
  const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / 6) || 1;
  return Array.from({ length: steps + 1 }, (_, k) =>
    boxAround(from[0] + ((to[0] - from[0]) * k) / steps, from[1] + ((to[1] - from[1]) * k) / steps, 4, 4));
}

/** What labels are placed by: the plot's size, text widths, and the boxes of markers and lines, in pixels. */
function surroundings(plot, figure) {
  const { xaxis, yaxis, font } = plot._fullLayout;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `12px ${font.family}`;
  const toPixels = ([x, y]) => [xaxis.d2p(x), yaxis.d2p(y)];
  const { points, limits, beyond } = figure.layout.meta;
  const located = points.map((point) => ({ ...point, at: toPixels([point.x, point.y]) }));
  const drawn = limits.map((limit) => ({ ...limit, pixels: limit.line.map(toPixels) }));
  const lines = [...drawn.map((limit) => limit.pixels), ...(beyond.length ? [beyond.map(toPixels)] : [])];
  const bounds = { width: xaxis._length, height: yaxis._length };
  return {
    points: located,
    limits: drawn,
    bounds,
    markers: located.map((point) => boxAround(...point.at, 16, 16)),
    lines: lines.flatMap(alongLine),
    widthOf: (text) => pen.measureText(new DOMParser().parseFromString(text, "text/html").body.textContent).width + 8,
    isInside: (box) => box.x0 >= 0 && box.y0 >= 0 && box.x1 <= bounds.width && box.y1 <= bounds.height,
    fromPixels: (x, y) => ({ x: Math.log10(xaxis.p2d(x)), y: Math.log10(yaxis.p2d(y)) }),
  };
}

/** Labels of the limits: beside a slope, above or below a level line. */
function limitLabels(around) {
  const texts = [];
  const labels = around.limits.map(({ text, pixels: [from, to] }) => {
    const width = around.widthOf(text);
    const level = from[1] === to[1];
    const boxes = [];
    for (const share of level ? [1, 0.8, 0.6, 0.4, 0.2] : [0.55, 0.7, 0.4, 0.25, 0.85, 0.1]) {
      const [x, y] = [from[0] + (to[0] - from[0]) * share, from[1] + (to[1] - from[1]) * share];
      for (const side of [1, -1]) {
        if (level) boxes.push(boxAround(x - width / 2, y - side * 14, width, 16));
        else boxes.push(boxAround(x + side * (12 + width / 2), y + side * 10, width, 16));
      }
    }
    const free = (box, taken) => around.isInside(box) && !taken.some((other) => boxesMeet(box, other));
    const box = boxes.find((box) => free(box, [...texts, ...around.markers, ...around.lines]))
      ?? boxes.find((box) => free(box, [...texts, ...around.markers]))
      ?? boxes.find((box) => free(box, texts))
      ?? boxes[0];
    texts.push(box);
    return {
      ...around.fromPixels((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2), text, showarrow: false,
      xanchor: "center", yanchor: "middle", font: { size: 12, color: "#56606e" },
    };
  });
  return { labels, texts };
}

/** Where a point's label may be: its box keeps off what is taken, and the line to it keeps off the texts. */
function placeOf(point, width, taken, texts, around) {
  const height = 18;
  const [px, py] = point.at;
  for (const distance of [10, 22, 36, 52, 70, 90, 112, 136]) {
    for (const degrees of [-45, 45, -90, 90, -135, 135, 0, 180, -22, 22, -67, 67, -112, 112, -157, 157]) {
      const turn = (degrees * Math.PI) / 180;
      const dx = Math.cos(turn) * (distance + width / 2);
      const dy = Math.sin(turn) * (distance + height / 2);
      const box = boxAround(px + dx, py + dy, width, height);
      if (!around.isInside(box) || taken.some((other) => boxesMeet(box, other))) continue;
      const length = Math.hypot(dx, dy);
      const leader = alongLine([[px + (8 * dx) / length, py + (8 * dy) / length], [px + dx, py + dy]]);
      if (leader.some((step) => texts.some((text) => boxesMeet(step, text)))) continue;
      return { box, dx, dy };
    }
  }
  return null;
}

/** Labels of points placed in the given order: names where there is room, or else numbers. */
function labelsInOrder(order, limits, around) {
  const texts = [...limits];
  const labels = [];
  let score = 0;
  for (const point of order) {
    const choices = [];
    for (const taken of [[...around.markers, ...around.lines], around.markers]) {
      if (around.bounds.width > 520) choices.push([point.name, taken, texts]);
      choices.push([point.number, taken, texts]);
    }
    choices.push([point.number, [], []]); // where it is that crowded, its line may cross another label
    for (const [rank, [text, taken, crossed]] of choices.entries()) {
      const place = placeOf(point, around.widthOf(text), [...taken, ...texts], crossed, around);
      if (!place) continue;
      score += choices.length - rank;
      texts.push(place.box);
      labels.push({
        x: Math.log10(point.x), y: Math.log10(point.y), ax: place.dx, ay: place.dy, text,
        showarrow: true, arrowhead: 0, arrowwidth: 1, arrowcolor: "#8a94a1", standoff: 6,
        xanchor: "center", yanchor: "middle", borderpad: 1, font: { size: 12 },
      });
      break;
    }
  }
  return { labels, score };
}

function rooflineLabels(plot, figure) {
  const around = surroundings(plot, figure);
  const limits = limitLabels(around);
  // The first to be placed has most room. Which order serves all best is found by trying some.
  const byX = [...around.points].sort((a, b) => a.at[0] - b.at[0]);
  const orders = [around.points, [...around.points].reverse(), byX, [...byX].reverse()];
  const tried = orders.map((order) => labelsInOrder(order, limits.texts, around));
  const best = tried.reduce((one, other) => (other.score > one.score ? other : one));
  return [...limits.labels, ...best.labels];
}

// -- drawing ------------------------------------------------------------------------------------------------

async function draw(plot, figure) {
  plot.hidden = !figure;
  if (!figure) return;
  // Plotly keeps the width that it once found unless it is given one.
  const layout = { ...structuredClone(figure.layout), width: plot.clientWidth };
  await Plotly.react(plot, figure.data, layout, config);
  if (figure.layout.meta) await Plotly.relayout(plot, { annotations: rooflineLabels(plot, figure) });
}

async function drawShown() {
  for (const plot of document.querySelectorAll("[data-plot]")) {
    const [kind, name] = plot.dataset.plot.split(" ");
    await draw(plot, kind === "comparison" ? figures.comparison[name] : figures.detail[shown.pattern][shown.phase][name]);
  }
  document.documentElement.dataset.drawn = "yes";
}

// One drawing after the other: the last one started is the last one finished.
let drawing = Promise.resolve();

function show() {
  document.documentElement.dataset.drawn = "no";
  for (const element of document.querySelectorAll("[data-view]")) element.hidden = !chosen(element);
  drawing = drawing.then(drawShown);
}

for (const input of document.querySelectorAll(".controls input")) {
  input.addEventListener("change", () => {
    shown[input.name] = input.value;
    show();
  });
}

let width = document.documentElement.clientWidth;
let waiting;
window.addEventListener("resize", () => {
  if (document.documentElement.clientWidth === width) return; // a phone's address bar comes and goes
  width = document.documentElement.clientWidth;
  clearTimeout(waiting);
  waiting = setTimeout(show, 120);
});

show();
