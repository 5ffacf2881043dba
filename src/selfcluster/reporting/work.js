// ---- one image, large, with its neighbors
const viewer = element("viewer"), browser = element("browser"), desk = element("desk");
const picture = viewer.querySelector(".stage").appendChild(make("img", { hidden: true }));
const attention = viewer.querySelector("[data-do=attention]"); // of a served page whose network is a ViT
const isAttention = () => Boolean(attention) && attention.getAttribute("aria-pressed") === "true";
let around = [], at = 0; // the list that the image stands in, and its place there

function look(images, place) {
  [around, at] = [images, place];
  const i = around[at], id = album.ids[i], small = viewer.querySelector(".large");
  viewer.querySelector("h2").textContent = shown(id);
  picture.hidden = true;
  picture.alt = (isAttention() ? "What the network looks at in " : "") + shown(id);
  picture.onload = () => { picture.hidden = false; };
  picture.onerror = () => {
    if (isAttention()) viewer.querySelector(".facts-line").textContent = "No attention map could be made of this image.";
  };
  if (isAttention()) picture.src = "attention/" + encodeURIComponent(id);
  else if (server) picture.src = "images/" + encodeURIComponent(id);
  else if (album.base) picture.src = album.base + id.split("/").map(encodeURIComponent).join("/");
  else picture.removeAttribute("src");
  tellOfImage();
  const near = nearestTo(i, 20), strip = viewer.querySelector(".near");
  strip.replaceChildren(...near.map((j, k) => tileOf(j, 72, () => look(near, k))));
  viewer.querySelector(".nearest").hidden = !near.length;
  if (!viewer.open) viewer.showModal();
  small.style.cssText = "";
  paint(small, i, small.clientWidth); // known once the dialog is open
}
new ResizeObserver(([entry]) => { // a new window size, or a scroll bar that comes or goes
  if (viewer.open && entry.target.clientWidth) paint(entry.target, around[at], entry.target.clientWidth);
}).observe(viewer.querySelector(".large"));

function openOne(i) {
  const images = state.groups.get(clusterOf(i));
  look(images, images.indexOf(i));
}

function tellOfImage() {
  const i = around[at], cluster = clusterOf(i), far = album.distance[i];
  viewer.querySelector(".facts-line").textContent =
    `${number(at + 1)} of ${number(around.length)}` + (far === null ? "" : ` · distance to the center ${far}`);
  viewer.querySelector("[data-do=cluster]").textContent = nameOf(cluster);
  viewer.querySelector("[data-do=cluster]").disabled = cluster < 0 && !state.groups.has(cluster);
  viewer.querySelector("[data-do=tick]").textContent = state.ticked.has(i) ? "Untick" : "Tick";
  viewer.querySelector("[data-do=previous]").disabled = at === 0;
  viewer.querySelector("[data-do=next]").disabled = at === around.length - 1;
}

const move = (by) => around[at + by] !== undefined && look(around, at + by);
const tick = (i, wish) => act({ action: wish ? "select" : "unselect", images: [album.ids[i]] });
const viewerActions = {
  previous: () => move(-1),
  next: () => move(1),
  tick: () => tick(around[at], !state.ticked.has(around[at])),
  cluster: () => { viewer.close(); browse(clusterOf(around[at])); },
  attention: () => {
    attention.setAttribute("aria-pressed", String(!isAttention()));
    look(around, at);
  },
  close: () => viewer.close(),
};
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "t") viewerActions.tick();
  else return;
  event.preventDefault();
});

// ---- all images of a cluster, or of a search
const ids = (images) => images.map((i) => album.ids[i]);
function tickAll(images, wish) {
  const rest = images.filter((i) => state.ticked.has(i) !== wish);
  if (rest.length) act({ action: wish ? "select" : "unselect", images: ids(rest) });
}
const list = new ImageList(browser.querySelector(".list"), {
  open: (place) => look(list.images, place), tick, ticked: (i) => state.ticked.has(i), tickAll,
});
let open = null, order = "nearest"; // open: a cluster's number, or a title and a function that gives images
let parts = 1, groupOf = new Map(); // groups that the open cluster is shown in, and the group of each image
let grouping = null; // the groups that are being made: of which images, how many, and the share that is done

function browse(what) {
  if (what !== open) [order, parts, groupOf, grouping] = ["nearest", 1, new Map(), null];
  open = what;
  fill();
  if (!browser.open) browser.showModal();
  list.show();
}

