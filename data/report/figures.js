// Draws the figures of the site and of reports: fitted to the column, in the colours of the theme, and arranged anew
// for a phone: panels in fewer columns, legends below, long titles broken. In the list of a report a figure is small.
(() => {
  "use strict";
  const wide = 640, phone = 520;
  let printing = false; // Then in the colours of the light theme
  const css = name => getComputedStyle(document.body).getPropertyValue(name).trim();
  const theme = () => document.body.dataset.theme;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => !printing && (theme() === "dark" || (theme() !== "light" && system.matches));

  // Figures have no background of their own and colours that stand on either theme. What is left
  // is black, the ink of the light theme, and white, its paper: those two change places. A black
  // line over a heat map becomes grey, which stands on light cells, dark cells and the page.
  function swap(text, ink) {
    const t = text.toLowerCase().replace(/\s/g, "");
    if (/^(black|#000|#111|#222|#333|rgb\(0,0,0\)|#([0-3][0-9a-f]){3})$/.test(t)) return ink;
    return /^(white|#fff|#ffffff|rgb\(255,255,255\))$/.test(t) ? css("--paper") : text;
  }

  function darken(value, key, ink) {
    if (typeof value === "string") return /color$/.test(key) ? swap(value, ink) : value;
    if (Array.isArray(value)) return key === "color" || !value.some(v => v && typeof v === "object") ?
      (key === "color" ? value.map(v => typeof v === "string" ? swap(v, ink) : v) : value) :
      key === "colorscale" ? value : value.map(v => darken(v, key, ink));
    if (!value || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, darken(v, k, ink)]));
  }

  const rgb = c => /^#([0-9a-f]{3}){1,2}$/i.test(c) ?
    (c.length < 7 ? c.replace(/[0-9a-f]/gi, "$&$&") : c).match(/[0-9a-f]{2}/gi).map(v => parseInt(v, 16)) : null;
  const luminance = c => c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);

  // Text needs more contrast than lines (4.5 instead of 3): its colour is mixed with the ink until it has it.
  function legible(colour) {
    const own = rgb(colour), ink = rgb(printing ? "#000" : css("--ink")), paper = rgb(printing ? "#fff" : css("--paper"));
    if (!own || !ink || !paper) return colour;
    const mixed = part => own.map((v, i) => Math.round(v + (ink[i] - v) * part));
    const contrast = c => { const [a, b] = [c, paper].map(luminance); return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
    const part = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].find(p => contrast(mixed(p)) >= 4.6);
    return part ? `rgb(${mixed(part)})` : colour;
  }

  // Axes and scenes of a layout, as [key, start and end in x].
  function spans(layout) {
    return Object.keys(layout).flatMap(k => /^xaxis\d*$/.test(k) ? [[k, layout[k].domain || [0, 1]]] :
      /^scene\d*$/.test(k) ? [[k, (layout[k].domain || {}).x || [0, 1]]] : []);
  }

  function columns(layout) { // starts of the columns of panels, from left to right
    return [...new Set(spans(layout).map(([, d]) => Math.round(1000 * d[0]) / 1000))].sort((a, b) => a - b);
  }

  function broken(text, most) {
    if (!text || text.length <= most || /<br|[<$]/.test(text)) return text;
    let line = "";
    const lines = [];
    for (const word of text.split(" ")) {
      if (line && (line + " " + word).length > most) { lines.push(line); line = word; }
      else line = line ? line + " " + word : word;
    }
    return [...lines, line].join("<br>");
  }

  const isTitle = a => a.xref === "paper" && a.yref === "paper" && a.yanchor === "bottom" && a.y > 0.1; // Of a panel

  // Titles of panels that are wider than their columns are set smaller, in lines.
  function fitTitles(layout, width) {
    const titles = (layout.annotations || []).filter(isTitle), starts = columns(layout);
    const most = Math.floor(width * (starts.length > 1 ? starts[1] - starts[0] : 1) / 7.5);
    const long = titles.filter(a => (a.text || "").replace(/<[^>]*>/g, "").length * (a.font || {size: 13}).size / 13 > most);
    if (!long.length || titles.length < 2) return layout;
    const texts = new Map(titles.map(a => [a, broken(a.text, most)]));
    const lines = Math.max(...[...texts.values()].map(t => t.split("<br>").length));
    const margin = {l: 60, r: 20, t: 36, b: 50, ...((layout.template || {}).layout || {}).margin, ...layout.margin};
    return {...layout, margin: {...margin, t: Math.max(margin.t, 15 * lines + 12)}, annotations: layout.annotations.map(a =>
      texts.has(a) ? {...a, text: texts.get(a), font: {...a.font, size: 12}} : a)};
  }

  // Put C columns of panels into bands of k columns each. A first drawing tells how high the labels of ticks are and how
  // wide all panels together.
  function wrapped(layout, width, height, k, {high = 14, inner: room = width}) {
    const starts = columns(layout), n = starts.length, bands = Math.ceil(n / k);
    const margin = {l: 60, r: 20, t: 36, b: 50, ...((layout.template || {}).layout || {}).margin, ...layout.margin};
    const column = x => starts.reduce((best, s, i) => x >= s - 0.02 ? i : best, 0);
    const ends = starts.map(s => Math.max(...spans(layout).filter(([, d]) => Math.abs(d[0] - s) < 0.002).map(([, d]) => d[1])));
    const pitch = n > 1 ? starts[1] - starts[0] : 1;
    const squeeze = k < 2 ? 1 : Math.min(1, (1 - 30 * k / width) * pitch / (ends[0] - starts[0])); // Room for the labels of ticks between panels
    const titles = (layout.annotations || []).filter(isTitle);
    const most = Math.max(10, Math.floor(room / k / 7.5));
    const lines = Math.max(1, ...titles.map(a => broken(a.text || "", most).split("<br>").length));
    const ticks = spans(layout).some(([key]) => key.startsWith("x") && layout[key].visible !== false);
    const shrink = Math.min(1.1, Math.max(0.6, (width / k) / (wide / n)));
    const named = spans(layout).some(([key]) => key.startsWith("x") && layout[key].title && layout[key].title.text);
    const rows = new Set(Object.keys(layout).filter(key => /^yaxis\d*$/.test(key)).map(key => (layout[key].domain || [0])[0])).size;
    const stretch = rows > 1 && lines > 1 ? 1.35 : 1; // Rows of panels inside of a band, with titles in lines
    const inner = (height - margin.t - margin.b) * shrink * stretch, gap = 15 * lines + (ticks ? high + 16 : 6) + (named ? 28 : 0);
    const total = bands * inner + (bands - 1) * gap;
    const x = (v, c) => ((c % k) + squeeze * Math.min(1, (v - starts[c]) / pitch)) / k;
    const y = (v, c) => 1 - (Math.floor(c / k) * (inner + gap) + (1 - v) * inner) / total;
    const out = {...layout, margin: {...margin, t: Math.max(margin.t, 15 * lines + 12)}};
    for (const [key, d] of spans(layout)) {
      const c = column(d[0]), to = [x(d[0], c), x(Math.min(d[1], ends[c]), c)];
      if (key.startsWith("scene")) {
        const dy = (layout[key].domain || {}).y || [0, 1];
        out[key] = {...layout[key], domain: {x: to, y: dy.map(v => y(v, c))}};
      } else {
        const other = "yaxis" + key.slice(5), anchored = "yaxis" + String(layout[key].anchor || "y").slice(1);
        const side = layout[anchored] ? anchored : other, dy = (layout[side] || {}).domain || [0, 1];
        out[key] = {...layout[key], domain: to};
        out[side] = {...layout[side], domain: dy.map(v => y(v, c))};
        if (c % k === 0 && out[side].showticklabels === false) delete out[side].showticklabels;
      }
    }
    const bars = Object.keys(layout).filter(k => /^coloraxis/.test(k) && layout[k].showscale !== false);
    bars.forEach((key, i) => {
      const bar = {...(layout[key].colorbar || {}), lenmode: "pixels", len: 150, y: 1 - i * 190 / total, yanchor: "top"};
      out[key] = {...layout[key], colorbar: bar};
    });
    out.annotations = (layout.annotations || []).map(a => {
      if (!titles.includes(a)) return a;
      const c = column(a.x);
      return {...a, x: x(a.x, c), y: y(a.y, c), text: broken(a.text, most), font: {...a.font, size: 12}};
    });
    return [out, total + out.margin.t + margin.b];
  }

  function legendBelow(data, layout, width) {
    const names = data.filter(t => t.name && t.showlegend !== false).map(t => t.name);
    const shows = layout.showlegend ?? (names.length > 1 || data.some(t => t.showlegend === true));
    if (!shows || !names.length) return [layout, 0];
    let rows = 1, used = 0;
    for (const name of names) {
      const w = 48 + 7 * name.replace(/<[^>]*>/g, "").length;
      if (used && used + w > width) { rows++; used = 0; }
      used += w;
    }
    const extra = 20 * rows + 10, house = ((layout.template || {}).layout || {}).margin || {};
    const margin = {...house, ...layout.margin}, above = (layout.legend || {}).y ?? 1.02;
    const b = (margin.b ?? 50) + extra;
    const legend = {...(layout.legend || {}), orientation: "h", x: 0, xref: "container", xanchor: "left",
                    y: 0, yref: "container", yanchor: "bottom", font: {...((layout.legend || {}).font || {}), size: 11}};
    return [{...layout, legend, margin: {...margin, b}}, above < 0 ? 0 : extra];
  }

  // Numbers in the cells of heat maps: as small as the narrowest cells need, and none where they would touch.
  function fitNumbers(data, layout, width) {
    const numbered = data.filter(t => t.type === "heatmap" && t.texttemplate);
    const size = Math.min(12, ...numbered.map(t => {
      const [a, b] = (layout["xaxis" + (t.xaxis || "x").slice(1)] || {}).domain || [0, 1];
      const row = [t.x, ...[t.text, t.z].map(rows => (rows || [])[0])].find(Array.isArray) || [0];
      const count = t.z && t.z.shape ? +String(t.z.shape).split(",").pop() : row.length; // Plotly packs arrays of numbers
      const texts = Array.isArray(t.text) ? t.text.flat() : [];
      const longest = Math.max(t.z && t.z.shape ? 5 : 4, ...texts.map(v => String(v ?? "").length));
      return Math.floor((b - a) * width / count / longest / 0.68);
    }));
    const change = size < 6 ? {texttemplate: ""} : {textfont: {size}};
    return data.map(t => numbered.includes(t) ? {...t, ...change} : t);
  }

  // Long axis titles and categories in two lines, fewer ticks.
  function narrow(data, layout, width) {
    const out = {...layout}, k = Math.min(2, columns(layout).length || 1);
    for (const key of Object.keys(layout).filter(k => /^[xy]axis\d*$/.test(k))) {
      const axis = out[key] = {...layout[key], automargin: true};
      const title = typeof axis.title === "string" ? {text: axis.title} : axis.title;
      const most = key[0] === "x" ? Math.floor(width / k / 7.5) : 34;
      if (title && title.text) axis.title = {...title, text: broken(title.text, most), font: {size: 12, ...(title.font || {})}};
      if (key[0] === "x" && !axis.tickvals && axis.type !== "category") axis.nticks = Math.min(axis.nticks || 5, 5);
      if (key[0] === "x" && axis.tickvals && axis.tickvals.length > 4 && !axis.ticktext)
        axis.tickvals = axis.tickvals.filter((_, i) => i % Math.ceil(axis.tickvals.length / 4) === 0);
      if (k > 1 && key[0] === "x" && axis.type === "log") axis.dtick = 1;
      if (key[0] === "y") {
        if (axis.ticktext) axis.ticktext = axis.ticktext.map(v => broken(String(v), 14));
        const id = "y" + key.slice(5);
        const values = data.filter(t => (t.yaxis || "y") === id && Array.isArray(t.y)).flatMap(t => t.y);
        const long = [...new Set(values.filter(v => typeof v === "string" && v.length > 18))];
        if (long.length) axis.labelalias = Object.fromEntries(long.map(v => [v, broken(v, 16)]));
      }
    }
    out.annotations = (out.annotations || []).map(a => a.xref === "paper" && a.yshift < 0 ? {...a, text: broken(a.text, Math.floor(width / 7))} : a);
    return out;
  }

  function spread(layout, width) { // Room for the labels of ticks between panels
    const n = columns(layout).length, most = 1 / n - 26 / width;
    const axes = spans(layout).filter(([key]) => n > 1 && key.startsWith("x"));
    return {...layout, ...Object.fromEntries(axes.map(([key, [a, b]]) => [key, {...layout[key], domain: [a, Math.min(b, a + most)]}]))};
  }

  // In a list of figures: without titles and legends.
  function miniature(data, layout, width) {
    const out = {...layout, showlegend: false, title: {text: ""}, annotations: [], sliders: [], updatemenus: [], margin: {l: 8, r: 8, t: 14, b: 8}};
    for (const t of data) Object.assign(t, {showscale: false}, t.marker ? {marker: {...t.marker, showscale: false}} : {});
    for (const key of Object.keys(layout).filter(k => /^coloraxis/.test(k))) out[key] = {...layout[key], showscale: false};
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter(k => /^[xy]axis\d*$/.test(k))])) {
      out[key] = {...layout[key], automargin: true, title: {text: ""}, tickfont: {size: 9}};
    }
    return spread(out, width);
  }

  // Labels of points that the edge of a panel would cut are moved inside.
  function moveInside(plot) {
    for (const text of plot.querySelectorAll(".textpoint text")) {
      const name = /#([^"')]+)/.exec((text.closest("[clip-path]") || text).getAttribute("clip-path") || "");
      const clip = name && document.getElementById(name[1]), area = clip && clip.querySelector("rect");
      if (!area) continue;
      const box = text.getBoundingClientRect(), left = text.closest("[clip-path]").getScreenCTM().e;
      const by = Math.max(0, left - box.left) - Math.max(0, box.right - left - area.width.baseVal.value);
      if (by) text.setAttribute("transform", `translate(${by},0) ${text.getAttribute("transform") || ""}`);
    }
  }

  // Plotly's slider and buttons cannot be reached by keyboard. Elements of a form take their place.
  function layoutSlider(spec, small) {
    const slider = (spec.layout.sliders || [])[0];
    if (!slider || !spec.frames || small) return null;
    const {sliders, updatemenus, ...layout} = spec.layout;
    spec.layout = {...layout, margin: {...layout.margin, b: Math.min((layout.margin || {}).b ?? 50, 50)}};
    return {first: slider.active || 0, prefix: (slider.currentvalue || {}).prefix || ""};
  }

  function addSlider(box, plot, spec, {first, prefix}) {
    const known = box.querySelector(".slides");
    if (known) return known.show(); // drawn again
    const names = spec.frames.map(f => f.name), form = document.createElement("form");
    const range = Object.assign(document.createElement("input"), {type: "range", min: 0, max: names.length - 1, value: first});
    const play = Object.assign(document.createElement("button"), {type: "button", textContent: "Play"});
    const value = document.createElement("output");
    range.setAttribute("aria-label", "Frame of the figure");
    form.className = "slides";
    form.append(play, range, value);
    box.append(form);
    let timer = null;
    function show() {
      value.textContent = prefix + names[range.value];
      range.setAttribute("aria-valuetext", value.textContent);
      Plotly.animate(plot, [names[range.value]], {mode: "immediate", frame: {duration: 0, redraw: true}, transition: {duration: 0}}).catch(() => {}); // The next frame ended it
    }
    function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
    play.onclick = () => {
      if (timer) return stop();
      if (+range.value === names.length - 1) range.value = 0;
      play.textContent = "Pause";
      timer = setInterval(() => { range.value = +range.value + 1; show(); if (+range.value === names.length - 1) stop(); },
                          names.length > 30 ? 120 : 700);
    };
    range.oninput = () => { stop(); show(); };
    form.show = show;
    form.onsubmit = event => event.preventDefault();
    value.textContent = prefix + names[range.value];
    range.setAttribute("aria-valuetext", value.textContent);
  }

  // Numbers of notes, among them titles of panels, that lie on an earlier note, and of notes that the right edge cuts.
  function misplaced(plot) {
    const right = plot.querySelector("svg.main-svg").getBoundingClientRect().right;
    const notes = [...plot.querySelectorAll(".annotation")].map(g => [+g.dataset.index, g.querySelector(".annotation-text").getBoundingClientRect()]);
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    return {onOthers: notes.filter(([, a], i) => notes.slice(0, i).some(([, b]) => meet(a, b))).map(([n]) => n),
            cut: notes.filter(([, a]) => a.right > right + 1).map(([n]) => n)};
  }

  function draw(box, known = {}) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const room = box.parentElement.clientWidth || wide;
    const full = +box.dataset.width, mini = box.classList.contains("small"), small = mini || room < phone;
    const frames = layoutSlider(spec, mini);
    let {data, layout} = spec, width = Math.min(room, full), height = mini ? 220 : +box.dataset.height;
    const diagram = layout.xaxis && layout.xaxis.visible === false && columns(layout).length === 1 &&
      (layout.annotations || []).filter(a => a.text).length > 3;
    const cols = columns(layout).length, scenes = spans(layout).some(([k]) => k.startsWith("scene"));
    if (dark()) {
      const ink = data.some(t => /heatmap|contour/.test(t.type)) ? "#8b929b" : css("--ink");
      data = darken(data, "", ink);
      layout = darken(layout, "", css("--ink"));
    }
    layout = {...layout, annotations: (layout.annotations || []).map(a => a.bgcolor || !(a.font || {}).color ? a :
      {...a, font: {...a.font, color: legible(a.font.color)}})};
    if (known.notes && !diagram) layout.annotations = layout.annotations.map((a, i) => isTitle(a) ? a : {...a,
      ...(known.notes.onOthers.includes(i) ? {yshift: (a.yshift || 0) - 16} : {}),
      ...(known.notes.cut.includes(i) ? {xanchor: "right", align: "right"} : {})});
    if (mini) layout = miniature(data, layout, width - 60);
    else if (small && diagram) width = Math.min(full, 600);
    else if (small) {
      if (cols > 2 || (scenes && cols > 1)) [layout, height] = wrapped(layout, width - 60, height, (scenes && cols < 3) || known.inner < 170 ? 1 : 2, known);
      else layout = spread(fitTitles(layout, known.inner || width - 80), width - 60);
      data = fitNumbers(data, layout, width - 110);
      layout = narrow(data, layout, width - 60);
      let extra;
      [layout, extra] = legendBelow(data, layout, width);
      height += extra;
    } else layout = fitTitles(layout, known.inner || width - 80);
    layout = {...layout, width, height, autosize: false,
              paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
              font: {...(layout.font || {}), color: printing ? "black" : css("--ink")},
              modebar: {bgcolor: "rgba(0,0,0,0)", orientation: "v"}};
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = scenes ? layout.dragmode : false;
    const config = {displaylogo: false, responsive: false, displayModeBar: small ? false : "hover", staticPlot: mini,
                    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]};
    let plot = box.querySelector(".plot");
    if (!plot) { plot = document.createElement("div"); plot.className = "plot"; box.append(plot); }
    box.style.height = frames ? "auto" : height + "px";
    return Plotly.react(plot, {data, layout, config, frames: spec.frames}).then(() => {
      const labels = [...plot.querySelectorAll(".xtick text")].map(t => t.getBoundingClientRect().height);
      const highest = Math.ceil(Math.max(14, ...labels)); // Where labels are turned, bands of panels need more room
      const again = (known.again || 0) + 1, higher = small && cols > 1 && highest > Math.max(18, known.high || 0);
      const notes = misplaced(plot), before = known.notes || {onOthers: [], cut: []};
      if (again < 3 && !mini && (notes.onOthers.length || notes.cut.length || higher))
        return draw(box, {again, notes: {onOthers: [...before.onOthers, ...notes.onOthers], cut: [...before.cut, ...notes.cut]}, high: highest + 4 * (highest > 18), inner: plot._fullLayout._size.w});
      moveInside(plot);
      box.dataset.drawn = Math.round(room);
      if (frames) addSlider(box, plot, spec, frames);
      const image = plot.querySelector("svg.main-svg");
      if (image) { image.setAttribute("role", "img"); image.setAttribute("aria-label", box.getAttribute("aria-label") || "Figure"); }
    });
  }

  function start() {
    const boxes = [...document.querySelectorAll(".figure-box")];
    const seen = new IntersectionObserver(found => found.forEach(f => {
      if (f.isIntersecting && !f.target.dataset.drawn) draw(f.target);
    }), {rootMargin: "600px"});
    boxes.forEach(b => seen.observe(b));
    for (const box of document.querySelectorAll(".wide, details.code pre, pre.out")) // Of a report: reached by keyboard where it scrolls
      new ResizeObserver(() => box.scrollWidth > box.clientWidth + 2 ? box.tabIndex = 0 : box.removeAttribute("tabindex")).observe(box);
    const again = () => boxes.filter(b => b.dataset.drawn).forEach(b => draw(b));
    let wait;
    addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(() =>
      boxes.filter(b => b.dataset.drawn && Math.abs(b.dataset.drawn - b.parentElement.clientWidth) > 4).forEach(b => draw(b)), 120); });
    new MutationObserver(again).observe(document.body, {attributes: true, attributeFilter: ["data-theme"]});
    system.addEventListener("change", again);
    addEventListener("beforeprint", () => { printing = true; boxes.forEach(b => draw(b)); });
    addEventListener("afterprint", () => { printing = false; again(); });
  }
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
})();
