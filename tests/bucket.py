"""A local bucket: a real S3 API behind a proxy that loses, delays and refuses requests.

``python tests/bucket.py [PORT]`` serves one until it is stopped, for trying things out.
"""

import http.client
import logging
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.server import ThreadedMotoServer

SECRET = "secret-that-nobody-may-read"
FAULTS = ("throttle", "refuse", "lose the answer", "cut the answer", "slow")


def environment(port: int) -> dict[str, str]:
    """What a process needs to find the bucket, and its credentials."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        # A slow answer is given up after a second, so that tests need not wait for it.
        "FSSPEC_S3": '{"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 1}}}',
    }


@contextmanager
def serve_bucket(name: str) -> Iterator[int]:
    """Serve S3 with an empty bucket on the loopback; gives the port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{name}", headers={"Host": f"127.0.0.1:{port}"})
        assert connection.getresponse().status == 200
        yield port
    finally:
        server.stop()


class Gate(ThreadingHTTPServer):
    """Passes requests on to a bucket, but for the share of ``faults``; counts what it did.

    Attributes:
        share: of the requests that meet a fault.
        forgets: a header that it does not pass on, as if the store did not know it.
        lag_s: listings are answered with what was answered up to so long ago.
    """

    daemon_threads = True

    def __init__(self, port: int, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.behind = port
        self.share = 0.0
        self.lag_s = 0.0
        self.forgets = ""
        self.faults: tuple[str, ...] = FAULTS
        self.met: Counter[str] = Counter()
        self.requests: list[str] = []
        self._random = random.Random(seed)
        self._listings: dict[str, tuple[float, Any]] = {}

    def fault(self) -> str:
        """The fault that the next request meets, mostly none."""
        if self._random.random() >= self.share:
            return ""
        self.met[found := self._random.choice(self.faults)] += 1
        return found

    def listing(self, path: str, answer: Any) -> Any:
        """The answer to a listing, an older one where listings lag."""
        then, old = self._listings.get(path, (0.0, None))
        if old is not None and time.monotonic() - then < self.lag_s:
            return old
        self._listings[path] = time.monotonic(), answer
        return answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not print errors of disconnected clients."""

    @contextmanager
    def served(self) -> Iterator["Gate"]:
        """Serve in a thread."""
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gate

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        fault = self.server.fault()
        if fault == "throttle":
            self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
            return
        if fault == "refuse":
            self._cut()
            return
        status, headers, content = self._asked(body)
        if self.command == "GET" and "list-type=2" in self.path:
            status, headers, content = self.server.listing(self.path, (status, headers, content))
        if fault == "slow":
            time.sleep(1.5)
        if fault == "lose the answer":
            self._cut()
            return
        with suppress(OSError):  # the client may have given up
            self._answer(status, headers, content, n_sent=len(content) // 2 if fault else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815 - http.server asks for these

    def _asked(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() != self.server.forgets}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(
        self, status: int, headers: Mapping[str, str], content: bytes, n_sent: int | None = None
    ) -> None:
        """Send a response, or only its first bytes."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        n_bytes = headers.get("Content-Length", "0") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
        self.wfile.write(content[:n_sent])
        if n_sent is not None:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""


if __name__ == "__main__":
    with serve_bucket("bucket") as port:
        print("\n".join(f"export {name}='{value}'" for name, value in environment(port).items()))
        print("# and --store s3://bucket/store", file=sys.stderr)
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
