// The models, off the page's thread, so that drawing stays smooth.

// From a CDN instead, at the version that serve.py pins:
// https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.min.mjs
const RUNTIME = "./ort/ort.wasm.min.mjs";
const sessions = new Map();
let runtime;

async function start() {
  try {
    runtime ??= await import(RUNTIME);
  } catch (error) {
    throw new Error(
      `Expected onnxruntime-web at ${RUNTIME}, but it does not load (${error.message}): ` +
        "serve this page by examples/browser/serve.py, which brings it.",
    );
  }
  if (typeof WebAssembly === "undefined") {
    throw new Error("Expected a browser with WebAssembly, but this one has none.");
  }
  runtime.env.wasm.numThreads = 1; // The same on every host and phone.
  runtime.env.logLevel = "error";
}

async function load({ file }) {
  await start();
  if (!sessions.has(file)) sessions.set(file, await create(file));
  const { bytes, session } = sessions.get(file);
  const { name, type, shape } = session.inputMetadata[0];
  return { bytes, input: { name, type, shape: Array.from(shape) } };
}

async function create(file) {
  const answer = await fetch(file).catch(() => null);
  if (!answer?.ok) {
    throw new Error(
      `Expected a model at ${file}, but there is none (${answer?.status ?? "no answer"}): ` +
        "run the stage export, then examples/browser/serve.py again.",
    );
  }
  const content = new Uint8Array(await answer.arrayBuffer());
  try {
    const session = await runtime.InferenceSession.create(content, {
      executionProviders: ["wasm"],
    });
    return { bytes: content.byteLength, session };
  } catch (error) {
    throw new Error(
      `Expected a model that onnxruntime-web can run at ${file}, but it says: ` +
        `${error.message} Try another browser, or export the model again.`,
    );
  }
}

/** Logits of one image, and the seconds of each run: as many as fit, at most `runs`. */
async function run({ file, data, runs, budget }) {
  const { session } = sessions.get(file);
  const { name, type, shape } = session.inputMetadata[0];
  const values = type === "uint8" ? data : Float32Array.from(data);
  const tensor = new runtime.Tensor(type, values, [1, ...shape.slice(1)]);
  const output = session.outputNames[0];
  const times = [];
  const started = performance.now();
  let logits;
  do {
    const before = performance.now();
    const results = await session.run({ [name]: tensor });
    times.push(performance.now() - before);
    logits = results[output].data;
  } while (times.length < runs && performance.now() - started < budget);
  return { logits: Float32Array.from(logits), times };
}

const actions = { load, run };

self.onmessage = async ({ data: { id, action, ...rest } }) => {
  try {
    self.postMessage({ id, result: await actions[action](rest) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
