"""``PUT`` and ``DELETE /v1/bundles/NAME``: heads that are added and removed while the server runs.

A bundle comes from a folder below one root and is untrusted. Checked are its card and the names and shapes of its
tensors before anything is read, the hash of its backbone, and finite values. Nothing that its card names is opened.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitsplit.bundle import CARD, WEIGHTS, find_bundle, read_card
from vitsplit.errors import BundleError, ConfigError, DataError, VitsplitError
from vitsplit.files import read_text
from vitsplit.inference.prediction_log import bundle_ids
from vitsplit.inference.predictor import LoadedHead
from vitsplit.serving.ask import Asking
from vitsplit.serving.errors import HttpError, invalid
from vitsplit.serving.fields import MAX_JSON_BYTES, parse_request_json
from vitsplit.serving.heads import ServedHead
from vitsplit.serving.service import Service
from vitsplit.serving.shared_changes import POLL_SECONDS, Change, SharedChanges

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SHORTEST_TOKEN = 16
LONGEST_TOKEN = 4096


class Administration:
    """Adds and removes heads, one at a time.

    Args:
        service: The heads.
        root: Folder of the bundles that may be added.
        token: The token that requests must have.
        asking: Answers questions.
        shared: Changes of all workers; None: there is one.
    """

    def __init__(
        self, service: Service, root: Path, token: str, asking: Asking, shared: SharedChanges | None = None
    ) -> None:
        self._service, self._asking, self._shared = service, asking, shared
        self._root, self._token = root.resolve(), token.encode()
        service.roots |= {root.absolute(), self._root}
        self._changing = asyncio.Lock()
        self._made = 0  # of the shared changes

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Within the block, changes of other workers are made here, too; earlier ones before it."""
        if self._shared is None:
            yield
            return
        async with self._shared.exclusively():
            await self._catch_up(self._shared)
        following = asyncio.create_task(self._follow(self._shared))
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            self._shared.leave()

    async def put(self, request: Request) -> Response:
        """Adds a head."""
        self._check_token(request)
        name = request.path_params["name"]
        if not NAME.fullmatch(name):
            raise invalid("invalid_parameter", "a name has letters, digits, '_', '-' and '.', at most 64 characters")
        fields = parse_request_json(await self._service.read_body(request, MAX_JSON_BYTES))
        if fields.keys() != {"path"} or not isinstance(fields["path"], str):
            raise invalid("invalid_json", 'the body must be {"path": FOLDER}, relative to the root of the bundles')
        async with self._exclusively():
            if name in self._service.heads:
                raise HttpError(
                    HTTPStatus.CONFLICT, "name_taken", f"there is a bundle {name}", "Remove it, or choose another name."
                )
            try:
                begun = time.perf_counter()
                served = await self._add(name, fields["path"])
                self._service.observe("load", time.perf_counter() - begun, {})
            except VitsplitError as error:
                raise self._service.refused("invalid_bundle", error) from None
            try:
                failure = await self._share(Change(name, fields["path"], served.sha256))
            except BaseException:
                await self._remove(name)
                raise
            if failure:
                await self._share(Change(name))
                await self._remove(name)
                raise HttpError(
                    HTTPStatus.SERVICE_UNAVAILABLE, "not_added", f"not added: {failure}", "See the server's log."
                )
        return JSONResponse(served.to_json(), HTTPStatus.CREATED)

    async def delete(self, request: Request) -> Response:
        """Removes a head, after the requests that were accepted with it."""
        self._check_token(request)
        async with self._exclusively():
            name = self._service.head(request.path_params["name"]).name
            failure = await self._share(Change(name))
            await self._remove(name)
        if failure:
            raise HttpError(
                HTTPStatus.SERVICE_UNAVAILABLE, "not_removed", f"removed, but {failure}", "See the server's log."
            )
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        """Within the block, nothing else changes the heads; changes of other workers have been made."""
        if self._shared is None:
            async with self._changing:
                yield
            return
        # In this order: a worker that waits for another one's change makes it meanwhile.
        async with self._shared.exclusively(), self._changing:
            await self._catch_up(self._shared)
            yield

    async def _follow(self, shared: SharedChanges) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if shared.changed():
                    async with self._changing:
                        await self._catch_up(shared)
            except Exception:
                logger.exception("changes of other workers were not made")

    async def _catch_up(self, shared: SharedChanges) -> None:
        """Makes the changes that other workers have made, and reports the number of all."""
        changes, failure = shared.read()[self._made :], ""
        # The last change of each name; earlier ones may be of files that are gone.
        for change in {change.name: change for change in changes}.values():
            failure = ""
            if change.name in self._service.heads:
                await self._remove(change.name)
            try:
                if change.path is not None:
                    await self._add(change.name, change.path, change.sha256)
            except VitsplitError as error:
                logger.error("the bundle %s, which another worker has added: %s", change.name, error)
                failure = self._service.refused("invalid_bundle", error).message
            except Exception:  # such as one of memory: the worker goes on without it, and says so
                logger.exception("the bundle %s, which another worker has added", change.name)
                failure = "another worker could not load it"
        self._made += len(changes)
        shared.report(self._made, failure)

    async def _share(self, change: Change) -> str:
        """Adds a change of this worker to those of all, and waits for the others; returns why one of them failed."""
        if self._shared is None:
            return ""
        self._made = self._shared.add(change)
        self._shared.report(self._made)
        return await self._shared.others(self._made, self._service.limits.request_seconds)

    async def _add(self, name: str, path: str, sha256: str | None = None) -> ServedHead:
        """Checks, loads and adds a bundle; it must have the hash, if one is given."""
        # Not in the pool, whose threads decode images.
        head, digest = await asyncio.to_thread(self._open, name, path)
        if sha256 not in (None, digest):
            raise BundleError("the bundle changed after another worker had loaded it.")
        served = ServedHead.of(name, head, digest)
        await asyncio.wrap_future(self._service.model.call(lambda: self._service.predictor.register(name, head)))
        self._service.heads[name] = served
        return served

    async def _remove(self, name: str) -> None:
        await self._service.remove(name)
        self._asking.forget(name)

    def _check_token(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            raise HttpError(HTTPStatus.UNAUTHORIZED, "unauthorized", "this needs the token of the administrator")

    def _open(self, name: str, path: str) -> tuple[LoadedHead, str]:
        """Checks and loads a bundle below the root."""
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path or len(path) > 1024:
            raise ConfigError("path must be a folder below the root of the bundles, without '..'.")
        try:
            folder = find_bundle(self._root / path)
            inside = all(
                file.resolve(strict=True).is_relative_to(self._root)
                for file in (folder, folder / CARD, folder / WEIGHTS)
            )
        except (OSError, RuntimeError):
            raise BundleError("the files of the bundle cannot be read.") from None
        if not inside:
            raise BundleError("a link leads out of the root of the bundles.")
        if read_card(folder).config.task.answers_questions:
            raise ConfigError("a bundle that answers questions needs a language model, and is given at the start.")
        digest = bundle_ids({name: folder})[name]
        _, head = self._service.predictor.open(folder, name)
        if bundle_ids({name: folder})[name] != digest:
            raise BundleError("the bundle changed while it was loaded. Write bundles elsewhere, and move them here.")
        return head, digest


def read_token(path: Path) -> str:
    """Reads the token of the administrator: the file without surrounding white space.

    Raises:
        ConfigError: It is missing, or its token is shorter than 16 characters or not ASCII.
    """
    try:
        token = read_text(path, limit=LONGEST_TOKEN).strip()
    except DataError as error:
        raise ConfigError(f"--admin-token-file {error}") from None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"--admin-token-file {path}: the token must have at least {SHORTEST_TOKEN} ASCII characters. Make one: "
            "openssl rand -hex 32"
        )
    return token


def check_administration(token_file: Path | None, root: Path | None) -> None:
    """Checks the flags.

    Raises:
        ConfigError: One is given without the other, or the root is no folder.
    """
    if (token_file is None) != (root is None):
        missing = "--admin-token-file" if token_file is None else "--bundle-root"
        raise ConfigError(f"Missing {missing}: bundles are added with a token, from below one root.")
    if root is None:
        return
    if not root.is_dir():
        raise ConfigError(f"--bundle-root {root}: not a folder. Give the folder that has the bundles.")


def not_offered() -> HttpError:
    """The error where bundles cannot be changed."""
    return HttpError(
        HTTPStatus.FORBIDDEN,
        "forbidden",
        "this server does not add or remove bundles",
        "Start it with --admin-token-file and --bundle-root.",
    )
