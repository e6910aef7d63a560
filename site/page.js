"use strict";
// The page: a form that is an answers file, and what `window.advise` says of it. Whatever comes
// from a document or a file is put in as text, never as markup.
{
  const $ = (id) => document.getElementById(id);
  const setup = JSON.parse($("setup").textContent);
  const isServed = setup.home === "served";
  const WAIT_MS = 250; // after the last key
  const MOST_KEPT = 300; // documents
  const MOST_TEXT = 200_000_000; // characters that are pasted or dropped

  /** An element with properties and children; a child is an element or a text. */
  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter(Boolean));
    return element;
  };
  const draw = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const list = (texts) => make("ul", {}, ...texts.map((text) => make("li", {}, text)));
  const line = (text) => make("pre", { tabIndex: 0, className: "wrap" }, text);
  const paragraph = (text, className = "") => make("p", { className }, text);
  const hint = (text) => paragraph(text, "hint");
  const row = (...children) => make("div", { className: "row" }, ...children);
  const button = (text, onclick, className = "") => {
    const made = make("button", { type: "button", className }, text);
    made.addEventListener("click", onclick);
    return made;
  };

  // ------------------------------------------------------------------ words

  const VERDICTS = {
    fits: ["Fits", "fits"],
    tight: ["Fits, little to spare", "fits"],
    no_gain: ["Fits", "fits"],
    split: ["Fits, split over GPUs", "fits"],
    may_fit: ["May fit", "maybe"],
    over_budget: ["Over your limit", "maybe"],
    too_big: ["Does not fit", "no"],
    unknown: ["Not known", ""],
  };
  const NO_TRAINING = ["No training", ""];
  const gib = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
  const dollars = (value) => `$${value >= 100 ? value.toFixed(0) : value.toFixed(2)}`;
  const duration = (hours) => {
    const minutes = Math.round(hours * 60);
    if (minutes < 1) return "under 1 min";
    if (minutes < 60) return `${minutes} min`;
    if (minutes < 60 * 48) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
    return `${Math.round(minutes / 60 / 24)} days`;
  };
  const verdictOf = (advice) => {
    if (advice.nothing_fits) return VERDICTS.too_big;
    if (!advice.recommendation.stages.length) return NO_TRAINING;
    return VERDICTS[advice.recommendation.estimate.fits] ?? VERDICTS.unknown;
  };
  const chip = ([text, className]) => make("span", { className: `verdict ${className}` }, text);
  const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}`;
  const faultText = (fault) =>
    [fault.what, fault.allowed && `Allowed: ${fault.allowed}`, fault.hint]
      .filter(Boolean)
      .map((text) => text.replace(/`/g, ""))
      .join(". ");

  // ------------------------------------------------------------------ the form is the answers

  const form = $("form");
  const fields = [...form.querySelectorAll("[data-key]")];
  const questions = fields.filter((one) => one.classList.contains("question"));
  const late = questions.filter((one) => one.closest("#more"));
  let kept = Object.create(null); // answers that no control stands for

  const controls = (field) =>
    [...field.querySelectorAll("input")].filter(
      (one) => one.closest("[data-key]") === field || one.type === "radio",
    );
  const valueOf = (field) => {
    const found = controls(field);
    const chosen = found[0]?.type === "radio" ? found.find((one) => one.checked) : found[0];
    const text = (chosen?.value ?? "").trim();
    if (text === "") return null;
    if (field.dataset.type === "flag") return text === "true";
    if (field.dataset.type === "map")
      return Object.fromEntries(text.split(/\s+/).map((pair) => pair.split(/=(.*)/, 2)));
    return field.dataset.type === "number" ? Number(text) : text;
  };
  const setValue = (field, value) => {
    const pairs = (map) => Object.entries(map).map((pair) => pair.join("="));
    const text = value instanceof Object ? pairs(value).join(" ") : String(value ?? "");
    for (const one of controls(field)) {
      if (one.type === "radio") one.checked = one.value === text;
      else one.value = text;
    }
  };
  const fieldOf = (name) =>
    fields.find((one) => one.dataset.key === name) ??
    fields.find((one) => one.dataset.fact === name);

  /** The answers, as an answers file holds them. */
  const answersNow = () => {
    const answers = structuredClone(kept);
    for (const field of fields) {
      const value = valueOf(field);
      if (value === null) continue;
      const [head, part] = field.dataset.key.split(".");
      if (part === undefined) answers[head] = value;
      else if (typeof answers[head] === "object") answers[head][part] = value;
      else answers[head] = { [part]: value };
    }
    if (!isServed && !answers.gpu?.name) answers.gpu = { ...answers.gpu, name: "unknown" };
    return answers;
  };

  /** Put one answer into its control; what has none, or does not go into it, is kept and shown. */
  const put = (key, value) => {
    const field = fieldOf(key);
    if (field) setValue(field, value);
    if (field && JSON.stringify(valueOf(field)) === JSON.stringify(value ?? null)) return;
    if (field) setValue(field, null);
    const [head, part] = key.split(".");
    if (part === undefined) kept[head] = value;
    else (kept[head] ??= Object.create(null))[part] = value;
  };
  const showKept = () => {
    $("kept").hidden = !Object.keys(kept).length;
    $("kept").replaceChildren(
      `Also stated, without a question here: ${JSON.stringify(kept)} `,
      button("Forget it", () => {
        kept = Object.create(null);
        ask();
      }),
    );
  };

  /** Put answers into the form, in place of those that are there. */
  const setAnswers = (answers) => {
    for (const field of fields) setValue(field, null);
    kept = Object.create(null);
    for (const [key, value] of Object.entries(answers)) {
      if (key === "signals" && Array.isArray(value)) {
        for (const name of value) put(`signals.${name}`, true);
      } else if (value?.constructor === Object && fieldOf(key)?.dataset.type !== "map") {
        for (const [part, inner] of Object.entries(value)) put(`${key}.${part}`, inner);
      } else if (key === "gpu" || key === "data") {
        put(key === "gpu" ? "gpu.name" : "data.path", value);
      } else put(key, value);
    }
  };

  /** Change some answers, by key of an answers file or by fact. */
  const change = (changes) => {
    for (const [key, value] of Object.entries(changes)) {
      if (value !== null || fieldOf(key)) put(key, value);
    }
    ask();
  };
  const changeGpu = (name) => {
    const parts = fields.filter((one) => one.dataset.key.startsWith("gpu."));
    for (const part of parts) setValue(part, null);
    change({ gpu: name });
  };

  // ------------------------------------------------------------------ asking; the last one wins

  const documents = new Map();
  /** A document, asked for once. */
  const asked = async (name, answers) => {
    const key = JSON.stringify([name, answers]);
    if (!documents.has(key)) {
      if (documents.size >= MOST_KEPT) documents.delete(documents.keys().next().value);
      const found = window.advise(name, answers);
      documents.set(key, found);
      found.catch(() => documents.delete(key));
    }
    return documents.get(key);
  };
  const withPaths = (answers) => JSON.stringify(answers).match(/"(path|examples|tasks)":/);

  let turn = 0;
  let last = ""; // the answers that were asked about
  let timer = 0;
  let shown = null; // {answers, advice, way}: the answer on the screen
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => ask(), WAIT_MS);
  };

  /** Ask for the answer to the form, or to a text that stands for it, and show it. */
  async function ask(text = null, again = false) {
    clearTimeout(timer);
    const answers = text ?? answersNow();
    // A field that is left says so as well: what is on the screen stays.
    if (JSON.stringify(answers) === last && !again) return;
    last = JSON.stringify(answers);
    showKept();
    const mine = (turn += 1);
    if (text === null && !answers.task && !Object.keys(kept).length) return showFaults([]);
    $("answer").setAttribute("aria-busy", "true");
    if (withPaths(answers)) documents.clear(); // a file may have changed
    try {
      const [advice, way] = await Promise.all([asked("advise", answers), asked("plan", answers)]);
      if (mine !== turn) return;
      if (advice.document.recommendation) {
        clearFaults();
        shown = { answers, advice: advice.document, way: way.document };
        showAnswer();
        await showStrips(mine);
      } else showFaults(advice.document.error ?? []);
    } catch (error) {
      if (mine === turn) showFaults([{ what: lost(error) }]);
    } finally {
      if (mine === turn) $("answer").removeAttribute("aria-busy");
    }
  }
  const lost = (error) =>
    isServed && error instanceof TypeError
      ? "`advise ui` does not answer any more; start it again and open the address that it prints"
      : String(error.message ?? error);

  // ------------------------------------------------------------------ faults

  const clearFaults = () => {
    $("faults").hidden = true;
    for (const one of form.querySelectorAll("[aria-invalid]")) {
      one.removeAttribute("aria-invalid");
      one.setAttribute("aria-describedby", $(`${one.name}-hint`)?.id ?? "");
    }
    for (const one of form.querySelectorAll(".fault-text")) one.remove();
  };

  /** The field that a fault is about, by the names in it: `rows`, data_rows, --data-rows. */
  const fieldAt = (fault) => {
    const named = (fault.what ?? "").match(/`[^`]+`|^\w+/g) ?? [];
    const words = `${fault.where ?? ""} ${named.join(" ")}`.split(/[^\w.-]+/);
    const names = words.map((word) => word.replace(/^-+/, "").replace(/-/g, "_"));
    const isNamed = ({ dataset: { key, fact } }) =>
      [key, fact, key.split(".").at(-1)].some((name) => names.includes(name));
    return fields.find(isNamed);
  };

  const showFaults = (faults) => {
    clearFaults();
    shown = null;
    $("verdict").textContent = "";
    $("verdict").className = "verdict";
    $("headline").textContent = faults.length
      ? "There is no answer yet."
      : "Choose what the model should do. Every other answer may be left open.";
    $("peek").textContent = "No answer yet";
    $("cards-panel").hidden = $("sizes-panel").hidden = true;
    for (const part of ["numbers", "bar", "reasons", "cards", "sizes"]) $(part).replaceChildren();
    for (const id of ["plan", "plan-hint", "command", "bundle", "link"]) $(id).textContent = "";
    for (const id of ["steps", "form-names", "form-files"]) $(id).replaceChildren();
    for (const id of ["write", "run", "download", "keep"]) $(id).disabled = true;
    $("faults").hidden = !faults.length;
    if (faults.length) $("faults").replaceChildren(list(faults.map(faultText)));
    for (const [number, fault] of faults.entries()) {
      const field = fieldAt(fault);
      const control = field && controls(field)[0];
      if (!control) continue;
      const id = `fault-${number}`;
      field.append(make("p", { className: "fault-text", id }, faultText(fault)));
      control.setAttribute("aria-invalid", "true");
      const below = $(`${control.name}-hint`)?.id ?? "";
      control.setAttribute("aria-describedby", `${below} ${id}`.trim());
    }
    $("answer").removeAttribute("aria-busy");
  };
  const focusFault = () => {
    const first = form.querySelector("[aria-invalid]");
    first?.closest("details")?.setAttribute("open", "");
    (first ?? ($("faults").hidden ? controls(questions[0])[0] : $("faults"))).focus();
  };

  // ------------------------------------------------------------------ the answer

  const showAnswer = () => {
    const { advice, way } = shown;
    const ours = advice.recommendation;
    const verdict = verdictOf(advice);
    $("verdict").textContent = verdict[0];
    $("verdict").className = `verdict ${verdict[1]}`;
    $("headline").textContent = way.headline;
    const [method, cost] = summaryOf(advice);
    $("peek").replaceChildren(chip(verdict), ` ${method} `, make("small", {}, cost));
    showNumbers(ours.estimate, way.screen);
    $("bar").replaceChildren(...barOf(ours.estimate));
    showReasons(advice, way);
    showWay(way);
    showQuestions(way);
    showCompared();
  };

  const figures = ({ times, total_usd: usd, need_gib: need }) => ({
    Memory: need === null ? "" : `${gib(need)} GiB`,
    Time: times ? duration(times.total_hours) : "",
    Cost: usd === null ? "" : dollars(usd),
  });
  const showNumbers = (estimate, screen) => {
    const { times, need_low_gib: low, need_high_gib: high } = estimate;
    const bands = {
      Memory: low && `${gib(low)} to ${gib(high)} GiB`,
      Time: times && `${duration(times.low_hours)} to ${duration(times.high_hours)}`,
      Cost: estimate.cost_note.split(" (")[0],
    };
    const cells = Object.entries(figures(estimate)).map(([name, value]) => {
      const more = value ? bands[name] : (screen[name]?.[0] ?? "not known");
      const told = make("dd", {}, value || "–", more && make("small", {}, more));
      return make("div", {}, make("dt", {}, name), told);
    });
    $("numbers").replaceChildren(...(estimate.need_gib === null ? [] : cells));
  };

  /** Need, with its band, against what the GPU has. */
  const barOf = (estimate) => {
    const { need_gib: need, need_low_gib: low, need_high_gib: high, limit_gib: limit } = estimate;
    if (need === null || low === null) return [];
    const most = Math.max(high, limit ?? 0) * 1.04;
    const at = (value) => (1000 * value) / most;
    const isOver = limit !== null && need > limit;
    const words = limit
      ? `Needs ${gib(need)} GiB (${gib(low)} to ${gib(high)}) of ${gib(limit)} GiB`
      : `Needs ${gib(need)} GiB (${gib(low)} to ${gib(high)})`;
    const box = { viewBox: "0 0 1000 34", preserveAspectRatio: "none", role: "img" };
    const part = (className, from, to, y = 5, height = 24) =>
      draw("rect", { class: className, x: at(from), y, width: at(to) - at(from), height });
    const edge = (className, value) =>
      draw("line", { class: className, x1: at(value), x2: at(value), y1: 0, y2: 34 });
    const drawing = draw(
      "svg",
      { ...box, "aria-label": words },
      part("track", 0, limit ?? most),
      ...(limit && limit < most ? [part("beyond", limit, most)] : []),
      part(isOver ? "need-no" : "need", 0, need, 9, 16),
      part("band", low, high, 9, 16),
      edge("mark", need),
      ...(limit ? [edge("limit", limit)] : []),
    );
    const share = limit ? ` (${Math.round((100 * need) / limit)} %)` : "";
    const note = estimate.cost_note ? ` Price: ${estimate.cost_note}.` : "";
    const legend = `${words}${share}; the shade is the band.${note}`;
    return [drawing, hint(legend)];
  };

  const SHOWN_ELSEWHERE = /^(Why|Against|Memory|Time|Cost|Why not|What if|Warning)$/;
  const showReasons = (advice, way) => {
    const ours = advice.recommendation;
    const parts = [];
    const section = (title, content) => content && parts.push(make("h3", {}, title), content);
    const reason = (one) =>
      make("li", {}, one.text, make("small", { className: "hint source" }, one.source ?? ""));
    const because = ours.because.map(reason);
    if (because.length) section(way.screen.Against ? "Against" : "Why", folding(because, 2));
    for (const [label, texts] of Object.entries(way.screen)) {
      if (!SHOWN_ELSEWHERE.test(label) && texts.length) section(label, list(texts));
    }
    const warnings = advice.warnings.map((text) => make("li", {}, sentence(text)));
    if (warnings.length) section("Warnings", folding(warnings, 2));
    const ways = advice.nothing_fits?.ways_out ?? [];
    if (ways.length) section("What would fit", list(ways.map((one) => sentence(one.text))));
    const rivals = advice.alternatives.map((one) => {
      const need = one.estimate.need_gib;
      const numbers = need === null ? "" : ` (${gib(need)} GiB)`;
      const why = one.because.map((each) => each.text).join(" ");
      return make("li", {}, make("b", {}, `${one.composition}${numbers}: `), why);
    });
    if (rivals.length) section("Why not another method", folding(rivals, 3));
    const flips = advice.flips.map((one) => {
      const made = button("", () => change(one.change));
      made.append(make("span", {}, sentence(one.text)), make("b", {}, one.to));
      made.disabled = !Object.keys(one.change).every(fieldOf);
      return make("li", {}, made);
    });
    if (flips.length) section("What would change it", make("ul", { className: "flips" }, ...flips));
    if (way.names.length) {
      parts.push(make("details", {}, make("summary", {}, "What the names mean"), list(way.names)));
    }
    $("reasons").replaceChildren(...parts);
  };

  /** A list whose rest unfolds. */
  const folding = (items, count) => {
    const first = make("ul", {}, ...items.slice(0, count));
    if (items.length <= count) return first;
    const summary = make("summary", {}, `${items.length - count} more`);
    const rest = make("details", {}, summary, make("ul", {}, ...items.slice(count)));
    return make("div", {}, first, rest);
  };

  // ------------------------------------------------------------------ questions that still matter

  const showQuestions = (way) => {
    const focused = document.activeElement?.closest(".question");
    for (const field of questions) {
      const name = field.dataset.fact;
      const isAnswered = valueOf(field) !== null;
      const isFolded = way.folded.includes(name);
      // One that neither matters nor is folded waits for the answer to another question.
      const isPut = isAnswered || isFolded || way.matter.includes(name) || field === focused;
      field.hidden = !isPut && late.includes(field);
      if (!late.includes(field) || field === focused) continue;
      const home = isFolded && !isAnswered ? $("folded-list") : $("more-list");
      if (field.parentElement !== home) {
        const next = [...home.children].find((one) => late.indexOf(one) > late.indexOf(field));
        home.insertBefore(field, next ?? null);
      }
    }
    for (const one of form.querySelectorAll(".chosen")) {
      one.textContent = one.parentElement.querySelector(":checked")?.parentElement.title ?? "";
    }
    const count = (id) => [...$(id).children].filter((one) => !one.hidden).length;
    $("more-count").textContent = `(${count("more-list")})`;
    $("folded-count").textContent = `(${count("folded-list")})`;
    $("folded").hidden = !count("folded-list");
  };

  // ------------------------------------------------------------------ strips

  const summaryOf = ({ nothing_fits: nothing, recommendation: ours }) => {
    const { Time, Cost } = figures(ours.estimate);
    return nothing ? ["", ""] : [ours.composition, [Time, Cost].filter(Boolean).join(" · ")];
  };
  const fillCard = (card, advice) => {
    const [verdict, method, numbers] = card.querySelectorAll(".verdict, small");
    const [text, className] = verdictOf(advice);
    const [composition, cost] = summaryOf(advice);
    verdict.textContent = text;
    verdict.className = `verdict ${className}`;
    method.textContent = composition;
    numbers.textContent = cost;
  };
  const cardOf = (name, isMine, onclick) => {
    const card = button("", onclick);
    card.setAttribute("aria-pressed", String(isMine));
    card.append(make("b", {}, name), make("span", { className: "verdict" }, "…"));
    card.append(make("small", {}), make("small", {}));
    return card;
  };

  const showStrips = async (mine) => {
    const { answers, advice } = shown;
    const trains = advice.recommendation.stages.length > 0 || advice.nothing_fits;
    $("cards-panel").hidden = $("sizes-panel").hidden = !trains;
    if (!trains || typeof answers === "string") return;
    const own = advice.hardware.gpus.map((one) => one.catalogue?.name ?? one.name)[0];
    const { id: model = "", params = 0 } = advice.situation.model ?? {};
    const place = isServed ? "This machine" : "Not said";
    const gpu = /^(unknown)?$/.test(answers.gpu?.name ?? "") ? (own ?? place) : answers.gpu.name;
    const count = answers.gpu?.count > 1 ? `${answers.gpu.count} × ` : "";
    const cards = setup.cards.filter((name) => name !== own);
    const sizes = setup.sizes.filter((one) => one.model !== model && one.model !== answers.model);
    const short = (id) => id.replace(/^.*\//, "");
    const entry = (one) => [short(one.model), { ...answers, model: one.model }];
    const [smaller, larger] = [true, false].map((isSmaller) =>
      sizes.filter((one) => one.params_b < params / 1e9 === isSmaller).map(entry),
    );
    const mineSize = [short(answers.model ?? model) || "Your model", null];
    const strips = {
      cards: [
        [`${count}${gpu}`, null],
        ...cards.map((name) => [name, { ...answers, gpu: { name } }]),
      ],
      sizes: [...smaller, mineSize, ...larger],
    };
    const open = [];
    for (const [id, entries] of Object.entries(strips)) {
      const made = entries.map(([name, there]) => {
        const turnTo = () => {
          if (there === null) return;
          if (id === "cards") changeGpu(there.gpu.name);
          else change({ model: there.model, model_params_b: null });
          $("answer").focus({ preventScroll: true });
        };
        const card = cardOf(name, there === null, turnTo);
        if (there === null) fillCard(card, advice);
        else open.push([card, there]);
        return make("li", {}, card);
      });
      $(id).replaceChildren(...made);
    }
    for (const [card, there] of open) {
      if (mine !== turn) return;
      const found = await asked("advise", there).catch(() => null);
      if (mine !== turn) return;
      if (found?.document.recommendation) fillCard(card, found.document);
      else card.querySelector(".verdict").textContent = "No answer";
    }
  };

  // ------------------------------------------------------------------ two answers side by side

  let compared = null;
  /** What an answer says, and below it what was stated, by key of an answers file. */
  const rowsOf = ({ answers, advice }) => {
    const stated = Object.entries(answers).flatMap(([key, value]) =>
      typeof value === "object"
        ? Object.entries(value).map(([part, one]) => [`${key}.${part}`, String(one)])
        : [[key, String(value)]],
    );
    const { composition, estimate } = advice.recommendation;
    const told = { Method: composition, Verdict: verdictOf(advice)[0], ...figures(estimate) };
    return { ...told, ...Object.fromEntries(stated) };
  };
  const showCompared = () => {
    $("compare").hidden = compared === null;
    if (compared === null || shown === null) return;
    const [before, now] = [rowsOf(compared), rowsOf(shown)];
    const rows = Object.keys({ ...before, ...now })
      .filter((name) => before[name] !== now[name] || /^[A-Z]/.test(name))
      .map((name) => {
        const cells = [before, now].map((one) => make("td", {}, one[name] || "–"));
        const className = before[name] === now[name] ? "" : "differs";
        return make("tr", { className }, make("th", { scope: "row" }, name), ...cells);
      });
    const head = ["What", "Kept", "Now"].map((text) => make("th", { scope: "col" }, text));
    const goBack = () => {
      setAnswers(compared.answers);
      ask();
    };
    const forget = () => {
      compared = null;
      showCompared();
    };
    $("compare").replaceChildren(
      make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)),
      row(button("Go back to the kept one", goBack), button("Forget it", forget, "quiet")),
    );
  };

  // ------------------------------------------------------------------ the way on

  const encoded = (answers) => {
    const bytes = new TextEncoder().encode(JSON.stringify(answers));
    const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    return text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  };
  /** The text in a link; one that is no base64url is handed on as it is. */
  const decoded = (text) => {
    try {
      const bytes = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
      return new TextDecoder("utf-8", { fatal: true }).decode(
        Uint8Array.from(bytes, (one) => one.charCodeAt(0)),
      );
    } catch {
      return text;
    }
  };

  const showWay = (way) => {
    const steps = way.steps.map((step) =>
      make("div", {}, make("p", {}, step.text), ...step.commands.map(line)),
    );
    $("steps").replaceChildren(...steps);
    $("plan").textContent = way.plan ?? "";
    const where = isServed ? "name it under “Where are your examples?”" : "write its path into it";
    const lacks = way.missing
      .map((key) => (key === "data.path" ? `your data file (${where})` : key))
      .join(", ");
    const complete = "Complete; every value has its reason beside it.";
    $("plan-hint").textContent = lacks ? `It still needs ${lacks}.` : complete;
    if (!way.plan) $("plan-hint").textContent = sentence(way.no_plan || `It needs ${lacks}.`);
    $("keep").disabled = false;
    $("download").disabled = !way.plan;
    $("write").disabled = !way.plan || way.missing.length > 0;
    $("command").textContent = way.command;
    $("bundle").textContent = way.bundle;
    const hash = `#a=${encoded(way.answers)}`;
    const { origin, pathname } = location;
    $("link").textContent = `${origin}${pathname}${location.search}${hash}`;
    history.replaceState(null, "", hash);
    $("form-files").replaceChildren();
    $("forms").hidden = !way.forms.length;
    $("form-names").replaceChildren(
      ...way.forms.map((name) => button(name, () => showForm(name), "quiet")),
    );
  };

  const showForm = async (to) => {
    const { answers } = shown;
    const { document: found } = await asked("plan", { answers, to });
    if (shown?.answers !== answers) return;
    const files = Object.entries(found.files ?? {}).filter(([name]) => !name.startsWith("data/"));
    $("form-files").replaceChildren(
      ...(found.error ? [list(found.error.map(faultText))] : []),
      ...files.flatMap(([name, text]) => [
        make("h3", {}, name),
        make("pre", { tabIndex: 0, role: "group", "aria-label": name }, text),
        button("Copy", (event) => copy(text, event.target), "quiet"),
      ]),
      line((found.messages ?? []).join("\n")),
    );
  };

  const copy = async (text, where) => {
    const label = where.textContent;
    try {
      await navigator.clipboard.writeText(text);
      where.textContent = "Copied";
    } catch {
      where.textContent = "Select and copy it";
    }
    setTimeout(() => (where.textContent = label), 1500);
  };
  for (const one of document.querySelectorAll("[data-copy]")) {
    one.addEventListener("click", () => copy($(one.dataset.copy).textContent, one));
  }
  $("download").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([$("plan").textContent], { type: "text/yaml" }));
    make("a", { href: url, download: "plan.yaml" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });

  // ------------------------------------------------------------------ the box

  const check = async (body) => {
    $("found").hidden = false;
    $("found").replaceChildren("Checking …");
    const gpu = valueOf(fieldOf("gpu"));
    try {
      const { document: found } = await window.advise("check", gpu ? { ...body, gpu } : body);
      showFound(found, body);
    } catch (error) {
      $("found").replaceChildren(lost(error));
    }
    $("found").focus();
  };

  const showFound = (found, body) => {
    const parts = [];
    const offers = [];
    if (found.error) parts.push(list(found.error.map(faultText)));
    if (found.summary) {
      parts.push(paragraph(found.summary, `notice ${VERDICTS[found.verdict]?.[1] ?? ""}`));
      parts.push(line((found.what ?? []).join("\n")), list(found.takes ?? []));
    } else if (found.kind) {
      const { kind, format, rows, tokens, objectives = [] } = found;
      parts.push(paragraph(`${(rows ?? 0).toLocaleString("en")} rows, read as ${format ?? kind}`));
      if (objectives.length) parts.push(paragraph(`Good for: ${objectives.join(", ")}`));
      const told = { "data.kind": kind, "data.rows": rows, "data.tokens": tokens?.total ?? null };
      const use = body.path ? { "data.path": body.path } : told;
      offers.push(button("Answer for these data", () => change(use)));
    }
    const findings = (found.findings ?? []).map(({ severity, text, where }) =>
      make("li", {}, make("b", {}, `${severity}: `), text, where && ` (${where})`),
    );
    if (findings.length) parts.push(folding(findings, 6));
    if (found.diff?.length) {
      const text = found.diff.join("\n");
      const shade = { "+": "added", "-": "removed" };
      const spans = found.diff.map((line) =>
        make("span", { className: shade[line[0]] ?? "" }, `${line}\n`),
      );
      parts.push(make("h3", {}, "What to change"), make("pre", { tabIndex: 0 }, ...spans));
      offers.push(button("Copy the changes", (event) => copy(text, event.target)));
    }
    const model = found.plan?.model;
    if (model) offers.push(button(`Answer for ${model}`, () => change({ model }), "quiet"));
    const { learned, out_of_memory: ranOut } = found;
    if (ranOut) parts.push(list(ranOut.words.slice(1)));
    if (learned)
      parts.push(paragraph(learned.words), list(learned.findings.map((one) => one.text)));
    const unknown = (found.unknown ?? []).map((one) => `${one.key}: ${one.why}`);
    if (unknown.length) parts.push(make("h3", {}, "Not known"), list(unknown));
    parts.push(hint((found.notes ?? []).join("; ")), row(...offers));
    $("found").replaceChildren(...parts);
  };

  const readFile = async (file) => {
    if (!file) return;
    if (file.size > MOST_TEXT) {
      $("found").hidden = false;
      const way = isServed ? "name its path instead" : "check it with `advise check`";
      return $("found").replaceChildren(`${file.name} is larger than 200 MB: ${way}.`);
    }
    await check({ name: file.name, text: await file.text() });
  };
  $("check").addEventListener("click", () => {
    const path = isServed ? $("check-path").value.trim() : "";
    if ($("box").value.trim()) return check({ text: $("box").value });
    return path ? check({ path }) : $("box").focus();
  });
  $("file").addEventListener("change", (event) => readFile(event.target.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      $("box").classList.toggle("dropping", name === "dragover");
      if (name === "drop") readFile(event.dataTransfer.files[0]);
    });
  }

  // ------------------------------------------------------------------ runs, at home in `advise ui`

  const isAtWork = (run) => run.status === "running" || run.status === "starting";
  const runOf = (run) => {
    const { progress, verdict } = run;
    const told = [verdict?.plain?.text ?? verdict?.text, verdict?.next?.text].filter(Boolean);
    const [max, value] = [progress?.total, progress?.step ?? 0];
    const report = () => ({ href: window.advise.report(run.folder), target: "_blank" });
    return make(
      "li",
      { className: "run" },
      make("b", {}, `${run.folder}: ${run.status}`),
      hint([run.composition, run.model].filter(Boolean).join(" · ")),
      max && make("progress", { max, value, "aria-label": run.folder }),
      hint(progress?.text ?? (isAtWork(run) ? (run.said.at(-1) ?? "") : run.fault)),
      ...Object.entries(run.losses ?? {}).flatMap(curveOf),
      ...told.map((text) => paragraph(text)),
      verdict?.next?.command && line(verdict.next.command),
      run.error.length > 0 && list(run.error.map(faultText)),
      row(
        isAtWork(run) && button("Stop", () => act("stop", { folder: run.folder })),
        !isAtWork(run) && run.status !== "done" && button("Resume", () => start(run.folder)),
        run.report && make("a", report(), "Report"),
      ),
    );
  };
  const curveOf = ([name, points]) => {
    if (points.length < 2) return [];
    const [first, last] = [points[0], points.at(-1)];
    const values = points.map((one) => one[1]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (step) => (100 * (step - first[0])) / (last[0] - first[0] || 1);
    const y = (loss) => 38 - (36 * (loss - low)) / (high - low || 1);
    const [from, to] = [first, last].map(([step, loss]) => `${loss.toFixed(3)} at step ${step}`);
    const words = `Loss of ${name}: ${from}, ${to}`;
    const box = { viewBox: "0 0 100 40", preserveAspectRatio: "none", class: "curve", role: "img" };
    const places = points.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" ");
    const drawn = draw(
      "svg",
      { ...box, "aria-label": words },
      draw("polyline", { points: places }),
    );
    return [drawn, hint(words)];
  };
  /** Show the runs; a button that has the focus keeps it. */
  const showRuns = (runs) => {
    const { activeElement: focused } = document;
    const place = [...$("runs").children].indexOf(focused?.closest("#runs > li"));
    $("runs").replaceChildren(...runs.map(runOf));
    const again = $("runs").children[place]?.querySelectorAll("button, a") ?? [];
    [...again].find((one) => one.textContent === focused.textContent)?.focus();
  };

  const EVERY_MS = 1500;
  let isWatching = false;
  const watch = async () => {
    if (isWatching) return;
    isWatching = true;
    try {
      for (;;) {
        const { document: found } = await window.advise("runs", {});
        const runs = found.runs ?? [];
        for (const run of runs.slice(0, 5)) {
          const { document: one } = await window.advise("runs", { folder: run.folder });
          Object.assign(run, one);
        }
        showRuns(runs);
        if (!runs.some(isAtWork)) break;
        await new Promise((done) => setTimeout(done, EVERY_MS));
      }
    } catch (error) {
      $("run-said").textContent = lost(error);
    } finally {
      isWatching = false;
    }
  };
  const act = async (name, body) => {
    $("run-said").textContent = "";
    try {
      const { document: found } = await window.advise(name, body);
      if (found.error?.length && !found.folder)
        $("run-said").replaceChildren(list(found.error.map(faultText)));
    } catch (error) {
      $("run-said").textContent = lost(error);
    }
    await watch();
  };
  const start = (plan) => act("run", { plan });

  if (isServed) {
    $("run-named").addEventListener("click", () => start($("run-path").value));
    $("write").addEventListener("click", async () => {
      const path = $("plan-path").value.trim();
      const { document: found } = await window.advise("plan", { answers: shown.answers, path });
      $("run").disabled = !found.plan_file;
      $("written").textContent = found.error
        ? found.error.map(faultText).join("; ")
        : `Written: ${found.plan_file}. ${found.run}`;
      if (found.plan_file) $("run-path").value = found.plan_file;
    });
    $("run").addEventListener("click", () => start($("run-path").value));
    watch();
  }

  // ------------------------------------------------------------------ begin

  form.addEventListener("input", (event) => {
    const [head, part] = event.target.closest("[data-key]")?.dataset.key.split(".") ?? [];
    if (part === undefined) delete kept[head];
    else delete kept[head]?.[part];
    if (kept[head] && !Object.keys(kept[head]).length) delete kept[head];
    later();
  });
  form.addEventListener("change", () => ask());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await ask(null, true);
    if (shown) $("answer").focus();
    else focusFault();
  });
  $("reset").addEventListener("click", () => {
    setAnswers({});
    ask();
    controls(questions[0])[0].focus();
  });
  $("keep").addEventListener("click", () => {
    compared = shown;
    showCompared();
  });

  const fromLink = async () => {
    const link = /^#a=(.*)$/.exec(location.hash)?.[1];
    if (link === undefined) return false;
    const text = decoded(link);
    try {
      const answers = JSON.parse(text);
      if (answers === null || typeof answers !== "object" || Array.isArray(answers))
        throw new Error();
      setAnswers(answers);
      const isOdd = Object.keys(kept).length > 0; // the form holds it in other words
      const { document: found } = isOdd ? await asked("advise", text) : { document: {} };
      await ask(found.error ? text : null);
    } catch {
      await ask(text); // the command says what is wrong with it
    }
    if (!shown) focusFault();
    return true;
  };
  window.addEventListener("hashchange", fromLink);
  (async () => {
    if (await fromLink()) return;
    setAnswers(setup.example);
    for (const [name, found] of Object.entries(setup.opening ?? {})) {
      const key = JSON.stringify([name, answersNow()]);
      documents.set(key, Promise.resolve({ document: found, exit: 0 }));
    }
    await ask();
  })();
}
