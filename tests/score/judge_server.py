"""A real HTTP server that speaks as much of OpenAI's protocol as a judge is asked by, and fails as it is told to."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USED = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


class JudgeServer(ThreadingHTTPServer):
    """Answers by what stands between the answer tags of what it is asked: see `_Handler.do_POST`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.attempts: Counter[str] = Counter()
        self.busy = self.most = 0
        self.together = threading.Barrier(3, lambda: time.sleep(0.2))  # in which a fourth one would come
        self.over = threading.Event()
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        completion = body["messages"][-1]["content"].rpartition("<answer>\n")[2].partition("\n</answer>")[0]
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers["authorization"])
            self.server.attempts[completion] += 1
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        try:
            self._answer(completion, self.server.attempts[completion])
        except OSError:
            pass  # the client has gone
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def _answer(self, completion: str, attempt: int) -> None:  # noqa: PLR0911, PLR0912
        match completion.split():
            case ["500", "once"] if attempt == 1:
                return self._send(500, b"{}")
            case ["500", "always"]:
                return self._send(500, b'{"error": {"message": "out of order"}}')
            case ["429", "once"] if attempt == 1:
                return self._send(429, b"{}", {"retry-after": "1"})
            case ["400", *_]:
                return self._send(
                    400, json.dumps({"error": {"message": f"no {self.headers['authorization']}"}}).encode()
                )
            case ["401" | "403" | "404" as code, *_]:
                return self._send(int(code), b"{}")
            case ["nothing"]:
                self.server.over.wait(60)
                return None
            case ["hangs", "up"]:
                return self.connection.close()
            case ["HTML"]:
                return self._send(200, b"<html>welcome</html>", {"content-type": "text/html"})
            case ["broken"]:
                return self._send(200, b'{"choices": [')
            case ["empty"]:
                return self._send(200, b'{"choices": []}')
            case ["garbage"]:
                return self._say("I would give it a seven.")
            case ["cut"]:
                return self._say('{"reasons": "it is', "length")
            case ["refusal"]:
                return self._say(None, refusal="I do not judge this.")
            case ["beyond"]:
                return self._say('{"reasons": "", "score": 11}')
            case ["a", "text"]:
                return self._say('{"reasons": "", "score": "7"}')
            case ["usage", usage]:
                return self._say('{"reasons": "", "score": 5}', usage=json.loads(usage))
            case ["together", _]:
                self.server.together.wait(60)
        return self._say(json.dumps({"reasons": "By its length.", "score": min(10, len(completion))}))

    def _say(self, text: str | None, ended: str = "stop", refusal: str | None = None, usage: Any = USED) -> None:
        message = {"role": "assistant", "content": text, "refusal": refusal}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "strict-1",
            "choices": [{"index": 0, "finish_reason": ended, "message": message}],
            "usage": usage,
        }
        self._send(200, json.dumps(answer).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests ask the server itself."""


@contextmanager
def judging() -> Iterator[JudgeServer]:
    """A server at work; it is gone afterwards."""
    with JudgeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
