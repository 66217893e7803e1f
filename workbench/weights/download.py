"""Weights by name or address, downloaded once into a cache.

    detectron2://ImageNetPretrained/torchvision/R-50.pkl    a file of detectron2's servers
    torchvision://resnet50                                  a network of torchvision's, or NETWORK/ENTRY
    hf://facebook/mask2former-swin-tiny-coco-instance       a repository of the Hugging Face Hub, @REVISION may follow
    https://...                                             any file

A file appears in the cache when it is complete and has its checksum, where one is published. A file that was copied
there by hand is taken as it is.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torchvision.models import WeightsEnum, get_model_weights, list_models
from tqdm import tqdm

from workbench.errors import WorkbenchError, nearest
from workbench.files import cache_folder, file_name, replacing
from workbench.weights.reading import INDEX, SINGLE, shards

_log = logging.getLogger(__name__)

DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 20
# Servers whose names of files hold the beginning of a checksum: torchvision's, and that of Mask2Former's model zoo.
_CHECKSUMS = {
    "download.pytorch.org": (r"-([0-9a-f]{8,})\.\w+$", "sha256"),
    "dl.fbaipublicfiles.com": (r"model_final_([0-9a-f]{6,})\.pkl$", "md5"),
}


def is_address(name: str) -> bool:
    """Return whether weights are named by an address rather than a path."""
    return bool(re.match(r"(detectron2|torchvision|hf|https?)://", str(name)))


def local_weights(name: str | Path) -> Path:
    """Return the file or folder of weights that a path or an address names, downloaded if it is not in the cache.

    Raises:
        WorkbenchError: the address is none, or could not be downloaded; the sentence says where to put a copy.
    """
    scheme, _, rest = str(name).partition("://")
    if not is_address(str(name)):
        return Path(name).expanduser()
    if scheme == "detectron2":
        return download(DETECTRON2 + rest, _place("detectron2", rest))
    if scheme == "torchvision":
        return torchvision_file(torchvision_entry(*rest.split("/", 1)))
    if scheme == "hf":
        return _repository(rest)
    parts = urlsplit(str(name))
    return download(str(name), _place(parts.netloc, parts.path))


def torchvision_entry(network: str, entry: str = "") -> WeightsEnum:
    """Return torchvision's description of the weights of a network; the first, V1, unless ``entry`` names another."""
    if network not in list_models():
        raise WorkbenchError(f"torchvision has no network {network!r}{nearest(network, list_models())}")
    entries = list(get_model_weights(network))
    found = next((each for each in entries if each.name == entry), None) if entry else entries[0] if entries else None
    if found is None:
        names = ", ".join(each.name for each in entries) or "none"
        raise WorkbenchError(f"torchvision has no weights {entry or 'at all'} of {network}; it has {names}")
    return found


def torchvision_file(entry: WeightsEnum) -> Path:
    """Return the file of torchvision's weights, in the cache that torchvision itself uses."""
    return download(entry.url, torchvision_place(entry))


def torchvision_place(entry: WeightsEnum) -> Path:
    """Return where the file of torchvision's weights is, once it was downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]


def _place(*names: str) -> Path:
    """Return a path in the cache, below it whatever the names hold."""
    parts = [part for name in names for part in name.split("/") if part.strip(".")]
    return cache_folder() / "weights" / Path(*map(file_name, parts))


class _Absent(WorkbenchError):
    """The server answers, and has no such file."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Remembers the checksum that the Hugging Face Hub sends with its redirection to another server."""

    checksum = ""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201  (urllib's signature)
        """Follow as urllib does."""
        self.checksum = headers.get("X-Linked-ETag") or self.checksum
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, place: Path) -> Path:
    """Return ``place``, which is first filled from ``url`` unless it is there. Progress goes to stderr.

    Raises:
        WorkbenchError: there is no network, no such file, it came incomplete, or has another checksum; nothing is then
            left at ``place``.
    """
    if place.is_file():
        return place
    remedy = f"; get it on a machine that can, and put it at {place}"
    _log.info("downloading %s to %s", url, place)
    try:
        with replacing(place) as draft:
            _fetch(url, draft, place.name)
    except urllib.error.HTTPError as error:
        kind = _Absent if error.code == 404 else WorkbenchError
        raise kind(f"{url} could not be downloaded (the server answers {error.code} {error.reason}){remedy}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise WorkbenchError(f"{url} could not be downloaded ({reason}){remedy}") from None
    return place


def _fetch(url: str, draft: Path, name: str) -> None:
    """Write what ``url`` answers to ``draft``; OSError where it is not whole or not what was published."""
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"User-Agent": "workbench"})
    with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT) as answer, draft.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        wanted, kind = _published_checksum(url, redirects.checksum or answer.headers.get("X-Linked-ETag") or "")
        digest = hashlib.new(kind, usedforsecurity=False)
        with tqdm(total=size or None, unit="B", unit_scale=True, desc=name, disable=None, leave=False) as bar:
            while block := answer.read(_BLOCK):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        received = file.tell()
    if size and received != size:
        raise OSError(f"only {received} of its {size} bytes came")
    if not digest.hexdigest().startswith(wanted):
        raise OSError(f"its {kind} is {digest.hexdigest()} and not {wanted}..., as published")


def _published_checksum(url: str, tag: str) -> tuple[str, str]:
    """Return the published beginning of a file's checksum ("" where there is none), and its kind."""
    if re.fullmatch(r'"?[0-9a-f]{64}"?', tag):
        return tag.strip('"'), "sha256"
    pattern, kind = _CHECKSUMS.get(urlsplit(url).netloc, (r"(?!)", "sha256"))
    match = re.search(pattern, url)
    return (match[1] if match else ""), kind


def _repository(name: str) -> Path:
    """Return the folder with the config and the weights of a repository of the Hugging Face Hub."""
    match = re.fullmatch(r"([\w-][\w.-]*)/([\w-][\w.-]*)(?:@([\w.-]+))?", name)
    if match is None:
        raise WorkbenchError(
            f"hf://{name} is no address of the Hugging Face Hub; it is hf://OWNER/NAME or .../NAME@REV"
        )
    owner, repository, revision = match.groups()
    folder = _place("huggingface", owner, name.partition("/")[2])
    if (folder / "config.json").is_file() and _has_weights(folder):
        return folder
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    base = f"{endpoint.rstrip('/')}/{owner}/{repository}/resolve/{revision or 'main'}"

    def fetch(file: str) -> Path:
        return download(f"{base}/{file}", folder / file)

    fetch("config.json")
    _first(fetch, ("preprocessor_config.json",))
    index = _first(fetch, INDEX[:1])
    if index is not None:
        for file in shards(index):
            fetch(file)
    elif _first(fetch, SINGLE) is None:
        raise WorkbenchError(f"{base} holds no weights: there is no {' and no '.join(SINGLE)}")
    return folder


def _first(fetch: Callable[[str], Path], files: Sequence[str]) -> Path | None:
    """Return the first of these files that the server has, None where it has none."""
    for file in files:
        try:
            return fetch(file)
        except _Absent:
            continue
    return None


def _has_weights(folder: Path) -> bool:
    index = next((folder / file for file in INDEX if (folder / file).is_file()), None)
    return (
        all((folder / file).is_file() for file in shards(index))
        if index
        else any((folder / file).is_file() for file in SINGLE)
    )
