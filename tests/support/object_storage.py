"""A loopback S3 server with one bucket, for stores on object storage."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

KEY, SECRET = "reader", "hush"


@contextmanager
def served_bucket() -> Iterator[str]:
    """The address of an empty bucket with credentials in it; `{}` in it is the place of a prefix."""
    server = pytest.importorskip("moto.server")
    from pyarrow.fs import FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        system, _ = FileSystem.from_uri(f"s3://{KEY}:{SECRET}@bucket?{options}&allow_bucket_creation=true")
        system.create_dir("bucket")
        yield f"s3://{KEY}:{SECRET}@bucket/{{}}?{options}"
    finally:
        running.stop()
