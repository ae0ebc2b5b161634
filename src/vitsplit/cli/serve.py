"""``vitsplit serve RUN...``: an HTTP server for bundles or an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vitsplit.cli.values import BatchSize, Loading
from vitsplit.extras import require
from vitsplit.serving.limits import Limits


def serve(
    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ...")]],
    /,
    host: str = "127.0.0.1",
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000,
    workers: Annotated[int, Field(ge=1, le=1024)] = 1,
    batch_size: BatchSize | None = None,
    runtime: Literal["torch", "onnx", "openvino"] | None = None,
    bundle_root: Path | None = None,
    admin_token_file: Path | None = None,
    allowed_host: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    trusted_proxy: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    loading: Loading = Loading(),  # noqa: B008  (frozen)
    limits: Limits = Limits(),  # noqa: B008  (frozen)
) -> int:
    """Serve one or several bundles, or an exported folder, over HTTP.

    Several bundles must be of one backbone, which is in memory once and runs once per image for the bundles that a
    request asks for. docs/serving.md describes the requests; /openapi.json of the server does, too.

    There is no encryption and no authentication of clients: beyond this machine, put a reverse proxy before it.
    A signal (SIGTERM, Ctrl+C) stops the server when the accepted requests are answered.

    Examples:
        vitsplit serve runs/rooms runs/depth
        vitsplit serve exported --runtime openvino --workers 4 --port 8080
        vitsplit serve runs/rooms --bundle-root bundles --admin-token-file token.txt

    Args:
        runs: Run folders (their best bundles) or bundle folders, or an exported folder.
        host: Address to listen at; 0.0.0.0 for all.
        port: Port to listen at; 0: any free one.
        workers: Number of processes behind the port, each with the model in memory and its share of the cores.
        batch_size: Images of one size in a batch, of those that wait already; None: 1 on a CPU, up to 8 on a GPU.
        runtime: PyTorch, ONNX Runtime or OpenVINO, as of `vitsplit predict`.
        bundle_root: Folder below which bundles may be added while the server runs, with --admin-token-file.
        admin_token_file: File of the token that requests to add or remove bundles must have.
        allowed_host: Name in requests' Host header, beside localhost, 127.0.0.1 and [::1], such as that of a reverse
            proxy; may be repeated. By default, all names if --host is an address beyond this machine.
        trusted_proxy: Address or network (10.0.0.0/8) of a reverse proxy, whose X-Forwarded-For names the client, so
            that each client has its share of the server; may be repeated.
        loading: Loading options.
        limits: Limits.
    """
    require("vitsplit serve", "starlette", "uvicorn", "prometheus_client", extra="serve")
    from vitsplit import api

    return api.serve(
        runs,
        host=host,
        port=port,
        workers=workers,
        batch_size=batch_size,
        runtime=runtime,
        bundle_root=bundle_root,
        admin_token_file=admin_token_file,
        allowed_hosts=allowed_host,
        trusted_proxies=trusted_proxy,
        limits=limits,
        **loading.arguments(),
    )
