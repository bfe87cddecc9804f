// What logits say: probabilities, agreement, latency.

/** Probabilities at a temperature. */
export function softmax(logits, temperature = 1) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp((z - most) / temperature));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((p) => p / total);
}

/** KL(teacher || student) in nats, of logits at a temperature. */
export function divergence(teacherLogits, studentLogits, temperature = 1) {
  const teacher = softmax(teacherLogits, temperature);
  const student = softmax(studentLogits, temperature);
  return teacher.reduce(
    (sum, p, i) => sum + (p ? p * Math.log(p / Math.max(student[i], 1e-300)) : 0),
    0,
  );
}

export function argmax(values) {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}

export function median(values) {
  const sorted = Array.from(values).sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The classes to show: all of a few; else the likeliest of both, at most `count`. */
export function shownClasses(teacher, student, count) {
  const all = teacher.map((_, i) => i);
  if (all.length <= count) return all;
  const either = all.map((i) => Math.max(teacher[i], student[i]));
  return all.sort((a, b) => either[b] - either[a]).slice(0, count);
}

export function percent(probability) {
  return `${(100 * probability).toFixed(1)}\u00a0%`; // The space doesn't break.
}

export function bytes(count) {
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)} MB`;
  return `${(count / 1e3).toFixed(count < 1e4 ? 1 : 0)} kB`;
}

export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
}
