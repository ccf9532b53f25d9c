// A cloud of points, drawn by WebGL, and a picture with colours over it, drawn on a canvas.
"use strict";

const FIELD_OF_VIEW = (30 * Math.PI) / 180;
// Diameters of points, in pixels.
const SMALLEST = 1.5, LARGEST = 60;

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const VERTEX = `#version 300 es
uniform mat3 rotation;
uniform vec3 center;
uniform vec2 pan;
uniform float unit, distance_, focal, aspect, height, size, smallest, largest, near, far, shading, marked;
in vec3 point;
in vec3 normal;
in vec3 color;
out vec3 shade;
void main() {
  vec3 p = rotation * (unit * point - center);
  p.xy += pan;
  float depth = distance_ - p.z;
  // In front of all others where the marker is drawn.
  float z = marked > 0.0 ? depth * 0.97 : depth;
  gl_Position = vec4(focal * p.x / aspect, focal * p.y,
    ((far + near) * z - 2.0 * far * near) / (far - near) * depth / z, depth);
  float pixels = size * focal * height / 2.0 / depth;
  gl_PointSize = marked > 0.0 ? clamp(2.0 * pixels, 12.0, 40.0) : clamp(pixels, smallest, largest);
  vec3 n = rotation * normal;
  float facing = dot(normal, normal) > 0.0 ? abs(normalize(n).z) : 1.0;
  shade = color * (1.0 - shading + shading * facing);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform float marked;
in vec3 shade;
out vec4 pixel;
void main() {
  float r = length(gl_PointCoord - 0.5);
  if (r > 0.5) discard;
  pixel = vec4(marked > 0.0 ? (r > 0.36 ? vec3(1.0) : vec3(1.0, 0.0, 0.1)) : shade, 1.0);
}`;

/** Where clouds and pictures are seen from; shared by all panes. */
class Camera {
  constructor() {
    this.reset();
  }

  /** Angles in degrees; x and y say how far what is seen is moved right and up, in radii of the cloud. */
  look(azimuth, elevation, zoom, x, y) {
    this.azimuth = azimuth % 360;
    this.elevation = clamp(elevation, -90, 90);
    this.zoom = clamp(zoom, 0.2, 50);
    this.pan = [clamp(x, -10, 10), clamp(y, -10, 10)];
  }

  reset() {
    this.look(35, 20, 1, 0, 0);
  }

  turn(dx, dy) {
    this.look(this.azimuth - dx, this.elevation + dy, this.zoom, ...this.pan);
  }

  magnify(factor) {
    this.look(this.azimuth, this.elevation, this.zoom * factor, ...this.pan);
  }

  move(dx, dy) {
    this.look(this.azimuth, this.elevation, this.zoom, this.pan[0] + dx, this.pan[1] + dy);
  }

  /** From the coordinates of the points to x right, y up, z towards the eye; columns one after the other. */
  rotation() {
    const a = (this.azimuth * Math.PI) / 180, e = (this.elevation * Math.PI) / 180;
    const [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)];
    return [ca, -sa * se, sa * ce, 0, ce, se, -sa, -ca * se, ca * ce];
  }
}

