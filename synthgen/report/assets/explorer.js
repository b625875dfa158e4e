"use strict";
// The mask explorer: which masks contain this pixel? (Beyond Labels, figure 1, made alive.)
//
// Each sample is a JSON script element: pictures as data URIs; "masks", deflated JSON with one
// COCO compressed RLE per mask; "labels", the deflated label maps of all k, one after the other;
// "semantic", the deflated class of each pixel, with "names" of its values, where it is labeled.
// Nothing is decoded before it is shown, and all text goes through textContent.
(() => {
  const byId = (id) => document.getElementById(id);
  const canvas = byId("canvas");
  const context = canvas.getContext("2d");
  const slider = byId("k");
  const sources = [...document.querySelectorAll('script[id^="sample-"]')];
  // Okabe-Ito, then the same lighter and darker: 21 colors for at most 20 clusters.
  const HUES = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [240, 228, 66]];
  const COLORS = [0, 0.5, -0.45].flatMap((shade) => HUES.map((hue) => hue.map(
    (value) => Math.round(shade < 0 ? value * (1 + shade) : value + (255 - value) * shade))));
  const state = { index: -1, sample: null, pixel: null, fixed: false, selected: -1 };

  // ---- decoding ---------------------------------------------------------------------------

  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Runs of a COCO compressed RLE: 5 bits per character and a "more" bit, the sign in the last;
  // from the third run on, the difference to the run before the last.
  function runLengths(counts) {
    const runs = [];
    for (let at = 0; at < counts.length;) {
      let value = 0, shift = 0, code;
      do {
        code = counts.charCodeAt(at++) - 48;
        value |= (code & 31) << shift;
        shift += 5;
      } while (code & 32);
      if (code & 16) value |= -1 << shift;
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    return runs;
  }

  // Mask as one byte per pixel, row-major; COCO's runs go down the columns.
  function decodeMask(counts, height, width) {
    const mask = new Uint8Array(height * width);
    let position = 0, inside = false;
    for (const run of runLengths(counts)) {
      const end = Math.min(position + run, mask.length);
      if (inside) {
        for (let p = position; p < end; p++) mask[(p % height) * width + Math.floor(p / height)] = 1;
      }
      position = end;
      inside = !inside;
    }
    return mask;
  }

  // At each pixel the id of the smallest mask that holds it; of equal areas the later one.
  function idMap(sample) {
    const ids = new Uint8Array(sample.height * sample.width);
    for (const segment of [...sample.segments].sort((a, b) => b.area - a.area)) {
      for (let p = 0; p < ids.length; p++) if (segment.mask[p]) ids[p] = segment.id;
    }
    return ids;
  }

  async function picture(uri) {
    if (!uri) return null;
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  }

  async function load(index) {
    const sample = JSON.parse(sources[index].textContent);
    const [image, masks, labels, semantic] = await Promise.all([
      picture(sample.image), inflate(sample.masks), sample.labels ? inflate(sample.labels) : null,
      sample.semantic ? inflate(sample.semantic) : null]);
    const { height, width } = sample;
    sample.segments = JSON.parse(new TextDecoder().decode(masks));
    for (const segment of sample.segments) segment.mask = decodeMask(segment.rle, height, width);
    sample.maps = [idMap(sample), ...sample.ks.map(
      (_, i) => labels.subarray(i * height * width, (i + 1) * height * width))];
    sample.layers = ["merged hierarchy", ...sample.ks.map((k) => `k = ${k}`)];
    sample.classes = semantic;
    if (semantic) {
      sample.maps.push(semantic);
      sample.layers.push("classes");
    }
    sample.pictures = { image };
    sample.scale = Math.max(1, Math.floor(512 / Math.max(height, width)));
    return sample;
  }

  // ---- drawing ----------------------------------------------------------------------------

  // Colors are 32-bit words in the order of ImageData's bytes.
  const rgba = (red, green, blue, alpha) => new Uint32Array(new Uint8ClampedArray([red, green, blue, alpha]).buffer)[0];
  const TINTS = Uint32Array.from({ length: 256 }, (_, value) => rgba(...COLORS[value % COLORS.length], 160));
  const CLASS_TINTS = TINTS.slice();
  CLASS_TINTS[0] = 0; // the background stays as it is, the undecided is gray
  CLASS_TINTS[255] = rgba(128, 128, 128, 200);
  const DIM = Uint32Array.of(rgba(0, 0, 0, 130), 0);
  const HIDE = Uint32Array.of(rgba(16, 20, 24, 225), 0);
  const WHITE = rgba(255, 255, 255, 204), YELLOW = rgba(240, 228, 66, 255);

  function canvasOf(words, width, height) {
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    const pixels = new ImageData(new Uint8ClampedArray(words.buffer), width, height);
    small.getContext("2d").putImageData(pixels, 0, 0);
    return small;
  }

  // One color per value, one pixel per value.
  function layer({ width, height }, values, colors) {
    const words = new Uint32Array(width * height);
    for (let p = 0; p < words.length; p++) words[p] = colors[values[p]];
    return canvasOf(words, width, height);
  }

  // One canvas pixel along every border between different values.
  function borders({ width, height, scale }, values, color) {
    const across = width * scale, words = new Uint32Array(across * height * scale);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const p = y * width + x, corner = y * scale * across + x * scale, last = scale - 1;
        const right = x + 1 < width && values[p] !== values[p + 1];
        const below = y + 1 < height && values[p] !== values[p + width];
        for (let i = 0; right && i < scale; i++) words[corner + i * across + last] = color;
        for (let i = 0; below && i < scale; i++) words[corner + last * across + i] = color;
      }
    }
    return canvasOf(words, across, height * scale);
  }

  function traceStar([x, y], scale) {
    context.beginPath();
    for (let point = 0; point < 10; point++) {
      const radius = point % 2 ? 5 : 12, angle = Math.PI * (point / 5 - 0.5);
      context.lineTo((x + 0.5) * scale + radius * Math.cos(angle), (y + 0.5) * scale + radius * Math.sin(angle));
    }
    context.closePath();
    context.fillStyle = "#f0e442";
    context.strokeStyle = "#000";
    context.lineWidth = 2;
    context.fill();
    context.stroke();
  }

  // The masks of the star's pixel, or at a chosen k the cluster that it belongs to.
  function spotlight(sample) {
    if (!state.pixel) return null;
    const p = state.pixel[1] * sample.width + state.pixel[0];
    if (+slider.value === 0) return sample.segments.find((segment) => segment.id === state.selected)?.mask;
    const map = sample.maps[+slider.value];
    return map.map((value) => +(value === map[p]));
  }

  function bordersAt(sample, position) {
    sample.borders ??= [];
    return sample.borders[position] ??= borders(sample, sample.maps[position], WHITE);
  }

  function draw() {
    const sample = state.sample;
    if (!sample) return;
    const view = document.querySelector('input[name="view"]:checked').value;
    const map = sample.maps[+slider.value], classes = map === sample.classes;
    canvas.width = sample.width * sample.scale;
    canvas.height = sample.height * sample.scale;
    context.imageSmoothingEnabled = false;
    context.drawImage(sample.pictures[view] || sample.pictures.image, 0, 0, canvas.width, canvas.height);
    if (classes || byId("overlay").checked) {
      const bare = Uint32Array.from(TINTS, (tint, value) => (value ? tint : 0));
      const tints = classes ? CLASS_TINTS : +slider.value ? TINTS : bare;
      context.drawImage(layer(sample, map, tints), 0, 0, canvas.width, canvas.height);
    }
    if (byId("boundaries").checked) context.drawImage(bordersAt(sample, +slider.value), 0, 0);
    const lit = spotlight(sample);
    if (lit) {
      context.drawImage(layer(sample, lit, DIM), 0, 0, canvas.width, canvas.height);
      context.drawImage(borders(sample, lit, YELLOW), 0, 0);
    }
    if (state.pixel) traceStar(state.pixel, sample.scale);
  }

  // ---- the chain --------------------------------------------------------------------------

  const percent = (share) => `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)} %`;

  function chainAt(sample, [x, y]) {
    const inside = sample.segments.filter((segment) => segment.mask[y * sample.width + x]);
    return inside.sort((a, b) => a.area - b.area || b.id - a.id);
  }

  function element(name, text) {
    const node = document.createElement(name);
    if (text) node.textContent = text;
    return node;
  }

  // The picture where the mask is, dark elsewhere; small, and drawn once per mask.
  function thumbnail(sample, segment) {
    if (!segment.thumbnail) {
      const shrink = Math.min(1, 144 / Math.max(sample.width, sample.height));
      const small = element("canvas");
      small.width = Math.max(1, Math.round(sample.width * shrink));
      small.height = Math.max(1, Math.round(sample.height * shrink));
      const target = small.getContext("2d");
      target.drawImage(sample.pictures.image, 0, 0, small.width, small.height);
      target.drawImage(layer(sample, segment.mask, HIDE), 0, 0, small.width, small.height);
      small.setAttribute("aria-hidden", "true");
      segment.thumbnail = small;
    }
    return segment.thumbnail;
  }

  function chainItem(sample, segment) {
    const item = element("li"), button = element("button"), words = element("div");
    const members = segment.members.map(([k, cluster]) => `${k} (cluster ${cluster})`).join(", ");
    words.append(element("strong", segment.label || `Mask ${segment.id}`));
    words.append(element("span", `k = ${members}`));
    words.append(element("span", `area ${percent(segment.area / (sample.full_height * sample.full_width))}`
      + (segment.parent ? ` · inside mask ${segment.parent}` : "")
      + (segment.label ? ` · mask ${segment.id} · label score ${segment.label_score.toFixed(2)}` : "")
      + (segment.iou >= 0 ? ` · audit IoU ${segment.iou.toFixed(2)}` : "")));
    button.type = "button";
    button.dataset.mask = segment.id;
    button.setAttribute("aria-pressed", String(segment.id === state.selected));
    button.append(thumbnail(sample, segment), words);
    const select = () => { slider.value = 0; choose(segment.id); };
    button.addEventListener("click", select);
    button.addEventListener("focus", select);
    button.addEventListener("pointerenter", select);
    item.append(button);
    return item;
  }

  // Show one mask of the chain on the picture; the list itself stays as it is.
  function choose(id) {
    state.selected = id;
    for (const button of byId("chain").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(+button.dataset.mask === id));
    }
    nameLayer();
    draw();
  }

  function describe(sample, chain) {
    const [x, y] = state.pixel, smallest = chain[0], p = y * sample.width + x;
    const words = [`Pixel ${x}, ${y}: ${chain.length} ${chain.length === 1 ? "mask" : "masks"}`];
    if (smallest) words.push(`smallest is ${smallest.label || `mask ${smallest.id}`}`);
    const k = sample.ks[slider.value - 1];
    if (k) words.push(`at k = ${k} in cluster ${sample.maps[+slider.value][p]}`);
    if (sample.classes) words.push(`class ${sample.names[sample.classes[p]]}`);
    return `${words.join(", ")}${state.fixed ? " (fixed)" : ""}.`;
  }

  function pointAt(pixel) {
    const sample = state.sample;
    state.pixel = pixel;
    const chain = pixel ? chainAt(sample, pixel) : [];
    state.selected = chain.length ? chain[0].id : -1;
    byId("chain").replaceChildren(...chain.map((segment) => chainItem(sample, segment)));
    byId("status").textContent = pixel ? describe(sample, chain) : "No pixel chosen.";
    requestAnimationFrame(draw);
  }

  // ---- samples and controls ---------------------------------------------------------------

  function nameLayer() {
    byId("k-value").textContent = state.sample.layers[+slider.value];
    slider.setAttribute("aria-valuetext", byId("k-value").textContent);
  }

  // Name and color of each class in the picture, and what was asked for and is not there.
  function showNames(sample) {
    const rows = Object.entries(sample.names).filter(([value]) => value !== "0");
    const items = rows.map(([value, name]) => {
      const item = element("li"), swatch = element("i"), tint = CLASS_TINTS[value];
      const [red, green, blue] = new Uint8Array(Uint32Array.of(tint).buffer);
      swatch.style.background = `rgb(${red}, ${green}, ${blue})`;
      item.append(swatch, name);
      return item;
    });
    if (sample.not_found.length) items.push(element("li", `not found: ${sample.not_found.join(", ")}`));
    byId("names").replaceChildren(...items);
    byId("names").hidden = !items.length;
  }

  function showControls(sample) {
    const bare = !sample.ks.length;
    slider.max = sample.layers.length - 1;
    slider.value = Math.min(slider.value, slider.max);
    slider.disabled = sample.layers.length < 2;
    showNames(sample);
    for (const radio of document.querySelectorAll('input[name="view"]')) radio.disabled = bare && radio.value !== "image";
    if (bare) document.querySelector('input[value="image"]').checked = true;
    byId("k-note").textContent = bare ? `No preview was kept of this sample: the hierarchy ${sample.classes ? "and its classes are" : "alone is"} shown.` : "";
    byId("which").textContent = `Sample ${state.index + 1} of ${sources.length}: ${sample.key}`;
    byId("prompt").textContent = sample.prompt || "(no prompt)";
    for (const tile of document.querySelectorAll("[data-sample]")) {
      tile.setAttribute("aria-current", String(+tile.dataset.sample === state.index));
    }
    nameLayer();
  }

  async function open(index) {
    state.index = (index + sources.length) % sources.length;
    const asked = state.index, sample = await load(asked);
    if (asked !== state.index) return; // a later click won
    state.sample = sample;
    state.fixed = false;
    showControls(sample);
    await loadView();
    pointAt(null);
    canvas.dataset.ready = sample.key;
  }

  async function loadView() {
    const view = document.querySelector('input[name="view"]:checked').value, sample = state.sample;
    sample.pictures[view] ??= await picture(sample[view]);
    draw();
  }

  function pixelOf(event) {
    const box = canvas.getBoundingClientRect(), { width, height } = state.sample;
    const clamp = (value, limit) => Math.max(0, Math.min(limit - 1, Math.floor(value)));
    return [clamp((event.clientX - box.left) / box.width * width, width), clamp((event.clientY - box.top) / box.height * height, height)];
  }

  function moveStar(dx, dy) {
    const { width, height } = state.sample;
    const [x, y] = state.pixel || [width >> 1, height >> 1];
    pointAt([Math.max(0, Math.min(width - 1, x + dx)), Math.max(0, Math.min(height - 1, y + dy))]);
  }

  function fix(fixed) {
    state.fixed = fixed;
    pointAt(fixed ? state.pixel || [state.sample.width >> 1, state.sample.height >> 1] : null);
  }

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function canvasKey(event) {
    const step = event.shiftKey ? 8 : 1, move = MOVES[event.key];
    if (move) moveStar(move[0] * step, move[1] * step);
    else if (event.key === "Enter" || event.key === " ") fix(!state.fixed);
    else if (event.key === "Escape") fix(false);
    else if (event.key === "PageDown") open(state.index + 1);
    else if (event.key === "PageUp") open(state.index - 1);
    else return;
    event.preventDefault();
  }

  function sampleKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !sources.length) return;
    const onSwitch = ["previous", "next"].includes(event.target.id);
    if (event.key === "n" || (onSwitch && event.key === "ArrowRight")) open(state.index + 1);
    if (event.key === "p" || (onSwitch && event.key === "ArrowLeft")) open(state.index - 1);
  }

  function listen() {
    canvas.addEventListener("pointermove", (event) => {
      if (state.sample && !state.fixed && event.pointerType !== "touch") pointAt(pixelOf(event));
    });
    canvas.addEventListener("click", (event) => {
      if (!state.sample) return;
      state.fixed = event.detail > 0; // a tap or click fixes the star there
      pointAt(pixelOf(event));
    });
    canvas.addEventListener("keydown", (event) => state.sample && canvasKey(event));
    byId("explorer").addEventListener("keydown", sampleKey);
    slider.addEventListener("input", () => { nameLayer(); if (state.pixel) pointAt(state.pixel); else draw(); });
    for (const input of document.querySelectorAll('#overlay, #boundaries, input[name="view"]')) {
      input.addEventListener("change", () => state.sample && loadView());
    }
    byId("previous").addEventListener("click", () => open(state.index - 1));
    byId("next").addEventListener("click", () => open(state.index + 1));
    for (const tile of document.querySelectorAll("[data-sample]")) {
      tile.addEventListener("click", () => {
        open(+tile.dataset.sample);
        byId("explorer").scrollIntoView();
        canvas.focus({ preventScroll: true });
      });
    }
  }

  // ---- theme ------------------------------------------------------------------------------

  function applyTheme(theme) {
    if (theme === "automatic") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
  }

  function startTheme() {
    const themes = ["automatic", "dark", "light"];
    let theme = "automatic";
    try { theme = localStorage.getItem("synthgen-theme") || theme; } catch { /* no storage */ }
    applyTheme(themes.includes(theme) ? theme : "automatic");
    byId("theme").addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      applyTheme(theme);
      try { localStorage.setItem("synthgen-theme", theme); } catch { /* no storage */ }
    });
  }

  startTheme();
  if (sources.length && typeof DecompressionStream === "function") {
    listen();
    setTimeout(() => open(0)); // after the first paint
  } else {
    byId("status").textContent = sources.length ? "This browser is too old for the explorer." : "There is no sample to show.";
  }
})();
