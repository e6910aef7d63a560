// Compiles the folders core/ and stdlib/ of a stage to bytecode, with the very Python of the page.
import { readFileSync } from "node:fs";

const [pyodide, stage] = process.argv.slice(2);
const { loadPyodide } = await import(`file://${pyodide}/pyodide.mjs`);
const python = await loadPyodide({
  indexURL: pyodide,
  env: { PYTHONHASHSEED: "0", PYTHONNODEBUGRANGES: "1" },
});
python.FS.mkdirTree("/stage");
python.mountNodeFS("/stage", stage);
python.runPython(readFileSync(new URL("compile.py", import.meta.url), "utf-8"));
