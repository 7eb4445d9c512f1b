// The page of the demo: it shows what can be set, sends orders, and draws what comes back.
"use strict";

const $ = (id) => document.getElementById(id);
const PLAYBACK = 2600; // milliseconds from noise to picture
const THUMBS = 16;
const LONGEST = 512; // pixels of a side of a picture that was too large a file
const NARROW = 820; // pixels; below, the stage is under the settings

// Small tools.

/** An element with properties, attributes (of `data`, `aria`, ...) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function bytes(base64) {
  const text = atob(base64);
  const array = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) array[i] = text.charCodeAt(i);
  return array;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const numeric = (text) => (text === "" ? null : Number(text)); // an emptied field is told of, not 0
const rounded = (value, digits) => Number(value).toFixed(digits);

/** Images [..., H, W, C] as canvases' pixels: `at(i)` is the i-th, in order. */
class Pictures {
  constructor({ shape, data }) {
    [this.height, this.width, this.channels] = shape.slice(-3);
    this.count = shape.slice(0, -3).reduce((a, b) => a * b, 1);
    this.levels = bytes(data);
  }

  at(i) {
    const size = this.height * this.width;
    const image = new ImageData(this.width, this.height);
    const first = i * size * this.channels;
    for (let p = 0; p < size; p++) {
      for (let c = 0; c < 3; c++) {
        const from = first + p * this.channels + (this.channels === 3 ? c : 0);
        image.data[4 * p + c] = this.levels[from];
      }
      image.data[4 * p + 3] = 255;
    }
    return image;
  }

  canvas(i) {
    const canvas = make("canvas", { width: this.width, height: this.height });
    canvas.getContext("2d").putImageData(this.at(i), 0, 0);
    return canvas;
  }
}

/** Points of [-half, half]^2, from 16 bits each. */
function points({ half, data }) {
  const whole = new Int16Array(bytes(data).buffer);
  return { half, xy: Float32Array.from(whole, (v) => (v / 32767) * half) };
}

// The state of the page.

const page = {
  weights: [], current: null, task: "sample", values: {}, // by weights and task
  examples: {}, samples: {}, // pictures by weights
  picked: {},
  stages: {}, stage: null, // what was drawn, by weights and task, and the one that is seen
};

const spec = (task = page.task) => page.current.tasks[task];
const key = (side) => `${page.current.name}/${page.task}/${side}`;

function values(side = "a") {
  const name = key(side);
  if (!page.values[name]) {
    page.values[name] = Object.fromEntries(spec().fields.map((f) => [f.name, f.default]));
    if (side === "b" && page.task === "sample") other(page.values[name]);
  }
  return page.values[name];
}

/** The second sampler begins as another one than the first. */
function other(settings) {
  const method = spec().fields.find((field) => field.name === "sampling.method");
  const wanted = ["ddim", "dpmpp_2m", "pc"].find((name) => method.names.includes(name) && name !== method.default);
  if (wanted) settings["sampling.method"] = wanted;
}

/** The fields that act, in order, given the values of those before them. */
function acting(fields, settings) {
  const active = {};
  return fields.filter((field) => {
    const acts = Object.entries(field.when).every(([name, choices]) => choices.includes(active[name]));
    if (acts) active[field.name] = settings[field.name];
    return acts;
  });
}

// Settings.

function showFields() {
  const sides = { a: $("fields"), b: $("fields-b") };
  const canCompare = page.task === "sample";
  const compares = canCompare && $("compare").checked;
  $("compare-row").hidden = !canCompare;
  sides.b.hidden = !compares;
  for (const [side, place] of Object.entries(sides)) {
    place.replaceChildren();
    if (side === "b" && !compares) continue;
    if (compares) place.append(make("p", { class: "side", text: side === "a" ? "first" : "second" }));
    let fields = acting(spec().fields, values(side));
    if (side === "b") fields = fields.filter((field) => !SHARED.includes(field.name));
    place.append(...fields.map((field) => fieldElement(field, side)));
    if (side === "a" && page.task === "class") place.append(classElement());
  }
}

const SHARED = ["sampling.seed", "sampling.num_samples", "sampling.batch_size", "sampling.guide_scale"];

