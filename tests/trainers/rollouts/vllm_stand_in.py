"""A server that answers as `vllm serve` 0.33 does, and really generates, with transformers."""

import json
import sys
import threading
import time
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REQUIRED = {
    "model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "stop_token_ids", "logprobs", "return_token_ids",
}  # fmt: skip
PATHS = (
    "/health", "/version", "/v1/models", "/v1/completions", "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter", "/collective_rpc", "/reset_prefix_cache", "/server_info",
)  # fmt: skip


class StandIn:
    """One server of the base `model`, as a context manager; set what it does wrong at any time."""

    def __init__(self, model, arguments=(), port=0):
        from transformers import AutoModelForCausalLM

        self.folder = str(model)
        given = dict(zip(arguments[::2], arguments[1::2], strict=False))
        self.version, self.root = "0.33.0", self.folder
        self.rank = int(given.get("--max-lora-rank", 64))
        self.longest = int(given.get("--max-model-len", 4096))
        self.logprobs_mode = "processed_logprobs"
        self.paths = set(PATHS)
        self.healthy = True
        self.dies_at = None  # the request to /v1/completions at which it falls silent for good
        self.slow_s = 0.0
        self.shifted = 0.0  # what its log-probabilities are wrong by
        self.asked, self.loaded, self.reloads, self.resets = 0, [], 0, 0
        self.lock, self.seed = threading.Lock(), 0
        self.base = AutoModelForCausalLM.from_pretrained(self.folder)
        self.adapters = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers.get("Content-Length") or 0)
                stand_in.answer(self, json.loads(self.rfile.read(length) or b"{}"))

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        """Answer one request as vLLM would."""
        path = handler.path.partition("?")[0]
        if path == "/v1/completions":
            self.asked += 1
            if self.dies_at is not None and self.asked >= self.dies_at:
                self.healthy = False
            time.sleep(self.slow_s)
        if not self.healthy:
            handler.connection.close()
            return
        try:
            code, found = self.found(path, body)
        except Exception as error:  # what vLLM tells of a failure
            code, found = 500, {"error": {"message": str(error), "code": 500}}
        data = b"" if found is None else json.dumps(found).encode()
        if isinstance(found, str):  # vLLM tells of adapters in a sentence
            data = found.encode()
        with suppress(ConnectionError):  # the one who asked has gone
            handler.send_response(code)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

    def found(self, path, body):
        """(status, what to send)."""
        adapters = [{"id": name, "parent": self.root} for name in self.adapters]
        base = {"id": self.root, "root": self.root, "max_model_len": self.longest, "parent": None}
        lora = {"max_lora_rank": self.rank} if self.rank else None
        config = {"model_config": {"logprobs_mode": self.logprobs_mode}, "lora_config": lora}
        facts = {
            "/openapi.json": {"paths": {name: {} for name in self.paths}},
            "/health": None,
            "/version": {"version": self.version},
            "/v1/models": {"object": "list", "data": [*adapters, base]},
            "/server_info": {"vllm_config": config},
        }
        if path not in {"/openapi.json", *self.paths}:
            return 404, {"detail": "Not Found"}
        if path in facts:
            return 200, facts[path]
        with self.lock:
            return getattr(self, path.rpartition("/")[2])(body)

    def load_lora_adapter(self, body):
        from peft import PeftModel

        config = json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())
        if config["r"] > self.rank:
            return 400, {"error": {"message": f"LoRA rank {config['r']} is greater than max"}}
        name = body["lora_name"]
        if isinstance(self.base, PeftModel):
            self.base.load_adapter(body["lora_path"], adapter_name=name)
        else:
            self.base = PeftModel.from_pretrained(self.base, body["lora_path"], adapter_name=name)
        self.adapters[name] = body["lora_path"]
        self.loaded.append(body["lora_path"])
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora_adapter(self, body):
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": "The lora adapter cannot be found."}}
        return 200, "Success: LoRA adapter removed."

    def collective_rpc(self, body):
        from transformers import AutoModelForCausalLM

        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        assert all(path.suffix in (".safetensors", ".json") for path in folder.iterdir())
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        self.reloads += 1
        return 200, {"results": [None]}

    def reset_prefix_cache(self, body):
        self.resets += 1
        return 200, {"success": self.resets > 1}  # busy the first time

    def completions(self, body):
        import torch

        from trainers.rollouts import Sampling
        from trainers.rollouts.transformers_engine import TransformersEngine

        missing = REQUIRED - set(body)
        if missing:
            return 400, {"error": {"message": f"missing: {missing}"}}
        if body["model"] in self.adapters:
            self.base.set_adapter(body["model"])
            context = nullcontext()
        elif body["model"] == self.root:
            context = self.base.disable_adapter() if self.adapters else nullcontext()
        else:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        model = self.base.eval()
        engine = TransformersEngine(lambda: nullcontext(model), models=lambda: [model])
        sampling = Sampling(
            limit=body["max_tokens"], stops=body["stop_token_ids"], shortest=body["min_tokens"],
            temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"],
            repetition_penalty=body["repetition_penalty"],
        )  # fmt: skip
        # Numbers of its own: those of the trainer in the same process stay as they are.
        with context, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.seed += 1
            answers = engine.generate(body["prompt"], sampling, n=body["n"])
            log_probs = scored(model, answers, body["temperature"])
        choices = []
        rows = zip(answers.ids, answers.ended, log_probs, strict=True)
        for index, (ids, ended, own) in enumerate(rows):
            names = [f"token_id:{token}" for token in ids]
            values = [value + self.shifted for value in own]
            choices.append({
                "index": index, "text": "", "token_ids": ids,
                "finish_reason": "stop" if ended else "length",
                "logprobs": {"tokens": names, "token_logprobs": values},
            })  # fmt: skip
        return 200, {"object": "text_completion", "choices": choices[::-1]}  # in any order


def scored(model, answers, temperature):
    """Log-probability of each answer token by one plain pass for each answer."""
    import torch

    found = []
    with torch.no_grad():
        for prompt, ids in zip(answers.prompts, answers.ids, strict=True):
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            table = (logits / temperature).log_softmax(-1)
            found.append([table[place, token].item() for place, token in enumerate(ids)])
    return found


def write_environment(folder, root, *, version="0.33.0", code=""):
    """An interpreter whose vLLM is this stand-in of `root`; `code` runs before it serves."""
    package = folder / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for path in (package, package.parent, package.parent.parent):
        (path / "__init__.py").touch()
    (package / "main.py").write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\n{code}\n"
        "from tests.trainers.rollouts.vllm_stand_in import main\nmain(sys.argv[1:])\n"
    )
    if version is not None:
        about = folder / f"vllm-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def main(arguments):
    """`vllm serve MODEL --host H --port P ...` until the process is ended."""
    assert arguments[0] == "serve"
    model, rest = arguments[1], [word for word in arguments[2:] if word != "--enable-lora"]
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    assert given["--host"] == "127.0.0.1"
    with StandIn(model, rest, port=int(given["--port"])):
        print(f"serving {model}", flush=True)
        threading.Event().wait()
