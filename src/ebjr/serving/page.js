const EVERY = 1000;
const LISTED = 8;
const number = (value) => (typeof value === "string" ? { inf: Infinity, "-inf": -Infinity }[value] ?? NaN : value);

/* ---- the server ---- */

class Away extends Error {}

async function ask(path, options = {}, seconds = 5) {
  let response;
  const headers = { ...options.headers };
  if (get("token").value) headers.Authorization = `Bearer ${get("token").value}`;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(1000 * seconds), ...options, headers });
  } catch {
    throw new Away("The server does not answer.");
  }
  const body = await response.json().catch((error) => {
    if (error instanceof SyntaxError) return null;
    throw new Away("The server does not answer.");
  });
  if (!response.ok) throw new Error(body?.error ?? `The server answered with status ${response.status}.`);
  if (body === null) throw new Away("Another program answers in place of the server.");
  return body;
}

/* ---- choosing a model ---- */

let query = new URLSearchParams(location.search).has("model") ? location.search.slice(1) : "";
let looks = 0;
const where = (path) => (query ? `${path}?${query}` : path);

async function look() {
  if (looks % 10 === 0) showModels(await ask("/v2/repository/index", { method: "POST" }));
  looks += 1;
}

function showModels(models) {
  get("models-form").hidden = models.length < 2;
  if (models.length < 2) return;
  const ready = models.find(({ state: how }) => how === "READY");
  if (!query && ready) query = String(new URLSearchParams({ model: ready.name }));
  const chosen = new URLSearchParams(query);
  const isChosen = ({ name, version }) => name === chosen.get("model") && [version, null].includes(chosen.get("version"));
  const here = models.filter(isChosen).at(-1);
  const options = models.map((one) => {
    const several = models.filter(({ name }) => name === one.name).length > 1;
    const value = String(new URLSearchParams({ model: one.name, ...(several && { version: one.version }) }));
    const words = `${one.name}${several ? `, version ${one.version}` : ""}${one.state === "READY" ? "" : `: ${one.state.toLowerCase()}`}`;
    const option = element("option", { value, title: one.reason ?? "" }, words);
    [option.disabled, option.defaultSelected] = [one.state !== "READY", one === here];
    return option;
  });
  const known = [...get("models").options].map((option) => option.text).join();
  if (known !== options.map((option) => option.text).join()) get("models").replaceChildren(...options);
}

let state = null;
let timer = null;
let misses = 0;

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    await look();
    state = await ask(where("/v1/status"));
    connected(true);
    show();
  } catch (error) {
    connected(false, error.message);
  }
  clearTimeout(timer);
  timer = setTimeout(poll, EVERY * Math.min(2 ** misses, 5));
}

function connected(well, sentence = "") {
  const notice = get("connection");
  const words = well
    ? (misses ? "The server answers again." : "Connected.")
    : `${sentence} The figures shown are the last ones; trying again.`;
  misses = well ? 0 : misses + 1;
  if (well && notice.dataset.well === "true") return;
  notice.dataset.well = String(well);
  notice.classList.toggle("away", !well);
  notice.textContent = words;
}

function say(id, sentence, wrong = false) {
  get(id).textContent = sentence;
  get(id).classList.toggle("wrong", wrong);
}

/* ---- numbers for people ---- */

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const rate = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(2)).toString());

function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds >= 1 ? `${seconds.toPrecision(3)} s` : `${Number((1000 * seconds).toPrecision(3))} ms`;
}

function quality(value) {
  return state.calibration.percent ? `${value.toFixed(2)} %` : short(value);
}

/* ---- the calibration ---- */

/* The fractional index of a threshold among rising ones. */
function placeOf(thresholds, threshold) {
  const next = thresholds.findIndex((value) => value >= threshold);
  if (next === -1) return thresholds.length - 1;
  if (next === 0) return 0;
  const [low, high] = [thresholds[next - 1], thresholds[next]];
  if (threshold === high) return next;
  return Number.isFinite(high - low) ? next - 1 + (threshold - low) / (high - low) : next;
}

function between(values, place) {
  const low = Math.floor(place);
  return low + 1 >= values.length ? values[low] : values[low] + (place - low) * (values[low + 1] - values[low]);
}

