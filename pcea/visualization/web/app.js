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

const LOST = "The browser has taken the graphics memory away. The view comes back when it returns it.";

/** Whether a value, such as one from the address, is the number of one of so many things. */
const isIndex = (value, count) => Number.isInteger(value) && value >= 0 && value < count;

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
    this.slider = element("input", { type: "range", min: 0, step: 1 });
    this.slider.addEventListener("input", () => this.choose({ slot: Number(this.slider.value) }));
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
    if (!isIndex(choice.network, networks.length)) choice.network = 0;
    if (!isIndex(choice.file, networks[choice.network].subjects.length)) choice.file = 0;
    const { subject } = this;
    if (!isIndex(choice.layer, subject.layers.length)) choice.layer = subject.layers.length - 1;
    if (!subject.modes.includes(choice.mode)) choice.mode = subject.modes[0];
    const { layer } = this;
    if (layer.heads < 2 || !isIndex(choice.head, layer.heads)) choice.head = -1;
    if (!isIndex(choice.slot, layer.slots)) choice.slot = layer.ranking[choice.head + 1][0] || 0;
    // The points of another file have other numbers.
    const isOld = ("file" in change || "network" in change) && !("query" in change);
    if (isOld || !isIndex(choice.query, subject.count)) choice.query = subject.query;
    this.update();
  }

  update() {
    const { choice, subject, app } = this;
    const fill = (name, texts, values = [...texts.keys()]) => {
      const select = this.selects[name];
      select.replaceChildren(...texts.map((text, i) => new Option(text, values[i], false, values[i] === choice[name])));
      select.parentElement.hidden = texts.length < 2;
    };
    const heads = this.layer.heads > 1 ? [...Array(this.layer.heads).keys()] : [];
    fill("network", app.networks.map(({ name }) => name));
    fill("file", app.networks[choice.network].subjects.map(({ name }) => name));
    fill("mode", subject.modes, subject.modes);
    fill("layer", subject.layers.map(({ name }, i) => `${i}: ${name}`));
    fill("head", ["mean", ...heads], [-1, ...heads]);
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
      this.scenes[kind] = new (kind === "picture" ? PictureScene : CloudScene)(canvas, this.app.camera);
      canvas.addEventListener("webglcontextlost", (event) => {
        event.preventDefault(); // asks for another one
        this.busy.textContent = LOST;
      });
      canvas.addEventListener("webglcontextrestored", () => {
        this.scenes[kind].prepare();
        this.show();
      });
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
    this.busy.textContent = scene.gl && scene.gl.isContextLost() ? LOST : "";
    this.app.changed();
    this.hover();
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
    const { viridis } = this.app.scale;
    const stops = [...Array(9).keys()].map((i) => {
      const first = 3 * Math.round((255 * i) / 8);
      return `rgb(${viridis.slice(first, first + 3).join(" ")})`;
    });
    const strip = element("b");
    strip.style.background = `linear-gradient(to top, ${stops.join(", ")})`;
    const number = (value) => Number(value.toPrecision(3)).toString();
    box.append(element("div", { textContent: bar.text }), element("div", { className: "bar" }, strip,
      element("span", { textContent: number(bar.high) }), element("span", { textContent: number(bar.low) })));
  }

  /** What a picture of it is called. */
  get heading() {
    const { choice, subject, app } = this, ofLayer = choice.mode in subject.results ? "" : `layer ${choice.layer}`;
    const network = app.networks.length > 1 ? app.networks[choice.network].name : "";
    return [subject.title, network, choice.mode, ofLayer].filter(Boolean).join(" · ");
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
    const { subject } = this, place = subject.place(point).join(", ");
    const what = subject.picture ? `pixel ${place}` : `point ${subject.numberOf(point)} at ${place}`;
    const part = this.choice.mode === "parts" ? "" : subject.nameIn("parts", point);
    return [`${subject.name}: ${what}`, part, this.view.text(point)].filter(Boolean).join(" · ");
  }

  listen() {
    const { stage, app } = this, down = new Map();
    let moved = 0, gap = 0;
    stage.addEventListener("pointerdown", (event) => {
      if (event.target.tagName !== "CANVAS") return;
      stage.setPointerCapture(event.pointerId);
      down.set(event.pointerId, event);
      this.pointer = null;
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
        if (gap) app.camera.magnify(apart / gap);
        gap = apart;
        this.move(dx / 2, dy / 2);
      } else if (event.shiftKey || last.buttons & 6) this.move(dx, dy);
      else this.drag(dx, dy);
      app.hurry();
    });
    const up = (event) => {
      if (!down.delete(event.pointerId) || event.type === "pointercancel") return;
      if (moved >= 5 || event.button > 0) return;
      const point = this.pick(event);
      if (point !== null) this.choose({ query: point, mode: "query" });
      this.hover(event); // a finger cannot rest on a point
    };
    stage.addEventListener("pointerup", up);
    stage.addEventListener("pointercancel", up);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      app.camera.magnify(Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0012)));
      app.hurry();
    }, { passive: false });
    stage.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "touch") return; // it leaves after each tap
      clearTimeout(this.hovering);
      this.pointer = null;
      app.say("");
    });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Say what is under the mouse once it rests, and again when something else is shown there. */
  hover(event = this.pointer) {
    clearTimeout(this.hovering);
    this.pointer = event;
    if (!event || !this.view) return;
    this.hovering = setTimeout(() => {
      const point = this.legend.contains(event.target) ? null : this.pick(event);
      this.app.say(point === null ? "" : this.describe(point));
    }, this.subject.count > 200_000 ? 100 : 15);
  }

  /** What dragging by so many pixels does: turn a cloud, move a picture. */
  drag(dx, dy) {
    if (this.subject.picture) this.move(dx, dy);
    else this.app.camera.turn(dx * 0.5, dy * 0.5);
  }

  move(dx, dy) {
    const { canvas } = this.scene, unit = (this.scene.panPerPixel() * canvas.width) / canvas.clientWidth;
    this.app.camera.move(dx * unit, -dy * unit);
  }
}