function fieldElement(field, side) {
  const settings = values(side);
  const id = `${side}:${field.name}`;
  const change = (value) => { settings[field.name] = value; };
  const label = make("span", { text: field.label });
  if (field.names.length) {
    const select = make("select", { id, "data-field": field.name, title: field.words });
    for (const name of field.names) {
      select.append(make("option", { value: name, text: name, selected: name === settings[field.name] }));
    }
    select.addEventListener("change", () => { change(select.value); showFields(); refocus(id); });
    const element = make("label", { class: "field" }, make("span", { class: "name" }, label), select);
    const words = field.name === "sampling.method" && page.samplers[settings[field.name]];
    if (words) element.title = words;
    return element;
  }
  const number = make("input", {
    type: "number", id, "data-field": field.name, title: field.words,
    min: String(field.low), max: String(field.high), step: field.whole ? "1" : "any",
  });
  number.value = settings[field.name];
  const isSeed = field.label === "seed";
  const name = make("span", { class: "name" }, label);
  const element = make("label", { class: "field" }, name);
  if (isSeed) {
    const dice = make("button", { type: "button", class: "dice", "aria-label": "Another seed", text: "⚄" });
    dice.addEventListener("click", () => { number.value = Math.floor(Math.random() * 1e4); change(Number(number.value)); });
    name.append(make("span", { class: "with-dice" }, dice, number));
    number.addEventListener("input", () => change(numeric(number.value)));
    return element;
  }
  name.append(number);
  const log = field.low > 0 && field.high / field.low >= 100;
  const to = (v) => (log ? Math.log(v / field.low) / Math.log(field.high / field.low) : (v - field.low) / (field.high - field.low));
  const from = (s) => {
    const value = log ? field.low * (field.high / field.low) ** s : field.low + s * (field.high - field.low);
    return field.whole ? Math.round(value) : Number(value.toPrecision(2));
  };
  const range = make("input", { type: "range", min: "0", max: "1", step: "any", "aria-label": field.label, tabIndex: -1 });
  range.value = to(Math.max(settings[field.name], field.low || 1e-9));
  range.addEventListener("input", () => { number.value = from(Number(range.value)); change(Number(number.value)); element.dispatchEvent(new Event("moved")); });
  number.addEventListener("input", () => { range.value = to(Number(number.value)); change(numeric(number.value)); element.dispatchEvent(new Event("moved")); });
  if (field.name === "noise") {
    let wait = 0;
    element.addEventListener("moved", () => { clearTimeout(wait); wait = setTimeout(() => $("form").requestSubmit(), 250); });
  }
  element.append(range);
  return element;
}

function refocus(id) {
  const element = document.getElementById(id);
  if (element) element.focus();
}

function classElement() {
  const chosen = (page.values[`${key("a")}/classes`] ??= []);
  const select = make("select", { id: "classes", "aria-label": "class" }, make("option", { value: "", text: "all classes" }));
  page.current.classes.forEach((name, y) => {
    const text = name === String(y) ? name : `${y}: ${name}`;
    select.append(make("option", { value: String(y), text, selected: chosen[0] === y }));
  });
  select.addEventListener("change", () => {
    page.values[`${key("a")}/classes`] = select.value === "" ? [] : [Number(select.value)];
  });
  return make("label", { class: "field" }, make("span", { class: "name" }, make("span", { text: "class" })), select);
}

// Orders and their course.

const SILENT = "the demo does not answer; is it still running?";

/** What the server answers, and its words; where it does not answer, a line that says so. */
async function ask(path, body = null) {
  try {
    const answer = await fetch(path, body && {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    return { ok: answer.ok, words: await answer.json() };
  } catch {
    return { ok: false, words: { line: SILENT } };
  }
}

async function order(task, settings, more, panel) {
  const fields = acting(page.current.tasks[task].fields, settings);
  const chosen = Object.fromEntries(fields.map((field) => [field.name, settings[field.name]]));
  panel.say("asking", true);
  const { ok, words } = await ask("jobs", { task, weights: page.current.name, settings: chosen, ...more });
  if (!ok) {
    panel.fail(words.line);
    return null;
  }
  return new Promise((resolve) => follow(words.job, panel, resolve));
}

function follow(number, panel, resolve) {
  const events = new EventSource(`jobs/${number}/events`);
  let lost = 0; // connections, one after the other: the first one is asked for again
  let cancelling = false;
  let over = false;
  const end = (result) => { over = true; resolve(result); };
  const cancel = async () => {
    cancelling = true;
    panel.say("cancelling: it stops after this part", true);
    try {
      await fetch(`jobs/${number}`, { method: "DELETE" });
    } catch { /* the stream says so */ }
  };
  const going = (text) => { if (!cancelling) panel.say(text, true, cancel); };
  events.onopen = () => { lost = 0; };
  events.addEventListener("waiting", (event) => going(`waiting, ${JSON.parse(event.data).position} before it`));
  events.addEventListener("running", (event) => {
    const { seconds, compiling } = JSON.parse(event.data);
    going(`${compiling ? "compiling, once for these settings" : "drawing"}, ${seconds} s`);
  });
  events.addEventListener("part", (event) => { if (panel.part) panel.part(JSON.parse(event.data)); });
  events.addEventListener("done", (event) => { panel.say(""); end(JSON.parse(event.data)); });
  events.addEventListener("failed", (event) => { panel.fail(JSON.parse(event.data).line); end(null); });
  events.addEventListener("cancelled", () => { panel.say("cancelled"); end(null); });
  events.addEventListener("ended", () => { panel.fail("the demo has ended"); end(null); });
  events.onerror = () => { // the server ends the stream after the last event
    lost += 1;
    const gone = !over && (lost > 1 || events.readyState === EventSource.CLOSED);
    if (over || gone) events.close();
    if (gone) { panel.fail(SILENT); end(null); }
  };
}

/** What runs for panels that are not seen, one line each, with its button. */
function showElsewhere() {
  const lines = Object.values(page.stages).flatMap((stage) => stage.panels
    .filter((panel) => panel.busy && !panel.element.isConnected)
    .map((panel) => stateLine(make("p", { class: "state" }), `${stage.title}: ${panel.text}`, true, panel.cancel)));
  $("elsewhere").replaceChildren(...lines);
  $("elsewhere").hidden = !lines.length;
}

/** A line of what goes on, with a button that cancels it where it can be. */
function stateLine(place, text, busy, cancel) {
  place.replaceChildren(...(busy ? [make("span", { class: "spin" })] : []), make("span", { text }));
  if (cancel) {
    const button = make("button", { type: "button", class: "quiet", text: "cancel" });
    button.addEventListener("click", cancel);
    place.append(button);
  }
  return place;
}

/** A card of the stage: a title, numbers, a state, what was drawn, and the command. */
class Panel {
  constructor(title) {
    this.numbers = make("span", { class: "numbers" });
    this.state = make("p", { class: "state", role: "status" });
    this.body = make("div", { class: "body" });
    this.foot = make("div");
    this.title = make("h2", { text: title });
    this.element = make("article", { class: "card panel" },
      make("div", { class: "panel-head" }, this.title, this.numbers), this.body, this.state, this.foot);
    this.state.hidden = true;
  }

  say(text, busy = false, cancel = null) {
    Object.assign(this, { text, busy, cancel });
    this.state.className = "state";
    this.state.hidden = !text;
    stateLine(this.state, text, busy, cancel);
    showElsewhere();
  }

  fail(line) {
    this.say(line);
    this.state.classList.add("bad");
  }

  count(pairs) {
    this.numbers.replaceChildren();
    pairs.forEach(([value, unit], i) => {
      this.numbers.append(i ? " · " : "", make("b", { text: String(value) }), ` ${unit}`);
    });
  }

  /** Takes away what was said of an earlier result. */
  forget() {
    this.numbers.replaceChildren();
    this.foot.replaceChildren();
  }

  /** The command, with a button that copies it, and what it leaves out. */
  command(result) {
    this.foot.replaceChildren();
    if (result.command) {
      const button = make("button", { type: "button", class: "quiet copy", text: "copy" });
      const words = result.command.split(" ").flatMap((word) => [make("span", { text: word }), " "]);
      const code = make("code", {}, ...words.slice(0, -1));
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(result.command);
        } catch {
          getSelection().selectAllChildren(code);
          document.execCommand("copy");
        }
        button.textContent = "copied";
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      });
      this.foot.append(make("div", { class: "command" }, make("pre", {}, code), button));
    }
    if (result.remark) {
      const remark = make("p", { class: "remark", text: result.remark });
      if (result.mask && result.command) {
        remark.append(" ", make("a", { href: `jobs/${result.job}/mask.png`, download: "mask.png", text: "Save mask.png" }));
      }
      this.foot.append(remark);
    }
  }
}

