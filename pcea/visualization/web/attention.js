// What the colours of a page are computed from: the attention of tokens, carried to every point. Nothing is drawn here.
"use strict";

/** The arrays of a page, cut out of one block of bytes. A reference is [type, offset, length]. */
class Arrays {
  constructor(text) {
    const binary = atob(text.trim());
    this.bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) this.bytes[i] = binary.charCodeAt(i);
    this.views = new Map();
  }

  get([type, offset, length]) {
    const key = `${type} ${offset} ${length}`;
    if (!this.views.has(key)) {
      const types = { u8: Uint8Array, i8: Int8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
      this.views.set(key, new types[type](this.bytes.buffer, offset, length));
    }
    return this.views.get(key);
  }
}

/** The k nearest tokens of each point and their inverse-squared-distance weights, which sum to 1. */
function nearestTokens(points, tokens) {
  const count = points.length / 3, total = tokens.length / 3, k = Math.min(3, total);
  const index = new Uint32Array(count * k), share = new Float32Array(count * k);
  const grid = new TokenGrid(tokens);
  const found = new Uint32Array(k), distance = new Float64Array(k);
  for (let i = 0; i < count; i++) {
    grid.nearest(points[3 * i], points[3 * i + 1], points[3 * i + 2], found, distance);
    let sum = 0;
    for (let j = 0; j < k; j++) sum += 1 / Math.max(distance[j], 1e-16);
    for (let j = 0; j < k; j++) {
      index[i * k + j] = found[j];
      share[i * k + j] = 1 / Math.max(distance[j], 1e-16) / sum;
    }
  }
  return { index, share, k };
}

/** Tokens sorted into cubes, so that only those near a point are compared with it. */
class TokenGrid {
  constructor(tokens) {
    this.tokens = tokens;
    this.low = [Infinity, Infinity, Infinity];
    const high = [-Infinity, -Infinity, -Infinity], total = tokens.length / 3;
    for (let i = 0; i < tokens.length; i++) {
      this.low[i % 3] = Math.min(this.low[i % 3], tokens[i]);
      high[i % 3] = Math.max(high[i % 3], tokens[i]);
    }
    const extent = Math.max(...high.map((value, axis) => value - this.low[axis])) || 1;
    // Tokens lie on surfaces: about one in each cube that holds any.
    this.side = Math.max(1, Math.round(Math.sqrt(total / 2)));
    this.cell = (extent * 1.0001) / this.side;
    this.first = new Int32Array(this.side ** 3).fill(-1);
    this.next = new Int32Array(total).fill(-1);
    for (let t = 0; t < total; t++) {
      const place = this.place(tokens[3 * t], 0) * this.side ** 2 + this.place(tokens[3 * t + 1], 1) * this.side +
        this.place(tokens[3 * t + 2], 2);
      this.next[t] = this.first[place];
      this.first[place] = t;
    }
  }

  place(value, axis) {
    return Math.min(this.side - 1, Math.max(0, Math.floor((value - this.low[axis]) / this.cell)));
  }

  nearest(x, y, z, found, distance) {
    const { side, cell, tokens, first, next } = this, k = found.length;
    const cx = this.place(x, 0), cy = this.place(y, 1), cz = this.place(z, 2);
    distance.fill(Infinity);
    for (let ring = 0; ring < side; ring++) {
      // Cubes of this ring are at least ring - 1 cubes away, less if the point lies outside of all cubes.
      if (ring > 1 && distance[k - 1] <= ((ring - 1) * cell) ** 2) return;
      for (let a = Math.max(0, cx - ring); a <= Math.min(side - 1, cx + ring); a++)
        for (let b = Math.max(0, cy - ring); b <= Math.min(side - 1, cy + ring); b++) {
          const isFace = Math.abs(a - cx) === ring || Math.abs(b - cy) === ring;
          for (let c = cz - ring; c <= cz + ring; c += isFace || ring === 0 ? 1 : 2 * ring) {
            if (c < 0 || c >= side) continue;
            for (let t = first[(a * side + b) * side + c]; t >= 0; t = next[t]) {
              const dx = x - tokens[3 * t], dy = y - tokens[3 * t + 1], dz = z - tokens[3 * t + 2];
              const squared = dx * dx + dy * dy + dz * dz;
              let j = k;
              while (j > 0 && squared < distance[j - 1]) j--;
              if (j === k) continue;
              for (let i = k - 1; i > j; i--) {
                distance[i] = distance[i - 1];
                found[i] = found[i - 1];
              }
              distance[j] = squared;
              found[j] = t;
            }
          }
        }
    }
  }
}

