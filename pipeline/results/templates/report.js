"use strict";
// The reader's budget: decision.recommend, once more.
const rows = JSON.parse(byId("rows").textContent);
const known = (value) => value ?? Infinity;
const pace = (time) => (time > 0.9 && time < 1 / 0.9 ? 1 : time);
const goals = {
  nearest: (row) => [known(row.margin), known(row.kl), row.size],
  smallest: (row) => [row.size],
  fastest: (row) => [pace(row.time), row.size],
};
function less(a, b) {
  const place = a.findIndex((value, n) => value !== b[n]);
  return place >= 0 && a[place] < b[place];
}
function recommend() {
  const mb = byId("max-mb").valueAsNumber, loss = byId("max-loss").value;
  const fits = (row) => !(row.size > mb) && known(row.margin) <= (loss === "" ? Infinity : parseFloat(loss));
  for (const [goal, by] of Object.entries(goals)) {
    const fitting = rows.filter((row) => fits(row) && (goal !== "fastest" || row.time !== null));
    const best = fitting.reduce((found, row) => (found && !less(by(row), by(found)) ? found : row), null);
    const line = document.querySelector(`#best tr[data-goal="${goal}"]`);
    const margin = best && (best.margin === null ? "–" : best.margin === 0 ? "itself" : best.margin.toFixed(1));
    const texts = best ? [best.variant, best.size.toFixed(1), margin, best.kl?.toFixed(4) ?? "", best.time?.toFixed(2) ?? ""] : ["nothing fits"];
    line.replaceChildren(line.cells[0], ...texts.map((text) => Object.assign(document.createElement("td"), { textContent: text, colSpan: best ? 1 : 5 })));
  }
}
recommend(); // a browser may have kept what the reader had entered
byId("budget").addEventListener("input", recommend);
byId("budget").addEventListener("submit", (event) => event.preventDefault());

// A link to a variant's changes opens them.
function reveal() { const found = location.hash.length > 1 && byId(decodeURIComponent(location.hash.slice(1))); if (found?.tagName === "DETAILS") found.open = true; }
addEventListener("hashchange", reveal);
reveal();