function numbersOf(result) {
  const seconds = (value) => (value < 10 ? rounded(value, 1) : rounded(value, 0));
  const pairs = [[rounded(result.nfe, 0), "NFE"], [seconds(result.seconds), "s"]];
  if (result.compiled > 0.05) pairs.push([seconds(result.compiled), "s compiling"]);
  if ("psnr" in result) pairs.unshift([rounded(result.psnr, 1), "dB to the original"]);
  return pairs;
}

function empty(words) {
  return make("div", { class: "empty" }, make("p", { text: words }));
}

// From noise to pictures.

/** The states of all samples, part by part as they are drawn, on a canvas. */
class Film {
  constructor({ count, frames, scatters }) {
    this.canvas = make("canvas", { class: "picture", role: "img", "aria-label": "samples" });
    this.parts = [];
    this.count = count;
    this.last = (frames ? frames.shape[0] : scatters.length) - 1;
    if (frames) {
      [this.height, this.width] = frames.shape.slice(2);
      this.columns = Math.ceil(Math.sqrt(count));
      const rows = Math.ceil(count / this.columns);
      this.scale = Math.max(1, Math.floor(720 / (this.columns * this.width)));
      this.gap = 2 * Math.ceil(this.scale / 4);
      this.canvas.width = this.columns * (this.width * this.scale + this.gap) - this.gap;
      this.canvas.height = rows * (this.height * this.scale + this.gap) - this.gap;
      this.tile = make("canvas", { width: this.width, height: this.height });
    } else {
      this.canvas.width = this.canvas.height = 720;
    }
  }

  add({ first, frames, scatters }) {
    const part = { first, began: performance.now() };
    if (frames) Object.assign(part, { pictures: new Pictures(frames), size: frames.shape[1] });
    else part.states = scatters.map(points);
    this.parts.push(part);
  }

  restart() {
    for (const part of this.parts) part.began = performance.now();
  }

  /** Draws state k of all parts, or where k is null each as its own time says; the least state. */
  draw(k, now = 0) {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    let least = this.last;
    for (const part of this.parts) {
      const moved = Math.floor(((now - part.began) / PLAYBACK) * this.last);
      const state = k === null ? Math.max(0, Math.min(this.last, moved)) : k;
      least = Math.min(least, state);
      if (part.states) dots(context, part.states[state], colour("--accent"), 720);
      else this.tiles(context, part, state);
    }
    return least;
  }

  tiles(context, part, state) {
    context.imageSmoothingEnabled = false;
    const brush = this.tile.getContext("2d");
    for (let i = 0; i < part.size; i++) {
      brush.putImageData(part.pictures.at(state * part.size + i), 0, 0);
      const place = part.first + i;
      const x = (place % this.columns) * (this.width * this.scale + this.gap);
      const y = Math.floor(place / this.columns) * (this.height * this.scale + this.gap);
      context.drawImage(this.tile, x, y, this.width * this.scale, this.height * this.scale);
    }
  }

  /** The images at their end, as `Pictures`. */
  final() {
    const channels = this.parts[0].pictures.channels;
    const pictures = new Pictures({ shape: [this.count, this.height, this.width, channels], data: "" });
    const size = this.height * this.width * channels;
    pictures.levels = new Uint8Array(this.count * size);
    for (const part of this.parts) pictures.levels.set(part.pictures.levels.slice(-part.size * size), part.first * size);
    return pictures;
  }
}

