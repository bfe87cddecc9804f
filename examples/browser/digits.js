// Strokes to the pixels of a digit, prepared as those of MNIST were.

const FINE = 8; // Side of the square that is averaged to one pixel.

/** How a digit lies in an image: side of its box, and width of the pen, in pixels. */
function frame(side) {
  // MNIST (LeCun et al. 1998): 20 of 28 pixels. The 8x8 digits fill their image.
  return side < 16 ? { box: side, pen: side / 7 } : { box: (20 * side) / 28, pen: side / 12 };
}

/**
 * The strokes scaled to a box of 20 of 28 pixels, proportions kept, and moved by whole
 * pixels until their centre of mass is the centre of the image. The pen has the same
 * width, however large one has drawn.
 *
 * @param {{x: number, y: number}[][]} strokes in any unit
 * @param {number} side of the square image, in pixels
 */
export function pixelsOf(strokes, side) {
  const { box, pen } = frame(side);
  const points = strokes.flat();
  const [left, right] = range(points.map((p) => p.x));
  const [top, bottom] = range(points.map((p) => p.y));
  const scale = (box - pen) / Math.max(right - left, bottom - top, 1e-9);
  // A dot stays a dot.
  const zoom = points.length > 1 && Number.isFinite(scale) ? Math.min(scale, side) : 0;
  const placed = strokes.map((stroke) =>
    stroke.map((p) => ({
      x: side / 2 + zoom * (p.x - (left + right) / 2),
      y: side / 2 + zoom * (p.y - (top + bottom) / 2),
    })),
  );
  return centred(rendered(placed, side, pen), side);
}

function range(values) {
  return [Math.min(...values), Math.max(...values)];
}

/** Draws lines in units of pixels, and averages over each pixel's square. */
function rendered(strokes, side, pen) {
  const canvas = new OffscreenCanvas(side * FINE, side * FINE);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, canvas.width, canvas.height);
  trace(context, strokes, FINE, pen * FINE);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const out = new Uint8Array(side * side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      let sum = 0;
      for (let k = 0; k < FINE * FINE; k++) {
        const row = y * FINE + Math.floor(k / FINE);
        sum += data[4 * (row * canvas.width + x * FINE + (k % FINE))];
      }
      out[y * side + x] = Math.round(sum / FINE / FINE);
    }
  }
  return out;
}

/** White lines through the points of each stroke. */
export function trace(context, strokes, scale, width) {
  context.strokeStyle = "#fff";
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  for (const [first, ...rest] of strokes) {
    context.beginPath();
    context.moveTo(first.x * scale, first.y * scale);
    context.lineTo(first.x * scale, first.y * scale);
    for (const { x, y } of rest) context.lineTo(x * scale, y * scale);
    context.stroke();
  }
}

/** Moved by whole pixels, so that the centre of mass is the centre; ink stays inside. */
function centred(data, side) {
  let [mass, ofX, ofY] = [0, 0, 0];
  const columns = [];
  const rows = [];
  data.forEach((value, i) => {
    if (!value) return;
    const [x, y] = [i % side, Math.floor(i / side)];
    mass += value;
    ofX += value * (x + 0.5);
    ofY += value * (y + 0.5);
    columns.push(x);
    rows.push(y);
  });
  const dx = shift(ofX / mass, range(columns), side);
  const dy = shift(ofY / mass, range(rows), side);
  const out = new Uint8Array(side * side);
  data.forEach((value, i) => {
    if (value) out[i + dy * side + dx] = value;
  });
  return { data: out, width: side, height: side, channels: 1 };
}

function shift(centre, [first, last], side) {
  const wanted = Math.round(side / 2 - centre);
  return Math.min(Math.max(wanted, -first), side - 1 - last);
}
