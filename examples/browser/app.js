// What is drawn or dropped goes to both models, and what they say to the page.

import { argmax, bytes, divergence, median, softmax } from "./answers.js";
import { frame, pixelsOf } from "./digits.js";
import { load, run } from "./models.js";
import { Pad } from "./pad.js";
import { fit, fromRGBA, onDark } from "./pictures.js";
import { makeCard, showCard, showChart, showPixels } from "./view.js";

const ROLES = ["teacher", "student"];
const LONGEST_SIDE = 2048; // Of a picture, before it is brought to the models' size.
const TIMED = { runs: 30, budget: 1500 }; // At most so many, in so many milliseconds.
const ONCE = { runs: 1, budget: 0 }; // While drawing.
// Where a page isn't isolated, browsers round their clocks to 0.1 ms.
const CLOCK = self.crossOriginIsolated ? 0.005 : 0.1;

const $ = (id) => document.getElementById(id);

let page; // models.json: title, class_names, examples, models, runtime.
let shape; // Of one image: height, width, channels.
let image = null; // The pixels that the models get.
let temperature = 1;
const chosen = {}; // By role, the entry of models.json.
const answers = {}; // By role, logits and times of `image`.

const pad = new Pad($("pad"), {
  drawable: () => shape[2] === 1 && shape[0] === shape[1],
  onStrokes: (strokes, done) => ask(pixelsOf(strokes, shape[0]), done ? TIMED : ONCE),
  onFile: (file) => guarded(() => usePicture(file, true)),
});

// ----------------------------------------------------------------- beginning

async function begin() {
  page = await readPage();
  document.title = $("title").textContent = page.title;
  for (const role of ROLES) {
    const entries = page.models.filter((model) => model.role === role);
    const title = role === "teacher" ? "Teacher" : "Student";
    makeCard($(role), title, entries, (entry) => guarded(() => change(role, entry)));
    await choose(role, entries[0]);
  }
  showHelp();
  showExamples();
  $("runtime").textContent = `onnxruntime-web ${page.runtime} on one thread.`;
  hush();
  $("main").hidden = false;
  clear();
}

async function readPage() {
  const answer = await fetch("models.json").catch(() => null);
  if (!answer?.ok) {
    throw new Error(
      "Expected models.json beside this page, but there is none: run " +
        "python examples/browser/serve.py --run=DIR, which writes it.",
    );
  }
  return answer.json();
}

async function choose(role, entry) {
  say(`Loading the ${role}, ${entry.name} (${bytes(entry.bytes)}).`);
  const { bytes: size, input } = await load(entry.file);
  const [, ...own] = input.shape;
  if (own.length !== 3 || ![1, 3].includes(own[2])) {
    throw new Error(
      "Expected a model of images [batch, height, width, 1 or 3], but " +
        `${entry.file} takes [${input.shape.join(", ")}].`,
    );
  }
  if (shape && own.join() !== shape.join()) {
    throw new Error(
      "Expected teacher and student to take images of one shape, but " +
        `${entry.file} takes [${own.join(", ")}], the other [${shape.join(", ")}].`,
    );
  }
  shape = own;
  chosen[role] = { ...entry, bytes: size };
}

async function change(role, entry) {
  await choose(role, entry);
  hush();
  delete answers[role];
  show();
  if (image) ask(image, TIMED);
}

function showHelp() {
  const [height, width, channels] = shape;
  $("shape").textContent =
    `${width} × ${height}, ${channels === 1 ? "grey" : "colour"}`;
  $("pixels").width = width;
  $("pixels").height = height;
  const { wide, high } = frame(width);
  const drawing =
    `Draw one digit. It is scaled to a box of ${Math.round(wide)} × ${Math.round(high)} ` +
    "pixels, drawn with a pen of their width, and centred by its centre of mass, as the " +
    "images of MNIST were. ";
  const picture =
    "A picture is brought to the models' size: its shorter side resized, the longer " +
    "one cut at both ends";
  const grey = ", in grey, and inverted where its border is light";
  const drawable = pad.hooks.drawable();
  $("how").textContent =
    (drawable ? drawing : "") + picture + (channels === 1 ? grey : "") + ".";
  if (drawable) return;
  $("pad").setAttribute("aria-label", "The picture: drop one here, or paste it");
  $("pad").classList.add("still");
}

function showExamples() {
  for (const { image: url, label } of page.examples) {
    const picture = new Image();
    picture.src = url;
    picture.alt = `Test image labelled ${label}`;
    const button = document.createElement("button");
    button.type = "button";
    button.title = `Labelled ${label}`;
    button.append(picture);
    button.onclick = () => guarded(() => usePicture(url, false));
    $("thumbnails").append(button);
  }
  $("examples").hidden = !page.examples.length;
}

// ------------------------------------------------------------------ pictures