function dots(context, { half, xy }, fill, size, radius = 0) {
  const r = radius || Math.max(2.2, Math.min(4, 130 / Math.sqrt(xy.length)));
  context.fillStyle = fill;
  context.globalAlpha = 0.55;
  for (let i = 0; i < xy.length; i += 2) {
    context.beginPath();
    context.arc((xy[i] / half / 2 + 0.5) * size, (0.5 - xy[i + 1] / half / 2) * size, r, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
}

/** Shows a film whose parts are still to come; `film.whole` says that all are there. */
function showFilm(panel, part) {
  const film = new Film(part);
  const play = make("button", { type: "button", class: "quiet play", text: "▶", "aria-label": "Play again" });
  const slider = make("input", { type: "range", min: "0", max: String(film.last), step: "1", "aria-label": "State on the way from noise" });
  const where = make("output");
  let timer = 0;
  let held = false; // at a state of the user's
  const tell = (k) => {
    slider.value = k;
    where.textContent = k === 0 ? "noise" : k === film.last ? "samples" : `state ${k} of ${film.last}`;
    panel.element.dataset.state = k === film.last && film.whole ? "final" : "moving";
  };
  const step = (now) => {
    if (!film.canvas.isConnected) return; // until its tab is seen again
    const k = film.draw(null, now);
    tell(k);
    timer = k < film.last || !film.whole ? requestAnimationFrame(step) : 0;
  };
  play.addEventListener("click", () => {
    held = false;
    film.restart();
    go();
  });
  const hold = () => {
    cancelAnimationFrame(timer);
    film.draw(Number(slider.value));
    tell(Number(slider.value));
  };
  const go = () => {
    cancelAnimationFrame(timer);
    timer = requestAnimationFrame(step);
  };
  slider.addEventListener("input", () => { held = true; hold(); });
  panel.redraw = () => (held ? hold() : go());
  panel.body.replaceChildren(make("div", { class: "frame" }, film.canvas), make("div", { class: "time" }, play, slider, where));
  go();
  return film;
}

// Images to begin with.

async function testImages(name) {
  if (!(name in page.examples)) {
    const { ok, words } = await ask(`examples?weights=${encodeURIComponent(name)}`);
    if (words.line === SILENT) return { pictures: null, line: SILENT };
    page.examples[name] = ok ? { pictures: new Pictures(words), line: "" } : { pictures: null, line: words.line };
  }
  return page.examples[name];
}

/** Images to choose from: those of the test split, samples, and one's own; `most` may be chosen. */
class Picker {
  constructor(most, changed) {
    this.most = most;
    this.changed = changed;
    this.weights = page.current.name;
    this.entries = (page.picked[`${this.weights}/${most}`] ??= []);
    this.element = make("div", { class: "picker" });
  }

  async show() {
    const test = await testImages(this.weights);
    this.groups = [];
    if (test.pictures) this.groups.push(["test images", test.pictures, (index) => ({ from: "test", index })]);
    const drawn = page.samples[this.weights];
    if (drawn) this.groups.push(["samples that were drawn", drawn.pictures, (index) => ({ from: "job", job: drawn.job, index })]);
    const own = page.samples[`${this.weights}/own`];
    if (own) this.groups.push(["your picture", own.pictures, () => own.input]);
    while (this.entries.length < this.most && this.groups.length) {
      const [, pictures, input] = this.groups[0];
      const i = this.entries.length;
      this.entries.push({ input: input(i), image: pictures.at(i) });
    }
    this.paint(test.line);
    if (this.entries.length === this.most) this.changed();
  }

  paint(line) {
    this.element.replaceChildren();
    for (const [title, pictures, input] of this.groups) {
      const row = make("div", { class: "row" });
      for (let i = 0; i < Math.min(pictures.count, THUMBS); i++) {
        const name = JSON.stringify(input(i));
        const place = this.entries.findIndex((entry) => JSON.stringify(entry.input) === name);
        const thumb = make("button", { type: "button", class: "thumb", "aria-pressed": String(place >= 0), "aria-label": `${title}, ${i}` }, pictures.canvas(i));
        if (place >= 0 && this.most > 1) thumb.append(make("span", { class: "place", text: String(place + 1) }));
        thumb.addEventListener("click", () => this.choose({ input: input(i), image: pictures.at(i) }, line));
        row.append(thumb);
      }
      this.element.append(make("h3", { text: title }), row);
    }
    const file = make("input", { type: "file", accept: "image/*", "aria-label": "Your picture" });
    file.addEventListener("change", () => this.read(file.files[0]));
    this.message = make("p", { class: "remark", text: line || "" });
    const button = make("span", { class: "quiet upload" }, "your own picture …", file);
    this.element.append(make("h3", {}), make("div", { class: "row" }, button), this.message);
  }

  choose(entry, line) {
    this.entries.push(entry);
    while (this.entries.length > this.most) this.entries.shift();
    this.paint(line);
    if (this.entries.length === this.most) this.changed();
  }

  /** A file of the user's, which the server decodes; here it is only shown. */
  async read(file) {
    if (!file) return;
    const small = file.size > page.upload ? await shrunk(file) : file;
    if (!small || small.size > page.upload) {
      this.message.textContent = `a picture has up to ${page.upload >> 20} MiB, and this browser cannot make this one smaller`;
      return;
    }
    const data = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.readAsDataURL(small);
    });
    const { ok, words } = await ask("picture", { weights: this.weights, data });
    if (!ok) {
      this.message.textContent = words.line;
      return;
    }
    const own = { pictures: new Pictures(words), input: { from: "upload", data } };
    page.samples[`${this.weights}/own`] = own;
    const entry = { input: own.input, image: own.pictures.at(0) };
    await this.show();
    this.choose(entry, "");
  }
}