function shuffled(images) {
  const out = [...images];
  for (let i = out.length - 1, seed = 1; i > 0; i--) {
    seed = (seed * 48271) % 2147483647;
    const j = seed % (i + 1);
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

function fill() {
  const isCluster = typeof open === "number";
  let images = isCluster ? state.groups.get(open) || [] : open.images();
  if (isCluster) images = [...images].sort((a, b) => (album.distance[a] ?? Infinity) - (album.distance[b] ?? Infinity));
  if (order === "farthest") images = [...images].reverse();
  if (order === "random") images = shuffled(images);
  const ticked = images.filter((i) => state.ticked.has(i)).length;
  browser.querySelector("h2").textContent = isCluster ? nameOf(open) : open.title;
  browser.querySelector(".count").textContent =
    imagesText(images.length) + (ticked ? `, ${number(ticked)} ticked` : "");
  browser.querySelector(".of-cluster").hidden = !isCluster;
  browser.querySelector(".orders").hidden = !isCluster;
  press([...browser.querySelectorAll("[data-order-by]")], browser.querySelector(`[data-order-by=${order}]`));
  const name = browser.querySelector("[name=name]");
  if (document.activeElement !== name) name.value = (isCluster && state.names.get(open)) || "";
  const isReal = isCluster && open >= 0;
  for (const part of browser.querySelectorAll(".real")) part.hidden = !isReal;
  browser.querySelector("[data-do=split]").disabled = !isCluster || !ticked;
  browser.querySelector("[data-do=rubbish]").textContent = state.rubbish.has(open) ? "Not rubbish" : "Rubbish";
  const others = [...state.groups.keys()].filter((c) => c >= 0 && c !== open).sort((a, b) => a - b);
  browser.querySelector("[name=into]").replaceChildren(
    make("option", { value: "", textContent: "Merge into…" }),
    ...others.map((c) => make("option", { value: c, textContent: nameOf(c) })),
  );
  const groups = browser.querySelector("[name=groups]");
  groups.hidden = !isCluster || !album.dim || images.length < 2;
  groups.value = parts;
  if (!isCluster || parts === 1) grouping = null;
  else if (!images.every((i) => groupOf.has(i))) makeGroups(images);
  list.fill(isCluster && parts > 1 && !grouping ? sectionsOf(images) : [{ images }]);
  tellOfGroups();
}

// the list stays one until the groups are there; they are given up where they are not wanted any more
async function makeGroups(images) {
  const known = new Set(images), isSame = grouping && grouping.parts === parts && grouping.images.size === known.size;
  if (isSame && images.every((i) => grouping.images.has(i))) return;
  const own = (grouping = { parts, images: known, share: 0 });
  const found = await inTurns(subgroups(images, parts), (share) => {
    if (grouping !== own) return false;
    own.share = share;
    tellOfGroups();
    return true;
  });
  if (grouping !== own || !found) return;
  [groupOf, grouping] = [found, null];
  fill();
  list.show();
}

function tellOfGroups() {
  const words = browser.querySelector(".working");
  words.textContent = grouping ? `Making ${grouping.parts} groups, ${Math.round(100 * grouping.share)}%` : "";
  list.box.setAttribute("aria-busy", String(Boolean(grouping)));
}

// an image that leaves the cluster leaves its group; the other groups stay as they are
function sectionsOf(images) {
  const made = Array.from({ length: parts + 1 }, (_, n) => (
    { title: n < parts ? `Group ${n + 1}` : "Without an embedding", images: images.filter((i) => groupOf.get(i) === n) }
  ));
  return made.filter((section) => section.images.length);
}

const browserActions = {
  split: () => act({ action: "split", cluster: open, images: ids(list.images.filter((i) => state.ticked.has(i))), name: "" }),
  rubbish: () => act({ action: state.rubbish.has(open) ? "keep" : "rubbish", cluster: open }),
  all: () => tickAll(list.images, true),
  none: () => tickAll(list.images, false),
  undo: () => undo(),
  tools: () => { // folded where the window is small
    const isOpen = browser.classList.toggle("with-tools");
    browser.querySelector("[data-do=tools]").setAttribute("aria-expanded", String(isOpen));
  },
  close: () => browser.close(),
};
browser.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = browser.querySelector("[name=name]").value.trim();
  if (name !== (state.names.get(open) || "")) act({ action: "rename", cluster: open, name });
});
browser.querySelector("[name=into]").addEventListener("change", (event) => {
  const into = event.target.value;
  if (into === "") return;
  act({ action: "merge", cluster: open, into: Number(into) });
  browse(Number(into));
});
browser.querySelector("[name=groups]").addEventListener("change", (event) => {
  [parts, groupOf, grouping] = [Number(event.target.value), new Map(), null];
  browse(open);
});
browser.addEventListener("close", () => { // groups that are not there yet are given up
  if (grouping) [parts, grouping] = [1, null];
});
browser.querySelectorAll("[data-order-by]").forEach((button) => button.addEventListener("click", () => {
  order = button.dataset.orderBy;
  browse(open);
}));

