"use strict";
// Draws a report from the JSON beside it. Names come from users: they reach the page as text, never as markup.
(() => {
  const { report, figures, histogram, templates, pick, exported } = JSON.parse(document.getElementById("data").textContent);
  const { about } = report;
  const points = new Map(report.points.map((point) => [point.number, point]));
  const state = { metric: report.metrics[0].name, point: report.start, view: "useful", sort: null, up: true };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: "accuracy" },
  };

  const at = (id) => document.getElementById(id);
  const metric = () => report.metrics.find((one) => one.name === state.metric);
  const chosen = () => points.get(state.point);
  const label = (point) =>
    [point.keep_ratio === 1 ? "" : `keep ${point.keep_ratio}`, point.policy, point.setting].filter(Boolean).join(", ");
  const theme = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

  function node(tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }
  const row = (...cells) => { const made = node("tr"); made.append(...cells); return made; };
  const pairs = (target, entries) =>
    target.replaceChildren(...entries.flatMap(([name, value]) => [node("dt", name), node("dd", value)]));

  // ---- what stays -------------------------------------------------------------------------------------------
  function drawHead() {
    const [ours, baselines, signals, failed] = ["ours", "baseline", "signal", "failed"]
      .map((kind) => report.points.filter((p) => p.kind === kind || (kind === "baseline" && p.kind === "pruned")).length);
    const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
    at("network").textContent = about.network;
    const first = about.score_name === about.score_name.toLowerCase()
      ? about.score_name[0].toUpperCase() + about.score_name.slice(1) : about.score_name; // mAP and IoU stay as they are
    for (const place of document.querySelectorAll(".score"))
      place.textContent = place.classList.contains("first") ? first : about.score_name;
    at("summary").textContent = [
      `Float ${about.score_name} ${about.float_accuracy.toFixed(2)}${about.unit && ` ${about.unit}`}`,
      ...(about.activation_bits ? [`activations ${about.activation_bits} bits, integer arithmetic`] : []),
      plural(ours, "point"), plural(baselines, "baseline"),
      ...(signals ? [`${signals} from training`] : []), ...(failed ? [`${failed} failed`] : []),
    ].join(" · ");
    at("drop").replaceChildren(...report.headlines.map((one, place) =>
      node("option", `${one.drop} ${about.unit ? (one.drop === 1 ? "point" : "points") : "%"}`, { value: place })));
    at("drop").value = report.headlines.findIndex((one) => one.drop === 1);
    at("drop").addEventListener("change", drawHeadline);
    drawHeadline();
    at("assumptions").replaceChildren(...report.assumptions.map((text) => node("li", text)));
    pairs(at("scoring"), Object.entries(about.scoring));
    pairs(at("provenance"), Object.entries(about.provenance));
  }

  function drawHeadline() {
    const headline = report.headlines[at("drop").value];
    at("headline-text").textContent = headline.text;
    at("headline-notes").textContent = headline.notes.join(" ");
    at("factors").hidden = !headline.factors.length;
    at("factors").replaceChildren(...headline.factors.map(tile));
  }

  function tile(factor) {
    const made = node("div");
    const name = report.metrics.find((one) => one.name === factor.metric).label;
    const missing = factor.factor === null ? " none" : "";
    made.append(
      node("dt", name), node("dd", factor.text, { class: `value${missing}` }),
      node("dd", factor.detail, { class: "detail" }),
    );
    return made;
  }

  function drawTabs() {
    at("metrics").replaceChildren(...report.metrics.map((one) => {
      const tab = node("button", one.label, { type: "button", role: "tab", "aria-controls": "panel", title: one.name });
      tab.dataset.metric = one.name;
      tab.addEventListener("click", () => chooseMetric(one.name));
      return tab;
    }));
    at("metrics").addEventListener("keydown", (event) => {
      const next = step(report.metrics.map((one) => one.name), state.metric, event);
      if (next === undefined) return;
      chooseMetric(next);
      at("metrics").querySelector("[aria-selected=true]").focus();
    });
  }

  function step(list, current, event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !list.length) return undefined;
    event.preventDefault();
    return list[(list.indexOf(current) + by + list.length) % list.length];
  }

  // ---- figures ----------------------------------------------------------------------------------------------
  const layoutOf = (figure, extra = {}) => {
    const touch = matchMedia("(pointer: coarse)").matches ? { dragmode: false } : {}; // leave the finger to the page
    return { ...structuredClone(figure.layout), template: templates[theme()], ...touch, ...extra };
  };

  function drawAccuracy() {
    const figure = figures[state.metric];
    const { ranges, hidden } = figure.layout.meta;
    const layout = layoutOf(figure, { uirevision: `${state.metric} ${state.view}` });
    layout.xaxis.range = [...ranges[state.view].x];
    layout.xaxis.dtick = ranges[state.view].dtick;
    layout.yaxis.range = [...ranges[state.view].y];
    at("view").hidden = !hidden;
    at("view").textContent = state.view === "all" ? "Useful range only" : `Show ${hidden} more below`;
    at("metric-text").textContent = `${state.metric}: ${metric().text || "cost"}`;
    const data = structuredClone(figure.data);
    Object.assign(data.at(-1), ring());
    return Plotly.react("accuracy", data, layout, config);
  }

  const ring = () => {
    const cost = chosen().costs[state.metric];
    return cost ? { x: [cost], y: [chosen().accuracy] } : { x: [], y: [] };
  };

  function drawHistogram() {
    const counts = report.layers[state.point].filters;
    const data = structuredClone(histogram.data);
    data[0].y = data[0].x.map((width) => counts[width] ?? 0);
    data[0].text = data[0].y.map((count) => (count ? String(count) : ""));
    const words = counts.map((count, width) => `${count} ${width ? `at ${width} bits` : "pruned"}`);
    at("histogram").setAttribute("aria-label", `Filters by bit width: ${words.join(", ")}`);
    return Plotly.react("histogram", data, layoutOf(histogram), { responsive: true, displayModeBar: false });
  }

  // ---- the selected point -----------------------------------------------------------------------------------
  function drawPoint() {
    const point = chosen();
    const interval = point.low === null || point.high === null ? "" : ` (${span(point)})`;
    const grid = point.grid && `grid ${point.grid}`;
    const place = metric().front.includes(point.number) ? "on the Pareto front" : "";
    at("point-title").textContent = `${point.accuracy_text}${interval}`;
    const clamped = point.clamped.length ? `out of reach, so clamped: ${point.clamped.join(", ")}` : "";
    const facts = [`Point ${point.number}: ${label(point)}`, grid, place, clamped];
    at("point-facts").textContent = facts.filter(Boolean).join(" · ");
    at("costs").replaceChildren(...report.metrics.map((one) => {
      const made = row(node("th", one.label, { scope: "row" }), node("td", `${point.texts[one.name] ?? "-"} ${one.unit}`, { class: "number" }));
      made.classList.toggle("chosen", one.name === state.metric);
      return made;
    }));
    at("layers-point").textContent = `Point ${point.number}: ${label(point)}, ${about.score_name} ${point.accuracy_text}`;
    at("pick-budget").textContent = `${pick} --budget ${state.metric}=${point.costs[state.metric]} --out model`;
    const floor = Number(point.accuracy.toFixed(4)); // short, and never above what the point reaches
    const least = floor > point.accuracy ? (floor - 1e-4).toFixed(4) : floor;
    at("pick-accuracy").textContent = `${pick} --min-accuracy ${least} --out model`;
    at("pick-budget").parentElement.hidden = !point.costs[state.metric];
  }

  function drawAnswer() {
    const found = report.answers.find((one) => one.metric === state.metric);
    at("answer").hidden = !found;
    at("answer-title").textContent = `Prune or quantize? By ${metric().label}`;
    at("answer-text").textContent = found?.text ?? "";
  }

  const span = (point) => `${point.low.toFixed(2)} to ${point.high.toFixed(2)}`;

  function drawLayers() {
    const layers = report.layers[state.point];
    const all = Object.values(report.layers);
    const widest = Math.max(...all.flatMap((one) => one.widest));
    const loudest = Math.max(1, ...all.flatMap((one) => one.decibels.map((value) => value ?? 0)));
    const shares = layers.shares[state.metric];
    const largest = Math.max(1e-9, ...(shares ?? [0]));
    at("share-head").textContent = `share of ${metric().label}`;
    at("layers").replaceChildren(...report.layer_names.map((name, i) => row(
      node("th", name, { scope: "row", title: name }),
      bar(layers.mean_bits[i] / widest, `${layers.mean_bits[i].toFixed(1)}, ${layers.widest[i]}`, layers.widest[i] / widest),
      bar((layers.decibels[i] ?? 0) / loudest, layers.decibels[i]?.toFixed(1) ?? "-"),
      bar(shares ? shares[i] / largest : 0, shares ? percent(shares[i]) : "-"),
    )));
  }

  function bar(share, text, tick) {
    const cell = node("td");
    const track = node("div", "", { class: "track" });
    const fill = node("div", "", { class: "fill" });
    fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    track.append(node("div", "", { class: "rail" }), fill);
    if (tick !== undefined) {
      const mark = node("div", "", { class: "tick" });
      mark.style.left = `${100 * tick}%`;
      track.append(mark);
    }
    cell.append(node("div", text, { class: "label" }), track);
    return cell;
  }

  // ---- the table --------------------------------------------------------------------------------------------
  const columns = [
    ["policy", "point", (point) => label(point)],
    ["accuracy", about.score_name, (point) => point.accuracy],
    ...report.metrics.map((one) => [one.name, one.title, (point) => point.costs[one.name] ?? null]),
  ];

  function drawTable() {
    const key = state.sort ?? state.metric;
    const head = columns.map(([name, text]) => {
      const cell = node("th", "", { scope: "col", class: name === "policy" ? "" : "number" });
      if (name === key) cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      const button = node("button", text, { type: "button", title: name });
      button.addEventListener("click", () => sortBy(name, key));
      cell.append(button);
      return cell;
    });
    const rest = ["grid", "time", "plan"].map((text) => node("th", text, { scope: "col", class: "extra" }));
    head.splice(2, 0, node("th", "95 % interval", { scope: "col", class: "interval" }));
    at("points-head").replaceChildren(row(node("th", "", { "aria-label": "Pareto front" }), ...head, ...rest));
    const value = columns.find(([name]) => name === key)[2];
    const order = [...report.points].sort((a, b) => (state.up ? 1 : -1) * compare(value(a), value(b)) || a.number - b.number);
    const [done, failed] = [order.filter((p) => p.kind !== "failed"), order.filter((p) => p.kind === "failed")];
    at("points-body").replaceChildren(...done.map(pointRow), ...failed.map(failedRow));
  }

  const compare = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1);

  function sortBy(name, key) {
    state.up = name === key ? !state.up : name !== "accuracy"; // accuracy starts with the best
    state.sort = name;
    drawTable();
    [...at("points-head").querySelectorAll("button")][columns.findIndex(([one]) => one === name)].focus();
  }

  function pointRow(point) {
    const front = metric().front.includes(point.number);
    const name = node("td");
    const button = node("button", label(point), { type: "button", class: "pick" });
    name.append(button);
    const costs = report.metrics.map((one) => node("td", point.texts[one.name] ?? "-", { class: "number" }));
    const interval = point.low === null || point.high === null ? "-" : span(point);
    const made = row(
      node("td", front ? "●" : "", { class: "mark", ...(front ? { "aria-label": "on the Pareto front" } : {}) }),
      name, node("td", point.accuracy_text, { class: "number" }), node("td", interval, { class: "interval" }), ...costs,
      node("td", point.grid, { class: "extra" }), node("td", point.seconds, { class: "extra" }),
      node("td", point.plan.slice(0, 10), { class: "extra", title: point.plan }),
    );
    made.dataset.number = point.number;
    made.className = `kind-${point.kind}`;
    made.addEventListener("click", () => choosePoint(point.number));
    return made;
  }

  function failedRow(point) {
    const reason = node("td", `failed: ${point.error}`, { class: "reason", colspan: columns.length + 3 });
    return row(node("td"), node("td", label(point)), reason);
  }

  // ---- exported files ---------------------------------------------------------------------------------------
  function drawFiles() {
    at("exported").hidden = !exported.length;
    if (!exported.length) return;
    at("file").replaceChildren(...exported.map((one, place) => node("option", one.title, { value: place })));
    at("file").addEventListener("change", drawFile);
    drawFile();
  }

  function drawFile() {
    const one = exported[at("file").value];
    const fill = (id, rows, numbers) => at(id).replaceChildren(...rows.map((cells) => row(...cells.map(
      (text, place) => node("td", text, numbers.includes(place) ? { class: "number" } : {}),
    ))));
    at("file-verdict").textContent = one.verdict;
    at("file-verdict").classList.toggle("wrong", !one.is_exact);
    pairs(at("file-facts"), one.facts);
    fill("file-operations", one.operations, []);
    fill("file-differences", one.differences, [1]);
    fill("file-saturation", one.saturation, [1, 2]);
    fill("file-latencies", one.latencies, [1, 2, 3, 4]);
    for (const part of ["operations", "differences", "saturation"])
      at(`file-${part}-text`).textContent = one[`${part}_text`];
    at("file-times").hidden = !one.latencies.length;
  }

  // ---- choosing ---------------------------------------------------------------------------------------------
  function choosePoint(number) {
    if (!report.layers[number]) return;
    state.point = number;
    const { x, y } = ring();
    Plotly.restyle("accuracy", { x: [x], y: [y] }, [figures[state.metric].data.length - 1]);
    drawChoice();
  }

  function drawChoice() {
    drawPoint();
    drawLayers();
    drawHistogram();
    for (const made of at("points-body").querySelectorAll("[data-number]"))
      made.setAttribute("aria-current", String(Number(made.dataset.number) === state.point));
  }

  function chooseMetric(name) {
    Object.assign(state, { metric: name, sort: null, up: true });
    for (const tab of at("metrics").children) {
      const on = tab.dataset.metric === name;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
    }
    drawTable();
    drawAnswer();
    drawAccuracy();
    drawChoice();
  }

  function listen() {
    at("accuracy").on("plotly_click", (event) => choosePoint(event.points[0].customdata));
    at("accuracy").on("plotly_relayout", (event) => { // ticks chosen for the whole view do not suit a part of it
      if ("xaxis.range[0]" in event) Plotly.relayout("accuracy", { "xaxis.dtick": null });
    });
    at("accuracy").addEventListener("keydown", (event) => {
      const order = figures[state.metric].data.flatMap((trace) => trace.customdata ?? [])
        .map((number) => points.get(number)).sort((a, b) => a.costs[state.metric] - b.costs[state.metric]);
      const next = step([...new Set(order.map((point) => point.number))], state.point, event);
      if (next !== undefined) choosePoint(next);
    });
    at("view").addEventListener("click", () => {
      state.view = state.view === "all" ? "useful" : "all";
      drawAccuracy();
    });
    at("theme").addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
    dark.addEventListener("change", () => setTheme(document.documentElement.dataset.theme));
    let before;
    addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); });
    addEventListener("afterprint", () => setTheme(before));
  }

  function setTheme(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    nameTheme();
    drawAccuracy();
    drawHistogram();
  }

  const nameTheme = () => { at("theme").textContent = theme() === "dark" ? "Light" : "Dark"; };

  drawHead();
  drawFiles();
  drawTabs();
  nameTheme();
  chooseMetric(state.metric);
  listen();
})();
