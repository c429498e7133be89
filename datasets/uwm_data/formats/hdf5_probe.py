"""Walks an HDF5 file that nobody trusts, in a process of its own, and tells what is in it: one JSON line an object.

The HDF5 library loops or dies on about one broken file in two thousand. This process may: it starts with a limit on memory, and
with a clock of processor time that each object winds up again, so a call that never ends is ended. Whoever started it then knows
that the file is bad, and that reading the attributes and datasets that are told here has worked once.

Runs as a script (order as JSON on stdin), so that it needs nothing of this package and starts fast.
"""

import itertools
import json
import math
import os
import posixpath
import resource
import signal
import sys

DEEPEST = 24  # groups below each other
MOST_OBJECTS = 1_000_000
MOST_TOLD = 16  # bytes told, or of text, for each byte of the file: more come only from one thing that stands in many places
MOST_CHUNK_BYTES = 256 << 20
HEAP_ENTRY_BYTES = 16  # what a dataset stores for a text that lies on the heap
TEXTS_AT_ONCE = 1000
NUMBERS = "biuf"


class Walk:
    """One walk over a file. `members` is how many links of a group are followed at most (None: all)."""

    def __init__(self, h5py, file, file_bytes, members, call_seconds):
        self.h5py = h5py
        self.file = file
        self.file_bytes = file_bytes
        self.members = members
        self.call_seconds = call_seconds
        # Deflate makes a byte into 1032 at most; what a filter chain of the library may hold is one of these.
        self.filters = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
        self.objects = 0
        self.most_told = MOST_TOLD * file_bytes + (1 << 20)

    def wind_up(self):
        """Give the next call of the library its full time."""
        signal.setitimer(signal.ITIMER_PROF, self.call_seconds)

    def tell(self, **line):
        """One line about one object."""
        self.most_told -= tell(**line)
        if self.most_told < 0:
            raise ValueError("more objects than a sound file of its size holds")

    def group(self, identity, path, above):
        """Tell a group, then everything in it."""
        names = list(itertools.islice(iter(self.h5py.Group(identity)), self.members))
        self.tell(path=path, group=names)
        self.attributes(self.h5py.Group(identity), path)
        for name in names:
            self.link(identity, name, posixpath.join(path, name), above)

    def link(self, parent, name, path, above):
        """Follow a hard link; tell a soft one; refuse the others, which lead out of the file."""
        self.wind_up()
        self.objects += 1
        if self.objects > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS} objects")
        raw = name.encode("utf-8", "surrogateescape")
        kind = parent.links.get_info(raw).type
        if kind == self.h5py.h5l.TYPE_SOFT:
            target = parent.links.get_val(raw).decode("utf-8", "surrogateescape")
            self.tell(path=path, soft=posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        elif kind != self.h5py.h5l.TYPE_HARD:
            self.tell(path=path, refused="a link that leaves the file")
        else:
            self.linked(self.h5py.h5o.open(parent, raw), path, above)

    def linked(self, identity, path, above):
        """Tell the object behind a hard link."""
        if isinstance(identity, self.h5py.h5g.GroupID):
            address = self.h5py.h5o.get_info(identity).addr
            if address in above or len(above) > DEEPEST:
                self.tell(path=path, refused="a group that contains itself, or groups too deep in each other")
            else:
                self.group(identity, path, {*above, address})
        elif isinstance(identity, self.h5py.h5d.DatasetID):
            told = self.dataset(identity)
            self.tell(path=path, **told)
            if "refused" not in told:
                self.attributes(self.h5py.Dataset(identity), path)
        else:
            self.tell(path=path, refused="a named datatype")

    def attributes(self, thing, path):
        """Read every attribute once."""
        told = {}
        for name in thing.attrs:
            self.wind_up()
            told[name] = self.attribute(thing, name)
        if told:
            self.tell(path=path, attributes=told)

    def attribute(self, thing, name):
        """ "" where an attribute is plain text or numbers, else why it is not read."""
        identity = thing.attrs.get_id(name)
        try:
            kind = identity.dtype
        except TypeError:
            return "a type that numpy does not have"
        text = self.h5py.check_string_dtype(kind) is not None
        if not text and kind.kind not in NUMBERS + "S":
            return f"{kind}: neither text nor plain numbers"
        thing.attrs[name]
        return ""

    def dataset(self, identity):
        """What a dataset is: {"shape", "dtype", "largest": bytes of its largest stored chunk}, or {"refused": why}."""
        try:
            kind = identity.dtype
        except TypeError:
            return {"refused": "a type that numpy does not have"}
        text = self.h5py.check_string_dtype(kind)
        if text is None and (kind.kind not in NUMBERS + "S" or (kind.itemsize > 8 and kind.kind != "S") or kind.subdtype):
            return {"refused": f"{kind}: neither plain numbers nor text"}
        space = identity.get_space()
        if space.get_simple_extent_type() == self.h5py.h5s.NULL:
            return {"refused": "an empty dataspace"}
        free_text = kind.kind == "O"
        stored = self.layout(identity, space.shape, HEAP_ENTRY_BYTES if free_text else kind.itemsize)
        if free_text and "refused" not in stored:
            dataset = self.h5py.Dataset(identity)
            self.texts(dataset) if dataset.shape else dataset[()]
        return {"shape": space.shape, "dtype": "text" if free_text else kind.str, **stored}

    def texts(self, dataset):
        """Read all texts once, a few at a time. They lie on the file's heap, where many entries may name one long text: ValueError."""
        most = MOST_TOLD * self.file_bytes
        for start in range(0, dataset.shape[0], TEXTS_AT_ONCE):
            self.wind_up()
            most -= sum(map(len, dataset[start : start + TEXTS_AT_ONCE].flat))
            if most < 0:
                raise ValueError("more text than a sound file of its size holds")

    def layout(self, identity, shape, item_bytes):
        """Whether what a dataset declares is really stored."""
        plan = identity.get_create_plist()
        declared = math.prod(shape) * item_bytes
        kind = plan.get_layout()
        if kind == self.h5py.h5d.CONTIGUOUS:
            return self.contiguous(identity, plan, declared)
        if kind == self.h5py.h5d.CHUNKED:
            return self.chunked(identity, plan, shape, item_bytes)
        return {"largest": 0} if kind == self.h5py.h5d.COMPACT else {"refused": "a virtual dataset, which reads other files"}

    def contiguous(self, identity, plan, declared):
        if plan.get_external_count():
            return {"refused": "external storage, which reads other files"}
        stored = identity.get_storage_size()
        if stored != declared:
            return {"refused": f"{declared} bytes are declared and {stored} stored"}
        if stored and not 0 < (identity.get_offset() or 0) <= self.file_bytes - stored:
            return {"refused": f"its {stored} bytes lie outside the file"}
        return {"largest": 0}

    def chunked(self, identity, plan, shape, item_bytes):
        filters = [plan.get_filter(number) for number in range(plan.get_nfilters())]
        unknown = [name.decode(errors="replace") or str(code) for code, _, _, name in filters if code not in self.filters]
        if unknown:
            return {"refused": f"packed with {unknown}; gzip, lzf, shuffle and fletcher32 are read"}
        chunk = plan.get_chunk()
        chunk_bytes = math.prod(chunk) * item_bytes
        if chunk_bytes > max(MOST_CHUNK_BYTES, math.prod(shape) * item_bytes):
            return {"refused": f"chunks of {chunk_bytes} bytes"}
        count, largest, outside = self.chunks(identity)
        expected = math.prod(-(-size // piece) for size, piece in zip(shape, chunk, strict=True))
        if outside or largest > 2 * chunk_bytes + (1 << 16):
            return {"refused": "chunks that lie outside the file or are larger than they can be"}
        if count < expected:
            return {"refused": f"{expected} chunks are declared and {count} stored"}
        if count and not filters and largest != chunk_bytes:
            return {"refused": f"chunks of {largest} bytes where {chunk_bytes} are declared"}
        return {"largest": largest if filters else 0}

    def chunks(self, identity):
        """(how many chunks are stored, bytes of the largest, whether one lies outside the file)."""
        count, largest, outside = 0, 0, False

        def one(info):
            nonlocal count, largest, outside
            if count % 1000 == 0:
                self.wind_up()
            count += 1
            largest = max(largest, info.size)
            outside |= info.byte_offset is None or info.byte_offset + info.size > self.file_bytes

        if identity.get_num_chunks():
            identity.chunk_iter(one)
        return count, largest, outside


def tell(**line):
    """Print one line; returns its length."""
    text = json.dumps(line)
    print(text)
    return len(text)


def limit(extra_bytes):
    """No more memory than now and `extra_bytes`; no core files."""
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + extra_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    known = [value for value in (most, soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main():
    """Do what stdin orders: {"paths", "members", "call_seconds", "extra_bytes", "sys_path"}."""
    order = json.load(sys.stdin)
    sys.path[:] = order["sys_path"]
    import h5py

    limit(order["extra_bytes"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for path in order["paths"]:
        tell(file=path)
        sys.stdout.flush()  # so that it is known which file a death belongs to
        look(h5py, path, order["members"], order["call_seconds"])


def look(h5py, path, members, call_seconds):
    """Walk one file; what the library says about a bad one is told and not raised."""
    signal.setitimer(signal.ITIMER_PROF, call_seconds)
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            walk = Walk(h5py, file, os.path.getsize(path), members, call_seconds)
            walk.group(file["/"].id, "", {h5py.h5o.get_info(file["/"].id).addr})
            walk.wind_up()
    except MemoryError:
        tell(error="it claims more memory than any sound file of its size needs")
    except Exception as error:  # noqa: BLE001
        tell(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
