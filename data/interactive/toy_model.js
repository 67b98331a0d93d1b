// The ReLU output model of Toy Models of Superposition with two hidden dimensions: data, training and exact loss.
// Same equations as moral_sc.superposition, and the same random numbers, so that a model of this page is the
// model that train(ToyConfig(n, 2, k, ...), seed=seed) trains. No page is needed: the file runs in node, too.
globalThis.toyModel = (() => {
  "use strict";
  const f32 = Math.fround, unit = 2 ** -31;

  // Random numbers from a counter: features.py
  const word = (1n << 64n) - 1n;
  function mix64(z) {
    z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & word;
    z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & word;
    return z ^ (z >> 31n);
  }
  const combine = (z, part) => mix64(((z + 0x9e3779b97f4a7c15n) & word) ^ mix64(BigInt(part) + 1n));
  const keyRoot = (seed, instance, stream) => combine(combine(BigInt(seed), stream), instance);
  function keyOf(root, step) { // two 32-bit keys
    const z = combine(root, step);
    return [Number(z >> 32n) | 0, Number(z & 0xffffffffn) | 0];
  }
  function hash32(i, k0, k1) { // 31 random bits
    let x = i ^ k0;
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d) ^ k1;
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    return (x ^ (x >>> 16)) & 0x7fffffff;
  }

  // Quantile of the normal distribution: Newton's method on Marsaglia's series
  function normalQuantile(u) {
    let x = 0;
    for (let turn = 0; turn < 60; turn++) {
      const density = Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
      let sum = 0, term = x;
      for (let k = 1; sum + term !== sum; k += 2) { sum += term; term *= x * x / (k + 2); }
      const change = (0.5 + density * sum - u) / density;
      x -= Math.max(-1, Math.min(1, change));
      if (Math.abs(change) < 1e-13) break;
    }
    return x;
  }

  const schedules = {constant: () => 1, cosine: t => Math.cos(Math.PI / 2 * t)};

  // One model. W is stored as [feature, hidden]; all state is float32, as in the library.
  function create({n = 5, density = 1, importance = null, seed = 0, instance = 0, batch = 256, rate = 1e-3,
                   decay = 0.01, schedule = "constant", steps = 10000, std = Math.sqrt(2 / (n + 2))}) {
    const model = {n, density, seed, instance, batch, rate, decay, schedule, steps, step: 0, loss: NaN,
                   importance: Float32Array.from(importance || new Array(n).fill(1)),
                   W: new Float32Array(2 * n), b: new Float32Array(n), root: keyRoot(seed, instance, 0)};
    const [k0, k1] = keyOf(keyRoot(seed, instance, 1), 0);
    for (let i = 0; i < 2 * n; i++) model.W[i] = std * f32(normalQuantile((hash32(i, k0, k1) + 0.5) * unit));
    model.moments = {W: [new Float32Array(2 * n), new Float32Array(2 * n)], b: [new Float32Array(n), new Float32Array(n)]};
    model.gradient = {W: new Float64Array(2 * n), b: new Float64Array(n)};
    model.x = new Float64Array(n);
    return model;
  }

  // The batch of a step as [row, feature]
  function inputs(model, step) {
    const {n, batch} = model, p = f32(model.density), x = new Float32Array(n * batch);
    const [k0, k1] = keyOf(model.root, step);
    for (let i = 0; i < x.length; i++) {
      const u = f32(hash32(i, k0, k1)) * unit;
      if (u <= p) x[i] = u / p;
    }
    return x;
  }

  // Gradient of the loss of one batch, drawn as in inputs(); returns the loss, summed over features
  function backward(model) {
    const {n, W, b, x, importance, batch} = model, gW = model.gradient.W.fill(0), gb = model.gradient.b.fill(0);
    const p = f32(model.density), [k0, k1] = keyOf(model.root, model.step);
    let total = 0;
    for (let row = 0, at = 0; row < batch; row++) {
      let h0 = 0, h1 = 0, g0 = 0, g1 = 0;
      for (let i = 0; i < n; i++) {
        const u = f32(hash32(at++, k0, k1)) * unit;
        if (u <= p) {
          const v = x[i] = f32(u / p);
          h0 += v * W[2 * i];
          h1 += v * W[2 * i + 1];
        } else x[i] = 0;
      }
      for (let i = 0; i < n; i++) {
        const z = W[2 * i] * h0 + W[2 * i + 1] * h1 + b[i], error = (z > 0 ? z : 0) - x[i];
        total += importance[i] * error * error;
        if (z <= 0) continue;
        const d = importance[i] * error;
        gb[i] += d;
        gW[2 * i] += d * h0;
        gW[2 * i + 1] += d * h1;
        g0 += d * W[2 * i];
        g1 += d * W[2 * i + 1];
      }
      for (let i = 0; i < n; i++) if (x[i]) { gW[2 * i] += x[i] * g0; gW[2 * i + 1] += x[i] * g1; }
    }
    const scale = 2 / (batch * n); // the loss that is differentiated is a mean over features, too
    for (let i = 0; i < n; i++) gb[i] *= scale;
    for (let i = 0; i < 2 * n; i++) gW[i] *= scale;
    return total / batch;
  }

  function adamw(param, grad, [m, v], step, rate, decay) { // step is counted from 1
    const first = 1 - 0.9 ** step, second = Math.sqrt(1 - 0.999 ** step);
    for (let i = 0; i < param.length; i++) {
      m[i] += 0.1 * (grad[i] - m[i]);
      v[i] = 0.999 * v[i] + 0.001 * grad[i] * grad[i];
      param[i] = param[i] * (1 - rate * decay) - rate * m[i] / (Math.sqrt(v[i]) / second + 1e-8) / first;
    }
  }

  function train(model, count = 1) {
    for (; count > 0; count--) {
      model.loss = backward(model);
      const rate = model.rate * schedules[model.schedule](model.step / model.steps);
      model.step++;
      for (const k of ["W", "b"]) adamw(model[k], model.gradient[k], model.moments[k], model.step, rate, model.decay);
    }
    return model;
  }

  // Mean of (a.x + beta)_+^q over the unit cube, for the first k numbers of a: integrals.py
  const corners = new Float64Array(256), signs = new Float64Array(256), scaled = new Float64Array(8), held = new Float64Array(8);
  const factorial = [1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800];
  function cornerSum(a, k, beta, q) {
    let product = 1, size = 1, sum = 0;
    corners[0] = beta;
    signs[0] = k % 2 ? -1 : 1;
    for (let j = 0; j < k; j++) {
      product *= a[j];
      for (let c = 0; c < size; c++) { corners[size + c] = corners[c] + a[j]; signs[size + c] = -signs[c]; }
      size *= 2;
    }
    for (let c = 0; c < size; c++) if (corners[c] > 0) {
      let power = signs[c];
      for (let j = 0; j < q + k; j++) power *= corners[c];
      sum += power;
    }
    return factorial[q] / factorial[q + k] / product * sum;
  }
  function reflected(a, k, beta, q) { // from the side with less cancellation
    let low = beta, high = beta, total = 0, squares = 0;
    for (let j = 0; j < k; j++) {
      if (a[j] < 0) low += a[j]; else high += a[j];
      total += a[j];
      squares += a[j] * a[j];
    }
    const flip = high > -low, s = flip ? -1 : 1, mean = beta + total / 2;
    for (let j = 0; j < k; j++) scaled[j] = s * a[j];
    const side = cornerSum(scaled, k, s * beta, q);
    if (!flip) return side;
    return [1, mean, mean * mean + squares / 12][q] - (q % 2 ? -side : side);
  }
  function cubeMean(a, k, beta, q) {
    if (!k) return q ? Math.max(beta, 0) ** q : +(beta > 0);
    const tolerance = k > 1 ? (1e-7 / factorial[k + 2]) ** (1 / (k - 1)) : 1e-8;
    let most = 1e-6, shift = 0, extra = 0;
    for (let j = 0; j < k; j++) most = Math.max(most, Math.abs(a[j]));
    for (let j = 0; j < k; j++) { // coefficients near 0 are enlarged, and mean and variance corrected
      held[j] = Math.abs(a[j]) < tolerance * most ? (a[j] < 0 ? -1 : 1) * tolerance * most : a[j];
      shift += (a[j] - held[j]) / 2;
      extra += (a[j] * a[j] - held[j] * held[j]) / 24;
    }
    const main = reflected(held, k, beta + shift, q);
    return q < 2 || !extra ? main : main + 2 * extra * reflected(held, k, beta + shift, 0);
  }

  // The population loss, summed over features: exact_loss.py. At most 8 features.
  const all = new Float64Array(8), others = new Float64Array(8);
  function exactLoss({n, W, b, density, importance}) {
    let loss = 0;
    for (let set = 0; set < 1 << n; set++) {
      let weight = 1;
      for (let j = 0; j < n; j++) weight *= set >> j & 1 ? density : 1 - density;
      if (weight < 1e-15) continue;
      for (let i = 0; i < n; i++) {
        let k = 0, rest = 0, own = 0;
        const on = set >> i & 1;
        for (let j = 0; j < n; j++) if (set >> j & 1) {
          const overlap = W[2 * i] * W[2 * j] + W[2 * i + 1] * W[2 * j + 1];
          all[k++] = overlap;
          if (j === i) own = overlap; else others[rest++] = overlap;
        }
        const square = cubeMean(all, k, b[i], 2);
        let error = square;
        if (on) {
          const cross = Math.abs(own) < 1e-3 ?
            cubeMean(others, rest, b[i] + own / 2, 1) / 2 + own / 12 * cubeMean(others, rest, b[i] + own / 2, 0) :
            (cubeMean(others, rest, b[i] + own, 2) - square) / (2 * own);
          error += 1 / 3 - 2 * cross;
        }
        loss += weight * importance[i] * error;
      }
    }
    return loss;
  }

  const norms = W => Array.from({length: W.length / 2}, (_, i) => Math.hypot(W[2 * i], W[2 * i + 1]));
  const stored = W => norms(W).filter(r => r > 0.5).length; // as moral_sc.superposition.geometry.represented

  return {create, train, inputs, exactLoss, norms, stored, normalQuantile, schedules};
})();
