// The figure that trains toy models in the page: div.interactive.toy-model, with toy_model.js and toy_optima.js.
(() => {
  "use strict";
  const {create, train, exactLoss, norms, stored} = globalThis.toyModel, table = globalThis.toyOptima;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const budget = 8;       // milliseconds of each frame that training may take
  const every = 50;       // steps between points of the loss curve
  const size = 1.55;      // half the width of a panel, in lengths of a column
  const svgns = "http://www.w3.org/2000/svg";

  function el(name, attributes = {}, ...children) {
    const node = /^(svg|path|circle|text|line|g)$/.test(name) ? document.createElementNS(svgns, name) : document.createElement(name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    node.append(...children);
    return node;
  }
  const short = v => v < 1e-9 ? "0" : v < 0.01 ? v.toExponential(2) : v.toPrecision(3);
  const percent = v => `${v < 0 ? "−" : "+"}${Math.abs(100 * v).toFixed(Math.abs(v) < 0.0995 ? 1 : 0)} %`;
  // The optimum that the library found: its loss, and its columns from lengths in hundredths and degrees
  function optimumOf(n, p, r) {
    const entry = table.optima[n][table.decay.indexOf(r)][table.density.indexOf(p)], W = [];
    for (let i = 1; i <= 2 * n; i += 2) {
      const angle = entry[i + 1] * Math.PI / 180;
      W.push(entry[i] / 100 * Math.cos(angle), entry[i] / 100 * Math.sin(angle));
    }
    return {loss: entry[0], W};
  }
  const powers = (r, n) => Array.from({length: n}, (_, i) => r ** i);

  function build(box) {
    const id = name => `${box.dataset.id}-${name}`;
    const fields = {}, show = {};
    function field(name, label, input, words) {
      fields[name] = input;
      input.id = id(name);
      const value = el("output", {for: input.id});
      show[name] = () => {
        value.textContent = words ? words(input.value) : "";
        if (words) input.setAttribute("aria-valuetext", value.textContent);
      };
      return el("div", {class: "field"}, el("label", {for: input.id}, label), ...(words ? [value] : []), input);
    }
    const range = (min, max, value) => el("input", {type: "range", min, max, step: 1, value});
    function select(options, value) {
      const node = el("select");
      for (const [v, text] of options) node.append(el("option", {value: v}, text));
      node.value = value;
      return node;
    }
    const density = table.density;
    const main = el("div", {class: "fields"},
      field("n", "Features", range(2, 8, 5), v => v),
      field("p", "Density p", range(0, density.length - 1, density.indexOf(0.1)), v => String(density[v])),
      field("decay", "Importance", select(table.decay.map(r => [r, r === 1 ? "equal" : `falls as ${r}^i`]), 0.9)),
      field("starts", "Starts", range(1, 11, 5), v => v));
    const more = el("details", {}, el("summary", {}, "Training"), el("div", {class: "fields"},
      field("rate", "Learning rate", select([[0.001, "0.001"], [0.003, "0.003"], [0.01, "0.01"], [0.03, "0.03"]], 0.001)),
      field("schedule", "Schedule", select([["constant", "constant"], ["cosine", "falls to zero"]], "constant")),
      field("batch", "Batch", select([[64, "64"], [256, "256"], [1024, "1024"]], 256)),
      field("steps", "Steps", select([[2000, "2,000"], [10000, "10,000"], [50000, "50,000"]], 10000)),
      field("speed", "Speed", select([[1, "1 step a frame"], [20, "20 steps a frame"], [1e9, "as fast as possible"]], 20)),
      field("seed", "Seed", el("input", {type: "number", min: 0, max: 999999, value: 0, inputmode: "numeric"}))));
    const button = text => el("button", {type: "button"}, text);
    const start = button("Start"), one = button("One step"), again = button("Reset");
    const result = el("p", {class: "result"}), spoken = el("p", {class: "spoken", role: "status"});
    const panels = el("div", {class: "panels"}), chart = el("svg", {class: "chart", role: "img"});
    const python = el("code");
    const form = el("form", {"aria-label": "Settings of the figure"}, main, more, el("div", {class: "buttons"}, start, one, again));
    box.replaceChildren(form, result, spoken, panels, chart,
      el("details", {}, el("summary", {}, "The same models in Python"), el("pre", {tabindex: 0}, python)));

    let models = [], best = 0, optimum, nothing, running = false, turn = 0, drawn = 0;
    const value = name => +fields[name].value;

    function panel(title, n) { // a drawing of columns, and functions to change it
      const caption = el("figcaption"), picture = el("svg", {viewBox: [-size, -size, 2 * size, 2 * size].join(" "), role: "img"});
      const arrows = [], numbers = [];
      picture.append(el("circle", {r: 1, class: "unit"}));
      for (let i = 0; i < n; i++) {
        const hue = `--hue:${n > 1 ? 225 - 205 * i / (n - 1) : 225}`;
        picture.append(arrows[i] = el("path", {class: "arrow", style: hue}), numbers[i] = el("text", {}, String(i + 1)));
      }
      const frame = el("figure", {}, picture, caption);
      panels.append(frame);
      return (W, note, chosen, describe) => {
        norms(W).forEach((r, i) => {
          const x = W[2 * i], y = -W[2 * i + 1], u = r ? x / r : 0, v = r ? y / r : 0, h = Math.min(0.16, r / 3);
          arrows[i].setAttribute("d", `M0 0L${x.toFixed(3)} ${y.toFixed(3)}` +
            `M${(x - h * (u + 0.6 * v)).toFixed(3)} ${(y - h * (v - 0.6 * u)).toFixed(3)}L${x.toFixed(3)} ${y.toFixed(3)}` +
            `L${(x - h * (u - 0.6 * v)).toFixed(3)} ${(y - h * (v + 0.6 * u)).toFixed(3)}`);
          numbers[i].setAttribute("visibility", r > 0.3 ? "visible" : "hidden");
          numbers[i].setAttribute("x", (x + 0.2 * u).toFixed(3));
          numbers[i].setAttribute("y", (y + 0.2 * v + 0.09).toFixed(3));
        });
        caption.textContent = note ? `${title}: ${note}` : title;
        frame.classList.toggle("chosen", !!chosen);
        if (describe) picture.setAttribute("aria-label", `${title}: ${norms(W).map((r, i) =>
          `feature ${i + 1} of length ${r.toFixed(1)} at ${Math.round(Math.atan2(W[2 * i + 1], W[2 * i]) * 180 / Math.PI)} degrees`).join(", ")}`);
      };
    }

    // How far a loss lies above the optimum; where that is 0, above 0 as a share of a model that stores nothing
    const gap = loss => optimum.loss > 1e-4 * nothing ? loss / optimum.loss - 1 : (loss - optimum.loss) / nothing;

    function reset() {
      const n = value("n"), p = density[value("p")], r = value("decay"), importance = powers(r, n);
      const seed = Math.min(999999, Math.max(0, Math.round(value("seed")) || 0));
      fields.seed.value = seed;
      const settings = {n, density: p, importance, seed, batch: value("batch"), rate: value("rate"),
                        schedule: fields.schedule.value, steps: value("steps")};
      nothing = importance.reduce((a, b) => a + b) * (p / 3 - p * p / 4);
      optimum = optimumOf(n, p, r);
      panels.replaceChildren();
      panel("optimum", n)(optimum.W, "", false, true);
      models = Array.from({length: value("starts")}, (_, instance) => {
        const model = create({...settings, instance});
        return Object.assign(model, {draw: panel(`start ${instance + 1}`, n), curve: [[0, exactLoss(model)]], curve_el: null});
      });
      turn = 0;
      python.textContent = "from moral_sc.superposition import ToyConfig, train, exact_loss\n\n" +
        `config = ToyConfig(${n}, 2, ${models.length}, density=${p}, importance=[${r}**i for i in range(${n})])\n` +
        `run = train(config, steps=${settings.steps}, batch_size=${settings.batch}, seed=${seed}, lr=${settings.rate}, ` +
        `schedule='${settings.schedule}', engine='eager')\nexact_loss(run.W, run.b, config.density, config.importance)`;
      Object.values(show).forEach(f => f());
      draw(true);
    }

    // Train until `until`, a time; `quota` steps of each model at most
    function advance(quota, until) {
      const target = Math.min(models[0].steps, models[0].step + quota);
      let late = false;
      while (!late && !(turn === 0 && models[0].step >= target)) {
        const model = models[turn], next = Math.min(target, (Math.floor(model.step / 5) + 1) * 5);
        train(model, next - model.step);
        if (model.step % every === 0 || model.step === model.steps) model.curve.push([model.step, exactLoss(model)]);
        turn = (turn + 1) % models.length;
        late = performance.now() > until;
      }
    }

    function draw(whole) {
      const loss = model => model.curve[model.curve.length - 1][1];
      best = models.reduce((b, m, i) => loss(m) < loss(models[b]) ? i : b, 0);
      models.forEach((m, i) => m.draw(m.W, percent(gap(loss(m))), i === best, whole));
      drawChart(whole);
      const m = models[best], n = m.n, above = gap(loss(m));
      const text = `Step ${m.step.toLocaleString("en")}: lowest loss ${short(loss(m))}, optimum ${short(optimum.loss)}` +
        (optimum.loss > 1e-4 * nothing ? ` (${percent(above)})` : ` (${percent(above)} of the loss without features)`) +
        `. It stores ${stored(m.W)} of ${n} features, the optimum ${stored(optimum.W)}.`;
      result.textContent = text;
      if (whole) spoken.textContent = text;
    }

    function drawChart(whole) {
      const width = chart.clientWidth || 600, height = 190, left = 56, right = 12, top = 12, bottom = 34;
      const high = Math.max(1.25 * nothing, 1.5 * optimum.loss), low = Math.max(0.9 * optimum.loss, high / 1000);
      const steps = models[0].steps;
      const x = s => left + (width - left - right) * s / steps;
      const y = v => top + (height - top - bottom) * Math.log(high / Math.min(high, Math.max(low, v))) / Math.log(high / low);
      if (whole || chart.dataset.width !== String(width)) {
        chart.dataset.width = width;
        chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
        chart.replaceChildren(el("path", {class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}`}));
        const label = (text, px, py, anchor) => chart.append(el("text", {x: px, y: py, "text-anchor": anchor}, text));
        const ticks = [1, 2, 5].flatMap(m => Array.from({length: 12}, (_, e) => m * 10 ** (e - 10))).filter(v => v > low && v < high);
        ticks.sort((a, b) => a - b);
        const skip = Math.ceil(ticks.length / 4);
        for (const v of ticks.filter((_, i) => i % skip === 0)) {
          chart.append(el("line", {class: "tick", x1: left - 4, x2: left, y1: y(v), y2: y(v)}));
          label(v < 1e-3 ? v.toExponential(0) : String(+v.toPrecision(1)), left - 7, y(v) + 4, "end");
        }
        for (const share of [0, 0.5, 1]) label((share * steps).toLocaleString("en"), x(share * steps), height - bottom + 15, share === 1 ? "end" : share ? "middle" : "start");
        label("step", (left + width - right) / 2, height - 3, "middle");
        label("exact loss", left + 6, top + 4, "start");
        chart.append(el("line", {class: "best", x1: left, x2: width - right, y1: y(optimum.loss), y2: y(optimum.loss)}));
        label(`optimum ${short(optimum.loss)}`, width - right, y(optimum.loss) - 5, "end");
        for (const m of models) chart.append(m.curve_el = el("path", {class: "curve"}));
        chart.setAttribute("aria-label", `Exact loss of each start against steps; the dashed line is the optimum, ${short(optimum.loss)}`);
      }
      models.forEach((m, i) => {
        m.curve_el.setAttribute("d", "M" + m.curve.map(([s, v]) => `${x(s).toFixed(1)} ${y(v).toFixed(1)}`).join("L"));
        m.curve_el.classList.toggle("chosen", i === best);
      });
    }

    function halt() {
      running = false;
      start.textContent = "Start";
      draw(true);
    }
    function frame(now) {
      if (!running || !box.isConnected) return;
      advance(value("speed"), performance.now() + budget);
      if (models[models.length - 1].step >= models[0].steps) return halt();
      if (!calm.matches || now - drawn > 1000) { draw(false); drawn = now; }
      requestAnimationFrame(frame);
    }
    start.onclick = () => {
      if (running) return halt();
      if (models[models.length - 1].step >= models[0].steps) reset();
      running = true;
      start.textContent = "Pause";
      requestAnimationFrame(frame);
    };
    one.onclick = () => { advance(1, Infinity); halt(); };
    again.onclick = () => { halt(); reset(); };
    form.onsubmit = event => event.preventDefault();
    form.oninput = event => { if (event.target !== fields.speed) reset(); };
    new ResizeObserver(() => { if (Math.abs(chart.clientWidth - chart.dataset.width) > 1) drawChart(true); }).observe(chart);
    reset();
  }

  const ready = () => document.querySelectorAll(".interactive.toy-model").forEach((box, i) => { box.dataset.id = `toy-${i}`; build(box); });
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", ready) : ready();
})();
