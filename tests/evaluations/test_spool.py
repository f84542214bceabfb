from evaluations.spool import HELD_BYTES, Spool


def test_a_spool_gives_back_each_of_very_many_shards_in_order():
    line = b"x" * 1000 + b"\n"
    with Spool() as spool:
        for number in range(2 * HELD_BYTES // len(line)):
            for shard in ("b", "a"):
                spool.write(shard, f"{shard}{number}".encode() + line)
        for number in range(2000):
            spool.write(f"c{number}", line)

        with spool.opened("a") as part:
            found = part.readlines()
        assert [row.removesuffix(line) for row in found] == [f"a{n}".encode() for n in range(len(found))]
        assert len(found) == 2 * HELD_BYTES // len(line)
        assert spool.shards[:2] == ["a", "b"]
        assert len(spool.shards) == 2002