function pointAt(threshold) {
  const { curve } = state.calibration;
  const place = placeOf(curve.threshold.map(number), threshold);
  return { cost: between(curve.cost, place), quality: between(curve.quality, place) };
}

const threshold = () => number(state.router.threshold);

/* ---- the knob ---- */

let wish = null;
let sending = false;
let typed = false; /* the threshold in its box was typed, and must not be overwritten */

async function move(change) {
  wish = change;
  if (sending) return;
  sending = true;
  while (wish) {
    const asked = wish;
    wish = null;
    try {
      const headers = { "Content-Type": "application/json" };
      const router = await ask(where("/v1/router"), { method: "PUT", headers, body: JSON.stringify(asked) });
      Object.assign(state.router, router);
      if (!wish) say("knob-said", `The knob is at threshold ${short(threshold())}${router.autopilot ? `, and the autopilot holds ${router.autopilot.hold}` : ""}.`);
    } catch (error) {
      if (!wish) say("knob-said", `The knob was not moved: ${error.message}`, true);
    }
  }
  sending = false;
  show();
}

function showKnob() {
  const known = state.router.deferral_rate !== null;
  get("slider-label").hidden = !known;
  get("token-form").hidden = !state.token;
  if (known && !sending) {
    get("knob").value = 100 * state.router.deferral_rate;
    showShare();
  }
  if (document.activeElement !== get("threshold")) {
    typed = false;
    get("threshold").value = rounded(threshold());
    get("threshold").title = exact(threshold());
  }
  get("release").hidden = !state.router.autopilot;
  const names = Object.keys(state.router.operating_points);
  get("points").hidden = !names.length;
  if ([...get("points").children].map((button) => button.dataset.name).join() !== names.join()) {
    get("points").replaceChildren(...names.map((name) => {
      const button = element("button", { type: "button", "data-name": name }, name);
      button.addEventListener("click", () => move({ operating_point: name }));
      return button;
    }));
  }
  for (const button of get("points").children) {
    const own = number(state.router.operating_points[button.dataset.name]);
    button.setAttribute("aria-pressed", String(own === threshold()));
  }
}

const exact = (value) => (value === Infinity ? "inf" : String(value));

/* Rounded to two digits, or to as many as it takes to defer the same rows. */
function rounded(value) {
  const thresholds = state.calibration.curve?.threshold.map(number);
  const near = (other) => !thresholds || Math.abs(placeOf(thresholds, other) - placeOf(thresholds, value)) < 0.1;
  if (!Number.isFinite(value)) return exact(value);
  for (let digits = thresholds ? 2 : 4; digits < 17; digits += 1) {
    const shown = Number(value.toPrecision(digits));
    if (near(shown)) return String(shown);
  }
  return exact(value);
}

function showShare() {
  const share = Number(get("knob").value) / 100;
  get("share").textContent = percent(share);
  get("knob").setAttribute("aria-valuetext", `${percent(share)} deferred`);
}

/* ---- figures ---- */

function showCards() {
  const { live, calibration } = state;
  const span = `the last ${Math.ceil(live.seconds)} s`;
  get("quality-card").hidden = !calibration.curve;
  if (calibration.curve) {
    get("quality-title").textContent = calibration.quality_title;
    get("quality").textContent = quality(pointAt(threshold()).quality);
  }
  const rows = live.rows ? `of ${live.rows.toLocaleString("en")} rows in ${span}` : `no rows in ${span}`;
  keep("deferred", live.deferral_rate === null ? null : percent(live.deferral_rate), rows);
  spark("deferred-spark", live.minute.rows.map((rows, second) => (rows ? live.minute.deferred[second] / rows : null)), 1);
  get("throughput").textContent = `${rate(live.rows_per_second)} rows/s`;
  get("throughput-sub").textContent = `${rate(live.requests_per_second)} requests/s`;
  spark("throughput-spark", live.minute.rows, Math.max(...live.minute.rows, 1));
  const { p50, p95, p99 } = live.latency.request;
  const slow = p50 === null ? `no requests in ${span}` : `95 %: ${time(p95)}, 99 %: ${time(p99)}`;
  keep("median", p50 === null ? null : time(p50), slow);
  get("degraded").textContent = live.degraded.toLocaleString("en");
  const waiting = state.stages.reduce((sum, stage) => sum + (live.waiting[stage] ?? 0), 0);
  get("degraded-sub").textContent = `rows; ${live.refused} requests refused, ${live.failures} batches failed, ${waiting} rows waiting`;
}

