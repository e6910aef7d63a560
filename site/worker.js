// The answers of the page that no server stands behind: `{id, name, body}` comes, `{id, text, exit}`
// or `{id, error}` goes back, in order. What is asked before Python is there waits for it.
import { start } from "./python.mjs";

const place = new URL("./", import.meta.url).href;

const say = (why) => postMessage({ broken: why });

// Pyodide waits for ever for a file that does not come.
const get = self.fetch;
self.fetch = async (address, ...more) => {
  const response = await get(address, ...more).catch((error) => {
    say(`${address}: ${error.message}`);
    throw error;
  });
  if (!response.ok) say(`${response.url}: ${response.status}`);
  return response;
};

const started = start(place, async (name) => (await fetch(place + name)).arrayBuffer()).then(
  (answer) => {
    // Nothing leaves the page: from here on there is nothing to send it with.
    for (const way of ["fetch", "XMLHttpRequest", "WebSocket", "EventSource", "WebTransport"])
      self[way] = undefined;
    return answer;
  },
);
started.catch((error) => say(String(error.message ?? error)));

self.onmessage = async ({ data: { id, name, body } }) => {
  try {
    const answer = await started;
    postMessage({ id, ...answer(name, body) });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
