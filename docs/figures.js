// Draws the figures that notebooks carry as data: fitted to the column, and in the colours of the theme.
(() => {
  "use strict";
  const wide = 640, phone = 520;
  const css = name => getComputedStyle(document.body).getPropertyValue(name).trim();
  const theme = () => document.body.dataset.theme;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => theme() === "dark" || (theme() !== "light" && system.matches);

  // Figures have no background of their own and colours that stand on either theme. What is left
  // is black, the ink of the light theme, and white, its paper: those two change places.
  function swap(text) {
    const t = text.toLowerCase().replace(/\s/g, ""), ink = css("--ink"), paper = css("--paper");
    if (/^(black|#000|#000000|rgb\(0,0,0\)|#[0-3]([0-9a-f])[0-3]\1[0-3]\1|#([0-3][0-9a-f])\2\2)$/.test(t)) return ink;
    return /^(white|#fff|#ffffff|rgb\(255,255,255\))$/.test(t) ? paper : text;
  }

  function darken(value, key) {
    if (typeof value === "string") return /color$/.test(key) ? swap(value) : value;
    if (Array.isArray(value)) return key === "color" || !value.some(v => v && typeof v === "object") ?
      (key === "color" ? value.map(v => typeof v === "string" ? swap(v) : v) : value) :
      key === "colorscale" ? value : value.map(v => darken(v, key));
    if (!value || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, darken(v, k)]));
  }

  function columns(layout) {
    const starts = Object.keys(layout).filter(k => /^xaxis\d*$/.test(k)).map(k => Math.round(100 * (layout[k].domain || [0])[0]));
    return new Set(starts).size || 1;
  }

  function draw(box) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const room = box.parentElement.clientWidth || wide;
    const cols = columns(spec.layout);
    const width = Math.max(Math.min(room, +box.dataset.width), cols > 2 ? Math.min(150 * cols, +box.dataset.width) : 0);
    const small = room < phone;
    let {data, layout} = spec;
    if (dark()) { data = darken(data, ""); layout = darken(layout, ""); }
    layout = {...layout, width, height: +box.dataset.height, autosize: false,
              paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
              font: {...(layout.font || {}), color: css("--ink")},
              modebar: {bgcolor: "rgba(0,0,0,0)", orientation: "v"}};
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
    if (small)
      layout.legend = {...(layout.legend || {}), orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom"};
    const config = {displaylogo: false, responsive: false, displayModeBar: small ? false : "hover",
                    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]};
    let plot = box.querySelector(".plot");
    if (!plot) { plot = document.createElement("div"); plot.className = "plot"; box.append(plot); }
    return Plotly.react(plot, {data, layout, config, frames: spec.frames}).then(() => { box.dataset.drawn = Math.round(room); });
  }

  function start() {
    const boxes = [...document.querySelectorAll(".figure-box")];
    const seen = new IntersectionObserver(found => found.forEach(f => {
      if (f.isIntersecting && !f.target.dataset.drawn) draw(f.target);
    }), {rootMargin: "600px"});
    boxes.forEach(b => seen.observe(b));
    const again = () => boxes.filter(b => b.dataset.drawn).forEach(draw);
    let wait;
    addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(() =>
      boxes.filter(b => b.dataset.drawn && Math.abs(b.dataset.drawn - b.parentElement.clientWidth) > 4).forEach(draw), 120); });
    new MutationObserver(again).observe(document.body, {attributes: true, attributeFilter: ["data-theme"]});
    system.addEventListener("change", again);
    addEventListener("beforeprint", () => boxes.forEach(draw));
  }
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})();
