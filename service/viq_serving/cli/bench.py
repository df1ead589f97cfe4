"""`viq bench`: the load generator."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from viq.errors import InvalidInput, ViQError
from viq_serving.cli import bench_options, options
from viq_serving.cli.bench_report import heading, line, table
from viq_serving.cli.failures import DONE, SOME_FAILED, Unusable, UsageError, require
from viq_serving.cli.outputs import check_output
from viq_serving.cli.progress import Progress

if TYPE_CHECKING:
    from viq_serving.bench.session import Loads, Session
    from viq_serving.client.targets import Tls

HELP = "load a server, one of its own or another, and measure; or, after the word compare, hold two results together"

_WORDS = {"compare": 2, "plot": 1, "pictures": 0}

add_arguments = bench_options.add_arguments


def run(args: argparse.Namespace) -> int:
    """Measure, compare, plot or write pictures; returns the exit code."""
    word = args.words[0] if args.words else None
    if word is not None and (word not in _WORDS or len(args.words) != 1 + _WORDS[word]):
        raise UsageError(f"{' '.join(args.words)!r}: there are compare A.json B.json, plot A.json and pictures")
    try:
        if word == "compare":
            return _compare(args)
        if word == "plot":
            return _plot(args)
        if word == "pictures":
            return _pictures(args)
        return _measure(args)
    except InvalidInput as error:
        raise UsageError(str(error)) from None
    except ViQError as error:
        raise Unusable(str(error)) from None


def _measure(args: argparse.Namespace) -> int:
    from viq_serving.bench import result
    from viq_serving.bench.mixes import mix_of
    from viq_serving.bench.session import described, mix_row

    _check_address(args.url)
    session = _session(args)
    mix = mix_of(args.mix).scaled(args.scale)
    parts = [(one, one.name) for one in mix.apart()] if args.each_size else [(mix, None)]
    _check_outputs(args, session.loads, len(parts))
    with ExitStack() as opened:
        session, target = _reached(args, session, opened)
        made = result.begun(args.name, target)
        progress = opened.enter_context(Progress("measuring", session.steps(len(parts))))
        rows = list[dict[str, Any]]()
        for one, size in parts:
            payload = session.payload(one)
            rows.append(mix_row(one, payload.files, session.seed))
            made["mix"] = described(mix, rows, session, args.scale)
            for row in session.runs(one, payload, size):
                if not args.json and not made["runs"]:
                    print(heading())
                made["runs"].append(row)
                progress.advance()
                if not args.json:
                    print(line(row), flush=True)
                if args.output is not None:
                    result.save(args.output, made)  # after each run: what is measured is not lost
    if args.json:
        print(json.dumps(made, indent=1))
    failed = any(map(_failed, made["runs"]))
    if args.plot is not None:
        try:
            _draw(made, args.plot)
        except InvalidInput as error:
            if not failed:
                raise
            print(f"viq bench: {args.plot} is not drawn: {error}", file=sys.stderr)
    return SOME_FAILED if failed else DONE


def _failed(row: dict[str, Any]) -> bool:
    return bool(row["errors"] or not row["answered"] or row.get("codes", {}).get("unreadable"))


def _check_outputs(args: argparse.Namespace, loads: Loads, parts: int) -> None:
    """What could not be written or drawn is told now, not after minutes."""
    for path in (args.output, args.plot):
        if path is not None:
            check_output(path, make_folder=True)
    if args.plot is not None and max(parts, len(loads.in_flight), len(loads.rates) + len(loads.shares)) < 2:
        raise UsageError("--plot takes two rates, two numbers of requests in flight, or --each-size with two sizes")


def _check_address(url: str | None) -> None:
    """Refuse a password in an address without repeating it: it would be in the result, and in what is printed."""
    if url is not None and "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError("--url holds a user's name or password, which are not sent: there is --api-key-file")


def _tls(args: argparse.Namespace) -> Tls | None:
    from viq_serving.client.targets import Tls

    files = (args.tls_ca, args.tls_cert, args.tls_key)
    if (args.tls_cert is None) != (args.tls_key is None):
        raise UsageError("--tls-cert and --tls-key are given together or not at all")
    for file in files:
        if file is not None and not Path(file).is_file():
            raise UsageError(f"{file}: no such file")
    return Tls(*files) if args.tls or any(files) else None


def _session(args: argparse.Namespace) -> Session:
    from viq_serving.bench.doors.door import Target
    from viq_serving.bench.load import Span
    from viq_serving.bench.session import Session

    if args.duration is not None and args.requests is not None:
        raise UsageError("--duration and --requests exclude one another")
    headers = {} if args.api_key_file is None else {"Authorization": f"Bearer {options.key(args.api_key_file)}"}
    if args.priority:
        headers["ViQ-Priority"] = args.priority
    target = Target(
        args.url, args.grpc, args.model_version or args.size, headers, args.timeout, args.connections, args.reply,
        args.model, args.oip_input, args.oip_shape, _tls(args),
    )  # fmt: skip
    seconds = None if args.requests is not None else args.duration or 10.0
    return Session(
        doors=args.door,
        method=args.method,
        target=target,
        loads=_loads(args),
        span=Span(args.warm_up, seconds, args.requests),
        seed=args.seed,
        arrival_seed=args.seed if args.arrival_seed is None else args.arrival_seed,
        pictures=args.pictures,
        file_format=args.format,
        content=args.content,
        processes=args.processes,
        rounds=args.rounds,
        check_all=args.check_all,
        server_pid=args.server_pid,
    )


def _loads(args: argparse.Namespace) -> Loads:
    from viq_serving.bench.session import Loads

    rates, shares = args.rates
    in_flight = args.in_flight if args.in_flight is not None else () if rates and not shares else (16,)
    if min((*in_flight, sys.maxsize)) < args.processes:
        raise UsageError(f"--processes {args.processes} cannot share {min(in_flight)} requests in flight")
    return Loads(in_flight, rates, shares)


def _reached(args: argparse.Namespace, session: Session, opened: ExitStack) -> tuple[Session, dict[str, Any]]:
    """The session with the addresses of the server, which is started if it is to be, and what is known of that."""
    from viq_serving.bench.result import masked
    from viq_serving.bench.watch import command_of

    if args.serve is not None:
        if args.url or args.grpc or args.server_pid:
            raise UsageError("--serve starts a server: it excludes --url, --grpc and --server-pid")
        require("torch", "uvicorn", "pydantic_settings")
        from viq_serving.bench.own_server import serving

        _end_on_terminate()
        own = opened.enter_context(serving(shlex.split(args.serve)))
        session = replace(session, target=replace(session.target, url=own.url, grpc=own.grpc), server_pid=own.pid)
        command: str | None = masked(own.command)
    else:
        command = masked(command_of(args.server_pid)) if args.server_pid else None
    target = session.target
    if target.url is None and target.grpc is None:
        raise UsageError("there is nothing to measure: give --url, --grpc or --serve")
    described: dict[str, Any] = {"url": target.url, "grpc": target.grpc, "command": command, "models": None}
    if "http" in args.door or args.model:
        return session, described  # not necessarily a ViQ service
    from viq_serving.client import Client

    address = target.grpc or target.url
    key = options.key(args.api_key_file) if args.api_key_file is not None else None
    client = Client(str(address), api_key=key, tls=target.tls, timeout=args.timeout, retries=0)
    opened.callback(client.close)
    described["models"] = client.models()
    if args.method != "encode":
        session = replace(session, codes_of=lambda files: client.encode(files, size=args.size or None))
    return session, described


def _compare(args: argparse.Namespace) -> int:
    from viq_serving.bench import result
    from viq_serving.bench.comparison import compared

    first, second = (result.load(Path(name)) for name in args.words[1:])
    try:
        found = compared(first, second)
        text = table(found)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInput(f"one of the results lacks what is compared: {error!r}") from None
    if args.output is not None:
        result.save(args.output, found)
    print(json.dumps(found, indent=1) if args.json else text)
    return DONE if found["rows"] else SOME_FAILED


def _plot(args: argparse.Namespace) -> int:
    from viq_serving.bench import result

    path = args.output or args.plot
    if path is None:
        raise UsageError("plot needs -o PNG")
    _draw(result.load(Path(args.words[1])), path)
    return DONE


def _draw(made: dict[str, Any], path: Path) -> None:
    from viq_serving.bench.plots import plot

    try:
        plot(made, path)
    except InvalidInput:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInput(f"the result lacks what a chart needs: {error!r}") from None


def _pictures(args: argparse.Namespace) -> int:
    import hashlib

    from viq_serving.bench.mixes import mix_of
    from viq_serving.bench.pictures import pictures_of

    if args.output is None:
        raise UsageError("pictures needs -o DIR")
    args.output.mkdir(parents=True, exist_ok=True)
    mix, rows = mix_of(args.mix).scaled(args.scale), []
    with Progress("drawing", args.pictures) as progress:
        for one in pictures_of(mix, args.pictures, args.seed, args.format, args.content, progress.advance):
            name = f"{one.index:05d}.{'jpg' if args.format == 'jpeg' else 'png'}"
            (args.output / name).write_bytes(one.data)
            rows.append(
                {
                    "index": one.index,
                    "file": name,
                    "width": one.width,
                    "height": one.height,
                    "patches": one.patches,
                    "bytes": len(one.data),
                    "sha256": hashlib.sha256(one.data).hexdigest(),
                }
            )
    (args.output / "pictures.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return DONE


def _end_on_terminate() -> None:
    """Let SIGTERM end the command as Ctrl-C does: the server that it has started ends with it."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
