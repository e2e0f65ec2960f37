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