/** Everything that the page shows. */
class App {
  constructor() {
    const about = JSON.parse(document.getElementById("about").textContent);
    const arrays = new Arrays(document.getElementById("arrays").textContent);
    document.getElementById("arrays").remove();
    this.networks = about.networks.map(({ name, subjects }) => {
      return { name, subjects: subjects.map((each) => new Subject(each, arrays)) };
    });
    this.scale = { palette: about.palette, grey: about.grey, viridis: arrays.get(about.viridis) };
    this.camera = new Camera();
    // Panes that were made stay, as browsers have few WebGL contexts; those in `panes` are shown.
    Object.assign(this, { made: [], panes: [] });
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
    const choice = (text) => {
      const [network, file, mode, ...others] = text.split(",");
      const [layer, head, slot, query] = others.map((word) => (word === "" ? null : Number(word)));
      return { network: Number(network), file: Number(file), mode, layer, head, slot, query };
    };
    const choices = [given.has("a") ? choice(given.get("a")) : { ...this.start }];
    if (given.has("b")) choices.push(choice(given.get("b")));
    if (given.has("camera")) {
      const camera = given.get("camera").split(",").map(Number);
      if (camera.length === 5 && camera.every(Number.isFinite)) this.camera.look(...camera);
    }
    for (const name of ["size", "strength"]) {
      const slider = document.getElementById(name);
      slider.value = given.has(name) ? given.get(name) : this[name];
      this[name] = Number(slider.value); // within the slider's range
    }
    if (given.has("theme")) this.setTheme(given.get("theme") === "dark");
    this.setPanes(choices);
  }

  write() {
    const choice = ({ network, file, mode, layer, head, slot, query }) =>
      [network, file, mode, layer, head, slot, query].join(",");
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
    this.panes = choices.map((choice, i) => (this.made[i] ||= new Pane(this, choice)));
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
    const [from, to] = [first, other].map(({ network, file }) => this.networks[network].subjects[file]);
    // Another network may have been shown other points of the file.
    if (to !== from && other.file === first.file) other.query = to.pointAt(from.place(first.query));
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
    const { file } = this.panes[0].choice, buttons = [...document.getElementById("files").children];
    buttons.forEach((button, i) => button.setAttribute("aria-current", i === file));
    if (buttons[file]) buttons[file].scrollIntoView({ block: "nearest", inline: "nearest" });
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
    strip.append(...subjects.map(({ name }, i) => {
      const onclick = () => this.panes[0].choose({ file: i });
      return element("button", { title: name, onclick }, element("img", { alt: "" }), element("span", {}, name));
    }));
    this.mark();
    setTimeout(() => next(0), 50);
  }

