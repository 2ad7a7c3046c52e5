/* Draws the figures of plots.py: lines, markers, bars and rules on two axes, in the part of
   plotly's format that they use. Colors that differ in dark mode are CSS variables. */

const LETTER = 7.1; /* average width of a letter in pixels */
const NEAR = 26; /* the mouse shows a point's figures within this many pixels */

class Plot {
  constructor(node, figure) {
    Object.assign(this, { node, ...figure, hidden: new Set(), seen: [] });
    if (figure.layout.height) node.style.height = `${figure.layout.height}px`;
    this.tip = element("div", { class: "tip", hidden: "" });
    this.svg = draw("svg", { "aria-hidden": "true" });
    node.replaceChildren(this.svg, this.tip);
    node.onpointermove = node.onpointerdown = (event) => this.hover(event);
    node.onpointerleave = () => { this.tip.hidden = true; };
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(node);
    this.draw();
  }

  get shown() {
    return this.data.filter((_, place) => !this.hidden.has(place));
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.node;
    if (!width || !height) return;
    const { xaxis, yaxis, shapes = [], annotations = [] } = this.layout;
    this.names = yaxis.type === "category" ? [...new Set(this.data.flatMap((trace) => trace.y))] : null;
    const labels = this.names ? this.names.map((name, place) => [place, name]) : this.labels(yaxis, "y", height / 55);
    const left = Math.min(14 + LETTER * Math.max(...labels.map(([, text]) => text.length)), 0.42 * width);
    const top = yaxis.title ? 30 : 10;
    this.box = { left, right: width - 12, top, bottom: height - 44 };
    this.x = this.scale("x", xaxis, this.box.left, this.box.right);
    this.y = this.scale("y", yaxis, this.box.bottom, this.box.top);
    this.seen = [];
    const traces = [...this.shown].sort((one, other) => (one.zorder || 0) - (other.zorder || 0));
    const inside = draw("svg", { x: left, y: top, width: this.box.right - left, height: this.box.bottom - top, viewBox: `${left} ${top} ${this.box.right - left} ${this.box.bottom - top}` });
    inside.append(...shapes.filter((shape) => shape.visible !== false).map((shape) => this.rule(shape)), ...traces.flatMap((trace) => this.lines(trace)));
    const notes = annotations.map((note) => this.note(note));
    this.svg.replaceChildren(...this.axes(labels, width, height), inside, ...traces.flatMap((trace) => this.markers(trace)), ...notes);
  }

  /* The smallest and largest value on an axis. */
  range(name, axis) {
    if (this.names && name === "y") return [this.names.length - 0.5, -0.5];
    if (axis.range) return axis.range;
    const seen = this.data.flatMap((trace) => {
      const bars = trace[`error_${name}`];
      if (!bars) return name === "x" && trace.type === "bar" ? trace.x.flatMap((x) => [x - trace.width / 2, x + trace.width / 2]) : trace[name];
      return trace[name].flatMap((value, row) => [value - bars.arrayminus[row], value + bars.array[row]]);
    });
    if (axis.rangemode === "tozero" || axis.zeroline) seen.push(0);
    const [low, high] = seen.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    const bars = name === "x" && this.data.some((trace) => trace.type === "bar");
    const margin = bars ? 0 : 0.05 * (high - low || Math.abs(high) || 1);
    const ends = [low === 0 && axis.rangemode === "tozero" ? 0 : low - margin, high + margin];
    return axis.autorange === "reversed" ? ends.reverse() : ends;
  }

  scale(name, axis, from, to) {
    const [low, high] = this.range(name, axis);
    return (value) => from + (to - from) * ((this.names && name === "y" ? this.place(value) : value) - low) / (high - low || 1);
  }

  place(name) {
    return typeof name === "string" ? this.names.indexOf(name) : name;
  }

  labels(axis, name, most) {
    if (axis.tickvals) return axis.tickvals.map((value, row) => [value, axis.ticktext[row]]);
    const [low, high] = this.range(name, axis);
    return ticks(Math.min(low, high), Math.max(low, high), most).map((value) => [value, value.toLocaleString("en", { maximumSignificantDigits: 6 })]);
  }

