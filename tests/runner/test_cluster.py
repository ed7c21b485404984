"""The head of a cluster that is joined: its silence is reported, and that it answers again."""

import socket

from pixelpick_ray.runner.cluster import head_of


def test_a_silent_head_is_reported_once_and_so_is_its_return() -> None:
    head = socket.create_server(("127.0.0.1", 0))
    port = head.getsockname()[1]
    look = head_of(f"127.0.0.1:{port}")
    assert look() == ""
    head.close()
    silent = f"the head of the Ray cluster, 127.0.0.1:{port}, does not answer (Connection refused); Ray waits a minute"
    assert [look() for _ in range(3)] == ["", silent, ""]
    with socket.create_server(("127.0.0.1", port)):
        assert [look(), look()] == [f"the head of the Ray cluster, 127.0.0.1:{port}, answers again", ""]
