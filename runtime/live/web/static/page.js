"use strict";
// The page of a live session. Places are pixels of the frame, x to the right and y down, whatever size it is shown at.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const HINTS = {
  box: "Draw a box around something to track it.",
  lasso: "Draw around something to track it.",
  points: "Click the points to follow, then Track it.",
  paint: "Paint over something to track it.",
  erase: "Rub out what does not belong to it.",
};
let tool = "box";
let frozen = null;     // number of the frozen frame
let freezing = null;   // promise of it
let size = [1, 1];     // of the frame
let strokes = [], points = [], corrected = null, stroke = null;
let previews = 0;

function say(text, wrong = false) {
  $("message").textContent = text;
  $("message").className = wrong ? "error" : "";
}

async function request(method, path, values) {
  const options = { method };
  if (values !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(values);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the tracker does not answer; is it still running?");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Error(told.error || `the tracker answered ${response.status}`);
  }
  return response;
}

function attempt(work) {
  return async (event) => {
    try {
      await work(event);
    } catch (error) {
      say(error.message, true);
    }
  };
}

// Freezing

function freeze() {
  if (!freezing) freezing = freezeNow().catch((error) => { thaw(); throw error; });
  return freezing;
}

function fit(given) {
  size = given;
  $("picture").style.setProperty("--ratio", size[0] / size[1]);  // or the drawing would not lie on what it is drawn on
}

async function freezeNow() {
  const told = await (await request("POST", "/api/freeze", {})).json();
  frozen = told.frozen;
  fit(told.size);
  [canvas.width, canvas.height] = size;
  const still = $("still");
  still.src = `/api/frozen/${frozen}`;
  await still.decode().catch(() => {});
  if (frozen !== told.frozen) return;
  still.hidden = false;
  $("drawn").hidden = false;
  $("freeze").textContent = "Go on";
  paint();
}

function thaw() {
  if (frozen !== null) request("DELETE", `/api/frozen/${frozen}`).catch(() => {});
  frozen = freezing = stroke = corrected = null;
  strokes = [];
  points = [];
  previews++;
  for (const id of ["still", "preview", "drawn"]) $(id).hidden = true;
  $("freeze").textContent = "Freeze";
  $("track").textContent = "Track it";
  $("name").value = "";
  paint();
}

// Drawing

function place(event) {
  const area = canvas.getBoundingClientRect();
  return [
    (event.clientX - area.left) / area.width * canvas.width - 0.5,
    (event.clientY - area.top) / area.height * canvas.height - 0.5,
  ];
}

canvas.addEventListener("pointerdown", attempt(async (event) => {
  if (event.button) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  if (frozen === null) [canvas.width, canvas.height] = size;
  stroke = { kind: tool, points: [place(event)], width: Number($("width").value) };
  paint();
  await freeze();
}));

canvas.addEventListener("pointermove", (event) => {
  if (!stroke) return;
  const here = place(event);
  if (stroke.kind === "box") stroke.points[1] = here;
  else if (stroke.kind === "points") stroke.points[0] = here;
  else if (stroke.points.length < 5000) stroke.points.push(here);
  paint();
});

canvas.addEventListener("pointerup", attempt(async () => {
  const done = stroke;
  stroke = null;
  if (!done) return;
  await freeze();
  if (done.kind === "points") {
    if (!corrected && strokes.length) strokes = [];
    points.push(done.points[0]);
  } else {
    const [first, last] = [done.points[0], done.points[done.points.length - 1]];
    const far = Math.hypot(last[0] - first[0], last[1] - first[1]);
    if (done.kind === "box" && (done.points.length < 2 || far < 6)) {
      paint();
      return say("That box was too small; draw from one corner to the other.", true);
    }
    if (done.kind === "box" || done.kind === "lasso") strokes = strokes.filter((one) => one.kind !== "object");
    points = [];
    strokes.push(done);
  }
  say("");
  paint();
  await preview();
}));
canvas.addEventListener("pointercancel", () => { stroke = null; paint(); });

async function preview() {
  const mine = ++previews;
  if (!strokes.length || frozen === null) {
    $("preview").hidden = true;
    return;
  }
  const picture = await (await request("POST", "/api/mask", { frozen, strokes })).blob();
  if (mine !== previews) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(picture);
  $("preview").hidden = false;
}

function paint() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const unit = Math.max(1, canvas.width / (canvas.clientWidth || canvas.width));
  pen.lineJoin = pen.lineCap = "round";
  pen.strokeStyle = pen.fillStyle = "#ffd23c";
  for (const [x, y] of stroke && stroke.kind === "points" ? [...points, stroke.points[0]] : points) {
    pen.beginPath();
    pen.arc(x + 0.5, y + 0.5, 5 * unit, 0, 7);
    pen.fill();
  }
  if (stroke && stroke.kind !== "points") {
    const brush = stroke.kind === "paint" || stroke.kind === "erase";
    pen.lineWidth = brush ? stroke.width : 2 * unit;
    pen.globalAlpha = brush ? 0.6 : 1;
    if (stroke.kind === "erase") pen.strokeStyle = "#ff6a5a";
    pen.beginPath();
    const [first, ...others] = stroke.points;
    if (stroke.kind === "box" && others.length) {
      pen.rect(first[0], first[1], others[0][0] - first[0], others[0][1] - first[1]);
    } else {
      pen.moveTo(first[0], first[1]);
      for (const [x, y] of others) pen.lineTo(x, y);
      if (!others.length) pen.lineTo(first[0] + 0.01, first[1]);
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }
  $("hint").hidden = frozen !== null;
}

