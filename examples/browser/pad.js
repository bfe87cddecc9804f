// The square to draw on, or to drop a picture on.

import { trace } from "./digits.js";

/**
 * @param {HTMLCanvasElement} canvas
 * @param {{drawable: () => boolean, onStrokes: Function, onFile: Function}} hooks
 *   `onStrokes(strokes, done)` while drawing and after each stroke; `onFile(file)`
 */
export class Pad {
  constructor(canvas, hooks) {
    this.canvas = canvas;
    this.hooks = hooks;
    this.strokes = [];
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.goOn(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.end(event));
    }
    this.takeFiles();
  }

  begin(event) {
    if (!this.hooks.drawable() || event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.strokes.push([this.pointOf(event)]);
    this.paint(false);
  }

  goOn(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    // All that the pen told since the last frame.
    const events = event.getCoalescedEvents?.() ?? [];
    const points = (events.length ? events : [event]).map((e) => this.pointOf(e));
    this.strokes.at(-1).push(...points);
    this.paint(false);
  }

  end(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    this.canvas.releasePointerCapture(event.pointerId);
    this.paint(true);
  }

  pointOf({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return { x: (clientX - box.left) * scale, y: (clientY - box.top) * scale };
  }

  paint(done) {
    trace(this.black(), this.strokes, 1, this.canvas.width / 14);
    this.hooks.onStrokes(this.strokes, done);
  }

  black() {
    const context = this.canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    return context;
  }

  /** Forgets all strokes, and says what to do here. */
  clear(hint) {
    this.strokes = [];
    const context = this.black();
    context.fillStyle = "#8b90a0";
    context.font = "32px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText(hint, this.canvas.width / 2, this.canvas.height / 2);
  }

  /** Shows a whole picture. */
  show(bitmap) {
    this.strokes = [];
    const context = this.black();
    const { width, height } = this.canvas;
    const scale = Math.min(width / bitmap.width, height / bitmap.height);
    const [wide, high] = [bitmap.width * scale, bitmap.height * scale];
    context.imageSmoothingEnabled = scale < 2; // Else its pixels are seen.
    context.drawImage(bitmap, (width - wide) / 2, (height - high) / 2, wide, high);
  }

  takeFiles() {
    const over = (on) => this.canvas.classList.toggle("over", on);
    const take = (files) => files.length && this.hooks.onFile(files[0]);
    for (const name of ["dragenter", "dragover"]) {
      this.canvas.addEventListener(name, (event) => {
        event.preventDefault();
        over(true);
      });
    }
    this.canvas.addEventListener("dragleave", () => over(false));
    this.canvas.addEventListener("drop", (event) => {
      event.preventDefault();
      over(false);
      take(event.dataTransfer.files);
    });
    document.addEventListener("paste", ({ clipboardData }) =>
      take(clipboardData.files),
    );
  }
}
