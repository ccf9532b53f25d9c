// The page itself: what is selected, the controls, and the mouse, touch and keys.
"use strict";

const MEANING = {
  colors: "Points of one colour attend to the memory in the same way.",
  slots: "The memory slot that each point attends to most.",
  slot: "How much each point attends to one memory slot.",
  query: "How alike each point and the red one attend; click another.",
  critical: "How many channels of the pooled feature the nearest centre decides.",
  prediction: "What the network says.",
  parts: "The part that each point belongs to.",
};

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

/** One view: its controls, and the canvas that shows it. */
class Pane {
  constructor(app, choice) {
    this.app = app;
    this.choice = choice;
    this.scenes = {};
    this.selects = {};
    this.controls = element("div", { className: "controls" });
    for (const name of ["network", "file", "mode", "layer", "head"]) {
      const select = element("select", { onchange: () => this.choose({ [name]: this.value(name) }) });
      select.setAttribute("aria-label", name);
      this.selects[name] = select;
      this.controls.append(element("label", {}, `${name} `, select));
    }
    this.slider = element("input", { type: "range", min: 0, step: 1, oninput: () => this.choose({ slot: Number(this.slider.value) }) });
    this.slider.setAttribute("aria-label", "slot");
    this.slotName = element("output");
    this.controls.append(element("label", {}, "slot ", this.slider, " ", this.slotName));
    this.what = element("div", { className: "what" });
    this.legend = element("div", { className: "legend" });
    this.busy = element("div", { className: "busy" });
    this.stage = element("div", { className: "stage" }, this.busy, this.legend);
    this.root = element("section", { className: "pane" }, this.controls, this.what, this.stage);
    this.listen();
  }

  value(name) {
    const value = this.selects[name].value;
    return name === "mode" ? value : Number(value);
  }

  get subject() {
    return this.app.networks[this.choice.network].subjects[this.choice.file];
  }

  get layer() {
    return this.subject.layers[this.choice.layer];
  }

  /** Change what is selected; what the new file or layer lacks falls back to what it has. */
  choose(change) {
    const choice = Object.assign(this.choice, change), { networks } = this.app;
    const within = (value, count) => Math.min(Math.max(0, Math.trunc(value) || 0), count - 1);
    choice.network = within(choice.network, networks.length);
    choice.file = within(choice.file, networks[choice.network].subjects.length);
    const { subject } = this;
    if (choice.layer === null || choice.layer >= subject.layers.length) choice.layer = subject.layers.length - 1;
    choice.layer = within(choice.layer, subject.layers.length);
    if (!subject.modes.includes(choice.mode)) choice.mode = subject.modes[0];
    if (this.layer.heads < 2 || !(choice.head >= -1 && choice.head < this.layer.heads)) choice.head = -1;
    const ranking = this.layer.ranking[choice.head + 1];
    if (choice.slot === null || !(choice.slot >= 0 && choice.slot < this.layer.slots)) choice.slot = ranking[0] || 0;
    if ("file" in change || "network" in change || !(choice.query >= 0 && choice.query < subject.count))
      if (!("query" in change) || !(choice.query >= 0 && choice.query < subject.count)) choice.query = subject.query;
    this.update();
  }

  update() {
    const { choice, subject, app } = this;
    const fill = (name, texts, chosen) => {
      const select = this.selects[name];
      select.replaceChildren(...texts.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
      select.parentElement.hidden = texts.length < 2;
    };
    fill("network", app.networks.map(({ name }, i) => [i, name]), choice.network);
    fill("file", app.networks[choice.network].subjects.map(({ name }, i) => [i, name]), choice.file);
    fill("mode", subject.modes.map((mode) => [mode, mode]), choice.mode);
    fill("layer", subject.layers.map(({ name }, i) => [i, `${i}: ${name}`]), choice.layer);
    fill("head", [[-1, "mean"], ...[...Array(this.layer.heads).keys()].map((h) => [h, h])].slice(0, this.layer.heads > 1 ? undefined : 1), choice.head);
    this.slider.max = this.layer.slots - 1;
    this.slider.value = choice.slot;
    this.slotName.textContent = choice.slot;
    this.slider.parentElement.hidden = choice.mode !== "slot";
    const texts = [subject.note, MEANING[choice.mode]].filter(Boolean).map((text) => ` · ${text}`);
    this.what.replaceChildren(element("span", { className: "name", textContent: subject.title }), ...texts);
    this.show();
  }

  /** Compute the colours. Large clouds take a moment, before which the page says so. */
  show() {
    const kind = this.subject.picture ? "picture" : "cloud";
    if (!this.scenes[kind]) {
      const canvas = element("canvas", { tabIndex: 0 });
      canvas.setAttribute("role", "img");
      this.stage.prepend(canvas);
      this.scenes[kind] = kind === "picture" ? new PictureScene(canvas) : new CloudScene(canvas, this.app.camera);
    }
    this.scene = this.scenes[kind];
    for (const scene of Object.values(this.scenes)) scene.canvas.hidden = scene !== this.scene;
    this.scene.canvas.setAttribute("aria-label", `${this.subject.title}, ${this.choice.mode}`);
    if (this.subject.count < 200_000) return this.compute();
    this.busy.textContent = "computing …";
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.compute(), 20);
  }

