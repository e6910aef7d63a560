// The page: a form that is an answers file, and what `window.advise` says of it. Whatever comes
// from a document or a file is put in as text, never as markup.
const $ = (id) => document.getElementById(id);
const on = (id, event, work) => $(id).addEventListener(event, work);
const setup = JSON.parse($("setup").textContent);
const isServed = setup.home === "served";
const WAIT_MS = 250; // after the last key
const EVERY_MS = 1000; // runs are looked at
const MOST_KEPT = 300; // documents
const MOST_TEXT = 200_000_000; // characters that are pasted or dropped

// ------------------------------------------------------------------ the two homes

const token = new URLSearchParams(location.search).get("token") ?? "";
/** `advise ui` asks its server. */
const askServer = async (name, body) => {
  const headers = { "X-Advise-Token": token };
  const response = await fetch(`api/${name}`, { method: "POST", headers, body });
  const text = await response.text();
  if (!response.ok) throw new Error(text);
  return { text, exit: Number(response.headers.get("X-Advise-Exit")) };
};
/** A folder of files asks Python in a worker. */
const startWorker = () => {
  const worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  const { promise: broken, reject } = Promise.withResolvers();
  broken.catch(() => {}); // whoever asks is told
  const fail = (why) => reject(new Error(`This page cannot compute an answer. ${why}`));
  worker.onmessage = ({ data }) => fail(data);
  worker.onerror = ({ message }) => fail(message || "worker.mjs does not load");
  return (name, body) => {
    const { port1, port2 } = new MessageChannel();
    const answered = new Promise((resolve, refuse) => {
      port1.onmessage = ({ data }) =>
        data.error === undefined ? resolve(data) : refuse(new Error(data.error));
    });
    worker.postMessage({ name, body }, [port2]);
    return Promise.race([answered, broken]);
  };
};
const send = isServed ? askServer : startWorker();
/**
 * The document of a command and its exit code: `{document, exit, text}`.
 * @param name advise | check | estimate | plan; served also run | stop | runs
 * @param body what the command reads, as a value; a text is sent as it is
 */
window.advise = async (name, body) => {
  const found = await send(name, typeof body === "string" ? body : JSON.stringify(body, null, 1));
  return { ...found, document: JSON.parse(found.text) };
};

// ------------------------------------------------------------------ elements

