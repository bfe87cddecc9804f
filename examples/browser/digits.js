// Strokes to the pixels of a digit, prepared as those of MNIST were.

const FINE = 8; // Side of the square that is averaged to one pixel.

/**
 * How a digit lies in an image, in pixels: its box, the pen, and its centre of mass.
 *
 * MNIST (LeCun et al. 1998): in 20 x 20 of 28 x 28 pixels, the centre of mass on pixel
 * 14, counted from 0. The 8 x 8 digits of scikit-learn are as high as their image.
 */
export function frame(side) {
  if (side < 16)
    return { wide: 0.75 * side, high: side, pen: side / 7, centre: side / 2 };
  const box = (20 * side) / 28;
  return { wide: box, high: box, pen: side / 12, centre: side / 2 + 0.5 };
}

/**
 * The strokes, scaled to the box of a digit with their proportions kept, and moved by
 * whole pixels until their centre of mass is where it belongs. The pen has the same
 * width, however large one has drawn.
 *
 * @param {{x: number, y: number}[][]} strokes in any unit
 * @param {number} side of the square image, in pixels
 */
export function pixelsOf(strokes, side) {
  const { wide, high, pen, centre } = frame(side);
  const [left, right] = range(strokes.flat().map(({ x }) => x));
  const [top, bottom] = range(strokes.flat().map(({ y }) => y));
  const scale = Math.min((wide - pen) / (right - left), (high - pen) / (bottom - top));
  const zoom = Number.isFinite(scale) ? scale : 0; // A dot stays a dot.
  const place = ({ x, y }) => ({
    x: side / 2 + zoom * (x - (left + right) / 2),
    y: side / 2 + zoom * (y - (top + bottom) / 2),
  });
  const placed = strokes.map((stroke) => stroke.map(place));
  return centred(rendered(placed, side, pen), side, centre);
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

/** Moved by whole pixels, the centre of mass to `centre`; all ink stays inside. */
function centred(data, side, centre) {
  const columns = [];
  const rows = [];
  let [mass, ofX, ofY] = [0, 0, 0];
  data.forEach((value, i) => {
    if (!value) return;
    const [x, y] = [i % side, Math.floor(i / side)];
    mass += value;
    ofX += value * (x + 0.5);
    ofY += value * (y + 0.5);
    columns.push(x);
    rows.push(y);
  });
  const shift = (at, [first, last]) =>
    Math.min(Math.max(Math.round(centre - at), -first), side - 1 - last);
  const dx = shift(ofX / mass, range(columns));
  const dy = shift(ofY / mass, range(rows));
  const out = new Uint8Array(side * side);
  data.forEach((value, i) => {
    if (value) out[i + dy * side + dx] = value;
  });
  return { data: out, width: side, height: side, channels: 1 };
}
