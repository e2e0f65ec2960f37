// Draws a training run from the JSON beside it.
(() => {
  const { report, columns, rows, figures, templates } = JSON.parse(document.getElementById("data").textContent);
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
    pairs(at("settings"), settings);
  }

  function drawTable() {
    const head = [...columns, "dead filters"].map((text) => node("th", text, { scope: "col", class: "number" }));
    at("epochs-head").replaceChildren(row(...head));
    at("epochs-body").replaceChildren(...rows.map((cells) => row(...cells.map((text) => node("td", text, { class: "number" })))));
  }

  const HIGH = { cost: 320, layers: 320, dead: 180 }; // pixels of the plots themselves, beside legend and axes

  function drawFigures() {
    const listed = figures.layers.data.some((one) => one.showlegend && one.name !== "closed form");
    at("layers-text").textContent = listed
      ? "A click on a layer in the legend hides it, a double click shows it alone."
      : "Shades go from the first layer to the last; the map below names them.";
    at("map").style.height = `${Math.max(260, 120 + 18 * report.layers.length)}px`;
    for (const [name, figure] of Object.entries(figures)) {
      const config = {
        responsive: true, displaylogo: false, modeBarButtons: [["toImage"]],
        toImageButtonOptions: { format: "svg", filename: `signal-${name}` },
      };
      Plotly.react(name, structuredClone(figure.data), layoutOf(figure, templates[theme()][name]), config)
        .then(() => { if (HIGH[name]) fit(at(name), HIGH[name]); });
    }
  }

  drawHead();
  drawTable();
  drawFigures();
  themes(drawFigures);
})();
