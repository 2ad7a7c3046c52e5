const data = JSON.parse(get("data").textContent);
const plots = {};

function percent(share, digits) { return (100 * share).toFixed(digits) + " %"; }

/* Qualities are higher-is-better; accuracy is shown in percent, losses as they are. */
function drawn(quality) { return data.metric.percent ? 100 * quality : data.metric.sign * quality; }
function figure(quality) {
  return data.metric.percent ? percent(quality, 2) : Number(drawn(quality).toPrecision(4)).toString();
}

function flopsText(flops) {
  const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [size, letter] = steps.find(([size]) => flops >= size) || [1, ""];
  return (flops / size).toPrecision(3) + " " + letter;
}

function jointCost(unit, rate) {
  if (data.student[unit] === undefined || data.teacher[unit] === undefined) return null;
  return data.student[unit] + rate * data.teacher[unit];
}

/* Each trace has a button that hides and shows it. */
function legend(id, traces) {
  get(id + "-legend").replaceChildren(...traces.map((trace, place) => {
    const button = element("button", { type: "button", "aria-pressed": "true" }, swatch(trace), trace.name);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      plots[id].toggle(place, shown);
    });
    return button;
  }));
}

function swatch(trace) {
  const parts = [];
  const color = colorOf(trace);
  if (trace.mode && trace.mode.includes("lines")) {
    const { dash, width = 2 } = trace.line;
    parts.push(draw("path", { d: "M1 7H21", stroke: color, "stroke-width": width, "stroke-dasharray": dash === "dot" ? "1.5 2.5" : dash === "dash" ? "5 3" : "none" }));
  }
  if (trace.type === "bar") parts.push(draw("path", { d: "M3 1h16v12H3z", fill: color, opacity: trace.opacity }));
  else if (trace.marker) parts.push(draw("path", { d: shape(trace.marker.symbol, 11, 7, 5.5), fill: color }));
  return draw("svg", { width: 22, height: 14, "aria-hidden": "true" }, ...parts);
}

function chosenSeries() { return data.series[get("score").value]; }

function show() {
  const series = chosenSeries();
  const row = Number(get("knob").value);
  const threshold = series.threshold[row];
  const rate = series.rate[row];
  const words = threshold === null ? "defer everything" : threshold.toPrecision(5);
  get("threshold").textContent = words;
  get("knob").setAttribute("aria-valuetext",
    `threshold ${words}, ${data.metric.title} ${figure(series.quality[row])}, ${percent(rate, 1)} deferred`);
  get("accuracy").textContent = figure(series.quality[row]);
  const gap = drawn(series.quality[row]) - drawn(data.teacher_quality);
  const size = data.metric.percent ? Math.abs(gap).toFixed(2) + " points" : Math.abs(gap).toPrecision(3);
  get("against").textContent = `${gap >= 0 ? "+" : "−"}${size} against the teacher`;
  get("deferred").textContent = percent(rate, 1);
  const flops = jointCost("flops", rate);
  const seconds = jointCost("seconds", rate);
  fill("flops", flops === null ? null : flopsText(flops));
  fill("time", seconds === null ? null : (1e3 * seconds).toPrecision(3) + " ms");
  const dollars = jointCost("dollars", rate);
  fill("price", dollars === null ? null : "$" + (1e3 * dollars).toPrecision(3));
  const cost = data.unit === null ? null : jointCost(data.unit, rate);
  fill("cheaper", cost ? (data.alone[data.unit] / cost).toFixed(2) + "×" : null);
  Object.assign(data.curve.data.at(-1), { x: [series.cost[row]], y: [drawn(series.quality[row])] });
  plots.curve.draw();
  moveRule("histogram", threshold);
  moveRule("reliability", 100 * rate);
}

/* The first shape of a plot marks the knob. */
function moveRule(id, x) {
  if (!plots[id]) return;
  Object.assign(plots[id].layout.shapes[0], { x0: x || 0, visible: x !== null });
  plots[id].draw();
}

function fill(id, text) {
  get(id).textContent = text || "";
  get(id).parentElement.hidden = text === null;
}

function plot(id, figure) {
  if (!get(id)) return;
  plots[id]?.observer.disconnect();
  plots[id] = new Plot(get(id), figure);
  if (get(id + "-legend") && figure.layout.yaxis.type !== "category") legend(id, figure.data);
}

function drawAll() {
  plot("curve", data.curve);
  plot("histogram", chosenSeries().histogram);
  plot("reliability", chosenSeries().reliability);
  for (const [id, figure] of Object.entries(data.extras)) plot(id, figure);
  show();
}

function reset() {
  const series = chosenSeries();
  get("knob").max = series.threshold.length - 1;
  get("knob").value = series.start;
  drawAll();
}

/* ---- examples won and lost ---- */

function showSamples() {
  if (!get("samples") || !data.samples.length) return;
  get("samples").hidden = false;
  const groups = [...new Set(data.samples.map(({ group }) => group))];
  get("shown").replaceChildren(...groups.flatMap((group) => {
    const own = data.samples.filter((sample) => sample.group === group);
    return [element("h3", {}, group), own[0].image ? element("div", { class: "samples" }, ...own.map(imaged)) : listed(own)];
  }));
}

const there = ({ prediction, label }) => {
  const boxes = Array.isArray(prediction) && typeof prediction[0] === "object";
  return boxes ? `${prediction.length} ${prediction.length === 1 ? "box" : "boxes"}` : named({ prediction, label });
};

function imaged(sample) {
  const said = named(sample.joint);
  const answer = said === named(sample[sample.who]) ? `The ${sample.who} answered` : `The ${sample.who} was asked, and both answer ${said}`;
  const words = `Target: ${there(sample.there)}. Student: ${named(sample.student)}, teacher: ${named(sample.teacher)}. ${answer}, score ${sample.score}; example ${sample.row.toLocaleString("en")}`;
  const drawn = picture({ ...sample, src: sample.image }, boxesOf(sample.joint) ?? [], sample.who, words, boxesOf(sample.there) ? sample.there.prediction : []);
  return element("figure", {}, drawn, element("figcaption", {}, words));
}

function listed(samples) {
  const head = ["example", "target", "student", "teacher", "joint", "answered by", "score"];
  const row = (cells, first) => element("tr", {}, element("th", { scope: first }, cells[0]), ...cells.slice(1).map((cell) => element(first === "col" ? "th" : "td", {}, cell)));
  const rows = samples.map((sample) => row([sample.row.toLocaleString("en"), there(sample.there), named(sample.student), named(sample.teacher), named(sample.joint), sample.who, sample.score], "row"));
  const table = element("table", { class: "told" }, element("thead", {}, row(head, "col")), element("tbody", {}, ...rows));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": samples[0].group }, table);
}

get("knob").addEventListener("input", show);
get("score").addEventListener("change", reset);
get("reset").addEventListener("click", reset);
reset();
showSamples();

/* In a frame, tell the outer page the height, which it cannot see. */
if (window.parent !== window) {
  const main = document.querySelector("main");
  new ResizeObserver(() => window.parent.postMessage({ height: Math.ceil(main.offsetHeight) }, "*")).observe(main);
}
