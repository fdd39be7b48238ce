"""Write a signed image to a disk: stream, check every chunk before it is written, read every chunk back.

The disk must not boot a torn image: the first chunk, which holds the partition table, is zeroed first and written last.
Memory is a handful of chunks. Fetching and decoding run in a thread beside hashing and writing.
"""

import os
import queue
import threading
import time
from hashlib import sha256

from freehold.agent.blockdev import BlockDevice, claim_disk, new_buffer
from freehold.agent.errors import AgentError
from freehold.agent.manifest import ZERO, Manifest
from freehold.agent.wire import Connection, WireError, target_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from typing import Any

    Progress = Callable[[int, int, str], None]
    Slot = tuple[int, mmap.mmap] | BaseException

AHEAD = 4  # chunks fetched before they are asked for
WINDOW_BYTES = 16 << 20  # written, flushed and then read back together
SAMPLE_BYTES = 4096
FETCH_ATTEMPTS = 6  # in a row without a single byte of progress
BACKING_DISK_TAIL = 1 << 20  # an old backup GPT lives in the last sectors


class Download:
    """The bytes of the ranges of one URL, in order, as a stream. A broken connection resumes at the byte it broke."""

    def __init__(self, url: str, ranges: list[tuple[int, int]], *, pause: float = 0.5) -> None:
        self._connection, self._target = Connection(url), target_of(url)
        self._url, self._ranges, self._pause = url, list(ranges), pause
        self._response: Any = None
        self._closed = False
        self.resumed = 0

    def readinto(self, view: memoryview) -> int:
        """Fill part of the view; 0 only at the end of the last range. AgentError when the server stays away."""
        failures = 0
        while self._ranges:
            offset, length = self._ranges[0]
            if length == 0:
                self._ranges.pop(0)
                self._response = None
                continue
            try:
                if self._response is None:
                    self._response = self._open(offset, length)
                got: int = self._response.readinto(view[:length])
                if got == 0:
                    raise WireError("the server sent less than it promised")
            except OSError as error:
                failures += 1
                self._response = None
                self._connection.close()
                if self._closed or failures >= FETCH_ATTEMPTS:
                    raise AgentError(
                        f"{self._url}: {error} (at byte {offset}, {failures} attempts)",
                        remedy="check the boot server and the provisioning network; the write starts again from there",
                    ) from error
                print(f"freehold-agent: image download broke at byte {offset} ({error}): trying again", flush=True)
                self.resumed += 1
                time.sleep(self._pause * 2 ** (failures - 1))
                continue
            self._ranges[0] = (offset + got, length - got)
            return got
        return 0

    def close(self) -> None:
        """Make a blocked reader give up."""
        self._closed = True
        self._connection.close()

    def _open(self, offset: int, length: int) -> "Any":
        response = self._connection.request(
            "GET", self._target, headers={"Range": f"bytes={offset}-{offset + length - 1}"}
        )
        promised = response.headers.get("content-range", "")
        if response.status != 206 or not promised.startswith(f"bytes {offset}-{offset + length - 1}/"):
            self._connection.close()
            raise AgentError(
                f"{self._url}: asked for {length} bytes at {offset}, got HTTP {response.status} {promised}",
                remedy="publish the image on the boot server again; its file does not fit the manifest",
            )
        return response


