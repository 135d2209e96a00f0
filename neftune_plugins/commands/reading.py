"""Read configuration files for `neftune check`: any file, in bounded time and memory, with the line of each key.

The frameworks' own readers do not fit: they expand aliases without a limit, and do not report the keys that they drop.
"""

import dataclasses
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from neftune_plugins.config import Place
from neftune_plugins.errors import NEFTuneError

LARGEST = 256 * 1024  # bytes of a file
MOST = 100_000  # values in it, with those that aliases repeat
DEEPEST = 100  # levels of nesting

_EXPONENT = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+")
_COLLECTIONS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "set", "omap", "pairs")}
_MERGE = "tag:yaml.org,2002:merge"


class CannotReadError(NEFTuneError):
    """A file cannot be read as a configuration; the message has the problem and the remedy.

    status: exit status of the command: 1 if the content is wrong, 2 if the file has no configuration to check.
    line: line of the problem, from 1; None if it is not known.
    """

    def __init__(self, message: str, *, status: int = 1, line: int | None = None) -> None:
        super().__init__(message.replace("\n", "\\n").replace("\r", "\\r"))  # a key's name may have line breaks
        self.status, self.line = status, line


@dataclasses.dataclass(frozen=True)
class Entry:
    """A key of a file at one place. A key that an alias or a merge repeats has an entry for each place.

    place: path of the key from the top level, including its own name.
    line: line that contains the key, from 1.
    mark: offset of the key in the file, in characters, which distinguishes two keys of one line.
    value: the value of the key.
    lost: whether the key has no effect, because it or one of its parents is repeated later in the same mapping.
    again: line of that repetition; None if the key itself is not repeated.
    """

    place: Place
    line: int
    mark: int
    value: Any
    lost: bool = False
    again: int | None = None

    @property
    def name(self) -> str:
        return str(self.place[-1])


@dataclasses.dataclass(frozen=True)
class Source:
    """A configuration file that was read.

    config: its content.
    entries: its keys in the order of the file, including lost ones.
    lines: the line of each key that is not lost, and of each list item, from 1.
    """

    config: Mapping[Any, Any]
    entries: list[Entry]
    lines: dict[Place, int]


def read(file: Path, *, exponents: bool = False) -> Source:
    """Read a YAML or JSON file. Raises CannotReadError.

    exponents: whether to read 1e5 as a number, as YAML 1.2 does.
    """
    root = _Composer(_text(file), exponents=exponents).root()
    values = _Values()
    source = Source(values.of(root), [], {})
    source.entries.extend(_entries(root, (), values, source.lines, lost=False))
    return source


def _text(file: Path) -> str:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise CannotReadError(f"this is {kind}; give a configuration file, in YAML or JSON", status=2)
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except FileNotFoundError:
        raise CannotReadError("there is no such file; check the name and the folder", status=2) from None
    except PermissionError:
        raise CannotReadError("there is no permission to read this file; change it with chmod u+r", status=2) from None
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotReadError(f"the file cannot be read: {problem}; check its name", status=2) from None
    if len(data) > LARGEST:
        problem = f"the file is larger than {LARGEST // 1024} KiB, too large for a configuration; check the file's name"
        raise CannotReadError(problem, status=2)
    return _decoded(data, file)


