"""Prints what lies in a multiproc segment:        read_segment.py NAME
Writes an element of a raw array of numbers:    read_segment.py NAME OBJECT INDEX NUMBER
"""
import ast, json, math, mmap, struct, sys

KINDS = {1: "mutex", 2: "value", 3: "raw value", 4: "array", 5: "raw array"}
CODES = dict(b1="?", U1="I", u1="B", i1="b", u2="H", i2="h", u4="I", i4="i", u8="Q", i8="q", f4="f", f8="d")

def objects(memory):
    """The directory: a dict for each object, by its name."""
    order = 1 if sys.byteorder == "little" else 2
    if struct.unpack_from("=8sIBB", memory) != (b"multiprc", 1, 8, order):
        raise ValueError("no segment of layout version 1 with 64 bits and this byte order")
    found, (entry,) = {}, struct.unpack_from("=Q", memory, 168)
    while entry:
        older, offset, size, _, count, kind, _, *lens = struct.unpack_from("=5Q2I3H", memory, entry)
        ends = [entry + 64 + sum(lens[:texts]) for texts in range(4)]
        name, type_name, dtype = (memory[start:end].decode() for start, end in zip(ends, ends[1:]))
        dtype = ast.literal_eval(dtype) if dtype.startswith("[") else dtype
        found[name] = dict(kind=KINDS[kind], type=type_name, dtype=dtype, count=count, offset=offset, size=size)
        entry = older
    return found

def form(dtype):
    """A dtype as `struct` has it, without nesting: all numbers in a row."""
    if isinstance(dtype, list):
        return "".join(form(field) for _, field in dtype)
    shape, _, number = dtype.rpartition(")")
    return f"{math.prod(ast.literal_eval(shape + ')')) if shape else 1}{CODES[number[1:]]}"

def contents(memory, one):
    """A tuple of numbers for each element; None where the dtype is not known, and for a mutex."""
    if not one["dtype"] or one["kind"] == "mutex":
        return None
    element, base, stride = struct.Struct("=" + form(one["dtype"])), one["offset"], (one["size"] - 64) // 2
    if one["kind"] in ("array", "raw array"):
        return [element.unpack_from(memory, base + 128 + index * element.size) for index in range(one["count"])]
    if one["kind"] == "raw value" or stride == 0:
        return [element.unpack_from(memory, base + (64 if stride else 56))]
    while True:
        version, = struct.unpack_from("=Q", memory, base + 56)
        value = element.unpack_from(memory, base + 64 + (version & 1) * stride)
        if struct.unpack_from("=Q", memory, base + 56) == (version,):
            return [value]

def as_numpy(name, one):
    """The elements of an array in place: what one side writes, the other reads."""
    import numpy
    return numpy.memmap("/dev/shm/" + name, one["dtype"], "r+", one["offset"] + 128, (one["count"],))

if __name__ == "__main__":
    name, *change = sys.argv[1:]
    with open("/dev/shm/" + name, "r+b" if change else "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if change else mmap.ACCESS_READ)
    found = objects(memory)
    if not change:
        print(json.dumps({key: dict(one, contents=contents(memory, one)) for key, one in found.items()}))
        raise SystemExit
    one, index, number = found[change[0]], int(change[1]), ast.literal_eval(change[2])
    if one["kind"] != "raw array" or not 0 <= index < one["count"]:
        raise SystemExit("only an element of a raw array may be written")
    element = struct.Struct("=" + form(one["dtype"]))
    element.pack_into(memory, one["offset"] + 128 + index * element.size, number)
