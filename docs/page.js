// Sets a table that is wider than its column more densely. Marks what is still wider: it can be reached by keyboard
// and fades at the edge where it goes on.
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
  function start() {
    document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Site");
    document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
    for (const entry of document.querySelectorAll("[role=doc-biblioentry]")) entry.setAttribute("role", "listitem"); // Deprecated role
    const sizes = new ResizeObserver(found => found.forEach(f => mark(f.target.matches(boxes) ? f.target : f.target.parentElement)));
    for (const box of document.querySelectorAll(boxes)) {
      if (box.matches(".output.text_html") && box.querySelector(".figure-box")) continue;
      if (box.scrollWidth > box.clientWidth + 2) box.querySelector("table.dataframe")?.classList.add("dense");
      sizes.observe(box);
      for (const child of box.children) sizes.observe(child);
      box.addEventListener("scroll", () => mark(box), {passive: true});
    }
  }
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})();
