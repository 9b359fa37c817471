"use strict";
const root = document.documentElement;
const byId = (name) => document.getElementById(name);
const make = (name, text) => Object.assign(document.createElement(name), { textContent: text ?? "" });

function isDark() {
  return root.dataset.scheme ? root.dataset.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
byId("scheme").addEventListener("click", () => {
  root.dataset.scheme = isDark() ? "light" : "dark";
  dispatchEvent(new Event("repaint"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("repaint")));

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    getSelection().selectAllChildren(text);
    try { await navigator.clipboard.writeText(text.textContent); button.textContent = "copied"; }
    catch { button.textContent = "selected"; }
  });
}

// Charts: the lines are in the page already; this tells their values at the pointer.
const charts = JSON.parse(byId("chart-data").textContent);
for (const figure of document.querySelectorAll(".chart")) {
  const chart = charts[figure.dataset.chart], svg = figure.querySelector("svg"), tip = figure.querySelector(".tip");
  const [left, right, top, bottom] = chart.box;
  const across = (x) => left + (x - chart.x[0]) / (chart.x[1] - chart.x[0] || 1) * (right - left);
  const down = (y) => bottom - (y - chart.y[0]) / (chart.y[1] - chart.y[0] || 1) * (bottom - top);
  const every = [...new Set(chart.lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  let at = -1;
  const layer = document.createElementNS(svg.namespaceURI, "g");
  svg.append(layer);
  const show = (index) => {
    at = Math.max(0, Math.min(every.length - 1, index));
    layer.replaceChildren();
    const rule = document.createElementNS(svg.namespaceURI, "path");
    rule.setAttribute("class", "cursor");
    rule.setAttribute("d", `M${across(every[at])} ${top}V${bottom}`);
    layer.append(rule);
    tip.replaceChildren(make("span", `epoch ${+every[at].toPrecision(4)}`));
    for (const line of chart.lines) {
      const point = line.points.reduce((a, b) => Math.abs(b[0] - every[at]) < Math.abs(a[0] - every[at]) ? b : a);
      const spot = document.createElementNS(svg.namespaceURI, "circle");
      spot.setAttribute("class", `spot c${line.colour % 8}`);
      spot.setAttribute("cx", across(point[0]));
      spot.setAttribute("cy", down(point[1]));
      spot.setAttribute("r", 4.5);
      layer.append(spot);
      const text = make("span"), mark = make("i");
      mark.className = `c${line.colour % 8}`;
      text.append(mark, `${chart.lines.length > 1 ? line.name + " " : ""}${+point[1].toPrecision(5)} ${chart.unit}`);
      tip.append(text);
    }
  };
  const hide = () => { layer.replaceChildren(); tip.replaceChildren(); at = -1; };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    every.forEach((value, i) => { if (Math.abs(across(value) - x) < Math.abs(across(every[best]) - x)) best = i; });
    if (best !== at) show(best);
  });
  svg.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(at < 0 ? (step > 0 ? 0 : every.length - 1) : at + step);
  });
}

// Map: drawn on a canvas, because hundreds of thumbnails as elements would be slow.
if (byId("atlas-data")) map(JSON.parse(byId("atlas-data").textContent));