/** The four tokens around each pixel of an image and their bilinear weights; at the border, the outermost tokens. */
function gridTokens(width, height, [rows, columns]) {
  const index = new Uint32Array(4 * width * height), share = new Float32Array(4 * width * height);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const v = Math.min(rows - 1, Math.max(0, ((y + 0.5) * rows) / height - 0.5));
      const u = Math.min(columns - 1, Math.max(0, ((x + 0.5) * columns) / width - 0.5));
      const top = Math.floor(v), left = Math.floor(u), dv = v - top, du = u - left;
      for (let corner = 0; corner < 4; corner++, i++) {
        const down = corner >> 1, right = corner & 1;
        index[i] = Math.min(rows - 1, top + down) * columns + Math.min(columns - 1, left + right);
        share[i] = (down ? dv : 1 - dv) * (right ? du : 1 - du);
      }
    }
  return { index, share, k: 4 };
}

/** One file as one network sees it: what `Subject` is in Python. */
class Subject {
  constructor(about, arrays) {
    Object.assign(this, about);
    this.arrays = arrays;
    this.carried = new Map();
    this.layerWeights = new Map();
    if (!this.picture) {
      const packed = arrays.get(about.points);
      // From the lowest corner of the cloud, as single precision is too coarse far from the origin.
      this.xyz = Float32Array.from(packed, (value) => about.step * value);
      // Points behind the others only close gaps: nothing is known of them, and each is coloured like its nearest.
      this.bridges = arrays.get(about.nearest);
    }
  }

  /** The tokens that each point mixes. */
  carry(layer) {
    const at = this.layers[layer].at, key = JSON.stringify(at);
    if (!this.carried.has(key)) {
      if (this.picture) this.carried.set(key, gridTokens(this.width, this.height, at));
      else {
        const tokens = Float32Array.from(this.arrays.get(at), (value) => this.step * value);
        this.carried.set(key, nearestTokens(this.xyz.subarray(0, 3 * this.count), tokens));
      }
    }
    return this.carried.get(key);
  }

  /** Weights of the tokens for the slots, one row a token, of one head or of the mean over all (head -1). */
  weights(layer, head) {
    const key = `${layer} ${head}`;
    if (!this.layerWeights.has(key)) {
      const { tokens, slots, heads, own, weights, low: lowest, unit } = this.layers[layer];
      const [packed, low, step] = [weights, lowest, unit].map((reference) => this.arrays.get(reference));
      const sum = new Float32Array(tokens * slots), chosen = head < 0 ? [...Array(heads).keys()] : [head];
      for (const h of chosen)
        for (let t = 0, i = 0; t < tokens; t++)
          for (let s = 0; s < slots; s++, i++) {
            const scale = own ? h * tokens + t : h * slots + s;
            sum[i] += (low[scale] + step[scale] * packed[h * tokens * slots + i]) / chosen.length;
          }
      this.layerWeights.set(key, sum);
    }
    return this.layerWeights.get(key);
  }

  /** Carry a value of each token to every point. */
  spread(layer, ofToken) {
    const { index, share, k } = this.carry(layer), out = new Float32Array(this.count);
    for (let i = 0, j = 0; i < this.count; i++) {
      let sum = 0;
      for (let n = 0; n < k; n++, j++) sum += share[j] * ofToken[index[j]];
      out[i] = sum;
    }
    return out;
  }

