"""A real S3 server, and a way to it that fails as networks and servers do. The server is moto, a process of its own, or
with NVG_S3=ceph Ceph's gateway (tests/support/radosgw.py)."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import s3fs

from pipelines.serve import free_ports
from tests.support import radosgw

SECRET = "a-secret-that-no-log-shows"
SETTINGS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def environment(port, **more):
    """This process's environment, and that of those it starts, with the server at a port."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **more}.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")])))
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def server():
    """A server with an empty bucket, nvg-test; gives its port."""
    with ceph() if os.environ.get("NVG_S3") == "ceph" else moto() as port:
        with environment(port):
            s3fs.S3FileSystem().mkdir("nvg-test")
        yield port


def ceph():
    """A gateway for the keys of SETTINGS; gives its port."""
    return radosgw.server(SETTINGS["AWS_ACCESS_KEY_ID"], SECRET)


@contextlib.contextmanager
def moto():
    """A moto server; gives its port."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.time() + 60
        while True:
            assert process.poll() is None and time.time() < end, "the S3 server did not start"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


class Way:
    """A proxy to the server. `faults` are used up one a request: each is called with the handler and the answer
    (status, headers, body) and gives whether it has answered itself."""

    def __init__(self, port):
        self.port, self.faults, self.requests = port, [], 0

    def __enter__(self):
        way = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                way.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = way.faults.pop(0) if way.faults else None
                to_server = http.client.HTTPConnection("127.0.0.1", way.port)
                to_server.request(self.command, self.path, body, dict(self.headers))
                answer = to_server.getresponse()
                data = answer.read()
                if fault is None or not fault(self, answer, data):
                    self.answer(answer.status, answer.getheaders(), data)
                to_server.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

            def answer(self, status, headers, data):
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = dict((n.lower(), v) for n, v in headers).get("content-length", len(data))
                self.send_header("Content-Length", length if self.command == "HEAD" else len(data))
                self.end_headers()
                if self.command != "HEAD":  # its answer has no body
                    self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    @property
    def own_port(self):
        return self.server.server_address[1]

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def status(code, name="InternalError"):
    """A fault: an error of the server's."""

    def fault(handler, answer, data):
        text = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{name}, says the server</Message></Error>"
        handler.answer(code, [("Content-Type", "application/xml")], text.encode())
        return True

    return fault


def slow(seconds):
    """A fault: the right answer, late."""

    def fault(handler, answer, data):
        time.sleep(seconds)
        return False

    return fault


def cut(handler, answer, data):
    """A fault: the connection ends in the middle of the body."""
    handler.send_response(answer.status)
    for name, value in answer.getheaders():
        if name.lower() not in ("connection", "transfer-encoding"):
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True
