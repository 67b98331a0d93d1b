"use strict";
const at = id => document.getElementById(id);
const data = JSON.parse(at("data").textContent), place = "votes-" + data.page;
let state = { voter: "", votes: [] }, kept = true, since = performance.now();

function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); } catch (e) { kept = false; }
  at("said").textContent = kept ? "Kept in this browser." : "This browser keeps nothing: download before you close the page.";
}
function recall() {
  try {
    const old = JSON.parse(localStorage.getItem(place));
    const known = new Set(data.ballots.map(b => b.id));
    if (old && Array.isArray(old.votes)) state = { voter: String(old.voter || ""), votes: old.votes.filter(v => known.has(v.ballot)) };
  } catch (e) { /* Nothing kept, or nothing readable: begin anew */ }
}
const result = () => JSON.stringify({ page: data.page, voter: state.voter, votes: state.votes }, null, 1);
function next() {
  const voted = new Set(state.votes.map(v => v.ballot));
  return data.ballots.find(b => !voted.has(b.id));
}
function show() {
  const b = next(), n = state.votes.length;
  at("bar").max = data.ballots.length;
  at("bar").value = n;
  at("count").textContent = b ? `Pair ${n + 1} of ${data.ballots.length}` : `All ${data.ballots.length} pairs are done`;
  at("ballot").hidden = !b;
  at("end").hidden = !!b;
  document.querySelectorAll("[data-vote]").forEach(e => { e.disabled = !b; });
  at("undo").disabled = !n;
  at("text").value = result();
  if (b) ["prompt", "left", "right"].forEach(k => { at(k).textContent = b[k]; });
  since = performance.now();
}
function vote(win) {
  const b = next();
  if (!b) return;
  state.votes.push({ ballot: b.id, win, seconds: Math.round((performance.now() - since) / 100) / 10 });
  keep();
  show();
  scrollTo(0, 0);
}
function undo() {
  state.votes.pop();
  keep();
  show();
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([result()], { type: "application/json" }));
  link.download = `votes-${data.page}${state.voter ? "-" + state.voter.replace(/[^\w-]+/g, "_") : ""}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const keys = { ArrowLeft: 1, "1": 1, ArrowDown: .5, "0": .5, ArrowRight: 0, "2": 0 };
document.addEventListener("keydown", e => {
  if (["INPUT", "TEXTAREA"].includes(e.target.tagName) || e.ctrlKey || e.metaKey || e.altKey || e.repeat) return;
  if (e.key in keys) { e.preventDefault(); vote(keys[e.key]); }
  if (e.key === "u" || e.key === "U") undo();
});
document.querySelectorAll("[data-vote]").forEach(e => e.addEventListener("click", () => vote(Number(e.dataset.vote))));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
at("who").addEventListener("input", () => { state.voter = at("who").value; keep(); at("text").value = result(); });
recall();
at("who").value = state.voter;
show();
