// Draws every figure of a page: as wide as its column, in the colours of the reader's scheme.
(() => {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const mouse = matchMedia('(hover: hover)').matches;
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axes = layout => {
    const named = Object.keys(layout).filter(k => /^[xy]axis\d*$/.test(k));
    return [...new Set([...named, 'xaxis', 'yaxis'])];
  };

  function dress(layout, small) {
    const out = structuredClone(layout);
    out.height = small ? 220 : (layout.height || 380);
    delete out.width;
    out.autosize = true;
    out.paper_bgcolor = out.plot_bgcolor = 'rgba(0,0,0,0)';
    out.font = {...(out.font || {}), color: css('--ink')};
    for (const k of axes(out)) {
      out[k] = {...(out[k] || {}), gridcolor: css('--line'), zerolinecolor: css('--soft'), linecolor: css('--soft'), automargin: true};
      if (small) Object.assign(out[k], {title: {text: ''}, tickfont: {size: 9}});
    }
    if (small) Object.assign(out, {title: {text: ''}, showlegend: false, margin: {l: 8, r: 8, t: 14, b: 8},
      annotations: [], updatemenus: [], sliders: []});
    return out;
  }

  function draw(box) {
    const spec = JSON.parse(box.querySelector('script').textContent);
    const small = box.classList.contains('small');
    let target = box.querySelector('.drawn');
    if (!target) box.append(target = Object.assign(document.createElement('div'), {className: 'drawn'}));
    if (small) for (const t of spec.data) { t.showscale = false; if (t.marker) t.marker.showscale = false; }
    for (const t of spec.data) for (const e of ['error_x', 'error_y']) if (t[e]) t[e] = {color: css('--soft'), ...t[e]};
    const layout = dress(spec.layout || {}, small);
    if (!small && box.clientWidth < 520) Object.assign(layout, {legend: {...(layout.legend || {}), orientation: 'h', x: 0, xref: 'container',
      y: 0, yref: 'container', yanchor: 'bottom', font: {size: 11}}, height: layout.height + 50, margin: {...(layout.margin || {}), b: 100}});
    if (small) layout.coloraxis = {...(layout.coloraxis || {}), showscale: false};
    const config = {responsive: true, displaylogo: false, displayModeBar: mouse ? 'hover' : false, staticPlot: small};
    Plotly.react(target, {data: spec.data, layout, config, frames: spec.frames}).then(() => {
      const image = target.querySelector('svg.main-svg');
      if (image) { image.setAttribute('role', 'img'); image.setAttribute('aria-label', box.getAttribute('aria-label') || 'Figure'); }
    });
  }

  const all = () => document.querySelectorAll('.plot').forEach(draw);
  addEventListener('DOMContentLoaded', all);
  dark.addEventListener('change', all);
  for (const [event, printing] of [['beforeprint', true], ['afterprint', false]]) // In the light colours
    addEventListener(event, () => { document.documentElement.classList.toggle('paper', printing); all(); });
})();