/** A large picture as a smaller file, which no image of the demo is too small for; null: it cannot be read. */
async function shrunk(file) {
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
    const size = (length) => Math.max(1, Math.round(scale * length));
    const canvas = make("canvas", { width: size(picture.width), height: size(picture.height) });
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  } catch {
    return null;
  }
}

/** A mask that is painted over an image. */
class Painter {
  constructor() {
    const [height, width] = page.current.shape;
    this.mask = new Uint8Array(height * width).fill(1);
    for (let y = Math.floor(height / 4); y < (3 * height) / 4; y++) {
      for (let x = Math.floor(width / 2); x < width; x++) this.mask[y * width + x] = 0;
    }
    [this.height, this.width, this.image, this.erases] = [height, width, null, false];
    this.canvas = make("canvas", { id: "painter", role: "img", "aria-label": "Paint over what is to be drawn anew" });
    this.scale = Math.max(1, Math.floor(320 / width));
    [this.canvas.width, this.canvas.height] = [width * this.scale, height * this.scale];
    for (const name of ["pointerdown", "pointermove"]) this.canvas.addEventListener(name, (event) => this.stroke(event));
    this.size = make("input", { type: "range", min: "1", max: String(Math.ceil(width / 2)), value: String(Math.max(1, Math.round(width / 8))), "aria-label": "Size of the brush" });
    this.brush = make("button", { type: "button", class: "quiet", text: "paint", "aria-pressed": "true" });
    this.eraser = make("button", { type: "button", class: "quiet", text: "erase", "aria-pressed": "false" });
    this.brush.addEventListener("click", () => this.mode(false));
    this.eraser.addEventListener("click", () => this.mode(true));
    const fill = (text, hidden) => {
      const button = make("button", { type: "button", class: "quiet", text });
      button.addEventListener("click", () => { this.mask.forEach((_, i) => { this.mask[i] = hidden(i % width, Math.floor(i / width)) ? 0 : 1; }); this.draw(); });
      return button;
    };
    this.element = make("div", {},
      this.canvas,
      make("div", { class: "tools" }, this.brush, this.eraser, make("label", {}, "size", this.size)),
      make("div", { class: "tools" }, fill("clear", () => false), fill("lower half", (x, y) => y >= height / 2), fill("box", (x, y) => Math.max(Math.abs(x + 0.5 - width / 2), Math.abs(y + 0.5 - height / 2)) < width / 4)));
  }

  mode(erases) {
    this.erases = erases;
    this.brush.setAttribute("aria-pressed", String(!erases));
    this.eraser.setAttribute("aria-pressed", String(erases));
  }

  /** From where the pointer was to where it is, by all the places that the browser noticed. */
  stroke(event) {
    if (event.type === "pointerdown") {
      this.canvas.setPointerCapture(event.pointerId);
      this.before = null;
    }
    if (!event.buttons) return;
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    const noticed = event.getCoalescedEvents?.() ?? [];
    for (const { clientX, clientY } of [...noticed, event]) {
      const place = [((clientX - box.left) / box.width) * this.width, ((clientY - box.top) / box.height) * this.height];
      const [from, to] = [this.before ?? place, place];
      const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
      for (let k = 0; k <= steps; k++) this.dab(...from.map((v, i) => v + (k / steps) * (to[i] - v)));
      this.before = place;
    }
    this.draw();
  }

  dab(x, y) {
    const size = Number(this.size.value);
    const first = (v) => Math.floor(v - (size - 1) / 2);
    for (let row = first(y); row < first(y) + size; row++) {
      for (let column = first(x); column < first(x) + size; column++) {
        if (row >= 0 && row < this.height && column >= 0 && column < this.width) this.mask[row * this.width + column] = this.erases ? 1 : 0;
      }
    }
  }

