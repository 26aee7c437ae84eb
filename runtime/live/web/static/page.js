"use strict";
// Page of a live session and of corrflow-label. Coordinates are pixels of the frame, x to the right and y down.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const HINTS = {
  box: "Draw a box around an object.",
  lasso: "Draw the outline of an object.",
  points: "Click the points to track.",
  paint: "Paint over an object.",
  erase: "Erase what does not belong to the object.",
};
let mode = "";           // "live" or "label"
let state = null;        // newest answer of /api/state
let tool = "box";
let frozen = null;       // number of the frozen frame
let freezing = null;     // promise of that number
let size = [1, 1];       // of the frame, width first
let keypoints = {};      // [[x, y, name], ...] of the frozen frame's objects, by id
let strokes = [], points = [], corrected = null;  // the drawing; strokes and points exclude each other
let stroke = null, pointer = null;  // the stroke under way, the brush's place
let submitting = false, previews = 0, closed = false;
let previewing = null;   // controller of the preview's request under way
let watched = 0;         // number of the tracking run whose video was closed

function setMessage(text, wrong = false) {
  $("message").textContent = text;
  $("message").className = wrong ? "error" : "";
}

if (location.search) history.replaceState(null, "", "/");  // the token is in a cookie now

async function request(method, path, values, signal) {
  const options = { method, signal };
  if (values !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(values);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("corrflow does not answer; is it still running?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `corrflow answered ${response.status}`);
  }
  return response;
}

function attempt(work) {
  return async (event) => {
    try {
      await work(event);
    } catch (error) {
      setMessage(error.message, true);
    }
  };
}

function onClick(id, work) {
  $(id).addEventListener("click", attempt(work));
}

// Freezing

function freeze() {
  if (!freezing) freezing = freezeNow().catch((error) => { unfreeze(); throw error; });
  return freezing;
}

function fit(newSize) {
  size = newSize;
  document.body.style.setProperty("--ratio", size[0] / size[1]);
  $("frame").style.setProperty("--ratio", size[0] / size[1]);  // the canvas covers the image exactly
}

async function freezeNow() {
  const answer = await (await request("POST", "/api/freeze", {})).json();
  frozen = answer.frozen;
  keypoints = answer.keypoints;
  fit(answer.size);
  [canvas.width, canvas.height] = size;
  if (mode === "live") await showStill("");
  render();
}

async function showStill(query) {
  const number = frozen, still = $("still");
  still.src = `/api/frozen/${number}${query}`;
  await still.decode().catch(() => {});
  if (frozen === number) still.hidden = false;
}

function unfreeze() {
  if (frozen !== null) request("DELETE", `/api/frozen/${frozen}`).catch(() => {});
  frozen = freezing = stroke = corrected = null;
  strokes = [];
  points = [];
  previews++;
  $("still").hidden = $("preview").hidden = true;
  $("name").value = "";
  render();
}

// Drawing

function place(event) {
  const area = canvas.getBoundingClientRect();
  return [
    (event.clientX - area.left) / area.width * size[0] - 0.5,
    (event.clientY - area.top) / area.height * size[1] - 0.5,
  ];
}

const unit = () => Math.max(1, size[0] / (canvas.clientWidth || size[0]));  // pixels of the frame for one of the screen
const brushWidth = () => Math.max(1, Math.round(Number($("width").value) / 100 * Math.min(...size)));
const isBrush = (kind) => kind === "paint" || kind === "erase";
const pending = () => strokes.length > 0 || points.length > 0;

canvas.addEventListener("pointerdown", attempt(async (event) => {
  if (event.button || submitting) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  const here = place(event);
  if (tool === "points") {
    const near = points.find(([x, y]) => Math.hypot(x - here[0], y - here[1]) < 12 * unit());
    stroke = { kind: "points", moved: near || here.concat("") };
  } else {
    stroke = { kind: tool, points: [here], width: brushWidth() };
  }
  render();
  await freeze();
}));

canvas.addEventListener("pointermove", (event) => {
  const here = pointer = place(event);
  if (stroke) {
    if (stroke.kind === "points") [stroke.moved[0], stroke.moved[1]] = here;
    else if (stroke.kind === "box") stroke.points[1] = here;
    else if (stroke.points.length < 5000) stroke.points.push(here);
  }
  paint();
});
canvas.addEventListener("pointerleave", () => { pointer = null; paint(); });

canvas.addEventListener("pointerup", attempt(async () => {
  const done = stroke;
  stroke = null;
  if (!done) return;
  await freeze();
  if (done.kind === "points") {
    strokes = [];
    done.moved[0] = Math.min(Math.max(done.moved[0], 0), size[0] - 1);
    done.moved[1] = Math.min(Math.max(done.moved[1], 0), size[1] - 1);
    if (!points.includes(done.moved)) points.push(done.moved);
  } else {
    const [first, last] = [done.points[0], done.points[done.points.length - 1]];
    const length = Math.hypot(last[0] - first[0], last[1] - first[1]);
    if (done.kind === "box" && length < 6) {
      render();
      return setMessage("That box was too small; draw from one corner to the other.", true);
    }
    if (done.kind === "box" || done.kind === "lasso") strokes = strokes.filter((one) => one.kind !== "object");
    points = [];
    strokes.push(done);
  }
  setMessage("");
  render();
  await preview();
  if (matchMedia("(pointer: fine)").matches && tool === "box") $("name").focus({ preventScroll: true });
}));
canvas.addEventListener("pointercancel", () => { stroke = null; render(); });

async function preview() {
  const number = ++previews;
  if (previewing) previewing.abort();  // the server drops its work
  if (!strokes.length || frozen === null) {
    $("preview").hidden = true;
    return;
  }
  previewing = new AbortController();
  let image;
  try {
    image = await (await request("POST", "/api/mask", { frozen, strokes }, previewing.signal)).blob();
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  }
  if (number !== previews) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(image);
  $("preview").hidden = false;
}

function dot(x, y, radius, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x + 0.5, y + 0.5, radius, 0, 7);
  pen.fill();
}

