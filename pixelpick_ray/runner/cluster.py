"""The Ray cluster of a run: joined or started, and left as found.

A cluster started by a run serves only this machine and user: its ports listen on loopback, its sockets are in a
private folder, the dashboard is off, and clients need its token, a new one unless the user set one. Joining a cluster
is controlled by the user's environment variables.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, utils, worker
from ray._private.state import state
from ray.exceptions import AuthenticationError

from pixelpick_ray import supervisor
from pixelpick_ray.config.execution import Execution, local_cpus
from pixelpick_ray.errors import SpecError
from pixelpick_ray.store.backend import is_gone, process_stamp

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
CONNECT_SECONDS = 5.0
START_TRIES = 3
WATCH_SECONDS, HEAD_SECONDS = 0.5, 5.0  # between looks at services started here, and at the head of a joined cluster
FOLDER, OWNER = "pp-", "owner"  # prefix of private folders, and the file that names the owner
# Socket paths, with what Ray and the folder add, may have 103 bytes on macOS and 107 on Linux.
LONGEST_TEMPORARY = 103 - len(f"/{FOLDER}12345678/r/session_2000-01-01_00-00-00_000000_1234567/sockets/plasma_store")


@contextlib.contextmanager
def joined(execution: Execution) -> Iterator[None]:
    """Join the cluster at the execution's address, or start one on this machine, for the duration of the block.

    Raises SpecError, within about a minute, if nothing answers there or the cluster has a different token.
    """
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "ignore_reinit_error": False}
    with contextlib.ExitStack() as left:
        if execution.address:
            options["address"] = execution.address
        else:
            folder = left.enter_context(private_folder(longest=LONGEST_TEMPORARY))
            options |= {"include_dashboard": False, "num_cpus": local_cpus(), "address": "local"}
            options["_temp_dir"] = str(folder / "r")  # Ray makes it accessible to everybody
        left.enter_context(_authenticated(execution.address))
        left.enter_context(_on_loopback(execution.address))
        left.enter_context(_quiet())
        try:
            if execution.address:
                _reach(execution.address)
            _start(options)
        except AuthenticationError as error:
            raise SpecError(_unauthenticated(execution.address)) from error
        except SpecError:
            raise
        except Exception as error:  # Ray raises plain ones too, for example if its processes start too slowly
            raise SpecError(_unreachable(execution.address, error)) from error
        try:
            with (
                _watched(HEAD_SECONDS, head_of(ray.get_runtime_context().gcs_address), supervisor.tell)
                if execution.address
                else _watched(WATCH_SECONDS, _services(), supervisor.lose)
            ):
                yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def private_folder(longest: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder private to this user, whose parent's path has at most `longest` bytes.

    It is removed at the end or, if this process is killed, by the next call. Raises SpecError if it cannot be made.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "the temporary folder")
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    if longest is not None and len(os.fsencode(parent)) > longest:
        if variable == "RAY_TMPDIR":
            raise SpecError(
                f"RAY_TMPDIR: {str(parent)!r} is {len(os.fsencode(parent))} characters long, but Ray's socket paths "
                f"leave room for {longest}; use a shorter path, or unset it"
            )
        parent = Path("/tmp")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=parent))
        (folder / OWNER).write_text(process_stamp(), encoding="ascii")
    except OSError as error:
        raise SpecError(
            f"{variable}: cannot create a folder in {str(parent)!r} ({error.strerror}); set RAY_TMPDIR to a writable "
            "folder with free space"
        ) from error
    supervisor.remove_at_end(str(folder))
    _remove_left(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(parent: Path) -> None:
    """Remove private folders left by killed processes of this user."""
    for folder in parent.glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_ours and is_gone((folder / OWNER).read_text(encoding="ascii")):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _watched(seconds: float, look: Callable[[], str], act: Callable[[str], object]) -> Iterator[None]:
    """Call `look` every few seconds during the block, and `act` with what it has noticed."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(seconds):
            if (noticed := look()) and not is_over.is_set():
                act(noticed)

    if supervisor.is_supervised():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _services() -> Callable[[], str]:
    """Return a function that says which service of the cluster started here has ended, if one has.

    Ray itself takes a minute to notice, or ends the process without one of our messages.
    """
    services_of = worker._global_node.all_processes
    running = {name: services_of[name][0].process for name in ("gcs_server", "raylet") if services_of.get(name)}

    def look() -> str:
        for name, process in running.items():
            if (code := process.poll()) is not None:
                return f"the Ray cluster of this run was lost: its {name} {supervisor.ending(code)}"
        return ""

    return look


