"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { displayModeBar: false, displaylogo: false, responsive: false, showTips: false };
const shown = { pattern: "0", phase: figures.phases[0] };

function chosen(element) {
  return ["pattern", "phase"].every((key) => !(key in element.dataset) || element.dataset[key] === shown[key]);
}

// -- labels of the roofline: beside their points, over no other label, marker or line where there is room ---------

function boxesMeet(a, b) {
  return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
}

function boxAround(x, y, width, height) {
  return { x0: x - width / 2, x1: x + width / 2, y0: y - height / 2, y1: y + height / 2 };
}

function alongLine(points) {
  const boxes = [];
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    const steps = Math.ceil(Math.hypot(b[0] - a[0], b[1] - a[1]) / 6);
    for (let k = 0; k <= steps; k++) {
      boxes.push(boxAround(a[0] + ((b[0] - a[0]) * k) / steps, a[1] + ((b[1] - a[1]) * k) / steps, 4, 4));
    }
  }
  return boxes;
}

// `taken` are the boxes that the label keeps off, `texts` those that the line to its point keeps off, too.
function placed(point, width, height, taken, texts, bounds) {
  for (const distance of [10, 22, 36, 52, 70, 90, 112, 136]) {
    for (const degrees of [-45, 45, -90, 90, -135, 135, 0, 180, -22, 22, -67, 67, -112, 112, -157, 157]) {
      const turn = (degrees * Math.PI) / 180;
      const dx = Math.cos(turn) * (distance + width / 2);
      const dy = Math.sin(turn) * (distance + height / 2);
      const box = boxAround(point.px + dx, point.py + dy, width, height);
      const inside = box.x0 >= 0 && box.y0 >= 0 && box.x1 <= bounds.width && box.y1 <= bounds.height;
      if (!inside || taken.some((other) => boxesMeet(box, other))) continue;
      const length = Math.hypot(dx, dy);
      const start = [point.px + (8 * dx) / length, point.py + (8 * dy) / length];
      const leader = alongLine([start, [point.px + dx, point.py + dy]]);
      if (leader.some((step) => texts.some((text) => boxesMeet(step, text)))) continue;
      return { box, dx, dy };
    }
  }
  return null;
}

function pointLabels(plot, figure) {
  const { xaxis, yaxis, font } = plot._fullLayout;
  const bounds = { width: xaxis._length, height: yaxis._length };
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `12px ${font.family}`;
  const { points, roof, beyond, at_work } = figure.layout.meta;
  const toPixels = ([x, y]) => [xaxis.d2p(x), yaxis.d2p(y)];
  const located = points.map((point) => ({ ...point, px: xaxis.d2p(point.x), py: yaxis.d2p(point.y) }));
  const lines = alongLine(roof.map(toPixels));
  if (beyond) lines.push(...alongLine(beyond.map(toPixels)));
  if (at_work) lines.push(...alongLine([[roof[0][0], at_work], [roof[2][0], at_work]].map(toPixels)));
  const taken = located.map((point) => boxAround(point.px, point.py, 16, 16));
  const texts = figure.layout.annotations.map((limit) => {
    const width = pen.measureText(limit.text).width + 8;
    const x = xaxis.l2p(limit.x) + limit.xshift + (limit.xanchor === "left" ? width / 2 : -width / 2);
    return boxAround(x, yaxis.l2p(limit.y) - limit.yshift, width, 16);
  });
  // The first to be placed has most room. Which order serves all best is found by trying some.
  const byX = [...located].sort((a, b) => a.px - b.px);
  const orders = [located, [...located].reverse(), byX, [...byX].reverse()];
  const tried = orders.map((order) => labelsInOrder(order, taken, texts, lines, pen, bounds));
  return tried.reduce((best, other) => (other.score > best.score ? other : best)).labels;
}

function labelsInOrder(order, taken, limits, lines, pen, bounds) {
  const texts = [...limits];
  const labels = [];
  let score = 0;
  for (const point of order) {
    const name = new DOMParser().parseFromString(point.name, "text/html").body.textContent;
    const choices = [];
    for (const obstacles of [[...taken, ...lines], taken]) {
      if (bounds.width > 520) choices.push([point.name, pen.measureText(name).width + 8, obstacles]);
      choices.push([point.number, pen.measureText(point.number).width + 8, obstacles]);
    }
    for (const [rank, [text, width, obstacles]] of choices.entries()) {
      const spot = placed(point, width, 18, [...obstacles, ...texts], texts, bounds);
      if (!spot) continue;
      score += choices.length - rank;
      texts.push(spot.box);
      labels.push({
        x: Math.log10(point.x), y: Math.log10(point.y), ax: spot.dx, ay: spot.dy, text, name: "label",
        showarrow: true, arrowhead: 0, arrowwidth: 1, arrowcolor: "#8a94a1", standoff: 6,
        xanchor: "center", yanchor: "middle", borderpad: 1, font: { size: 12 },
      });
      break;
    }
  }
  return { labels, score };
}

// -- drawing ------------------------------------------------------------------------------------------------

async function draw(plot, figure) {
  plot.hidden = !figure;
  if (!figure) return;
  // Plotly keeps the width that it once found unless it is given one.
  const layout = { ...structuredClone(figure.layout), width: plot.clientWidth };
  await Plotly.react(plot, figure.data, layout, config);
  if (figure.layout.meta) {
    const annotations = [...figure.layout.annotations, ...pointLabels(plot, figure)];
    await Plotly.relayout(plot, { annotations });
  }
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