/* Without traffic a card keeps its last figure, paler. */
function keep(id, figure, words) {
  const card = get(id);
  card.classList.toggle("last", figure === null);
  if (figure !== null || !card.textContent) card.textContent = figure ?? "–";
  get(`${id}-sub`).textContent = figure === null && card.textContent !== "–" ? `the last; ${words}` : words;
}

/* Draws the last minute, second by second, under a card. */
function spark(id, values, most) {
  let path = "";
  let pen = "M";
  values.forEach((value, second) => {
    if (value !== null) path += `${pen}${60 - values.length + second} ${(24 - 22 * value / most).toFixed(1)}`;
    pen = value === null ? "M" : "L";
  });
  get(id).replaceChildren(draw("path", { class: "spark", d: path || "M0 24", "vector-effect": "non-scaling-stroke" }));
}

const called = (stage) => (["student", "teacher"].includes(stage) ? `the ${stage}` : stage);

/* The latest times of each stage, kept while there is no traffic. */
const lately = {};

function showStages() {
  const { stages, live } = state;
  const names = stages.flatMap((stage) => [[`${stage}_wait`, `wait for ${called(stage)}`], [stage, `${stage}'s batch`]]);
  get("stages").replaceChildren(...[...names, ["request", "whole request"]].map(([stage, name]) => {
    const row = element("tr", {}, element("th", { scope: "row" }, name));
    if (state.live.latency[stage].p50 !== null) lately[stage] = state.live.latency[stage];
    for (const key of ["p50", "p95", "p99"]) {
      const value = lately[stage]?.[key] ?? null;
      row.append(element("td", {}, value === null ? "–" : String(Number((1000 * value).toPrecision(3)))));
    }
    row.append(element("td", {}, live.stages[stage]?.toLocaleString("en") ?? ""));
    return row;
  }));
}

function autopilotWords(pilot) {
  if (!pilot) return ["Off.", "The knob stays where you set it."];
  const kind = pilot.hold.split("=")[0];
  const figure = { deferral_rate: percent, flops: short, dollars }[kind] ?? time;
  const seen = pilot.measured === null ? "nothing measured yet" : `measured ${figure(pilot.measured)}`;
  const between = `between deferral rates of ${pilot.between.map((share) => percent(share)).join(" and ")}`;
  return [`Holds ${pilot.hold}`, `${between}: ${seen}${pilot.at_bound ? ", at a bound" : ""}${pilot.still ? `; it pauses: ${pilot.still}` : ""}. Moving the knob by hand switches it off.`];
}

const WATCHED = { drift: "Scores", disagreement: "Disagreement", deferral_rate: "Deferral rate" };
const ALARMS = ["broken", "drifted"];
const capital = (words) => words[0].toUpperCase() + words.slice(1);

function showState() {
  const rows = [];
  const { promise } = state.router;
  if (promise) {
    const away = promise.state === "in force" ? "" : ` It was made for threshold ${short(number(promise.threshold))}.`;
    rows.push(["Promise", `${capital(promise.state)}.`, promise.statement + away]);
  } else {
    rows.push(["Promise", "None.", "This threshold was calibrated without a guarantee; ebjr calibrate --delta adds one."]);
  }
  rows.push(["Autopilot", ...autopilotWords(state.router.autopilot)]);
  for (const [name, title] of Object.entries(WATCHED)) {
    const found = state.monitor?.[name];
    if (typeof found === "string") rows.push([title, "", `${capital(found)}.`]);
    else if (found) {
      const [word, ...rest] = found.statement.split(":");
      rows.push([title, `${word}:`, rest.join(":").trim(), ALARMS.includes(found.status)]);
    }
  }
  if (state.monitor?.recalibrate?.length) {
    rows.push(["Recalibration", "Would pay:", `${state.monitor.recalibrate.join("; ")}. ebjr recalibrate shows how much.`]);
  }
  const far = state.far_teacher;
  if (far) {
    const late = far.late_rows === null ? "" : ` ${far.late_rows.toLocaleString("en")} rows are kept for it.`;
    rows.push(far.state === "closed"
      ? ["Teacher", "Reached.", `${far.name} answers over its link.${late}`]
      : ["Teacher", "Away:", `${far.name} does not answer; the student answers in its place, marked as degraded.${late}`, true]);
  }
  rows.push(...spendingRows(state.spending));
  const alarms = rows.filter(([, , , alarm]) => alarm).map(([title, word]) => `${title.toLowerCase()} ${word.slice(0, -1).toLowerCase()}`);
  get("alarm").hidden = !alarms.length;
  const sentence = alarms.length ? `Alarm: ${alarms.join(", ")}. Details are in the last section.` : "";
  if (get("alarm").textContent !== sentence) get("alarm").textContent = sentence;
  get("state").replaceChildren(...rows.flatMap(([name, word, words, alarm = false]) => [
    element("dt", {}, name),
    element("dd", alarm ? { class: "alarm" } : {}, element("span", { class: "state" }, word), ` ${words}`),
  ]));
}

