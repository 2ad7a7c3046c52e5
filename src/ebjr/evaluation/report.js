"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 560px)");
const config = { displayModeBar: false, responsive: true };

function percent(share, digits) { return (100 * share).toFixed(digits) + " %"; }

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
    legend: { ...layout.legend, y: narrow.matches ? -0.3 : layout.legend.y },
  };
}

function withInk(traces) {
  const ink = dark.matches ? "#e8eaf0" : "#1d2330";
  return traces.map((trace) =>
    trace.name === "student" || trace.name === "teacher"
      ? { ...trace, marker: { ...trace.marker, color: ink } }
      : trace);
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
    `threshold ${words}, accuracy ${percent(series.quality[row], 2)}, ${percent(rate, 1)} deferred`);
  get("accuracy").textContent = percent(series.quality[row], 2);
  const gap = 100 * (series.quality[row] - data.teacher_quality);
  get("against").textContent = `${gap >= 0 ? "+" : "−"}${Math.abs(gap).toFixed(2)} points against the teacher`;
  get("deferred").textContent = percent(rate, 1);
  const flops = jointCost("flops", rate);
  const seconds = jointCost("seconds", rate);
  fill("flops", flops === null ? null : flopsText(flops));
  fill("time", seconds === null ? null : (1e3 * seconds).toPrecision(3) + " ms");
  const unit = flops !== null ? "flops" : "seconds";
  const cost = jointCost(unit, rate);
  fill("cheaper", cost ? (data.teacher[unit] / cost).toFixed(2) + "×" : null);
  const marker = data.curve.data.length - 1;
  Plotly.restyle("curve", { x: [[series.cost[row]]], y: [[100 * series.quality[row]]] }, [marker]);
  Plotly.relayout("histogram", {
    "shapes[0].x0": threshold || 0, "shapes[0].x1": threshold || 0, "shapes[0].visible": threshold !== null,
  });
}

function fill(id, text) {
  get(id).textContent = text || "";
  get(id).parentElement.hidden = text === null;
}

function draw() {
  Plotly.react("curve", withInk(data.curve.data), themed(data.curve.layout), config);
  const { data: bars, layout } = chosenSeries().histogram;
  Plotly.react("histogram", bars, themed(layout), config);
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
