"""Manifests as docs/manifest.md describes them, computed with Python's own means: the judge of the agent's."""

import hashlib
import json
from pathlib import Path

import xxhash

ALGORITHMS = {
    "xxh3-128": lambda data: xxhash.xxh3_128(data).digest(),
    "sha-256": lambda data: hashlib.sha256(data).digest(),
}


def path_of(target):
    return Path(f"{target}.manifest.json")


def load(target):
    return json.loads(path_of(target).read_text())


def covered_blocks(entry, count):
    """The numbers of an extent's covered blocks."""
    if "blocks" in entry:
        blocks = []
        for word in entry["blocks"].split(","):
            first, _, last = word.partition("-")
            blocks += range(int(first), int(last or first) + 1)
        return blocks
    if "bitmap" in entry:
        bits = bytes.fromhex(entry["bitmap"])
        return [block for block in range(count) if bits[block // 8] >> block % 8 & 1]
    return list(range(count))


def judge(manifest, content):
    """Compares a manifest with the content that it should be of; returns the blocks that it covers."""
    assert manifest["state"] == "complete" and manifest["end"] is True
    size, block_size, extent_size = (manifest[name] for name in ("size", "block_size", "extent_size"))
    assert size == len(content)
    digest = ALGORITHMS[manifest["checksum"]]
    covered, next_offset = [], 0
    for entry in manifest["extents"]:
        offset = entry["offset"]
        assert offset >= next_offset and offset % extent_size == 0, entry
        length = entry.get("length", min(extent_size, size - offset))
        next_offset = offset + length
        if entry.get("zero"):
            assert not any(content[offset:next_offset]), entry
            covered += range(offset // block_size, -(-next_offset // block_size))
            continue
        count = -(-length // block_size)
        numbers = covered_blocks(entry, count)
        assert numbers and all(0 <= number < count for number in numbers), entry
        parts = [
            content[start:min(start + block_size, size)]
            for start in (offset + number * block_size for number in numbers)]
        assert digest(b"".join(digest(part) for part in parts)).hex() == entry["digest"], entry
        covered += [offset // block_size + number for number in numbers]
    return covered