  /** Save what is shown, with its titles and legends, as a picture. */
  save() {
    if (!this.panes.every(({ view }) => view)) return;
    for (const pane of this.panes) pane.draw(1);
    const canvases = this.panes.map(({ scene }) => scene.canvas), gap = 10, line = 44;
    // In the units of the page; a screen of high density has more pixels.
    const density = canvases[0].width / canvases[0].clientWidth, widths = canvases.map(({ width }) => width / density);
    const total = widths.reduce((sum, width) => sum + width + gap, -gap);
    const height = line + Math.max(...canvases.map((canvas) => canvas.height / density));
    const sheet = element("canvas", { width: Math.round(total * density), height: Math.round(height * density) });
    const context = sheet.getContext("2d"), text = this.isDark ? "#e8e8e8" : "#222";
    const back = `rgb(${this.background.map((value) => 255 * value).join(" ")}`;
    context.scale(density, density);
    context.font = "16px system-ui, sans-serif";
    context.fillStyle = `${back})`;
    context.fillRect(0, 0, total, height);
    let left = 0;
    this.panes.forEach((pane, i) => {
      const { viridis } = this.scale, { bar } = pane.view;
      context.drawImage(canvases[i], left, line, widths[i], canvases[i].height / density);
      const entries = bar
        ? [
            [`${bar.text}: ${bar.high.toPrecision(3)}`, viridis.slice(-3)],
            [bar.low.toPrecision(3), viridis.slice(0, 3)],
          ]
        : pane.view.legend;
      if (entries.length) {
        const longest = Math.max(...entries.map(([name]) => context.measureText(name).width));
        context.fillStyle = `${back} / 0.8)`;
        context.fillRect(left, line, longest + 36, 22 * entries.length + 8);
      }
      entries.forEach(([name, color], row) => {
        context.fillStyle = `rgb(${color.join(" ")})`;
        context.fillRect(left + 8, line + 8 + 22 * row, 14, 14);
        context.fillStyle = text;
        context.fillText(name, left + 28, line + 21 + 22 * row);
      });
      context.fillStyle = text;
      let heading = pane.heading;
      while (heading.length > 1 && context.measureText(heading).width > widths[i] - 16) heading = `${heading.slice(0, -2)}…`;
      context.fillText(heading, left + 8, 28);
      left += widths[i] + gap;
    });
    const link = element("a", { download: `${this.panes[0].subject.name}.png`, href: sheet.toDataURL("image/png") });
    link.click();
  }

  press(key, isBack) {
    const [pane] = this.panes, { choice, subject } = pane, step = isBack ? -1 : 1;
    const drag = (dx, dy) => {
      pane.drag(dx, dy);
      this.hurry();
    };
    if (document.getElementById("help").open && key !== "h") return false;
    const around = (value, count) => (value + step + count) % count;
    const actions = {
      m: () => pane.choose({ mode: subject.modes[around(subject.modes.indexOf(choice.mode), subject.modes.length)] }),
      l: () => pane.choose({ layer: around(choice.layer, subject.layers.length) }),
      s: () => {
        if (!subject.modes.includes("slot")) return;
        const slot = choice.mode === "slot" ? around(choice.slot, pane.layer.slots) : choice.slot;
        pane.choose({ mode: "slot", slot });
      },
      f: () => pane.choose({ file: around(choice.file, this.networks[choice.network].subjects.length) }),
      q: () => {
        const { width, height } = pane.scene.canvas, point = pane.scene.pick(width / 2, height / 2);
        if (point !== null) pane.choose({ query: point, mode: "query" });
        this.say(point === null ? "There is no point in the middle of the view: turn it." : pane.describe(point));
      },
      c: () => this.compare(),
      r: () => this.reset(),
      t: () => this.toggleTheme(),
      p: () => this.save(),
      h: () => this.help(),
      "+": () => this.grow(1),
      "=": () => this.grow(1),
      "-": () => this.grow(-1),
      arrowleft: () => drag(-20, 0),
      arrowright: () => drag(20, 0),
      arrowup: () => drag(0, -20),
      arrowdown: () => drag(0, 20),
    };
    if (!actions[key]) return false;
    actions[key]();
    return true;
  }

  reset() {
    this.camera.reset();
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
      const { tagName } = event.target;
      if (event.ctrlKey || event.metaKey || event.altKey || tagName === "SELECT") return;
      if (tagName === "INPUT" && event.key.startsWith("Arrow")) return; // moves the slider
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
