"use strict";
// What every page has, before its own script. Names come from users: they reach the page as text, never as markup.
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
const pairs = (target, entries) =>
  target.replaceChildren(...entries.flatMap(([name, value]) => [node("dt", name), node("dd", value)]));

// The layout of a figure in the colours of a template.
function layoutOf(figure, template, extra = {}) {
  const touch = matchMedia("(pointer: coarse)").matches ? { dragmode: false } : {}; // leave the finger to the page
  return { ...structuredClone(figure.layout), template, ...touch, ...extra };
}

// Makes a chart as high as its plot area needs beside legend and axes.
async function fit(chart, wanted) {
  const lacking = Math.round(wanted - chart._fullLayout._size.h);
  if (Math.abs(lacking) < 2) return;
  chart.style.height = `${chart.clientHeight + lacking}px`;
  await Plotly.Plots.resize(chart);
}

// A place for every text of a trace where it covers no point, no other text and not the border, or none at all; a place
// away from the error bars is preferred. `marks` are boxes of texts of the figure itself.
function placedTexts(chart, texts, trace, marks) {
  const { _fullData: traces, _fullLayout: { xaxis, yaxis } } = chart;
  const [wide, high] = [xaxis._length, yaxis._length];
  const at = (one, i) => [xaxis.d2p(one.x[i]), yaxis.d2p(one.y[i])];
  const dots = [], bars = [];
  for (const one of traces) {
    if (one.visible !== true || !one.x) continue;
    for (let i = 0; i < one.x.length; i++) {
      const [x, y] = at(one, i);
      dots.push([x - 5, y - 5, x + 5, y + 5]);
      if (one.error_y?.visible && one.error_y.array?.length)
        bars.push([x - 1, yaxis.d2p(one.y[i] + one.error_y.array[i]), x + 1, yaxis.d2p(one.y[i] - one.error_y.arrayminus[i])]);
    }
  }
  const covers = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const taken = [...marks];
  return texts.map((text, i) => {
    if (!text) return ["", "top left"];
    const [x, y] = at(traces[trace], i);
    const [w, h] = [7 + 8 * text.length, 13];
    const places = [
      ["top left", x - 4 - w, y - 5 - h], ["top center", x - w / 2, y - 8 - h], ["bottom right", x + 4, y + 5],
      ["top right", x + 4, y - 5 - h], ["bottom left", x - 4 - w, y + 5], ["middle left", x - 8 - w, y - h / 2],
      ["middle right", x + 8, y - h / 2], ["bottom center", x - w / 2, y + 8],
    ].map(([name, left, top]) => ({ name, box: [left, top, left + w, top + h] }))
      .filter(({ box }) => box[0] >= 0 && box[1] >= 0 && box[2] <= wide && box[3] <= high
        && ![...dots, ...taken].some((other) => covers(box, other)))
      .map((place) => ({ ...place, crossed: bars.filter((bar) => covers(place.box, bar)).length }));
    const best = places.sort((a, b) => a.crossed - b.crossed)[0]; // stable: the first of equals
    if (!best) return ["", "top left"];
    taken.push(best.box);
    return [text, best.name];
  });
}

// A command of which no word is broken at its hyphens.
const command = (text) => text.split(/( +)/).map((word) => (word.trim() ? node("span", word, { class: "word" }) : word));

// What the arrow keys lead to in a list; undefined for other keys.
function step(list, current, event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || !list.length) return undefined;
  event.preventDefault();
  const place = list.indexOf(current);
  if (place < 0) return by > 0 ? list[0] : list.at(-1);
  return list[(place + by + list.length) % list.length];
}

// A list of tabs, one for each of the costs; `choose` is called with the name of the one that is wanted.
function tabs(target, costs, choose) {
  target.replaceChildren(...costs.map((one) => {
    const tab = node("button", one.label, { type: "button", role: "tab", "aria-controls": "panel", title: one.name });
    tab.dataset.metric = one.name;
    tab.addEventListener("click", () => choose(one.name));
    tab.addEventListener("keydown", (event) => {
      const next = step(costs.map((other) => other.name), one.name, event);
      if (next === undefined) return;
      choose(next);
      target.querySelector("[aria-selected=true]").focus();
    });
    return tab;
  }));
}

function markTab(target, name) {
  for (const tab of target.children) {
    const on = tab.dataset.metric === name;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
}

// The button of the theme, and paper, which is light; `draw` draws what has the colours of a template.
function themes(draw) {
  const set = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    at("theme").textContent = theme() === "dark" ? "Light" : "Dark";
    draw();
  };
  at("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  at("theme").addEventListener("click", () => set(theme() === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => set(document.documentElement.dataset.theme));
  let before;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; set("light"); });
  addEventListener("afterprint", () => set(before));
}
