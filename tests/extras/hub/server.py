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
        self.asked, self.role = [], "write"
        self.broken = set()  # parts of paths that are answered with an error of the server
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

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

    def answer(self):
        path, body = self.path.partition("?")[0], self.body()
        self.server.asked.append(f"{self.command} {path}")
        code, value, *headers = self.found(path, body)
        content = json.dumps(value).encode()
        self.send_response(code)
        sizes = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, text in {**sizes, **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer

    def found(self, path, body):
        """Status, document and headers."""
        hub = self.server
        if any(part in path for part in hub.broken):
            return 500, {"error": "the hub is on fire"}
        if path.startswith("/store/"):
            hub.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "who are you?"}
        if path == "/api/whoami-v2":
            token = {"displayName": "t", "role": hub.role}
            who = {"name": "mia", "orgs": [{"name": "shop-team"}], "type": "user"}
            return 200, {**who, "auth": {"accessToken": token}}
        if path == "/api/repos/create":
            return self.created(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path.endswith("/info/lfs/objects/batch"):
            uploads = json.loads(body)["objects"]
            for one in uploads:
                place = {"href": f"{hub.address}/store/{one['oid']}", "header": {}}
                one["actions"] = {"upload": place}
            return 200, {"transfer": "basic", "objects": uploads}
        return self.of_model(path.split("/")[3:], body)

    def created(self, given):
        hub, name = self.server, f"{given.get('organization') or 'mia'}/{given['name']}"
        url = f"{hub.address}/{name}"
        if name in hub.repositories:
            return 409, {"error": "it exists", "url": url}
        private = given.get("private", given.get("visibility") == "private")
        hub.repositories[name] = {"private": private, "commits": []}
        return 200, {"url": url, "name": name}

    def of_model(self, parts, body):
        """What is below /api/models/OWNER/NAME."""
        hub, name = self.server, "/".join(parts[:2])
        repository = hub.repositories.get(name)
        if repository is None:
            return 404, {"error": "no such repository"}, ("X-Error-Code", "RepoNotFound")
        if self.command == "GET":
            about = {"id": name, "private": repository["private"], "siblings": [], "tags": []}
            return 200, {**about, "sha": "0" * 40}
        if parts[2] == "preupload":
            files = json.loads(body)["files"]
            for file in files:
                is_large = file["path"].endswith(".safetensors")
                file |= {"uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            return 200, {"files": files}
        assert parts[2] == "commit", parts
        items = [json.loads(line) for line in body.decode().splitlines()]
        plain = [item["value"] for item in items if item["key"] == "file"]
        large = [item["value"] for item in items if item["key"] == "lfsFile"]
        files = {one["path"]: base64.b64decode(one["content"]) for one in plain}
        files |= {one["path"]: hub.objects[one["oid"]] for one in large}
        repository["commits"].append(files)
        commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return 200, {"commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"}

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
