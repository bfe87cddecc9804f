// Cards of the models, and the chart of their probabilities.

import {
  argmax,
  bytes,
  median,
  milliseconds,
  percent,
  shownClasses,
  softmax,
} from "./answers.js";

const MOST_CLASSES = 12; // Shown at once; of more, the likeliest.

/** Fills a card; `onChoose(entry)` when another file of its role is wanted. */
export function makeCard(card, title, entries, onChoose) {
  card.innerHTML = `
    <h3>${title}</h3>
    <p class="model"></p>
    <select aria-label="File of the ${title.toLowerCase()}"></select>
    <p class="answer"></p>
    <dl>
      <dt>size</dt><dd class="size"></dd>
      <dt>latency</dt><dd class="latency"></dd>
      <dt class="of-test">test accuracy</dt><dd class="accuracy of-test"></dd>
    </dl>`;
  const select = card.querySelector("select");
  const name = card.querySelector(".model");
  entries.forEach((entry, i) => select.add(new Option(entry.name, String(i))));
  name.textContent = entries[0].name;
  name.hidden = entries.length > 1;
  select.hidden = entries.length === 1;
  select.onchange = () => onChoose(entries[Number(select.value)]);
}

/** What a model is, and its answer, if there is one. */
export function showCard(card, model, answer, names) {
  const text = (name, value) => (card.querySelector(`.${name}`).textContent = value);
  text("size", bytes(model.bytes));
  const known = model.accuracy != null;
  text("accuracy", known ? `${model.accuracy.toFixed(2)} %` : "");
  for (const part of card.querySelectorAll(".of-test")) part.hidden = !known;
  text("latency", answer?.times ? milliseconds(median(answer.times)) : "");
  text("answer", "");
  if (!answer) return;
  const best = argmax(answer.logits);
  text("answer", names[best]);
  const sure = document.createElement("small");
  sure.textContent = `${percent(softmax(answer.logits)[best])} sure`;
  card.querySelector(".answer").append(sure);
}

/** Bars of both, class by class; of an empty answer, none. */
export function showChart(body, names, teacher, student) {
  const zeros = new Array(names.length).fill(0);
  const classes = shownClasses(teacher ?? zeros, student ?? zeros, MOST_CLASSES);
  while (body.rows.length < classes.length) body.append(newRow());
  classes.forEach((k, i) => {
    const [left, name, right] = body.rows[i].children;
    name.textContent = names[k];
    fill(left, teacher, k);
    fill(right, student, k);
  });
}

function newRow() {
  const row = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  row.append(newCell("teacher"), name, newCell("student"));
  return row;
}

function newCell(role) {
  const cell = document.createElement("td");
  cell.innerHTML = `<div class="bar ${role}">
    <span class="track" aria-hidden="true"><span class="fill"></span></span>
    <span class="percent"></span></div>`;
  return cell;
}

function fill(cell, probabilities, k) {
  const share = probabilities ? probabilities[k] : 0;
  cell.querySelector(".fill").style.width = `${100 * share}%`;
  cell.querySelector(".percent").textContent = probabilities ? percent(share) : "";
  const first = probabilities !== null && argmax(probabilities) === k;
  cell.firstElementChild.classList.toggle("first", first);
}

/** The pixels themselves, each a square. */
export function showPixels(canvas, image) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!image) {
    context.clearRect(0, 0, canvas.width, canvas.height);
    return;
  }
  const { data, width, height, channels } = image;
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      rgba[4 * i + c] = data[i * channels + (channels === 3 ? c : 0)];
    }
  }
  context.putImageData(new ImageData(rgba, width, height), 0, 0);
}