  /** How each point relates to the query: `view_query` in Python. */
  relation(layer, head, query) {
    const { tokens, slots, own } = this.layers[layer], weights = this.weights(layer, head);
    const { index, share, k } = this.carry(layer);
    const row = new Float64Array(slots);
    for (let n = 0; n < k; n++)
      for (let s = 0; s < slots; s++) row[s] += share[query * k + n] * weights[index[query * k + n] * slots + s];
    if (own) return this.spread(layer, row);
    const { deviation, mean, length } = this.deviations(layer, head), toQuery = new Float64Array(tokens);
    for (let t = 0; t < tokens; t++)
      for (let s = 0; s < slots; s++) toQuery[t] += deviation[t * slots + s] * (row[s] - mean[s]);
    const along = this.spread(layer, toQuery);
    return along.map((product, i) => product / Math.max(length[i] * length[query], 1e-16));
  }

  /** Deviations of the tokens' weights from the mean over all points, and their length at each point. */
  deviations(layer, head) {
    const key = `deviations ${layer} ${head}`;
    if (this.layerWeights.has(key)) return this.layerWeights.get(key);
    const { tokens, slots } = this.layers[layer], weights = this.weights(layer, head);
    const { index, share, k } = this.carry(layer);
    const mass = new Float64Array(tokens), mean = new Float64Array(slots), deviation = new Float64Array(tokens * slots);
    for (let j = 0; j < index.length; j++) mass[index[j]] += share[j] / this.count;
    for (let t = 0; t < tokens; t++) for (let s = 0; s < slots; s++) mean[s] += mass[t] * weights[t * slots + s];
    for (let t = 0; t < tokens; t++)
      for (let s = 0; s < slots; s++) deviation[t * slots + s] = weights[t * slots + s] - mean[s];
    // A point mixes tokens, so its squared length follows from the products of these, each needed by many points.
    const known = new Map();
    const product = (a, b) => {
      const pair = a < b ? a * tokens + b : b * tokens + a;
      if (!known.has(pair)) {
        let sum = 0;
        for (let s = 0; s < slots; s++) sum += deviation[a * slots + s] * deviation[b * slots + s];
        known.set(pair, sum);
      }
      return known.get(pair);
    };
    const length = new Float64Array(this.count);
    for (let i = 0, j = 0; i < this.count; i++, j += k) {
      let sum = 0;
      for (let n = j; n < j + k; n++)
        for (let m = j; m <= n; m++)
          sum += (m < n ? 2 : 1) * share[n] * share[m] * product(index[n], index[m]);
      length[i] = Math.sqrt(Math.max(sum, 0));
    }
    this.layerWeights.set(key, { deviation, mean, length });
    return this.layerWeights.get(key);
  }

  /** The slot with the greatest weight at each point. */
  strongest(layer, head) {
    const { slots } = this.layers[layer], weights = this.weights(layer, head);
    const { index, share, k } = this.carry(layer), out = new Uint32Array(this.count), sum = new Float32Array(slots);
    for (let i = 0; i < this.count; i++) {
      sum.fill(0);
      for (let n = i * k; n < i * k + k; n++)
        for (let s = 0, from = index[n] * slots; s < slots; s++) sum[s] += share[n] * weights[from + s];
      for (let s = 1; s < slots; s++) if (sum[s] > sum[out[i]]) out[i] = s;
    }
    return out;
  }

  /** The number in the file of a point. */
  numberOf(point) {
    return this.index ? this.arrays.get(this.index)[point] : point;
  }

