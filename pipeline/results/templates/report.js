"use strict";
const byId = (id) => document.getElementById(id);
const { specs, datasets } = JSON.parse(byId("charts").textContent);
const rows = JSON.parse(byId("rows").textContent);
const views = [];

// One variant is picked at a time: by pointer, keyboard or table. Charts and table show it, and the status line says it.
let picked = "";
function pick(variant, aloud) {
  if (variant === picked) return;
  picked = variant;
  for (const view of views) view.signal("picked", variant).run();
  for (const row of document.querySelectorAll("#variants tbody tr")) row.classList.toggle("picked", row.dataset.variant === variant);
  if (aloud) byId("picked").textContent = variant && told(variant);
}

function told(variant) {
  const heads = [...document.querySelectorAll("#variants thead th")].map((head) => head.textContent);
  const cells = [...document.querySelector(`#variants tr[data-variant="${CSS.escape(variant)}"]`).cells];
  return cells.map((cell, n) => `${heads[n]} ${cell.textContent}`).join(", ");
}

const tip = byId("tip");
function showTip(_handler, event, _item, value) {
  tip.hidden = !value;
  if (!value) return;
  tip.textContent = Object.entries(value).map(([key, text]) => (key === "variant" ? text : `${key}: ${text}`)).join("\n");
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
}

// Panels that stand one above the other take the width there is; names of points have places in wide ones only.
const WIDE = 720;
async function draw(box) {
  const spec = structuredClone(specs[box.dataset.chart]);
  const room = box.clientWidth;
  const narrow = room < WIDE;
  if (narrow && spec.vconcat)
    for (const panel of spec.vconcat) Object.assign(panel, { width: room - 110, title: panel.title.split(/(?<=:|,) /) });
  const options = { renderer: "svg", actions: false, defaultStyle: false, tooltip: showTip };
  const { view } = await vegaEmbed(box, { ...spec, datasets, background: "transparent" }, options);
  box.querySelector("svg").setAttribute("aria-hidden", "true"); // the table says it all
  view.signal("names", !narrow).signal("picked", picked);
  view.addEventListener("pointerover", (_event, item) => pick(item?.datum?.variant ?? "", false));
  await view.runAsync();
  views.push(view);
  for (const kind of ["svg", "png"]) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "save", textContent: `save as ${kind.toUpperCase()}` });
    button.addEventListener("click", async () => {
      Object.assign(document.createElement("a"), { href: await view.toImageURL(kind, 2), download: `${box.dataset.chart}.${kind}` }).click();
    });
    box.append(button);
  }
}

const bySize = [...document.querySelectorAll("#variants tbody tr")].sort((a, b) => a.cells[1].dataset.value - b.cells[1].dataset.value).map((row) => row.dataset.variant);
function step(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const box = event.currentTarget;
  if (by && box.scrollWidth <= box.clientWidth) { // else the arrows scroll
    const at = bySize.indexOf(picked);
    pick(bySize[at < 0 ? 0 : (at + by + bySize.length) % bySize.length], true);
    event.preventDefault();
  } else if (event.key === "Escape") pick("", true);
}

async function drawAll() {
  for (const view of views.splice(0)) view.finalize();
  for (const box of document.querySelectorAll(".chart")) {
    box.replaceChildren();
    await draw(box);
  }
}
for (const box of document.querySelectorAll(".chart:not([data-chart=sensitivity])")) box.addEventListener("keydown", step);

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
}
let drawn = unpack(byId("vega").textContent).then(drawAll);
drawn.catch(() => { for (const box of document.querySelectorAll(".chart")) box.textContent = "This browser cannot draw the charts."; });
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  drawn = drawn.then(drawAll); // one after the other
});

// The reader's budget: decision.recommend, once more.
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

// The table: sorted by a column's head, filtered by words that a row must have.
const body = document.querySelector("#variants tbody");
const lines = [...body.rows];
document.querySelectorAll("#variants thead th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of document.querySelectorAll("#variants thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => { const cell = row.cells[column]; return "value" in cell.dataset ? parseFloat(cell.dataset.value) : cell.textContent; };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what is not known comes last
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    };
    body.append(...lines.sort(compare));
  });
});
byId("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/[\s,]+/);
  for (const row of lines) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  byId("shown").textContent = `${lines.filter((row) => !row.hidden).length} of ${lines.length} variants`;
});
body.addEventListener("pointerover", (event) => pick(event.target.closest("tr")?.dataset.variant ?? "", false));
body.addEventListener("focusin", (event) => pick(event.target.closest("tr")?.dataset.variant ?? "", false));

// A link to a variant's changes opens them.
function reveal() { const found = location.hash.length > 1 && byId(decodeURIComponent(location.hash.slice(1))); if (found?.tagName === "DETAILS") found.open = true; }
addEventListener("hashchange", reveal);
reveal();