function paint() {
  [canvas.width, canvas.height] = size;
  pen.lineJoin = pen.lineCap = "round";
  const colour = (kind) => (kind === "erase" ? "#ff6a5a" : "#ffd23c");
  const shown = stroke && stroke.kind === "points" && !points.includes(stroke.moved) ? [...points, stroke.moved] : points;
  pen.font = `600 ${14 * unit()}px system-ui, sans-serif`;
  shown.forEach(([x, y, name], index) => {
    dot(x, y, 7 * unit(), "#14161a");
    dot(x, y, 5 * unit(), colour());
    pen.lineWidth = 4 * unit();
    pen.strokeStyle = "#14161a";
    pen.strokeText(name || index + 1, x + 9 * unit(), y - 6 * unit());
    pen.fillText(name || index + 1, x + 9 * unit(), y - 6 * unit());
  });
  if (stroke && stroke.kind !== "points") {
    pen.lineWidth = isBrush(stroke.kind) ? stroke.width : 2 * unit();
    pen.globalAlpha = isBrush(stroke.kind) ? 0.6 : 1;
    pen.strokeStyle = colour(stroke.kind);
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
  } else if (pointer && isBrush(tool)) {
    pen.lineWidth = 1.5 * unit();
    pen.strokeStyle = colour(tool);
    pen.beginPath();
    pen.arc(pointer[0], pointer[1], brushWidth() / 2, 0, 7);
    pen.stroke();
  }
}

// Everything on the page that depends on the drawing and the state

function render() {
  paint();
  const drawing = pending() || corrected !== null;
  $("drawn").hidden = !drawing && !(mode === "live" && frozen !== null);
  $("submit").textContent = corrected !== null ? "Correct" : mode === "live" ? "Track it" : "Add";
  $("freeze").textContent = frozen === null ? "Freeze" : "Go on";
  $("undo").disabled = !pending() && !(state && state.can_undo);
  $("brush").hidden = !isBrush(tool);
  renderPointNames();
  if (state) $("guide").textContent = guide(drawing);
}

function renderPointNames() {
  const list = $("point-names");
  while (list.children.length > points.length) list.lastChild.remove();
  while (list.children.length < points.length) {
    const input = document.createElement("input"), index = list.children.length;
    input.maxLength = 60;
    input.setAttribute("aria-label", `name of point ${index + 1}`);
    input.addEventListener("input", () => { points[index][2] = input.value; paint(); });
    list.append(input);
  }
  points.forEach((point, index) => {
    list.children[index].placeholder = `point ${index + 1}`;
    list.children[index].value = point[2];
  });
}

