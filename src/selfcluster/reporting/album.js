// ---- all images: what the page knows of each, and its small picture
const album = JSON.parse(document.getElementById("album").textContent);
const element = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");

// characters that would be invisible or turn the text around are shown by their numbers
const shown = (text) => text.replace(/[\p{C}\u2028\u2029]/gu, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function bytes(text) {
  const binary = atob(text), out = new Uint8Array(binary.length);
  for (let i = 0; i < out.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

const sheetBlob = (k) => new Blob([bytes(element("sheet-" + k).textContent)], { type: "image/webp" });
const sheetAddresses = [];
function sheetAddress(k) {
  if (!sheetAddresses[k]) sheetAddresses[k] = URL.createObjectURL(sheetBlob(k));
  return sheetAddresses[k];
}

const imagesText = (n) => `${number(n)} ${n === 1 ? "image" : "images"}`;
const missing = new Set(album.missing);
function paint(on, i, side) {
  on.classList.toggle("gone", missing.has(i));
  if (missing.has(i)) return;
  const k = i % album.perSheet, { columns } = album;
  on.style.backgroundImage = `url(${sheetAddress(Math.floor(i / album.perSheet))})`;
  on.style.backgroundSize = columns * side + "px auto";
  on.style.backgroundPosition = `${-(k % columns) * side}px ${-Math.floor(k / columns) * side}px`;
  if (album.pixels) on.style.imageRendering = "pixelated";
}

// a small picture to press; `label` is what it is called aloud
function tileOf(i, side, onclick, label = shown(album.ids[i])) {
  const tile = make("button", { type: "button", className: "tile", title: shown(album.ids[i]), ariaLabel: label, onclick });
  tile.style.cssText = `width:${side}px;height:${side}px`;
  paint(tile, i, side);
  return tile;
}

// the nearest images by the packed vectors; on 20,000 images a few milliseconds
let packed = null;
function nearestTo(i, count) {
  const { dim, n } = album, without = new Set(album.vectorless);
  if (!dim || without.has(i)) return [];
  packed = packed || new Int8Array(bytes(album.vectors).buffer);
  const far = new Float64Array(n);
  for (let j = 0, at = 0; j < n; j++) {
    let sum = 0;
    for (let d = 0, from = i * dim; d < dim; d++, at++) {
      const difference = packed[at] - packed[from + d];
      sum += difference * difference;
    }
    far[j] = j === i || without.has(j) ? Infinity : sum;
  }
  return Array.from(far.keys()).filter((j) => far[j] < Infinity).sort((a, b) => far[a] - far[b]).slice(0, count);
}

// ---- a list of images of any length: only the rows in sight are in the document
class ImageList {
  constructor(box, open, tick, ticked) {
    Object.assign(this, { box, open, tick, ticked, images: [] });
    this.inner = box.appendChild(make("div", { className: "inner" }));
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw(true)).observe(box);
  }

  show() {
    this.box.scrollTop = 0;
    this.draw(true);
  }

  draw(anew = false) {
    const width = this.box.clientWidth;
    if (!width) return;
    const columns = Math.max(2, Math.floor(width / 116)), side = Math.floor(width / columns), gap = 6;
    const first = Math.max(0, Math.floor(this.box.scrollTop / side) - 2);
    const last = Math.ceil((this.box.scrollTop + this.box.clientHeight) / side) + 2;
    if (!anew && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    this.inner.style.height = Math.ceil(this.images.length / columns) * side + "px";
    const focused = document.activeElement && document.activeElement.dataset.place;
    this.inner.replaceChildren();
    for (let at = first * columns; at < Math.min(this.images.length, last * columns); at++) {
      const i = this.images[at], name = shown(album.ids[i]);
      const picture = tileOf(i, side - gap, () => this.open(at));
      picture.dataset.place = at;
      const box = make("input", { type: "checkbox", checked: this.ticked(i), ariaLabel: "Tick " + name });
      box.addEventListener("change", () => this.tick(i, box.checked));
      const cell = make("div", { className: "cell" }, picture, box);
      cell.style.left = (at % columns) * side + "px";
      cell.style.top = Math.floor(at / columns) * side + "px";
      this.inner.append(cell);
      if (String(at) === focused) picture.focus({ preventScroll: true });
    }
  }
}
