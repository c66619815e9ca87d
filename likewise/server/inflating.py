"""Inflating bodies that come with a Content-Encoding, as a stream."""

import zlib

from likewise.errors import Malformed

# At a time, so that neither memory nor the other requests wait for what a few bytes inflate to.
PIECE_BYTES = 64 * 2**10
# Members of a gzip file that hold less than SMALL_BYTES: each takes as long to begin as some KiB to inflate, and 2.5
# million empty ones in 50 MB kept all other requests waiting for 14 s. Writers of many members put 64 KiB in each.
MAX_SMALL_MEMBERS, SMALL_BYTES = 1_024, 2**10
# What inflates to more than MAX_RATIO times its own bytes is a bomb: spans that repeat a prompt of 10 KB come to 65,
# one letter to 230 or 1,020, by the level. Up to RATIO_FROM_BYTES it is no burden, however dense.
MAX_RATIO, RATIO_FROM_BYTES = 200, 2**20
_GZIP = zlib.MAX_WBITS | 16


class Inflater:
    """Inflates one body: `feed` it what has come, then take `piece` after piece until one is empty."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._stream: zlib._Decompress | None = None
        self._input = b""
        self._member_bytes = 0
        self._small_members = 0
        self._fed = 0
        self.inflated = 0

    @property
    def is_bomb(self) -> bool:
        """True if it has inflated to far more than what came of it."""
        return self.inflated > max(RATIO_FROM_BYTES, MAX_RATIO * self._fed)

    def feed(self, data: bytes) -> None:
        """Take in compressed bytes."""
        self._input += data
        self._fed += len(data)

    def piece(self) -> bytes:
        """Return the next bytes, PIECE_BYTES at most, none where more must come first; Malformed if it is broken."""
        while True:
            if self._stream is None:
                if not self._input or (self._coding == "deflate" and len(self._input) < 2):
                    return b""
                self._stream = zlib.decompressobj(_GZIP if self._coding == "gzip" else _wbits(self._input))
            try:
                piece = self._stream.decompress(self._input, PIECE_BYTES)
            except zlib.error:
                raise self._broken() from None
            self._input = self._stream.unconsumed_tail
            self._member_bytes += len(piece)
            self.inflated += len(piece)
            if self._stream.eof:
                # A gzip file may have several members, one after the other.
                self._count_member()
                self._input, self._stream = self._stream.unused_data, None
                if self._input and self._coding != "gzip":
                    raise self._broken()
            elif not piece:
                return b""
            if piece:
                return piece

    def end(self) -> None:
        """Malformed if the body is over and what it holds is not."""
        if self._stream is not None or self._input:
            raise self._broken()

    def _count_member(self) -> None:
        self._small_members += self._member_bytes < SMALL_BYTES
        self._member_bytes = 0
        if self._small_members > MAX_SMALL_MEMBERS:
            raise Malformed("The body is a gzip of too many small members; compress it as one.")

    def _broken(self) -> Malformed:
        return Malformed(f"The body is not the {self._coding} that its Content-Encoding names.")


def _wbits(data: bytes) -> int:
    """Return the format of what HTTP calls deflate: zlib's (RFC 1950), or the bare stream that some clients send."""
    return zlib.MAX_WBITS if data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0 else -zlib.MAX_WBITS
