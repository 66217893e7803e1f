// One image in one or more panels, with objects drawn over it: see viewer.py for what the model's traits hold.

const STEP = 1.25; // of one press of a zoom button
const MOST = 40; // times the size at which the image fits its panel
const LINE = 2; // pixels of an outline, in its colour; on one of twice its width in black
const FONT = "12px sans-serif";
const COPIED = 1e7; // pixels of a panel's copies of outlines, beyond which they are stroked again
const KEYS = 12; // names of a legend, beyond which only those on the screen are listed
const MODES = { masks: "Masks", outlines: "Outlines", boxes: "Boxes", captions: "Captions" };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Text that is set invalidates the page's layout, even where it stays the same.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function readable(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16) / 255);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) > 0.179 ? "#000" : "#fff";
}

// The outlines of all objects are one buffer of pairs x, y in quarters of a pixel; rings are [start, end) of points.
function pathsOf(content, buffer) {
  // A copy, since a message's buffers need not begin at an even byte.
  const points = new Int16Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength));
  const path = (object) => {
    const shape = new Path2D();
    for (const [start, end] of object.rings) {
      for (let i = start; i < end; i++) {
        const [x, y] = [points[2 * i] / 4, points[2 * i + 1] / 4];
        if (i === start) shape.moveTo(x, y);
        else shape.lineTo(x, y);
      }
      shape.closePath();
    }
    return shape;
  };
  return content.panels.map((panel) => panel.objects.map(path));
}

