"use strict";
const byId = (id) => document.getElementById(id);
const { specs, datasets } = JSON.parse(byId("charts").textContent);
const views = [];

// One variant is picked at a time: by pointer, keyboard or table. Charts and table show it, and the status line says it.
let picked = "";
function pick(variant, said) {
  if (variant === picked) return;
  picked = variant;
  for (const view of views) view.signal("picked", variant).run();
  for (const row of document.querySelectorAll("#variants tbody tr")) row.classList.toggle("picked", row.dataset.variant === variant);
  if (said !== undefined) byId("picked").textContent = said;
}

function told(row) {
  const heads = [...document.querySelectorAll("#variants thead th")].map((head) => head.textContent);
  return [...row.cells].map((cell, n) => `${heads[n]} ${cell.textContent}`).join(", ");
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
  view.addEventListener("pointerover", (_event, item) => pick(item?.datum?.variant ?? ""));
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

// From one of a chart's variants to the next larger; rows that name no chart are in every one.
const bySize = [...document.querySelectorAll("#variants tbody tr")].sort((a, b) => a.dataset.size - b.dataset.size);
function step(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const box = event.currentTarget;
  if (by && box.scrollWidth <= box.clientWidth) { // else the arrows scroll
    const rows = bySize.filter((row) => (row.dataset.chart ?? box.dataset.chart) === box.dataset.chart);
    const at = rows.findIndex((row) => row.dataset.variant === picked);
    const next = rows[at < 0 ? 0 : (at + by + rows.length) % rows.length];
    pick(next.dataset.variant, told(next));
    event.preventDefault();
  } else if (event.key === "Escape") pick("", "");
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
  byId("shown").textContent = `${lines.filter((row) => !row.hidden).length} of ${lines.length} rows`;
});
body.addEventListener("pointerover", (event) => pick(event.target.closest("tr")?.dataset.variant ?? ""));
body.addEventListener("focusin", (event) => pick(event.target.closest("tr")?.dataset.variant ?? ""));
