// Draws a report from the JSON beside it.
(() => {
  let report, figures, histogram, templates, pick, exported, about, points; // what `take` was given last
  const state = { metric: null, point: null, own: false, view: "useful", sort: null, up: true, shown: new Map() };
  const config = { responsive: true, displayModeBar: false };
  const HIGH = 320; // pixels of the plot itself, whatever legend and axes need
  const OPEN = 6; // costs that the table opens with
  const EVERY = 3000; // milliseconds between two looks at a run under way

  const metric = () => report.metrics.find((one) => one.name === state.metric);
  const chosen = () => points.get(state.point);
  const label = (point) => [keep(point), point.policy, point.setting].filter(Boolean).join(", ");
  const keep = (point) => (point.keep_ratio === 1 ? "" : `keep ${point.keep_ratio}`);
  // a letter says nothing of the keep ratio, the name of a point for comparison does
  const called = (point) => (point.kind === "ours" && keep(point) ? `${point.name}, ${keep(point)}` : point.name);
  const amount = (point, one) => `${point.texts[one.name] ?? "-"}${one.unit && ` ${one.unit}`}`;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

  // ---- the data, which a run under way replaces ----------------------------------------------------------------
  function take(contents) {
    ({ report, figures, histogram, templates, pick, exported } = contents);
    about = report.about;
    points = new Map(report.points.map((point) => [point.number, point]));
    if (!report.metrics.some((one) => one.name === state.metric)) state.metric = report.metrics[0].name;
    if (!state.own || !report.layers[state.point]) state.point = report.start; // until the reader chooses one
    drawHead();
    drawFiles();
    tabs(at("metrics"), report.metrics, chooseMetric);
    drawColumns();
    chooseMetric(state.metric, state);
  }

  async function watch(seen, before = "Watching the run") {
    let text = before;
    try {
      const answer = await fetch("data", { headers: { "If-None-Match": seen }, cache: "no-store" });
      if (answer.status === 200) {
        take(await answer.json());
        seen = answer.headers.get("ETag");
        before = text = `Watching the run: updated at ${new Date().toLocaleTimeString()}`;
      } else if (answer.status !== 304) text = `The run cannot be read: ${await answer.text()}`;
    } catch {
      text = "slimbit report --watch has ended: the page stays as it is";
    }
    if (at("watch").textContent !== text) at("watch").textContent = text; // a screen reader says each change
    setTimeout(watch, EVERY, seen, before);
  }

  // ---- what stays -------------------------------------------------------------------------------------------
  function drawHead() {
    const [ours, baselines, signals, failed] = ["ours", "baseline", "signal", "failed"]
      .map((kind) => report.points.filter((p) => p.kind === kind || (kind === "baseline" && p.kind === "pruned")).length);
    const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
    at("network").textContent = about.network;
    const first = about.score_name === about.score_name.toLowerCase()
      ? capital(about.score_name) : about.score_name; // mAP and IoU stay as they are
    for (const place of document.querySelectorAll(".score"))
      place.textContent = place.classList.contains("first") ? first : about.score_name;
    at("summary").textContent = [
      `Float ${about.score_name} ${about.float_accuracy.toFixed(2)}${about.unit && ` ${about.unit}`}`,
      ...(about.activation_bits ? [`activations ${about.activation_bits} bits, integer arithmetic`] : []),
      plural(ours, "point"), plural(baselines, "baseline"),
      ...(signals ? [`${signals} from training`] : []), ...(failed ? [`${failed} failed`] : []),
    ].join(" · ");
    at("missing").hidden = !about.missing;
    at("missing").textContent = about.missing;
    const drop = at("drop").value || report.headlines.findIndex((one) => one.drop === 1);
    at("drop").replaceChildren(...report.headlines.map((one, place) =>
      node("option", `${one.drop} ${about.unit ? (one.drop === 1 ? "point" : "points") : "%"}`, { value: place })));
    at("drop").value = drop;
    drawHeadline();
    at("assumptions").replaceChildren(...report.assumptions.map((text) => node("li", text)));
    pairs(at("scoring"), Object.entries(about.scoring));
    pairs(at("provenance"), Object.entries(about.provenance));
  }

  function drawHeadline() {
    const headline = report.headlines[at("drop").value];
    const [first, ...others] = headline.factors;
    at("headline-least").textContent = `of float (${headline.least})`;
    at("headline-text").textContent = capital(headline.text.slice(headline.text.indexOf("): ") + 3));
    at("headline-text").classList.toggle("unseen", Boolean(first)); // the figures say it
    at("headline-notes").replaceChildren(...headline.notes.map((text) => node("li", text)));
    at("hero").replaceChildren(...(first ? [
      figure(first.text, "cheaper than 8 bits", `${labelOf(first)}: ${first.detail} ${unitOf(first)}`),
      ...(headline.smaller ? [figure(headline.smaller, "smaller than float32", "bytes of the weights")] : []),
    ] : []));
    at("factors").hidden = !others.length;
    at("factors").replaceChildren(...others.map(tile));
  }

  const labelOf = (factor) => report.metrics.find((one) => one.name === factor.metric).label;
  const unitOf = (factor) => report.metrics.find((one) => one.name === factor.metric).unit;

  function figure(value, what, detail) {
    const made = node("p");
    made.append(node("span", value, { class: "value" }), node("span", what), node("span", detail, { class: "detail" }));
    return made;
  }

  function tile(factor) {
    const made = node("div");
    const missing = factor.factor === null ? " none" : "";
    made.append(
      node("dt", labelOf(factor)), node("dd", factor.text, { class: `value${missing}` }),
      node("dd", factor.detail, { class: "detail" }),
    );
    return made;
  }

  // ---- figures ----------------------------------------------------------------------------------------------
  async function drawAccuracy() {
    const figure = figures[state.metric];
    const { ranges, hidden } = figure.layout.meta;
    const layout = layoutOf(figure, templates[theme()], { uirevision: `${state.metric} ${state.view}` });
    layout.xaxis.range = [...ranges[state.view].x];
    layout.xaxis.dtick = ranges[state.view].dtick;
    layout.yaxis.range = [...ranges[state.view].y];
    at("view").hidden = !hidden;
    at("view").textContent = state.view === "all" ? "Useful range only" : `Show ${hidden} more below`;
    const below = `${hidden} point${hidden === 1 ? "" : "s"} below ${about.unit ? `${layout.yaxis.range[0].toFixed(0)} ${about.unit}` : layout.yaxis.range[0].toPrecision(2)}`;
    const left = state.view === "all" || !hidden ? "" : `; ${below} ${hidden === 1 ? "is" : "are"} not shown`;
    at("metric-text").textContent = `${state.metric}: ${metric().text || "cost"}${left}`;
    const data = structuredClone(figure.data);
    Object.assign(data.at(-1), ring());
    await Plotly.react("accuracy", data, layout, config);
    await fit(at("accuracy"), HIGH);
    return placeLetters();
  }

  // Letters of the front where they can be read; fewer where there is no room for all of them.
  function placeLetters() {
    const chart = at("accuracy");
    const trace = figures[state.metric].data.findIndex((one) => one.text);
    const inner = chart.querySelector(".bglayer .bg, .cartesianlayer .plot")?.getBoundingClientRect();
    if (trace < 0 || chart._fullData[trace]?.visible !== true || !inner) return undefined;
    const { _size: size } = chart._fullLayout;
    const frame = chart.getBoundingClientRect();
    const marks = [...chart.querySelectorAll(".annotation-text-g")].map((one) => one.getBoundingClientRect())
      .map((r) => [r.left - frame.left - size.l, r.top - frame.top - size.t, r.right - frame.left - size.l, r.bottom - frame.top - size.t]);
    const placed = placedTexts(chart, figures[state.metric].data[trace].text, trace, marks);
    const [text, textposition] = [0, 1].map((part) => placed.map((one) => one[part]));
    const now = chart.data[trace];
    if (String(now.text) === String(text) && String(now.textposition) === String(textposition)) return undefined;
    return Plotly.restyle(chart, { text: [text], textposition: [textposition] }, [trace]);
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
    return Plotly.react("histogram", data, layoutOf(histogram, templates[theme()]), { responsive: true, displayModeBar: false });
  }

  // Numbers of the points that can be seen, the cheapest first: not those outside of the axes or of hidden curves.
  function visible() {
    const { _fullData: traces, layout } = at("accuracy");
    const [[left, right], [low, high]] = [layout.xaxis.range, layout.yaxis.range];
    const seen = traces.filter((trace) => trace.visible === true).flatMap((trace) => trace.customdata ?? []);
    const inside = (point) => {
      const cost = Math.log10(point.costs[state.metric]);
      return left <= cost && cost <= right && low <= point.accuracy && point.accuracy <= high;
    };
    return [...new Set(seen)].map((number) => points.get(number)).filter(inside)
      .sort((a, b) => a.costs[state.metric] - b.costs[state.metric]).map((point) => point.number);
  }

  // ---- the selected point -----------------------------------------------------------------------------------
  function drawPoint() {
    const point = chosen();
    const interval = point.low === null || point.high === null ? "" : span(point);
    const grid = point.grid && `grid ${point.grid}`;
    const letter = point.name !== label(point);
    const place = metric().front.includes(point.number) ? "on the Pareto front" : "";
    const cost = point.costs[state.metric] ? ` at ${amount(point, metric())}` : "";
    at("point-title").textContent = `${called(point)}: ${point.accuracy_text}${cost}`;
    const clamped = point.clamped.length ? `out of reach, so clamped: ${point.clamped.join(", ")}` : "";
    const facts = [
      interval && `95 % interval ${interval}`, place, letter && label(point), grid, `number ${point.number}`, clamped,
    ];
    at("point-facts").textContent = facts.filter(Boolean).join(" · ");
    at("costs").replaceChildren(...report.metrics.map((one) => {
      const made = row(node("th", one.label, { scope: "row" }), node("td", amount(point, one), { class: "number" }));
      made.classList.toggle("chosen", one.name === state.metric);
      return made;
    }));
    at("layers-point").textContent = `Point ${called(point)}: ${about.score_name} ${point.accuracy_text}${cost}`;
    at("machine-point").textContent = called(point);
    at("pick-title").textContent = `Take ${point.kind === "ours" ? `model ${point.name}` : "this model"}`;
    at("pick-point").textContent = `${called(point)}: ${about.score_name} ${point.accuracy_text}${cost}.`;
    at("pick-budget").replaceChildren(...command(`${pick} --budget ${state.metric}=${point.costs[state.metric]} --out model`));
    const floor = Number(point.accuracy.toFixed(4)); // short, and never above what the point reaches
    const least = floor > point.accuracy ? (floor - 1e-4).toFixed(4) : floor;
    at("pick-accuracy").replaceChildren(...command(`${pick} --min-accuracy ${least} --out model`));
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
    at("scales").textContent = [
      `A full bar is ${widest} bits (the mark: the widest level of the layer)`, `${loudest.toFixed(1)} dB`,
      ...(shares ? [`${percent(largest)} of the ${metric().label} of the network`] : []),
    ].join(", ") + ".";
    const measured = layers.sensitivity.filter(Boolean);
    const [least, most] = [Math.min(...measured), Math.max(...measured)].map(Math.log);
    const loud = (value) => (value ? 0.05 + 0.95 * (most > least ? (Math.log(value) - least) / (most - least) : 1) : 0);
    for (const one of document.querySelectorAll(".sensitivity")) one.hidden = !measured.length;
    at("layers").replaceChildren(...report.layer_names.map((name, i) => row(
      node("th", name, { scope: "row", title: name }),
      bar(layers.mean_bits[i] / widest, `${layers.mean_bits[i].toFixed(1)}, ${layers.widest[i]}`, layers.widest[i] / widest),
      bar((layers.decibels[i] ?? 0) / loudest, layers.decibels[i]?.toFixed(1) ?? "-"),
      ...(measured.length ? [bar(loud(layers.sensitivity[i]), layers.sensitivity[i]?.toExponential(1) ?? "-")] : []),
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

  const times = (factor) => factor.toFixed(factor < 2 ? 2 : factor < 100 ? 1 : 0);

  // ---- machines ---------------------------------------------------------------------------------------------
  function drawMachines() {
    at("hardware").hidden = !report.machines.length;
    const [ours, eight] = [state.point, report.reference];
    at("machines").replaceChildren(...report.machines.map((one) => row(
      node("th", one.name, { scope: "row" }),
      node("td", one.texts[eight] ?? "-", { class: "number" }),
      node("td", one.texts[ours] ?? "does not run", { class: "number" }),
      node("td", one.costs[eight] && one.costs[ours] ? times(one.costs[eight] / one.costs[ours]) : "-", { class: "number" }),
      node("td", one.unit), node("td", one.text, { class: "wide" }),
    )));
  }

  // ---- the table --------------------------------------------------------------------------------------------
  // id, heading, value to sort by (none: cannot be sorted), text, class
  const columns = () => [
    { id: "name", head: "point", value: (p) => (p.kind === "ours" ? [p.name.length, p.name] : [99, p.name]), text: called },
    { id: "accuracy", head: about.score_name, value: (p) => p.accuracy, text: (p) => p.accuracy_text, class: "number" },
    { id: "interval", head: "95 % interval", text: (p) => (p.low === null || p.high === null ? "-" : span(p)), class: "interval" },
    ...report.metrics.map((one, place) => ({
      id: one.name, head: one.title, value: (p) => p.costs[one.name] ?? null, text: (p) => p.texts[one.name] ?? "-",
      class: "number", off: place >= OPEN,
    })),
    { id: "setting", head: "policy, setting", text: label, off: true },
    { id: "grid", head: "grid", text: (p) => p.grid, off: true },
    { id: "time", head: "time", text: (p) => p.seconds, off: true },
    { id: "number", head: "number", value: (p) => p.number, text: (p) => String(p.number), class: "number", off: true },
    { id: "plan", head: "plan", text: (p) => p.plan.slice(0, 10), title: (p) => p.plan, off: true },
  ];
  // the chosen cost is always there
  const isShown = (column) => column.id === state.metric || (state.shown.get(column.id) ?? !column.off);

  function drawColumns() {
    const box = at("columns").querySelector("fieldset");
    box.replaceChildren(box.firstElementChild, ...columns().filter((one) => one.id !== "name").map((one) => {
      const made = node("label");
      const check = node("input", "", { type: "checkbox" });
      check.checked = state.shown.get(one.id) ?? !one.off;
      check.addEventListener("change", () => { state.shown.set(one.id, check.checked); drawTable(); });
      made.append(check, ` ${one.head}`);
      return made;
    }));
  }

  function drawTable() {
    const key = state.sort ?? state.metric;
    const shown = columns().filter(isShown);
    const head = shown.map((column) => {
      const cell = node("th", column.value ? "" : column.head, { scope: "col", class: column.class ?? "" });
      if (!column.value) return cell;
      if (column.id === key) cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      const button = node("button", column.head, { type: "button", "data-column": column.id });
      button.addEventListener("click", () => sortBy(column.id, key));
      cell.append(button);
      return cell;
    });
    at("points-head").replaceChildren(row(unseen("th", "on the Pareto front"), ...head));
    const { value } = columns().find((column) => column.id === key);
    const order = [...report.points].sort((a, b) => (state.up ? 1 : -1) * compare(value(a), value(b)) || a.number - b.number);
    const [done, failed] = [order.filter((p) => p.kind !== "failed"), order.filter((p) => p.kind === "failed")];
    at("points-body").replaceChildren(
      ...done.map((point) => pointRow(point, shown)), ...failed.map((point) => failedRow(point, shown)),
    );
  }

  function compare(a, b) {
    if (Array.isArray(a)) return compare(a[0], b[0]) || compare(a[1], b[1]);
    return a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1;
  }

  // a cell without visible text
  function unseen(tag, text) {
    const made = node(tag);
    made.append(node("span", text, { class: "unseen" }));
    return made;
  }

  function sortBy(name, key) {
    state.up = name === key ? !state.up : name !== "accuracy"; // accuracy starts with the best
    state.sort = name;
    drawTable();
    markChosen();
    at("points-head").querySelector(`[data-column="${CSS.escape(name)}"]`).focus();
  }

  function pointRow(point, shown) {
    const front = metric().front.includes(point.number);
    const made = row(
      node("td", front ? "●" : "", { class: "mark", ...(front ? { "aria-label": "on the Pareto front" } : {}) }),
      ...shown.map((column) => {
        if (column.id !== "name")
          return node("td", column.text(point), { class: column.class ?? "", ...(column.title ? { title: column.title(point) } : {}) });
        const cell = node("td");
        cell.append(node("button", called(point), { type: "button", class: "pick", title: label(point) }));
        return cell;
      }),
    );
    made.dataset.number = point.number;
    made.className = `kind-${point.kind}`;
    made.addEventListener("click", () => choosePoint(point.number));
    return made;
  }

  function failedRow(point, shown) {
    const reason = node("td", `failed: ${point.error}`, { class: "reason", colspan: Math.max(1, shown.length - 1) });
    return row(node("td"), node("td", label(point)), reason);
  }

  // ---- files to save ----------------------------------------------------------------------------------------
  function table() {
    const front = new Set(metric().front);
    return report.points.map(({ texts, accuracy_text, costs, clamped, ...rest }) => ({
      ...rest, clamped: clamped.join(" "), pareto: front.has(rest.number), ...costs,
    }));
  }

  function csv() {
    const rows = table();
    const names = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      // a spreadsheet takes text that begins like this for a formula
      const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...rows.map((one) => names.map((name) => one[name]))].map((line) => line.map(cell).join(",") + "\n").join("");
  }

  function save(name, type, text) {
    const link = node("a", "", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function asJson() {
    const { network, metric: swept, score_name, float_accuracy } = about;
    return JSON.stringify({ schema: 1, network, metric: swept, score_name, float_accuracy, points: table() }, null, 1);
  }

  // ---- exported files ---------------------------------------------------------------------------------------
  function drawFiles() {
    at("exported").hidden = !exported.length;
    if (!exported.length) return;
    const place = at("file").value || 0;
    at("file").replaceChildren(...exported.map((one, number) => node("option", one.title, { value: number })));
    at("file").value = place;
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
    [state.point, state.own] = [number, true];
    const { x, y } = ring();
    Plotly.restyle("accuracy", { x: [x], y: [y] }, [figures[state.metric].data.length - 1]);
    drawChoice();
  }

  function drawChoice() {
    drawPoint();
    drawLayers();
    drawHistogram();
    drawMachines();
    markChosen();
  }

  function markChosen() {
    for (const made of at("points-body").querySelectorAll("[data-number]"))
      made.setAttribute("aria-current", String(Number(made.dataset.number) === state.point));
  }

  function chooseMetric(name, { sort = null, up = true } = {}) {
    Object.assign(state, { metric: name, sort, up });
    markTab(at("metrics"), name);
    drawTable();
    drawAnswer();
    drawAccuracy();
    drawChoice();
  }

  function listen() {
    at("accuracy").on("plotly_click", (event) => choosePoint(event.points[0].customdata));
    at("accuracy").on("plotly_relayout", (event) => { // ticks chosen for the whole view do not suit a part of it
      if ("xaxis.range[0]" in event) Plotly.relayout("accuracy", { "xaxis.dtick": null });
      else placeLetters();
    });
    at("accuracy").on("plotly_restyle", ([changed]) => { if ("visible" in changed) placeLetters(); });
    let width = at("panel").clientWidth;
    new ResizeObserver(async () => { // its height follows the chart, only a new width is news
      if (width === at("panel").clientWidth) return;
      width = at("panel").clientWidth;
      await Plotly.Plots.resize("accuracy");
      await fit(at("accuracy"), HIGH);
      placeLetters();
    }).observe(at("panel"));
    at("accuracy").addEventListener("keydown", (event) => {
      const next = step(visible(), state.point, event);
      if (next !== undefined) choosePoint(next);
    });
    at("drop").addEventListener("change", () => {
      drawHeadline();
      const { point } = report.headlines[at("drop").value];
      if (point !== null) choosePoint(point);
    });
    at("file").addEventListener("change", drawFile);
    at("save-csv").addEventListener("click", () => save("points.csv", "text/csv", csv()));
    at("save-json").addEventListener("click", () => save("points.json", "application/json", asJson()));
    at("save-svg").addEventListener("click", () =>
      Plotly.downloadImage("accuracy", { format: "svg", filename: "accuracy", width: 900, height: 520 }));
    at("view").addEventListener("click", () => {
      state.view = state.view === "all" ? "useful" : "all";
      drawAccuracy();
    });
    themes(() => { drawAccuracy(); drawHistogram(); });
  }

  document.body.classList.remove("still");
  const given = JSON.parse(at("data").textContent);
  take(given);
  listen();
  at("watch").hidden = !given.watch;
  if (given.watch) watch(given.watch);
})();
