"""Bundles: a release in one file, of which every byte has one right value.

A bundle is an uncompressed tar archive (POSIX.1-1988 "ustar") of regular files without directories:

    release.json        the manifest: states the SHA-256 of every other file
    release.json.sig    an OpenSSH signature of the manifest; missing where the bundle is not signed
    ...                 all others, sorted by name

Each header must be, byte for byte, the one that `header` makes of a name and a size; between the files there are
zeros, behind the last 1024 of them, and then nothing. So links, devices, long names, sparse files and whatever else
tar can say are no special cases, nothing is compressed that could swell, and no bit can change unnoticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from .bundle_parts import FORM_NOTE, parts_problem, requirement_problem
from .release_errors import BadBundle

MANIFEST = "release.json"
SIGNATURE = "release.json.sig"
SCHEMA_VERSION = 3
"""Form of a release's manifest. Before 3 it had no program, wheels and compiled form, and nobody judged what it
requires; before 2 it held one image input and one output."""
READABLE = (2, 3)
"""Forms that this version installs."""

MAX_FILES = 1000
MAX_BYTES = 4 * 2**30
MAX_MANIFEST_BYTES = 2**20
MAX_SIGNATURE_BYTES = 2**16
DIGEST_LENGTH = 32

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_READ_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,98}")
_NUM_DIGITS = 20
_BEGIN, _END_OF_ARMOR = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_ARMOR_WIDTH = 70


class Member(NamedTuple):
    """A file of a bundle: where its content begins, and its bytes."""

    name: str
    offset: int
    size: int


class Bundle(NamedTuple):
    """What the head of a bundle says.

    Attributes:
        manifest: As parsed and checked.
        text: Its bytes, which the signature is of.
        signature: None where there is none.
        members: All files but these two.
    """

    manifest: Dict[str, Any]
    text: bytes
    signature: Optional[bytes]
    members: Tuple[Member, ...]

    @property
    def digest(self) -> str:
        """Names the release."""
        return digest_of(self.text)

    @property
    def num_kept_bytes(self) -> int:
        """What its files take on a board, with the manifest; wheels are not kept as they are."""
        wheels = self.manifest.get("wheels", ())
        kept = sum(member.size for member in self.members if member.name not in wheels)
        return kept + len(self.text) + len(self.signature or b"")


def digest_of(text: bytes) -> str:
    """The digest that names a release: of its manifest, which states the digest of every file."""
    return hashlib.sha256(text).hexdigest()[:DIGEST_LENGTH]


def kept_files(manifest: Mapping[str, Any]) -> Dict[str, str]:
    """The digests of the files that a release on a board keeps and can't do without.

    Wheels become an environment (see `environment`); without its compiled form it has the model itself.
    """
    spare = {*manifest.get("wheels", ()), *((manifest["compiled"]["model"],) if manifest.get("compiled") else ())}
    return {name: sha256 for name, sha256 in manifest["files"].items() if name not in spare}


def header(name: str, size: int) -> bytes:
    """The one header that a file of this name and size may have (POSIX.1-1988, section 10.1.1)."""
    fields = [
        name.encode().ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0" * 2,  # owner and group
        b"%011o\0" % size,
        b"%011o\0" % 0,  # time
        b" " * 8,  # the checksum, counted as spaces
        b"0".ljust(101, b"\0"),  # a regular file, no link
        b"ustar\00000".ljust(72, b"\0"),
        b"0000000\0" * 2,  # device
    ]
    block = b"".join(fields).ljust(_BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def write_bundle(stream: BinaryIO, text: bytes, signature: Optional[bytes], files: Mapping[str, str]) -> None:
    """Writes a bundle; the same input gives the same bytes.

    Args:
        stream: Gets it.
        text: The manifest.
        signature: Of the manifest, or None.
        files: Paths of all other files, by name.
    """
    for name, content in ((MANIFEST, text), *(() if signature is None else ((SIGNATURE, signature),))):
        stream.write(header(name, len(content)) + content + _padding(len(content)))
    for name in sorted(files):
        size = os.path.getsize(files[name])
        stream.write(header(name, size))
        with open(files[name], "rb") as source:
            while block := source.read(_READ_BYTES):
                stream.write(block)
        stream.write(_padding(size))
    stream.write(_END)


def read_bundle(stream: BinaryIO) -> Bundle:
    """Reads and checks everything but the contents of the files, which `blocks_of` reads.

    Raises:
        BadBundle: It is none, or is not whole.
    """
    members = _members(stream)
    if not members or members[0].name != MANIFEST:
        raise BadBundle(f"the first file of the bundle is not {MANIFEST}; make it anew with `edgeship package`")
    text = _small(stream, members.pop(0), MAX_MANIFEST_BYTES)
    signature = None
    if members and members[0].name == SIGNATURE:
        signature = _small(stream, members.pop(0), MAX_SIGNATURE_BYTES)
        if signature != _armored(signature):
            raise BadBundle(f"{SIGNATURE} is not what `ssh-keygen -Y sign` writes: sign the bundle again")
    names = [member.name for member in members]
    if names != sorted(names) or len({name.lower() for name in (*names, MANIFEST, SIGNATURE)}) != len(names) + 2:
        raise BadBundle("the files of the bundle are not sorted, or one is there twice")
    manifest = parse_manifest(text)
    if set(manifest["files"]) != set(names):
        odd = sorted(set(manifest["files"]) ^ set(names))
        raise BadBundle(f"the bundle and its manifest name different files: {', '.join(odd[:5])}")
    return Bundle(manifest, text, signature, tuple(members))


def blocks_of(stream: BinaryIO, member: Member, sha256: str) -> Iterator[bytes]:
    """The content of a file.

    Raises:
        BadBundle: At its end, where the digest is another one.
    """
    digest, left = hashlib.sha256(), member.size
    stream.seek(member.offset)
    while left:
        block = stream.read(min(left, _READ_BYTES))
        if not block:
            raise BadBundle(f"the bundle ends within {member.name}")
        digest.update(block)
        left -= len(block)
        yield block
    if digest.hexdigest() != sha256:
        raise BadBundle(
            f"{member.name} has SHA-256 {digest.hexdigest()[:12]}…, not {sha256[:12]}… as the manifest states: "
            "the bundle is damaged"
        )


def parse_manifest(text: bytes) -> Dict[str, Any]:
    """Parses a manifest and checks what all readers rely on.

    Raises:
        BadBundle: It is none.
    """
    try:
        manifest = json.loads(
            text.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_short_int
        )
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{MANIFEST} can't be read: {error}") from error
    problem = _problem(manifest)
    if problem:
        raise BadBundle(f"{MANIFEST} is no manifest of a release: {problem}")
    checked: Dict[str, Any] = manifest
    return checked


def _members(stream: BinaryIO) -> List[Member]:
    """All files in their order, each header compared with the only right one."""
    end = stream.seek(0, os.SEEK_END)
    if end > MAX_BYTES or end % _BLOCK:
        raise BadBundle(f"a file of {end} bytes is no bundle: expected a multiple of {_BLOCK}, {MAX_BYTES} at most")
    members: List[Member] = []
    offset = 0
    while True:
        stream.seek(offset)
        block = stream.read(_BLOCK)
        if not any(block):
            break
        if len(members) == MAX_FILES:
            raise BadBundle(f"the bundle has more than {MAX_FILES} files")
        member = _member(block, offset + _BLOCK, end)
        members.append(member)
        offset = member.offset + member.size
        padding = _padding(member.size)
        stream.seek(offset)
        if stream.read(len(padding)) != padding:
            raise BadBundle(f"there is something behind {member.name} that does not belong there")
        offset += len(padding)
    stream.seek(offset)
    if end - offset != len(_END) or stream.read(len(_END)) != _END:
        raise BadBundle("the bundle is cut off, or something is appended to it")
    return members


def _member(block: bytes, offset: int, end: int) -> Member:
    name = block[:100].rstrip(b"\0").decode("ascii", errors="replace")
    if not _NAME.fullmatch(name):
        raise BadBundle(f"a file of the bundle is called {name!r:.120}; expected letters, digits, '.', '_' and '-'")
    digits = block[124:135]
    if not re.fullmatch(b"[0-7]{11}", digits):
        raise BadBundle(f"the size of {name} is no number")
    size = int(digits, 8)
    if block != header(name, size):
        raise BadBundle(f"the header of {name} is not that of a regular file as `edgeship package` writes it")
    if size > end - offset:
        raise BadBundle(f"the bundle ends within {name}")
    return Member(name, offset, size)


def _small(stream: BinaryIO, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise BadBundle(f"{member.name} has {member.size} bytes; allowed are {limit}")
    stream.seek(member.offset)
    return stream.read(member.size)


def _armored(signature: bytes) -> bytes:
    """The same signature as OpenSSH writes it (PROTOCOL.sshsig, "Armored format"); its reader is less strict."""
    lines = signature.split(b"\n")
    try:
        blob = base64.b64encode(base64.b64decode(b"".join(lines[1:-2]), validate=True))
    except ValueError:
        return b""
    wrapped = [blob[begin : begin + _ARMOR_WIDTH] for begin in range(0, len(blob), _ARMOR_WIDTH)]
    return b"\n".join([_BEGIN, *wrapped, _END_OF_ARMOR, b""])


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _distinct(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _short_int(text: str) -> int:
    if len(text) > _NUM_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _problem(manifest: Any) -> str:
    """What is wrong with a manifest, "" where nothing is."""
    if not isinstance(manifest, dict):
        return "it is no mapping"
    if manifest.get("schema_version") not in READABLE or isinstance(manifest["schema_version"], (bool, float)):
        expected = " or ".join(map(str, READABLE))
        return f"it has the form {manifest.get('schema_version')!r:.20}, expected {expected}: make it anew"
    for key in ("name", "target", "model"):
        if not isinstance(manifest.get(key), str) or not _NAME.fullmatch(manifest[key]):
            return f"{key} is {manifest.get(key)!r:.60}"
    return (
        _files_problem(manifest)
        or _golden_problem(manifest)
        or _limits_problem(manifest)
        or requirement_problem(manifest)
        or parts_problem(manifest)
    )


def _files_problem(manifest: Mapping[str, Any]) -> str:
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_NAME.fullmatch(name) for name in files):
        return "files does not name the files"
    if not all(isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in files.values()):
        return "files does not state the SHA-256 of each"
    if FORM_NOTE in files:
        return f"a file is called {FORM_NOTE}, which is the board's own"
    return "" if manifest["model"] in files else "the model is not among the files"


def _golden_problem(manifest: Mapping[str, Any]) -> str:
    for key in ("inputs", "outputs"):
        listed = manifest.get(key)
        if not isinstance(listed, list) or not listed:
            return f"{key} lists no golden samples"
        if not all(_is_golden(each, manifest["files"]) for each in listed):
            return f"{key} has an entry without a name, a file that is there, or a transform"
    tolerance = manifest.get("golden_tolerance")
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance <= 1:
        return f"golden_tolerance is {tolerance!r:.20}"
    return ""


def _is_golden(each: Any, files: Mapping[str, str]) -> bool:
    return (
        isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and isinstance(each.get("file"), str)
        and each["file"] in files
        and isinstance(each.get("transform"), (dict, type(None)))
    )


def _limits_problem(manifest: Mapping[str, Any]) -> str:
    budget = manifest.get("budget", {})
    if not isinstance(budget, dict) or not set(budget) <= {"latency_p50_ms", "latency_p99_ms"}:
        return "budget is not what is known as one"
    for key, limit in budget.items():
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
            return f"{key} is {limit!r:.20}"
    threads = manifest.get("threads", 1)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        return f"threads is {threads!r:.20}"
    return ""
