"""The zip archives that ``torch.save`` writes, read strictly: what two readers could take for different files is refused."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.refusals import Deadline, damaged, refuse_above

_BLOCK = 1 << 20  # bytes read at once
_PER_DIRECTORY_BYTE = 128  # bytes of memory: 1.4 million members at the stated bound
_ABSENT = 0xFFFFFFFF  # a size or place that stands in the 64-bit part instead
_STORED, _DEFLATED = 0, 8
_FOLDER = 0x10  # an attribute
_ENCRYPTED = 0x2041  # flags of the three kinds of encryption

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: where its own header lies, its bytes as they lie there and as they are meant."""

    name: bytes
    place: int
    packed: int
    size: int
    deflated: bool
    folder: bool


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """The members of a zip archive by the names that torch gives them: without the folder that they all lie in."""

    file: BinaryIO
    members: dict[bytes, Member]
    folder: bytes

    @classmethod
    def open(cls, file: BinaryIO, size: int) -> Archive:
        """The archive in a file of ``size`` bytes.

        Raises `ModelFormatError` for a damaged one, and for one that is read differently by different programs: two members
        of one name, or of names that differ in case only, bytes before or after it, a name that its own header contradicts,
        members in several folders. Members that are folders themselves are as good as absent: torch takes their content from
        memory that nobody has filled.
        """
        members, count = _members(file, size)
        folders = {member.name.partition(b"/")[0] + b"/" for member in members.values()}
        if len(members) != count or len(folders) != 1:
            raise damaged(f"a zip archive of {count} members that lists {len(members)} in {len(folders)} folders")
        files = {name: member for name, member in members.items() if not member.folder}
        return cls(file, files, folders.pop().lower())

    def find(self, name: str) -> Member | None:
        """The member of that name, which torch writes inside a folder."""
        return self.members.get(self.folder + name.encode("utf-8", "surrogatepass").lower())

    def fill(self, member: Member, target: memoryview, deadline: Deadline) -> None:
        """Put the content into ``target``, which has exactly the size that the archive lists."""
        self.file.seek(member.place)
        local = self.file.read(_LOCAL.size)
        if len(local) < _LOCAL.size or local[:4] != b"PK\x03\x04":
            raise damaged(f"no header before {_shown(member.name)}")
        name_length, extra_length = _LOCAL.unpack(local)[-2:]
        if self.file.read(name_length) != member.name:
            raise damaged(f"another name in the header of {_shown(member.name)}")
        self.file.seek(extra_length, 1)
        if member.deflated:
            _inflate(self.file, member, target, deadline)
        else:
            fill(self.file, target, deadline)

    def content(self, member: Member, deadline: Deadline) -> bytes:
        """All of a member that is small, or has been found to be small enough."""
        found = bytearray(member.size)
        self.fill(member, memoryview(found), deadline)
        return bytes(found)


def fill(file: BinaryIO, target: memoryview, deadline: Deadline) -> None:
    """Read from where the file stands until ``target`` is full. Raises `ModelFormatError` if the file ends before."""
    at = 0
    while at < len(target):
        deadline.check()
        got = file.readinto(target[at : at + _BLOCK])  # type: ignore[attr-defined]  # every open file has it
        if not got:
            raise damaged("the file ends within a tensor")
        at += got


def names_in(file: BinaryIO, size: int) -> frozenset[str]:
    """The names of an archive's members without the first folder; none if it cannot be read, which its format is to say."""
    try:
        members, _ = _members(file, size)
    except ModelFormatError:
        return frozenset()
    names = (name.decode("utf-8", "replace") for name in members)
    return frozenset(name.partition("/")[2] or name for name in names)