  async compute() {
    const { subject, choice, scene } = this;
    if (scene.subject !== subject) {
      scene.show(subject);
      this.app.hurried = Math.max(1, subject.count / 150_000);
    }
    this.view = subject.view(choice, this.app.scale);
    this.drawLegend();
    await scene.colors(this.view, choice.mode === "query" ? choice.query : null);
    this.busy.textContent = "";
    this.app.changed();
  }

  drawLegend() {
    const { legend, bar } = this.view, box = this.legend;
    box.replaceChildren();
    for (const [name, color] of legend) {
      const mark = element("i");
      mark.style.background = `rgb(${color.join(" ")})`;
      box.append(element("div", {}, mark, name));
    }
    if (!bar) return;
    const stops = [...Array(9).keys()].map((i) => `rgb(${[...this.app.scale.viridis.slice(3 * Math.round((255 * i) / 8)).slice(0, 3)].join(" ")})`);
    const strip = element("b");
    strip.style.background = `linear-gradient(to top, ${stops.join(", ")})`;
    const number = (value) => Number(value.toPrecision(3)).toString();
    box.append(element("div", { textContent: bar.text }), element("div", { className: "bar" }, strip,
      element("span", { textContent: number(bar.high) }), element("span", { textContent: number(bar.low) })));
  }

  /** Fit the canvas to the page, and draw. */
  draw(every) {
    if (!this.view || !this.scene.subject) return;
    const { canvas } = this.scene, density = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.max(1, Math.round(this.stage.clientWidth * density));
    const height = Math.max(1, Math.round(this.stage.clientHeight * density));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const { background, size, strength } = this.app;
    if (this.subject.picture) this.scene.draw(background, strength);
    else this.scene.draw(background, 2 ** (size / 2), every);
  }

  /** The point under the mouse. */
  pick(event) {
    const { canvas } = this.scene, area = canvas.getBoundingClientRect();
    return this.scene.pick(((event.clientX - area.left) * canvas.width) / area.width,
      ((event.clientY - area.top) * canvas.height) / area.height);
  }

  describe(point) {
    const { subject } = this, place = subject.place(point).map((value) => Number(value.toPrecision(6)));
    const what = subject.picture ? `pixel ${place.join(", ")}` : `point ${subject.numberOf(point)} at ${place.join(", ")}`;
    const text = this.view.text(point);
    return `${subject.name}: ${what}${text ? ` · ${text}` : ""}`;
  }

