// Compiles core/ and stdlib/ of a stage, beside package/ with Pyodide, by the very Python of the page.
const [stage] = process.argv.slice(2);
const { loadPyodide } = await import(`file://${stage}/package/pyodide.mjs`);
const python = await loadPyodide({
  indexURL: `${stage}/package`,
  env: { PYTHONHASHSEED: "0", PYTHONNODEBUGRANGES: "1" },
});
python.FS.mkdirTree("/stage");
python.mountNodeFS("/stage", stage);
const { compile_dir } = python.pyimport("compileall");
const { UNCHECKED_HASH } = python.pyimport("py_compile").PycInvalidationMode; // no source to compare
for (const [folder, options] of Object.entries({
  core: { ddir: "/advise" },
  stdlib: { ddir: "/lib/python314.zip", legacy: true, optimize: 2 }, // without its docstrings
})) {
  const all = { ...options, force: true, quiet: 1, invalidation_mode: UNCHECKED_HASH };
  if (!compile_dir.callKwargs(`/stage/${folder}`, all)) throw new Error(`${folder}: no bytecode`);
}