function guide(drawing) {
  if (mode === "live") return drawing ? "Name the object and press Track it." : HINTS[tool];
  const run = state.tracking, first = state.frame ? ` from frame ${state.frame} on` : "";
  if (run && run.running) return run.frames ? `Tracking: ${run.frames} of ${run.total || "?"} frames` : "Loading the model";
  if (document.body.classList.contains("watching")) return `The result is in ${run.path}.`;
  if (corrected !== null) return "Paint what is missing, erase what is too much, or draw the object again.";
  if (drawing) return points.length ? "Click more points, name them, and press Add." : "Name the object and press Add.";
  if (!state.objects.length) return HINTS[tool];
  return `Press Track to follow the ${state.objects.length > 1 ? "objects" : "object"}${first}, or draw another object.`;
}

// Buttons

for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => {
    tool = button.dataset.tool;
    for (const one of document.querySelectorAll("[data-tool]")) one.setAttribute("aria-pressed", one === button);
    render();
  });
}

async function undo() {
  if (pending()) {
    (points.length ? points : strokes).pop();
    render();
    return preview().catch(() => { $("preview").hidden = true; });
  }
  unfreeze();
  if (mode === "label") await request("POST", "/api/undo", {});
  await update();
}

async function submit() {
  if (!pending()) return setMessage("Draw on the frame first.", true);
  if (submitting) return;
  submitting = true;
  try {
    const drawing = points.length
      ? { points: points.map(([x, y]) => [x, y]), point_names: points.map((point) => point[2]) }
      : { strokes };
    await request("POST", "/api/objects", { frozen, object: corrected, name: $("name").value, ...drawing });
  } finally {
    submitting = false;
  }
  frozen = null;  // released by the server
  unfreeze();
  setMessage("");
  await update();
}

async function act(path, values = {}) {
  if (pending()) await submit();
  unfreeze();
  const answer = await (await request("POST", path, values)).json();
  setMessage("");
  if (!closed) await update();
  return answer;
}

onClick("freeze", async () => (frozen === null ? freeze() : unfreeze()));
onClick("cancel", async () => { unfreeze(); setMessage(""); });
onClick("undo", undo);
document.addEventListener("keydown", attempt(async (event) => {
  if (event.key === "Escape") unfreeze();
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.tagName !== "INPUT") await undo();
}));
$("drawn").addEventListener("submit", attempt(async (event) => {
  event.preventDefault();
  await submit();
}));
onClick("record", async () => {
  await request("POST", "/api/recording", { on: $("record").getAttribute("aria-pressed") !== "true" });
  await update();
});
onClick("prompt", async () => {
  const answer = await (await request("POST", "/api/prompt", {})).json();
  const hidden = answer.hidden.length ? `; not visible, so left out: ${answer.hidden.join(", ")}` : "";
  setMessage(`Saved ${answer.objects} in ${answer.path}${hidden}.`);
});
onClick("track", async () => {
  const run = state.tracking;
  if (run && run.running) return act("/api/track/stop");
  if (document.body.classList.contains("watching")) watched = run.number;
  else await act("/api/track");
  await update();
});
onClick("save", async () => { await act("/api/save"); setMessage("Saved."); });
onClick("done", async () => {
  closed = true;
  try {
    await act("/api/done");
  } catch (error) {
    closed = false;
    throw error;
  }
  document.body.innerHTML = "<main><p id=guide>Done. The terminal tells the next step; this page can be closed.</p></main>";
});

// Frames

const seek = (frame) => act("/api/frame", { frame });
$("slider").addEventListener("change", attempt(() => seek(Number($("slider").value))));
$("slider").addEventListener("input", () => { $("numbers").textContent = frameText(Number($("slider").value)); });
onClick("back", () => seek(Math.max(0, state.frame - 1)));
onClick("forward", () => seek(state.frame + 1));
const frameText = (frame) => `${state.name} · frame ${frame}${state.frame_count ? ` of ${state.frame_count}` : ""}`;

// Objects, numbers and files

function row(object) {
  const item = document.createElement("li");
  item.dataset.id = object.id;
  item.innerHTML = "<i></i><input maxlength=60 aria-label='name'><button class=fix>Correct</button>"
    + "<button class=remove aria-label='remove'>✕</button><small><span></span><meter min=0 max=1></meter></small>";
  item.querySelector("i").style.background = object.colour;
  const name = item.querySelector("input");
  name.addEventListener("change", attempt(async () => {
    await request("PATCH", `/api/objects/${object.id}`, { name: name.value });
    name.blur();
  }));
  item.querySelector(".remove").addEventListener("click", attempt(async () => {
    await request("DELETE", `/api/objects/${object.id}`);
    await update();
  }));
  item.querySelector(".fix").addEventListener("click", attempt(async () => {
    unfreeze();
    await freeze();
    corrected = object.id;
    $("name").value = name.value;
    points = (keypoints[object.id] || []).map((point) => [...point]);
    strokes = points.length ? [] : [{ kind: "object", object: object.id }];
    $(`frame`).scrollIntoView({ block: "nearest" });
    setMessage("");
    render();
    await showStill(`?without=${object.id}`);
    await preview().catch(() => { strokes = []; });  // a lost object has no pixels to start from
  }));
  return item;
}

