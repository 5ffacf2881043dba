"use strict";
document.documentElement.classList.add("js");

const all = (selector) => [...document.querySelectorAll(selector)];
const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));

// ---- sorting: cards and rows carry their numbers as data attributes
const sorters = all("[data-sort]");
for (const button of sorters) {
  button.addEventListener("click", () => {
    const { sort, order } = button.dataset;
    const value = (element) => {
      const number = Number(element.dataset[sort]);
      return Number.isNaN(number) ? Infinity : Number(order) * number;
    };
    for (const box of all(".cards, .rows")) {
      box.append(...[...box.children].sort((a, b) => value(a) - value(b)));
    }
    press(sorters, button);
  });
}

// ---- the map
const data = JSON.parse(document.getElementById("data").textContent);
const plane = document.querySelector("canvas.plane");
if (plane && data.n) {
  const pen = plane.getContext("2d");
  const tip = document.querySelector(".tip");
  const said = document.getElementById("said");
  const sprite = document.getElementById("sprite");
  const PAD = 26, REACH = 18, GRAY = "#8d8980";
  let scale = 1, shiftX = 0, shiftY = 0, width = 0, height = 0;
  let over = -1, chosen = null, mode = "dots", drag = null, waiting = false;

  const color = (i) => data.colors[data.cluster[i]] || GRAY;
  const screenX = (i) => PAD + (data.x[i] / 1e4) * (width - 2 * PAD) * scale + shiftX;
  const screenY = (i) => PAD + (data.y[i] / 1e4) * (height - 2 * PAD) * scale + shiftY;
  const indices = Array.from({ length: data.n }, (_, i) => i);
  const visible = (i) => {
    const x = screenX(i), y = screenY(i);
    return x > -20 && y > -20 && x < width + 20 && y < height + 20;
  };

  // a cluster's name stands at the member nearest to the median of its places
  const names = [];
  const groups = new Map();
  for (const i of indices) {
    if (!groups.has(data.cluster[i])) groups.set(data.cluster[i], []);
    groups.get(data.cluster[i]).push(i);
  }
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  for (const [cluster, members] of groups) {
    if (cluster < 0) continue;
    const mx = median(members.map((i) => data.x[i])), my = median(members.map((i) => data.y[i]));
    const away = (i) => (data.x[i] - mx) ** 2 + (data.y[i] - my) ** 2;
    names.push([cluster, members.reduce((a, b) => (away(b) < away(a) ? b : a)), members.length]);
  }

  function draw() {
    waiting = false;
    const dense = window.devicePixelRatio || 1;
    width = plane.clientWidth;
    height = plane.clientHeight;
    plane.width = Math.round(width * dense);
    plane.height = Math.round(height * dense);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink"), paper = style.getPropertyValue("--raised");
    const order = indices.filter(visible);
    order.sort((a, b) => (data.cluster[a] === chosen) - (data.cluster[b] === chosen));
    if (mode === "pictures" && sprite) drawPictures(order);
    else drawDots(order);
    if (mode === "dots") drawNames(ink, paper);
    if (over >= 0) ring(over, ink, paper);
  }

  function drawDots(order) {
    const radius = Math.max(2.2, Math.min(5, width / 300)) * Math.min(1.7, Math.sqrt(scale));
    for (const i of order) {
      pen.globalAlpha = chosen === null ? 0.85 : data.cluster[i] === chosen ? 1 : 0.13;
      pen.fillStyle = color(i);
      pen.beginPath();
      pen.arc(screenX(i), screenY(i), radius, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  // pictures stay where their points are; one that would lie over another waits for a closer look
  function drawPictures(order) {
    const side = Math.max(26, Math.min(48, width / 24)), taken = new Set();
    for (const i of order.reverse()) {
      const column = Math.round(screenX(i) / side), row = Math.round(screenY(i) / side);
      if (taken.has(column + ":" + row)) continue;
      taken.add(column + ":" + row);
      const x = column * side - side / 2, y = row * side - side / 2;
      pen.globalAlpha = chosen === null || data.cluster[i] === chosen ? 1 : 0.15;
      pen.fillStyle = color(i);
      pen.fillRect(x + 1, y + 1, side - 2, side - 2);
      stamp(pen, i, x + 3, y + 3, side - 6);
    }
    pen.globalAlpha = 1;
  }

  function stamp(on, i, x, y, side) {
    if (!sprite) return;
    const { cell, columns } = data;
    on.drawImage(sprite, (i % columns) * cell, Math.floor(i / columns) * cell, cell, cell, x, y, side, side);
  }

  function drawNames(ink, paper) {
    if (names.length > 60 && chosen === null) return;
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    for (const [cluster, i, size] of names) {
      if (chosen !== null && cluster !== chosen) continue;
      if (chosen === null && size < data.n / 400) continue;
      pen.lineWidth = 4;
      pen.strokeStyle = paper;
      pen.fillStyle = ink;
      pen.strokeText(cluster, screenX(i), screenY(i));
      pen.fillText(cluster, screenX(i), screenY(i));
    }
  }

  function ring(i, ink, paper) {
    for (const [line, stroke] of [[5, paper], [2, ink]]) {
      pen.lineWidth = line;
      pen.strokeStyle = stroke;
      pen.beginPath();
      pen.arc(screenX(i), screenY(i), 8, 0, 7);
      pen.stroke();
    }
  }

  function later() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function nearest(x, y, reach) {
    let best = -1, least = reach * reach;
    for (const i of indices) {
      const far = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
      if (far < least && (chosen === null || data.cluster[i] === chosen || far < 16)) [best, least] = [i, far];
    }
    return best;
  }

  const clusterName = (cluster) => (cluster < 0 ? "no cluster" : "Cluster " + cluster);

  function pointAt(i) {
    if (i === over) return;
    over = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      const [picture, name, path] = tip.children;
      picture.hidden = !sprite;
      stamp(picture.getContext("2d"), i, 0, 0, picture.width);
      name.textContent = clusterName(data.cluster[i]);
      path.textContent = data.path[i];
      const x = screenX(i), y = screenY(i);
      const left = x + 18 + tip.offsetWidth > width ? x - 18 - tip.offsetWidth : x + 18;
      const top = y - tip.offsetHeight / 2;
      tip.style.left = Math.max(6, Math.min(width - tip.offsetWidth - 6, left)) + "px";
      tip.style.top = Math.max(6, Math.min(height - tip.offsetHeight - 6, top)) + "px";
    }
    later();
  }

  function choose(cluster) {
    chosen = cluster;
    all(".card.chosen").forEach((card) => card.classList.remove("chosen"));
    said.replaceChildren();
    if (cluster !== null) {
      const card = document.getElementById("cluster-" + cluster);
      if (card) card.classList.add("chosen");
      said.append(`${clusterName(cluster)}: ${(groups.get(cluster) || []).length.toLocaleString("en")} on the map. `);
      if (card) {
        const link = document.createElement("a");
        link.href = "#" + card.id;
        link.textContent = "See its card";
        said.append(link);
      }
    }
    later();
  }

  function zoom(by, x = width / 2, y = height / 2) {
    const next = by ? Math.max(1, Math.min(24, scale * by)) : 1;
    shiftX = next === 1 ? 0 : x - PAD - ((x - PAD - shiftX) * next) / scale;
    shiftY = next === 1 ? 0 : y - PAD - ((y - PAD - shiftY) * next) / scale;
    scale = next;
    plane.style.touchAction = scale > 1 ? "none" : "pan-y";
    pointAt(-1);
    later();
  }

  const place = (event) => {
    const box = plane.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  plane.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, shiftX, shiftY, moved: false };
  });
  plane.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      drag.moved = drag.moved || dx * dx + dy * dy > 25;
      if (drag.moved && scale > 1) {
        plane.setPointerCapture(event.pointerId);
        [shiftX, shiftY] = [drag.shiftX + dx, drag.shiftY + dy];
        pointAt(-1);
        later();
        return;
      }
    }
    pointAt(nearest(...place(event), REACH));
  });
  plane.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && pointAt(-1));
  plane.addEventListener("click", (event) => {
    const moved = drag && drag.moved;
    drag = null;
    if (moved) return;
    const i = nearest(...place(event), REACH * 1.5);
    pointAt(i);
    choose(i < 0 || (data.cluster[i] === chosen && event.pointerType === "mouse") ? null : data.cluster[i]);
  });
  plane.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // plain scrolling belongs to the page
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 200), ...place(event));
  }, { passive: false });

  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  plane.addEventListener("keydown", (event) => {
    const way = ways[event.key];
    if (way) pointAt(over < 0 ? nearest(width / 2, height / 2, Infinity) : step(over, way));
    else if (event.key === "Enter" && over >= 0) choose(data.cluster[over]);
    else if (event.key === "Escape") { pointAt(-1); choose(null); }
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(0.625);
    else if (event.key === "0") zoom(0);
    else return;
    if ((way || event.key === "Enter") && over >= 0) {
      plane.setAttribute("aria-label", `${clusterName(data.cluster[over])}, ${data.path[over]}`);
    }
    event.preventDefault();
  });

  // the next point in a direction: near, and not too far aside
  function step(from, [wx, wy]) {
    let best = from, least = Infinity;
    for (const i of indices) {
      const dx = screenX(i) - screenX(from), dy = screenY(i) - screenY(from);
      const ahead = dx * wx + dy * wy, aside = Math.abs(dx * wy) + Math.abs(dy * wx);
      if (ahead > 0.5 && visible(i) && ahead + 2.5 * aside < least) [best, least] = [i, ahead + 2.5 * aside];
    }
    return best;
  }

  const modes = all("[data-mode]");
  modes.forEach((b) => b.addEventListener("click", () => { mode = b.dataset.mode; press(modes, b); later(); }));
  all("[data-zoom]").forEach((b) => b.addEventListener("click", () => zoom(Number(b.dataset.zoom))));
  all(".card .find").forEach((b) => b.addEventListener("click", () => {
    choose(Number(b.closest(".card").dataset.cluster));
    document.getElementById("map").scrollIntoView();
  }));
  new ResizeObserver(later).observe(plane);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  if (sprite) sprite.decode().then(later, later);
}
