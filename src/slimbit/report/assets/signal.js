"use strict";
// Draws a training run from the JSON beside it. Names come from users: they reach the page as text, never as markup.
(() => {
  const { report, columns, rows, figures, templates } = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const at = (id) => document.getElementById(id);
  const theme = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");

  function node(tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }
  const row = (...cells) => { const made = node("tr"); made.append(...cells); return made; };

  function drawHead() {
    const last = report.epochs.at(-1);
    const best = report.epochs.filter((epoch) => epoch.accuracy !== null)
      .reduce((a, b) => (a && a.accuracy >= b.accuracy ? a : b), null);
    at("network").textContent = report.network || report.run;
    at("summary").textContent = [
      `${report.epochs.length} epoch${report.epochs.length === 1 ? "" : "s"}`,
      `${report.layers.length} layer${report.layers.length === 1 ? "" : "s"}, ${last.filters} filters`,
      ...(best ? [`best held-out accuracy ${best.accuracy.toFixed(2)} % after epoch ${best.epoch}`] : []),
    ].join(" · ");
    at("assumptions").replaceChildren(...report.notes.map((text) => node("li", text)));
    const settings = Object.entries(report.settings);
    at("settings-part").hidden = !settings.length;
    at("settings").replaceChildren(...settings.flatMap(([name, value]) => [node("dt", name), node("dd", value)]));
  }

  function drawTable() {
    const head = [...columns, "dead filters"].map((text) => node("th", text, { scope: "col", class: "number" }));
    at("epochs-head").replaceChildren(row(...head));
    at("epochs-body").replaceChildren(...rows.map((cells) => row(...cells.map((text) => node("td", text, { class: "number" })))));
  }

  function drawFigures() {
    const touch = matchMedia("(pointer: coarse)").matches ? { dragmode: false } : {}; // leave the finger to the page
    at("map").style.height = `${Math.max(260, 120 + 18 * report.layers.length)}px`;
    for (const [name, figure] of Object.entries(figures)) {
      const layout = { ...structuredClone(figure.layout), template: templates[theme()][name], ...touch };
      const config = {
        responsive: true, displaylogo: false, modeBarButtons: [["toImage"]],
        toImageButtonOptions: { format: "svg", filename: `signal-${name}` },
      };
      Plotly.react(name, structuredClone(figure.data), layout, config);
    }
    at("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  }

  function setTheme(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    drawFigures();
  }

  drawHead();
  drawTable();
  drawFigures();
  at("theme").addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => setTheme(document.documentElement.dataset.theme));
  let before;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => setTheme(before));
})();