async function usePicture(source, photo) {
  hush();
  const blob = photo ? source : await (await fetch(source)).blob();
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Error(
      `Expected a picture that this browser can show, got ${source.name || "a file"} ` +
        `of type ${blob.type || "unknown"}: choose a PNG, JPEG or WebP.`,
    );
  });
  clear();
  pad.show(bitmap);
  ask(prepared(bitmap, photo), TIMED);
}

function prepared(bitmap, photo) {
  const [height, width, channels] = shape;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const wide = Math.max(1, Math.round(bitmap.width * scale));
  const high = Math.max(1, Math.round(bitmap.height * scale));
  const context = new OffscreenCanvas(wide, high).getContext("2d");
  context.fillStyle = "#fff"; // Behind what is transparent.
  context.fillRect(0, 0, wide, high);
  context.drawImage(bitmap, 0, 0, wide, high);
  const all = fromRGBA(context.getImageData(0, 0, wide, high), channels);
  const fitted = fit(all, width, height);
  return photo && channels === 1 ? onDark(fitted) : fitted;
}

// ------------------------------------------------------------------- answers

let wanted = null; // How the newest image is to be answered; null: it is.
let busy = false;

/** Asks both models of the newest image; those that came in between are left out. */
async function ask(newest, effort) {
  image = newest;
  wanted = effort;
  showPixels($("pixels"), image);
  if (busy) return;
  busy = true;
  await guarded(async () => {
    while (wanted) {
      const [asked, how] = [image, wanted];
      wanted = null;
      for (const role of ROLES) if (!wanted) await askOne(role, asked, how);
    }
  });
  busy = false;
}

async function askOne(role, asked, effort) {
  const { logits, times } = await run(chosen[role].file, asked.data, effort);
  if (image !== asked) return; // Cleared, or drawn on, in the meantime.
  answers[role] = { logits, times: effort === ONCE ? null : times, image };
  show();
}

function clear() {
  image = wanted = null;
  for (const role of ROLES) delete answers[role];
  pad.clear(pad.hooks.drawable() ? "Draw a digit" : "Drop a picture");
  showPixels($("pixels"), null);
  show();
}

function show() {
  const names = page.class_names;
  for (const role of ROLES) showCard($(role), chosen[role], answers[role], names);
  const soft = (answer) => (answer ? softmax(answer.logits, temperature) : null);
  const { teacher, student } = answers;
  showChart($("chart").tBodies[0], names, soft(teacher), soft(student));
  const both = teacher && student && teacher.image === student.image;
  $("verdict").className = "";
  $("verdict").textContent = both ? verdict(teacher, student) : "";
  $("notes").textContent = both ? notes(teacher, student) : "";
}

function verdict(teacher, student) {
  const [left, right] = [teacher, student].map(({ logits }) => argmax(logits));
  const names = page.class_names;
  $("verdict").className = left === right ? "agree" : "differ";
  return left === right
    ? `They agree: ${names[left]}.`
    : `They differ: ${names[left]} by the teacher, ${names[right]} by the student.`;
}

function notes(teacher, student) {
  const nats = divergence(teacher.logits, student.logits, temperature).toFixed(4);
  const sentences = [`Divergence of the student from the teacher: ${nats} nats.`];
  const [large, small] = ROLES.map((role) => chosen[role].bytes);
  sentences.push(`The student's file is ${(large / small).toFixed(1)} times smaller.`);
  if (teacher.times && student.times) {
    const [slow, fast] = [teacher, student].map(({ times }) => median(times));
    if (fast >= 10 * CLOCK) {
      sentences.push(`It answers ${(slow / fast).toFixed(1)} times as fast.`);
    }
    const counts = `${teacher.times.length} and ${student.times.length}`;
    sentences.push(`Latencies are medians of ${counts} runs of one image.`);
  }
  return sentences.join(" ");
}

// ------------------------------------------------------------------ messages

function say(text) {
  $("status").className = "";
  $("status").textContent = text;
  $("status").hidden = false;
}

function hush() {
  $("status").hidden = true;
}

function report(error) {
  say(error.message);
  $("status").className = "error";
}

/** Runs what may fail, says so in a sentence, and leaves the page usable. */
async function guarded(action) {
  try {
    await action();
  } catch (error) {
    report(error);
  }
}

$("clear").onclick = () => {
  hush();
  clear();
};

$("file").onchange = ({ target }) => {
  if (target.files.length) pad.hooks.onFile(target.files[0]);
  target.value = ""; // So that the same file can be chosen again.
};

$("temperature").oninput = ({ target }) => {
  temperature = 20 ** (Number(target.value) / 100); // From 1 to 20, in equal ratios.
  const text = temperature.toFixed(1).replace(/\.0$/, "");
  $("temperature-value").textContent = text;
  target.setAttribute("aria-valuetext", text);
  show();
};

begin().catch(report);