function list(objects) {
  const items = new Map([...$("objects").children].map((item) => [Number(item.dataset.id), item]));
  for (const object of objects) {
    let item = items.get(object.id);
    items.delete(object.id);
    if (!item) $("objects").append(item = row(object));
    item.className = object.state;
    const name = item.querySelector("input");
    if (document.activeElement !== name) name.value = object.name || `object ${object.id}`;
    item.querySelector("span").textContent =
      object.state === "tracked" ? `${Math.round(100 * object.confidence)} %` : object.state;
    item.querySelector("meter").value = object.confidence;
  }
  for (const item of items.values()) item.remove();
  $("none").hidden = objects.length > 0;
}

let refused = false;  // the stream has no place for another viewer
$("image").addEventListener("error", () => { refused = mode === "live"; });

function updateLive() {
  if (!$("image").src) $("image").src = "/stream";
  if (refused && state.viewers < state.max_viewers) {
    refused = false;
    $("image").src = `/stream?again=${Date.now()}`;
  }
  $("image").hidden = refused;
  $("refused").textContent = refused
    ? `${state.viewers} others are watching, and that is the limit. The stream appears here when one of them leaves.` : "";
  $("numbers").textContent = state.size
    ? `${state.frames_per_second.toFixed(1)} frames/s · latency ${Math.round(state.latency_ms)} ms · `
      + `${state.dropped} dropped` + (state.source === "running" ? "" : ` · ${state.source}`)
    : state.source;
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

function updateLabel() {
  const run = state.tracking, running = run !== null && run.running;
  const watching = run !== null && !running && run.path !== null && run.number > watched;
  document.body.classList.toggle("tracking", running);
  document.body.classList.toggle("watching", watching);
  const source = `/api/image?${state.image}`;
  if ($("image").getAttribute("src") !== source) $("image").src = source;
  $("numbers").textContent = frameText(state.frame);
  $("seek").hidden = state.frame_count === 1;
  $("slider").max = state.frame_count ? state.frame_count - 1 : state.frame + 250;
  if (document.activeElement !== $("slider")) $("slider").value = state.frame;
  $("track").textContent = running ? "Stop" : watching ? "Draw again" : "Track";
  $("track").hidden = state.frame_count === 1;
  $("track").disabled = $("save").disabled = !state.objects.length && !running && !watching && !pending();
  $("track").classList.toggle("main", !pending());
  $("progress").hidden = !running;
  if (running && run.frames && run.total) [$("progress").max, $("progress").value] = [run.total, run.frames];
  else $("progress").removeAttribute("value");
  const video = `/api/result?${run && run.number}`;
  $("result").hidden = !watching;
  if (watching && $("result").getAttribute("src") !== video) {
    $("result").src = video;
    $("result").play().catch(() => {});
  } else if (!watching) $("result").pause();
  if (run && run.error && run.number > watched) setMessage(run.error, true);
  $("files").replaceChildren(...state.saved.map((path) => {
    const item = document.createElement("li");
    item.textContent = `wrote ${path}`;
    return item;
  }));
  $("next").hidden = !state.next;
  $("next").textContent = state.next;
}

async function update() {
  const drawing = frozen === null ? "" : `?frozen=${frozen}`;  // keeps the frozen frame
  state = await (await request("GET", `/api/state${drawing}`)).json();
  mode = document.body.dataset.mode = state.mode;
  if (frozen === null && state.size) fit(state.size);
  list(state.objects);
  (mode === "live" ? updateLive : updateLabel)();
  if (!stroke) render();
}

let silent = false;
async function watch() {
  if (closed) return;
  try {
    await update();
    if (silent && mode === "live") $("image").src = `/stream?again=${Date.now()}`;
    silent = false;
  } catch (error) {
    silent = true;
    $("numbers").textContent = error.message;
  }
  setTimeout(watch, 500);
}
watch();