def head_of(address: str) -> Callable[[], str]:
    """Return a function that says once when the head at HOST:PORT stops answering, and once when it answers again.

    The run is not ended, because a head with a database is restarted and Ray waits a minute for it.
    """
    host, _, port = address.rpartition(":")
    head, failed = f"the head of the Ray cluster, {address},", 0

    def look() -> str:
        nonlocal failed
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
                before, failed = failed, 0
                return f"{head} answers again" if before > 1 else ""
        except OSError as error:
            failed += 1
            silent = f"{head} does not answer ({error.strerror or error}); Ray waits a minute"
            return silent if failed == 2 else ""

    return look


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from printing, such as tracebacks of retried trials, and from replacing our SIGTERM handler.

    Also keeps it from packing the working directory under `uv run`, unless the user wants that.
    """
    loggers = [logging.getLogger(f"ray.tune.{name}") for name in ("execution.tune_controller", "tune")]
    before, levels = (utils.set_sigterm_handler, worker.print_to_stdstream), [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool("RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)
    utils.set_sigterm_handler = lambda handler: None
    worker.print_to_stdstream = lambda *arguments, **options: None
    try:
        yield
    finally:
        utils.set_sigterm_handler, worker.print_to_stdstream = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def is_draining() -> bool:
    """Whether Ray has announced that a node will be taken away, so that fits are saved after every epoch."""
    try:
        return bool(state.get_draining_nodes())
    except Exception:  # a problem of the cluster is no reason to end a fit
        return False


def authentication(environment: Mapping[str, str], *, joins: bool, has_token: bool) -> dict[str, str]:
    """Return the environment variables that control Ray's token, all explicit; the user's settings are kept.

    `has_token`: Ray finds one in a variable or in the user's own file, which is used for a cluster that is joined. A
    cluster that is started gets a new one unless a variable gives one. Nothing is ever written to a file.
    """
    mode = environment.get(MODE) or ("token" if has_token or not joins else "disabled")
    chosen = {MODE: mode}
    given = environment.get(TOKEN) or environment.get(TOKEN_PATH)
    if mode.lower() == "token" and not joins and not given:
        chosen[TOKEN] = secrets.token_hex(32)
    return chosen


@contextlib.contextmanager
def _authenticated(address: str | None) -> Iterator[None]:
    """Set Ray's authentication for this process and its children during the block."""
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        has_token = _has_token()
    except AuthenticationError as error:
        raise SpecError(
            f"{TOKEN_PATH}: {os.environ.get(TOKEN_PATH)!r} cannot be read or is empty; give the file with the "
            f"cluster's token, or unset it"
        ) from error
    chosen = authentication(os.environ, joins=bool(address), has_token=has_token)
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_again()


def _start(options: dict[str, Any]) -> None:
    """Start or join, retrying a start that exceeds Ray's 30 s limit on a busy machine."""
    for left in reversed(range(START_TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _has_token() -> bool:
    return bool(ray._raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _read_again() -> None:
    """Make Ray read the mode, which it otherwise reads on import, and the token again."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _on_loopback(address: str | None) -> Iterator[None]:
    """Make a cluster that is started in the block use 127.0.0.1 as its node address, and so listen only there.

    Ray has this switch for systems whose firewalls ask about every port; `_node_ip_address` does not work, because
    Ray replaces loopback addresses there.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and bool(address)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _reach(address: str) -> None:
    """Raise errors that `ray.init` would find only after many retries or not report: no cluster, or another token."""
    if "://" in address:
        raise ValueError(
            "Ray Client addresses are not supported; run on a node of the cluster, and give HOST:PORT or auto"
        )
    target = services.canonicalize_bootstrap_address(address)
    if target is None:
        raise ValueError("no cluster has this address")
    if os.environ[MODE].lower() == "token" and not _has_token():
        raise SpecError(_unauthenticated(address))  # Ray would end this process
    host, _, port = target.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
        pass
    ray._raylet.GcsClient(address=target)


def _unauthenticated(address: str | None) -> str:
    given = next((name for name in (TOKEN, TOKEN_PATH) if os.environ.get(name)), None)
    if given and os.environ[MODE].lower() != "token":
        what = f"{MODE}={os.environ[MODE]} prevents the token in {given} from being used"
    elif given or _has_token():
        what = f"the token of {given or '~/.ray/auth_token'} is not the cluster's"
    else:
        what = "the cluster requires a token, but none is set"
    return (
        f"--address {address}: {what}; set {TOKEN}, or {TOKEN_PATH} to a file with it, and {MODE}=token, the same as "
        "where the cluster was started"
    )


def _unreachable(address: str | None, error: Exception) -> str:
    if address is None:
        return f"no Ray cluster could be started on this machine ({error}); --local runs without Ray"
    return (
        f"--address {address}: no Ray cluster could be joined ({error}); give HOST:PORT of a running one, from one of "
        "its nodes, or leave --address out to start one here"
    )
