"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 560px)");
const config = { displayModeBar: false, responsive: true };

function percent(share, digits) { return (100 * share).toFixed(digits) + " %"; }

/* Qualities are higher-is-better; people read accuracy in percent, and losses as they are. */
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

function themed(layout) {
  const ink = dark.matches ? "#e8eaf0" : "#1d2330";
  const line = dark.matches ? "#2f3542" : "#e6e9ef";
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, fixedrange: true };
  const shapes = (layout.shapes || []).map((shape) => ({ ...shape, line: { ...shape.line, color: ink } }));
  return {
    ...layout,
    shapes,
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
    font: { family: "system-ui, sans-serif", size: narrow.matches ? 11 : 13, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
  };
}

function withInk(traces) {
  const ink = dark.matches ? "#e8eaf0" : "#1d2330";
  const accent = dark.matches ? "#a79fff" : data.accent;
  const tinted = JSON.parse(JSON.stringify(traces).replaceAll(data.accent, accent));
  return tinted.map((trace) => trace.name !== "teacher" ? trace : {
    ...trace, marker: { ...trace.marker, color: ink }, line: { ...trace.line, color: ink },
  });
}

/* The legend is ours: plotly's scrolls in a box of its own where the page is narrow. */
function legend(id, traces) {
  get(id + "-legend").replaceChildren(...traces.map((trace, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = swatch(trace);
    button.append(trace.name);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      Plotly.restyle(id, { visible: shown }, [place]);
    });
    return button;
  }));
}

function swatch(trace) {
  const parts = [];
  const marker = trace.marker && trace.marker.color;
  if (trace.mode && trace.mode.includes("lines")) {
    const { dash, width = 2, color = marker } = trace.line;
    const dashes = { dash: "5 3", dot: "1.5 2.5" }[dash] || "none";
    parts.push(`<path d="M1 7H21" stroke="${color}" stroke-width="${width}" stroke-dasharray="${dashes}"/>`);
  }
  if (marker) {
    const shape = { square: "M6 2h10v10H6z", diamond: "M11 1l6 6-6 6-6-6z" }[trace.marker.symbol];
    if (trace.type === "bar") parts.push(`<path d="M3 1h16v12H3z" fill="${marker}" opacity="${trace.opacity}"/>`);
    else if (shape) parts.push(`<path d="${shape}" fill="${marker}"/>`);
    else parts.push(`<circle cx="11" cy="7" r="5" fill="${marker}"/>`);
  }
  return `<svg width="22" height="14" aria-hidden="true">${parts.join("")}</svg>`;
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
  const unit = flops !== null ? "flops" : "seconds";
  const cost = jointCost(unit, rate);
  fill("cheaper", cost ? (data.teacher[unit] / cost).toFixed(2) + "×" : null);
  const marker = data.curve.data.length - 1;
  Plotly.restyle("curve", { x: [[series.cost[row]]], y: [[drawn(series.quality[row])]] }, [marker]);
  moveRule("histogram", threshold);
  moveRule("reliability", 100 * rate);
}

/* The first shape of a plot is where the knob is. */
function moveRule(id, x) {
  if (!get(id)) return;
  Plotly.relayout(id, { "shapes[0].x0": x || 0, "shapes[0].x1": x || 0, "shapes[0].visible": x !== null });
}

function fill(id, text) {
  get(id).textContent = text || "";
  get(id).parentElement.hidden = text === null;
}

function plot(id, figure) {
  if (!get(id)) return;
  const traces = withInk(figure.data);
  Plotly.react(id, traces, themed(figure.layout), config);
  if (get(id + "-legend")) legend(id, traces);
}

function draw() {
  plot("curve", data.curve);
  plot("histogram", chosenSeries().histogram);
  plot("reliability", chosenSeries().reliability);
  if (data.ranking) plot("ranking", data.ranking);
  for (const [id, figure] of Object.entries(data.extras)) plot(id, figure);
  show();
}

function reset() {
  const series = chosenSeries();
  get("knob").max = series.threshold.length - 1;
  get("knob").value = series.start;
  draw();
}

get("knob").addEventListener("input", show);
get("score").addEventListener("change", reset);
get("reset").addEventListener("click", reset);
dark.addEventListener("change", draw);
reset();

/* In a frame: the page around it cannot see how high this is. */
if (window.parent !== window) {
  const main = document.querySelector("main");
  new ResizeObserver(() => window.parent.postMessage({ height: Math.ceil(main.offsetHeight) }, "*")).observe(main);
}