/** Draws clouds. */
class CloudScene {
  constructor(canvas, camera) {
    this.canvas = canvas;
    this.camera = camera;
    this.size = 0; // as last drawn
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: false, preserveDrawingBuffer: true }));
    if (!gl) throw new Error("This browser cannot draw: it has no WebGL 2. Try a current Firefox, Chrome or Safari.");
    this.prepare();
  }

  /** Make what is kept by the graphics processor: at the beginning, and again after it was lost. */
  prepare() {
    const { gl } = this;
    this.subject = null;
    this.program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(this.program, shader);
    }
    gl.linkProgram(this.program);
    if (!gl.getProgramParameter(this.program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(this.program));
    this.uniforms = {};
    for (let i = 0; i < gl.getProgramParameter(this.program, gl.ACTIVE_UNIFORMS); i++) {
      const { name } = gl.getActiveUniform(this.program, i);
      this.uniforms[name] = gl.getUniformLocation(this.program, name);
    }
    this.buffers = {};
  }

  /** Take the points of a subject. */
  show(subject) {
    this.subject = subject;
    const { arrays } = subject, gl = this.gl;
    this.fill("point", arrays.get(subject.points), 3, gl.UNSIGNED_SHORT, false);
    this.fill("normal", subject.normals && arrays.get(subject.normals), 3, gl.BYTE, true);
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < subject.xyz.length; i++) {
      low[i % 3] = Math.min(low[i % 3], subject.xyz[i]);
      high[i % 3] = Math.max(high[i % 3], subject.xyz[i]);
    }
    this.center = low.map((value, axis) => (value + high[axis]) / 2);
    this.radius = 0;
    for (let i = 0; i < subject.xyz.length; i += 3)
      this.radius = Math.max(this.radius, Math.hypot(...this.center.map((c, axis) => subject.xyz[i + axis] - c)));
    this.radius = this.radius || 1;
  }

  fill(name, values, size, type, normalized) {
    const gl = this.gl;
    if (!this.buffers[name]) this.buffers[name] = { buffer: gl.createBuffer() };
    const entry = Object.assign(this.buffers[name], { size, type, normalized, isThere: Boolean(values) });
    if (!values) return;
    // Four bytes a point where there are three: graphics processors want such strides.
    const padded = size === 3 && values.BYTES_PER_ELEMENT < 4 ? pad(values) : values;
    entry.bytes = (padded.BYTES_PER_ELEMENT * padded.length) / (values.length / size);
    gl.bindBuffer(gl.ARRAY_BUFFER, entry.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, padded, gl.STATIC_DRAW);
  }

  colors(view, marker) {
    const { count, bridges } = this.subject, rgb = new Uint8Array(3 * (count + bridges.length));
    rgb.set(view.rgb);
    bridges.forEach((near, i) => rgb.set(view.rgb.subarray(3 * near, 3 * near + 3), 3 * (count + i)));
    this.fill("color", rgb, 3, this.gl.UNSIGNED_BYTE, true);
    this.marker = marker;
    // Lightness has a meaning where colours stand for values, so that it is changed less.
    this.shading = view.bar ? 0.1 : 0.3;
  }

  /** What the shader and `project` compute with. */
  frame() {
    const { width, height } = this.canvas, aspect = width / height, { camera, radius } = this;
    const focal = 1 / Math.tan(FIELD_OF_VIEW / 2);
    const fit = (1.04 * radius) / Math.sin(FIELD_OF_VIEW / 2) / Math.min(1, aspect);
    const distance = fit / camera.zoom;
    return {
      rotation: camera.rotation(),
      pan: camera.pan.map((value) => value * radius),
      aspect, focal, distance,
      near: Math.max(distance - 2.5 * radius, 0.01 * radius),
      far: distance + 2.5 * radius,
    };
  }

  /** Draw everything, or in a hurry every n-th point. */
  draw(background, pointScale, every = 1) {
    const { gl, canvas, subject, uniforms } = this, frame = this.frame();
    // WebGL strides end at 255 bytes, 31 points; and of a few thousand points none is left out.
    every = Math.min(every, 31, Math.ceil(subject.count / 4000));
    this.size = subject.size * pointScale;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.uniformMatrix3fv(uniforms.rotation, false, frame.rotation);
    gl.uniform3fv(uniforms.center, this.center);
    gl.uniform2fv(uniforms.pan, frame.pan);
    const numbers = {
      unit: subject.step, distance_: frame.distance, focal: frame.focal, aspect: frame.aspect, height: canvas.height,
      size: this.size * Math.sqrt(every), smallest: SMALLEST, largest: LARGEST, near: frame.near, far: frame.far,
      shading: this.shading, marked: 0,
    };
    for (const [name, value] of Object.entries(numbers)) gl.uniform1f(uniforms[name], value);
    this.point(every);
    gl.drawArrays(gl.POINTS, 0, Math.floor(subject.xyz.length / 3 / every));
    if (this.marker === null) return;
    if (every > 1) this.point(1);
    gl.uniform1f(uniforms.marked, 1);
    gl.drawArrays(gl.POINTS, this.marker, 1);
  }

  /** Wait until all is drawn. */
  wait() {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  point(every) {
    const { gl } = this;
    for (const [name, entry] of Object.entries(this.buffers)) {
      const place = gl.getAttribLocation(this.program, name);
      if (place < 0) continue;
      if (!entry.isThere) {
        gl.disableVertexAttribArray(place);
        gl.vertexAttrib3f(place, 0, 0, 0);
        continue;
      }
      gl.bindBuffer(gl.ARRAY_BUFFER, entry.buffer);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, entry.size, entry.type, entry.normalized, entry.bytes * every, 0);
    }
  }

  /** How far the camera's pan goes with one pixel of the canvas. */
  panPerPixel() {
    const { distance, focal } = this.frame();
    return (2 * distance) / focal / this.canvas.height / this.radius;
  }

  /** The place of a point on the canvas, in its pixels, and its depth; null if it is behind the eye. */
  project(i) {
    const f = this.frame(), r = f.rotation, { xyz } = this.subject;
    const [x, y, z] = this.center.map((c, axis) => xyz[3 * i + axis] - c);
    const depth = f.distance - (r[2] * x + r[5] * y + r[8] * z);
    if (depth <= 0) return null;
    const px = (f.focal * (r[0] * x + r[3] * y + r[6] * z + f.pan[0])) / f.aspect / depth;
    const py = (f.focal * (r[1] * x + r[4] * y + r[7] * z + f.pan[1])) / depth;
    return [((1 + px) * this.canvas.width) / 2, ((1 - py) * this.canvas.height) / 2, depth];
  }

  /**
   * The point at a place of the canvas: of those within a few pixels, and of those whose disc covers the place, at the
   * front, the closest; null if none is.
   */
  pick(cx, cy) {
    const f = this.frame(), r = f.rotation, { xyz, count } = this.subject, [mx, my, mz] = this.center;
    const { width, height } = this.canvas, least = Math.max(4, 0.01 * height);
    const gx = ((2 * cx) / width - 1) * f.aspect, gy = 1 - (2 * cy) / height, scale = (height / 2) ** 2;
    const near = [], pixels = (this.size * f.focal * height) / 2;
    let front = Infinity;
    for (let i = 0, j = 0; i < count; i++, j += 3) {
      const x = xyz[j] - mx, y = xyz[j + 1] - my, z = xyz[j + 2] - mz;
      const depth = f.distance - (r[2] * x + r[5] * y + r[8] * z);
      if (depth <= 0) continue;
      const dx = (f.focal * (r[0] * x + r[3] * y + r[6] * z + f.pan[0])) / depth - gx;
      const dy = (f.focal * (r[1] * x + r[4] * y + r[7] * z + f.pan[1])) / depth - gy;
      const squared = (dx * dx + dy * dy) * scale;
      const disc = clamp(pixels / depth, SMALLEST, LARGEST) / 2;
      if (squared > Math.max(least, disc) ** 2) continue;
      near.push([i, depth, squared]);
      front = Math.min(front, depth);
    }
    const visible = near.filter(([, depth]) => depth <= front + 0.05 * this.radius);
    return visible.length ? visible.reduce((a, b) => (b[2] < a[2] ? b : a))[0] : null;
  }
}

