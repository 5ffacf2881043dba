// ---- groups within some images, made in the page: k-means on the packed vectors, the same each time
const FITTED = 5000, ROUNDS = 30; // images that centers are computed from; more are only assigned
const SLICE = 24; // milliseconds of work between two turns of the page
const PART = 256; // images between two looks at the clock
const FITTING = 0.9; // of the work is to find centers, about

function drawing(seed) { // numbers in [0, 1), the same for a seed (mulberry32)
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// squared distance of image i to center c; centers stand one after the other
function toCenter(vectors, dim, i, centers, c) {
  let sum = 0;
  for (let d = 0, a = i * dim, b = c * dim; d < dim; d++, a++, b++) {
    const difference = vectors[a] - centers[b];
    sum += difference * difference;
  }
  return sum;
}

function nearestCenter(vectors, dim, i, centers, k) {
  let best = 0, least = Infinity;
  for (let c = 0; c < k; c++) {
    const far = toCenter(vectors, dim, i, centers, c);
    if (far < least) [best, least] = [c, far];
  }
  return [best, least];
}

// what follows `function*` yields the share that is done, so that the page can go on in between
function* fitCenters(vectors, dim, images, k, random) {
  const centers = new Float64Array(k * dim), put = (c, i) => {
    for (let d = 0; d < dim; d++) centers[c * dim + d] = vectors[i * dim + d];
  };
  put(0, images[Math.floor(random() * images.length)]);
  const far = new Float64Array(images.length).fill(Infinity);
  for (let c = 1; c < k; c++) { // k-means++: far images are likelier to become centers
    let total = 0;
    for (let n = 0; n < images.length; n++) {
      far[n] = Math.min(far[n], toCenter(vectors, dim, images[n], centers, c - 1));
      total += far[n];
      if (n % PART === 0) yield 0;
    }
    let rest = random() * total, n = 0;
    while (n < images.length - 1 && (rest -= far[n]) > 0) n++;
    put(c, images[n]);
  }
  let before = Infinity;
  for (let round = 0; ; round++) {
    const sums = new Float64Array(k * dim), counts = new Float64Array(k);
    let inertia = 0;
    for (let n = 0; n < images.length; n++) {
      if (n % PART === 0) yield (round + n / images.length) / (ROUNDS + 1);
      const i = images[n], [c, least] = nearestCenter(vectors, dim, i, centers, k);
      inertia += least;
      counts[c] += 1;
      for (let d = 0; d < dim; d++) sums[c * dim + d] += vectors[i * dim + d];
    }
    if (inertia >= before || round === ROUNDS) return { centers, inertia };
    before = inertia;
    for (let c = 0; c < k; c++) {
      if (counts[c]) for (let d = 0; d < dim; d++) centers[c * dim + d] = sums[c * dim + d] / counts[c];
    }
  }
}

// the group of each image, 0 for the largest; images without a vector have the last one
function* subgroups(images, k) {
  const { dim } = album, vectors = packedVectors(), without = new Set(album.vectorless);
  const known = images.filter((i) => !without.has(i)).sort((a, b) => a - b), random = drawing(k);
  const order = [...known];
  for (let n = order.length - 1; n > 0; n--) {
    const other = Math.floor(random() * (n + 1));
    [order[n], order[other]] = [order[other], order[n]];
  }
  const fitted = order.slice(0, FITTED), starts = Math.max(1, Math.min(5, Math.floor(FITTED / fitted.length)));
  let best = null;
  for (let start = 0; start < starts && fitted.length; start++) {
    const fit = fitCenters(vectors, dim, fitted, k, random);
    let step = fit.next();
    for (; !step.done; step = fit.next()) yield (FITTING * (start + step.value)) / starts;
    const found = step.value;
    if (!best || found.inertia < best.inertia) best = found;
  }
  const found = [], sizes = new Array(k).fill(0);
  for (const i of known) {
    if (found.length % PART === 0) yield FITTING + ((1 - FITTING) * found.length) / known.length;
    const [c] = nearestCenter(vectors, dim, i, best.centers, k);
    found.push(c);
    sizes[c] += 1;
  }
  const ranked = [...sizes.keys()].sort((a, b) => sizes[b] - sizes[a]), rank = [];
  ranked.forEach((c, place) => { rank[c] = place; });
  const of = new Map(known.map((i, n) => [i, rank[found[n]]]));
  for (const i of images) if (without.has(i)) of.set(i, k);
  return of;
}

// Runs a function* without holding up the page. `go` is told the share that is done whenever the page had its turn; the
// work ends without a result where it answers false.
async function inTurns(work, go) {
  for (let until = performance.now() + SLICE; ;) {
    const { done, value } = work.next();
    if (done) return value;
    if (performance.now() < until) continue;
    await new Promise((after) => setTimeout(after));
    if (!go(value)) return null;
    until = performance.now() + SLICE;
  }
}