function render({ model, el }) {
  const state = { bitmap: null, paths: [], zoom: 1, x: 0, y: 0, isolated: null, hovered: null, drag: null };
  const probe = document.createElement("canvas").getContext("2d");
  const content = () => model.get("content");
  const view = () => model.get("view");
  let panels = [];
  let tints = new Map();

  const toolbar = make("div", { class: "wv-toolbar", role: "toolbar", "aria-label": "View" });
  const stage = make("div", { class: "wv-stage" });
  const legend = make("div", { class: "wv-legend" });
  const counts = make("table", { class: "wv-counts" });
  const summary = make("summary");
  const reasons = make("ul", { tabindex: "0", "aria-label": "Why objects are not drawn" });
  const explain = () => {
    model.set("explaining", why.open);
    model.save_changes();
  };
  const why = make("details", { class: "wv-why", ontoggle: explain }, summary, reasons);
  const tip = make("div", { class: "wv-tip", role: "status", hidden: "" });
  const root = make("div", { class: "wv-root", tabindex: "0", role: "group", "aria-label": "Image viewer" });
  root.append(toolbar, stage, legend, make("div", { class: "wv-below" }, counts), why, tip);
  el.append(root);

  // the toolbar

  const button = (text, label, act) => make("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
  const setView = (changes) => {
    model.set("view", { ...view(), ...changes });
    model.save_changes();
  };
  const boxes = {};
  for (const [name, text] of Object.entries(MODES)) {
    boxes[name] = make("input", { type: "checkbox", "aria-label": text, onchange: () => setView({ [name]: boxes[name].checked }) });
  }
  const opacity = make("input", {
    type: "range", min: "0", max: "1", step: "0.05", "aria-label": "Opacity of masks", title: "Opacity of masks",
    oninput: () => setView({ opacity: Number(opacity.value) }),
  });
  const colour = make("select", { "aria-label": "Colour by", title: "Colour by", onchange: () => setView({ colour: colour.value }) });
  toolbar.append(
    button("−", "Zoom out (key -)", () => zoomBy(1 / STEP)),
    button("+", "Zoom in (key +)", () => zoomBy(STEP)),
    button("Fit", "Whole image (key 0)", fit),
    ...Object.entries(MODES).map(([name, text]) => make("label", {}, boxes[name], ` ${text}`)),
    make("label", {}, "opacity ", opacity),
    make("label", {}, "colour by ", colour),
  );
  function showView() {
    for (const name of Object.keys(MODES)) boxes[name].checked = view()[name];
    opacity.value = view().opacity;
    const modes = Object.keys(content().legends ?? {});
    colour.value = modes.includes(view().colour) ? view().colour : modes[0];
    let names = content().legends?.[colour.value] ?? [];
    tints = new Map(names);
    if (names.length > KEYS) {
      const there = new Set(panels.flatMap((_, number) => shownOf(number).map((i) => nameOf(number, i))));
      names = names.filter(([name]) => there.has(name));
    }
    const keys = JSON.stringify(names);
    if (legend.dataset.keys === keys) return;
    legend.dataset.keys = keys;
    legend.replaceChildren(
      ...names.map(([name, value]) => {
        const item = make("span", { class: "wv-key" }, name);
        item.style.setProperty("--key", value);
        return item;
      }),
    );
  }

  // zoom and pan: state.x, state.y is the point of the image in the middle of each panel

  const base = (canvas) => canvas.clientWidth / content().size[0];
  const scaleOf = (canvas) => base(canvas) * state.zoom;
  function fit() {
    const [w, h] = content().size;
    Object.assign(state, { zoom: 1, x: w / 2, y: h / 2 });
    draw();
  }
  function zoomBy(factor, canvas = null, at = null) {
    const zoom = Math.min(MOST, Math.max(1, state.zoom * factor));
    if (canvas && at) {
      const s = scaleOf(canvas);
      const [dx, dy] = [at[0] - canvas.clientWidth / 2, at[1] - canvas.clientHeight / 2];
      const next = base(canvas) * zoom;
      state.x += dx / s - dx / next;
      state.y += dy / s - dy / next;
    }
    state.zoom = zoom;
    keepInside();
    draw();
  }
  function keepInside() {
    const [w, h] = content().size;
    const [halfW, halfH] = [w / state.zoom / 2, h / state.zoom / 2];
    state.x = Math.min(w - halfW, Math.max(halfW, state.x));
    state.y = Math.min(h - halfH, Math.max(halfH, state.y));
  }
  function move(dx, dy) {
    state.x += dx;
    state.y += dy;
    keepInside();
    draw();
  }

  // drawing

  function nameOf(number, i) {
    return content().panels[number].objects[i].classes[colour.value] ?? model.get("verdicts")[number]?.[i];
  }
  function colourOf(number, i) {
    return tints.get(nameOf(number, i)) ?? "#969696";
  }
  function draw(changed = panels.keys()) {
    const began = performance.now();
    for (const number of changed) drawPanel(number, panels[number]);
    root.dataset.zoom = state.zoom.toFixed(3);
    root.dataset.milliseconds = (performance.now() - began).toFixed(1);
    root.dataset.draws = Number(root.dataset.draws ?? 0) + 1;
  }
  function shownOf(number) {
    return model.get("shown")[number] ?? [];
  }
  function drawPanel(number, panel) {
    const { canvas, context } = panel;
    const [w, h] = content().size;
    const ratio = window.devicePixelRatio || 1;
    const [cw, ch] = [canvas.clientWidth, Math.round((canvas.clientWidth * h) / w)];
    if (!cw) return;
    if (canvas.width !== Math.round(cw * ratio) || canvas.height !== Math.round(ch * ratio)) {
      [canvas.width, canvas.height] = [Math.round(cw * ratio), Math.round(ch * ratio)];
      canvas.style.aspectRatio = `${w} / ${h}`;
    }
    const s = scaleOf(canvas);
    const [dx, dy] = [Math.round(ratio * (cw / 2 - state.x * s)), Math.round(ratio * (ch / 2 - state.y * s))];
    const inImage = () => context.setTransform(ratio * s, 0, 0, ratio * s, dx, dy);
    const onScreen = () => context.setTransform(1, 0, 0, 1, 0, 0);
    onScreen();
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (state.bitmap) {
      if (state.zoom === 1) context.drawImage(backgroundOf(panel), 0, 0);
      else {
        inImage();
        context.imageSmoothingEnabled = s < 4;
        context.drawImage(state.bitmap, 0, 0, w, h);
      }
    }
    const objects = content().panels[number].objects;
    const shown = shownOf(number);
    panel.drawn = looksOf(number);
    const alone = state.isolated?.panel === number ? state.isolated.object : null;
    const bySize = shown.filter((i) => inSight(objects[i].box, s, cw, ch)).sort((a, b) => objects[b].area - objects[a].area);
    for (const i of bySize) {
      const [object, path, tint] = [objects[i], state.paths[number][i], colourOf(number, i)];
      const chosen = alone === null || alone === i;
      const lit = state.hovered?.panel === number && state.hovered.object === i;
      if (view().masks && chosen) {
        context.globalAlpha = Math.min(1, view().opacity + (lit ? 0.2 : 0));
        const mask = copied("mask", number, i, s * ratio, ratio, tint);
        if (mask) {
          onScreen();
          context.drawImage(mask.bitmap, mask.x + dx, mask.y + dy);
        } else {
          inImage();
          fill(context, path, tint);
        }
      }
      inImage();
      context.globalAlpha = chosen ? 1 : 0.35;
      if (view().boxes && chosen) {
        const [x0, y0, x1, y1] = object.box;
        context.strokeStyle = tint;
        context.lineWidth = LINE / s;
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
      const outline = view().outlines && !lit && copied("outline", number, i, s * ratio, ratio, tint);
      if (outline) {
        onScreen();
        context.drawImage(outline.bitmap, outline.x + dx, outline.y + dy);
      } else if (view().outlines || lit) stroke(context, path, object.dashed, tint, s, lit);
    }
    context.globalAlpha = 1;
    if (view().captions) drawCaptions(number, context, s, [cw, ch], shown.filter((i) => alone === null || alone === i));
  }
  function inSight([x0, y0, x1, y1], s, cw, ch) {
    const [left, top] = [state.x - cw / 2 / s, state.y - ch / 2 / s];
    return x1 >= left && y1 >= top && x0 <= left + cw / s && y0 <= top + ch / s;
  }
  function fill(context, path, tint) {
    context.fillStyle = tint;
    context.fill(path, "evenodd");
  }
  function stroke(context, path, dashed, tint, s, lit) {
    context.setLineDash(dashed ? [6 / s, 4 / s] : []);
    context.strokeStyle = "#000";
    context.lineWidth = (2 * LINE) / s;
    context.stroke(path);
    context.strokeStyle = tint;
    context.lineWidth = (LINE / s) * (lit ? 1.6 : 1);
    context.stroke(path);
    context.setLineDash([]);
  }

  // Which objects a panel shows, in which colours: what a redraw would change.
  function looksOf(number) {
    return shownOf(number).map((i) => `${i}${colourOf(number, i)}`).join();
  }

  // Strokes and letters take most of a redraw, so each is painted once, at one scale, and copied from then on.
  const noCopies = () => ({ scale: 0, pixels: 0, shapes: new Map(), plates: new Map(), background: null });
  function forget(copies) {
    for (const { bitmap } of [...copies.shapes.values(), ...copies.plates.values()]) bitmap.close();
    copies.background?.close();
    Object.assign(copies, noCopies());
  }
  function copyOf(width, height, paint) {
    const sheet = new OffscreenCanvas(Math.max(1, width), Math.max(1, height));
    paint(sheet.getContext("2d"));
    return sheet.transferToImageBitmap();
  }
  function backgroundOf({ canvas: { width, height }, copies }) {
    if (copies.background?.width !== width || copies.background.height !== height) {
      copies.background?.close();
      copies.background = copyOf(width, height, (context) => context.drawImage(state.bitmap, 0, 0, width, height));
    }
    return copies.background;
  }
  // scale: device pixels a pixel of the image. Null where the copies would take too much memory.
  function copied(what, number, i, scale, ratio, tint) {
    const { copies } = panels[number];
    if (copies.scale !== scale) {
      forget(copies);
      copies.scale = scale;
    }
    const key = `${what}:${i}:${tint}`;
    if (!copies.shapes.has(key)) {
      const { box, dashed } = content().panels[number].objects[i];
      const [x, y] = [box[0], box[1]].map((value) => Math.floor(value * scale - 2 * LINE * ratio));
      const [width, height] = [box[2] * scale - x, box[3] * scale - y].map((side) => Math.ceil(side + 2 * LINE * ratio));
      if (copies.pixels + width * height > COPIED) return null;
      copies.pixels += width * height;
      const bitmap = copyOf(width, height, (context) => {
        context.setTransform(scale, 0, 0, scale, -x, -y);
        const path = state.paths[number][i];
        if (what === "mask") fill(context, path, tint);
        else stroke(context, path, dashed, tint, scale / ratio, false);
      });
      copies.shapes.set(key, { bitmap, x, y });
    }
    return copies.shapes.get(key);
  }
  function plateOf({ copies }, lines, tint, ratio) {
    const key = `${tint}:${ratio}:${lines.join("\n")}`;
    if (!copies.plates.has(key)) {
      probe.font = FONT;
      const width = Math.max(...lines.map((text) => probe.measureText(text).width)) + 6;
      const height = 14 * lines.length + 4;
      const bitmap = copyOf(Math.ceil(width * ratio), Math.ceil(height * ratio), (context) => {
        context.setTransform(ratio, 0, 0, ratio, 0, 0);
        context.fillStyle = tint;
        context.fillRect(0, 0, width, height);
        context.fillStyle = readable(tint);
        context.font = FONT;
        context.textBaseline = "top";
        lines.forEach((text, k) => context.fillText(text, 3, 3 + 14 * k));
      });
      copies.plates.set(key, { bitmap, width, height });
    }
    return copies.plates.get(key);
  }
  function drawCaptions(number, context, s, [cw, ch], shown) {
    const [ratio, objects] = [window.devicePixelRatio || 1, content().panels[number].objects];
    context.setTransform(1, 0, 0, 1, 0, 0);
    const taken = [];
    let left = 0;
    for (const i of shown) {
      const { box, caption } = objects[i];
      if (!inSight(box, s, cw, ch)) continue;
      const { bitmap, width, height } = plateOf(panels[number], caption, colourOf(number, i), ratio);
      const [x0, y0, x1, y1] = box.map((value, k) => (value - (k % 2 ? state.y : state.x)) * s + (k % 2 ? ch : cw) / 2);
      const spots = [[x0, y0 - height], [x0, y1], [x0, y0], [x1 - width, y1 - height], [x1, y0], [x0 - width, y0]];
      const spot = spots
        .map(([x, y]) => [Math.min(Math.max(x, 0), cw - width), Math.min(Math.max(y, 0), ch - height)])
        .find(([x, y]) => !taken.some(([a, b, c, d]) => x < c && a < x + width && y < d && b < y + height));
      if (!spot) {
        left++;
        continue;
      }
      taken.push([spot[0], spot[1], spot[0] + width, spot[1] + height]);
      context.drawImage(bitmap, Math.round(spot[0] * ratio), Math.round(spot[1] * ratio));
    }
    if (left) {
      const { bitmap } = plateOf(panels[number], [`${left} caption${left === 1 ? "" : "s"} left out`], "#000000", ratio);
      context.drawImage(bitmap, context.canvas.width - bitmap.width, context.canvas.height - bitmap.height);
    }
  }

  // What stands on the screen, without the toolbar, as one PNG for Python to keep.
  function save() {
    const ratio = window.devicePixelRatio || 1;
    const frame = stage.getBoundingClientRect();
    const sheet = make("canvas");
    sheet.width = Math.round(frame.width * ratio);
    sheet.height = Math.round((legend.getBoundingClientRect().bottom - frame.top) * ratio);
    const context = sheet.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, -frame.left * ratio, -frame.top * ratio);
    context.fillStyle = colourBehind(root);
    context.fillRect(frame.left, frame.top, sheet.width, sheet.height);
    for (const { canvas, title } of panels) {
      const box = canvas.getBoundingClientRect();
      context.drawImage(canvas, box.left, box.top, box.width, box.height);
      write(context, title, title.firstChild);
    }
    for (const item of legend.children) {
      const [box, size] = [item.getBoundingClientRect(), 10];
      context.fillStyle = item.style.getPropertyValue("--key");
      context.fillRect(box.left, box.top + (box.height - size) / 2, size, size);
      write(context, item, item.firstChild);
    }
    sheet.toBlob(async (blob) => model.send({ png: true }, undefined, [await blob.arrayBuffer()]), "image/png");
  }
  // Words where the browser has put them, each word by itself, since lines may be broken.
  function write(context, element, node) {
    const style = getComputedStyle(element);
    context.font = `${style.fontSize} ${style.fontFamily}`;
    context.fillStyle = style.color;
    context.textBaseline = "middle";
    for (const { 0: word, index } of node?.data.matchAll(/\S+/g) ?? []) {
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      const box = range.getClientRects()[0];
      if (box) context.fillText(word, box.left, box.top + box.height / 2);
    }
  }
  function colourBehind(element) {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!/^rgba\(.*, 0\)$|transparent/.test(colour)) return colour;
    }
    return "#fff";
  }

  // pointing

  function imagePoint(event, canvas) {
    const box = canvas.getBoundingClientRect();
    const s = scaleOf(canvas);
    const at = [event.clientX - box.left, event.clientY - box.top];
    return { at, x: state.x + (at[0] - canvas.clientWidth / 2) / s, y: state.y + (at[1] - canvas.clientHeight / 2) / s };
  }
  function objectAt(number, { x, y }) {
    const objects = content().panels[number].objects;
    const hits = shownOf(number).filter((i) => probe.isPointInPath(state.paths[number][i], x, y, "evenodd"));
    hits.sort((a, b) => objects[a].area - objects[b].area);
    return hits.length ? { panel: number, object: hits[0] } : null;
  }
  function showTip(event, target) {
    if (!target) {
      tip.hidden = true;
      return;
    }
    const object = content().panels[target.panel].objects[target.object];
    const verdict = model.get("verdicts")[target.panel]?.[target.object];
    const rows = [...object.details, ...(verdict ? [["judged", verdict]] : [])];
    tip.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("b", {}, `${name} `), String(value))));
    tip.hidden = false;
    const box = root.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4))}px`;
    const [below, above] = [event.clientY - box.top + 14, event.clientY - box.top - tip.offsetHeight - 8];
    tip.style.top = `${below + tip.offsetHeight > box.height && above > 0 ? above : below}px`;
  }
  const same = (a, b) => a?.panel === b?.panel && a?.object === b?.object;
  function listen(canvas, number) {
    canvas.addEventListener("pointerdown", (event) => {
      state.drag = { x: event.clientX, y: event.clientY, moved: false };
      canvas.setPointerCapture(event.pointerId);
      root.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
      if (state.drag) {
        const [dx, dy] = [event.clientX - state.drag.x, event.clientY - state.drag.y];
        if (!state.drag.moved && Math.hypot(dx, dy) < 4) return;
        state.drag = { x: event.clientX, y: event.clientY, moved: true };
        move(-dx / scaleOf(canvas), -dy / scaleOf(canvas));
        return;
      }
      const target = objectAt(number, imagePoint(event, canvas));
      showTip(event, target);
      if (!same(target, state.hovered)) {
        state.hovered = target;
        draw();
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      const moved = state.drag?.moved;
      state.drag = null;
      if (moved) return;
      const target = objectAt(number, imagePoint(event, canvas));
      state.isolated = same(target, state.isolated) ? null : target;
      root.dataset.isolated = state.isolated ? `${state.isolated.panel}:${state.isolated.object}` : "";
      draw();
    });
    canvas.addEventListener("pointerleave", () => {
      tip.hidden = true;
      if (state.hovered) {
        state.hovered = null;
        draw();
      }
    });
    canvas.addEventListener("dblclick", fit);
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== root) return; // the page scrolls
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 300), canvas, imagePoint(event, canvas).at);
    }, { passive: false });
  }
  root.addEventListener("keydown", (event) => {
    if (event.target !== root) return;
    const far = content().size[0] / state.zoom / 10;
    const keys = {
      "+": () => zoomBy(STEP), "=": () => zoomBy(STEP), "-": () => zoomBy(1 / STEP), 0: fit,
      ArrowLeft: () => move(-far, 0), ArrowRight: () => move(far, 0), ArrowUp: () => move(0, -far), ArrowDown: () => move(0, far),
      n: () => model.send({ go: 1 }), p: () => model.send({ go: -1 }), m: () => model.send({ mark: true }),
      Escape: () => { state.isolated = null; root.dataset.isolated = ""; draw(); },
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab has commands on single letters
    keys[event.key]();
  });

  // what Python changes

  function rebuild() {
    for (const { copies } of panels) forget(copies);
    Object.assign(state, { isolated: null, hovered: null, paths: pathsOf(content(), model.get("outlines")) });
    tip.hidden = true;
    panels = content().panels.map((panel, number) => {
      const canvas = make("canvas", { role: "img" });
      canvas.style.setProperty("--aspect", content().size[0] / content().size[1]);
      const title = make("figcaption");
      stage.append(make("figure", {}, title, canvas));
      listen(canvas, number);
      return { canvas, title, context: canvas.getContext("2d"), copies: noCopies(), drawn: "" };
    });
    stage.replaceChildren(...panels.map(({ canvas }) => canvas.parentElement));
    const modes = Object.keys(content().legends ?? {});
    colour.replaceChildren(...modes.map((name) => make("option", { value: name }, name)));
    showView();
    showTitles();
    showCounts();
    const key = `${content().key}`;
    if (state.key !== key) {
      state.key = key;
      fit();
    } else draw();
    const bytes = model.get("picture");
    createImageBitmap(new Blob([bytes], { type: "image/jpeg" })).then((bitmap) => {
      if (state.key !== key) return;
      state.bitmap = bitmap;
      for (const { copies } of panels) forget(copies);
      root.dataset.image = key;
      draw();
    });
  }
  function showTitles() {
    for (const [number, { canvas, title }] of panels.entries()) {
      const words = model.get("titles")[number] ?? {};
      setText(title, words.title ?? "");
      canvas.setAttribute("aria-label", words.alt ?? "");
    }
  }
  function showCounts() {
    const columns = model.get("counts");
    const kind = columns.map(([name, , style]) => `${name}:${style}`).join();
    if (counts.dataset.kind !== kind) {
      counts.dataset.kind = kind;
      const cells = (tag) => columns.map(([name, , style]) => make(tag, { class: style }, tag === "th" ? name : ""));
      counts.replaceChildren(make("tr", {}, ...cells("th")), make("tr", {}, ...cells("td")));
    }
    for (const [place, [, number]] of columns.entries()) setText(counts.rows[1].cells[place], `${number}`.replace("-", "−"));
    const dropped = model.get("left_out");
    why.hidden = !dropped;
    why.open = model.get("explaining");
    setText(summary, `Why ${dropped} ${dropped === 1 ? "is" : "are"} not drawn`);
    if (why.open) reasons.replaceChildren(...model.get("reasons").map((line) => make("li", {}, line)));
  }
  // Everything of a redraw arrives as one message; each trait of it raises an event of its own.
  let waiting = 0;
  let stale = { content: false, view: false };
  const later = (part) => () => {
    if (part) stale[part] = true;
    waiting ||= requestAnimationFrame(() => {
      const { content: whole, view: all } = stale;
      waiting = 0;
      stale = { content: false, view: false };
      if (whole) {
        rebuild();
        return;
      }
      showView();
      showTitles();
      showCounts();
      draw([...panels.keys()].filter((number) => all || panels[number].drawn !== looksOf(number)));
    });
  };
  model.on("msg:custom", (message) => {
    if (message.export) save();
  });
  for (const name of ["content", "outlines", "picture"]) model.on(`change:${name}`, later("content"));
  for (const name of ["shown", "verdicts", "titles", "counts", "reasons"]) model.on(`change:${name}`, later());
  model.on("change:view", later("view"));
  // ipywidgets gives the handles of its sliders a role, and no name.
  function nameSliders() {
    for (const slider of el.closest(".workbench-browser")?.querySelectorAll(".widget-slider") ?? []) {
      const name = slider.querySelector(".widget-label")?.textContent;
      for (const handle of slider.querySelectorAll(".noUi-handle")) handle.setAttribute("aria-label", name);
    }
  }
  const observer = new ResizeObserver(() => {
    nameSliders();
    draw();
  });
  observer.observe(stage);
  if (content().size) rebuild();
  return () => observer.disconnect();
}

export default { render };