class ZstdStream:
    """Decodes a stream of concatenated zstd frames (one a chunk) by one `zstd` process, fed by a thread."""

    def __init__(self, source: Download) -> None:
        import subprocess

        try:
            self._process = subprocess.Popen(
                ["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise AgentError("zstd is not in the agent's image", remedy="rebuild the agent's image") from error
        self._source = source
        self._failure: Exception | None = None
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()

    def readinto(self, view: memoryview) -> int:
        """Decoded bytes; 0 at the end. The download's failure is raised here; zstd's own shows as an early end."""
        got: int = self._process.stdout.readinto(view)  # type: ignore[union-attr]
        if got == 0:
            self._feeder.join()
            if self._failure is not None:
                raise self._failure
        return got

    def complaint(self) -> str:
        """What zstd said when it gave up."""
        return self._process.stderr.read().decode(errors="replace").strip()  # type: ignore[union-attr]

    def close(self) -> None:
        """End the process and the feeder."""
        self._source.close()
        self._process.kill()
        self._process.wait()
        self._feeder.join(timeout=5)
        for pipe in (self._process.stdout, self._process.stderr):
            pipe.close()  # type: ignore[union-attr]

    def _feed(self) -> None:
        buffer = memoryview(bytearray(1 << 18))
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while got := self._source.readinto(buffer):
                pipe.write(buffer[:got])
        except BrokenPipeError:
            return  # zstd gave up: its exit shows in readinto
        except Exception as error:
            self._failure = error
        finally:
            try:
                pipe.close()
            except BrokenPipeError:
                return


class ChunkReader:
    """Reads data chunks ahead in a thread, into page-aligned buffers that go round."""

    def __init__(self, manifest: Manifest, source: "Download | ZstdStream", buffers: int) -> None:
        self._manifest, self._source = manifest, source
        self._free: queue.Queue[mmap.mmap | None] = queue.Queue()
        self._full: queue.Queue[Slot] = queue.Queue()
        for _ in range(buffers):
            self._free.put(new_buffer(manifest.chunk_size))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self) -> "tuple[int, mmap.mmap]":
        """The next data chunk's index and buffer; a failure of the source is raised here."""
        slot = self._full.get()
        if isinstance(slot, BaseException):
            raise slot
        return slot

    def give_back(self, buffer: "mmap.mmap") -> None:
        """The buffer may be filled again."""
        self._free.put(buffer)

    def close(self) -> None:
        """Stop the thread, whatever it waits for."""
        self._free.put(None)
        self._source.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            for index in self._manifest.data_chunks():
                buffer = self._free.get()
                if buffer is None:
                    return
                _, length = self._manifest.extent(index)
                view, at = memoryview(buffer)[:length], 0
                while at < length:
                    got = self._source.readinto(view[at:])
                    if got == 0:
                        complaint = self._source.complaint() if isinstance(self._source, ZstdStream) else "stream ended"
                        raise bad_chunk(self._manifest, index, f"nothing decodable after {at} bytes ({complaint})")
                    at += got
                self._full.put((index, buffer))
        except Exception as error:
            self._full.put(error)


class ReadBack:
    """Compares what the drive returns with what was written: each chunk in full, byte by byte, once it is flushed and
    while it is still in memory, which is as strict as hashing it again and costs a tenth. At the end a random block of
    every chunk is read once more: a drive that wraps its addresses shows only when all is written.
    """

    def __init__(self, device: BlockDevice, manifest: Manifest) -> None:
        self._device, self._manifest = device, manifest
        self._buffer, self._zeros = new_buffer(manifest.chunk_size), bytearray(manifest.chunk_size)
        self._samples: list[tuple[int, int, bytes]] = []  # chunk, offset on the disk, SHA-256 of the block
        self.seconds = 0.0

    def chunks(self, written: "list[tuple[int, mmap.mmap]]") -> None:
        """Flush, then compare these chunks with their buffers."""
        began = time.monotonic()
        self._device.flush()
        for index, buffer in written:
            offset, length = self._manifest.extent(index)
            expected, view = memoryview(buffer)[:length], memoryview(self._buffer)[:length]
            self._device.read_into(view, offset)
            if bytearray(expected) != view:  # of two memoryviews, Python would compare item by item
                raise bad_chunk(self._manifest, index, sha256(view).hexdigest(), "on the disk")
            at = int.from_bytes(os.urandom(4), "little") % -(-length // SAMPLE_BYTES) * SAMPLE_BYTES
            self._samples.append((index, offset + at, sha256(expected[at : at + SAMPLE_BYTES]).digest()))
        self.seconds += time.monotonic() - began

    def finish(self, progress: "Progress") -> None:
        """When all is written: the chunks of zeros, which no buffer holds, in full, and the samples of the others."""
        began, manifest = time.monotonic(), self._manifest
        self._device.drop_cache()
        for index, digest in enumerate(manifest.chunks):
            if digest == ZERO:
                offset, length = manifest.extent(index)
                view = memoryview(self._buffer)[:length]
                self._device.read_into(view, offset)
                if self._zeros[:length] != view:
                    raise bad_chunk(manifest, index, f"data with SHA-256 {sha256(view).hexdigest()}", "on the disk")
                progress(offset + length, manifest.size, "verify")
        for index, at, expected in self._samples:
            found = self._device.read(at, min(SAMPLE_BYTES, manifest.size - at))
            if sha256(found).digest() != expected:
                raise bad_chunk(manifest, index, f"another block at byte {at}, which was right before", "on the disk")
        progress(manifest.size, manifest.size, "verify")
        self.seconds += time.monotonic() - began


def bad_chunk(manifest: Manifest, index: int, found: str, where: str = "in the image as received") -> AgentError:
    """A chunk that is not what the site signed."""
    offset, _ = manifest.extent(index)
    return AgentError(
        f"image {manifest.name} {manifest.version}: chunk {index} at byte {offset} is wrong {where}: "
        f"expected {manifest.chunks[index]}, found {found}",
        remedy="nothing boots from this disk now; check who can write to the image store, then publish the image again"
        if where.startswith("in")
        else "the drive does not return what was written: replace it",
    )


def refuse_small_disk(manifest: Manifest, serial: str, size: int) -> None:
    """Before the first byte."""
    if size < manifest.size:
        raise AgentError(
            f"disk {serial} has {size} bytes, image {manifest.name} {manifest.version} needs {manifest.size}",
            remedy="declare a larger disk or a smaller image",
        )


def write_image(
    serial: str, manifest: Manifest, image_url: str, progress: "Progress", *, root: str = "/"
) -> "dict[str, Any]":
    """Write and verify; the result says what was done. A failure leaves a disk that cannot boot."""
    name, path = claim_disk(serial, root)
    with BlockDevice(path) as device:
        refuse_small_disk(manifest, serial, device.size)
        was_blank = looks_blank(device)
        started, read_back = time.monotonic(), ReadBack(device, manifest)
        try:
            resumed = _write(device, manifest, image_url, progress, read_back)
            read_back.finish(progress)
        except BaseException:
            device.zero(*manifest.extent(0))
            device.flush()
            raise
        device.reread_partitions()
        seconds = time.monotonic() - started
    data = sum(manifest.extent(index)[1] for index in manifest.data_chunks())
    return {
        "device": name, "device_serial": serial, "name": manifest.name, "version": manifest.version,
        "bytes": manifest.size, "bytes_written": data, "bytes_zeroed": manifest.size - data,
        "chunks": len(manifest.chunks), "chunks_verified": len(manifest.chunks), "resumed": resumed,
        "disk_was_blank": was_blank,
        "write_seconds": round(seconds - read_back.seconds, 3), "verify_seconds": round(read_back.seconds, 3),
    }  # fmt: skip


def looks_blank(device: BlockDevice) -> bool:
    """Nothing but 00 or FF in the first and last MiB and in 64 places between. For the evidence; decides nothing."""
    from freehold.agent.canaries import BLOCK, EDGE, is_blank, seeded_offset

    edge = min(EDGE, device.size)
    if not (is_blank(device.read(0, edge)) and is_blank(device.read((device.size - edge) // BLOCK * BLOCK, edge))):
        return False
    offsets = (seeded_offset("blank", "sample", index, device.size, BLOCK) for index in range(64))
    return all(is_blank(device.read(offset, BLOCK)) for offset in offsets)


def _write(device: BlockDevice, manifest: Manifest, url: str, progress: "Progress", read_back: ReadBack) -> int:
    window = max(1, WINDOW_BYTES // manifest.chunk_size)
    download = Download(url, manifest.ranges())
    source = download if manifest.encoding == "raw" else ZstdStream(download)
    reader = ChunkReader(manifest, source, window + AHEAD)
    try:
        device.zero(*manifest.extent(0))
        tail = min(BACKING_DISK_TAIL, device.size - manifest.size) // 4096 * 4096
        if tail:
            device.zero(device.size // 4096 * 4096 - tail, tail)
        done = 0
        for offset, length in manifest.zero_runs():
            device.zero(offset, length)
            done += length
            progress(done, manifest.size, "write")
        first: list[tuple[int, mmap.mmap]] = []
        written: list[tuple[int, mmap.mmap]] = []

        def check() -> None:
            read_back.chunks(written)
            for _, buffer in written:
                reader.give_back(buffer)
            written.clear()

        for _ in manifest.data_chunks():
            index, buffer = reader.take()
            offset, length = manifest.extent(index)
            view = memoryview(buffer)[:length]
            found = sha256(view).hexdigest()
            if found != manifest.chunks[index]:
                raise bad_chunk(manifest, index, found)
            if index == 0:
                first.append((index, buffer))
            else:
                device.write(view, offset)
                written.append((index, buffer))
            if len(written) == window:
                check()
            done += length
            progress(done, manifest.size, "write")
        check()
        for _, buffer in first:
            device.write(memoryview(buffer)[: manifest.extent(0)[1]], 0)
        read_back.chunks(first)
    finally:
        reader.close()
    return download.resumed
