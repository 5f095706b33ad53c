#!/usr/bin/env python3
"""Lists a directory from the bytes of its two devices, by directory.md alone.

    read_directory.py NAMES_DEVICE ATTRIBUTES_DEVICE NAMES_FILE ATTRIBUTES_FILE [OUT_FOLDER]

The files are what read_device.py gave for the two devices.  One line for each entry: kind, id,
size, where the bytes are, name.  With OUT_FOLDER, inline bytes are written there by name.
Standard library only; ends with 1 where the log is damaged.
"""

import os
import struct
import sys

KINDS = ["", "file", "directory", "symlink", "fifo", "socket", "block", "character"]


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
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def short(self):
        return self.take(self.number("B"))

    def long(self):
        return self.take(self.number("I"))

    def layout(self):
        """A layout as text, or none."""
        count = self.number("B")
        if count == 0:
            return None
        devices = [self.number("Q") for _ in range(count)]
        scheme = self.short().decode()
        strip, generation = self.number("I"), self.number("I")
        disks = [self.number("I") for _ in range(self.number("B"))]
        return {"devices": devices, "scheme": scheme, "strip": strip, "disks": disks}


def root(data, device, role):
    best = None
    for slot in range(2):
        page = data[slot * 4096 : slot * 4096 + 4096]
        fits = (
            len(page) == 4096
            and page[:8] == b"BRAIDDIR"
            and struct.unpack_from("<I", page, 8)[0] in (1, 2)
            and page[12] == role
            and struct.unpack_from("<Q", page, 16)[0] == device
            and struct.unpack_from("<I", page, 4092)[0] == crc32c(page[:4092])
        )
        if fits:
            found = struct.unpack_from("<QQQQQII", page, 24)
            best = max(best, found) if best else found
    return best or sys.exit(f"device {device}: no valid root slot")


def records(data, device, role):
    _, at, size, log_at, sequence, generation, chain = root(data, device, role)
    yield from part(data, device, at, at + size, 1, generation, 0)
    yield from part(data, device, log_at, len(data), sequence, generation, chain)


def part(data, device, at, end, sequence, generation, chain):
    while at < end:
        head = data[at : at + 32]
        if len(head) < 32:
            sys.exit(f"device {device}: broken record at byte {at}")
        crc, size, of, number, of_generation, kind = struct.unpack_from("<IIQQIB", head, 0)
        whole = data[at + 4 : at + 32 + size]
        fits = (of, number, of_generation) == (device, sequence, generation)
        if not fits or crc32c(struct.pack("<I", chain) + whole) != crc or at + 32 + size > end:
            sys.exit(f"device {device}: broken record at byte {at}")
        body = whole[28:]
        at, sequence, chain = at + 32 + size, sequence + 1, crc
        if kind == 255:
            at, generation = struct.unpack("<Q", body)[0], generation + 1
        else:
            yield kind, Reader(body)


def read_names(data, device):
    names = {}
    for kind, body in records(data, device, 0):
        if kind == 1:
            cookie, number, what = body.number("Q"), body.number("Q"), body.number("B")
            name = body.short()
            names[name] = (cookie, number, KINDS[what], body.layout())
        elif kind == 2:
            names.pop(body.short(), None)
    return names


def read_attributes(data, device):
    attributes, intents = {}, {}
    for kind, body in records(data, device, 1):
        if kind == 16:
            number = body.number("Q")
            body.take(1 + 3 * 4)
            size = body.number("Q")
            body.take(4 + 4 * 12 + 8 + 8)
            tag = body.number("B")
            where = body.long() if tag == 1 else body.layout() if tag == 2 else None
            body.take(4 + 3 * 8 if tag == 2 else 0)
            target = body.take(body.number("H")) if body.number("B") else None
            attributes[number] = (size, where, target)
        elif kind == 17:
            attributes.pop(body.number("Q"), None)
        elif kind == 24:
            change = body.number("Q"), body.number("Q")
            intents[change] = body.layout()["devices"][1]
        elif kind == 25:
            intents.pop((body.number("Q"), body.number("Q")), None)
    for change, primary in intents.items():
        print(f"in doubt: change {change}, see the records of device {primary}", file=sys.stderr)
    return attributes


def main():
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    with open(sys.argv[3], "rb") as file:
        names = read_names(file.read(), int(sys.argv[1]))
    with open(sys.argv[4], "rb") as file:
        attributes = read_attributes(file.read(), int(sys.argv[2]))
    for name, (_, number, kind, home) in sorted(names.items(), key=lambda item: item[1][0]):
        shown = os.fsdecode(name)
        if home:
            print(kind, number, "-", f"elsewhere:{home['devices']}", shown)
            continue
        size, where, target = attributes[number]
        if isinstance(where, bytes):
            print(kind, number, size, "inline", shown)
            if len(sys.argv) == 6:
                with open(os.path.join(os.fsencode(sys.argv[5]), name), "wb") as out:
                    out.write(where)
        elif where:
            print(kind, number, size, f"device:{where['devices'][0]} {where['scheme']}", shown)
        else:
            print(kind, number, size, f"-> {os.fsdecode(target)}" if target else "-", shown)


if __name__ == "__main__":
    main()