def _decoded(data: bytes, file: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CannotReadError("the text is in UTF-16; the frameworks read UTF-8: save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"the text is not in UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        raise CannotReadError(problem, line=line) from None
    if not text.strip("\ufeff \t\r\n"):
        raise CannotReadError("the file is empty; a configuration has keys with values", status=2)
    # YAML reads JSON, except for tabs, which JSON allows outside strings only.
    return text.replace("\t", " ") if file.suffix == ".json" else text


class _Composer:
    """Builds the nodes of a YAML document from its events, without recursion. An alias refers to the node of its
    anchor, so no node is built twice."""

    def __init__(self, text: str, *, exponents: bool) -> None:
        self._text, self._exponents = text, exponents
        self._anchors: dict[str, Any] = {}
        self._open: list[Any] = []
        self._sizes: dict[
            int, tuple[int, int]
        ] = {}  # by id of a finished node: values and levels with aliases expanded
        self._root: Any = None

    def root(self) -> Any:
        """Return the document's node, which is a mapping."""
        documents = 0
        try:
            self._loader = yaml.SafeLoader(self._text)
            events = 0
            while self._loader.check_event():
                event = self._loader.get_event()
                events += 1
                if events > 2 * MOST:
                    raise CannotReadError(
                        f"the file has more than {MOST} values, too many for a configuration; check the file's name",
                        status=2,
                    )
                documents += isinstance(event, yaml.DocumentStartEvent)
                if documents > 1:
                    problem = "a second YAML document begins here, but a configuration is a single one; remove the ---"
                    raise CannotReadError(problem, line=_line(event))
                self._take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = None if mark is None else mark.line + 1
            raise CannotReadError(
                f"this is not YAML: {error.problem}; correct the line, or quote its value", line=line
            ) from None
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            problem = f"this is not text: it has the character U+{error.character:04X}; take it out"
            raise CannotReadError(problem, line=line) from None
        if self._root is None:
            raise CannotReadError("the file has only comments; write keys with values", status=2)
        if not isinstance(self._root, yaml.MappingNode):
            kind = "a list" if isinstance(self._root, yaml.SequenceNode) else "a single value"
            raise CannotReadError(
                f"the file holds {kind}; a configuration has keys with values", line=_line(self._root)
            )
        return self._root

    def _take(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._add(self._anchored(event))
        elif isinstance(event, yaml.ScalarEvent):
            node = yaml.ScalarNode(self._tag(event), event.value, event.start_mark, event.end_mark, style=event.style)
            self._finish(self._named(event, node))
        elif isinstance(event, yaml.CollectionStartEvent):
            kind = yaml.MappingNode if isinstance(event, yaml.MappingStartEvent) else yaml.SequenceNode
            tag = self._loader.resolve(kind, None, event.implicit) if event.tag in (None, "!") else event.tag
            node = self._named(event, kind(tag, [], event.start_mark, None))
            node.key = None
            self._open.append(node)
            _stop_if_deep(node, len(self._open))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._finish(self._open.pop())

    def _named(self, event: Any, node: Any) -> Any:
        if event.anchor is not None:
            if event.anchor in self._anchors:
                raise CannotReadError(f"the anchor &{event.anchor} is defined twice; rename one", line=_line(event))
            self._anchors[event.anchor] = node
        return node

    def _anchored(self, event: Any) -> Any:
        node = self._anchors.get(event.anchor)
        if node is None:
            problem = (
                f"there is no anchor &{event.anchor} above this alias *{event.anchor}; quote the value if it is text"
            )
            raise CannotReadError(problem, line=_line(event))
        if id(node) not in self._sizes:
            problem = (
                f"the alias *{event.anchor} is inside the value that it refers to, which would never end; write it out"
            )
            raise CannotReadError(problem, line=_line(event))
        return node

    def _finish(self, node: Any) -> None:
        children = node.value if isinstance(node.value, list) else []
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in children for one in pair]
        sizes = [self._sizes[id(child)] for child in children]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > MOST:
            problem = f"this has more than {MOST} values, aliases expanded; a configuration has fewer: take some out"
            raise CannotReadError(problem, line=_line(node))
        _stop_if_deep(node, depth)
        self._sizes[id(node)] = size, depth
        self._add(node)

    def _add(self, node: Any) -> None:
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        if isinstance(parent, yaml.SequenceNode):
            parent.value.append(node)
        elif parent.key is None:
            if not isinstance(node, yaml.ScalarNode):
                kind = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
                problem = f"a {kind} is used as a key; write a name before the colon, and quote braces or brackets"
                raise CannotReadError(problem, line=_line(node))
            parent.key = node
        else:
            parent.value.append((parent.key, node))
            parent.key = None

    def _tag(self, event: Any) -> str:
        if event.tag not in (None, "!"):
            return str(event.tag)
        tag = str(self._loader.resolve(yaml.ScalarNode, event.value, event.implicit))
        if self._exponents and tag.endswith(":str") and event.implicit[0] and _EXPONENT.fullmatch(event.value):
            return "tag:yaml.org,2002:float"
        return tag


class _Values:
    """The values of nodes. A node that has aliases is converted once."""

    def __init__(self) -> None:
        self._loader = yaml.SafeLoader("")
        self._made: dict[int, Any] = {}

    def of(self, node: Any) -> Any:
        if id(node) not in self._made:
            self._made[id(node)] = self._new(node)
        return self._made[id(node)]

    def _new(self, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in _COLLECTIONS:
            raise CannotReadError(f"the YAML tag {node.tag} is not supported; take it out", line=_line(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.of(child) for child in node.value]
        return {self._scalar(key): self.of(value) for key, value in pairs(node)}

    def _scalar(self, node: Any) -> Any:
        try:
            return self._loader.construct_object(node)
        except yaml.MarkedYAMLError:
            raise CannotReadError(f"the YAML tag {node.tag} is not supported; take it out", line=_line(node)) from None
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError):
            kind = node.tag.rpartition(":")[2]
            problem = f"{node.value[:40]!r} is not a valid {kind}, but YAML reads it as one; quote it if it is text"
            raise CannotReadError(problem, line=_line(node)) from None


def pairs(node: Any) -> list[tuple[Any, Any]]:
    """The pairs of a mapping's node. Merged pairs (`<<`) come first, so that the mapping's own pairs replace them."""
    merged: list[tuple[Any, Any]] = []
    own = []
    for key, value in node.value:
        if key.tag != _MERGE:
            own.append((key, value))
            continue
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for source in reversed(sources):  # of several merged mappings the first wins
            if not isinstance(source, yaml.MappingNode):
                raise CannotReadError(
                    "<< merges a value that is not a mapping; give a mapping, or an alias of one", line=_line(key)
                )
            merged += pairs(source)
    return [*merged, *own]


def _entries(node: Any, place: Place, values: _Values, lines: dict[Place, int], *, lost: bool) -> Iterator[Entry]:
    """The entries below a node at a place. Also adds their lines to `lines`."""
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            if not lost:
                lines[*place, number] = _line(child)
            yield from _entries(child, (*place, number), values, lines, lost=lost)
    elif isinstance(node, yaml.MappingNode):
        found = pairs(node)
        last = {key.value: key for key, _ in found}
        own = {id(key) for key, _ in node.value}
        for key, value in found:
            here, again = (*place, key.value), None if last[key.value] is key else _line(last[key.value])
            gone = lost or again is not None
            if gone and id(key) not in own:
                continue  # overriding a merged key is intended
            if not gone:
                lines[here] = _line(key)
            yield Entry(here, _line(key), key.start_mark.index, values.of(value), gone, again)
            yield from _entries(value, here, values, lines, lost=gone)


def _stop_if_deep(node: Any, depth: int) -> None:
    if depth > DEEPEST:
        problem = f"more than {DEEPEST} levels of nesting; a configuration has fewer: take some out"
        raise CannotReadError(problem, line=_line(node))


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
