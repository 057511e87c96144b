"""refavs-view: a local page that shows what is in stores and what trained runs predict."""

import argparse
import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refavs.errors import ConfigError
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say

if TYPE_CHECKING:
    from experiments.view.answers import Answers

NAME = "refavs-view"
EPILOG = """examples:
  refavs-view demo/store                        the clips of a store, their features and clips that look alike
  refavs-view demo/store demo/smoke             also the runs of a sweep: best and worst expressions, new videos
  refavs-view a/store s3://bucket/b/store       two stores, whose streams can be shown side by side
"""


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=NAME, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("places", nargs="+", metavar="STORE|RUN", help="a store (a folder or URL), a sweep, or a trial's folder, "
        "SWEEP/trials/KEY")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to serve on; any other than 127.0.0.1 asks for a token, which is "
        "part of the printed address (default: 127.0.0.1)")  # fmt: skip
    add("--port", type=int, default=7860, help="port to serve on; 0 takes a free one (default: 7860)")
    add("--token", action="store_true", help="ask for a token on 127.0.0.1 too, where other users of this machine "
        "could open the page")  # fmt: skip
    add("--weights-dir", type=Path, metavar="DIR", help="the encoders' weights for new videos, as for refavs-extract; "
        "default: the hub's cache, without a download")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-view; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(NAME, lambda: _view(args))


def _view(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs Gradio, which is not installed; run: pip install 'refavs[view]'")
    share_processors()
    from experiments.view.answers import Answers
    from experiments.view.guard import LOOPBACK
    from experiments.view.shown import open_all

    own = args.host in LOOPBACK
    with _bound(args.host, args.port) as listening:
        answers = Answers(open_all(args.places), args.weights_dir)
        return serve(answers, listening, secrets.token_urlsafe(24) if args.token or not own else None, any_host=not own)


def serve(answers: "Answers", listening: socket.socket, token: str | None, any_host: bool = False) -> int:
    """Serves the page until Ctrl-C or SIGTERM."""
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    with tempfile.TemporaryDirectory(prefix="refavs-view-") as folder:
        # Read by Gradio when it is imported: no telemetry, and files only in a folder of this process.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1",
                       "GRADIO_ALLOWED_PATHS": "", "GRADIO_SSR_MODE": "False"}  # fmt: skip
        import uvicorn

        from experiments.view.page import application

        app = application(answers, port, token, any_host)
        say(f"{NAME}: {address}{f'?token={token}' if token else ''}  (Ctrl-C ends it)")
        sys.stdout.flush()
        # uvicorn ends at either signal, and then sends it again.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
        with contextlib.suppress(KeyboardInterrupt):  # how it is ended
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
            uvicorn.Server(config).run(sockets=[listening])
    return Exit.COMPLETE


def _bound(host: str, port: int) -> socket.socket:
    """A socket at this address.

    Raises:
        ConfigError: it is in use or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(f"cannot serve on {host} port {port}: {getattr(error, 'strerror', None) or error}; name "
                          "another --port (0 takes a free one) or --host") from error
    return listening