  draw() {
    if (!this.image) return;
    const { canvas, scale } = this;
    const context = canvas.getContext("2d");
    const small = make("canvas", { width: this.width, height: this.height });
    small.getContext("2d").putImageData(this.image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    context.fillStyle = colour("--warm");
    for (let i = 0; i < this.mask.length; i++) {
      if (!this.mask[i]) {
        context.globalAlpha = 0.78;
        context.fillRect((i % this.width) * scale, Math.floor(i / this.width) * scale, scale, scale);
      }
    }
    context.globalAlpha = 1;
  }
}

// The stage of each task: made once for its weights, it keeps what was drawn. It has its panels, what
// is done by the button, and maybe what is done on entering it, and which panels are seen.

const stages = {
  sample() {
    const panels = { a: new Panel("Samples"), b: new Panel("Second") };
    for (const panel of Object.values(panels)) {
      panel.body.append(empty(page.current.levels
        ? "Draw: an equation that is run backwards turns noise into pictures, with the score to guide it."
        : "Draw: points of the plane move from noise to where the data are."));
    }
    const seen = () => {
      const compares = $("compare").checked;
      $("stage").classList.toggle("two", compares);
      if (!panels.a.foot.firstChild) panels.a.title.textContent = compares ? "First" : "Samples";
      return compares ? [panels.a, panels.b] : [panels.a];
    };
    const run = async () => {
      const sides = $("compare").checked ? ["a", "b"] : ["a"];
      const shared = Object.fromEntries(SHARED.map((name) => [name, values("a")[name]]).filter(([, v]) => v !== undefined));
      await Promise.all(sides.map(async (side) => {
        const panel = panels[side];
        const settings = { ...values(side), ...shared };
        const weights = page.current.name;
        let film = null;
        panel.part = (part) => {
          if (!film) {
            film = showFilm(panel, part);
            panel.forget();
          }
          film.add(part);
        };
        const result = await order("sample", settings, {}, panel);
        if (film) film.whole = true; // no part comes any more, even where some are missing
        if (!result) return;
        panel.title.textContent = settings["sampling.method"] === "pc"
          ? `pc: ${settings["sampling.predictor"]}, ${settings["sampling.corrector"]}` : settings["sampling.method"];
        panel.count(numbersOf(result));
        panel.command(result);
        if (film.tile && side === "a") page.samples[weights] = { job: result.job, pictures: film.final() };
      }));
    };
    return { panels: Object.values(panels), run, seen };
  },

  class() {
    const panel = new Panel("Images of classes");
    panel.body.append(empty("Draw: the score of a class, or its gradient from a classifier, leads to its images."));
    const run = async () => {
      const classes = page.values[`${key("a")}/classes`] ?? [];
      const result = await order("class", values(), { classes }, panel);
      if (result) showColumns(panel, result);
    };
    return { panels: [panel], run };
  },

  inpaint() {
    const panel = new Panel("What is painted over is drawn anew");
    const painter = new Painter();
    const picker = new Picker(1, () => { painter.image = picker.entries[0].image; painter.draw(); });
    const answer = make("div", {});
    panel.body.append(make("div", { class: "painter" }, painter.element, make("div", {}, picker.element, answer)));
    panel.redraw = () => painter.draw();
    const run = async () => {
      const inputs = picker.entries.map((entry) => entry.input);
      const result = await order("inpaint", values(), { inputs, mask: painter.mask.join("") }, panel);
      if (result) showColumns(panel, result, answer, ["drawn"]);
    };
    return { panels: [panel], run, enter: () => picker.show() };
  },

  colorize() {
    const panel = new Panel("Colours that fit a grey picture");
    const picker = new Picker(1, () => {});
    const answer = make("div", {});
    panel.body.append(picker.element, answer);
    const run = async () => {
      const inputs = picker.entries.map((entry) => entry.input);
      const result = await order("colorize", values(), { inputs }, panel);
      if (result) showColumns(panel, result, answer);
    };
    return { panels: [panel], run, enter: () => picker.show() };
  },

  interpolate() {
    const panel = new Panel("Between two images, by their latent codes");
    const picker = new Picker(2, () => {});
    const answer = make("div", {});
    panel.body.append(picker.element, answer);
    const run = async () => {
      const inputs = picker.entries.map((entry) => entry.input);
      const result = await order("interpolate", values(), { inputs }, panel);
      if (result) showColumns(panel, result, answer);
    };
    return { panels: [panel], run, enter: () => picker.show() };
  },

  field() {
    const panel = new Panel("The score, and the density that it knows");
    panel.body.append(empty("The arrows are the learned score: where a noisy point has to go."));
    const run = async () => {
      const result = await order("field", values(), {}, panel);
      if (!result) return;
      panel.count([[Number(result.noise).toPrecision(2), "noise"], [Number(result.t).toPrecision(3), "t"], ...numbersOf(result)]);
      panel.redraw = () => showField(panel, result);
      panel.redraw();
      panel.command(result);
    };
    const enter = () => { // it looks by itself, where nothing was seen yet
      if (!panel.redraw && !panel.busy) setTimeout(() => { if (page.stage?.panels[0] === panel) $("form").requestSubmit(); }, 0);
    };
    return { panels: [panel], run, enter };
  },

  likelihood() {
    const panel = new Panel("How likely");
    const isImage = page.current.levels > 0;
    let chosen = "test";
    const sets = make("div", { class: "picker" });
    const select = make("select", { id: "likelihood-of", "aria-label": "Of which" });
    const enter = () => { // there may be other images by now
      const choices = [["test", isImage ? "the first test images" : "the first test points"]];
      if (page.samples[page.current.name]) choices.push(["job", "the samples that were drawn"]);
      if (page.samples[`${page.current.name}/own`]) choices.push(["own", "your own picture"]);
      select.replaceChildren(...choices.map(([value, text]) => make("option", { value, text, selected: value === chosen })));
    };
    select.addEventListener("change", () => { chosen = select.value; });
    const answer = make("div", {}, empty(isImage
      ? "The probability flow gives each image its exact likelihood: bits/dim are what a perfect code of the image costs for each of its pixels."
      : "The probability flow gives each point its exact density."));
    if (isImage) panel.body.append(sets);
    sets.append(select);
    panel.body.append(answer);
    const run = async () => {
      const drawn = page.samples[page.current.name];
      const count = values()["eval.bpd_num_images"];
      const inputs = chosen === "job" ? Array.from({ length: Math.min(count, drawn.pictures.count) }, (_, index) => ({ from: "job", job: drawn.job, index }))
        : chosen === "own" ? [page.samples[`${page.current.name}/own`].input] : [];
      const result = await order("likelihood", values(), inputs.length ? { inputs } : {}, panel);
      if (!result) return;
      const digits = "error" in result && result.error < 0.005 ? 3 : 2;
      const error = "error" in result ? ` ± ${rounded(result.error, digits)}` : "";
      panel.count([[`${rounded(result.mean, digits)}${error}`, result.unit], ...numbersOf(result)]);
      panel.command(result);
      panel.redraw = () => showLikelihoods(answer, result);
      panel.redraw();
    };
    return { panels: [panel], run, enter };
  },
};

function showColumns(panel, result, place = panel.body, only = null) {
  panel.count(numbersOf(result));
  panel.command(result);
  const wanted = result.columns.filter((column) => !only || only.includes(column.title));
  const tiles = make("div", { class: result.columns.length > 2 && result.count > 4 ? "tiles small" : "tiles" });
  for (const column of wanted) {
    const pictures = new Pictures(column);
    for (let i = 0; i < pictures.count; i++) {
      const text = column.names ? (wanted.length > 1 || /class|\./.test(column.names[i]) ? column.names[i] : "") : column.title;
      tiles.append(make("figure", {}, pictures.canvas(i), text ? make("figcaption", { text }) : null));
    }
  }
  place.replaceChildren(...(place === panel.body ? [] : [make("h3", { class: "side", text: "drawn" })]), tiles);
  if (innerWidth <= NARROW && place.isConnected) place.scrollIntoView({ behavior: "smooth", block: "nearest" });
}

/** A density as shades from the card's colour to the accent. */
function heat(context, { shape, data }, size, strength = 1) {
  const [n] = shape;
  const shares = bytes(data);
  const [low, high] = [rgb(colour("--well")), rgb(colour("--accent"))];
  const small = make("canvas", { width: n, height: n });
  const image = new ImageData(n, n);
  for (let i = 0; i < n * n; i++) {
    const share = strength * (shares[(n - 1 - Math.floor(i / n)) * n + (i % n)] / 255);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = low[c] + share * (high[c] - low[c]);
    image.data[4 * i + 3] = 255;
  }
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, size, size);
}

