"use strict";
const drop = document.getElementById("drop");
const files = document.getElementById("files");
const status = document.getElementById("status");
const list = document.getElementById("answers");

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function say(text, isError) {
  status.textContent = text;
  status.className = isError ? "error" : "";
}

async function send(path, chosen) {
  const form = new FormData();
  for (const file of chosen) form.append("images", file, file.name);
  const response = await fetch(path, { method: "POST", body: form });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error || `The service answered with ${response.status}.`);
}

function show(file, answer) {
  const item = make("li");
  const left = make("div");
  const picture = make("img");
  picture.alt = `${file.name}: ${answer.unknown ? "unknown" : answer.class}`;
  picture.src = URL.createObjectURL(file);
  const button = make("button", "Where it looks");
  button.type = "button";
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const response = await send("/explain", [file]);
      picture.src = URL.createObjectURL(await response.blob());
      button.textContent = "Grad-CAM";
    } catch (error) {
      say(error.message, true);
      button.disabled = false;
    }
  });
  left.append(picture, button);
  const right = make("div");
  right.append(make("h3", answer.unknown ? "Unknown" : answer.class, answer.unknown ? "unknown" : ""));
  if (answer.unknown) right.append(make("p", "It looks like none of the classes. The likeliest:", "file"));
  const table = make("table");
  for (const row of answer.top) {
    const line = table.insertRow();
    line.insertCell().textContent = row.class;
    const bar = make("progress");
    bar.max = 1;
    bar.value = row.probability;
    bar.setAttribute("aria-label", row.class);
    line.insertCell().append(bar);
    line.insertCell().textContent = `${(100 * row.probability).toFixed(1)}%`;
  }
  right.append(table, make("p", file.name, "file"));
  item.append(left, right);
  list.prepend(item);
}

async function classify(chosen) {
  if (!chosen.length) return;
  say(`Sending ${chosen.length} of your photographs ...`);
  try {
    const { answers } = await (await send("/predict", chosen)).json();
    answers.forEach((answer, index) => show(chosen[index], answer));
    say(`${answers.length} answered.`);
  } catch (error) {
    say(error.message, true);
  }
}

files.addEventListener("change", () => {
  classify([...files.files]);
  files.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") classify([...event.dataTransfer.files]);
  });
}