  /** The place of a point in the coordinates of its file; of a pixel, x and y in the image. */
  place(point) {
    if (this.picture) {
      const { left, top, width, height } = this.seen;
      return [
        left + Math.floor((((point % this.width) + 0.5) * width) / this.width),
        top + Math.floor(((Math.floor(point / this.width) + 0.5) * height) / this.height),
      ];
    }
    const p = this.origin.map((low, axis) => low + this.xyz[3 * point + axis]);
    // Positions are written in steps: more digits would be made up.
    const step = this.step * Math.hypot(...this.frame[0].slice(0, 3));
    const digits = Math.min(100, Math.max(0, Math.ceil(-Math.log10(step))));
    return this.frame.map(([x, y, z, offset]) => Number((x * p[0] + y * p[1] + z * p[2] + offset).toFixed(digits)));
  }

  /** The point nearest to a place in the coordinates of the file. */
  pointAt(place) {
    let best = 0, least = Infinity;
    for (let point = 0; point < this.count; point++) {
      const distance = Math.hypot(...this.place(point).map((x, axis) => x - place[axis]));
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  /** What a point is by a mode that gives names, such as its part; "" if it has none. */
  nameIn(mode, point) {
    const { names, values } = this.results[mode] || {};
    return names ? names[values ? this.arrays.get(values)[point] : 0] : "";
  }

  /** The colours of a mode: rgb (3 numbers a point), and what they mean. */
  view({ mode, layer, head, slot, query }, scale) {
    const rgb = new Uint8Array(3 * this.count);
    const about = this.layers[layer];
    if (mode === "colors") {
      const of = this.arrays.get(about.colors).subarray(3 * about.tokens * (head + 1));
      const { index, share, k } = this.carry(layer);
      for (let i = 0; i < this.count; i++)
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let n = i * k; n < i * k + k; n++) sum += share[n] * of[3 * index[n] + c];
          rgb[3 * i + c] = Math.round(sum);
        }
      return { rgb, legend: [], text: () => "" };
    }
    if (mode === "slots") {
      const values = this.strongest(layer, head), ranking = about.ranking[head + 1];
      const color = new Map(ranking.map((s, i) => [s, scale.palette[i]])), present = new Set();
      values.forEach((s, i) => {
        rgb.set(color.get(s) || scale.grey, 3 * i);
        present.add(s);
      });
      const legend = ranking.filter((s) => present.has(s)).map((s) => [`slot ${s}`, color.get(s)]);
      if ([...present].some((s) => !color.has(s))) legend.push(["other slots", scale.grey]);
      return { rgb, legend, text: (i) => `strongest slot ${values[i]}` };
    }
    const result = this.results[mode];
    if (result && !result.bar) {
      const label = result.values && this.arrays.get(result.values);
      for (let i = 0; i < this.count; i++) rgb.set(result.palette[label ? label[i] : 0], 3 * i);
      return { rgb, legend: result.legend, text: (i) => this.nameIn(mode, i), picture: result.picture };
    }
    let values, bar;
    if (result) {
      const [text, low, high] = result.bar, packed = this.arrays.get(result.values);
      values = Float32Array.from(packed, (value) => low + ((high - low) * value) / 255);
      bar = { text, low, high };
    } else if (mode === "slot") {
      const weights = this.weights(layer, head), of = new Float32Array(about.tokens);
      for (let t = 0; t < about.tokens; t++) of[t] = weights[t * about.slots + slot];
      values = this.spread(layer, of);
      bar = { text: `weight of slot ${slot}`, low: 0, high: values.reduce((a, b) => Math.max(a, b)) };
    } else {
      values = this.relation(layer, head, query);
      bar = about.own
        ? { text: "weight of the query", low: 0, high: values.reduce((a, b) => Math.max(a, b)) }
        : { text: "likeness to the query", low: 0, high: 1 };
    }
    const range = Math.max(bar.high - bar.low, 1e-30);
    for (let i = 0; i < this.count; i++) {
      const step = Math.round(255 * Math.min(1, Math.max(0, (values[i] - bar.low) / range)));
      for (let c = 0; c < 3; c++) rgb[3 * i + c] = scale.viridis[3 * step + c];
    }
    return { rgb, bar, legend: [], text: (i) => `${bar.text}: ${values[i].toPrecision(3)}` };
  }
}