  axes(labels, width, height) {
    const { left, right, top, bottom } = this.box;
    const { xaxis, yaxis } = this.layout;
    const most = Math.max(Math.floor((left - 12) / LETTER), 3);
    const parts = labels.flatMap(([value, text]) => {
      const short = text.length > most + 1 ? `${text.slice(0, most - 1)}…` : text;
      const label = draw("text", { x: left - 8, y: this.y(value) + 4, "text-anchor": "end" }, short);
      if (short !== text) label.append(draw("title", {}, text));
      return [draw("path", { class: "grid", d: `M${left} ${this.y(value)}H${right}` }), label];
    });
    for (const [value, text] of this.labels(xaxis, "x", Math.min((right - left) / 80, 10))) {
      parts.push(draw("path", { class: "grid", d: `M${this.x(value)} ${top}V${bottom}` }));
      parts.push(draw("text", { x: this.x(value), y: bottom + 18, "text-anchor": "middle" }, text));
    }
    const title = draw("text", { class: "xtitle", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xaxis.title.text);
    if (xaxis.title.text.length * LETTER > right - left) made(title, { x: width / 2 }, []);
    return [...parts, title, ...(yaxis.title ? [draw("text", { x: 0, y: 14 }, yaxis.title.text)] : [])];
  }

  rule({ x0, line }) {
    return draw("path", { d: `M${this.x(x0)} ${this.box.top}V${this.box.bottom}`, stroke: "var(--ink)", "stroke-width": line.width, "stroke-dasharray": dashes(line.dash) });
  }

  note({ x, y, text, xshift = 0 }) {
    const { top, bottom, left } = this.box;
    const end = this.x(x) + xshift;
    const fits = end - LETTER * text.length > left;
    return draw("text", { class: "strong", x: fits ? end : this.x(x) - xshift, y: y > 0.5 ? top + 13 : bottom - 8, "text-anchor": fits ? "end" : "start" }, text);
  }

  /* Clipped at the axes: lines, bars and error bars. */
  lines(trace) {
    const places = trace.x.map((x, row) => [this.x(x), this.y(trace.y[row])]);
    this.seen.push(...places.map(([x, y], row) => ({ x, y, row, trace })));
    const parts = [];
    const color = colorOf(trace);
    if (trace.type === "bar") {
      const half = (this.x(trace.width) - this.x(0)) / 2;
      const bars = places.filter((_, row) => trace.y[row] > 0).map(([x, y]) => `M${(x - half).toFixed(1)} ${this.y(0).toFixed(1)}V${y.toFixed(1)}h${(2 * half).toFixed(1)}V${this.y(0).toFixed(1)}z`);
      parts.push(draw("path", { d: bars.join("") || "M0 0", fill: color, opacity: trace.opacity }));
    } else if (trace.mode.includes("lines")) {
      const d = places.map(([x, y], row) => `${row ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
      parts.push(draw("path", { d, fill: "none", stroke: color, "stroke-width": trace.line.width || 2, "stroke-dasharray": dashes(trace.line.dash), "stroke-linejoin": "round" }));
    }
    for (const [name, along] of [["x", 0], ["y", 1]]) {
      const bars = trace[`error_${name}`];
      if (!bars) continue;
      const d = places.map((place, row) => {
        const [low, high] = [trace[name][row] - bars.arrayminus[row], trace[name][row] + bars.array[row]].map((value) => this[name](value));
        return along ? `M${place[0] - 3} ${low}h6M${place[0]} ${low}V${high}m-3 0h6` : `M${low} ${place[1] - 3}v6M${low} ${place[1]}H${high}m0 -3v6`;
      });
      parts.push(draw("path", { d: d.join(""), fill: "none", stroke: color, "stroke-width": bars.thickness }));
    }
    return parts;
  }

  markers(trace) {
    if (!trace.marker || trace.type === "bar") return [];
    const { size, symbol, line, opacity = 1 } = trace.marker;
    const { left, right, top, bottom } = this.box;
    const d = trace.x.map((value, row) => {
      const [x, y] = [this.x(value), this.y(trace.y[row])];
      const within = x >= left - 1 && x <= right + 1 && y >= top - 1 && y <= bottom + 1;
      return within ? shape(symbol, x, y, size / 2) : "";
    });
    return [draw("path", { d: d.join("") || "M0 0", fill: colorOf(trace), opacity, stroke: line ? line.color : "none", "stroke-width": line ? line.width : 0 })];
  }

  /* Show the figures of the nearest point. */
  hover(event) {
    const { left, top, width } = this.node.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    const far = (point) => {
      if (point.trace.type !== "bar") return Math.hypot(point.x - x, point.y - y);
      return Math.abs(point.x - x) + (y < point.y ? point.y - y : 0);
    };
    const nearest = this.seen.reduce((best, point) => (best && far(best) <= far(point) ? best : point), null);
    this.tip.hidden = !nearest || far(nearest) > NEAR;
    if (this.tip.hidden) return;
    const [words, name] = told(nearest.trace, nearest.row);
    this.tip.replaceChildren(element("strong", {}, name), element("span", {}, words));
    const room = this.tip.offsetWidth + 14;
    this.tip.style.left = `${nearest.x + room < width ? nearest.x + 12 : Math.max(nearest.x - room, 0)}px`;
    this.tip.style.top = `${Math.max(nearest.y - this.tip.offsetHeight - 8, 0)}px`;
  }

  toggle(place, visible) {
    if (visible) this.hidden.delete(place);
    else this.hidden.add(place);
    this.draw();
  }
}

const dashes = (dash) => ({ dash: "8 6", dot: "2 4" }[dash] || "none");

/* The teacher has no color of its own; it is drawn in the text color. */
function colorOf({ name, marker = {}, line = {} }) {
  const color = marker.color || line.color;
  return color === undefined || name === "teacher" ? "var(--ink)" : color === data.accent ? "var(--accent)" : color;
}

function shape(symbol, x, y, half) {
  const [a, b, r] = [x.toFixed(1), y.toFixed(1), half];
  if (symbol === "square") return `M${a} ${b}m${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`;
  if (symbol === "diamond") return `M${a} ${b}m0 ${-r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z`;
  return `M${a} ${b}m${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
}

/* A point's hover text, and the name above it. */
function told(trace, row) {
  const fields = { x: trace.x[row], y: trace.y[row], text: trace.text && trace.text[row], "fullData.name": trace.name };
  const filled = trace.hovertemplate.replace(/%\{([\w.]+)(?::\.(\d+)([fg]))?\}/g, (_, key, digits, form) => {
    if (!form) return fields[key];
    return form === "f" ? fields[key].toFixed(digits) : String(Number(fields[key].toPrecision(digits)));
  });
  const [words, extra = ""] = filled.split("<extra>");
  return [words, extra.replace("</extra>", "")];
}
