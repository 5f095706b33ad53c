#!/usr/bin/env python3
"""Reads one device back from bare disk folders, by the pages of this folder alone.

    read_device.py DEVICE OUT DISK_FOLDER...

Any m of the n disks may be missing.  The cluster must be down, or the device at rest for some
seconds: what stands only in a journal is not read.  Standard library only; says what it found on
standard error, and ends with 1 where bytes cannot be had.
"""

import os
import struct
import sys

BLOCK = 4096
GROUP = 512


def crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    table = CRC_TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def mul(a, b):
    product = 0
    while b:
        if b & 1:
            product ^= a
        b >>= 1
        a <<= 1
        if a & 0x100:
            a ^= 0x11D
    return product


def inverse(a):
    return next(b for b in range(1, 256) if mul(a, b) == 1)


def coefficient(i, j):
    return mul(mul(32 ^ j, 32 + i), inverse(mul((32 + i) ^ j, 32)))


TIMES = {}


def scaled(factor, data):
    """`factor` times each byte."""
    if factor not in TIMES:
        TIMES[factor] = bytes(mul(factor, value) for value in range(256))
    return data.translate(TIMES[factor])


def xor(left, right):
    size = len(left)
    both = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return both.to_bytes(size, "little")


class Decoder:
    """How the data units come from k chosen units."""

    def __init__(self, k, chosen):
        self.chosen = chosen
        rows = []
        for place, unit in enumerate(chosen):
            row = [int(j == unit) if unit < k else coefficient(unit - k, j) for j in range(k)]
            rows.append(row + [int(place == at) for at in range(k)])
        for column in range(k):
            pivot = next(r for r in range(column, k) if rows[r][column])
            rows[column], rows[pivot] = rows[pivot], rows[column]
            scale = inverse(rows[column][column])
            rows[column] = [mul(scale, value) for value in rows[column]]
            for r in range(k):
                factor = rows[r][column]
                if r != column and factor:
                    rows[r] = [a ^ mul(factor, b) for a, b in zip(rows[r], rows[column])]
        self.rows = [row[k:] for row in rows]

    def data_unit(self, unit, blocks):
        """Bytes of data unit `unit` from the blocks of the chosen units."""
        total = bytes(BLOCK)
        for factor, source in zip(self.rows[unit], self.chosen):
            if factor:
                total = xor(total, scaled(factor, blocks[source]))
        return total


