"use strict";
/* Drawing helpers of the report and the server's page. */
const get = (id) => document.getElementById(id);

function element(name, attributes = {}, ...inside) {
  return made(document.createElement(name), attributes, inside);
}

function draw(name, attributes = {}, ...inside) {
  return made(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, inside);
}

function made(node, attributes, inside) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
}

/* Round numbers from low to high, about `most` of them. */
function ticks(low, high, most) {
  const rough = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const found = [];
  for (let place = Math.ceil(low / step); place * step <= high + 1e-9 * step; place += 1) found.push(Number((place * step).toPrecision(10)));
  return found;
}

const SHOWN = 0.3; /* boxes with a higher score are shown, like in the report */
const short = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : value === Infinity ? "∞" : value === -Infinity ? "−∞" : "none");

/* A model's answer, or the target, in words. */
function named(said) {
  const boxes = boxesOf(said);
  if (!boxes) {
    const values = [said.label ?? said.prediction].flat();
    return values.map((value) => (typeof value === "number" ? short(value) : value)).join(", ") || "no label";
  }
  const names = [...new Set(boxes.map(({ prediction }) => prediction))];
  const some = names.slice(0, 3).join(", ") + (names.length > 3 ? " and more" : "");
  return boxes.length ? `${boxes.length} ${boxes.length === 1 ? "box" : "boxes"} (${some})` : "no boxes";
}

/* The boxes of a detector's answer that are shown, best first; null for any other answer. */
function boxesOf(said) {
  if (!Array.isArray(said.prediction) || said.label || said.prediction.some((each) => typeof each !== "object")) return null;
  const shown = said.prediction.filter(({ score }) => score > SHOWN).sort((one, other) => other.score - one.score);
  return shown.map((box) => ({ box: box.box, prediction: box.label ?? `class ${box.class}`, probability: box.score }));
}

/* An image with boxes over it, in its own pixels; labeled boxes are dashed. */
function picture({ src, width, height }, boxes, role, words, there = []) {
  const line = Math.max(width, height) / 180;
  const rect = ([left, top, right, bottom], name, wide) => draw("rect", { class: name, x: left, y: top, width: right - left, height: bottom - top, "stroke-width": wide * line });
  const parts = boxes.flatMap(({ box, prediction, probability }) => [
    rect(box, role, 1.5),
    draw("text", { x: box[0] + 2 * line, y: box[1] + 9 * line, "font-size": 8 * line }, `${prediction} ${probability.toFixed(2)}`),
  ]);
  const attributes = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words, class: Math.max(width, height) < 100 ? "small" : "" };
  return draw("svg", attributes, draw("image", { href: src, width, height }), ...there.map(({ box }) => rect(box, "there", 1)), ...parts);
}