  listen() {
    const { stage, app } = this, down = new Map();
    let moved = 0, gap = 0;
    stage.addEventListener("pointerdown", (event) => {
      if (event.target.tagName !== "CANVAS") return;
      stage.setPointerCapture(event.pointerId);
      down.set(event.pointerId, event);
      moved = down.size > 1 ? Infinity : 0;
      gap = 0;
    });
    stage.addEventListener("pointermove", (event) => {
      const last = down.get(event.pointerId);
      if (!last) return this.hover(event);
      const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
      down.set(event.pointerId, event);
      moved += Math.hypot(dx, dy);
      if (moved < 5) return;
      if (down.size === 2) {
        const [a, b] = [...down.values()], apart = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
        if (gap) this.zoom(apart / gap);
        gap = apart;
        this.move(dx / 2, dy / 2);
      } else if (event.shiftKey || last.buttons & 6 || this.subject.picture) this.move(dx, dy);
      else app.camera.turn(dx * 0.5, dy * 0.5);
      app.hurry();
    });
    const up = (event) => {
      if (!down.delete(event.pointerId) || event.type === "pointercancel") return;
      if (moved >= 5 || event.button > 0) return;
      const point = this.pick(event);
      if (point !== null) this.choose({ query: point, mode: "query" });
    };
    stage.addEventListener("pointerup", up);
    stage.addEventListener("pointercancel", up);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0012)));
      app.hurry();
    }, { passive: false });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  hover(event) {
    clearTimeout(this.hovering);
    if (event.pointerType === "touch" || event.target.tagName !== "CANVAS" || !this.view) return;
    this.hovering = setTimeout(() => {
      const point = this.pick(event);
      this.app.say(point === null ? "" : this.describe(point));
    }, this.subject.count > 200_000 ? 100 : 15);
  }

  zoom(factor) {
    if (this.subject.picture) this.scene.zoom = Math.min(40, Math.max(0.5, this.scene.zoom * factor));
    else this.app.camera.magnify(factor);
  }

  move(dx, dy) {
    const { scene } = this, density = scene.canvas.width / scene.canvas.clientWidth;
    if (this.subject.picture) {
      scene.shift[0] += dx * density;
      scene.shift[1] += dy * density;
      return;
    }
    const frame = scene.frame(), unit = (2 * frame.distance) / frame.focal / scene.canvas.clientHeight / scene.radius;
    this.app.camera.pan[0] += dx * unit;
    this.app.camera.pan[1] -= dy * unit;
  }
}

/** Everything that the page shows. */
class App {
  constructor() {
    const about = JSON.parse(document.getElementById("about").textContent);
    const arrays = new Arrays(document.getElementById("arrays").textContent);
    document.getElementById("arrays").remove();
    this.networks = about.networks.map(({ name, subjects }) => ({ name, subjects: subjects.map((each) => new Subject(each, arrays)) }));
    this.scale = { palette: about.palette, grey: about.grey, viridis: arrays.get(about.viridis) };
    this.camera = new Camera();
    this.panes = [];
    this.start = about.start;
    // While it moves, one of so many points is drawn.
    Object.assign(this, { size: 0, strength: 0.6, hurried: 1 });
    this.setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
    this.read();
    const isPicture = Boolean(this.networks[0].subjects[0].picture);
    document.getElementById("sizes").hidden = isPicture;
    document.getElementById("strengths").hidden = !isPicture;
    this.listen();
    this.thumbnails();
  }

  get background() {
    return this.isDark ? [0.09, 0.098, 0.11] : [1, 1, 1];
  }

  setTheme(isDark) {
    this.isDark = isDark;
    document.documentElement.classList.toggle("dark", isDark);
    document.getElementById("theme").textContent = isDark ? "light" : "dark";
  }

  say(text) {
    document.getElementById("status").textContent = text || this.note;
  }

