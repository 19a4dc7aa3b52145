"use strict";

const $ = (id) => document.getElementById(id);
const drop = $("drop"), file = $("file"), threshold = $("threshold"), found = $("found");

let image = null; // the file that is shown
let asked = 0; // counts questions: answers to earlier ones are dropped

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function clear() {
  $("picture").hidden = true;
  $("hint").hidden = false;
  found.closest("table").hidden = true;
}

function row(name, value) {
  const line = document.createElement("tr");
  for (const text of [name, value]) {
    line.appendChild(document.createElement("td")).textContent = text;
  }
  return line;
}

function show(answer, seconds) {
  const records = answer.detections ?? answer.segments ?? answer.classes;
  const scored = records.every((one) => "score" in one);
  $("measure").textContent = scored ? "score" : "pixels";
  found.replaceChildren(
    ...records.map((one) => row(one.name, scored ? one.score.toFixed(2) : String(one.area))),
  );
  found.closest("table").hidden = records.length === 0;
  $("picture").src = "data:image/jpeg;base64," + answer.overlay_jpeg;
  $("picture").alt = records.map((one) => one.name).join(", ") || "nothing found";
  $("picture").hidden = false;
  $("hint").hidden = true;
  say(`${records.length} found in ${answer.width} × ${answer.height} pixels, ${seconds.toFixed(2)} s`);
}

async function ask() {
  if (!image) return;
  const number = ++asked;
  const form = new FormData();
  form.append("image", image);
  form.append("overlay", "true");
  if (!threshold.disabled) form.append("threshold", threshold.value);
  drop.classList.add("busy");
  say("…");
  const started = performance.now();
  try {
    const response = await fetch("/predict", { method: "POST", body: form });
    const answer = await response.json();
    if (number !== asked) return;
    if (response.ok) {
      show(answer, (performance.now() - started) / 1000);
    } else {
      clear();
      say(answer.error, true);
    }
  } catch (error) {
    if (number === asked) say(`no answer: ${error.message}`, true);
  } finally {
    if (number === asked) drop.classList.remove("busy");
  }
}

function take(files) {
  const first = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
  if (!first) return;
  image = first;
  ask();
}

file.addEventListener("change", () => take(file.files));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") file.click();
});
threshold.addEventListener("input", () => ($("score").value = Number(threshold.value).toFixed(2)));
threshold.addEventListener("change", ask);

fetch("/health")
  .then((response) => response.json())
  .then((about) => {
    $("about").textContent = `${about.model}, ${about.task}, ${about.classes.length} classes`;
    if (about.threshold === null) {
      threshold.disabled = true; // the model's own; a value would replace it
      $("score").value = "the model's";
    } else {
      threshold.value = about.threshold;
      $("score").value = about.threshold.toFixed(2);
    }
  });
