"""The live table: rows by owner, readable from another process."""

import json
import os
import subprocess
import sys

from superscaler.runtime.memory import Pool, live_table
from superscaler.runtime.memory.table import ROWS, MemoryTable

READ = """
import dataclasses, json, sys
from superscaler.runtime.memory.table import live_table
print(json.dumps([dataclasses.asdict(row) for row in live_table() if row.pid == int(sys.argv[1])]))
"""


def read_from_another_process() -> list[dict[str, object]]:
    output = subprocess.run([sys.executable, "-c", READ, str(os.getpid())], capture_output=True, text=True, check=True)
    return json.loads(output.stdout)


def test_another_process_sees_what_each_owner_has():
    with Pool("host", budget=64 << 20, name="looked at") as pool:
        a, b = pool.reserve(1 << 30, "weights"), pool.reserve(1 << 30, "kv")
        a.extend(4 << 20)
        b.share(a, 2 << 20)
        pid = os.getpid()
        rows = [row for row in read_from_another_process() if row["pool"] == "looked at"]
        expect = {"pid": pid, "pool": "looked at", "reserved": 1 << 30, "shared": 2 << 20}
        assert rows == [
            {**expect, "owner": "kv", "mapped": 2 << 20},
            {**expect, "owner": "weights", "mapped": 4 << 20},
        ]
    assert not [row for row in live_table() if row.pool == "looked at" and row.pid == os.getpid()]


def test_rows_are_used_again():
    table = MemoryTable()
    for _ in range(3):
        accounts = [table.open("pool", f"owner {index}") for index in range(ROWS)]
        accounts[0].add_mapped(5)
        assert all(account.index is not None for account in accounts)
        for account in accounts:
            table.close(account)
        assert accounts[0].mapped == 5
        assert accounts[0].index is None


def test_owners_beyond_the_table_are_counted_all_the_same():
    table = MemoryTable()
    for index in range(ROWS):
        table.open("pool", str(index))
    hidden = table.open("pool", "one too many")
    hidden.add_mapped(7)
    assert (hidden.mapped, hidden.index) == (7, None)
    table.close(hidden)


def test_long_and_foreign_names_do_no_harm():
    table = MemoryTable()
    account = table.open("p" * 500, "ß" * 500)
    account.add_reserved(1)
    assert account.row().reserved == 1