/** An element; a child is an element, a text, nothing, or a list of such. */
const make = (tag, attributes = {}, ...children) => {
  const space = /^(svg|polyline)$/.test(tag) ? "2000/svg" : "1999/xhtml";
  const element = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return fill(element, ...children);
};
/** A text in pieces: what stands between backticks as code; an option of a command stays whole. */
const pieces = (text) => {
  const parts = text.split(/`([^`\n]+)`|((?<![\w-])--[a-z][\w-]*)/);
  return parts.map((part, at) => part && (at % 3 ? code(part) : part)).filter(Boolean);
};
const code = (text) => make("code", text.length > WHOLE ? {} : { class: "whole" }, text);
const WHOLE = 28; // characters that fit a line of the narrowest screen
const fill = (element, ...children) => {
  const parts = children.flat(Infinity).filter(Boolean);
  const isRead = (one) => typeof one === "string" && /^(li|p|small)$/.test(element.localName);
  element.replaceChildren(...parts.flatMap((one) => (isRead(one) ? pieces(one) : one)));
  return element;
};
const hint = (text) => text && make("p", { class: "hint" }, text);
const row = (...children) => make("div", { class: "row" }, ...children);
const small = (text) => text && make("small", {}, text);
const button = (parts, onclick) =>
  Object.assign(make("button", { type: "button" }, parts), { onclick });
const folded = (title, ...children) => make("details", {}, make("summary", {}, title), ...children);
const list = (items) => make("ul", {}, ...items.map((one) => make("li", {}, one)));
/** A title and a list, whose rest unfolds; nothing if there is nothing to list. */
const section = (title, items = [], count = Infinity) => [
  items.length > 0 && title && make("h3", {}, title),
  items.length > 0 && list(items.slice(0, count)),
  items.length > count && folded(`${items.length - count} more`, list(items.slice(count))),
];
const lines = (...parts) => make("pre", { tabindex: 0, class: "file" }, ...parts);
/** A command that breaks between its words, and within no option or name. */
const typed = (text) =>
  text.split(/((?<!\S)(?:-\S+|'[^'\n]*'))/).map((part, at) => (at % 2 ? code(part) : part));
const command = (text) => make("pre", { tabindex: 0 }, typed(text));
/** A box of lines with a button that copies them. */
const copied = (box) => {
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(box.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(box); // a page that came by plain HTTP has no clipboard
      copy.textContent = "Selected: now copy it";
    }
    setTimeout(() => (copy.textContent = "Copy"), 3 * EVERY_MS); // the text may change
  });
  return [box, row(copy)];
};

// ------------------------------------------------------------------ words

const { verdicts } = setup; // what an estimate says -> a word, and its class in style.css
const gib = (value) => value.toFixed(value >= 100 ? 0 : 1);
const duration = (hours) => {
  const minutes = Math.round(hours * 60);
  if (minutes < 60) return minutes < 1 ? "under 1 min" : `${minutes} min`;
  if (minutes < 60 * 48) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(minutes / 60 / 24)} days`;
};
const verdictOf = ({ nothing_fits: nothing, recommendation: ours }) => {
  if (nothing) return verdicts.too_big;
  return ours.stages.length ? verdicts[ours.estimate.fits] : ["No training", ""];
};
const chip = ([text, kind]) => make("span", { class: `verdict ${kind}` }, text);
/** Verdict, method and what it takes, as parts of a line or a card. */
const summary = (advice) => {
  if (advice.nothing_fits) return chip(verdictOf(advice));
  const { composition, estimate } = advice.recommendation;
  const usd = estimate.total_usd;
  const time = estimate.times && duration(estimate.times.total_hours);
  const cost = usd !== null && `$${usd.toFixed(usd >= 100 ? 0 : 2)}`;
  const took = [time, cost].filter(Boolean).join(" · ");
  return [chip(verdictOf(advice)), small(composition), small(took)];
};
/** What the first screen says of memory, time or cost: the value, and the rest. */
const figure = ({ screen }, name) =>
  (screen[name]?.[0] ?? "–").match(/^(.*?)(?:[:;,] |(?= \()|$)(.*)$/s).slice(1);
const FIGURES = ["Memory", "Time", "Cost"];
const textOf = ({ text }) => text;
const counted = (rows) => `${rows.toLocaleString("en")} ${rows === 1 ? "row" : "rows"}`;
/** The first letter becomes a capital, unless the word is a name. */
const sentence = (text) => text.replace(/^[a-z](?=[a-z]*[ ,:;'])/, (one) => one.toUpperCase());
/** A text without flags or a line to type, and with questions for keys, for who has no terminal. */
const TYPED = new RegExp(setup.typed, "g");
const LINE = /(^|[;,.])[^;,.\n]*:\n {4}.*/gs;
const plain = (text) => text.replace(LINE, "").replace(TYPED, "").replace(/\w+\.\w+/g, questionOf);
const questionOf = (key) =>
  fieldOf(key)?.querySelector("label, legend").textContent.replace(/.+/, "“$&”") ?? key;
/** What is wrong, after the file that it is in; a field or a flag does not help. */
const placed = ({ what, where = "" }) => {
  const isSaid = /^([-<]|$)/.test(where) || what.startsWith(where) || fieldOf(where);
  return isSaid ? what.replace(/^--[a-z-]+ /, "") : `${where}: ${what}`;
};
const faultText = (fault) =>
  [placed(fault), fault.allowed && `Allowed: ${fault.allowed}`, sentence(fault.hint ?? "")]
    .map((text) => plain(text ?? ""))
    .filter(Boolean)
    .join(". ")
    .replace(/([.!?]`?)\. /g, "$1 ");
const lost = (error) =>
  isServed && error instanceof TypeError
    ? "`advise ui` does not answer any more; start it again and open the address that it prints"
    : String(error.message ?? error);

// ------------------------------------------------------------------ the form is the answers

const form = $("form");
const fields = [...form.querySelectorAll("[data-key]")];
const questions = fields.filter((one) => one.classList.contains("question"));
const late = questions.filter((one) => one.closest("#more"));
const kept = new Map(); // answers that no control stands for, by dotted key

const controlOf = ({ dataset }) => form.elements[dataset.fact];
const firstOf = (field) => field.querySelector("input");
const fieldOf = (name) =>
  fields.find(({ dataset }) => dataset.key === name) ??
  fields.find(({ dataset }) => dataset.fact === name);
const valueOf = (field) => {
  const { type } = field.dataset;
  const text = controlOf(field).value.trim();
  if (text === "") return null;
  if (type === "flag") return text === "true";
  if (type === "map")
    return Object.fromEntries(text.split(/\s+/).map((pair) => pair.split(/=(.*)/, 2)));
  return type === "number" ? Number(text) : text;
};
const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const setValue = (field, value) => {
  const pairs = isGroup(value) && Object.entries(value).map((pair) => pair.join("="));
  controlOf(field).value = pairs ? pairs.join(" ") : String(value ?? "");
};

/** Values by dotted key, as an answers file holds them. */
const nested = (values) => {
  const answers = Object.create(null);
  for (const [key, value] of values) {
    const [head, part] = key.split(/\.(.*)/, 2);
    if (part === undefined) answers[head] = value;
    else if (isGroup(answers[head])) answers[head][part] = value;
    else answers[head] = { [part]: value };
  }
  return answers;
};
const UNSAID = isServed ? "" : "unknown"; // a GPU; nobody looks at the machine of a static page
const answersNow = () => {
  const stated = fields.map((one) => [one.dataset.key, valueOf(one)]);
  const answers = nested([...kept, ...stated.filter(([, value]) => value !== null)]);
  if (!isServed && !answers.gpu?.name) answers.gpu = { ...answers.gpu, name: UNSAID };
  return answers;
};

const SHORT = new Map([["gpu", "gpu.name"]]).set("data", "data.path");
/** One answer as dotted keys and their values. */
const byKey = ([key, value]) => {
  if (key === "signals" && Array.isArray(value))
    return value.map((one) => [`signals.${one}`, true]);
  if (!isGroup(value) || fieldOf(key)?.dataset.type === "map")
    return [[SHORT.get(key) ?? key, value]];
  return Object.entries(value).map(([part, inner]) => [`${key}.${part}`, inner]);
};
/** Put some answers into the form; what has no control there, or no place in it, is kept. */
const put = (answers) => {
  for (const [key, value] of Object.entries(answers).flatMap(byKey)) {
    const field = fieldOf(key);
    const isUnsaid = value === null || (key === "gpu.name" && value === UNSAID);
    kept.delete(key);
    if (field) setValue(field, isUnsaid ? null : value);
    if (isUnsaid || (field && JSON.stringify(valueOf(field)) === JSON.stringify(value))) continue;
    if (field) setValue(field, null);
    kept.set(key, value);
  }
};
const setAnswers = (answers) => {
  form.reset();
  kept.clear();
  put(answers);
};
const change = (answers) => {
  put(answers);
  ask();
};

const NO_DATA = { path: null, kind: null, rows: null, tokens: null, mapping: null };
let used = null; // the checked data that the form holds: {name, values, before}
const dataNow = () => ({ ...NO_DATA, ...answersNow().data });
const isStill = (now) => (key) => now[key] === used.values[key];
const isUsed = () => used !== null && Object.keys(NO_DATA).every(isStill(dataNow()));
/** The name of the checked data, which only the page has read; the command looks for a path. */
const fileNow = () => (isUsed() && !used.values.path ? used.name : null);
/** Take back what checked data had filled in, as far as nobody has changed it since. */
const takeBack = () => {
  if (used === null) return;
  const theirs = Object.keys(NO_DATA).filter(isStill(dataNow()));
  const { before } = used;
  used = null;
  put({ data: Object.fromEntries(theirs.map((key) => [key, before[key]])) });
};
const use = (name, data) => {
  takeBack();
  used = { name, values: { ...NO_DATA, ...data }, before: dataNow() };
  change({ data: used.values });
};
const showUsed = () => {
  $("used").hidden = !isUsed();
  if (!isUsed()) return;
  const away = () => {
    $("file").value = "";
    takeBack();
    ask();
  };
  const { name, values } = used;
  const rows = values.rows === null ? "" : ` with ${counted(values.rows)}`;
  const said = `The answer is for ${name ?? "the pasted data"}${rows}. `;
  fill($("used"), said, button("Take it away", away));
};
const showKept = () => {
  $("kept").hidden = !kept.size;
  const forget = button("Forget it", () => {
    kept.clear();
    ask();
  });
  const stated = [...kept].map(([key, value]) => `${key} is ${JSON.stringify(value)}`).join(", ");
  fill($("kept"), `Also known, without a question here: ${stated}. `, forget);
};

const BASE64 = { alphabet: "base64url", omitPadding: true };
/** A link with answers in it. */
const linkTo = (answers) =>
  `#a=${new TextEncoder().encode(JSON.stringify(answers)).toBase64(BASE64)}`;

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
  return (await documents.get(key)).document;
};

let turn = 0;
let last = ""; // the answers that were asked about
let timer = 0;
let shown = null; // {answers, advice, way}: the answer on the screen

/** Ask for the answer to the form, or to what stands for it, and show it. */
async function ask(given = null, again = false) {
  clearTimeout(timer);
  const answers = given ?? answersNow();
  const file = given ? null : fileNow();
  // A field that is left says so as well: what is on the screen stays.
  if (JSON.stringify([answers, file]) === last && !again) return;
  last = JSON.stringify([answers, file]);
  showKept();
  showUsed();
  const mine = (turn += 1);
  if (given === null && !answers.task && !kept.size) return showFaults([]);
  $("answer").setAttribute("aria-busy", "true");
  if (/"(path|examples|tasks)":/.test(last)) documents.clear(); // a file may have changed
  try {
    const both = [asked("advise", answers), asked("plan", file ? { answers, file } : answers)];
    const [advice, way] = await Promise.all(both);
    if (mine !== turn) return;
    if (!advice.recommendation) return showFaults(advice.error ?? []);
    shown = { answers, file, advice, way };
    showAnswer();
    showStrips(mine);
  } catch (error) {
    if (mine === turn) showFaults([{ what: lost(error) }]);
  } finally {
    if (mine === turn) $("answer").removeAttribute("aria-busy");
  }
}

// ------------------------------------------------------------------ faults

const clearFaults = () => {
  $("faults").hidden = true;
  for (const one of form.querySelectorAll("input")) one.setCustomValidity("");
  for (const one of document.querySelectorAll(".answered")) one.hidden = !shown;
  $("write").disabled = !shown;
};

/** The field that a fault is about, by the names in it: `rows`, data_rows, --data-rows. */
const fieldAt = ({ what = "", where }) => {
  const named = what.match(/`[^`]+`|^\w+/g) ?? [];
  const words = `${where ?? ""} ${named.join(" ")}`.split(/[^\w.-]+/);
  const names = words.map((word) => word.replace(/^-+/, "").replace(/-/g, "_"));
  return fields.find(({ dataset: { key, fact } }) =>
    [key, fact, key.split(".").at(-1)].some((name) => names.includes(name)),
  );
};

const showFaults = (faults) => {
  shown = null;
  clearFaults();
  const texts = faults.map(faultText);
  const free = "Choose what the model should do. Every other answer may be left open.";
  for (const id of ["verdict", "figures", "reasons", "compare"]) fill($(id));
  fill($("headline"), texts.length ? "There is no answer yet." : free);
  fill($("peek"), (texts[0] ?? "No answer yet").replace(/`/g, ""));
  $("faults").hidden = !texts.length;
  fill($("faults"), section("", texts));
  for (const fault of faults) {
    const field = fieldAt(fault);
    if (field) firstOf(field).setCustomValidity(faultText(fault).replace(/`/g, ""));
  }
  $("answer").removeAttribute("aria-busy");
};
const focusFault = () => {
  const first = form.querySelector("input:invalid");
  first?.closest("details")?.setAttribute("open", "");
  if (first) first.reportValidity();
  else ($("faults").hidden ? firstOf(questions[0]) : $("faults")).focus();
};

// ------------------------------------------------------------------ the answer

const showAnswer = () => {
  const { advice, way } = shown;
  clearFaults();
  fill($("verdict"), chip(verdictOf(advice)));
  fill($("headline"), way.headline);
  fill($("peek"), summary(advice));
  showFigures(advice.recommendation.estimate, way);
  showReasons(advice, way);
  showWay(way);
  showQuestions(way);
  showCompared();
};

/** Memory, time and cost with their bands; need against what the GPU has, as a bar. */
const showFigures = (estimate, way) => {
  const { need_gib: need, need_low_gib: low, need_high_gib: high, limit_gib } = estimate;
  if (need === null) return fill($("figures"));
  // Where nothing fits, the first screen speaks of other things.
  way.screen.Memory ??= [`${gib(need)} GiB (${gib(low ?? need)} to ${gib(high ?? need)} GiB)`];
  const cells = FIGURES.map((name) => {
    const [value, more] = figure(way, name);
    return make("div", {}, make("dt", {}, name), make("dd", {}, value, small(more)));
  });
  const kind = limit_gib && need > limit_gib ? "bar no" : "bar";
  const bar = make("div", { class: kind, role: "img", "aria-label": way.screen.Memory[0] });
  const most = Math.max(high, limit_gib ?? 0) * 1.04;
  const ends = { need, low, high, limit: limit_gib ?? 2 * most };
  for (const [name, value] of Object.entries(ends))
    bar.style.setProperty(`--${name}`, `${(100 * value) / most}%`);
  const legend = "The bar is the memory it needs; its grey end is the band";
  const shown = [bar, hint(`${legend}${limit_gib ? ", and the line what the GPU has" : ""}.`)];
  fill($("figures"), make("dl", {}, ...cells), low !== null && shown);
};

const SHOWN_ELSEWHERE = /^(Why|Against|Memory|Time|Cost|Why not|What if|Warning)$/;
const showReasons = (advice, way) => {
  const because = advice.recommendation.because.map(({ text, source }) => [text, small(source)]);
  const others = Object.entries(way.screen).filter(([label]) => !SHOWN_ELSEWHERE.test(label));
  const rivals = advice.alternatives.map(({ composition, estimate, because: why }) => {
    const need = estimate.need_gib === null ? "" : ` (${gib(estimate.need_gib)} GiB)`;
    return [make("b", {}, `${composition}${need}: `), why.map(textOf).join(" ")];
  });
  const flips = advice.flips.map((one) => {
    const parts = [`${sentence(one.text)}: `, make("b", {}, one.to)];
    const isAsked = Object.keys(one.change).every(fieldOf);
    return isAsked ? button(parts, () => change(one.change)) : parts;
  });
  const ways = advice.nothing_fits?.ways_out.map((one) => sentence(one.text));
  fill(
    $("reasons"),
    section(way.screen.Against ? "Against" : "Why", because, 2),
    others.map(([label, texts]) => section(label, texts)),
    section("Warnings", way.warnings.map(plain).map(sentence), 2),
    section("What would fit", ways),
    section("Why not another method", rivals, 3),
    section("What would change it", flips),
    way.names.length > 0 && folded("What the names mean", list(way.names)),
  );
};

/** Questions that still matter are put; those that cannot change the answer fold away. */
const showQuestions = (way) => {
  const focused = document.activeElement?.closest(".question");
  const homes = [$("more"), $("folded")].map((one) => one.querySelector(":scope > div"));
  for (const field of late.filter((one) => one !== focused)) {
    const { fact } = field.dataset;
    const isAnswered = valueOf(field) !== null;
    const isFolded = way.folded.includes(fact);
    // One that neither matters nor is folded waits for the answer to another question.
    field.hidden = !isAnswered && !isFolded && !way.matter.includes(fact);
    const home = homes[isFolded && !isAnswered ? 1 : 0];
    const next = [...home.children].find((one) => late.indexOf(one) > late.indexOf(field));
    if (field.parentElement !== home) home.insertBefore(field, next ?? null);
  }
  for (const home of homes) {
    const count = home.querySelectorAll(":scope > :not([hidden])").length;
    home.parentElement.querySelector("summary b").textContent = `(${count})`;
    home.parentElement.hidden = !count;
  }
  for (const one of form.querySelectorAll(".chosen"))
    one.textContent = one.parentElement.querySelector(":checked")?.parentElement.title ?? "";
};

// ------------------------------------------------------------------ strips

const showStrips = async (mine) => {
  const { answers, advice } = shown;
  const isShown = advice.recommendation.stages.length > 0 || advice.nothing_fits;
  for (const one of document.querySelectorAll(".trained")) one.hidden = !isShown;
  if (!isShown) return;
  const own = advice.hardware.gpus.map((one) => one.catalogue?.name ?? one.name)[0];
  const { name = answers.gpu ?? UNSAID, count = 1 } = answers.gpu ?? {};
  const { id = "", params = 0 } = advice.situation.model ?? {};
  const gpu = /^(unknown)?$/.test(name) ? (own ?? (isServed ? "This machine" : "Not said")) : name;
  const gpus = setup.cards.filter((one) => one !== own);
  const models = setup.sizes.filter(({ model }) => model !== id && model !== answers.model);
  const named = answers.model || id || "Your model";
  models.push({ model: named, params_b: params / 1e9, isMine: true });
  models.sort((one, other) => one.params_b - other.params_b);
  const open = [];
  const cardOf = (title, there) => {
    const where = there ? { href: linkTo(there) } : { "aria-current": "true" };
    const card = make("a", { class: "card", ...where });
    card.onfocus = () => // Chromium leaves one that is half outside of its strip where it is
      card.matches(":focus-visible") && card.scrollIntoView({ block: "nearest" });
    const show = (parts) => fill(card, make("b", {}, title), parts);
    show(there ? chip(["…", ""]) : summary(advice));
    if (there) open.push([there, show]);
    return make("li", {}, card);
  };
  const mineAs = cardOf(count > 1 ? `${count} × ${gpu}` : gpu);
  fill($("cards"), mineAs, ...gpus.map((one) => cardOf(one, { ...answers, gpu: { name: one } })));
  const sizes = models.map(({ model, isMine }) => {
    const there = { ...answers, model, model_params_b: undefined };
    return cardOf(model.replace(/^.*\//, ""), isMine ? null : there);
  });
  fill($("sizes"), sizes);
  for (const [there, show] of open) {
    const found = await asked("advise", there).catch(() => null);
    if (mine !== turn) return;
    show(found?.recommendation ? summary(found) : chip(["No answer", ""]));
  }
};

// ------------------------------------------------------------------ two answers side by side

let compared = null;
/** What an answer says, and below it what was stated, by key of an answers file. */
const told = ({ answers, advice, way }) => ({
  Method: advice.recommendation.composition,
  Verdict: verdictOf(advice)[0],
  ...Object.fromEntries(FIGURES.map((name) => [name, figure(way, name)[0]])),
  ...Object.fromEntries(Object.entries(answers).flatMap(byKey)),
});
const showCompared = () => {
  $("keep").textContent = compared ? "Forget the kept answer" : "Keep this to compare";
  if (compared === null || shown === null) return fill($("compare"));
  const [before, now] = [told(compared), told(shown)];
  const rows = Object.keys({ ...before, ...now }).map((name) => {
    const values = [before[name], now[name]].map((one) => String(one ?? "") || "–");
    const tag = values[0] === values[1] ? "span" : "mark";
    const cells = values.map((one) => make("td", {}, make(tag, {}, one)));
    return make("tr", {}, make("th", { scope: "row" }, name), cells);
  });
  const back = make("a", { href: linkTo(compared.answers) }, "Kept");
  const heads = ["What", back, "Now"].map((one) => make("th", { scope: "col" }, one));
  fill($("compare"), make("table", {}, make("tr", {}, heads), rows));
};

// ------------------------------------------------------------------ the way on

const showWay = (way) => {
  const boxOf = (line) => copied(command(line));
  const stepOf = ({ text, commands }) => [make("p", {}, text), commands.map(boxOf)];
  const isTyped = way.steps.some((one) => one.commands.some((line) => line.startsWith("advise")));
  const once = "Once, on your computer, in a checkout of the advisor:";
  const install = { text: once, commands: [setup.install] };
  fill($("steps"), ...(isTyped && !isServed ? [install, ...way.steps] : way.steps).map(stepOf));
  const where = isServed ? "name it under “Where are your examples?”" : "write its path into it";
  const parts = {
    "data.path": `your data file (${where})`,
    "data.examples": "a data file with examples",
    tasks: "a data file for each task, as in the command above",
    model: "a model whose size is known",
    teacher_model: "the model that teaches",
    reward_model: "a model that scores answers",
  };
  const lacks = way.missing.map((key) => parts[key] ?? key).join(", ");
  const reads = shown.file ? ` It reads ${shown.file} in its folder, or what you write there.` : "";
  const whole = `Complete; every value has its reason.${reads}`;
  const needs = lacks ? `It still needs ${lacks}.` : whole;
  const none = way.no_plan || (lacks ? needs : "nothing fits, so there is no plan");
  $("plan-hint").textContent = way.plan ? needs : sentence(none);
  $("bundle").parentElement.hidden = !way.plan;
  $("download").href = `data:text/yaml;charset=utf-8,${encodeURIComponent(way.plan ?? "")}`;
  $("write").disabled = !way.plan || way.missing.length > 0;
  history.replaceState(null, "", linkTo(way.answers));
  const [line, bundle] = [way.command, way.bundle ?? ""].map(typed);
  const texts = { plan: way.plan, command: line, bundle, link: location.href };
  for (const [id, text] of Object.entries(texts)) fill($(id), text);
  $("forms").hidden = !way.forms.length;
  fill($("form-files"));
  wanted = null;
  fill($("form-names"), ...way.forms.map((name) => button(name, () => showForm(name))));
};
for (const id of ["plan", "command", "bundle", "link"]) $(id).after(copied($(id))[1]);
$("plan").nextElementSibling.append($("download"));

let wanted = null; // the form that was asked for last, of this answer
const showForm = async (to) => {
  const mine = (wanted = { answers: shown.answers, to });
  fill($("form-files"), "Writing …");
  const found = await asked("plan", mine);
  if (wanted !== mine) return;
  const files = Object.entries(found.files ?? {}).filter(([name]) => !name.startsWith("data/"));
  fill(
    $("form-files"),
    section("", found.error?.map(faultText)),
    files.map(([name, text]) => [make("h3", {}, name), copied(lines(text))]),
    found.files && hint(`Save what stands above in a folder ${to}-files.`),
    found.files && command(found.messages.slice(1).join("\n")),
  );
};

// ------------------------------------------------------------------ the box

const seen = { run: null, error: null }; // what was checked last: {body, found}
const OTHER_FILES = /\.(ya?ml|py|ipynb|sh)$/i;
let round = 0; // what is checked together; the last one wins
/** Check texts, or one path; the first data among files are those of the answer. */
const checkAll = async (bodies) => {
  const mine = (round += 1);
  const boxes = bodies.map(() => make("div", { class: "check" }, "Checking …"));
  $("found").hidden = !bodies.length;
  fill($("found"), boxes);
  let isOpen = true; // no data are used yet
  for (const [at, body] of bodies.entries()) {
    const head = bodies.length > 1 && make("h3", {}, body.name);
    const found = await check(body, boxes[at], head, () => mine === round);
    if (mine !== round) return;
    const isData = found && !found.summary && !found.learned && (found.kind || found.error);
    const isFile = (body.path ?? body.name) && !OTHER_FILES.test(body.path ?? body.name);
    if (!isOpen || !isData || !isFile) continue;
    isOpen = Boolean(found.error);
    if (!isOpen) use(...dataOf(found, body));
    else takeBack(); // data that cannot be used take the place of those before, too
    ask();
  }
  if (bodies.length) $("found").focus();
};
/** The name of checked data, and what the form says of them. */
const dataOf = ({ kind, rows, tokens }, { path, name }) =>
  path ? [path, { path }] : [name, { kind, rows, tokens: tokens?.total ?? null }];

/** Check one; a script or configuration and the error of its run explain each other. */
const check = async (body, box, head, isWanted) => {
  if (body.fault) return fill(box, head, body.fault) && null;
  const gpu = valueOf(fieldOf("gpu"));
  const look = async (given, on = gpu) =>
    (await window.advise("check", on ? { ...given, gpu: on } : given)).document;
  try {
    const found = await look(body);
    const isError = found.out_of_memory && !found.tool;
    if (isError || found.tool) {
      if (seen.run && !isError) seen.error = null; // that of another run
      seen[isError ? "error" : "run"] = { body, found };
    }
    const { run, error } = seen;
    const isPair = run && error && (isError || found.tool);
    // The text names its GPU, or else it is that of the form.
    const on = error?.found.out_of_memory.total_gib ? null : gpu;
    const both = isPair && (await look({ ...run.body, beside: error.body }, on));
    if (isWanted()) fill(box, head, partsOf(both || found, body, isPair && [run, error]));
    return found;
  } catch (error) {
    fill(box, head, lost(error));
    return null;
  }
};

const partsOf = (found, body, together) => {
  const { kind, objectives = [], learned, out_of_memory: ranOut } = found;
  const isData = kind && !learned && !found.summary;
  const alone = () => {
    seen.run = seen.error = null;
    checkAll([body]);
  };
  const names = together && together.map((one) => one.found.path).join(" and ");
  const model = found.plan?.model;
  const marks = { "+": "ins", "-": "del" };
  const byHand = Object.entries(found.changes ?? {}).map(([key, value]) =>
    value === null ? `- ${key}` : `+ ${key}: ${JSON.stringify(value)}`,
  );
  const changed = found.diff?.length ? found.diff : byHand;
  const changes = changed.map((text) => [make(marks[text[0]] ?? "span", {}, text), "\n"]);
  const others = (found.findings ?? []).filter(({ text }) => text !== found.why);
  const findings = others.map(({ severity, text, where }) => [
    make("b", {}, `${severity}: `),
    plain(where ? `${text} (${where})` : text),
  ]);
  return [
    names &&
      row(`Read together, as the error of that run: ${names}.`, button("Only the last", alone)),
    !isData && section("", found.error?.map(faultText)), // those of rows are findings, too
    section("", ranOut?.words.slice(together ? 0 : 1)),
    found.summary && make("p", { class: `notice ${verdicts[found.verdict]?.[1]}` }, found.summary),
    found.what?.length > 0 && [make("p", {}, found.what[0]), list(found.what.slice(1))],
    section("", found.takes),
    isData && make("p", {}, `${counted(found.rows)}: ${found.why}`),
    isData && make("p", {}, `They can train: ${objectives.join(", ") || "nothing yet, see below"}`),
    section("", findings, 6),
    changes.length > 0 && [make("h3", {}, "What to change"), copied(lines(changes))],
    learned && [make("p", {}, learned.words), section("", learned.findings.map(textOf))],
    section("Not known", (found.unknown ?? []).map((one) => `${one.key}: ${one.why}`)),
    hint((found.notes ?? []).map(sentence).join(". ")),
    row(
      isData && !found.error && button("Answer for these data", () => use(...dataOf(found, body))),
      model && button(`Answer for ${model}`, () => change({ model, model_params_b: null })),
    ),
  ];
};

const readFiles = async (files) => {
  const way = isServed ? ": name its path instead" : ", too large for a page";
  const bodyOf = async (file) =>
    file.size > MOST_TEXT
      ? { name: file.name, fault: `${file.name} is larger than 200 MB${way}.` }
      : { name: file.name, text: await file.text() };
  if (!files.length) takeBack();
  await checkAll(await Promise.all([...files].map(bodyOf)));
  ask();
};
on("check", "click", () => {
  const [text, path] = [$("box").value, isServed ? $("check-path").value.trim() : ""];
  if (text.trim()) checkAll([{ text }]);
  else if (path) checkAll([{ path }]);
  else $("box").focus();
});
on("file", "change", ({ target }) => readFiles(target.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("box").classList.toggle("dropping", name === "dragover");
    if (name === "drop") readFiles(event.dataTransfer.files);
  });
}

// ------------------------------------------------------------------ runs, at home in `advise ui`

const isAtWork = ({ status }) => status === "running" || status === "starting";
const runOf = (run) => {
  const { folder, progress, verdict } = run;
  const link = { href: `report?${new URLSearchParams({ token, folder })}`, target: "_blank" };
  const isOver = !isAtWork(run) && run.status !== "done";
  const bar = { max: progress?.total, value: progress?.step ?? 0, "aria-label": folder };
  const { plain = verdict, next } = verdict ?? {};
  return make(
    "li",
    { class: "run" },
    make("b", {}, `${folder}: ${run.status}`),
    hint([run.composition, run.model?.replace(/^[.~/].*\//, "")].filter(Boolean).join(" · ")),
    progress?.total && make("progress", bar),
    hint(progress?.text),
    Object.entries(run.losses ?? {}).map(curveOf),
    section("", [plain?.text, next && sentence(next.text)].filter(Boolean)),
    next?.command && copied(command(next.command)),
    section("", run.error.map(faultText)),
    row(
      isAtWork(run) && button("Stop", () => act("stop", { folder })),
      isOver && button("Resume", () => act("run", { plan: folder })),
      run.report && make("a", link, "Report"),
    ),
  );
};
const curveOf = ([name, points]) => {
  if (points.length < 2) return null;
  const [first, end] = [points[0], points.at(-1)];
  const values = points.map((one) => one[1]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const viewBox = [first[0], -high, end[0] - first[0] || 1, high - low || 1].join(" ");
  const [from, to] = [first, end].map(([step, loss]) => `${loss.toFixed(3)} at step ${step}`);
  const words = `Loss of ${name}: ${from}, ${to}`;
  const box = { viewBox, height: 96, preserveAspectRatio: "none", role: "img" };
  const line = make("polyline", { points: points.map(([x, y]) => [x, -y]).join(" ") });
  return [make("svg", { ...box, "aria-label": words }, line), hint(words)];
};
/** Show the runs; a button that has the focus keeps it. */
const showRuns = (runs) => {
  const { activeElement: focused } = document;
  const place = [...$("runs").children].indexOf(focused?.closest("#runs > li"));
  fill($("runs"), ...runs.map(runOf));
  const again = $("runs").children[place]?.querySelectorAll("button, a") ?? [];
  [...again].find((one) => one.textContent === focused.textContent)?.focus();
};

let watching = 0;
const sayLost = (error) => ($("run-said").textContent = lost(error));
const watch = async () => {
  clearTimeout(watching);
  const { runs = [] } = (await window.advise("runs", {})).document;
  showRuns(runs);
  if (runs.some(isAtWork)) watching = setTimeout(() => watch().catch(sayLost), EVERY_MS);
};
/** Write a plan, run it, stop a run; what is said of it stands below. */
const act = async (name, body) => {
  $("run").disabled = true;
  fill($("run-said"));
  try {
    const { document: found } = await window.advise(name, body);
    const wrong = found.folder ? [] : found.error?.map(faultText);
    fill($("run-said"), section("", wrong), name === "plan" && !wrong && `Written: ${body.path}.`);
    await watch();
  } catch (error) {
    sayLost(error);
  }
  $("run").disabled = false;
};
if (isServed) {
  const path = () => $("run-path").value.trim();
  const isNamed = () => $("run-path").reportValidity();
  on("run", "click", () => isNamed() && act("run", { plan: path() }));
  const plan = () => ({ answers: shown.answers, file: shown.file, path: path() });
  on("write", "click", () => isNamed() && act("plan", plan()));
  watch().catch(sayLost);
}

// ------------------------------------------------------------------ begin

form.addEventListener("input", ({ target }) => {
  kept.delete(target.closest("[data-key]")?.dataset.key);
  clearTimeout(timer);
  timer = setTimeout(() => ask(), WAIT_MS);
});
form.addEventListener("change", () => ask());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  await ask(null, true);
  if (shown) $("answer").focus();
  else focusFault();
});
on("again", "click", () => {
  round += 1; // what is being checked is not wanted any more
  used = compared = seen.run = seen.error = null;
  for (const id of ["box", "file", "check-path"]) $(id).value = "";
  $("found").hidden = true;
  fill($("found"));
  setAnswers({});
  showFaults([]);
  history.replaceState(null, "", location.pathname + location.search);
  ask();
  firstOf(questions[0]).focus();
});
on("keep", "click", () => {
  compared = compared ? null : shown;
  showCompared();
});

const fromLink = async () => {
  let text = /^#a=(.*)$/.exec(location.hash)?.[1];
  if (text === undefined) return false;
  try {
    const bytes = Uint8Array.fromBase64(text, BASE64);
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    const answers = JSON.parse(text);
    if (!isGroup(answers)) throw new Error();
    setAnswers(answers);
    // The form has other words for what it cannot hold.
    await ask(kept.size ? { ...(!isServed && { gpu: UNSAID }), ...answers } : null);
  } catch {
    await ask(text); // the command says what is wrong with it
  }
  if (!shown) focusFault();
  return true;
};
window.addEventListener("hashchange", async () => {
  if ((await fromLink()) && shown) $("answer").focus({ preventScroll: true });
});
if (!(await fromLink())) {
  setAnswers(setup.example);
  for (const [name, document] of Object.entries(setup.opening))
    documents.set(JSON.stringify([name, answersNow()]), Promise.resolve({ document }));
  await ask();
}
