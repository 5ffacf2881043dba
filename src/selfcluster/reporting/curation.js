// ---- curation: names, merges, splits, rubbish and ticks are rows of data; the state is what replaying them gives
const server = document.querySelector('meta[name="curation-server"]');
const storage = "selfcluster-" + album.key;
const indexOf = new Map(album.ids.map((id, i) => [id, i]));
let rows = [], unsaved = [], trouble = "", state = null;
let keeps = true; // whether this browser stores what it is given

// rows of this browser after those that the run had when the page was written, each once
const keyOf = (row) => JSON.stringify(Object.entries(row).sort());
function merged(own) {
  const before = album.rows, known = new Set(before.map(keyOf));
  return [...before, ...own.filter((row) => !known.has(keyOf(row)))];
}

function replay(all) {
  const kept = [];
  for (const row of all) row.action === "undo" ? kept.pop() : kept.push(row);
  let next = 0;
  for (const cluster of album.cluster) next = Math.max(next, cluster + 1);
  const made = {
    names: new Map(), merged: new Map(), moved: new Map(), rubbish: new Set(), ticked: new Set(), next, count: kept.length,
  };
  for (const row of kept) {
    const images = (row.images || []).map((id) => indexOf.get(id)).filter((i) => i !== undefined);
    if (row.action === "rename") row.name ? made.names.set(row.cluster, row.name) : made.names.delete(row.cluster);
    else if (row.action === "merge") made.merged.set(row.cluster, row.into);
    else if (row.action === "split") {
      for (const i of images) made.moved.set(i, made.next);
      if (row.name) made.names.set(made.next, row.name);
      made.next += 1;
    } else if (row.action === "rubbish") made.rubbish.add(row.cluster);
    else if (row.action === "keep") made.rubbish.delete(row.cluster);
    else if (row.action === "select") for (const i of images) made.ticked.add(i);
    else if (row.action === "unselect") for (const i of images) made.ticked.delete(i);
  }
  made.groups = new Map();
  made.of = new Int32Array(album.n);
  for (let i = 0; i < album.n; i++) {
    let cluster = made.moved.has(i) ? made.moved.get(i) : album.cluster[i];
    while (made.merged.has(cluster)) cluster = made.merged.get(cluster);
    if (!made.groups.has(cluster)) made.groups.set(cluster, []);
    made.groups.get(cluster).push(i);
    made.of[i] = cluster;
  }
  return made;
}

const nameOf = (cluster) =>
  shown(state.names.get(cluster) || (cluster < 0 ? "No cluster" : "Cluster " + cluster));

const clusterOf = (i) => state.of[i];

// ---- keeping: on a served page every row is on the disk when it is answered; a file keeps rows in this browser
async function ask(body) {
  const headers = { "X-Token": server.content };
  const answer = await fetch("curation", body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const content = await answer.json();
  if (answer.ok) return content;
  const error = new Error(content.error);
  error.final = answer.status < 500; // the row does not fit and never will
  throw error;
}

function store() {
  try {
    localStorage.setItem(storage, JSON.stringify(server ? unsaved : rows));
  } catch {
    keeps = false;
    trouble = "This browser cannot store your changes. Download them before you close the page.";
  }
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(storage) || "[]");
  } catch {
    return [];
  }
}

let sending = Promise.resolve();
function send() {
  sending = sending.then(async () => {
    while (unsaved.length) {
      try {
        rows = await ask([unsaved[0]]);
        unsaved.shift();
        trouble = "";
      } catch (error) {
        trouble = error.message || "The server cannot be reached.";
        if (!error.final) break;
        unsaved.shift();
      }
    }
    store();
    refresh();
  });
  return sending;
}

function act(row) {
  const timed = { time: new Date().toISOString(), ...row };
  trouble = "";
  if (!server && keeps) rows = merged(stored()); // another tab may have added some
  (server ? unsaved : rows).push(timed);
  store();
  refresh();
  if (server) send();
}

const listeners = [];
function refresh() {
  state = replay([...rows, ...unsaved]);
  listeners.forEach((listener) => listener());
}

async function begin() {
  if (!server) rows = merged(stored());
  else {
    unsaved = stored();
    refresh(); // the page can be used while the server is asked
    try {
      rows = await ask();
      const known = new Set(rows.map(keyOf));
      unsaved = unsaved.filter((row) => !known.has(keyOf(row))); // kept, but the answer never came
    } catch (error) {
      trouble = error.message || "The server cannot be reached.";
    }
  }
  refresh();
  if (unsaved.length) send();
}

window.addEventListener("storage", (event) => {
  if (server || event.key !== storage) return;
  rows = merged(stored());
  refresh();
});

function download() {
  const lines = rows.map((row) => JSON.stringify(row) + "\n").join("");
  const address = URL.createObjectURL(new Blob([lines], { type: "application/jsonl" }));
  make("a", { href: address, download: "curation.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
