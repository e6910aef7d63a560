"""A stand-in for the model hub: what its client asks for on the way of an upload, on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "the-token-of-mia"


class Hub(ThreadingHTTPServer):
    """Repositories in memory, for the user mia, who is of the organisation shop-team."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.repositories = {}  # name -> {private, commits: [{file: content}]}
        self.objects = {}  # sha256 -> content
        self.asked = []
        self.role = "write"
        self.broken = set()  # parts of paths that are answered with an error of the server
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.shutdown()
        self.server_close()
        self.thread.join()

    def files(self, name):
        """File -> content of a repository's last commit."""
        return self.repositories[name]["commits"][-1]


class Requests(BaseHTTPRequestHandler):
    """The answers of the hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer_to("GET")

    def do_POST(self):
        self.answer_to("POST")

    def do_PUT(self):
        self.answer_to("PUT")

    def answer_to(self, method):
        hub, path = self.server, self.path.partition("?")[0]
        body = self.body()
        hub.asked.append(f"{method} {path}")
        if any(part in path for part in hub.broken):
            return self.send(500, {"error": "the hub is on fire"})
        is_mine = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not is_mine and not path.startswith("/store/"):
            return self.send(401, {"error": "who are you?"})
        if path == "/api/whoami-v2":
            token = {"displayName": "t", "role": hub.role}
            who = {"name": "mia", "orgs": [{"name": "shop-team"}]}
            return self.send(200, {**who, "type": "user", "auth": {"accessToken": token}})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'mia'}/{given['name']}"
            if name in hub.repositories:
                return self.send(409, {"error": "it exists", "url": f"{hub.address}/{name}"})
            private = given.get("private", given.get("visibility") == "private")
            hub.repositories[name] = {"private": private, "commits": []}
            return self.send(200, {"url": f"{hub.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.send(200, {"warnings": [], "errors": []})
        if path.startswith("/store/"):
            hub.objects[path.rpartition("/")[2]] = body
            return self.send(200, {})
        if path.endswith("/info/lfs/objects/batch"):
            return self.send(200, self.batch(json.loads(body)))
        return self.of_model(method, path.split("/")[3:], body)

    def of_model(self, method, parts, body):
        """What is below /api/models/OWNER/NAME."""
        hub, name = self.server, "/".join(parts[:2])
        repository = hub.repositories.get(name)
        if repository is None:
            return self.send(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        if method == "GET":
            about = {"id": name, "private": repository["private"], "siblings": [], "tags": []}
            return self.send(200, {**about, "sha": "0" * 40})
        if parts[2] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.send(200, {"files": files})
        assert parts[2] == "commit", parts
        found = {}
        for line in body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                found[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                found[item["value"]["path"]] = hub.objects[item["value"]["oid"]]
        repository["commits"].append(found)
        commit = hashlib.sha1(repr(sorted(found)).encode()).hexdigest()
        return self.send(
            200, {"commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"}
        )

    def batch(self, given):
        """Where each large file is to be put."""
        address = f"{self.server.address}/store"
        return {
            "transfer": "basic",
            "objects": [
                {**one, "actions": {"upload": {"href": f"{address}/{one['oid']}", "header": {}}}}
                for one in given["objects"]
            ],
        }

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, code, value, headers=()):
        content = json.dumps(value).encode()
        self.send_response(code)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
