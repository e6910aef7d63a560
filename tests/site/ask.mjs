// Requests to a built page, answered in Node: a line of JSON [name, body] comes in, a line of JSON
// {text, exit, ms} goes out; the first line out is {ms} of the start.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

const place = new URL("static/", `file://${process.argv[2]}/`).href;
const timed = async (work) => {
  const start = performance.now();
  const found = await work();
  console.log(JSON.stringify({ ...found.said, ms: performance.now() - start }));
  return found.answer;
};
const { start } = await import(`${place}worker.mjs`);
const answer = await timed(async () => ({
  answer: await start(place, async (name) => readFile(new URL(name, place))),
}));
for await (const line of createInterface({ input: process.stdin })) {
  const [name, body] = JSON.parse(line);
  await timed(async () => ({ said: answer(name, body) }));
}