function map(atlas) {
  const canvas = byId("canvas"), context = canvas.getContext("2d"), panel = byId("chosen");
  const count = atlas.names.length, sprite = new Image();
  let place = atlas.places[0].place, zoom = 1, middle = [0.5, 0.5], chosen = -1, pinned = false, drag = null;
  sprite.src = getComputedStyle(document.querySelector(".t")).backgroundImage.slice(5, -2);
  sprite.onload = () => draw();

  const groups = () => {
    const values = atlas[byId("colour").value], names = [...new Set(values)].sort((a, b) => a < b ? -1 : 1);
    return { values, names, colour: (value) => shade(names.indexOf(value), names.length) };
  };
  function shade(number, total) {
    return `hsl(${(number * 360 / total + 212) % 360} ${isDark() ? "68% 66%" : "62% " + (number % 2 ? 36 : 46) + "%"})`;
  }
  const spot = (image) => {
    const side = 26, box = canvas.getBoundingClientRect();
    return [
      side + (0.5 + (place[image][0] - middle[0]) * zoom) * (box.width - 2 * side),
      side + (0.5 - (place[image][1] - middle[1]) * zoom) * (box.height - 2 * side),
    ];
  };
  function picture(image, x, y, side) {
    const cell = sprite.naturalWidth / atlas.columns;
    context.drawImage(sprite, image % atlas.columns * cell, Math.floor(image / atlas.columns) * cell, cell, cell, x - side / 2, y - side / 2, side, side);
  }
  function draw() {
    const ratio = devicePixelRatio || 1, box = canvas.getBoundingClientRect();
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    context.scale(ratio, ratio);
    const { values, colour } = groups(), small = byId("pictures").checked && sprite.complete;
    const side = Math.min(46, 20 * Math.sqrt(zoom)), near = chosen < 0 ? [] : atlas.neighbours[chosen];
    context.lineWidth = 2;
    if (chosen >= 0) {
      const [x, y] = spot(chosen);
      context.strokeStyle = getComputedStyle(root).getPropertyValue("--quiet");
      context.globalAlpha = 0.7;
      context.beginPath();
      for (const other of near) { context.moveTo(x, y); context.lineTo(...spot(other)); }
      context.lineWidth = 1;
      context.stroke();
      context.globalAlpha = 1;
    }
    for (let image = 0; image < count; image++) {
      const [x, y] = spot(image);
      context.fillStyle = context.strokeStyle = colour(values[image]);
      if (small) { picture(image, x, y, side); context.lineWidth = 1.5; context.strokeRect(x - side / 2, y - side / 2, side, side); continue; }
      context.globalAlpha = 0.8;
      context.beginPath();
      context.arc(x, y, Math.min(8, 3.6 * Math.sqrt(zoom)), 0, 7);
      context.fill();
      context.globalAlpha = 1;
    }
    for (const [image, size] of [...near.map((other) => [other, 30]), ...(chosen < 0 ? [] : [[chosen, 52]])]) {
      const [x, y] = spot(image);
      if (sprite.complete) picture(image, x, y, size);
      context.strokeStyle = colour(values[image]);
      context.lineWidth = image === chosen ? 3 : 2;
      context.strokeRect(x - size / 2, y - size / 2, size, size);
    }
  }
  function key() {
    const { names, colour } = groups();
    byId("key").replaceChildren(...names.slice(0, 40).map((name) => {
      const part = make("span"), mark = make("i");
      mark.style.color = colour(name);
      part.append(mark, byId("colour").value === "cluster" ? `cluster ${name + 1}` : name);
      return part;
    }));
  }
  const words = (image) => [atlas.names[image], atlas.labels[image]].filter(Boolean).join(" · ");
  function thumb(image, size) {
    const span = make("span");
    span.className = "t";
    span.style.cssText = `--d:${size}px;--x:${image % atlas.columns};--y:${Math.floor(image / atlas.columns)}`;
    span.role = "img";
    span.ariaLabel = `image ${words(image)}`;
    return span;
  }
  function choose(image) {
    if (image === chosen) return;
    chosen = image;
    if (image < 0) { panel.replaceChildren(make("p", "No image is chosen.")); draw(); return; }
    const big = make("div"), about = make("div"), line = make("div");
    big.className = "big";
    about.append(make("p", words(image)), make("p", `cluster ${atlas.cluster[image] + 1}`));
    big.append(thumb(image, 112), about);
    line.className = "line";
    atlas.neighbours[image].forEach((other, i) => {
      const button = make("button");
      button.type = "button";
      button.append(thumb(other, 56), make("small", atlas.similarity[image][i].toFixed(2)));
      button.addEventListener("click", () => { pinned = true; choose(other); });
      line.append(button);
    });
    panel.replaceChildren(big, make("p", "Nearest neighbours and their similarity:"), line);
    draw();
  }
  function nearest(event) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = 18 ** 2;
    for (let image = 0; image < count; image++) {
      const [a, b] = spot(image), distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least) { best = image; least = distance; }
    }
    return best;
  }
  function scale(factor) {
    zoom = Math.max(1, Math.min(24, zoom * factor));
    if (zoom === 1) middle = [0.5, 0.5];
    else if (chosen >= 0 && factor > 1) middle = [...place[chosen]];
    draw();
  }
  canvas.addEventListener("pointerdown", (event) => {
    pinned = (chosen = -2, choose(nearest(event)), chosen >= 0);
    drag = zoom > 1 ? [event.clientX, event.clientY] : null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      const box = canvas.getBoundingClientRect();
      middle = [middle[0] - (event.clientX - drag[0]) / box.width / zoom, middle[1] + (event.clientY - drag[1]) / box.height / zoom];
      drag = [event.clientX, event.clientY];
      draw();
    } else if (!pinned && nearest(event) >= 0) choose(nearest(event));
  });
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Escape") { pinned = false; choose(-1); }
    else if (event.key === "Enter" && chosen >= 0) { pinned = true; choose(atlas.neighbours[chosen][0]); }
    else if (event.key === "+") scale(1.6);
    else if (event.key === "-") scale(1 / 1.6);
    else if (way) {
      event.preventDefault();
      const from = chosen < 0 ? [0.5, 0.5] : place[chosen];
      let best = -1, least = Infinity;
      for (let image = 0; image < count; image++) {
        const x = place[image][0] - from[0], y = place[image][1] - from[1];
        const along = x * way[0] + y * way[1], aside = Math.abs(x * way[1] - y * way[0]);
        if (image !== chosen && along > 0 && along >= aside && along + 2 * aside < least) { best = image; least = along + 2 * aside; }
      }
      if (best >= 0) { pinned = true; choose(best); }
    }
  });
  byId("in").addEventListener("click", () => scale(1.6));
  byId("out").addEventListener("click", () => scale(1 / 1.6));
  byId("whole").addEventListener("click", () => { zoom = 1; scale(1); });
  byId("pictures").addEventListener("change", draw);
  byId("colour").addEventListener("change", () => { key(); draw(); });
  byId("places")?.addEventListener("change", (event) => {
    const chosenPlaces = atlas.places[event.target.value];
    place = chosenPlaces.place;
    byId("manner").textContent = chosenPlaces.how;
    scale(1);
  });
  addEventListener("repaint", () => { key(); draw(); });
  new ResizeObserver(draw).observe(canvas);
  key();
}
