// ---- the map of all images: dots or pictures, what is under the pointer, clusters to follow, a lasso
const plane = document.querySelector("canvas.plane");
const placed = plane && album.x ? Array.from(album.x.keys()).filter((i) => album.x[i] !== null) : [];
if (placed.length) {
  const pen = plane.getContext("2d");
  const tip = document.querySelector(".tip");
  const said = element("said");
  const PAD = 26, REACH = 18, GRAY = "#8d8980", MANY = 4000, DEEPEST = 60;
  let scale = 1, shiftX = 0, shiftY = 0, width = 0, height = 0;
  let over = -1, chosen = null, mode = "dots", drag = null, waiting = false, lasso = null, isLassoMode = false;
  let tiles = new Map(), groups = new Map(), names = [];

  const colorOf = (cluster) => album.colors[cluster] || GRAY;
  const color = (i) => colorOf(clusterOf(i));
  const screenX = (i) => PAD + (album.x[i] / 1e4) * (width - 2 * PAD) * scale + shiftX;
  const screenY = (i) => PAD + (album.y[i] / 1e4) * (height - 2 * PAD) * scale + shiftY;
  const visible = (i) => {
    const x = screenX(i), y = screenY(i);
    return x > -20 && y > -20 && x < width + 20 && y < height + 20;
  };
  const isAside = (i) => chosen !== null && clusterOf(i) !== chosen;

  // a cluster's name stands at the member nearest to the median of its places
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  function regroup() {
    groups = new Map();
    names = [];
    version += 1;
    for (const i of placed) {
      const cluster = clusterOf(i);
      if (!groups.has(cluster)) groups.set(cluster, []);
      groups.get(cluster).push(i);
    }
    const colored = new Map(Array.from(groups.keys(), (cluster) => [cluster, color32(cluster)]));
    ordered.forEach((i, n) => {
      groupAt[n] = clusterOf(i);
      inks[n] = colored.get(groupAt[n]);
    });
    for (const [cluster, members] of groups) {
      if (cluster < 0) continue;
      const mx = median(members.map((i) => album.x[i])), my = median(members.map((i) => album.y[i]));
      const away = (i) => (album.x[i] - mx) ** 2 + (album.y[i] - my) ** 2;
      names.push([cluster, members.reduce((a, b) => (away(b) < away(a) ? b : a)), members.length]);
    }
    if (chosen !== null && !groups.has(chosen)) choose(null);
    later();
  }

  // cells of the sheets for the map, no larger than it shows them; null until a sheet is decoded
  const bitmaps = [];
  function cellOf(i) {
    if (!album.cell || missing.has(i)) return null;
    const { perSheet, columns } = album, k = Math.floor(i / perSheet), side = Math.min(album.cell, 48);
    if (bitmaps[k] === undefined) {
      bitmaps[k] = null;
      createImageBitmap(sheetBlob(k), { resizeWidth: columns * side, resizeQuality: "medium" }).then((made) => {
        bitmaps[k] = made;
        later();
      }, () => {});
    }
    return bitmaps[k] && [bitmaps[k], ((i % perSheet) % columns) * side, Math.floor((i % perSheet) / columns) * side, side];
  }

  function draw() {
    waiting = false;
    const dense = window.devicePixelRatio || 1;
    width = plane.clientWidth;
    height = plane.clientHeight;
    if (plane.width !== Math.round(width * dense) || plane.height !== Math.round(height * dense)) {
      plane.width = Math.round(width * dense);
      plane.height = Math.round(height * dense);
    }
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink"), paper = style.getPropertyValue("--raised");
    tiles = new Map();
    if (mode === "pictures") drawPictures();
    else if (placed.length > MANY) drawMany(dense);
    else drawDots();
    if (mode === "dots") drawNames(ink, paper);
    if (lasso) drawLasso(ink);
    if (over >= 0 && mode === "dots") ring(over, ink, paper);
  }

  function drawDots() {
    const radius = Math.max(2.2, Math.min(5, width / 300)) * Math.min(1.7, Math.sqrt(scale));
    for (const front of chosen === null ? [false] : [false, true]) {
      for (const i of placed) {
        if (!visible(i) || (chosen !== null && isAside(i) === front)) continue;
        pen.globalAlpha = chosen === null ? 0.85 : front ? 1 : 0.13;
        pen.fillStyle = color(i);
        pen.beginPath();
        pen.arc(screenX(i), screenY(i), radius, 0, 7);
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
  }

  // many dots are written into the pixels themselves: places and colors stand in typed arrays, and the pixels are kept
  // for frames in which only the ring under the pointer moves
  const ordered = [...placed].sort((a, b) => album.y[a] - album.y[b]); // memory is written from its start to its end
  const unitX = Float64Array.from(ordered, (i) => album.x[i] / 1e4), unitY = Float64Array.from(ordered, (i) => album.y[i] / 1e4);
  const inks = new Uint32Array(placed.length), groupAt = new Int32Array(placed.length);
  let pixels = null, pixelsAre = "", version = 0; // of names, merges and splits
  function color32(cluster) { // the bytes of a pixel are R, G, B, A
    const rgb = parseInt(colorOf(cluster).slice(1), 16);
    return ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
  }

  function drawMany(dense) {
    const w = plane.width, h = plane.height, are = [w, h, scale, shiftX, shiftY, chosen, version].join();
    if (are !== pixelsAre) {
      if (!pixels || pixels.width !== w || pixels.height !== h) pixels = new ImageData(w, h);
      fillPixels(new Uint32Array(pixels.data.buffer), w, h, dense);
      pixelsAre = are;
    }
    pen.putImageData(pixels, 0, 0);
  }

  function fillPixels(out, w, h, dense) {
    const radius = Math.min(4, Math.max(1.2, Math.min(2.6, 170 / Math.sqrt(placed.length))) * Math.sqrt(scale)) * dense;
    const reach = Math.ceil(radius), offsets = [];
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) if (dx * dx + dy * dy <= radius * radius) offsets.push(dy * w + dx);
    }
    const stamp = Int32Array.from(offsets), count = stamp.length;
    const timesX = (width - 2 * PAD) * scale * dense, timesY = (height - 2 * PAD) * scale * dense;
    const plusX = (PAD + shiftX) * dense, plusY = (PAD + shiftY) * dense;
    out.fill(0);
    for (const front of chosen === null ? [false] : [false, true]) {
      const alpha = chosen !== null && !front ? 0x28000000 : 0xe6000000;
      for (let n = 0; n < inks.length; n++) {
        if (chosen !== null && (groupAt[n] === chosen) !== front) continue;
        const x = Math.round(unitX[n] * timesX + plusX), y = Math.round(unitY[n] * timesY + plusY);
        if (x < reach || y < reach || x >= w - reach || y >= h - reach) continue;
        const at = y * w + x, ink = inks[n] | alpha;
        for (let k = 0; k < count; k++) out[at + stamp[k]] = ink;
      }
    }
  }

  // pictures stand on a grid; the first image of a square has it, and the pointer finds that same image there
  function drawPictures() {
    const side = tileSide(), order = [...placed].sort((a, b) => isAside(a) - isAside(b));
    for (const i of order) {
      if (!visible(i)) continue;
      const column = Math.floor(screenX(i) / side), row = Math.floor(screenY(i) / side), key = column + ":" + row;
      if (tiles.has(key)) continue;
      tiles.set(key, i);
      const x = column * side, y = row * side;
      pen.globalAlpha = isAside(i) ? 0.15 : 1;
      pen.fillStyle = i === over ? getComputedStyle(document.documentElement).getPropertyValue("--ink") : color(i);
      pen.fillRect(x + 1, y + 1, side - 2, side - 2);
      const cell = cellOf(i);
      if (cell) pen.drawImage(cell[0], cell[1], cell[2], cell[3], cell[3], x + 3, y + 3, side - 6, side - 6);
    }
    pen.globalAlpha = 1;
  }
  const tileSide = () => Math.round(Math.max(26, Math.min(48, width / 24)));

  function drawNames(ink, paper) {
    if (names.length > 60 && chosen === null) return;
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    for (const [cluster, i, size] of names) {
      if (chosen !== null && cluster !== chosen) continue;
      if (chosen === null && size < placed.length / 400) continue;
      const words = shortName(cluster);
      pen.lineWidth = 4;
      pen.strokeStyle = paper;
      pen.fillStyle = ink;
      pen.strokeText(words, screenX(i), screenY(i));
      pen.fillText(words, screenX(i), screenY(i));
    }
  }
  const shortName = (cluster) => nameOf(cluster).replace(/^Cluster (?=\d+$)/, "").slice(0, 28);

  function drawLasso(ink) {
    pen.beginPath();
    lasso.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 4]);
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 0.08;
    pen.fill();
    pen.globalAlpha = 1;
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
    if (mode === "pictures" && reach < Infinity) {
      const side = tileSide(), i = tiles.get(Math.floor(x / side) + ":" + Math.floor(y / side));
      return i === undefined ? -1 : i;
    }
    let best = -1, least = reach * reach;
    const timesX = (width - 2 * PAD) * scale, timesY = (height - 2 * PAD) * scale;
    const toX = x - PAD - shiftX, toY = y - PAD - shiftY;
    for (let n = 0; n < ordered.length; n++) {
      const away = (unitX[n] * timesX - toX) ** 2 + (unitY[n] * timesY - toY) ** 2;
      if (away < least && (away < 16 || !isAside(ordered[n]))) [best, least] = [ordered[n], away];
    }
    return best;
  }

  const link = (text, onclick) => make("button", { type: "button", className: "link", textContent: text, onclick });

  function pointAt(i) {
    if (i === over) return;
    over = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      const [picture, name, path] = tip.children;
      picture.hidden = !album.cell || missing.has(i);
      paint(picture, i, picture.clientWidth);
      name.textContent = nameOf(clusterOf(i));
      path.textContent = shown(album.ids[i]);
      const x = screenX(i), y = screenY(i);
      const left = x + 18 + tip.offsetWidth > width ? x - 18 - tip.offsetWidth : x + 18;
      const top = y - tip.offsetHeight / 2;
      tip.style.left = Math.max(6, Math.min(width - tip.offsetWidth - 6, left)) + "px";
      tip.style.top = Math.max(6, Math.min(height - tip.offsetHeight - 6, top)) + "px";
    }
    later();
  }

  function choose(cluster, image = -1) {
    chosen = cluster;
    all(".card.chosen").forEach((card) => card.classList.remove("chosen"));
    said.replaceChildren();
    if (cluster !== null) {
      const card = element("cluster-" + cluster);
      if (card) card.classList.add("chosen");
      said.append(`${nameOf(cluster)}: ${imagesText((groups.get(cluster) || []).length)} on the map. `);
      if (image >= 0) said.append(link("Open this image", () => openOne(image)), " · ");
      said.append(link("All its images", () => browse(cluster)));
      if (card) said.append(" · ", make("a", { href: "#" + card.id, textContent: "See its card" }));
    }
    later();
  }

  function zoom(by, x = width / 2, y = height / 2) {
    const next = by ? Math.max(1, Math.min(DEEPEST, scale * by)) : 1;
    shiftX = next === 1 ? 0 : x - PAD - ((x - PAD - shiftX) * next) / scale;
    shiftY = next === 1 ? 0 : y - PAD - ((y - PAD - shiftY) * next) / scale;
    scale = next;
    touch();
    pointAt(-1);
    later();
  }
  const touch = () => { plane.style.touchAction = scale > 1 || isLassoMode ? "none" : "pan-y"; };

  function inside(i, polygon) {
    const x = screenX(i), y = screenY(i);
    let odd = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [ax, ay] = polygon[a], [bx, by] = polygon[b];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
    }
    return odd;
  }

  function closeLasso() {
    const caught = placed.filter((i) => !isAside(i) && inside(i, lasso));
    lasso = null;
    const fresh = caught.filter((i) => album.row[i] >= 0 && !state.ticked.has(i)); // others are in no cluster's table
    if (fresh.length) act({ action: "select", images: ids(fresh) });
    said.replaceChildren(caught.length ? `${imagesText(caught.length)} in the lasso, ${number(fresh.length)} newly ticked. ` : "No image lies in the lasso.");
    if (caught.length) said.append(link("Look at them", () => browse({ title: "Images in the lasso", images: () => caught })));
    later();
  }

  const place = (event) => {
    const box = plane.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  plane.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, shiftX, shiftY, moved: false };
    if (event.shiftKey || isLassoMode) {
      lasso = [place(event)];
      plane.setPointerCapture(event.pointerId);
      pointAt(-1);
    }
  });
  plane.addEventListener("pointermove", (event) => {
    if (lasso) {
      lasso.push(place(event));
      later();
      return;
    }
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
  plane.addEventListener("pointerup", () => {
    if (!lasso) return;
    if (drag) drag.moved = true; // the click that follows is part of the lasso
    closeLasso();
  });
  plane.addEventListener("pointercancel", () => { lasso = drag = null; later(); });
  plane.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && pointAt(-1));
  plane.addEventListener("click", (event) => {
    const moved = drag && drag.moved;
    drag = null;
    if (moved) return;
    const i = nearest(...place(event), REACH * 1.5);
    pointAt(i);
    choose(i < 0 ? null : clusterOf(i), i);
  });
  plane.addEventListener("dblclick", (event) => {
    const i = nearest(...place(event), REACH * 1.5);
    if (i >= 0) openOne(i);
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
    else if (event.key === "Enter" && over >= 0) choose(clusterOf(over), over);
    else if (event.key === "o" && over >= 0) openOne(over);
    else if (event.key === "Escape") { lasso = null; pointAt(-1); choose(null); }
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(0.625);
    else if (event.key === "0") zoom(0);
    else return;
    if ((way || event.key === "Enter") && over >= 0) {
      plane.setAttribute("aria-label", `${nameOf(clusterOf(over))}, ${shown(album.ids[over])}`);
    }
    event.preventDefault();
  });

  // the next point in a direction: near, and not too far aside
  function step(from, [wx, wy]) {
    let best = from, least = Infinity;
    for (const i of placed) {
      const dx = screenX(i) - screenX(from), dy = screenY(i) - screenY(from);
      const ahead = dx * wx + dy * wy, aside = Math.abs(dx * wy) + Math.abs(dy * wx);
      if (ahead > 0.5 && visible(i) && ahead + 2.5 * aside < least) [best, least] = [i, ahead + 2.5 * aside];
    }
    return best;
  }

  const modes = all("[data-mode]");
  modes.forEach((b) => b.addEventListener("click", () => { mode = b.dataset.mode; press(modes, b); pointAt(-1); later(); }));
  all("[data-zoom]").forEach((b) => b.addEventListener("click", () => zoom(Number(b.dataset.zoom))));
  const tool = element("lasso");
  tool.addEventListener("click", () => {
    isLassoMode = !isLassoMode;
    tool.setAttribute("aria-pressed", String(isLassoMode));
    touch();
  });
  for (const button of all(".card .find")) {
    button.addEventListener("click", () => {
      choose(Number(button.closest(".card").dataset.cluster));
      element("map").scrollIntoView();
    });
  }
  new ResizeObserver(later).observe(plane);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  listeners.push(regroup);
  regroup();
}
