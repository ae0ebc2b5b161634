// The page of `vitsplit serve`: predictions of several heads for one photo, read pixel by pixel. No dependencies.

const LONGEST_SIDE = 1600; // pixels of pictures for display; values are read at the photo's full size
const DRAWN_SCORE = 0.5; // objects with a lower score are hidden at first, as in the pictures of `vitsplit predict`
const MOST_COLUMNS = 4; // of pictures side by side
const STEP = 64; // presses of an arrow key from one side of a photo to the other
const TEXT = 12.5; // CSS pixels of the text in boxes
// matplotlib's magma_r in 17 colors: near is bright, far is dark, as in the pictures of `vitsplit predict`.
const MAGMA =
  "fcfdbf fde0a1 fec287 fea571 fb8761 f4695c e55064 cf4070 b5367a 9c2e7f 832681 6a1c81 51127c 36106b 1d1147 0a0822 000004";
const ROUND = [1, 1.5, 2, 3, 4, 5, 6, 8, 10]; // limits of a color bar, times a power of ten
const KEYS =
  "Point at a picture, or focus it and press arrow keys (with Shift: one pixel), to read the predictions there.";
const UNITS = { m: "meters" };
const STAGES = {
  transfer: "transfer",
  decode: "decode image",
  queue: "wait",
  model: "model",
  encode: "encode",
  draw: "draw",
};

const find = (id) => document.getElementById(id);

/** An element such as "p.soft" with properties (or attributes, where there is no such property) and children. */
function el(selector, ...parts) {
  const [tag, ...classes] = selector.split(".");
  const node = document.createElement(tag);
  node.className = classes.join(" ");
  for (const part of parts.filter((part) => part != null)) {
    if (Object.getPrototypeOf(part) !== Object.prototype) node.append(part);
    else
      for (const [key, value] of Object.entries(part))
        key in node ? (node[key] = value) : node.setAttribute(key, value);
  }
  return node;
}

const swatch = (color) => {
  const node = el("i.swatch");
  node.style.background = color;
  return node;
};
const plural = (count, word, words = `${word}s`) => `${count} ${count === 1 ? word : words}`;
const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
const milliseconds = (ms) =>
  ms < 10 ? `${ms.toFixed(1)} ms` : ms < 9999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
const megapixels = (pixels) => `${+(pixels / 1e6).toPrecision(3)} megapixels`;
const megabytes = (bytes) =>
  bytes < 2 ** 20 ? `${Math.max(1, Math.round(bytes / 1024))} KiB` : `${+(bytes / 2 ** 20).toFixed(1)} MiB`;
const numbers = (color) => [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16));

/* ---- The server ---- */

class ServerError extends Error {
  constructor({ code = "", message, remedy = "" }) {
    super(message);
    Object.assign(this, { code, remedy });
  }
}

/** A response of the server; raises `ServerError` with the server's message and remedy. */
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError({
      message: "The server cannot be reached.",
      remedy: "Check that vitsplit serve is running, then try again.",
    });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ServerError(
    body.error?.message ? body.error : { message: `The server answered with status ${response.status}.` },
  );
}

/** The server-sent events of a body: `{name, data}`, with JSON data. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => line.split(/: ?(.*)/, 2)));
      if (fields.data) yield { name: fields.event ?? "", data: JSON.parse(fields.data) };
    }
  }
}

/* ---- Decoding: canvases have 8 bits per channel and hide palette indices, so PNGs are decoded here ---- */

/** The values of a PNG in base64 with one channel of 1 to 16 bits: `{width, height, values}`. */
async function decodePng(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  const [width, height, bits, color] = [view.getUint32(16), view.getUint32(20), bytes[24], bytes[25]];
  if ((color !== 0 && color !== 3) || bytes[28] !== 0)
    throw new Error(`unexpected PNG: color type ${color}, interlace ${bytes[28]}`);
  const parts = [];
  for (let at = 8; at < bytes.length;) {
    const length = view.getUint32(at);
    if (view.getUint32(at + 4) === 0x49444154) parts.push(bytes.subarray(at + 8, at + 8 + length)); // IDAT
    at += length + 12;
  }
  const inflated = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(inflated).arrayBuffer());
  const stride = Math.ceil((width * bits) / 8);
  unfilter(raw, stride, height, Math.max(1, bits / 8));
  const values = bits === 16 ? new Uint16Array(width * height) : new Uint8Array(width * height);
  for (let y = 0, out = 0; y < height; y++) {
    const row = y * (stride + 1) + 1;
    if (bits === 8) values.set(raw.subarray(row, row + width), out);
    else if (bits === 16)
      for (let x = 0; x < width; x++) values[out + x] = (raw[row + 2 * x] << 8) | raw[row + 2 * x + 1];
    else
      for (let x = 0; x < width; x++)
        values[out + x] = (raw[row + ((x * bits) >> 3)] >> (8 - bits - ((x * bits) & 7))) & ((1 << bits) - 1);
    out += width;
  }
  return { width, height, values };
}

