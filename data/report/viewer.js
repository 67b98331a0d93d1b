"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const make = (tag, text, cls) => {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  return e;
};
const form = document.getElementById("filters"), list = document.getElementById("list"), item = document.getElementById("item");
const fields = data.filters.map(([key, name]) => {
  const label = make("label", name), select = make("select");
  select.add(new Option("all", ""));
  [...new Set(data.rows.map(r => r[key]))].forEach(v => select.add(new Option(v, v)));
  label.append(select);
  form.append(label);
  return [key, select];
});
const label = make("label", "words in the prompt"), words = make("input");
words.type = "search";
label.append(words);
form.append(label);

let rows = [];
function filter() {
  const text = words.value.toLowerCase();
  const said = r => data.prompts[r.prompt].some(([, t]) => t.toLowerCase().includes(text));
  rows = data.rows.filter(r => fields.every(([k, s]) => !s.value || r[k] === s.value) && (!text || said(r)));
  list.replaceChildren(...rows.map((r, n) => new Option(`${r.id} · ${r.condition} · ${r.outcome}`, n)));
  document.getElementById("count").textContent = `${rows.length} of ${data.rows.length} answers`;
  list.selectedIndex = rows.length ? 0 : -1;
  show();
}
function show() {
  const r = rows[list.selectedIndex];
  if (!r) return item.replaceChildren(make("p", "No answer fits these filters."));
  const out = [make("h2", `${r.id} under ${r.condition}`), make("p", r.note, "dim")];
  data.prompts[r.prompt].forEach(([who, text]) => {
    const turn = make("div", undefined, "turn");
    turn.append(make("b", who), text);
    out.push(turn);
  });
  const table = make("table"), head = make("tr");
  ["answer", "probability", ""].forEach(t => head.append(make("th", t)));
  table.append(head);
  r.answers.forEach(([name, p, tag], n) => {
    const row = make("tr"), cell = make("td", undefined, "p"), bar = make("progress");
    if (n === r.chosen) row.className = "chosen";
    bar.max = 1; bar.value = p; bar.setAttribute("aria-hidden", "true");
    cell.append(p.toFixed(3), bar);
    row.append(make("td", name), cell, make("td", tag, "tag"));
    table.append(row);
  });
  out.push(make("h2", `Verdict: ${r.outcome}`), table);
  item.replaceChildren(...out);
}
function move(by) {
  const n = Math.min(Math.max(list.selectedIndex + by, 0), rows.length - 1);
  if (rows.length) list.selectedIndex = n;
  show();
}
fields.forEach(([, s]) => s.addEventListener("change", filter));
words.addEventListener("input", filter);
list.addEventListener("change", show);
form.addEventListener("submit", e => e.preventDefault());
document.getElementById("before").addEventListener("click", () => move(-1));
document.getElementById("after").addEventListener("click", () => move(1));
document.addEventListener("keydown", e => {
  if (["INPUT", "SELECT"].includes(e.target.tagName)) return;
  if (e.key === "ArrowLeft") move(-1);
  if (e.key === "ArrowRight") move(1);
});
filter();
