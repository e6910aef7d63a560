// The answers of the page that no server stands behind: `{id, name, body}` comes, `{id, text, exit}`
// or `{id, error}` goes back, in order. What is asked before Python is there waits for it.
import { start } from "./python.mjs";

const place = new URL("./", import.meta.url).href;

async function read(name) {
  const response = await fetch(place + name);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response.arrayBuffer();
}

const started = start(place, read).then((answer) => {
  // Nothing leaves the page: from here on there is nothing to send it with.
  for (const way of ["fetch", "XMLHttpRequest", "WebSocket", "EventSource", "WebTransport"])
    self[way] = undefined;
  postMessage({ ready: true });
  return answer;
});
started.catch((error) => postMessage({ broken: String(error.message ?? error) }));

self.onmessage = async ({ data: { id, name, body } }) => {
  try {
    const answer = await started;
    postMessage({ id, ...answer(name, body) });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
