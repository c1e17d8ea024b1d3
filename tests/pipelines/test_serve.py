"""What serving needs of the machine before a Ray is started."""

import contextlib
import socket

import pytest

from pipelines import serve


def test_free_ports_differ_can_be_bound_and_are_none_that_the_kernel_hands_out():
    ports = serve.free_ports(5)
    assert len({*ports}) == 5
    with contextlib.ExitStack() as probes:
        for port in ports:
            probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
        chance = probes.enter_context(socket.socket())
        chance.bind(("127.0.0.1", 0))
        assert all(port < serve.PORTS.stop for port in ports) and chance.getsockname()[1] >= serve.PORTS.stop


def test_a_taken_port_is_passed_over(monkeypatch):
    with socket.socket() as taken:
        (port,) = serve.free_ports(1)
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(serve, "PORTS", range(port, port + 100))
        assert port not in serve.free_ports(3)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("one line", "one line"),
        (
            "A replica failed to start. Error:\n  File x\n    raise\nCheckpointError: no y\n",
            "A replica failed to start. Error: CheckpointError: no y",
        ),
    ],
)
def test_a_message_with_a_traceback_is_told_in_a_line(message, line):
    assert serve.brief(message) == line


def test_serving_on_a_port_that_is_taken_or_of_no_model_ends_with_one_line(tmp_path):
    (tmp_path / "serve.yaml").write_text("model: fashion-mnist\n")
    with socket.socket() as taken:
        (port,) = serve.free_ports(1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        for wrong, message in (
            (f"port={port}", f"cannot listen on 127.0.0.1:{port} .*: set port="),
            ("model=nowhere", "no sampler 'nowhere'"),
            ("model=nowhere://x", "Protocol not known: nowhere"),
            ("prot=1", "unknown key"),
        ):
            with pytest.raises(SystemExit, match=f"^error: .*{message}"):
                serve.main(["--config", str(tmp_path / "serve.yaml"), wrong])
