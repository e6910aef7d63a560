// Python with the advisor in it. As the worker of the page it answers `{name, body}` with
// `{text, exit}` or `{error}`, in order, at the port that comes along. Tests start it in Node.

const HOME = "/home/me";
const ROOT = "/advise";

/**
 * A function from the name of a request and its body, a text, to `{text, exit}`.
 * @param place the folder with pyodide/ and core.tar.gz, an address that ends with a slash
 * @param read a promise of the bytes of a file there
 */
export async function start(place, read) {
  const packed = read("core.tar.gz");
  packed.catch(() => {}); // it is awaited below
  const { loadPyodide } = await import(`${place}pyodide/pyodide.mjs`);
  const python = await loadPyodide({
    indexURL: `${place}pyodide/`.replace("file://", ""),
    env: {
      HOME,
      XDG_CACHE_HOME: `${ROOT}/cache`,
      PYTHONHASHSEED: "0",
      PYTHONDONTWRITEBYTECODE: "1",
      ADVISE_RUNS: "off",
      HF_HUB_OFFLINE: "1",
    },
    stdout: () => {},
    stderr: (line) => console.warn(line),
  });
  python.unpackArchive(new Uint8Array(await packed), "gztar", { extractDir: ROOT });
  python.runPython(`import os, sys\nsys.path.insert(0, "${ROOT}")\nos.chdir("${HOME}")`);
  const answer = python.pyimport("page_entry").answer;
  return (name, body) => {
    const found = answer(name, body);
    const [text, exit] = found.toJs();
    found.destroy();
    return { text, exit };
  };
}

async function work() {
  const get = self.fetch;
  // Pyodide waits for ever for a file that does not come.
  self.fetch = async (address, ...more) => {
    const response = await get(address, ...more).catch((error) => {
      postMessage(`${address}: ${error.message}`);
      throw error;
    });
    if (!response.ok) postMessage(`${response.url}: ${response.status}`);
    return response;
  };
  const place = new URL("./", import.meta.url).href;
  const answer = await start(place, async (name) => (await fetch(place + name)).arrayBuffer());
  // Nothing leaves the page: from here on there is nothing to send it with.
  for (const way of ["fetch", "XMLHttpRequest", "WebSocket", "EventSource", "WebTransport"])
    self[way] = undefined;
  return answer;
}

if ("WorkerGlobalScope" in globalThis) {
  const started = work();
  started.catch((error) => postMessage(error.message));
  self.onmessage = async ({ data: { name, body }, ports: [port] }) => {
    try {
      port.postMessage((await started)(name, body));
    } catch (error) {
      port.postMessage({ error: String(error.message ?? error) });
    }
  };
}