def _members(file: BinaryIO, size: int) -> tuple[dict[bytes, Member], int]:
    """Members by name in small letters, and how many the archive says it has."""
    start, length, count = _directory(file, size)
    refuse_above(length * _PER_DIRECTORY_BYTE, "its list of members")
    file.seek(start)
    listed = file.read(length)
    members: dict[bytes, Member] = {}
    at = 0
    while at < length:
        member, at = _entry(listed, at, start)
        if members.setdefault(member.name.lower(), member) is not member:
            raise damaged(f"two members named {_shown(member.name)}")
    return members, count


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the list of members begins, its length and the number of its entries."""
    at = size - _END.size
    if at < 0:
        raise damaged("not a whole zip archive")
    signature, *disks, count, length, start, comment = _unpacked(_END, file, at)
    if signature != b"PK\x05\x06" or comment:
        raise damaged("not a whole zip archive, or something follows it")
    disk, directory_disk, count_here = disks
    locator = at - _LOCATOR.size
    if locator >= 0:
        mark, disk_64, place, _ = _unpacked(_LOCATOR, file, locator)
        if mark == b"PK\x06\x07":
            at = locator - _END_64.size
            if at < 0 or place != at or disk_64:
                raise damaged("a zip archive with its end in another place")
            mark, _, _, _, disk, directory_disk, count_here, count, length, start = _unpacked(_END_64, file, at)
            if mark != b"PK\x06\x06":
                raise damaged("a zip archive without its end")
    if disk or directory_disk or count_here != count or start + length != at:
        raise damaged("a zip archive in parts, or with bytes between them")
    return start, length, count


def _entry(listed: bytes, at: int, end: int) -> tuple[Member, int]:
    """The member listed there, and where the next entry begins; ``end`` is where contents have to end."""
    if at + _ENTRY.size > len(listed):
        raise damaged("the list of members is cut off")
    entry = _ENTRY.unpack_from(listed, at)
    signature, (flags, method), (attributes, place) = entry[0], entry[3:5], entry[15:]
    packed, size, name_length, extra_length, comment_length, disk = entry[8:14]
    name_end = at + _ENTRY.size + name_length
    extra_end = name_end + extra_length
    name = listed[at + _ENTRY.size : name_end]
    if signature != b"PK\x01\x02" or disk or extra_end + comment_length > len(listed) or not name or b"\0" in name:
        raise damaged("the list of members cannot be read")
    size, packed, place = _wide((size, packed, place), listed[name_end:extra_end])
    if method not in {_STORED, _DEFLATED} or flags & _ENCRYPTED:
        raise damaged(f"{_shown(name)} is encrypted, or packed in a way that torch does not read")
    if (method == _STORED and packed != size) or place + _LOCAL.size + packed > end:
        raise damaged(f"the sizes of {_shown(name)} contradict each other")
    folder = name.endswith(b"/") or bool(attributes & _FOLDER)
    return Member(name, place, packed, size, method == _DEFLATED, folder), extra_end + comment_length


def _wide(numbers: tuple[int, int, int], extra: bytes) -> list[int]:
    """Sizes and place, taken from the 64-bit part of an entry where the 32-bit one has no room."""
    wide = b""
    while len(extra) >= 4 and not wide:
        kind, length = struct.unpack_from("<2H", extra)
        wide, extra = extra[4 : 4 + length] if kind == 1 else b"", extra[4 + length :]
    found = []
    for number in numbers:
        absent = number == _ABSENT and len(wide) >= 8
        found.append(int.from_bytes(wide[:8], "little") if absent else number)
        wide = wide[8:] if absent else wide
    return found


def _inflate(file: BinaryIO, member: Member, target: memoryview, deadline: Deadline) -> None:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed, at, pending = member.packed, 0, b""
    try:
        while not inflater.eof:
            deadline.check()
            if not pending:
                pending = file.read(min(packed, _BLOCK))
                packed -= len(pending)
            piece = inflater.decompress(pending, min(len(target) - at, _BLOCK) or 1)
            if at + len(piece) > len(target) or not (piece or inflater.eof or pending != inflater.unconsumed_tail):
                break
            target[at : at + len(piece)] = piece
            at, pending = at + len(piece), inflater.unconsumed_tail
    except zlib.error:
        at = -1
    if at != len(target) or not inflater.eof:
        raise damaged(f"{_shown(member.name)} cannot be unpacked to the size that the archive lists")


def _unpacked(layout: struct.Struct, file: BinaryIO, at: int) -> tuple[Any, ...]:
    file.seek(at)
    return layout.unpack(file.read(layout.size))


def _shown(name: bytes) -> str:
    return name[-60:].decode("utf-8", "replace")
