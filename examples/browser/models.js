// The models, by way of the worker that runs them.

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let calls = 0;
let broken = null; // The error of a worker that does not load, once that is known.

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
};

worker.onerror = () => {
  broken = new Error("Expected worker.js beside this page, but it does not load.");
  for (const { reject } of waiting.values()) reject(broken);
  waiting.clear();
};

function call(action, args) {
  if (broken) return Promise.reject(broken);
  const id = ++calls;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, action, ...args });
  });
}

/** Loads a model; its size in bytes, and name, type and shape of its input. */
export function load(file) {
  return call("load", { file });
}

/**
 * Logits of one image, and the milliseconds of each run.
 *
 * @param {{runs: number, budget: number}} effort at most so many runs; none is begun
 *   after so many milliseconds
 */
export function run(file, data, effort) {
  return call("run", { file, data, ...effort });
}
