// ---- images to look at again: groups of copies, and images that stand out; each opens large
const { suspects } = album;
const again = document.querySelector("#again .groups");
const TILES = 12, GROUPS = 24;

function suspectGroup(title, words, images, strips) {
  const button = make("button", { type: "button", className: "link", textContent: `Look at all ${number(images.length)}` });
  button.ariaLabel = `Look at all ${number(images.length)}: ${title}`;
  button.addEventListener("click", () => browse({ title, images: () => images }));
  const head = make("div", { className: "head" }, make("h3", { textContent: title }), button);
  again.append(make("div", { className: "suspect" }, head, make("p", { className: "small", textContent: words }), strips));
}

if (again) {
  const strip = (images) => make("div", { className: "tiles" }, 
    ...images.slice(0, TILES).map((i, k) => tileOf(i, 72, () => look(images, k), "Open " + shown(album.ids[i]))));
  for (const [key, title, words] of [
    ["exact", "Copies", "The same picture more than once."],
    ["near", "Near copies", "Images much more similar to each other than usual in this set."],
  ]) {
    const groups = suspects[key];
    if (!groups.length) continue;
    const boxes = groups.slice(0, GROUPS).map((group) => make("div", { className: "together" }, strip(group)));
    const many = groups.length > GROUPS ? ` The ${GROUPS} largest of ${number(groups.length)} groups are shown here.` : "";
    suspectGroup(title, words + many, groups.flat(), make("div", { className: "boxes" }, ...boxes));
  }
  for (const [key, title, words] of [
    ["farthest", "Farthest of all", "The images with the largest distance to their cluster's center."],
    ["dark", "Nearly black", "Dark in almost every pixel."],
    ["blurred", "Blurred", "Images with almost no sharp edges."],
    ["constant", "Constant", "One color and nothing else."],
  ]) {
    if (suspects[key].length) suspectGroup(title, words, suspects[key], strip(suspects[key]));
  }
}