// ---- the desk: what was done, and what becomes of it
const undo = () => state.count && act({ action: "undo" });
const deskActions = {
  undo,
  ticked: () => browse({ title: "Ticked images", images: () => [...state.ticked] }),
  download,
};
for (const [box, actions] of [[viewer, viewerActions], [browser, browserActions], [desk, deskActions]]) {
  box.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button && actions[button.dataset.do]) actions[button.dataset.do]();
    else if (event.target === box && box.tagName === "DIALOG") box.close();
  });
}

function report() {
  const done = state.count === 1 ? "1 change" : `${number(state.count)} changes`;
  const where = server
    ? unsaved.length ? `${number(unsaved.length)} not saved yet` : "saved in the run's curation.jsonl"
    : "stored only in this browser";
  desk.hidden = !state.count && !trouble && !unsaved.length;
  desk.querySelector(".done").textContent = state.count ? `${done}, ${where}.` : "";
  desk.querySelector(".how").textContent = server ? "" : "Download them, then run “selfcluster report RUN --apply curation.jsonl”.";
  desk.querySelector(".trouble").textContent = trouble;
  desk.querySelector("[data-do=undo]").disabled = !state.count;
  desk.querySelector("[data-do=ticked]").hidden = !state.ticked.size;
  desk.querySelector("[data-do=ticked]").textContent = `Show ${number(state.ticked.size)} ticked`;
  desk.querySelector("[data-do=download]").hidden = Boolean(server) || !rows.length;
}

function cards() {
  for (const card of all(".card[data-cluster]")) {
    const cluster = Number(card.dataset.cluster), images = state.groups.get(cluster) || [];
    card.querySelector("h3").textContent = nameOf(cluster);
    card.hidden = state.merged.has(cluster) || !images.length;
    card.classList.toggle("rubbish", state.rubbish.has(cluster));
    const size = card.querySelector(".all");
    if (size) {
      size.textContent = images.length === 1 ? "the image" : `all ${number(images.length)} images`;
      size.ariaLabel = `${size.textContent} of ${nameOf(cluster)}`;
    }
  }
  const carded = new Set(all(".card[data-cluster]").map((card) => Number(card.dataset.cluster)));
  const more = [...state.groups.keys()].filter((c) => !carded.has(c)).sort((a, b) => a - b);
  const box = element("uncarded");
  box.hidden = !more.length;
  box.querySelector("div").replaceChildren(...more.map((cluster) => {
    const text = `${nameOf(cluster)} · ${number(state.groups.get(cluster).length)}`;
    const button = make("button", { type: "button", textContent: text });
    button.addEventListener("click", () => browse(cluster));
    return button;
  }));
}

listeners.push(report, cards, () => {
  if (browser.open) {
    fill();
    list.draw(true);
  }
  if (viewer.open) tellOfImage();
});

// ---- the cards' pictures and buttons open images and clusters
const ofRow = new Map(album.row.map((row, i) => [row, i]));
for (const thumb of all(".thumb[data-row]")) {
  const i = ofRow.get(Number(thumb.dataset.row));
  if (i === undefined) continue;
  Object.assign(thumb, { tabIndex: 0, role: "button", ariaLabel: "Open " + shown(album.ids[i]) });
  thumb.addEventListener("click", () => openOne(i));
  thumb.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    openOne(i);
  });
}
for (const button of all(".card .all")) {
  button.addEventListener("click", () => browse(Number(button.closest(".card").dataset.cluster)));
}
const search = element("search");
if (search) {
  search.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = search.elements.words.value.trim(), low = text.toLowerCase();
    if (!text) return;
    const named = [...state.groups.keys()].find((c) => nameOf(c).toLowerCase() === low || String(c) === low);
    if (named !== undefined) return browse(named);
    const found = Array.from(album.ids.keys()).filter((i) => album.ids[i].toLowerCase().includes(low));
    browse({ title: `Images with “${shown(text)}” in their name`, images: () => found });
  });
}
document.addEventListener("visibilitychange", () => {
  if (server && !document.hidden && !unsaved.length) begin();
});
begin();
