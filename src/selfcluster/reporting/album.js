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
function packedVectors() {
  packed = packed || new Int8Array(bytes(album.vectors).buffer);
  return packed;
}
function nearestTo(i, count) {
  const { dim, n } = album, without = new Set(album.vectorless);
  if (!dim || without.has(i)) return [];
  packedVectors();
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

// ---- a list of images of any length, in titled sections or in one: only what is in sight is in the document
const HEAD = 46; // pixels of a section's title
class ImageList {
  constructor(box, { open, tick, ticked, tickAll }) {
    Object.assign(this, { box, open, tick, ticked, tickAll, images: [], sections: [] });
    this.inner = box.appendChild(make("div", { className: "inner" }));
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw(true)).observe(box);
  }

  // `sections`: a title and images each; one without a title has no head
  fill(sections) {
    let from = 0;
    this.sections = sections.map(({ title, images }) => ({ title, images, from: (from += images.length) - images.length }));
    this.images = sections.flatMap(({ images }) => images);
  }

  show() {
    this.box.scrollTop = 0;
    this.draw(true);
  }

  draw(anew = false) {
    const width = this.box.clientWidth;
    if (!width) return;
    const columns = Math.max(2, Math.floor(width / 116)), side = Math.floor(width / columns);
    const seen = Math.floor(this.box.scrollTop / side);
    if (!anew && seen === this.seen) return;
    this.seen = seen;
    const from = (seen - 2) * side, to = this.box.scrollTop + this.box.clientHeight + 3 * side;
    const focused = document.activeElement && document.activeElement.dataset.place;
    this.inner.replaceChildren();
    let top = 0;
    this.sections.forEach((section, n) => {
      if (section.title) {
        if (top < to && top + HEAD > from) this.inner.append(this.head(section, n, top));
        top += HEAD;
      }
      const rows = Math.ceil(section.images.length / columns);
      const first = Math.max(0, Math.floor((from - top) / side)), last = Math.min(rows, Math.ceil((to - top) / side));
      for (let k = first * columns; k < Math.min(section.images.length, last * columns); k++) {
        const left = (k % columns) * side;
        this.inner.append(this.cell(section.from + k, left, top + Math.floor(k / columns) * side, side - 6));
      }
      top += rows * side;
    });
    this.inner.style.height = top + "px";
    const again = focused && this.inner.querySelector(`[data-place="${focused}"]`);
    if (again) again.focus({ preventScroll: true });
  }

  cell(at, left, top, side) {
    const i = this.images[at], picture = tileOf(i, side, () => this.open(at));
    picture.dataset.place = at;
    const box = make("input", { type: "checkbox", checked: this.ticked(i), ariaLabel: "Tick " + shown(album.ids[i]) });
    box.dataset.place = "tick" + at;
    box.addEventListener("change", () => this.tick(i, box.checked));
    const cell = make("div", { className: "cell" }, picture, box);
    Object.assign(cell.style, { left: left + "px", top: top + "px" });
    return cell;
  }

  head({ title, images }, n, top) {
    const ticked = images.filter((i) => this.ticked(i)).length;
    const box = make("input", { type: "checkbox", checked: ticked === images.length, indeterminate: ticked > 0 && ticked < images.length });
    box.dataset.place = "group" + n;
    box.addEventListener("change", () => this.tickAll(images, box.checked));
    const words = ` ${title} · ${imagesText(images.length)}` + (ticked ? `, ${number(ticked)} ticked` : "");
    const head = make("h3", { className: "group" }, make("label", {}, box, words));
    head.style.top = top + "px";
    return head;
  }
}