function spendingRows(spending) {
  const rows = [];
  const priced = Object.entries(spending).filter(([, found]) => found.dollars !== null);
  if (priced.length) {
    const sum = priced.reduce((sum, [, found]) => sum + found.dollars, 0);
    const unpriced = Object.values(spending).reduce((sum, found) => sum + found.unpriced_rows, 0);
    const missing = unpriced ? ` The price of ${unpriced.toLocaleString("en")} rows is unknown.` : "";
    const parts = priced.map(([stage, found]) => `${stage} ${dollars(found.dollars)}`).join(", ");
    rows.push(["Spent", dollars(sum), `so far: ${parts}.${missing}`]);
  }
  for (const [stage, found] of Object.entries(spending)) {
    if (found.alarm) rows.push([capital(stage), "Silent:", `${found.alarm}.`, true]);
  }
  return rows;
}

const dollars = (amount) => `$${amount.toLocaleString("en", { maximumSignificantDigits: 3 })}`;

/* ---- drawing ---- */

/* Draws axes, grid and titles; returns the scales and the parts drawn so far. */
function axes(id, [left, right], [bottom, top], titles) {
  const chart = get(id);
  const { width, height } = chart.getBoundingClientRect();
  const box = { left: 46, right: Math.max(width - 12, 47), top: 24, bottom: Math.max(height - 42, 25) };
  const x = (value) => box.left + (box.right - box.left) * (value - left) / (right - left);
  const y = (value) => box.bottom - (box.bottom - box.top) * (value - bottom) / (top - bottom);
  const parts = [];
  for (const value of ticks(bottom, top, 7)) {
    parts.push(draw("path", { class: "grid", d: `M${box.left} ${y(value)}H${box.right}` }));
    parts.push(draw("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const value of ticks(left, right, Math.min(width / 75, 8))) {
    parts.push(draw("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, short(value)));
  }
  parts.push(draw("text", { x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, titles.x));
  parts.push(draw("text", { x: 0, y: 12 }, titles.y));
  return { chart, box, x, y, parts };
}

function showCurve() {
  const { calibration, live } = state;
  get("curve-section").hidden = !calibration.curve;
  if (!calibration.curve) return;
  const { curve, student, teacher } = calibration;
  const seen = [...curve.quality, student.quality, teacher.quality];
  const [low, high] = [Math.min(...seen), Math.max(...seen)];
  const margin = 0.08 * (high - low || 1);
  const { chart, box, x, y, parts } = axes("curve", [0, 1.03 * Math.max(...curve.cost, 100)], [low - margin, high + margin],
    { x: calibration.cost_axis, y: calibration.quality_axis });
  parts.push(draw("path", { class: "even", d: `M${x(100)} ${box.top}V${box.bottom}` }));
  if (live.deferral_rate !== null) {
    const place = x(student.cost + 100 * live.deferral_rate);
    const right = place > (box.left + box.right) / 2;
    parts.push(draw("path", { class: "live-line", d: `M${place} ${box.top}V${box.bottom}` }));
    parts.push(draw("text", { class: "strong", x: place + (right ? -6 : 6), y: box.bottom - 8, "text-anchor": right ? "end" : "start" }, `live ${percent(live.deferral_rate)}`));
  }
  const line = curve.cost.map((cost, row) => `${row ? "L" : "M"}${x(cost).toFixed(1)} ${y(curve.quality[row]).toFixed(1)}`);
  parts.push(draw("path", { class: "curve", d: line.join("") }));
  parts.push(draw("circle", { class: "student", cx: x(student.cost), cy: y(student.quality), r: 6 }));
  parts.push(draw("path", { class: "teacher", d: `M${x(teacher.cost) - 6} ${y(teacher.quality) - 6}h12v12h-12z` }));
  const diamond = ({ cost, quality: at }, size) => `M${x(cost)} ${y(at) - size}l${size} ${size}l${-size} ${size}l${-size} ${-size}z`;
  const here = pointAt(threshold());
  parts.push(draw("path", { class: "calibrated", d: diamond(pointAt(number(calibration.threshold)), 7) }));
  parts.push(draw("path", { class: "here", d: diamond(here, 9) }));
  chart.replaceChildren(...parts);
  const cheaper = here.cost ? `${(100 / here.cost).toFixed(2)} times cheaper than the teacher alone` : "without cost";
  get("curve-words").textContent =
    `On ${calibration.examples.toLocaleString("en")} held-out examples this threshold has ${calibration.quality_title} ${quality(here.quality)}` +
    (calibration.cost_axis.startsWith("deferral") ? "" : `, ${cheaper}`) +
    ` (teacher ${quality(teacher.quality)}, student ${quality(student.quality)}). Beyond the dotted line the teacher alone is cheaper.`;
}

function showScores() {
  const { histogram } = state.calibration;
  const known = Boolean(histogram?.shares.length);
  get("scores-section").hidden = !known;
  if (!known) return;
  const { edges, shares } = histogram;
  const rows = state.live.scores.reduce((sum, count) => sum + count, 0);
  const seen = state.live.scores.map((count) => (rows ? count / rows : 0));
  const top = 108 * Math.max(...shares, ...seen);
  const { chart, box, x, y, parts } = axes("scores", [edges[0], edges[edges.length - 1]], [0, top], { x: `score: ${state.score}`, y: "share of rows, %" });
  seen.forEach((share, bin) => {
    if (!share) return;
    parts.push(draw("rect", { class: "live-bar", x: x(edges[bin]), y: y(100 * share), width: x(edges[bin + 1]) - x(edges[bin]), height: y(0) - y(100 * share) }));
  });
  const steps = shares.map((share, bin) => `V${y(100 * share).toFixed(1)}H${x(edges[bin + 1]).toFixed(1)}`);
  parts.push(draw("path", { class: "expected", d: `M${x(edges[0])} ${y(0)}${steps.join("")}V${y(0)}` }));
  const place = Math.min(Math.max(x(threshold()), box.left), box.right);
  parts.push(draw("path", { class: "rule", d: `M${place} ${box.top}V${box.bottom}` }));
  chart.replaceChildren(...parts);
  get("scores-words").textContent = rows
    ? `${rows.toLocaleString("en")} rows of the last minute. Rows left of the threshold are deferred. Bars outside the outline show that the inputs differ from those of calibration.`
    : "No rows in the last minute. Rows left of the threshold are deferred.";
}

function show() {
  if (!state) return;
  const { model, task, score, calibration } = state;
  document.title = `EBJR: ${model}`;
  get("title").textContent = `EBJR: ${model}`;
  const from = calibration.id ? `, calibration ${calibration.id}` : "";
  const how = `Inputs with a score below the threshold are deferred to the teacher. Task: ${task}, score: ${score}${from}.`;
  const verdict = calibration.verdict ? `As calibrated, at threshold ${short(number(calibration.threshold))}. ${calibration.verdict} ` : "";
  get("about").textContent = `${verdict}${how}`;
  showKnob();
  showCards();
  showCurve();
  showScores();
  showStages();
  showState();
  showForm();
}

/* ---- try it ---- */

let image = null;

function showForm() {
  get("drop").hidden = !state.images;
  get("row").hidden = state.images;
  const { shape } = state.input;
  const count = shape.includes(-1, 1) ? `of shape ${shape.slice(1).join(" × ")}` : `${size(shape)} of them`;
  const texts = size(shape) === 1 ? "A text" : `${size(shape)} texts, one a line`;
  get("row-label").textContent = isText() ? texts : `One row of numbers, ${count}`;
}

const isText = () => state.input.datatype === "BYTES";

const size = (shape) => shape.slice(1).reduce((product, each) => product * each, 1);

function choose(file) {
  if (!file) return;
  image = file;
  URL.revokeObjectURL(get("preview").src);
  get("preview").src = URL.createObjectURL(file);
  get("preview").alt = `The chosen image, ${file.name}`;
  get("preview").hidden = false;
  tryIt();
}

function textRequest() {
  const { name, datatype, shape } = state.input;
  const text = get("numbers").value;
  const data = size(shape) === 1 ? [text] : text.split("\n");
  if (data.length !== size(shape)) throw new Error(`A row must have ${size(shape)} texts, one a line, and this one has ${data.length}.`);
  return { body: JSON.stringify({ inputs: [{ name, datatype, shape: [1, ...shape.slice(1)], data }] }), headers: {} };
}

function rowRequest() {
  if (isText()) return textRequest();
  const data = get("numbers").value.trim().split(/[\s,;]+/).filter(Boolean).map(Number);
  if (!data.length || data.some((value) => !Number.isFinite(value))) throw new Error("A row must be numbers, separated by spaces or commas.");
  const { name, datatype, shape } = state.input;
  const open = shape.slice(1).filter((each) => each === -1).length;
  const rest = shape.slice(1).map((each) => (each !== -1 ? each : open === 1 ? data.length / Math.abs(size(shape)) : 1));
  if (rest.reduce((product, each) => product * each, 1) !== data.length) throw new Error(`A row must have ${size(shape)} numbers, and this one has ${data.length}.`);
  return { body: JSON.stringify({ inputs: [{ name, datatype, shape: [1, ...rest], data }] }), headers: {} };
}

async function imageRequest() {
  if (!image) throw new Error("Choose an image first.");
  const own = new Uint8Array(await image.arrayBuffer());
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, own.length, true);
  const parameters = { binary_data_size: own.length + 4 };
  const head = new TextEncoder().encode(JSON.stringify({ inputs: [{ name: state.input.name, datatype: "BYTES", shape: [1], parameters }] }));
  return { body: new Blob([head, length.buffer, own]), headers: { "Inference-Header-Content-Length": String(head.length) } };
}

async function tryIt() {
  if (!state) return;
  say("try-said", "Asking both models.");
  const asked = image;
  try {
    const request = state.images ? await imageRequest() : rowRequest();
    const found = await ask(where("/v1/both"), { method: "POST", ...request }, 60);
    if (state.images) await get("preview").decode().catch(() => {});
    if (asked === image) showAnswer(found);
  } catch (error) {
    if (asked !== image) return;
    get("answer").hidden = true;
    say("try-said", error.message, true);
  }
}

function showAnswer(found) {
  const [score, limit] = [number(found.score), number(found.threshold)];
  const who = found.deferred ? "teacher" : "student";
  const compared = found.deferred || found.degraded ? "below" : "not below";
  const why = `The score, ${short(score)}, is ${compared} the threshold, ${short(limit)}`;
  if (!found.answer) say("try-said", `${why}, and the teacher cannot answer: the request fails.`, true);
  else if (found.degraded) say("try-said", `${why}, but the teacher cannot answer: the student answers ${named(found.answer)}, marked as degraded.`, true);
  else say("try-said", `The ${who} answers ${named(found.answer)}. ${why}${found.deferred && state.blend ? `; the student's answer is blended in with weight ${short(state.blend)}` : ""}.`);
  for (const role of ["student", "teacher"]) {
    const answered = role === who && Boolean(found.answer);
    const name = state.stages[found[role].stage] ?? role;
    get(role).classList.toggle("answered", answered);
    get(`${role}-title`).textContent = answered ? `${name} (answers)` : name;
    get(role).querySelector("div").replaceChildren(...side(found[role], role));
  }
  const fused = Boolean(found.deferred && state.blend && found.answer && boxesOf(found.answer));
  get("fused").hidden = !fused;
  if (fused) get("fused").querySelector("div").replaceChildren(...side(found.answer, "teacher"));
  get("answer").hidden = false;
  gauge(score, limit);
}

function side(said, role) {
  if (said.error) return [element("p", { class: "sub" }, said.error)];
  const parts = [element("p", { class: "name" }, named(said))];
  if (said.seconds !== undefined) parts.push(element("p", { class: "sub" }, time(said.seconds)));
  const boxes = boxesOf(said);
  if (boxes) {
    const { naturalWidth: width, naturalHeight: height, src } = get("preview");
    parts.push(element("div", { class: "samples" }, picture({ src, width, height }, boxes, role, `The image with ${named(said)}.`)));
  }
  const rows = said.top ?? boxes ?? [];
  if (rows.length) {
    parts.push(element("dl", { class: "shares" }, ...rows.slice(0, LISTED).flatMap((one) => [
      element("dt", {}, named(one)),
      element("dd", {}, draw("svg", { "aria-hidden": "true" }, draw("rect", { width: percent(one.probability).replace(" ", ""), height: 10, rx: 3 }))),
      element("dd", {}, percent(one.probability)),
    ])));
  }
  if (rows.length > LISTED) parts.push(element("p", { class: "sub" }, `and ${rows.length - LISTED} more`));
  return parts;
}

/* Shows score and threshold on the range of calibration scores. */
function gauge(score, limit) {
  const quantiles = (state.calibration.score_quantiles ?? []).map(number).filter(Number.isFinite);
  const finite = [...quantiles.slice(1, -1), score, limit].filter(Number.isFinite);
  const chart = get("gauge");
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const { width } = chart.getBoundingClientRect();
  const x = (value) => 10 + Math.max(width - 20, 0) * (high > low ? Math.min(Math.max((value - low) / (high - low), 0), 1) : 0.5);
  const anchor = (place) => (place < 90 ? "start" : place > width - 90 ? "end" : "middle");
  chart.setAttribute("aria-label", `Score ${short(score)} against threshold ${short(limit)}, on a scale from ${short(low)} to ${short(high)}.`);
  chart.replaceChildren(
    draw("path", { class: "grid", d: `M10 38H${Math.max(width - 10, 10)}`, "stroke-width": 4 }),
    draw("path", { class: "rule", d: `M${x(limit)} 24V52` }),
    draw("text", { x: x(limit), y: 68, "text-anchor": anchor(x(limit)) }, `threshold ${short(limit)}`),
    draw("circle", { class: "student", cx: x(score), cy: 38, r: 7 }),
    draw("text", { class: "strong", x: x(score), y: 16, "text-anchor": anchor(x(score)) }, `score ${short(score)}`),
  );
}

/* ---- events ---- */

get("knob").addEventListener("input", () => {
  showShare();
  move({ deferral_rate: Number(get("knob").value) / 100 });
});
get("threshold").addEventListener("input", () => { typed = true; });
get("threshold-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = get("threshold").value.trim();
  if (!typed) say("knob-said", `The knob is already at threshold ${exact(threshold())}.`);
  else if (text.toLowerCase() === "inf") move({ threshold: "inf" });
  else if (text === "" || !Number.isFinite(Number(text))) say("knob-said", "A threshold must be a number, or inf to defer everything.", true);
  else move({ threshold: Number(text) });
});
get("hold-form").addEventListener("submit", (event) => {
  event.preventDefault();
  move({ hold: get("hold").value.trim() });
});
get("models").addEventListener("change", () => { location.search = get("models").value; });
get("release").addEventListener("click", () => move({ hold: null }));
get("token-form").addEventListener("submit", (event) => event.preventDefault());
get("file").addEventListener("change", () => choose(get("file").files[0]));
get("try").addEventListener("submit", (event) => { event.preventDefault(); tryIt(); });
for (const name of ["dragenter", "dragover"]) {
  get("drop").addEventListener(name, (event) => { event.preventDefault(); get("drop").classList.add("over"); });
}
get("drop").addEventListener("dragleave", () => get("drop").classList.remove("over"));
get("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  get("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (state?.images && event.clipboardData.files.length) choose(event.clipboardData.files[0]);
});
document.addEventListener("visibilitychange", poll);
window.addEventListener("resize", show);
poll();
