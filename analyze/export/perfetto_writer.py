"""A writer of traces for ui.perfetto.dev: tracks, and events in bulk, in Perfetto's own protocol buffers.

Fields are numbered as in protos/perfetto/trace/ of google/perfetto (trace_packet.proto, track_event/*.proto,
interned_data/interned_data.proto); what is written follows "Writing traces with track events" of its documentation. A
test holds every packet against the schema that Perfetto's own Python package ships.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analyze.export.protobuf import Part, integers, message, packed_rows, text

__all__ = ["BEGIN", "COUNTER", "END", "INSTANT", "Events", "Writer"]

BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4
"""TrackEvent.Type."""

_SEQUENCE = 1
_CLEARED, _NEEDS = 1, 2
"""TracePacket.SequenceFlags."""
_BYTES, _COUNT = 3, 2
"""CounterDescriptor.Unit."""

BATCH_ROWS = 1 << 14

Column = npt.NDArray[np.unsignedinteger] | npt.NDArray[np.signedinteger]


@dataclass
class Events:
    """Events of one kind, an array cell each; times in nanoseconds, in any order of time.

    Attributes:
        track: id of each event's track, as `Writer` gave it.
        name: interned texts (dictionary column), None for ends and counters.
        value: of counters.
        place: where each stands among all events that are written with it, ascending; needed where several kinds are.
        numbers, addresses, texts: arguments; addresses are shown in hexadecimal, texts are dictionary columns.
    """

    kind: int
    ts_ns: npt.NDArray[np.int64]
    track: npt.NDArray[np.int64]
    name: pa.DictionaryArray | None = None
    value: npt.NDArray[np.int64] | None = None
    place: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    numbers: dict[str, Column] = field(default_factory=dict)
    addresses: dict[str, npt.NDArray[np.uint64]] = field(default_factory=dict)
    texts: dict[str, pa.DictionaryArray] = field(default_factory=dict)


class Writer:
    """Writes packets to `file` as it is told, one sequence of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tracks = 0
        self._names: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._values: dict[str, int] = {}
        self._packet([integers(13, _CLEARED), integers(87, 1)])

    def track(self, name: str, parent: int = 0) -> int:
        """A track of slices and instants, or one that holds other tracks; returns its id."""
        return self._described(parent, [text(2, name)])

    def counter(self, name: str, parent: int, *, is_bytes: bool = False) -> int:
        """A track of a counter."""
        return self._described(parent, [text(2, name), message(8, integers(3, _BYTES if is_bytes else _COUNT))])

    def thread(self, pid: int, tgid: int, name: str) -> int:
        """The track of a thread; those of one process stand together."""
        named = [integers(1, _int32(tgid)), integers(2, _int32(pid)), text(5, name)]
        return self._described(0, [message(4, *named)])

    def process(self, tgid: int, name: str) -> int:
        """The track of a process, which gives it its name."""
        return self._described(0, [message(3, integers(1, _int32(tgid)), text(6, name))])

    def write(self, *kinds: Events) -> None:
        """Append events, a batch at a time; several kinds of them interleaved by their `place`.

        Perfetto sorts by time and leaves what happened at the same time in the order of the file.
        """
        if len(kinds) == 1:
            (events,), rows = kinds, self._rows(kinds[0])
            for begin in range(0, len(events.ts_ns), BATCH_ROWS):
                self._file.write(rows(begin, min(begin + BATCH_ROWS, len(events.ts_ns))).tobytes())
            return
        makers = [self._rows(events) for events in kinds]
        for begin in range(0, sum(len(events.ts_ns) for events in kinds), BATCH_ROWS):
            places, parts = [], []
            for events, make in zip(kinds, makers, strict=True):
                low, high = np.searchsorted(events.place, [begin, begin + BATCH_ROWS]).tolist()
                places.append(events.place[low:high] - begin)
                parts.append(make(low, high))
            self._file.write(_interleaved(places, parts))

    def _rows(self, events: Events) -> Callable[[int, int], npt.NDArray[np.uint8]]:
        """A function that renders the events from one index to another as rows; interned texts are written now."""
        key = {
            name: self._intern(self._keys, 3, [name])[0] for name in [*events.numbers, *events.addresses, *events.texts]
        }
        names = self._iids(self._names, 2, events.name) if events.name is not None else None
        texts = {name: self._iids(self._values, 29, column) for name, column in events.texts.items()}
        arguments = [(key[name], 3, column) for name, column in events.numbers.items()]
        arguments += [(key[name], 7, column) for name, column in events.addresses.items()]
        arguments += [(key[name], 17, column) for name, column in texts.items()]

        def render(begin: int, end: int) -> npt.NDArray[np.uint8]:
            part = slice(begin, end)
            fields = [message(4, integers(1, iid), integers(number, column[part])) for iid, number, column in arguments]
            fields += [integers(9, events.kind), integers(11, events.track[part])]
            if names is not None:
                fields.append(integers(10, names[part]))
            if events.value is not None:
                fields.append(integers(30, events.value[part]))
            packet = [
                integers(8, events.ts_ns[part]),
                integers(10, _SEQUENCE),
                integers(13, _NEEDS),
                message(11, *fields),
            ]
            return packed_rows(message(1, *packet), end - begin)

        return render

    def _described(self, parent: int, fields: Sequence[Sequence[Part]]) -> int:
        self._tracks += 1
        above = [integers(5, parent)] if parent else []
        self._packet([message(60, integers(1, self._tracks), *above, *fields)])
        return self._tracks

    def _iids(self, known: dict[str, int], kind: int, column: pa.DictionaryArray) -> npt.NDArray[np.int64]:
        """Interned id of each cell."""
        of = np.array([0, *self._intern(known, kind, column.dictionary.to_pylist())], np.int64)[1:]
        return of[column.indices.to_numpy(zero_copy_only=False)] if len(of) else np.zeros(len(column), np.int64)

    def _intern(self, known: dict[str, int], kind: int, texts: Sequence[str]) -> list[int]:
        """Ids of texts; new ones are written first. `kind`: a field of InternedData."""
        for one in texts:
            if one not in known:
                known[one] = len(known) + 1
                self._packet([integers(13, _NEEDS), message(12, message(kind, integers(1, known[one]), text(2, one)))])
        return [known[one] for one in texts]

    def _packet(self, fields: Sequence[Sequence[Part]]) -> None:
        self._file.write(packed_rows(message(1, integers(10, _SEQUENCE), *fields)).tobytes())


def _interleaved(places: list[npt.NDArray[np.int64]], parts: list[npt.NDArray[np.uint8]]) -> bytes:
    """Rows of several lengths, each at its place of all."""
    lengths = np.zeros(sum(map(len, places)), np.int64)
    for place, rows in zip(places, parts, strict=True):
        lengths[place] = rows.shape[1]
    begin = np.cumsum(lengths) - lengths
    out = np.empty(int(lengths.sum()), np.uint8)
    for place, rows in zip(places, parts, strict=True):
        out[begin[place][:, None] + np.arange(rows.shape[1])] = rows
    return out.tobytes()


def _int32(value: int) -> int:
    return value & 0x7FFF_FFFF