class Portion:
    """One portion file; a block is bytes, or None where it is lost."""

    def __init__(self, path, device, index, count):
        self.path = path
        self.names = (device, index, count)
        self.file = open(path, "rb")
        self.pages = {}
        header = self.page(0)
        if not isinstance(header, bytes):
            raise ValueError("no valid header")
        self.generation = struct.unpack_from("<I", header, 68)[0]
        self.scheme = header[72:96].rstrip(b"\0").decode()
        self.strip = struct.unpack_from("<I", header, 96)[0]
        self.length = struct.unpack_from("<Q", header, 120)[0]
        self.applied = struct.unpack_from("<3Q", header, 128)

    def page(self, group):
        """The page of a block group that counts: bytes, None if never written, False if lost."""
        if group not in self.pages:
            best, written = None, False
            for slot in range(2):
                self.file.seek((group * (GROUP + 2) + slot) * BLOCK)
                page = self.file.read(BLOCK)
                if len(page) < BLOCK or not any(page):
                    continue
                written = True
                if self.valid(page, group):
                    generation = struct.unpack_from("<Q", page, 48)[0]
                    if best is None or generation > best[0]:
                        best = (generation, page)
            self.pages[group] = best[1] if best else (False if written else None)
        return self.pages[group]

    def valid(self, page, group):
        magic = b"BRAIDSUM" if group else b"BRAIDPRT"
        device, index, count = struct.unpack_from("<QBB", page, 56)
        return (
            page[:8] == magic
            and struct.unpack_from("<I", page, 8)[0] == 1
            and (device, index, count) == self.names
            and (group == 0 or struct.unpack_from("<Q", page, 72)[0] == group)
            and struct.unpack_from("<I", page, 4092)[0] == crc32c(page[:4092])
        )

    def block(self, number):
        group, place = divmod(number, GROUP)
        page = self.page(group)
        if page is None:
            return bytes(BLOCK)
        if page is False:
            return None
        if not page[1920 + place // 8] >> place % 8 & 1:
            return bytes(BLOCK)
        self.file.seek((group * (GROUP + 2) + 2 + place) * BLOCK)
        block = self.file.read(BLOCK)
        block += bytes(BLOCK - len(block))
        if crc32c(block) != struct.unpack_from("<I", page, 1984 + 4 * place)[0]:
            print(f"{self.path}: block {number} does not fit its checksum", file=sys.stderr)
            return None
        return block


def counts(scheme):
    family, numbers = scheme.split("/")
    parts = [int(number) for number in numbers.split("+")]
    if family == "raid1":
        return 1, parts[0] - 1
    return (parts[0], parts[1] if len(parts) > 1 else 0)


def find_portions(device, folders):
    hashed = device * 0x9E3779B97F4A7C15 % 2**64 >> 56
    portions = {}
    for folder in folders:
        place = os.path.join(folder, "portions", f"{hashed:02x}")
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
            number, index, count = (int(part) for part in name.split("-"))
            if number != device:
                continue
            try:
                portion = Portion(os.path.join(place, name), number, index, count)
            except ValueError as reason:
                print(f"{name}: {reason}", file=sys.stderr)
                continue
            portions[index - 1] = portion
            print(f"{name}: {portion.scheme}, length {portion.length}", file=sys.stderr)
    if not portions:
        sys.exit("no portion of this device is here")
    newest = max(portion.generation for portion in portions.values())
    return {unit: p for unit, p in portions.items() if p.generation == newest}


class Device:
    def __init__(self, portions):
        self.portions = portions
        newest = max(portions.values(), key=lambda portion: portion.applied)
        self.length, self.strip = newest.length, newest.strip
        self.k, self.m = counts(newest.scheme)
        self.decoders = {}
        self.cached = (None, {})

    def row(self, number):
        """Data blocks of a row, by unit: all k of them."""
        if self.cached[0] == number:
            return self.cached[1]
        blocks = {}
        for unit in range(self.k + self.m):
            if len(blocks) == self.k and unit >= self.k:
                break
            portion = self.portions.get(unit)
            block = portion.block(number) if portion else None
            if block is not None:
                blocks[unit] = block
        if len(blocks) < self.k:
            sys.exit(f"row {number}: only {len(blocks)} of {self.k} blocks can be read")
        chosen = tuple(sorted(blocks)[: self.k])
        if chosen not in self.decoders:
            self.decoders[chosen] = Decoder(self.k, chosen)
        decoder = self.decoders[chosen]
        lost = [unit for unit in range(self.k) if unit not in blocks]
        row = dict(blocks)
        for unit in lost:
            row[unit] = decoder.data_unit(unit, blocks)
        self.cached = (number, row)
        return row

    def content(self, unit, at, size):
        """Bytes of a data portion's content, within one block."""
        within = at % BLOCK
        return self.row(at // BLOCK)[unit][within : within + size]

    def read_stripe(self, stripe):
        """Bytes of one stripe, row by row so that each row is decoded once."""
        units = [bytearray() for _ in range(self.k)]
        at, end = stripe * self.strip, (stripe + 1) * self.strip
        left = self.length - stripe * self.strip * self.k
        end = min(end, at + max(0, min(left, self.strip)))
        while at < end:
            size = min(end - at, BLOCK - at % BLOCK)
            for unit in range(self.k):
                units[unit] += self.content(unit, at, size)
            at += size
        whole = bytearray()
        for unit in range(self.k):
            have = max(0, min(self.strip, left - unit * self.strip))
            whole += units[unit][:have]
        return whole


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    device = Device(find_portions(int(sys.argv[1]), sys.argv[3:]))
    with open(sys.argv[2], "wb") as out:
        size = device.strip * device.k
        for stripe in range((device.length + size - 1) // size):
            out.write(device.read_stripe(stripe))
        out.truncate(device.length)


if __name__ == "__main__":
    main()