function showField(panel, result) {
  const size = 640;
  const picture = (title, paint) => {
    const canvas = make("canvas", { class: "picture", width: size, height: size, role: "img", "aria-label": title });
    paint(canvas.getContext("2d"));
    return make("figure", {}, canvas, make("figcaption", { text: title }));
  };
  const left = picture("the score, over the data with this noise", (context) => {
    heat(context, result.noisy, size, 0.6);
    arrows(context, points(result.places), result.score, size);
  });
  const right = picture(result.density ? "the density by the probability flow, and data" : "data", (context) => {
    if (result.density) heat(context, result.density, size, 0.85);
    dots(context, points(result.data), colour("--warm"), size, 1.3);
  });
  panel.body.replaceChildren(make("div", { class: "pair" }, left, right));
}

/** Arrows whose lengths are the square roots of the score's norms. */
function arrows(context, { half, xy }, score, size) {
  const norms = score.map(([x, y]) => Math.hypot(x, y));
  const largest = Math.max(...norms, 1e-12);
  const spacing = size / Math.sqrt(score.length);
  context.strokeStyle = context.fillStyle = colour("--ink");
  context.lineWidth = 1.6;
  score.forEach(([x, y], i) => {
    const length = spacing * Math.sqrt(norms[i] / largest);
    if (length < 1) return;
    const [ux, uy] = [x / norms[i], -y / norms[i]];
    const [px, py] = [(xy[2 * i] / half / 2 + 0.5) * size, (0.5 - xy[2 * i + 1] / half / 2) * size];
    const [ex, ey] = [px + (ux * length) / 2, py + (uy * length) / 2];
    const head = Math.min(8, 0.45 * length);
    context.beginPath();
    context.moveTo(px - (ux * length) / 2, py - (uy * length) / 2);
    context.lineTo(ex - ux * head, ey - uy * head);
    context.stroke();
    context.beginPath();
    context.moveTo(ex, ey);
    context.lineTo(ex - ux * head - uy * head * 0.45, ey - uy * head + ux * head * 0.45);
    context.lineTo(ex - ux * head + uy * head * 0.45, ey - uy * head - ux * head * 0.45);
    context.fill();
  });
}

