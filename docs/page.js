// Sets a table that is wider than its column more densely, and then breaks the lines of its cells. Marks what is still
// wider: it can be reached by keyboard and fades at the edge where it goes on.
(() => {
  "use strict";
  const boxes = ".highlight pre, .table-wrapper, .output.text_html, .figure-box, .math-block";
  function mark(box) {
    const rest = box.scrollWidth - box.clientWidth;
    const scrolls = rest > 2 && getComputedStyle(box).overflowX !== "visible";
    box.classList.toggle("scrolls", scrolls);
    box.classList.toggle("goes-on", scrolls && box.scrollLeft < rest - 2);
    if (scrolls) box.tabIndex = 0;
    else if (box.tabIndex === 0) box.removeAttribute("tabindex");
  }
  function fit(table, room, names = ["dense", "wrapped"]) {
    for (const name of names) if (table.offsetWidth > room) table.classList.add(name);
    if (!table.classList.contains("wrapped")) return;
    for (const cell of table.querySelectorAll("th, td")) {
      const parts = /^(\S+) (\[[^\]]+\])$/.exec(cell.textContent); // An estimate and its interval
      if (parts) cell.replaceChildren(whole(parts[1]), " ", whole(parts[2]));
      if (/\S{31}/.test(cell.textContent)) cell.style.overflowWrap = "anywhere"; // Such as the hash of a commit
    }
  }
  function whole(text) {
    const span = Object.assign(document.createElement("span"), {textContent: text});
    span.style.whiteSpace = "nowrap";
    return span;
  }
  function start() {
    document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Site");
    document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
    document.querySelector(".content-icon-container")?.setAttribute("role", "region"); // Text outside of all landmarks
    document.querySelector(".content-icon-container")?.setAttribute("aria-label", "Tools");
    for (const entry of document.querySelectorAll("[role=doc-biblioentry]")) entry.setAttribute("role", "listitem"); // Deprecated role
    const sizes = new ResizeObserver(found => found.forEach(f => mark(f.target.matches(boxes) ? f.target : f.target.parentElement)));
    for (const box of document.querySelectorAll(boxes)) {
      if (box.matches(".output.text_html") && box.querySelector(".figure-box")) continue;
      const table = box.querySelector("table.dataframe, table.docutils:not(.claims)");
      if (table) fit(table, box.clientWidth + 2, box.clientWidth < 520 ? ["dense"] : undefined); // A phone scrolls
      sizes.observe(box);
      for (const child of box.children) sizes.observe(child);
      box.addEventListener("scroll", () => mark(box), {passive: true});
    }
  }
  let folded = [];
  addEventListener("beforeprint", () => { // On paper nothing can be unfolded
    folded = [...document.querySelectorAll("article details:not([open])")];
    folded.forEach(d => d.open = true);
    document.querySelectorAll("table.dataframe").forEach(table => fit(table, 680));
  });
  addEventListener("afterprint", () => folded.forEach(d => d.open = false));
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})();