/** Reverses the filters of a PNG's rows in place; every row is one byte (the filter) and `stride` bytes. */
function unfilter(raw, stride, height, pixel) {
  for (let y = 0; y < height; y++) {
    const row = y * (stride + 1) + 1;
    const up = y ? -(stride + 1) : 0; // offset of the row above
    const filter = raw[row - 1];
    if (!filter) continue;
    for (let x = 0; x < stride; x++) {
      const at = row + x;
      const a = x < pixel ? 0 : raw[at - pixel];
      const b = up ? raw[at + up] : 0;
      if (filter === 1) raw[at] += a;
      else if (filter === 2) raw[at] += b;
      else if (filter === 3) raw[at] += (a + b) >> 1;
      else {
        const c = up && x >= pixel ? raw[at + up - pixel] : 0;
        const da = Math.abs(b - c);
        const db = Math.abs(a - c);
        const dc = Math.abs(a + b - 2 * c);
        raw[at] += da <= db && da <= dc ? a : db <= dc ? b : c;
      }
    }
  }
}

/** The ends of the runs of a mask in COCO's compressed encoding, column by column; the first run is outside. */
function decodeRuns(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0,
      shift = 0,
      code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  let end = 0;
  return Float64Array.from(runs, (run) => (end += run));
}

/** Whether a pixel, counted column by column, is inside a mask. */
function isInside(ends, pixel) {
  let low = 0,
    high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > pixel) high = middle;
    else low = middle + 1;
  }
  return low % 2 === 1;
}

/* ---- Predictions: each has at(x, y), the values of a pixel; paint(), its colors; and describe(head) ---- */

const blank = ([height, width], scale, round = Math.round) =>
  el("canvas", { width: Math.max(1, round(width * scale)), height: Math.max(1, round(height * scale)) });
const displayScale = (size) => Math.min(1, LONGEST_SIDE / Math.max(...size));