function showLikelihoods(place, result) {
  const low = Math.min(...result.values);
  const high = Math.max(...result.values);
  const share = (value) => (high > low ? (value - low) / (high - low) : 0.5);
  if (result.images) {
    const pictures = new Pictures(result.images);
    const order = result.values.map((_, i) => i).sort((a, b) => result.values[a] - result.values[b]);
    const tiles = make("div", { class: "tiles" });
    for (const i of order) {
      const fill = make("i");
      fill.style.width = `${8 + 92 * share(result.values[i])}%`;
      tiles.append(make("figure", {}, pictures.canvas(i), make("div", { class: "bar" }, fill), make("figcaption", { text: rounded(result.values[i], 2) })));
    }
    place.replaceChildren(make("h3", { class: "side", text: `${result.unit}, the likeliest first` }), tiles);
    return;
  }
  const { half, xy } = points(result.scatter);
  const canvas = make("canvas", { class: "picture", width: 720, height: 720, role: "img", "aria-label": "points by their likelihood" });
  const context = canvas.getContext("2d");
  const [a, b] = [rgb(colour("--accent")), rgb(colour("--warm"))];
  const ranks = result.values.map((_, i) => i).sort((i, j) => result.values[i] - result.values[j]);
  const rank = new Array(ranks.length);
  ranks.forEach((i, place_) => { rank[i] = place_ / Math.max(ranks.length - 1, 1); });
  for (const i of ranks) {
    const mix = a.map((v, c) => Math.round(v + rank[i] * (b[c] - v)));
    context.fillStyle = `rgb(${mix.join(" ")})`;
    context.beginPath();
    context.arc((xy[2 * i] / half / 2 + 0.5) * 720, (0.5 - xy[2 * i + 1] / half / 2) * 720, 3, 0, 7);
    context.fill();
  }
  const scale = make("canvas", { width: 200, height: 1 });
  const ramp = scale.getContext("2d").createLinearGradient(0, 0, 200, 0);
  ramp.addColorStop(0, colour("--accent"));
  ramp.addColorStop(1, colour("--warm"));
  scale.getContext("2d").fillStyle = ramp;
  scale.getContext("2d").fillRect(0, 0, 200, 1);
  place.replaceChildren(make("div", { class: "frame" }, canvas,
    make("div", { class: "legend" }, `${rounded(low, 2)}, likely`, scale, `${rounded(high, 2)} ${result.unit}`)));
}

// The page as a whole.

function showWeights() {
  const chips = page.weights.map((weights) => {
    const [height, width] = weights.shape;
    const what = weights.levels ? `${height}×${width}` : "points";
    const chip = make("button", { type: "button", class: "chip", role: "radio", "data-weights": weights.name, "aria-checked": String(weights === page.current) },
      weights.name, make("small", { text: `${weights.sde_name.replace("SDE", "")} · ${what}` }));
    chip.addEventListener("click", () => { page.current = weights; show(); });
    return chip;
  });
  $("weights").replaceChildren(...chips);
  const { sde, sde_name, network, dataset } = page.current;
  $("facts").textContent = `${sde_name}: ${sde.replaceAll("`", "")} Network ${network}, trained on ${dataset}.`;
}

/** Shows the weights, the task and its settings anew. */
function show() {
  showWeights();
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const { refusal } = page.current.tasks[tab.dataset.task];
    tab.setAttribute("aria-selected", String(tab.dataset.task === page.task));
    tab.classList.toggle("cannot", Boolean(refusal));
    tab.title = refusal;
  }
  const { refusal } = spec();
  $("refusal").hidden = !refusal;
  $("refusal").textContent = refusal;
  $("work").hidden = Boolean(refusal);
  page.stage = refusal ? null : stageOf(page.current, page.task);
  $("stage").replaceChildren();
  if (refusal) {
    showElsewhere();
    return;
  }
  $("stage").classList.remove("two");
  $("run").textContent = page.task === "likelihood" ? "Measure" : page.task === "field" ? "Look" : "Draw";
  $("run").disabled = page.stage.running > 0;
  showFields();
  $("stage").replaceChildren(...(page.stage.seen?.() ?? page.stage.panels).map((panel) => panel.element));
  showElsewhere();
  page.stage.enter?.();
  for (const panel of page.stage.panels) panel.redraw?.();
}

/** The stage of a task with the weights that are seen. */
function stageOf(weights, task) {
  const name = `${weights.name}/${task}`;
  if (!page.stages[name]) {
    const title = `${weights.name}, ${$(`tab-${task}`).textContent}`;
    page.stages[name] = { title, running: 0, ...stages[task]() };
  }
  return page.stages[name];
}

/** Draws what has the colours of the page. */
function recolour() {
  showMark();
  for (const panel of page.stage?.panels ?? []) panel.redraw?.(); // others when they are seen
}

/** The mark: a picture that comes out of noise, from left to right. */
function showMark() {
  const context = $("mark").getContext("2d");
  const [r, g, b] = rgb(colour("--accent"));
  const size = 26;
  const image = new ImageData(size, size);
  let state = 7;
  for (let i = 0; i < size * size; i++) {
    state = (state * 48271) % 2147483647;
    const [x, y] = [i % size, Math.floor(i / size)];
    const inside = Math.hypot(x - 15, y - 13) < 8 ? 1 : 0.12;
    const noise = state / 2147483647;
    const mix = Math.min(1, x / 16);
    image.data.set([r, g, b, 255 * (mix * inside + (1 - mix) * noise)], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { stage } = page;
  if (!stage || !$("form").reportValidity()) return;
  stage.running += 1;
  $("run").disabled = true;
  if (innerWidth <= NARROW && page.task !== "inpaint") $("stage").scrollIntoView({ behavior: "smooth" });
  try {
    await stage.run();
  } finally {
    stage.running -= 1;
    $("run").disabled = page.stage?.running > 0;
  }
});
$("compare").addEventListener("change", show);
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => { page.task = tab.dataset.task; show(); });
}
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it is forgotten */ }
  recolour();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
try {
  const theme = localStorage.getItem("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* as the system has it */ }

(async () => {
  showMark();
  const { ok, words } = await ask("state");
  if (!ok) {
    $("refusal").hidden = false;
    $("refusal").textContent = words.line;
    return;
  }
  Object.assign(page, words);
  page.current = page.weights[0];
  show();
})();
