"use strict";
// `window.advise` of the page that no server stands behind: its worker answers.
{
  const folder = new URL(".", document.currentScript.src);
  const worker = new Worker(new URL("worker.js", folder), { type: "module" });
  const waiting = new Map();
  let last = 0;
  let broken = null; // why nothing can be answered any more

  const fail = (why) => {
    broken ??= new Error(`This page cannot compute an answer. ${why}`);
    for (const { reject } of waiting.values()) reject(broken);
    waiting.clear();
  };
  worker.onerror = (event) => fail(event.message || "worker.js does not load");
  worker.onmessage = ({ data }) => {
    if (data.broken) fail(data.broken);
    const asker = waiting.get(data.id);
    if (!asker) return;
    waiting.delete(data.id);
    if (data.error) asker.reject(new Error(data.error));
    else asker.resolve({ document: JSON.parse(data.text), exit: data.exit, text: data.text });
  };

  /**
   * The document of a command and its exit code.
   * @param name advise | check | estimate | plan
   * @param body what the command reads, as a value; a text is sent as it is
   */
  window.advise = (name, body) =>
    new Promise((resolve, reject) => {
      if (broken) return reject(broken);
      last += 1;
      waiting.set(last, { resolve, reject });
      const text = typeof body === "string" ? body : JSON.stringify(body, null, 1);
      worker.postMessage({ id: last, name, body: text });
    });
}
