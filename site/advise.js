"use strict";
// `window.advise` of both homes: `advise ui` asks its server, a folder of files asks its worker.
{
  const isServed = document.documentElement.dataset.home === "served";
  const token = new URLSearchParams(location.search).get("token") ?? "";

  const askServer = async (name, body) => {
    const headers = { "X-Advise-Token": token, "Content-Type": "application/json" };
    const response = await fetch(`api/${name}`, { method: "POST", headers, body });
    const text = await response.text();
    if (!response.ok) throw new Error(text);
    return { text, exit: Number(response.headers.get("X-Advise-Exit")) };
  };

  const startWorker = () => {
    const place = new URL("worker.mjs", document.currentScript.src);
    const worker = new Worker(place, { type: "module" });
    const broken = new Promise((_, reject) => {
      const fail = (why) => reject(new Error(`This page cannot compute an answer. ${why}`));
      worker.onmessage = ({ data }) => fail(data);
      worker.onerror = ({ message }) => fail(message || "worker.mjs does not load");
    });
    broken.catch(() => {}); // whoever asks is told
    return (name, body) => {
      const { port1, port2 } = new MessageChannel();
      const answered = new Promise((resolve, reject) => {
        port1.onmessage = ({ data }) =>
          data.error === undefined ? resolve(data) : reject(new Error(data.error));
      });
      worker.postMessage({ name, body }, [port2]);
      return Promise.race([answered, broken]);
    };
  };

  const ask = isServed ? askServer : startWorker();
  /**
   * The document of a command and its exit code: `{document, exit, text}`.
   * @param name advise | check | estimate | plan; served also run | stop | runs
   * @param body what the command reads, as a value; a text is sent as it is
   */
  window.advise = async (name, body) => {
    const found = await ask(name, typeof body === "string" ? body : JSON.stringify(body, null, 1));
    return { ...found, document: JSON.parse(found.text) };
  };
  window.advise.report = (folder) => `report?${new URLSearchParams({ token, folder })}`;
}