/** A canvas of at most `LONGEST_SIDE` with the colors (0xAABBGGRR) that `color(x, y)` gives for pixels of the image. */
function paintPixels([height, width], color) {
  const canvas = blank([height, width], displayScale([height, width]));
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(picture.data.buffer);
  const columns = Int32Array.from({ length: canvas.width }, (_, x) => Math.floor(((x + 0.5) * width) / canvas.width));
  for (let y = 0, at = 0; y < canvas.height; y++) {
    const row = Math.floor(((y + 0.5) * height) / canvas.height);
    for (let x = 0; x < canvas.width; x++) pixels[at++] = color(columns[x], row);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

const packed = ([red, green, blue], alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

class Segmentation {
  static async from(json) {
    return Object.assign(new Segmentation(), json, { ids: (await decodePng(json.png)).values });
  }

  at(x, y) {
    const { name, color } = this.classes[this.ids[y * this.size[1] + x]];
    return [{ name, color }];
  }

  paint({ isolated }) {
    const {
      ids,
      size: [, width],
    } = this;
    const colors = this.classes.map(({ color }, id) =>
      isolated === null || isolated === id ? packed(numbers(color)) : 0,
    );
    return paintPixels(this.size, (x, y) => colors[ids[y * width + x]]);
  }

  describe(head) {
    return list(
      head,
      this.segments.map(({ class: id, share }) => ({ key: id, share, value: percent(share), ...this.classes[id] })),
    );
  }
}

class Depth {
  static async from(json) {
    const depth = Object.assign(new Depth(), json, { units: (await decodePng(json.png)).values });
    depth.limits = depth.displayRange();
    return depth;
  }

  at(x, y) {
    const depth = this.units[y * this.size[1] + x] * this.scale;
    return [{ name: this.text(depth), depth }];
  }

  text(depth) {
    return `${depth.toFixed(depth < 100 ? 2 : 1)} ${this.unit}`;
  }

  /** Round numbers that cover the 1st to 99th percentile. */
  displayRange() {
    const { units } = this;
    const count = Math.min(units.length, 20000);
    const sampled = Uint16Array.from({ length: count }, (_, k) => units[Math.floor((k * units.length) / count)]).sort();
    const [near, far] = [0.01, 0.99].map((share) => sampled[Math.round(share * (sampled.length - 1))] * this.scale);
    const [low, high] = [near, far].map((depth) => 10 ** Math.floor(Math.log10(depth)));
    const first = Math.max(...ROUND.map((step) => step * low).filter((step) => step <= near * (1 + 1e-9)));
    const last = Math.min(...ROUND.map((step) => step * high).filter((step) => step >= far * (1 - 1e-9)));
    return [first, first < last ? last : 2 * first];
  }

  /** The place of a depth in the color bar, 0 to 1. */
  place(depth) {
    return Math.min(1, Math.max(0, (depth - this.limits[0]) / (this.limits[1] - this.limits[0])));
  }

  paint() {
    const stops = MAGMA.split(" ").map((color) => numbers(`#${color}`));
    const table = Uint32Array.from({ length: 256 }, (_, index) => {
      const at = Math.min(15.999, (index / 255) * 16);
      const [low, high, part] = [stops[Math.floor(at)], stops[Math.floor(at) + 1], at % 1];
      return packed(low.map((value, channel) => Math.round(value + part * (high[channel] - value))));
    });
    const {
      units,
      scale,
      size: [, width],
      limits: [low, high],
    } = this;
    const factor = (255 * scale) / (high - low),
      shift = (255 * low) / (high - low);
    return paintPixels(
      this.size,
      (x, y) => table[Math.max(0, Math.min(255, Math.round(units[y * width + x] * factor - shift)))],
    );
  }

  describe(head) {
    head.marker = el("i.marker", { hidden: true });
    const ends = this.limits.map((limit) => el("span", `${+limit.toPrecision(3)} ${this.unit}`));
    return el(
      "div",
      {},
      el("div.colorbar", ends[0], el("div.magma", head.marker), ends[1]),
      el("p.soft.small", `Nearest ${this.text(this.range[0])}, farthest ${this.text(this.range[1])}.`),
    );
  }

  probe(head, point) {
    head.marker.hidden = !point;
    if (point) head.marker.style.insetInlineStart = `${100 * this.place(this.at(point.x, point.y)[0].depth)}%`;
  }
}

class Detection {
  static async from(json) {
    const objects = json.objects.map((each) => ({
      ...each,
      ...json.classes[each.class],
      ends: each.mask && decodeRuns(each.mask.counts),
    }));
    return Object.assign(new Detection(), json, { objects });
  }

  /** Objects that are shown, by descending score. */
  shown(head) {
    return this.objects.filter(
      ({ score }, index) => score >= head.threshold && (head.isolated === null || head.isolated === index),
    );
  }

  at(x, y, head) {
    const pixel = x * this.size[0] + y;
    const inside = ({ ends, box: [x1, y1, x2, y2] }) =>
      ends ? isInside(ends, pixel) : x + 0.5 >= x1 && x + 0.5 < x2 && y + 0.5 >= y1 && y + 0.5 < y2;
    return this.shown(head)
      .filter(inside)
      .map(({ name, color, score }) => ({ name, color, score }));
  }

  paint(head) {
    const [height, width] = this.size;
    const canvas = blank(this.size, displayScale(this.size));
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(picture.data.buffer);
    for (const { ends, color } of this.shown(head).reverse()) {
      if (!ends) continue;
      const ink = packed(numbers(color));
      for (let run = 1; run < ends.length; run += 2) {
        for (let at = ends[run - 1]; at < ends[run];) {
          // a run may go over several columns
          const x = Math.floor(at / height);
          const stop = Math.min(ends[run], (x + 1) * height);
          const column = Math.min(canvas.width - 1, Math.floor((x * canvas.width) / width));
          const bottom = Math.floor(((stop - 1 - x * height) * canvas.height) / height);
          for (let y = Math.floor(((at - x * height) * canvas.height) / height); y <= bottom; y++)
            pixels[y * canvas.width + column] = ink;
          at = stop;
        }
      }
    }
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  /** Draws boxes with names and scores; `unit` is canvas pixels per CSS pixel. */
  annotate(context, head, unit) {
    const { width, height } = context.canvas;
    const [sx, sy] = [width / this.size[1], height / this.size[0]];
    context.font = `600 ${TEXT * unit}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const {
      box: [x1, y1, x2, y2],
      color,
      name,
      score,
    } of this.shown(head).reverse()) {
      const [left, top] = [x1 * sx, y1 * sy];
      context.lineWidth = 2 * unit;
      context.strokeStyle = color;
      context.strokeRect(left, top, (x2 - x1) * sx, (y2 - y1) * sy);
      const text = `${name} ${score.toFixed(2)}`;
      const tall = (TEXT + 6) * unit,
        wide = context.measureText(text).width + 10 * unit;
      const at = [Math.max(0, Math.min(left - unit, width - wide)), top - tall < 0 ? Math.max(0, top) : top - tall];
      context.fillStyle = color;
      context.fillRect(...at, wide, tall);
      const [red, green, blue] = numbers(color);
      context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
      context.fillText(text, at[0] + 5 * unit, at[1] + tall / 2);
    }
  }

  describe(head) {
    const count = el("span.amount");
    const slider = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: head.threshold });
    const objects = list(
      head,
      this.objects.map(({ name, color, score }, key) => ({ key, name, color, share: score, value: score.toFixed(2) })),
    );
    const update = () => {
      head.threshold = slider.valueAsNumber;
      count.textContent = `${head.threshold.toFixed(2)}, ${this.objects.filter(({ score }) => score >= head.threshold).length} of ${this.objects.length}`;
      [...objects.children].forEach((item, index) => (item.hidden = this.objects[index].score < head.threshold));
    };
    slider.addEventListener("input", () => {
      update();
      repaint(head);
    });
    update();
    return el("div", el("label.slider", "Score from ", slider, count), objects);
  }
}

const TASKS = { segmentation: Segmentation, depth: Depth, detection: Detection };

/** Classes or objects; pressing one shows it alone. */
function list(head, entries) {
  const items = entries.map(({ key, name, color, share, value }) => {
    const bar = el("i.bar");
    bar.style.inlineSize = `${100 * share}%`;
    bar.style.background = color;
    const button = el(
      "button",
      { type: "button", title: `Show ${name} alone`, "aria-pressed": "false" },
      swatch(color),
      el("span.name", name),
      el("span.track", bar),
      el("span.value", value),
    );
    button.addEventListener("click", () => {
      head.isolated = head.isolated === key ? null : key;
      for (const other of items)
        other.firstChild.setAttribute("aria-pressed", String(other.firstChild === button && head.isolated !== null));
      repaint(head);
    });
    return el("li", button);
  });
  return el("ul.list", ...items);
}

/* ---- State ---- */

const state = { server: null, heads: new Map(), photo: null, point: null, view: "side", opacity: 0.65 };
const pictures = []; // those on the page: {root, canvas, probe, reading, heads}

const shownHeads = () => [...state.heads.values()].filter(({ enabled }) => enabled);
const say = (text) => (find("status").textContent = text);

/** Shows an error with its remedy, and a button that tries again. */
function showProblem(error, retry) {
  if (error.name === "AbortError") return;
  const again = retry && el("button", { type: "button" }, "Try again");
  again?.addEventListener("click", () => {
    hideProblem();
    retry();
  });
  find("problem").replaceChildren(el("p", ...problemText(error)), again ?? "");
  find("problem").hidden = false;
}

const hideProblem = () => {
  find("problem").hidden = true;
  find("problem").replaceChildren();
};
const problemText = ({ message, remedy = "" }) => [el("strong", sentence(message)), " ", sentence(remedy)];
const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Reads which heads the server has, and offers them. Those that were offered before keep their state. */
async function start() {
  state.server = await (await call("v1/bundles")).json();
  const { backbone, bundles, limits } = state.server;
  const heads = Object.entries(bundles).filter(([, info]) => info.formats.includes("json"));
  const known = (name, { sha256 }) => (state.heads.get(name)?.info.sha256 === sha256 ? state.heads.get(name) : null);
  state.heads = new Map(heads.map(([name, info]) => [name, known(name, info) ?? makeHead(name, info)]));
  const asking = Object.keys(bundles).filter((name) => bundles[name].needs_question);
  find("backbone").textContent = `${backbone.name}, ${plural(Object.keys(bundles).length, "head")}`;
  find("offers").replaceChildren(
    ...Object.entries(bundles).map(([name, info]) =>
      el("li", el("strong", name), el("span.soft", describeTask(name, info))),
    ),
  );
  find("limits").textContent =
    `${limits.types.map((type) => type.split("/")[1].toUpperCase().replace("WEBP", "WebP")).join(", ")}, up to ` +
    `${megabytes(limits.max_body_bytes)} and ${megapixels(limits.max_pixels)}; larger photos are scaled to fit.`;
  find("file").accept = limits.types.join(",") + ",image/*";
  document.querySelector(".toolbar").hidden = !state.heads.size;
  find("toggles").replaceChildren(...[...state.heads.values()].map(({ toggle }) => toggle));
  find("ask").bundle.replaceChildren(...asking.map((name) => el("option", name)));
  find("ask-bundle").hidden = asking.length < 2;
  find("asking").hidden = !asking.length;
}

/** What a head does, in a few words beside its name. */
const describeTask = (name, { task, classes, unit, needs_question: asks }) =>
  [
    asks ? "answers questions" : task === name ? "" : task,
    classes && plural(classes.length, "class", "classes"),
    unit && `in ${UNITS[unit] ?? unit}`,
  ]
    .filter(Boolean)
    .join(", ");

function makeHead(name, info) {
  const head = {
    name,
    info,
    enabled: true,
    pending: false,
    result: null,
    layer: null,
    isolated: null,
    threshold: DRAWN_SCORE,
  };
  head.toggle = el("button.toggle", { type: "button", "aria-pressed": "true" }, name);
  head.toggle.addEventListener("click", () => {
    head.enabled = !head.enabled;
    head.toggle.setAttribute("aria-pressed", String(head.enabled));
    layOut();
    if (head.enabled && state.photo && !head.result && !head.pending) predict([head]);
  });
  head.reading = el("span.readings");
  head.details = el("div.details");
  head.panel = el(
    "div.panel",
    el("div.caption", el("h2", name), el("span.soft", describeTask(name, info)), head.reading),
    head.details,
  );
  return head;
}

/* ---- Photos ---- */

/** Opens a file or captured picture: shows it, sends it as it is or scaled to the server's limits, and predicts. */
async function openPhoto(file, name = file.name || "photo") {
  if (!state.server) return; // its limits are not known yet, or it cannot be reached, as is shown
  const photo = {
    file,
    name,
    opened: performance.now(),
    abort: new AbortController(),
    body: file,
    size: null,
    picture: null,
    notes: [],
    sha256: null,
    cached: new Set(),
  };
  openPhoto.latest = photo;
  hideProblem();
  try {
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (bitmap) await fit(photo, bitmap);
    else if (file.type === "image/tiff")
      photo.notes.push("This browser cannot show TIFF files: predictions are shown without the photo.");
    else
      throw new ServerError({
        message: `This browser cannot read ${name} as a picture.`,
        remedy: "Choose a JPEG, PNG, WebP or TIFF file.",
      });
  } catch (error) {
    showProblem(error);
    return;
  }
  if (openPhoto.latest !== photo) return; // another one was opened meanwhile
  state.photo?.abort.abort();
  state.photo = photo;
  state.point = null;
  for (const head of state.heads.values()) {
    Object.assign(head, { result: null, layer: null, isolated: null });
    head.details.replaceChildren();
  }
  setPending(state.heads.values(), false);
  find("answers").replaceChildren();
  if (!find("empty").hidden) find("stage").focus({ preventScroll: true }); // the buttons there are hidden now
  find("empty").hidden = true;
  find("work").hidden = find("sources").hidden = false;
  find("pass").hidden = true;
  layOut();
  const heads = shownHeads();
  if (heads.length) await predict(heads);
}

/** Makes the picture for display, and a smaller or converted body if the server does not take the file as it is. */
async function fit(photo, bitmap) {
  const { limits } = state.server;
  const accepted = limits.types.includes(photo.file.type);
  let scale = Math.min(1, Math.sqrt(limits.max_pixels / (bitmap.width * bitmap.height)));
  photo.size = [bitmap.height, bitmap.width];
  photo.picture = scaled(bitmap, displayScale(photo.size));
  if (!accepted || scale < 1 || photo.file.size > limits.max_body_bytes) {
    for (; ; scale *= 0.8) {
      const canvas = scaled(bitmap, scale, Math.floor);
      photo.body = await toJpeg(canvas);
      photo.size = [canvas.height, canvas.width];
      if (photo.body.size <= limits.max_body_bytes) break;
    }
    const most = `${megapixels(limits.max_pixels)} and ${megabytes(limits.max_body_bytes)}`;
    if (scale < 1)
      photo.notes.push(`Scaled down from ${bitmap.width} × ${bitmap.height}: the server takes at most ${most}.`);
    else photo.notes.push(`Sent as JPEG: the server does not take ${accepted ? "larger files" : "this format"}.`);
  }
  bitmap.close();
}

const toJpeg = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));

function scaled(source, scale, round = Math.round) {
  const canvas = blank([source.height, source.width], scale, round);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function predict(heads) {
  const { photo } = state;
  setPending(heads, true);
  say(`Predicting with ${plural(heads.length, "head")}.`);
  try {
    const begun = performance.now();
    const query = new URLSearchParams({ bundles: heads.map(({ name }) => name).join(","), masks: "png" });
    const response = await call(`v1/predict?${query}`, {
      method: "POST",
      body: photo.body,
      signal: photo.abort.signal,
    });
    const answer = await response.json();
    const received = performance.now();
    if (String(photo.size) !== String(answer.image.size)) {
      // of a file that only the server reads
      photo.size = answer.image.size;
      state.point = null;
      layOut();
    }
    for (const head of heads) {
      const json = answer.predictions[head.name];
      const result = await TASKS[json.task]?.from(json);
      if (state.photo !== photo) return;
      head.result = result ?? null;
      head.details.replaceChildren(
        head.result?.describe(head) ?? el("p.soft", `This page has no picture for ${json.task}.`),
      );
      setPending([head], false);
      repaint(head);
      performance.mark("vitsplit:overlay", { detail: { opened: photo.opened, model_ms: answer.timing.model_ms } });
    }
    const timing = stages(answer.timing);
    const spent = Object.values(timing).reduce((sum, ms) => sum + ms, 0);
    showPass(answer.pass, {
      transfer: Math.max(0, received - begun - spent),
      ...timing,
      draw: performance.now() - received,
    });
    say(`Predictions of ${plural(heads.length, "head")} are ready.`);
  } catch (error) {
    const again = error.code === "unknown_bundle" ? () => predictOffered(photo) : () => predict(heads);
    if (state.photo === photo) showProblem(error, again);
  } finally {
    if (state.photo === photo) setPending(heads, false);
  }
}

/** Predicts with the heads that the server has now: one that the page knew was removed. */
async function predictOffered(photo) {
  try {
    await start();
    if (state.photo !== photo) return;
    layOut();
    const missing = shownHeads().filter(({ result, pending }) => !result && !pending);
    if (missing.length) predict(missing);
  } catch (error) {
    showProblem(error, () => predictOffered(photo));
  }
}

/* ---- Pictures ---- */

/** Puts the pictures of the chosen view on the page: one per head with the photo, or one for all. */
function layOut() {
  if (!state.photo) return;
  const { photo } = state,
    heads = shownHeads(),
    overlay = state.view === "overlay";
  const section = find("pictures");
  const focused = document.activeElement;
  section.dataset.view = state.view;
  section.style.setProperty("--ratio", photo.size ? photo.size[1] / photo.size[0] : 4 / 3);
  for (const { root } of pictures.splice(0)) sizes.unobserve(root);
  const facts = describePhoto(photo);
  const count = heads.length + 1; // of pictures side by side, in rows of similar length
  section.style.setProperty("--columns", Math.ceil(count / Math.ceil(count / MOST_COLUMNS)));
  if (overlay)
    section.replaceChildren(
      el("figure", makePicture("all heads", heads)),
      el("div.panels", ...heads.map(({ panel }) => panel), facts),
    );
  else
    section.replaceChildren(
      el("figure", makePicture("the photo", []), facts),
      ...heads.map((head) => el("figure", makePicture(head.name, [head]), head.panel)),
    );
  if (document.contains(focused)) focused.focus({ preventScroll: true });
  showPoint();
}

function describePhoto({ name, size, body, notes }) {
  const pixels = size && `${size[1]} × ${size[0]} pixels`;
  return el(
    "div.panel",
    el("div.caption", el("h2", "Photo"), el("span.soft", name)),
    el("p.soft.small", [pixels, `${megabytes(body.size)} sent`].filter(Boolean).join(", ") + "."),
    ...notes.map((note) => el("p.small.note", note)),
    el("p.soft.small", { id: "keys" }, KEYS),
  );
}

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) draw(pictures.find(({ root }) => root === target));
});

function makePicture(name, heads) {
  const picture = { heads, canvas: el("canvas", { "aria-hidden": "true" }), reading: el("span.readings") };
  picture.probe = el("div.probe", { hidden: true, "aria-hidden": "true" }, picture.reading);
  picture.root = el(
    "div.picture",
    {
      tabIndex: 0,
      role: "application",
      ariaRoleDescription: "picture",
      ariaLabel: `Predictions of ${name}: arrow keys move the probe`.replace("Predictions of the photo", "The photo"),
    },
    picture.canvas,
    picture.probe,
  );
  picture.root.setAttribute("aria-describedby", "keys");
  picture.root.classList.toggle("pending", heads.some(isPending));
  picture.root.addEventListener("pointermove", pointAt);
  picture.root.addEventListener("pointerdown", pointAt);
  picture.root.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && !document.activeElement.matches(".picture")) showPoint(null);
  });
  picture.root.addEventListener("keydown", moveByKey);
  pictures.push(picture);
  sizes.observe(picture.root);
  return picture.root;
}

function draw(picture) {
  if (!picture) return;
  const { canvas, root, heads } = picture;
  const unit = devicePixelRatio,
    context = canvas.getContext("2d");
  const [width, height] = [Math.round(root.clientWidth * unit), Math.round(root.clientHeight * unit)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = true;
  if (state.photo.picture) context.drawImage(state.photo.picture, 0, 0, width, height);
  // Layers that cover the photo have equal weights, whose sum is the opacity; objects are on top of them.
  const painted = heads.filter(({ layer }) => layer),
    objects = painted.filter(({ result }) => result.annotate);
  const covering = painted.filter(({ result }) => !result.annotate),
    weight = state.opacity / covering.length;
  const lay = ({ layer }, alpha) => {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = layer.width > width; // pixels of the prediction stay visible when enlarged
    context.drawImage(layer, 0, 0, width, height);
  };
  covering.forEach((head, index) => lay(head, weight / (1 - weight * (covering.length - 1 - index))));
  objects.forEach((head) => lay(head, state.opacity));
  context.globalAlpha = 1;
  objects.forEach((head) => head.result.annotate(context, head, unit));
}

const isPending = ({ pending }) => pending;

/** Marks heads that are predicting, and their pictures. */
function setPending(heads, pending) {
  for (const head of heads) {
    head.pending = pending;
    head.panel.classList.toggle("busy", pending);
  }
  for (const picture of pictures) picture.root.classList.toggle("pending", picture.heads.some(isPending));
}

/** Colors a head's prediction again and shows it. */
function repaint(head) {
  head.layer = head.result?.paint(head) ?? null;
  for (const picture of pictures) {
    if (picture.heads.includes(head)) draw(picture);
  }
  showPoint();
}

/* ---- The probe: one point of the image, shown in all pictures ---- */

function pointAt(event) {
  if (!state.photo.size) return;
  const [height, width] = state.photo.size;
  const { left, top, width: wide, height: tall } = event.currentTarget.getBoundingClientRect();
  const place = (at, side) => Math.max(0, Math.min(side - 1, Math.floor(at * side)));
  showPoint({ x: place((event.clientX - left) / wide, width), y: place((event.clientY - top) / tall, height) });
}

function moveByKey(event) {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "Escape") showPoint(null);
  if (!move || !state.photo.size || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const [height, width] = state.photo.size;
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(height, width) / STEP));
  const { x, y } = state.point ?? {
    x: Math.floor(width / 2) - move[0] * step,
    y: Math.floor(height / 2) - move[1] * step,
  };
  showPoint({
    x: Math.max(0, Math.min(width - 1, x + move[0] * step)),
    y: Math.max(0, Math.min(height - 1, y + move[1] * step)),
  });
  clearTimeout(moveByKey.timer); // read out where the keys stop, not on the way
  moveByKey.timer = setTimeout(() => say(spoken()), 350);
}

const readAt = (head) => (head.result && state.point ? head.result.at(state.point.x, state.point.y, head) : []);
const readingText = ({ name, score }) => (score === undefined ? name : `${name} ${score.toFixed(2)}`);
const spoken = () =>
  shownHeads()
    .filter(({ result }) => result)
    .map((head) => `${head.name}: ${readAt(head).map(readingText).join(", ") || "nothing"}.`)
    .join(" ") + (state.point ? ` Column ${state.point.x}, row ${state.point.y}.` : "");

/** Moves the probe, or shows what is under it again; null: hides it. */
function showPoint(point = state.point) {
  state.point = point;
  const chips = (head) =>
    readAt(head)
      .slice(0, 3)
      .map((found) => el("span.reading", found.color ? swatch(found.color) : null, readingText(found)));
  for (const head of state.heads.values()) {
    head.reading.replaceChildren(...chips(head));
    head.result?.probe?.(head, point);
  }
  for (const { probe, reading, heads } of pictures) {
    probe.hidden = !point;
    if (!point) continue;
    const [height, width] = state.photo.size;
    probe.style.insetInlineStart = `${(100 * (point.x + 0.5)) / width}%`;
    probe.style.insetBlockStart = `${(100 * (point.y + 0.5)) / height}%`;
    probe.classList.toggle("leftward", point.x > width / 2);
    probe.classList.toggle("upward", point.y > height * 0.75);
    reading.replaceChildren(...heads.flatMap(chips));
  }
}

/* ---- What ran ---- */

/** The server's times in milliseconds by stage. */
const stages = (timing) => Object.fromEntries(Object.entries(timing).map(([key, ms]) => [key.replace(/_ms$/, ""), ms]));

function showPass(passes, timing) {
  const total = Object.values(timing).reduce((sum, ms) => sum + ms, 0);
  const runs = passes.reduce((sum, { count = 1 }) => sum + count, 0);
  const heads = new Set(passes.flatMap(({ bundles }) => bundles)).size;
  const bar = el("div.timing", { "aria-hidden": "true" });
  const legend = el("dl.stages");
  for (const [stage, ms] of Object.entries(timing)) {
    const part = el(`i.stage.${stage}`);
    part.style.flexGrow = ms;
    bar.append(part);
    legend.append(el(`div.stage.${stage}`, el("dt", STAGES[stage] ?? stage), el("dd", milliseconds(ms))));
  }
  find("pass").replaceChildren(
    el(
      "h2",
      { id: "pass-title" },
      `${runs === 1 ? "One pass" : plural(runs, "pass", "passes")} of the backbone for ${plural(heads, "head")}`,
    ),
    ...passes.map(describePass),
    el("h3", "Time ", el("span.soft", milliseconds(total))),
    bar,
    legend,
  );
  find("pass").hidden = false;
}

function describePass({ size: [height, width], bundles, blocks, of, maps = [] }) {
  const input = `${bundles.join(", ")}: ${width} × ${height} pixels`;
  if (blocks === undefined) return el("p.soft.small", `${input}, by an exported graph.`);
  const strip = el("div.blocks", { "aria-hidden": "true" });
  for (let block = 0; block < of; block++) {
    strip.append(el("i", { className: `${block < blocks ? "ran" : ""} ${maps.includes(block) ? "map" : ""}` }));
  }
  const read = maps.length
    ? ` Maps are read after ${maps.length === 1 ? "block" : "blocks"} ${maps.map((block) => block + 1).join(", ")} (marked).`
    : "";
  return el("div", strip, el("p.soft.small", `${input}. ${blocks} of ${of} blocks needed.${read}`));
}

/* ---- Questions ---- */

async function ask(question, bundle) {
  const { photo } = state,
    form = find("ask"),
    button = form.querySelector("button");
  const stop = new AbortController();
  const signal = AbortSignal.any([photo.abort.signal, stop.signal]);
  const answer = el("p.answer.waiting");
  const facts = el("p.soft.small");
  const entry = el("article", { ariaBusy: "true" }, el("p.question", question), answer, facts);
  find("answers").append(entry);
  entry.scrollIntoView({ block: "nearest" });
  form.question.value = "";
  button.textContent = "Stop";
  form.stop = () => stop.abort();
  try {
    let done = null,
      image = null;
    for await (const { name, data } of events((await send(photo, question, bundle, signal)).body)) {
      if (name === "error") throw new ServerError(data.error);
      if (name === "image") {
        image = data;
        photo.sha256 = data.sha256;
      } else if (name === "done") done = data;
      else answer.append(data.text);
      answer.classList.remove("waiting");
    }
    if (!done) throw new ServerError({ message: "The answer was cut off.", remedy: "Ask again." });
    photo.cached.add(bundle);
    answer.textContent = done.answer || "(no answer)";
    facts.textContent = `${milliseconds(done.answer_ms)} ${image.reused ? "from cached visual tokens, without a pass of the backbone" : `after ${passFacts(image)}`}.`;
  } catch (error) {
    if (error.name === "AbortError") facts.textContent = "Stopped.";
    else {
      entry.append(el("p.problem", { role: "alert" }, ...problemText(error)));
      form.question.value ||= question;
    }
  } finally {
    answer.classList.remove("waiting");
    entry.ariaBusy = "false";
    button.textContent = "Ask";
    form.stop = null;
  }
}

/** The pass that made the visual tokens of an image, in words. */
function passFacts({ pass: [{ blocks, of } = {}], timing }) {
  return `a pass of the backbone in ${milliseconds(timing.model_ms)}` + (blocks ? ` (${blocks} of ${of} blocks)` : "");
}

/** Sends a question, with the image only if the server does not have it. */
async function send(photo, question, bundle, signal) {
  if (photo.cached.has(bundle)) {
    try {
      const body = JSON.stringify({ image_sha256: photo.sha256, question, bundle });
      return await call("v1/ask", { method: "POST", body, signal, headers: { "Content-Type": "application/json" } });
    } catch (error) {
      if (error.code !== "unknown_image") throw error; // it was displaced by others: sent again below
    }
  }
  return call(`v1/ask?${new URLSearchParams({ question, bundle })}`, { method: "POST", body: photo.body, signal });
}

/* ---- The camera ---- */

async function openCamera() {
  const dialog = find("camera"),
    video = dialog.querySelector("video");
  let stream;
  hideProblem();
  try {
    if (!navigator.mediaDevices)
      throw new ServerError({
        message: "The browser gives no camera to this page.",
        remedy: "Open the page over HTTPS or as localhost, or choose a file.",
      });
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
  } catch (error) {
    const denied = {
      message: "The camera was not allowed.",
      remedy: "Allow it in the browser's settings of this site, or choose a file.",
    };
    const missing = {
      message: "No camera can be used.",
      remedy: "Connect one, close programs that use it, or choose a file.",
    };
    showProblem(
      error instanceof ServerError ? error : new ServerError(error.name === "NotAllowedError" ? denied : missing),
      openCamera,
    );
    return;
  }
  video.srcObject = stream;
  dialog.showModal();
  dialog.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()), { once: true });
}

async function capture() {
  const bitmap = await createImageBitmap(find("camera").querySelector("video"));
  find("camera").close();
  openPhoto(await toJpeg(scaled(bitmap, 1)), "Camera");
}

/* ---- Events ---- */

function openFirst(files) {
  if (files.length) openPhoto(files[0]);
}

for (const button of document.querySelectorAll("[data-source]")) {
  button.addEventListener("click", () => (button.dataset.source === "file" ? find("file").click() : openCamera()));
}
find("file").addEventListener("change", ({ target }) => {
  openFirst(target.files);
  target.value = "";
});
find("opacity").addEventListener("input", ({ target }) => {
  state.opacity = target.value / 100;
  find("opacity-value").textContent = `${target.value} %`;
  pictures.forEach(draw);
});
document.querySelector(".views").addEventListener("change", ({ target }) => {
  state.view = target.value;
  layOut();
});
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const { question, bundle, stop } = event.target;
  if (stop) stop();
  else if (question.value.trim()) ask(question.value.trim(), bundle.value);
});
find("camera")
  .querySelector("video")
  .addEventListener("loadeddata", () => (find("capture").disabled = false));
find("capture").addEventListener("click", capture);
document.addEventListener("paste", ({ clipboardData }) => openFirst(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dragging", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  openFirst(event.dataTransfer.files);
});

const begin = () => start().catch((error) => showProblem(error, begin));
await begin();