/** Draws a picture, and colours over it. */
class PictureScene {
  constructor(canvas, camera) {
    this.canvas = canvas;
    this.camera = camera;
    this.context = canvas.getContext("2d");
  }

  show(subject) {
    this.subject = subject;
  }

  async colors(view, marker) {
    const { width, height } = this.subject;
    this.layer = view.picture ? null : document.createElement("canvas");
    this.marker = marker;
    if (this.layer) {
      Object.assign(this.layer, { width, height });
      const pixels = new ImageData(width, height);
      for (let i = 0; i < width * height; i++) {
        for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = view.rgb[3 * i + c];
        pixels.data[4 * i + 3] = 255;
      }
      this.layer.getContext("2d").putImageData(pixels, 0, 0);
    }
    const source = view.picture || this.subject.picture;
    if (this.source !== source) {
      this.source = source;
      this.image = Object.assign(new Image(), { src: source });
      await this.image.decode();
    }
  }

  /** Left, top and scale of the picture on the canvas. */
  place() {
    const { canvas, subject: { width, height }, camera: { zoom, pan } } = this;
    const scale = Math.min(canvas.width / width, canvas.height / height) * zoom;
    const radius = (Math.max(width, height) / 2) * scale;
    return {
      scale, radius,
      left: (canvas.width - width * scale) / 2 + pan[0] * radius,
      top: (canvas.height - height * scale) / 2 - pan[1] * radius,
    };
  }

  panPerPixel() {
    return 1 / this.place().radius;
  }

  draw(background, strength) {
    const { context, canvas, subject } = this, { left, top, scale } = this.place();
    context.fillStyle = `rgb(${background.map((value) => 255 * value).join(" ")})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = scale < 3;
    const area = [left, top, subject.width * scale, subject.height * scale];
    context.drawImage(this.image, ...area);
    if (!this.layer) return;
    context.globalAlpha = strength;
    context.drawImage(this.layer, ...area);
    context.globalAlpha = 1;
    if (this.marker === null) return;
    const [x, y] = this.project(this.marker);
    for (const [radius, color] of [[8, "white"], [5.5, "rgb(255 0 25)"]]) {
      context.fillStyle = color;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
  }

  project(i) {
    const { left, top, scale } = this.place(), { width } = this.subject;
    return [left + ((i % width) + 0.5) * scale, top + (Math.floor(i / width) + 0.5) * scale, 1];
  }

  pick(cx, cy) {
    const { left, top, scale } = this.place(), { width, height } = this.subject;
    const x = Math.floor((cx - left) / scale), y = Math.floor((cy - top) / scale);
    return x >= 0 && y >= 0 && x < width && y < height ? y * width + x : null;
  }
}

function pad(values) {
  const out = new values.constructor((values.length / 3) * 4);
  for (let i = 0, j = 0; i < values.length; i += 3, j += 4) {
    out[j] = values[i];
    out[j + 1] = values[i + 1];
    out[j + 2] = values[i + 2];
  }
  return out;
}