  /** Show what the address says, and otherwise what the page was written with. */
  read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const numbers = (text) => text.split(",").map(Number);
    const choice = (text) => {
      const parts = text.split(","), number = (i) => (parts[i] === undefined || parts[i] === "" ? null : Number(parts[i]));
      return { network: number(0), file: number(1), mode: parts[2], layer: number(3), head: number(4), slot: number(5), query: number(6) };
    };
    const choices = [given.has("a") ? choice(given.get("a")) : { ...this.start }];
    if (given.has("b")) choices.push(choice(given.get("b")));
    if (given.has("camera")) {
      const [azimuth, elevation, zoom, x, y] = numbers(given.get("camera"));
      if ([azimuth, elevation, zoom, x, y].every(Number.isFinite)) Object.assign(this.camera, { azimuth, elevation, zoom, pan: [x, y] });
    }
    for (const name of ["size", "strength"]) {
      const value = given.has(name) ? Number(given.get(name)) : this[name];
      if (Number.isFinite(value)) this[name] = value;
      document.getElementById(name).value = this[name];
    }
    if (given.has("theme")) this.setTheme(given.get("theme") === "dark");
    this.setPanes(choices);
  }

  write() {
    const choice = ({ network, file, mode, layer, head, slot, query }) => [network, file, mode, layer, head, slot, query].join(",");
    const { azimuth, elevation, zoom, pan } = this.camera, short = (value) => Number(value.toFixed(4));
    const said = { a: choice(this.panes[0].choice) };
    if (this.panes[1]) said.b = choice(this.panes[1].choice);
    said.camera = [azimuth, elevation, zoom, ...pan].map(short).join(",");
    Object.assign(said, { size: this.size, strength: this.strength, theme: this.isDark ? "dark" : "light" });
    this.written = `#${Object.entries(said).map(([name, value]) => `${name}=${value}`).join("&")}`;
    try {
      history.replaceState(null, "", this.written);
    } catch {
      // A page within a page, as in a notebook, has no address of its own.
    }
  }

  setPanes(choices) {
    const root = document.getElementById("panes");
    this.panes.slice(choices.length).forEach((pane) => pane.root.remove());
    this.panes = choices.map((choice, i) => this.panes[i] || new Pane(this, choice));
    this.panes.forEach((pane, i) => {
      if (!pane.root.isConnected) root.append(pane.root);
      pane.choose({ ...choices[i] });
    });
    document.getElementById("compare").setAttribute("aria-pressed", choices.length > 1);
  }

  compare() {
    const [first, second] = this.panes.map((pane) => ({ ...pane.choice }));
    if (second) return this.setPanes([first]);
    // What there are several of: networks, else layers, else files.
    const other = { ...first };
    if (this.networks.length > 1) other.network = (first.network + 1) % this.networks.length;
    else if (this.panes[0].subject.layers.length > 1) other.layer = first.layer ? first.layer - 1 : 1;
    else other.file = (first.file + 1) % this.networks[0].subjects.length;
    return this.setPanes([first, other]);
  }

  /** Draw soon, and keep the address up to date. */
  changed() {
    this.request();
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.write(), 150);
    this.mark();
  }

  /** Draw soon; where that is slow, a part of the points until the movement ends. */
  hurry() {
    this.isMoving = true;
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      this.isMoving = false;
      this.changed();
    }, 250);
    this.request();
  }

  request() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const start = performance.now();
    for (const pane of this.panes) pane.draw(this.isMoving ? Math.ceil(this.hurried) : 1);
    if (!this.isMoving) return;
    for (const { scene } of this.panes) if (scene.wait) scene.wait();
    // About 30 pictures a second while it moves.
    const took = performance.now() - start;
    this.hurried = Math.min(64, Math.max(1, this.hurried * (took > 35 ? 1.4 : took < 20 ? 0.9 : 1)));
  }

  mark() {
    const { file } = this.panes[0].choice;
    [...document.getElementById("files").children].forEach((button, i) => button.setAttribute("aria-current", i === file));
  }

  /** A small picture of every file. */
  thumbnails() {
    const [{ subjects }] = this.networks;
    if (subjects.length < 2) return;
    const strip = document.getElementById("files");
    const canvas = element("canvas", { width: 168, height: 126 });
    let scene = null;
    const next = (i) => {
      if (i === subjects.length) return scene && scene.gl && scene.gl.getExtension("WEBGL_lose_context")?.loseContext();
      const subject = subjects[i], picture = strip.children[i].firstChild;
      if (subject.picture) picture.src = subject.picture;
      else if (subject.count < 200_000) {
        scene = scene || new CloudScene(canvas, new Camera());
        scene.show(subject);
        const choice = { mode: subject.modes[0], layer: subject.layers.length - 1, head: -1, query: subject.query };
        scene.colors(subject.view(choice, this.scale), null);
        scene.draw([1, 1, 1], 1);
        picture.src = canvas.toDataURL();
      }
      return setTimeout(() => next(i + 1), 0);
    };
    strip.append(...subjects.map(({ name }, i) => element("button", { title: name, onclick: () => this.panes[0].choose({ file: i }) },
      element("img", { alt: "" }), element("span", { textContent: name }))));
    this.mark();
    setTimeout(() => next(0), 50);
  }

  /** Save what is shown, with its titles and legends, as a picture. */
  save() {
    this.draw();
    const canvases = this.panes.map(({ scene }) => scene.canvas), gap = 10, line = 44;
    const width = canvases.reduce((sum, each) => sum + each.width + gap, -gap);
    const sheet = element("canvas", { width, height: line + Math.max(...canvases.map((each) => each.height)) });
    const context = sheet.getContext("2d"), text = this.isDark ? "#e8e8e8" : "#222";
    context.fillStyle = `rgb(${this.background.map((value) => 255 * value).join(" ")})`;
    context.fillRect(0, 0, sheet.width, sheet.height);
    let left = 0;
    for (const { scene, subject, choice, view } of this.panes) {
      const { canvas } = scene;
      context.drawImage(canvas, left, line);
      context.font = "16px system-ui, sans-serif";
      context.fillStyle = text;
      context.fillText(`${subject.title} · ${choice.mode}, layer ${choice.layer}`, left + 8, 28, canvas.width - 16);
      const entries = view.bar ? [[`${view.bar.text}: ${view.bar.high.toPrecision(3)}`, [...this.scale.viridis.slice(765)]],
        [view.bar.low.toPrecision(3), [...this.scale.viridis.slice(0, 3)]]] : view.legend;
      entries.forEach(([name, color], i) => {
        context.fillStyle = `rgb(${color.join(" ")})`;
        context.fillRect(left + 8, line + 8 + 22 * i, 14, 14);
        context.fillStyle = text;
        context.fillText(name, left + 28, line + 21 + 22 * i);
      });
      left += canvas.width + gap;
    }
    const link = element("a", { download: `${this.panes[0].subject.name}.png`, href: sheet.toDataURL("image/png") });
    link.click();
    return link.href;
  }

  press(key, isBack) {
    const pane = this.panes[0], { choice, subject } = pane, step = isBack ? -1 : 1;
    const around = (value, count) => (value + step + count) % count;
    const actions = {
      m: () => pane.choose({ mode: subject.modes[around(subject.modes.indexOf(choice.mode), subject.modes.length)] }),
      l: () => pane.choose({ layer: around(choice.layer, subject.layers.length) }),
      s: () => subject.modes.includes("slot") &&
        pane.choose({ mode: "slot", slot: choice.mode === "slot" ? around(choice.slot, pane.layer.slots) : choice.slot }),
      f: () => pane.choose({ file: around(choice.file, this.networks[choice.network].subjects.length) }),
      c: () => this.compare(),
      r: () => this.reset(),
      t: () => this.toggleTheme(),
      p: () => this.save(),
      h: () => this.help(),
      "+": () => this.grow(1),
      "=": () => this.grow(1),
      "-": () => this.grow(-1),
    };
    if (!actions[key]) return false;
    actions[key]();
    return true;
  }

  reset() {
    this.camera.reset();
    for (const { scene } of this.panes) if (scene.shift) Object.assign(scene, { zoom: 1, shift: [0, 0] });
    this.changed();
  }

  toggleTheme() {
    this.setTheme(!this.isDark);
    this.changed();
  }

  grow(step) {
    if (this.panes[0].subject.picture) this.set("strength", this.strength + 0.1 * step);
    else this.set("size", this.size + 0.5 * step);
  }

  set(name, value) {
    const slider = document.getElementById(name);
    slider.value = value;
    this[name] = Number(slider.value);
    this.changed();
  }

  help() {
    const dialog = document.getElementById("help");
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  listen() {
    const button = (id, action) => document.getElementById(id).addEventListener("click", action);
    button("compare", () => this.compare());
    button("reset", () => this.reset());
    button("save", () => this.save());
    button("theme", () => this.toggleTheme());
    button("ask", () => this.help());
    this.note = document.getElementById("status").textContent;
    for (const name of ["size", "strength"])
      document.getElementById(name).addEventListener("input", (event) => this.set(name, Number(event.target.value)));
    window.addEventListener("resize", () => this.request());
    new ResizeObserver(() => this.request()).observe(document.getElementById("panes"));
    window.addEventListener("hashchange", () => location.hash !== this.written && this.read());
    window.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT)$/.test(event.target.tagName)) return;
      if (this.press(event.key.toLowerCase(), event.shiftKey && event.key !== "+")) event.preventDefault();
    });
  }
}

try {
  window.pcea = new App();
} catch (error) {
  document.getElementById("panes").replaceChildren(element("p", { className: "failure", textContent: error.message }));
  throw error;
}
