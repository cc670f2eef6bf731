// BullMQ has no signals: the wait is a delayed entry, which the signal promotes. Clients and worker are one process.
// The same work and the same output as drive.py: node bullmq_order.mjs SOCKET --cycles N --clients N --samples N --warm N
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

// The package is in the folder that this runs in, not beside this file.
const { Queue, Worker } = createRequire(`${process.cwd()}/`)('bullmq');
const TIMEOUT_MS = 1_800_000;
const SETTLE_MS = 50;

const count = { type: 'string' };
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { cycles: count, clients: count, samples: count, warm: count },
});
const [cycles, clients, samples, warm] = ['cycles', 'clients', 'samples', 'warm'].map((name) => Number(values[name]));
const connection = { path: positionals[0] };

const done = new Set();
let missing = new Set();
let noneMissing = () => {};
const queue = new Queue('orders', { connection });
const worker = new Worker('orders', async (entry) => {
  done.add(entry.id);
  if (missing.delete(entry.id) && missing.size === 0) noneMissing();
}, { connection, concurrency: clients });

const entries = new Map();
const start = async (key) => entries.set(key, await queue.add('order', {}, { delay: TIMEOUT_MS, jobId: key }));
const signal = (key) => entries.get(key).promote();
const finished = (keys) => new Promise((resolve) => {
  missing = new Set(keys.filter((key) => !done.has(key)));
  noneMissing = resolve;
  if (missing.size === 0) resolve();
});

const each = (call, keys) => {
  const left = keys.values();
  const client = async () => { for (const key of left) await call(key); };
  return Promise.all(Array.from({ length: clients }, client));
};
const named = (prefix, length) => Array.from({ length }, (_, n) => prefix + n);

const cycle = async (keys) => {
  const began = performance.now();
  await each(start, keys);
  const started = performance.now();
  const seen = finished(keys);
  await each(signal, keys);
  const signalled = performance.now();
  await seen;
  const ended = performance.now();
  const seconds = (from, to) => (to - from) / 1000;
  return { seconds: seconds(began, ended), start_s: seconds(began, started), signal_s: seconds(started, signalled),
    finish_s: seconds(started, ended) };
};

await Promise.all([worker.waitUntilReady(), queue.waitUntilReady()]);
await cycle(named('w', warm));
const figures = { cycles, ...await cycle(named('c', cycles)), latency_ms: [] };
for (const key of named('l', samples)) {
  await start(key);
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  const began = performance.now();
  const seen = finished([key]);
  await signal(key);
  await seen;
  figures.latency_ms.push(performance.now() - began);
}
console.log(JSON.stringify(figures));
process.exit(0);
