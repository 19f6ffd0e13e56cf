"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const COLORS = ["var(--one)", "var(--two)", "var(--three)", "var(--four)"];
  const DASHES = ["", "7 4", "2 3"];
  const MOST_CARDS = 48;
  const state = { run: 0, axis: "step", group: 0, klass: "", index: "" };

  // Small helpers: every text goes through textContent, so that none is read as HTML.
  function make(tag, given = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name === "text") node.textContent = value;
      else if (name === "on") for (const [what, call] of Object.entries(value)) node.addEventListener(what, call);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }
  function draw(tag, given = {}, text = null) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
    if (text !== null) node.textContent = text;
    return node;
  }
  // Control characters, and marks that turn the direction of what follows, are shown as such.
  function visible(text) {
    return String(text)
      .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
      .replace(/[\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "\ufffd");
  }
  function short(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number") return visible(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    const size = Math.abs(value);
    return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 0.01 ? String(+value.toPrecision(4)) : value.toExponential(2);
  }
  const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(2)} %`);

  // Columns of examples, unpacked when they are first asked for.
  const HALF = new Map();
  function fromHalf(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, rest = bits & 1023;
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + rest / 1024) : sign * 2 ** -14 * (rest / 1024);
  }
  function column(run, name) {
    const key = `${data.runs.indexOf(run)} ${name}`;
    if (HALF.has(key)) return HALF.get(key);
    const packed = (run.columns || {})[name];
    let values = null;
    if (packed) {
      const text = atob(packed.data), bytes = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
      const kinds = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f16: Uint16Array };
      const raw = new kinds[packed.type](bytes.buffer);
      values = packed.type === "f16" ? Float32Array.from(raw, fromHalf) : Float64Array.from(raw, (v) => v + packed.base);
    }
    HALF.set(key, values);
    return values;
  }
  const countOf = (run) => (run.numbers || {}).examples || 0;
  const run = () => data.runs[state.run];
  function classOf(value) {
    const one = run();
    return value < 0 || Number.isNaN(value) ? "–" : visible((one.classes || [])[value] ?? value);
  }

  // Charts
  function ticks(low, high, count = 4) {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step) found.push(+at.toPrecision(12));
    return found;
  }
  function compact(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    return String(+value.toPrecision(3));
  }
  const W = 420, H = 230, LEFT = 50, RIGHT = 20, TOP = 10, BOTTOM = 34;
  function frame(label, x, y, xName, form = compact) {
    const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
    for (const at of ticks(...y.domain)) {
      svg.append(draw("line", { x1: LEFT, x2: W - RIGHT, y1: y(at), y2: y(at), stroke: "var(--line)" }));
      svg.append(draw("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, form(at)));
    }
    if (x) for (const at of ticks(...x.domain)) svg.append(draw("text", { x: x(at), y: H - BOTTOM + 16, "text-anchor": "middle" }, compact(at)));
    svg.append(draw("text", { x: (LEFT + W - RIGHT) / 2, y: H - 3, "text-anchor": "middle" }, xName));
    return svg;
  }
  function scale(domain, range) {
    const [low, high] = domain, width = high - low || 1;
    return Object.assign((at) => range[0] + ((at - low) / width) * (range[1] - range[0]), { domain: [low, high === low ? low + 1 : high] });
  }
  function lines(label, series, xName, { zero = false, form = compact, mark = null } = {}) {
    const points = series.flatMap((one) => one.points);
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]).concat(mark === null ? [] : [mark]);
    const least = (list) => list.reduce((a, b) => Math.min(a, b), Infinity), most = (list) => list.reduce((a, b) => Math.max(a, b), -Infinity);
    const pad = (most(ys) - least(ys)) * 0.05;
    const x = scale([least(xs), most(xs)], [LEFT, W - RIGHT]);
    const y = scale([zero ? Math.min(0, least(ys)) : least(ys) - pad, most(ys) + pad], [H - BOTTOM, TOP]);
    const svg = frame(label, x, y, xName, form);
    if (mark !== null) svg.append(draw("line", { x1: LEFT, x2: W - RIGHT, y1: y(mark), y2: y(mark), stroke: "var(--bad)", "stroke-dasharray": "5 4" }));
    series.forEach((one) => {
      const path = one.points.map((p, k) => `${k ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
      svg.append(draw("path", { d: path, fill: "none", stroke: one.color, "stroke-width": 2, "stroke-dasharray": one.dash || "" }));
      if (one.points.length < 30) one.points.forEach((p) => svg.append(draw("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.5, fill: one.color })));
    });
    return svg;
  }
  function bars(label, values, names, xName, { form = compact, color = "var(--one)" } = {}) {
    const y = scale([0, values.reduce((a, b) => Math.max(a, b), 0) || 1], [H - BOTTOM, TOP]);
    const svg = frame(label, null, y, xName, form);
    const width = (W - LEFT - RIGHT) / values.length, every = Math.ceil(values.length / 8);
    values.forEach((value, k) => {
      const bar = draw("rect", { x: LEFT + k * width + width * 0.1, y: y(value), width: width * 0.8, height: Math.max(H - BOTTOM - y(value), 0), fill: color });
      bar.append(draw("title", {}, `${names[k]}: ${short(value)}`));
      svg.append(bar);
      if (k % every === 0) svg.append(draw("text", { x: LEFT + (k + 0.5) * width, y: H - BOTTOM + 16, "text-anchor": "middle" }, names[k]));
    });
    return svg;
  }
  function rows(label, entries) {
    const height = 26 * entries.length + 10, most = Math.max(...entries.map((e) => e[1])) || 1;
    const svg = draw("svg", { viewBox: `0 0 ${W} ${height}`, role: "img", "aria-label": label });
    entries.forEach(([name, value, text], k) => {
      svg.append(draw("text", { x: 78, y: 26 * k + 21, "text-anchor": "end" }, name));
      svg.append(draw("rect", { x: 86, y: 26 * k + 8, width: Math.max((W - 255) * value / most, 1), height: 18, fill: COLORS[k % 4] }));
      svg.append(draw("text", { x: 92 + (W - 255) * value / most, y: 26 * k + 21 }, text));
    });
    return svg;
  }
  function figure(title, svg, about, legend = []) {
    const node = make("figure", {}, make("h3", { text: title }));
    if (legend.length > 1) node.append(make("div", { class: "legend" }, ...legend.map((one) => {
      const sign = make("i"); sign.style.background = one.color;
      return make("span", {}, sign, visible(one.name));
    })));
    node.append(svg, make("figcaption", { text: about }));
    return node;
  }
  function curves(key, from) {
    const shown = data.runs.map((one, k) => ({
      name: one.name, color: COLORS[k % 4], dash: DASHES[Math.floor(k / 4) % 3],
      points: (one[from] || []).filter((p) => typeof p[key] === "number" && typeof p[state.axis] === "number").map((p) => [p[state.axis], p[key]]),
    }));
    return shown.filter((one) => one.points.length > 1);
  }
  const AXIS = { step: "steps", seconds: "seconds" };

  function showCharts() {
    const one = run(), found = [];
    const add = (...given) => found.push(figure(...given));
    const accuracy = curves("accuracy", "curve"), loss = curves("loss", "curve");
    const axis = AXIS[state.axis];
    if (accuracy.length) add("Accuracy", lines(`Accuracy against ${axis}`, accuracy, axis, { form: (v) => `${compact(100 * v)} %` }), "As the loop measured it.", accuracy);
    if (loss.length) add("Loss", lines(`Loss against ${axis}`, loss, axis), "As the loop measured it.", loss);
    const before = state.axis; state.axis = "step";
    const trained = curves("loss", "train_curve"), right = curves("accuracy", "train_curve");
    state.axis = before;
    if (trained.length) add("Loss of training", lines("Loss of training against steps", trained, "steps"), "Mean of the batches that were trained on: hard ones where selection picks them.", trained);
    if (right.length) add("Right predictions in training", lines("Share of right predictions in training against steps", right, "steps", { form: (v) => `${compact(100 * v)} %` }), "Of the given labels, wrong ones among them.", right);
    shareChart(one, add);
    costChart(one, add);
    timesChart(one, add);
    forgettingChart(one, add);
    for (const [key, title, about, mark] of [
      ["relative_error", "Error of the quadratic model (rho)", "New coresets are picked where it is above the threshold.", (one.settings || {})["strategy.error_threshold"] ?? null],
      ["check_interval", "Steps between two checks (T1)", "Longer where the loss is flatter.", null],
      ["num_coresets", "Coresets picked at once (P)", "More where the loss is flatter.", null],
      ["active", "Examples in play", "Those that are learned leave.", null],
      ["effective_batch", "Effective batch size", "Of weighted mini-batches.", null],
      ["noise", "Estimated share of wrong labels", "Read off training.", null],
      ["left_out", "Examples left out", "As suspicious, at each plan.", null],
    ]) {
      const points = (one.regions || []).filter((r) => typeof r[key] === "number").map((r) => [r.step, r[key]]);
      if (points.length > 1) add(title, lines(`${title} against steps`, [{ points, color: COLORS[0] }], "steps", { zero: true, mark: typeof mark === "number" && mark > 0 ? mark : null }), about);
    }
    byId("charts").replaceChildren(...found);
    if (!found.length) byId("charts").append(make("p", { class: "quiet", text: "Nothing was trained, or nothing was recorded." }));
  }
  function shareChart(one, add) {
    const regions = one.regions || [];
    if (!regions.length) return;
    const end = Math.max(...regions.map((r) => r.step + r.length)), x = scale([0, end], [LEFT, W - RIGHT]);
    const svg = draw("svg", { viewBox: `0 0 ${W} 84`, role: "img", "aria-label": "Which steps were on selected and which on random batches" });
    regions.forEach((r) => {
      const bar = draw("rect", { x: x(r.step), y: 12, width: Math.max(x(r.step + r.length) - x(r.step), 0.5), height: 36, fill: r.selected ? "var(--one)" : "var(--line)" });
      bar.append(draw("title", {}, `from step ${r.step}: ${r.selected ? "selected" : "random"}${r.rule ? `, by ${visible(r.rule)}` : ""}`));
      svg.append(bar);
    });
    ticks(0, end).forEach((at) => svg.append(draw("text", { x: x(at), y: 64, "text-anchor": "middle" }, compact(at))));
    svg.append(draw("text", { x: (LEFT + W - RIGHT) / 2, y: 81, "text-anchor": "middle" }, "steps"));
    const rules = [...new Set(regions.map((r) => r.rule).filter(Boolean))].map(visible);
    const about = `${one.numbers.selected_steps ? percent(one.numbers.selected_steps / one.numbers.steps) : "None"} of the steps on selected batches${rules.length ? `, by ${rules.join(", ")}` : ""}.`;
    add("Selected and random batches", svg, about, [{ name: "selected", color: "var(--one)" }, { name: "random", color: "var(--line)" }]);
  }
  function costChart(one, add) {
    const costs = Object.entries(one.costs || {}).filter((e) => e[1] > 0 || (one.seconds || {})[e[0]] > 0.01);
    if (costs.length) add("Cost by component", rows("Cost by component, in random steps and seconds", costs.map(([name, cost]) => [name, Math.max(cost, 0), `${short(Math.round(cost))} steps, ${short(+((one.seconds || {})[name] || 0).toFixed(1))} s`])), "In units of one random training step, from counted passes, and measured seconds.");
  }
  function timesChart(one, add) {
    const times = column(one, "times_trained");
    if (!times || !one.numbers.steps) return;
    const most = times.reduce((a, b) => Math.max(a, b), 0), width = Math.max(Math.ceil((most + 1) / 24), 1);
    const counts = new Array(Math.floor(most / width) + 1).fill(0), names = counts.map((_, k) => (width === 1 ? `${k}` : `${k * width}–${k * width + width - 1}`));
    times.forEach((value) => counts[Math.floor(value / width)]++);
    add("How often examples were trained on", bars("Number of examples by times trained on", counts, names, "times"), `${counts[0] && width === 1 ? short(counts[0]) : "0"} examples were never trained on.`);
  }
  function forgettingChart(one, add) {
    const forgotten = column(one, "forgotten"), times = column(one, "times_trained");
    if (!forgotten || !forgotten.some((value) => value > 0)) return;
    const sums = new Map();
    forgotten.forEach((value, k) => {
      if (value < 0) return;
      const [sum, count] = sums.get(times[k]) || [0, 0];
      sums.set(times[k], [sum + value, count + 1]);
    });
    const keys = [...sums.keys()].sort((a, b) => a - b), step = Math.ceil(keys.length / 24), names = [], values = [];
    for (let k = 0; k < keys.length; k += step) {
      const some = keys.slice(k, k + step), total = some.reduce((t, key) => [t[0] + sums.get(key)[0], t[1] + sums.get(key)[1]], [0, 0]);
      names.push(some.length > 1 ? `${some[0]}–${some[some.length - 1]}` : `${some[0]}`);
      values.push(total[0] / total[1]);
    }
    add("Forgetting of what is trained on", bars("Mean forgetting events by times trained on", values, names, "times trained on"), "How often a right prediction turned wrong, on the mean.");
  }

  // Tables
  function showRuns() {
    byId("runs").hidden = data.runs.length < 2;
    byId("run").parentElement.hidden = data.runs.length < 2;
    byId("run").replaceChildren(...data.runs.map((one, k) => make("option", { value: k, text: visible(one.name) })));
    const fields = [["accuracy", "Accuracy", percent], ["steps", "Steps", short], ["cost", "Cost in random steps", short], ["overhead", "Overhead", percent], ["seconds", "Seconds", short], ["selected_steps", "Selected steps", short], ["examples", "Examples", short]];
    const shown = fields.filter(([key]) => data.runs.some((one) => one.numbers[key] !== undefined && one.numbers[key] !== null));
    byId("runs-table").replaceChildren(
      make("thead", {}, make("tr", {}, make("th", { scope: "col", text: "Run" }), ...shown.map(([, title]) => make("th", { scope: "col", class: "number", text: title })))),
      make("tbody", {}, ...data.runs.map((one) => make("tr", {}, make("th", { scope: "row", text: visible(one.name) }), ...shown.map(([key, , form]) => make("td", { class: "number", text: form(one.numbers[key]) }))))),
    );
  }
  function showTiles() {
    const one = run(), n = one.numbers, issues = column(one, "is_label_issue"), out = column(one, "left_out_since");
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    const tiles = [["Steps", short(n.steps)], ["Accuracy", n.accuracy === undefined || n.accuracy === null ? null : percent(n.accuracy)], ["On selected batches", n.steps && n.selected_steps !== undefined ? percent(n.selected_steps / n.steps) : null], ["Passes of a step, in random ones", n.overhead === undefined || n.overhead === null ? null : `× ${(1 + n.overhead).toFixed(2)}`], ["Choosing took, of the seconds", n.choosing === undefined || n.choosing === null ? null : percent(n.choosing)], ["Seconds", short(n.seconds === undefined ? null : Math.round(n.seconds))], ["Labels that look wrong", issues ? short(sum(issues)) : null], ["Left out", out ? short(out.filter((v) => v >= 0).length) : null]];
    byId("tiles").replaceChildren(...tiles.filter((t) => t[1] !== null).map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
  }
  function showSettings() {
    const one = run(), all = { ...one.settings, ...prefixed(one.versions, "version of "), ...prefixed(one.machine, "machine: ") };
    byId("settings").replaceChildren(make("tbody", {}, ...Object.entries(all).map(([name, value]) => make("tr", {}, make("th", { scope: "row", text: visible(name) }), make("td", { text: value === null ? "–" : visible(typeof value === "object" ? JSON.stringify(value) : value) })))));
    byId("notes").replaceChildren(...(one.notes || []).map((note) => make("li", { text: visible(note) })));
  }
  function prefixed(given, prefix) {
    return Object.fromEntries(Object.entries(given || {}).map(([name, value]) => [prefix + name, value]));
  }

  // Gallery
  function showControls() {
    const one = run(), groups = one.groups || [];
    byId("gallery").hidden = !groups.length;
    state.group = Math.min(state.group, Math.max(groups.length - 1, 0));
    byId("groups").replaceChildren(...groups.map((group, k) => make("button", { type: "button", "aria-pressed": String(k === state.group), text: `${visible(group.title)} (${short(group.count)})`, on: { click: () => { state.group = k; state.index = byId("search").value = ""; showControls(); showCards(); } } })));
    const given = column(one, "given_label"), classes = given ? [...new Set(given)].filter((k) => k >= 0).sort((a, b) => a - b) : [];
    byId("class").replaceChildren(make("option", { value: "", text: "all" }), ...classes.slice(0, 2000).map((k) => make("option", { value: k, text: classOf(k) })));
    byId("class").value = state.klass;
    byId("class").parentElement.hidden = !classes.length;
  }
  function chosen() {
    const one = run(), n = countOf(one), group = (one.groups || [])[state.group];
    if (state.index.trim() !== "") {
      const index = Number(state.index);
      const fits = Number.isInteger(index) && index >= 0 && index < n;
      return { indices: fits ? [index] : [], about: fits ? `Example ${index}.` : `There is no example ${visible(state.index)}; they are numbered from 0 to ${n - 1}.` };
    }
    if (!group) return { indices: [], about: "" };
    let indices = group.indices;
    const given = column(one, "given_label");
    if (state.klass !== "" && given) indices = indices.filter((k) => given[k] === Number(state.klass));
    const of = group.count > group.indices.length ? `; the first ${group.indices.length} of ${short(group.count)} are kept on this page` : "";
    return { indices, about: `${group.about} ${short(indices.length)} shown${of}.` };
  }
  function drawn(index, full = false) {
    const item = (run().items || {})[index];
    if (item && item.kind === "image") return make("img", { src: `data:image/png;base64,${item.png.replace(/[^A-Za-z0-9+/=]/g, "")}`, alt: `Example ${index}`, class: full ? "large" : null });
    let text = "no picture is kept of this one";
    if (item && item.kind === "numbers") text = item.values.map((v) => (v === null ? "nan" : short(v))).join("  ") + (item.count > item.values.length ? ` … (${item.count} in all)` : "");
    else if (item) text = item.text;
    return make("span", { class: full ? "shown full" : "shown", text: visible(text) });
  }
  function labels(index) {
    const one = run(), given = column(one, "given_label"), predicted = column(one, "predicted_label");
    const node = make("span", { class: "meta" }, make("b", { text: `#${index}` }));
    if (given && given[index] >= 0) node.append(` ${classOf(given[index])}`);
    if (predicted && predicted[index] >= 0 && predicted[index] !== given[index]) node.append(" → ", make("span", { class: "wrong", text: classOf(predicted[index]) }));
    return node;
  }
  function showCards() {
    const { indices, about } = chosen(), one = run(), items = one.items || {};
    byId("found").textContent = about;
    byId("cards").classList.toggle("wide", indices.some((k) => items[k] && items[k].kind !== "image"));
    const score = column(one, "label_score"), times = column(one, "times_trained");
    byId("cards").replaceChildren(...indices.slice(0, MOST_CARDS).map((index) => {
      const facts = [];
      if (score && !Number.isNaN(score[index])) facts.push(`score ${score[index].toFixed(2)}`);
      if (times) facts.push(times[index] === 1 ? "once" : `${times[index]} times`);
      return make("button", { type: "button", class: "card", "aria-label": `Example ${index}: details`, on: { click: () => showDetail(index) } }, drawn(index), labels(index), make("span", { class: "meta", text: facts.join(" · ") }));
    }));
  }
  const TOLD = [["times_trained", "Trained on"], ["times_selected", "Of these selected"], ["num_observations", "Seen"], ["last_loss", "Last loss"], ["smoothed_loss", "Smoothed loss"], ["aum", "Mean margin (aum)"], ["label_score", "Label score, low = suspicious"], ["forgotten", "Forgotten"], ["left_out_since", "Left out since step"]];
  function showDetail(index) {
    const one = run(), dialog = byId("detail");
    const given = column(one, "given_label"), predicted = column(one, "predicted_label"), issue = column(one, "is_label_issue");
    const facts = [["Given label", given ? classOf(given[index]) : "–"], ["Predicted label", predicted ? classOf(predicted[index]) : "–"], ["Looks wrong", issue && issue[index] ? "yes" : "no"]];
    for (const [name, title] of TOLD) {
      const values = column(one, name);
      if (values) facts.push([title, values[index] < 0 && name !== "aum" ? "–" : short(name === "aum" || name.includes("l") && !Number.isInteger(values[index]) ? +values[index].toPrecision(3) : values[index])]);
    }
    const history = (one.histories || {})[index] || [];
    const close = make("button", { type: "button", text: "Close", on: { click: () => dialog.close() } });
    dialog.replaceChildren(
      make("div", { class: "top" }, make("h2", { id: "detail-title", text: `Example ${index}` }), close),
      make("div", { class: "two" }, make("div", {}, drawn(index, true)), make("table", {}, make("tbody", {}, ...facts.map(([name, value]) => make("tr", {}, make("th", { scope: "row", text: name }), make("td", { class: "number", text: value })))))),
    );
    const points = history.filter((p) => typeof p[1] === "number");
    if (points.length > 1) dialog.append(figure("Its loss", lines(`Loss of example ${index} against steps`, [{ points, color: COLORS[0] }], "steps", { zero: true }), "The newest times that it was seen."));
    else dialog.append(make("p", { class: "quiet", text: "No history is kept of this one." }));
    dialog.showModal();
    close.focus();
  }

  function showAll() { showTiles(); showCharts(); showControls(); showCards(); showSettings(); }
  byId("verdict").textContent = visible(data.verdict);
  byId("created").textContent = `Written ${data.created}.`;
  document.title = data.runs.length === 1 ? `crest report: ${visible(data.runs[0].name)}` : "crest report";
  byId("run").addEventListener("change", (event) => { state.run = Number(event.target.value); state.klass = ""; showAll(); });
  byId("class").addEventListener("change", (event) => { state.klass = event.target.value; showCards(); });
  byId("search").addEventListener("input", (event) => { state.index = event.target.value; showCards(); });
  byId("detail").addEventListener("click", (event) => { if (event.target === byId("detail")) byId("detail").close(); });
  document.querySelectorAll("[data-axis]").forEach((button) => button.addEventListener("click", () => {
    state.axis = button.dataset.axis;
    document.querySelectorAll("[data-axis]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    showCharts();
  }));
  const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { byId("theme").textContent = isDark() ? "Light" : "Dark"; };
  byId("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  nameTheme();
  showRuns();
  showAll();
})();