// Buttons

for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => {
    tool = button.dataset.tool;
    for (const one of document.querySelectorAll("[data-tool]")) one.setAttribute("aria-pressed", one === button);
    $("hint").textContent = HINTS[tool];
  });
}

$("freeze").addEventListener("click", attempt(async () => (frozen === null ? freeze() : thaw())));
$("cancel").addEventListener("click", () => { thaw(); say(""); });
$("undo").addEventListener("click", attempt(async () => {
  if (points.length) points.pop();
  else strokes.pop();
  paint();
  await preview();
}));
$("drawn").addEventListener("submit", attempt(async (event) => {
  event.preventDefault();
  if (!strokes.length && !points.length) return say("Draw on the picture first.", true);
  const drawing = points.length ? { points } : { strokes };
  await request("POST", "/api/objects", { frozen, object: corrected, name: $("name").value, ...drawing });
  frozen = null;  // the tracker let it go
  thaw();
  say("");
}));
$("record").addEventListener("click", attempt(async () => {
  const on = $("record").getAttribute("aria-pressed") !== "true";
  await request("POST", "/api/recording", { on });
  await refresh();
}));
$("reference").addEventListener("click", attempt(async () => {
  const told = await (await request("POST", "/api/reference", {})).json();
  const left = told.hidden.length ? `; not seen, so left out: ${told.hidden.join(", ")}` : "";
  say(`Kept ${told.objects} in ${told.path}${left}.`);
}));

// The list and the numbers

function row(one) {
  const item = document.createElement("li");
  item.dataset.id = one.id;
  item.innerHTML = "<i></i><input maxlength=60 aria-label='name'><button class=fix>Correct</button>"
    + "<button class=remove aria-label='remove'>✕</button><small><span></span><meter min=0 max=1></meter></small>";
  item.querySelector("i").style.background = one.colour;
  const name = item.querySelector("input");
  name.addEventListener("change", attempt(async () => {
    await request("PATCH", `/api/objects/${one.id}`, { name: name.value });
    name.blur();
  }));
  item.querySelector(".remove").addEventListener("click", attempt(async () => {
    await request("DELETE", `/api/objects/${one.id}`);
    await refresh();
  }));
  item.querySelector(".fix").addEventListener("click", attempt(async () => {
    if (frozen !== null) thaw();
    await freeze();
    corrected = one.id;
    $("name").value = name.value;
    $("track").textContent = "Correct it";
    strokes = [{ kind: "object", object: one.id }];
    say("Paint what is missing, erase what is too much, or draw it anew.");
    await preview().catch(() => { strokes = []; });  // lost, or made of points: there is nothing to begin with
  }));
  return item;
}

function list(objects) {
  const items = new Map([...$("objects").children].map((item) => [Number(item.dataset.id), item]));
  for (const one of objects) {
    const item = items.get(one.id) || $("objects").appendChild(row(one));
    items.delete(one.id);
    item.className = one.state;
    const name = item.querySelector("input");
    if (document.activeElement !== name) name.value = one.name || `object ${one.id}`;
    item.querySelector("span").textContent =
      one.state === "tracked" ? `${Math.round(100 * one.confidence)} %` : one.state;
    item.querySelector("meter").value = one.confidence;
  }
  for (const item of items.values()) item.remove();
  $("none").hidden = objects.length > 0;
}

async function refresh() {
  const state = await (await request("GET", "/api/state")).json();
  if (frozen === null && state.size) fit(state.size);
  $("numbers").textContent = state.size
    ? `${state.frames_per_second.toFixed(1)} frames/s · latency ${Math.round(state.latency_ms)} ms · `
      + `${state.dropped} dropped` + (state.source === "running" ? "" : ` · ${state.source}`)
    : state.source;
  list(state.objects);
  $("record").setAttribute("aria-pressed", state.recording);
  $("record").textContent = state.recording ? "Stop recording" : "Record";
  const details = [
    ["captured", state.captured], ["tracked", state.tracked], ["dropped", state.dropped],
    ["latency, 99 % below", `${Math.round(state.latency_99_ms)} ms`],
    ...state.outputs.map((one) => [one.name, one.error || `${one.written} frames, ${one.lost} lost`]),
  ];
  $("details").replaceChildren(...details.flatMap(([term, value]) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = term;
    dd.textContent = value;
    return [dt, dd];
  }));
}

let silent = false;
async function watch() {
  try {
    await refresh();
    if (silent) $("live").src = `/stream?again=${Date.now()}`;
    silent = false;
  } catch (error) {
    silent = true;
    $("numbers").textContent = error.message;
  }
  setTimeout(watch, 500);
}
watch();
