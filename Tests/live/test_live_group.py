"""Several drives, one instant."""

import json

from images import MiB, raw
from servers import Drive

COUNTER = 512


def value_at(content, offset):
    block = content[offset:offset + COUNTER]
    assert block == block[:8] * (COUNTER // 8), f"torn block at {offset}"
    return int.from_bytes(block[:8], "big")


def test_dependent_writes_over_three_drives_are_cut_at_one_instant(served, clients, images, targets, seed):
    drives = [
        Drive(name, raw(images / f"{name}.raw", 2 * MiB, []), "raw") for name in ("a", "b", "c")]
    server = served(*drives)
    writer = clients.counters([server.endpoint(drive) for drive in drives])
    seen = set()
    for turn in range(12):
        before = writer.ask("value")["value"]
        backups = server.group([(drive, targets / f"{turn}-{drive.id}.raw") for drive in drives], "raw", "4M")
        after = writer.ask("value")["value"]
        for backup in backups:
            backup.wait()
        contents = [(targets / f"{turn}-{drive.id}.raw").read_bytes() for drive in drives]
        values = [value_at(content, 0) for content in contents]
        a, b, c = values
        # n goes to a, then to b, then to c: whoever has seen a later one has seen all before it.
        assert a >= b >= c >= a - 1, f"backup {turn}: {values} is no instant"
        assert before - 1 <= c and a <= after + 1, f"backup {turn}: {values} is not between {before} and {after}"
        for content, value in zip(contents, values):
            slots = len(content) // COUNTER - 1
            # The slot is written before the counter.
            newest = max(value_at(content, offset) for offset in range(COUNTER, len(content), COUNTER))
            assert newest in (value, value + 1), f"backup {turn}: counter {value}, newest slot {newest}"
            for old in range(max(1, value - slots + 2), value + 1):
                found = value_at(content, (1 + old % slots) * COUNTER)
                assert found == old, f"backup {turn}: the slot of {old} holds {found}"
        seen.add(tuple(value - c for value in values))
        for drive in drives:
            (targets / f"{turn}-{drive.id}.raw").unlink()
    print(json.dumps(sorted(seen)))
    writer.end()
