// Draws two runs side by side from the JSON beside it.
(() => {
  const { names, facts, notes, score, metrics, figures, templates, rows, fronts } = JSON.parse(at("data").textContent);
  let chosen = metrics[0].name;

  function drawHead() {
    at("runs").textContent = names.join(" and ");
    at("notes").replaceChildren(...notes.map((text) => node("li", text)));
    for (const place of document.querySelectorAll(".score"))
      place.textContent = place.classList.contains("first") && score === score.toLowerCase()
        ? score[0].toUpperCase() + score.slice(1) : score;
    at("facts-head").replaceChildren(row(node("td"), ...["setting", ...names].map((text) => node("th", text, { scope: "col" }))));
    at("facts").replaceChildren(...facts.map(([name, first, second, differs]) => row(
      node("td", differs ? "\u2260" : "", differs ? { "aria-label": "differs" } : {}),
      node("th", name, { scope: "row" }), node("td", first), node("td", second),
    )));
  }

  function drawFigure() {
    const figure = figures[chosen];
    Plotly.react("accuracy", structuredClone(figure.data), layoutOf(figure, templates[theme()]), { responsive: true, displayModeBar: false });
  }

  function choose(name) {
    chosen = name;
    const metric = metrics.find((one) => one.name === name);
    markTab(at("metrics"), name);
    at("metric-text").textContent = `${name}: ${metric.text || "cost"}`;
    const heads = [score, ...names.map((run) => `${run}${metric.unit && ` (${metric.unit})`}`), "cheaper"];
    at("equal-head").replaceChildren(row(...heads.map((text) => node("th", text, { scope: "col", class: "number" }))));
    at("equal").replaceChildren(...rows[name].map((cells) => row(...cells.map((text) => node("td", text, { class: "number" })))));
    at("fronts").replaceChildren(...fronts[name].map((points, run) => front(names[run], points, metric)));
    drawFigure();
  }

  function front(run, points, metric) {
    const made = node("div");
    const table = node("table");
    const [head, body] = [node("thead"), node("tbody")];
    head.append(row(...["point", score, `${metric.label}${metric.unit && ` (${metric.unit})`}`]
      .map((text, place) => node("th", text, { scope: "col", class: place ? "number" : "" }))));
    body.append(...points.map((cells) => row(...cells.map((text, place) => node("td", text, { class: place ? "number" : "" })))));
    table.append(head, body);
    made.append(node("h3", run), table);
    return made;
  }

  document.body.classList.remove("still");
  drawHead();
  tabs(at("metrics"), metrics, choose);
  choose(chosen);
  themes(drawFigure);
  at("save-svg").addEventListener("click", () =>
    Plotly.downloadImage("accuracy", { format: "svg", filename: "two-runs", width: 900, height: 520 }));
})();
