"use strict";
// `window.advise` of `advise ui`: a request to the server of this page.
{
  const token = new URLSearchParams(location.search).get("token") ?? "";

  /**
   * The document of a command and its exit code.
   * @param name advise | check | estimate | plan | run | stop | runs
   * @param body what the command reads, as a value; a text is sent as it is
   */
  window.advise = async (name, body) => {
    const response = await fetch(`api/${name}`, {
      method: "POST",
      headers: { "X-Advise-Token": token, "Content-Type": "application/json" },
      body: typeof body === "string" ? body : JSON.stringify(body, null, 1),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(text);
    return {
      document: JSON.parse(text),
      exit: Number(response.headers.get("X-Advise-Exit")),
      text,
    };
  };
  window.advise.report = (folder) => `report?${new URLSearchParams({ token, folder })}`;
}
