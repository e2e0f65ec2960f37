// The theme wraps tables in regions that scroll, which the keyboard has to reach.
const reachable = () => {
  for (const region of document.querySelectorAll(".md-typeset__scrollwrap")) region.tabIndex = 0;
};
for (const code of document.querySelectorAll(".md-typeset :not(pre) > code"))
  if (/^--?\w/.test(code.textContent)) code.classList.add("option");
new MutationObserver(reachable).observe(document.body, { childList: true, subtree: true });
reachable();
